//! The rule of the ledger: no moment is ever negative, and none leaves the range of a signed 64-bit integer.
//!
//! A user's timeline is cut into **segments** by **checkpoints**, about one every [`SegmentLength`] operations. A
//! checkpoint stands at a moment and covers everything after the checkpoint before it, up to and including its own
//! moment; what comes after the last checkpoint is the open segment. Since checkpoints stand at moments and never
//! between two operations of one moment, each `balance`, `lowest` and `highest` is the balance of a real moment and
//! therefore in range.
//!
//! Whoever loads a [`Timeline`] hands over the segments that an operation needs, not the history:
//!
//! - an operation at or after the latest one: none; or the open segment, if it is long enough to be closed;
//! - an earlier one: the segment it falls into, then the first later closed segment in which the change would
//!   [breach](Breach) the range, if there is one, then the open segment. All others are known to admit the change.

use super::{Operation, Timestamp};

/// About how many operations lie between two checkpoints: reads and backdated operations look at one or two segments,
/// an operation in order writes a checkpoint once in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLength(u32);

impl SegmentLength {
    /// The length measured to balance the cost of a past read against the number of checkpoints to shift.
    pub const DEFAULT: SegmentLength = SegmentLength(128);

    /// `operations` per segment, or `None` for 0.
    pub fn new(operations: u32) -> Option<Self> {
        (operations > 0).then_some(Self(operations))
    }

    /// The number of operations.
    pub fn operations(self) -> u32 {
        self.0
    }
}

/// What is known of a user without looking at the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// How many operations were accepted; 0 for a user nobody has heard of.
    pub version: i64,
    /// The balance after the last operation of the timeline.
    pub balance: i64,
    /// The timestamp of the last operation of the timeline.
    pub latest: Option<Timestamp>,
    /// How many operations lie after the last checkpoint.
    pub since_checkpoint: u32,
}

/// All operations of one timestamp, summed: inside a moment only the sum counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Their timestamp.
    pub timestamp: Timestamp,
    /// The sum of their changes; it is the difference of two balances and so fits.
    pub change: i64,
    /// How many they are, at least 1.
    pub operations: u32,
}

/// A stretch of a timeline between two checkpoints, or after the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The balance before its first moment.
    pub opening: i64,
    /// Its moments, in order.
    pub moments: Vec<Moment>,
    /// Whether a checkpoint stands at its last moment; `false` for the open segment.
    pub closed: bool,
}

/// The summary of a closed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last moment of the segment.
    pub timestamp: Timestamp,
    /// The balance at that moment.
    pub balance: i64,
    /// The lowest balance of the segment's moments.
    pub lowest: i64,
    /// The highest balance of the segment's moments.
    pub highest: i64,
}

/// Which extremes of a closed segment a change would carry out of range. At most one of the two can be met by a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breach {
    /// A `lowest` of this or less would become negative.
    pub lowest_at_most: i64,
    /// A `highest` above this would exceed the signed 64-bit range.
    pub highest_above: i64,
}

impl Breach {
    /// The extremes that `balance_change` would carry out of range.
    pub fn of(balance_change: i64) -> Self {
        Self {
            // lowest + change < 0 is lowest <= -change - 1, and -change - 1 is !change, which cannot overflow.
            lowest_at_most: !balance_change,
            highest_above: i64::MAX - balance_change.max(0),
        }
    }
}

/// Why an operation is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A moment would be negative.
    InsufficientFunds {
        /// The first such moment.
        at: Timestamp,
        /// How much is missing at that moment, 1 to 2^63.
        shortfall: u64,
    },
    /// A moment would exceed the range of a signed 64-bit integer.
    BalanceLimit {
        /// The first such moment.
        at: Timestamp,
    },
}

/// What an accepted operation changes: the operation's own place, and all that has to be written with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The operation's number in the order of acceptance: the user's version with it.
    pub seq: i64,
    /// The balance at the operation's timestamp, with it.
    pub balance_after: i64,
    /// The user's head, with it.
    pub head: Head,
    /// Checkpoints that are new or get new values.
    pub checkpoints: Vec<Checkpoint>,
    /// All checkpoints later than this move by the change, in all three values. `None`: there are none.
    pub shift_after: Option<Timestamp>,
}

/// As much of a user's timeline as is needed to judge one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    head: Head,
    segments: Vec<Segment>,
    segment_length: SegmentLength,
}

/// A moment with the balance at it.
#[derive(Clone, Copy)]
struct BalanceAt {
    timestamp: Timestamp,
    balance: i64,
    operations: u32,
}

impl Segment {
    fn balances(&self) -> impl Iterator<Item = BalanceAt> + '_ {
        self.moments.iter().scan(self.opening, |balance, moment| {
            *balance += moment.change;
            Some(BalanceAt {
                timestamp: moment.timestamp,
                balance: *balance,
                operations: moment.operations,
            })
        })
    }

    fn balance_at(&self, timestamp: Timestamp) -> i64 {
        self.balances()
            .take_while(|moment| moment.timestamp <= timestamp)
            .last()
            .map_or(self.opening, |moment| moment.balance)
    }

    /// The segment's moments as they are once `operation` is among them.
    fn balances_with(&self, operation: &Operation) -> Vec<BalanceAt> {
        let mut with = self.clone();
        let place = with
            .moments
            .binary_search_by_key(&operation.timestamp, |moment| moment.timestamp);
        match place {
            Ok(index) => {
                let moment = &mut with.moments[index];
                moment.change += operation.balance_change;
                moment.operations += 1;
            }
            Err(index) => with.moments.insert(
                index,
                Moment {
                    timestamp: operation.timestamp,
                    change: operation.balance_change,
                    operations: 1,
                },
            ),
        }
        with.balances().collect()
    }
}

impl Timeline {
    /// The timeline as it stands at `head.version`, with the segments that the module's documentation asks for.
    pub fn new(head: Head, segments: Vec<Segment>, segment_length: SegmentLength) -> Self {
        Self {
            head,
            segments,
            segment_length,
        }
    }

    /// The version this timeline was read at.
    pub fn version(&self) -> i64 {
        self.head.version
    }

    /// Judges `operation` by the rule of the ledger.
    ///
    /// # Errors
    ///
    /// [`Refusal`] names the first moment that would leave the range.
    ///
    /// # Panics
    ///
    /// If the operation is earlier than the latest one and the segment it falls into was not handed over.
    pub fn accept(&self, operation: &Operation) -> Result<Acceptance, Refusal> {
        let own = operation.timestamp;
        let change = operation.balance_change;
        let in_order = self.head.latest.is_none_or(|latest| latest <= own);
        let before = if in_order {
            self.head.balance
        } else {
            self.segments
                .first()
                .expect("the segment of a backdated operation is loaded with its timeline")
                .balance_at(own)
        };
        let balance_after = admit(own, before, change)?;
        let later = self.segments.iter().flat_map(Segment::balances);
        for moment in later.filter(|moment| moment.timestamp > own) {
            admit(moment.timestamp, moment.balance, change)?;
        }
        Ok(self.apply(operation, balance_after))
    }

    /// What is to be written for an operation that every moment admits.
    fn apply(&self, operation: &Operation, balance_after: i64) -> Acceptance {
        let seq = self.head.version + 1;
        let mut head = Head {
            version: seq,
            // In range: this is the balance at the last moment, which admitted the change.
            balance: self.head.balance + operation.balance_change,
            latest: self.head.latest.max(Some(operation.timestamp)),
            since_checkpoint: self.head.since_checkpoint + 1,
        };
        let mut checkpoints = Vec::new();
        let mut shift_after = None;
        if let Some(segment) = self.segments.first() {
            let moments = segment.balances_with(operation);
            let rest;
            (checkpoints, rest) = divide(&moments, segment.closed, self.segment_length);
            if segment.closed {
                head.since_checkpoint = self.head.since_checkpoint;
                shift_after = moments.last().map(|moment| moment.timestamp);
            } else {
                head.since_checkpoint = rest;
            }
        }
        Acceptance {
            seq,
            balance_after,
            head,
            checkpoints,
            shift_after,
        }
    }
}

/// The balance with the change, or why a moment cannot take it.
fn admit(at: Timestamp, balance: i64, change: i64) -> Result<i64, Refusal> {
    match balance.checked_add(change) {
        Some(with) if with >= 0 => Ok(with),
        Some(below) => Err(Refusal::InsufficientFunds {
            at,
            shortfall: below.unsigned_abs(),
        }),
        // No balance is negative, so only a deposit can overflow.
        None => Err(Refusal::BalanceLimit { at }),
    }
}

/// Cuts a segment's moments into pieces of the wanted length: the checkpoints that close them, and how many operations
/// are left after the last one.
///
/// A closed segment keeps its last checkpoint and is cut only where both sides get the wanted length. Of an open one the
/// last moment is never cut off: it may still grow without being backdated.
fn divide(moments: &[BalanceAt], closed: bool, length: SegmentLength) -> (Vec<Checkpoint>, u32) {
    let mut checkpoints = Vec::new();
    let mut remaining: u32 = moments.iter().map(|moment| moment.operations).sum();
    let mut piece: Option<(Checkpoint, u32)> = None;
    for (index, moment) in moments.iter().enumerate() {
        let (lowest, highest, operations) = match piece {
            Some((so_far, operations)) => (
                so_far.lowest.min(moment.balance),
                so_far.highest.max(moment.balance),
                operations + moment.operations,
            ),
            None => (moment.balance, moment.balance, moment.operations),
        };
        let so_far = Checkpoint {
            timestamp: moment.timestamp,
            balance: moment.balance,
            lowest,
            highest,
        };
        remaining -= moment.operations;
        let is_last = index + 1 == moments.len();
        let cut = if is_last {
            closed
        } else {
            operations >= length.operations() && (!closed || remaining >= length.operations())
        };
        piece = if cut {
            checkpoints.push(so_far);
            None
        } else {
            Some((so_far, operations))
        };
    }
    (checkpoints, piece.map_or(0, |(_, operations)| operations))
}

#[cfg(test)]
mod tests;
