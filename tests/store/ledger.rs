//! Everything the store answers, against a naive model: a list of operations, sorted and summed at every moment.

use std::time::Duration;

use balance::config::{DatabaseConfig, DatabaseUrl};
use balance::domain::{Context, IdempotencyKey, Operation, OperationId, Refusal, SegmentLength, Timestamp, UserId};
use balance::store::{CommitOutcome, Commitment, HistoryOrder, HistoryQuery, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::postgres::{Database, fresh_database};

pub fn store(database: &Database, segment_length: u32) -> Store {
    let config = DatabaseConfig {
        url: DatabaseUrl::parse(&database.url).unwrap(),
        connections: 16,
        application_name: "test".to_owned(),
    };
    Store::new(&config, SegmentLength::new(segment_length).unwrap())
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_microseconds(seconds * 1_000_000).unwrap()
}

pub fn operation(user_id: &str, balance_change: i64, seconds: i64) -> Operation {
    Operation {
        id: OperationId(Uuid::now_v7()),
        user_id: UserId::new(user_id).unwrap(),
        context: Context::new("test").unwrap(),
        balance_change,
        timestamp: at(seconds),
    }
}

/// Reads, judges and commits one operation, as a replica alone would.
pub async fn accept(store: &Store, operation: &Operation) -> Result<i64, Refusal> {
    let mut state = store.state(operation, None, soon()).await.unwrap();
    let entry = state.timeline.accept(operation)?;
    let commitment = Commitment {
        operation,
        idempotency_key: None,
        approved: false,
        entry,
    };
    let changes = state.timeline.into_changes();
    let outcome = store.commit(&[commitment], &changes, "test", soon()).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Stored);
    Ok(entry.balance_after)
}

/// Reads, judges and commits operations together; those in a closed segment alone, as a replica does.
async fn accept_together(store: &Store, operations: &[Operation]) -> Vec<Result<i64, Refusal>> {
    let user_id = &operations[0].user_id;
    let timestamps = || operations.iter().map(|operation| operation.timestamp);
    let moments = timestamps().min().unwrap()..=timestamps().max().unwrap();
    let mut state = store
        .group_state(user_id, moments, operations.len(), &[], soon())
        .await
        .unwrap();
    let mut answers = vec![None; operations.len()];
    let mut commitments = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        if Some(operation.timestamp) > state.closed_until {
            let judged = state.timeline.accept(operation);
            if let Ok(entry) = judged {
                commitments.push(Commitment {
                    operation,
                    idempotency_key: None,
                    approved: false,
                    entry,
                });
            }
            answers[index] = Some(judged.map(|entry| entry.balance_after));
        }
    }
    let changes = state.timeline.into_changes();
    let outcome = store.commit(&commitments, &changes, "test", soon()).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Stored);
    for (index, operation) in operations.iter().enumerate() {
        if answers[index].is_none() {
            answers[index] = Some(accept(store, operation).await);
        }
    }
    answers.into_iter().flatten().collect()
}

#[derive(Default)]
struct NaiveModel {
    accepted: Vec<(i64, i64)>,
}

impl NaiveModel {
    fn balance_at(&self, seconds: i64) -> i128 {
        let counted = self.accepted.iter().filter(|(own, _)| *own <= seconds);
        counted.map(|(_, change)| i128::from(*change)).sum()
    }

    fn accept(&mut self, change: i64, seconds: i64) -> Result<i64, Refusal> {
        self.accepted.push((seconds, change));
        let mut moments: Vec<_> = self
            .accepted
            .iter()
            .map(|(own, _)| *own)
            .filter(|own| *own >= seconds)
            .collect();
        moments.sort_unstable();
        for moment in moments {
            let balance = self.balance_at(moment);
            let refusal = if balance < 0 {
                let shortfall = u64::try_from(-balance).unwrap();
                Refusal::InsufficientFunds {
                    at: at(moment),
                    shortfall,
                }
            } else if balance > i128::from(i64::MAX) {
                Refusal::BalanceLimit { at: at(moment) }
            } else {
                continue;
            };
            self.accepted.pop();
            return Err(refusal);
        }
        Ok(i64::try_from(self.balance_at(seconds)).unwrap())
    }

    /// (timestamp, change, running balance) in timeline order.
    fn history(&self) -> Vec<(i64, i64, i64)> {
        let mut sorted = self.accepted.clone();
        sorted.sort_by_key(|(seconds, _)| *seconds);
        let running = sorted.into_iter().scan(0_i128, |sum, (seconds, change)| {
            *sum += i128::from(change);
            let shown = (*sum).clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            Some((seconds, change, i64::try_from(shown).unwrap()))
        });
        running.collect()
    }
}

/// Every read the store offers gives what the model gives.
async fn check_reads(store: &Store, user_id: &UserId, model: &NaiveModel, page: u32) {
    for seconds in -1..=32 {
        let read = store.balance_at(user_id, at(seconds), soon()).await.unwrap();
        assert_eq!(i128::from(read), model.balance_at(seconds), "as of {seconds}");
    }
    for order in [HistoryOrder::OldestFirst, HistoryOrder::NewestFirst] {
        let mut query = HistoryQuery {
            user_id: user_id.clone(),
            from: at(3),
            to: at(25),
            order,
            beyond: None,
            limit: page,
        };
        let mut read = Vec::new();
        loop {
            let entries = store.history(&query, soon()).await.unwrap();
            read.extend(
                entries
                    .iter()
                    .map(|entry| (entry.place.timestamp, entry.balance_change, entry.balance)),
            );
            match entries.last() {
                Some(last) if entries.len() == page as usize => query.beyond = Some(last.place),
                _ => break,
            }
        }
        let within = model
            .history()
            .into_iter()
            .filter(|(seconds, ..)| (3..=25).contains(seconds));
        let mut expected: Vec<_> = within
            .map(|(seconds, change, balance)| (at(seconds), change, balance))
            .collect();
        if order == HistoryOrder::NewestFirst {
            expected.reverse();
        }
        assert_eq!(read, expected);
    }
}

/// What is stored beside the history is what the history gives; every query here must find nothing.
pub async fn check_stored(client: &Client) {
    let wrong = [
        "SELECT b.user_id FROM balance b LEFT JOIN changes_history h USING (user_id) GROUP BY b.user_id
         HAVING b.version <> count(h.seq) OR b.version <> max(h.seq) OR count(DISTINCT h.seq) <> count(*)
            OR b.balance <> sum(h.balance_change) OR b.latest <> max(h.timestamp)",
        "SELECT h.user_id FROM changes_history h LEFT JOIN balance b USING (user_id) WHERE b.user_id IS NULL",
        "SELECT b.user_id FROM balance b WHERE b.since_checkpoint <> (
            SELECT count(*) FROM changes_history h WHERE h.user_id = b.user_id AND h.timestamp > coalesce((
                SELECT max(c.timestamp) FROM balance_checkpoints c WHERE c.user_id = b.user_id), '-infinity'))",
        "SELECT c.user_id FROM balance_checkpoints c JOIN balance b USING (user_id) WHERE c.timestamp >= b.latest",
        "WITH moments AS (
            SELECT user_id, timestamp, sum(sum(balance_change)) OVER (PARTITION BY user_id ORDER BY timestamp) AS balance
            FROM changes_history GROUP BY user_id, timestamp),
         closed AS (
            SELECT m.*, (SELECT min(c.timestamp) FROM balance_checkpoints c
                WHERE c.user_id = m.user_id AND c.timestamp >= m.timestamp) AS until FROM moments m)
         SELECT c.user_id FROM balance_checkpoints c
         LEFT JOIN closed m ON m.user_id = c.user_id AND m.until = c.timestamp
         GROUP BY c.user_id, c.timestamp
         HAVING count(m.timestamp) = 0 OR c.lowest <> min(m.balance) OR c.highest <> max(m.balance)
            OR c.balance <> (array_agg(m.balance ORDER BY m.timestamp DESC))[1]",
    ];
    for query in wrong {
        let rows = client.query(query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{} users for whom this is so: {query}", rows.len());
    }
}

fn change() -> impl Strategy<Value = i64> {
    prop_oneof![
        16 => -60..=100_i64,
        1 => Just(i64::MAX),
        1 => Just(i64::MIN),
        1 => (i64::MAX - 300)..i64::MAX,
        1 => -i64::MAX..(300 - i64::MAX),
    ]
}

#[test]
fn every_answer_and_everything_stored_is_the_naive_models() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(fresh_database());
    let client = runtime.block_on(database.client());
    let operations = prop::collection::vec(prop::collection::vec((change(), 0..30_i64), 1..5), 1..14);
    let mut runner = TestRunner::new(Config::with_cases(40));
    let run = runner.run(&(1..5_u32, 1..5_u32, operations), |(length, page, groups)| {
        runtime.block_on(async {
            let store = store(&database, length);
            let user = Uuid::now_v7().to_string();
            let mut model = NaiveModel::default();
            for group in groups {
                let operations: Vec<_> = group
                    .iter()
                    .map(|(change, seconds)| operation(&user, *change, *seconds))
                    .collect();
                let closed = if let [single] = operations.as_slice() {
                    assert_eq!(accept(&store, single).await, model.accept(group[0].0, group[0].1));
                    continue;
                } else {
                    last_checkpoint(&client, &user).await
                };
                let answers = accept_together(&store, &operations).await;
                // Those in a closed segment are judged after the others.
                let (open, deep): (Vec<_>, Vec<_>) =
                    (0..group.len()).partition(|index| Some(operations[*index].timestamp) > closed);
                for index in open.into_iter().chain(deep) {
                    let (change, seconds) = group[index];
                    assert_eq!(answers[index], model.accept(change, seconds), "{change:+} @{seconds}");
                }
            }
            check_reads(&store, &UserId::new(&user).unwrap(), &model, page).await;
        });
        Ok(())
    });
    run.unwrap();
    runtime.block_on(check_stored(&client));
}

async fn last_checkpoint(client: &Client, user_id: &str) -> Option<Timestamp> {
    let query =
        "SELECT (extract(epoch FROM max(timestamp)) * 1000000)::bigint FROM balance_checkpoints WHERE user_id = $1";
    let row = client.query_one(query, &[&user_id]).await.unwrap();
    row.get::<_, Option<i64>>(0).and_then(Timestamp::from_unix_microseconds)
}

#[tokio::test]
async fn an_operation_is_found_again_under_its_idempotency_key() {
    let database = fresh_database().await;
    let store = store(&database, 2);
    let first = operation("alice", 10, 10);
    let key = IdempotencyKey::new("key").unwrap();
    let mut state = store.state(&first, Some(&key), soon()).await.unwrap();
    assert_eq!(state.earlier, None);
    let entry = state.timeline.accept(&first).unwrap();
    let commitment = Commitment {
        operation: &first,
        idempotency_key: Some(&key),
        approved: true,
        entry,
    };
    let changes = state.timeline.into_changes();
    store.commit(&[commitment], &changes, "test", soon()).await.unwrap();
    accept(&store, &operation("alice", 5, 5)).await.unwrap();

    let found = store.state(&first, Some(&key), soon()).await.unwrap().earlier.unwrap();
    assert_eq!((found.id, found.balance_after), (first.id, 10));
    let together = store
        .group_state(&first.user_id, at(0)..=at(10), 1, &["other", "key"], soon())
        .await
        .unwrap();
    assert_eq!(together.earlier["key"], found);
    assert_eq!(together.earlier.len(), 1);
    let of_another = operation("bob", 10, 10);
    assert_eq!(
        store.state(&of_another, Some(&key), soon()).await.unwrap().earlier,
        None
    );
}

#[tokio::test]
async fn a_past_read_looks_at_two_segments_and_a_present_one_at_none() {
    let database = fresh_database().await;
    let store = store(&database, SegmentLength::DEFAULT.operations());
    let user = UserId::new("alice").unwrap();
    for start in (0..20_000).step_by(250) {
        let operations: Vec<_> = (start..start + 250)
            .map(|second| operation("alice", 1, second))
            .collect();
        accept_together(&store, &operations).await;
    }
    let client = database.client().await;
    client.batch_execute("ANALYZE").await.unwrap();
    for (moment, most) in [(10_000, 3 * 128), (19_990, 3 * 128), (20_000, 0)] {
        let before = rows_read(&client).await;
        let read = store.balance_at(&user, at(moment), soon()).await.unwrap();
        assert_eq!(read, (moment + 1).min(20_000));
        let rows = rows_read(&client).await - before;
        assert!(rows <= most, "{rows} rows of the history for a read as of {moment}");
    }
    check_stored(&client).await;
}

/// Entries of the history's primary key that were read, once the sessions that read them have said so.
async fn rows_read(client: &Client) -> i64 {
    // The session of the store reports at the latest when it ends.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test' AND datname = current_database()";
    client.execute(end, &[]).await.unwrap();
    let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test' AND datname = current_database()";
    while client.query_one(left, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }
    client.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'changes_history_pkey'";
    client.query_one(read, &[]).await.unwrap().get(0)
}
