//! Calls to the Approver.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};

use super::families::{DURATIONS, Families};
use super::labels::{Label, VerdictLabel, approver_status};

/// What is counted of the Approver.
pub struct ApproverMetrics {
    calls: HistogramVec,
    verdicts: IntCounterVec,
    /// Calls under way.
    pub active: IntGauge,
    /// The most changes that wait for a verdict at once.
    pub limit: IntGauge,
    /// Calls that were made because the one before gave no verdict.
    pub retries: IntCounter,
}

impl ApproverMetrics {
    pub(super) fn new(families: &Families) -> Self {
        let metrics = Self {
            calls: families.histograms(
                "http_client_request_duration_seconds",
                "Duration of calls to the Approver, by status and what failed.",
                &DURATIONS,
                &["http_request_method", "http_response_status_code", "error_type"],
            ),
            verdicts: families.counters(
                "balance_approver_verdicts_total",
                "Verdicts asked of the Approver, by what came.",
                &["verdict"],
            ),
            active: families.gauge("http_client_active_requests", "Calls to the Approver under way."),
            limit: families.gauge(
                "balance_approver_calls_limit",
                "The most changes that wait for a verdict at once; more are answered 503.",
            ),
            retries: families.counter(
                "balance_approver_retries_total",
                "Calls to the Approver that were made because the one before gave no verdict.",
            ),
        };
        metrics.calls.with_label_values(&["GET", "200", ""]);
        for verdict in VerdictLabel::ALL {
            metrics.verdicts.with_label_values(&[verdict.label()]);
        }
        metrics
    }

    /// Counts a call: its status, if it was answered, and what failed, if anything; that is of a closed list.
    pub fn call(&self, status: Option<u16>, error_type: &'static str, duration: Duration) {
        self.calls
            .with_label_values(&["GET", approver_status(status), error_type])
            .observe(duration.as_secs_f64());
    }

    /// Counts a verdict.
    pub fn verdict(&self, verdict: VerdictLabel) {
        self.verdicts.with_label_values(&[verdict.label()]).inc();
    }
}
