//! The address of PostgreSQL leads to another server, or open connections lead nowhere.

use std::time::Duration;

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use crate::support::approver::TestApprover;
use crate::support::certificates::Authority;
use crate::support::client::{Answer, ServiceClient, answer, change};
use crate::support::postgres::{Database, Role, STORED, WAITING, fresh_database, until};
use crate::support::proxy::Proxy;
use crate::support::replica::{Replica, ReplicaOptions, Scratch};
use crate::support::secure_postgres::SecurePostgres;
use crate::support::standby::{make_synchronous, promote, standby_of};

const NOON: &str = "2026-01-31T12:00:00Z";
const PATIENCE: Duration = Duration::from_secs(60);
/// How many connections a replica may have to PostgreSQL here.
const CONNECTIONS: i64 = 8;

/// How many commits wait for a standby.
const WAITS_FOR_STANDBY: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

async fn readiness(client: &ServiceClient) -> Answer {
    answer(client.get("/readyz")).await
}

/// A primary, a standby of it, and the same database on both.
struct Pair {
    servers: [PrivatePostgres; 2],
    databases: [Database; 2],
    /// The replication stream from the primary to the standby.
    stream: Proxy,
    #[allow(dead_code, reason = "removed with the pair")]
    scratch: Scratch,
}

impl Pair {
    async fn start() -> Self {
        let scratch = Scratch::new();
        let mut options = PostgresOptions::new(scratch.0.join("primary"));
        options.settings = vec![("fsync".to_owned(), "off".to_owned())];
        let primary = PrivatePostgres::start(&options).await.unwrap();
        let database = Database::migrated(&primary, "balance").await;
        let stream = Proxy::start(&database).await;
        let mut options = PostgresOptions::new(scratch.0.join("standby"));
        let through = format!("host=127.0.0.1 port={} user=balance", stream.address.port());
        options.settings.push(("primary_conninfo".to_owned(), through));
        let standby = standby_of(&primary, &options).await;
        let replicated = Database::of(&standby, "balance");
        Self {
            servers: [primary, standby],
            databases: [database, replicated],
            stream,
            scratch,
        }
    }

    async fn stop(self) {
        for mut server in self.servers {
            server.stop(StopMode::Immediate).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_replica_whose_address_led_to_a_standby_is_ready_by_itself_when_it_leads_to_the_primary() {
    let (pair, approver) = (Pair::start().await, TestApprover::start().await);
    let [primary, standby] = &pair.databases;
    let proxy = Proxy::start(standby).await;
    let replica = ReplicaOptions::new(&proxy.url, &approver.url()).start().await;
    let client = ServiceClient::new(&replica.url);
    let refused = client.until_ready_is(503).await.expect_problem(503, "not_ready");
    assert!(refused.detail().contains("read-only"), "{}", refused.body);
    client
        .balance("alice", None)
        .await
        .expect_problem(503, "database_unavailable");
    proxy.lead_to(primary);
    client.until_ready_is(200).await;
    client.change(&change("alice", 1, NOON)).await.expect(200);
    replica.stop().await;
    pair.stop().await;
}

#[tokio::test]
async fn no_read_is_answered_by_a_standby_and_none_goes_behind_an_answered_change() {
    let (pair, approver) = (Pair::start().await, TestApprover::start().await);
    let [primary, standby] = &pair.databases;
    let proxy = Proxy::start(primary).await;
    let replica = ReplicaOptions::new(&proxy.url, &approver.url()).start().await;
    let client = ServiceClient::new(&replica.url);
    client.change(&change("alice", 100, NOON)).await.expect(200);
    let behind = standby.client_as(Role::Superuser).await;
    until(&behind, "SELECT count(*) FROM changes_history", 1).await;
    behind.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    client.change(&change("alice", 15, NOON)).await.expect(200);

    // The primary's connections end, and the address leads to the standby, which has not heard of the second change.
    proxy.lead_to(standby);
    proxy.break_connections();
    for path in [
        "/alice/balance",
        "/alice/available",
        "/alice/history",
        "/alice/balance?knownAt=2026-01-31T12:00:00Z",
    ] {
        answer(client.get(path))
            .await
            .expect_problem(503, "database_unavailable");
    }
    readiness(&client).await.expect_problem(503, "not_ready");

    // It is promoted, after it has replayed all there is.
    behind.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    until(&behind, "SELECT count(*) FROM changes_history", 2).await;
    promote(standby).await;
    client.until_ready_is(200).await;
    let balance = client.balance("alice", None).await.expect(200);
    assert_eq!(balance.body["balance"], 115);
    replica.stop().await;
    pair.stop().await;
}

#[tokio::test]
async fn an_open_connection_whose_server_becomes_read_only_answers_no_read_and_is_opened_anew() {
    let scratch = Scratch::new();
    let mut server = PrivatePostgres::start(&PostgresOptions::new(scratch.0.join("server")))
        .await
        .unwrap();
    let (database, approver) = (
        Database::migrated(&server, "balance").await,
        TestApprover::start().await,
    );
    let replica = ReplicaOptions::new(&database.url, &approver.url()).start().await;
    let client = ServiceClient::new(&replica.url);
    client.change(&change("alice", 100, NOON)).await.expect(200);
    let sql = database.client().await;
    for (value, is_ready) in [("on", false), ("off", true)] {
        // Sessions that are open take it over, as those of a demoted server would.
        let set = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        sql.batch_execute(&set).await.unwrap();
        sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        client.until_ready_is(if is_ready { 200 } else { 503 }).await;
        for path in ["/alice/balance", "/alice/available", "/alice/history"] {
            match is_ready {
                true => drop(answer(client.get(path)).await.expect(200)),
                false => drop(
                    answer(client.get(path))
                        .await
                        .expect_problem(503, "database_unavailable"),
                ),
            }
        }
    }
    replica.stop().await;
    server.stop(StopMode::Immediate).await.unwrap();
}

#[tokio::test]
async fn of_several_hosts_one_that_accepts_connections_and_stays_silent_holds_up_no_other() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let proxy = Proxy::start(&database).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let both = proxy.url.replace('@', &format!("@{address},"));
    let replica = ReplicaOptions::new(&both, &approver.url()).start().await;
    let client = ServiceClient::new(&replica.url);
    client.until_ready_is(200).await;
    client.change(&change("alice", 1, NOON)).await.expect(200);
    replica.stop().await;

    // Alone it is told as what it is, and a migration does not wait for it.
    let url = format!("postgres://balance@{address}/balance");
    let (detail, told) = refused_connection(&url).await;
    assert!(detail.contains("cannot be reached"), "{detail}");
    assert_eq!(told.len(), 1, "{told:#?}");
    let mut migrate = Command::new(env!("CARGO_BIN_EXE_balance"));
    let migrate = migrate.arg("migrate").env("DATABASE_URL", &url).kill_on_drop(true);
    let migrated = timeout(PATIENCE, migrate.output())
        .await
        .expect("it does not wait")
        .unwrap();
    assert!(!migrated.status.success(), "{migrated:?}");
}

#[tokio::test]
async fn no_change_is_answered_that_the_synchronous_standby_lacks_because_its_session_was_terminated() {
    is_answered_when_the_standby_has_it("pg_terminate_backend").await;
}

#[tokio::test]
async fn no_change_is_answered_that_the_synchronous_standby_lacks_because_its_wait_was_cancelled() {
    is_answered_when_the_standby_has_it("pg_cancel_backend").await;
}

/// A commit waits for a standby that hears nothing, and this function of PostgreSQL ends the wait.
async fn is_answered_when_the_standby_has_it(end: &str) {
    let (pair, approver) = (Pair::start().await, TestApprover::start().await);
    let [primary, standby] = &pair.databases;
    make_synchronous(primary).await;
    let options = ReplicaOptions::new(&primary.url, &approver.url()).set("OPERATION_TIMEOUT_MS", "2000");
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let sql = primary.client().await;
    let keyed = change("alice", 1, NOON);
    pair.stream.hold();
    let changing = {
        let (client, keyed) = (client.clone(), keyed.clone());
        tokio::spawn(async move { client.change_with_key(&keyed, "key").await })
    };
    until(&sql, WAITS_FOR_STANDBY, 1).await;
    // The commit is visible from now on, and the standby has not heard of it.
    let end = format!("SELECT {end}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    sql.batch_execute(&end).await.unwrap();
    until(&sql, STORED, 1).await;
    changing.await.unwrap().expect_problem(503, "outcome_unknown");
    let repeated = client.change_with_key(&keyed, "key").await;
    repeated.expect_problem(503, "database_unavailable");
    pair.stream.mend();
    client.change_with_key(&keyed, "key").await.expect(200);
    until(&standby.client().await, STORED, 1).await;
    replica.stop().await;
    pair.stop().await;
}

/// A replica whose connections all lead through a proxy, and are open.
async fn with_open_connections(
    database: &Database,
    approver: &TestApprover,
    operation_timeout_ms: &str,
) -> (Proxy, Replica, ServiceClient) {
    let proxy = Proxy::start(database).await;
    let options = ReplicaOptions::new(&proxy.url, &approver.url())
        .set("DATABASE_CONNECTIONS", CONNECTIONS.to_string())
        .set("OPERATION_TIMEOUT_MS", operation_timeout_ms);
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let sql = database.client().await;
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'balance_service'";
    // Pages of histories are read each by itself.
    let reached = timeout(PATIENCE, async {
        while sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) < CONNECTIONS / 2 {
            let pages = (0..64).map(|number| client.get(&format!("/user-{number}/history")).send());
            for page in join_all(pages).await {
                assert!(page.unwrap().status().is_success());
            }
        }
    });
    reached.await.expect("connections are opened");
    (proxy, replica, client)
}

#[tokio::test]
async fn connections_that_the_network_swallows_cost_one_deadline_whatever_their_number() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let (proxy, replica, client) = with_open_connections(&database, &approver, "2000").await;
    proxy.swallow_open_connections();
    client
        .balance("alice", None)
        .await
        .expect_problem(503, "database_unavailable");
    // The first one that died of silence is the last that anybody waits for.
    for _ in 0..CONNECTIONS {
        client.balance("alice", None).await.expect(200);
        client.change(&change("alice", 1, NOON)).await.expect(200);
    }
    readiness(&client).await.expect(200);
    replica.stop().await;
}

#[tokio::test]
async fn a_connection_that_answered_while_another_waited_is_not_trusted_when_that_one_dies_of_silence() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let (proxy, replica, client) = with_open_connections(&database, &approver, "6000").await;
    let sql = database.client().await;
    let lock = "BEGIN; LOCK TABLE changes_history IN ACCESS EXCLUSIVE MODE";
    sql.batch_execute(lock).await.unwrap();
    let history = {
        let client = client.clone();
        tokio::spawn(async move { answer(client.get("/alice/history")).await })
    };
    until(&database.client().await, WAITING, 1).await;
    // These need the table `balance` alone.
    let reads = (0..64).map(|user| {
        let body = change(&format!("user-{user}"), 1, NOON);
        let tried = client.post("/changeBalance?dryRun=true").json(&body).send();
        async move { assert_eq!(tried.await.unwrap().status(), 200) }
    });
    join_all(reads).await;
    proxy.swallow_open_connections();
    sql.batch_execute("ROLLBACK").await.unwrap();
    history.await.unwrap().expect_problem(503, "database_unavailable");
    for _ in 0..CONNECTIONS {
        client.balance("alice", None).await.expect(200);
    }
    replica.stop().await;
}

#[tokio::test]
async fn a_probe_alone_finds_out_that_connections_are_swallowed() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let (proxy, replica, client) = with_open_connections(&database, &approver, "2000").await;
    proxy.swallow_open_connections();
    let began = Instant::now();
    let mut refusals = 0;
    while readiness(&client).await.status != 200 {
        refusals += 1;
        // Those within a quarter of a second share an answer, and are no looks of their own.
        assert!(began.elapsed() < PATIENCE, "{refusals}");
        tokio::time::sleep(Duration::from_millis(260)).await;
    }
    assert_eq!(refusals, 1);
    client.change(&change("alice", 1, NOON)).await.expect(200);
    replica.stop().await;
}

/// PostgreSQL is asked for a connection by `/readyz` alone; what the process's log and the probe say of it.
async fn refused_connection(url: &str) -> (String, Vec<String>) {
    let approver = TestApprover::start().await;
    let replica = ReplicaOptions::new(url, &approver.url()).start().await;
    let client = ServiceClient::new(&replica.url);
    let mut detail = String::new();
    for _ in 0..5 {
        let ready = readiness(&client).await.expect_problem(503, "not_ready");
        ready.detail().clone_into(&mut detail);
        tokio::time::sleep(Duration::from_millis(260)).await;
    }
    let told = replica.output();
    let told = told.into_iter().filter(|line| line.starts_with("WARN")).collect();
    replica.stop().await;
    (detail, told)
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_once_to_the_log_and_its_class_to_the_probe() {
    let database = fresh_database().await;
    let (host, _) = database.url.rsplit_once('/').unwrap();
    let authority = Authority::new("readiness");
    let certificate = authority.sign(&["localhost"]);
    let server = SecurePostgres::start("readiness", &authority, &certificate).await;
    let wrong_password = server
        .url("localhost", "postgres", "sslmode=require")
        .replace("hunter2", "hunter3");
    for (url, class, said) in [
        (
            format!("{}%0A", database.url),
            "database of the name",
            r#"\n" does not exist"#,
        ),
        (format!("{host}/nowhere"), "database of the name", "nowhere"),
        (wrong_password, "credentials", "password authentication failed"),
        (
            "postgres://balance@127.0.0.1:1/balance".to_owned(),
            "cannot be reached",
            "refused",
        ),
        (
            "postgres://balance@nowhere.invalid/balance".to_owned(),
            "host",
            "lookup",
        ),
    ] {
        let (detail, told) = refused_connection(&url).await;
        assert!(detail.contains(class), "{url}: {detail}");
        assert_eq!(told.len(), 1, "{url}: {told:#?}");
        assert!(told[0].contains(said), "{url}: {told:#?}");
        assert!(!told[0].contains("hunter"), "{told:#?}");
    }
}

#[tokio::test]
async fn a_database_that_is_not_utf_8_is_refused_by_migrate_and_by_readiness_naming_its_encoding() {
    let database = fresh_database().await;
    let sql = database.client().await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("{}_{}", database.name, encoding.to_lowercase());
        let create =
            format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
        sql.batch_execute(&create).await.unwrap();
        let (host, _) = database.url.rsplit_once('/').unwrap();
        let url = format!("{host}/{name}");
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_balance"));
        let migrated = migrate.arg("migrate").env("DATABASE_URL", &url).output().await.unwrap();
        let said = String::from_utf8(migrated.stderr).unwrap();
        assert!(!migrated.status.success() && said.contains(encoding), "{said}");
        let (detail, told) = refused_connection(&url).await;
        assert!(detail.contains(encoding) && detail.contains("UTF8"), "{detail}");
        assert!(told[0].contains(encoding), "{told:#?}");
    }
}
