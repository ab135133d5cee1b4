//! Flags and environment variables, checked once at the start. After that every value is known to be good.
//!
//! One struct per concern; each says which variables it comes from. Secrets (the database's and the Approver's URL) are
//! held in types whose `Debug` and `Display` leave them out.
//!
//! | struct | variables |
//! |---|---|
//! | [`DatabaseConfig`] | `DATABASE_URL`, `DATABASE_CONNECTIONS` |
//! | [`ApproverConfig`] | `APPROVER_URL`, `APPROVER_CA`, `APPROVER_TIMEOUT_MS`, `APPROVER_CALLS` |
//! | [`OperationsLogConfig`] | `OPERATIONS_LOG`, `OPERATIONS_LOG_SYNC`, `INSTANCE`, `OPERATIONS_IN_FLIGHT`, `CONNECTIONS` |
//! | [`ServiceConfig`] | `APPROVAL_THRESHOLD`, `OPERATION_TIMEOUT_MS`, `OPERATIONS_IN_FLIGHT`, `INSTANCE` |
//! | [`LedgerConfig`] | `OPERATION_TIMEOUT_MS`, `OPERATIONS_IN_FLIGHT`, `COMMIT_BATCH_USERS`, `COMMIT_LANES`, `READ_STATEMENTS` |
//! | [`AccessConfig`] | `API_TOKENS_FILE`, `ADMIN_LISTEN` |
//! | [`LogFormat`] | `LOG_FORMAT` |
//! | [`TracesConfig`] | `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER_ARG`, `INSTANCE` |
//! | [`HttpConfig`] | `LISTEN`, `CONNECTIONS`, `IDLE_TIMEOUT_MS`, `CLIENT_TIMEOUT_MS`, `SHUTDOWN_DELAY_MS`, `SHUTDOWN_TIMEOUT_MS`, `TLS_CERT`, `TLS_KEY` |

mod arguments;
mod database_parameters;
mod database_tls;
mod urls;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

pub use arguments::{
    AccessArguments, ApproverArguments, DatabaseArguments, DevArguments, ProcessLogArguments, ServiceArguments,
    StandInArguments, TlsArguments, TracesArguments, VerifyArguments,
};
pub use database_tls::{DatabaseTls, SslMode};
pub use urls::{ApproverUrl, CollectorUrl, DatabaseUrl};

use crate::tls::{Roots, ServerTls, TlsFileError};

/// A value that cannot be used. Its message is one line: the variable, the value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The variable has a value that is not allowed.
    #[error("{variable}: {value:?} is not allowed; give {allowed}")]
    Invalid {
        /// The environment variable; the flag has the same name.
        variable: &'static str,
        /// What was given.
        value: String,
        /// What can be given instead, with an example.
        allowed: &'static str,
    },
    /// The variable has a value that is not allowed and that may hold a secret.
    #[error("{variable}: the value (not shown, it may hold a password) is not allowed; give {allowed}")]
    InvalidSecret {
        /// The environment variable; the flag has the same name.
        variable: &'static str,
        /// What can be given instead, with an example.
        allowed: &'static str,
    },
    /// A parameter within the variable's value is not allowed. The rest of the value may hold a secret.
    #[error("{variable}: the parameter {parameter} is not allowed; give {allowed}")]
    Parameter {
        /// The environment variable; the flag has the same name.
        variable: &'static str,
        /// The parameter's name and, unless it may be a secret, its value.
        parameter: String,
        /// What can be given instead.
        allowed: &'static str,
    },
    /// The variable's value is not text. It may hold a secret.
    #[error("{variable}: the value (not shown, it may hold a password) is not allowed; give a value in UTF-8")]
    NotUtf8 {
        /// The environment variable.
        variable: String,
    },
    /// The variable has no value and no default.
    #[error("{variable}: no value; give {allowed}")]
    Missing {
        /// The environment variable; the flag has the same name.
        variable: &'static str,
        /// What can be given, with an example.
        allowed: &'static str,
    },
    /// A file that the variable names cannot be used.
    #[error("{variable}: {error}; give {allowed}")]
    File {
        /// The environment variable; the flag has the same name.
        variable: &'static str,
        /// What is wrong with the file.
        error: TlsFileError,
        /// What can be given instead.
        allowed: &'static str,
    },
}

/// Where PostgreSQL is and how many connections a replica holds.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// From `DATABASE_URL`.
    pub url: DatabaseUrl,
    /// From `DATABASE_CONNECTIONS`: the most connections open at once, 1 to 1,000.
    pub connections: usize,
    /// Shown by PostgreSQL as `application_name`, so that operators see whose connection it is.
    pub application_name: String,
}

/// Where the Approver is and how long it is waited for.
#[derive(Clone, Debug)]
pub struct ApproverConfig {
    /// From `APPROVER_URL`.
    pub url: ApproverUrl,
    /// From `APPROVER_CA`: who must have signed the certificate of an Approver behind https; otherwise one of those that
    /// the system trusts.
    pub ca: Option<Roots>,
    /// From `APPROVER_TIMEOUT_MS`: how long one call may take, before it is tried again.
    pub call_timeout: Duration,
    /// From `APPROVER_CALLS`: the most calls in flight at once, 1 to 100,000.
    pub calls_in_flight: usize,
}

/// When the operations log is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// `fdatasync` before any answer of the batch leaves.
    Always,
    /// `fdatasync` once a second.
    EverySecond,
    /// The operating system decides.
    Never,
}

impl SyncPolicy {
    /// As it is written in `OPERATIONS_LOG_SYNC`.
    pub fn name(self) -> &'static str {
        match self {
            SyncPolicy::Always => "always",
            SyncPolicy::EverySecond => "everysec",
            SyncPolicy::Never => "never",
        }
    }
}

/// Where the operations log is and how safe its lines are.
#[derive(Clone, Debug)]
pub struct OperationsLogConfig {
    /// From `OPERATIONS_LOG`.
    pub path: PathBuf,
    /// From `OPERATIONS_LOG_SYNC`.
    pub sync: SyncPolicy,
    /// From `INSTANCE`: this replica's name in every line.
    pub instance: String,
    /// From `OPERATIONS_IN_FLIGHT` and `CONNECTIONS`, added up: the most operations that need lines at once. Those under
    /// way go on when their clients are gone, and each client that is still there may be told that there are too many.
    pub operations_at_once: usize,
}

/// The bounds of an operation.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// From `APPROVAL_THRESHOLD`: changes larger than this, either way, need approval.
    pub approval_threshold: u64,
    /// From `OPERATION_TIMEOUT_MS`: an operation is answered within this time, with 503 if need be.
    pub operation_timeout: Duration,
    /// From `OPERATIONS_IN_FLIGHT`: the most operations under way at once; more are answered 503 at once.
    pub operations_in_flight: usize,
    /// From `INSTANCE`: kept in the history with every operation.
    pub instance: String,
}

/// How operations are collected into statements. The defaults are the best of those measured with 256 connections on 2
/// cores; machines with more of them may do better with more lanes and statements (`cargo bench --bench throughput --
/// --set COMMIT_LANES=4`).
#[derive(Clone, Copy, Debug)]
pub struct LedgerConfig {
    /// From `OPERATIONS_IN_FLIGHT`: no queue is longer.
    pub operations_in_flight: usize,
    /// From `OPERATION_TIMEOUT_MS`: half of it. What would wait for longer is refused at once.
    pub longest_wait: Duration,
    /// From `COMMIT_BATCH_USERS`: the most users whose changes one statement commits. With 1 every statement touches a
    /// single user.
    pub commit_batch_users: usize,
    /// From `COMMIT_LANES`: the batches of changes under way at once; a user's changes always go through the same lane.
    pub commit_lanes: usize,
    /// From `READ_STATEMENTS`: the statements under way at once that read balances.
    pub read_statements: usize,
}

/// Where the service listens.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// From `LISTEN`.
    pub listen: SocketAddr,
    /// From `CONNECTIONS`: the most connections of clients open at once; more are answered 503.
    pub connections: NonZeroUsize,
    /// The most clients that are being answered so at once; for one more, the first of them is waited for no longer.
    pub turned_away: NonZeroUsize,
    /// The most bytes that large heads, bodies and answers take together, beyond the share of each connection.
    pub memory: usize,
    /// To which hosts requests may be addressed.
    pub hosts: HostNames,
    /// From `IDLE_TIMEOUT_MS`: how long a connection may take from an answer, or its beginning, to the end of the next head.
    pub idle_timeout: Duration,
    /// From `CLIENT_TIMEOUT_MS`: how long a client may take for a TLS handshake, for the body of a request, and without
    /// taking anything of an answer.
    pub client_timeout: Duration,
    /// From `SHUTDOWN_DELAY_MS`: how long requests are still taken after SIGTERM, while `/readyz` already says no.
    pub shutdown_delay: Duration,
    /// From `SHUTDOWN_TIMEOUT_MS`: how long requests under way may take after that.
    pub shutdown_timeout: Duration,
    /// From `TLS_CERT` and `TLS_KEY`: with it only https is spoken, without it only http.
    pub tls: Option<ServerTls>,
}

/// To which hosts requests may be addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostNames {
    /// To any: whoever runs the service decides what leads to it.
    Any,
    /// To the names and addresses of this machine, whose own name this is.
    ThisMachine(String),
}

/// Who may ask for what, and where.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// From `API_TOKENS_FILE`: the list of tokens. Without one everyone may ask for everything.
    pub tokens_file: Option<PathBuf>,
    /// From `ADMIN_LISTEN`: an address of its own for metrics and documentation, with connections of its own, so that clients
    /// who take all of theirs do not keep operators out. The times are those of the service's address.
    pub admin: Option<HttpConfig>,
}

/// From `LOG_FORMAT`: how the process's own log looks on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text where standard error is a terminal, and lines of JSON otherwise.
    Auto,
    /// Text, in colours on a terminal.
    Text,
    /// An object of JSON a line.
    Json,
}

/// Where traces are exported to, and how many.
#[derive(Clone, Debug)]
pub struct TracesConfig {
    /// From `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: CollectorUrl,
    /// From `OTEL_SERVICE_NAME`.
    pub service_name: String,
    /// From `OTEL_TRACES_SAMPLER_ARG`: which part of the traces that begin here is recorded, 0 to 1.
    pub ratio: f64,
    /// From `INSTANCE`: tells one replica's from another's.
    pub instance: String,
}

/// How the stand-in for the Approver behaves; from `STAND_IN_LISTEN`, `STAND_IN_DELAY_MS`, `STAND_IN_DENY_ABOVE`.
#[derive(Clone, Copy, Debug)]
pub struct StandInOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How long each verdict takes.
    pub delay: Duration,
    /// Changes larger than this, either way, are denied.
    pub deny_above: u64,
}

/// 300 ms a verdict, denied above 1,000,000, on a free port of this machine only.
impl Default for StandInOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            delay: Duration::from_millis(300),
            deny_above: 1_000_000,
        }
    }
}
