//! One user at a time, round by round, for what a batch of many users could not settle.
//!
//! While a user has a turn, the user's changes that arrive go to it: a replica never races itself.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Instant, sleep};

use super::Unavailable;
use super::answers::{Answers, Pending, expiring, ticks};
use super::attempt::{Recorder, UserChanges};
use crate::domain::UserId;
use crate::retry::Pauses;
use crate::store::{LedgerStore, Reach};

/// The most changes of one user that are committed together.
const MAX_TOGETHER: usize = 256;

/// How often in a row changes are tried again at once when another replica was faster. The loser has waited for the
/// winner's commit, and the winner stands back for a moment: two replicas take turns. Among more, pauses keep them from
/// wearing each other out.
const CONFLICTS_WITHOUT_PAUSE: u32 = 3;

type Waiting = HashMap<UserId, VecDeque<Pending>>;

/// For each user who has a turn, the changes that wait for its next round.
#[derive(Default)]
pub(super) struct Turns(Arc<Mutex<Waiting>>);

/// The right to work on a user's changes. Who drops it early drops what waits, and the callers are told.
pub(super) struct Turn {
    user_id: UserId,
    ended: bool,
    turns: Arc<Mutex<Waiting>>,
}

impl Turns {
    /// Gives a user's changes to the user's turn; returns the turn if it has just begun.
    pub(super) fn begin_or_join(&self, changes: UserChanges) -> Option<Turn> {
        let UserChanges { user_id, changes, .. } = changes;
        // Every critical section here is a single insertion or removal, so a poisoned map is a whole one.
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match turns.entry(user_id) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().extend(changes);
                None
            }
            Entry::Vacant(vacant) => {
                let user_id = vacant.key().clone();
                vacant.insert(changes.into());
                Some(Turn {
                    user_id,
                    ended: false,
                    turns: Arc::clone(&self.0),
                })
            }
        }
    }

    /// Gives a change to its user's turn; gives it back if the user has none.
    pub(super) fn join(&self, pending: Pending) -> Option<Pending> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.is_empty() {
            return Some(pending);
        }
        match turns.get_mut(&pending.proposal.operation.user_id) {
            Some(waiting) => {
                waiting.push_back(pending);
                None
            }
            None => Some(pending),
        }
    }
}

impl Turn {
    /// Moves what waits into `together`, up to `limit` changes beside those that were passed over, which go one by one and
    /// must not keep the others from going on. Where that leaves nothing to do, the turn ends in the same
    /// step, and the next change of the user needs a new one: `false`.
    fn take(&mut self, together: &mut Vec<Pending>, limit: usize) -> bool {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = turns.get_mut(&self.user_id) {
            let fresh = together.iter().filter(|pending| !pending.passed_over).count();
            let count = limit.saturating_sub(fresh).min(waiting.len());
            together.extend(waiting.drain(..count));
        }
        if together.is_empty() {
            turns.remove(&self.user_id);
            self.ended = true;
        }
        !self.ended
    }

    pub(super) fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Puts changes before those that wait.
    pub(super) fn put_first(&self, changes: Vec<Pending>) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = turns.get_mut(&self.user_id) {
            let later = std::mem::replace(waiting, changes.into());
            waiting.extend(later);
        }
    }

    /// Ends the turn, and gives back what waits.
    pub(super) fn end(mut self) -> VecDeque<Pending> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended = true;
        turns.remove(&self.user_id).unwrap_or_default()
    }

    /// Answers those that wait and whose time has run out.
    pub(super) fn expire(&self) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = turns.get_mut(&self.user_id) {
            *waiting = Answers::expire(std::mem::take(waiting));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.remove(&self.user_id);
        }
    }
}

impl<S: LedgerStore> Recorder<S> {
    /// Works on a user's changes until none is left.
    pub(super) async fn work(&self, mut turn: Turn) {
        let mut group = [UserChanges::new(turn.user_id.clone())];
        let mut answers = Answers::default();
        let mut pauses = Pauses::between_commits();
        let mut conflicts = 0;
        let mut ticks = ticks();
        while turn.take(&mut group[0].changes, MAX_TOGETHER) {
            let began = Instant::now();
            let attempt = self.attempt(&mut group, Reach::Unlimited, &mut answers);
            expiring(&mut ticks, attempt, || turn.expire()).await;
            answers.deliver();
            let [left] = &mut group;
            let Some(reason) = left.trouble else {
                (pauses, conflicts) = (Pauses::between_commits(), 0);
                if let Some(courtesy) = self.contended.courtesy(&left.user_id, began.elapsed()) {
                    sleep(courtesy).await;
                }
                continue;
            };
            if reason == Unavailable::TooManyConflicts && conflicts < CONFLICTS_WITHOUT_PAUSE {
                conflicts += 1;
                continue;
            }
            let latest = left.changes.iter().map(|pending| pending.deadline).max();
            if let Some(latest) = latest
                && pauses.pause(latest).await.is_err()
            {
                let out_of_time = left.changes.drain(..);
                out_of_time.for_each(|pending| answers.fail(pending, reason));
                answers.deliver();
            }
        }
    }
}
