//! What `balance dev` starts beside the service, so that there is nothing to set up: a private PostgreSQL, a stand-in for
//! the Approver and, on request, users who do something. The integration tests use the first two.
//!
//! None is for production: the one trusts whoever reaches its socket, the other decides by a number.
//! Nothing of theirs outlives the process, `kill -9` of it included.

mod approver;
mod demo;
mod postgres;

pub use approver::StandInApprover;
pub use demo::{Demo, DemoEvent, DemoProgress};
pub use postgres::{PostgresError, PostgresOptions, PrivatePostgres, StartStage, StopMode};
