use clap::Args;

use super::{milliseconds, number};
use crate::config::{ApproverConfig, ApproverUrl, ConfigError};

/// Where the Approver is and how long it is waited for.
#[derive(Args, Clone)]
#[command(next_help_heading = "Approver")]
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
