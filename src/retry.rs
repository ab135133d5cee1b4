//! Pauses between attempts, none of which ends after a deadline. The only module that names the crate `backoff`, which is no longer
//! maintained (RUSTSEC-2025-0012): whoever replaces it changes this file.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use tokio::time::{Instant, sleep};

/// Pauses that grow exponentially and are spread at random, so that those who collided do not collide again.
#[derive(Debug)]
pub struct Pauses {
    backoff: ExponentialBackoff,
}

/// The next attempt would come too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadlinePassed;

impl Pauses {
    /// Between attempts to move a user's version: a commit takes a few milliseconds.
    pub fn between_commits() -> Self {
        Self::new(Duration::from_millis(2), Duration::from_millis(20))
    }

    /// Between calls to a service or a database that has just failed.
    pub fn between_calls() -> Self {
        Self::new(Duration::from_millis(30), Duration::from_millis(500))
    }

    /// Between looks for changes without their lines, which nobody waits for.
    pub fn between_looks() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(15))
    }

    fn new(first: Duration, longest: Duration) -> Self {
        let backoff = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            // A test that draws all else from a seed must find the same pauses again.
            randomization_factor: if cfg!(test) { 0.0 } else { 0.8 },
            multiplier: 1.7,
            max_interval: longest,
            // The deadline is the operation's, and checked below.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { backoff }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// [`DeadlinePassed`], at once, if the pause would end after the deadline.
    pub async fn pause(&mut self, deadline: Instant) -> Result<(), DeadlinePassed> {
        let pause = self.backoff.next_backoff().ok_or(DeadlinePassed)?;
        if Instant::now() + pause >= deadline {
            return Err(DeadlinePassed);
        }
        sleep(pause).await;
        Ok(())
    }
}
