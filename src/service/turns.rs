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

/// Turns for one kind of work.
pub(super) struct Turns {
    at_work: Semaphore,
    backlog: Arc<Backlog>,
}

impl Turns {
    /// `at_once` at once, at least 1; nothing is to wait for longer than `longest_wait`.
    pub(super) fn new(at_once: usize, longest_wait: Duration) -> Self {
        Self {
            at_work: Semaphore::new(at_once.max(1)),
            backlog: Backlog::new(longest_wait),
        }
    }

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
        let done = match timeout_at(deadline, self.at_work.acquire()).await {
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
