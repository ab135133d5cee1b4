//! `balance` keeps users' balances on PostgreSQL: it changes a balance, and tells what a balance is as of any moment.
//!
//! # The way through the house
//!
//! A change comes in over a connection of [`server`], is read by [`http`], checked into the types of [`domain`], and goes to
//! [`service`], whose pages are the use cases: ask the [`approver`] and look at the user at once, hand the change to the
//! [`ledger`], answer. The ledger
//! collects what arrives into batches: it reads the users of a batch from the [`store`], lets their timelines judge, commits
//! on the versions that were read, tries again those for whom another replica was faster, and answers when the lines are in
//! the [`operations_log`]. Reads go the same way. [`replica`] wires these parts together and takes them apart;
//! [`telemetry`] knows for which request something is done, and is the process's log and traces; [`metrics`] counts.
//! [`commands`] are the program's subcommands; [`dev`] is what `balance dev` brings along; [`tls`] is how connections are
//! encrypted, whoever opens them; [`small_file`] reads the files that settings name; `progress` shows how far a long wait
//! has come.
//!
//! # What is never so
//!
//! - Imports point up this list only, and a test reads them: `small_file`; `causes`, `domain`, `progress`, `tls`, `version`; `config`;
//!   `telemetry`; `metrics`, `retry`; `store`, `approver`, `operations_log`, `tokens`; `verify`; `ledger`; `service`; `http`; `server`;
//!   `dev`; `replica`; `commands`.
//! - The domain does no I/O and reads no clock.
//! - Nothing that correctness depends on is kept in a process: replicas meet only in PostgreSQL.
//! - No database connection is held while the Approver is waited for.
//! - No answer leaves before its line is with the operating system.

pub mod approver;
pub mod causes;
pub mod commands;
pub mod config;
pub mod dev;
pub mod domain;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod operations_log;
mod progress;
pub mod replica;
pub mod retry;
pub mod server;
pub mod service;
pub mod small_file;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod tokens;
pub mod verify;
pub mod version;

/// Most memory of an operation is taken by one thread and given back by another, at which mimalloc is better than glibc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
