//! Figures that are asked for, read together: one reading for all that wait.
//!
//! Each figure has a queue and tasks of its own, so that those that take longer never hold up balances, which are the bulk.

use std::iter::repeat_n;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::answers::LOG_GRACE;
use super::{Backlog, Place, SHARED_GRACE, Unavailable, Waiting, take_waiting};
use crate::config::LedgerConfig;
use crate::domain::{CallerName, Timestamp, UserId};
use crate::metrics::{BatchKind, Metrics};
use crate::operations_log::{Lines, OperationName, Outcome, Record, Written};
use crate::store::{LedgerStore, Reading, StoreError};
use crate::telemetry::{RequestContext, caused_by, shared_by};

/// The most figures of one statement: more than are asked for at once in any but the greatest rush, and few enough for a
/// statement to end in a few milliseconds.
const MAX_TOGETHER: usize = 1_024;

/// How often a batch that PostgreSQL refuses is divided: enough to find a few questions among the most there can be.
const MOST_REFUSALS: u32 = 24;

/// What is asked of a user as of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// The balance: the sum of all operations stamped at or before the moment.
    Balance,
    /// The largest withdrawal that would be accepted at the moment: the lowest balance from then on.
    Available,
}

/// Whose figure is asked for, and as of when.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whose.
    pub user_id: UserId,
    /// Which.
    pub figure: Figure,
    /// As of when.
    pub at: Timestamp,
    /// Who asks, where callers are known.
    pub caller: Option<CallerName>,
}

impl Question {
    /// The line of the operations log that tells of it and of its answer.
    pub fn record(&self, answer: Result<i64, Unavailable>) -> Record<'_> {
        let (operation, balance, available) = match self.figure {
            Figure::Balance => (OperationName::GetBalance, answer.ok(), None),
            Figure::Available => (OperationName::GetAvailable, None, answer.ok()),
        };
        let outcome = match answer {
            Ok(_) => Outcome::Accepted,
            Err(unavailable) => Outcome::Problem(unavailable.code()),
        };
        Record {
            timestamp: Some(self.at),
            balance,
            available,
            caller: self.caller.as_ref(),
            ..Record::new(operation, outcome, &self.user_id)
        }
    }
}

/// A question that waits for its answer.
struct Asked {
    question: Question,
    place: Place,
    waiting: Waiting,
    answer: oneshot::Sender<Result<(UserId, Reading), Unavailable>>,
}

/// The ways to the figures.
pub(super) struct Readings {
    balances: Queue,
    available: Queue,
}

/// The way to one figure.
struct Queue {
    questions: mpsc::Sender<Asked>,
    backlog: Arc<Backlog>,
}

/// A task that answers the questions for one figure, a statement at a time. Whichever is free takes all that wait.
struct Reader<S> {
    figure: Figure,
    asked: Arc<Mutex<mpsc::Receiver<Asked>>>,
    store: Arc<S>,
    metrics: Arc<Metrics>,
}

impl Readings {
    /// Starts the tasks that answer questions; they end when this is dropped.
    pub(super) fn start<S: LedgerStore>(store: &Arc<S>, metrics: &Arc<Metrics>, config: LedgerConfig) -> Self {
        let queue = |figure, statements| Queue::start(figure, statements, store, metrics, config);
        Self {
            balances: queue(Figure::Balance, config.read_statements),
            // Asked for much less often; one statement holds as many as wait.
            available: queue(Figure::Available, 1),
        }
    }

    fn queue(&self, figure: Figure) -> &Queue {
        match figure {
            Figure::Balance => &self.balances,
            Figure::Available => &self.available,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.balances.backlog.waiting() + self.available.backlog.waiting()
    }

    pub(super) fn is_full(&self, figure: Figure) -> bool {
        self.queue(figure).backlog.is_full()
    }

    pub(super) async fn ask(&self, question: Question, place: Place) -> Result<(UserId, Reading), Unavailable> {
        let queue = self.queue(question.figure);
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            question,
            place,
            waiting: queue.backlog.enter(),
            answer,
        };
        match queue.questions.try_send(asked) {
            // Only a panic drops the other end.
            Ok(()) => answered.await.unwrap_or(Err(Unavailable::Internal)),
            Err(_) => Err(Unavailable::Internal),
        }
    }
}

impl Queue {
    fn start<S: LedgerStore>(
        figure: Figure,
        statements: usize,
        store: &Arc<S>,
        metrics: &Arc<Metrics>,
        config: LedgerConfig,
    ) -> Self {
        // Each question holds one of the places of operations under way, so the queue is never full.
        let (questions, asked) = mpsc::channel(config.operations_in_flight);
        let asked = Arc::new(Mutex::new(asked));
        for _ in 0..statements {
            let reader = Reader {
                figure,
                asked: Arc::clone(&asked),
                store: Arc::clone(store),
                metrics: Arc::clone(metrics),
            };
            tokio::spawn(reader.run());
        }
        let backlog = Backlog::new(config.longest_wait);
        Self { questions, backlog }
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
                tracing::error!("the answers of a batch of questions were not given");
            }
        }
    }

    async fn answer(&self, together: Vec<Asked>) {
        self.metrics.ledger.batch(BatchKind::Read, together.len());
        let now = Instant::now();
        let (in_time, late): (Vec<_>, Vec<_>) =
            together.into_iter().partition(|question| question.place.deadline > now);
        let too_late = vec![Err(Unavailable::Overloaded); late.len()];
        answer(late, too_late).await;
        // Should it panic, the questions are still here, and get their lines.
        let reading = AssertUnwindSafe(shared_by(requests(&in_time), self.read(&in_time))).catch_unwind();
        let readings = reading.await.unwrap_or_else(|_| {
            caused_by(requests(&in_time), || {
                tracing::error!("a batch of questions was not read")
            });
            vec![Err(Unavailable::Internal); in_time.len()]
        });
        self.metrics.ledger.batch_took(BatchKind::Read, now.elapsed());
        answer(in_time, readings).await;
    }

    /// A reading for each question, in their order. Where PostgreSQL refuses a statement, each half of it is asked by itself:
    /// a user whose rows it cannot compute with fails alone.
    async fn read(&self, questions: &[Asked]) -> Vec<Result<Reading, Unavailable>> {
        let Some(first) = questions.iter().map(|question| question.place.deadline).min() else {
            return Vec::new();
        };
        let deadline = first.max(Instant::now() + SHARED_GRACE);
        let mut readings = Vec::with_capacity(questions.len());
        // A stack: the last part is read next.
        let (mut parts, mut refusals) = (vec![questions], 0);
        while let Some(part) = parts.pop() {
            match self.statement(part, deadline).await {
                Ok(read) if read.len() == part.len() => readings.extend(read.into_iter().map(Ok)),
                Ok(read) => {
                    tracing::error!(
                        asked = part.len(),
                        answered = read.len(),
                        "not as many figures as asked for"
                    );
                    readings.extend(repeat_n(Err(Unavailable::Internal), part.len()));
                }
                Err(error) if error.is_refusal() && part.len() > 1 && refusals < MOST_REFUSALS => {
                    refusals += 1;
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error) => {
                    let reason = caused_by(requests(part), || Unavailable::from(error));
                    readings.extend(repeat_n(Err(reason), part.len()));
                }
            }
        }
        readings
    }

    async fn statement(&self, questions: &[Asked], deadline: Instant) -> Result<Vec<Reading>, StoreError> {
        let user_ids: Vec<_> = questions.iter().map(|asked| asked.question.user_id.as_str()).collect();
        let moments: Vec<_> = questions.iter().map(|asked| asked.question.at).collect();
        match self.figure {
            Figure::Balance => self.store.balances_at(&user_ids, &moments, deadline).await,
            Figure::Available => self.store.available_at(&user_ids, &moments, deadline).await,
        }
    }
}

/// What asked them.
fn requests(questions: &[Asked]) -> impl Iterator<Item = Option<&Arc<RequestContext>>> {
    questions.iter().map(|question| question.place.request.as_ref())
}

/// Writes the lines, then tells who asked.
async fn answer(questions: Vec<Asked>, readings: Vec<Result<Reading, Unavailable>>) {
    let Some(first) = questions.iter().map(|question| question.place.deadline).min() else {
        return;
    };
    let mut lines = Lines::now();
    let mut waiting = Vec::with_capacity(questions.len());
    for (asked, reading) in questions.into_iter().zip(readings) {
        let Asked {
            question,
            place,
            waiting: held,
            answer,
        } = asked;
        let record = question.record(reading.map(|reading| reading.amount));
        lines.push(place.slot, &record);
        waiting.push((
            answer,
            reading.map(|reading| (question.user_id, reading)),
            (place.under_way, held),
        ));
    }
    let latest = first.max(Instant::now()) + LOG_GRACE;
    let written = timeout_at(latest, lines.write()).await.unwrap_or(Written::NOT_IN_TIME);
    let well = waiting.iter().filter(|(_, reading, _)| reading.is_ok()).count();
    if let Some((_, _, (_, held))) = waiting.first() {
        held.answered(well);
    }
    for (index, (answer, reading, held)) in waiting.into_iter().enumerate() {
        let line = written.line(index).map_err(Unavailable::from);
        // A caller that has gone does not need it.
        let _ = answer.send(line.and(reading));
        drop(held);
    }
}
