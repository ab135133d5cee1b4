//! What was known at an earlier moment of recording: its cost, and the moments themselves. That each answer is the model's
//! is in `ledger`.

use balance::domain::{SegmentLength, Timestamp, UserId};
use balance::store::{HistoryOrder, HistoryQuery, Reach, Store};
use tokio_postgres::Client;

use crate::ledger::{accept, accept_groups, at, check_stored, operation, rows_read, soon, store};
use crate::support::postgres::fresh_database;

/// The moment of recording of a user's last operations.
async fn last_recorded(client: &Client, user_id: &str) -> Timestamp {
    let last = "SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint FROM balance WHERE user_id = $1";
    let last = client.query_one(last, &[&user_id]).await.unwrap();
    Timestamp::from_unix_microseconds(last.get(0)).unwrap()
}

async fn known_balance(store: &Store, user_id: &str, moment: Timestamp, known_at: Timestamp) -> i64 {
    let balances = store
        .balances_known_at(&[user_id], &[moment], &[known_at], soon())
        .await;
    balances.unwrap()[0].amount
}

/// Deposits of 1, one a second from this one on.
async fn deposit(store: &Store, seconds: std::ops::Range<i64>) {
    for start in seconds.clone().step_by(250) {
        let operations = (start..seconds.end.min(start + 250)).map(|second| operation("alice", 1, second));
        accept_groups(store, &[operations.collect()], Reach::Unlimited).await;
    }
}

#[tokio::test]
async fn what_was_known_costs_the_segments_that_changed_since_however_long_the_history_is() {
    let database = fresh_database().await;
    let store = store(&database, SegmentLength::DEFAULT.operations());
    let client = database.client().await;
    deposit(&store, 0..10_000).await;
    let early = last_recorded(&client, "alice").await;
    deposit(&store, 10_000..20_000).await;
    let late = last_recorded(&client, "alice").await;
    for second in [3_000, 18_000, 19_000, 19_500] {
        accept(&store, &operation("alice", -1, second)).await.unwrap();
    }
    let now = last_recorded(&client, "alice").await;
    client.batch_execute("ANALYZE").await.unwrap();

    // As of when, known when: the balance, and the most rows of the history that are read for it.
    for (second, known_at, balance, most) in [
        (30_000, now, 19_996, 0),
        (10_000, now, 10_000, 3 * 128),
        (30_000, late, 20_000, 5 * 128 + 128),
        (2_000, late, 2_001, 3 * 128),
        (10_000, late, 10_001, 4 * 128),
        (30_000, early, 10_000, 3 * 128),
        (9_990, early, 9_991, 4 * 128),
        (30_000, at(0), 0, 2 * 128),
    ] {
        let before = rows_read(&client).await;
        let read = known_balance(&store, "alice", at(second), known_at).await;
        let rows = rows_read(&client).await - before;
        assert_eq!(read, balance, "as of {second} known at {known_at}");
        assert!(
            rows <= most,
            "{rows} rows of the history as of {second}, known at {known_at}"
        );
    }
    for (order, known_at, first, most) in [
        (HistoryOrder::NewestFirst, now, Some(19_996), 100 + 2 * 128),
        (HistoryOrder::NewestFirst, late, Some(20_000), 10 * 128),
        // All newer segments are passed over.
        (HistoryOrder::NewestFirst, early, Some(10_000), 6 * 128),
        (HistoryOrder::OldestFirst, early, Some(1), 6 * 128),
        (HistoryOrder::NewestFirst, at(0), None, 3 * 128),
        (HistoryOrder::OldestFirst, at(0), None, 3 * 128),
    ] {
        let query = HistoryQuery {
            user_id: UserId::new("alice").unwrap(),
            from: Timestamp::MIN,
            to: Timestamp::MAX,
            order,
            beyond: None,
            limit: 100,
            bytes: usize::MAX,
            known_at: Some(known_at),
        };
        let before = rows_read(&client).await;
        let page = store.history(&query, soon()).await.unwrap().entries;
        let rows = rows_read(&client).await - before;
        assert_eq!(page.first().map(|entry| entry.balance), first, "{query:?}");
        assert_eq!(page.len(), first.map_or(0, |_| 100), "{query:?}");
        assert!(rows <= most, "{rows} rows of the history for {query:?}");
    }
    // It reads much, which would be counted too if it came first.
    check_stored(&client).await;
}

#[tokio::test]
async fn moments_of_recording_go_up_also_when_the_clock_is_set_back() {
    let database = fresh_database().await;
    let store = store(&database, 2);
    let client = database.client().await;
    accept(&store, &operation("alice", 100, 10)).await.unwrap();
    // The clock was an hour ahead, and is not any more.
    for table in ["balance", "changes_history"] {
        let ahead = format!("UPDATE {table} SET recorded_at = recorded_at + interval '1 hour'");
        client.batch_execute(&ahead).await.unwrap();
    }
    let mut recorded = vec![last_recorded(&client, "alice").await];
    // In order, late and deep: checkpoints are new, divided and shifted.
    for second in [20, 15, 5, 30, 40, 50, 7, 12] {
        accept(&store, &operation("alice", 1, second)).await.unwrap();
        let last = last_recorded(&client, "alice").await;
        assert!(last > *recorded.last().unwrap(), "{last} after {recorded:?}");
        recorded.push(last);
    }
    check_stored(&client).await;
    let ends: Vec<_> = recorded.iter().map(|_| at(60)).collect();
    let users: Vec<_> = recorded.iter().map(|_| "alice").collect();
    let known = store.balances_known_at(&users, &ends, &recorded, soon()).await.unwrap();
    let known: Vec<_> = known.into_iter().map(|reading| reading.amount).collect();
    assert_eq!(known, (100..=108).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_a_user_nobody_had_heard_of_nothing_was_known() {
    let database = fresh_database().await;
    let store = store(&database, 2);
    let client = database.client().await;
    accept(&store, &operation("alice", 100, 10)).await.unwrap();
    let first = last_recorded(&client, "alice").await;
    let before = Timestamp::from_unix_microseconds(first.unix_microseconds() - 1).unwrap();
    for (user_id, known_at, balance) in [
        ("alice", before, 0),
        ("alice", first, 100),
        ("alice", Timestamp::MAX, 100),
        ("alice", Timestamp::MIN, 0),
        ("bob", Timestamp::MAX, 0),
        ("bob", before, 0),
    ] {
        assert_eq!(known_balance(&store, user_id, Timestamp::MAX, known_at).await, balance);
        let query = HistoryQuery {
            user_id: UserId::new(user_id).unwrap(),
            from: Timestamp::MIN,
            to: Timestamp::MAX,
            order: HistoryOrder::NewestFirst,
            beyond: None,
            limit: 10,
            bytes: usize::MAX,
            known_at: Some(known_at),
        };
        let page = store.history(&query, soon()).await.unwrap().entries;
        assert_eq!(page.first().map_or(0, |entry| entry.balance), balance);
    }
}
