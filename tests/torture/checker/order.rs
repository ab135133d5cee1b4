//! There is one order of each user's operations that explains every answer: the versions. Each answer is true of a version
//! of its time, and later answers never of an earlier one.

use std::collections::HashMap;
use std::time::Duration;

use super::timeline::Timeline;
use super::{Kind, Violation};
use crate::evidence::{Ask, Evidence, Exchange};
use crate::model::{Stored, StoredUser, micros};

pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut by_user: HashMap<&str, Vec<&Exchange>> = HashMap::new();
    for exchange in &evidence.exchanges {
        by_user.entry(exchange.ask.user()).or_default().push(exchange);
    }
    let nothing = StoredUser::default();
    let mut violations = Vec::new();
    for (user, exchanges) in by_user {
        let stored = evidence.stored.get(user).unwrap_or(&nothing);
        let mut say = |kind, explanation: String| violations.push(Violation::new(kind, user, explanation));
        check_user(stored, &exchanges, &mut say);
    }
    violations
}

fn check_user(stored: &StoredUser, exchanges: &[&Exchange], say: &mut impl FnMut(Kind, String)) {
    let known = Known::of(stored, exchanges);
    known.in_real_time(&stored.history, say);
    let mut claims = known.claims(exchanges);
    claims.sort_by_key(|claim| claim.versions.0);
    replay(&stored.history, &mut claims, say);
    explained(claims, say);
}

/// When each version came about, as far as the clients can tell.
struct Known {
    /// When it was first asked for, by version from 1 on. It may be stored later than that, never earlier.
    begun: Vec<Duration>,
    /// When it was first answered 200.
    answered: Vec<Option<Duration>>,
    /// By the time of the answer, the highest version answered until then.
    highest_answered: Vec<(Duration, usize)>,
    /// By the time of asking, the lowest version asked for from then on.
    lowest_begun: Vec<(Duration, usize)>,
}

impl Known {
    fn of(stored: &StoredUser, exchanges: &[&Exchange]) -> Self {
        let mut times: HashMap<&str, (Duration, Option<Duration>)> = HashMap::new();
        for exchange in exchanges {
            if let Ask::Change(change) = &exchange.ask {
                let (begun, answered) = times.entry(&change.context).or_insert((Duration::MAX, None));
                *begun = exchange.sent_at.min(*begun);
                if exchange.said.as_ref().is_some_and(|said| said.status == 200) {
                    *answered = Some(answered.map_or(exchange.ended_at, |earlier| earlier.min(exchange.ended_at)));
                }
            }
        }
        // What nobody asked for is told elsewhere.
        let time = |one: &Stored| times.get(one.context.as_str()).copied().unwrap_or_default();
        let (begun, answered): (Vec<_>, Vec<_>) = stored.history.iter().map(time).unzip();
        let mut highest_answered: Vec<_> = (1..)
            .zip(&answered)
            .filter_map(|(version, at)| at.map(|at| (at, version)))
            .collect();
        highest_answered.sort_unstable();
        for index in 1..highest_answered.len() {
            highest_answered[index].1 = highest_answered[index].1.max(highest_answered[index - 1].1);
        }
        let mut lowest_begun: Vec<_> = (1..).zip(&begun).map(|(version, at)| (*at, version)).collect();
        lowest_begun.sort_unstable();
        for index in (1..lowest_begun.len()).rev() {
            lowest_begun[index - 1].1 = lowest_begun[index - 1].1.min(lowest_begun[index].1);
        }
        Self {
            begun,
            answered,
            highest_answered,
            lowest_begun,
        }
    }

    /// What was answered before another operation began comes first.
    fn in_real_time(&self, history: &[Stored], say: &mut impl FnMut(Kind, String)) {
        let mut last_begun = 0;
        for index in 0..history.len() {
            let (latest, one) = (&history[last_begun], &history[index]);
            if self.answered[index].is_some_and(|answered| answered < self.begun[last_begun]) {
                say(
                    Kind::OutOfOrder,
                    format!("{one:?} was answered before {latest:?} was sent, and comes after it"),
                );
            }
            if self.begun[index] > self.begun[last_begun] {
                last_begun = index;
            }
        }
    }

    /// The versions that may have been there between two moments.
    fn versions(&self, from: Duration, to: Duration) -> (usize, usize) {
        let answered = self.highest_answered.partition_point(|(at, _)| *at < from);
        let begun = self.lowest_begun.partition_point(|(at, _)| *at <= to);
        let lowest = answered.checked_sub(1).map_or(0, |last| self.highest_answered[last].1);
        let highest = self
            .lowest_begun
            .get(begun)
            .map_or(self.begun.len(), |(_, version)| version - 1);
        (lowest, highest)
    }

    fn claims<'a>(&self, exchanges: &[&'a Exchange]) -> Vec<Claim<'a>> {
        let claim = |exchange: &&'a Exchange| {
            let said = exchange.said.as_ref()?;
            let claims = match &exchange.ask {
                Ask::Change(_) => said.code == "insufficient_funds",
                Ask::Balance { .. } | Ask::History { .. } => said.status == 200,
            };
            claims.then(|| Claim {
                exchange,
                versions: self.versions(exchange.sent_at, exchange.ended_at),
                true_of: Vec::new(),
            })
        };
        exchanges.iter().filter_map(claim).collect()
    }
}

/// An answer that is true of some versions.
struct Claim<'a> {
    exchange: &'a Exchange,
    /// Those of its time, the first and the last.
    versions: (usize, usize),
    /// Those of them that it is true of.
    true_of: Vec<usize>,
}

impl Claim<'_> {
    fn is_true_of(&self, timeline: &Timeline, user_id: &str) -> bool {
        let Some(said) = &self.exchange.said else { return false };
        let body = &said.body;
        match &self.exchange.ask {
            Ask::Change(change) => {
                let found = timeline.first_negative(change.timestamp, change.change);
                let said = (
                    body["at"].as_str().map(micros),
                    body["shortfall"].as_u64().map(i128::from),
                );
                found.is_some_and(|(at, shortfall)| said == (Some(at), Some(shortfall)))
            }
            Ask::Balance { at, .. } => {
                let said = body["timestamp"].as_str().map(micros);
                let balance = body["balance"].as_i64().map(i128::from);
                body["userId"] == user_id
                    && said.is_some_and(|said| {
                        at.is_none_or(|at| at == said) && balance == Some(timeline.balance_at(said))
                    })
            }
            Ask::History { limit, .. } => {
                let Some(entries) = body["operations"].as_array() else {
                    return false;
                };
                let mut expected = timeline.newest(*limit);
                let all_there = entries.iter().all(|entry| {
                    let said = (
                        entry["timestamp"].as_str().map(micros),
                        entry["seq"].as_i64(),
                        entry["balanceChange"].as_i64(),
                        entry["balance"].as_i64().map(i128::from),
                    );
                    let next = expected.next();
                    next.is_some_and(|(at, seq, change, balance)| {
                        said == (Some(at), Some(seq), Some(change), Some(balance))
                    })
                });
                all_there && expected.next().is_none()
            }
        }
    }
}

/// Goes through the versions, and notes of each claim which of them it is true of.
fn replay(history: &[Stored], claims: &mut [Claim<'_>], say: &mut impl FnMut(Kind, String)) {
    let mut timeline = Timeline::before(history);
    let (mut next, mut open): (usize, Vec<usize>) = (0, Vec::new());
    for version in 0..=history.len() {
        if let Some(index) = version.checked_sub(1) {
            accept(&mut timeline, history, index, say);
        }
        while next < claims.len() && claims[next].versions.0 <= version {
            open.push(next);
            next += 1;
        }
        open.retain(|index| {
            let claim = &mut claims[*index];
            let last = claim.versions.1;
            if version <= last && claim.is_true_of(&timeline, claim.exchange.ask.user()) {
                claim.true_of.push(version);
            }
            version < last
        });
    }
}

fn accept(timeline: &mut Timeline, history: &[Stored], index: usize, say: &mut impl FnMut(Kind, String)) {
    let one = &history[index];
    if usize::try_from(one.seq).ok() != Some(index + 1) {
        say(
            Kind::VersionGap,
            format!("{one:?} stands where version {} should", index + 1),
        );
    }
    if let Some((at, missing)) = timeline.first_negative(one.timestamp, one.change) {
        say(
            Kind::NegativeMoment,
            format!("with {one:?} the moment {at} is negative by {missing}"),
        );
    }
    timeline.accept(one);
    let balance = timeline.balance_at(one.timestamp);
    if balance != one.balance_after.into() {
        say(Kind::WrongStored, format!("the balance after {one:?} was {balance}"));
    }
}

/// Each claim is true of a version of its time, and none of an earlier version than one that was seen before it began.
fn explained(mut claims: Vec<Claim<'_>>, say: &mut impl FnMut(Kind, String)) {
    claims.sort_by_key(|claim| claim.exchange.ended_at);
    // By the time of the answer, the highest version that must have been seen until then.
    let mut seen: Vec<(Duration, usize)> = Vec::with_capacity(claims.len());
    for claim in &claims {
        let before = seen.partition_point(|(at, _)| *at < claim.exchange.sent_at);
        let least = before.checked_sub(1).map_or(0, |last| seen[last].1);
        let version = claim.true_of.iter().copied().find(|version| *version >= least);
        if version.is_none() {
            let kind = match claim.exchange.ask {
                Ask::Change(_) => Kind::UnexplainedRefusal,
                Ask::Balance { .. } | Ask::History { .. } => Kind::StaleRead,
            };
            let (first, last) = claim.versions;
            say(
                kind,
                format!(
                    "true of none of the versions {} to {last}, but of {:?}: {:?}",
                    first.max(least),
                    claim.true_of,
                    claim.exchange
                ),
            );
        }
        let highest = seen.last().map_or(0, |(_, version)| *version);
        seen.push((claim.exchange.ended_at, highest.max(version.unwrap_or(0))));
    }
}
