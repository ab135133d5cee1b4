//! Every change answered 200 is stored once, every one refused is not, any other once or not at all; and a repeat is
//! answered as one.

use std::collections::HashMap;

use super::{Kind, Violation, moment};
use crate::evidence::{Ask, Change, Evidence, Exchange, Said};
use crate::model::Stored;

/// A change that was asked for, and every time it was.
struct Asked<'a> {
    change: &'a Change,
    exchanges: Vec<&'a Exchange>,
}

pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut asked: HashMap<(&str, &str), Asked<'_>> = HashMap::new();
    for exchange in &evidence.exchanges {
        if let Ask::Change(change) = &exchange.ask {
            let entry = asked.entry((&change.user, &change.context)).or_insert(Asked {
                change,
                exchanges: Vec::new(),
            });
            entry.exchanges.push(exchange);
        }
    }
    let mut stored: HashMap<(&str, &str), Vec<&Stored>> = HashMap::new();
    let mut keys: HashMap<(&str, &str), &Stored> = HashMap::new();
    for (user, stored_user) in &evidence.stored {
        for one in &stored_user.history {
            stored.entry((user, &one.context)).or_default().push(one);
            if let Some(key) = &one.key
                && let Some(other) = keys.insert((user, key), one)
            {
                let explanation = format!("one key, two changes: {one:?} and {other:?}");
                violations.push(Violation::new(Kind::DoubledChange, user, explanation));
            }
            if !asked.contains_key(&(user.as_str(), one.context.as_str())) {
                let explanation = format!("nobody asked for {one:?}");
                violations.push(Violation::new(Kind::ForgedChange, user, explanation));
            }
        }
    }
    for (name, asked) in &asked {
        let rows = stored.get(name).map_or(&[][..], Vec::as_slice);
        let key = asked.change.key.as_deref();
        let by_key = key.and_then(|key| keys.get(&(name.0, key)).copied());
        let mut say = |kind, explanation: String| violations.push(Violation::new(kind, name.0, explanation));
        asked.stored_once(rows, &mut say);
        asked.answers_agree(rows.first().copied(), by_key, &mut say);
        asked.repeats_have_a_first(&mut say);
    }
    violations
}

impl Asked<'_> {
    fn said(&self) -> impl Iterator<Item = &Said> {
        self.exchanges.iter().filter_map(|exchange| exchange.said())
    }

    fn stored_once(&self, rows: &[&Stored], say: &mut impl FnMut(Kind, String)) {
        let change = self.change;
        match rows {
            [] => {
                if let Some(said) = self.said().find(|said| said.status == 200) {
                    say(
                        Kind::LostChange,
                        format!("{change:?} was answered {said:?} and is not stored"),
                    );
                }
            }
            [row] => {
                let as_asked =
                    row.change == change.change && row.timestamp == change.timestamp && row.key == change.key;
                if !as_asked {
                    say(Kind::ForgedChange, format!("{change:?} is stored as {row:?}"));
                }
                if !self.exchanges.iter().any(|exchange| exchange.may_have_stored()) {
                    let heard: Vec<_> = self.said().map(Said::outcome).collect();
                    say(Kind::RefusedYetStored, format!("{row:?} was answered {heard:?}"));
                }
            }
            [first, second, ..] => say(Kind::DoubledChange, format!("{first:?} and {second:?}")),
        }
        if self.said().filter(|said| said.outcome() == "accepted").count() > 1 {
            say(
                Kind::DoubledChange,
                format!("{change:?} was answered as new more than once"),
            );
        }
    }

    /// `row` is this change as it is stored, `by_key` what is stored under its key.
    fn answers_agree(&self, row: Option<&Stored>, by_key: Option<&Stored>, say: &mut impl FnMut(Kind, String)) {
        for said in self.said() {
            let body = &said.body;
            let agrees = match (said.status, said.code.as_str(), row) {
                (200, _, Some(row)) => {
                    body["operationId"] == *row.operation_id
                        && body["userId"] == *self.change.user
                        && body["balance"] == row.balance_after
                        && body["balanceChange"] == row.change
                        && moment(&body["timestamp"]) == Some(row.timestamp)
                }
                // Said above.
                (200, _, None) => true,
                (422, "idempotency_key_reused", _) => by_key.is_some_and(|one| one.context != self.change.context),
                (403, "insufficient_funds" | "approver_denied", _) | (503, _, _) => true,
                _ => false,
            };
            if !agrees {
                say(
                    Kind::WrongAnswer,
                    format!(
                        "{:?} was answered {said:?}, stored is {row:?}, under its key {by_key:?}",
                        self.change
                    ),
                );
            }
        }
        let is_final = |said: &Said| said.status != 503;
        if self.change.key.is_some() && !self.said().any(is_final) {
            say(Kind::Unsettled, format!("{:?} has no final answer", self.change));
        }
    }

    /// What is answered again was answered, or might have been, to another request.
    fn repeats_have_a_first(&self, say: &mut impl FnMut(Kind, String)) {
        for (place, repeat) in self.exchanges.iter().enumerate() {
            let is_first = |(other, exchange): (usize, &&Exchange)| {
                other != place && exchange.may_have_stored() && exchange.sent_at <= repeat.ended_at
            };
            let is_repeat = repeat.said().is_some_and(|said| said.replayed);
            if is_repeat && !self.exchanges.iter().enumerate().any(is_first) {
                say(Kind::WrongAnswer, format!("nothing was answered before {repeat:?}"));
            }
        }
    }
}
