//! One run of `balance verify`, and what it took.
//!
//! The most memory that a process had is known to its parent, together with that of all other children: so a process that
//! has no other child runs it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::Outcome;
use crate::database::Database;
use crate::process::command;

/// The first argument of that process.
pub const MEASURE: &str = "measure";

/// What a run took.
pub struct Measured {
    /// From its start to its end.
    pub took: Duration,
    /// The most memory that was resident.
    pub max_rss_bytes: u64,
}

impl Measured {
    /// Runs the command on a ledger of so many operations that must be right, with its log if there is one.
    ///
    /// # Errors
    ///
    /// If something is found, or the check comes to no end.
    pub async fn run(database: &Database, log: Option<&Path>, operations: u64) -> Outcome<Self> {
        let mut child = command(std::env::current_exe()?);
        child.args([MEASURE, "verify"]).env("DATABASE_URL", &database.url);
        if let Some(log) = log {
            child.arg("--operations-log").arg(log);
        }
        let output = child.stderr(Stdio::inherit()).output().await?;
        let said = String::from_utf8(output.stdout)?;
        let lines = log.map_or(0, |_| operations);
        let expected = [
            "all is right: ",
            &format!(" {operations} operations, "),
            &format!(" {lines} lines, "),
        ];
        if !output.status.success() || !expected.iter().all(|part| said.contains(part)) {
            return Err(format!("the ledger is not right: {}", said.trim()).into());
        }
        let figures = said.lines().next_back().and_then(|line| line.split_once(' '));
        let (took, memory) = figures.ok_or("nothing was measured")?;
        Ok(Self {
            took: Duration::from_micros(took.parse()?),
            max_rss_bytes: memory.parse()?,
        })
    }
}

/// In a process of its own: runs the command, and appends microseconds and bytes to what it says.
///
/// # Errors
///
/// If it does not end well.
pub fn measure_child() -> Outcome<()> {
    let mut program = command(env!("CARGO_BIN_EXE_balance")).into_std();
    // Of this one's environment it gets what the benchmark gave.
    program.args(std::env::args_os().skip(2)).envs(std::env::vars_os());
    let began = Instant::now();
    let status = program.status()?;
    let took = began.elapsed();
    if !status.success() {
        return Err(format!("balance verify ended with {status}").into());
    }
    // In KiB on Linux, in bytes on macOS.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1_024 };
    let max_rss = u64::try_from(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss())?;
    println!("{} {}", took.as_micros(), max_rss * unit);
    Ok(())
}
