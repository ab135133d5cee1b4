//! `balance` keeps users' balances on PostgreSQL: it changes a balance, and tells what a balance is as of any moment.
//!
//! # The way through the house
//!
//! A change comes in over [`http`], is checked into the types of [`domain`], and goes to [`service`], whose two pages are
//! the use cases: ask the [`approver`] and look at the user at once, hand the change to the [`ledger`], write the line of
//! the [`operations_log`], answer. The ledger reads the user from the [`store`], lets the timeline judge, commits on the
//! version that was read, and tries again when another replica was faster; changes of one user that meet there are
//! committed together. [`replica`] wires these parts together and takes them apart; [`commands`] are the program's
//! subcommands; [`dev`] is what `balance dev` brings along.
//!
//! # What is never so
//!
//! - Imports point up this list only, and a test reads them: `causes`, `domain`; `config`; `retry`; `store`, `approver`,
//!   `operations_log`; `metrics`; `ledger`; `service`; `http`; `dev`; `replica`; `commands`.
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
pub mod replica;
pub mod retry;
pub mod service;
pub mod store;

/// Most memory of an operation is taken by one thread and given back by another, at which mimalloc is better than glibc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
