//! Changes that were committed by a replica that died before their lines were written.

mod mark;
mod trail;

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::{Client, NoTls};

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, change};
use crate::support::postgres::{Database, Role, STORED, WAITING, fresh_database, until};
use crate::support::proxy::{Lost, Proxy};
use crate::support::replica::{Replica, ReplicaOptions, Scratch};
use crate::support::tokens;
use crate::support::world::NOON;

/// What the replica says when it has written lines that were missing, and when none was.
const RECOVERED: &str = "had no line in the operations log";
const COMPLETE: &str = "no change of an earlier run lacks its line";

/// And while another process writes its log.
const WAITS: &str = "another process writes the operations log";

/// A request under way.
type Sent = JoinHandle<Result<reqwest::Response, reqwest::Error>>;

/// One instance, run again and again with the same log, behind a proxy.
struct Instance {
    database: Database,
    approver: TestApprover,
    proxy: Proxy,
    scratch: Scratch,
    log: PathBuf,
}

/// A change that waits behind a lock.
struct Held<T> {
    blocker: Client,
    watcher: Client,
    sent: JoinHandle<T>,
}

impl Instance {
    async fn new() -> Self {
        let (database, approver, scratch) = (fresh_database().await, TestApprover::start().await, Scratch::new());
        Self {
            proxy: Proxy::start(&database).await,
            database,
            approver,
            log: scratch.0.join("operations.log"),
            scratch,
        }
    }

    fn options(&self) -> ReplicaOptions {
        ReplicaOptions::new(&self.proxy.url, &self.approver.url())
            .set("INSTANCE", "instance-1")
            .set("OPERATION_TIMEOUT_MS", "20000")
            .set("COMMIT_BATCH_USERS", "256")
            .log(&self.log)
    }

    async fn start(&self) -> (Replica, ServiceClient) {
        let replica = self.options().start().await;
        let client = ServiceClient::new(&replica.url);
        (replica, client)
    }

    /// Sends a change that is committed, and kills the replica before it learns of it.
    async fn die_between(&self, replica: Replica, client: &ServiceClient, body: Value) {
        let sent = self.commit_and_lose_the_answer(client, body).await;
        self.kill(replica).await;
        assert!(sent.await.unwrap().is_err(), "the change was answered");
    }

    /// Sends a change that is committed, and swallows what PostgreSQL says of it.
    async fn commit_and_lose_the_answer(&self, client: &ServiceClient, body: Value) -> Sent {
        let client = client.clone();
        let change = async move { client.post_body(body.to_string()).send().await };
        let Held { blocker, watcher, sent } = self.hold(change).await;
        let stored: i64 = watcher.query_one(STORED, &[]).await.unwrap().get(0);
        self.proxy.lose(Lost::Answers);
        blocker.batch_execute("ROLLBACK").await.unwrap();
        until(&watcher, STORED, stored + 1).await;
        sent
    }

    /// Locks the row of alice, and waits until her change, which this sends, has come to that in PostgreSQL.
    async fn hold<T: Send + 'static>(&self, change: impl Future<Output = T> + Send + 'static) -> Held<T> {
        let (blocker, watcher) = (self.database.client().await, self.database.client().await);
        // Whether or not there is a row yet.
        let lock = "INSERT INTO balance VALUES ('alice', 0, 1, now(), 0)
             ON CONFLICT (user_id) DO UPDATE SET version = balance.version";
        blocker.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
        let sent = tokio::spawn(change);
        until(&watcher, WAITING, 1).await;
        Held { blocker, watcher, sent }
    }

    async fn kill(&self, mut replica: Replica) {
        replica.signal(Signal::SIGKILL);
        replica.ended().await;
        self.proxy.break_connections();
        self.proxy.mend();
    }

    /// The log with its rotated files, every line that parses.
    fn lines(&self) -> Vec<Value> {
        let name = self.log.file_name().unwrap().to_str().unwrap();
        let files = fs::read_dir(self.log.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| {
            let other = path.file_name().unwrap().to_str().unwrap();
            other.starts_with(name) && !other.contains("recovering")
        });
        let texts: Vec<String> = logs.map(|path| fs::read_to_string(path).unwrap()).collect();
        let lines = texts.iter().flat_map(|text| text.lines());
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn recovered(&self) -> Vec<Value> {
        let lines = self.lines().into_iter();
        lines.filter(|line| line["recovered"] == true).collect()
    }

    /// Every stored change of the instance has one line of its own; so many of them are recovered.
    async fn expect_complete(&self, recovered: usize) {
        let rows = "SELECT operation_id::text FROM changes_history WHERE instance = 'instance-1' ORDER BY 1";
        let rows = self.database.client().await.query(rows, &[]).await.unwrap();
        let stored: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let is_own = |line: &Value| matches!(line["outcome"].as_str().unwrap(), "accepted" | "outcome_unknown");
        let lines = self.lines().into_iter();
        let own = lines.filter(|line| line["operation"] == "changeBalance" && is_own(line));
        let mut own: Vec<String> = own
            .map(|line| line["operationId"].as_str().unwrap().to_owned())
            .collect();
        own.sort_unstable();
        assert_eq!(own, stored);
        assert_eq!(self.recovered().len(), recovered, "{:#?}", self.recovered());
    }
}

#[tokio::test]
async fn a_change_that_was_committed_by_a_replica_that_died_before_its_line_was_written_gets_it_marked_recovered() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    client.change(&change("alice", 100, NOON)).await.expect(200);
    let mut body = change("alice", -30, "2026-01-31T12:00:01.5Z");
    body["context"] = "\"rent\"\n\u{2028}".into();
    instance.die_between(replica, &client, body.clone()).await;
    assert_eq!(instance.lines().len(), 1);

    let (replica, client) = instance.start().await;
    instance.expect_complete(1).await;
    let query = "SELECT operation_id::text FROM changes_history WHERE seq = 2";
    let id: String = instance
        .database
        .client()
        .await
        .query_one(query, &[])
        .await
        .unwrap()
        .get(0);
    let mut line = instance.recovered().pop().unwrap();
    assert!(line.as_object_mut().unwrap().remove("at").is_some());
    let expected = json!({
        "instance": "instance-1", "operation": "changeBalance", "outcome": "accepted", "userId": "alice",
        "timestamp": "2026-01-31T12:00:01.5Z", "operationId": id, "balanceChange": -30, "context": body["context"],
        "balance": 70, "recovered": true,
    });
    assert_eq!(line, expected);
    assert_eq!(client.metric("balance_operations_log_recovered_lines_total").await, 1);
    assert_eq!(client.metric("balance_recovery_pending").await, 1);
    replica.stop().await;

    // A recovered line is a line: the next start writes nothing more.
    let (mut replica, client) = instance.start().await;
    replica.said(COMPLETE).await;
    assert_eq!(client.metric("balance_operations_log_recovered_lines_total").await, 0);
    replica.stop().await;
    instance.expect_complete(1).await;
}

#[tokio::test]
async fn a_recovered_line_names_the_caller_whose_token_the_change_came_with() {
    let instance = Instance::new().await;
    let list = instance.scratch.0.join("tokens");
    fs::write(&list, tokens::line("payroll", "secret", "read,write")).unwrap();
    let start = || {
        instance
            .options()
            .set("API_TOKENS_FILE", list.to_str().unwrap())
            .start()
    };
    let replica = start().await;
    let client = ServiceClient::with_token(&replica.url, "secret");
    instance.die_between(replica, &client, change("alice", 1, NOON)).await;
    // Whoever has the token by then has not asked for it.
    fs::write(&list, tokens::line("somebody-else", "secret", "read,write")).unwrap();
    let replica = start().await;
    instance.expect_complete(1).await;
    let line = instance.recovered().pop().unwrap();
    assert_eq!(line["caller"], "payroll", "{line}");
    replica.stop().await;
}

#[tokio::test]
async fn the_very_first_change_of_an_empty_log_is_recovered() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    instance.die_between(replica, &client, change("alice", 1, NOON)).await;
    assert_eq!(fs::metadata(&instance.log).unwrap().len(), 0);
    let (replica, _) = instance.start().await;
    instance.expect_complete(1).await;
    replica.stop().await;
}

#[tokio::test]
async fn several_hundred_changes_at_once_are_recovered() {
    const CHANGES: i64 = 400;
    let instance = Instance::new().await;
    let replica = instance.options().set("DATABASE_CONNECTIONS", "2").start().await;
    let client = ServiceClient::new(&replica.url);
    let (first, second) = (instance.database.client().await, instance.database.client().await);
    let watcher = instance.database.client().await;
    let lock = "BEGIN; LOCK TABLE changes_history IN SHARE MODE";
    let send = |name: &'static str, count: i64| {
        let mut sent = JoinSet::new();
        for number in 0..count {
            let client = client.clone();
            let body = change(&format!("{name}-{number}"), 1, NOON).to_string();
            sent.spawn(async move { client.post_body(body).send().await.map(|answer| answer.status()) });
        }
        sent
    };
    // Both connections learn the statement: it is prepared before it is sent.
    first.batch_execute(lock).await.unwrap();
    let warm = send("warm", 100);
    until(&watcher, WAITING, 2).await;
    first.batch_execute("COMMIT; BEGIN").await.unwrap();
    assert!(warm.join_all().await.into_iter().all(|answer| answer.unwrap() == 200));

    // They wait at the proxy until all are there: PostgreSQL lets nobody wait for a lock for long.
    instance.proxy.hold();
    let sent = send("user", CHANGES);
    client.until_under_way(CHANGES).await;
    first
        .batch_execute("LOCK TABLE changes_history IN SHARE MODE")
        .await
        .unwrap();
    // Both lanes wait for the lock with what they took first, and all others are behind them.
    instance.proxy.mend();
    until(&watcher, WAITING, 2).await;
    let again = tokio::spawn(async move { second.batch_execute(lock).await.map(|()| second) });
    until(&watcher, WAITING, 3).await;
    first.batch_execute("COMMIT").await.unwrap();
    // Locks are given in the order in which they are asked for: now the first have committed, and the rest wait.
    let second = again.await.unwrap().unwrap();
    until(&watcher, WAITING, 2).await;
    instance.proxy.lose(Lost::Answers);
    second.batch_execute("COMMIT").await.unwrap();
    until(&watcher, STORED, 100 + CHANGES).await;
    instance.kill(replica).await;
    let answered = sent.join_all().await.into_iter().filter(Result::is_ok).count();
    let lost = usize::try_from(CHANGES).unwrap() - answered;
    assert!(lost > 100, "{lost}");
    assert_eq!(instance.lines().len(), 100 + answered);

    let (mut replica, client) = instance.start().await;
    instance.expect_complete(lost).await;
    let said = replica.said(RECOVERED).await;
    assert!(said.contains(&format!("lines={lost}")), "{said}");
    let counted = client.metric("balance_operations_log_recovered_lines_total").await;
    assert_eq!(usize::try_from(counted).unwrap(), lost);
    replica.stop().await;
}

#[tokio::test]
async fn a_commit_that_reaches_the_database_after_the_restart_is_recovered_too() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    client.change(&change("alice", 100, NOON)).await.expect(200);
    let withdrawal = async move { client.change(&change("alice", -30, NOON)).await };
    let Held { blocker, watcher, sent } = instance.hold(withdrawal).await;
    // PostgreSQL goes on with the statement of a client that has gone.
    instance.kill(replica).await;
    assert!(sent.await.is_err());

    let (mut replica, _) = instance.start().await;
    replica.said(COMPLETE).await;
    blocker.batch_execute("ROLLBACK").await.unwrap();
    until(&watcher, STORED, 2).await;
    replica.said(RECOVERED).await;
    instance.expect_complete(1).await;
    replica.stop().await;
}

#[tokio::test]
async fn what_a_predecessor_that_is_still_ending_writes_is_not_written_again() {
    let instance = Instance::new().await;
    let (first, client) = instance.start().await;
    client.change(&change("alice", 100, NOON)).await.expect(200);
    let withdrawal = async move { client.change(&change("alice", -30, NOON)).await };
    let Held { blocker, sent, .. } = instance.hold(withdrawal).await;
    first.signal(Signal::SIGTERM);
    let mut second = instance.options().spawn();
    second.said(WAITS).await;
    blocker.batch_execute("ROLLBACK").await.unwrap();
    sent.await.unwrap().expect(200);
    let mut first = first;
    assert!(first.ended().await.success());
    second.serves().await;
    second.said(COMPLETE).await;
    instance.expect_complete(0).await;
    second.stop().await;
}

#[tokio::test]
async fn while_the_database_is_away_the_replica_serves_and_recovers_when_it_is_back() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    instance.die_between(replica, &client, change("alice", 1, NOON)).await;
    let mut config = tokio_postgres::Config::from_str(&instance.database.url_as(Role::Superuser)).unwrap();
    let (admin, connection) = config.dbname("postgres").connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let name = &instance.database.name;
    let allow = async |allowed: bool| {
        let set = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}");
        admin.batch_execute(&set).await.unwrap();
    };
    allow(false).await;
    let (mut replica, client) = instance.start().await;
    replica.said("it is not known yet").await;
    client
        .balance("alice", None)
        .await
        .expect_problem(503, "database_unavailable");
    assert_eq!(instance.recovered().len(), 0);
    // It is stopped without delay meanwhile, and what is left to do is not forgotten.
    replica.stop().await;
    let mut log = fs::OpenOptions::new().append(true).open(&instance.log).unwrap();
    let later = r#"{"at":"2099-01-01T00:00:00.000000Z","instance":"instance-1","operation":"getBalance","outcome":"accepted","userId":"a"}"#;
    std::io::Write::write_all(&mut log, format!("{later}\n").as_bytes()).unwrap();

    let (mut replica, client) = instance.start().await;
    replica.said("it is not known yet").await;
    allow(true).await;
    replica.said(RECOVERED).await;
    instance.expect_complete(1).await;
    client.balance("alice", None).await.expect(200);
    replica.stop().await;
}

#[tokio::test]
async fn a_change_that_was_answered_outcome_unknown_with_its_line_gets_no_second_one() {
    let instance = Instance::new().await;
    let replica = instance.options().set("OPERATION_TIMEOUT_MS", "1000").start().await;
    let client = ServiceClient::new(&replica.url);
    let sent = instance
        .commit_and_lose_the_answer(&client, change("alice", 1, NOON))
        .await;
    assert_eq!(sent.await.unwrap().unwrap().status(), 503);
    assert_eq!(instance.lines()[0]["outcome"], "outcome_unknown");
    instance.kill(replica).await;
    let (mut replica, _) = instance.start().await;
    replica.said(COMPLETE).await;
    instance.expect_complete(0).await;
    replica.stop().await;
}

#[tokio::test]
async fn what_another_instance_has_committed_is_its_own() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    client.change(&change("alice", 1, NOON)).await.expect(200);
    let other = ReplicaOptions::new(&instance.database.url, &instance.approver.url())
        .start()
        .await;
    for number in 0..20 {
        let body = change(&format!("user-{number}"), 1, NOON);
        ServiceClient::new(&other.url).change(&body).await.expect(200);
    }
    instance.die_between(replica, &client, change("alice", 1, NOON)).await;
    let (replica, _) = instance.start().await;
    instance.expect_complete(1).await;
    assert_eq!(other.log_lines().len(), 20);
    replica.stop().await;
}

#[tokio::test]
async fn a_log_that_keeps_nothing_is_not_recovered_and_the_replica_says_so() {
    let instance = Instance::new().await;
    let mut replica = instance.options().log("/dev/null").start().await;
    replica.said("is no regular file").await;
    replica.stop().await;
}
