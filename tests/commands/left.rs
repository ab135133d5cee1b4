//! A test program leaves nothing, however it ends.

use std::env;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::support::approver::TestApprover;
use crate::support::janitor::Janitor;
use crate::support::postgres::fresh_database;
use crate::support::replica::Replica;
use crate::support::usage::Usage;

const PATIENCE: Duration = Duration::from_secs(60);
const IS_TO_BE_KILLED: &str = "BALANCE_TEST_PROGRAM_TO_KILL";

#[tokio::test]
async fn a_test_program_that_is_killed_leaves_no_process_and_no_file() {
    let mut program = Command::new(env::current_exe().unwrap())
        .args(["--exact", "left::the_program_to_kill", "--ignored", "--nocapture"])
        .env(IS_TO_BE_KILLED, "yes")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(Janitor::get().group())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let started = timeout(PATIENCE, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it is ready before it ends");
            if let Some(left) = line.strip_prefix("ready ") {
                return left.to_owned();
            }
        }
    });
    let started = started.await.expect("it is ready");
    let (processes, directory) = started.split_once(" in ").unwrap();
    let processes: Vec<i32> = processes.split(' ').map(|process| process.parse().unwrap()).collect();
    let directory = PathBuf::from(directory);
    assert!(directory.join("postgres").exists());
    let running = || {
        processes
            .iter()
            .filter(|process| Usage::of(**process).is_some())
            .count()
    };
    assert_eq!(running(), 2);

    program.kill().await.unwrap();
    let gone = timeout(PATIENCE, async {
        while running() > 0 || directory.exists() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    gone.await
        .unwrap_or_else(|_| panic!("{} processes and {directory:?}", running()));
}

#[tokio::test]
#[ignore = "another test runs it as a process to kill; by itself it does nothing"]
async fn the_program_to_kill() {
    if env::var_os(IS_TO_BE_KILLED).is_none() {
        return;
    }
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let replica = Replica::start(&database, &approver).await;
    let postgres = database.client().await;
    let postmaster = "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)";
    let postmaster: String = postgres.query_one(postmaster, &[]).await.unwrap().get(0);
    let directory = Janitor::get().directory().display();
    println!("\nready {} {postmaster} in {directory}", replica.process_id());
    std::future::pending::<()>().await;
}
