//! Taking turns with other replicas that write to the same user.
//!
//! The replica with the shorter batches wins nearly always: its next commit is on its way before the loser, who has more to
//! read and to send, has got there; and the longer the loser waits, the more it has. So whoever has lost to another replica
//! within the last second stands back for a moment after each commit of its own. Nothing but fairness rests on it: with two
//! replicas and 128 clients each on one user, the slowest of a hundred requests took 1.5 s without.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::UserId;

/// How long after a conflict other replicas are thought to write to the user too.
const CONTENDED_FOR: Duration = Duration::from_secs(1);
/// The longest that a replica stands back after a commit.
const LONGEST_COURTESY: Duration = Duration::from_millis(10);
/// The most users that are remembered. When there are more, none is: then no single user is hot.
const MAX_USERS: usize = 1_024;

/// The users for whom other replicas were faster a short while ago, and until when that counts.
#[derive(Default)]
pub(super) struct Contended(Mutex<HashMap<UserId, Instant>>);

impl Contended {
    /// Notes that another replica was faster.
    pub(super) fn lost(&self, user_id: &UserId) {
        let now = Instant::now();
        // Every critical section here leaves a whole map, whatever panics.
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= MAX_USERS {
            users.retain(|_, until| *until > now);
        }
        if users.len() >= MAX_USERS {
            users.clear();
        }
        users.insert(user_id.clone(), now + CONTENDED_FOR);
    }

    /// Whether other replicas are thought to write to the user.
    pub(super) fn contains(&self, user_id: &UserId) -> bool {
        let users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !users.is_empty() && users.get(user_id).is_some_and(|until| *until > Instant::now())
    }

    /// How long to stand back after a commit that took so long: as long as another replica needs for one.
    pub(super) fn courtesy(&self, user_id: &UserId, took: Duration) -> Option<Duration> {
        self.contains(user_id).then(|| took.min(LONGEST_COURTESY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: usize) -> UserId {
        UserId::new(format!("user {number}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_is_contended_for_a_second_after_a_conflict_and_courtesy_is_bounded() {
        let contended = Contended::default();
        let took = Duration::from_millis(3);
        assert_eq!(contended.courtesy(&user(1), took), None);
        contended.lost(&user(1));
        assert_eq!(contended.courtesy(&user(1), took), Some(took));
        assert_eq!(
            contended.courtesy(&user(1), Duration::from_secs(1)),
            Some(LONGEST_COURTESY)
        );
        assert!(!contended.contains(&user(2)));
        tokio::time::advance(CONTENDED_FOR).await;
        assert!(!contended.contains(&user(1)));
    }

    #[tokio::test]
    async fn no_more_users_are_remembered_than_allowed() {
        let contended = Contended::default();
        (0..3 * MAX_USERS).for_each(|number| contended.lost(&user(number)));
        assert!(contended.0.lock().unwrap().len() <= MAX_USERS);
        assert!(contended.contains(&user(3 * MAX_USERS - 1)));
    }
}
