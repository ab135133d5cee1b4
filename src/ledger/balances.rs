//! Balances that are asked for, read together.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::answers::LOG_GRACE;
use super::{Place, SHARED_GRACE, Unavailable};
use crate::config::LedgerConfig;
use crate::domain::{Timestamp, UserId};
use crate::metrics::{BatchKind, Metrics};
use crate::operations_log::{Lines, OperationName, Outcome, Record, Written};
use crate::store::{Store, repeat_read};

/// The most balances of one statement: more than are asked for at once in any but the greatest rush, and few enough for a
/// statement to end in a few milliseconds.
const MAX_TOGETHER: usize = 1_024;

/// One balance that is asked for.
struct Question {
    user_id: UserId,
    at: Timestamp,
    place: Place,
    answer: oneshot::Sender<Result<(UserId, i64), Unavailable>>,
}

/// The way to the balances.
pub(super) struct Balances {
    questions: mpsc::Sender<Question>,
}

impl Balances {
    /// Starts the task that collects questions; it ends when this is dropped.
    pub(super) fn start(store: Arc<Store>, metrics: Arc<Metrics>, config: LedgerConfig) -> Self {
        // Each question holds one of the places of operations under way, so the queue is never full.
        let (questions, asked) = mpsc::channel(config.operations_in_flight);
        tokio::spawn(collect(asked, store, metrics, config.read_statements));
        Self { questions }
    }

    pub(super) async fn ask(&self, user_id: UserId, at: Timestamp, place: Place) -> Result<(UserId, i64), Unavailable> {
        let (answer, answered) = oneshot::channel();
        let question = Question {
            user_id,
            at,
            place,
            answer,
        };
        match self.questions.try_send(question) {
            // Only a panic drops the other end.
            Ok(()) => answered.await.unwrap_or(Err(Unavailable::Internal)),
            Err(_) => Err(Unavailable::Internal),
        }
    }
}

/// Takes what waits, as soon as one of so many statements is free.
async fn collect(mut asked: mpsc::Receiver<Question>, store: Arc<Store>, metrics: Arc<Metrics>, statements: usize) {
    let free = Arc::new(Semaphore::new(statements));
    loop {
        let Ok(statement) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let Some(first) = asked.recv().await else {
            return;
        };
        // Whatever else can run now may have questions too: they are asked together, and an idle service loses nothing.
        tokio::task::yield_now().await;
        let mut together = vec![first];
        while together.len() < MAX_TOGETHER
            && let Ok(question) = asked.try_recv()
        {
            together.push(question);
        }
        metrics.batch(BatchKind::Read, together.len());
        let store = Arc::clone(&store);
        // A task of its own: should it panic, the others are answered all the same.
        tokio::spawn(async move {
            let now = Instant::now();
            let (in_time, late): (Vec<_>, Vec<_>) =
                together.into_iter().partition(|question| question.place.deadline > now);
            let balances = read(&in_time, &store).await;
            drop(statement);
            tokio::join!(answer(in_time, balances), answer(late, Err(Unavailable::Overloaded)));
        });
    }
}

async fn read(questions: &[Question], store: &Store) -> Result<Vec<i64>, Unavailable> {
    let Some(first) = questions.iter().map(|question| question.place.deadline).min() else {
        return Ok(Vec::new());
    };
    let deadline = first.max(Instant::now() + SHARED_GRACE);
    let user_ids: Vec<_> = questions.iter().map(|question| question.user_id.as_str()).collect();
    let moments: Vec<_> = questions.iter().map(|question| question.at).collect();
    let balances = repeat_read(deadline, || store.balances_at(&user_ids, &moments, deadline)).await?;
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

/// Writes the lines, then tells who asked.
async fn answer(questions: Vec<Question>, balances: Result<Vec<i64>, Unavailable>) {
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
        let Question {
            user_id,
            at,
            place,
            answer,
        } = question;
        let record = Record {
            operation: OperationName::GetBalance,
            outcome: match balance {
                Ok(_) => Outcome::Accepted,
                Err(unavailable) => Outcome::Problem(unavailable.code()),
            },
            user_id: &user_id,
            timestamp: Some(at),
            operation_id: None,
            balance_change: None,
            context: None,
            balance: balance.ok(),
        };
        lines.push(place.slot, &record);
        waiting.push((answer, balance.map(|balance| (user_id, balance)), place.under_way));
    }
    let latest = first.max(Instant::now()) + LOG_GRACE;
    let written = timeout_at(latest, lines.write()).await.unwrap_or(Written::NOT_IN_TIME);
    for (index, (answer, balance, under_way)) in waiting.into_iter().enumerate() {
        let line = written.line(index).map_err(Unavailable::from);
        // A caller that has gone does not need it.
        let _ = answer.send(line.and(balance));
        drop(under_way);
    }
}
