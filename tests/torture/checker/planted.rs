//! The checker is checked: a made-up run in which every promise is kept passes, and each kind of violation that is planted
//! in it is found.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Kind, check, summary};
use crate::evidence::{Ask, Change, Evidence, Exchange, Log, Said, Verdict};
use crate::model::{Micros, Model, Random, Stored, StoredUser, micros, rfc3339};

const USERS: [&str; 2] = ["hot", "cold"];
const THRESHOLD: u64 = 1_000;

/// A service that keeps every promise, and clients whose requests overlap.
struct Sound {
    random: Random,
    evidence: Evidence,
    models: [Model; 2],
}

impl Sound {
    fn run(seed: u64) -> Evidence {
        let instances = ["one", "two"];
        let mut sound = Self {
            random: Random(seed),
            evidence: Evidence {
                threshold: THRESHOLD,
                logs: instances
                    .map(|name| Log {
                        instance: name.to_owned(),
                        ..Log::default()
                    })
                    .into(),
                ..Evidence::default()
            },
            models: Default::default(),
        };
        for number in 0..200 {
            sound.step(number);
        }
        sound.evidence
    }

    /// One request, carried out at a moment between its sending and its answer.
    fn step(&mut self, number: u64) {
        let user = usize::from(self.random.percent(30));
        let carried_out = Duration::from_millis(10 * number);
        let around = |random: &mut Random| Duration::from_millis(random.next() % 60);
        let sent_at = carried_out.saturating_sub(around(&mut self.random));
        let ended_at = carried_out + around(&mut self.random);
        let ask = self.ask(user, number);
        let repeats = match &ask {
            Ask::Change(change) if change.key.is_some() => 2,
            _ => 1,
        };
        for _ in 0..repeats {
            let said = self.answer(user, &ask);
            // Some answers are lost on their way; under a key the last one never is.
            let lost = self.random.percent(10) && repeats == 1;
            self.evidence.exchanges.push(Exchange {
                ask: ask.clone(),
                sent_at,
                ended_at,
                said: (!lost).then_some(said),
            });
        }
    }

    fn ask(&mut self, user: usize, number: u64) -> Ask {
        let random = &mut self.random;
        let user = USERS[user].to_owned();
        match random.next() % 10 {
            0..2 => Ask::Balance {
                user,
                at: random.percent(80).then(|| random.between(0, 100) * 1_000_000),
            },
            2 => Ask::History {
                user,
                to: 1_000_000_000_000 + i64::try_from(number).unwrap(),
                limit: 5,
            },
            _ => {
                let is_big = random.percent(15);
                let change = if is_big {
                    2_000 + i64::try_from(number).unwrap()
                } else {
                    random.between(-500, 400)
                };
                Ask::Change(Arc::new(Change {
                    user,
                    context: format!("change {number}"),
                    change,
                    timestamp: random.between(1, 99) * 1_000_000,
                    key: random.percent(30).then(|| format!("key {number}")),
                }))
            }
        }
    }

    fn answer(&mut self, user: usize, ask: &Ask) -> Said {
        let log = usize::from(self.random.percent(50));
        let model = &mut self.models[user];
        let stored = self.evidence.stored.entry(USERS[user].to_owned()).or_default();
        let instance = self.evidence.logs[log].instance.clone();
        let (said, moment) = match ask {
            Ask::Balance { at, .. } => {
                let at = at.unwrap_or(70_000_000);
                let balance = i64::try_from(model.balance_at(at)).unwrap();
                (
                    good(json!({ "userId": USERS[user], "timestamp": rfc3339(at), "balance": balance })),
                    at,
                )
            }
            Ask::History { to, limit, .. } => (good(json!({ "operations": page(stored, *limit) })), *to),
            Ask::Change(change) => {
                let said = change_answer(change, model, stored, &mut self.evidence.verdicts, &instance);
                (said, change.timestamp)
            }
        };
        self.evidence.logs[log].lines.push(line(&instance, ask, &said, moment));
        finish(stored);
        said
    }
}

fn good(body: Value) -> Said {
    Said {
        status: 200,
        code: String::new(),
        replayed: false,
        body,
    }
}

fn problem(status: u16, body: Value) -> Said {
    Said {
        status,
        code: body["code"].as_str().unwrap().to_owned(),
        replayed: false,
        body,
    }
}

fn accepted(user: &str, one: &Stored) -> Said {
    good(
        json!({ "operationId": one.operation_id, "userId": user, "timestamp": rfc3339(one.timestamp),
        "balanceChange": one.change, "balance": one.balance_after }),
    )
}

fn change_answer(
    change: &Change,
    model: &mut Model,
    stored: &mut StoredUser,
    verdicts: &mut Vec<Verdict>,
    instance: &str,
) -> Said {
    let earlier = stored
        .history
        .iter()
        .find(|one| one.key.is_some() && one.key == change.key);
    if let Some(earlier) = earlier {
        return Said {
            replayed: true,
            ..accepted(&change.user, earlier)
        };
    }
    let approved = change.change.unsigned_abs() > THRESHOLD;
    if approved {
        let verdict = change.change % 7 != 0;
        verdicts.push(Verdict {
            user: change.user.clone(),
            change: change.change,
            approved: verdict,
        });
        if !verdict {
            return problem(403, json!({ "code": "approver_denied" }));
        }
    }
    if let Some((at, shortfall)) = model.first_negative(change.timestamp, change.change) {
        let shortfall = u64::try_from(shortfall).unwrap();
        return problem(
            403,
            json!({ "code": "insufficient_funds", "at": rfc3339(at), "shortfall": shortfall }),
        );
    }
    model.insert(change.timestamp, change.change);
    stored.history.push(Stored {
        seq: i64::try_from(stored.history.len()).unwrap() + 1,
        timestamp: change.timestamp,
        change: change.change,
        balance_after: i64::try_from(model.balance_at(change.timestamp)).unwrap(),
        context: change.context.clone(),
        operation_id: format!("id of {} {}", change.user, change.context),
        key: change.key.clone(),
        approved,
        instance: instance.to_owned(),
    });
    accepted(&change.user, stored.history.last().unwrap())
}

fn page(stored: &StoredUser, limit: usize) -> Vec<Value> {
    let mut order: Vec<&Stored> = stored.history.iter().collect();
    order.sort_by_key(|one| (one.timestamp, one.seq));
    let mut balance = 0;
    let mut entries = Vec::new();
    for one in order {
        balance += one.change;
        entries.push(
            json!({ "timestamp": rfc3339(one.timestamp), "seq": one.seq, "balanceChange": one.change,
            "balance": balance }),
        );
    }
    entries.into_iter().rev().take(limit).collect()
}

fn line(instance: &str, ask: &Ask, said: &Said, moment: Micros) -> Value {
    let mut line = json!({ "at": "2026-01-31T12:00:00.000001Z", "instance": instance, "outcome": said.outcome(),
        "userId": ask.user(), "timestamp": rfc3339(moment) });
    line["operation"] = match ask {
        Ask::Change(_) => "changeBalance",
        Ask::Balance { .. } => "getBalance",
        Ask::History { .. } => "getHistory",
    }
    .into();
    for name in ["balance", "operationId"] {
        if !said.body[name].is_null() {
            line[name] = said.body[name].clone();
        }
    }
    if let Ask::Change(change) = ask {
        line["context"] = change.context.clone().into();
        line["balanceChange"] = change.change.into();
    }
    line
}

/// The row and the checkpoints, one after every seventh operation.
fn finish(stored: &mut StoredUser) {
    let mut order: Vec<&Stored> = stored.history.iter().collect();
    order.sort_by_key(|one| (one.timestamp, one.seq));
    let Some(latest) = order.last().map(|one| one.timestamp) else {
        return;
    };
    let mut model = Model::default();
    order.iter().for_each(|one| model.insert(one.timestamp, one.change));
    let balance_at = |at| i64::try_from(model.balance_at(at)).unwrap();
    let mut after = Micros::MIN;
    let mut checkpoints = Vec::new();
    for until in order.iter().skip(6).step_by(7).map(|one| one.timestamp) {
        let moments = order.iter().map(|one| one.timestamp);
        let balances: Vec<i64> = moments
            .filter(|moment| after < *moment && *moment <= until)
            .map(balance_at)
            .collect();
        if let (Some(lowest), Some(highest)) = (balances.iter().min(), balances.iter().max()) {
            checkpoints.push((until, balance_at(until), *lowest, *highest));
            after = until;
        }
    }
    let later = order.iter().filter(|one| one.timestamp > after).count();
    let version = i64::try_from(order.len()).unwrap();
    stored.row = Some((balance_at(latest), version, latest, i32::try_from(later).unwrap()));
    stored.checkpoints = checkpoints;
}

/// What each test plants its violation in: a run whose "hot" user has enough of everything.
fn sound() -> Evidence {
    Sound::run(1)
}

fn hot(evidence: &mut Evidence) -> &mut StoredUser {
    evidence.stored.get_mut("hot").unwrap()
}

#[track_caller]
fn found(evidence: &Evidence, kind: Kind) {
    let violations = check(evidence);
    assert!(
        violations.iter().any(|violation| violation.kind == kind),
        "{kind:?} is not found, but {}",
        summary(&violations)
    );
}

/// The first exchange that was answered so and does not concern a key.
fn answered<'a>(evidence: &'a mut Evidence, code: &str) -> &'a mut Exchange {
    let is_it = |exchange: &&mut Exchange| match (&exchange.ask, &exchange.said) {
        (Ask::Change(change), Some(said)) => said.code == code && change.key.is_none() && change.user == "hot",
        _ => false,
    };
    evidence.exchanges.iter_mut().find(is_it).unwrap()
}

fn find_line<'a>(evidence: &'a mut Evidence, outcome: &str) -> (usize, usize, &'a mut Value) {
    let lines = evidence.logs.iter_mut().enumerate().flat_map(|(log, of)| {
        let numbered = of.lines.iter_mut().enumerate();
        numbered.map(move |(place, line)| (log, place, line))
    });
    let mut lines = lines.filter(|(.., line)| line["outcome"] == outcome && line["operation"] == "changeBalance");
    lines.next().unwrap()
}

#[test]
fn a_run_in_which_every_promise_is_kept_passes() {
    for seed in 0..100 {
        let violations = check(&Sound::run(seed));
        assert!(violations.is_empty(), "seed {seed}: {}", summary(&violations));
    }
}

#[test]
fn a_lost_change_is_found() {
    let mut evidence = sound();
    let Ask::Change(change) = answered(&mut evidence, "").ask.clone() else {
        unreachable!()
    };
    hot(&mut evidence).history.retain(|one| one.context != change.context);
    found(&evidence, Kind::LostChange);
    found(&evidence, Kind::VersionGap);
    found(&evidence, Kind::ForgedLine);
}

#[test]
fn a_doubled_change_is_found() {
    let mut evidence = sound();
    let stored = hot(&mut evidence);
    let last = stored.history.iter().max_by_key(|one| one.change).unwrap();
    let again = Stored {
        seq: stored.row.unwrap().1 + 1,
        operation_id: "another".to_owned(),
        ..last.clone()
    };
    stored.history.push(again);
    finish(stored);
    found(&evidence, Kind::DoubledChange);
    found(&evidence, Kind::MissingLine);
}

#[test]
fn a_change_answered_as_new_twice_is_found() {
    let mut evidence = sound();
    let replayed = evidence
        .exchanges
        .iter_mut()
        .filter_map(|exchange| exchange.said.as_mut());
    replayed
        .filter(|said| said.replayed)
        .for_each(|said| said.replayed = false);
    found(&evidence, Kind::DoubledChange);
}

#[test]
fn a_refused_change_that_is_stored_is_found() {
    for (status, code) in [
        (403, "insufficient_funds"),
        (503, "database_unavailable"),
        (503, "too_many_conflicts"),
    ] {
        let mut evidence = sound();
        answered(&mut evidence, "").said = Some(problem(status, json!({ "code": code })));
        found(&evidence, Kind::RefusedYetStored);
        found(&evidence, Kind::MissingLine);
    }
}

#[test]
fn a_change_that_nobody_asked_for_is_found() {
    let mut evidence = sound();
    hot(&mut evidence).history[0].context = "made up".to_owned();
    found(&evidence, Kind::ForgedChange);
    let mut evidence = sound();
    hot(&mut evidence).history[0].timestamp += 1;
    found(&evidence, Kind::ForgedChange);
}

#[test]
fn a_negative_moment_is_found() {
    let mut evidence = sound();
    let stored = hot(&mut evidence);
    let balance = stored.row.unwrap().0;
    let last = stored.history.last_mut().unwrap();
    last.change -= balance + last.change.max(0) + 1;
    found(&evidence, Kind::NegativeMoment);
}

#[test]
fn what_does_not_follow_from_the_history_is_found() {
    let mut evidence = sound();
    hot(&mut evidence).history[3].balance_after += 1;
    found(&evidence, Kind::WrongStored);
    for column in 0..4 {
        let mut evidence = sound();
        let row = hot(&mut evidence).row.as_mut().unwrap();
        *row = (
            row.0 + i64::from(column == 0),
            row.1 + i64::from(column == 1),
            row.2 + i64::from(column == 2),
            row.3 + i32::from(column == 3),
        );
        found(&evidence, Kind::WrongStored);
        let mut evidence = sound();
        let checkpoint = &mut hot(&mut evidence).checkpoints[1];
        checkpoint.0 += i64::from(column == 0);
        checkpoint.1 += i64::from(column == 1);
        checkpoint.2 += i64::from(column == 2);
        checkpoint.3 += i64::from(column == 3);
        found(&evidence, Kind::WrongStored);
    }
}

#[test]
fn a_change_that_comes_after_one_that_began_later_is_found() {
    let mut evidence = sound();
    let stored = hot(&mut evidence);
    let last = stored.history.pop().unwrap();
    stored.history.insert(0, last);
    for (seq, one) in (1..).zip(&mut stored.history) {
        one.seq = seq;
    }
    found(&evidence, Kind::OutOfOrder);
}

#[test]
fn a_stale_read_is_found() {
    let mut evidence = sound();
    // Before the run's last second nothing was deposited, says the last read.
    let reads = evidence.exchanges.iter_mut().rev();
    let mut reads = reads.filter(|one| matches!(one.ask, Ask::Balance { .. }) && one.ask.user() == "hot");
    let read = reads.find(|one| one.said.as_ref().is_some_and(|said| said.body["balance"] != 0));
    read.unwrap().said.as_mut().unwrap().body["balance"] = 0.into();
    found(&evidence, Kind::StaleRead);
}

#[test]
fn a_read_that_sees_less_than_an_earlier_one_is_found() {
    let second = Duration::from_secs;
    let deposit = Arc::new(Change {
        user: "hot".to_owned(),
        context: "deposit".to_owned(),
        change: 5,
        timestamp: 1_000_000,
        key: None,
    });
    let read = |at, balance: i64| Exchange {
        ask: Ask::Balance {
            user: "hot".to_owned(),
            at: Some(2_000_000),
        },
        sent_at: second(at),
        ended_at: second(at + 1),
        said: Some(good(
            json!({ "userId": "hot", "timestamp": rfc3339(2_000_000), "balance": balance }),
        )),
    };
    let mut evidence = Evidence {
        threshold: THRESHOLD,
        ..Evidence::default()
    };
    let stored = evidence.stored.entry("hot".to_owned()).or_default();
    change_answer(&deposit, &mut Model::default(), stored, &mut Vec::new(), "one");
    // The deposit is under way all the time: alone, each read is true.
    let change = Exchange {
        ask: Ask::Change(deposit),
        sent_at: second(0),
        ended_at: second(9),
        said: None,
    };
    evidence.exchanges = vec![change, read(1, 0), read(3, 5)];
    let is_stale = |evidence: &Evidence| {
        check(evidence)
            .iter()
            .any(|violation| violation.kind == Kind::StaleRead)
    };
    assert!(!is_stale(&evidence));
    evidence.exchanges.push(read(5, 0));
    assert!(is_stale(&evidence));
}

#[test]
fn a_page_that_leaves_out_an_operation_is_found() {
    let mut evidence = sound();
    let pages = evidence
        .exchanges
        .iter_mut()
        .filter(|one| matches!(one.ask, Ask::History { .. }));
    let mut entries = pages.filter_map(|one| one.said.as_mut()?.body["operations"].as_array_mut());
    entries.find(|entries| entries.len() == 5).unwrap().remove(2);
    found(&evidence, Kind::StaleRead);
}

#[test]
fn a_refusal_that_was_never_true_is_found() {
    for field in ["shortfall", "at"] {
        let mut evidence = sound();
        let body = &mut answered(&mut evidence, "insufficient_funds")
            .said
            .as_mut()
            .unwrap()
            .body;
        body[field] = match field {
            "shortfall" => (body["shortfall"].as_u64().unwrap() + 1).into(),
            _ => rfc3339(micros(body["at"].as_str().unwrap()) + 1).into(),
        };
        found(&evidence, Kind::UnexplainedRefusal);
    }
}

#[test]
fn an_answer_that_differs_from_what_is_stored_is_found() {
    for field in ["balance", "operationId"] {
        let mut evidence = sound();
        answered(&mut evidence, "").said.as_mut().unwrap().body[field] = 7.into();
        found(&evidence, Kind::WrongAnswer);
        found(&evidence, Kind::MissingLine);
    }
}

#[test]
fn a_keyed_change_without_a_final_answer_is_found() {
    let mut evidence = sound();
    for exchange in &mut evidence.exchanges {
        if matches!(&exchange.ask, Ask::Change(change) if change.key.is_some()) {
            exchange.said = None;
        }
    }
    found(&evidence, Kind::Unsettled);
}

#[test]
fn an_unapproved_big_change_is_found() {
    let mut evidence = sound();
    evidence.verdicts.retain(|verdict| !verdict.approved);
    found(&evidence, Kind::Unapproved);
    let mut evidence = sound();
    evidence.verdicts.retain(|verdict| verdict.approved);
    found(&evidence, Kind::Unapproved);
    let mut evidence = sound();
    let big = hot(&mut evidence).history.iter_mut().find(|one| one.approved);
    big.unwrap().approved = false;
    found(&evidence, Kind::Unapproved);
}

#[test]
fn a_missing_line_is_found() {
    for outcome in ["accepted", "insufficient_funds"] {
        let mut evidence = sound();
        // Of an answer that arrived.
        let Ask::Change(change) = answered(&mut evidence, if outcome == "accepted" { "" } else { outcome })
            .ask
            .clone()
        else {
            unreachable!()
        };
        for log in &mut evidence.logs {
            log.lines.retain(|line| line["context"] != *change.context);
        }
        found(&evidence, Kind::MissingLine);
    }
    let mut evidence = sound();
    for log in &mut evidence.logs {
        log.lines.retain(|line| line["operation"] != "getHistory");
    }
    found(&evidence, Kind::MissingLine);
}

#[test]
fn a_doubled_line_is_found() {
    for outcome in ["accepted", "insufficient_funds", "replayed"] {
        let mut evidence = sound();
        let (log, _, line) = find_line(&mut evidence, outcome);
        let (line, other) = (line.clone(), 1 - log);
        evidence.logs[log].lines.push(line.clone());
        found(&evidence, Kind::DoubledLine);
        let mut evidence = sound();
        let moved = json!({ "instance": evidence.logs[other].instance });
        let line = merged(line, &moved);
        evidence.logs[other].lines.push(line);
        found(&evidence, Kind::DoubledLine);
    }
}

fn merged(mut line: Value, with: &Value) -> Value {
    for (name, value) in with.as_object().unwrap() {
        line[name] = value.clone();
    }
    line
}

#[test]
fn a_forged_line_is_found() {
    let forgeries = [
        json!({ "context": "never asked" }),
        json!({ "balanceChange": 1_234_567 }),
        json!({ "balance": 1_234_567 }),
        json!({ "operationId": "never stored" }),
        json!({ "timestamp": rfc3339(1_234_567) }),
        json!({ "userId": "somebody else" }),
    ];
    for forgery in forgeries {
        let mut evidence = sound();
        let (.., line) = find_line(&mut evidence, "accepted");
        *line = merged(line.clone(), &forgery);
        found(&evidence, Kind::ForgedLine);
    }
    // Refused, says the line; accepted, said the answer.
    let mut evidence = sound();
    let (.., line) = find_line(&mut evidence, "accepted");
    line["outcome"] = "insufficient_funds".into();
    found(&evidence, Kind::MissingLine);
}

#[test]
fn a_line_in_the_log_of_another_replica_is_found() {
    let mut evidence = sound();
    let (log, place, _) = find_line(&mut evidence, "accepted");
    let line = evidence.logs[log].lines.remove(place);
    let moved = merged(line, &json!({ "instance": evidence.logs[1 - log].instance }));
    evidence.logs[1 - log].lines.push(moved);
    found(&evidence, Kind::ForgedLine);
}

#[test]
fn torn_lines_are_found_unless_the_replica_was_killed() {
    let mut evidence = sound();
    evidence.logs[0].lines.push(Value::Null);
    found(&evidence, Kind::UnreadableLine);
    evidence.logs[0].kills = 1;
    assert!(check(&evidence).is_empty());
    evidence.logs[0].lines[0].as_object_mut().unwrap().remove("at");
    found(&evidence, Kind::UnreadableLine);
}
