//! What is known about the log outside its writer: whether it works, and its counts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::file::OpenError;

/// How long one write or sync may take before the log counts as failing.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Why lines cannot be written now. The message is fit for `/readyz`: the operating system's words, no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFailure {
    /// The file does not take lines, as when the disk is full.
    #[error("the operations log cannot be written: {reason}")]
    Write {
        /// In the operating system's words.
        reason: String,
    },
    /// What was written cannot be forced to the disk.
    #[error("the operations log cannot be forced to the disk: {reason}")]
    Sync {
        /// In the operating system's words.
        reason: String,
    },
    /// The file cannot be opened anew, as after a rotation.
    #[error("the operations log cannot be opened: {reason}")]
    Open {
        /// In the operating system's words.
        reason: String,
    },
    /// A write or a sync has been under way for more than five seconds.
    #[error("the operations log has not finished a write for {seconds} s")]
    Stalled {
        /// For how long.
        seconds: u64,
    },
    /// The writer has ended.
    #[error("the operations log is closed")]
    Closed,
}

impl LogFailure {
    pub(super) fn write(error: &io::Error) -> Self {
        Self::Write { reason: words(error) }
    }

    pub(super) fn sync(error: &io::Error) -> Self {
        Self::Sync { reason: words(error) }
    }

    pub(super) fn open(error: &OpenError) -> Self {
        Self::Open {
            reason: match error.source() {
                Some(source) => words(source),
                None => "another process writes it".to_owned(),
            },
        }
    }
}

fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.kind().to_string(),
    }
}

/// Counts for `/metrics`, since the log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Lines handed to the operating system.
    pub lines_written: u64,
    /// Their bytes.
    pub bytes_written: u64,
    /// Writes, syncs and openings that failed, probes included.
    pub failed_writes: u64,
    /// Slots taken whose lines the writer has not taken up yet.
    pub lines_queued: usize,
    /// Lines of committed changes that wait for the log to work again.
    pub lines_retained: u64,
    /// Since the last `fdatasync` that succeeded, or since the log was opened. Grows without bound while nothing is
    /// written, and where the policy is never to sync.
    pub since_last_sync: Duration,
}

/// Between the handles and the writer. Nothing correct depends on when one side sees what the other stored.
pub(super) struct Shared {
    pub(super) instance: Arc<str>,
    /// The handles ask for the file to be opened anew.
    pub(super) reopen: Notify,
    /// The handles ask the writer to end.
    pub(super) closing: CancellationToken,
    failure: watch::Sender<Option<LogFailure>>,
    opened_at: Instant,
    /// Milliseconds after `opened_at`, plus one; 0 while nothing is under way.
    busy_since_ms: AtomicU64,
    /// Milliseconds after `opened_at`.
    synced_at_ms: AtomicU64,
    lines_written: AtomicU64,
    bytes_written: AtomicU64,
    failed_writes: AtomicU64,
    lines_retained: AtomicU64,
}

impl Shared {
    pub(super) fn new(instance: &str) -> Self {
        Self {
            instance: instance.into(),
            reopen: Notify::new(),
            closing: CancellationToken::new(),
            failure: watch::Sender::new(None),
            opened_at: Instant::now(),
            busy_since_ms: AtomicU64::new(0),
            synced_at_ms: AtomicU64::new(0),
            lines_written: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
            lines_retained: AtomicU64::new(0),
        }
    }

    pub(super) fn health(&self) -> Result<(), LogFailure> {
        if let Some(failure) = &*self.failure.borrow() {
            return Err(failure.clone());
        }
        let since_ms = self.busy_since_ms.load(Ordering::Relaxed);
        if since_ms != 0 {
            let busy = Duration::from_millis((self.now_ms() + 1).saturating_sub(since_ms));
            if busy > STALLED_AFTER {
                return Err(LogFailure::Stalled {
                    seconds: busy.as_secs(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn statistics(&self, lines_queued: usize) -> Statistics {
        let synced_at_ms = self.synced_at_ms.load(Ordering::Relaxed);
        Statistics {
            lines_written: self.lines_written.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            failed_writes: self.failed_writes.load(Ordering::Relaxed),
            lines_queued,
            lines_retained: self.lines_retained.load(Ordering::Relaxed),
            since_last_sync: Duration::from_millis(self.now_ms().saturating_sub(synced_at_ms)),
        }
    }

    pub(super) fn set_failing(&self, failure: LogFailure) {
        self.failure.send_replace(Some(failure));
    }

    pub(super) fn set_working(&self) {
        self.failure.send_replace(None);
    }

    pub(super) fn count_lines(&self, lines: usize, bytes: usize) {
        self.lines_written.fetch_add(lines as u64, Ordering::Relaxed);
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.failed_writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_retained(&self, lines: usize) {
        self.lines_retained.store(lines as u64, Ordering::Relaxed);
    }

    pub(super) fn count_sync(&self) {
        self.synced_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Runs what may block on the file, so that [`health`](Self::health) sees when it takes too long.
    pub(super) fn watched<T>(&self, block: impl FnOnce() -> T) -> T {
        self.busy_since_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        let result = block();
        self.busy_since_ms.store(0, Ordering::Relaxed);
        result
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_why_in_words_and_names_no_path() {
        let failure = LogFailure::write(&io::Error::from_raw_os_error(Errno::ENOSPC as i32));
        assert_eq!(
            failure.to_string(),
            "the operations log cannot be written: No space left on device"
        );
    }

    #[test]
    fn a_write_that_takes_longer_than_five_seconds_is_a_failure_until_it_ends() {
        let mut shared = Shared::new("replica-1");
        shared.opened_at = Instant::now() - Duration::from_secs(60);
        shared.watched(|| assert_eq!(shared.health(), Ok(())));
        shared.busy_since_ms.store(53_000, Ordering::Relaxed);
        assert_eq!(shared.health(), Err(LogFailure::Stalled { seconds: 7 }));
        shared.watched(|| ());
        assert_eq!(shared.health(), Ok(()));
    }
}
