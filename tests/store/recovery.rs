//! Which changes an instance has stored of late.

use std::sync::Arc;
use std::time::Duration;

use balance::domain::{OperationId, SegmentLength, Timestamp};
use balance::store::{Store, StoredByQuery};
use tokio::time::Instant;

use crate::support::postgres::{Database, fresh_database};

fn store(database: &Database) -> Store {
    Store::new(&database.config(1), SegmentLength::DEFAULT, Arc::default())
}

fn at(second: u64) -> Timestamp {
    let begin = Timestamp::parse("2026-01-31T12:00:00Z").unwrap();
    begin.saturating_add(Duration::from_secs(second))
}

/// Changes of two instances in turns, one a second, each with an id made two seconds before it was recorded.
async fn with_changes(count: u64) -> Database {
    let database = fresh_database().await;
    let client = database.client().await;
    for number in 0..count {
        let (id, recorded) = (OperationId::first_at(at(number)), at(number + 2));
        let insert = format!(
            "INSERT INTO changes_history (user_id, timestamp, seq, balance_change, balance_after, context, operation_id,
                approved, instance, recorded_at)
             VALUES ('alice', '2026-01-01Z', {seq}, 5, {number}, 'rent', '{id}', false, 'instance-{instance}', '{recorded}')",
            seq = number + 1,
            instance = number % 2
        );
        client.batch_execute(&insert).await.unwrap();
    }
    database
}

fn query(first: u64, beyond: u64) -> StoredByQuery {
    StoredByQuery {
        instance: "instance-1".to_owned(),
        recorded_since: Timestamp::MIN,
        recorded_before: None,
        first: OperationId::first_at(at(first)),
        beyond: OperationId::first_at(at(beyond)),
    }
}

async fn found(store: &Store, query: &StoredByQuery, most: usize) -> (Vec<i64>, bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let stored = store.stored_by(query, |_| true, most, deadline).await.unwrap();
    let mut numbers: Vec<i64> = stored.changes.iter().map(|change| change.balance_after).collect();
    numbers.sort_unstable();
    (numbers, stored.more)
}

#[tokio::test]
async fn the_changes_of_one_instance_made_and_recorded_in_a_part_of_the_time_are_found() {
    let database = with_changes(20).await;
    let store = store(&database);
    assert_eq!(
        found(&store, &query(0, 100), 100).await,
        ((1..20).step_by(2).collect(), false)
    );
    assert_eq!(found(&store, &query(3, 7), 100).await, (vec![3, 5], false));
    let slice = StoredByQuery {
        recorded_since: at(7),
        recorded_before: Some(at(11)),
        ..query(0, 100)
    };
    assert_eq!(found(&store, &slice, 100).await, (vec![5, 7], false));
    let (one, deadline) = (query(3, 4), Instant::now() + Duration::from_secs(20));
    let stored = store.stored_by(&one, |_| true, 1, deadline).await.unwrap();
    let change = &stored.changes[0];
    assert_eq!(change.operation.id, OperationId::first_at(at(3)));
    assert_eq!(change.operation.user_id.as_str(), "alice");
    assert_eq!(change.operation.context.as_str(), "rent");
    assert_eq!((change.operation.balance_change, change.balance_after), (5, 3));
    assert_eq!(
        change.operation.timestamp,
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap()
    );
}

#[tokio::test]
async fn no_more_than_asked_for_are_held_and_it_is_said_that_there_are_more() {
    let database = with_changes(20).await;
    let store = store(&database);
    for most in 0..10 {
        let (numbers, more) = found(&store, &query(0, 100), most).await;
        assert_eq!((numbers.len(), more), (most, true));
    }
    assert!(!found(&store, &query(0, 100), 10).await.1);
    // What is not wanted does not count.
    let known = OperationId::first_at(at(19));
    let deadline = Instant::now() + Duration::from_secs(20);
    let stored = store
        .stored_by(&query(0, 100), |id| id == known, 1, deadline)
        .await
        .unwrap();
    assert_eq!((stored.changes.len(), stored.more), (1, false));
}

#[tokio::test]
async fn the_index_leads_to_what_was_stored_of_late() {
    let client = fresh_database().await.client().await;
    let fill =
        "INSERT INTO changes_history (user_id, timestamp, seq, balance_change, balance_after, context, operation_id,
            approved, instance, recorded_at)
         SELECT 'alice', '2026-01-01Z', n, 0, 0, repeat('x', 400), gen_random_uuid(), false, 'instance-1',
            '2026-01-31T12:00:00Z'::timestamptz + n * interval '1 s'
         FROM generate_series(1, 20000) n;
         SELECT brin_summarize_new_values('changes_history_by_recorded_at');
         SET enable_seqscan = off";
    client.batch_execute(fill).await.unwrap();
    let explain = "EXPLAIN (ANALYZE, FORMAT TEXT) SELECT operation_id FROM changes_history
         WHERE instance = 'instance-1' AND recorded_at >= '2026-01-31T12:00:00Z'::timestamptz + interval '19900 s'";
    let plan: Vec<String> = client
        .query(explain, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let plan = plan.join("\n");
    assert!(plan.contains("changes_history_by_recorded_at"), "{plan}");
    let blocks = plan.split("lossy=").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(blocks.parse::<u32>().unwrap() <= 2 * 128, "{plan}");
}
