//! What is counted, and Prometheus' text of it. Labels are routes, methods, statuses and closed lists; never a user.
//!
//! Names are those of OpenTelemetry's semantic conventions, as Prometheus writes them, where there are such; all others
//! begin with `balance_`. The pool has names of its own: OpenTelemetry's for it end in `_count`, which Prometheus keeps for
//! histograms. What can happen is there from the start, at zero: what has not happened yet can be told from what is not
//! counted.

mod access;
mod approver;
mod database;
mod families;
mod http;
mod labels;
mod ledger;
mod operations_log;
mod tls;

use std::borrow::Borrow;

use prometheus::{Encoder, IntGauge, Registry, TextEncoder};

pub use access::AccessMetrics;
pub use approver::ApproverMetrics;
pub use database::DatabaseMetrics;
pub use http::HttpMetrics;
pub use labels::{BatchKind, ErrorType, Queue, RetryReason, Statement, Unauthorized, VerdictLabel};
pub use ledger::LedgerMetrics;
pub use operations_log::OperationsLogMetrics;
pub use tls::TlsMetrics;

use families::Families;

use crate::version::COMMIT;

/// The counters of one replica. Gauges are set by those who know, some only when they are about to be read.
pub struct Metrics {
    registry: Registry,
    /// Requests and connections of clients.
    pub http: HttpMetrics,
    /// Operations and their batches.
    pub ledger: LedgerMetrics,
    /// PostgreSQL.
    pub database: DatabaseMetrics,
    /// The Approver.
    pub approver: ApproverMetrics,
    /// The operations log.
    pub operations_log: OperationsLogMetrics,
    /// Tokens.
    pub access: AccessMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Self {
        let families = Families(Registry::new());
        describe_process(&families);
        Self {
            http: HttpMetrics::new(&families),
            ledger: LedgerMetrics::new(&families),
            database: DatabaseMetrics::new(&families),
            approver: ApproverMetrics::new(&families),
            operations_log: OperationsLogMetrics::new(&families),
            access: AccessMetrics::new(&families),
            registry: families.0,
        }
    }

    /// The gauges of the service's certificate, which are there only where it has one. To be called once.
    pub fn tls(&self) -> TlsMetrics {
        TlsMetrics::new(&Families(self.registry.clone()))
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

/// The program's version, and what the operating system tells of the process.
fn describe_process(families: &Families) {
    let build = families.gauges(
        "balance_build_info",
        "1; the program's version and commit.",
        &["version", "commit"],
    );
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), COMMIT]).set(1);
    #[cfg(target_os = "linux")]
    families.register(prometheus::process_collector::ProcessCollector::for_self());
}

/// A count as a gauge has it.
pub fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Something under way, counted until this is dropped.
pub struct Active<Gauge: Borrow<IntGauge>>(Gauge);

impl<Gauge: Borrow<IntGauge>> Active<Gauge> {
    /// Counts one more.
    pub fn new(gauge: Gauge) -> Self {
        gauge.borrow().inc();
        Self(gauge)
    }
}

impl<Gauge: Borrow<IntGauge>> Drop for Active<Gauge> {
    fn drop(&mut self) {
        self.0.borrow().dec();
    }
}
