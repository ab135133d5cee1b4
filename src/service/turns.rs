//! Statements that are not shared with others, of which only so many are under way at once: they take connections that all
//! else needs too.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::Unavailable;
use crate::ledger::Backlog;

/// What several kinds of work have together.
pub(super) struct SharedTurns(Arc<Semaphore>);

/// Turns for one kind of work.
pub(super) struct Turns {
    of_kind: Semaphore,
    of_all: Arc<Semaphore>,
    backlog: Arc<Backlog>,
}

impl SharedTurns {
    /// `at_once` of all kinds at once, at least 1.
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once.max(1))))
    }

    /// Turns for a kind of work: of these `at_once` at once, at least 1; none is to wait for longer than `longest_wait`.
    pub(super) fn of(&self, at_once: usize, longest_wait: Duration) -> Turns {
        Turns {
            of_kind: Semaphore::new(at_once.max(1)),
            of_all: Arc::clone(&self.0),
            backlog: Backlog::new(longest_wait),
        }
    }
}

impl Turns {
    /// Whether one more would wait for too long.
    pub(super) fn are_full(&self) -> bool {
        self.backlog.is_full()
    }

    /// How many wait or are at work.
    pub(super) fn waiting(&self) -> usize {
        self.backlog.waiting()
    }

    /// Does the work when it is its turn. Should it panic, that is told like any other failure, so that the operation gets
    /// its line.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Unavailable::Overloaded`] if its turn does not come before `deadline`.
    pub(super) async fn take<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let waiting = self.backlog.enter();
        // First that of the kind: whoever waits for it takes nothing from other kinds.
        let turn = async { (self.of_kind.acquire().await, self.of_all.acquire().await) };
        let done = match timeout_at(deadline, turn).await {
            Ok(_turn) => AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("a statement of one operation was not carried to its end");
                Err(Unavailable::Internal)
            }),
            Err(_) => Err(Unavailable::Overloaded),
        };
        waiting.answered(usize::from(done.is_ok()));
        done
    }
}
