//! What `balance verify` costs: ledgers of several shapes, filled by SQL in a private PostgreSQL, and for each how many
//! operations a second the command checks and how much memory it takes at most.
//!
//! | file | what |
//! |---|---|
//! | `ledgers` | the ledgers, and a log of one |
//! | `measured` | one run of the command, as a process of its own |
//!
//! PostgreSQL, children and formats are those of the throughput benchmark.

#![allow(dead_code, reason = "the throughput benchmark uses all of its modules")]

#[path = "../throughput/client.rs"]
mod client;
#[path = "../throughput/database.rs"]
mod database;
#[path = "../throughput/format.rs"]
mod format;
mod ledgers;
#[path = "../throughput/machine.rs"]
mod machine;
mod measured;
#[path = "../throughput/process.rs"]
mod process;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::database::{Database, Databases};
use crate::format::{mebibytes, thousands};
use crate::ledgers::{LEDGERS, Ledger, OPERATIONS_PER_USER};
use crate::machine::Environment;
use crate::measured::{MEASURE, Measured, measure_child};

/// A result whose error is told to the user in one line.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const QUICK_OPERATIONS: u64 = 100_000;

/// Measures how fast balance verify checks ledgers of several shapes, and its memory
#[derive(Parser)]
#[command(
    name = "verify",
    override_usage = "cargo bench --bench verify -- [OPTIONS]",
    max_term_width = 120
)]
struct Arguments {
    /// How many operations each ledger has, in whole users of 200
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(OPERATIONS_PER_USER..=100_000_000))]
    operations: u64,
    /// 100,000 operations: some seconds, and figures that are rough
    #[arg(long, conflicts_with = "operations")]
    quick: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let under_cargo_bench = std::env::args().any(|argument| argument == "--bench");
    let outcome = match std::env::args().nth(1).as_deref() {
        Some(MEASURE) => measure_child(),
        _ if under_cargo_bench => measure(&Arguments::parse()),
        _ => {
            eprintln!("verify runs under cargo bench only: cargo bench --bench verify");
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verify: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the benchmark in a runtime of one thread: children are tied to the thread that starts them.
fn measure(arguments: &Arguments) -> Outcome<()> {
    let operations = if arguments.quick {
        QUICK_OPERATIONS
    } else {
        arguments.operations
    };
    let users = operations / OPERATIONS_PER_USER;
    let files = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let log = files.join("verify-operations.log");
    let load = machine::load();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        eprintln!("starting PostgreSQL");
        let mut databases = Databases::start(&files.join("verify-postgres")).await?;
        let outcome = run(&databases, users, &log, load).await;
        databases.remove().await?;
        // There is none if it was not come to.
        let _ = std::fs::remove_file(&log);
        outcome
    })
}

async fn run(databases: &Databases, users: u64, log: &Path, load: Option<String>) -> Outcome<()> {
    let database = databases.template().await?;
    let mut rows = Vec::new();
    for ledger in &LEDGERS {
        rows.push(measure_ledger(databases, &database, ledger, users, log).await?);
    }
    let on = Environment::look(databases, load).await?;
    let machine = format!("{}, {} cores, {}, load {}", on.cpu, on.cores, on.memory, on.load);
    println!(
        "{}, commit {}. {machine}. PostgreSQL {}.\n",
        on.date, on.commit, on.postgres
    );
    println!("| ledger | operations | operations/s | max RSS |\n|---|---|---|---|");
    println!("{}", rows.join("\n"));
    Ok(())
}

/// A row of the table.
async fn measure_ledger(
    databases: &Databases,
    database: &Database,
    ledger: &Ledger,
    users: u64,
    log: &Path,
) -> Outcome<String> {
    let (name, operations) = (ledger.name(users), users * OPERATIONS_PER_USER);
    eprintln!("{name}: {operations} operations");
    let client = database.client().await?;
    ledger.fill(&client, users).await?;
    let log = ledger.with_log.then_some(log);
    if let Some(log) = log {
        ledgers::write_log(&client, log).await?;
    }
    databases.checkpoint().await?;
    let measured = Measured::run(database, log, operations).await?;
    let per_second = operations as f64 / measured.took.as_secs_f64();
    let [operations, per_second] = [operations as f64, per_second].map(thousands);
    let memory = mebibytes(measured.max_rss_bytes);
    Ok(format!("| {name} | {operations} | {per_second} | {memory} |"))
}
