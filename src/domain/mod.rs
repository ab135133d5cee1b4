//! The rule of the ledger, pure: no I/O, no async, no clock, nothing of HTTP or SQL.
//!
//! Values are checked where they are made, so that whoever holds a [`UserId`] or a [`Timestamp`] need not ask again.
//! [`Timeline::accept`] decides whether an [`Operation`] may join its user's timeline, and what that changes.

mod caller;
mod operation;
mod timeline;
mod timestamp;

pub use caller::{CallerName, InvalidCallerName};
pub use operation::{
    Context, IdempotencyKey, InvalidContext, InvalidIdempotencyKey, InvalidUserId, Operation, OperationId, UserId,
};
pub use timeline::{
    Breach, Changes, Checkpoint, Entry, Head, Moment, Refusal, Segment, SegmentLength, Shift, Timeline,
};
pub use timestamp::{InvalidTimestamp, Timestamp};
