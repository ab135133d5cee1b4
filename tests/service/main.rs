//! The contract, through HTTP, against the built program, a real PostgreSQL and an Approver that does as it is told.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod approval;
mod available;
mod bad_input;
mod batches;
mod clients;
mod conditions;
mod connections;
mod descriptors;
mod document;
mod doubt;
mod dry_run;
mod failover;
mod faults;
mod garbage;
mod hang_up;
mod history;
mod idempotency;
mod known;
mod load;
mod log;
mod metrics;
mod mixed;
mod overload;
mod poolers;
mod proofs;
mod race;
mod reads;
mod recovery;
mod rule;
mod slots;
mod statement;
mod telemetry;
mod tls;
mod tokens;
#[cfg(feature = "otlp")]
mod traces;

use support::model;
