//! The conditional commit: who is second changes nothing, and what went wrong is said.

use std::sync::Arc;
use std::time::Duration;

use balance::config::{DatabaseConfig, DatabaseUrl};
use balance::domain::SegmentLength;
use balance::store::{CommitError, CommitOutcome, Commitment, ConnectionFailure, Store, StoreError};
use tokio::time::Instant;

use crate::ledger::{accept, at, balance_at, check_stored, commit, operation, soon, state, store};
use crate::support::postgres::{Database, fresh_database};

async fn counts(database: &Database) -> (i64, i64, i64) {
    let client = database.client().await;
    let row = client
        .query_one(
            "SELECT (SELECT coalesce(sum(version), 0)::bigint FROM balance), (SELECT count(*) FROM changes_history),
                (SELECT count(*) FROM balance_checkpoints)",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1), row.get(2))
}

/// Two replicas read the same state and commit; the second must lose and leave nothing.
async fn race(database: &Database, existing: i64) {
    let (first, second) = (store(database, 2), store(database, 2));
    for second in 0..existing {
        accept(&first, &operation("alice", 10, second)).await.unwrap();
    }
    let ours = operation("alice", 5, 100);
    let theirs = operation("alice", 7, 101);
    let mut our_state = state(&first, &ours, None).await;
    let mut their_state = state(&second, &theirs, None).await;
    let our_entry = our_state.timeline.accept(&ours).unwrap();
    let their_entry = their_state.timeline.accept(&theirs).unwrap();
    let commitment = |operation, entry| Commitment {
        operation,
        idempotency_key: None,
        approved: false,
        entry,
    };
    let (our_changes, their_changes) = (our_state.timeline.into_changes(), their_state.timeline.into_changes());
    let won = commit(&first, &[commitment(&ours, our_entry)], &our_changes, soon())
        .await
        .unwrap();
    assert_eq!(won, CommitOutcome::Stored);
    let before = counts(database).await;
    let lost = commit(&second, &[commitment(&theirs, their_entry)], &their_changes, soon())
        .await
        .unwrap();
    assert_eq!(lost, CommitOutcome::Conflict);
    assert_eq!(counts(database).await, before);
    check_stored(&database.client().await).await;
}

#[tokio::test]
async fn of_two_commits_on_one_version_the_second_changes_nothing() {
    race(&fresh_database().await, 7).await;
}

#[tokio::test]
async fn a_new_users_first_row_is_won_by_one() {
    race(&fresh_database().await, 0).await;
}

#[tokio::test]
async fn a_conflict_is_a_conflict_at_every_isolation_level() {
    for level in ["repeatable read", "serializable"] {
        for existing in [0, 3] {
            let database = fresh_database().await;
            database.isolate(level).await;
            race(&database, existing).await;
        }
    }
}

#[tokio::test]
async fn many_writers_of_one_user_lose_no_operation() {
    let database = fresh_database().await;
    let store = Arc::new(store(&database, 3));
    let writers: Vec<_> = (0..16_i64)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for step in 0..5 {
                    let operation = operation("alice", 1, (writer * 7 + step * 3) % 20);
                    loop {
                        let mut read = state(&store, &operation, None).await;
                        let entry = read.timeline.accept(&operation).unwrap();
                        let commitment = Commitment {
                            operation: &operation,
                            idempotency_key: None,
                            approved: false,
                            entry,
                        };
                        let changes = read.timeline.into_changes();
                        let outcome = commit(&store, &[commitment], &changes, soon()).await.unwrap();
                        if outcome == CommitOutcome::Stored {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let client = database.client().await;
    let row = client
        .query_one("SELECT balance, version FROM balance", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (80, 80));
    check_stored(&client).await;
}

#[tokio::test]
async fn a_commit_that_gives_no_result_is_in_doubt_and_its_fate_can_be_read() {
    let database = fresh_database().await;
    let store = store(&database, 8);
    accept(&store, &operation("alice", 10, 1)).await.unwrap();
    let blocker = database.client().await;
    blocker
        .batch_execute("BEGIN; SELECT * FROM balance FOR UPDATE")
        .await
        .unwrap();

    let operation = operation("alice", 5, 2);
    let mut read = state(&store, &operation, None).await;
    let entry = read.timeline.accept(&operation).unwrap();
    let commitment = Commitment {
        operation: &operation,
        idempotency_key: None,
        approved: false,
        entry,
    };
    let changes = read.timeline.into_changes();
    let short = Instant::now() + Duration::from_millis(200);
    let result = commit(&store, &[commitment], &changes, short).await;
    assert!(
        matches!(result, Err(CommitError::InDoubt(StoreError::TimedOut))),
        "{result:?}"
    );

    // The statement waits on in PostgreSQL, and goes through once it may: only reading tells.
    let mine = [(at(2), operation.id)];
    let stored = store.stored_among(&operation.user_id, &mine, soon()).await.unwrap();
    assert!(stored.is_empty());
    blocker.batch_execute("COMMIT").await.unwrap();
    let retried = commit(&store, &[commitment], &changes, soon()).await.unwrap();
    let stored = store.stored_among(&operation.user_id, &mine, soon()).await.unwrap();
    assert_eq!(stored.get(&operation.id), Some(&entry), "{retried:?}");
    assert_eq!(counts(&database).await, (2, 2, 0));
}

#[tokio::test]
async fn a_store_recovers_when_all_its_connections_are_cut() {
    let database = fresh_database().await;
    let store = Arc::new(store(&database, 8));
    let reads = (0..16).map(|_| {
        let store = Arc::clone(&store);
        async move {
            balance_at(&store, &operation("alice", 0, 0).user_id, at(0))
                .await
                .unwrap()
        }
    });
    futures_util::future::join_all(reads).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test' AND datname = current_database()";
    assert!(database.client().await.execute(cut, &[]).await.unwrap() > 0);
    let user = operation("alice", 0, 0).user_id;
    let read = balance_at(&store, &user, at(0)).await;
    assert_eq!(read.unwrap(), 0);
    accept(&store, &operation("alice", 1, 1)).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unreachable() {
    let config = DatabaseConfig {
        url: DatabaseUrl::parse("postgres://balance@127.0.0.1:1/balance").unwrap(),
        connections: 2,
        application_name: "test".to_owned(),
    };
    let store = Store::new(&config, SegmentLength::DEFAULT, Arc::default());
    let result = balance_at(&store, &operation("alice", 0, 0).user_id, at(0)).await;
    assert!(
        matches!(result, Err(StoreError::NoConnection(ConnectionFailure::Unreachable(_)))),
        "{result:?}"
    );
}

#[tokio::test]
async fn what_fails_when_the_statement_is_done_and_its_row_sent_is_not_taken_for_stored() {
    let database = fresh_database().await;
    let store = store(&database, 8);
    accept(&store, &operation("alice", 10, 1)).await.unwrap();
    // Fires at the end of the transaction, after the row that the statement returns.
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too late'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON changes_history DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()";
    database.client().await.batch_execute(refuse).await.unwrap();
    let operation = operation("alice", 5, 2);
    let mut read = state(&store, &operation, None).await;
    let entry = read.timeline.accept(&operation).unwrap();
    let commitment = Commitment {
        operation: &operation,
        idempotency_key: None,
        approved: false,
        entry,
    };
    let result = commit(&store, &[commitment], &read.timeline.into_changes(), soon()).await;
    assert!(result.is_err(), "{result:?}");
    assert_eq!(counts(&database).await, (1, 1, 0));
}
