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
//! - operations at or after the latest one: none; or the open segment, if they take it beyond twice the length;
//! - operations in the open segment: of that one what is later than the earliest of them; or all of it, if they take it
//!   beyond twice the length;
//! - operations in closed segments not far from the end: all segments from the first of these on;
//! - one operation in a closed segment anywhere: that one, then the first later closed segment in which the change would
//!   [breach](Breach) the range, if there is one, then the open segment. All others are known to admit the change; should it
//!   be refused, their [lowest balance](Timeline::with_lowest_closed) tells how much could have been withdrawn.

use std::collections::BTreeSet;

use super::{Operation, Timestamp};

/// About how many operations lie between two checkpoints: reads and backdated operations look at one or two segments,
/// an operation in order writes a checkpoint once in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLength(u32);

impl SegmentLength {
    /// The length measured to balance the cost of a past read against the number of checkpoints to shift.
    pub const DEFAULT: SegmentLength = SegmentLength(64);

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
        /// The largest withdrawal that would have been accepted at the operation's timestamp: the lowest balance from then
        /// on, 0 or more.
        available: i64,
    },
    /// A moment would exceed the range of a signed 64-bit integer.
    BalanceLimit {
        /// The first such moment.
        at: Timestamp,
    },
}

/// An accepted operation's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the order of acceptance: the user's version with it.
    pub seq: i64,
    /// The balance at its timestamp, with it.
    pub balance_after: i64,
}

/// What has to be written, beside the operations themselves, once a timeline has accepted them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The user's head, with them.
    pub head: Head,
    /// Checkpoints that are new, or whose segments took in an operation.
    pub checkpoints: Vec<Checkpoint>,
    /// Checkpoints whose segments have the operations that they had, and that get new values.
    pub moved: Vec<Checkpoint>,
    /// What moves all later checkpoints.
    pub shift: Option<Shift>,
}

/// A change in front of checkpoints that were not loaded one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// All checkpoints later than this move, in all three values.
    pub after: Timestamp,
    /// By so much.
    pub by: i64,
}

/// As much of a user's timeline as is needed to judge some operations, and what was accepted since it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    head: Head,
    /// In order; the last one is open.
    segments: Vec<Segment>,
    /// Whether all of the open segment is there, and not only what came after it was read.
    open_is_loaded: bool,
    /// Whether no segment is missing between the first one and the end.
    is_contiguous: bool,
    /// The closed segments of a contiguous timeline that took in an operation: from the first of them on, all checkpoints
    /// get new values.
    took_in: BTreeSet<usize>,
    shift: Option<Shift>,
    /// The lowest balance of all closed segments after the first one, as it was read, where some of them are not loaded.
    lowest_closed: Option<i64>,
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

    fn add(&mut self, operation: &Operation) {
        let place = self
            .moments
            .binary_search_by_key(&operation.timestamp, |moment| moment.timestamp);
        match place {
            Ok(index) => {
                let moment = &mut self.moments[index];
                moment.change += operation.balance_change;
                moment.operations += 1;
            }
            Err(index) => {
                let moment = Moment {
                    timestamp: operation.timestamp,
                    change: operation.balance_change,
                    operations: 1,
                };
                self.moments.insert(index, moment);
            }
        }
    }

    fn ends_at_or_after(&self, timestamp: Timestamp) -> bool {
        !self.closed || self.moments.last().is_some_and(|moment| timestamp <= moment.timestamp)
    }
}

impl Timeline {
    /// The timeline as it stands at `head.version`, with the segments that the module's documentation asks for.
    pub fn new(head: Head, mut segments: Vec<Segment>, segment_length: SegmentLength) -> Self {
        let open_is_loaded = segments.last().is_some_and(|segment| !segment.closed);
        if !open_is_loaded {
            segments.push(Segment {
                opening: head.balance,
                moments: Vec::new(),
                closed: false,
            });
        }
        Self {
            head,
            segments,
            open_is_loaded,
            is_contiguous: false,
            took_in: BTreeSet::new(),
            shift: None,
            lowest_closed: None,
            segment_length,
        }
    }

    /// With the lowest balance of all closed segments after the first one: some of them are not loaded.
    pub fn with_lowest_closed(self, lowest_closed: Option<i64>) -> Self {
        Self { lowest_closed, ..self }
    }

    /// The timeline as it stands at `head.version`, with all segments from some closed one on, the open one included: any
    /// number of operations can be judged that are not earlier than the first segment.
    pub fn contiguous(head: Head, segments: Vec<Segment>, segment_length: SegmentLength) -> Self {
        Self {
            is_contiguous: true,
            ..Self::new(head, segments, segment_length)
        }
    }

    /// The timeline as it stands at `head.version`, with so much of the open segment, as the only one, as is later than the
    /// earliest operation that will be judged. The open segment is not divided.
    pub fn tail(head: Head, segments: Vec<Segment>, segment_length: SegmentLength) -> Self {
        Self {
            open_is_loaded: false,
            ..Self::new(head, segments, segment_length)
        }
    }

    /// How many operations the user has, with those accepted here.
    pub fn version(&self) -> i64 {
        self.head.version
    }

    /// Judges `operation` by the rule of the ledger, and if it is accepted, takes it in: the next one is judged with it.
    ///
    /// # Errors
    ///
    /// [`Refusal`] names the first moment that would leave the range; the timeline is as it was.
    ///
    /// # Panics
    ///
    /// If a second operation falls into a closed segment of a timeline that is not [contiguous](Self::contiguous): what it
    /// would breach was not loaded.
    pub fn accept(&mut self, operation: &Operation) -> Result<Entry, Refusal> {
        let own = operation.timestamp;
        let change = operation.balance_change;
        let index = self.segments.partition_point(|segment| !segment.ends_at_or_after(own));
        let all_later_are_loaded = self.is_contiguous || !self.segments[index].closed;
        let balance_after = if all_later_are_loaded {
            self.admit_backwards(own, change)?
        } else {
            self.admit_forwards(index, own, change)?
        };

        let segment = &mut self.segments[index];
        segment.add(operation);
        if !segment.closed {
            self.head.since_checkpoint += 1;
        } else if self.is_contiguous {
            self.took_in.insert(index);
        } else {
            assert!(
                self.shift.is_none(),
                "a timeline is loaded for one operation in a closed segment"
            );
            let last = segment.moments.last();
            self.shift = last.map(|last| Shift {
                after: last.timestamp,
                by: change,
            });
        }
        for later in &mut self.segments[index + 1..] {
            // In range: the moment before the segment's first admitted the change.
            later.opening += change;
        }
        self.head.version += 1;
        // In range: this is the balance at the last moment, which admitted the change.
        self.head.balance += change;
        self.head.latest = self.head.latest.max(Some(own));
        Ok(Entry {
            seq: self.head.version,
            balance_after,
        })
    }

    /// Judges a change at a moment in the segment at `index`, where not all later ones are loaded.
    fn admit_forwards(&self, index: usize, own: Timestamp, change: i64) -> Result<i64, Refusal> {
        let balance = self.segments[index].balance_at(own);
        let later = || {
            let segments = self.segments[index..].iter();
            segments
                .flat_map(Segment::balances)
                .filter(|moment| moment.timestamp > own)
        };
        let own_moment = [(own, balance)].into_iter();
        let mut moments = own_moment.chain(later().map(|moment| (moment.timestamp, moment.balance)));
        let out_of_range = moments.find_map(|(at, balance)| Some((at, admit(balance, change).err()?)));
        match out_of_range {
            None => Ok(balance + change),
            Some((at, out_of_range)) => {
                let lowest = later().map(|moment| moment.balance).chain(self.lowest_closed).min();
                Err(out_of_range.refuse(at, lowest.map_or(balance, |lowest| lowest.min(balance))))
            }
        }
    }

    /// Judges a change from the end of the timeline on, where most changes belong, back to its moment.
    fn admit_backwards(&self, own: Timestamp, change: i64) -> Result<i64, Refusal> {
        let moments = self
            .segments
            .iter()
            .rev()
            .flat_map(|segment| segment.moments.iter().rev());
        let mut balance = self.head.balance;
        let mut lowest = balance;
        let mut out_of_range = None;
        for moment in moments.take_while(|moment| moment.timestamp > own) {
            // The first moment that refuses is the last one that is come to.
            let refuses = admit(balance, change).err();
            out_of_range = refuses.map(|refuses| (moment.timestamp, refuses)).or(out_of_range);
            balance -= moment.change;
            lowest = lowest.min(balance);
        }
        match (admit(balance, change), out_of_range) {
            (Err(out_of_range), _) => Err(out_of_range.refuse(own, lowest)),
            (Ok(_), Some((at, out_of_range))) => Err(out_of_range.refuse(at, lowest)),
            (Ok(balance_after), None) => Ok(balance_after),
        }
    }

    /// What has to be written for the operations that were accepted.
    pub fn into_changes(self) -> Changes {
        let mut head = self.head;
        let mut checkpoints = Vec::new();
        let mut moved = Vec::new();
        let last = self.segments.len() - 1;
        let changed_from = self.took_in.first();
        for (index, segment) in self.segments.iter().enumerate() {
            // The open one is divided when it is due. Of closed ones that are not contiguous, only the first has taken in
            // an operation.
            let due = match (segment.closed, self.is_contiguous) {
                (false, _) => self.open_is_loaded,
                (true, true) => changed_from.is_some_and(|from| *from <= index),
                (true, false) => index == 0 && self.shift.is_some(),
            };
            if due {
                let moments: Vec<_> = segment.balances().collect();
                let (divided, rest) = divide(&moments, segment.closed, self.segment_length);
                let only_moves = segment.closed && self.is_contiguous && !self.took_in.contains(&index);
                if only_moves { &mut moved } else { &mut checkpoints }.extend(divided);
                if index == last {
                    head.since_checkpoint = rest;
                }
            }
        }
        Changes {
            head,
            checkpoints,
            moved,
            shift: self.shift,
        }
    }
}

/// Why a moment cannot take a change.
#[derive(Clone, Copy)]
enum OutOfRange {
    /// Its balance would be negative by so much.
    Below(u64),
    /// It would exceed the signed 64-bit range.
    Above,
}

impl OutOfRange {
    /// `at` is the first such moment, `lowest` the lowest balance from the operation's own moment on.
    fn refuse(self, at: Timestamp, lowest: i64) -> Refusal {
        match self {
            OutOfRange::Below(shortfall) => Refusal::InsufficientFunds {
                at,
                shortfall,
                available: lowest,
            },
            OutOfRange::Above => Refusal::BalanceLimit { at },
        }
    }
}

/// The balance with the change.
fn admit(balance: i64, change: i64) -> Result<i64, OutOfRange> {
    match balance.checked_add(change) {
        Some(with) if with >= 0 => Ok(with),
        Some(below) => Err(OutOfRange::Below(below.unsigned_abs())),
        // No balance is negative, so only a deposit can overflow.
        None => Err(OutOfRange::Above),
    }
}

/// Cuts a segment's moments into pieces of the wanted length: the checkpoints that close them, and how many operations
/// are left after the last one.
///
/// Cuts are made only where both sides get the wanted length. A closed segment keeps its last checkpoint. Of an open one
/// the newest operations stay open, so that those a little late still find it so.
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
            operations >= length.operations() && remaining >= length.operations()
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
