//! Who waits for whose turn, inside this process.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::round::Pending;
use crate::domain::UserId;

type Waiting = HashMap<UserId, VecDeque<Pending>>;

/// For each user with changes under way, those that wait. A user who is not in it has none under way.
#[derive(Default)]
pub(super) struct Queues(Arc<Mutex<Waiting>>);

/// The right to work on a user's changes. Who drops it early drops what waits, and the callers are told.
pub(super) struct Turn {
    user_id: UserId,
    ended: bool,
    queues: Arc<Mutex<Waiting>>,
}

impl Queues {
    /// Adds a change; returns the turn if nobody works on this user's changes.
    pub(super) fn push(&self, user_id: &UserId, pending: Pending) -> Option<Turn> {
        // Every critical section here is a single insertion or removal, so a poisoned map is a whole one.
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match queues.entry(user_id.clone()) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back(pending);
                None
            }
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::from([pending]));
                Some(Turn {
                    user_id: user_id.clone(),
                    ended: false,
                    queues: Arc::clone(&self.0),
                })
            }
        }
    }
}

impl Turn {
    pub(super) fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Moves what waits into `together`, up to `limit` changes. Where that leaves nothing to do, the turn ends in the same
    /// step, and the next change of the user gets a new one: `false`.
    pub(super) fn take(&mut self, together: &mut Vec<Pending>, limit: usize) -> bool {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        self.move_waiting(&mut queues, together, limit);
        if together.is_empty() {
            queues.remove(&self.user_id);
            self.ended = true;
        }
        !self.ended
    }

    /// Moves what waits into `together`, up to `limit` changes; the turn goes on.
    pub(super) fn take_more(&self, together: &mut Vec<Pending>, limit: usize) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        self.move_waiting(&mut queues, together, limit);
    }

    fn move_waiting(&self, queues: &mut Waiting, together: &mut Vec<Pending>, limit: usize) {
        if let Some(waiting) = queues.get_mut(&self.user_id) {
            let count = limit.saturating_sub(together.len()).min(waiting.len());
            together.extend(waiting.drain(..count));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues.remove(&self.user_id);
        }
    }
}
