//! Changing a balance: ask and read at once, judge, commit on the version that was read, retry, write the line, answer.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use super::error::log_source;
use super::{Admission, ChangeError, Service, Unavailable, write_line};
use crate::approver::Verdict;
use crate::domain::{Acceptance, Context, IdempotencyKey, Operation, OperationId, Timestamp, UserId};
use crate::operations_log::{OperationName, Outcome, Record};
use crate::retry::Pauses;
use crate::store::{CommitError, CommitOutcome, Commitment, EarlierOperation, Place, UserState};

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

/// What is asked for, and what it takes to keep it.
struct Asked {
    operation: Operation,
    idempotency_key: Option<IdempotencyKey>,
    deadline: Instant,
}

/// The answer is known and nothing is to be stored.
struct Settled(Result<Change, ChangeError>);

impl<E: Into<ChangeError>> From<E> for Settled {
    fn from(error: E) -> Self {
        Settled(Err(error.into()))
    }
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
        let asked = Asked {
            operation: Operation {
                id: OperationId(Uuid::now_v7()),
                user_id: request.user_id,
                context: request.context,
                balance_change: request.balance_change,
                timestamp: request.timestamp,
            },
            idempotency_key: request.idempotency_key,
            deadline,
        };
        let outcome = self.change(&asked).await;
        let written = write_line(admission.slot, &record(&asked.operation, &outcome), deadline).await;
        match (outcome, written) {
            (outcome, Ok(())) => outcome,
            (Ok(change), Err(_)) if !change.replayed => Err(ChangeError::OutcomeUnknown),
            (Err(ChangeError::OutcomeUnknown), Err(_)) => Err(ChangeError::OutcomeUnknown),
            (Ok(_) | Err(_), Err(unavailable)) => Err(Unavailable::from(unavailable).into()),
        }
    }

    async fn change(&self, asked: &Asked) -> Result<Change, ChangeError> {
        let needs_approval = asked.operation.balance_change.unsigned_abs() > self.config.approval_threshold;
        let judged = match (needs_approval, &asked.idempotency_key) {
            (false, _) => self.read_and_judge(asked).await,
            // Asked and read at once; whichever rules the operation out first ends the wait for the other.
            (true, None) => tokio::try_join!(self.read_and_judge(asked), self.ask(asked)).map(|(judged, ())| judged),
            // A repeat must not ask again, and whether it is one is known only after the read.
            (true, Some(_)) => match self.read_and_judge(asked).await {
                Ok(judged) => self.ask(asked).await.map(|()| judged),
                Err(settled) => Err(settled),
            },
        };
        match judged {
            Ok(acceptance) => self.commit(asked, acceptance, needs_approval).await,
            Err(Settled(answer)) => answer,
        }
    }

    /// Asks the Approver for the operation's one verdict.
    async fn ask(&self, asked: &Asked) -> Result<(), Settled> {
        let operation = &asked.operation;
        let verdict = self
            .approver
            .verdict(&operation.user_id, operation.balance_change, asked.deadline)
            .await;
        self.metrics.verdict(verdict.as_ref().ok().copied());
        match verdict.map_err(Unavailable::from)? {
            Verdict::Approved => Ok(()),
            Verdict::Denied => Err(ChangeError::ApproverDenied.into()),
        }
    }

    async fn read_and_judge(&self, asked: &Asked) -> Result<Acceptance, Settled> {
        let state = self.state(asked).await?;
        judge(asked, &state)
    }

    async fn state(&self, asked: &Asked) -> Result<UserState, Unavailable> {
        let key = asked.idempotency_key.as_ref();
        self.read(asked.deadline, || {
            self.store.state(&asked.operation, key, asked.deadline)
        })
        .await
    }

    /// Commits on the version that `acceptance` rests on; a lost race is read, judged and tried again.
    ///
    /// A commit whose result was lost is in doubt: it may be stored, may still be on its way, or may be lost. It claims
    /// one version of the user, so trying again at that same version cannot store it twice, and once the user has
    /// reached that version its fate can be read.
    async fn commit(&self, asked: &Asked, acceptance: Acceptance, approved: bool) -> Result<Change, ChangeError> {
        let mut acceptance = acceptance;
        let mut in_doubt: Option<Acceptance> = None;
        let mut pauses = Pauses::between_commits(asked.deadline);
        loop {
            let commitment = Commitment {
                operation: &asked.operation,
                idempotency_key: asked.idempotency_key.as_ref(),
                approved,
                instance: &self.config.instance,
                acceptance: &acceptance,
            };
            match self.store.commit(commitment, asked.deadline).await {
                Ok(CommitOutcome::Stored) => return Ok(accepted(&asked.operation, acceptance.balance_after)),
                Ok(CommitOutcome::Conflict) => self.metrics.conflict(),
                Err(CommitError::NotStored(error)) if in_doubt.is_none() => {
                    return Err(Unavailable::from(error).into());
                }
                Err(CommitError::NotStored(error)) => log_source("PostgreSQL", &error),
                Err(CommitError::InDoubt(error)) => {
                    log_source("PostgreSQL", &error);
                    in_doubt = Some(acceptance.clone());
                }
            }
            // Until the state of the user is known again there is nothing to commit on.
            acceptance = loop {
                if pauses.pause().await.is_err() {
                    return Err(match in_doubt {
                        Some(_) => ChangeError::OutcomeUnknown,
                        None => Unavailable::TooManyConflicts.into(),
                    });
                }
                let settled = match self.settle_doubt(asked, &mut in_doubt).await {
                    Ok(judged) => break judged,
                    Err(settled) => settled,
                };
                match settled {
                    Settled(Err(ChangeError::Unavailable(_))) if in_doubt.is_some() => {}
                    Settled(answer) => return answer,
                }
            };
        }
    }

    /// Reads and judges again, after finding out what became of a commit that is in doubt.
    async fn settle_doubt(&self, asked: &Asked, in_doubt: &mut Option<Acceptance>) -> Result<Acceptance, Settled> {
        let state = self.state(asked).await?;
        if let Some(doubtful) = in_doubt
            && state.timeline.version() >= doubtful.seq
        {
            let place = Place {
                timestamp: asked.operation.timestamp,
                seq: doubtful.seq,
            };
            let found = self
                .read(asked.deadline, || {
                    self.store.operation_at(&asked.operation.user_id, place, asked.deadline)
                })
                .await?;
            if found == Some(asked.operation.id) {
                return Err(Settled(Ok(accepted(&asked.operation, doubtful.balance_after))));
            }
            *in_doubt = None;
        }
        judge(asked, &state)
    }
}

/// What the state of the user says of the operation.
fn judge(asked: &Asked, state: &UserState) -> Result<Acceptance, Settled> {
    if let Some(earlier) = &state.earlier {
        return Err(Settled(repeat(&asked.operation, earlier)));
    }
    Ok(state.timeline.accept(&asked.operation)?)
}

/// The first answer again, if it was the same operation.
fn repeat(operation: &Operation, earlier: &EarlierOperation) -> Result<Change, ChangeError> {
    let same = earlier.timestamp == operation.timestamp
        && earlier.balance_change == operation.balance_change
        && earlier.context == operation.context.as_str();
    if !same {
        return Err(ChangeError::IdempotencyKeyReused);
    }
    Ok(Change {
        operation_id: earlier.id,
        replayed: true,
        ..accepted(operation, earlier.balance_after)
    })
}

fn accepted(operation: &Operation, balance: i64) -> Change {
    Change {
        operation_id: operation.id,
        user_id: operation.user_id.clone(),
        timestamp: operation.timestamp,
        balance_change: operation.balance_change,
        balance,
        replayed: false,
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
