//! PostgreSQL's `max_connections` is reached: what a replica has it works with, and without any it says so at once.

use std::time::{Duration, Instant};

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, answer, change};
use crate::support::postgres::Database;
use crate::support::replica::{ReplicaOptions, Scratch};
use crate::support::world::NOON;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long an operation would be tried for if the want of a connection were not told at once. Below it lies whatever
/// PostgreSQL and the machine take to refuse.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

async fn connect(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(async { drop(connection.await) });
    Some(client)
}

/// Takes every connection that PostgreSQL still has.
async fn take_all(url: &str) -> Vec<Client> {
    let mut taken = Vec::new();
    while let Some(client) = connect(url).await {
        taken.push(client);
    }
    taken
}

#[tokio::test]
async fn without_a_connection_left_operations_get_503_at_once_and_with_few_they_go_on() {
    let scratch = Scratch::new();
    let mut options = PostgresOptions::new(scratch.0.join("postgres"));
    let settings = [
        ("fsync", "off"),
        ("max_connections", "8"),
        ("autovacuum", "off"),
        ("max_wal_senders", "0"),
    ];
    options.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut postgres = PrivatePostgres::start(&options).await.unwrap();
    let url = Database::migrated(&postgres, "balance").await.url;
    let approver = TestApprover::start().await;
    let options = ReplicaOptions::new(&url, &approver.url());
    let time = OPERATION_TIMEOUT.as_millis().to_string();
    let replica = options.set("OPERATION_TIMEOUT_MS", &time).start().await;
    let client = ServiceClient::new(&replica.url);

    let taken = take_all(&url).await;
    assert!(!taken.is_empty());
    for _ in 0..3 {
        let began = Instant::now();
        let changed = client.change(&change("alice", 100, NOON)).await;
        changed.expect_problem(503, "database_unavailable");
        let read = client.balance("alice", None).await;
        read.expect_problem(503, "database_unavailable");
        let ready = answer(client.get("/readyz")).await.expect_problem(503, "not_ready");
        assert!(ready.detail().contains("max_connections"), "{}", ready.body);
        println!("three refusals in {:?}", began.elapsed());
        assert!(
            began.elapsed() < OPERATION_TIMEOUT,
            "one of them waited for its time to pass"
        );
    }

    drop(taken);
    let began = Instant::now();
    while client.change(&change("alice", 100, NOON)).await.status != 200 {
        assert!(began.elapsed() < PATIENCE, "it does not recover");
        sleep(Duration::from_millis(10)).await;
    }
    println!("a change is accepted {:?} after a connection is free", began.elapsed());

    // The replica has one or two connections now, and gets no more.
    let taken = take_all(&url).await;
    let mut operations = JoinSet::new();
    for number in 0..60 {
        let client = client.clone();
        operations.spawn(async move {
            match number % 3 {
                0 => client.balance("alice", None).await,
                1 => client.change(&change(&format!("user-{number}"), 1, NOON)).await,
                _ => answer(client.get("/alice/history")).await,
            }
        });
    }
    for answered in operations.join_all().await {
        answered.expect(200);
    }
    client.until_ready_is(200).await;
    drop(taken);
    replica.stop().await;
    postgres.stop(StopMode::Fast).await.unwrap();
}
