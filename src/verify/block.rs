//! A stretch of one user's timeline while operations join it in the order of acceptance: after each of them, the balance
//! at its moment and the lowest and highest balance of all moments, in the time that a tree is high.

use super::finding::Violation;
use crate::store::{StoredMoment, StoredPlace};

/// What a replay needs of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) place: StoredPlace,
    pub(super) change: i64,
    pub(super) balance_after: i64,
    pub(super) recorded_at: StoredMoment,
}

/// Some neighbouring moments: the sum of their changes, and the lowest and highest of the sums from the first of them up to
/// each. 2^64 changes of 64 bits fit 128 bits.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    sum: i128,
    lowest: i128,
    highest: i128,
}

impl Node {
    fn moment(sum: i128) -> Self {
        Self {
            sum,
            lowest: sum,
            highest: sum,
        }
    }

    fn of(left: Self, right: Self) -> Self {
        Self {
            sum: left.sum + right.sum,
            lowest: left.lowest.min(left.sum + right.lowest),
            highest: left.highest.max(left.sum + right.highest),
        }
    }
}

const ADMITTED: std::ops::RangeInclusive<i128> = 0..=i64::MAX as i128;

/// Whether a balance may be.
pub(super) fn is_admitted(balance: i128) -> bool {
    ADMITTED.contains(&balance)
}

/// A moment's balance that may not be, found after an operation.
pub(super) fn out_of_range(seq: i64, balance: i128) -> Violation {
    if balance < 0 {
        Violation::Negative { seq, balance }
    } else {
        Violation::AboveLimit { seq, balance }
    }
}

/// The stretch. A moment that no operation has reached yet has the balance of the one before it, and so changes nothing.
#[derive(Default)]
pub(super) struct Block {
    moments: Vec<StoredMoment>,
    /// The node at 1 is the root, those at 2n and 2n+1 are the children of n; the last half are moments.
    nodes: Vec<Node>,
    /// The balance before the first moment.
    opening: i128,
    /// Whether a moment was out of range after the last operation.
    broken: bool,
}

impl Block {
    /// Begins anew with these moments, of which there is at least one, in order; nothing has happened at them yet.
    pub(super) fn begin(&mut self, opening: i128, moments: impl IntoIterator<Item = StoredMoment>) {
        self.opening = opening;
        self.broken = false;
        self.moments.clear();
        self.moments.extend(moments);
        let leaves = self.moments.len().next_power_of_two();
        self.nodes.clear();
        self.nodes.resize(2 * leaves, Node::default());
    }

    /// Lets an operation join: an earlier one moves the opening, a later one does not matter here.
    pub(super) fn apply(&mut self, step: Step, found: &mut impl FnMut(StoredMoment, Violation)) {
        match self.moments.binary_search(&step.place.timestamp) {
            Ok(index) => {
                let balance = self.opening + self.add(index, step.change);
                if balance != i128::from(step.balance_after) {
                    let violation = Violation::BalanceAfter {
                        seq: step.place.seq,
                        expected: balance,
                        found: step.balance_after,
                    };
                    found(step.place.timestamp, violation);
                }
            }
            Err(0) => self.opening += i128::from(step.change),
            Err(_) => return,
        }
        self.look_for_broken(step.place.seq, found);
    }

    /// Adds a change to a moment; the sum from the first moment up to this one, with it.
    fn add(&mut self, index: usize, change: i64) -> i128 {
        let mut at = self.nodes.len() / 2 + index;
        let sum = self.nodes[at].sum + i128::from(change);
        self.nodes[at] = Node::moment(sum);
        let mut up_to = sum;
        while at > 1 {
            let (left, right) = (self.nodes[at & !1], self.nodes[at | 1]);
            if at & 1 == 1 {
                up_to += left.sum;
            }
            at /= 2;
            self.nodes[at] = Node::of(left, right);
        }
        up_to
    }

    /// Tells of the first moment that is out of range, once for as long as there is one. What comes after an opening that
    /// is itself out of range was told of where it was found.
    fn look_for_broken(&mut self, seq: i64, found: &mut impl FnMut(StoredMoment, Violation)) {
        let root = self.nodes[1];
        let broken = !is_admitted(self.opening + root.lowest) || !is_admitted(self.opening + root.highest);
        if broken && !self.broken && is_admitted(self.opening) {
            let (index, balance) = self.first_broken();
            // Behind the last moment the tree is filled up with moments like it.
            found(
                self.moments[index.min(self.moments.len() - 1)],
                out_of_range(seq, balance),
            );
        }
        self.broken = broken;
    }

    /// The first moment out of range, where there is one.
    fn first_broken(&self) -> (usize, i128) {
        let (mut at, mut before) = (1, self.opening);
        let leaves = self.nodes.len() / 2;
        while at < leaves {
            let left = self.nodes[2 * at];
            at *= 2;
            if is_admitted(before + left.lowest) && is_admitted(before + left.highest) {
                before += left.sum;
                at += 1;
            }
        }
        (at - leaves, before + self.nodes[at].sum)
    }
}
