use std::path::PathBuf;

use clap::Args;

use super::{DatabaseArguments, approval_threshold};
use crate::config::ConfigError;

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
