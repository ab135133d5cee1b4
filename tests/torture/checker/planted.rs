//! The checker is checked: a made-up run in which every promise is kept passes, and each kind of violation that is planted
//! in it is found.

mod few;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Kind, check, moment, summary};
use crate::evidence::{Ask, Change, Ended, Evidence, Exchange, Log, Page, PageEnd, Said, Verdict};
use crate::model::{Micros, Model, Random, Stored, StoredUser, rfc3339};

const USERS: [&str; 2] = ["hot", "cold"];
const THRESHOLD: u64 = 1_000;
/// When the runs began on the clock, and how long an answer and a verdict may take.
const BEGAN: Micros = 1_769_860_800_000_000;
const LONGEST_ANSWER: Duration = Duration::from_secs(6);
const LONGEST_VERDICT: Duration = Duration::from_secs(1);

/// A service that keeps every promise, and clients whose requests overlap.
struct Sound {
    random: Random,
    evidence: Evidence,
    models: [Model; 2],
    /// A page that follows one that was read.
    next_page: Option<Page>,
}

fn clock(at: Duration) -> Micros {
    BEGAN + i64::try_from(at.as_micros()).unwrap()
}

fn nothing() -> Evidence {
    Evidence {
        threshold: THRESHOLD,
        longest_answer: LONGEST_ANSWER,
        longest_verdict: LONGEST_VERDICT,
        ..Evidence::default()
    }
}

fn exchange(ask: Ask, (sent_at, ended_at): (Duration, Duration), ended: Ended) -> Exchange {
    Exchange {
        way: 0,
        ask,
        sent_at,
        sent_by_clock: clock(sent_at),
        ended_at,
        ended,
    }
}

impl Sound {
    fn run(seed: u64) -> Evidence {
        let instances = ["one", "two"];
        let mut sound = Self {
            random: Random(seed),
            evidence: Evidence {
                logs: instances
                    .map(|name| Log {
                        instance: name.to_owned(),
                        ..Log::default()
                    })
                    .into(),
                ..nothing()
            },
            models: Default::default(),
            next_page: None,
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
            // Under a key the last one is always answered.
            let fate = if repeats == 1 { self.random.next() % 100 } else { 99 };
            let ended = match fate {
                0..5 => Ended::NotReached,
                5..15 => {
                    self.answer(user, &ask, carried_out);
                    Ended::Broken
                }
                _ => Ended::Answered(self.answer(user, &ask, carried_out)),
            };
            let exchange = exchange(ask.clone(), (sent_at, ended_at), ended);
            self.evidence.exchanges.push(exchange);
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
            2 => {
                let first = Page {
                    user,
                    from: random.percent(30).then(|| random.between(0, 50) * 1_000_000),
                    to: 1_000_000_000_000 + i64::try_from(number).unwrap(),
                    ascending: random.percent(40),
                    limit: 5,
                    beyond: None,
                };
                let next = self.next_page.take().filter(|next| next.user == first.user);
                Ask::History(Arc::new(next.unwrap_or(first)))
            }
            _ => {
                let is_big = random.percent(15);
                let change = if is_big {
                    // Some like no other, some like others.
                    match random.percent(50) {
                        true => 2_000 + random.between(0, 3),
                        false => 3_000 + i64::try_from(number).unwrap(),
                    }
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

    fn answer(&mut self, user: usize, ask: &Ask, carried_out: Duration) -> Said {
        let log = usize::from(self.random.percent(50));
        let model = &mut self.models[user];
        let stored = self.evidence.stored.entry(USERS[user].to_owned()).or_default();
        let instance = self.evidence.logs[log].instance.clone();
        let (mut said, about) = match ask {
            Ask::Balance { at, .. } => {
                let at = at.unwrap_or(clock(carried_out));
                (
                    balance(USERS[user], at, i64::try_from(model.balance_at(at)).unwrap()),
                    at,
                )
            }
            Ask::History(page) => {
                let said = page_answer(stored, page);
                self.next_page = next_page(page, &said);
                (said, page.to)
            }
            Ask::Change(change) => {
                let verdicts = &mut self.evidence.verdicts;
                let said = change_answer(change, model, stored, (verdicts, carried_out), &instance);
                (said, change.timestamp)
            }
        };
        let mut line = line((&instance, carried_out), ask, &said, about);
        if matches!(ask, Ask::Change(_)) && said.outcome() == "accepted" && self.random.percent(5) {
            // The line came when the log could be written again.
            said = problem(503, json!({ "code": "outcome_unknown" }));
            line["recovered"] = true.into();
        }
        self.evidence.logs[log].lines.push(line);
        finish(stored);
        said
    }
}

fn balance(user: &str, at: Micros, balance: i64) -> Said {
    good(json!({ "userId": user, "timestamp": rfc3339(at), "balance": balance }))
}

fn next_page(page: &Page, said: &Said) -> Option<Page> {
    let last = said.body["operations"].as_array()?.last()?;
    let end = PageEnd {
        cursor: said.body["nextCursor"].as_str()?.to_owned(),
        last: (moment(&last["timestamp"])?, last["seq"].as_i64()?),
    };
    Some(Page {
        user: page.user.clone(),
        beyond: Some(end),
        ..*page
    })
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
    (verdicts, at): (&mut Vec<Verdict>, Duration),
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
            asked_at: at,
            sent_at: at,
        });
        if !verdict {
            return problem(403, json!({ "code": "approver_denied" }));
        }
    }
    if let Some((at, shortfall)) = model.first_negative(change.timestamp, change.change) {
        let shortfall = u64::try_from(shortfall).unwrap();
        let available = i64::try_from(model.available_at(change.timestamp)).unwrap();
        return problem(
            403,
            json!({ "code": "insufficient_funds", "at": rfc3339(at), "shortfall": shortfall, "available": available }),
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
        caller: None,
    });
    accepted(&change.user, stored.history.last().unwrap())
}

fn page_answer(stored: &StoredUser, page: &Page) -> Said {
    let mut order: Vec<&Stored> = stored.history.iter().collect();
    order.sort_by_key(|one| (one.timestamp, one.seq));
    let mut balance = 0;
    let mut entries = Vec::new();
    for one in order {
        balance += one.change;
        let entry = json!({ "operationId": one.operation_id, "timestamp": rfc3339(one.timestamp), "seq": one.seq,
            "balanceChange": one.change, "balance": balance, "context": one.context, "approved": one.approved });
        entries.push(((one.timestamp, one.seq), entry));
    }
    if !page.ascending {
        entries.reverse();
    }
    let last = page.beyond.as_ref().map(|end| end.last);
    entries.retain(|(place, _)| {
        page.from.is_none_or(|from| from <= place.0)
            && last.is_none_or(|last| if page.ascending { last < *place } else { *place < last })
    });
    let more = entries.len() > page.limit;
    let entries: Vec<Value> = entries.into_iter().take(page.limit).map(|(_, entry)| entry).collect();
    let mut body = json!({ "userId": page.user, "operations": entries });
    if more {
        body["nextCursor"] = "next".into();
    }
    good(body)
}

fn line((instance, at): (&str, Duration), ask: &Ask, said: &Said, about: Micros) -> Value {
    // With six digits in any case.
    let at = format!("{}.{:06}Z", &rfc3339(clock(at))[..19], clock(at) % 1_000_000);
    let mut line = json!({ "at": at, "instance": instance, "outcome": said.outcome(),
        "userId": ask.user(), "timestamp": rfc3339(about) });
    line["operation"] = match ask {
        Ask::Change(_) => "changeBalance",
        Ask::Balance { .. } => "getBalance",
        Ask::History(_) => "getHistory",
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

impl Exchange {
    /// The answer, to be tampered with.
    fn said_mut(&mut self) -> Option<&mut Said> {
        match &mut self.ended {
            Ended::Answered(said) => Some(said),
            _ => None,
        }
    }
}

/// The first exchange that was answered so and does not concern a key.
fn answered<'a>(evidence: &'a mut Evidence, code: &str) -> &'a mut Exchange {
    let is_it = |exchange: &&mut Exchange| match (&exchange.ask, exchange.said()) {
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
    let replayed = evidence.exchanges.iter_mut().filter_map(Exchange::said_mut);
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
        answered(&mut evidence, "").ended = Ended::Answered(problem(status, json!({ "code": code })));
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
    let read = reads.find(|one| one.said().is_some_and(|said| said.body["balance"] != 0));
    read.unwrap().said_mut().unwrap().body["balance"] = 0.into();
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
    let read = |at, found: i64| {
        let ask = Ask::Balance {
            user: "hot".to_owned(),
            at: Some(2_000_000),
        };
        let said = balance("hot", 2_000_000, found);
        exchange(ask, (second(at), second(at + 1)), Ended::Answered(said))
    };
    let mut evidence = nothing();
    let stored = evidence.stored.entry("hot".to_owned()).or_default();
    let verdicts = (&mut Vec::new(), second(0));
    change_answer(&deposit, &mut Model::default(), stored, verdicts, "one");
    // The deposit is under way all the time: alone, each read is true.
    let change = exchange(Ask::Change(deposit), (second(0), second(9)), Ended::Broken);
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
        .filter(|one| matches!(one.ask, Ask::History(_)));
    let mut entries = pages.filter_map(|one| one.said_mut()?.body["operations"].as_array_mut());
    entries.find(|entries| entries.len() == 5).unwrap().remove(2);
    found(&evidence, Kind::StaleRead);
}

#[test]
fn a_refusal_that_was_never_true_is_found() {
    for field in ["shortfall", "available", "at"] {
        let mut evidence = sound();
        let body = &mut answered(&mut evidence, "insufficient_funds").said_mut().unwrap().body;
        body[field] = match field {
            "shortfall" | "available" => (body[field].as_u64().unwrap() + 1).into(),
            _ => rfc3339(moment(&body["at"]).unwrap() + 1).into(),
        };
        found(&evidence, Kind::UnexplainedRefusal);
    }
}

#[test]
fn an_answer_that_differs_from_what_is_stored_is_found() {
    for field in ["balance", "operationId"] {
        let mut evidence = sound();
        answered(&mut evidence, "").said_mut().unwrap().body[field] = 7.into();
        found(&evidence, Kind::WrongAnswer);
        found(&evidence, Kind::MissingLine);
    }
}

#[test]
fn a_keyed_change_without_a_final_answer_is_found() {
    let mut evidence = sound();
    for exchange in &mut evidence.exchanges {
        if matches!(&exchange.ask, Ask::Change(change) if change.key.is_some()) {
            exchange.ended = Ended::Broken;
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
        json!({ "caller": "somebody else" }),
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
