//! Operations on their way into the store and out of it.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::families::{DURATIONS, Families};
use super::gauge_value;
use super::labels::{BatchKind, Label, Queue, RetryReason};

/// Operations of one statement; from an idle replica to the most that are taken together.
const OPERATIONS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What is counted of operations and their batches.
pub struct LedgerMetrics {
    batch_operations: HistogramVec,
    batch_durations: HistogramVec,
    conflicts: IntCounter,
    retries: IntCounterVec,
    queues: IntGaugeVec,
    /// Operations under way.
    pub in_flight: IntGauge,
    /// The most of them.
    pub in_flight_limit: IntGauge,
    /// Histories of several pages that are being streamed.
    pub history_streams: IntGauge,
    /// The most of them.
    pub history_streams_limit: IntGauge,
    /// Those that ended before their end.
    pub history_streams_cut_off: IntCounter,
}

impl LedgerMetrics {
    pub(super) fn new(families: &Families) -> Self {
        let metrics = Self {
            batch_operations: families.histograms(
                "balance_batch_operations",
                "Operations that shared a statement, by what it does.",
                &OPERATIONS,
                &["kind"],
            ),
            batch_durations: families.histograms(
                "balance_batch_duration_seconds",
                "Time from when operations are taken together until what comes of them is known, by what is done.",
                &DURATIONS,
                &["kind"],
            ),
            conflicts: families.counter(
                "balance_commit_conflicts_total",
                "Commits that lost the race for a user's version and were tried again.",
            ),
            retries: families.counters(
                "balance_commit_retries_total",
                "Changes that were tried again, by reason.",
                &["reason"],
            ),
            queues: families.gauges(
                "balance_queue_operations",
                "Operations that wait or are worked on, by queue.",
                &["queue"],
            ),
            in_flight: families.gauge("balance_operations_in_flight", "Operations under way."),
            in_flight_limit: families.gauge(
                "balance_operations_in_flight_limit",
                "The most operations under way; more are answered 503.",
            ),
            history_streams: families.gauge(
                "balance_history_streams",
                "Histories that are being streamed and have more pages to be read.",
            ),
            history_streams_limit: families.gauge(
                "balance_history_streams_limit",
                "The most histories that are streamed at once; more are answered 503.",
            ),
            history_streams_cut_off: families.counter(
                "balance_history_streams_cut_off_total",
                "Histories that were cut off in the middle because their next page could not be read.",
            ),
        };
        for kind in BatchKind::ALL {
            metrics.batch_operations.with_label_values(&[kind.label()]);
            metrics.batch_durations.with_label_values(&[kind.label()]);
        }
        for reason in RetryReason::ALL {
            metrics.retries.with_label_values(&[reason.label()]);
        }
        for queue in Queue::ALL {
            metrics.queues.with_label_values(&[queue.label()]);
        }
        metrics
    }

    /// Counts a statement and the operations that shared it.
    pub fn batch(&self, kind: BatchKind, operations: usize) {
        let operations = u32::try_from(operations).unwrap_or(u32::MAX);
        self.batch_operations
            .with_label_values(&[kind.label()])
            .observe(operations.into());
    }

    /// Counts how long a batch took.
    pub fn batch_took(&self, kind: BatchKind, duration: Duration) {
        self.batch_durations
            .with_label_values(&[kind.label()])
            .observe(duration.as_secs_f64());
    }

    /// Counts a commit that lost the race.
    pub fn conflict(&self) {
        self.conflicts.inc();
    }

    /// Counts changes that are tried again.
    pub fn retried(&self, reason: RetryReason, changes: usize) {
        self.retries.with_label_values(&[reason.label()]).inc_by(changes as u64);
    }

    /// Sets how many operations a queue holds.
    pub fn set_queue(&self, queue: Queue, operations: usize) {
        let queue = self.queues.with_label_values(&[queue.label()]);
        queue.set(gauge_value(operations));
    }
}
