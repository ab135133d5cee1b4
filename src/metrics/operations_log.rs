//! The operations log, which counts itself; these follow it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{GaugeVec, IntCounter, IntGauge};

use super::families::Families;

/// What is told of the operations log.
pub struct OperationsLogMetrics {
    lines: IntCounter,
    bytes: IntCounter,
    failed_writes: IntCounter,
    /// Two who follow at once must not add the same twice.
    following: Mutex<()>,
    sync_age: GaugeVec,
    /// 1 while it cannot be written.
    pub failing: IntGauge,
    /// Lines of committed changes that wait until it can be.
    pub retained: IntGauge,
    /// Lines of changes that an earlier run of this instance had committed without them.
    pub recovered: IntCounter,
    /// 1 until all looks for such changes have been made.
    pub recovery_pending: IntGauge,
}

impl OperationsLogMetrics {
    pub(super) fn new(families: &Families) -> Self {
        Self {
            lines: families.counter(
                "balance_operations_log_lines_total",
                "Lines of the operations log handed to the operating system.",
            ),
            bytes: families.counter(
                "balance_operations_log_written_bytes_total",
                "Bytes of the operations log handed to the operating system.",
            ),
            failed_writes: families.counter(
                "balance_operations_log_failed_writes_total",
                "Writes, syncs and openings of the operations log that failed, probes included.",
            ),
            following: Mutex::new(()),
            sync_age: families.fractions(
                "balance_operations_log_sync_age_seconds",
                "Time since the operations log was last forced to the disk, or opened; by when it is to be.",
                &["policy"],
            ),
            failing: families.gauge(
                "balance_operations_log_failing",
                "1 while the operations log cannot be written, and operations are answered 503.",
            ),
            retained: families.gauge(
                "balance_operations_log_retained_lines",
                "Lines of committed changes that wait until the operations log can be written again.",
            ),
            recovered: families.counter(
                "balance_operations_log_recovered_lines_total",
                "Lines of changes that an earlier run of this instance had committed without them.",
            ),
            recovery_pending: families.gauge(
                "balance_recovery_pending",
                "1 until all looks for changes of an earlier run without their lines have been made.",
            ),
        }
    }

    /// Brings the counters to what the log has counted since it was opened.
    pub fn follow(&self, lines: u64, bytes: u64, failed_writes: u64) {
        // Each counter is whole whatever panics.
        let _alone = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, value) in [
            (&self.lines, lines),
            (&self.bytes, bytes),
            (&self.failed_writes, failed_writes),
        ] {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
    }

    /// Sets how long ago the log was forced to the disk. `policy` says when it is to be, in the variable's words.
    pub fn set_sync_age(&self, policy: &'static str, age: Duration) {
        self.sync_age.with_label_values(&[policy]).set(age.as_secs_f64());
    }
}
