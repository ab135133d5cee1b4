//! The store against real PostgreSQL: answers as of any moment, the conditional commit, and what the database itself
//! holds to.

#[path = "../support/mod.rs"]
mod support;

mod commits;
mod known;
mod ledger;
mod recovery;
mod roles;
mod schema;
