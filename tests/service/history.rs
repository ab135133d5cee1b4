//! The history: the order, the bounds, the balance after each operation, and pages while the ledger goes on.

use serde_json::Value;

use crate::support::client::change;
use crate::support::world::{NOON, World};

/// An operation as a naive ledger keeps it: second, seq, change.
type Entry = (u32, i64, i64);

fn moment(second: u32) -> String {
    format!("2026-01-31T12:{:02}:{:02}Z", second / 60, second % 60)
}

/// Makes deposits and remembers them in the order of the timeline.
#[derive(Default)]
struct Ledger {
    entries: Vec<Entry>,
}

impl Ledger {
    async fn add(&mut self, world: &World, user_id: &str, second: u32) {
        let seq = i64::try_from(self.entries.len()).unwrap() + 1;
        let amount = seq * seq;
        world
            .client
            .change(&change(user_id, amount, &moment(second)))
            .await
            .expect(200);
        self.entries.push((second, seq, amount));
        self.entries.sort_unstable();
    }

    /// What an entry of a page must be, given all that is stored now.
    #[track_caller]
    fn expect(&self, operation: &Value) -> Entry {
        let seq = operation["seq"].as_i64().unwrap();
        let place = self.entries.iter().position(|entry| entry.1 == seq).unwrap();
        let (second, _, amount) = self.entries[place];
        let balance: i64 = self.entries[..=place].iter().map(|entry| entry.2).sum();
        assert_eq!(operation["timestamp"], moment(second));
        assert_eq!(operation["balanceChange"], amount);
        assert_eq!(operation["balance"], balance, "{operation}");
        assert_eq!(operation["context"], "test");
        assert_eq!(operation["approved"], false);
        self.entries[place]
    }
}

async fn page(world: &World, path: &str) -> Value {
    let (user_id, query) = path.strip_prefix('/').unwrap().split_once("/history").unwrap();
    let query = query.trim_start_matches('?');
    world.client.history(user_id, query).await.expect(200).body
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat_what_was_there_at_the_first_while_more_is_added() {
    let world = World::start().await;
    for (order, limit, user_id) in [
        ("asc", 1, "a1"),
        ("desc", 1, "d1"),
        ("asc", 7, "a7"),
        ("desc", 7, "d7"),
        ("asc", 1_000, "a1000"),
        ("desc", 1_000, "d1000"),
    ] {
        let mut ledger = Ledger::default();
        // Out of order, and several at one moment.
        for number in 0..18 {
            ledger.add(&world, user_id, 1_000 + number * 7 % 5).await;
        }
        let there = ledger.entries.clone();
        let path = format!("/{user_id}/history?order={order}&limit={limit}");
        let mut read = page(&world, &path).await;
        let mut seen: Vec<Entry> = Vec::new();
        loop {
            let operations = read["operations"].as_array().unwrap();
            assert!(operations.len() <= limit);
            seen.extend(operations.iter().map(|operation| ledger.expect(operation)));
            let Some(cursor) = read["nextCursor"].as_str() else {
                assert!(read.as_object().unwrap().keys().eq(["userId", "operations"]));
                break;
            };
            assert_eq!(operations.len(), limit);
            let cursor = format!("{path}&cursor={cursor}");
            // Before, between, at and after what was there; not for ever.
            if ledger.entries.len() < 40 {
                for second in [1, 1_002, 3_000] {
                    ledger.add(&world, user_id, second).await;
                }
            }
            read = page(&world, &cursor).await;
        }
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), seen.len(), "repeated: {seen:?}");
        if order == "desc" {
            sorted.reverse();
        }
        assert_eq!(seen, sorted, "out of order");
        let kept = seen.iter().filter(|entry| there.contains(entry)).count();
        assert_eq!(kept, there.len(), "skipped: {seen:?}");
    }
}

#[tokio::test]
async fn equal_timestamps_come_in_the_order_of_acceptance_with_the_balance_after_each() {
    let world = World::start().await;
    for amount in [100, -60, 5, -45] {
        world.client.change(&change("a", amount, NOON)).await.expect(200);
    }
    let told = |page: Value| {
        let operations = page["operations"].as_array().unwrap().clone();
        let pairs = operations.iter().map(|operation| {
            let number = |name: &str| operation[name].as_i64().unwrap();
            (number("seq"), number("balanceChange"), number("balance"))
        });
        pairs.collect::<Vec<_>>()
    };
    let mut expected = vec![(1, 100, 100), (2, -60, 40), (3, 5, 45), (4, -45, 0)];
    assert_eq!(told(page(&world, "/a/history?order=asc").await), expected);
    expected.reverse();
    assert_eq!(told(page(&world, "/a/history").await), expected);
    assert_eq!(told(page(&world, "/a/history?order=desc").await), expected);
}

#[tokio::test]
async fn an_entry_tells_all_that_is_known_of_an_operation() {
    let world = World::start().await;
    let mut body = change("a", 100_001, NOON);
    let context = "line\nbreak \"quoted\" ё 👍 \u{2028}";
    body["context"] = context.into();
    let changed = world.client.change(&body).await.expect(200);
    let entry = page(&world, "/a/history").await["operations"][0].clone();
    assert!(entry.as_object().unwrap().keys().eq([
        "operationId",
        "timestamp",
        "seq",
        "balanceChange",
        "balance",
        "context",
        "approved",
        "recordedAt"
    ]));
    assert_eq!(entry["operationId"], changed.body["operationId"]);
    assert_eq!(entry["context"], context);
    assert_eq!(entry["approved"], true);
    assert!(entry["recordedAt"].as_str().unwrap() > NOON);
}

#[tokio::test]
async fn from_and_to_are_included() {
    let world = World::start().await;
    let mut ledger = Ledger::default();
    for second in [10, 20, 20, 30] {
        ledger.add(&world, "a", second).await;
    }
    let microsecond_after = |second: u32| moment(second).replace('Z', ".000001Z");
    for (query, seconds) in [
        (format!("from={}", moment(20)), vec![20, 20, 30]),
        (format!("to={}", moment(20)), vec![10, 20, 20]),
        (format!("from={}&to={}", moment(20), moment(20)), vec![20, 20]),
        (format!("from={}", microsecond_after(20)), vec![30]),
        (
            format!("from={}&to={}", microsecond_after(10), microsecond_after(20)),
            vec![20, 20],
        ),
        (format!("to={}", moment(9)), vec![]),
        (format!("from={}", moment(31)), vec![]),
    ] {
        for limit in [1, 100] {
            // Following the cursor alone, which holds the bounds and the order.
            let mut path = format!("/a/history?order=asc&limit={limit}&{query}");
            let mut seen = Vec::new();
            loop {
                let read = page(&world, &path).await;
                let operations = read["operations"].as_array().unwrap();
                seen.extend(operations.iter().map(|operation| ledger.expect(operation).0));
                let Some(cursor) = read["nextCursor"].as_str() else {
                    break;
                };
                path = format!("/a/history?limit={limit}&cursor={cursor}");
            }
            assert_eq!(seen, seconds, "{query}");
        }
    }
}

#[tokio::test]
async fn the_last_page_has_no_cursor_even_when_it_is_full() {
    let world = World::start().await;
    let mut ledger = Ledger::default();
    for second in 0..4 {
        ledger.add(&world, "a", second).await;
    }
    for (limit, cursor) in [(3, true), (4, false), (5, false)] {
        let read = page(&world, &format!("/a/history?limit={limit}")).await;
        assert_eq!(read.get("nextCursor").is_some(), cursor, "{limit}");
    }
}

#[tokio::test]
async fn without_a_limit_a_page_has_100_operations_the_latest_first() {
    let world = World::start().await;
    let mut ledger = Ledger::default();
    for second in 0..101 {
        ledger.add(&world, "a", second).await;
    }
    let read = page(&world, "/a/history").await;
    let operations = read["operations"].as_array().unwrap();
    let seconds: Vec<u32> = operations.iter().map(|operation| ledger.expect(operation).0).collect();
    assert!(seconds.into_iter().eq((1..=100).rev()));
}

#[tokio::test]
async fn what_is_asked_beside_a_cursor_counts_instead_of_what_the_cursor_holds() {
    let world = World::start().await;
    let mut ledger = Ledger::default();
    for second in [10, 20, 30, 40] {
        ledger.add(&world, "a", second).await;
    }
    let (from, to) = (format!("from={}", moment(20)), format!("to={}", moment(30)));
    let first = page(&world, &format!("/a/history?limit=1&order=asc&{from}&{to}")).await;
    let cursor = first["nextCursor"].as_str().unwrap();
    for (beside, seconds) in [
        (String::new(), vec![30]),
        (format!("&order=asc&{from}&{to}"), vec![30]),
        (format!("&to={}", moment(40)), vec![30, 40]),
        (format!("&from={}", moment(31)), vec![]),
        // Backwards from the operation where the first page ended.
        ("&order=desc".to_owned(), vec![]),
        (format!("&order=desc&from={}", moment(0)), vec![10]),
    ] {
        let read = page(&world, &format!("/a/history?cursor={cursor}{beside}")).await;
        let operations = read["operations"].as_array().unwrap();
        let seen: Vec<u32> = operations.iter().map(|operation| ledger.expect(operation).0).collect();
        assert_eq!(seen, seconds, "{beside}");
    }
}

#[tokio::test]
async fn no_operation_lies_between_a_moment_and_an_earlier_one() {
    let world = World::start().await;
    world.deposit("a", 1).await;
    let later = NOON.replace('Z', ".000001Z");
    let read = page(&world, &format!("/a/history?from={later}&to={NOON}")).await;
    assert_eq!(read["operations"], serde_json::json!([]));
    assert!(read.get("nextCursor").is_none());
}
