//! `balance verify`: a good ledger and its logs pass, and whatever is planted in them is found and named.

#[path = "../support/mod.rs"]
mod support;

mod ledger;
mod log;

use std::process::Stdio;

use tokio::process::{Child, Command};

use support::client::{ServiceClient, change};
use support::janitor::Janitor;
use support::postgres::{Database, Role};
use support::world::World;

/// How a run of the command ended.
#[derive(Debug)]
struct Verified {
    code: Option<i32>,
    /// The lines of standard output: findings, and the summary as the last one.
    lines: Vec<String>,
    said: String,
}

impl Verified {
    #[track_caller]
    fn expect_right(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        assert_eq!(self.lines.len(), 1, "{self:#?}");
        assert!(self.lines[0].starts_with("all is right: "), "{self:#?}");
        self
    }

    /// Something is wrong, and a finding begins and ends so.
    #[track_caller]
    fn expect_finding(&self, about: &str, finding: &str) {
        assert_eq!(self.code, Some(1), "{self:#?}");
        let is_it = |line: &String| line.starts_with(about) && line.contains(finding);
        assert!(self.lines.iter().any(is_it), "{about} … {finding} is not in {self:#?}");
        assert!(self.lines.last().unwrap().contains("finding"), "{self:#?}");
    }
}

/// Starts the command.
fn start(database: &Database, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balance"));
    command.arg("verify").args(arguments).env_clear();
    command
        .env("DATABASE_URL", database.url_as(Role::Auditor))
        .kill_on_drop(true)
        .process_group(Janitor::get().group());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

async fn ended(process: Child) -> Verified {
    let output = process.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Verified {
        code: output.status.code(),
        lines: text(output.stdout).lines().map(str::to_owned).collect(),
        said: text(output.stderr),
    }
}

async fn verify(database: &Database, arguments: &[&str]) -> Verified {
    ended(start(database, arguments)).await
}

/// The moment so many seconds after noon, as it is shown.
fn second(seconds: usize) -> String {
    format!("2026-01-31T12:{:02}:{:02}Z", seconds / 60, seconds % 60)
}

/// How many operations alice and bob have each.
const OPERATIONS: usize = 300;

/// Deposits of 10 by alice, one a second and in order, from second 1 on; the same by bob in any order; and some of others.
async fn fill(client: &ServiceClient) {
    let deposits = |user_id: &'static str, second_of: fn(usize) -> usize| async move {
        for number in 1..=OPERATIONS {
            client
                .change(&change(user_id, 10, &second(second_of(number))))
                .await
                .expect(200);
        }
    };
    let others = async {
        for number in 0..30_usize {
            let user_id = format!("user-{number}/\u{1f42b}");
            let body = change(&user_id, 200_000, &second(number));
            client.change_with_key(&body, "key").await.expect(200);
            client
                .change_with_key(&change(&user_id, -7, &second(number)), "other")
                .await
                .expect(200);
            client
                .change(&change(&user_id, -1_000_000, &second(number)))
                .await
                .expect(403);
        }
    };
    let in_any_order = |number: usize| 1 + (number * 7_919) % OPERATIONS;
    tokio::join!(
        deposits("alice", |number| number),
        deposits("bob", in_any_order),
        others
    );
}

/// A ledger as [`fill`] leaves it, at rest.
async fn filled() -> Database {
    let World {
        database,
        replica,
        client,
        approver,
    } = World::start().await;
    fill(&client).await;
    replica.stop().await;
    drop(approver);
    database
}

/// A copy of a database that nobody is connected to.
async fn copy(database: &Database, number: usize) -> Database {
    let (server, _) = database.url.rsplit_once('/').unwrap();
    let named = |name: &str| Database {
        url: format!("{server}/{name}"),
        name: name.to_owned(),
    };
    let name = format!("{}_{number}", database.name);
    let create = format!("CREATE DATABASE {name} TEMPLATE {}", database.name);
    named("postgres").client().await.batch_execute(&create).await.unwrap();
    named(&name)
}
