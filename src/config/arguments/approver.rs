use std::path::PathBuf;

use clap::Args;

use super::{milliseconds, number};
use crate::config::{ApproverConfig, ApproverUrl, ConfigError};
use crate::tls::Roots;

/// Where the Approver is and how long it is waited for.
#[derive(Args, Clone)]
#[command(next_help_heading = "Approver")]
pub struct ApproverArguments {
    /// Base URL of the Approver; /approve is appended
    #[arg(long, env = "APPROVER_URL", hide_env_values = true, value_name = "URL")]
    pub approver_url: Option<String>,

    /// PEM file with the authorities that may sign the certificate of an Approver behind https, instead of those that the
    /// system trusts
    #[arg(long, env = "APPROVER_CA", value_name = "FILE")]
    pub approver_ca: Option<PathBuf>,

    /// How long one call to the Approver may take before it is tried again, in milliseconds
    #[arg(
        long,
        env = "APPROVER_TIMEOUT_MS",
        value_name = "MILLISECONDS",
        default_value = "2000"
    )]
    pub approver_timeout_ms: String,

    /// Most calls to the Approver in flight at once
    #[arg(long, env = "APPROVER_CALLS", value_name = "COUNT", default_value = "512")]
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
        let url = ApproverUrl::parse(url)?;
        let ca = match &self.approver_ca {
            None => None,
            Some(path) if !url.is_https() => {
                return Err(ConfigError::Invalid {
                    variable: "APPROVER_CA",
                    value: path.display().to_string(),
                    allowed: "it only where APPROVER_URL begins with https://",
                });
            }
            Some(path) => Some(Roots::from_file(path).map_err(|error| ConfigError::File {
                variable: "APPROVER_CA",
                error,
                allowed: "a PEM file with the certificate of the Approver's authority",
            })?),
        };
        Ok(ApproverConfig {
            url,
            ca,
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
