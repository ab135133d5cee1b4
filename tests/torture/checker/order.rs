//! There is one order of each user's operations that explains every answer: the versions. Each answer is true of a version
//! of its time, and later answers never of an earlier one.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::timeline::Timeline;
use super::{Kind, Violation, moment};
use crate::evidence::{Ask, Evidence, Exchange, Page, Said};
use crate::model::{Micros, Stored, StoredUser};

/// `unheard` are answers that no client has heard, but that are known all the same.
pub(super) fn check(evidence: &Evidence, unheard: &[Exchange]) -> Vec<Violation> {
    let mut by_user: HashMap<&str, Vec<&Exchange>> = HashMap::new();
    for exchange in evidence.exchanges.iter().chain(unheard) {
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
    let mut claims = known.claims(stored, exchanges);
    claims.sort_by_key(|claim| claim.versions.0);
    replay(&stored.history, &mut claims, say);
    explained(claims, say);
}

/// When each version came about, as far as the clients can tell.
struct Known {
    /// When it was first asked for, by version from 1 on: by a request that may have stored it. It may be stored later
    /// than that, never earlier.
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
                if exchange.may_have_stored() {
                    *begun = exchange.sent_at.min(*begun);
                }
                if exchange.said().is_some_and(|said| said.status == 200) {
                    *answered = Some(answered.map_or(exchange.ended_at, |earlier| earlier.min(exchange.ended_at)));
                }
            }
        }
        // What nobody asked for, or nobody can have stored, is told elsewhere.
        let time = |one: &Stored| match times.get(one.context.as_str()) {
            Some((Duration::MAX, answered)) => (Duration::ZERO, *answered),
            times => times.copied().unwrap_or_default(),
        };
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

    fn claims<'a>(&self, stored: &StoredUser, exchanges: &[&'a Exchange]) -> Vec<Claim<'a>> {
        let numbered = (1..).zip(&stored.history);
        let keys: HashMap<&str, usize> = numbered
            .filter_map(|(version, one)| Some((one.key.as_deref()?, version)))
            .collect();
        let claim = |exchange: &&'a Exchange| {
            let said = exchange.said()?;
            let (mut lowest, mut highest) = self.versions(exchange.sent_at, exchange.ended_at);
            match &exchange.ask {
                Ask::Balance { .. } | Ask::History(_) if said.status == 200 => {}
                Ask::Balance { .. } | Ask::History(_) => return None,
                Ask::Change(change) => {
                    let under_key = change.key.as_deref().and_then(|key| keys.get(key).copied());
                    match (said.code.as_str(), under_key) {
                        // From that version on the answer is that one again.
                        ("insufficient_funds" | "approver_denied", Some(version)) => highest = highest.min(version - 1),
                        ("insufficient_funds", None) => {}
                        ("idempotency_key_reused", Some(version)) => lowest = lowest.max(version),
                        _ => return None,
                    }
                }
            }
            Some(Claim {
                exchange,
                said,
                versions: (lowest, highest),
                true_of: Vec::new(),
            })
        };
        exchanges.iter().filter_map(claim).collect()
    }
}

/// An answer that is true of some versions.
struct Claim<'a> {
    exchange: &'a Exchange,
    said: &'a Said,
    /// Those that it may be true of, the first and the last; of its time, and for a refusal before what its key stands for.
    versions: (usize, usize),
    /// Those of them that it is true of.
    true_of: Vec<usize>,
}

impl Claim<'_> {
    fn is_true_of(&self, timeline: &Timeline, history: &[Stored]) -> bool {
        let body = &self.said.body;
        match &self.exchange.ask {
            Ask::Change(_) if self.said.code != "insufficient_funds" => true,
            Ask::Change(change) => {
                let found = timeline.first_negative(change.timestamp, change.change);
                let said = (moment(&body["at"]), body["shortfall"].as_u64().map(i128::from));
                let available = body["available"].as_i64().map(i128::from);
                found.is_some_and(|(at, shortfall)| said == (Some(at), Some(shortfall)))
                    && available == Some(timeline.available_at(change.timestamp))
            }
            Ask::Balance { user, at } => {
                let balance = body["balance"].as_i64().map(i128::from);
                body["userId"] == *user
                    && moment(&body["timestamp"]).is_some_and(|said| {
                        at.is_none_or(|at| at == said) && balance == Some(timeline.balance_at(said))
                    })
            }
            Ask::History(page) => is_page(body, page, timeline, history),
        }
    }

    fn kind(&self) -> Kind {
        match self.exchange.ask {
            Ask::Change(_) if self.said.code == "insufficient_funds" => Kind::UnexplainedRefusal,
            Ask::Change(_) => Kind::WrongAnswer,
            Ask::Balance { .. } | Ask::History(_) => Kind::StaleRead,
        }
    }
}

fn is_page(body: &Value, page: &Page, timeline: &Timeline, history: &[Stored]) -> bool {
    let Some(entries) = body["operations"].as_array() else {
        return false;
    };
    let bounds = (page.from.unwrap_or(Micros::MIN), page.to);
    let beyond = page.beyond.as_ref().map(|end| end.last);
    // One more tells whether there is a next page.
    let mut expected = timeline.page(bounds, page.ascending, beyond, page.limit + 1);
    let has_next = expected.len() > page.limit;
    expected.truncate(page.limit);
    body["userId"] == *page.user
        && body["nextCursor"].is_string() == has_next
        && entries.len() == expected.len()
        && entries
            .iter()
            .zip(expected)
            .all(|(entry, expected)| is_entry(entry, expected, history))
}

fn is_entry(entry: &Value, (timestamp, seq, change, balance): (Micros, i64, i64, i128), history: &[Stored]) -> bool {
    // A gap is told elsewhere.
    let place = usize::try_from(seq - 1).ok();
    let stored = place.and_then(|place| history.get(place));
    moment(&entry["timestamp"]) == Some(timestamp)
        && entry["seq"] == seq
        && entry["balanceChange"] == change
        && entry["balance"].as_i64().map(i128::from) == Some(balance)
        && stored.is_some_and(|one| {
            entry["operationId"] == *one.operation_id
                && entry["context"] == *one.context
                && entry["approved"] == one.approved
        })
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
            if version <= last && claim.is_true_of(&timeline, history) {
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
            let (first, last) = claim.versions;
            say(
                claim.kind(),
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
