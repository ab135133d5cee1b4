//! What can be withdrawn: the largest withdrawal that the rule admits at a moment, which refusals tell too.

use serde_json::{Value, json};

use crate::model::{Micros, Model, Random, micros, rfc3339};
use crate::support::client::{Answer, ServiceClient, answer, change};
use crate::support::world::{NOON, World};

const SECOND: Micros = 1_000_000;

async fn available(client: &ServiceClient, user_id: &str, timestamp: Option<&str>) -> Answer {
    let query = timestamp.map(|timestamp| format!("?timestamp={timestamp}"));
    let path = format!("/{user_id}/available{}", query.unwrap_or_default());
    answer(client.get(&path)).await.expect(200)
}

/// Changes of one user, most of them within so many seconds after noon, in no order; what was accepted.
async fn fill(client: &ServiceClient, user_id: &str, changes: usize, random: &mut Random) -> Model {
    let mut model = Model::default();
    for number in 0..changes {
        let timestamp = micros(NOON) + random.between(0, 40) * SECOND;
        let amount = match (number, random.percent(50)) {
            (0, _) => i64::MAX - 1_000,
            (_, true) => random.between(1, 60),
            (_, false) => -random.between(1, 60),
        };
        let answer = client.change(&change(user_id, amount, &rfc3339(timestamp))).await;
        if answer.status == 200 {
            model.insert(timestamp, amount);
        }
    }
    model
}

#[tokio::test]
async fn it_is_the_lowest_balance_from_the_moment_on_wherever_the_moment_is() {
    let world = World::start().await;
    let mut random = Random(6);
    // Enough for several checkpoints.
    let model = fill(&world.client, "alice", 300, &mut random).await;
    let seconds = (-1..=41).map(|second| micros(NOON) + second * SECOND);
    let ends = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"].map(micros);
    for moment in seconds.chain(ends) {
        let timestamp = rfc3339(moment);
        let read = available(&world.client, "alice", Some(&timestamp)).await;
        let expected = i64::try_from(model.available_at(moment)).unwrap();
        assert_eq!(
            read.body,
            json!({ "userId": "alice", "timestamp": timestamp, "available": expected })
        );
        // One more is refused, and the refusal tells the same.
        if let Some(more) = expected.checked_add(1) {
            let refused = world.client.change(&change("alice", -more, &timestamp)).await;
            // Some are big, and approved.
            let refused = refused.expect_problem(403, "insufficient_funds");
            assert_eq!(refused.body["available"], expected, "{}", refused.body);
        }
    }
    // What it says can be withdrawn, can.
    let moment = rfc3339(micros(NOON) + 20 * SECOND);
    let read = available(&world.client, "alice", Some(&moment)).await.body["available"].clone();
    let withdrawn = world
        .client
        .change(&change("alice", -read.as_i64().unwrap(), &moment))
        .await;
    withdrawn.expect(200);
    assert_eq!(
        available(&world.client, "alice", Some(&moment)).await.body["available"],
        0
    );
}

#[tokio::test]
async fn without_a_moment_it_is_what_can_be_withdrawn_now_and_a_later_withdrawal_lowers_it() {
    let world = World::start().await;
    let read = available(&world.client, "nobody", None).await;
    assert_eq!(read.body["available"], 0);
    world.deposit("alice", 100).await;
    assert_eq!(available(&world.client, "alice", None).await.body["available"], 100);
    let later = change("alice", -70, "9999-01-01T00:00:00Z");
    world.client.change(&later).await.expect(200);
    assert_eq!(available(&world.client, "alice", None).await.body["available"], 30);
    assert_eq!(world.client.balance("alice", None).await.body["balance"], 100);
    // Users may be called as the operation is.
    world.deposit("available", 5).await;
    assert_eq!(available(&world.client, "available", None).await.body["available"], 5);
    let head = world.client.request("HEAD", "/alice/available").send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), head.headers()["etag"].to_str().unwrap()),
        (200, "\"2\"")
    );
    let posted = answer(world.client.post("/alice/available")).await;
    assert_eq!(
        posted.expect_problem(405, "method_not_allowed").headers["allow"],
        "GET, HEAD"
    );
}

#[tokio::test]
async fn each_question_has_its_line() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    available(&world.client, "alice", Some(NOON)).await;
    let lines = world.replica.log_lines();
    let mut line = lines.last().unwrap().clone();
    let fields = line.as_object_mut().unwrap();
    fields.remove("at");
    fields.remove("instance");
    let expected = json!({
        "operation": "getAvailable", "outcome": "accepted", "userId": "alice", "timestamp": NOON, "available": 100,
    });
    assert_eq!(line, expected);
    let hidden = "ALTER TABLE balance RENAME TO hidden";
    world.database.client().await.batch_execute(hidden).await.unwrap();
    answer(world.client.get("/alice/available"))
        .await
        .expect_problem(503, "database_unavailable");
    let lines = world.replica.log_lines();
    let line = lines.last().unwrap();
    assert_eq!(
        (&line["operation"], &line["outcome"], &line["available"]),
        (&json!("getAvailable"), &json!("database_unavailable"), &Value::Null)
    );
}
