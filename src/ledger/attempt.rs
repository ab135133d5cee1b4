//! One attempt at changes of one user or many: read, settle what is in doubt, judge, commit, answer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::answers::{Answers, Pending};
use super::contention::Contended;
use super::{Answer, SHARED_GRACE, Unavailable, judge};
use crate::causes::causes;
use crate::domain::{Changes, Entry, OperationId, UserId};
use crate::metrics::{BatchKind, Metrics, RetryReason};
use crate::store::{
    CommitError, CommitOutcome, Commitment, Group, GroupCommit, LedgerStore, Reach, StoreError, UserState,
};
use crate::telemetry::{RequestContext, caused_by, shared_by};

/// What an attempt needs.
pub(super) struct Recorder<S> {
    store: Arc<S>,
    metrics: Arc<Metrics>,
    /// Kept with every operation.
    instance: String,
    pub(super) contended: Contended,
}

/// Changes of one user that are to be tried, and after an attempt those to be tried again.
pub(super) struct UserChanges {
    pub(super) user_id: UserId,
    pub(super) changes: Vec<Pending>,
    /// Why the last attempt did not settle them, where that calls for a pause.
    pub(super) trouble: Option<Unavailable>,
}

impl UserChanges {
    pub(super) fn new(user_id: UserId) -> Self {
        Self {
            user_id,
            changes: Vec::new(),
            trouble: None,
        }
    }

    /// What is to be read for them.
    fn group(&self) -> Option<Group<'_>> {
        let mut changes = self.changes.iter();
        let first = changes.next()?;
        let mut group = Group::of(&first.proposal.operation, first.proposal.idempotency_key.as_ref());
        for pending in changes {
            group.add(&pending.proposal.operation, pending.proposal.idempotency_key.as_ref());
        }
        if let Some(pending) = self.changes.iter().find(|pending| pending.passed_over) {
            group.deep_first(&pending.proposal.operation);
        }
        Some(group)
    }

    /// What they were asked by.
    pub(super) fn requests(&self) -> impl Iterator<Item = Option<&Arc<RequestContext>>> {
        self.changes.iter().map(|pending| pending.request.as_ref())
    }

    /// Answers those whose time has run out.
    pub(super) fn expire(&mut self, answers: &mut Answers) {
        let now = Instant::now();
        let reason = self.trouble.take().unwrap_or(Unavailable::Overloaded);
        for pending in self.changes.extract_if(.., |pending| pending.deadline <= now) {
            answers.fail(pending, reason);
        }
    }

    /// Answers those for whom a reading has failed. A change in doubt stays so until the database answers; and where it may
    /// have failed because of others, those with time left are tried again.
    fn give_up(&mut self, reason: Unavailable, may_succeed_later: bool, answers: &mut Answers) {
        let now = Instant::now();
        let again = |pending: &Pending| pending.in_doubt.is_some() || (may_succeed_later && pending.deadline > now);
        for pending in self.changes.extract_if(.., |pending| !again(pending)) {
            answers.push(pending, Err(reason.into()));
        }
        self.trouble = Some(reason);
    }

    /// Answers those in doubt that are stored; the others whose fate is decided are in doubt no more.
    fn settle_doubts(&mut self, version: i64, stored: &HashMap<OperationId, Entry>, answers: &mut Answers) {
        let is_stored = |pending: &mut Pending| stored.contains_key(&pending.proposal.operation.id);
        for pending in self.changes.extract_if(.., is_stored) {
            let recorded = pending.accepted(stored[&pending.proposal.operation.id]);
            answers.push(pending, Ok(recorded));
        }
        for pending in &mut self.changes {
            if pending.is_decided_at(version) {
                pending.in_doubt = None;
            }
        }
    }
}

/// A user's changes, judged.
struct Judged {
    /// Whose, as a place among those of the attempt.
    place: usize,
    accepted: Vec<(Pending, Entry)>,
    /// Answers that rest on the accepted ones, and hold only if those are stored.
    resting: Vec<(Pending, Answer)>,
    /// What the timeline says has to be written beside the accepted ones.
    changes: Changes,
}

impl Judged {
    /// Judges each change with those accepted before it. Answers that rest on nothing but the reading are given at once;
    /// what the reading does not cover, and what has the key of an accepted one, stays in the group.
    fn of(place: usize, group: &mut UserChanges, mut state: UserState, answers: &mut Answers) -> Self {
        let mut accepted: Vec<(Pending, Entry)> = Vec::new();
        let mut resting = Vec::new();
        let mut keys = HashSet::new();
        let mut commits_alone = false;
        for mut pending in std::mem::take(&mut group.changes) {
            // What was accepted before under its key is answered from that, wherever it lies.
            let is_repeat = pending.key().is_some_and(|key| state.earlier.contains_key(key));
            if !is_repeat && !state.covers(&pending.proposal.operation) {
                pending.passed_over = true;
                group.changes.push(pending);
                continue;
            }
            // Those behind it wait with it, so that the user's changes stay in their order.
            commits_alone |= pending.commits_alone;
            if commits_alone && !accepted.is_empty() {
                group.changes.push(pending);
                continue;
            }
            if pending.key().is_some_and(|key| keys.contains(key)) {
                group.changes.push(pending);
                continue;
            }
            match judge(&pending.proposal, &mut state.timeline, &state.earlier) {
                Ok(entry) => {
                    keys.extend(pending.key().map(str::to_owned));
                    accepted.push((pending, entry));
                }
                // A refusal while in doubt rests on a version that the lost commit may still take.
                Err(answer) if accepted.is_empty() && pending.in_doubt.is_none() => answers.push(pending, answer),
                Err(answer) => resting.push((pending, answer)),
            }
        }
        Self {
            place,
            accepted,
            resting,
            changes: state.timeline.into_changes(),
        }
    }

    fn commit(&self) -> GroupCommit<'_> {
        let commitments = self.accepted.iter().map(|(pending, entry)| Commitment {
            operation: &pending.proposal.operation,
            idempotency_key: pending.proposal.idempotency_key.as_ref(),
            approved: pending.proposal.approved,
            entry: *entry,
        });
        GroupCommit {
            commitments: commitments.collect(),
            changes: self.changes.clone(),
        }
    }

    /// The version that the commit starts from.
    fn start(&self) -> Option<i64> {
        self.accepted.first().map(|(_, entry)| entry.seq - 1)
    }

    fn stored(self, answers: &mut Answers) {
        for (pending, entry) in self.accepted {
            let recorded = pending.accepted(entry);
            answers.push(pending, Ok(recorded));
        }
        for (pending, answer) in self.resting {
            answers.push(pending, answer);
        }
    }

    /// What the accepted ones were asked by.
    fn requests(&self) -> impl Iterator<Item = Option<&Arc<RequestContext>>> {
        self.accepted.iter().map(|(pending, _)| pending.request.as_ref())
    }

    /// Puts all of it back, to be tried again; tells how many that are.
    fn again(self, group: &mut UserChanges, reason: Unavailable) -> usize {
        let count = self.accepted.len() + self.resting.len();
        let accepted = self.accepted.into_iter().map(|(pending, _)| pending);
        let resting = self.resting.into_iter().map(|(pending, _)| pending);
        group.changes.extend(accepted.chain(resting));
        group.trouble = Some(reason);
        count
    }

    /// Answers the accepted ones that nothing is stored; what is in doubt and what rested on them is tried again, and
    /// counted.
    fn not_stored(mut self, group: &mut UserChanges, reason: Unavailable, answers: &mut Answers) -> usize {
        let is_known = |(pending, _): &mut (Pending, Entry)| pending.in_doubt.is_none();
        for (pending, _) in self.accepted.extract_if(.., is_known) {
            answers.push(pending, Err(reason.into()));
        }
        self.again(group, reason)
    }
}

impl<S: LedgerStore> Recorder<S> {
    pub(super) fn new(store: Arc<S>, metrics: Arc<Metrics>, instance: String) -> Self {
        Self {
            store,
            metrics,
            instance,
            contended: Contended::default(),
        }
    }

    /// One reading, one judgement and one commit for all of the groups, each of another user; what is to be tried again is
    /// left in them. Answers are handed to the log as soon as they are known.
    pub(super) async fn attempt(&self, groups: &mut [UserChanges], reach: Reach, answers: &mut Answers) {
        groups.iter_mut().for_each(|group| group.expire(answers));
        answers.deliver();
        let deadlines = groups
            .iter()
            .flat_map(|group| &group.changes)
            .map(|pending| pending.deadline);
        let Some(first) = deadlines.min() else {
            return;
        };
        let began = Instant::now();
        let deadline = first.max(began + SHARED_GRACE);
        let (places, states) = match self.read(groups, reach, deadline).await {
            Ok(read) => read,
            Err(error) => {
                // A user whose rows PostgreSQL cannot read fails alone, with all changes: their parameters are checked text and
                // numbers, so it is the rows that PostgreSQL refuses.
                let may_succeed_later = error.is_out_of_time() || (error.is_refusal() && groups.len() > 1);
                let reason = caused_by(requests(groups), || Unavailable::from(error));
                return groups
                    .iter_mut()
                    .for_each(|group| self.give_up(group, reason, may_succeed_later, answers));
            }
        };
        let mut judged = Vec::with_capacity(places.len());
        for (place, state) in places.into_iter().zip(states) {
            let group = &mut groups[place];
            let version = state.timeline.version();
            match self.doubts(group, version, deadline).await {
                Ok(stored) => {
                    group.settle_doubts(version, &stored, answers);
                    judged.push(Judged::of(place, group, state, answers));
                }
                Err(error) => {
                    let may_succeed_later = error.is_out_of_time();
                    let reason = caused_by(group.requests(), || Unavailable::from(error));
                    self.give_up(group, reason, may_succeed_later, answers);
                }
            }
        }
        answers.deliver();
        self.commit(judged, groups, answers, deadline).await;
        self.metrics.ledger.batch_took(BatchKind::Commit, began.elapsed());
    }

    fn give_up(&self, group: &mut UserChanges, reason: Unavailable, may_succeed_later: bool, answers: &mut Answers) {
        group.give_up(reason, may_succeed_later, answers);
        self.metrics.ledger.retried(RetryReason::NotRead, group.changes.len());
    }

    /// The state of each user who has changes, and the user's place among the groups.
    async fn read(
        &self,
        groups: &[UserChanges],
        reach: Reach,
        deadline: Instant,
    ) -> Result<(Vec<usize>, Vec<UserState>), StoreError> {
        let numbered = groups.iter().enumerate();
        let (places, asked): (Vec<_>, Vec<_>) = numbered
            .filter_map(|(place, group)| Some((place, group.group()?)))
            .unzip();
        let states = self.store.states(&asked, reach, deadline);
        Ok((places, shared_by(requests(groups), states).await?))
    }

    /// The changes in doubt that turn out to be stored, with the place of each. The user is at `version`.
    async fn doubts(
        &self,
        group: &UserChanges,
        version: i64,
        deadline: Instant,
    ) -> Result<HashMap<OperationId, Entry>, StoreError> {
        let decided = group.changes.iter().filter(|pending| pending.is_decided_at(version));
        let operations: Vec<_> = decided
            .map(|pending| (pending.proposal.operation.timestamp, pending.proposal.operation.id))
            .collect();
        if operations.is_empty() {
            return Ok(HashMap::new());
        }
        self.store.stored_among(&group.user_id, &operations, deadline).await
    }

    async fn commit(&self, judged: Vec<Judged>, groups: &mut [UserChanges], answers: &mut Answers, deadline: Instant) {
        let (judged, idle): (Vec<_>, Vec<_>) = judged.into_iter().partition(|judged| !judged.accepted.is_empty());
        for judged in idle {
            // Only what is in doubt can rest on nothing; it waits until the database has decided.
            if !judged.resting.is_empty() {
                let group = &mut groups[judged.place];
                judged.again(group, Unavailable::Database);
            }
        }
        if judged.is_empty() {
            return;
        }
        let commits: Vec<_> = judged.iter().map(Judged::commit).collect();
        let operations = judged.iter().map(|judged| judged.accepted.len()).sum();
        self.metrics.ledger.batch(BatchKind::Commit, operations);
        let committing = self.store.commit(&commits, &self.instance, deadline);
        let outcome = shared_by(judged.iter().flat_map(Judged::requests), committing).await;
        drop(commits);
        let is_alone = judged.len() == 1;
        match outcome {
            Ok(outcomes) => {
                for (judged, outcome) in judged.into_iter().zip(outcomes) {
                    let group = &mut groups[judged.place];
                    match outcome {
                        CommitOutcome::Stored => judged.stored(answers),
                        CommitOutcome::Conflict => {
                            self.metrics.ledger.conflict();
                            self.contended.lost(&group.user_id);
                            let again = judged.again(group, Unavailable::TooManyConflicts);
                            self.metrics.ledger.retried(RetryReason::Conflict, again);
                        }
                    }
                }
            }
            Err(CommitError::NotStored(error)) => {
                let is_refusal = error.is_refusal();
                let reason = caused_by(judged.iter().flat_map(Judged::requests), || Unavailable::from(error));
                for mut judged in judged {
                    let group = &mut groups[judged.place];
                    let again = if is_alone && is_refusal && judged.accepted.len() > 1 {
                        // It may be due to one of them; each is committed by itself.
                        judged
                            .accepted
                            .iter_mut()
                            .for_each(|(pending, _)| pending.commits_alone = true);
                        judged.again(group, reason)
                    } else if is_alone {
                        judged.not_stored(group, reason, answers)
                    } else {
                        // It may be due to another user's; each is tried by itself.
                        judged.again(group, reason)
                    };
                    self.metrics.ledger.retried(RetryReason::NotStored, again);
                }
            }
            Err(CommitError::InDoubt(error)) => {
                caused_by(judged.iter().flat_map(Judged::requests), || {
                    tracing::warn!("the result of a commit was lost: {}", causes(&error));
                });
                for mut judged in judged {
                    let start = judged.start();
                    judged
                        .accepted
                        .iter_mut()
                        .for_each(|(pending, _)| pending.in_doubt = start);
                    let group = &mut groups[judged.place];
                    let again = judged.again(group, Unavailable::Database);
                    self.metrics.ledger.retried(RetryReason::ResultLost, again);
                }
            }
        }
    }
}

/// What the changes of these users were asked by.
fn requests(groups: &[UserChanges]) -> impl Iterator<Item = Option<&Arc<RequestContext>>> {
    groups.iter().flat_map(UserChanges::requests)
}
