//! The flags and variables as clap reads them, and the checks that turn them into configuration.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::{
    ApproverConfig, ApproverUrl, ConfigError, DatabaseConfig, DatabaseUrl, HttpConfig, LedgerConfig,
    OperationsLogConfig, ServiceConfig, StandInOptions, SyncPolicy,
};

/// Each is turned away within half a second.
const TURNED_AWAY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

const ADDRESS_ALLOWED: &str = "an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080";

/// Where PostgreSQL is.
#[derive(Args, Clone)]
pub struct DatabaseArguments {
    /// PostgreSQL, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// Most connections to PostgreSQL open at once, 1 to 1000
    #[arg(long, env = "DATABASE_CONNECTIONS", value_name = "COUNT", default_value = "16")]
    pub database_connections: String,
}

impl DatabaseArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn database(&self, application_name: String) -> Result<DatabaseConfig, ConfigError> {
        let url = self.database_url.as_deref().ok_or(ConfigError::Missing {
            variable: "DATABASE_URL",
            allowed: "a PostgreSQL URL such as postgres://balance:secret@localhost:5432/balance",
        })?;
        Ok(DatabaseConfig {
            url: DatabaseUrl::parse(url)?,
            connections: number(
                "DATABASE_CONNECTIONS",
                &self.database_connections,
                1..=1_000,
                "a whole number from 1 to 1000",
            )?,
            application_name,
        })
    }
}

/// Where the Approver is and how long it is waited for.
#[derive(Args, Clone)]
pub struct ApproverArguments {
    /// Base URL of the Approver; /approve is appended
    #[arg(long, env = "APPROVER_URL", hide_env_values = true, value_name = "URL")]
    pub approver_url: Option<String>,

    /// How long one call to the Approver may take before it is tried again, in milliseconds
    #[arg(
        long,
        env = "APPROVER_TIMEOUT_MS",
        value_name = "MILLISECONDS",
        default_value = "2000"
    )]
    pub approver_timeout_ms: String,

    /// Most calls to the Approver in flight at once
    #[arg(long, env = "APPROVER_CALLS", value_name = "COUNT", default_value = "1024")]
    pub approver_calls: String,
}

impl ApproverArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn approver(&self) -> Result<ApproverConfig, ConfigError> {
        let url = self.approver_url.as_deref().ok_or(ConfigError::Missing {
            variable: "APPROVER_URL",
            allowed: "the Approver's base URL, such as http://localhost:9090",
        })?;
        Ok(ApproverConfig {
            url: ApproverUrl::parse(url)?,
            call_timeout: milliseconds("APPROVER_TIMEOUT_MS", &self.approver_timeout_ms)?,
            calls_in_flight: number(
                "APPROVER_CALLS",
                &self.approver_calls,
                1..=100_000,
                "a whole number from 1 to 100000",
            )?,
        })
    }
}

/// What else `serve` and `dev` share.
#[derive(Args, Clone)]
pub struct ServiceArguments {
    /// Address of the service
    #[arg(long, env = "LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: String,

    /// Path of the operations log
    #[arg(long, env = "OPERATIONS_LOG", value_name = "FILE", default_value = "operations.log")]
    pub operations_log: PathBuf,

    /// When the operations log is forced to the disk: always, everysec or never
    #[arg(long, env = "OPERATIONS_LOG_SYNC", value_name = "WHEN", default_value = "everysec")]
    pub operations_log_sync: String,

    /// This replica's name in the operations log and in the history [default: the host's name]
    #[arg(long, env = "INSTANCE", value_name = "NAME")]
    pub instance: Option<String>,

    /// Changes larger than this, either way, need the Approver's approval
    #[arg(long, env = "APPROVAL_THRESHOLD", value_name = "AMOUNT", default_value = "100000")]
    pub approval_threshold: String,

    /// An operation is answered within this time, in milliseconds, with 503 if need be
    #[arg(
        long,
        env = "OPERATION_TIMEOUT_MS",
        value_name = "MILLISECONDS",
        default_value = "5000"
    )]
    pub operation_timeout_ms: String,

    /// Most operations under way at once; more are answered 503
    #[arg(long, env = "OPERATIONS_IN_FLIGHT", value_name = "COUNT", default_value = "4096")]
    pub operations_in_flight: String,

    /// Most users whose changes one statement commits, 1 to 1024; with 1 every statement touches a single user, as
    /// databases that are distributed by user want it
    #[arg(long, env = "COMMIT_BATCH_USERS", value_name = "COUNT", default_value = "256")]
    pub commit_batch_users: String,

    /// Batches of changes under way at once, 1 to 64
    #[arg(long, env = "COMMIT_LANES", value_name = "COUNT", default_value = "2")]
    pub commit_lanes: String,

    /// Statements under way at once that read balances, 1 to 64
    #[arg(long, env = "READ_STATEMENTS", value_name = "COUNT", default_value = "2")]
    pub read_statements: String,

    /// Most connections of clients open at once, fewer where the limit on open files is low; more are answered 503
    #[arg(long, env = "CONNECTIONS", value_name = "COUNT", default_value = "10000")]
    pub connections: String,

    /// How long a connection of a client is kept on which nothing happens, in milliseconds
    #[arg(long, env = "IDLE_TIMEOUT_MS", value_name = "MILLISECONDS", default_value = "75000")]
    pub idle_timeout_ms: String,

    /// How long a client may take for the head of a request, and for its body, and how long it may take nothing of an
    /// answer, in milliseconds
    #[arg(
        long,
        env = "CLIENT_TIMEOUT_MS",
        value_name = "MILLISECONDS",
        default_value = "10000"
    )]
    pub client_timeout_ms: String,

    /// How long requests are still taken after SIGTERM, while /readyz already says no, in milliseconds
    #[arg(long, env = "SHUTDOWN_DELAY_MS", value_name = "MILLISECONDS", default_value = "1000")]
    pub shutdown_delay_ms: String,

    /// How long requests under way may take after that, in milliseconds
    #[arg(
        long,
        env = "SHUTDOWN_TIMEOUT_MS",
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

    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn http(&self) -> Result<HttpConfig, ConfigError> {
        Ok(HttpConfig {
            listen: parsed("LISTEN", &self.listen, ADDRESS_ALLOWED)?,
            connections: self.connections()?,
            turned_away: TURNED_AWAY,
            idle_timeout: milliseconds("IDLE_TIMEOUT_MS", &self.idle_timeout_ms)?,
            client_timeout: milliseconds("CLIENT_TIMEOUT_MS", &self.client_timeout_ms)?,
            shutdown_delay: milliseconds("SHUTDOWN_DELAY_MS", &self.shutdown_delay_ms)?,
            shutdown_timeout: milliseconds("SHUTDOWN_TIMEOUT_MS", &self.shutdown_timeout_ms)?,
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

/// What the stand-in Approver is started with.
#[derive(Args, Clone)]
pub struct StandInArguments {
    /// Address of the stand-in
    #[arg(
        long,
        env = "STAND_IN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090"
    )]
    pub listen: String,

    /// How long each verdict takes, in milliseconds
    #[arg(long, env = "STAND_IN_DELAY_MS", value_name = "MILLISECONDS", default_value = "300")]
    pub delay_ms: String,

    /// Changes larger than this, either way, are denied
    #[arg(long, env = "STAND_IN_DENY_ABOVE", value_name = "AMOUNT", default_value = "1000000")]
    pub deny_above: String,
}

impl StandInArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn stand_in(&self) -> Result<StandInOptions, ConfigError> {
        let delay_ms = number(
            "STAND_IN_DELAY_MS",
            &self.delay_ms,
            0..=3_600_000,
            "a whole number of milliseconds from 0 to 3600000",
        )?;
        Ok(StandInOptions {
            listen: parsed("STAND_IN_LISTEN", &self.listen, ADDRESS_ALLOWED)?,
            delay: Duration::from_millis(delay_ms),
            deny_above: parsed(
                "STAND_IN_DENY_ABOVE",
                &self.deny_above,
                "a whole number from 0 to 18446744073709551615",
            )?,
        })
    }
}

/// What `verify` is started with.
#[derive(Args, Clone)]
pub struct VerifyArguments {
    /// Where the ledger is.
    #[command(flatten)]
    pub database: DatabaseArguments,

    /// Changes larger than this, either way, must have been approved: the lowest threshold that was ever set
    #[arg(long, env = "APPROVAL_THRESHOLD", value_name = "AMOUNT", default_value = "100000")]
    pub approval_threshold: String,

    /// Operations logs to be held against the ledger, all files of a replica, rotated ones included and uncompressed;
    /// operations of instances that no line names are not compared, an empty file names none
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub operations_log: Vec<PathBuf>,
}

impl VerifyArguments {
    /// # Errors
    ///
    /// [`ConfigError`] names the value if it cannot be used.
    pub fn approval_threshold(&self) -> Result<u64, ConfigError> {
        approval_threshold(&self.approval_threshold)
    }
}

fn approval_threshold(text: &str) -> Result<u64, ConfigError> {
    number(
        "APPROVAL_THRESHOLD",
        text,
        0..=i64::MAX.unsigned_abs(),
        "a whole number from 0 to 9223372036854775807",
    )
}

fn parsed<T: FromStr>(variable: &'static str, text: &str, allowed: &'static str) -> Result<T, ConfigError> {
    text.parse().map_err(|_| ConfigError::Invalid {
        variable,
        value: text.to_owned(),
        allowed,
    })
}

fn number<T: FromStr + PartialOrd + Display>(
    variable: &'static str,
    text: &str,
    range: RangeInclusive<T>,
    allowed: &'static str,
) -> Result<T, ConfigError> {
    let value = parsed(variable, text, allowed)?;
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(ConfigError::Invalid {
            variable,
            value: text.to_owned(),
            allowed,
        })
    }
}

fn milliseconds(variable: &'static str, text: &str) -> Result<Duration, ConfigError> {
    number(
        variable,
        text,
        1..=3_600_000,
        "a whole number of milliseconds from 1 to 3600000",
    )
    .map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        service: ServiceArguments,
        #[command(flatten)]
        approver: ApproverArguments,
        #[command(flatten)]
        database: DatabaseArguments,
    }

    fn line(flags: &[&str]) -> Line {
        Line::parse_from(std::iter::once("balance").chain(flags.iter().copied()))
    }

    #[test]
    fn a_wrong_value_is_named_with_its_variable_and_what_is_allowed_in_one_line() {
        for (flag, value, variable) in [
            ("--listen", "localhost", "LISTEN"),
            ("--approval-threshold", "-1", "APPROVAL_THRESHOLD"),
            ("--approval-threshold", "1.5", "APPROVAL_THRESHOLD"),
            ("--operations-log-sync", "sometimes", "OPERATIONS_LOG_SYNC"),
            ("--operation-timeout-ms", "0", "OPERATION_TIMEOUT_MS"),
            ("--instance", "a\nb", "INSTANCE"),
            ("--connections", "0", "CONNECTIONS"),
        ] {
            let line = line(&[&format!("{flag}={value}")]);
            let errors = [
                line.service.service().err(),
                line.service.operations_log().err(),
                line.service.http().err(),
            ];
            let error = errors.into_iter().flatten().next().expect(flag).to_string();
            assert!(
                error.starts_with(variable) && error.contains(&format!("{value:?}")),
                "{error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_operations_log_has_room_for_every_operation_under_way_and_every_client() {
        let log = line(&["--operations-in-flight=1000000", "--connections=999999"]);
        assert_eq!(log.service.operations_log().unwrap().operations_at_once, 1_999_999);
    }

    #[test]
    fn the_urls_are_required() {
        let line = line(&[]);
        assert!(
            line.approver
                .approver()
                .unwrap_err()
                .to_string()
                .starts_with("APPROVER_URL")
        );
        let database = line.database.database("balance".to_owned());
        assert!(database.unwrap_err().to_string().starts_with("DATABASE_URL"));
    }
}
