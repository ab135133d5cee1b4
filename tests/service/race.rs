//! Many clients on one user, through two replicas that know nothing of each other. Afterwards an independent model
//! replays what is stored, and every answer that a client got must be explained by it.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::model::{Micros, Model, Random, Stored, StoredUser, assert_same, micros, rfc3339};
use crate::support::approver::TestApprover;
use crate::support::client::{Answer, ServiceClient};
use crate::support::postgres::fresh_database;
use crate::support::replica::Replica;

const USER: &str = "hot";
const CLIENTS: usize = 64;
const CHANGES_PER_CLIENT: usize = 24;
const SECOND: i64 = 1_000_000;
/// 2026-01-31T12:00:00Z
const BASE: Micros = 1_769_860_800 * SECOND;

/// What was asked of a replica.
#[derive(Clone, Debug)]
enum Ask {
    Change {
        context: String,
        change: i64,
        timestamp: Micros,
        key: Option<String>,
    },
    Read(Option<Micros>),
}

/// What was asked, when, and what came back when.
#[derive(Debug)]
struct Exchange {
    replica: usize,
    ask: Ask,
    begin: Instant,
    end: Instant,
    answer: Answer,
}

struct Race {
    replicas: Vec<ServiceClient>,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Race {
    async fn send(&self, replica: usize, ask: Ask) -> Answer {
        let client = &self.replicas[replica];
        let begin = Instant::now();
        let answer = match &ask {
            Ask::Read(at) => client.balance(USER, at.map(rfc3339).as_deref()).await,
            Ask::Change {
                context,
                change,
                timestamp,
                key,
            } => {
                let timestamp = rfc3339(*timestamp);
                let body =
                    json!({ "userId": USER, "context": context, "balanceChange": change, "timestamp": timestamp });
                match key {
                    None => client.change(&body).await,
                    Some(key) => client.change_with_key(&body, key).await,
                }
            }
        };
        let end = Instant::now();
        self.exchanges.lock().unwrap().push(Exchange {
            replica,
            ask,
            begin,
            end,
            answer: answer.clone(),
        });
        answer
    }

    async fn client(&self, number: usize, mut random: Random) {
        for step in 0..CHANGES_PER_CLIENT {
            let replica = usize::from(random.percent(50));
            if random.percent(30) {
                let moment = a_moment(&mut random, step);
                let at = (!random.percent(25)).then_some(moment);
                self.send(replica, Ask::Read(at)).await;
            }
            // One change in eight is known to several clients, who send it under the same key.
            let ask = if random.percent(12) {
                a_shared_change(&mut random)
            } else {
                Ask::Change {
                    context: format!("client {number} step {step}"),
                    change: an_amount(&mut random),
                    timestamp: a_moment(&mut random, step),
                    key: random.percent(20).then(|| format!("key-of-{number}-step-{step}")),
                }
            };
            let answer = self.send(replica, ask.clone()).await;
            let keyed = matches!(&ask, Ask::Change { key: Some(_), .. });
            // Repeats of what came through and of what did not; often on the other replica.
            if keyed && (answer.status == 503 || random.percent(30)) {
                self.send(usize::from(random.percent(50)), ask).await;
            }
        }
    }
}

/// Around the moment of the step; some equal, some far back, some tomorrow.
fn a_moment(random: &mut Random, step: usize) -> Micros {
    let step = BASE + step as i64 * 2 * SECOND;
    match random.between(0, 99) {
        0..40 => step + random.between(-4, 4) * SECOND / 2,
        40..85 => step + random.between(-3 * SECOND, 3 * SECOND),
        85..96 => step - random.between(0, 3_600) * SECOND,
        _ => step + 86_400 * SECOND,
    }
}

/// More is taken than given, so that a part cannot be afforded; some need approval.
fn an_amount(random: &mut Random) -> i64 {
    match random.between(0, 99) {
        0..42 => random.between(1, 50_000),
        42..88 => -random.between(1, 60_000),
        88..93 => random.between(100_001, 150_000),
        93..98 => -random.between(100_001, 150_000),
        _ => 0,
    }
}

/// Two bodies for each of 30 keys: whichever comes first is the key's, and the other is refused.
fn a_shared_change(random: &mut Random) -> Ask {
    let key = random.between(1, 30);
    let rival = random.percent(25);
    let mut of_key = Random(key.unsigned_abs() * 2 + u64::from(rival));
    Ask::Change {
        context: format!("shared {key} {}", if rival { "rival" } else { "first" }),
        change: an_amount(&mut of_key),
        timestamp: a_moment(&mut of_key, 5),
        key: Some(format!("shared-{key}")),
    }
}

#[tokio::test]
async fn every_answer_of_64_racing_clients_is_explained_by_the_stored_history() {
    let given = std::env::var("RACE_SEED").ok().map(|seed| seed.parse().unwrap());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed: u64 = given.unwrap_or(clock.into());
    println!("RACE_SEED={seed} draws the same changes again");

    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    approver.delay(Duration::from_millis(50));
    let first = Replica::start(&database, &approver).await;
    let second = Replica::start(&database, &approver).await;
    let race = Arc::new(Race {
        replicas: vec![ServiceClient::new(&first.url), ServiceClient::new(&second.url)],
        exchanges: Mutex::default(),
    });
    let deposit = Ask::Change {
        context: "the first deposit".to_owned(),
        change: 150_000,
        timestamp: BASE - 1_800 * SECOND,
        key: None,
    };
    race.send(0, deposit).await.expect(200);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (race, random) = (Arc::clone(&race), Random(seed ^ ((number as u64) << 40)));
            tokio::spawn(async move { race.client(number, random).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }

    let stored = StoredUser::read(&database.client().await, USER).await;
    let race = Arc::into_inner(race).expect("all clients have ended");
    let exchanges = race.exchanges.into_inner().unwrap();
    let logs = [first.log_lines(), second.log_lines()];
    explain(&stored, &exchanges);
    lines_match_answers(&exchanges, &logs);
    lines_match_history(&stored, &logs);
    big_ones_were_approved(&stored, &exchanges, approver.calls().len());
    let count = |status: u16| exchanges.iter().filter(|one| one.answer.status == status).count();
    let [ok, refused, reused, unavailable] = [200, 403, 422, 503].map(count);
    println!(
        "{ok} × 200, {refused} × 403, {reused} × 422, {unavailable} × 503, {} stored",
        stored.history.len()
    );
    assert!(exchanges.len() > CLIENTS * CHANGES_PER_CLIENT && refused > 0 && stored.history.len() > 1);
    first.stop().await;
    second.stop().await;
}

fn explain(stored: &StoredUser, exchanges: &[Exchange]) {
    let by_id: HashMap<&str, &Stored> = by(stored, |one| Some(one.operation_id.as_str()));
    let by_key: HashMap<&str, &Stored> = by(stored, |one| one.key.as_deref());
    let by_context: HashMap<&str, &Stored> = by(stored, |one| Some(one.context.as_str()));
    // When each stored operation may have been stored at the earliest, and when it was known to be at the latest.
    let mut begun: HashMap<i64, Instant> = HashMap::new();
    let mut known: Vec<(Instant, i64)> = Vec::new();
    for exchange in exchanges {
        let Ask::Change { context, .. } = &exchange.ask else {
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
        let Ask::Change {
            context,
            change,
            timestamp,
            key,
        } = &exchange.ask
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
    match &exchange.ask {
        Ask::Read(at) => {
            let said = micros(body["timestamp"].as_str().unwrap());
            assert!(at.is_none_or(|at| at == said), "{exchange:#?}");
            model.balance_at(said) == i128::from(body["balance"].as_i64().unwrap())
        }
        Ask::Change { change, timestamp, .. } => {
            let said = (
                micros(body["at"].as_str().unwrap()),
                body["shortfall"].as_u64().unwrap().into(),
            );
            model.first_negative(*timestamp, *change) == Some(said)
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
fn lines_match_answers(exchanges: &[Exchange], logs: &[Vec<Value>; 2]) {
    for (replica, lines) in logs.iter().enumerate() {
        let answers = exchanges.iter().filter(|exchange| exchange.replica == replica);
        let expected = answers.map(|exchange| {
            let body = &exchange.answer.body;
            let outcome = match exchange.answer.code() {
                "" if exchange.answer.headers.contains_key("idempotency-replayed") => "replayed",
                "" => "accepted",
                code => code,
            };
            let asked = match &exchange.ask {
                Ask::Change {
                    context,
                    change,
                    timestamp,
                    ..
                } => format!("changeBalance {context:?} {change} at {timestamp}"),
                Ask::Read(_) => format!("getBalance at {}", micros(body["timestamp"].as_str().unwrap())),
            };
            format!("{asked}: {outcome} {} {}", body["operationId"], body["balance"])
        });
        let written = lines.iter().map(|line| {
            assert_eq!(line["userId"], USER);
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
            format!("{asked}: {outcome} {id} {}", line["balance"])
        });
        assert_same("the answers and the lines", expected.collect(), written.collect());
    }
}

/// Every stored operation has one line that says so, in one of the logs.
fn lines_match_history(stored: &StoredUser, logs: &[Vec<Value>; 2]) {
    let changes = logs
        .iter()
        .flatten()
        .filter(|line| line["operation"] == "changeBalance");
    let told = changes.filter(|line| match line["outcome"].as_str().unwrap() {
        "accepted" => true,
        // One that could not be told from a lost one when its time was up.
        "outcome_unknown" => stored
            .history
            .iter()
            .any(|one| line["operationId"] == *one.operation_id),
        _ => false,
    });
    let told = told.map(|line| line["operationId"].as_str().unwrap().to_owned());
    let kept = stored.history.iter().map(|one| one.operation_id.clone());
    assert_same(
        "the stored operations and the accepted lines",
        kept.collect(),
        told.collect(),
    );
}

/// The Approver was asked once for each big operation that was stored, and at most once for each that was not.
fn big_ones_were_approved(stored: &StoredUser, exchanges: &[Exchange], calls: usize) {
    let kept = stored.history.iter().filter(|one| one.approved).count();
    let asked = exchanges
        .iter()
        .filter(|one| matches!(&one.ask, Ask::Change { change, .. } if change.unsigned_abs() > 100_000));
    let asked = asked.count();
    assert!(
        (kept..=asked).contains(&calls),
        "{calls} calls, {kept} stored, {asked} asked"
    );
}
