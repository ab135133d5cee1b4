//! Changes on their way into the store: read, judged and committed, and tried again when another replica was faster.
//!
//! Changes of one user that arrive while others of that user are under way wait for each other, and are then read, judged
//! and committed together: one reading and one commit for all of them. So a replica never races itself, and a user with
//! many writers costs no more round trips than one with few. Users do not wait for each other.
//!
//! This is for speed only. What is right rests on the conditional commit: other replicas may take the user's next version
//! at any time, and a refusal or a replay is answered only from what the database said in this attempt.

mod queues;
mod round;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::causes::causes;
use crate::domain::{Entry, IdempotencyKey, Operation, OperationId, Refusal, Timeline};
use crate::metrics::Metrics;
use crate::store::{EarlierOperation, Store, StoreError, repeat_read};
use queues::Queues;
use round::Pending;

/// The most changes of one user that are committed together.
const MAX_TOGETHER: usize = 256;
/// How much longer than its own deadline a change may take because it shares a statement with others.
const SHARED_GRACE: Duration = Duration::from_secs(1);

/// A change that may be stored if the rule of the ledger admits it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The change.
    pub operation: Operation,
    /// The key under which a repeat is recognised.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Whether the Approver was asked, and approved.
    pub approved: bool,
    /// When the caller wants to know at the latest.
    pub deadline: Instant,
}

/// A change that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The name it is stored under.
    pub id: OperationId,
    /// The balance at its timestamp when it was accepted, with it.
    pub balance: i64,
    /// Whether it had been stored before, under the same idempotency key.
    pub replayed: bool,
}

/// Why a change is not stored, or not known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRecorded {
    /// The rule of the ledger forbids it.
    Refused(Refusal),
    /// The idempotency key was used for another operation of the user.
    IdempotencyKeyReused,
    /// PostgreSQL cannot be reached or errs; nothing is stored.
    StoreUnavailable,
    /// No connection to PostgreSQL became free; nothing is stored.
    StoreBusy,
    /// Other replicas were faster until the deadline; nothing is stored.
    TooManyConflicts,
    /// It may be stored, or may still be.
    OutcomeUnknown,
}

/// The way into the store.
pub struct Ledger {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// Kept with every operation.
    instance: String,
    queues: Queues,
}

impl Ledger {
    /// A ledger on this store; `instance` is kept with every operation.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, instance: String) -> Arc<Self> {
        Arc::new(Self {
            store,
            metrics,
            instance,
            queues: Queues::default(),
        })
    }

    /// Tells at once what is known of a change from one reading: `Ok(())` if it would be accepted now. Nothing is stored.
    ///
    /// # Errors
    ///
    /// `Err` holds the answer, which may be a good one: the change may have been stored before under the same key.
    pub async fn foresee(&self, proposal: &Proposal) -> Result<(), Result<Recorded, NotRecorded>> {
        let Proposal {
            operation,
            idempotency_key: key,
            deadline,
            ..
        } = proposal;
        let read = repeat_read(*deadline, || self.store.state(operation, key.as_ref(), *deadline)).await;
        let mut state = read.map_err(|error| Err(error.into()))?;
        judge(proposal, &mut state.timeline, state.earlier.as_ref()).map(|_| ())
    }

    /// Stores a change, at most once.
    ///
    /// # Errors
    ///
    /// [`NotRecorded`]; only [`NotRecorded::OutcomeUnknown`] may leave something behind.
    pub async fn record(self: &Arc<Self>, proposal: Proposal) -> Result<Recorded, NotRecorded> {
        let (answer, answered) = oneshot::channel();
        let user_id = proposal.operation.user_id.clone();
        if let Some(turn) = self.queues.push(&user_id, Pending::new(proposal, answer)) {
            let ledger = Arc::clone(self);
            tokio::spawn(async move { ledger.work(turn).await });
        }
        // Only a panic drops the other end, and it may have come after the commit.
        answered.await.unwrap_or(Err(NotRecorded::OutcomeUnknown))
    }
}

impl From<StoreError> for NotRecorded {
    fn from(error: StoreError) -> Self {
        tracing::warn!("PostgreSQL failed a change: {}", causes(&error));
        match error {
            StoreError::Unreachable(_) | StoreError::Failed(_) | StoreError::TimedOut => NotRecorded::StoreUnavailable,
            StoreError::Busy => NotRecorded::StoreBusy,
        }
    }
}

/// What the database says of a change: its place, if it can be stored, or else its answer.
fn judge(
    proposal: &Proposal,
    timeline: &mut Timeline,
    earlier: Option<&EarlierOperation>,
) -> Result<Entry, Result<Recorded, NotRecorded>> {
    match earlier {
        Some(earlier) => Err(repeat(&proposal.operation, earlier)),
        None => timeline
            .accept(&proposal.operation)
            .map_err(|refusal| Err(NotRecorded::Refused(refusal))),
    }
}

/// The first answer again, if it was the same operation.
fn repeat(operation: &Operation, earlier: &EarlierOperation) -> Result<Recorded, NotRecorded> {
    let same = earlier.timestamp == operation.timestamp
        && earlier.balance_change == operation.balance_change
        && earlier.context == operation.context.as_str();
    if !same {
        return Err(NotRecorded::IdempotencyKeyReused);
    }
    Ok(Recorded {
        id: earlier.id,
        balance: earlier.balance_after,
        // One that was in doubt is found under its own name.
        replayed: earlier.id != operation.id,
    })
}
