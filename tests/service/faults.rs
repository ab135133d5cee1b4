//! What is around a replica fails, or the replica itself ends, while clients are at work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use crate::load::{Lines, Load, Unanswered};
use crate::support::approver::TestApprover;
use crate::support::client::{Answer, ServiceClient, answer, change};
use crate::support::postgres::{Database, Role, SESSIONS, fresh_database, until};
use crate::support::replica::{Replica, ReplicaOptions, Scratch};

const MOMENT: &str = "2026-01-31T12:00:00Z";

async fn readiness(client: &ServiceClient) -> Answer {
    answer(client.get("/readyz")).await
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    client
}

/// The whole lines of a log whose writer was killed.
fn whole_lines(replica: &Replica) -> Vec<Value> {
    let text = std::fs::read_to_string(&replica.log).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn is_refused(url: &str) -> bool {
    let address: SocketAddr = url.rsplit('/').next().unwrap().parse().unwrap();
    TcpStream::connect(address).await.is_err()
}

#[tokio::test]
async fn postgres_may_stop_and_start_while_the_service_goes_on() {
    let scratch = Scratch::new();
    let mut options = PostgresOptions::new(scratch.0.join("postgres"));
    options.settings = vec![("fsync".to_owned(), "off".to_owned())];
    let mut postgres = PrivatePostgres::start(&options).await.unwrap();
    let url = Database::migrated(&postgres, "balance").await.url;
    let approver = TestApprover::start().await;
    let replica = ReplicaOptions::new(&url, &approver.url()).start().await;
    let client = ServiceClient::new(&replica.url);
    client.change(&change("alice", 100, MOMENT)).await.expect(200);

    let load = Load::start(&client, 8, Unanswered::Repeat);
    for mode in [StopMode::Fast, StopMode::Immediate] {
        load.answered(40).await;
        postgres.stop(mode).await.unwrap();
        load.unavailable(8).await;
        let read = client.balance("alice", None).await;
        read.expect_problem(503, "database_unavailable");
        let changed = client.change(&change("alice", 1, MOMENT)).await;
        changed.expect_problem(503, "database_unavailable");
        let ready = client.until_ready_is(503).await.expect_problem(503, "not_ready");
        assert!(ready.detail().contains("database"), "{}", ready.body);
        answer(client.get("/livez")).await.expect(200);

        postgres = PrivatePostgres::start(&options).await.unwrap();
        assert_eq!(Database::of(&postgres, "balance").url, url);
        client.until_ready_is(200).await;
        load.answered(40).await;
        let balance = client.balance("alice", None).await.expect(200);
        assert_eq!(balance.body["balance"], 100);
    }
    load.finish(&connect(&url).await, || replica.log_lines(), Lines::Whole)
        .await;
    replica.stop().await;
    postgres.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn broken_connections_to_postgres_neither_lose_nor_double_an_answer() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let replica = Replica::start(&database, &approver).await;
    let client = ServiceClient::new(&replica.url);
    let load = Load::start(&client, 16, Unanswered::Repeat);
    let sql = database.client().await;
    let mut ended = 0;
    for _ in 0..8 {
        load.answered(30).await;
        let terminate = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity \
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";
        ended += sql.query_one(terminate, &[]).await.unwrap().get::<_, i64>(0);
    }
    assert!(ended >= 8, "{ended}");
    load.answered(30).await;
    load.finish(&sql, || replica.log_lines(), Lines::Whole).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_database_without_schema_is_said_to_need_migration_and_may_get_it_while_serving() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let sql = database.client().await;
    let drop = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
    sql.batch_execute(drop).await.unwrap();
    database.set_up_roles().await;
    let replica = Replica::start(&database, &approver).await;
    let client = ServiceClient::new(&replica.url);
    let ready = readiness(&client).await.expect_problem(503, "not_ready");
    assert!(ready.detail().contains("balance migrate"), "{}", ready.body);
    let body = change("alice", 100, MOMENT);
    client.change(&body).await.expect_problem(503, "database_unavailable");
    let read = client.balance("alice", None).await;
    read.expect_problem(503, "database_unavailable");

    let migrated = Command::new(env!("CARGO_BIN_EXE_balance"))
        .arg("migrate")
        .env("DATABASE_URL", database.url_as(Role::Owner))
        .output()
        .await
        .unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
    client.until_ready_is(200).await;
    client.change(&body).await.expect(200);
    replica.stop().await;
}

#[tokio::test]
async fn sigterm_under_load_answers_logs_and_stores_and_only_then_ends() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let options = ReplicaOptions::new(&database.url, &approver.url()).set("SHUTDOWN_DELAY_MS", "3000");
    let mut replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let load = Load::start(&client, 8, Unanswered::Leave);
    load.answered(60).await;
    readiness(&client).await.expect(200);
    replica.signal(Signal::SIGTERM);
    // The signal takes its time to arrive; the delay is long beside it.
    let refusal = timeout(Duration::from_secs(2), async {
        loop {
            let ready = readiness(&client).await;
            if ready.status != 200 {
                return ready;
            }
        }
    });
    let refusal = refusal.await.expect("it is said that the service stops");
    let refusal = refusal.expect_problem(503, "not_ready");
    assert!(refusal.detail().contains("stopping"), "{}", refusal.body);
    // Until load balancers have noticed, requests are served as ever.
    load.answered(1).await;
    let status = replica.ended().await;
    assert!(status.success(), "{status}");
    assert!(is_refused(&replica.url).await);
    load.finish(&database.client().await, || replica.log_lines(), Lines::Whole)
        .await;
}

#[tokio::test]
async fn sigint_under_load_ends_as_well() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let mut replica = Replica::start(&database, &approver).await;
    let load = Load::start(&ServiceClient::new(&replica.url), 8, Unanswered::Leave);
    load.answered(60).await;
    replica.signal(Signal::SIGINT);
    let status = replica.ended().await;
    assert!(status.success(), "{status}");
    assert!(is_refused(&replica.url).await);
    load.finish(&database.client().await, || replica.log_lines(), Lines::Whole)
        .await;
}

#[tokio::test]
async fn kill_9_under_load_loses_no_line_of_an_answered_operation() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let mut replica = Replica::start(&database, &approver).await;
    let load = Load::start(&ServiceClient::new(&replica.url), 16, Unanswered::Leave);
    load.answered(100).await;
    replica.signal(Signal::SIGKILL);
    assert!(!replica.ended().await.success());
    let sql = database.client().await;
    until(&sql, SESSIONS, 0).await;
    load.finish(&sql, || whole_lines(&replica), Lines::OfAnswers).await;
}

#[tokio::test]
async fn more_operations_than_the_limit_are_refused_at_once() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let gate = Arc::new(Semaphore::new(0));
    approver.hold(&gate);
    let options = ReplicaOptions::new(&database.url, &approver.url())
        .set("OPERATIONS_IN_FLIGHT", "1")
        .set("APPROVER_TIMEOUT_MS", "29000")
        .set("OPERATION_TIMEOUT_MS", "29000");
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.change(&change("alice", 100_001, MOMENT)).await })
    };
    approver.until_called(1).await;
    let begin = Instant::now();
    let refused = client.change(&change("bob", 1, MOMENT)).await;
    refused.expect_problem(503, "overloaded");
    let refused = client.balance("bob", None).await;
    refused.expect_problem(503, "overloaded");
    // Neither has waited for the place to become free.
    assert!(!waiting.is_finished() && begin.elapsed() < Duration::from_secs(20));
    readiness(&client).await.expect(200);
    gate.add_permits(1);
    waiting.await.unwrap().expect(200);
    client.change(&change("bob", 1, MOMENT)).await.expect(200);
    replica.stop().await;
}
