//! What the benchmark is asked for on the command line.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::Outcome;
use crate::server::ServerCommand;

/// Fewer connections than those that the targets are looked at with get no more than this.
const LESS_SECONDS: u32 = 3;

/// Measures the throughput of balance beside a server without a store, a plain one and PostgreSQL's own client
#[derive(Parser)]
#[command(
    name = "throughput",
    override_usage = "cargo bench --bench throughput -- [OPTIONS]",
    max_term_width = 120,
    disable_help_subcommand = true
)]
pub struct Arguments {
    /// Less data, one short round at 256 connections: under two minutes, and figures that are rough
    #[arg(long)]
    quick: bool,
    /// Only these rows, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    rows: Vec<RowName>,
    /// How often each row is measured; medians are shown [default: 3, quick: 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// How long each measurement takes, with fewer than the most connections at most 3 s [default: 5, quick: 2]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Keep-alive connections, separated by commas; the targets are looked at with the most of them [default:
    /// 1,16,64,256, quick: 256]
    #[arg(long, value_delimiter = ',', value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Vec<u32>,
    /// Where table, figures and charts go [default: throughput/ in cargo's target directory]
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// A variable for the service, as DATABASE_CONNECTIONS=8; may be given more than once
    #[arg(long = "set", value_name = "NAME=VALUE")]
    variables: Vec<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// What a child process of the benchmark is
    #[command(subcommand)]
    pub server: Option<ServerCommand>,
}

/// A row of the table, or a group of measurements beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowName {
    /// Balances now, 100,000 users
    ReadNow,
    /// Balances at random past moments
    ReadPast,
    /// Changes in order, 100,000 users
    Change,
    /// Changes of one hot user, stamped by the clients' clocks
    Hot,
    /// Changes, 10% of them up to an hour late
    #[value(name = "backdated-10")]
    Backdated10,
    /// Changes, 50% of them up to an hour late
    #[value(name = "backdated-50")]
    Backdated50,
    /// 90% reads, 10% changes
    Mixed,
    /// A change behind a million later operations
    Deep,
    /// One client and an idle service
    OneClient,
    /// Two replicas on one hot user
    TwoReplicas,
    /// What the operations log costs
    Log,
    /// Latency against the length of a history
    Growth,
}

impl RowName {
    /// As it is given on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What is to be done, with nothing left open.
pub struct Settings {
    /// Little data and few measurements.
    pub quick: bool,
    /// In the order of the table.
    pub rows: Vec<RowName>,
    /// How often each row is measured.
    pub rounds: u32,
    /// How long each measurement takes.
    pub seconds: u32,
    /// Ascending; the last is the one that the targets are looked at with.
    pub connections: Vec<u32>,
    /// Where the results go.
    pub output: PathBuf,
    /// Variables for the service.
    pub variables: Vec<(String, String)>,
    /// How much data is loaded.
    pub sizes: Sizes,
}

/// How much data is loaded.
#[derive(Clone, Debug, Serialize)]
pub struct Sizes {
    /// Users with one operation each.
    pub users: u32,
    /// Users with a history.
    pub past_users: u32,
    /// How many operations each of those has.
    pub past_operations: u32,
    /// Users with a history of so many operations, the last the longest.
    pub lengths: Vec<u32>,
}

impl Arguments {
    /// # Errors
    ///
    /// One line that says which value cannot be used.
    pub fn settings(self) -> Outcome<Settings> {
        let variables = self.variables.iter().map(|text| variable(text));
        let mut connections = self.connections;
        if connections.is_empty() {
            connections = if self.quick { vec![256] } else { vec![1, 16, 64, 256] };
        }
        connections.sort_unstable();
        connections.dedup();
        // A second without a warm-up tells nothing of the log: a quick run looks at it only if asked.
        let by_default = |name: RowName| !(self.quick && name == RowName::Log);
        let asked = |name: &RowName| match self.rows.is_empty() {
            true => by_default(*name),
            false => self.rows.contains(name),
        };
        Ok(Settings {
            variables: variables.collect::<Outcome<_>>()?,
            rows: RowName::value_variants().iter().copied().filter(asked).collect(),
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 3 }),
            seconds: self.seconds.unwrap_or(if self.quick { 2 } else { 5 }),
            output: std::path::absolute(self.output.unwrap_or_else(default_output))?,
            sizes: Sizes::new(self.quick),
            quick: self.quick,
            connections,
        })
    }
}

impl Settings {
    /// The number of connections that the targets are looked at with.
    pub fn most_connections(&self) -> u32 {
        self.connections.last().copied().unwrap_or(1)
    }

    /// How long a measurement over so many connections takes.
    pub fn seconds_with(&self, connections: u32) -> u32 {
        let most = if connections == self.most_connections() {
            u32::MAX
        } else {
            LESS_SECONDS
        };
        self.seconds.min(most)
    }

    /// How long a measurement of a row takes that needs no more than a rough figure in a quick run.
    pub fn short_seconds(&self) -> u32 {
        if self.quick { 1 } else { self.seconds }
    }

    /// Whether a row is to be measured.
    pub fn wants(&self, row: RowName) -> bool {
        self.rows.contains(&row)
    }
}

impl Sizes {
    fn new(quick: bool) -> Self {
        Self {
            users: 100_000,
            past_users: if quick { 1_000 } else { 10_000 },
            past_operations: 400,
            lengths: vec![1_000, 10_000, 100_000, 1_000_000],
        }
    }

    /// The longest history of one user.
    pub fn longest(&self) -> u32 {
        self.lengths.last().copied().unwrap_or(0)
    }
}

fn variable(text: &str) -> Outcome<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("--set: {text:?} is not NAME=VALUE").into()),
    }
}

fn default_output() -> PathBuf {
    // Cargo's directory for the files of tests lies in its target directory.
    let tests = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tests.parent().unwrap_or(tests).join("throughput")
}
