//! Behind PgBouncer: in session mode everything works; in transaction mode without tracking of prepared statements nothing is
//! wrong, and what cannot be answered says why.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, answer, change};
use crate::support::pgbouncer::{PgBouncer, PoolMode};
use crate::support::postgres::{Role, fresh_database};
use crate::support::replica::ReplicaOptions;

const AT_10: &str = "2026-01-31T12:00:10Z";
const AT_15: &str = "2026-01-31T12:00:15Z";
const AT_20: &str = "2026-01-31T12:00:20Z";
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn in_session_mode_two_replicas_share_a_pooler_and_all_works() {
    if PgBouncer::is_missing() {
        return;
    }
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let pooler = PgBouncer::start(&database, PoolMode::Session, 20).await;
    let url = pooler.url_as(Role::Service);
    let options = || ReplicaOptions::new(&url, &approver.url()).set("DATABASE_CONNECTIONS", "8");
    let replicas = [options().start().await, options().start().await];
    let clients = replicas.each_ref().map(|replica| ServiceClient::new(&replica.url));
    let changes = (0..60).map(|number| {
        let client = clients[number % 2].clone();
        async move { client.change(&change("alice", 1, AT_10)).await.expect(200) }
    });
    join_all(changes).await;
    for client in &clients {
        let balance = client.balance("alice", None).await.expect(200);
        assert_eq!(balance.body["balance"], 60);
        answer(client.get("/alice/history?limit=5")).await.expect(200);
        answer(client.get("/alice/available")).await.expect(200);
        answer(client.get("/readyz")).await.expect(200);
    }
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn a_pooler_that_mixes_up_statements_gives_no_wrong_figure_and_readiness_names_the_setting_that_mends_it() {
    if PgBouncer::is_missing() {
        return;
    }
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let direct = ReplicaOptions::new(&database.url, &approver.url()).start().await;
    let direct_client = ServiceClient::new(&direct.url);
    direct_client.change(&change("alice", 100, AT_10)).await.expect(200);
    direct_client.change(&change("alice", -100, AT_20)).await.expect(200);
    direct.stop().await;

    let pooler = PgBouncer::start(&database, PoolMode::Transaction, 3).await;
    let url = pooler.url_as(Role::Service);
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(ReplicaOptions::new(&url, &approver.url()).start().await);
    }
    let clients: Vec<_> = replicas
        .iter()
        .map(|replica| ServiceClient::new(&replica.url))
        .collect();
    let mut changes_sent = 0;
    for _ in 0..40 {
        let asked = (0..8).map(|number| {
            let (client, figure) = match number % 2 {
                0 => (clients[0].clone(), "balance"),
                _ => (clients[1].clone(), "available"),
            };
            async move {
                (
                    figure,
                    answer(client.get(&format!("/alice/{figure}?timestamp={AT_15}"))).await,
                )
            }
        });
        for (figure, told) in join_all(asked).await {
            // At 15 the balance is 100, and nothing of it can be withdrawn.
            let right = if figure == "balance" { 100 } else { 0 };
            match told.status.as_u16() {
                200 => assert_eq!(told.body[figure], right, "{figure}"),
                _ => drop(told.expect_problem(503, "database_unavailable")),
            }
        }
        let told = clients[changes_sent % 2].change(&change("bob", 1, AT_10)).await;
        assert!([200, 503].contains(&told.status.as_u16()), "{}", told.body);
        changes_sent += 1;
    }
    let details = join_all(clients.iter().map(|client| async {
        let ready = answer(client.get("/readyz")).await;
        (ready.status.as_u16(), ready.detail().to_owned())
    }));
    // Of two replicas that share statements, at least one was found out by its own.
    let refused: Vec<_> = details.await.into_iter().filter(|(status, _)| *status == 503).collect();
    assert!(!refused.is_empty());
    for (_, detail) in &refused {
        assert!(
            detail.contains("pool_mode = session") && detail.contains("max_prepared_statements"),
            "{detail}"
        );
    }
    let said = replicas.iter().flat_map(|replica| replica.output());
    assert!(said.into_iter().any(|line| line.contains("max_prepared_statements")));

    // Mended, the replicas are ready by themselves, and nothing was written that was not answered for.
    pooler.reload(PoolMode::Session);
    for client in &clients {
        client.until_ready_is(200).await;
    }
    let bob = clients[0].balance("bob", None).await.expect(200);
    assert!(bob.body["balance"].as_i64().unwrap() <= i64::try_from(changes_sent).unwrap());
    let verified = Command::new(env!("CARGO_BIN_EXE_balance"))
        .args(["verify"])
        .env("DATABASE_URL", database.url_as(Role::Auditor))
        .output()
        .await
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn migrate_and_replicas_leave_no_lock_and_no_setting_on_a_poolers_connection() {
    if PgBouncer::is_missing() {
        return;
    }
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    // Two server connections that are never reset in between.
    let pooler = PgBouncer::start(&database, PoolMode::Transaction, 2).await;
    let migrate = |url: String| async move {
        let mut command = Command::new(env!("CARGO_BIN_EXE_balance"));
        let command = command.arg("migrate").env("DATABASE_URL", url).kill_on_drop(true);
        let migrated = timeout(PATIENCE, command.output()).await.expect("no migration waits");
        let migrated = migrated.unwrap();
        assert!(migrated.status.success(), "{migrated:?}");
    };
    migrate(pooler.url_as(Role::Owner)).await;
    migrate(database.url_as(Role::Owner)).await;

    let replica = ReplicaOptions::new(&pooler.url_as(Role::Service), &approver.url())
        .start()
        .await;
    let client = ServiceClient::new(&replica.url);
    client.until_ready_is(200).await;
    client.change(&change("alice", 1, AT_10)).await.expect(200);
    let sql = database.client().await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(sql.query_one(locks, &[]).await.unwrap().get::<_, i64>(0), 0);
    // The settings of the session, without those that PgBouncer sets anew for each of its clients, and without the
    // isolation level that a migration's transaction began with: PostgreSQL sets it anew for each transaction.
    let set = "SELECT string_agg(name || '=' || setting, ', ') FROM pg_settings WHERE source = 'session' \
               AND name NOT IN ('TimeZone', 'client_encoding', 'application_name', 'transaction_isolation')";
    for role in [Role::Owner, Role::Service] {
        let (client, connection) = tokio_postgres::connect(&pooler.url_as(role), tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let answered = client.simple_query(set).await.unwrap();
        let left = answered.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        });
        assert_eq!(left, Some(None), "{role:?}");
    }
    replica.stop().await;
}

#[tokio::test]
async fn a_migration_that_waits_for_another_says_so() {
    let database = fresh_database().await;
    let (sql, holder) = (database.client().await, database.client().await);
    holder
        .batch_execute("BEGIN; SELECT pg_advisory_xact_lock(x'62616c616e6365'::bigint)")
        .await
        .unwrap();
    let mut migration = Command::new(env!("CARGO_BIN_EXE_balance"));
    let migration = migration
        .arg("migrate")
        .env("DATABASE_URL", database.url_as(Role::Owner))
        .env("LOG_FORMAT", "json")
        .stderr(std::process::Stdio::piped())
        .process_group(crate::support::janitor::Janitor::get().group())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    crate::support::postgres::until(&sql, crate::support::postgres::WAITING, 1).await;
    holder.batch_execute("COMMIT").await.unwrap();
    let ended = timeout(PATIENCE, migration.wait_with_output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("another process migrates the database"), "{said}");
}
