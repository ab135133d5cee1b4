//! The header `Idempotency-Key`: at most once, however often, wherever and in parallel an operation is sent.

use std::collections::HashSet;

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::approver::Behaviour;
use crate::support::client::{Answer, answer, change};
use crate::support::world::{NOON, World};

const REPLAYED: &str = "idempotency-replayed";

#[track_caller]
fn expect_replay(repeat: Answer, first: &Answer) {
    let repeat = repeat.expect(200);
    assert_eq!(repeat.headers[REPLAYED], "true");
    assert_eq!(repeat.body, first.body);
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_again_and_says_so() {
    let world = World::start().await;
    let body = change("a", 10, NOON);
    let first = world.client.change_with_key(&body, "k").await.expect(200);
    assert!(!first.headers.contains_key(REPLAYED));
    let before = world.stored().await;
    expect_replay(world.client.change_with_key(&body, "k").await, &first);
    // Later operations change the balance at that moment, and not what was answered.
    world.deposit("a", 5).await;
    expect_replay(world.client.change_with_key(&body, "k").await, &first);
    let (_other, elsewhere) = world.another().await;
    expect_replay(elsewhere.change_with_key(&body, "k").await, &first);
    assert_eq!(world.stored().await.len(), before.len() + 1);
    assert_eq!(world.client.balance("a", None).await.body["balance"], 15);
}

#[tokio::test]
async fn the_same_operation_in_other_words_is_a_repeat() {
    let world = World::start().await;
    let first = world
        .client
        .change_with_key(&change("a", 10, NOON), "k")
        .await
        .expect(200);
    let same_moment = change("a", 10, "2026-01-31T14:00:00.0000009+02:00");
    expect_replay(world.client.change_with_key(&same_moment, "k").await, &first);
    let reordered = format!(r#" {{"timestamp":"{NOON}", "balanceChange":10, "context":"t\u0065st", "userId":"a"}} "#);
    let repeat = answer(world.client.post_body(reordered).header("idempotency-key", "k")).await;
    expect_replay(repeat, &first);
}

#[tokio::test]
async fn a_key_is_the_same_with_and_without_quotes() {
    let world = World::start().await;
    let longest = "k".repeat(255);
    for (first, second) in [
        ("k-1", "\"k-1\""),
        ("\"k-2\"", "k-2"),
        ("a\"b", r#""a\"b""#),
        (longest.as_str(), &format!("\"{longest}\"")),
    ] {
        let body = change("a", 1, NOON);
        let answered = world.client.change_with_key(&body, first).await.expect(200);
        assert!(!answered.headers.contains_key(REPLAYED), "{first}");
        expect_replay(world.client.change_with_key(&body, second).await, &answered);
    }
    // Keys differ by the case of their letters.
    let upper = world.client.change_with_key(&change("a", 1, NOON), "K-1").await;
    assert!(!upper.expect(200).headers.contains_key(REPLAYED));
}

#[tokio::test]
async fn the_same_key_with_another_body_is_422_and_changes_nothing() {
    let world = World::start().await;
    let body = change("a", 10, NOON);
    let first = world.client.change_with_key(&body, "k").await.expect(200);
    let before = world.stored().await;
    for (field, value) in [
        ("balanceChange", json!(11)),
        ("balanceChange", json!(-10)),
        ("context", json!("tests")),
        ("timestamp", json!("2026-01-31T12:00:00.000001Z")),
    ] {
        let mut other = body.clone();
        other[field] = value;
        let refused = world.client.change_with_key(&other, "k").await;
        refused.expect_problem(422, "idempotency_key_reused");
    }
    // The key is looked at before what the ledger or the Approver would say.
    for amount in [-1_000, 200_000] {
        let refused = world.client.change_with_key(&change("a", amount, NOON), "k").await;
        refused.expect_problem(422, "idempotency_key_reused");
    }
    assert!(world.approver.calls().is_empty());
    assert_eq!(world.stored().await, before);
    expect_replay(world.client.change_with_key(&body, "k").await, &first);
}

#[tokio::test]
async fn the_same_key_of_another_user_is_another_operation() {
    let world = World::start().await;
    let mut names = HashSet::new();
    for user_id in ["a", "b", "A"] {
        let answered = world.client.change_with_key(&change(user_id, 10, NOON), "k").await;
        let answered = answered.expect(200);
        assert!(!answered.headers.contains_key(REPLAYED));
        assert!(names.insert(answered.body["operationId"].to_string()));
    }
}

#[tokio::test]
async fn only_accepted_operations_are_remembered() {
    let world = World::start().await;
    let withdrawal = change("a", -10, NOON);
    let refused = world.client.change_with_key(&withdrawal, "k").await;
    refused.expect_problem(403, "insufficient_funds");
    world.deposit("a", 25).await;
    let accepted = world.client.change_with_key(&withdrawal, "k").await.expect(200);
    assert!(!accepted.headers.contains_key(REPLAYED));
    assert_eq!(accepted.body["balance"], 15);

    let big = change("b", 100_001, NOON);
    world.approver.for_user(
        "b",
        &[Behaviour::Status(404), Behaviour::Status(403), Behaviour::Status(200)],
    );
    let before = world.stored().await;
    let failed = world.client.change_with_key(&big, "k").await;
    failed.expect_problem(503, "approver_unavailable");
    let denied = world.client.change_with_key(&big, "k").await;
    denied.expect_problem(403, "approver_denied");
    assert_eq!(world.stored().await, before);
    // Another body may use the key, since nothing was accepted with it.
    let other = change("b", 100_002, NOON);
    let accepted = world.client.change_with_key(&other, "k").await.expect(200);
    assert!(!accepted.headers.contains_key(REPLAYED));
    let late = world.client.change_with_key(&big, "k").await;
    late.expect_problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn one_key_sent_twenty_times_at_once_to_two_replicas_is_stored_once() {
    let world = World::start().await;
    let (_other, elsewhere) = world.another().await;
    for (user_id, amount) in [("small", 10), ("big", 100_001)] {
        let mut sending = JoinSet::new();
        for number in 0..20 {
            let client = if number % 2 == 0 { &world.client } else { &elsewhere }.clone();
            sending.spawn(async move { client.change_with_key(&change(user_id, amount, NOON), "k").await });
        }
        let answers = sending.join_all().await;
        let names: HashSet<_> = answers
            .iter()
            .map(|answer| answer.clone().expect(200).body.to_string())
            .collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let replayed = |answer: &&Answer| answer.headers.contains_key(REPLAYED);
        assert_eq!(answers.iter().filter(replayed).count(), 19);
    }
    // For each user a balance and one operation.
    let stored = world.stored().await;
    for (table, rows) in [("balance ", 2), ("changes_history ", 2)] {
        let found = stored.iter().filter(|row| row.starts_with(table)).count();
        assert_eq!(found, rows, "{stored:#?}");
    }
}
