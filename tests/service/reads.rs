//! Reading balances: now, then and in the future, of every user whose id may be.

use futures_util::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::client::{answer, change};
use crate::support::raw;
use crate::support::world::{NOON, World};

#[tokio::test]
async fn a_balance_counts_all_operations_stamped_at_or_before_the_moment_and_no_later_one() {
    let world = World::start().await;
    for (amount, moment) in [
        (100, NOON),
        (-30, "2026-01-31T13:00:00Z"),
        (5, "2999-01-01T00:00:00Z"),
        (7, "2025-06-01T00:00:00Z"),
    ] {
        world.client.change(&change("a", amount, moment)).await.expect(200);
    }
    for (moment, balance) in [
        ("0001-01-01T00:00:00Z", 0),
        ("2025-05-31T23:59:59.999999Z", 0),
        ("2025-06-01T00:00:00Z", 7),
        ("2026-01-31T11:59:59.999999Z", 7),
        (NOON, 107),
        ("2026-01-31T12:00:00.000001Z", 107),
        ("2026-01-31T13:00:00Z", 77),
        ("2998-12-31T23:59:59.999999Z", 77),
        ("2999-01-01T00:00:00Z", 82),
        ("9999-12-31T23:59:59.999999Z", 82),
    ] {
        let read = world.client.balance("a", Some(moment)).await.expect(200);
        let expected = json!({ "userId": "a", "timestamp": moment, "balance": balance });
        assert_eq!(read.body, expected);
    }
    assert_eq!(world.client.balance("a", None).await.body["balance"], 77);
}

#[tokio::test]
async fn a_read_without_a_timestamp_is_as_of_now() {
    let world = World::start().await;
    let before = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000;
    let read = world.client.balance("nobody", None).await.expect(200);
    let after = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000;
    let told = OffsetDateTime::parse(read.body["timestamp"].as_str().unwrap(), &Rfc3339).unwrap();
    let told = told.unix_timestamp_nanos() / 1_000;
    assert!((before..=after).contains(&told), "{before} {told} {after}");
    assert_eq!(
        read.body,
        json!({ "userId": "nobody", "timestamp": read.body["timestamp"], "balance": 0 })
    );
}

#[tokio::test]
async fn a_user_nobody_has_heard_of_has_balance_0_and_an_empty_history() {
    let world = World::start().await;
    let read = world.client.balance("nobody", Some(NOON)).await.expect(200);
    assert_eq!(
        read.body,
        json!({ "userId": "nobody", "timestamp": NOON, "balance": 0 })
    );
    let history = answer(world.client.get("/nobody/history")).await.expect(200);
    assert_eq!(history.body, json!({ "userId": "nobody", "operations": [] }));
    assert!(world.stored().await.is_empty());
}

#[tokio::test]
async fn a_plus_in_front_of_the_offset_is_read_encoded_bare_and_as_the_space_that_it_becomes() {
    let world = World::start().await;
    world.deposit("a", 3).await;
    for offset in ["%2B", "+", "%20"] {
        for (hour, balance) in [("14", 3), ("13", 0)] {
            let path = format!("/a/balance?timestamp=2026-01-31T{hour}:00:00{offset}02:00");
            let read = answer(world.client.get(&path)).await.expect(200);
            assert_eq!(read.body["balance"], balance, "{path}");
        }
        let path = format!("/a/history?from=2026-01-31T14:00:00{offset}02:00&to=2026-01-31T14:00:00{offset}02:00");
        let page = answer(world.client.get(&path)).await.expect(200);
        assert_eq!(page.body["operations"].as_array().unwrap().len(), 1, "{path}");
    }
}

#[tokio::test]
async fn head_is_answered_as_get_without_the_body() {
    let world = World::start().await;
    for path in [
        "/a/balance",
        "/a/history",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
    ] {
        let got = world.client.get(path).send().await.unwrap();
        let head = world.client.request("HEAD", path).send().await.unwrap();
        assert_eq!(head.status(), got.status(), "{path}");
        assert_eq!(head.headers()["content-type"], got.headers()["content-type"], "{path}");
        assert!(head.bytes().await.unwrap().is_empty(), "{path}");
    }
    // A read is a read, with or without its body.
    assert_eq!(world.replica.log_lines().len(), 4);
}

async fn get(world: &World, path: &str) -> Value {
    let answer = raw::get(&world.replica.url, path).await;
    assert_eq!(answer.status, 200, "{path} {answer:?}");
    answer.json()
}

#[tokio::test]
async fn any_user_id_can_be_changed_and_read() {
    let world = World::start().await;
    let longest = "ё".repeat(256);
    let ids = [
        "docs",
        "metrics",
        "openapi.json",
        "livez",
        "readyz",
        "changeBalance",
        "balance",
        "history",
        "a/b",
        "/",
        "..",
        ".",
        "../a",
        "%",
        "%41",
        "%2F",
        "+",
        "a+b",
        " ",
        "a b",
        "?",
        "#",
        "&timestamp=x",
        ";",
        ":userId",
        "*",
        "👩‍🚀",
        "سلام",
        "\u{202e}abc",
        "\u{feff}",
        "e\u{301}",
        "é",
        &longest,
        "\"",
        "'",
        "it's \"x\"",
        "\\",
        "\\n",
        "null",
        "0",
        "A",
        "a",
    ];
    for (number, id) in ids.into_iter().enumerate() {
        let amount = i64::try_from(number).unwrap() + 1;
        let changed = world.client.change(&change(id, amount, NOON)).await.expect(200);
        assert_eq!(
            (&changed.body["userId"], &changed.body["balance"]),
            (&json!(id), &json!(amount))
        );
        let encoded = utf8_percent_encode(id, NON_ALPHANUMERIC).to_string();
        let read = get(&world, &format!("/{encoded}/balance?timestamp={NOON}")).await;
        assert_eq!(read, json!({ "userId": id, "timestamp": NOON, "balance": amount }));
        let history = get(&world, &format!("/{encoded}/history")).await;
        assert_eq!(history["userId"], id);
        assert_eq!(history["operations"].as_array().unwrap().len(), 1, "{id}");
        assert_eq!(history["operations"][0]["operationId"], changed.body["operationId"]);
    }
    let logged = world.replica.log_lines();
    for (lines, id) in logged.chunks(3).zip(ids) {
        assert!(lines.iter().all(|line| line["userId"] == id), "{id} {lines:?}");
    }
    assert_eq!(logged.len(), 3 * ids.len());
}

#[tokio::test]
async fn an_id_need_not_be_encoded_where_a_path_can_hold_it() {
    let world = World::start().await;
    for (number, id) in ["..", ".", "docs", "a+b", "a:b", "it's", "a;b", "a%2fb", "%2e%2e"]
        .into_iter()
        .enumerate()
    {
        let amount = i64::try_from(number).unwrap() + 1;
        let meant = match id {
            "a%2fb" => "a/b",
            "%2e%2e" => "..",
            id => id,
        };
        let balance = world.client.change(&change(meant, amount, NOON)).await.expect(200).body["balance"].clone();
        let read = get(&world, &format!("/{id}/balance")).await;
        assert_eq!((&read["userId"], &read["balance"]), (&json!(meant), &balance), "{id}");
    }
}

#[tokio::test]
async fn a_user_whose_rows_postgresql_cannot_compute_with_fails_no_read_of_others() {
    let world = World::start().await;
    for user in 0..40 {
        world.deposit(&format!("user-{user}"), 100).await;
        let later = change(&format!("user-{user}"), 1, "2026-01-31T12:00:20Z");
        world.client.change(&later).await.expect(200);
    }
    // With it the sum of what follows is beyond 64 bits.
    let break_one = "INSERT INTO balance_checkpoints (user_id, \"timestamp\", balance, lowest, highest,
            recorded_from, recorded_until, all_recorded_until)
        VALUES ('user-17', '2026-01-31T11:00:00Z', 9223372036854775807, 0, 9223372036854775807, now(), now(), now())";
    world.database.client().await.batch_execute(break_one).await.unwrap();
    for _ in 0..5 {
        let reads = (0..40).map(|user| {
            let client = world.client.clone();
            async move {
                (
                    user,
                    client
                        .balance(&format!("user-{user}"), Some("2026-01-31T12:00:10Z"))
                        .await,
                )
            }
        });
        for (user, read) in join_all(reads).await {
            match user {
                17 => drop(read.expect_problem(503, "database_unavailable")),
                _ => assert_eq!(read.expect(200).body["balance"], 100),
            }
        }
    }
    world.replica.stop().await;
}
