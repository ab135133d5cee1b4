//! Changing a balance: ask and look ahead at once, record in the ledger, write the line, answer.

use std::sync::Arc;

use futures_util::TryFutureExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Admission, ChangeError, Precondition, Service, Unavailable, write_line};
use crate::approver::{ApproverError, Verdict};
use crate::causes::causes;
use crate::domain::{CallerName, Context, IdempotencyKey, Operation, OperationId, Timestamp, UserId};
use crate::ledger::{Answer, Place, Proposal, Recorded, change_record, with_line};
use crate::operations_log::Slot;
use crate::telemetry;

/// A change that is asked for.
#[derive(Clone, Debug)]
pub struct ChangeRequest {
    /// Whose balance.
    pub user_id: UserId,
    /// What for.
    pub context: Context,
    /// How much is added.
    pub balance_change: i64,
    /// Where on the timeline.
    pub timestamp: Timestamp,
    /// The key under which a repeat is recognised.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The version that the user must be at.
    pub precondition: Option<Precondition>,
    /// Whether only to tell what would come of it.
    pub dry_run: bool,
    /// Who asks, where callers are known.
    pub caller: Option<CallerName>,
}

/// A change that was accepted, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The operation's name; of one that would be accepted, the name of this answer in the operations log.
    pub operation_id: OperationId,
    /// Whose balance.
    pub user_id: UserId,
    /// Where on the timeline.
    pub timestamp: Timestamp,
    /// How much was added.
    pub balance_change: i64,
    /// The balance at `timestamp` when the operation was accepted, with it.
    pub balance: i64,
    /// The user's version with it; or, if it only would be accepted, without it.
    pub version: i64,
    /// Whether it had been accepted before, and this is that answer again.
    pub replayed: bool,
    /// Whether nothing was to be changed.
    pub dry_run: Option<DryRun>,
}

/// What is to be said of a change that was only tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// The ledger's verdict is all there is to it.
    Judged,
    /// The Approver would be asked as well, and was not.
    NotApproved,
}

impl Service {
    /// Changes a balance, at most once, and answers when the operation's line is with the operating system.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; only [`ChangeError::OutcomeUnknown`] may leave something behind.
    pub async fn change_balance(self: &Arc<Self>, request: ChangeRequest) -> Result<Change, ChangeError> {
        let operation = Arc::new(Operation {
            id: OperationId(Uuid::now_v7()),
            user_id: request.user_id,
            context: request.context,
            balance_change: request.balance_change,
            timestamp: request.timestamp,
            caller: request.caller,
        });
        let proposal = Proposal {
            approved: operation.balance_change.unsigned_abs() > self.config.approval_threshold,
            operation: Arc::clone(&operation),
            idempotency_key: request.idempotency_key,
            precondition: request.precondition,
        };
        if request.dry_run {
            // On the heap, so that a change takes no room for it.
            return Box::pin(self.dry_run(proposal)).await;
        }
        let answer = match self.admit(self.ledger.is_full_for(&operation.user_id))? {
            Admission::Admitted(place) if proposal.approved => {
                let service = Arc::clone(self);
                let approving = async move { service.change_if_approved(proposal, place).await };
                let task = tokio::spawn(telemetry::carried(approving));
                match task.await {
                    Ok(answer) => answer,
                    // Only a panic ends the task early.
                    Err(_) => self.ledger.panicked(&operation).await,
                }
            }
            Admission::Admitted(place) => self.ledger.record(proposal, place).await,
            Admission::Overloaded { slot, deadline } => {
                let answer = Err(Unavailable::Overloaded.into());
                answer_with_line(&operation, answer, slot, deadline).await
            }
        };
        answer.map(|recorded| Change::new(&operation, recorded))
    }

    /// A big change: asked and looked at at once, then recorded.
    async fn change_if_approved(&self, proposal: Proposal, place: Place) -> Answer {
        let deadline = place.deadline;
        let foreseen = self.ledger.foresee(&proposal, deadline);
        let settled = match &proposal.idempotency_key {
            // Whichever rules the change out first ends the wait for the other.
            None => tokio::try_join!(foreseen.map_err(Settled), self.ask(&proposal, deadline)).map(|_| ()),
            // A repeat must not ask again, and whether it is one is known only after the read.
            Some(_) => match foreseen.await {
                Ok(()) => self.ask(&proposal, deadline).await,
                Err(answer) => Err(Settled(answer)),
            },
        };
        match settled {
            Ok(()) => self.ledger.record(proposal, place).await,
            Err(Settled(answer)) => answer_with_line(&proposal.operation, answer, place.slot, deadline).await,
        }
    }

    /// Asks the Approver for the change's one verdict.
    async fn ask(&self, proposal: &Proposal, deadline: Instant) -> Result<(), Settled> {
        let operation = &proposal.operation;
        let verdict = self
            .approver
            .verdict(&operation.user_id, operation.balance_change, deadline)
            .await;
        match verdict.map_err(Unavailable::from) {
            Ok(Verdict::Approved) => Ok(()),
            Ok(Verdict::Denied) => Err(Settled(Err(ChangeError::ApproverDenied))),
            Err(unavailable) => Err(Settled(Err(unavailable.into()))),
        }
    }
}

/// The answer is known, and nothing is to be recorded.
struct Settled(Answer);

/// Answers a change that did not come to be recorded, when its line is with the operating system.
async fn answer_with_line(operation: &Operation, answer: Answer, slot: Slot, deadline: Instant) -> Answer {
    let written = write_line(slot, &change_record(operation, &answer), deadline).await;
    with_line(answer, written)
}

impl Change {
    pub(super) fn new(operation: &Operation, recorded: Recorded) -> Self {
        Self {
            operation_id: recorded.id,
            user_id: operation.user_id.clone(),
            timestamp: operation.timestamp,
            balance_change: operation.balance_change,
            balance: recorded.balance,
            version: recorded.version,
            replayed: recorded.replayed,
            dry_run: None,
        }
    }
}

impl From<ApproverError> for Unavailable {
    fn from(error: ApproverError) -> Self {
        tracing::warn!("the Approver gave no verdict: {}", causes(&error));
        match error {
            ApproverError::Busy => Unavailable::Overloaded,
            ApproverError::TimedOut
            | ApproverError::Failed(_)
            | ApproverError::Insecure(_)
            | ApproverError::Unexpected(_) => Unavailable::Approver,
        }
    }
}
