//! Changes in batches of many users: what waits is read together, judged, and committed with one statement.
//!
//! A lane is a task, and a user's changes always go through the same one. What a batch cannot settle at once gets a turn
//! of its own, so that it holds up none of the others.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::answers::{Answers, Pending, expiring, ticks};
use super::attempt::{Recorder, UserChanges};
use super::turns::Turns;
use super::{Answer, Backlog, Place, Proposal, Unavailable, take_waiting};
use crate::config::LedgerConfig;
use crate::domain::UserId;
use crate::store::{LedgerStore, Reach};

/// The most changes that are taken into one batch.
const MAX_TOGETHER: usize = 1_024;
/// An operation with more checkpoints behind it gets a turn of its own: reading and shifting these takes a fraction of
/// what a batch takes, more would hold up the others.
const REACH: Reach = Reach::Checkpoints(64);

/// The ways into the store.
pub(super) struct Lanes(Vec<Entrance>);

/// Where changes join a lane.
struct Entrance {
    arrivals: mpsc::Sender<Pending>,
    backlog: Arc<Backlog>,
}

struct Lane<S> {
    recorder: Arc<Recorder<S>>,
    /// The turns of this lane's users.
    turns: Turns,
    /// The most users of one statement.
    batch_users: usize,
}

/// What has come to a lane and waits for the batch under way.
struct Arrivals {
    queue: mpsc::Receiver<Pending>,
    /// Taken from the queue to see whose time has run out; these go first.
    seen: Vec<Pending>,
}

impl Lanes {
    /// Starts the tasks; they end when this is dropped.
    pub(super) fn start<S: LedgerStore>(recorder: &Arc<Recorder<S>>, config: LedgerConfig) -> Self {
        let lanes = (0..config.commit_lanes).map(|_| {
            // Each change holds one of the places of operations under way, so the queue is never full.
            let (arrivals, arrived) = mpsc::channel(config.operations_in_flight);
            let lane = Lane {
                recorder: Arc::clone(recorder),
                turns: Turns::default(),
                batch_users: config.commit_batch_users,
            };
            let arrived = Arrivals {
                queue: arrived,
                seen: Vec::new(),
            };
            tokio::spawn(lane.run(arrived));
            let backlog = Backlog::new(config.longest_wait);
            Entrance { arrivals, backlog }
        });
        Self(lanes.collect())
    }

    fn entrance(&self, user_id: &UserId) -> &Entrance {
        let mut hasher = DefaultHasher::new();
        user_id.hash(&mut hasher);
        let lanes = self.0.len() as u64;
        let lane = usize::try_from(hasher.finish() % lanes).expect("less than the number of lanes");
        &self.0[lane]
    }

    /// The changes that go through the same lane as this user's.
    pub(super) fn backlog_of(&self, user_id: &UserId) -> &Arc<Backlog> {
        &self.entrance(user_id).backlog
    }

    pub(super) fn push(&self, proposal: Proposal, place: Place, answer: oneshot::Sender<Answer>) {
        let entrance = self.entrance(&proposal.operation.user_id);
        let pending = Pending::new(proposal, place, entrance.backlog.enter(), answer);
        if let Err(refused) = entrance.arrivals.try_send(pending) {
            let (mpsc::error::TrySendError::Full(pending) | mpsc::error::TrySendError::Closed(pending)) = refused;
            let mut answers = Answers::default();
            answers.fail(pending, Unavailable::Overloaded);
            answers.deliver();
        }
    }
}

impl Arrivals {
    /// The next batches; `None` when nothing will come any more. `before`: so many were taken at once the last time.
    async fn take(&mut self, before: usize) -> Option<Vec<Pending>> {
        if self.seen.is_empty() {
            return take_waiting(&mut self.queue, MAX_TOGETHER, before).await;
        }
        let count = self.seen.len().min(MAX_TOGETHER);
        Some(self.seen.drain(..count).collect())
    }

    /// Answers those whose time has run out.
    fn expire(&mut self) {
        while let Ok(pending) = self.queue.try_recv() {
            self.seen.push(pending);
        }
        self.seen = Answers::expire(std::mem::take(&mut self.seen));
    }
}

impl<S: LedgerStore> Lane<S> {
    async fn run(self, mut arrived: Arrivals) {
        let mut before = 0;
        let mut ticks = ticks();
        while let Some(together) = arrived.take(before).await {
            before = together.len();
            let mut groups = self.group(together);
            let own_turn =
                |group: &mut UserChanges| self.batch_users == 1 || self.recorder.contended.contains(&group.user_id);
            groups.extract_if(.., own_turn).for_each(|group| self.hand_over(group));
            while !groups.is_empty() {
                let rest = groups.split_off(groups.len().min(self.batch_users));
                let batch = std::mem::replace(&mut groups, rest);
                let expire = || {
                    for group in &mut groups {
                        group.changes = Answers::expire(std::mem::take(&mut group.changes));
                    }
                    arrived.expire();
                };
                expiring(&mut ticks, self.settle(batch), expire).await;
            }
        }
    }

    /// By user, without those who have a turn.
    fn group(&self, changes: Vec<Pending>) -> Vec<UserChanges> {
        let mut places: HashMap<UserId, usize> = HashMap::with_capacity(changes.len());
        let mut groups: Vec<UserChanges> = Vec::with_capacity(changes.len());
        for pending in changes.into_iter().filter_map(|pending| self.turns.join(pending)) {
            let user_id = &pending.proposal.operation.user_id;
            let place = match places.get(user_id) {
                Some(place) => *place,
                None => {
                    places.insert(user_id.clone(), groups.len());
                    groups.push(UserChanges::new(user_id.clone()));
                    groups.len() - 1
                }
            };
            groups[place].changes.push(pending);
        }
        groups
    }

    /// One reading and one commit for all; what is left is handed over.
    async fn settle(&self, mut groups: Vec<UserChanges>) {
        let mut answers = Answers::default();
        let attempt = self.recorder.attempt(&mut groups, REACH, &mut answers);
        // Should it panic, the callers are told that the outcome is not known, and the lane goes on.
        if AssertUnwindSafe(attempt).catch_unwind().await.is_err() {
            tracing::error!("a batch of changes was not carried to its end");
            return;
        }
        answers.deliver();
        let left = groups.into_iter().filter(|group| !group.changes.is_empty());
        left.for_each(|group| self.hand_over(group));
    }

    fn hand_over(&self, group: UserChanges) {
        if let Some(turn) = self.turns.begin_or_join(group) {
            let recorder = Arc::clone(&self.recorder);
            tokio::spawn(async move { recorder.work(turn).await });
        }
    }
}
