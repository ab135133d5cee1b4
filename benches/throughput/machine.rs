//! What was measured, and on what: without it figures mean nothing.

use std::path::Path;
use std::time::SystemTime;

use balance::domain::Timestamp;
use serde::Serialize;

use crate::Outcome;
use crate::database::Databases;
use crate::process::{command, find_program};

/// Where and when a run took place.
#[derive(Serialize)]
pub struct Environment {
    /// UTC.
    pub date: String,
    /// Of the repository, and whether anything in it was changed.
    pub commit: String,
    /// The model.
    pub cpu: String,
    /// How many cores the run could use.
    pub cores: usize,
    /// In GiB.
    pub memory: String,
    /// Operating system and version.
    pub kernel: String,
    /// What ran before the run began: how many processes, over a minute.
    pub load: String,
    /// PostgreSQL's version.
    pub postgres: String,
    /// Its settings.
    pub settings: Vec<(String, String)>,
}

impl Environment {
    /// Looks around.
    ///
    /// # Errors
    ///
    /// If PostgreSQL does not answer. What else is not known is called so.
    pub async fn look(databases: &Databases, load: Option<String>) -> Outcome<Self> {
        let (postgres, settings) = databases.description().await?;
        let date = Timestamp::from(SystemTime::now()).to_rfc3339_microseconds();
        let unknown = || "unknown".to_owned();
        Ok(Self {
            // To the minute.
            date: format!("{} UTC", date[..16].replace('T', " ")),
            commit: commit().await.unwrap_or_else(unknown),
            cpu: first_value("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism()?.get(),
            memory: memory().unwrap_or_else(unknown),
            kernel: kernel().unwrap_or_else(unknown),
            load: load.unwrap_or_else(unknown),
            postgres,
            settings,
        })
    }
}

/// How many processes have wanted to run in the last minute.
pub fn load() -> Option<String> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next().map(str::to_owned)
}

async fn commit() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).await?;
    let changes = git(&["status", "--porcelain"]).await?;
    Some(if changes.is_empty() {
        commit
    } else {
        format!("{commit} with changes")
    })
}

async fn git(arguments: &[&str]) -> Option<String> {
    let output = command(find_program("git")?)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .await
        .ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}

fn kernel() -> Option<String> {
    let read = |name| std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok();
    Some(format!("{} {}", read("ostype")?.trim(), read("osrelease")?.trim()))
}

fn memory() -> Option<String> {
    let total = first_value("/proc/meminfo", "MemTotal")?;
    let kibibytes: f64 = total.strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{:.0} GiB", kibibytes / f64::from(1_024 * 1_024)))
}

fn first_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
}
