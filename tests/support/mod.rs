//! What tests of the service share.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod approver;
pub mod certificates;
pub mod client;
#[cfg(feature = "otlp")]
pub mod collector;
pub mod disk;
pub mod generated;
pub mod janitor;
pub mod model;
pub mod pgbouncer;
pub mod postgres;
pub mod proxy;
pub mod raw;
pub mod replica;
pub mod secure_postgres;
pub mod standby;
pub mod tokens;
pub mod usage;
pub mod world;
