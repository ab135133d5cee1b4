use std::time::Duration;

use clap::Args;

use super::{ADDRESS_ALLOWED, number, parsed};
use crate::config::{ConfigError, StandInOptions};

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
