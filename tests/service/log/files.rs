//! The log's file: rotated, torn, and on a disk that is full.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::client::{Answer, answer, change};
use crate::support::disk::SmallDisk;
use crate::support::replica::{ReplicaOptions, Scratch, log_lines};
use crate::support::world::{NOON, World};

fn text(line: &Value, name: &str) -> String {
    line[name].as_str().unwrap_or_default().to_owned()
}

/// Renames the log, as logrotate does, and waits until there is a new one.
async fn rotate(world: &World, to: &Path) {
    fs::rename(&world.replica.log, to).unwrap();
    world.replica.signal(Signal::SIGHUP);
    let began = Instant::now();
    while !world.replica.log.exists() {
        assert!(began.elapsed() < Duration::from_secs(10), "no new log");
        world.client.balance("anyone", None).await.expect(200);
    }
}

#[tokio::test]
async fn a_rotation_under_load_loses_no_line_and_doubles_none() {
    let world = World::start().await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for number in 0..8 {
        let (client, enough) = (world.client.clone(), Arc::clone(&enough));
        load.spawn(async move {
            let mut names = Vec::new();
            while !enough.load(Ordering::Relaxed) {
                let answered = client.change(&change(&format!("user-{number}"), 1, NOON)).await;
                names.push(text(&answered.expect(200).body, "operationId"));
            }
            names
        });
    }
    let mut files = vec![world.replica.log.clone()];
    for number in 1..=5 {
        let rotated = world.replica.log.with_extension(number.to_string());
        rotate(&world, &rotated).await;
        files.push(rotated);
    }
    enough.store(true, Ordering::Relaxed);
    let mut answered = load.join_all().await.concat();
    // One more rotation, after which new lines are in the new file and in no other.
    let rotated = world.replica.log.with_extension("6");
    rotate(&world, &rotated).await;
    let last = text(&world.deposit("user-8", 1).await.body, "operationId");
    let newest: Vec<_> = log_lines(&world.replica.log)
        .iter()
        .map(|line| text(line, "operationId"))
        .collect();
    assert!(newest.contains(&last), "{newest:?}");
    answered.push(last);
    files.push(rotated);
    for file in &files {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    let lines = files.iter().flat_map(|file| log_lines(file));
    let changes = lines.filter(|line| line["operation"] == "changeBalance");
    let mut logged: Vec<_> = changes.map(|line| text(&line, "operationId")).collect();
    logged.sort_unstable();
    answered.sort_unstable();
    assert_eq!(logged, answered);
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_not_glued_to_the_next() {
    let scratch = Scratch::new();
    let log = scratch.0.join("operations.log");
    let (whole, torn) = (r#"{"whole":1}"#, r#"{"at":"2026-01-31T12:0"#);
    fs::write(&log, format!("{whole}\n{torn}")).unwrap();
    let world = World::with(|options| options.log(&log)).await;
    let name = text(&world.deposit("a", 1).await.body, "operationId");
    let text_now = fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = text_now.lines().collect();
    assert_eq!(lines[..2], [whole, torn]);
    assert_eq!(lines.len(), 3, "{text_now}");
    assert_eq!(text(&serde_json::from_str(lines[2]).unwrap(), "operationId"), name);
}

#[tokio::test]
async fn a_second_replica_with_the_same_log_does_not_start_and_the_first_loses_no_line() {
    let world = World::start().await;
    world.deposit("a", 1).await;
    let options = ReplicaOptions::new(&world.database.url, &world.approver.url());
    let mut second = options.log(&world.replica.log).spawn();
    second.said("another process writes the operations log; waiting").await;
    world.deposit("a", 1).await;
    assert_eq!(second.ended().await.code(), Some(1));
    let path = world.replica.log.display();
    let line = format!("balance: OPERATIONS_LOG: operations log {path}: another process writes it; give each replica");
    second.said(&line).await;
    let waits = second.output().iter().filter(|line| line.contains("waiting")).count();
    assert_eq!(waits, 1);
    world.deposit("a", 1).await;
    assert_eq!(log_lines(&world.replica.log).len(), 3);
}

async fn everything(world: &World, key: &str) -> [Answer; 4] {
    [
        world.client.change_with_key(&change("b", 1, NOON), key).await,
        world.client.balance("b", None).await,
        world.client.balance("b", Some(NOON)).await,
        answer(world.client.get("/b/history")).await,
    ]
}

async fn expect_not_ready(world: &World) {
    let readiness = answer(world.client.get("/readyz"))
        .await
        .expect_problem(503, "not_ready");
    assert!(readiness.detail().contains("operations log"), "{}", readiness.detail());
    answer(world.client.get("/livez")).await.expect(200);
}

#[tokio::test]
async fn a_log_that_takes_no_line_lets_no_operation_be_answered_but_with_503() {
    let world = World::with(|options| options.log("/dev/full")).await;
    for key in ["k", "l", "k"] {
        for answered in everything(&world, key).await {
            answered.expect_problem(503, "operations_log_unavailable");
        }
        expect_not_ready(&world).await;
    }
    assert!(world.stored().await.is_empty());
}

#[tokio::test]
async fn a_full_disk_stops_all_answers_and_space_on_it_brings_them_back() {
    let disk = match SmallDisk::mount(1) {
        Ok(disk) => disk,
        Err(reason) => return println!("skipped: a tmpfs cannot be mounted here: {reason}"),
    };
    let log = disk.path().join("operations.log");
    let world = World::with(|options| options.log(&log)).await;
    world.deposit("a", 1).await;
    disk.fill();

    // The last block of the log takes some more lines.
    let mut unknown = Vec::new();
    let mut answered = 0;
    for number in 0.. {
        let key = format!("filling-{number}");
        let sent = world.client.change_with_key(&change("a", 1, NOON), &key).await;
        match (sent.status.as_u16(), sent.code()) {
            (200, _) => answered += 1,
            (503, "outcome_unknown") => unknown.push(key),
            (503, "operations_log_unavailable") => break,
            _ => panic!("{}", sent.body),
        }
        assert!(number < 1_000, "the disk does not fill up");
    }
    let stored = world.stored().await;
    for key in ["k", "l"] {
        for refused in everything(&world, key).await {
            refused.expect_problem(503, "operations_log_unavailable");
        }
        expect_not_ready(&world).await;
    }
    assert_eq!(world.stored().await, stored);
    // Whole lines only; those that have been answered among them.
    assert_eq!(log_lines(&log).len(), 1 + answered);

    disk.free();
    let freed = Instant::now();
    loop {
        let sent = world.client.change_with_key(&change("b", 1, NOON), "after").await;
        assert!(freed.elapsed() < Duration::from_secs(2), "{}", sent.body);
        if sent.status.is_success() {
            break;
        }
        sent.expect_problem(503, "operations_log_unavailable");
    }
    answer(world.client.get("/readyz")).await.expect(200);
    for key in &unknown {
        let found = world
            .client
            .change_with_key(&change("a", 1, NOON), key)
            .await
            .expect(200);
        let name = text(&found.body, "operationId");
        let lines = log_lines(&log);
        let accepted = |line: &&Value| line["outcome"] == "accepted" && text(line, "operationId") == name;
        let lines: Vec<_> = lines.iter().filter(accepted).collect();
        assert_eq!(lines.len(), 1, "{name} {lines:?}");
        assert_eq!(lines[0]["recovered"], true);
    }
    let accepted = |line: &Value| line["operation"] == "changeBalance" && line["outcome"] == "accepted";
    let operations = world
        .stored()
        .await
        .iter()
        .filter(|row| row.starts_with("changes_history"))
        .count();
    assert_eq!(log_lines(&log).into_iter().filter(accepted).count(), operations);
}
