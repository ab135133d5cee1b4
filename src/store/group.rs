//! What is asked of a user's timeline: the operations that are to be judged by one reading, and how far it may reach.

use crate::domain::{IdempotencyKey, Operation, Timestamp, UserId};

/// Operations of one user that are to be judged by one reading: at least one.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    pub(super) user_id: &'a UserId,
    pub(super) earliest: Timestamp,
    pub(super) newest: Timestamp,
    pub(super) operations: i32,
    pub(super) deep: &'a Operation,
    pub(super) idempotency_keys: Vec<&'a str>,
}

/// How many checkpoints may lie behind the segment of an operation for it to be read for, and how many segments may be read
/// for several operations together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Any number.
    Unlimited,
    /// So many. Of an operation with more behind it nothing is read, since that would take long.
    Checkpoints(u32),
}

impl<'a> Group<'a> {
    /// A group of one operation.
    pub fn of(operation: &'a Operation, key: Option<&'a IdempotencyKey>) -> Self {
        Self {
            user_id: &operation.user_id,
            earliest: operation.timestamp,
            newest: operation.timestamp,
            operations: 1,
            deep: operation,
            idempotency_keys: key.map(IdempotencyKey::as_str).into_iter().collect(),
        }
    }

    /// Adds an operation of the same user. Where operations lie too far back to be read for together, one reading covers a
    /// single one of those in closed segments: the earliest, unless [`deep_first`](Self::deep_first) names another.
    pub fn add(&mut self, operation: &'a Operation, key: Option<&'a IdempotencyKey>) {
        if operation.timestamp < self.earliest {
            self.earliest = operation.timestamp;
            self.deep = operation;
        }
        self.newest = self.newest.max(operation.timestamp);
        self.operations = self.operations.saturating_add(1);
        self.idempotency_keys.extend(key.map(IdempotencyKey::as_str));
    }

    /// Whether the head of the user is likely to be all that is needed.
    pub(super) fn is_likely_in_order(&self) -> bool {
        self.operations == 1 && self.idempotency_keys.is_empty()
    }

    /// Makes `operation`, one of the group, the one that is covered in a closed segment.
    pub fn deep_first(&mut self, operation: &'a Operation) {
        self.deep = operation;
    }
}
