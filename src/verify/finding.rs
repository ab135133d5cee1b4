//! What can be wrong, in words of one line.

use std::fmt;
use std::path::PathBuf;

use uuid::Uuid;

use crate::domain::Timestamp;
use crate::store::StoredMoment;

/// Something that is not as the contract says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose, where that is known.
    pub user_id: Option<String>,
    /// The moment on the user's timeline.
    pub at: Option<StoredMoment>,
    /// The line of an operations log.
    pub line: Option<LinePlace>,
    /// What is wrong.
    pub violation: Violation,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinePlace {
    /// As it was given.
    pub file: PathBuf,
    /// Counted from 1.
    pub number: u64,
}

/// What is wrong, with what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The numbers of the order of acceptance.
    #[error("the order of acceptance has a gap or a repetition: expected seq {expected}, found {found}")]
    #[allow(missing_docs, reason = "the message names them")]
    Seq { expected: i64, found: i64 },
    /// A moment below 0.
    #[error("this moment is negative once seq {seq} is accepted: expected at least 0, found {balance}")]
    #[allow(missing_docs, reason = "the message names them")]
    Negative { seq: i64, balance: i128 },
    /// A moment above the range of a signed 64-bit integer.
    #[error(
        "this moment leaves the range once seq {seq} is accepted: expected at most {}, found {balance}",
        i64::MAX
    )]
    #[allow(missing_docs, reason = "the message names them")]
    AboveLimit { seq: i64, balance: i128 },
    /// `balance_after` of an operation.
    #[error("balance_after of seq {seq}: expected {expected}, found {found}")]
    #[allow(missing_docs, reason = "the message names them")]
    BalanceAfter { seq: i64, expected: i128, found: i64 },
    /// A timestamp that no answer could hold.
    #[error("the timestamp of seq {seq}: expected within the years 1 to 9999, found another")]
    #[allow(missing_docs, reason = "the message names them")]
    Year { seq: i64 },
    /// A big change without approval.
    #[error("the approval of seq {seq}: expected for a change of {change}, above {threshold}, found none")]
    #[allow(missing_docs, reason = "the message names them")]
    Unapproved { seq: i64, change: i64, threshold: u64 },
    /// A column of `balance`.
    #[error("{column} of the row of balance: expected {expected}, found {found}")]
    #[allow(missing_docs, reason = "the message names them")]
    Head {
        column: &'static str,
        expected: i128,
        found: i64,
    },
    /// `latest` of `balance`.
    #[error("latest of the row of balance: expected {}, found {}", Moment(*.expected), Moment(*.found))]
    #[allow(missing_docs, reason = "the message names them")]
    Latest {
        expected: StoredMoment,
        found: StoredMoment,
    },
    /// A history without a row of `balance`.
    #[error("the row of balance: expected for a history of {operations} operations, found none")]
    #[allow(missing_docs, reason = "the message names them")]
    NoHead { operations: i64 },
    /// A row of `balance` without a history.
    #[error("the history: expected {version} operations by the row of balance, found none")]
    #[allow(missing_docs, reason = "the message names them")]
    NoHistory { version: i64 },
    /// A column of a checkpoint.
    #[error("{column} of the checkpoint: expected {expected}, found {found}")]
    #[allow(missing_docs, reason = "the message names them")]
    Checkpoint {
        column: &'static str,
        expected: i128,
        found: i64,
    },
    /// `recorded_at` of `balance`.
    #[error("recorded_at of the row of balance: expected {}, found {}", Moment(*.expected), Moment(*.found))]
    #[allow(missing_docs, reason = "the message names them")]
    HeadRecorded {
        expected: StoredMoment,
        found: StoredMoment,
    },
    /// A moment of recording that is earlier than that of an operation accepted before.
    #[error("recorded_at of seq {seq}: expected at least {}, found {}", Moment(*.expected), Moment(*.found))]
    #[allow(missing_docs, reason = "the message names them")]
    Recorded {
        seq: i64,
        expected: StoredMoment,
        found: StoredMoment,
    },
    /// A bound of moments of recording that a checkpoint keeps.
    #[error(
        "{column} of the checkpoint: expected {bound} {}, found {}",
        Moment(*.expected),
        Moment(*.found)
    )]
    #[allow(missing_docs, reason = "the message names them")]
    CheckpointRecorded {
        column: &'static str,
        bound: &'static str,
        expected: StoredMoment,
        found: StoredMoment,
    },
    /// A checkpoint where nothing happened.
    #[error("the checkpoint: expected at the moment of an operation, found where there is none")]
    StrayCheckpoint,
    /// Two operations of one id.
    #[error("the id of seq {seq}: expected one of its own, found {id}, which another operation has too")]
    #[allow(missing_docs, reason = "the message names them")]
    DoubledId { seq: i64, id: Uuid },
    /// Two operations of a user with one idempotency key.
    #[error(
        "the idempotency key of seq {seq}: expected one of its own, found {key:?}, which another operation has too"
    )]
    #[allow(missing_docs, reason = "the message names them")]
    DoubledKey { seq: i64, key: String },
    /// A line that is wrong by itself.
    #[error("the line: expected {expected}, found {found}")]
    #[allow(missing_docs, reason = "the message names them")]
    Line { expected: &'static str, found: String },
    /// A line that tells of an operation that is not stored.
    #[error("operation {id}: expected in the history, since the line says that it was accepted, found nowhere")]
    #[allow(missing_docs, reason = "the message names them")]
    Forged { id: Uuid },
    /// An operation without a line.
    #[error("the line of seq {seq}, operation {id}: expected one in the logs of its instance, found none")]
    #[allow(missing_docs, reason = "the message names them")]
    NoLine { seq: i64, id: Uuid },
    /// An operation with more than one line of its own.
    #[error("the line of operation {id}: expected once, found again")]
    #[allow(missing_docs, reason = "the message names them")]
    SecondLine { id: Uuid },
    /// A field that is not as it is stored.
    #[error("{field} of the line: expected {expected} as it is stored, found {found}")]
    #[allow(missing_docs, reason = "the message names them")]
    Differs {
        field: &'static str,
        expected: String,
        found: String,
    },
}

impl Violation {
    /// Whether an operation was answered as accepted and is not stored, as after the promotion of a standby that lagged.
    /// Every such operation is told: somebody has to make it good.
    pub(super) fn is_lost_operation(&self) -> bool {
        matches!(self, Self::Forged { .. })
    }
}

/// A stored moment for people to read.
pub(super) fn shown(moment: StoredMoment) -> String {
    Moment(moment).to_string()
}

/// A stored moment for people to read.
struct Moment(StoredMoment);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoredMoment(micros) = self.0;
        match Timestamp::from_unix_microseconds(micros) {
            Some(timestamp) => timestamp.fmt(f),
            None => write!(f, "{micros} µs since 1970"),
        }
    }
}

/// `user "alice" at 2026-01-31T12:00:00Z: …`, or `operations.log:17: …`, or both. What is not of this program is escaped.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        if let Some(line) = &self.line {
            write!(f, "{}:{}", line.file.display().to_string().escape_debug(), line.number)?;
            space = " ";
        }
        if let Some(user_id) = &self.user_id {
            write!(f, "{space}user {user_id:?}")?;
            space = " ";
        }
        if let Some(at) = self.at {
            write!(f, "{space}at {}", Moment(at))?;
        }
        write!(f, ": {}", self.violation)
    }
}
