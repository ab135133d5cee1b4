//! Clients that hang up in mid-request: whatever has begun comes to its end and gets its line, and nothing stays behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::model::Random;
use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, change};
use crate::support::postgres::{WAITING, fresh_database, until};
use crate::support::proxy::{Lost, Proxy};
use crate::support::raw;
use crate::support::replica::{Replica, ReplicaOptions};
use crate::support::world::NOON;

/// Sessions of the database, but for this one, that do or hold anything.
const NOT_IDLE: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                        AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'";
const LOCKS: &str = "SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid() \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

fn post(user: &str, balance_change: i64) -> Vec<u8> {
    let body = change(user, balance_change, NOON).to_string();
    format!(
        "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// In order, or with a reset.
fn hang_up(stream: TcpStream, with_reset: bool) {
    if with_reset {
        stream.set_zero_linger().unwrap();
    }
    drop(stream);
}

struct Left {
    replica: Replica,
    client: ServiceClient,
    sql: Client,
}

impl Left {
    /// All that was begun has ended, and what is stored is what the log has a line for.
    async fn nothing(&self, certain: &[&str]) {
        self.client.until_under_way(0).await;
        until(&self.sql, NOT_IDLE, 0).await;
        until(&self.sql, LOCKS, 0).await;
        let open = self.client.metric("balance_database_connections").await;
        assert_eq!(self.client.metric("balance_database_connections_idle").await, open);

        // What was sent last may have been read only now.
        let agreed = timeout(Duration::from_secs(60), async {
            while self.stored().await != self.logged() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        agreed.await.expect("what is stored is what has a line");
        let lines = self.replica.log_lines();
        for user in certain {
            let mut changes = lines.iter().filter(|line| line["operation"] == "changeBalance");
            assert!(changes.any(|line| line["userId"] == *user), "no line for {user}");
        }
    }

    /// The ids of the stored operations.
    async fn stored(&self) -> BTreeSet<String> {
        let rows = self
            .sql
            .query("SELECT operation_id::text FROM changes_history", &[])
            .await;
        rows.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// The ids of the operations in the log, each of which is there once.
    fn logged(&self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for line in self.replica.log_lines() {
            if let Some(id) = line["operationId"].as_str() {
                assert_eq!(line["outcome"], "accepted", "{line}");
                assert!(ids.insert(id.to_owned()), "a second line: {line}");
            }
        }
        ids
    }
}

#[tokio::test]
async fn clients_that_hang_up_leave_no_transaction_no_lock_and_no_operation_without_its_line() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let proxy = Proxy::start(&database).await;
    let options = ReplicaOptions::new(&proxy.url, &approver.url())
        .set("OPERATION_TIMEOUT_MS", "25000")
        .set("APPROVER_TIMEOUT_MS", "25000");
    let replica = options.start().await;
    let (client, sql) = (ServiceClient::new(&replica.url), database.client().await);
    let left = Left { replica, client, sql };
    let url = left.replica.url.clone();
    let mut random = Random(7);

    // Anywhere in the request, the end of it included.
    for number in 0..240 {
        let request = match number % 4 {
            0 => b"GET /reader/balance HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            1 => b"GET /reader/history HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            _ => post(&format!("any-{number}"), 1),
        };
        let whole = i64::try_from(request.len()).unwrap();
        let end = usize::try_from(random.between(1, whole + whole / 2).min(whole)).unwrap();
        let stream = raw::send(&url, &request[..end]).await;
        hang_up(stream, number % 3 == 0);
    }
    left.nothing(&[]).await;

    // While the Approver is asked.
    let gate = Arc::new(Semaphore::new(0));
    approver.hold(&gate);
    let mut waiting = Vec::new();
    for number in 0..40 {
        // Every other one is refused in the end, since the user has nothing.
        let amount = if number % 2 == 0 { 200_000 } else { -200_000 };
        waiting.push(raw::send(&url, &post(&format!("big-{number}"), amount)).await);
    }
    // Those that the first reading rules out are answered without the verdict.
    approver.until_called(20).await;
    left.client.until_under_way(20).await;
    waiting
        .into_iter()
        .enumerate()
        .for_each(|(number, stream)| hang_up(stream, number % 2 == 0));
    left.client.until_under_way(20).await;
    gate.add_permits(100);
    let big: Vec<String> = (0..40).map(|number| format!("big-{number}")).collect();
    left.nothing(&big.iter().map(String::as_str).collect::<Vec<_>>()).await;

    // While the commit waits for a lock that another holds.
    left.client.change(&change("locked", 1, NOON)).await.expect(200);
    let blocker = database.client().await;
    let lock = "BEGIN; SELECT * FROM balance WHERE user_id = 'locked' FOR UPDATE";
    blocker.batch_execute(lock).await.unwrap();
    let first = raw::send(&url, &post("locked", 1)).await;
    until(&left.sql, WAITING, 1).await;
    let mut waiting = vec![first];
    for number in 1..40 {
        let amount = if number % 4 == 0 { -1_000 } else { 1 };
        waiting.push(raw::send(&url, &post("locked", amount)).await);
    }
    left.client.until_under_way(40).await;
    waiting
        .into_iter()
        .enumerate()
        .for_each(|(number, stream)| hang_up(stream, number % 2 == 0));
    left.client.until_under_way(40).await;
    blocker.batch_execute("COMMIT").await.unwrap();
    left.client.until_under_way(0).await;
    let changes = left.replica.log_lines();
    let locked = changes.iter().filter(|line| line["userId"] == "locked");
    assert_eq!(locked.count(), 41, "each has its line, stored or refused");
    left.nothing(&["locked"]).await;

    // While the result of the commit is lost.
    blocker.batch_execute(lock).await.unwrap();
    let sent = raw::send(&url, &post("locked", 7)).await;
    until(&left.sql, WAITING, 1).await;
    proxy.lose(Lost::Answers);
    hang_up(sent, true);
    blocker.batch_execute("COMMIT").await.unwrap();
    let lost = "SELECT count(*) FROM changes_history WHERE user_id = 'locked' AND balance_change = 7";
    until(&left.sql, lost, 1).await;
    proxy.mend();
    proxy.break_connections();
    left.nothing(&["locked"]).await;
    left.replica.stop().await;
}
