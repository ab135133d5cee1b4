//! What was known at an earlier moment of recording: the answers that were given then.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::model::{Micros, Random, micros, rfc3339};
use crate::support::client::{ServiceClient, answer, change};
use crate::support::world::{NOON, World};

const SECOND: Micros = 1_000_000;

/// Answers that were given when nothing was under way, and when the last operation before them was recorded.
struct Given {
    known_at: String,
    answers: Vec<(String, Value)>,
}

async fn get(client: &ServiceClient, path: &str) -> Value {
    answer(client.get(path)).await.expect(200).body
}

/// A user's whole history, by pages of so many operations.
async fn pages(client: &ServiceClient, path: &str) -> Value {
    let mut operations = Vec::new();
    let mut next = path.to_owned();
    loop {
        let page = get(client, &next).await;
        operations.extend(page["operations"].as_array().unwrap().clone());
        let Some(cursor) = page["nextCursor"].as_str() else {
            return operations.into();
        };
        // All else is in the cursor.
        next = format!("/alice/history?limit=37&cursor={cursor}");
    }
}

/// What is answered to a path: the balance, or the operations of all pages.
async fn asked(client: &ServiceClient, path: &str) -> Value {
    match path.contains("/history") {
        true => pages(client, path).await,
        false => get(client, path).await["balance"].clone(),
    }
}

fn paths() -> Vec<String> {
    let moments = [-1, 0, 7, 20, 33, 41].map(|second| rfc3339(micros(NOON) + second * SECOND));
    let balances = moments.iter().map(|at| format!("/alice/balance?timestamp={at}"));
    let histories = ["asc", "desc"].map(|order| format!("/alice/history?limit=37&order={order}"));
    let part = format!("/alice/history?limit=37&from={}&to={}", moments[2], moments[4]);
    balances.chain(histories).chain([part]).collect()
}

async fn answers_now(client: &ServiceClient) -> Given {
    let mut answers = Vec::new();
    for path in paths() {
        let said = asked(client, &path).await;
        answers.push((path, said));
    }
    let operations = get(client, "/alice/history?limit=1000").await["operations"].clone();
    let recorded = operations.as_array().unwrap().iter();
    let recorded = recorded.map(|operation| micros(operation["recordedAt"].as_str().unwrap()));
    Given {
        known_at: rfc3339(recorded.max().unwrap()),
        answers,
    }
}

/// The answers are the same again.
async fn check(client: &ServiceClient, given: &Given) {
    for (path, said) in &given.answers {
        let again = asked(client, &format!("{path}&knownAt={}", given.known_at)).await;
        assert_eq!(again, *said, "{path} known at {}", given.known_at);
    }
}

#[tokio::test]
async fn what_was_answered_is_answered_again_while_others_change_the_user_and_after_it() {
    let world = World::start().await;
    let (_replica, other) = world.another().await;
    let clients = [world.client.clone(), other];
    let begin = rfc3339(micros(NOON) - SECOND / 2);
    world.client.change(&change("alice", 5_000, &begin)).await.expect(200);
    let mut given: Vec<Arc<Given>> = Vec::new();
    for round in 0..9 {
        let mut load = JoinSet::new();
        for number in 0..8_usize {
            let client = clients[number % 2].clone();
            load.spawn(async move {
                let mut random = Random(round * 100 + number as u64);
                for _ in 0..6 {
                    let timestamp = micros(NOON) + random.between(0, 40) * SECOND;
                    let amount = random.between(-40, 50);
                    let answer = client.change(&change("alice", amount, &rfc3339(timestamp))).await;
                    assert!([200, 403].contains(&answer.status.as_u16()), "{}", answer.body);
                }
            });
        }
        // What was known does not change while they are at it.
        for (number, earlier) in given.iter().rev().take(2).enumerate() {
            let (client, earlier) = (clients[number % 2].clone(), Arc::clone(earlier));
            load.spawn(async move { check(&client, &earlier).await });
        }
        load.join_all().await;
        given.push(Arc::new(answers_now(&world.client).await));
    }
    for earlier in &given {
        check(&world.client, earlier).await;
    }
}

#[tokio::test]
async fn without_a_timestamp_it_is_as_of_the_moment_of_recording_and_the_answer_tells_both() {
    let world = World::start().await;
    let before = rfc3339(micros(
        &world.deposit("alice", 100).await.body["timestamp"]
            .to_string()
            .replace('"', ""),
    ));
    let first = get(&world.client, "/alice/history").await["operations"][0]["recordedAt"].clone();
    let first = first.as_str().unwrap();
    let correction = change("alice", -30, NOON);
    world.client.change(&correction).await.expect(200);
    let (earliest, future) = ("2020-01-01T00:00:00Z", "9999-01-01T00:00:00Z");
    for (user_id, query, known_at, timestamp, balance) in [
        ("alice", format!("knownAt={first}"), first, first, 100),
        (
            "alice",
            format!("knownAt={first}&timestamp={before}"),
            first,
            &before,
            100,
        ),
        ("alice", format!("knownAt={future}"), future, future, 70),
        ("alice", format!("knownAt={earliest}"), earliest, earliest, 0),
        (
            "alice",
            format!("knownAt={earliest}&timestamp={future}"),
            earliest,
            future,
            0,
        ),
        ("nobody", format!("knownAt={future}"), future, future, 0),
        // Another offset, with a plus that the query makes a space.
        (
            "alice",
            "knownAt=2020-01-01T02:00:00+02:00".to_owned(),
            earliest,
            earliest,
            0,
        ),
    ] {
        let read = get(&world.client, &format!("/{user_id}/balance?{query}")).await;
        let expected = json!({ "userId": user_id, "timestamp": timestamp, "balance": balance, "knownAt": known_at });
        assert_eq!(read, expected, "{query}");
        let page = get(&world.client, &format!("/{user_id}/history?knownAt={known_at}")).await;
        assert_eq!(page["knownAt"], known_at);
        let last = page["operations"].as_array().unwrap().first();
        assert_eq!(last.map_or(&json!(0), |operation| &operation["balance"]), balance);
    }
    for path in ["/alice/balance", "/alice/history"] {
        assert_eq!(get(&world.client, path).await.get("knownAt"), None);
    }
}

#[tokio::test]
async fn what_is_no_more_known_so_has_no_etag() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let first = get(&world.client, "/alice/history").await["operations"][0]["recordedAt"].clone();
    let path = format!("/alice/balance?knownAt={}", first.as_str().unwrap());
    let tag = async || {
        let response = world.client.get(&path).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response
            .headers()
            .get("etag")
            .map(|tag| tag.to_str().unwrap().to_owned())
    };
    assert_eq!(tag().await.as_deref(), Some("\"1\""));
    let unchanged = world.client.get(&path).header("if-none-match", "\"1\"");
    assert_eq!(unchanged.send().await.unwrap().status(), 304);
    world.deposit("alice", 10).await;
    assert_eq!(tag().await, None);
    let known = world.client.get(&path).header("if-none-match", "\"1\", \"2\"");
    assert_eq!(answer(known).await.expect(200).body["balance"], 100);
}

#[tokio::test]
async fn the_cursor_holds_the_moment_and_what_stands_beside_it_counts_instead() {
    let world = World::start().await;
    for amount in 1..=4 {
        world.deposit("alice", amount).await;
    }
    let all = get(&world.client, "/alice/history?order=asc").await["operations"].clone();
    let third = all[2]["recordedAt"].as_str().unwrap();
    let first = get(
        &world.client,
        &format!("/alice/history?order=asc&limit=1&knownAt={third}"),
    )
    .await;
    let cursor = first["nextCursor"].as_str().unwrap();
    let future = "9999-01-01T00:00:00Z";
    for (beside, known_at, operations) in [
        ("", third, &all.as_array().unwrap()[1..3]),
        (&format!("&knownAt={future}"), future, &all.as_array().unwrap()[1..]),
    ] {
        let page = get(&world.client, &format!("/alice/history?cursor={cursor}{beside}")).await;
        assert_eq!(page["operations"].as_array().unwrap(), operations);
        assert_eq!(page["knownAt"], known_at);
    }
}

#[tokio::test]
async fn a_statement_is_of_what_was_known_too_and_says_so() {
    let world = World::start().await;
    for amount in [1_000, 2_000, 4_000] {
        world.deposit("alice", amount).await;
    }
    let all = get(&world.client, "/alice/history?order=asc").await["operations"].clone();
    let second = all[1]["recordedAt"].as_str().unwrap();
    let statement = async |query: &str, form: &str| {
        let path = format!("/alice/history?knownAt={second}{query}");
        let request = world.client.get(&path).header("accept", form);
        request
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap()
            .text()
            .await
            .unwrap()
    };
    for query in ["", "&limit=10"] {
        let table = statement(query, "text/csv").await;
        assert_eq!(table.lines().count(), 1 + 2, "{table}");
        assert!(table.contains(",3000,") && !table.contains("7000"), "{table}");
    }
    let page = statement("&limit=1", "text/html").await;
    assert!(page.contains(&format!("As it was known at {second}.")), "{page}");
    assert!(page.contains("Balance after"), "{page}");
    // The way to the next page keeps the moment, and so does the one back to the first.
    let begin = page.find("cursor=").unwrap();
    let cursor: String = page[begin..]
        .chars()
        .take_while(|letter| !"\"&".contains(*letter))
        .collect();
    let next = world
        .client
        .get(&format!("/alice/history?limit=1&{cursor}"))
        .header("accept", "text/html");
    let next = next.send().await.unwrap().text().await.unwrap();
    assert!(next.contains(&format!("As it was known at {second}.")), "{next}");
    assert!(
        next.contains(&format!("knownAt={}", second.replace(':', "%3A"))),
        "{next}"
    );
}
