//! Who asked stands in the operations log and in the history; tokens stand nowhere.

use serde_json::Value;

use super::*;

/// Operation, outcome and caller of each line.
fn told<'a>(lines: &'a [Value]) -> Vec<(&'a str, &'a str, Option<&'a str>)> {
    let text = |line: &'a Value, name: &str| line[name].as_str();
    let of = |line| {
        let (operation, outcome) = (text(line, "operation"), text(line, "outcome"));
        (operation.unwrap(), outcome.unwrap(), text(line, "caller"))
    };
    lines.iter().map(of).collect()
}

#[tokio::test]
async fn the_line_of_every_operation_names_its_caller_after_the_instance() {
    let guarded = Guarded::start().await;
    let (reader, writer, both) = (guarded.client(READER), guarded.client(WRITER), guarded.client(BOTH));
    let deposit = change("alice", 10, NOON);
    writer.change_with_key(&deposit, "k").await.expect(200);
    // The key is the user's: whoever repeats the operation gets the first answer again.
    both.change_with_key(&deposit, "k").await.expect(200);
    both.change(&change("alice", -11, NOON)).await.expect(403);
    writer.change(&change("alice", 200_000, NOON)).await.expect(200);
    reader.balance("alice", None).await.expect(200);
    both.balance("alice", Some(NOON)).await.expect(200);
    answer(reader.get("/alice/history")).await.expect(200);
    // Refused for want of a token: no operation, no line.
    guarded.world.client.balance("alice", None).await.expect(401);
    writer.balance("alice", None).await.expect(403);
    reader.change(&deposit).await.expect(403);

    let lines = guarded.world.replica.log_lines();
    assert_eq!(
        told(&lines),
        [
            ("changeBalance", "accepted", Some("writer")),
            ("changeBalance", "replayed", Some("both")),
            ("changeBalance", "insufficient_funds", Some("both")),
            ("changeBalance", "accepted", Some("writer")),
            ("getBalance", "accepted", Some("reader")),
            ("getBalance", "accepted", Some("both")),
            ("getHistory", "accepted", Some("reader")),
        ]
    );
    for line in &lines {
        let names: Vec<_> = line.as_object().unwrap().keys().take(4).collect();
        assert_eq!(names, ["at", "instance", "caller", "operation"], "{line}");
    }
    let rows = "SELECT caller FROM changes_history ORDER BY seq";
    let rows = guarded.world.database.client().await.query(rows, &[]).await.unwrap();
    let stored: Vec<Option<String>> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(stored, [Some("writer".to_owned()), Some("writer".to_owned())]);
    // Whoever may read a history is not told who else writes to it.
    let history = answer(reader.get("/alice/history")).await.expect(200).body;
    assert!(history["operations"][0].get("caller").is_none(), "{history}");
}

#[tokio::test]
async fn an_operation_that_is_refused_because_of_overload_or_a_database_that_is_away_names_its_caller_too() {
    let guarded = Guarded::start().await;
    let hidden = "ALTER TABLE balance RENAME TO hidden; ALTER TABLE changes_history RENAME TO hidden_too";
    guarded
        .world
        .database
        .client()
        .await
        .batch_execute(hidden)
        .await
        .unwrap();
    let both = guarded.client(BOTH);
    both.change(&change("alice", 1, NOON)).await.expect(503);
    both.balance("alice", None).await.expect(503);
    answer(both.get("/alice/history")).await.expect(503);
    let lines = guarded.world.replica.log_lines();
    let expected = ["changeBalance", "getBalance", "getHistory"];
    assert_eq!(
        told(&lines),
        expected.map(|operation| (operation, "database_unavailable", Some("both")))
    );
}

#[tokio::test]
async fn tokens_stand_in_no_output_no_answer_and_no_log() {
    let mut guarded = Guarded::start().await;
    let mut answers = Vec::new();
    for token in [READER, WRITER, BOTH, UNKNOWN] {
        for (_, request) in operations(&guarded.client(token)) {
            let answered = request.send().await.unwrap();
            answers.push(format!("{:?}", answered.headers()));
            answers.push(answered.text().await.unwrap());
        }
    }
    answers.push(
        guarded
            .world
            .client
            .get("/metrics")
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap(),
    );
    // A list in which the columns are mixed up, so that a token is where a name should be.
    guarded
        .reload(&format!("{UNKNOWN} both read\n"), "tokens stay as they were")
        .await;
    let wrong = format!("{} {UNKNOWN} read\n{0} {UNKNOWN} read\n", sha256(UNKNOWN));
    guarded.reload(&wrong, "no SHA-256").await;
    let log = std::fs::read_to_string(&guarded.world.replica.log).unwrap();
    let stored = guarded.world.stored().await.join("\n");
    let output = guarded.world.replica.output().join("\n");
    for token in [READER, WRITER, BOTH, UNKNOWN] {
        for secret in [token.to_owned(), sha256(token)] {
            for (text, place) in [(&log, "log"), (&stored, "database"), (&output, "output")] {
                assert!(!text.contains(&secret[..16]), "in the {place}: {text}");
            }
            assert!(!answers.iter().any(|text| text.contains(&secret[..16])), "{secret}");
        }
    }
}
