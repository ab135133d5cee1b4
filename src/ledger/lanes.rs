//! Changes in batches of many users: what waits is read together, judged, and committed with one statement.
//!
//! A lane is a task, and a user's changes always go through the same one. What a batch cannot settle at once gets a turn
//! of its own, so that it holds up none of the others.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Unavailable;
use super::answers::{Answers, Pending};
use super::attempt::{Recorder, UserChanges};
use super::turns::Turns;
use crate::config::LedgerConfig;
use crate::domain::UserId;
use crate::store::Reach;

/// The most changes that are taken into one batch.
const MAX_TOGETHER: usize = 1_024;
/// An operation with more checkpoints behind it gets a turn of its own: reading and shifting these takes a fraction of
/// what a batch takes, more would hold up the others.
const REACH: Reach = Reach::Checkpoints(64);

/// The ways into the store.
pub(super) struct Lanes(Vec<mpsc::Sender<Pending>>);

struct Lane {
    recorder: Arc<Recorder>,
    /// The turns of this lane's users.
    turns: Turns,
    /// The most users of one statement.
    batch_users: usize,
}

impl Lanes {
    /// Starts the tasks; they end when this is dropped.
    pub(super) fn start(recorder: &Arc<Recorder>, config: LedgerConfig) -> Self {
        let lanes = (0..config.commit_lanes).map(|_| {
            // Each change holds one of the places of operations under way, so the queue is never full.
            let (arrivals, arrived) = mpsc::channel(config.operations_in_flight);
            let lane = Lane {
                recorder: Arc::clone(recorder),
                turns: Turns::default(),
                batch_users: config.commit_batch_users,
            };
            tokio::spawn(lane.run(arrived));
            arrivals
        });
        Self(lanes.collect())
    }

    pub(super) fn push(&self, pending: Pending) {
        let mut hasher = DefaultHasher::new();
        pending.proposal.operation.user_id.hash(&mut hasher);
        let lanes = self.0.len() as u64;
        let lane = usize::try_from(hasher.finish() % lanes).expect("less than the number of lanes");
        if let Err(refused) = self.0[lane].try_send(pending) {
            let (mpsc::error::TrySendError::Full(pending) | mpsc::error::TrySendError::Closed(pending)) = refused;
            let mut answers = Answers::default();
            answers.fail(pending, Unavailable::Overloaded);
            answers.deliver();
        }
    }
}

impl Lane {
    async fn run(self, mut arrived: mpsc::Receiver<Pending>) {
        while let Some(first) = arrived.recv().await {
            // Whatever else can run now may have changes too: they go together, and an idle service loses nothing.
            tokio::task::yield_now().await;
            let mut together = vec![first];
            while together.len() < MAX_TOGETHER
                && let Ok(pending) = arrived.try_recv()
            {
                together.push(pending);
            }
            let mut groups = self.group(together);
            if self.batch_users == 1 {
                groups.drain(..).for_each(|group| self.hand_over(group));
            }
            while !groups.is_empty() {
                let rest = groups.split_off(groups.len().min(self.batch_users));
                let batch = std::mem::replace(&mut groups, rest);
                self.settle(batch).await;
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
        let recorder = Arc::clone(&self.recorder);
        // A task of its own: should it panic, the lane goes on.
        let attempt = tokio::spawn(async move {
            let mut answers = Answers::default();
            recorder.attempt(&mut groups, REACH, &mut answers).await;
            answers.deliver();
            groups.retain(|group| !group.changes.is_empty());
            groups
        });
        match attempt.await {
            Ok(left) => left.into_iter().for_each(|group| self.hand_over(group)),
            Err(error) => tracing::error!(%error, "a batch of changes was not carried to its end"),
        }
    }

    fn hand_over(&self, group: UserChanges) {
        if let Some(turn) = self.turns.begin_or_join(group) {
            let recorder = Arc::clone(&self.recorder);
            tokio::spawn(async move { recorder.work(turn).await });
        }
    }
}
