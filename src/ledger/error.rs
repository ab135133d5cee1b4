//! Why an operation was not answered as asked. These know nothing of HTTP; `http` turns them into problems.

use crate::causes::causes;
use crate::domain::Refusal;
use crate::operations_log::LogUnavailable;
use crate::store::StoreError;

/// Nothing was changed, and the same may work later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// PostgreSQL cannot be reached or errs.
    Database,
    /// The Approver cannot be reached or errs.
    Approver,
    /// Other writers were faster until the deadline.
    TooManyConflicts,
    /// The operations log cannot be written.
    OperationsLog,
    /// A limit of this replica is reached.
    Overloaded,
    /// A defect of the service.
    Internal,
}

/// Why a change was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// The Approver denied it.
    ApproverDenied,
    /// The rule of the ledger forbids it.
    Refused(Refusal),
    /// The idempotency key was used for another operation of the user.
    IdempotencyKeyReused,
    /// The user is not at a version that it was asked for at.
    PreconditionFailed {
        /// The user's version.
        version: i64,
    },
    /// Nothing was changed, and the same may work later.
    Unavailable(Unavailable),
    /// It may have been applied, or may still be.
    OutcomeUnknown,
}

impl Unavailable {
    /// The code under which it is logged and answered.
    pub fn code(self) -> &'static str {
        match self {
            Unavailable::Database => "database_unavailable",
            Unavailable::Approver => "approver_unavailable",
            Unavailable::TooManyConflicts => "too_many_conflicts",
            Unavailable::OperationsLog => "operations_log_unavailable",
            Unavailable::Overloaded => "overloaded",
            Unavailable::Internal => "internal_error",
        }
    }
}

impl ChangeError {
    /// The code under which it is logged and answered.
    pub fn code(self) -> &'static str {
        match self {
            ChangeError::ApproverDenied => "approver_denied",
            ChangeError::Refused(Refusal::InsufficientFunds { .. }) => "insufficient_funds",
            ChangeError::Refused(Refusal::BalanceLimit { .. }) => "balance_limit",
            ChangeError::IdempotencyKeyReused => "idempotency_key_reused",
            ChangeError::PreconditionFailed { .. } => "precondition_failed",
            ChangeError::Unavailable(unavailable) => unavailable.code(),
            ChangeError::OutcomeUnknown => "outcome_unknown",
        }
    }
}

impl From<Unavailable> for ChangeError {
    fn from(unavailable: Unavailable) -> Self {
        ChangeError::Unavailable(unavailable)
    }
}

impl From<StoreError> for Unavailable {
    fn from(error: StoreError) -> Self {
        match &error {
            // The store has logged it, once.
            StoreError::NoConnection(_) => tracing::debug!("PostgreSQL failed: {}", causes(&error)),
            _ => tracing::warn!("PostgreSQL failed: {}", causes(&error)),
        }
        match error {
            StoreError::NoConnection(_) | StoreError::Refused(_) | StoreError::Failed(_) | StoreError::TimedOut => {
                Unavailable::Database
            }
            StoreError::Busy => Unavailable::Overloaded,
        }
    }
}

impl From<LogUnavailable> for Unavailable {
    fn from(error: LogUnavailable) -> Self {
        match error {
            LogUnavailable::QueueFull => Unavailable::Overloaded,
            LogUnavailable::Failing | LogUnavailable::Closed => Unavailable::OperationsLog,
        }
    }
}
