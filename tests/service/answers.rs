//! The rows of the contract's table of answers to `POST /changeBalance`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::approver::Behaviour;
use crate::support::client::{answer, change};
use crate::support::world::{NOON, World};

fn members(body: &Value) -> Vec<&str> {
    body.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn an_accepted_change_is_answered_with_its_name_and_the_balance_at_its_timestamp_with_it() {
    let world = World::start().await;
    world.deposit("alice", 40).await;
    let late = change("alice", 7, "2026-01-31T13:00:00Z");
    world.client.change(&late).await.expect(200);
    let between = world
        .client
        .change(&change("alice", 2, "2026-01-31T14:30:00.5+02:00"))
        .await;
    let body = between.expect(200).body;
    let expected = ["operationId", "userId", "timestamp", "balanceChange", "balance"];
    assert_eq!(members(&body), expected);
    let name = uuid::Uuid::parse_str(body["operationId"].as_str().unwrap()).unwrap();
    let rest = json!({
        "operationId": name.to_string(),
        "userId": "alice",
        "timestamp": "2026-01-31T12:30:00.5Z",
        "balanceChange": 2,
        "balance": 42,
    });
    assert_eq!(body, rest);
    let zero = world.client.change(&change("nobody", 0, NOON)).await.expect(200);
    assert_eq!(zero.body["balance"], 0);
    assert!(!zero.headers.contains_key("idempotency-replayed"));
}

#[tokio::test]
async fn a_refusal_is_403_says_why_and_changes_nothing() {
    let world = World::start().await;
    world.approver.for_user("denied", &[Behaviour::Status(403)]);
    world.deposit("poor", 100).await;
    world.deposit("rich", i64::MAX).await;
    let before = world.stored().await;
    let refuse = |user_id: &'static str, balance_change| {
        let client = world.client.clone();
        async move { client.change(&change(user_id, balance_change, NOON)).await }
    };

    let denied = refuse("denied", 100_001).await.expect_problem(403, "approver_denied");
    assert_eq!(members(&denied.body), ["type", "title", "status", "detail", "code"]);

    let poor = refuse("poor", -101).await.expect_problem(403, "insufficient_funds");
    let all = [
        "type",
        "title",
        "status",
        "detail",
        "code",
        "at",
        "shortfall",
        "available",
    ];
    assert_eq!(members(&poor.body), all);
    assert_eq!((&poor.body["at"], &poor.body["shortfall"]), (&json!(NOON), &json!(1)));
    assert_eq!(poor.body["available"], json!(100));
    assert_eq!(poor.body["type"], "urn:balance:problem:insufficient_funds");
    assert!(poor.detail().contains(NOON), "{}", poor.detail());

    let least = refuse("nobody", i64::MIN)
        .await
        .expect_problem(403, "insufficient_funds");
    assert_eq!(least.body["shortfall"], json!(i64::MIN.unsigned_abs()));

    let rich = refuse("rich", 1).await.expect_problem(403, "balance_limit");
    assert_eq!(rich.body["at"], NOON);
    assert_eq!(world.stored().await, before);
}

#[tokio::test]
async fn a_deposit_that_takes_a_later_moment_beyond_64_bits_is_refused_with_that_moment() {
    let world = World::start().await;
    let later = "2026-01-31T13:00:00Z";
    world.client.change(&change("alice", i64::MAX, later)).await.expect(200);
    let refused = world.client.change(&change("alice", 1, NOON)).await;
    assert_eq!(refused.expect_problem(403, "balance_limit").body["at"], later);
}

#[tokio::test]
async fn a_body_over_64_kib_is_413_and_one_of_64_kib_is_read() {
    let world = World::start().await;
    let mut body = change("alice", 1, NOON).to_string();
    body.push_str(&" ".repeat(64 * 1024 - body.len()));
    answer(world.client.post_body(body.clone())).await.expect(200);
    body.push(' ');
    let refused = answer(world.client.post_body(body)).await;
    refused.expect_problem(413, "payload_too_large");
    let refused = answer(world.client.post_body(vec![b' '; 3 * 1024 * 1024])).await;
    refused.expect_problem(413, "payload_too_large");
}

#[tokio::test]
async fn a_body_that_is_not_announced_as_json_is_415() {
    let world = World::start().await;
    let body = change("alice", 1, NOON).to_string();
    for media_type in [
        None,
        Some("text/plain"),
        Some("application/jsonx"),
        Some("application/json; charset=latin1"),
    ] {
        let mut request = world.client.post("/changeBalance").body(body.clone());
        if let Some(media_type) = media_type {
            request = request.header("content-type", media_type);
        }
        answer(request).await.expect_problem(415, "unsupported_media_type");
    }
    for media_type in ["application/json;charset=utf-8", "Application/JSON ; Charset=\"UTF-8\""] {
        let request = world.client.post("/changeBalance").body(body.clone());
        answer(request.header("content-type", media_type)).await.expect(200);
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_with_allow_and_an_unknown_path_404() {
    let world = World::start().await;
    let read = "GET, HEAD";
    for (path, allowed) in [
        ("/changeBalance", "POST"),
        ("/alice/balance", read),
        ("/changeBalance/history", read),
        ("/livez", read),
        ("/readyz", read),
        ("/metrics", read),
        ("/openapi.json", read),
        ("/docs", read),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            if allowed.contains(method) {
                continue;
            }
            let refused = answer(world.client.request(method, path)).await;
            let refused = refused.expect_problem(405, "method_not_allowed");
            assert_eq!(refused.headers["allow"], allowed, "{method} {path}");
            assert!(refused.detail().contains(allowed), "{}", refused.detail());
        }
    }
    for path in [
        "/",
        "/alice",
        "/alice/",
        "/balance",
        "/docs/",
        "/a/b/balance",
        "/changeBalance/",
        "/alice/balance/",
        "/changebalance",
        "/.env",
    ] {
        for method in ["GET", "POST", "BREW"] {
            let refused = answer(world.client.request(method, path)).await;
            let refused = refused.expect_problem(404, "not_found");
            assert!(
                refused.detail().contains("/{userId}/balance"),
                "{method} {path}: {}",
                refused.detail()
            );
        }
    }
    assert!(world.replica.log_lines().is_empty());
}

#[tokio::test]
async fn an_approver_that_errs_or_hangs_is_503_and_nothing_is_stored() {
    let world = World::with(|options| options.set("APPROVER_TIMEOUT_MS", "200")).await;
    for (user_id, behaviour) in [
        ("erring", Behaviour::Status(500)),
        ("redirecting", Behaviour::Status(302)),
        ("created", Behaviour::Status(201)),
        ("reset", Behaviour::Reset),
        ("garbage", Behaviour::Raw(b"yes\r\n\r\n")),
        ("hanging", Behaviour::Hang),
    ] {
        world.approver.for_user(user_id, &[behaviour]);
        let refused = world.client.change(&change(user_id, 100_001, NOON)).await;
        refused.expect_problem(503, "approver_unavailable");
        assert!((1..=3).contains(&world.approver.calls_for(user_id)), "{user_id}");
    }
    assert!(world.stored().await.is_empty());
}

#[tokio::test]
async fn more_operations_at_once_than_are_allowed_are_503() {
    let world = World::with(|options| options.set("OPERATIONS_IN_FLIGHT", "1")).await;
    world.approver.for_user("slow", &[Behaviour::Hang]);
    let client = world.client.clone();
    let first = tokio::spawn(async move { client.change(&change("slow", 100_001, NOON)).await });
    while world.approver.calls_for("slow") == 0 {
        tokio::task::yield_now().await;
    }
    let refused = world.client.balance("alice", None).await;
    refused.expect_problem(503, "overloaded");
    let refused = world.client.change(&change("alice", 1, NOON)).await;
    refused.expect_problem(503, "overloaded");
    first.abort();
    assert!(world.stored().await.is_empty());
}

#[tokio::test]
async fn a_change_larger_than_the_threshold_either_way_is_approved_and_no_other() {
    let world = World::start().await;
    let paths = |user: &str, changes: &[i64]| {
        let path = |change| format!("/approve?userId={user}&balanceChange={change}");
        changes.iter().map(path).collect::<Vec<_>>()
    };
    for amount in [100_000, 100_000, 100_001, -100_000, -100_001] {
        world.client.change(&change("a", amount, NOON)).await.expect(200);
    }
    assert_eq!(world.approver.calls(), paths("a", &[100_001, -100_001]));
    for (threshold, asked) in [("0", vec![1, -1]), ("9223372036854775807", vec![])] {
        let world = World::with(|options| options.set("APPROVAL_THRESHOLD", threshold)).await;
        for amount in [0, 1, -1] {
            world.client.change(&change("a", amount, NOON)).await.expect(200);
        }
        assert_eq!(world.approver.calls(), paths("a", &asked), "{threshold}");
    }
}

#[tokio::test]
async fn the_approver_is_asked_about_the_user_whatever_the_id_holds() {
    let world = World::start().await;
    for (user_id, encoded) in [
        ("a/b", "a%2Fb"),
        ("..", ".."),
        ("x&balanceChange=1", "x%26balanceChange%3D1"),
        ("a b+c", "a%20b%2Bc"),
        ("100%?#", "100%25%3F%23"),
        ("ё👍", "%D1%91%F0%9F%91%8D"),
    ] {
        world.client.change(&change(user_id, 200_000, NOON)).await.expect(200);
        let asked = format!("/approve?userId={encoded}&balanceChange=200000");
        assert_eq!(world.approver.calls().last(), Some(&asked));
    }
}

#[tokio::test]
async fn a_big_change_that_the_first_read_rules_out_is_refused_without_the_verdict() {
    let world = World::start().await;
    world.approver.always(Behaviour::Hang);
    let began = Instant::now();
    let refused = world.client.change(&change("a", -100_001, NOON)).await;
    refused.expect_problem(403, "insufficient_funds");
    let keyed = world.client.change_with_key(&change("a", -100_001, NOON), "k").await;
    keyed.expect_problem(403, "insufficient_funds");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_repeat_with_a_key_asks_for_no_second_verdict() {
    let world = World::start().await;
    let body = change("a", 100_001, NOON);
    world.client.change_with_key(&body, "k").await.expect(200);
    world.approver.always(Behaviour::Status(403));
    let repeated = world.client.change_with_key(&body, "k").await.expect(200);
    assert_eq!(repeated.headers["idempotency-replayed"], "true");
    assert_eq!(world.approver.calls_for("a"), 1);
}
