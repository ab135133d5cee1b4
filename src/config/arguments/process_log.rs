use clap::Args;

use crate::config::{ConfigError, LogFormat};

/// How the process tells what it does.
#[derive(Args, Clone)]
pub struct ProcessLogArguments {
    /// How the process's own log looks: text, json, or auto, which is text on a terminal and json otherwise
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto",
        global = true
    )]
    pub log_format: String,
}

impl ProcessLogArguments {
    /// # Errors
    ///
    /// [`ConfigError`] if there is no such format.
    pub fn format(&self) -> Result<LogFormat, ConfigError> {
        match self.log_format.as_str() {
            "auto" => Ok(LogFormat::Auto),
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(ConfigError::Invalid {
                variable: "LOG_FORMAT",
                value: other.to_owned(),
                allowed: "auto, text or json",
            }),
        }
    }
}
