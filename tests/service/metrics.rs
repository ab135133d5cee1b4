//! What is counted, as a scrape shows it after things have happened.

use std::fs;
use std::time::Instant;

use futures_util::future::join_all;

use crate::support::approver::Behaviour;
use crate::support::client::{answer, change};
use crate::support::raw::exchange;
use crate::support::world::{NOON, World};

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// The value of a metric, by the name and the labels that it stands under.
async fn value(world: &World, name: &str) -> Option<f64> {
    let text = world.client.get("/metrics").send().await.unwrap().text().await.unwrap();
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let (_, number) = lines.find(|(found, _)| *found == name)?;
    Some(number.parse().unwrap())
}

#[tokio::test]
async fn what_can_happen_is_there_before_it_does() {
    let world = World::start().await;
    for name in [
        "balance_commit_retries_total{reason=\"result_lost\"}",
        "balance_approver_verdicts_total{verdict=\"none\"}",
        "balance_approver_retries_total",
        "balance_operations_log_failed_writes_total",
        "balance_http_connections_turned_away_total",
        "db_client_operation_duration_seconds_count{db_operation_name=\"commit\",error_type=\"\"}",
    ] {
        assert_eq!(value(&world, name).await, Some(0.0), "{name}");
    }
    assert!(
        value(&world, "balance_ready").await.unwrap().is_nan(),
        "nobody has asked yet"
    );
    let text = world.client.get("/metrics").send().await.unwrap().text().await.unwrap();
    let build = format!("version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    let told = text
        .lines()
        .any(|line| line.starts_with("balance_build_info{commit=") && line.ends_with(&build));
    assert!(told, "{text}");
    assert!(value(&world, "process_resident_memory_bytes").await.unwrap() > 1e6);
    assert_eq!(
        value(&world, "http_server_active_requests").await,
        Some(1.0),
        "the scrape itself"
    );
}

#[tokio::test]
async fn calls_verdicts_and_repetitions_are_counted_by_what_came_of_them() {
    let world = World::start().await;
    world.deposit("a", 200_000).await;
    world.approver.always(Behaviour::Status(403));
    world.client.change(&change("a", 200_000, NOON)).await.expect(403);
    world.approver.always(Behaviour::Status(500));
    world.client.change(&change("a", 200_000, NOON)).await.expect(503);
    // The Approver's statuses are its own; a label is not.
    world.approver.always(Behaviour::Status(418));
    world.client.change(&change("a", 200_000, NOON)).await.expect(503);
    let calls = |error_type: &str, status: &str| {
        format!(
            "http_client_request_duration_seconds_count{{error_type=\"{error_type}\",http_request_method=\"GET\",\
             http_response_status_code=\"{status}\"}}"
        )
    };
    for (name, expected) in [
        (calls("", "200"), 1.0),
        (calls("", "403"), 1.0),
        (calls("unexpected_status", "500"), 3.0),
        (calls("unexpected_status", "4xx"), 1.0),
        ("balance_approver_retries_total".to_owned(), 2.0),
        ("balance_approver_verdicts_total{verdict=\"denied\"}".to_owned(), 1.0),
        ("balance_approver_verdicts_total{verdict=\"none\"}".to_owned(), 2.0),
        ("http_client_active_requests".to_owned(), 0.0),
    ] {
        assert_eq!(value(&world, &name).await, Some(expected), "{name}");
    }
}

#[tokio::test]
async fn statements_that_fail_are_counted_by_what_failed_and_readiness_as_it_was_answered() {
    let world = World::start().await;
    world.deposit("a", 1).await;
    world.client.balance("a", None).await.expect(200);
    answer(world.client.get("/readyz")).await.expect(200);
    assert_eq!(value(&world, "balance_ready").await, Some(1.0));
    let statements = |what: &str, error_type: &str| {
        format!(
            "db_client_operation_duration_seconds_count{{db_operation_name=\"{what}\",error_type=\"{error_type}\"}}"
        )
    };
    for what in ["read_balances", "read_users", "commit"] {
        assert_eq!(value(&world, &statements(what, "")).await, Some(1.0), "{what}");
    }
    let drop = "DROP TABLE balance, changes_history, balance_checkpoints CASCADE";
    world.database.client().await.batch_execute(drop).await.unwrap();
    world.client.balance("a", None).await.expect(503);
    // The last look serves those who ask for a moment longer.
    while answer(world.client.get("/readyz")).await.status == 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(value(&world, "balance_ready").await, Some(0.0));
    // A read that is refused is tried twice.
    assert_eq!(value(&world, &statements("read_balances", "refused")).await, Some(2.0));
}

#[tokio::test]
async fn the_operations_log_is_counted_as_it_is_written() {
    let world = World::start().await;
    for _ in 0..3 {
        world.deposit("a", 1).await;
    }
    let bytes = fs::metadata(&world.replica.log).unwrap().len();
    // Read twice: what is followed is not added again.
    for _ in 0..2 {
        assert_eq!(value(&world, "balance_operations_log_lines_total").await, Some(3.0));
        let written = value(&world, "balance_operations_log_written_bytes_total").await;
        assert_eq!(written, Some(u32::try_from(bytes).unwrap().into()));
    }
    assert_eq!(value(&world, "balance_operations_log_failing").await, Some(0.0));
    let age = value(&world, "balance_operations_log_sync_age_seconds{policy=\"everysec\"}").await;
    assert!(age.is_some_and(|seconds| (0.0..600.0).contains(&seconds)), "{age:?}");
}

#[tokio::test]
async fn clients_that_are_turned_away_are_counted() {
    let world = World::with(|options| options.set("CONNECTIONS", "1")).await;
    // The client keeps its connection, so there is room for no other.
    assert_eq!(value(&world, "balance_http_connections").await, Some(1.0));
    assert_eq!(value(&world, "balance_http_connections_limit").await, Some(1.0));
    let refused = exchange(&world.replica.url, SCRAPE).await.unwrap();
    assert_eq!(refused.status, 503);
    assert_eq!(
        value(&world, "balance_http_connections_turned_away_total").await,
        Some(1.0)
    );
}

#[tokio::test]
async fn one_look_at_postgresql_serves_all_who_ask_for_readiness_within_a_quarter_of_a_second() {
    const LOOKS: &str =
        "db_client_operation_duration_seconds_count{db_operation_name=\"check_readiness\",error_type=\"\"}";
    let world = World::start().await;
    let began = Instant::now();
    for _ in 0..20 {
        let asked = (0..20).map(|_| answer(world.client.get("/readyz")));
        for ready in join_all(asked).await {
            ready.expect(200);
        }
    }
    let looks = value(&world, LOOKS).await.unwrap();
    let quarters = began.elapsed().as_secs_f64() / 0.25;
    assert!(
        (1.0..=1.0 + quarters).contains(&looks),
        "{looks} looks in {quarters} quarters of a second"
    );
}
