//! What can go wrong with PostgreSQL, sorted by what the caller can do about it.

use diesel::result::Error as DieselError;

use super::ConnectionFailure;
use crate::metrics::ErrorType;

/// Nothing was changed; the same may work later.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no connection that can be used.
    #[error("{0}")]
    NoConnection(ConnectionFailure),
    /// PostgreSQL refused the statement. It may be due to a single one of the operations that shared it.
    #[error("PostgreSQL refused the statement")]
    Refused(#[source] DieselError),
    /// The connection broke, or another session was in the way.
    #[error("PostgreSQL failed the statement")]
    Failed(#[source] DieselError),
    /// PostgreSQL did not answer before the deadline.
    #[error("PostgreSQL did not answer in time")]
    TimedOut,
    /// All connections were in use until the deadline.
    #[error("no connection to PostgreSQL became free in time")]
    Busy,
}

impl StoreError {
    /// Whether only time ran out, so that the same may work with more of it.
    pub fn is_out_of_time(&self) -> bool {
        match self {
            StoreError::TimedOut | StoreError::Busy => true,
            StoreError::NoConnection(_) | StoreError::Refused(_) | StoreError::Failed(_) => false,
        }
    }

    /// Whether to try the operations one by one.
    pub fn is_refusal(&self) -> bool {
        matches!(self, StoreError::Refused(_))
    }
}

impl ErrorType for StoreError {
    fn error_type(&self) -> &'static str {
        match self {
            StoreError::NoConnection(failure) => failure.error_type(),
            StoreError::Refused(_) => "refused",
            StoreError::Failed(_) => "failed",
            StoreError::TimedOut => "timeout",
            StoreError::Busy => "busy",
        }
    }
}

/// Why a commit gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was stored.
    #[error("nothing was stored")]
    NotStored(#[source] StoreError),
    /// The statement was sent and its result did not arrive: it may have been stored, or may still be.
    #[error("the result of the commit is unknown")]
    InDoubt(#[source] StoreError),
}

impl ErrorType for CommitError {
    fn error_type(&self) -> &'static str {
        match self {
            CommitError::NotStored(error) => error.error_type(),
            CommitError::InDoubt(_) => "in_doubt",
        }
    }
}
