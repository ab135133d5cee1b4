//! What was answered, stored and logged is explained by a replay of what is stored.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Exchange, What};
use crate::model::{Model, Stored, StoredUser, assert_same, micros};

/// Every answer to changes and reads of one user is explained by the user's history, which is replayed.
pub(super) fn answers(stored: &StoredUser, exchanges: &[&Exchange]) {
    let by_id: HashMap<&str, &Stored> = by(stored, |one| Some(one.operation_id.as_str()));
    let by_key: HashMap<&str, &Stored> = by(stored, |one| one.key.as_deref());
    let by_context: HashMap<&str, &Stored> = by(stored, |one| Some(one.context.as_str()));
    // When each stored operation may have been stored at the earliest, and when it was known to be at the latest.
    let mut begun: HashMap<i64, Instant> = HashMap::new();
    let mut known: Vec<(Instant, i64)> = Vec::new();
    for exchange in exchanges {
        let What::Change { context, .. } = &exchange.ask.what else {
            continue;
        };
        if let Some(one) = by_context.get(context.as_str()) {
            let earliest = begun.entry(one.seq).or_insert(exchange.begin);
            *earliest = exchange.begin.min(*earliest);
        }
        if let Some(id) = exchange.answer.body["operationId"].as_str() {
            let one = by_id.get(id).unwrap_or_else(|| panic!("not stored: {exchange:#?}"));
            known.push((exchange.end, one.seq));
        }
    }
    assert_eq!(begun.len(), stored.history.len(), "stored and not asked for");

    // What an answer says of the state it was given on must be true of a version between these two.
    let mut claims: Vec<(RangeInclusive<i64>, &Exchange)> = Vec::new();
    for exchange in exchanges {
        let before = known.iter().filter(|(end, _)| *end < exchange.begin);
        let after = begun.iter().filter(|(_, begin)| **begin > exchange.end);
        let low = before.map(|(_, seq)| *seq).max().unwrap_or(0);
        let high = after
            .map(|(seq, _)| seq - 1)
            .min()
            .unwrap_or(stored.history.len() as i64);
        let What::Change {
            context,
            change,
            timestamp,
            key,
        } = &exchange.ask.what
        else {
            assert_eq!(exchange.answer.status, 200, "{exchange:#?}");
            claims.push((low..=high, exchange));
            continue;
        };
        let of_key = key.as_deref().and_then(|key| by_key.get(key));
        let body = &exchange.answer.body;
        match (exchange.answer.status.as_u16(), exchange.answer.code()) {
            (200, _) => {
                let one = by_id[body["operationId"].as_str().unwrap()];
                let replayed = exchange.answer.headers.contains_key("idempotency-replayed");
                assert!((low < one.seq || replayed) && one.seq <= high, "{one:?} {exchange:#?}");
                let said = (&one.context, one.change, one.timestamp, &one.key);
                assert_eq!(said, (context, *change, *timestamp, key), "{exchange:#?}");
                assert_eq!(body["balance"], one.balance_after, "{exchange:#?}");
                assert_eq!(body["balanceChange"], *change);
                assert_eq!(micros(body["timestamp"].as_str().unwrap()), *timestamp);
            }
            (403, "insufficient_funds") => claims.push((low..=high, exchange)),
            (422, "idempotency_key_reused") => {
                let one = of_key.unwrap_or_else(|| panic!("the key is not stored: {exchange:#?}"));
                assert!(one.seq <= high && one.context != *context, "{one:?} {exchange:#?}");
            }
            (503, "outcome_unknown") => {}
            // Nothing was changed; under a key, another attempt may have come through.
            (503, "too_many_conflicts" | "database_unavailable" | "overloaded") => {
                assert!(
                    key.is_some() || !by_context.contains_key(context.as_str()),
                    "{exchange:#?}"
                );
            }
            _ => panic!("an answer that nothing explains: {exchange:#?}"),
        }
    }
    stored.verify(|version, model| {
        claims.retain(|(versions, exchange)| !(versions.contains(&version) && is_true(exchange, model)));
    });
    assert!(claims.is_empty(), "true of none of these versions: {claims:#?}");
}

/// Whether the answer is right when the model's operations are all there is.
fn is_true(exchange: &Exchange, model: &Model) -> bool {
    let body = &exchange.answer.body;
    match &exchange.ask.what {
        What::Read(at) => {
            let said = micros(body["timestamp"].as_str().unwrap());
            assert!(at.is_none_or(|at| at == said), "{exchange:#?}");
            model.balance_at(said) == i128::from(body["balance"].as_i64().unwrap())
        }
        What::Change { change, timestamp, .. } => {
            let said = (
                micros(body["at"].as_str().unwrap()),
                body["shortfall"].as_u64().unwrap().into(),
            );
            let available = i128::from(body["available"].as_i64().unwrap());
            model.first_negative(*timestamp, *change) == Some(said) && model.available_at(*timestamp) == available
        }
    }
}

/// The stored operations by a name that at most one of them may have.
fn by<'a>(stored: &'a StoredUser, name: impl Fn(&'a Stored) -> Option<&'a str>) -> HashMap<&'a str, &'a Stored> {
    let mut all = HashMap::new();
    for one in &stored.history {
        if let Some(name) = name(one) {
            let other = all.insert(name, one);
            assert!(other.is_none(), "stored twice: {one:?} and {other:?}");
        }
    }
    all
}

/// Each replica has written one line for each of its answers, and no other.
pub(super) fn lines_match_answers(exchanges: &[Exchange], logs: &[Vec<Value>]) {
    for (replica, lines) in logs.iter().enumerate() {
        let answers = exchanges.iter().filter(|exchange| exchange.replica == replica);
        let expected = answers.map(|exchange| {
            let body = &exchange.answer.body;
            let outcome = match exchange.answer.code() {
                "" if exchange.answer.headers.contains_key("idempotency-replayed") => "replayed",
                "" => "accepted",
                code => code,
            };
            let asked = match &exchange.ask.what {
                What::Change {
                    context,
                    change,
                    timestamp,
                    ..
                } => format!("changeBalance {context:?} {change} at {timestamp}"),
                What::Read(_) => format!("getBalance at {}", micros(body["timestamp"].as_str().unwrap())),
            };
            let user = json!(exchange.ask.user);
            format!("{user} {asked}: {outcome} {} {}", body["operationId"], body["balance"])
        });
        let written = lines.iter().map(|line| {
            let moment = micros(line["timestamp"].as_str().unwrap());
            let operation = line["operation"].as_str().unwrap();
            let asked = match line["context"].as_str() {
                Some(context) => format!("{operation} {context:?} {} at {moment}", line["balanceChange"]),
                None => format!("{operation} at {moment}"),
            };
            let outcome = line["outcome"].as_str().unwrap();
            let id = if outcome == "outcome_unknown" {
                &Value::Null
            } else {
                &line["operationId"]
            };
            format!("{} {asked}: {outcome} {id} {}", line["userId"], line["balance"])
        });
        assert_same("the answers and the lines", expected.collect(), written.collect());
    }
}

/// Every stored operation has one line that says so, in one of the logs.
pub fn lines_match_history(stored: &[&Stored], logs: &[Vec<Value>]) {
    let changes = logs
        .iter()
        .flatten()
        .filter(|line| line["operation"] == "changeBalance");
    let told = changes.filter(|line| match line["outcome"].as_str().unwrap() {
        "accepted" => true,
        // One that could not be told from a lost one when its time was up.
        "outcome_unknown" => stored.iter().any(|one| line["operationId"] == *one.operation_id),
        _ => false,
    });
    let told = told.map(|line| line["operationId"].as_str().unwrap().to_owned());
    let kept = stored.iter().map(|one| one.operation_id.clone());
    assert_same(
        "the stored operations and the accepted lines",
        kept.collect(),
        told.collect(),
    );
}

/// The Approver was asked once for each big operation that was stored, and at most once for each that was not.
pub(super) fn big_ones_were_approved(stored: &[&Stored], exchanges: &[Exchange], calls: usize) {
    let kept = stored.iter().filter(|one| one.approved).count();
    let asked = exchanges
        .iter()
        .filter(|one| matches!(&one.ask.what, What::Change { change, .. } if change.unsigned_abs() > 100_000));
    let asked = asked.count();
    assert!(
        (kept..=asked).contains(&calls),
        "{calls} calls, {kept} stored, {asked} asked"
    );
}
