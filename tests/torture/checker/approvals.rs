//! Each big change that is stored has an approval of its own, and each denial that was answered one of its own: asked for
//! and given while a request for the change was under way, and not after the caller had given it up.

use std::collections::HashMap;
use std::time::Duration;

use super::matching::pair;
use super::{Kind, Violation};
use crate::evidence::{Ask, Change, Evidence, Exchange, Verdict};
use crate::model::Stored;

/// User, amount, and whether it was approved.
type Matter<'a> = (&'a str, i64, bool);

/// What needs a verdict of its own.
struct Seeker<'a> {
    what: String,
    exchanges: Vec<&'a Exchange>,
    /// When the verdict must have been given at the latest, if that is known.
    until: Duration,
}

pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut verdicts: HashMap<Matter<'_>, Vec<&Verdict>> = HashMap::new();
    for verdict in &evidence.verdicts {
        let matter = (verdict.user.as_str(), verdict.change, verdict.approved);
        verdicts.entry(matter).or_default().push(verdict);
    }
    for (matter, seekers) in seekers(evidence, &mut violations) {
        let verdicts = verdicts.get(&matter).map_or(&[][..], Vec::as_slice);
        let usable = |seeker: &Seeker<'_>| -> Vec<usize> {
            let numbered = verdicts.iter().enumerate();
            let usable = numbered.filter(|(_, verdict)| seeker.can_use(verdict, evidence));
            usable.map(|(place, _)| place).collect()
        };
        let fitting: Vec<Vec<usize>> = seekers.iter().map(usable).collect();
        for (seeker, has) in seekers.iter().zip(pair(&fitting, verdicts.len())) {
            if has.is_none() {
                let (user, _, approved) = matter;
                let verdict = if approved { "approval" } else { "denial" };
                let explanation = format!("no {verdict} of its own among {verdicts:?} for {}", seeker.what);
                violations.push(Violation::new(Kind::Unapproved, user, explanation));
            }
        }
    }
    violations
}

fn seekers<'a>(evidence: &'a Evidence, violations: &mut Vec<Violation>) -> HashMap<Matter<'a>, Vec<Seeker<'a>>> {
    let mut seekers: HashMap<Matter<'_>, Vec<Seeker<'_>>> = HashMap::new();
    let mut asked: HashMap<(&str, &str), Vec<&Exchange>> = HashMap::new();
    for exchange in &evidence.exchanges {
        let Ask::Change(change) = &exchange.ask else { continue };
        asked.entry((&change.user, &change.context)).or_default().push(exchange);
        if exchange.said().is_some_and(|said| said.code == "approver_denied") {
            let seeker = Seeker {
                what: format!("{exchange:?}"),
                exchanges: vec![exchange],
                until: exchange.ended_at,
            };
            seekers.entry(matter_of(change, false)).or_default().push(seeker);
        }
    }
    for (user, stored) in &evidence.stored {
        for one in &stored.history {
            let is_big = one.change.unsigned_abs() > evidence.threshold;
            if one.approved != is_big {
                let explanation = format!("whether it was approved is wrong: {one:?}");
                violations.push(Violation::new(Kind::Unapproved, user, explanation));
            }
            if is_big {
                let exchanges = asked.get(&(user.as_str(), one.context.as_str()));
                let seeker = Seeker::stored(one, exchanges.map_or(&[][..], Vec::as_slice));
                seekers.entry((user, one.change, true)).or_default().push(seeker);
            }
        }
    }
    seekers
}

fn matter_of(change: &Change, approved: bool) -> Matter<'_> {
    (&change.user, change.change, approved)
}

impl<'a> Seeker<'a> {
    /// A change that is stored, and all the requests for it.
    fn stored(one: &Stored, exchanges: &[&'a Exchange]) -> Self {
        let is_first = |exchange: &&&Exchange| exchange.said().is_some_and(|said| said.outcome() == "accepted");
        let by_this = exchanges.iter().find(is_first).map(|exchange| vec![*exchange]);
        let may_be = || exchanges.iter().copied().filter(|exchange| exchange.may_have_stored());
        let answered = exchanges
            .iter()
            .filter(|exchange| exchange.said().is_some_and(|said| said.status == 200));
        Self {
            what: format!("{one:?}"),
            exchanges: by_this.unwrap_or_else(|| may_be().collect()),
            until: answered
                .map(|exchange| exchange.ended_at)
                .min()
                .unwrap_or(Duration::MAX),
        }
    }

    fn can_use(&self, verdict: &Verdict, evidence: &Evidence) -> bool {
        let taken = verdict.sent_at.saturating_sub(verdict.asked_at);
        let is_within = |exchange: &&Exchange| {
            let slept = evidence.slept_over(exchange);
            let end = match exchange.said() {
                Some(_) => exchange.ended_at,
                // The replica goes on when its client has gone.
                None => exchange.sent_at + evidence.longest_answer + slept,
            };
            exchange.sent_at <= verdict.asked_at && verdict.sent_at <= end && taken <= evidence.longest_verdict + slept
        };
        verdict.sent_at <= self.until && self.exchanges.iter().any(is_within)
    }
}
