//! The rule of the ledger: the rows of the contract's table.

use serde_json::json;

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, change};
use crate::support::postgres::fresh_database;
use crate::support::replica::Replica;

/// A change as balanceChange and second of the minute, and its answer: `Ok(balance)`, or the moment, the shortfall and
/// what is available of a refusal.
type Step = (i64, u32, Result<i64, (u32, u64, i64)>);

/// Makes the changes of one user in turn and expects these answers.
async fn expect(client: &ServiceClient, user_id: &str, steps: &[Step]) {
    for (balance_change, second, expected) in steps {
        let moment = |second: u32| format!("2026-01-31T12:00:{second:02}Z");
        let answer = client.change(&change(user_id, *balance_change, &moment(*second))).await;
        match expected {
            Ok(balance) => assert_eq!(answer.expect(200).body["balance"], *balance),
            Err((at, shortfall, available)) => {
                let answer = answer.expect_problem(403, "insufficient_funds");
                assert_eq!(answer.body["at"], moment(*at));
                assert_eq!(answer.body["shortfall"], json!(shortfall));
                assert_eq!(answer.body["available"], json!(available));
            }
        }
    }
}

#[tokio::test]
async fn the_five_examples_of_the_rule_are_answered_as_the_contract_says() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let replica = Replica::start(&database, &approver).await;
    let client = ServiceClient::new(&replica.url);
    expect(
        &client,
        "one",
        &[(100, 10, Ok(100)), (-100, 20, Ok(0)), (-50, 15, Err((20, 50, 0)))],
    )
    .await;
    expect(&client, "two", &[(100, 10, Ok(100)), (-30, 5, Err((5, 30, 0)))]).await;
    expect(
        &client,
        "three",
        &[(100, 10, Ok(100)), (100, 30, Ok(200)), (-150, 20, Err((20, 50, 100)))],
    )
    .await;
    expect(
        &client,
        "four",
        &[(100, 10, Ok(100)), (-100, 20, Ok(0)), (50, 15, Ok(150))],
    )
    .await;
    expect(
        &client,
        "five",
        &[(100, 10, Ok(100)), (-60, 10, Ok(40)), (-60, 10, Err((10, 20, 40)))],
    )
    .await;
    replica.stop().await;
}
