//! What the schema holds to, whatever the code does.

use balance::store::migrate;
use tokio_postgres::Client;

use crate::support::postgres::{Role, fresh_database};

/// In their order.
const UP: [&str; 2] = [
    include_str!("../../migrations/2026-01-31-000000_ledger/up.sql"),
    include_str!("../../migrations/2026-11-26-000000_recording/up.sql"),
];
const DOWN: [&str; 2] = [
    include_str!("../../migrations/2026-11-26-000000_recording/down.sql"),
    include_str!("../../migrations/2026-01-31-000000_ledger/down.sql"),
];
const SCHEMA: &str = include_str!("../../src/store/schema.rs");

async fn texts(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// One line a column, as `table column type` with `Nullable` where it is.
async fn columns(client: &Client) -> Vec<String> {
    texts(
        client,
        "SELECT format(CASE is_nullable WHEN 'YES' THEN '%s %s Nullable<%s>' ELSE '%s %s %s' END, table_name, column_name,
            CASE udt_name WHEN 'int4' THEN 'Int4' WHEN 'int8' THEN 'Int8' WHEN 'bool' THEN 'Bool' ELSE initcap(udt_name) END)
         FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '\\_\\_diesel%'
         ORDER BY table_name, ordinal_position",
    )
    .await
}

#[tokio::test]
async fn the_schema_of_diesel_is_the_schema_of_the_database() {
    let client = fresh_database().await.client().await;
    let mut declared = Vec::new();
    let mut table = "";
    let mut renamed = None;
    for line in SCHEMA.lines().map(str::trim) {
        if let Some((name, _)) = line.strip_suffix('{').and_then(|line| line.split_once(" (")) {
            table = name;
        } else if let Some(name) = line.strip_prefix("#[sql_name = \"") {
            renamed = name.strip_suffix("\"]");
        } else if let Some((name, kind)) = line.split_once(" -> ") {
            let name = renamed.take().unwrap_or(name);
            declared.push(format!("{table} {name} {}", kind.trim_end_matches(',')));
        }
    }
    assert_eq!(columns(&client).await, declared);
}

#[tokio::test]
async fn every_key_begins_with_the_user_and_nothing_refers_across_users() {
    let client = fresh_database().await.client().await;
    let first_columns = texts(
        &client,
        "SELECT format('%s: %s', i.indexrelid::regclass, a.attname) FROM pg_index i
         JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'public'::regnamespace
         JOIN pg_class own ON own.oid = i.indexrelid JOIN pg_am ON pg_am.oid = own.relam AND pg_am.amname = 'btree'
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE c.relname NOT LIKE '\\_\\_diesel%'",
    )
    .await;
    assert_eq!(first_columns.len(), 4, "{first_columns:?}");
    assert!(
        first_columns.iter().all(|index| index.ends_with(": user_id")),
        "{first_columns:?}"
    );
    // What is no key summarises blocks, wherever they are.
    let others = "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class c ON c.oid = indexrelid \
         JOIN pg_am ON pg_am.oid = c.relam WHERE c.relnamespace = 'public'::regnamespace AND amname <> 'btree'";
    assert_eq!(texts(&client, others).await, ["changes_history_by_recorded_at"]);
    for (what, query) in [
        ("triggers", "SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal"),
        (
            "sequences",
            "SELECT relname::text FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace",
        ),
        (
            "foreign keys",
            "SELECT conname::text FROM pg_constraint WHERE contype = 'f'",
        ),
    ] {
        assert_eq!(texts(&client, query).await, [""; 0], "{what}");
    }
}

#[tokio::test]
async fn the_database_itself_refuses_what_must_not_be_stored() {
    let client = fresh_database().await.client().await;
    let history = |timestamp: &str, seq: i64, after: i64, context: &str, key: &str| {
        format!(
            "INSERT INTO changes_history (user_id, timestamp, seq, balance_change, balance_after, context, operation_id,
                idempotency_key, approved, instance)
             VALUES ('a', '{timestamp}', {seq}, 1, {after}, {context}, gen_random_uuid(), {key}, false, 'x')"
        )
    };
    client
        .batch_execute(&history("2026-01-01Z", 1, 1, "''", "'k'"))
        .await
        .unwrap();
    let long = "repeat('x', 4097)";
    let refused = [
        (
            "balance_not_negative",
            "INSERT INTO balance VALUES ('a', -1, 1, now(), 0)".to_owned(),
        ),
        (
            "balance_version",
            "INSERT INTO balance VALUES ('a', 1, 0, now(), 0)".to_owned(),
        ),
        (
            "balance_user_id",
            "INSERT INTO balance VALUES ('', 1, 1, now(), 0)".to_owned(),
        ),
        (
            "changes_history_not_negative",
            history("2026-01-01Z", 2, -1, "''", "NULL"),
        ),
        ("changes_history_seq", history("2026-01-01Z", 0, 1, "''", "NULL")),
        ("changes_history_context", history("2026-01-01Z", 2, 1, long, "NULL")),
        ("changes_history_timestamp", history("10000-01-01Z", 2, 1, "''", "NULL")),
        ("changes_history_pkey", history("2026-01-01Z", 1, 1, "''", "NULL")),
        (
            "changes_history_by_idempotency_key",
            history("2026-01-01Z", 2, 1, "''", "'k'"),
        ),
        (
            "balance_checkpoints_not_negative",
            "INSERT INTO balance_checkpoints VALUES ('a', now(), 1, -1, 1)".to_owned(),
        ),
        (
            "balance_checkpoints_extremes",
            "INSERT INTO balance_checkpoints VALUES ('a', now(), 3, 1, 2)".to_owned(),
        ),
        (
            "balance_checkpoints_recorded",
            "INSERT INTO balance_checkpoints VALUES ('a', now(), 1, 1, 1, 'infinity')".to_owned(),
        ),
        (
            "balance_checkpoints_recorded",
            "INSERT INTO balance_checkpoints VALUES ('a', now(), 1, 1, 1, now(), now(), '-infinity')".to_owned(),
        ),
    ];
    for (constraint, statement) in refused {
        let error = client.batch_execute(&statement).await.expect_err(constraint);
        assert_eq!(
            error.as_db_error().and_then(|error| error.constraint()),
            Some(constraint)
        );
    }
}

#[tokio::test]
async fn down_undoes_up() {
    let client = fresh_database().await.client().await;
    let before = columns(&client).await;
    client.batch_execute(&DOWN.concat()).await.unwrap();
    let left = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_\\_diesel%'";
    assert_eq!(texts(&client, left).await, [""; 0]);
    client.batch_execute(&UP.concat()).await.unwrap();
    assert_eq!(columns(&client).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_are_safe_from_many_replicas_at_once() {
    let database = fresh_database().await;
    let client = database.client().await;
    client
        .batch_execute(&format!("{} DROP TABLE __diesel_schema_migrations", DOWN.concat()))
        .await
        .unwrap();
    let config = database.config_as(Role::Owner, 1);
    let replicas = (0..8).map(|_| migrate(&config));
    let applied: Vec<_> = futures_util::future::join_all(replicas).await;
    let applied: usize = applied.into_iter().map(|applied| applied.unwrap().len()).sum();
    assert_eq!(applied, UP.len());
    assert_eq!(migrate(&config).await.unwrap(), [""; 0]);
}
