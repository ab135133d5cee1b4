//! Runs pgbench, PostgreSQL's own client: the same work with prepared statements and nothing in between.

use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::database::{Database, Databases};
use crate::process::command;
use crate::results::Figures;

const READ: &str = include_str!("scripts/pgbench_read.sql");
const CHANGE: &str = include_str!("scripts/pgbench_change.sql");

/// As many as wrk has.
const MOST_THREADS: u32 = 2;

/// pgbench with its scripts.
pub struct Pgbench {
    program: PathBuf,
    socket_dir: PathBuf,
    read: PathBuf,
    change: PathBuf,
}

/// What pgbench can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PgbenchWork {
    /// A point read.
    Read,
    /// A read, then one statement with the conditional update and the insert.
    Change,
}

impl Pgbench {
    /// Finds pgbench beside PostgreSQL's other programs and writes the scripts out for it.
    ///
    /// # Errors
    ///
    /// What to install, if there is no pgbench.
    pub fn find(databases: &Databases, scratch: &Path) -> Outcome<Self> {
        let program = databases.programs().join("pgbench");
        if !program.is_file() {
            return Err("pgbench is missing: apt-get install wrk postgresql".into());
        }
        let (read, change) = (scratch.join("pgbench_read.sql"), scratch.join("pgbench_change.sql"));
        std::fs::write(&read, READ)?;
        std::fs::write(&change, CHANGE)?;
        let socket_dir = databases.socket_dir().to_owned();
        Ok(Self {
            program,
            socket_dir,
            read,
            change,
        })
    }

    /// Lets so many clients work. Of changes only those are counted that were stored.
    ///
    /// # Errors
    ///
    /// If pgbench fails or says something else than expected.
    pub async fn run(
        &self,
        work: PgbenchWork,
        database: &Database,
        users: u32,
        clients: u32,
        seconds: u32,
    ) -> Outcome<Figures> {
        let client = database.client().await?;
        let operations = "SELECT sum(version)::bigint FROM balance";
        let before: i64 = client.query_one(operations, &[]).await?.try_get(0)?;
        let mut pgbench = command(&self.program);
        pgbench.args(["--no-vacuum", "--protocol=prepared", "--username=balance", "--file"]);
        pgbench.arg(match work {
            PgbenchWork::Read => &self.read,
            PgbenchWork::Change => &self.change,
        });
        pgbench
            .arg("--host")
            .arg(&self.socket_dir)
            .arg(format!("--define=users={users}"));
        pgbench
            .arg(format!("--client={clients}"))
            .arg(format!("--time={seconds}"));
        pgbench
            .arg(format!("--jobs={}", clients.min(MOST_THREADS)))
            .arg(&database.name);
        let output = pgbench.output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let after: i64 = client.query_one(operations, &[]).await?.try_get(0)?;
        let figures = figures(&said);
        let Some(mut figures) = figures.filter(|_| output.status.success()) else {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(format!("pgbench ({}): {said} {complaint}", output.status).into());
        };
        if work == PgbenchWork::Change {
            let stored = u64::try_from(after - before)?;
            figures.per_second *= stored as f64 / figures.requests.max(1) as f64;
            figures.requests = stored;
        }
        Ok(figures)
    }
}

/// Reads the summary; `None` if something is missing in it.
fn figures(said: &str) -> Option<Figures> {
    let after = |label: &str| said.lines().find_map(|line| line.strip_prefix(label));
    let number = |text: &str| text.split_whitespace().next()?.parse::<f64>().ok();
    let requests = number(after("number of transactions actually processed: ")?)?;
    let per_second = number(after("tps = ")?)?;
    Some(Figures {
        seconds: requests / per_second,
        requests: requests as u64,
        per_second,
        errors: number(after("number of failed transactions: ")?)? as u64,
        ..Figures::default()
    })
}
