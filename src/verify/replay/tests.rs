//! The replay against a naive model: after each operation, all moments summed anew.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// An operation as the tests make it; `seq` is its place in the list.
#[derive(Clone, Copy, Debug)]
struct Made {
    timestamp: i64,
    change: i64,
}

fn balance_at(accepted: &[Step], timestamp: StoredMoment) -> i128 {
    let until = accepted.iter().filter(|step| step.place.timestamp <= timestamp);
    until.map(|step| i128::from(step.change)).sum()
}

/// The first moment out of range.
fn first_broken(accepted: &[Step]) -> Option<(StoredMoment, i128)> {
    let moments: BTreeSet<_> = accepted.iter().map(|step| step.place.timestamp).collect();
    let mut balances = moments.into_iter().map(|moment| (moment, balance_at(accepted, moment)));
    balances.find(|(_, balance)| !is_admitted(*balance))
}

/// What the service would have stored: those of the operations that the rule admits.
fn valid_history(made: &[Made]) -> Vec<Step> {
    let mut accepted: Vec<Step> = Vec::new();
    for operation in made {
        let place = StoredPlace {
            timestamp: StoredMoment(operation.timestamp),
            seq: i64::try_from(accepted.len()).unwrap() + 1,
        };
        let mut step = Step {
            place,
            change: operation.change,
            balance_after: 0,
            recorded_at: StoredMoment(1_000 + place.seq / 2),
        };
        accepted.push(step);
        if first_broken(&accepted).is_some() {
            accepted.pop();
            continue;
        }
        step.balance_after = i64::try_from(balance_at(&accepted, place.timestamp)).unwrap();
        *accepted.last_mut().unwrap() = step;
    }
    accepted
}

/// Everything that is wrong with a history, as the naive model sees it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    seq: bool,
    /// The first moment out of range, after which operation.
    first_broken: Option<(i64, StoredMoment, i128)>,
    ever_broken: bool,
    balances_after: Vec<(i64, StoredMoment, i128)>,
    /// Which operations were recorded before one accepted earlier, and when that was.
    recorded: Vec<(i64, StoredMoment, StoredMoment)>,
}

impl Wrong {
    fn is_nothing(&self) -> bool {
        !self.seq && !self.ever_broken && self.balances_after.is_empty() && self.recorded.is_empty()
    }
}

fn naive(history: &[Step]) -> Wrong {
    let mut by_seq = history.to_vec();
    by_seq.sort_by_key(|step| (step.place.seq, step.place.timestamp));
    let mut wrong = Wrong::default();
    for (index, step) in by_seq.iter().enumerate() {
        let accepted = &by_seq[..=index];
        wrong.seq |= step.place.seq != i64::try_from(index).unwrap() + 1;
        let balance = balance_at(accepted, step.place.timestamp);
        if balance != i128::from(step.balance_after) {
            wrong
                .balances_after
                .push((step.place.seq, step.place.timestamp, balance));
        }
        if let Some((moment, balance)) = first_broken(accepted) {
            wrong.ever_broken = true;
            wrong.first_broken.get_or_insert((step.place.seq, moment, balance));
        }
    }
    wrong.balances_after.sort();
    let neighbours = by_seq
        .windows(2)
        .filter(|pair| pair[1].recorded_at < pair[0].recorded_at);
    let recorded = neighbours.map(|pair| (pair[1].place.seq, pair[1].place.timestamp, pair[0].recorded_at));
    wrong.recorded.extend(recorded);
    wrong.recorded.sort();
    wrong
}

type Found = Vec<(StoredMoment, Violation)>;

/// The replay as the ledger's check drives it, with the history in place of the database.
fn replay(history: &[Step], held: usize) -> Found {
    let mut timeline = history.to_vec();
    timeline.sort_by_key(|step| step.place);
    let mut found = Found::new();
    let mut replay = Replay::new(held);
    // One that is used for user after user.
    replay.begin();
    replay.push(timeline[0], &mut |_, _| {});
    replay.begin();
    let mut regions = Vec::new();
    for step in &timeline {
        regions.extend(replay.push(*step, &mut |at, violation| found.push((at, violation))));
    }
    regions.extend(replay.finish(&mut |at, violation| found.push((at, violation))));
    for region in regions {
        replay_region(region, &timeline, held, &mut found);
    }
    found
}

fn replay_region(region: Region, timeline: &[Step], held: usize, found: &mut Found) {
    let stretch: Vec<Step> = timeline
        .iter()
        .filter(|step| (region.from..=region.to).contains(&step.place))
        .copied()
        .collect();
    let moments: BTreeSet<_> = stretch.iter().map(|step| step.place.timestamp).collect();
    let moments: Vec<_> = moments.into_iter().collect();
    let mut tell = |at, violation| found.push((at, violation));
    let mut by_seq = stretch;
    by_seq.sort_by_key(|step| (step.place.seq, step.place.timestamp));
    let mut numbers = Numbers::from(region.first_seq, region.recorded_from);
    by_seq.iter().for_each(|step| numbers.next(step, &mut tell));
    let mut block = Block::default();
    for moments in moments.chunks(held) {
        block.begin(region.opening, moments.iter().copied());
        by_seq.iter().for_each(|step| block.apply(*step, &mut tell));
    }
}

fn sorted_out(found: &Found) -> Wrong {
    let mut wrong = Wrong::default();
    for (at, violation) in found {
        match violation {
            Violation::Seq { .. } => wrong.seq = true,
            Violation::Negative { seq, balance } | Violation::AboveLimit { seq, balance } => {
                wrong.ever_broken = true;
                let first = wrong.first_broken.get_or_insert((*seq, *at, *balance));
                *first = (*first).min((*seq, *at, *balance));
            }
            Violation::BalanceAfter { seq, expected, .. } => wrong.balances_after.push((*seq, *at, *expected)),
            Violation::Recorded { seq, expected, .. } => wrong.recorded.push((*seq, *at, *expected)),
            other => panic!("{other:?}"),
        }
    }
    wrong.balances_after.sort();
    wrong.recorded.sort();
    wrong
}

/// How something went wrong in the database.
#[derive(Clone, Debug)]
enum Corruption {
    Change(usize, i64),
    BalanceAfter(usize, i64),
    Record(usize, i64),
    Move(usize, i64),
    Swap(usize, usize),
    Renumber(usize, i64),
    Lose(usize),
    Double(usize, i64),
}

impl Corruption {
    fn apply(&self, history: &mut Vec<Step>) {
        let length = history.len();
        match *self {
            Corruption::Change(index, by) => {
                history[index % length].change = history[index % length].change.saturating_add(by)
            }
            Corruption::BalanceAfter(index, by) => {
                let step = &mut history[index % length];
                step.balance_after = step.balance_after.saturating_add(by);
            }
            Corruption::Record(index, by) => history[index % length].recorded_at.0 += by,
            Corruption::Move(index, by) => history[index % length].place.timestamp.0 += by,
            Corruption::Swap(one, other) => {
                let seq = history[one % length].place.seq;
                history[one % length].place.seq = history[other % length].place.seq;
                history[other % length].place.seq = seq;
            }
            Corruption::Renumber(index, by) => history[index % length].place.seq += by,
            Corruption::Lose(index) => {
                if length > 1 {
                    history.remove(index % length);
                }
            }
            Corruption::Double(index, by) => {
                let mut step = history[index % length];
                step.place.timestamp.0 += by;
                history.push(step);
            }
        }
    }
}

fn corruption() -> impl Strategy<Value = Corruption> {
    let index = 0..60_usize;
    let by = prop_oneof![-3..=3_i64, Just(i64::MAX), Just(i64::MIN)];
    prop_oneof![
        (index.clone(), by.clone()).prop_map(|(index, by)| Corruption::Change(index, by)),
        (index.clone(), by).prop_map(|(index, by)| Corruption::BalanceAfter(index, by)),
        (index.clone(), -5..=5_i64).prop_map(|(index, by)| Corruption::Record(index, by)),
        (index.clone(), -5..=5_i64).prop_map(|(index, by)| Corruption::Move(index, by)),
        (index.clone(), index.clone()).prop_map(|(one, other)| Corruption::Swap(one, other)),
        (index.clone(), -3..=3_i64).prop_map(|(index, by)| Corruption::Renumber(index, by)),
        index.clone().prop_map(Corruption::Lose),
        (index, -2..=2_i64).prop_map(|(index, by)| Corruption::Double(index, by)),
    ]
}

fn changes() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => -20..=30_i64,
        1 => Just(i64::MAX),
        1 => Just(i64::MIN),
        1 => (i64::MAX - 50)..=i64::MAX,
    ]
}

/// Operations in some disorder: from none to any.
fn operations() -> impl Strategy<Value = Vec<Made>> {
    let disorder = prop_oneof![Just(0_i64), 1..=4_i64, Just(40)];
    disorder.prop_flat_map(|disorder| {
        let operation = (0..=disorder, 0..=1_i64, changes());
        prop::collection::vec(operation, 1..50).prop_map(|drawn| {
            let mut clock = 0;
            let make = |(late, tick, change): (i64, i64, i64)| {
                clock += tick;
                Made {
                    timestamp: clock - late,
                    change,
                }
            };
            drawn.into_iter().map(make).collect()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_the_rule_admits_has_no_finding(made in operations(), held in 1..12_usize) {
        let history = valid_history(&made);
        prop_assume!(!history.is_empty());
        prop_assert_eq!(replay(&history, held), []);
        prop_assert!(naive(&history).is_nothing());
    }

    #[test]
    fn every_corruption_is_found_and_told_as_the_naive_model_sees_it(
        made in operations(), held in 1..12_usize, corruptions in prop::collection::vec(corruption(), 1..3)
    ) {
        let mut history = valid_history(&made);
        prop_assume!(!history.is_empty());
        corruptions.iter().for_each(|corruption| corruption.apply(&mut history));
        // The primary key holds.
        let places: BTreeSet<_> = history.iter().map(|step| step.place).collect();
        prop_assume!(places.len() == history.len());
        let (expected, found) = (naive(&history), replay(&history, held));
        prop_assert_eq!(found.is_empty(), expected.is_nothing(), "{:?} {:?}", found, expected);
        let found = sorted_out(&found);
        prop_assert_eq!(found.seq, expected.seq);
        if !expected.seq {
            prop_assert_eq!(found, expected);
        }
    }
}

fn step(seq: i64, timestamp: i64, change: i64, balance_after: i64) -> Step {
    Step {
        place: StoredPlace {
            timestamp: StoredMoment(timestamp),
            seq,
        },
        change,
        balance_after,
        recorded_at: StoredMoment(seq),
    }
}

#[test]
fn a_withdrawal_in_the_past_that_a_later_moment_cannot_bear_is_named_with_that_moment() {
    let history = [step(1, 10, 100, 100), step(2, 20, -100, 0), step(3, 15, -50, 50)];
    let negative = Violation::Negative { seq: 3, balance: -50 };
    for held in [1, 2, 100] {
        assert_eq!(replay(&history, held), [(StoredMoment(20), negative.clone())]);
    }
}

#[test]
fn operations_in_order_are_not_held() {
    let mut replay = Replay::new(1_000);
    replay.begin();
    for seq in 1..100 {
        assert_eq!(replay.push(step(seq, seq / 3, 1, seq), &mut |_, _| panic!()), None);
        assert_eq!(replay.unsettled, 0);
    }
    // A pair out of order is held until both are there.
    replay.push(step(101, 40, 1, 100), &mut |_, _| panic!());
    assert_eq!(replay.held.len(), 1);
    replay.push(step(100, 41, 1, 100), &mut |_, _| {});
    assert_eq!(replay.held.len(), 0);
}
