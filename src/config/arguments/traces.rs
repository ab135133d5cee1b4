use clap::Args;

use super::number;
use crate::config::{CollectorUrl, ConfigError, TracesConfig};

/// Where traces are exported to.
#[derive(Args, Clone)]
#[command(next_help_heading = "Traces")]
pub struct TracesArguments {
    /// Base URL of the collector that traces are sent to, by OTLP over HTTP; /v1/traces is appended [default: none is sent]
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub otel_exporter_otlp_endpoint: Option<String>,

    /// The service's name in traces
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME", default_value = "balance")]
    pub otel_service_name: String,

    /// Which part of the traces that begin here is recorded, 0 to 1; others are as their callers say
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "PART", default_value = "1")]
    pub otel_traces_sampler_arg: String,
}

impl TracesArguments {
    /// Nothing, if traces are not exported; `instance` tells whose they are.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that cannot be used.
    pub fn traces(&self, instance: &str) -> Result<Option<TracesConfig>, ConfigError> {
        let ratio = number(
            "OTEL_TRACES_SAMPLER_ARG",
            &self.otel_traces_sampler_arg,
            0.0..=1.0,
            "a number from 0 to 1, such as 0.1",
        )?;
        let service_name = self.otel_service_name.clone();
        if service_name.is_empty() || service_name.chars().any(char::is_control) {
            return Err(ConfigError::Invalid {
                variable: "OTEL_SERVICE_NAME",
                value: service_name,
                allowed: "a name without control characters, such as balance",
            });
        }
        let Some(endpoint) = &self.otel_exporter_otlp_endpoint else {
            return Ok(None);
        };
        if cfg!(not(feature = "otlp")) {
            return Err(ConfigError::InvalidSecret {
                variable: "OTEL_EXPORTER_OTLP_ENDPOINT",
                allowed: "none: this program is built without the feature otlp",
            });
        }
        Ok(Some(TracesConfig {
            endpoint: CollectorUrl::parse(endpoint)?,
            service_name,
            ratio,
            instance: instance.to_owned(),
        }))
    }
}
