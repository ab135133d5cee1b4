//! Operations on their way into the store and out of it, many at once.
//!
//! What arrives while statements are under way is collected, and goes into the next one together: an idle service answers
//! each operation at once, and a busy one pays for a round trip, a commit and a write of the operations log once for many.
//!
//! - `readings`: one reading for all balances that are asked for, and one for all that could be withdrawn.
//! - `lanes`: changes, in batches of many users. A user's changes always go through the same lane, so that a replica
//!   never races itself.
//! - `turns`: one user at a time, round by round, for what a batch could not settle: another replica was faster, a
//!   result was lost on its way, or an operation lies so deep in the past that it would hold up the others.
//! - `contention`: taking turns with other replicas that write to the same user.
//! - `attempt`: what both do with changes: read, judge, commit.
//! - `answers`: the lines of the operations log, and after them the answers.
//! - `backlog`: how much may wait.
//!
//! This is for speed only. What is right rests on the conditional commit: other replicas may take a user's next version at
//! any time, and a refusal or a replay is answered only from what the database said in this attempt.

mod answers;
mod attempt;
mod backlog;
mod contention;
mod error;
mod lanes;
mod readings;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::config::LedgerConfig;
use crate::domain::{Entry, IdempotencyKey, Operation, OperationId, Timeline, UserId};
use crate::metrics::Metrics;
use crate::operations_log::{OperationsLog, Slot};
use crate::store::{EarlierOperation, Group, LedgerStore, Reach, Reading, Store, StoreError};
use crate::telemetry::RequestContext;
use attempt::Recorder;
use lanes::Lanes;
use readings::Readings;

pub use answers::{LOG_GRACE, change_record, with_line};
pub use backlog::{Backlog, Waiting};
pub use error::{ChangeError, Unavailable};
pub use readings::{Figure, Question};

/// How much longer than its own deadline an operation may take because it shares a statement with others.
const SHARED_GRACE: Duration = Duration::from_secs(1);

/// The longest time from the making of an operation's id to the making of its line, and a good deal more.
pub fn longest_without_line(operation_timeout: Duration) -> Duration {
    /// For a process that does not get its turn.
    const STALL: Duration = Duration::from_secs(5);
    operation_timeout + SHARED_GRACE + LOG_GRACE + STALL
}

/// What an operation holds from its beginning to its answer.
pub struct Place {
    /// For its line.
    pub slot: Slot,
    /// Among those under way.
    pub under_way: OwnedSemaphorePermit,
    /// When the caller wants to know at the latest.
    pub deadline: Instant,
    /// What it was asked by, if that is known.
    pub request: Option<Arc<RequestContext>>,
}

/// A change that may be stored if the rule of the ledger admits it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The change.
    pub operation: Arc<Operation>,
    /// The key under which a repeat is recognised.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The version that the user must be at.
    pub precondition: Option<Precondition>,
    /// Whether the Approver was asked, and approved.
    pub approved: bool,
}

/// The version that a user must be at for a change to be judged at all: the caller rests on what it has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Any but the first, 0: something of the user is stored.
    AnyStored,
    /// One of these; of none, it never holds.
    OneOf(Vec<i64>),
}

impl Precondition {
    fn holds_at(&self, version: i64) -> bool {
        match self {
            Precondition::AnyStored => version > 0,
            Precondition::OneOf(versions) => versions.contains(&version),
        }
    }
}

/// A change that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The name it is stored under.
    pub id: OperationId,
    /// The balance at its timestamp when it was accepted, with it.
    pub balance: i64,
    /// The user's version with it.
    pub version: i64,
    /// Whether it had been stored before, under the same idempotency key.
    pub replayed: bool,
}

/// What became of a change.
pub type Answer = Result<Recorded, ChangeError>;

/// The way into the store and out of it.
pub struct Ledger<S = Store> {
    store: Arc<S>,
    log: OperationsLog,
    lanes: Lanes,
    readings: Readings,
}

impl<S: LedgerStore> Ledger<S> {
    /// A ledger on this store; `instance` is kept with every operation. At most `batches_apart` batches that are held up
    /// go on beside those under way, each with a connection. Must be called within the runtime.
    pub fn new(
        store: Arc<S>,
        log: OperationsLog,
        metrics: Arc<Metrics>,
        instance: String,
        config: LedgerConfig,
        batches_apart: usize,
    ) -> Self {
        let recorder = Recorder::new(Arc::clone(&store), Arc::clone(&metrics), instance);
        Self {
            lanes: Lanes::start(&Arc::new(recorder), config, batches_apart),
            readings: Readings::start(&store, &metrics, config),
            store,
            log,
        }
    }

    /// Whether one change more of this user would wait for too long: it is to be refused before it is begun.
    pub fn is_full_for(&self, user_id: &UserId) -> bool {
        self.lanes.backlog_of(user_id).is_full()
    }

    /// How many changes wait or are worked on.
    pub fn changes_waiting(&self) -> usize {
        self.lanes.waiting()
    }

    /// How many figures are asked for and not answered.
    pub fn questions_waiting(&self) -> usize {
        self.readings.waiting()
    }

    /// Whether one question more for this figure would wait for too long.
    pub fn is_full_of_questions(&self, figure: Figure) -> bool {
        self.readings.is_full(figure)
    }

    /// A figure of a user as of a moment; its line is with the operating system.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what kept it from being read.
    pub async fn read(&self, question: Question, place: Place) -> Result<(UserId, Reading), Unavailable> {
        self.readings.ask(question, place).await
    }

    /// Tells at once what is known of a change from one reading: `Ok(())` if it would be accepted now, or if nothing is
    /// known because all connections are busy. Nothing is stored and no line is written.
    ///
    /// # Errors
    ///
    /// `Err` holds the answer, which may be a good one: the change may have been stored before under the same key.
    pub async fn foresee(&self, proposal: &Proposal, deadline: Instant) -> Result<(), Answer> {
        match self.look_at(proposal, deadline).await {
            Ok(verdict) => verdict.map(|_| ()),
            // A look ahead spares work when there is room for it. Whether a key is known must be found out, though.
            Err(StoreError::Busy) if proposal.idempotency_key.is_none() => Ok(()),
            Err(error) => Err(Err(Unavailable::from(error).into())),
        }
    }

    /// What the ledger would make of a change now, from one reading: the place it would get. Nothing is stored and no line
    /// is written.
    ///
    /// # Errors
    ///
    /// `Err` holds the answer, which may be a good one: the change may have been stored before under the same key.
    pub async fn verdict(&self, proposal: &Proposal, deadline: Instant) -> Result<Entry, Answer> {
        let looked = self.look_at(proposal, deadline).await;
        looked.unwrap_or_else(|error| Err(Err(Unavailable::from(error).into())))
    }

    async fn look_at(&self, proposal: &Proposal, deadline: Instant) -> Result<Result<Entry, Answer>, StoreError> {
        let group = [Group::of(&proposal.operation, proposal.idempotency_key.as_ref())];
        let read = self.store.states(&group, Reach::Unlimited, deadline);
        let Some(mut state) = read.await?.into_iter().next() else {
            return Ok(Err(Err(Unavailable::Internal.into())));
        };
        Ok(judge(proposal, &mut state.timeline, &state.earlier))
    }

    /// Stores a change, at most once. Its line is with the operating system when this returns, whatever the answer, and is
    /// written even if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; only [`ChangeError::OutcomeUnknown`] may leave something behind.
    pub async fn record(&self, proposal: Proposal, place: Place) -> Answer {
        let operation = Arc::clone(&proposal.operation);
        let (answer, answered) = oneshot::channel();
        self.lanes.push(proposal, place, answer);
        match answered.await {
            Ok(answer) => answer,
            // Only a panic drops the other end.
            Err(_) => self.panicked(&operation).await,
        }
    }

    /// The answer to a change whose task panicked, perhaps after the commit, when its line has been tried to be written.
    pub async fn panicked(&self, operation: &Operation) -> Answer {
        let answer = Err(ChangeError::OutcomeUnknown);
        if let Ok(slot) = self.log.reserve() {
            let record = change_record(operation, &answer);
            // The answer is the same if it cannot be written, and the line is then kept.
            let _ = timeout(LOG_GRACE, slot.write(&record)).await;
        }
        answer
    }
}

/// Takes all that waits, up to so many, once there is something; `None` when nothing will come any more.
///
/// After more than one at once, `before`, whatever else can run now is let run first: it is likely to have something for the
/// queue too, and all of that goes together.
async fn take_waiting<T>(queue: &mut mpsc::Receiver<T>, most: usize, before: usize) -> Option<Vec<T>> {
    let mut together = vec![queue.recv().await?];
    if before > 1 {
        tokio::task::yield_now().await;
    }
    while together.len() < most
        && let Ok(next) = queue.try_recv()
    {
        together.push(next);
    }
    Some(together)
}

/// What the database says of a change: its place, if it can be stored, or else its answer.
fn judge(
    proposal: &Proposal,
    timeline: &mut Timeline,
    earlier: &HashMap<String, EarlierOperation>,
) -> Result<Entry, Answer> {
    let key = proposal.idempotency_key.as_ref().map(IdempotencyKey::as_str);
    // A repeat first: what it repeats has moved the user on from the version that it was asked for at.
    if let Some(earlier) = key.and_then(|key| earlier.get(key)) {
        return Err(repeat(&proposal.operation, earlier));
    }
    let version = timeline.version();
    if let Some(precondition) = &proposal.precondition
        && !precondition.holds_at(version)
    {
        return Err(Err(ChangeError::PreconditionFailed { version }));
    }
    timeline
        .accept(&proposal.operation)
        .map_err(|refusal| Err(ChangeError::Refused(refusal)))
}

/// The first answer again, if it was the same operation.
fn repeat(operation: &Operation, earlier: &EarlierOperation) -> Answer {
    let same = earlier.timestamp == operation.timestamp
        && earlier.balance_change == operation.balance_change
        && earlier.context == operation.context.as_str();
    if !same {
        return Err(ChangeError::IdempotencyKeyReused);
    }
    Ok(Recorded {
        id: earlier.id,
        balance: earlier.entry.balance_after,
        version: earlier.entry.seq,
        // One that was in doubt is found under its own name.
        replayed: earlier.id != operation.id,
    })
}
