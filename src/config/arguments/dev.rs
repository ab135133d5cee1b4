use std::path::PathBuf;

use clap::Args;

/// What `dev` takes beside the flags of `serve`.
#[derive(Args, Clone)]
#[command(next_help_heading = "Development")]
pub struct DevArguments {
    /// Where PostgreSQL's data is kept between runs
    #[arg(long, env = "DATA_DIR", value_name = "DIRECTORY", default_value = ".dev", value_hint = clap::ValueHint::DirPath)]
    pub data_dir: PathBuf,
}
