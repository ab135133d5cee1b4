//! What is counted, and Prometheus' text of it. Labels are routes, methods, statuses and closed lists; never a user.

use prometheus::core::Collector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::approver::Verdict;

/// Seconds; from a read that finds everything in memory to an operation's deadline.
const DURATION_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Operations of one statement; from an idle replica to the most that are taken together.
const BATCH_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What a statement does for the operations of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// It reads balances.
    Read,
    /// It commits changes.
    Commit,
}

/// Why a request was refused because of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthorized {
    /// It held none.
    NoToken,
    /// It held one that is not in the list.
    UnknownToken,
    /// It held more than one header.
    RepeatedHeader,
    /// Its token does not allow what was asked for.
    InsufficientScope,
}

impl Unauthorized {
    const ALL: [Self; 4] = [
        Self::NoToken,
        Self::UnknownToken,
        Self::RepeatedHeader,
        Self::InsufficientScope,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::UnknownToken => "unknown_token",
            Self::RepeatedHeader => "repeated_header",
            Self::InsufficientScope => "insufficient_scope",
        }
    }
}

/// The counters of one replica.
pub struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    batches: HistogramVec,
    conflicts: IntCounter,
    verdicts: IntCounterVec,
    unauthorized: IntCounterVec,
    /// Connections to PostgreSQL that are open.
    pub database_connections: IntGauge,
    /// Those of them that wait for work.
    pub database_connections_idle: IntGauge,
    /// Operations under way.
    pub operations_in_flight: IntGauge,
    /// Lines handed to the operating system since the start.
    pub operations_log_lines: IntGauge,
    /// Lines that wait to be written.
    pub operations_log_queue: IntGauge,
    /// Lines of changes that an earlier run of this instance had committed without them.
    pub operations_log_recovered: IntCounter,
    /// 1 until all looks for such changes have been made.
    pub recovery_pending: IntGauge,
    /// 1 while the list of tokens is an old one because the file could not be read again.
    pub api_tokens_reload_failed: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let requests = HistogramOpts::new(
            "http_server_request_duration_seconds",
            "Duration of HTTP requests, by route, method and status.",
        )
        .buckets(DURATION_BUCKETS.to_vec());
        let batches = HistogramOpts::new(
            "balance_batch_operations",
            "Operations that shared a statement, by what it does.",
        )
        .buckets(BATCH_BUCKETS.to_vec());
        let request_labels = ["http_route", "http_request_method", "http_response_status_code"];
        let verdicts = Opts::new(
            "balance_approver_verdicts_total",
            "Verdicts asked of the Approver, by what came.",
        );
        let unauthorized = Opts::new(
            "balance_unauthenticated_requests_total",
            "Requests refused because of their token, by what was wrong with it.",
        );
        let unauthorized = register(&registry, IntCounterVec::new(unauthorized, &["reason"]));
        for reason in Unauthorized::ALL {
            // There from the start, so that the first one shows as an increase.
            unauthorized.with_label_values(&[reason.label()]);
        }
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        Self {
            requests: register(&registry, HistogramVec::new(requests, &request_labels)),
            batches: register(&registry, HistogramVec::new(batches, &["kind"])),
            conflicts: register(
                &registry,
                IntCounter::new(
                    "balance_commit_conflicts_total",
                    "Commits that lost the race for a user's version and were tried again.",
                ),
            ),
            unauthorized,
            verdicts: register(&registry, IntCounterVec::new(verdicts, &["verdict"])),
            database_connections: gauge("balance_database_connections", "Open connections to PostgreSQL."),
            database_connections_idle: gauge(
                "balance_database_connections_idle",
                "Open connections to PostgreSQL that wait for work.",
            ),
            operations_in_flight: gauge("balance_operations_in_flight", "Operations under way."),
            operations_log_lines: gauge(
                "balance_operations_log_lines",
                "Lines of the operations log handed to the operating system since the start.",
            ),
            operations_log_queue: gauge(
                "balance_operations_log_queue",
                "Lines of the operations log that wait to be written.",
            ),
            operations_log_recovered: register(
                &registry,
                IntCounter::new(
                    "balance_operations_log_recovered_lines_total",
                    "Lines of changes that an earlier run of this instance had committed without them.",
                ),
            ),
            recovery_pending: gauge(
                "balance_recovery_pending",
                "1 until all looks for changes of an earlier run without their lines have been made.",
            ),
            api_tokens_reload_failed: gauge(
                "balance_api_tokens_reload_failed",
                "1 while the list of tokens is an old one because API_TOKENS_FILE could not be read again.",
            ),
            registry,
        }
    }

    /// Counts an answered request.
    pub fn request(&self, route: &str, method: &str, status: u16, seconds: f64) {
        self.requests
            .with_label_values(&[route, method, &status.to_string()])
            .observe(seconds);
    }

    /// Counts a statement and the operations that shared it.
    pub fn batch(&self, kind: BatchKind, operations: usize) {
        let label = match kind {
            BatchKind::Read => "read",
            BatchKind::Commit => "commit",
        };
        let operations = u32::try_from(operations).unwrap_or(u32::MAX);
        self.batches.with_label_values(&[label]).observe(operations.into());
    }

    /// Counts a commit that lost the race.
    pub fn conflict(&self) {
        self.conflicts.inc();
    }

    /// Counts a verdict; `None`: there was none.
    pub fn verdict(&self, verdict: Option<Verdict>) {
        let label = match verdict {
            Some(Verdict::Approved) => "approved",
            Some(Verdict::Denied) => "denied",
            None => "none",
        };
        self.verdicts.with_label_values(&[label]).inc();
    }

    /// Counts a request that was refused because of its token.
    pub fn unauthorized(&self, reason: Unauthorized) {
        self.unauthorized.with_label_values(&[reason.label()]).inc();
    }

    /// All counters in Prometheus' text format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory does not fail, and every family has a metric");
        String::from_utf8(text).expect("the encoder writes UTF-8")
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("names and labels are constants that Prometheus allows");
    registry
        .register(Box::new(collector.clone()))
        .expect("each name is registered once");
    collector
}
