//! Trying a change: the answer that the change would get, and nothing else.

use serde_json::{Value, json};

use crate::model::{Random, micros, rfc3339};
use crate::support::approver::Behaviour;
use crate::support::client::{Answer, ServiceClient, answer, change};
use crate::support::world::{NOON, World};

async fn try_change(client: &ServiceClient, body: &Value, headers: &[(&str, &str)]) -> Answer {
    let mut request = client.post("/changeBalance?dryRun=true");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(
        request
            .header("content-type", "application/json")
            .body(body.to_string()),
    )
    .await
}

/// Without what tells a try from a change.
fn bare(mut body: Value) -> Value {
    for field in ["operationId", "dryRun"] {
        body.as_object_mut().unwrap().remove(field);
    }
    body
}

#[tokio::test]
async fn it_gets_the_answer_that_the_change_gets_and_leaves_nothing_behind() {
    let world = World::with(|options| options.set("APPROVAL_THRESHOLD", "9223372036854775807")).await;
    let mut random = Random(3);
    let mut statuses = Vec::new();
    for number in 0..120 {
        let amount = match random.between(0, 9) {
            _ if number == 0 => 500,
            0 => i64::MAX - random.between(0, 1_000),
            1 => 0,
            2..=5 => random.between(1, 50),
            _ => -random.between(1, 80),
        };
        let timestamp = micros(NOON) + random.between(0, 30) * 1_000_000;
        let body = change("alice", amount, &rfc3339(timestamp));
        let before = world.stored().await;
        let tried = try_change(&world.client, &body, &[]).await;
        assert_eq!(world.stored().await, before);
        let changed = world.client.change(&body).await;
        assert_eq!(tried.status, changed.status, "{} {}", tried.body, changed.body);
        let version = world.client.balance("alice", None).await.headers["etag"].clone();
        if tried.status == 200 {
            assert_eq!(tried.body["dryRun"], true);
            assert_eq!(changed.body.get("dryRun"), None);
            // The version that the verdict rests on, and the one that the change made.
            let number = |tag: &reqwest::header::HeaderValue| -> i64 {
                tag.to_str().unwrap().trim_matches('"').parse().unwrap()
            };
            assert_eq!(number(&tried.headers["etag"]) + 1, number(&changed.headers["etag"]));
            assert_eq!(changed.headers["etag"], version);
        }
        assert_eq!(bare(tried.body), bare(changed.body));
        statuses.push(tried.status.as_u16());
    }
    let refused = statuses.iter().filter(|status| **status == 403).count();
    assert!((12..108).contains(&refused), "{refused} refused");
}

#[tokio::test]
async fn the_approver_is_not_asked_and_the_answer_says_where_it_would_be() {
    let world = World::start().await;
    world.approver.for_user("denied", &[Behaviour::Status(403)]);
    for (user_id, amount, approval) in [
        ("alice", 100_000, Value::Null),
        ("alice", 100_001, json!("not_asked")),
        ("denied", 100_001, json!("not_asked")),
        ("unasked", i64::MAX, json!("not_asked")),
    ] {
        let tried = try_change(&world.client, &change(user_id, amount, NOON), &[])
            .await
            .expect(200);
        assert_eq!(tried.body["approval"], approval, "{}", tried.body);
    }
    // What the rule forbids is refused without a word of the Approver.
    let refused = try_change(&world.client, &change("alice", -100_001, NOON), &[]).await;
    refused.expect_problem(403, "insufficient_funds");
    assert!(world.approver.calls().is_empty());
    assert!(world.stored().await.is_empty());
    // A change says nothing of approval.
    let changed = world.client.change(&change("alice", 100_001, NOON)).await.expect(200);
    assert_eq!(changed.body.get("approval"), None);
}

#[tokio::test]
async fn a_key_that_is_known_gives_the_first_answer_and_one_that_is_not_stays_unknown() {
    let world = World::start().await;
    let key = [("idempotency-key", "k")];
    let body = change("alice", 10, NOON);
    let tried = try_change(&world.client, &body, &key).await.expect(200);
    assert!(!tried.headers.contains_key("idempotency-replayed"));
    // Trying has not used the key.
    let first = world.client.change_with_key(&body, "k").await.expect(200);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    world.client.change(&change("alice", 5, NOON)).await.expect(200);
    let again = try_change(&world.client, &body, &key).await.expect(200);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.body["operationId"], first.body["operationId"]);
    assert_eq!(
        (&again.body["balance"], &again.body["dryRun"]),
        (&json!(10), &json!(true))
    );
    // Of a big one that was approved, nobody would be asked again.
    let big = change("bob", 200_000, NOON);
    world.client.change_with_key(&big, "k").await.expect(200);
    let again = try_change(&world.client, &big, &key).await.expect(200);
    assert_eq!(
        (&again.body["dryRun"], again.body.get("approval")),
        (&json!(true), None)
    );
    let reused = try_change(&world.client, &change("alice", 11, NOON), &key).await;
    reused.expect_problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn the_change_with_the_tag_of_the_try_gets_its_answer_or_412() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let body = change("alice", -60, NOON);
    let tried = try_change(&world.client, &body, &[]).await.expect(200);
    let tag = tried.headers["etag"].to_str().unwrap().to_owned();
    let send = || world.client.post_body(body.to_string()).header("if-match", &tag);
    let changed = answer(send()).await.expect(200);
    assert_eq!(changed.body["balance"], tried.body["balance"]);
    answer(send()).await.expect_problem(412, "precondition_failed");
    // A try has the condition too.
    let stale = try_change(&world.client, &body, &[("if-match", &tag)]).await;
    assert_eq!(stale.expect_problem(412, "precondition_failed").body["version"], 2);
}

#[tokio::test]
async fn each_try_has_a_line_that_says_so_and_verify_takes_none_for_a_change() {
    let world = World::start().await;
    world.deposit("alice", 10).await;
    let tried = try_change(&world.client, &change("alice", -4, NOON), &[])
        .await
        .expect(200);
    try_change(&world.client, &change("alice", -11, NOON), &[])
        .await
        .expect(403);
    let stale = [("if-match", "\"7\"")];
    try_change(&world.client, &change("alice", -4, NOON), &stale)
        .await
        .expect(412);
    let told: Vec<_> = world.replica.log_lines().into_iter().skip(1).collect();
    let fields = |line: &Value| {
        let names = [
            "operation",
            "outcome",
            "dryRun",
            "balanceChange",
            "operationId",
            "balance",
            "available",
        ];
        names.map(|name| line[name].clone())
    };
    let (change, yes, none) = (json!("changeBalance"), json!(true), Value::Null);
    let id = tried.body["operationId"].clone();
    let expected = [
        [
            change.clone(),
            json!("would_be_accepted"),
            yes.clone(),
            json!(-4),
            id,
            json!(6),
            none.clone(),
        ],
        [
            change.clone(),
            json!("insufficient_funds"),
            yes.clone(),
            json!(-11),
            none.clone(),
            none.clone(),
            json!(10),
        ],
        [
            change,
            json!("precondition_failed"),
            yes,
            json!(-4),
            none.clone(),
            none.clone(),
            none,
        ],
    ];
    assert_eq!(told.iter().map(fields).collect::<Vec<_>>(), expected);

    // PostgreSQL away: 503, and a line.
    let hidden = "ALTER TABLE balance RENAME TO hidden";
    world.database.client().await.batch_execute(hidden).await.unwrap();
    let failed = try_change(&world.client, &change_of_bob(), &[]).await;
    failed.expect_problem(503, "database_unavailable");
    let lines = world.replica.log_lines();
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["outcome"], &last["dryRun"]),
        (&json!("database_unavailable"), &json!(true))
    );
}

fn change_of_bob() -> Value {
    change("bob", 1, NOON)
}
