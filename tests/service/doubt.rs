//! A commit whose result is lost on its way: it is found out, and neither guessed nor repeated.

use tokio_postgres::Client;

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, change};
use crate::support::postgres::{Database, STORED, WAITING, fresh_database, until};
use crate::support::proxy::{Lost, Proxy};
use crate::support::replica::{Replica, ReplicaOptions};

/// A replica behind a proxy, with a deposit of 100 and a lock on the user's row.
struct Doubt {
    database: Database,
    proxy: Proxy,
    replica: Replica,
    client: ServiceClient,
    blocker: Client,
}

impl Doubt {
    async fn begin() -> Self {
        let (database, approver) = (fresh_database().await, TestApprover::start().await);
        let proxy = Proxy::start(&database).await;
        let replica = ReplicaOptions::new(&proxy.url, &approver.url())
            .set("OPERATION_TIMEOUT_MS", "20000")
            .start()
            .await;
        let client = ServiceClient::new(&replica.url);
        client
            .change(&change("alice", 100, "2026-01-31T12:00:00Z"))
            .await
            .expect(200);
        let blocker = database.client().await;
        blocker
            .batch_execute("BEGIN; SELECT * FROM balance FOR UPDATE")
            .await
            .unwrap();
        Self {
            database,
            proxy,
            replica,
            client,
            blocker,
        }
    }

    /// Ends well: the history holds these changes, the log has a line for each, and the replica works on.
    async fn end(self, stored: &[i64]) {
        let watcher = self.database.client().await;
        let rows = watcher
            .query("SELECT balance_change FROM changes_history ORDER BY seq", &[])
            .await
            .unwrap();
        let changes: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(changes, stored);
        let accepted = self.replica.log_lines();
        assert_eq!(
            accepted.iter().filter(|line| line["outcome"] == "accepted").count(),
            stored.len()
        );
        let balance = self.client.balance("alice", None).await.expect(200);
        assert_eq!(balance.body["balance"], stored.iter().sum::<i64>());
        self.replica.stop().await;
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_swallowed_is_found_and_answered_as_accepted_once() {
    let doubt = Doubt::begin().await;
    let watcher = doubt.database.client().await;
    let client = doubt.client.clone();
    let sent = tokio::spawn(async move { client.change(&change("alice", -30, "2026-01-31T12:00:01Z")).await });
    until(&watcher, WAITING, 1).await;
    doubt.proxy.lose(Lost::Answers);
    doubt.blocker.batch_execute("COMMIT").await.unwrap();
    until(&watcher, STORED, 2).await;
    doubt.proxy.mend();
    doubt.proxy.break_connections();
    let answer = sent.await.unwrap().expect(200);
    assert_eq!(answer.body["balance"], 70);
    let query = "SELECT operation_id::text FROM changes_history WHERE seq = 2";
    let id: String = watcher.query_one(query, &[]).await.unwrap().get(0);
    assert_eq!(answer.body["operationId"], id);
    doubt.end(&[100, -30]).await;
}

#[tokio::test]
async fn a_commit_that_died_with_its_backend_is_tried_again_and_stored_once() {
    let doubt = Doubt::begin().await;
    let watcher = doubt.database.client().await;
    let client = doubt.client.clone();
    let sent = tokio::spawn(async move { client.change(&change("alice", -30, "2026-01-31T12:00:01Z")).await });
    until(&watcher, WAITING, 1).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
    watcher.execute(kill, &[]).await.unwrap();
    doubt.blocker.batch_execute("COMMIT").await.unwrap();
    assert_eq!(sent.await.unwrap().expect(200).body["balance"], 70);
    doubt.end(&[100, -30]).await;
}

#[tokio::test]
async fn changes_that_share_a_lost_commit_are_each_answered_as_the_history_has_them() {
    let doubt = Doubt::begin().await;
    let watcher = doubt.database.client().await;
    let send = |balance_change: i64, second: u32| {
        let client = doubt.client.clone();
        let body = change("alice", balance_change, &format!("2026-01-31T12:00:{second:02}Z"));
        tokio::spawn(async move { client.change(&body).await })
    };
    // The first waits for the lock; those that come meanwhile share the next commit.
    let first = send(1, 1);
    until(&watcher, WAITING, 1).await;
    let others: Vec<_> = (2..12)
        .map(|second| send(second, 60 - u32::try_from(second).unwrap()))
        .collect();
    let too_much = send(-1_000, 30);
    doubt.proxy.lose(Lost::Answers);
    doubt.blocker.batch_execute("COMMIT").await.unwrap();
    until(&watcher, STORED, 2).await;
    doubt.proxy.mend();
    doubt.proxy.break_connections();
    first.await.unwrap().expect(200);
    for other in others {
        other.await.unwrap().expect(200);
    }
    too_much.await.unwrap().expect_problem(403, "insufficient_funds");
    let stored = watcher
        .query("SELECT balance_change FROM changes_history ORDER BY seq", &[])
        .await
        .unwrap();
    let stored: Vec<i64> = stored.iter().map(|row| row.get(0)).collect();
    let mut sorted = stored.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 100]);
    doubt.end(&stored).await;
}
