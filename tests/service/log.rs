//! operations.log: one line for every answered operation, which no input can forge.

mod files;
mod rotation;

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::approver::Behaviour;
use crate::support::client::{answer, change};
use crate::support::world::{NOON, World};

#[track_caller]
fn expect_fields(line: &Value, fields: &[&str]) {
    let found: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, fields, "{line}");
    let at = line["at"].as_str().unwrap();
    // RFC 3339 with microseconds, in UTC.
    assert!(at.len() == 27 && at.as_bytes()[19] == b'.' && at.ends_with('Z'), "{at}");
    assert_eq!(line["instance"], "replica-1");
}

#[tokio::test]
async fn every_answered_operation_has_one_line_with_the_fields_of_the_contract_in_their_order() {
    let world = World::with(|options| options.set("INSTANCE", "replica-1")).await;
    let client = &world.client;
    let accepted = client.change_with_key(&change("a", 10, NOON), "k").await.expect(200);
    let replayed = client.change_with_key(&change("a", 10, NOON), "k").await.expect(200);
    let refused = client.change(&change("a", -11, "2026-01-31T14:00:00+02:00")).await;
    refused.expect_problem(403, "insufficient_funds");
    client.balance("a", Some(NOON)).await.expect(200);
    let now = client.balance("a", None).await.expect(200);
    let path = format!("/a/history?to={NOON}");
    answer(client.get(&path)).await.expect(200);
    // The moment as it was understood.
    let path = format!("/a/balance?timestamp={NOON}&knownAt=2026-01-31T11:00:00%2B02:00");
    answer(client.get(&path)).await.expect(200);
    let path = format!("/a/history?to={NOON}&knownAt=2026-01-31T09:00:00Z");
    answer(client.get(&path)).await.expect(200);
    // What is not answered as an operation has no line.
    for path in ["/livez", "/readyz", "/a/balance?timestamp=x", "/nowhere"] {
        client.get(path).send().await.unwrap();
    }

    let lines = world.replica.log_lines();
    assert_eq!(lines.len(), 8, "{lines:#?}");
    let head = ["at", "instance", "operation", "outcome", "userId", "timestamp"];
    let all = [&head[..], &["operationId", "balanceChange", "context", "balance"]].concat();
    let change_line = |outcome: &str, answered: Option<&Value>, amount: i64| {
        let mut line = json!({
            "operation": "changeBalance", "outcome": outcome, "userId": "a", "timestamp": NOON,
            "balanceChange": amount, "context": "test",
        });
        if outcome == "insufficient_funds" {
            line["available"] = json!(10);
            line["shortfall"] = json!(1);
        }
        if let Some(body) = answered {
            line["operationId"] = body["operationId"].clone();
            line["balance"] = body["balance"].clone();
        }
        line
    };
    let read =
        json!({ "operation": "getBalance", "outcome": "accepted", "userId": "a", "timestamp": NOON, "balance": 10 });
    let mut read_now = read.clone();
    read_now["timestamp"] = now.body["timestamp"].clone();
    let expected = [
        (change_line("accepted", Some(&accepted.body), 10), all.clone()),
        (change_line("replayed", Some(&replayed.body), 10), all),
        (
            change_line("insufficient_funds", None, -11),
            [&head[..], &["balanceChange", "context", "available", "shortfall"]].concat(),
        ),
        (read, [&head[..], &["balance"]].concat()),
        (read_now, [&head[..], &["balance"]].concat()),
        (
            json!({ "operation": "getHistory", "outcome": "accepted", "userId": "a", "timestamp": NOON }),
            head.to_vec(),
        ),
        (
            json!({
                "operation": "getBalance", "outcome": "accepted", "userId": "a", "timestamp": NOON,
                "knownAt": "2026-01-31T09:00:00Z", "balance": 0,
            }),
            [&head[..], &["knownAt", "balance"]].concat(),
        ),
        (
            json!({
                "operation": "getHistory", "outcome": "accepted", "userId": "a", "timestamp": NOON,
                "knownAt": "2026-01-31T09:00:00Z",
            }),
            [&head[..], &["knownAt"]].concat(),
        ),
    ];
    for (line, (expected, fields)) in lines.into_iter().zip(expected) {
        expect_fields(&line, &fields);
        let mut rest = line;
        for varying in ["at", "instance"] {
            rest.as_object_mut().unwrap().remove(varying);
        }
        assert_eq!(rest, expected);
    }
}

#[tokio::test]
async fn the_outcome_is_the_code_of_the_answer() {
    let world = World::with(|options| options.set("APPROVER_TIMEOUT_MS", "100")).await;
    world.approver.for_user("denied", &[Behaviour::Status(403)]);
    world.approver.for_user("unasked", &[Behaviour::Hang]);
    let mut expected = Vec::new();
    for (user_id, amount, key, status, code) in [
        ("a", i64::MAX, "k", 200, "accepted"),
        ("a", i64::MAX, "k", 200, "replayed"),
        ("a", 1, "k", 422, "idempotency_key_reused"),
        ("a", 1, "l", 403, "balance_limit"),
        ("b", -1, "l", 403, "insufficient_funds"),
        ("denied", 100_001, "l", 403, "approver_denied"),
        ("unasked", 100_001, "l", 503, "approver_unavailable"),
    ] {
        let answered = world.client.change_with_key(&change(user_id, amount, NOON), key).await;
        let answered = answered.expect(status);
        assert!(status == 200 || answered.code() == code, "{}", answered.body);
        expected.push(("changeBalance", code));
    }
    let hidden = "ALTER TABLE balance RENAME TO hidden; ALTER TABLE changes_history RENAME TO hidden_too";
    world.database.client().await.batch_execute(hidden).await.unwrap();
    let failed = [
        world.client.change(&change("a", -1, NOON)).await,
        world.client.balance("a", None).await,
        world.client.balance("a", Some(NOON)).await,
        answer(world.client.get("/a/history")).await,
    ];
    for answered in failed {
        let answered = answered.expect_problem(503, "database_unavailable");
        assert!(!answered.detail().contains("hidden"), "{}", answered.detail());
    }
    for operation in ["changeBalance", "getBalance", "getBalance", "getHistory"] {
        expected.push((operation, "database_unavailable"));
    }
    let lines = world.replica.log_lines();
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let found: Vec<_> = lines
        .iter()
        .map(|line| (text(line, "operation"), text(line, "outcome")))
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn no_input_can_forge_a_line() {
    let world = World::start().await;
    let forged =
        r#"{"at":"2026-01-31T12:00:00.000000Z","operation":"changeBalance","outcome":"accepted","userId":"mallory"}"#;
    let ids = [
        forged,
        "\",\"outcome\":\"accepted\",\"x\":\"",
        "a\u{2028}b\u{2029}c",
        "\\",
        "\\u000a",
        "\u{202e}drowssap",
        "\u{feff}",
    ];
    let contexts = [
        format!("x\n{forged}\n"),
        format!("x\r\n{forged}\r\n{forged}"),
        format!("\"}}\n{forged}"),
        "\u{85}\u{2028}\u{2029}\u{b}\u{c}\u{1c}\u{1d}\u{1e}".to_owned(),
        "\u{1b}[2J\u{1b}[1;1H\u{9b}2J\u{7f}\u{8}".to_owned(),
        "\\n\\u000a\\".to_owned(),
    ];
    let mut sent = Vec::new();
    for id in ids {
        for context in &contexts {
            let mut body = change(id, 1, NOON);
            body["context"] = context.as_str().into();
            world.client.change(&body).await.expect(200);
            sent.push((id, context.as_str()));
        }
    }
    let lines = world.replica.log_lines();
    let text = std::fs::read_to_string(&world.replica.log).unwrap();
    // Whatever a reader takes for the end of a line, there is one a line.
    let breaks =
        |character: char| matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    assert_eq!(text.matches(breaks).count(), sent.len());
    assert!(!text.contains(|character: char| character.is_control() && character != '\n'));
    let read: Vec<_> = lines
        .iter()
        .map(|line| (line["userId"].as_str().unwrap(), line["context"].as_str().unwrap()))
        .collect();
    assert_eq!(read, sent);
}

#[tokio::test]
async fn only_its_owner_can_read_the_log() {
    let world = World::start().await;
    let mode = std::fs::metadata(&world.replica.log).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}
