use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ADDRESS_ALLOWED, approval_threshold, milliseconds, number, parsed};
use crate::config::{ConfigError, HostNames, HttpConfig, LedgerConfig, OperationsLogConfig, ServiceConfig, SyncPolicy};

/// For heads beyond 4 KiB, bodies and answers; `http::Memory` has the sum.
const MEMORY_BYTES: usize = 28 * 1024 * 1024;
/// Each is turned away within half a second.
const TURNED_AWAY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// What else `serve` and `dev` share.
#[derive(Args, Clone)]
pub struct ServiceArguments {
    /// Address of the service
    #[arg(
        long,
        env = "LISTEN",
        help_heading = "Service",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: String,

    /// Path of the operations log
    #[arg(
        long,
        env = "OPERATIONS_LOG",
        help_heading = "Operations log",
        value_name = "FILE",
        default_value = "operations.log"
    )]
    pub operations_log: PathBuf,

    /// When the operations log is forced to the disk: always, everysec or never
    #[arg(
        long,
        env = "OPERATIONS_LOG_SYNC",
        help_heading = "Operations log",
        value_name = "WHEN",
        default_value = "everysec"
    )]
    pub operations_log_sync: String,

    /// This replica's name in the operations log and in the history [default: the host's name]
    #[arg(long, env = "INSTANCE", help_heading = "Service", value_name = "NAME")]
    pub instance: Option<String>,

    /// Changes larger than this, either way, need the Approver's approval
    #[arg(
        long,
        env = "APPROVAL_THRESHOLD",
        help_heading = "Approver",
        value_name = "AMOUNT",
        default_value = "100000"
    )]
    pub approval_threshold: String,

    /// An operation is answered within this time, in milliseconds, with 503 if need be
    #[arg(
        long,
        env = "OPERATION_TIMEOUT_MS",
        help_heading = "Times",
        value_name = "MILLISECONDS",
        default_value = "5000"
    )]
    pub operation_timeout_ms: String,

    /// Most operations under way at once; more are answered 503
    #[arg(
        long,
        env = "OPERATIONS_IN_FLIGHT",
        help_heading = "Limits",
        value_name = "COUNT",
        default_value = "4096"
    )]
    pub operations_in_flight: String,

    /// Most users whose changes one statement commits, 1 to 1024; with 1 every statement touches a single user, as
    /// databases that are distributed by user want it
    #[arg(
        long,
        env = "COMMIT_BATCH_USERS",
        help_heading = "Batches",
        value_name = "COUNT",
        default_value = "256"
    )]
    pub commit_batch_users: String,

    /// Batches of changes under way at once, 1 to 64
    #[arg(
        long,
        env = "COMMIT_LANES",
        help_heading = "Batches",
        value_name = "COUNT",
        default_value = "2"
    )]
    pub commit_lanes: String,

    /// Statements under way at once that read balances, 1 to 64
    #[arg(
        long,
        env = "READ_STATEMENTS",
        help_heading = "Batches",
        value_name = "COUNT",
        default_value = "2"
    )]
    pub read_statements: String,

    /// Most connections of clients open at once, fewer where the limit on open files is low; more are answered 503
    #[arg(
        long,
        env = "CONNECTIONS",
        help_heading = "Limits",
        value_name = "COUNT",
        default_value = "1500"
    )]
    pub connections: String,

    /// How long a client may take from an answer, or from connecting, to the end of the next request's head, in milliseconds;
    /// then the connection is closed
    #[arg(
        long,
        env = "IDLE_TIMEOUT_MS",
        help_heading = "Times",
        value_name = "MILLISECONDS",
        default_value = "75000"
    )]
    pub idle_timeout_ms: String,

    /// How long a client may take for a TLS handshake, and for the body of a request, and how long it may take nothing of
    /// an answer, in milliseconds
    #[arg(
        long,
        env = "CLIENT_TIMEOUT_MS",
        help_heading = "Times",
        value_name = "MILLISECONDS",
        default_value = "10000"
    )]
    pub client_timeout_ms: String,

    /// How long requests are still taken after SIGTERM, while /readyz already says no, in milliseconds
    #[arg(
        long,
        env = "SHUTDOWN_DELAY_MS",
        help_heading = "Times",
        value_name = "MILLISECONDS",
        default_value = "1000"
    )]
    pub shutdown_delay_ms: String,

    /// How long requests under way may take after that, in milliseconds
    #[arg(
        long,
        env = "SHUTDOWN_TIMEOUT_MS",
        help_heading = "Times",
        value_name = "MILLISECONDS",
        default_value = "15000"
    )]
    pub shutdown_timeout_ms: String,
}

impl ServiceArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn service(&self) -> Result<ServiceConfig, ConfigError> {
        Ok(ServiceConfig {
            approval_threshold: approval_threshold(&self.approval_threshold)?,
            operation_timeout: self.operation_timeout()?,
            operations_in_flight: self.in_flight()?,
            instance: self.instance()?,
        })
    }

    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn ledger(&self) -> Result<LedgerConfig, ConfigError> {
        let few = |variable, text: &str| number(variable, text, 1..=64, "a whole number from 1 to 64");
        Ok(LedgerConfig {
            operations_in_flight: self.in_flight()?,
            longest_wait: self.operation_timeout()? / 2,
            commit_batch_users: number(
                "COMMIT_BATCH_USERS",
                &self.commit_batch_users,
                1..=1_024,
                "a whole number from 1 to 1024",
            )?,
            commit_lanes: few("COMMIT_LANES", &self.commit_lanes)?,
            read_statements: few("READ_STATEMENTS", &self.read_statements)?,
        })
    }

    fn operation_timeout(&self) -> Result<Duration, ConfigError> {
        milliseconds("OPERATION_TIMEOUT_MS", &self.operation_timeout_ms)
    }

    fn in_flight(&self) -> Result<usize, ConfigError> {
        number(
            "OPERATIONS_IN_FLIGHT",
            &self.operations_in_flight,
            1..=1_000_000,
            "a whole number from 1 to 1000000",
        )
    }

    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn operations_log(&self) -> Result<OperationsLogConfig, ConfigError> {
        let sync = match self.operations_log_sync.as_str() {
            "always" => SyncPolicy::Always,
            "everysec" => SyncPolicy::EverySecond,
            "never" => SyncPolicy::Never,
            other => {
                return Err(ConfigError::Invalid {
                    variable: "OPERATIONS_LOG_SYNC",
                    value: other.to_owned(),
                    allowed: "always, everysec or never",
                });
            }
        };
        Ok(OperationsLogConfig {
            path: self.operations_log.clone(),
            sync,
            instance: self.instance()?,
            operations_at_once: self.in_flight()? + self.connections()?.get(),
        })
    }

    fn connections(&self) -> Result<NonZeroUsize, ConfigError> {
        number(
            "CONNECTIONS",
            &self.connections,
            NonZeroUsize::MIN..=NonZeroUsize::MIN.saturating_add(999_999),
            "a whole number from 1 to 1000000",
        )
    }

    /// Without TLS, which has its own arguments.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn http(&self) -> Result<HttpConfig, ConfigError> {
        Ok(HttpConfig {
            listen: parsed("LISTEN", &self.listen, ADDRESS_ALLOWED)?,
            connections: self.connections()?,
            turned_away: TURNED_AWAY,
            memory: MEMORY_BYTES,
            hosts: HostNames::Any,
            idle_timeout: milliseconds("IDLE_TIMEOUT_MS", &self.idle_timeout_ms)?,
            client_timeout: milliseconds("CLIENT_TIMEOUT_MS", &self.client_timeout_ms)?,
            shutdown_delay: milliseconds("SHUTDOWN_DELAY_MS", &self.shutdown_delay_ms)?,
            shutdown_timeout: milliseconds("SHUTDOWN_TIMEOUT_MS", &self.shutdown_timeout_ms)?,
            tls: None,
        })
    }

    /// This replica's name: 1 to 128 characters without control characters.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `INSTANCE` breaks that rule, or is not set on a host whose name does.
    pub fn instance(&self) -> Result<String, ConfigError> {
        let name = match &self.instance {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        };
        let fits = (1..=128).contains(&name.chars().count()) && !name.chars().any(char::is_control);
        if fits {
            Ok(name)
        } else {
            Err(ConfigError::Invalid {
                variable: "INSTANCE",
                value: name,
                allowed: "1 to 128 characters without control characters, such as balance-1",
            })
        }
    }
}
