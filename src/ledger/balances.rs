//! Balances that are asked for, read together.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::answers::LOG_GRACE;
use super::{Backlog, Place, SHARED_GRACE, Unavailable, Waiting, take_waiting};
use crate::config::LedgerConfig;
use crate::domain::{CallerName, Timestamp, UserId};
use crate::metrics::{BatchKind, Metrics, Statement};
use crate::operations_log::{Lines, OperationName, Outcome, Record, Written};
use crate::store::{LedgerStore, repeat_read};
use crate::telemetry::{RequestContext, caused_by, shared_by};

/// The most balances of one statement: more than are asked for at once in any but the greatest rush, and few enough for a
/// statement to end in a few milliseconds.
const MAX_TOGETHER: usize = 1_024;

/// Whose balance is asked for, and as of when.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whose.
    pub user_id: UserId,
    /// As of when.
    pub at: Timestamp,
    /// Who asks, where callers are known.
    pub caller: Option<CallerName>,
}

/// A question that waits for its answer.
struct Asked {
    question: Question,
    place: Place,
    waiting: Waiting,
    answer: oneshot::Sender<Result<(UserId, i64), Unavailable>>,
}

/// The way to the balances.
pub(super) struct Balances {
    questions: mpsc::Sender<Asked>,
    backlog: Arc<Backlog>,
}

/// A task that answers questions, a statement at a time. Whichever is free takes all that wait.
struct Reader<S> {
    asked: Arc<Mutex<mpsc::Receiver<Asked>>>,
    store: Arc<S>,
    metrics: Arc<Metrics>,
}

impl Balances {
    /// Starts the tasks that answer questions; they end when this is dropped.
    pub(super) fn start<S: LedgerStore>(store: &Arc<S>, metrics: &Arc<Metrics>, config: LedgerConfig) -> Self {
        // Each question holds one of the places of operations under way, so the queue is never full.
        let (questions, asked) = mpsc::channel(config.operations_in_flight);
        let asked = Arc::new(Mutex::new(asked));
        for _ in 0..config.read_statements {
            let reader = Reader {
                asked: Arc::clone(&asked),
                store: Arc::clone(store),
                metrics: Arc::clone(metrics),
            };
            tokio::spawn(reader.run());
        }
        let backlog = Backlog::new(config.longest_wait);
        Self { questions, backlog }
    }

    pub(super) fn waiting(&self) -> usize {
        self.backlog.waiting()
    }

    pub(super) fn is_full(&self) -> bool {
        self.backlog.is_full()
    }

    pub(super) async fn ask(&self, question: Question, place: Place) -> Result<(UserId, i64), Unavailable> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            question,
            place,
            waiting: self.backlog.enter(),
            answer,
        };
        match self.questions.try_send(asked) {
            // Only a panic drops the other end.
            Ok(()) => answered.await.unwrap_or(Err(Unavailable::Internal)),
            Err(_) => Err(Unavailable::Internal),
        }
    }
}

impl<S: LedgerStore> Reader<S> {
    async fn run(self) {
        let mut before = 0;
        loop {
            // In a statement of its own: the guard must not live on while the balances are read.
            let together = take_waiting(&mut *self.asked.lock().await, MAX_TOGETHER, before).await;
            let Some(together) = together else {
                return;
            };
            before = together.len();
            // Should it panic, those who asked are told, and the others are answered all the same.
            if AssertUnwindSafe(self.answer(together)).catch_unwind().await.is_err() {
                tracing::error!("the answers of a batch of balances were not given");
            }
        }
    }

    async fn answer(&self, together: Vec<Asked>) {
        self.metrics.ledger.batch(BatchKind::Read, together.len());
        let now = Instant::now();
        let (in_time, late): (Vec<_>, Vec<_>) =
            together.into_iter().partition(|question| question.place.deadline > now);
        answer(late, Err(Unavailable::Overloaded)).await;
        // Should it panic, the questions are still here, and get their lines.
        let reading = AssertUnwindSafe(self.read(&in_time)).catch_unwind();
        let balances = reading.await.unwrap_or_else(|_| {
            caused_by(requests(&in_time), || {
                tracing::error!("a batch of balances was not read")
            });
            Err(Unavailable::Internal)
        });
        self.metrics.ledger.batch_took(BatchKind::Read, now.elapsed());
        answer(in_time, balances).await;
    }

    async fn read(&self, questions: &[Asked]) -> Result<Vec<i64>, Unavailable> {
        let Some(first) = questions.iter().map(|question| question.place.deadline).min() else {
            return Ok(Vec::new());
        };
        let deadline = first.max(Instant::now() + SHARED_GRACE);
        let user_ids: Vec<_> = questions.iter().map(|asked| asked.question.user_id.as_str()).collect();
        let moments: Vec<_> = questions.iter().map(|asked| asked.question.at).collect();
        let balances = repeat_read(deadline, || {
            let reading = self.store.balances_at(&user_ids, &moments, deadline);
            self.metrics.database.statement(Statement::ReadBalances, reading)
        });
        let balances = shared_by(requests(questions), balances)
            .await
            .map_err(|error| caused_by(requests(questions), || Unavailable::from(error)))?;
        if balances.len() == questions.len() {
            Ok(balances)
        } else {
            tracing::error!(
                asked = questions.len(),
                answered = balances.len(),
                "not as many balances as asked for"
            );
            Err(Unavailable::Internal)
        }
    }
}

/// What asked them.
fn requests(questions: &[Asked]) -> impl Iterator<Item = Option<&Arc<RequestContext>>> {
    questions.iter().map(|question| question.place.request.as_ref())
}

/// Writes the lines, then tells who asked.
async fn answer(questions: Vec<Asked>, balances: Result<Vec<i64>, Unavailable>) {
    let Some(first) = questions.iter().map(|question| question.place.deadline).min() else {
        return;
    };
    let mut lines = Lines::now();
    let mut waiting = Vec::with_capacity(questions.len());
    for (index, question) in questions.into_iter().enumerate() {
        let balance = balances
            .as_ref()
            .map(|balances| balances[index])
            .map_err(|error| *error);
        let Asked {
            question: Question { user_id, at, caller },
            place,
            waiting: held,
            answer,
        } = question;
        let outcome = match balance {
            Ok(_) => Outcome::Accepted,
            Err(unavailable) => Outcome::Problem(unavailable.code()),
        };
        let record = Record {
            timestamp: Some(at),
            balance: balance.ok(),
            caller: caller.as_ref(),
            ..Record::new(OperationName::GetBalance, outcome, &user_id)
        };
        lines.push(place.slot, &record);
        waiting.push((
            answer,
            balance.map(|balance| (user_id, balance)),
            (place.under_way, held),
        ));
    }
    let latest = first.max(Instant::now()) + LOG_GRACE;
    let written = timeout_at(latest, lines.write()).await.unwrap_or(Written::NOT_IN_TIME);
    let well = waiting.iter().filter(|(_, balance, _)| balance.is_ok()).count();
    if let Some((_, _, (_, held))) = waiting.first() {
        held.answered(well);
    }
    for (index, (answer, balance, held)) in waiting.into_iter().enumerate() {
        let line = written.line(index).map_err(Unavailable::from);
        // A caller that has gone does not need it.
        let _ = answer.send(line.and(balance));
        drop(held);
    }
}
