//! Each statement proves that it is the one that is meant, before it reads or writes a row.

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, answer, change};
use crate::support::pgbouncer::{PgBouncer, PoolMode};
use crate::support::postgres::{Role, fresh_database};
use crate::support::replica::ReplicaOptions;

const NOON: &str = "2026-01-31T12:00:00Z";
const EARLIER: &str = "2026-01-31T11:00:00Z";
/// The statements that the requests below send: a balance, what is available, heads, users, two commits, four pages, what
/// was known, and readiness.
const STATEMENTS: usize = 12;
const PREPARED: &str = "SELECT name, cardinality(parameter_types), substring(statement FROM 'proof = ''([0-9a-f]{16})''') \
                        FROM pg_prepared_statements WHERE name ~ '^s[0-9]+$'";
const STORED: &str = "SELECT count(*), sum(version) FROM changes_history, balance";

/// The rows of a query, in the simple protocol.
async fn rows(client: &Client, query: &str) -> Vec<Vec<String>> {
    let answered = client.simple_query(query).await.unwrap();
    let rows = answered.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()))
        }
        _ => None,
    });
    rows.map(Iterator::collect).collect()
}

/// Why PostgreSQL refuses to execute this in a transaction that begins so; none if it does not.
async fn refusal(client: &Client, begin: &str, execute: &str) -> Option<String> {
    client.simple_query(begin).await.unwrap();
    let executed = client.simple_query(execute).await;
    client.simple_query("ROLLBACK").await.unwrap();
    executed
        .err()
        .map(|error| error.as_db_error().unwrap().message().to_owned())
}

#[tokio::test]
async fn a_statement_that_is_not_the_one_that_is_meant_or_not_on_a_primary_does_nothing() {
    if PgBouncer::is_missing() {
        return;
    }
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    // All clients share one session of the server, with the statements that each of them has prepared.
    let pooler = PgBouncer::start(&database, PoolMode::Transaction, 1).await;
    let url = pooler.url_as(Role::Service);
    let options = ReplicaOptions::new(&url, &approver.url()).set("DATABASE_CONNECTIONS", "1");
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let bodies = [
        change("alice", 100, NOON),
        change("alice", 5, NOON),
        change("alice", 1, EARLIER),
    ];
    for (number, body) in bodies.iter().enumerate() {
        client.change(body).await.expect(200);
        client.change_with_key(body, &format!("key-{number}")).await.expect(200);
    }
    for path in [
        "/alice/balance",
        "/alice/available",
        "/alice/history",
        "/alice/history?order=asc",
        "/alice/balance?knownAt=2026-01-31T12:00:00Z",
        "/alice/history?knownAt=2026-01-31T12:00:00Z",
        "/alice/history?order=asc&knownAt=2026-01-31T12:00:00Z",
        "/readyz",
    ] {
        answer(client.get(path)).await.expect(200);
    }

    let (other, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let prepared = rows(&other, PREPARED).await;
    assert!(prepared.len() >= STATEMENTS, "{prepared:#?}");
    let before = rows(&other, STORED).await;
    for statement in &prepared {
        let [name, parameters, proof] = statement.as_slice() else {
            panic!("{statement:?}");
        };
        let nothing = "NULL, ".repeat(parameters.parse::<usize>().unwrap() - 1);
        let execute = |proof: &str| format!("EXECUTE {name} ({nothing}'{proof}')");
        for plan in ["force_generic_plan", "force_custom_plan"] {
            let begin = format!("BEGIN; SET LOCAL plan_cache_mode = {plan}");
            assert_eq!(refusal(&other, &begin, &execute(proof)).await, None);
            let said = refusal(&other, &begin, &execute("0123456789abcdef")).await.unwrap();
            let expected = format!("balance: statement {proof} was asked as 0123456789abcdef");
            assert!(said.contains(&expected), "{said}");
            let begin = begin.replace("BEGIN", "BEGIN READ ONLY");
            let said = refusal(&other, &begin, &execute(proof)).await.unwrap();
            // PostgreSQL refuses those that write by itself, before it comes to the condition.
            let is_refused = said.contains("transaction_read_only=on") || said.contains("read-only transaction");
            assert!(is_refused, "{said}");
        }
    }
    assert_eq!(rows(&other, STORED).await, before);
    replica.stop().await;
}
