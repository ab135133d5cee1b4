//! Throughput: the service beside a server without a store (the ceiling), a plain one and PostgreSQL's own client, on a
//! private PostgreSQL, under loads that wrk puts on them.
//!
//! | file | what |
//! |---|---|
//! | `arguments` | what is asked for |
//! | `bench` | what all measurements share |
//! | `work`, `rows` | the rows that put a load on servers |
//! | `ceiling`, `plain`, `plain_statements`, `server` | the servers to compare with |
//! | `wrk`, `pgbench`, `client` | who puts the load on |
//! | `database`, `data` | PostgreSQL, what is loaded, and whether it is right |
//! | `process`, `processor` | children that end with this process, and their processor time |
//! | `idle`, `replicas`, `latency`, `log_cost` | the other rows |
//! | `results`, `findings`, `report`, `machine`, `format` | what was found, and how it is told |
//! | `throughput_chart`, `growth_chart`, `svg` | the charts |

mod arguments;
mod bench;
mod ceiling;
mod client;
mod data;
mod database;
mod findings;
mod format;
mod growth_chart;
mod idle;
mod latency;
mod log_cost;
mod machine;
mod pgbench;
mod plain;
mod plain_statements;
mod process;
mod processor;
mod replicas;
mod report;
mod results;
mod rows;
mod server;
mod svg;
mod throughput_chart;
mod work;
mod wrk;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::{Arguments, RowName, Settings};
use crate::bench::{Bench, remove_operations_logs, say};
use crate::database::Databases;
use crate::machine::Environment;
use crate::results::Fault;
use crate::work::{LOAD_ROWS, LoadRow};
use crate::wrk::Wrk;

/// A result whose error is told to the user in one line.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a child process is started with.
const SERVERS: [&str; 2] = ["ceiling", "plain"];

/// As a shell tells of a process that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let under_cargo_bench = std::env::args().any(|argument| argument == "--bench");
    let is_server = std::env::args()
        .nth(1)
        .is_some_and(|first| SERVERS.contains(&first.as_str()));
    if !under_cargo_bench && !is_server {
        say("throughput runs under cargo bench only: cargo bench --bench throughput");
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => error.exit(),
        Err(error) => return fail(&one_line(&error)),
    };
    let outcome = match arguments.server {
        Some(server) => server.run().map(|()| ExitCode::SUCCESS),
        None => measure(arguments),
    };
    outcome.unwrap_or_else(|error| fail(&error.to_string()))
}

/// What is wrong with the flags, without the usage that follows it.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("throughput: {}", reason.trim_start_matches("error: "));
    ExitCode::FAILURE
}

/// Runs the benchmark in a runtime of one thread: children are tied to the thread that starts them.
fn measure(arguments: Arguments) -> Outcome<ExitCode> {
    let settings = arguments.settings()?;
    let files = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (scratch, data) = (files.join("throughput"), files.join("throughput-postgres"));
    std::fs::create_dir_all(&scratch)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupted = Interrupted::listen()?;
        // Before anything is started: a missing program is told at once.
        Wrk::find(&scratch)?;
        say("starting PostgreSQL");
        let mut databases = tokio::select! {
            databases = Databases::start(&data) => databases?,
            code = interrupted.wait() => return Ok(code),
        };
        // What is not finished is dropped, and with it all children but PostgreSQL.
        let outcome = tokio::select! {
            outcome = run(settings, &databases, &scratch) => outcome,
            code = interrupted.wait() => Ok(code),
        };
        databases.remove().await?;
        // What the servers said is kept where it may tell what went wrong.
        match outcome {
            Ok(code) if code != ExitCode::FAILURE => std::fs::remove_dir_all(&scratch)?,
            _ => remove_operations_logs(&scratch)?,
        }
        outcome
    })
}

/// Ctrl-C, SIGTERM or the end of the terminal, from the moment this is made.
struct Interrupted([Signal; 3]);

impl Interrupted {
    fn listen() -> Outcome<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn wait(&mut self) -> ExitCode {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        say("\nstopping");
        ExitCode::from(INTERRUPTED)
    }
}

/// Measures all rows that are asked for, and tells what was found.
async fn run(settings: Settings, databases: &Databases, scratch: &Path) -> Outcome<ExitCode> {
    let load = machine::load();
    let all = settings.rows.iter().map(|row| steps(&settings, *row)).sum();
    let mut bench = Bench::prepare(settings, databases, scratch, all).await?;
    let environment = Environment::look(databases, load).await?;
    for row in bench.settings.rows.clone() {
        if let Err(error) = measure_row(&mut bench, row).await {
            // The other rows are worth having all the same.
            let what = error.to_string();
            say(&format!("FAILED: {what}"));
            bench.results.faults.push(Fault { row, what });
        }
    }
    let Bench { settings, results, .. } = bench;
    let text = report::write(&settings, &environment, &results)?;
    say(&format!(
        "\n{text}\nTable, figures and charts are in {}.",
        settings.output.display()
    ));
    let whole = results.faults.is_empty();
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn load_row(row: RowName) -> Option<&'static LoadRow> {
    LOAD_ROWS.iter().find(|one| one.name == row)
}

fn steps(settings: &Settings, row: RowName) -> usize {
    match (row, load_row(row)) {
        (_, Some(row)) => rows::steps(settings, row),
        (RowName::OneClient, _) => idle::steps(settings),
        (RowName::TwoReplicas, _) => replicas::steps(settings),
        (RowName::Log, _) => log_cost::steps(settings),
        (row, _) => latency::steps(settings, row),
    }
}

async fn measure_row(bench: &mut Bench<'_>, row: RowName) -> Outcome<()> {
    match (row, load_row(row)) {
        (_, Some(row)) => rows::measure(bench, row).await,
        (RowName::OneClient, _) => idle::measure(bench).await,
        (RowName::TwoReplicas, _) => replicas::measure(bench).await,
        (RowName::Log, _) => log_cost::measure(bench).await,
        (row, _) => latency::measure(bench, row).await,
    }
}
