//! The flags and variables as clap reads them, a struct a concern, and the checks that turn them into configuration.

mod access;
mod approver;
mod database;
mod dev;
mod process_log;
mod service;
mod stand_in;
mod tls;
mod traces;
mod verify;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub use access::AccessArguments;
pub use approver::ApproverArguments;
pub use database::DatabaseArguments;
pub use dev::DevArguments;
pub use process_log::ProcessLogArguments;
pub use service::ServiceArguments;
pub use stand_in::StandInArguments;
pub use tls::TlsArguments;
pub use traces::TracesArguments;
pub use verify::VerifyArguments;

use super::ConfigError;

const ADDRESS_ALLOWED: &str = "an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080";

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
