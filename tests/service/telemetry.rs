//! What operators see of requests: ids, traces and the process's own log.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::approver::{Behaviour, Call};
use crate::support::client::{answer, change};
use crate::support::raw::exchange;
use crate::support::world::{NOON, World};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// The id of an answer.
fn id_of(headers: &reqwest::header::HeaderMap) -> String {
    let mut ids = headers.get_all("x-request-id").iter();
    let id = ids.next().expect("an id").to_str().unwrap().to_owned();
    assert!(ids.next().is_none() && !id.is_empty(), "{id}");
    id
}

fn is_hex(text: &str, length: usize) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == length && text.bytes().all(hex)
}

/// The trace, parent and flags of a call.
fn parts(call: &Call) -> (String, String, String) {
    let traceparent = call.header("traceparent").expect("a trace");
    let parts: Vec<_> = traceparent.split('-').map(str::to_owned).collect();
    let [version, trace, parent, flags] = &parts[..] else {
        panic!("{traceparent}");
    };
    assert_eq!(version, "00");
    assert!(
        is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2),
        "{traceparent}"
    );
    (trace.clone(), parent.clone(), flags.clone())
}

#[tokio::test]
async fn every_answer_has_an_id_that_is_the_requests_or_a_new_one() {
    let world = World::start().await;
    let mut made = HashSet::new();
    for (method, path, status) in [
        ("GET", "/alice/balance", 200),
        ("GET", "/alice/history", 200),
        ("GET", "/readyz", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/alice/balance", 405),
        ("GET", "/alice/balance?timestamp=noon", 400),
        ("POST", "/changeBalance", 415),
    ] {
        let ask = || world.client.request(method, path);
        let given = answer(ask().header("x-request-id", "client-7/a")).await.expect(status);
        assert_eq!(id_of(&given.headers), "client-7/a", "{path}");
        for unfit in ["", "a b", &"x".repeat(129)] {
            let fresh = answer(ask().header("x-request-id", unfit)).await.expect(status);
            assert!(made.insert(id_of(&fresh.headers)), "{path}");
        }
        let fresh = answer(ask()).await.expect(status);
        assert!(made.insert(id_of(&fresh.headers)), "{path}");
    }
    for path in ["/docs", "/openapi.json", "/metrics"] {
        let response = world
            .client
            .get(path)
            .header("x-request-id", "page")
            .send()
            .await
            .unwrap();
        assert_eq!(id_of(response.headers()), "page", "{path}");
    }
    assert!(made.iter().all(|id| is_hex(id, 32)), "{made:?}");
}

#[tokio::test]
async fn the_approver_is_told_the_requests_id_and_its_trace_with_another_parent() {
    let world = World::start().await;
    let big = |user: &str| change(user, 200_000, NOON);
    let send = |user: &'static str, headers: &[(&str, &str)]| {
        let request = world.client.post_body(big(user).to_string());
        headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value))
    };
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let state = ("tracestate", "vendor=a,other=b");
    let one = answer(send(
        "a",
        &[("x-request-id", "r-1"), ("traceparent", &traceparent), state],
    ));
    one.await.expect(200);
    // Each call is a part of its own.
    world
        .approver
        .for_user("b", &[Behaviour::Status(500), Behaviour::Status(200)]);
    answer(send("b", &[("traceparent", &traceparent)])).await.expect(200);
    let calls = world.approver.heard();
    assert_eq!(calls.len(), 3);
    let mut parents = HashSet::from([PARENT.to_owned()]);
    for call in &calls {
        let (trace, parent, flags) = parts(call);
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
        assert!(parents.insert(parent), "{calls:?}");
    }
    assert_eq!(calls[0].header("x-request-id"), Some("r-1"));
    assert_eq!(calls[0].header("tracestate"), Some("vendor=a,other=b"));
    assert_eq!(calls[1].header("x-request-id"), calls[2].header("x-request-id"));
    assert_eq!(calls[1].header("tracestate"), None);
}

#[tokio::test]
async fn a_trace_that_cannot_be_read_is_not_taken_over_and_a_new_one_begins() {
    let world = World::start().await;
    let zeros = "0".repeat(32);
    let wrong = [
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("00-{zeros}-{PARENT}-01"),
        format!("00-{TRACE}-{}-01", &zeros[..16]),
        format!("00-{TRACE}-{PARENT}-01-more"),
        format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        "nonsense".to_owned(),
    ];
    let mut traces = HashSet::from([TRACE.to_owned(), zeros]);
    let body = change("a", 200_000, NOON).to_string();
    let ask = || world.client.post_body(body.clone()).header("tracestate", "vendor=a");
    for traceparent in &wrong {
        answer(ask().header("traceparent", traceparent)).await.expect(200);
    }
    let twice = format!("00-{TRACE}-{PARENT}-01");
    answer(ask().header("traceparent", &twice).header("traceparent", &twice))
        .await
        .expect(200);
    answer(ask()).await.expect(200);
    let calls = world.approver.heard();
    assert_eq!(calls.len(), wrong.len() + 2);
    for call in calls {
        let (trace, _, flags) = parts(&call);
        assert!(traces.insert(trace), "{call:?}");
        assert_eq!(flags, "00", "nobody records it");
        assert_eq!(call.header("tracestate"), None);
    }
}

#[tokio::test]
async fn the_process_log_is_json_that_names_the_request_an_event_was_caused_by() {
    let mut world = World::with(|options| options.set("RUST_LOG", "info,balance=debug")).await;
    let traceparent = format!("00-{TRACE}-{PARENT}-00");
    let named = |request: reqwest::RequestBuilder, id: &str| {
        request.header("x-request-id", id).header("traceparent", &traceparent)
    };
    answer(named(world.client.get("/alice/balance"), "read"))
        .await
        .expect(200);
    let event = world.replica.event(|event| event["request_id"] == "read").await;
    assert_eq!(event["message"], "answered");
    assert_eq!(event["level"], "DEBUG");
    assert_eq!(event["route"], "/{userId}/balance");
    assert_eq!((&event["method"], &event["status"]), (&json!("GET"), &json!(200)));
    assert!(
        event["duration_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0),
        "{event}"
    );
    assert_eq!(event["trace_id"], TRACE);

    world.approver.always(Behaviour::Status(500));
    let big = world.client.post_body(change("alice", 200_000, NOON).to_string());
    answer(named(big, "big"))
        .await
        .expect_problem(503, "approver_unavailable");
    let warned = |id: &'static str| move |event: &Value| event["level"] == "WARN" && event["request_id"] == id;
    let event = world.replica.event(warned("big")).await;
    assert!(event["message"].as_str().unwrap().contains("the Approver"), "{event}");
    assert_eq!(event["trace_id"], TRACE);

    let drop = "DROP TABLE balance, changes_history, balance_checkpoints CASCADE";
    world.database.client().await.batch_execute(drop).await.unwrap();
    for (id, request) in [
        ("no-read", world.client.get("/alice/balance")),
        ("no-page", world.client.get("/alice/history")),
        (
            "no-change",
            world.client.post_body(change("alice", 1, NOON).to_string()),
        ),
    ] {
        answer(named(request, id))
            .await
            .expect_problem(503, "database_unavailable");
        let event = world.replica.event(warned(id)).await;
        assert!(event["message"].as_str().unwrap().contains("PostgreSQL"), "{event}");
        assert_eq!(event["trace_id"], TRACE);
    }
    for event in world.replica.events() {
        let timestamp = event["timestamp"].as_str().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.len() == 27, "{event}");
        assert!(
            event["target"].as_str().is_some_and(|target| !target.is_empty()),
            "{event}"
        );
    }
}

#[tokio::test]
async fn the_process_log_is_text_if_it_is_wanted() {
    let world = World::with(|options| options.set("LOG_FORMAT", "text").set("RUST_LOG", "balance=debug")).await;
    answer(world.client.get("/livez").header("x-request-id", "probe"))
        .await
        .expect(200);
    let mut replica = world.replica;
    let line = replica.said("request_id=probe").await;
    assert!(
        line.contains("DEBUG") && line.contains("answered route=\"/livez\""),
        "{line}"
    );
    assert!(!line.contains('\x1b') && replica.events().is_empty(), "{line}");
}

/// Everything that can happen to operations whose user, context, amounts, key and URLs are marked.
async fn marked_operations(world: &World) {
    let marked = |amount: i64, timestamp: &str| {
        json!({
            "userId": "secret-user-é", "context": "secret-context", "balanceChange": amount, "timestamp": timestamp,
        })
    };
    let send = |body: &Value| {
        world
            .client
            .post_body(body.to_string())
            .header("idempotency-key", "secret-key")
    };
    answer(send(&marked(987_654_321, NOON))).await.expect(200);
    answer(send(&marked(987_654_321, NOON))).await.expect(200);
    answer(send(&marked(987_654_320, NOON))).await.expect(422);
    let plain = |amount, timestamp| world.client.post_body(marked(amount, timestamp).to_string());
    answer(plain(-987_654_322, NOON)).await.expect(403);
    answer(plain(987_654_325, "2026-01-30T12:00:00Z")).await.expect(200);
    let path = "/secret-user-%C3%A9";
    for query in [
        "",
        "?timestamp=2026-01-31T12:00:00Z",
        "?timestamp=secret-moment",
        "?secret-name=1",
    ] {
        answer(world.client.get(&format!("{path}/balance{query}"))).await;
        answer(world.client.get(&format!("{path}/history{query}"))).await;
    }
    for body in [
        &br#"{"userId":"secret-user","#[..],
        br#"{"userId":"secret-user","context":"secret-context","balanceChange":"secret-amount","timestamp":"secret"}"#,
        br#"{"secret-field":"secret-context"}"#,
        b"\xff secret-context",
    ] {
        answer(world.client.post_body(body)).await.expect(400);
    }
    answer(world.client.get("/secret-user/%FF/balance")).await;
    exchange(&world.replica.url, b"secret-line is no HTTP\r\n\r\n").await;
    for behaviour in [
        Behaviour::Status(403),
        Behaviour::Status(500),
        Behaviour::Reset,
        Behaviour::Raw(b"HTTP/1.1 secret-status\r\n\r\n"),
    ] {
        world.approver.always(behaviour);
        answer(plain(987_654_323, NOON)).await;
    }
    world.approver.always(Behaviour::Status(200));
    // What PostgreSQL says of a row that it does not take has the row in it.
    let constrain = "ALTER TABLE changes_history ADD CONSTRAINT no_more CHECK (balance_change <> 987654326)";
    let client = world.database.client().await;
    client.batch_execute(constrain).await.unwrap();
    answer(plain(987_654_326, NOON)).await.expect(503);
    client.batch_execute("DROP TABLE balance CASCADE").await.unwrap();
    answer(plain(987_654_321, NOON)).await.expect(503);
    answer(world.client.get(&format!("{path}/balance"))).await.expect(503);
    answer(world.client.get(&format!("{path}/history"))).await;
}

#[tokio::test]
async fn nothing_private_is_in_the_process_log_however_much_it_tells() {
    for (level, format) in [("balance=debug", "json"), ("trace", "json"), ("debug", "text")] {
        let world = World::with(|options| options.set("RUST_LOG", level).set("LOG_FORMAT", format)).await;
        marked_operations(&world).await;
        let mut replica = world.replica;
        replica.said("PostgreSQL failed").await;
        replica.signal(nix::sys::signal::Signal::SIGTERM);
        replica.ended().await;
        let output = replica.output();
        assert!(output.len() > 30, "it has told a lot: {output:#?}");
        for line in &output {
            for private in ["secret", "98765432"] {
                assert!(!line.contains(private), "{level}: {line}");
            }
        }
    }
}
