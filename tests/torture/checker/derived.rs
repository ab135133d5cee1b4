//! The row of `balance` and the checkpoints follow from the history.

use super::{Kind, Violation};
use crate::evidence::Evidence;
use crate::model::{Micros, StoredUser};

pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let wrong = |(user, stored): (&String, &StoredUser)| {
        let explanation = difference(stored)?;
        Some(Violation::new(Kind::WrongStored, user, explanation))
    };
    evidence.stored.iter().filter_map(wrong).collect()
}

fn difference(stored: &StoredUser) -> Option<String> {
    // Each moment with its balance and how many operations it has.
    let mut moments: Vec<(Micros, i128, usize)> = Vec::new();
    let mut timeline: Vec<_> = stored.history.iter().map(|one| (one.timestamp, one.change)).collect();
    timeline.sort_unstable();
    let mut balance = 0;
    for (timestamp, change) in timeline {
        balance += i128::from(change);
        match moments.last_mut() {
            Some((moment, after, count)) if *moment == timestamp => {
                *after = balance;
                *count += 1;
            }
            _ => moments.push((timestamp, balance, 1)),
        }
    }
    let mut rest = moments.as_slice();
    for checkpoint in &stored.checkpoints {
        let (until, balance, lowest, highest) = *checkpoint;
        let (segment, later) = rest.split_at(rest.partition_point(|(moment, ..)| *moment <= until));
        rest = later;
        let balances = || segment.iter().map(|(_, balance, _)| *balance);
        let follows = segment.last().is_some_and(|(moment, ..)| *moment == until)
            && balances().next_back() == Some(balance.into())
            && balances().min() == Some(lowest.into())
            && balances().max() == Some(highest.into());
        if !follows {
            return Some(format!(
                "the checkpoint {checkpoint:?} does not follow from {segment:?}"
            ));
        }
    }
    let since_checkpoint: usize = rest.iter().map(|(.., count)| count).sum();
    let expected = moments
        .last()
        .map(|(latest, balance, _)| (*balance, stored.history.len(), *latest, since_checkpoint));
    let found = stored.row.map(|(balance, version, latest, since)| {
        let count = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        (balance.into(), count(version), latest, count(since.into()))
    });
    (found != expected).then(|| format!("balance, version, latest, since_checkpoint: {found:?}, not {expected:?}"))
}
