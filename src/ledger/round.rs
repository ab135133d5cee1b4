//! Working on one user's changes, round by round: read, settle what is in doubt, judge, commit, answer.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::queues::Turn;
use super::{Ledger, MAX_TOGETHER, NotRecorded, Proposal, Recorded, SHARED_GRACE, judge};
use crate::causes::causes;
use crate::domain::{Entry, IdempotencyKey, OperationId, Timeline, Timestamp, UserId};
use crate::retry::Pauses;
use crate::store::{CommitError, CommitOutcome, Commitment, EarlierOperation, StoreError, repeat_read};

/// A change that waits for its answer.
pub(super) struct Pending {
    proposal: Proposal,
    /// The version that a commit of this change started from, when its result was lost.
    ///
    /// Only one commit can move the user on from there. While the user is still at that version, trying again cannot
    /// store the change twice; once the user has moved on, the commit has won or never will, and the history tells
    /// which. A later version stands for all earlier ones.
    in_doubt: Option<i64>,
    answer: oneshot::Sender<Result<Recorded, NotRecorded>>,
}

/// What the database said of a user, for all changes of a round.
struct Reading {
    timeline: Timeline,
    /// Changes at or before this moment must be read for alone; `None`: none of this round.
    closed_until: Option<Timestamp>,
    earlier: HashMap<String, EarlierOperation>,
}

/// A round, judged.
#[derive(Default)]
struct Judged {
    accepted: Vec<(Pending, Entry)>,
    /// Answers that rest on the accepted ones, and hold only if those are stored.
    resting: Vec<(Pending, Result<Recorded, NotRecorded>)>,
    /// Changes under a key that an accepted one of this round has.
    again: Vec<Pending>,
    /// Changes in a closed segment.
    alone: Vec<Pending>,
}

/// How a round ended for those that are left: `Err` is why they were not stored, and calls for a pause.
type Ended = Result<(), NotRecorded>;

impl Pending {
    pub(super) fn new(proposal: Proposal, answer: oneshot::Sender<Result<Recorded, NotRecorded>>) -> Self {
        Self {
            proposal,
            in_doubt: None,
            answer,
        }
    }

    fn settle(self, answer: Result<Recorded, NotRecorded>) {
        // A caller that has gone does not need it.
        let _ = self.answer.send(answer);
    }

    /// Answers that nothing is stored because of `reason`, unless that is not known.
    fn fail(self, reason: NotRecorded) {
        let reason = if self.in_doubt.is_some() {
            NotRecorded::OutcomeUnknown
        } else {
            reason
        };
        self.settle(Err(reason));
    }

    fn accepted(&self, entry: Entry) -> Recorded {
        Recorded {
            id: self.proposal.operation.id,
            balance: entry.balance_after,
            replayed: false,
        }
    }

    /// Whether the fate of a lost commit can be read, now that the user is at `version`.
    fn is_decided_at(&self, version: i64) -> bool {
        self.in_doubt.is_some_and(|start| start < version)
    }

    fn key(&self) -> Option<&str> {
        self.proposal.idempotency_key.as_ref().map(IdempotencyKey::as_str)
    }
}

impl Ledger {
    /// Works on a user's changes until none is left.
    pub(super) async fn work(&self, mut turn: Turn) {
        let mut together = Vec::new();
        let mut alone = VecDeque::new();
        let mut pauses = Pauses::between_commits();
        let mut trouble = None;
        let user_id = turn.user_id().clone();
        while !alone.is_empty() || turn.take(&mut together, MAX_TOGETHER) {
            let reason = trouble.unwrap_or(NotRecorded::StoreBusy);
            expire(&mut together, reason);
            expire(&mut alone, reason);
            let mut ended = self.round(&user_id, &mut together, &mut alone).await;
            if let Some(deep) = alone.pop_front() {
                let mut deep = vec![deep];
                let deep_ended = self.round(&user_id, &mut deep, &mut VecDeque::new()).await;
                ended = ended.and(deep_ended);
                // Tried again after the others have had their round.
                alone.extend(deep);
            }
            trouble = ended.err();
            if let Some(reason) = trouble {
                let left = together.iter().chain(&alone);
                let latest = left.map(|pending| pending.proposal.deadline).max();
                if let Some(latest) = latest
                    && pauses.pause(latest).await.is_err()
                {
                    let left = together.drain(..).chain(alone.drain(..));
                    left.for_each(|pending| pending.fail(reason));
                }
            } else {
                pauses = Pauses::between_commits();
            }
            // Those that go alone must not fall behind for ever.
            if !alone.is_empty() && alone.len() < MAX_TOGETHER {
                turn.take_more(&mut together, MAX_TOGETHER);
            }
        }
    }

    /// One reading, one judgement, one commit, for all of `changes`; those to be tried again are left in it, and those to
    /// be read for alone go to `alone`.
    async fn round(&self, user_id: &UserId, changes: &mut Vec<Pending>, alone: &mut VecDeque<Pending>) -> Ended {
        let Some(first) = changes.iter().map(|pending| pending.proposal.deadline).min() else {
            return Ok(());
        };
        let deadline = first.max(Instant::now() + SHARED_GRACE);
        let read = repeat_read(deadline, || self.read(user_id, changes, deadline)).await;
        let doubts = match &read {
            Ok(reading) => {
                self.doubts(user_id, changes, reading.timeline.version(), deadline)
                    .await
            }
            Err(_) => Ok(HashMap::new()),
        };
        let (mut reading, stored) = match (read, doubts) {
            (Ok(reading), Ok(stored)) => (reading, stored),
            (Err(error), _) | (_, Err(error)) => return Err(give_up(changes, error)),
        };
        settle_doubts(changes, reading.timeline.version(), &stored);
        let judged = judge_all(changes, &mut reading);
        alone.extend(judged.alone);
        changes.extend(judged.again);
        self.commit(reading.timeline, judged.accepted, judged.resting, changes, deadline)
            .await
    }

    async fn read(&self, user_id: &UserId, changes: &[Pending], deadline: Instant) -> Result<Reading, StoreError> {
        if let [single] = changes {
            let Proposal {
                operation,
                idempotency_key,
                ..
            } = &single.proposal;
            let state = self.store.state(operation, idempotency_key.as_ref(), deadline).await?;
            let earlier = single.key().map(str::to_owned).zip(state.earlier);
            return Ok(Reading {
                timeline: state.timeline,
                closed_until: None,
                earlier: earlier.into_iter().collect(),
            });
        }
        let timestamps = || changes.iter().map(|pending| pending.proposal.operation.timestamp);
        let keys: Vec<_> = changes.iter().filter_map(Pending::key).collect();
        let earliest = timestamps().min().unwrap_or(Timestamp::MAX);
        let newest = timestamps().max().unwrap_or(Timestamp::MIN);
        let state = self
            .store
            .group_state(user_id, earliest..=newest, changes.len(), &keys, deadline)
            .await?;
        Ok(Reading {
            timeline: state.timeline,
            closed_until: state.closed_until,
            earlier: state.earlier,
        })
    }

    /// The changes in doubt that turn out to be stored, with the balance after each. The user is at `version`.
    async fn doubts(
        &self,
        user_id: &UserId,
        changes: &[Pending],
        version: i64,
        deadline: Instant,
    ) -> Result<HashMap<OperationId, i64>, StoreError> {
        let decided = changes.iter().filter(|pending| pending.is_decided_at(version));
        let operations: Vec<_> = decided
            .map(|pending| (pending.proposal.operation.timestamp, pending.proposal.operation.id))
            .collect();
        if operations.is_empty() {
            return Ok(HashMap::new());
        }
        repeat_read(deadline, || self.store.stored_among(user_id, &operations, deadline)).await
    }

    async fn commit(
        &self,
        timeline: Timeline,
        accepted: Vec<(Pending, Entry)>,
        resting: Vec<(Pending, Result<Recorded, NotRecorded>)>,
        changes: &mut Vec<Pending>,
        deadline: Instant,
    ) -> Ended {
        if accepted.is_empty() {
            // Only what is in doubt can rest on nothing; it waits until the database has decided.
            let undecided = !resting.is_empty();
            changes.extend(resting.into_iter().map(|(pending, _)| pending));
            return if undecided {
                Err(NotRecorded::OutcomeUnknown)
            } else {
                Ok(())
            };
        }
        let commitments: Vec<_> = accepted
            .iter()
            .map(|(pending, entry)| Commitment {
                operation: &pending.proposal.operation,
                idempotency_key: pending.proposal.idempotency_key.as_ref(),
                approved: pending.proposal.approved,
                entry: *entry,
            })
            .collect();
        let effects = timeline.into_changes();
        let start = effects.head.version - i64::try_from(accepted.len()).unwrap_or(i64::MAX);
        let outcome = self
            .store
            .commit(&commitments, &effects, &self.instance, deadline)
            .await;
        drop(commitments);
        let reason;
        match outcome {
            Ok(CommitOutcome::Stored) => {
                for (pending, entry) in accepted {
                    let recorded = pending.accepted(entry);
                    pending.settle(Ok(recorded));
                }
                for (pending, answer) in resting {
                    pending.settle(answer);
                }
                return Ok(());
            }
            Ok(CommitOutcome::Conflict) => {
                reason = NotRecorded::TooManyConflicts;
                self.metrics.conflict();
                changes.extend(accepted.into_iter().map(|(pending, _)| pending));
            }
            Err(CommitError::NotStored(error)) => {
                reason = NotRecorded::from(error);
                for (pending, _) in accepted {
                    match pending.in_doubt {
                        Some(_) => changes.push(pending),
                        None => pending.settle(Err(reason)),
                    }
                }
            }
            Err(CommitError::InDoubt(error)) => {
                tracing::warn!("the result of a commit was lost: {}", causes(&error));
                reason = NotRecorded::StoreUnavailable;
                for (mut pending, _) in accepted {
                    pending.in_doubt = Some(start);
                    changes.push(pending);
                }
            }
        }
        changes.extend(resting.into_iter().map(|(pending, _)| pending));
        Err(reason)
    }
}

/// Answers those whose time has run out.
fn expire<C: Extend<Pending> + Default + IntoIterator<Item = Pending>>(changes: &mut C, reason: NotRecorded) {
    let now = Instant::now();
    for pending in std::mem::take(changes) {
        if pending.proposal.deadline <= now {
            pending.fail(reason);
        } else {
            changes.extend([pending]);
        }
    }
}

/// Answers those for whom a reading has failed, and says why. What is in doubt stays so until the database answers; and
/// where only time ran out, which may have been another's, those with time left are tried again.
fn give_up(changes: &mut Vec<Pending>, error: StoreError) -> NotRecorded {
    let out_of_time = matches!(error, StoreError::TimedOut | StoreError::Busy);
    let reason = NotRecorded::from(error);
    let now = Instant::now();
    let again = |pending: &Pending| pending.in_doubt.is_some() || (out_of_time && pending.proposal.deadline > now);
    for pending in changes.extract_if(.., |pending| !again(pending)) {
        pending.settle(Err(reason));
    }
    reason
}

/// Answers those in doubt that are stored; the others whose fate is decided are in doubt no more.
fn settle_doubts(changes: &mut Vec<Pending>, version: i64, stored: &HashMap<OperationId, i64>) {
    for pending in changes.extract_if(.., |pending| stored.contains_key(&pending.proposal.operation.id)) {
        let id = pending.proposal.operation.id;
        pending.settle(Ok(Recorded {
            id,
            balance: stored[&id],
            replayed: false,
        }));
    }
    for pending in changes {
        if pending.is_decided_at(version) {
            pending.in_doubt = None;
        }
    }
}

/// Judges each change with those accepted before it. Answers that rest on nothing but the reading are given at once.
fn judge_all(changes: &mut Vec<Pending>, reading: &mut Reading) -> Judged {
    let mut judged = Judged::default();
    let mut keys = HashSet::new();
    for pending in changes.drain(..) {
        if reading
            .closed_until
            .is_some_and(|closed| pending.proposal.operation.timestamp <= closed)
        {
            judged.alone.push(pending);
            continue;
        }
        if pending.key().is_some_and(|key| keys.contains(key)) {
            judged.again.push(pending);
            continue;
        }
        let earlier = pending.key().and_then(|key| reading.earlier.get(key));
        match judge(&pending.proposal, &mut reading.timeline, earlier) {
            Ok(entry) => {
                keys.extend(pending.key().map(str::to_owned));
                judged.accepted.push((pending, entry));
            }
            // A refusal while in doubt rests on a version that the lost commit may still take.
            Err(answer) if judged.accepted.is_empty() && pending.in_doubt.is_none() => pending.settle(answer),
            Err(answer) => judged.resting.push((pending, answer)),
        }
    }
    judged
}
