//! A user's operations as they come in, with sums in logarithmic time: the naive model is too slow for a hot user. Counts
//! in 128 bits.

use std::collections::BTreeMap;

use crate::model::{Micros, Stored};

/// The sum of a range of moments, and the lowest sum of its beginnings.
#[derive(Clone, Copy, Default)]
struct Node {
    sum: i128,
    lowest: i128,
}

/// The operations accepted so far, on the moments of all that will come.
pub struct Timeline {
    /// Of all operations, without repetition.
    moments: Vec<Micros>,
    /// A complete binary tree over the moments; the root is at 1.
    nodes: Vec<Node>,
    /// By timestamp and version.
    accepted: BTreeMap<(Micros, i64), i64>,
}

impl Timeline {
    /// An empty timeline on which these operations may come in.
    pub fn before(history: &[Stored]) -> Self {
        let mut moments: Vec<_> = history.iter().map(|one| one.timestamp).collect();
        moments.sort_unstable();
        moments.dedup();
        let nodes = vec![Node::default(); 2 * moments.len().next_power_of_two()];
        Self {
            moments,
            nodes,
            accepted: BTreeMap::new(),
        }
    }

    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    pub fn accept(&mut self, one: &Stored) {
        self.accepted.insert((one.timestamp, one.seq), one.change);
        let place = self.moments.partition_point(|moment| *moment < one.timestamp);
        let mut index = self.leaves() + place;
        let sum = self.nodes[index].sum + i128::from(one.change);
        self.nodes[index] = Node { sum, lowest: sum };
        while index > 1 {
            index /= 2;
            let (left, right) = (self.nodes[2 * index], self.nodes[2 * index + 1]);
            self.nodes[index] = Node {
                sum: left.sum + right.sum,
                lowest: left.lowest.min(left.sum + right.lowest),
            };
        }
    }

    pub fn balance_at(&self, timestamp: Micros) -> i128 {
        let mut end = self.leaves() + self.moments.partition_point(|moment| *moment <= timestamp);
        // Past the last leaf of a full tree.
        if end == self.nodes.len() {
            return self.nodes[1].sum;
        }
        let mut sum = 0;
        while end > 1 {
            if end % 2 == 1 {
                sum += self.nodes[end - 1].sum;
            }
            end /= 2;
        }
        sum
    }

    /// The first moment from `timestamp` on that is negative with so much added from there on, and how much is missing.
    pub fn first_negative(&self, timestamp: Micros, change: i64) -> Option<(Micros, i128)> {
        let change = i128::from(change);
        let own = self.balance_at(timestamp) + change;
        if own < 0 {
            return Some((timestamp, -own));
        }
        let from = self.moments.partition_point(|moment| *moment <= timestamp);
        let (place, balance) = self.first_below(1, (0, self.leaves()), from, -change, 0)?;
        Some((self.moments[place], -(balance + change)))
    }

    /// In this part of the tree, the first leaf from `from` on whose balance is below the bound; `before` is the balance
    /// before the part.
    fn first_below(
        &self,
        node: usize,
        (begin, end): (usize, usize),
        from: usize,
        bound: i128,
        before: i128,
    ) -> Option<(usize, i128)> {
        if end <= from || before + self.nodes[node].lowest >= bound {
            return None;
        }
        if end - begin == 1 {
            return Some((begin, before + self.nodes[node].sum));
        }
        let middle = usize::midpoint(begin, end);
        let left = self.first_below(2 * node, (begin, middle), from, bound, before);
        left.or_else(|| {
            let before = before + self.nodes[2 * node].sum;
            self.first_below(2 * node + 1, (middle, end), from, bound, before)
        })
    }

    /// The last operations of the timeline, the last one first: timestamp, version, change, and the balance after it.
    pub fn newest(&self, limit: usize) -> impl Iterator<Item = (Micros, i64, i64, i128)> + '_ {
        let mut after = self.nodes.get(1).map_or(0, |root| root.sum);
        self.accepted
            .iter()
            .rev()
            .take(limit)
            .map(move |((timestamp, seq), change)| {
                let balance = after;
                after -= i128::from(*change);
                (*timestamp, *seq, *change, balance)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, Random};

    #[test]
    fn it_says_what_the_naive_model_says() {
        for seed in 0..50 {
            let mut random = Random(seed);
            let history: Vec<Stored> = (1..=40)
                .map(|seq| Stored {
                    seq,
                    timestamp: random.between(1, 25),
                    change: random.between(-20, 25),
                    balance_after: 0,
                    context: String::new(),
                    operation_id: String::new(),
                    key: None,
                    approved: false,
                    instance: String::new(),
                })
                .collect();
            let (mut timeline, mut model) = (Timeline::before(&history), Model::default());
            for one in &history {
                timeline.accept(one);
                model.insert(one.timestamp, one.change);
                for moment in 0..=26 {
                    assert_eq!(timeline.balance_at(moment), model.balance_at(moment));
                    for change in [-30, 0, 5] {
                        let naive = model.first_negative(moment, change);
                        assert_eq!(
                            timeline.first_negative(moment, change),
                            naive,
                            "seed {seed} {one:?} {moment}"
                        );
                    }
                }
                let newest = timeline.newest(usize::MAX).next().unwrap();
                assert_eq!(newest.3, model.balance_at(Micros::MAX));
            }
        }
    }
}
