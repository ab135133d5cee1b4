//! What `balance dev` starts beside the service, so that there is nothing to set up: a private PostgreSQL and a stand-in
//! for the Approver. The integration tests use both.
//!
//! Neither is for production: the one trusts whoever reaches its socket, the other decides by a number.
//! Nothing of theirs outlives the process, `kill -9` of it included.

mod approver;
mod postgres;

pub use approver::StandInApprover;
pub use postgres::{PostgresError, PostgresOptions, PrivatePostgres, StopMode};
