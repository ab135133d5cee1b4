//! The Approver: asked once an operation, waited for without holding anything, and never taken to have said yes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::model::StoredUser;
use crate::support::approver::{Behaviour, TestApprover};
use crate::support::client::{Answer, ServiceClient, change};
use crate::support::postgres::{Database, fresh_database};
use crate::support::replica::{Replica, ReplicaOptions};

/// More than the threshold.
const BIG: i64 = 100_001;
const MOMENT: &str = "2026-01-31T12:00:00Z";

/// How long something may take that takes milliseconds, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a change for each of these users at once.
async fn all_at_once(client: &ServiceClient, users: &[String], balance_change: i64) -> Vec<Answer> {
    let changes = users.iter().map(|user| {
        let (client, body) = (client.clone(), change(user, balance_change, MOMENT));
        tokio::spawn(async move { client.change(&body).await })
    });
    let mut answers = Vec::new();
    for change in changes.collect::<Vec<_>>() {
        answers.push(change.await.unwrap());
    }
    answers
}

/// Waits until a log has so many lines.
async fn until_logged(replica: &Replica, lines: usize) -> Vec<Value> {
    let waited = timeout(PATIENCE, async {
        // Between two writes the last line is whole: lines are written whole.
        while replica.log_lines().len() < lines {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the lines are written");
    replica.log_lines()
}

/// The service's backends that are doing something or hold a transaction open.
async fn busy_backends(sql: &Client) -> i64 {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND pid <> pg_backend_pid() AND state <> 'idle'";
    sql.query_one(query, &[]).await.unwrap().get(0)
}

async fn stored(database: &Database) -> i64 {
    let count = "SELECT (SELECT count(*) FROM changes_history) + (SELECT count(*) FROM balance)";
    database.client().await.query_one(count, &[]).await.unwrap().get(0)
}

async fn replica_with(database: &Database, approver_url: &str, settings: &[(&str, &str)]) -> Replica {
    let options = ReplicaOptions::new(&database.url, approver_url);
    options.set_all(settings).start().await
}

#[tokio::test]
async fn two_hundred_big_changes_wait_for_the_approver_side_by_side_and_each_asks_once() {
    for users in [200, 1] {
        let (database, approver) = (fresh_database().await, TestApprover::start().await);
        approver.delay(Duration::from_millis(300));
        let replica = replica_with(&database, &approver.url(), &[("OPERATION_TIMEOUT_MS", "29000")]).await;
        let client = ServiceClient::new(&replica.url);
        let users: Vec<String> = (0..200).map(|number| format!("user-{}", number % users)).collect();
        let begin = Instant::now();
        for answer in all_at_once(&client, &users, BIG).await {
            answer.expect(200);
        }
        // One after the other they would take 60 s.
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        println!("200 big changes took {:?}", begin.elapsed());
        // However many of them had to be judged again, after another had come first.
        assert_eq!(approver.calls().len(), 200);
        let sql = database.client().await;
        for user in &users[..1] {
            StoredUser::read(&sql, user).await.verify(|_, _| ());
        }
        replica.stop().await;
    }
}

#[tokio::test]
async fn no_database_connection_is_held_while_the_approver_is_awaited() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let gate = Arc::new(Semaphore::new(0));
    approver.hold(&gate);
    // With one connection, whoever held it while waiting would keep all others from asking.
    let replica = replica_with(
        &database,
        &approver.url(),
        &[("DATABASE_CONNECTIONS", "1"), ("OPERATION_TIMEOUT_MS", "29000")],
    )
    .await;
    let client = ServiceClient::new(&replica.url);
    let users: Vec<String> = (0..50).map(|number| format!("user-{number}")).collect();
    let changes = {
        let client = client.clone();
        tokio::spawn(async move { all_at_once(&client, &users, BIG).await })
    };
    approver.until_called(50).await;
    let sql = database.client().await;
    // The reads that run beside the calls end by themselves; from then on nothing is busy until the verdicts come.
    let waited = timeout(PATIENCE, async {
        while busy_backends(&sql).await > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    });
    waited
        .await
        .expect("all connections become idle while all verdicts are awaited");
    // And the one connection serves others meanwhile.
    client.change(&change("small", 1, MOMENT)).await.expect(200);
    assert_eq!(client.balance("small", None).await.expect(200).body["balance"], 1);
    assert!(!changes.is_finished());
    gate.add_permits(50);
    for answer in changes.await.unwrap() {
        answer.expect(200);
    }
    replica.stop().await;
}

#[tokio::test]
async fn a_denied_change_gets_403_and_leaves_nothing_behind() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    approver.always(Behaviour::Status(403));
    let replica = Replica::start(&database, &approver).await;
    let client = ServiceClient::new(&replica.url);
    let body = change("user", BIG, MOMENT);
    client.change(&body).await.expect_problem(403, "approver_denied");
    client
        .change_with_key(&body, "key")
        .await
        .expect_problem(403, "approver_denied");
    assert_eq!(approver.calls_for("user"), 2);
    assert_eq!(stored(&database).await, 0);
    // A refused one may be tried again with the same key.
    approver.always(Behaviour::Status(200));
    client.change_with_key(&body, "key").await.expect(200);
    let outcomes: Vec<Value> = replica.log_lines().iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["approver_denied", "approver_denied", "accepted"]);
    replica.stop().await;
}

#[tokio::test]
async fn the_threshold_is_what_may_be_changed_without_asking_either_way() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let replica = Replica::start(&database, &approver).await;
    let client = ServiceClient::new(&replica.url);
    for (balance_change, calls) in [(100_000, 0), (100_001, 1), (-100_000, 1), (-100_001, 2)] {
        client.change(&change("user", balance_change, MOMENT)).await.expect(200);
        assert_eq!(approver.calls_for("user"), calls, "{balance_change}");
    }
    let calls = approver.calls();
    assert!(
        calls[1].ends_with("/approve?userId=user&balanceChange=-100001"),
        "{calls:?}"
    );
    // Asked or not before the read ruled it out, it is refused without the verdict, even by one that never comes.
    approver.for_user("poor", &[Behaviour::Hang]);
    let broke = client.change(&change("poor", -BIG, MOMENT)).await;
    broke.expect_problem(403, "insufficient_funds");
    replica.stop().await;
}

#[tokio::test]
async fn errors_of_the_approver_are_tried_again_a_bounded_number_of_times_and_wrong_answers_not_at_all() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let replica = replica_with(&database, &approver.url(), &[("OPERATION_TIMEOUT_MS", "20000")]).await;
    let client = ServiceClient::new(&replica.url);
    for (user, behaviours, calls) in [
        ("always-500", vec![Behaviour::Status(500)], 3),
        ("always-503", vec![Behaviour::Status(503)], 3),
        ("reset", vec![Behaviour::Reset], 3),
        (
            "garbage",
            vec![Behaviour::Raw(b"\x00\xffyes, approved: 200 OK\r\n\r\n")],
            3,
        ),
        ("truncated", vec![Behaviour::Raw(b"HTTP/1.1 200 OK\r\ncontent-le")], 3),
        ("empty", vec![Behaviour::Raw(b"")], 3),
        ("not-found", vec![Behaviour::Status(404)], 1),
        ("unauthorized", vec![Behaviour::Status(401)], 1),
        (
            "redirect",
            vec![Behaviour::Raw(
                b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            )],
            1,
        ),
        ("no-content", vec![Behaviour::Status(204)], 1),
        ("created", vec![Behaviour::Status(201)], 1),
        ("partial", vec![Behaviour::Status(206)], 1),
    ] {
        approver.for_user(user, &behaviours);
        let body = change(user, BIG, MOMENT);
        client.change(&body).await.expect_problem(503, "approver_unavailable");
        assert_eq!(approver.calls_for(user), calls, "{user}");
    }
    assert_eq!(stored(&database).await, 0);
    for (user, first, calls) in [
        ("once-500", Behaviour::Status(500), 2),
        ("once-reset", Behaviour::Reset, 2),
    ] {
        approver.for_user(user, &[first, Behaviour::Status(200)]);
        client.change(&change(user, BIG, MOMENT)).await.expect(200);
        assert_eq!(approver.calls_for(user), calls, "{user}");
    }
    replica.stop().await;
}

#[tokio::test]
async fn an_approver_that_hangs_ends_the_operation_by_its_deadline_and_nothing_else() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    approver.always(Behaviour::Hang);
    let settings = [("APPROVER_TIMEOUT_MS", "100"), ("OPERATION_TIMEOUT_MS", "20000")];
    let replica = replica_with(&database, &approver.url(), &settings).await;
    let client = ServiceClient::new(&replica.url);
    let body = change("user", BIG, MOMENT);
    client.change(&body).await.expect_problem(503, "approver_unavailable");
    assert_eq!(approver.calls_for("user"), 3);
    replica.stop().await;

    // A call's own time is longer than the operation's: the latter ends it.
    let settings = [("APPROVER_TIMEOUT_MS", "60000"), ("OPERATION_TIMEOUT_MS", "300")];
    let replica = replica_with(&database, &approver.url(), &settings).await;
    let client = ServiceClient::new(&replica.url);
    let begin = Instant::now();
    client.change(&body).await.expect_problem(503, "approver_unavailable");
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(approver.calls_for("user"), 4);
    assert_eq!(stored(&database).await, 0);
    replica.stop().await;
}

#[tokio::test]
async fn small_changes_and_reads_go_on_while_the_approver_is_away() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let address = approver.url();
    // Its port is closed from here on.
    approver.stop().await;
    let replica = replica_with(&database, &address, &[]).await;
    let client = ServiceClient::new(&replica.url);
    let big = client.change(&change("user", BIG, MOMENT)).await;
    big.expect_problem(503, "approver_unavailable");
    client.change(&change("user", 100, MOMENT)).await.expect(200);
    assert_eq!(client.balance("user", None).await.expect(200).body["balance"], 100);
    let ready = crate::support::client::answer(client.get("/readyz")).await;
    assert_eq!(ready.expect(200).body["status"], "ready");
    replica.stop().await;
}

#[tokio::test]
async fn a_withdrawal_that_waited_is_checked_against_a_later_one_accepted_meanwhile() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let replica = Replica::start(&database, &approver).await;
    let client = ServiceClient::new(&replica.url);
    let at = |second: u32| format!("2026-01-31T12:00:{second:02}Z");
    for user in ["poor", "rich"] {
        client.change(&change(user, 100_000, &at(10))).await.expect(200);
        client.change(&change(user, 100_000, &at(10))).await.expect(200);
    }
    client.change(&change("rich", 50_000, &at(12))).await.expect(200);
    let gate = Arc::new(Semaphore::new(0));
    approver.hold(&gate);
    // Each fits when it is asked for, and its verdict is on its way.
    let waiting: Vec<_> = ["poor", "rich"]
        .map(|user| {
            let (client, body) = (client.clone(), change(user, -150_000, &at(15)));
            tokio::spawn(async move { client.change(&body).await })
        })
        .into();
    approver.until_called(2).await;
    for user in ["poor", "rich"] {
        client.change(&change(user, -100_000, &at(20))).await.expect(200);
    }
    gate.add_permits(2);
    let mut answers = Vec::new();
    for change in waiting {
        answers.push(change.await.unwrap());
    }
    let [poor, rich] = answers.try_into().unwrap();
    let poor: Answer = poor;
    let refused = poor.expect_problem(403, "insufficient_funds");
    assert_eq!(
        (refused.body["at"].as_str(), &refused.body["shortfall"]),
        (Some(&*at(20)), &50_000.into())
    );
    assert_eq!(rich.expect(200).body["balance"], 100_000);
    // Judged again, but not asked again.
    assert_eq!(approver.calls().len(), 2);
    let sql = database.client().await;
    StoredUser::read(&sql, "poor").await.verify(|_, _| ());
    StoredUser::read(&sql, "rich").await.verify(|_, _| ());
    replica.stop().await;
}

#[tokio::test]
async fn an_operation_whose_client_hangs_up_ends_with_its_line() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let gate = Arc::new(Semaphore::new(0));
    approver.hold(&gate);
    let replica = replica_with(&database, &approver.url(), &[("OPERATION_TIMEOUT_MS", "29000")]).await;
    let client = ServiceClient::new(&replica.url);
    let request = {
        let (client, body) = (client.clone(), change("user", BIG, MOMENT));
        tokio::spawn(async move { client.change(&body).await })
    };
    approver.until_called(1).await;
    // The task drops its connection.
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    let lines = until_logged(&replica, 1).await;
    assert_eq!(
        (&lines[0]["outcome"], &lines[0]["balance"]),
        (&"accepted".into(), &BIG.into())
    );
    let sql = database.client().await;
    let kept = StoredUser::read(&sql, "user").await;
    kept.verify(|_, _| ());
    assert_eq!(lines[0]["operationId"], *kept.history[0].operation_id);
    assert_eq!(client.balance("user", None).await.expect(200).body["balance"], BIG);
    replica.stop().await;
}
