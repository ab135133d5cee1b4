//! What holds for each answer by itself: it has the form of one, comes in time, and is one of those that the operation has.

use std::time::Duration;

use super::lines::{Subject, subject_of};
use super::{CLOCKS_APART, Kind, Violation, moment};
use crate::evidence::{Ask, Ended, Evidence, Exchange, Said};

pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = Vec::new();
    for exchange in &evidence.exchanges {
        let mut say = |kind, explanation: &str| {
            let explanation = format!("{explanation}: {exchange:?}");
            violations.push(Violation::new(kind, exchange.ask.user(), explanation));
        };
        match &exchange.ended {
            Ended::Malformed(why) => say(Kind::WrongAnswer, why),
            Ended::Answered(said) => said_well(exchange, said, &mut say),
            Ended::NotReached | Ended::Broken => continue,
        }
        if is_late(exchange, evidence) {
            say(Kind::Late, "the answer came too late");
        }
    }
    violations
}

/// A replica that was stopped answers late, and no other does.
fn is_late(exchange: &Exchange, evidence: &Evidence) -> bool {
    let late_by = took(exchange).saturating_sub(evidence.longest_answer);
    let slept = || evidence.slept_over(exchange);
    let chosen_by_balancer = exchange.way >= evidence.logs.len();
    !late_by.is_zero() && (late_by > slept() || chosen_by_balancer && !woke_to_answer(exchange, evidence))
}

/// Whether the log of a replica that had been stopped has a line from after it, as of this answer.
fn woke_to_answer(exchange: &Exchange, evidence: &Evidence) -> bool {
    let clock = |at: Duration| {
        let since = i64::try_from(at.saturating_sub(exchange.sent_at).as_micros()).unwrap_or(i64::MAX);
        exchange.sent_by_clock + since
    };
    evidence.pauses.iter().any(|pause| {
        let woken = clock(pause.to) - CLOCKS_APART..=clock(exchange.ended_at) + CLOCKS_APART;
        evidence.logs[pause.replica].lines.iter().any(|line| {
            let is_of_it = |(operation, user, context): Subject<'_>| {
                line["operation"] == operation
                    && line["userId"] == user
                    && line["context"].as_str().unwrap_or_default() == context
            };
            is_of_it(subject_of(&exchange.ask)) && moment(&line["at"]).is_some_and(|at| woken.contains(&at))
        })
    })
}

fn took(exchange: &Exchange) -> Duration {
    exchange.ended_at.saturating_sub(exchange.sent_at)
}

fn said_well(exchange: &Exchange, said: &Said, say: &mut impl FnMut(Kind, &str)) {
    if said.code == "internal_error" {
        say(Kind::WrongAnswer, "the service failed");
    }
    let is_read = !matches!(exchange.ask, Ask::Change(_));
    if is_read && !matches!(said.status, 200 | 503) {
        say(Kind::WrongAnswer, "a read has no such answer");
    }
    if let Ask::Balance { at: None, .. } = exchange.ask
        && said.status == 200
    {
        let took = i64::try_from(took(exchange).as_micros()).unwrap_or(i64::MAX);
        let now = exchange.sent_by_clock - CLOCKS_APART..=exchange.sent_by_clock + took + CLOCKS_APART;
        if moment(&said.body["timestamp"]).is_none_or(|moment| !now.contains(&moment)) {
            say(Kind::WrongAnswer, "this was not now");
        }
    }
}
