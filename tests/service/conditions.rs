//! Versions as entity tags: changes that hang on what was read, and reads that are spared.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Response;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::model::{StoredUser, rfc3339};
use crate::support::client::{Answer, ServiceClient, answer, change};
use crate::support::world::{NOON, World};

fn tag(answer: &Answer) -> &str {
    answer.headers["etag"].to_str().unwrap()
}

async fn change_if(client: &ServiceClient, user_id: &str, amount: i64, tags: &str) -> Answer {
    let request = client.post_body(change(user_id, amount, NOON).to_string());
    answer(request.header("if-match", tags)).await
}

async fn unless(client: &ServiceClient, path: &str, tags: &str) -> Response {
    client.get(path).header("if-none-match", tags).send().await.unwrap()
}

#[tokio::test]
async fn every_answer_has_the_users_version_as_its_tag() {
    let world = World::start().await;
    let client = &world.client;
    assert_eq!(tag(&client.balance("alice", None).await), "\"0\"");
    for version in 1..=3 {
        let expected = format!("\"{version}\"");
        assert_eq!(tag(&world.deposit("alice", 1).await), expected);
        assert_eq!(tag(&client.balance("alice", None).await), expected);
        assert_eq!(
            tag(&client.balance("alice", Some("2000-01-01T00:00:00Z")).await),
            expected
        );
        assert_eq!(tag(&answer(client.get("/alice/available")).await), expected);
        for query in ["", "?limit=1", "?from=2100-01-01T00:00:00Z"] {
            let page = answer(client.get(&format!("/alice/history{query}"))).await;
            assert_eq!(tag(&page), expected, "{query}");
        }
        for form in ["text/csv", "text/html"] {
            let request = client.get("/alice/history").header("accept", form);
            assert_eq!(request.send().await.unwrap().headers()["etag"], expected, "{form}");
        }
    }
    assert_eq!(tag(&answer(client.get("/nobody/history")).await), "\"0\"");
    // What was known before is nothing to rest a change on.
    for path in ["/alice/history", "/alice/balance"] {
        let known = answer(client.get(&format!("{path}?knownAt=2020-01-01T00:00:00Z"))).await;
        assert!(!known.headers.contains_key("etag"), "{path}");
        let known = answer(client.get(&format!("{path}?knownAt=2200-01-01T00:00:00Z"))).await;
        assert_eq!(tag(&known), "\"3\"", "{path}");
    }
    // A repeat gets the first answer again, with its tag.
    let first = client.change_with_key(&change("alice", 1, NOON), "k").await.expect(200);
    world.deposit("alice", 1).await;
    let again = client.change_with_key(&change("alice", 1, NOON), "k").await.expect(200);
    assert_eq!((tag(&first), tag(&again)), ("\"4\"", "\"4\""));
    // A refusal steps nothing.
    client.change(&change("alice", -100, NOON)).await.expect(403);
    assert_eq!(tag(&client.balance("alice", None).await), "\"5\"");
}

#[tokio::test]
async fn a_change_is_made_only_at_a_version_that_it_names() {
    let world = World::start().await;
    let client = &world.client;
    // Not for a user who has something already, and only for one who has.
    assert_eq!(change_if(client, "alice", 1, "*").await.expect(412).body["version"], 0);
    assert_eq!(
        tag(&change_if(client, "alice", 100, "\"0\"").await.expect(200)),
        "\"1\""
    );
    change_if(client, "alice", 100, "\"0\"").await.expect(412);
    change_if(client, "alice", 100, "*").await.expect(200);
    change_if(client, "alice", -50, "\"2\"").await.expect(200);

    let before = world.stored().await;
    for tags in ["\"2\"", "\"4\"", "W/\"3\"", "\"x\"", "\"1\", \"2\"", "\"3,\""] {
        let refused = change_if(client, "alice", -1, tags).await;
        let refused = refused.expect_problem(412, "precondition_failed");
        assert_eq!(
            (tag(&refused), &refused.body["version"]),
            ("\"3\"", &json!(3)),
            "{tags}"
        );
        assert!(refused.detail().contains("version 3"), "{}", refused.detail());
    }
    // What the rule forbids at a version that is named is refused by the rule.
    change_if(client, "alice", -1_000, "\"3\"")
        .await
        .expect_problem(403, "insufficient_funds");
    for tags in ["x", "", "\"3", "\"3\" \"4\"", "*, \"3\""] {
        let refused = change_if(client, "alice", -1, tags).await;
        let refused = refused.expect_problem(400, "invalid_request");
        assert!(refused.detail().starts_with("If-Match "), "{}", refused.detail());
    }
    let request = client.post_body(change("alice", -1, NOON).to_string());
    let refused = answer(request.header("if-none-match", "*")).await;
    let refused = refused.expect_problem(400, "invalid_request");
    assert!(refused.detail().contains("If-Match: \"0\""), "{}", refused.detail());
    assert_eq!(world.stored().await, before);
    assert_eq!(
        tag(&change_if(client, "alice", -1, "\"9\", \"3\"").await.expect(200)),
        "\"4\""
    );
    let lines = world.replica.log_lines();
    let failed = lines.iter().filter(|line| line["outcome"] == "precondition_failed");
    assert_eq!(failed.count(), 8);
}

#[tokio::test]
async fn a_repeat_under_its_key_gets_the_first_answer_though_the_user_has_moved_on() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let send = || {
        let request = world.client.post_body(change("alice", -10, NOON).to_string());
        answer(request.header("if-match", "\"1\"").header("idempotency-key", "k"))
    };
    let first = send().await.expect(200);
    let again = send().await.expect(200);
    assert_eq!((&again.body, tag(&again)), (&first.body, "\"2\""));
    assert_eq!(again.headers["idempotency-replayed"], "true");
}

#[tokio::test]
async fn a_big_change_is_judged_at_the_version_of_its_verdict_and_one_that_is_ruled_out_waits_for_none() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let gate = Arc::new(Semaphore::new(0));
    world.approver.hold(&gate);
    // The Approver gives no verdict, and none is waited for.
    change_if(&world.client, "alice", 500_000, "\"0\"").await.expect(412);
    // While the Approver thinks, the user moves on.
    let asked = world.approver.calls().len();
    let client = world.client.clone();
    let waiting = tokio::spawn(async move { change_if(&client, "alice", 500_000, "\"1\"").await });
    world.approver.until_called(1 + asked).await;
    world.deposit("alice", 1).await;
    gate.add_permits(1 + asked);
    let refused = waiting.await.unwrap().expect_problem(412, "precondition_failed");
    assert_eq!(tag(&refused), "\"2\"");
}

#[tokio::test]
async fn of_many_changes_at_one_version_one_is_made_whatever_statements_they_share() {
    let world = World::start().await;
    let (other, second) = world.another().await;
    world.deposit("alice", 1_000).await;
    for round in 1..=20 {
        let tags = format!("\"{round}\"");
        let sent = (0..24).map(|number| {
            let client = if number % 2 == 0 { &world.client } else { &second };
            change_if(client, "alice", -1, &tags)
        });
        let answers = join_all(sent).await;
        let made: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!(made.len(), 1, "round {round}");
        assert_eq!(tag(made[0]), format!("\"{}\"", round + 1));
        for refused in answers.iter().filter(|answer| answer.status != 200) {
            assert_eq!(
                (refused.status.as_u16(), tag(refused)),
                (412, &*format!("\"{}\"", round + 1))
            );
        }
    }
    assert_eq!(world.client.balance("alice", None).await.body["balance"], 980);
    other.stop().await;
}

#[tokio::test]
async fn clients_that_read_and_change_at_what_they_read_lose_no_update() {
    const CLIENTS: usize = 12;
    const EACH: usize = 6;
    let world = World::start().await;
    let (other, second) = world.another().await;
    // Each takes half of what it has read, which is right only if nobody else has taken from it.
    world.deposit("pot", 1 << 40).await;
    let took = (0..CLIENTS).map(|number| {
        let client = if number % 2 == 0 {
            world.client.clone()
        } else {
            second.clone()
        };
        let plain = client.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            for step in 0..EACH {
                loop {
                    let read = client.balance("pot", None).await.expect(200);
                    let balance = read.body["balance"].as_i64().unwrap();
                    let half = -(balance / 2).min(100_000);
                    let answer = change_if(&client, "pot", half, tag(&read)).await;
                    if answer.status == 200 {
                        assert_eq!(answer.body["balance"], balance + half);
                        took.push((tag(&read).to_owned(), tag(&answer).to_owned()));
                        break;
                    }
                    answer.expect_problem(412, "precondition_failed");
                }
                // Others change the same user without a condition.
                if number == 0 && step % 3 == 0 {
                    plain.change(&change("pot", 1, NOON)).await.expect(200);
                }
            }
            took
        })
    });
    let took: Vec<_> = join_all(took).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(took.len(), CLIENTS * EACH);
    let number = |tag: &str| -> i64 { tag.trim_matches('"').parse().unwrap() };
    assert!(took.iter().all(|(read, made)| number(read) + 1 == number(made)));
    let versions: BTreeSet<_> = took.iter().map(|(_, made)| number(made)).collect();
    assert_eq!(versions.len(), took.len());
    let sql = world.database.client().await;
    let stored = StoredUser::read(&sql, "pot").await;
    stored.verify(|_, _| {});
    assert_eq!(stored.history.len(), 1 + took.len() + EACH.div_ceil(3));
    other.stop().await;
}

#[tokio::test]
async fn a_client_that_has_the_answer_of_the_version_is_spared_it() {
    let world = World::start().await;
    let client = &world.client;
    let paths = ["/alice/balance", "/alice/available"].map(str::to_owned);
    let past = utf8_percent_encode(NOON, NON_ALPHANUMERIC);
    let paths = paths
        .iter()
        .cloned()
        .chain(paths.iter().map(|path| format!("{path}?timestamp={past}")));
    let paths: Vec<_> = paths.collect();
    world.deposit("alice", 100).await;
    for path in &paths {
        for tags in ["\"1\"", "W/\"1\"", "\"0\", \"1\"", "1", "*"] {
            let spared = unless(client, path, tags).await;
            assert_eq!(spared.status().as_u16(), 304, "{path} {tags}");
            assert_eq!(spared.headers()["etag"], "\"1\"");
            assert_eq!(spared.headers()["cache-control"], "no-store");
            assert!(!spared.headers().contains_key("content-type"));
            assert!(spared.bytes().await.unwrap().is_empty());
        }
        for tags in ["\"0\"", "\"2\"", "\"x\""] {
            assert_eq!(unless(client, path, tags).await.status().as_u16(), 200, "{path} {tags}");
        }
        for tags in ["x", ""] {
            assert_eq!(unless(client, path, tags).await.status().as_u16(), 400, "{path} {tags}");
        }
    }
    world.deposit("alice", 1).await;
    for path in &paths {
        assert_eq!(unless(client, path, "\"1\"").await.status().as_u16(), 200, "{path}");
    }
    // It is answered, and logged as any other.
    let lines = world.replica.log_lines();
    let reads = lines.iter().filter(|line| line["operation"] == "getBalance");
    assert!(
        reads
            .clone()
            .all(|line| line["outcome"] == "accepted" && line["balance"].is_i64())
    );
    assert_eq!(reads.count(), 2 * (5 + 3 + 1));
}

#[tokio::test]
async fn what_falls_due_without_a_step_of_the_version_is_never_kept_from_a_client() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let soon = SystemTime::now() + Duration::from_secs(4);
    let soon = soon.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let soon = rfc3339(i64::try_from(soon.as_micros()).unwrap());
    let made = world.client.change(&change("alice", 50, &soon)).await.expect(200);
    let read = world.client.balance("alice", None).await;
    assert_eq!(
        (tag(&made), tag(&read), &read.body["balance"]),
        ("\"2\"", "\"2\"", &json!(100))
    );
    let fallen_due = timeout(Duration::from_secs(20), async {
        loop {
            let read = unless(&world.client, "/alice/balance", "\"2\"").await;
            assert_eq!(read.status().as_u16(), 200);
            let read: serde_json::Value = read.json().await.unwrap();
            if read["balance"] == 150 {
                break;
            }
            assert_eq!(read["balance"], 100);
            yield_now().await;
        }
    });
    fallen_due.await.expect("it falls due");
    // As of a moment nothing falls due any more.
    let path = format!("/alice/balance?timestamp={}", soon.replace('+', "%2B"));
    assert_eq!(unless(&world.client, &path, "\"2\"").await.status().as_u16(), 304);
    // The next change, in the past, settles it.
    world.deposit("alice", 1).await;
    assert_eq!(
        unless(&world.client, "/alice/balance", "\"3\"").await.status().as_u16(),
        304
    );
}

#[tokio::test]
async fn a_clock_that_is_behind_gives_no_tag_to_what_others_see_otherwise() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let later = change("alice", 50, "9999-01-01T00:00:00Z");
    world.client.change(&later).await.expect(200);
    // As PostgreSQL would have it whose clock is that far ahead of the replica's.
    let ahead = "UPDATE balance SET recorded_at = '9999-01-02T00:00:00Z'";
    world.database.client().await.batch_execute(ahead).await.unwrap();
    let read = unless(&world.client, "/alice/balance", "\"2\"").await;
    assert_eq!(read.status().as_u16(), 200);
    assert!(!read.headers().contains_key("etag"));
    let path = "/alice/balance?timestamp=9999-01-01T00:00:00Z";
    assert_eq!(unless(&world.client, path, "\"2\"").await.status().as_u16(), 304);
}
