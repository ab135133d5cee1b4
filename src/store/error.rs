//! What can go wrong with PostgreSQL, sorted by what the caller can do about it.

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::PoolError as ConnectionError;
use diesel_async::pooled_connection::deadpool::PoolError;
use tokio::time::Instant;

use super::connections::{is_none_left, tls_failure_of};
use crate::metrics::ErrorType;
use crate::retry::Pauses;
use crate::tls::TlsFailure;

/// Nothing was changed; the same may work later.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL cannot be reached.
    #[error("no connection to PostgreSQL")]
    Unreachable(#[source] ConnectionError),
    /// PostgreSQL is there, and the connection would not be as secure as `DATABASE_URL` asks for.
    #[error("no secure connection to PostgreSQL: {0}")]
    Insecure(TlsFailure),
    /// PostgreSQL takes no more connections: `max_connections` is reached, or the limit of the role or the database.
    #[error("PostgreSQL has no connection left for this service")]
    NoneLeft,
    /// PostgreSQL answered with an error, or the connection broke.
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
            StoreError::Unreachable(_) | StoreError::Insecure(_) | StoreError::NoneLeft | StoreError::Failed(_) => {
                false
            }
        }
    }
}

impl ErrorType for StoreError {
    fn error_type(&self) -> &'static str {
        match self {
            StoreError::Unreachable(_) => "unreachable",
            StoreError::Insecure(_) => "insecure",
            StoreError::NoneLeft => "none_left",
            StoreError::Failed(_) => "failed",
            StoreError::TimedOut => "timeout",
            StoreError::Busy => "busy",
        }
    }
}

impl ErrorType for CommitError {
    fn error_type(&self) -> &'static str {
        match self {
            CommitError::NotStored(error) => error.error_type(),
            CommitError::InDoubt(_) => "in_doubt",
        }
    }
}

/// How often a read is tried when PostgreSQL fails it: enough for connections that a restart of PostgreSQL has broken.
const READ_ATTEMPTS: u32 = 3;

/// Reads, again if PostgreSQL failed: reads change nothing.
///
/// # Errors
///
/// [`StoreError`] of the last attempt.
pub async fn repeat_read<T, Attempt: Future<Output = Result<T, StoreError>>>(
    deadline: Instant,
    attempt: impl Fn() -> Attempt,
) -> Result<T, StoreError> {
    let mut pauses = Pauses::between_calls();
    let mut attempts = 1;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let is_worth_repeating = !error.is_out_of_time() && attempts < READ_ATTEMPTS;
        if !is_worth_repeating || pauses.pause(deadline).await.is_err() {
            return Err(error);
        }
        attempts += 1;
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

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) if is_none_left(&error) => StoreError::NoneLeft,
            PoolError::Backend(error) => match tls_failure_of(&error) {
                Some(failure) => StoreError::Insecure(failure),
                None => StoreError::Unreachable(error),
            },
            PoolError::Timeout(deadpool::managed::TimeoutType::Create) => StoreError::TimedOut,
            PoolError::Timeout(_) => StoreError::Busy,
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => StoreError::Busy,
        }
    }
}

/// What an error of the commit statement means. It is one statement outside a transaction, so an error that PostgreSQL
/// reports for the statement itself rolls it back.
pub(super) enum CommitFailure {
    /// Another replica was faster: read again and retry.
    Conflict,
    /// Rolled back.
    NotStored,
    /// Unknown, since the connection broke or PostgreSQL's error does not say.
    InDoubt,
}

pub(super) fn classify(error: &DieselError) -> CommitFailure {
    match error {
        DieselError::DatabaseError(kind, information) => match kind {
            // The idempotency key or the place in the order of acceptance was taken meanwhile.
            DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::SerializationFailure => CommitFailure::Conflict,
            DatabaseErrorKind::ForeignKeyViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation
            | DatabaseErrorKind::RestrictViolation
            | DatabaseErrorKind::ExclusionViolation
            | DatabaseErrorKind::ReadOnlyTransaction => CommitFailure::NotStored,
            // diesel does not keep the SQLSTATE. A server that speaks another language leaves it in doubt, which costs
            // time and nothing else.
            DatabaseErrorKind::Unknown if information.message().starts_with("permission denied") => {
                CommitFailure::NotStored
            }
            // `Unknown` holds deadlocks and timeouts, but terminated backends too, whose last statement may have been
            // committed. The enum is open, so that what comes later is in doubt as well.
            _ => CommitFailure::InDoubt,
        },
        DieselError::SerializationError(_) | DieselError::QueryBuilderError(_) | DieselError::InvalidCString(_) => {
            CommitFailure::NotStored
        }
        _ => CommitFailure::InDoubt,
    }
}
