//! Changing a balance: ask and look ahead at once, record in the ledger, write the line, answer.

use std::sync::Arc;

use futures_util::TryFutureExt;
use uuid::Uuid;

use super::{Admission, ChangeError, Service, Unavailable, write_line};
use crate::approver::Verdict;
use crate::domain::{Context, IdempotencyKey, Operation, OperationId, Timestamp, UserId};
use crate::ledger::{NotRecorded, Proposal, Recorded};
use crate::operations_log::{OperationName, Outcome, Record};

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
}

/// A change that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The operation's name.
    pub operation_id: OperationId,
    /// Whose balance.
    pub user_id: UserId,
    /// Where on the timeline.
    pub timestamp: Timestamp,
    /// How much was added.
    pub balance_change: i64,
    /// The balance at `timestamp` when the operation was accepted, with it.
    pub balance: i64,
    /// Whether it had been accepted before, and this is that answer again.
    pub replayed: bool,
}

impl Service {
    /// Changes a balance, at most once, and answers when the operation's line is with the operating system.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; only [`ChangeError::OutcomeUnknown`] may leave something behind.
    pub async fn change_balance(self: &Arc<Self>, request: ChangeRequest) -> Result<Change, ChangeError> {
        let admission = self.admit()?;
        let service = Arc::clone(self);
        let task = tokio::spawn(async move { service.change_and_log(request, admission).await });
        // Only a panic ends the task early, and it may have come after the commit.
        task.await.unwrap_or(Err(ChangeError::OutcomeUnknown))
    }

    async fn change_and_log(&self, request: ChangeRequest, admission: Admission) -> Result<Change, ChangeError> {
        let deadline = admission.deadline;
        let operation = Operation {
            id: OperationId(Uuid::now_v7()),
            user_id: request.user_id,
            context: request.context,
            balance_change: request.balance_change,
            timestamp: request.timestamp,
        };
        let proposal = Proposal {
            approved: operation.balance_change.unsigned_abs() > self.config.approval_threshold,
            operation: operation.clone(),
            idempotency_key: request.idempotency_key,
            deadline,
        };
        let recorded = match admission.place {
            Some(_) => self.change(proposal).await,
            None => Err(Unavailable::Overloaded.into()),
        };
        let outcome = recorded.map(|recorded| Change::new(&operation, recorded));
        let written = write_line(admission.slot, &record(&operation, &outcome), deadline).await;
        match (outcome, written) {
            (outcome, Ok(())) => outcome,
            (Ok(change), Err(_)) if !change.replayed => Err(ChangeError::OutcomeUnknown),
            (Err(ChangeError::OutcomeUnknown), Err(_)) => Err(ChangeError::OutcomeUnknown),
            (Ok(_) | Err(_), Err(unavailable)) => Err(Unavailable::from(unavailable).into()),
        }
    }

    /// A proposal marked as approved is recorded only if the Approver approves it.
    async fn change(&self, proposal: Proposal) -> Result<Recorded, ChangeError> {
        if proposal.approved {
            let foreseen = self.ledger.foresee(&proposal);
            let settled = match &proposal.idempotency_key {
                // Asked and read at once; whichever rules the change out first ends the wait for the other.
                None => tokio::try_join!(foreseen.map_err(Settled::from), self.ask(&proposal)).map(|_| ()),
                // A repeat must not ask again, and whether it is one is known only after the read.
                Some(_) => match foreseen.await {
                    Ok(()) => self.ask(&proposal).await,
                    Err(answer) => Err(answer.into()),
                },
            };
            if let Err(Settled(answer)) = settled {
                return answer;
            }
        }
        Ok(self.ledger.record(proposal).await?)
    }

    /// Asks the Approver for the change's one verdict.
    async fn ask(&self, proposal: &Proposal) -> Result<(), Settled> {
        let operation = &proposal.operation;
        let verdict = self
            .approver
            .verdict(&operation.user_id, operation.balance_change, proposal.deadline)
            .await;
        self.metrics.verdict(verdict.as_ref().ok().copied());
        match verdict.map_err(Unavailable::from) {
            Ok(Verdict::Approved) => Ok(()),
            Ok(Verdict::Denied) => Err(Settled(Err(ChangeError::ApproverDenied))),
            Err(unavailable) => Err(Settled(Err(unavailable.into()))),
        }
    }
}

/// The answer is known, and nothing is to be recorded.
struct Settled(Result<Recorded, ChangeError>);

impl From<Result<Recorded, NotRecorded>> for Settled {
    fn from(answer: Result<Recorded, NotRecorded>) -> Self {
        Settled(answer.map_err(ChangeError::from))
    }
}

impl Change {
    fn new(operation: &Operation, recorded: Recorded) -> Self {
        Self {
            operation_id: recorded.id,
            user_id: operation.user_id.clone(),
            timestamp: operation.timestamp,
            balance_change: operation.balance_change,
            balance: recorded.balance,
            replayed: recorded.replayed,
        }
    }
}

fn record<'a>(operation: &'a Operation, outcome: &Result<Change, ChangeError>) -> Record<'a> {
    let change = outcome.as_ref().ok();
    Record {
        operation: OperationName::ChangeBalance,
        outcome: match outcome {
            Ok(change) if change.replayed => Outcome::Replayed,
            Ok(_) => Outcome::Accepted,
            Err(error) => Outcome::Problem(error.code()),
        },
        user_id: &operation.user_id,
        timestamp: Some(operation.timestamp),
        // Where the outcome is unknown, the name lets an auditor find out.
        operation_id: match outcome {
            Err(ChangeError::OutcomeUnknown) => Some(operation.id),
            _ => change.map(|change| change.operation_id),
        },
        balance_change: Some(operation.balance_change),
        context: Some(&operation.context),
        balance: change.map(|change| change.balance),
    }
}
