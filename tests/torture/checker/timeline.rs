//! A user's operations as they come in, with sums in logarithmic time: the naive model is too slow for a hot user. Counts
//! in 128 bits.

use std::collections::BTreeMap;
use std::ops::Bound;

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

    /// The lowest balance at a moment and all later ones.
    pub fn available_at(&self, timestamp: Micros) -> i128 {
        let from = self.moments.partition_point(|moment| *moment <= timestamp);
        let later = self.lowest_from(1, (0, self.leaves()), from, 0);
        let own = self.balance_at(timestamp);
        later.map_or(own, |later| later.min(own))
    }

    /// In this part of the tree, the lowest balance of its leaves from `from` on; `before` is the balance before the part.
    fn lowest_from(&self, node: usize, (begin, end): (usize, usize), from: usize, before: i128) -> Option<i128> {
        if end <= from {
            return None;
        }
        if begin >= from {
            return Some(before + self.nodes[node].lowest);
        }
        let middle = usize::midpoint(begin, end);
        let left = self.lowest_from(2 * node, (begin, middle), from, before);
        let right = self.lowest_from(2 * node + 1, (middle, end), from, before + self.nodes[2 * node].sum);
        left.into_iter().chain(right).min()
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

    /// Operations between two moments, in the order of the timeline or against it, beyond one of them: timestamp, version,
    /// change, and the balance after it.
    pub fn page(
        &self,
        (from, to): (Micros, Micros),
        ascending: bool,
        beyond: Option<(Micros, i64)>,
        limit: usize,
    ) -> Vec<(Micros, i64, i64, i128)> {
        if from > to || beyond.is_some_and(|(timestamp, _)| timestamp < from || timestamp > to) {
            return Vec::new();
        }
        let mut bounds = (Bound::Included((from, i64::MIN)), Bound::Included((to, i64::MAX)));
        match beyond {
            Some(place) if ascending => bounds.0 = Bound::Excluded(place),
            Some(place) => bounds.1 = Bound::Excluded(place),
            None => {}
        }
        let range = self.accepted.range(bounds).map(|(place, change)| (*place, *change));
        let operations: Vec<_> = match ascending {
            true => range.take(limit).collect(),
            false => range.rev().take(limit).collect(),
        };
        let Some((first, _)) = operations.first() else {
            return Vec::new();
        };
        let (after_first, last) = (Bound::Excluded(*first), Bound::Included((first.0, i64::MAX)));
        let of_its_moment = self.accepted.range((after_first, last));
        let later: i128 = of_its_moment.map(|(_, change)| i128::from(*change)).sum();
        let mut balance = self.balance_at(first.0) - later;
        let mut before: Option<i64> = None;
        let with_balance = operations.iter().map(|((timestamp, seq), change)| {
            match before.replace(*change) {
                Some(_) if ascending => balance += i128::from(*change),
                Some(later) => balance -= i128::from(later),
                None => {}
            }
            (*timestamp, *seq, *change, balance)
        });
        with_balance.collect()
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
                    caller: None,
                })
                .collect();
            let (mut timeline, mut model) = (Timeline::before(&history), Model::default());
            for one in &history {
                timeline.accept(one);
                model.insert(one.timestamp, one.change);
                for moment in 0..=26 {
                    assert_eq!(timeline.balance_at(moment), model.balance_at(moment));
                    assert_eq!(
                        timeline.available_at(moment),
                        model.available_at(moment),
                        "seed {seed} {moment}"
                    );
                    for change in [-30, 0, 5] {
                        let naive = model.first_negative(moment, change);
                        assert_eq!(
                            timeline.first_negative(moment, change),
                            naive,
                            "seed {seed} {one:?} {moment}"
                        );
                    }
                }
                the_pages_say_so(&timeline, &history[..usize::try_from(one.seq).unwrap()], &mut random);
            }
        }
    }

    fn the_pages_say_so(timeline: &Timeline, history: &[Stored], random: &mut Random) {
        let mut all: Vec<_> = history.iter().map(|one| (one.timestamp, one.seq, one.change)).collect();
        all.sort_unstable();
        let mut balance = 0;
        let mut all: Vec<_> = all
            .into_iter()
            .map(|(timestamp, seq, change)| {
                balance += i128::from(change);
                (timestamp, seq, change, balance)
            })
            .collect();
        let (from, to, limit) = (random.between(0, 13), random.between(13, 26), 3);
        all.retain(|(timestamp, ..)| (from..=to).contains(timestamp));
        for ascending in [true, false] {
            let (mut pages, mut beyond) = (Vec::new(), None);
            loop {
                let page = timeline.page((from, to), ascending, beyond, limit);
                beyond = page.last().map(|(timestamp, seq, ..)| (*timestamp, *seq));
                pages.extend(page.iter().copied());
                if page.len() < limit {
                    break;
                }
            }
            assert_eq!(pages, all);
            all.reverse();
        }
    }
}
