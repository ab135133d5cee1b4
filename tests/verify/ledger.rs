//! The stored ledger: what is planted in it with SQL, constraints dropped where they are in the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use balance::store::migrate;
use balance::verify::{Bounds, Finding, Observer, Progress, Summary, Violation};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;

use crate::support::client::{answer, change};
use crate::support::postgres::{Database, Role, WAITING, fresh_database, until};
use crate::support::world::World;
use crate::{OPERATIONS, copy, ended, filled, second, start, verify};

/// Hears all findings.
#[derive(Default)]
struct Heard(Vec<Finding>);

impl Observer for Heard {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.clone());
    }

    fn progress(&mut self, _: Progress) {}
}

/// As the command does, but holding no more operations than this.
async fn verify_holding(database: &Database, held: usize) -> (Summary, Vec<Finding>) {
    let config = database.config_as(Role::Auditor, 1);
    let bounds = Bounds {
        approval_threshold: 100_000,
        held,
    };
    let mut heard = Heard::default();
    let summary = balance::verify::verify(&config, bounds, &[], &mut heard).await.unwrap();
    (summary, heard.0)
}

#[tokio::test]
async fn an_empty_ledger_is_right() {
    let verified = verify(&fresh_database().await, &[]).await.expect_right();
    assert!(
        verified.lines[0].contains("0 users, 0 operations, 0 checkpoints"),
        "{verified:?}"
    );
}

#[tokio::test]
async fn a_ledger_that_the_service_filled_is_right() {
    let database = filled().await;
    let verified = verify(&database, &[]).await.expect_right();
    let counts = format!("32 users, {} operations", 2 * OPERATIONS + 60);
    assert!(verified.lines[0].contains(&counts), "{verified:?}");
    for held in [1, 7, 64, 10_000] {
        let (summary, found) = verify_holding(&database, held).await;
        assert_eq!((found, summary.findings), (vec![], 0), "{held}");
        assert_eq!((summary.users, summary.operations), (32, 2 * OPERATIONS as u64 + 60));
        assert!(summary.checkpoints >= 2 * (OPERATIONS as u64 / 128 - 1), "{summary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_the_schema_before_is_right_when_it_is_migrated_and_tells_what_was_known() {
    const DOWN: &str = include_str!("../../migrations/2026-11-26-000000_recording/down.sql");
    let database = filled().await;
    let sql = database.client().await;
    let back = format!("{DOWN} DELETE FROM __diesel_schema_migrations WHERE version = '20261126000000'");
    sql.batch_execute(&back).await.unwrap();
    let world = World::on(database).await;
    let unready = answer(world.client.get("/readyz")).await;
    let unready = unready.expect_problem(503, "not_ready");
    assert!(unready.detail().contains("balance migrate"), "{}", unready.detail());

    let applied = migrate(&world.database.config_as(Role::Owner, 1)).await.unwrap();
    assert_eq!(applied.len(), 1);
    world.client.until_ready_is(200).await;
    world.client.change(&change("bob", 5, &second(150))).await.expect(200);
    // What bob had when half of his operations were recorded, in whatever order.
    let half = "SELECT to_char(max(recorded_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
        sum(balance_change)::bigint FROM changes_history WHERE user_id = 'bob' AND seq <= 150";
    let half = sql.query_one(half, &[]).await.unwrap();
    let (moment, balance): (String, i64) = (half.get(0), half.get(1));
    let path = format!("/bob/balance?timestamp={}&knownAt={moment}", second(OPERATIONS));
    assert_eq!(
        answer(world.client.get(&path)).await.expect(200).body["balance"],
        balance
    );
    let World { database, replica, .. } = world;
    replica.stop().await;
    verify(&database, &[]).await.expect_right();
}

/// What is planted, the user and the second that must be named, and what must be said.
const PLANTED: &[(&str, &str, usize, &str)] = &[
    (
        "UPDATE changes_history SET balance_change = 9 WHERE user_id = 'alice' AND seq = 50",
        "alice",
        50,
        "balance_after of seq 50: expected 499, found 500",
    ),
    (
        "UPDATE changes_history SET balance_after = 501 WHERE user_id = 'alice' AND seq = 50",
        "alice",
        50,
        "balance_after of seq 50: expected 500, found 501",
    ),
    (
        "UPDATE changes_history SET balance_after = 0 WHERE user_id = 'bob' AND \"timestamp\" = '2026-01-31T12:00:50Z'",
        "bob",
        50,
        "balance_after of seq ",
    ),
    (
        "UPDATE changes_history SET balance_change = -5000 WHERE user_id = 'alice' AND seq = 300",
        "alice",
        300,
        "negative once seq 300 is accepted: expected at least 0, found -2010",
    ),
    (
        "UPDATE changes_history SET balance_change = 9223372036854775807 WHERE user_id = 'alice' AND seq = 2",
        "alice",
        2,
        "leaves the range once seq 2 is accepted: expected at most 9223372036854775807, found 9223372036854775817",
    ),
    (
        "DELETE FROM changes_history WHERE user_id = 'alice' AND seq = 50",
        "alice",
        51,
        "expected seq 50, found 51",
    ),
    (
        "UPDATE changes_history SET seq = 49 WHERE user_id = 'alice' AND seq = 50",
        "alice",
        50,
        "expected seq 50, found 49",
    ),
    (
        "UPDATE changes_history SET \"timestamp\" = '2026-01-31T12:00:45Z' WHERE user_id = 'alice' AND seq = 50",
        "alice",
        45,
        "balance_after of seq 50: expected 460, found 500",
    ),
    (
        "INSERT INTO changes_history SELECT user_id, \"timestamp\" + interval '1 s', seq, 0, balance_after, context,
            gen_random_uuid(), NULL, false, instance FROM changes_history WHERE user_id = 'alice' AND seq = 50",
        "alice",
        51,
        "expected seq 51, found 50",
    ),
    (
        "ALTER TABLE changes_history DROP CONSTRAINT changes_history_not_negative;
         UPDATE changes_history SET balance_after = -1 WHERE user_id = 'alice' AND seq = 300",
        "alice",
        300,
        "balance_after of seq 300: expected 3000, found -1",
    ),
    (
        "UPDATE balance SET balance = balance + 1 WHERE user_id = 'bob'",
        "bob",
        OPERATIONS,
        "balance of the row of balance: expected 3000, found 3001",
    ),
    (
        "UPDATE balance SET version = version + 1 WHERE user_id = 'bob'",
        "bob",
        OPERATIONS,
        "version of the row of balance: expected 300, found 301",
    ),
    (
        "UPDATE balance SET latest = latest - interval '1 s' WHERE user_id = 'bob'",
        "bob",
        OPERATIONS,
        "latest of the row of balance: expected 2026-01-31T12:05:00Z, found 2026-01-31T12:04:59Z",
    ),
    (
        "UPDATE balance SET since_checkpoint = since_checkpoint - 1 WHERE user_id = 'bob'",
        "bob",
        OPERATIONS,
        "since_checkpoint of the row of balance: expected ",
    ),
    (
        "UPDATE balance SET recorded_at = recorded_at + interval '1 s' WHERE user_id = 'bob'",
        "bob",
        OPERATIONS,
        "recorded_at of the row of balance: expected 20",
    ),
    (
        "UPDATE changes_history SET recorded_at = '2026-01-31T11:00:00Z' WHERE user_id = 'alice' AND seq = 50",
        "alice",
        50,
        "recorded_at of seq 50: expected at least ",
    ),
    (
        "UPDATE changes_history SET recorded_at = '9026-01-31T11:00:00Z' WHERE user_id = 'alice' AND seq = 50",
        "alice",
        51,
        "recorded_at of seq 51: expected at least 9026-01-31T11:00:00Z, found 20",
    ),
    (
        "DELETE FROM balance WHERE user_id = 'alice'",
        "alice",
        OPERATIONS,
        "the row of balance: expected for a history of 300 operations, found none",
    ),
    (
        "INSERT INTO balance VALUES ('zoe', 0, 3, '2026-01-31T12:00:07Z', 0)",
        "zoe",
        7,
        "the history: expected 3 operations by the row of balance, found none",
    ),
    (
        "DELETE FROM changes_history WHERE user_id = 'alice'",
        "alice",
        OPERATIONS,
        "the history: expected 300 operations by the row of balance, found none",
    ),
    (
        "INSERT INTO balance_checkpoints VALUES ('mallory', '2026-01-31T12:00:08Z', 1, 1, 1)",
        "mallory",
        8,
        "the checkpoint: expected at the moment of an operation, found where there is none",
    ),
    (
        "UPDATE changes_history SET operation_id = (SELECT operation_id FROM changes_history WHERE user_id = 'bob'
            AND seq = 1) WHERE user_id = 'alice' AND seq = 50",
        "alice",
        50,
        "the id of seq 50: expected one of its own, found ",
    ),
    (
        "DROP INDEX changes_history_by_idempotency_key;
         UPDATE changes_history SET idempotency_key = 'k' WHERE user_id = 'alice' AND seq IN (50, 51)",
        "alice",
        50,
        "the idempotency key of seq 50: expected one of its own, found \"k\"",
    ),
    (
        "UPDATE changes_history SET approved = false WHERE user_id LIKE 'user-7/%'",
        "user-7/\u{1f42b}",
        7,
        "the approval of seq 1: expected for a change of 200000, above 100000, found none",
    ),
];

#[tokio::test]
async fn whatever_is_planted_in_the_ledger_is_found_with_user_and_moment() {
    let filled = filled().await;
    for (number, (sql, user_id, seconds, finding)) in PLANTED.iter().enumerate() {
        let database = copy(&filled, number).await;
        database.client().await.batch_execute(sql).await.unwrap();
        let verified = verify(&database, &[]).await;
        let about = format!("user {user_id:?} at {}: ", second(*seconds));
        verified.expect_finding(&about, finding);
        let (summary, found) = verify_holding(&database, 5).await;
        assert!(summary.findings > 0, "{sql}");
        let is_it = |found: &Finding| found.to_string().starts_with(&about) && found.to_string().contains(finding);
        assert!(found.iter().any(is_it), "{sql} {found:#?}");
    }
}

#[tokio::test]
async fn each_column_of_a_checkpoint_is_computed_anew() {
    let filled = filled().await;
    let first = "(SELECT min(\"timestamp\") FROM balance_checkpoints WHERE user_id = 'bob')";
    let constraints = "ALTER TABLE balance_checkpoints DROP CONSTRAINT balance_checkpoints_not_negative, \
         DROP CONSTRAINT balance_checkpoints_extremes";
    for (number, (set, finding)) in [
        ("balance = balance - 1", "balance of the checkpoint: expected "),
        (
            "lowest = lowest - 11",
            "lowest of the checkpoint: expected 10, found -1",
        ),
        ("highest = highest + 1", "highest of the checkpoint: expected "),
        (
            "recorded_from = recorded_until",
            "recorded_from of the checkpoint: expected at most 20",
        ),
        (
            "recorded_until = recorded_from",
            "recorded_until of the checkpoint: expected at least 20",
        ),
        (
            "recorded_until = recorded_from, all_recorded_until = recorded_from",
            "all_recorded_until of the checkpoint: expected at least 20",
        ),
        (
            "\"timestamp\" = \"timestamp\" + interval '1 ms'",
            "the checkpoint: expected at the moment of an operation, found where there is none",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let database = copy(&filled, number).await;
        let client = database.client().await;
        client.batch_execute(constraints).await.unwrap();
        let update = format!(
            "UPDATE balance_checkpoints SET {set} WHERE user_id = 'bob' AND \"timestamp\" = {first}
             RETURNING to_char(\"timestamp\" AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
        );
        let at: String = client.query_one(&update, &[]).await.unwrap().get(0);
        verify(&database, &[])
            .await
            .expect_finding(&format!("user \"bob\" at {at}"), finding);
    }
    // A segment that lost its checkpoint becomes part of the next one.
    let database = copy(&filled, 10).await;
    let delete = format!("DELETE FROM balance_checkpoints WHERE user_id = 'bob' AND \"timestamp\" = {first}");
    database.client().await.batch_execute(&delete).await.unwrap();
    verify(&database, &[])
        .await
        .expect_finding("user \"bob\" at ", "lowest of the checkpoint: expected 10, found ");
}

#[tokio::test]
async fn a_moment_that_no_answer_could_hold_is_found() {
    let database = filled().await;
    let sql = "ALTER TABLE changes_history DROP CONSTRAINT changes_history_timestamp; \
         UPDATE changes_history SET \"timestamp\" = 'infinity' WHERE user_id = 'alice' AND seq = 300";
    database.client().await.batch_execute(sql).await.unwrap();
    let verified = verify(&database, &[]).await;
    verified.expect_finding(
        "user \"alice\" at 9223372036854775807 µs since 1970: ",
        "the timestamp of seq 300",
    );
    // The infinities go to PostgreSQL and back.
    let sql = "UPDATE changes_history SET \"timestamp\" = '-infinity' WHERE user_id = 'alice' AND seq = 200";
    database.client().await.batch_execute(sql).await.unwrap();
    let (_, found) = verify_holding(&database, 1).await;
    let broken = |found: &&Finding| {
        matches!(
            found.violation,
            Violation::BalanceAfter {
                seq: 200,
                expected: 10,
                ..
            }
        )
    };
    assert_eq!(found.iter().filter(broken).count(), 1, "{found:#?}");
}

#[tokio::test]
async fn a_threshold_that_was_lower_is_told_to_the_check() {
    let database = filled().await;
    verify(&database, &["--approval-threshold", "10"]).await.expect_right();
    let verified = verify(&database, &["--approval-threshold", "9"]).await;
    verified.expect_finding(
        "user \"alice\" at 2026-01-31T12:00:01Z: ",
        "for a change of 10, above 9",
    );
    // All are counted, five of a kind and user are told.
    assert_eq!(verified.lines.len(), 10 + 2, "{verified:#?}");
    assert_eq!(verified.lines[10], "and 590 more");
    assert!(verified.lines[11].starts_with("600 findings: "), "{verified:#?}");
}

#[tokio::test]
async fn a_hundred_findings_are_told_and_all_are_counted() {
    let database = fresh_database().await;
    let ghosts = "INSERT INTO balance SELECT 'ghost-' || n, 0, 1, now(), 0 FROM generate_series(1, 150) n";
    database.client().await.batch_execute(ghosts).await.unwrap();
    let verified = verify(&database, &[]).await;
    assert_eq!(
        (verified.code, verified.lines.len()),
        (Some(1), 100 + 2),
        "{verified:#?}"
    );
    assert!(
        verified.lines[..100]
            .iter()
            .all(|line| line.starts_with("user \"ghost-"))
    );
    assert_eq!(verified.lines[100], "and 50 more");
    assert!(verified.lines[101].starts_with("150 findings: 150 users, 0 operations"));
}

#[tokio::test]
async fn ctrl_c_ends_the_check_at_once() {
    let database = fresh_database().await;
    let blocker = database.client().await;
    let lock = "BEGIN; LOCK TABLE changes_history IN ACCESS EXCLUSIVE MODE";
    blocker.batch_execute(lock).await.unwrap();
    let checking = start(&database, &[]);
    until(&database.client().await, WAITING, 1).await;
    let process = Pid::from_raw(checking.id().unwrap().try_into().unwrap());
    let began = Instant::now();
    kill(process, Signal::SIGINT).unwrap();
    let verified = ended(checking).await;
    assert_eq!((verified.code, verified.lines.len()), (Some(2), 0), "{verified:?}");
    assert_eq!(verified.said, "balance: interrupted before the check came to its end\n");
    // Well before the lock would have been given up.
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_ledger_in_use_is_right_at_every_moment() {
    let world = World::start().await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for number in 0..16_usize {
        let (client, enough) = (world.client.clone(), Arc::clone(&enough));
        load.spawn(async move {
            let user_id = if number < 8 {
                "hot".to_owned()
            } else {
                format!("user-{number}")
            };
            for round in 0.. {
                let at = second((round * 31 + number * 17) % 3_000);
                let amount = if round % 3 == 2 { -15 } else { 10 };
                let answer = client.change(&change(&user_id, amount, &at)).await;
                assert!([200, 403].contains(&answer.status.as_u16()), "{}", answer.body);
                if enough.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
    }
    for _ in 0..5 {
        verify(&world.database, &[]).await.expect_right();
    }
    enough.store(true, Ordering::Relaxed);
    load.join_all().await;
    verify(&world.database, &[]).await.expect_right();
}

#[tokio::test]
async fn what_cannot_be_checked_is_told_apart_from_what_is_wrong() {
    let mut nowhere = fresh_database().await;
    nowhere.url = "postgres://balance:hunter2@127.0.0.1:1/balance".to_owned();
    let verified = verify(&nowhere, &[]).await;
    assert_eq!((verified.code, verified.lines.len()), (Some(2), 0), "{verified:?}");
    assert!(
        verified.said.starts_with("balance: PostgreSQL cannot be reached: ") && verified.said.lines().count() == 1,
        "{verified:?}"
    );
    let database = fresh_database().await;
    let drop = "DROP TABLE changes_history";
    database.client().await.batch_execute(drop).await.unwrap();
    let verified = verify(&database, &[]).await;
    assert_eq!((verified.code, verified.lines.len()), (Some(2), 0), "{verified:?}");
    assert!(
        verified.said.contains("changes_history") && verified.said.lines().count() == 1,
        "{verified:?}"
    );
}
