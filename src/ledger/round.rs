//! Working on one user's changes, round by round: read, settle what is in doubt, judge, commit, answer.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::queues::Turn;
use super::{Ledger, MAX_TOGETHER, NotRecorded, Proposal, Recorded, SHARED_GRACE, judge};
use crate::causes::causes;
use crate::domain::{Entry, IdempotencyKey, Timeline, Timestamp, UserId};
use crate::retry::Pauses;
use crate::store::{CommitError, CommitOutcome, Commitment, EarlierOperation, Place, StoreError, repeat_read};

/// A change that waits for its answer.
pub(super) struct Pending {
    proposal: Proposal,
    /// A commit of this change was sent and its result was lost.
    ///
    /// It claims one version of the user. Trying again at that same version cannot store the change twice, since only
    /// one commit can move the user on from there; and once the user has reached that version, its fate can be read.
    in_doubt: Option<Entry>,
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

/// How a round ended for those that are left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    /// Another replica was faster, or PostgreSQL failed: pause before the next.
    Badly,
}

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
        let user_id = turn.user_id().clone();
        while !alone.is_empty() || turn.take(&mut together, MAX_TOGETHER) {
            let mut ended = self.round(&user_id, &mut together, &mut alone).await;
            if let Some(deep) = alone.pop_front() {
                let mut deep = vec![deep];
                if self.round(&user_id, &mut deep, &mut VecDeque::new()).await == Ended::Badly {
                    ended = Ended::Badly;
                }
                // Tried again after the others have had their round.
                alone.extend(deep);
            }
            match ended {
                Ended::Well => pauses = Pauses::between_commits(),
                Ended::Badly => {
                    let left = together.iter().chain(&alone);
                    let latest = left.map(|pending| pending.proposal.deadline).max();
                    if let Some(latest) = latest
                        && pauses.pause(latest).await.is_err()
                    {
                        for pending in together.drain(..).chain(alone.drain(..)) {
                            pending.fail(NotRecorded::TooManyConflicts);
                        }
                    }
                }
            }
            if !alone.is_empty() {
                turn.take_more(&mut together, MAX_TOGETHER);
            }
        }
    }

    /// One reading, one judgement, one commit, for all of `changes`; those to be tried again are left in it, and those to
    /// be read for alone go to `alone`.
    async fn round(&self, user_id: &UserId, changes: &mut Vec<Pending>, alone: &mut VecDeque<Pending>) -> Ended {
        let now = Instant::now();
        for late in changes.extract_if(.., |pending| pending.proposal.deadline <= now) {
            late.fail(NotRecorded::TooManyConflicts);
        }
        let Some(first) = changes.iter().map(|pending| pending.proposal.deadline).min() else {
            return Ended::Well;
        };
        let deadline = first.max(now + SHARED_GRACE);
        let read = repeat_read(deadline, || self.read(user_id, changes, deadline)).await;
        let doubts = match &read {
            Ok(reading) => {
                self.doubts(user_id, changes, reading.timeline.version(), deadline)
                    .await
            }
            Err(_) => Ok(HashSet::new()),
        };
        let (mut reading, stored) = match (read, doubts) {
            (Ok(reading), Ok(stored)) => (reading, stored),
            (Err(error), _) | (_, Err(error)) => {
                let reason = NotRecorded::from(error);
                // What is in doubt stays so until the database answers or time runs out.
                for pending in changes.extract_if(.., |pending| pending.in_doubt.is_none()) {
                    pending.settle(Err(reason));
                }
                return Ended::Badly;
            }
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
        let timestamps = changes.iter().map(|pending| pending.proposal.operation.timestamp);
        let keys: Vec<_> = changes.iter().filter_map(Pending::key).collect();
        let earliest = timestamps.min().unwrap_or(Timestamp::MAX);
        let state = self.store.group_state(user_id, earliest, &keys, deadline).await?;
        Ok(Reading {
            timeline: state.timeline,
            closed_until: state.closed_until,
            earlier: state.earlier,
        })
    }

    /// The indexes of changes in doubt that turn out to be stored.
    async fn doubts(
        &self,
        user_id: &UserId,
        changes: &[Pending],
        version: i64,
        deadline: Instant,
    ) -> Result<HashSet<usize>, StoreError> {
        let due: Vec<_> = changes
            .iter()
            .enumerate()
            .filter_map(|(index, pending)| {
                let entry = pending.in_doubt.filter(|entry| entry.seq <= version)?;
                let operation = &pending.proposal.operation;
                let place = Place {
                    timestamp: operation.timestamp,
                    seq: entry.seq,
                };
                Some((index, (place, operation.id)))
            })
            .collect();
        if due.is_empty() {
            return Ok(HashSet::new());
        }
        let places: Vec<_> = due.iter().map(|(_, operation)| *operation).collect();
        let stored = repeat_read(deadline, || self.store.stored_among(user_id, &places, deadline)).await?;
        let is_stored = |(index, (_, id)): (usize, _)| stored.contains(&id).then_some(index);
        Ok(due.into_iter().filter_map(is_stored).collect())
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
            return if undecided { Ended::Badly } else { Ended::Well };
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
        let outcome = self
            .store
            .commit(&commitments, &effects, &self.instance, deadline)
            .await;
        drop(commitments);
        match outcome {
            Ok(CommitOutcome::Stored) => {
                for (pending, entry) in accepted {
                    let recorded = pending.accepted(entry);
                    pending.settle(Ok(recorded));
                }
                for (pending, answer) in resting {
                    pending.settle(answer);
                }
                return Ended::Well;
            }
            Ok(CommitOutcome::Conflict) => {
                self.metrics.conflict();
                changes.extend(accepted.into_iter().map(|(pending, _)| pending));
            }
            Err(CommitError::NotStored(error)) => {
                let reason = NotRecorded::from(error);
                for (pending, _) in accepted {
                    match pending.in_doubt {
                        Some(_) => changes.push(pending),
                        None => pending.settle(Err(reason)),
                    }
                }
            }
            Err(CommitError::InDoubt(error)) => {
                tracing::warn!("the result of a commit was lost: {}", causes(&error));
                for (mut pending, entry) in accepted {
                    pending.in_doubt = Some(entry);
                    changes.push(pending);
                }
            }
        }
        changes.extend(resting.into_iter().map(|(pending, _)| pending));
        Ended::Badly
    }
}

/// Answers those in doubt that are stored; the others whose version has been reached by now are in doubt no more.
fn settle_doubts(changes: &mut Vec<Pending>, version: i64, stored: &HashSet<usize>) {
    let mut left = Vec::with_capacity(changes.len());
    for (index, mut pending) in changes.drain(..).enumerate() {
        match pending.in_doubt {
            Some(entry) if stored.contains(&index) => {
                let recorded = pending.accepted(entry);
                pending.settle(Ok(recorded));
                continue;
            }
            Some(entry) if entry.seq <= version => pending.in_doubt = None,
            Some(_) | None => {}
        }
        left.push(pending);
    }
    *changes = left;
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
