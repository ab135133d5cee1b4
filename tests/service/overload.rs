//! More is asked for than can be answered in time.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::support::approver::TestApprover;
use crate::support::client::ServiceClient;
use crate::support::postgres::fresh_database;
use crate::support::proxy::{Lost, Proxy};
use crate::support::replica::ReplicaOptions;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_would_wait_for_too_long_is_refused_at_once_with_its_line_and_what_waits_is_answered() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let proxy = Proxy::start(&database).await;
    let options = ReplicaOptions::new(&proxy.url, &approver.url()).set("OPERATION_TIMEOUT_MS", "20000");
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    client.balance("anyone", None).await.expect(200);

    // PostgreSQL falls silent.
    proxy.lose(Lost::Requests);
    let mut waiting = JoinSet::new();
    let ask = |user: String| {
        let client = client.clone();
        async move { client.balance(&user, None).await }
    };
    for number in 0..300 {
        waiting.spawn(ask(format!("waiting-{number}")));
    }
    // Until somebody is refused: nothing else is answered meanwhile.
    let mut late = JoinSet::new();
    let mut pace = interval(Duration::from_millis(20));
    let refused = timeout(PATIENCE, async {
        for number in 0.. {
            pace.tick().await;
            late.spawn(ask(format!("late-{number}")));
            if let Some(answered) = late.try_join_next() {
                return answered.unwrap();
            }
        }
        unreachable!("numbers do not end")
    });
    refused
        .await
        .expect("the queue fills up")
        .expect_problem(503, "overloaded");
    for number in 0..20 {
        // Whoever waits is answered only below, or in the end with another code.
        let refused = ask(format!("refused-{number}")).await;
        refused.expect_problem(503, "overloaded");
    }

    proxy.mend();
    proxy.break_connections();
    let mut answered = 0;
    for answer in waiting.join_all().await {
        match answer.status.as_u16() {
            200 => answered += 1,
            _ => drop(answer.expect_problem(503, "overloaded")),
        }
    }
    assert!(answered >= 200, "{answered}");
    for answer in late.join_all().await {
        if answer.status != 200 {
            answer.expect_problem(503, "overloaded");
        }
    }
    client.balance("anyone", None).await.expect(200);
    client.until_under_way(0).await;
    let lines = replica.log_lines();
    for number in 0..20 {
        let user = format!("refused-{number}");
        let mut theirs = lines.iter().filter(|line| line["userId"] == user.as_str());
        assert_eq!(theirs.next().expect("a line")["outcome"], "overloaded");
        assert!(theirs.next().is_none(), "one line for {user}");
    }
    replica.stop().await;
}
