//! What all measurements share: PostgreSQL, a database for each contender, the load generators, and what was found so far.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::arguments::{RowName, Settings};
use crate::client::Client;
use crate::data::{Loaded, Users, verify_reads, verify_stored};
use crate::database::{Database, Databases};
use crate::format::{milliseconds, rate};
use crate::pgbench::Pgbench;
use crate::process::{Server, command};
use crate::processor::Meter;
use crate::results::{Contender, Fault, Figures, Measurement, Memory, Results, Subject};
use crate::work::Work;
use crate::wrk::Wrk;

/// Where nobody listens. No change of a load is large enough to need approval.
const NO_APPROVER: &str = "http://127.0.0.1:9";

/// Everything a measurement needs.
pub struct Bench<'a> {
    /// What is asked for.
    pub settings: Settings,
    /// PostgreSQL.
    pub databases: &'a Databases,
    /// The service's database.
    pub service_database: Database,
    /// The plain server's.
    pub plain_database: Database,
    /// pgbench's.
    pub pgbench_database: Database,
    /// When the loaded operations happened.
    pub loaded: Loaded,
    /// The load generator for HTTP.
    pub wrk: Wrk,
    /// PostgreSQL's own.
    pub pgbench: Pgbench,
    /// What was found so far.
    pub results: Results,
    scratch: PathBuf,
    progress: Progress,
    hot_users: u32,
}

/// Counts the measurements, and tells of each.
struct Progress {
    done: usize,
    all: usize,
}

impl<'a> Bench<'a> {
    /// Loads PostgreSQL, copies what is loaded for each contender, and makes sure that the service reads it right.
    ///
    /// # Errors
    ///
    /// One line that says what is missing or wrong.
    pub async fn prepare(settings: Settings, databases: &'a Databases, scratch: &Path, all: usize) -> Outcome<Self> {
        let wrk = Wrk::find(scratch)?;
        let pgbench = Pgbench::find(databases, scratch)?;
        say("loading");
        let template = databases.template().await?;
        let loaded = Loaded::load(&template, &settings.sizes).await?;
        say("copying");
        let mut bench = Self {
            service_database: databases.copy("service").await?,
            plain_database: databases.copy("plain").await?,
            pgbench_database: databases.copy("pgbench").await?,
            settings,
            databases,
            loaded,
            wrk,
            pgbench,
            results: Results::default(),
            scratch: scratch.to_owned(),
            progress: Progress { done: 0, all },
            hot_users: 0,
        };
        bench.verify().await?;
        Ok(bench)
    }

    /// Compares some answers of the service, and all that is loaded, with sums over the history.
    async fn verify(&mut self) -> Outcome<()> {
        say("comparing the service's answers with the history");
        for users in [Users::Many, Users::Past, Users::Long] {
            verify_stored(&self.service_database, users).await?;
        }
        let service = self.start_service(&[]).await?;
        let mut client = Client::connect(service.address).await?;
        verify_reads(&mut client, &self.service_database, &self.settings.sizes).await?;
        service.stop().await
    }

    /// Starts a replica of the service with some variables beyond the usual.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub async fn start_service(&self, variables: &[(&str, &str)]) -> Outcome<Server> {
        let mut serve = command(env!("CARGO_BIN_EXE_balance"));
        serve
            .arg("serve")
            .env("DATABASE_URL", &self.service_database.url)
            .env("APPROVER_URL", NO_APPROVER)
            .env("OPERATIONS_LOG", self.scratch.join("service.operations.log"))
            .env("INSTANCE", "replica-1")
            .env("SHUTDOWN_DELAY_MS", "1")
            .envs(variables.iter().copied())
            .envs(self.settings.variables.iter().cloned());
        Server::start(serve, &self.scratch.join("service.log")).await
    }

    /// Starts a comparison server.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub async fn start_comparison(&self, contender: Contender) -> Outcome<Server> {
        let name = contender.name();
        let mut server = command(std::env::current_exe()?);
        server
            .arg(name)
            .env("DATABASE_URL", &self.plain_database.url)
            .env("OPERATIONS_LOG", self.scratch.join(format!("{name}.operations.log")))
            .env("INSTANCE", name);
        Server::start(server, &self.scratch.join(format!("{name}.log"))).await
    }

    /// A path for an operations log that is removed with the row.
    pub fn operations_log(&self, name: &str) -> String {
        self.scratch
            .join(format!("{name}.operations.log"))
            .display()
            .to_string()
    }

    /// Removes the operations logs, gigabytes in a whole run. Their servers must have stopped.
    ///
    /// # Errors
    ///
    /// What the operating system said.
    pub fn remove_operations_logs(&self) -> Outcome<()> {
        remove_operations_logs(&self.scratch)
    }

    /// Puts a row's load on a server; a hot user is a new one each time.
    ///
    /// # Errors
    ///
    /// If the load generator fails.
    pub async fn load(
        &mut self,
        work: Work,
        server: &Server,
        connections: u32,
        seconds: u32,
        seed: u32,
    ) -> Outcome<Figures> {
        let user = self.next_hot_user();
        let load = work.load(&self.settings.sizes, &self.loaded, user, seed)?;
        let meter = self.meter(&[server]);
        let mut figures = self.wrk.run(server.address, connections, seconds, &load).await?;
        figures.processor = meter.per_request(figures.requests);
        Ok(figures)
    }

    /// Begins to count the processor time of servers and PostgreSQL.
    pub fn meter(&self, servers: &[&Server]) -> Meter {
        Meter::start(servers, self.databases.postmaster())
    }

    /// A user whom nobody has heard of.
    pub fn next_hot_user(&mut self) -> String {
        self.hot_users += 1;
        format!("{}{}", Users::Hot.prefix(), self.hot_users)
    }

    /// Tells what is measured now; [`finish`](Self::finish) completes the line.
    pub fn begin(&mut self, what: &str, subject: &Subject) {
        self.progress.done += 1;
        let connections = match subject.connections {
            1 => "1 connection".to_owned(),
            several => format!("{several} connections"),
        };
        let detail = if subject.detail.is_empty() { "" } else { " · " };
        let (done, all) = (self.progress.done, self.progress.all);
        print!(
            "[{done}/{all}] {what}{detail}{} · {connections} · {} … ",
            subject.detail,
            subject.contender.name()
        );
        // A reader that has gone is no reason to stop.
        let _ = std::io::stdout().flush();
    }

    /// Keeps a measurement, and tells of it.
    pub fn finish(&mut self, subject: Subject, round: u32, figures: Figures) {
        let latency = figures.p99.map(|p99| format!(" p99 {}", milliseconds(p99)));
        let median = figures.p50.map(|p50| format!(" p50 {}", milliseconds(p50)));
        let errors = match figures.errors {
            0 => String::new(),
            errors => format!(" · {errors} errors"),
        };
        let processor = figures.processor.map(|processor| format!(" · {}", processor));
        say(&format!(
            "{}{}{}{}{errors}",
            rate(figures.per_second),
            median.unwrap_or_default(),
            latency.unwrap_or_default(),
            processor.unwrap_or_default()
        ));
        self.results.measurements.push(Measurement {
            subject,
            round,
            figures,
        });
    }

    /// Keeps how much memory a replica took under a row's load.
    pub fn note_memory(&mut self, row: RowName, replica: &Server) {
        if let Some(bytes) = replica.peak_memory() {
            self.results.memory.push(Memory { row, bytes });
        }
    }

    /// Makes sure that what some users have stored is right, and that there are at least `expected` operations.
    ///
    /// # Errors
    ///
    /// If PostgreSQL cannot be asked. What is wrong is kept as a fault.
    pub async fn check_stored(
        &mut self,
        row: RowName,
        database: &Database,
        users: Users,
        expected: u64,
    ) -> Outcome<()> {
        let what = match verify_stored(database, users).await {
            Ok(stored) if stored >= expected => return Ok(()),
            Ok(stored) => format!("{stored} operations are stored, and {expected} were answered"),
            Err(error) => error.to_string(),
        };
        say(&format!("WRONG: {what}"));
        self.results.faults.push(Fault { row, what });
        Ok(())
    }
}

/// Removes the operations logs in a directory.
///
/// # Errors
///
/// What the operating system said.
pub fn remove_operations_logs(scratch: &Path) -> Outcome<()> {
    for entry in std::fs::read_dir(scratch)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".operations.log") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Prints a line of progress.
pub fn say(line: &str) {
    // A reader that has gone is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
}
