//! The replay of one user's history in the order of acceptance, fed in the order of the timeline.
//!
//! Whenever the operations seen so far are the first ones accepted, none that comes later on the timeline was there when
//! they were judged, and none of them changes when a later one comes: they can be replayed by themselves and forgotten but
//! for their sum. Where operations stand on the timeline as they were accepted, that is so after each of them; where they
//! are a little out of order, after a few. A stretch that is longer than the limit is not held but handed out as a
//! [`Region`], to be read again from the database, [block](Block) by block.

use super::block::{Block, Step, is_admitted, out_of_range};
use super::finding::Violation;
use crate::store::{StoredMoment, StoredPlace};

/// A stretch of a user's timeline that was too long to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// The balance before its first operation.
    pub(super) opening: i128,
    /// The number that its first operation in the order of acceptance must have.
    pub(super) first_seq: i64,
    /// The moment of recording that its first operation in the order of acceptance must not be before.
    pub(super) recorded_from: StoredMoment,
    /// Its first operation on the timeline.
    pub(super) from: StoredPlace,
    /// Its last operation on the timeline.
    pub(super) to: StoredPlace,
}

/// The numbers of operations in the order of acceptance, which must be whole, and their moments of recording, which must not
/// go down.
pub(super) struct Numbers {
    expected: i64,
    recorded_from: StoredMoment,
}

impl Numbers {
    pub(super) fn from(expected: i64, recorded_from: StoredMoment) -> Self {
        Self {
            expected,
            recorded_from,
        }
    }

    /// Tells of a gap or a repetition in front of an operation, and of a moment of recording before that of the last one.
    pub(super) fn next(&mut self, step: &Step, found: &mut impl FnMut(StoredMoment, Violation)) {
        let place = step.place;
        if step.recorded_at < self.recorded_from {
            let violation = Violation::Recorded {
                seq: place.seq,
                expected: self.recorded_from,
                found: step.recorded_at,
            };
            found(place.timestamp, violation);
        }
        self.recorded_from = step.recorded_at;
        if place.seq != self.expected {
            let violation = Violation::Seq {
                expected: self.expected,
                found: place.seq,
            };
            found(place.timestamp, violation);
        }
        self.expected = self.expected.max(place.seq.saturating_add(1));
    }
}

/// The replay.
pub(super) struct Replay {
    /// Most operations that are held.
    limit: usize,
    /// The sum of all operations that are done with.
    settled: i128,
    /// The highest number among them; 0 for none.
    settled_seq: i64,
    /// When the operation of that number was recorded.
    settled_at: StoredMoment,
    /// Operations that are not done with, and how many they are together with those of `region`.
    held: Vec<Step>,
    unsettled: i64,
    unsettled_sum: i128,
    highest_seq: i64,
    highest_at: StoredMoment,
    /// What was held when it became too long, and goes on.
    region: Option<Region>,
    block: Block,
}

impl Replay {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            settled: 0,
            settled_seq: 0,
            settled_at: StoredMoment(i64::MIN),
            held: Vec::new(),
            unsettled: 0,
            unsettled_sum: 0,
            highest_seq: 0,
            highest_at: StoredMoment(i64::MIN),
            region: None,
            block: Block::default(),
        }
    }

    /// Begins with another user.
    pub(super) fn begin(&mut self) {
        self.settled = 0;
        self.settled_seq = 0;
        self.settled_at = StoredMoment(i64::MIN);
        self.highest_seq = 0;
        self.highest_at = StoredMoment(i64::MIN);
        self.unsettled = 0;
        self.unsettled_sum = 0;
        self.held.clear();
        self.region = None;
    }

    /// Takes the user's next operation on the timeline. A region that ends with it is to be replayed by the caller.
    pub(super) fn push(&mut self, step: Step, found: &mut impl FnMut(StoredMoment, Violation)) -> Option<Region> {
        if self.unsettled == 0 && step.place.seq == self.settled_seq.saturating_add(1) {
            self.settle_in_order(step, found);
            return None;
        }
        self.unsettled += 1;
        self.unsettled_sum += i128::from(step.change);
        if step.place.seq >= self.highest_seq {
            self.highest_seq = step.place.seq;
            self.highest_at = step.recorded_at;
        }
        match &mut self.region {
            Some(region) => region.to = step.place,
            None => {
                self.held.push(step);
                if self.held.len() > self.limit {
                    self.region = Some(Region {
                        opening: self.settled,
                        first_seq: self.settled_seq.saturating_add(1),
                        recorded_from: self.settled_at,
                        from: self.held[0].place,
                        to: step.place,
                    });
                    self.held.clear();
                }
            }
        }
        let are_the_first = self.highest_seq <= self.settled_seq.saturating_add(self.unsettled);
        if are_the_first { self.settle(found) } else { None }
    }

    /// The user has no more operations.
    pub(super) fn finish(&mut self, found: &mut impl FnMut(StoredMoment, Violation)) -> Option<Region> {
        self.settle(found)
    }

    fn settle_in_order(&mut self, step: Step, found: &mut impl FnMut(StoredMoment, Violation)) {
        let (before, balance) = (self.settled, self.settled + i128::from(step.change));
        let seq = step.place.seq;
        Numbers::from(seq, self.settled_at).next(&step, found);
        if !is_admitted(balance) && is_admitted(before) {
            found(step.place.timestamp, out_of_range(seq, balance));
        }
        if balance != i128::from(step.balance_after) {
            let violation = Violation::BalanceAfter {
                seq,
                expected: balance,
                found: step.balance_after,
            };
            found(step.place.timestamp, violation);
        }
        self.settled = balance;
        self.settled_seq = seq;
        self.settled_at = step.recorded_at;
        self.highest_seq = seq;
        self.highest_at = step.recorded_at;
    }

    fn settle(&mut self, found: &mut impl FnMut(StoredMoment, Violation)) -> Option<Region> {
        let region = self.region.take();
        if !self.held.is_empty() {
            self.replay_held(found);
        }
        self.settled += self.unsettled_sum;
        self.settled_seq = self.highest_seq;
        self.settled_at = self.highest_at;
        self.unsettled = 0;
        self.unsettled_sum = 0;
        region
    }

    fn replay_held(&mut self, found: &mut impl FnMut(StoredMoment, Violation)) {
        let mut held = std::mem::take(&mut self.held);
        let moments = held.chunk_by(|one, next| one.place.timestamp == next.place.timestamp);
        let moments = moments.map(|moment| moment[0].place.timestamp);
        self.block.begin(self.settled, moments);
        held.sort_unstable_by_key(|step| (step.place.seq, step.place.timestamp));
        let mut numbers = Numbers::from(self.settled_seq.saturating_add(1), self.settled_at);
        for step in &held {
            numbers.next(step, found);
            self.block.apply(*step, found);
        }
        held.clear();
        self.held = held;
    }
}

#[cfg(test)]
mod tests;
