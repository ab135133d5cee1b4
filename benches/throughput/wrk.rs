//! Runs wrk, the load generator, and reads what it found.
//!
//! When a server pauses, wrk counts the pause for all requests that it would have held up, not only for the one that was
//! under way: its percentiles are higher than those of the requests that were sent. A request whose connection the server
//! closes is given up and counted nowhere.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Outcome;
use crate::process::{command, find_program};
use crate::results::Figures;

const SCRIPT: &str = include_str!("scripts/load.lua");

/// Longer than anything answers: what takes longer is an error of the row.
const TIMEOUT: &str = "10s";

/// A thread fills a core; more of them than this would take the cores from what is measured.
const MOST_THREADS: u32 = 2;

/// wrk with its script.
pub struct Wrk {
    program: PathBuf,
    script: PathBuf,
}

/// The line that the script prints in the end.
#[derive(Deserialize)]
struct Summary {
    microseconds: f64,
    requests: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    connect: u64,
    read: u64,
    write: u64,
    timeout: u64,
    status: u64,
}

impl Wrk {
    /// Finds wrk and writes the script out for it.
    ///
    /// # Errors
    ///
    /// What to install, if there is no wrk.
    pub fn find(scratch: &Path) -> Outcome<Self> {
        let program = find_program("wrk").ok_or("wrk is missing: apt-get install wrk postgresql")?;
        let script = scratch.join("load.lua");
        std::fs::write(&script, SCRIPT)?;
        Ok(Self { program, script })
    }

    /// Puts a load, as the script's arguments say it, on a server.
    ///
    /// # Errors
    ///
    /// If wrk cannot be run or says something else than expected. Requests that fail are counted.
    pub async fn run(
        &self,
        server: SocketAddr,
        connections: u32,
        seconds: u32,
        load: &[(&str, String)],
    ) -> Outcome<Figures> {
        let mut wrk = command(&self.program);
        wrk.args(["--timeout", TIMEOUT, "--script"]).arg(&self.script);
        wrk.arg(format!("-t{}", connections.min(MOST_THREADS)));
        wrk.arg(format!("-c{connections}")).arg(format!("-d{seconds}s"));
        wrk.arg(format!("http://{server}")).arg("--");
        wrk.args(load.iter().map(|(name, value)| format!("{name}={value}")));
        let output = wrk.output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let result = said.lines().find_map(|line| line.strip_prefix("RESULT "));
        let Some(result) = result else {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(format!("wrk ({}) gave no result: {said} {complaint}", output.status).into());
        };
        let summary: Summary = serde_json::from_str(result)?;
        Ok(summary.figures())
    }
}

impl Summary {
    fn figures(&self) -> Figures {
        let seconds = self.microseconds / 1e6;
        // What is not answered is not among the requests.
        let well = self.requests.saturating_sub(self.status);
        Figures {
            seconds,
            requests: self.requests,
            per_second: well as f64 / seconds,
            p50: Some(self.p50 / 1e3),
            p90: Some(self.p90 / 1e3),
            p99: Some(self.p99 / 1e3),
            max: Some(self.max / 1e3),
            errors: self.connect + self.read + self.write + self.timeout + self.status,
            processor: None,
        }
    }
}
