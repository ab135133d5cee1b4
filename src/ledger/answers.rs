//! Changes that wait for their answers, and the answers on their way: first the lines of the operations log, written
//! together, then the callers are told.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout_at};

use super::{Answer, ChangeError, Place, Proposal, Recorded, Unavailable, Waiting};
use crate::domain::{Entry, IdempotencyKey, Operation, Refusal};
use crate::operations_log::{Lines, LogUnavailable, OperationName, Outcome, Record, Slot, Written};
use crate::telemetry::RequestContext;

/// How long a line may take to be written after the operation's own deadline.
pub const LOG_GRACE: Duration = Duration::from_secs(1);

/// How much later than its deadline a change may be answered whose turn has not come.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);

/// A change that waits for its answer.
pub(super) struct Pending {
    pub(super) proposal: Proposal,
    /// When the caller wants to know at the latest.
    pub(super) deadline: Instant,
    /// The version that a commit of this change started from, when its result was lost.
    ///
    /// Only one commit can move the user on from there. While the user is still at that version, trying again cannot
    /// store the change twice; once the user has moved on, the commit has won or never will, and the history tells
    /// which. A later version stands for all earlier ones.
    pub(super) in_doubt: Option<i64>,
    /// Whether a reading has passed it over for another one deep in the past.
    pub(super) passed_over: bool,
    /// Whether PostgreSQL refused a commit of several changes of the user, so that this one is committed by itself.
    pub(super) commits_alone: bool,
    /// What it was asked by, if that is known.
    pub(super) request: Option<Arc<RequestContext>>,
    caller: Caller,
}

/// When to look whose time has run out among those who wait for the end of something.
pub(super) fn ticks() -> Interval {
    let mut ticks = interval_at(Instant::now() + EXPIRE_EVERY, EXPIRE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Carries `work` to its end, and at each tick meanwhile has `expire` answer those who wait for the end and have no time
/// left: a change that has waited for the Approver has less than those that have just come.
pub(super) async fn expiring<T>(ticks: &mut Interval, work: impl Future<Output = T>, mut expire: impl FnMut()) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            result = work.as_mut() => return result,
            _ = ticks.tick() => expire(),
        }
    }
}

/// Who asked, and what it holds until it is told.
struct Caller {
    slot: Slot,
    answer: oneshot::Sender<Answer>,
    under_way: OwnedSemaphorePermit,
    waiting: Waiting,
}

impl Pending {
    pub(super) fn new(proposal: Proposal, place: Place, waiting: Waiting, answer: oneshot::Sender<Answer>) -> Self {
        let Place {
            slot,
            under_way,
            deadline,
            request,
        } = place;
        Self {
            proposal,
            deadline,
            in_doubt: None,
            passed_over: false,
            commits_alone: false,
            request,
            caller: Caller {
                slot,
                answer,
                under_way,
                waiting,
            },
        }
    }

    pub(super) fn accepted(&self, entry: Entry) -> Recorded {
        Recorded {
            id: self.proposal.operation.id,
            balance: entry.balance_after,
            version: entry.seq,
            replayed: false,
        }
    }

    /// Whether the fate of a lost commit can be read, now that the user is at `version`.
    pub(super) fn is_decided_at(&self, version: i64) -> bool {
        self.in_doubt.is_some_and(|start| start < version)
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.proposal.idempotency_key.as_ref().map(IdempotencyKey::as_str)
    }
}

/// Answers that are to be given together.
#[derive(Default)]
pub(super) struct Answers(Vec<(Pending, Answer)>);

impl Answers {
    pub(super) fn push(&mut self, pending: Pending, answer: Answer) {
        self.0.push((pending, answer));
    }

    /// Answers that nothing is stored because of `reason`, unless that is not known.
    pub(super) fn fail(&mut self, pending: Pending, reason: Unavailable) {
        let error = match pending.in_doubt {
            Some(_) => ChangeError::OutcomeUnknown,
            None => reason.into(),
        };
        self.push(pending, Err(error));
    }

    /// Answers those of `waiting` whose time has run out before their turn came, and returns the others.
    pub(super) fn expire<Queue: FromIterator<Pending>>(waiting: impl IntoIterator<Item = Pending>) -> Queue {
        let now = Instant::now();
        let mut answers = Self::default();
        let mut in_time = Vec::new();
        for pending in waiting {
            match pending.deadline <= now {
                true => answers.fail(pending, Unavailable::Overloaded),
                false => in_time.push(pending),
            }
        }
        answers.deliver();
        in_time.into_iter().collect()
    }

    /// Hands the lines to the operations log at once, and tells each caller when they are written; does not wait for it.
    pub(super) fn deliver(&mut self) {
        let Some(first) = self.0.iter().map(|(pending, _)| pending.deadline).min() else {
            return;
        };
        let mut lines = Lines::now();
        let mut waiting = Vec::with_capacity(self.0.len());
        for (pending, answer) in self.0.drain(..) {
            let Pending { proposal, caller, .. } = pending;
            let Caller {
                slot,
                answer: sender,
                under_way,
                waiting: place,
            } = caller;
            lines.push(slot, &change_record(&proposal.operation, &answer));
            waiting.push((sender, answer, (under_way, place)));
        }
        let writing = lines.write();
        tokio::spawn(async move {
            let latest = first.max(Instant::now()) + LOG_GRACE;
            let written = timeout_at(latest, writing).await.unwrap_or(Written::NOT_IN_TIME);
            let well = waiting.iter().filter(|(_, answer, _)| is_answered_well(answer)).count();
            // All of them come from one lane.
            if let Some((_, _, (_, place))) = waiting.first() {
                place.answered(well);
            }
            for (index, (sender, answer, held)) in waiting.into_iter().enumerate() {
                // A caller that has gone does not need it.
                let _ = sender.send(with_line(answer, written.line(index)));
                drop(held);
            }
        });
    }
}

/// Whether it is more than that there was no answer in time.
fn is_answered_well(answer: &Answer) -> bool {
    !matches!(answer, Err(ChangeError::Unavailable(_) | ChangeError::OutcomeUnknown))
}

/// The answer, if its line is with the operating system; or what is left of it.
pub fn with_line(answer: Answer, line: Result<(), LogUnavailable>) -> Answer {
    match (answer, line) {
        (answer, Ok(())) => answer,
        (Ok(recorded), Err(_)) if !recorded.replayed => Err(ChangeError::OutcomeUnknown),
        (Err(ChangeError::OutcomeUnknown), Err(_)) => Err(ChangeError::OutcomeUnknown),
        (Ok(_) | Err(_), Err(unavailable)) => Err(Unavailable::from(unavailable).into()),
    }
}

/// What the operations log tells of a change and its answer.
pub fn change_record<'a>(operation: &'a Operation, answer: &Answer) -> Record<'a> {
    let recorded = answer.as_ref().ok();
    let outcome = match answer {
        Ok(recorded) if recorded.replayed => Outcome::Replayed,
        Ok(_) => Outcome::Accepted,
        Err(ChangeError::OutcomeUnknown) => Outcome::Unknown,
        Err(error) => Outcome::Problem(error.code()),
    };
    let (available, shortfall) = match answer {
        Err(ChangeError::Refused(Refusal::InsufficientFunds {
            available, shortfall, ..
        })) => (Some(*available), Some(*shortfall)),
        _ => (None, None),
    };
    Record {
        timestamp: Some(operation.timestamp),
        // Where the outcome is unknown, the name lets an auditor find out.
        operation_id: match answer {
            Err(ChangeError::OutcomeUnknown) => Some(operation.id),
            _ => recorded.map(|recorded| recorded.id),
        },
        balance_change: Some(operation.balance_change),
        context: Some(&operation.context),
        balance: recorded.map(|recorded| recorded.balance),
        available,
        shortfall,
        caller: operation.caller.as_ref(),
        ..Record::new(OperationName::ChangeBalance, outcome, &operation.user_id)
    }
}
