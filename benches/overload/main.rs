//! Overload: what a replica still answers, and how quickly it refuses the rest, when it is asked for ten times what it can
//! take.
//!
//! `cargo bench --bench overload` prints the table. The load generator, PostgreSQL and the replica share the machine, and
//! ten times what it can take with all of its processors is more than a generator beside it can ask for. So the first rows
//! have a PostgreSQL that is far away and sets the limit; the others have ten times the connections and more.

#[path = "../throughput/client.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod client;
#[path = "../throughput/database.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod database;
mod distance;
mod load;
#[path = "../throughput/machine.rs"]
mod machine;
#[path = "../throughput/process.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod process;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::sleep;

use crate::database::{Database, Databases};
use crate::load::{Answers, Load, Pace, Work};
use crate::machine::Environment;
use crate::process::{Server, command};

/// A result whose error is told to the user in one line.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const COUNTED: Duration = Duration::from_secs(6);
/// How long after a load the memory is looked at again.
const AFTER: Duration = Duration::from_secs(3);
/// Within this time what is refused is to be answered.
const PROMPT: Duration = Duration::from_millis(100);

/// One line of the table.
struct Row {
    name: &'static str,
    work: Work,
    /// How far away PostgreSQL is, each way.
    distance: Option<Duration>,
    variables: &'static [(&'static str, &'static str)],
    /// What gives the best goodput.
    best_connections: usize,
    overload: Overload,
}

enum Overload {
    /// So many times the best goodput, over so many connections.
    Times(f64, usize),
    /// So many connections, each asking again as soon as it is answered, or a second after it was refused.
    Connections(usize),
}

const ROWS: [Row; 8] = [
    Row {
        name: "changes, PostgreSQL 200 ms away and back",
        work: Work::Change,
        distance: Some(Duration::from_millis(100)),
        variables: &[],
        best_connections: 2_048,
        overload: Overload::Times(10.0, 8_000),
    },
    Row {
        name: "the same, 64 users a statement",
        work: Work::Change,
        distance: Some(Duration::from_millis(100)),
        variables: &[("COMMIT_BATCH_USERS", "64")],
        best_connections: 512,
        overload: Overload::Times(10.0, 8_000),
    },
    Row {
        name: "reads, one statement at a time, PostgreSQL 200 ms away and back",
        work: Work::Read,
        distance: Some(Duration::from_millis(100)),
        variables: &[("READ_STATEMENTS", "1")],
        best_connections: 2_048,
        overload: Overload::Times(10.0, 8_000),
    },
    Row {
        name: "changes, 256 operations at most, PostgreSQL 100 ms away and back",
        work: Work::Change,
        distance: Some(Duration::from_millis(50)),
        variables: &[("OPERATIONS_IN_FLIGHT", "256")],
        best_connections: 256,
        overload: Overload::Times(10.0, 4_000),
    },
    Row {
        name: "reads, 10 times the connections",
        work: Work::Read,
        distance: None,
        variables: &[],
        best_connections: 256,
        overload: Overload::Connections(2_560),
    },
    Row {
        name: "reads, 31 times the connections",
        work: Work::Read,
        distance: None,
        variables: &[],
        best_connections: 256,
        overload: Overload::Connections(8_000),
    },
    Row {
        name: "changes, 10 times the connections",
        work: Work::Change,
        distance: None,
        variables: &[],
        best_connections: 256,
        overload: Overload::Connections(2_560),
    },
    Row {
        name: "changes, 31 times the connections",
        work: Work::Change,
        distance: None,
        variables: &[],
        best_connections: 256,
        overload: Overload::Connections(8_000),
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("overload runs under cargo bench only: cargo bench --bench overload");
        return ExitCode::SUCCESS;
    }
    // What rows begin with, to measure only those.
    let asked: Vec<String> = arguments.into_iter().filter(|argument| argument != "--bench").collect();
    match measure(&asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overload: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In a runtime of one thread: children are tied to the thread that starts them.
fn measure(asked: &[String]) -> Outcome<()> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    let files = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (scratch, data) = (files.join("overload"), files.join("overload-postgres"));
    std::fs::create_dir_all(&scratch)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let load = machine::load();
        let mut databases = Databases::start(&data).await?;
        let outcome = async {
            let about = Environment::look(&databases, load).await?;
            println!(
                "{}, commit {}. {}, {} cores, {}, {}, load {} before the run. PostgreSQL {}.\n",
                about.date, about.commit, about.cpu, about.cores, about.memory, about.kernel, about.load, about.postgres
            );
            println!(
                "| load | best | offered | goodput | of best | 503 | p50, p99, max of 503 | above 100 ms | p99 of 200 | wrong | memory before, most, after |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|"
            );
            let template = databases.template().await?;
            for row in ROWS {
                if asked.is_empty() || asked.iter().any(|name| row.name.starts_with(name.as_str())) {
                    // The other rows are worth having all the same.
                    let line = measure_row(&row, &databases, &template, &scratch).await;
                    println!("{}", line.unwrap_or_else(|error| format!("| {} | FAILED: {error} |", row.name)));
                }
            }
            Outcome::Ok(())
        };
        let outcome = outcome.await;
        databases.remove().await?;
        std::fs::remove_dir_all(&scratch)?;
        outcome
    })
}

async fn measure_row(row: &Row, databases: &Databases, template: &Database, scratch: &Path) -> Outcome<String> {
    let url = match row.distance {
        None => template.url.clone(),
        Some(delay) => {
            let port = 5432;
            let socket = databases.socket_dir().join(format!(".s.PGSQL.{port}"));
            let address = distance::listen(socket, delay).await?;
            format!("postgres://balance@{address}/{}", template.name)
        }
    };
    let mut serve = command(env!("CARGO_BIN_EXE_balance"));
    serve
        .arg("serve")
        .env("DATABASE_URL", url)
        .env("APPROVER_URL", "http://127.0.0.1:9")
        .env("OPERATIONS_LOG", scratch.join("operations.log"))
        .env("RUST_LOG", "error")
        .env("SHUTDOWN_DELAY_MS", "1")
        // More than by default, since thousands of connections are a load of their own.
        .env("CONNECTIONS", "10000")
        .envs(row.variables.iter().copied());
    let server = Server::start(serve, &scratch.join("said")).await?;
    let put = async |connections, pace| {
        let load = Load {
            work: row.work,
            connections,
            pace,
            counted: COUNTED,
        };
        load::run(server.address, load).await
    };
    let best = put(row.best_connections, Pace::AnswerByAnswer).await?;
    let before = server.memory("VmRSS:");
    let over = match row.overload {
        Overload::Times(times, connections) => put(connections, Pace::PerSecond(best.good * times)).await?,
        Overload::Connections(connections) => put(connections, Pace::AnswerByAnswer).await?,
    };
    let most = server.peak_memory();
    sleep(AFTER).await;
    let after = server.memory("VmRSS:");
    server.stop().await?;
    std::fs::remove_file(scratch.join("operations.log"))?;
    Ok(line(row.name, &best, over, [before, most, after]))
}

fn line(name: &str, best: &Answers, mut over: Answers, memory: [Option<u64>; 3]) -> String {
    let of_best = over.good / best.good;
    let all = over.accepted.count() + over.refused.count() + over.wrong;
    let share = over.refused.count() as f64 / all.max(1) as f64;
    let mut at = |part| {
        let latency = over.refused.percentile(part);
        latency.map_or("none".to_owned(), |latency| format!("{latency:.1} ms"))
    };
    let refused = [at(0.5), at(0.99), at(1.0)].join(", ");
    let mebibytes = |bytes: Option<u64>| bytes.map_or(0.0, |bytes| bytes as f64 / f64::from(1 << 20));
    let [before, most, after] = memory.map(mebibytes);
    format!(
        "| {name} | {:.0}/s | {:.0}/s | {:.0}/s | {of_best:.2} | {:.0}% | {refused} | {:.2}% | {:.0} ms | {} | {before:.0}, {most:.0}, {after:.0} MiB |",
        best.good,
        over.offered,
        over.good,
        share * 100.0,
        over.refused.share_above(PROMPT) * 100.0,
        over.accepted.percentile(0.99).unwrap_or_default(),
        over.wrong,
    )
}
