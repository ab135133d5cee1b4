use std::path::PathBuf;

use clap::Args;

use super::parsed;
use crate::config::ConfigError;

/// What `dev` takes beside the flags of `serve`.
#[derive(Args, Clone)]
#[command(next_help_heading = "Development")]
pub struct DevArguments {
    /// Where PostgreSQL's data is kept between runs
    #[arg(long, env = "DATA_DIR", value_name = "DIRECTORY", default_value = ".dev", value_hint = clap::ValueHint::DirPath)]
    pub data_dir: PathBuf,

    /// Run a small mixed load, and give the user `demo` a history of 30 days, so that metrics, history and log show life
    #[arg(
        long,
        env = "DEMO",
        value_name = "true|false",
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    pub demo: String,
}

impl DevArguments {
    /// Whether the small mixed load is run.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the value if it cannot be used.
    pub fn demo(&self) -> Result<bool, ConfigError> {
        parsed("DEMO", &self.demo, "true or false")
    }
}
