//! The rule of the ledger against a naive model: a list of operations, sorted and summed at every moment.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::{Context, OperationId, UserId};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_microseconds(seconds * 1_000_000).unwrap()
}

fn operation(balance_change: i64, seconds: i64) -> Operation {
    Operation {
        id: OperationId(Uuid::nil()),
        user_id: UserId::new("alice").unwrap(),
        context: Context::new("").unwrap(),
        balance_change,
        timestamp: at(seconds),
        caller: None,
    }
}

/// Knows nothing of segments: sums everything, at every moment, in 128 bits.
#[derive(Default)]
struct NaiveModel {
    accepted: Vec<(Timestamp, i64)>,
}

impl NaiveModel {
    fn balance_at(&self, timestamp: Timestamp) -> i128 {
        let counted = self.accepted.iter().filter(|(own, _)| *own <= timestamp);
        counted.map(|(_, change)| i128::from(*change)).sum()
    }

    /// The lowest balance at this moment and all later ones: sums everything at each of them.
    fn available_at(&self, timestamp: Timestamp) -> i64 {
        let later = self.accepted.iter().map(|(own, _)| *own).filter(|own| *own > timestamp);
        let moments = later.chain([timestamp]);
        let lowest = moments.map(|moment| self.balance_at(moment)).min();
        i64::try_from(lowest.unwrap()).unwrap()
    }

    fn accept(&mut self, operation: &Operation) -> Result<i128, Refusal> {
        let available = self.available_at(operation.timestamp);
        self.accepted.push((operation.timestamp, operation.balance_change));
        let mut moments: Vec<Timestamp> = self.accepted.iter().map(|(own, _)| *own).collect();
        moments.retain(|moment| *moment >= operation.timestamp);
        moments.sort();
        for at in moments {
            let balance = self.balance_at(at);
            let refusal = if balance < 0 {
                let shortfall = u64::try_from(-balance).unwrap();
                Refusal::InsufficientFunds {
                    at,
                    shortfall,
                    available,
                }
            } else if balance > i128::from(i64::MAX) {
                Refusal::BalanceLimit { at }
            } else {
                continue;
            };
            self.accepted.pop();
            return Err(refusal);
        }
        Ok(self.balance_at(operation.timestamp))
    }
}

/// A store in memory that hands over just the segments a timeline asks for.
struct SegmentedModel {
    head: Head,
    history: BTreeMap<Timestamp, Moment>,
    checkpoints: BTreeMap<Timestamp, Checkpoint>,
    length: SegmentLength,
}

impl SegmentedModel {
    fn new(length: u32) -> Self {
        Self {
            head: Head::default(),
            history: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            length: SegmentLength::new(length).unwrap(),
        }
    }

    /// The segment that ends at `end`, or the open one.
    fn segment(&self, end: Option<Timestamp>) -> Segment {
        let previous = match end {
            Some(end) => self.checkpoints.range(..end).next_back(),
            None => self.checkpoints.iter().next_back(),
        };
        let start = previous.map(|(timestamp, _)| *timestamp);
        let moments = self.history.values().copied();
        Segment {
            opening: previous.map_or(0, |(_, checkpoint)| checkpoint.balance),
            moments: moments
                .filter(|moment| start.is_none_or(|start| start < moment.timestamp))
                .filter(|moment| end.is_none_or(|end| moment.timestamp <= end))
                .collect(),
            closed: end.is_some(),
        }
    }

    fn timeline(&self, operation: &Operation) -> Timeline {
        let own = operation.timestamp;
        let mut segments = Vec::new();
        let mut lowest_closed = None;
        if self.head.latest.is_some_and(|latest| own < latest) {
            let breach = Breach::of(operation.balance_change);
            let mut from_own = self.checkpoints.range(own..).map(|(timestamp, _)| *timestamp);
            let end = from_own.next();
            segments.push(self.segment(end));
            if end.is_some() {
                let later = from_own.clone().map(|timestamp| self.checkpoints[&timestamp].lowest);
                lowest_closed = later.min();
                let breached = from_own.find(|timestamp| {
                    let checkpoint = self.checkpoints[timestamp];
                    checkpoint.lowest <= breach.lowest_at_most || checkpoint.highest > breach.highest_above
                });
                segments.extend(breached.map(|end| self.segment(Some(end))));
                segments.push(self.segment(None));
            }
        } else if self.head.latest != Some(own) && self.head.since_checkpoint >= 2 * self.length.operations() {
            segments.push(self.segment(None));
        }
        Timeline::new(self.head, segments, self.length).with_lowest_closed(lowest_closed)
    }

    fn accept(&mut self, operation: &Operation) -> Result<i64, Refusal> {
        let mut timeline = self.timeline(operation);
        let entry = timeline.accept(operation)?;
        assert_eq!(entry.seq, self.head.version + 1);
        self.store(&[operation], timeline);
        Ok(entry.balance_after)
    }

    /// Judges all of them on one reading of the timeline; each must be in the open segment.
    fn accept_together(&mut self, operations: &[Operation]) -> Vec<Result<i64, Refusal>> {
        let before_latest = |operation: &Operation| Some(operation.timestamp) < self.head.latest;
        let is_due = self.head.since_checkpoint >= 2 * self.length.operations();
        let mut segments = Vec::new();
        if operations.iter().any(before_latest) || is_due {
            segments.extend(self.head.latest.map(|_| self.segment(None)));
        }
        let earliest = operations.iter().map(|operation| operation.timestamp).min();
        let mut timeline = if is_due {
            Timeline::new(self.head, segments, self.length)
        } else {
            for segment in &mut segments {
                segment.moments.retain(|moment| Some(moment.timestamp) > earliest);
            }
            Timeline::tail(self.head, segments, self.length)
        };
        let mut accepted = Vec::new();
        let mut answers = Vec::new();
        for operation in operations {
            let answer = timeline.accept(operation);
            if answer.is_ok() {
                accepted.push(operation);
            }
            answers.push(answer.map(|entry| entry.balance_after));
        }
        self.store(&accepted, timeline);
        answers
    }

    /// Judges all of them on one reading of all segments from the earliest one's on.
    fn accept_contiguous(&mut self, operations: &[Operation]) -> Vec<Result<i64, Refusal>> {
        let earliest = operations.iter().map(|operation| operation.timestamp).min().unwrap();
        let ends = self.checkpoints.range(earliest..).map(|(end, _)| Some(*end));
        let segments = ends.chain([None]).map(|end| self.segment(end)).collect();
        let mut timeline = Timeline::contiguous(self.head, segments, self.length);
        let judged = operations
            .iter()
            .map(|operation| (operation, timeline.accept(operation)));
        let judged: Vec<_> = judged.collect();
        let accepted = judged.iter().filter(|(_, answer)| answer.is_ok());
        self.store(&accepted.map(|(operation, _)| *operation).collect::<Vec<_>>(), timeline);
        judged
            .into_iter()
            .map(|(_, answer)| answer.map(|entry| entry.balance_after))
            .collect()
    }

    fn store(&mut self, accepted: &[&Operation], timeline: Timeline) {
        let changes = timeline.into_changes();
        self.head = changes.head;
        for operation in accepted {
            let moment = self.history.entry(operation.timestamp).or_insert(Moment {
                timestamp: operation.timestamp,
                change: 0,
                operations: 0,
            });
            moment.change += operation.balance_change;
            moment.operations += 1;
        }
        if let Some(shift) = changes.shift {
            for (timestamp, checkpoint) in &mut self.checkpoints {
                if *timestamp > shift.after {
                    checkpoint.balance += shift.by;
                    checkpoint.lowest += shift.by;
                    checkpoint.highest += shift.by;
                }
            }
        }
        for moved in &changes.moved {
            let stood = self.checkpoints.range(..moved.timestamp).next_back();
            let after = stood.map(|(timestamp, _)| *timestamp);
            let is_in = |operation: &&Operation| {
                operation.timestamp <= moved.timestamp && after.is_none_or(|after| operation.timestamp > after)
            };
            assert!(self.checkpoints.contains_key(&moved.timestamp));
            assert_eq!(accepted.iter().copied().find(is_in), None, "{moved:?}");
        }
        for checkpoint in changes.checkpoints.into_iter().chain(changes.moved) {
            self.checkpoints.insert(checkpoint.timestamp, checkpoint);
        }
    }

    /// Everything that is stored beside the history is what the history gives.
    fn check(&self) {
        let sum: i64 = self.history.values().map(|moment| moment.change).sum();
        let last = self.history.values().next_back().map(|moment| moment.timestamp);
        assert_eq!((self.head.balance, self.head.latest), (sum, last));
        for (end, checkpoint) in &self.checkpoints {
            assert!(
                Some(*end) < last,
                "a checkpoint at the last moment would have to follow it"
            );
            let balances: Vec<i64> = self
                .segment(Some(*end))
                .balances()
                .map(|moment| moment.balance)
                .collect();
            assert_eq!(Some(&checkpoint.balance), balances.last());
            assert_eq!(Some(&checkpoint.lowest), balances.iter().min());
            assert_eq!(Some(&checkpoint.highest), balances.iter().max());
        }
        let open: u32 = self.segment(None).moments.iter().map(|moment| moment.operations).sum();
        assert_eq!(self.head.since_checkpoint, open);
    }
}

/// Both models take the operations in turn and must give the same answers.
fn agree(length: u32, operations: &[(i64, i64)]) {
    let mut naive = NaiveModel::default();
    let mut segmented = SegmentedModel::new(length);
    for (change, seconds) in operations {
        let operation = operation(*change, *seconds);
        let expected = naive.accept(&operation).map(|balance| i64::try_from(balance).unwrap());
        assert_eq!(segmented.accept(&operation), expected, "{change:+} @{seconds}");
        segmented.check();
    }
}

fn answers(operations: &[(i64, i64)]) -> Vec<Result<i64, Refusal>> {
    agree(2, operations);
    let mut model = SegmentedModel::new(128);
    let mut answer = |(change, seconds): &(i64, i64)| model.accept(&operation(*change, *seconds));
    operations.iter().map(&mut answer).collect()
}

fn insufficient(seconds: i64, shortfall: u64, available: i64) -> Result<i64, Refusal> {
    Err(Refusal::InsufficientFunds {
        at: at(seconds),
        shortfall,
        available,
    })
}

#[test]
fn a_withdrawal_that_a_later_moment_cannot_afford_is_refused() {
    let answers = answers(&[(100, 10), (-100, 20), (-50, 15)]);
    assert_eq!(answers[2], insufficient(20, 50, 0));
}

#[test]
fn a_withdrawal_before_the_first_deposit_is_refused() {
    assert_eq!(answers(&[(100, 10), (-30, 5)])[1], insufficient(5, 30, 0));
}

#[test]
fn a_later_deposit_does_not_pay() {
    assert_eq!(
        answers(&[(100, 10), (100, 30), (-150, 20)])[2],
        insufficient(20, 50, 100)
    );
}

#[test]
fn a_deposit_never_makes_a_moment_negative() {
    assert_eq!(answers(&[(100, 10), (-100, 20), (50, 15)])[2], Ok(150));
}

#[test]
fn equal_timestamps_count_in_order_of_acceptance() {
    let answers = answers(&[(100, 10), (-60, 10), (-60, 10)]);
    assert_eq!(answers[1..], [Ok(40), insufficient(10, 20, 40)]);
}

#[test]
fn a_dip_inside_one_moment_is_no_moment() {
    // At 10 the balance is 100 once both have been accepted, so 5 may spend 50 although -80 came first.
    let answers = answers(&[(100, 1), (-80, 10), (80, 10), (-50, 5)]);
    assert_eq!(answers[3], Ok(50));
}

#[test]
fn no_moment_leaves_the_range_of_64_bits() {
    let max = i64::MAX;
    assert_eq!(
        answers(&[(max, 10), (1, 20)])[1],
        Err(Refusal::BalanceLimit { at: at(20) })
    );
    assert_eq!(
        answers(&[(max, 10), (1, 5)])[1],
        Err(Refusal::BalanceLimit { at: at(10) })
    );
    assert_eq!(answers(&[(i64::MIN, 10)])[0], insufficient(10, 1 << 63, 0));
    assert_eq!(answers(&[(max, 10), (-max, 10), (max, 10)])[2], Ok(max));
    assert_eq!(answers(&[(0, 10)])[0], Ok(0));
}

fn change() -> impl Strategy<Value = i64> {
    prop_oneof![
        20 => -60..=100_i64,
        2 => Just(i64::MAX),
        1 => Just(i64::MIN),
        1 => Just(-i64::MAX),
        2 => (i64::MAX - 300)..i64::MAX,
        2 => -i64::MAX..(300 - i64::MAX),
        1 => any::<i64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_answer_is_the_naive_models(
        length in 1..6_u32,
        operations in prop::collection::vec((-60..=100_i64, 0..30_i64), 1..80),
    ) {
        agree(length, &operations);
    }

    #[test]
    fn every_answer_is_the_naive_models_at_the_ends_of_the_range(
        length in 1..6_u32,
        operations in prop::collection::vec((change(), 0..12_i64), 1..60),
    ) {
        agree(length, &operations);
    }

    #[test]
    fn every_answer_is_the_naive_models_when_timestamps_run_forward_with_small_disorder(
        length in 1..6_u32,
        operations in prop::collection::vec((-60..=100_i64, -3..=3_i64), 1..120),
    ) {
        let running: Vec<_> = (10..).zip(&operations).map(|(now, (change, late))| (*change, now + late)).collect();
        agree(length, &running);
    }

    #[test]
    fn operations_judged_together_are_judged_as_one_after_the_other(
        length in 1..6_u32,
        groups in prop::collection::vec(prop::collection::vec((change(), 0..20_i64), 1..12), 1..20),
    ) {
        let mut naive = NaiveModel::default();
        let mut segmented = SegmentedModel::new(length);
        for group in groups {
            let closed_until = segmented.checkpoints.keys().next_back().copied();
            let group: Vec<_> = group.into_iter().map(|(change, seconds)| operation(change, seconds)).collect();
            let (open, closed): (Vec<_>, Vec<_>) =
                group.into_iter().partition(|operation| Some(operation.timestamp) > closed_until);
            let mut expect = |operation: &Operation| naive.accept(operation).map(|balance| i64::try_from(balance).unwrap());
            let expected: Vec<_> = open.iter().map(&mut expect).collect();
            prop_assert_eq!(segmented.accept_together(&open), expected);
            segmented.check();
            for operation in &closed {
                prop_assert_eq!(segmented.accept(operation), expect(operation));
                segmented.check();
            }
        }
    }

    #[test]
    fn operations_judged_together_may_fall_into_any_segments_if_all_later_ones_are_there(
        length in 1..6_u32,
        groups in prop::collection::vec(prop::collection::vec((change(), 0..30_i64), 1..12), 1..20),
    ) {
        let mut naive = NaiveModel::default();
        let mut segmented = SegmentedModel::new(length);
        for group in groups {
            let group: Vec<_> = group.into_iter().map(|(change, seconds)| operation(change, seconds)).collect();
            let mut expect = |operation: &Operation| naive.accept(operation).map(|balance| i64::try_from(balance).unwrap());
            let expected: Vec<_> = group.iter().map(&mut expect).collect();
            prop_assert_eq!(segmented.accept_contiguous(&group), expected);
            segmented.check();
        }
    }

    #[test]
    fn segments_stay_short(
        operations in prop::collection::vec((1..5_i64, 0..1_000_000_i64), 200..300),
    ) {
        let mut model = SegmentedModel::new(8);
        for (change, seconds) in operations {
            model.accept(&operation(change, seconds)).unwrap();
        }
        let ends = model.checkpoints.keys().copied().map(Some).chain([None]);
        for end in ends {
            prop_assert!(model.segment(end).moments.len() <= 24);
        }
    }
}
