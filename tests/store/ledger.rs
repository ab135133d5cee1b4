//! Everything the store answers, against a naive model: a list of operations, sorted and summed at every moment.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use balance::domain::{
    Changes, Context, IdempotencyKey, Operation, OperationId, Refusal, SegmentLength, Timestamp, UserId,
};
use balance::store::{
    CommitError, CommitOutcome, Commitment, Group, GroupCommit, HistoryOrder, HistoryQuery, Reach, Store, StoreError,
    UserState,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::postgres::{Database, fresh_database};

pub fn store(database: &Database, segment_length: u32) -> Store {
    Store::new(
        &database.config(16),
        SegmentLength::new(segment_length).unwrap(),
        Arc::default(),
    )
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
        caller: None,
    }
}

/// What one operation needs to be judged.
pub async fn state(store: &Store, operation: &Operation, key: Option<&IdempotencyKey>) -> UserState {
    let group = [Group::of(operation, key)];
    let mut states = store.states(&group, Reach::Unlimited, soon()).await.unwrap();
    assert_eq!(states.len(), 1);
    let state = states.pop().unwrap();
    assert!(state.covers(operation));
    state
}

/// Commits operations of one user.
pub async fn commit(
    store: &Store,
    commitments: &[Commitment<'_>],
    changes: &Changes,
    deadline: Instant,
) -> Result<CommitOutcome, CommitError> {
    let group = GroupCommit {
        commitments: commitments.to_vec(),
        changes: changes.clone(),
    };
    let outcomes = store.commit(&[group], "test", deadline).await?;
    assert_eq!(outcomes.len(), 1);
    Ok(outcomes[0])
}

/// The balance of one user as of one moment.
pub async fn balance_at(store: &Store, user_id: &UserId, moment: Timestamp) -> Result<i64, StoreError> {
    let balances = store.balances_at(&[user_id.as_str()], &[moment], soon()).await?;
    assert_eq!(balances.len(), 1);
    Ok(balances[0].amount)
}

/// Reads, judges and commits one operation, as a replica alone would.
pub async fn accept(store: &Store, operation: &Operation) -> Result<i64, Refusal> {
    let mut state = state(store, operation, None).await;
    let entry = state.timeline.accept(operation)?;
    let commitment = Commitment {
        operation,
        idempotency_key: None,
        approved: false,
        entry,
    };
    let changes = state.timeline.into_changes();
    let outcome = commit(store, &[commitment], &changes, soon()).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Stored);
    Ok(entry.balance_after)
}

/// An answer, and its place among all that were judged.
type Judged = (usize, Result<i64, Refusal>);

/// Reads, judges and commits groups of operations, each group of another user, with one statement each; what a reading
/// does not cover goes into the next one, as in a replica.
pub async fn accept_groups(store: &Store, groups: &[Vec<Operation>], reach: Reach) -> Vec<Vec<Judged>> {
    let mut answers: Vec<Vec<Option<Judged>>> = groups.iter().map(|group| vec![None; group.len()]).collect();
    let mut passed_over: Vec<Option<usize>> = vec![None; groups.len()];
    // Far from being held up for ever, what is out of reach is read for without a limit.
    let mut reaches = std::iter::once(reach).chain(std::iter::repeat(Reach::Unlimited));
    let mut judged_so_far = 0;
    loop {
        let left: Vec<usize> = (0..groups.len())
            .filter(|group| answers[*group].contains(&None))
            .collect();
        if left.is_empty() {
            return answers
                .into_iter()
                .map(|group| group.into_iter().flatten().collect())
                .collect();
        }
        let asked = left.iter().map(|group| {
            let (operations, answers) = (&groups[*group], &answers[*group]);
            let open = operations.iter().zip(answers).filter(|(_, answer)| answer.is_none());
            let mut open = open.map(|(operation, _)| operation);
            let mut asked = Group::of(open.next().unwrap(), None);
            open.for_each(|operation| asked.add(operation, None));
            if let Some(index) = passed_over[*group] {
                asked.deep_first(&operations[index]);
            }
            asked
        });
        let asked: Vec<_> = asked.collect();
        let states = store.states(&asked, reaches.next().unwrap(), soon()).await.unwrap();
        let mut commits = Vec::new();
        for (group, mut state) in left.into_iter().zip(states) {
            let mut commitments = Vec::new();
            passed_over[group] = None;
            for (index, operation) in groups[group].iter().enumerate() {
                if answers[group][index].is_some() {
                    continue;
                }
                if !state.covers(operation) {
                    passed_over[group].get_or_insert(index);
                    continue;
                }
                let judged = state.timeline.accept(operation);
                commitments.extend(judged.map(|entry| Commitment {
                    operation,
                    idempotency_key: None,
                    approved: false,
                    entry,
                }));
                answers[group][index] = Some((judged_so_far, judged.map(|entry| entry.balance_after)));
                judged_so_far += 1;
            }
            commits.push(GroupCommit {
                commitments,
                changes: state.timeline.into_changes(),
            });
        }
        let outcomes = store.commit(&commits, "test", soon()).await.unwrap();
        assert!(
            outcomes.iter().all(|outcome| *outcome == CommitOutcome::Stored),
            "{outcomes:?}"
        );
    }
}

#[derive(Clone, Default)]
pub struct NaiveModel {
    /// Timestamps and changes, in the order of acceptance.
    pub accepted: Vec<(i64, i64)>,
}

impl NaiveModel {
    fn balance_at(&self, seconds: i64) -> i128 {
        let counted = self.accepted.iter().filter(|(own, _)| *own <= seconds);
        counted.map(|(_, change)| i128::from(*change)).sum()
    }

    /// The lowest balance at a moment and all later ones.
    fn available_at(&self, seconds: i64) -> i64 {
        let later = self.accepted.iter().map(|(own, _)| *own).filter(|own| *own > seconds);
        let lowest = later.chain([seconds]).map(|moment| self.balance_at(moment)).min();
        i64::try_from(lowest.unwrap()).unwrap()
    }

    pub fn accept(&mut self, change: i64, seconds: i64) -> Result<i64, Refusal> {
        let available = self.available_at(seconds);
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
                    available,
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
        let read = balance_at(store, user_id, at(seconds)).await.unwrap();
        assert_eq!(i128::from(read), model.balance_at(seconds), "as of {seconds}");
    }
    let moments: Vec<_> = (-1..=32).map(at).collect();
    let users = vec![user_id.as_str(); moments.len()];
    let available = store.available_at(&users, &moments, soon()).await.unwrap();
    let available: Vec<_> = available.iter().map(|reading| reading.amount).collect();
    let expected: Vec<_> = (-1..=32).map(|seconds| model.available_at(seconds)).collect();
    assert_eq!(available, expected);
    check_history(store, user_id, model, page, None).await;
}

/// What was known at a moment is what the model gives that knows the operations recorded until then.
async fn check_reads_known_at(store: &Store, user_id: &UserId, model: &NaiveModel, page: u32, known_at: Timestamp) {
    let moments: Vec<_> = (-1..=32).map(at).collect();
    let users = vec![user_id.as_str(); moments.len()];
    let known = vec![known_at; moments.len()];
    let read = store.balances_known_at(&users, &moments, &known, soon()).await;
    let expected: Vec<_> = (-1..=32).map(|seconds| model.balance_at(seconds)).collect();
    let read: Vec<_> = read
        .unwrap()
        .into_iter()
        .map(|reading| i128::from(reading.amount))
        .collect();
    assert_eq!(read, expected, "known at {known_at}");
    check_history(store, user_id, model, page, Some(known_at)).await;
}

/// What was known at each of the user's moments of recording, just before it, and before and after all.
async fn check_versions(store: &Store, client: &Client, user_id: &UserId, model: &NaiveModel, page: u32) {
    let recorded = "SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint FROM changes_history
         WHERE user_id = $1 ORDER BY seq";
    let recorded = client.query(recorded, &[&user_id.as_str()]).await.unwrap();
    let recorded: Vec<i64> = recorded.iter().map(|row| row.get(0)).collect();
    assert_eq!(recorded.len(), model.accepted.len());
    assert!(recorded.is_sorted());
    let around = recorded.iter().flat_map(|recorded| [recorded - 1, *recorded]);
    let around: BTreeSet<_> = around.chain([0, Timestamp::MAX.unix_microseconds()]).collect();
    for moment in around {
        let known = recorded.iter().take_while(|recorded| **recorded <= moment).count();
        let then = NaiveModel {
            accepted: model.accepted[..known].to_vec(),
        };
        let known_at = Timestamp::from_unix_microseconds(moment).unwrap();
        check_reads_known_at(store, user_id, &then, page, known_at).await;
    }
}

async fn check_history(store: &Store, user_id: &UserId, model: &NaiveModel, page: u32, known_at: Option<Timestamp>) {
    // Open at both ends, or within some moments.
    let (from, to) = match page % 2 {
        0 => (Timestamp::MIN, Timestamp::MAX),
        _ => (at(3), at(25)),
    };
    for order in [HistoryOrder::OldestFirst, HistoryOrder::NewestFirst] {
        let mut query = HistoryQuery {
            user_id: user_id.clone(),
            from,
            to,
            order,
            beyond: None,
            limit: page,
            bytes: usize::MAX,
            known_at,
        };
        let mut read = Vec::new();
        loop {
            let entries = store.history(&query, soon()).await.unwrap().entries;
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
            .filter(|(seconds, ..)| (from..=to).contains(&at(*seconds)));
        let mut expected: Vec<_> = within
            .map(|(seconds, change, balance)| (at(seconds), change, balance))
            .collect();
        if order == HistoryOrder::NewestFirst {
            expected.reverse();
        }
        assert_eq!(read, expected, "known at {known_at:?}");
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
        "SELECT user_id FROM (SELECT *, lag(recorded_at) OVER (PARTITION BY user_id ORDER BY seq) AS before
            FROM changes_history) h WHERE before > recorded_at",
        "SELECT b.user_id FROM balance b JOIN changes_history h ON h.user_id = b.user_id AND h.seq = b.version
         WHERE b.recorded_at <> h.recorded_at",
        "SELECT user_id FROM (SELECT *, lag(timestamp, 1, '-infinity') OVER (PARTITION BY user_id ORDER BY timestamp)
            AS previous FROM balance_checkpoints) c JOIN changes_history h USING (user_id)
         WHERE h.timestamp <= c.timestamp AND (h.recorded_at > c.all_recorded_until
            OR h.timestamp > previous AND h.recorded_at NOT BETWEEN recorded_from AND recorded_until)",
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
    let group = || prop::collection::vec((change(), 0..30_i64), 1..5);
    // In each batch every user has a group or none.
    let batches = prop::collection::vec(prop::collection::vec(prop::option::weighted(0.8, group()), 3), 1..14);
    let reach = prop_oneof![Just(Reach::Unlimited), (0..3_u32).prop_map(Reach::Checkpoints)];
    let mut runner = TestRunner::new(Config::with_cases(40));
    let run = runner.run(
        &(1..5_u32, 1..5_u32, reach, batches),
        |(length, page, reach, batches)| {
            runtime.block_on(async {
                let store = store(&database, length);
                let users = [(); 3].map(|()| Uuid::now_v7().to_string());
                let mut models: [NaiveModel; 3] = Default::default();
                for batch in batches {
                    let of_users = batch.into_iter().enumerate();
                    let (whose, groups): (Vec<_>, Vec<_>) =
                        of_users.filter_map(|(user, group)| Some((user, group?))).unzip();
                    let operations = whose.iter().zip(&groups).map(|(user, group)| {
                        let operations = group.iter();
                        let operations =
                            operations.map(|(change, seconds)| operation(&users[*user], *change, *seconds));
                        operations.collect()
                    });
                    let answers = accept_groups(&store, &operations.collect::<Vec<_>>(), reach).await;
                    for ((user, group), answers) in whose.into_iter().zip(groups).zip(answers) {
                        let mut judged: Vec<_> = group.into_iter().zip(answers).collect();
                        judged.sort_by_key(|(_, (place, _))| *place);
                        for ((change, seconds), (_, answer)) in judged {
                            assert_eq!(answer, models[user].accept(change, seconds), "{change:+} @{seconds}");
                        }
                    }
                }
                for (user, model) in users.iter().zip(&models) {
                    let user_id = UserId::new(user).unwrap();
                    check_reads(&store, &user_id, model, page).await;
                }
                // One user's, since there are many.
                let first = UserId::new(&users[0]).unwrap();
                check_versions(&store, &client, &first, &models[0], page).await;
            });
            Ok(())
        },
    );
    run.unwrap();
    runtime.block_on(check_stored(&client));
}

#[tokio::test]
async fn an_operation_is_found_again_under_its_idempotency_key() {
    let database = fresh_database().await;
    let store = store(&database, 2);
    let first = operation("alice", 10, 10);
    let key = IdempotencyKey::new("key").unwrap();
    let mut before = state(&store, &first, Some(&key)).await;
    assert!(before.earlier.is_empty());
    let entry = before.timeline.accept(&first).unwrap();
    let commitment = Commitment {
        operation: &first,
        idempotency_key: Some(&key),
        approved: true,
        entry,
    };
    let changes = before.timeline.into_changes();
    commit(&store, &[commitment], &changes, soon()).await.unwrap();
    accept(&store, &operation("alice", 5, 5)).await.unwrap();

    let found = state(&store, &first, Some(&key)).await.earlier;
    assert_eq!((found["key"].id, found["key"].entry.balance_after), (first.id, 10));
    // Among several users, each with keys of its own, the key is found with its user only.
    let other = IdempotencyKey::new("other").unwrap();
    let (of_bob, again) = (operation("bob", 10, 10), operation("alice", 1, 20));
    let mut alice = Group::of(&again, Some(&other));
    alice.add(&first, Some(&key));
    let groups = [Group::of(&of_bob, Some(&key)), alice, Group::of(&of_bob, None)];
    let states = store.states(&groups, Reach::Unlimited, soon()).await.unwrap();
    let earlier: Vec<_> = states.into_iter().map(|state| state.earlier).collect();
    assert_eq!(earlier, [HashMap::new(), found, HashMap::new()]);
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
        accept_groups(&store, &[operations], Reach::Unlimited).await;
    }
    let client = database.client().await;
    client.batch_execute("ANALYZE").await.unwrap();
    for (moment, most) in [(10_000, 5 * 128), (19_990, 3 * 128), (20_000, 0)] {
        let before = rows_read(&client).await;
        let read = store.available_at(&["alice"], &[at(moment)], soon()).await.unwrap();
        assert_eq!(read[0].amount, (moment + 1).min(20_000));
        assert_eq!(read[0].version, 20_000);
        let rows = rows_read(&client).await - before;
        assert!(
            rows <= most,
            "{rows} rows of the history for what is available at {moment}"
        );
    }
    for (moment, most) in [(10_000, 3 * 128), (19_990, 3 * 128), (20_000, 0)] {
        let before = rows_read(&client).await;
        let read = balance_at(&store, &user, at(moment)).await.unwrap();
        assert_eq!(read, (moment + 1).min(20_000));
        let rows = rows_read(&client).await - before;
        assert!(rows <= most, "{rows} rows of the history for a read as of {moment}");
    }
    check_stored(&client).await;
}

/// Entries of the history's primary key that were read, once the sessions that read them have said so.
pub async fn rows_read(client: &Client) -> i64 {
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
