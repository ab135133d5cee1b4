//! Changes in batches of many users: what waits is read together, judged, and committed with one statement.
//!
//! A lane is a task, and a user's changes always go through the same one. What a batch cannot settle at once gets a turn
//! of its own, so that it holds up none of the others; and a batch that is held up itself goes on beside its lane.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::answers::{Answers, Pending, expiring, ticks};
use super::attempt::{Recorder, UserChanges};
use super::turns::{Turn, Turns};
use super::{Answer, Backlog, Place, Proposal, Unavailable, take_waiting};
use crate::config::LedgerConfig;
use crate::domain::UserId;
use crate::store::{LedgerStore, Reach};

/// The most changes that are taken into one batch.
const MAX_TOGETHER: usize = 1_024;
/// An operation with more checkpoints behind it gets a turn of its own: reading and shifting these takes a fraction of
/// what a batch takes, more would hold up the others.
const REACH: Reach = Reach::Checkpoints(64);
/// A batch that takes longer goes on by itself, so that what it waits for, such as a row that somebody else has locked,
/// holds up its own users only. Far above what a batch takes, on a distant PostgreSQL too.
const APART_AFTER: Duration = Duration::from_secs(1);

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
    /// Back to the end of this lane's queue.
    back: mpsc::WeakSender<Pending>,
    /// The most users of one statement.
    batch_users: usize,
    /// For batches of all lanes that go on by themselves: where all are slow, more at once would be no faster.
    apart: Arc<Semaphore>,
}

/// What has come to a lane and waits for the batch under way.
struct Arrivals {
    queue: mpsc::Receiver<Pending>,
    /// Taken from the queue to see whose time has run out; these go first.
    seen: Vec<Pending>,
}

impl Lanes {
    /// Starts the tasks; they end when this is dropped.
    pub(super) fn start<S: LedgerStore>(
        recorder: &Arc<Recorder<S>>,
        config: LedgerConfig,
        batches_apart: usize,
    ) -> Self {
        let apart = Arc::new(Semaphore::new(batches_apart));
        let lanes = (0..config.commit_lanes).map(|_| {
            // Each change holds one of the places of operations under way, so the queue is never full.
            let (arrivals, arrived) = mpsc::channel(config.operations_in_flight);
            let lane = Lane {
                recorder: Arc::clone(recorder),
                turns: Turns::default(),
                back: arrivals.downgrade(),
                batch_users: config.commit_batch_users,
                apart: Arc::clone(&apart),
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

    /// How many changes are in all lanes.
    pub(super) fn waiting(&self) -> usize {
        self.0.iter().map(|entrance| entrance.backlog.waiting()).sum()
    }

    pub(super) fn push(&self, proposal: Proposal, place: Place, answer: oneshot::Sender<Answer>) {
        let entrance = self.entrance(&proposal.operation.user_id);
        let pending = Pending::new(proposal, place, entrance.backlog.enter(), answer);
        if let Err(refused) = entrance.arrivals.try_send(pending) {
            refuse(refused.into_inner());
        }
    }
}

impl Arrivals {
    /// The next batches; `None` when nothing will come any more. `before`: so many were taken at once the last time.
    async fn take(&mut self, before: usize) -> Option<Vec<Pending>> {
        if self.seen.is_empty() {
            return take_waiting(&mut self.queue, MAX_TOGETHER, before).await;
        }
        self.see();
        let count = self.seen.len().min(MAX_TOGETHER);
        Some(self.seen.drain(..count).collect())
    }

    fn see(&mut self) {
        while let Ok(pending) = self.queue.try_recv() {
            self.seen.push(pending);
        }
    }

    /// Answers those whose time has run out.
    fn expire(&mut self) {
        self.see();
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
                    let mut answers = Answers::default();
                    groups.iter_mut().for_each(|group| group.expire(&mut answers));
                    answers.deliver();
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
    async fn settle(&self, groups: Vec<UserChanges>) {
        let users: Vec<UserId> = groups.iter().map(|group| group.user_id.clone()).collect();
        let mut attempt = Box::pin(attempt(Arc::clone(&self.recorder), groups));
        let left = match timeout(APART_AFTER, attempt.as_mut()).await {
            Ok(left) => left,
            Err(_) => match Arc::clone(&self.apart).try_acquire_owned() {
                Ok(place) => return self.go_on_apart(users, attempt, place),
                Err(_) => attempt.await,
            },
        };
        left.into_iter().for_each(|group| self.hand_over(group));
    }

    /// Lets a batch end in a task of its own. Its users have their turns until then: what arrives for them waits.
    fn go_on_apart(
        &self,
        users: Vec<UserId>,
        attempt: impl Future<Output = Vec<UserChanges>> + Send + 'static,
        place: OwnedSemaphorePermit,
    ) {
        let turns: Vec<Turn> = users
            .into_iter()
            .filter_map(|user_id| self.turns.begin_or_join(UserChanges::new(user_id)))
            .collect();
        let (recorder, back) = (Arc::clone(&self.recorder), self.back.clone());
        tokio::spawn(async move {
            let expire = || turns.iter().for_each(Turn::expire);
            let left = expiring(&mut ticks(), attempt, expire).await;
            drop(place);
            let mut left: HashMap<UserId, Vec<Pending>> =
                left.into_iter().map(|group| (group.user_id, group.changes)).collect();
            for turn in turns {
                match left.remove(turn.user_id()) {
                    Some(changes) => {
                        turn.put_first(changes);
                        let recorder = Arc::clone(&recorder);
                        tokio::spawn(async move { recorder.work(turn).await });
                    }
                    // A batch of many users does with one statement what turns do with one each.
                    None => turn.end().into_iter().for_each(|pending| send_back(&back, pending)),
                }
            }
        });
    }

    fn hand_over(&self, group: UserChanges) {
        if let Some(turn) = self.turns.begin_or_join(group) {
            let recorder = Arc::clone(&self.recorder);
            tokio::spawn(async move { recorder.work(turn).await });
        }
    }
}

fn send_back(lane: &mpsc::WeakSender<Pending>, pending: Pending) {
    // It holds one of the places of operations under way, so there is room for it.
    let refused = match lane.upgrade() {
        Some(lane) => lane.try_send(pending).err().map(mpsc::error::TrySendError::into_inner),
        None => Some(pending),
    };
    refused.into_iter().for_each(refuse);
}

fn refuse(pending: Pending) {
    let mut answers = Answers::default();
    answers.fail(pending, Unavailable::Overloaded);
    answers.deliver();
}

/// Tries a batch once; returns what is not settled.
async fn attempt<S: LedgerStore>(recorder: Arc<Recorder<S>>, mut groups: Vec<UserChanges>) -> Vec<UserChanges> {
    let mut answers = Answers::default();
    let attempt = recorder.attempt(&mut groups, REACH, &mut answers);
    // Should it panic, the callers are told that the outcome is not known, and the lane goes on.
    if AssertUnwindSafe(attempt).catch_unwind().await.is_err() {
        tracing::error!("a batch of changes was not carried to its end");
        return Vec::new();
    }
    answers.deliver();
    groups.retain(|group| !group.changes.is_empty());
    groups
}
