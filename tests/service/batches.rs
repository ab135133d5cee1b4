//! Changes that arrive together and share a statement: each is answered and stored as if it had come alone, whatever
//! happens to the others.

use std::collections::BTreeMap;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::model::{StoredUser, users_stored};
use crate::race::explain;
use crate::support::approver::TestApprover;
use crate::support::client::{Answer, ServiceClient, change};
use crate::support::postgres::{Database, STORED, WAITING, fresh_database, until};
use crate::support::proxy::{Lost, Proxy};
use crate::support::raw;
use crate::support::replica::{Replica, ReplicaOptions};
use crate::support::world::NOON;

const LATER: &str = "2026-01-31T12:00:02Z";
/// Marks what a test has stored with SQL of its own, as another replica would; there is no line of it.
const ELSEWHERE: &str = "elsewhere";
/// How many statements have stored what was stored later than noon.
const STATEMENTS: &str = "SELECT count(DISTINCT xmin::text) FROM changes_history \
    WHERE user_id LIKE 'user-%' AND \"timestamp\" > '2026-01-31T12:00:00Z'";

/// As many batches as a lane has under way at once: two that are held up, and the one that it waits for.
const GATES: [&str; 3] = ["gate 1", "gate 2", "gate 3"];

/// A request under way.
type Sent = JoinHandle<Answer>;

/// A replica with a single lane, so that what waits meanwhile goes into one batch.
struct Stage {
    database: Database,
    proxy: Proxy,
    replica: Replica,
    client: ServiceClient,
    sql: Client,
}

impl Stage {
    /// So many users, `user-0` and so on, have 100 at noon.
    async fn with_users(users: usize) -> Self {
        Self::with(users, "256").await
    }

    async fn with(users: usize, batch_users: &str) -> Self {
        let (database, approver) = (fresh_database().await, TestApprover::start().await);
        let proxy = Proxy::start(&database).await;
        let settings = [
            ("OPERATION_TIMEOUT_MS", "25000"),
            ("COMMIT_LANES", "1"),
            ("COMMIT_BATCH_USERS", batch_users),
        ];
        let options = ReplicaOptions::new(&proxy.url, &approver.url());
        let replica = options.set_all(&settings).start().await;
        let client = ServiceClient::new(&replica.url);
        for user_id in user_ids(users).iter().map(String::as_str).chain(GATES) {
            client.change(&change(user_id, 100, NOON)).await.expect(200);
        }
        Self {
            sql: database.client().await,
            database,
            proxy,
            replica,
            client,
        }
    }

    /// A connection with a transaction in which this was done; it ends with COMMIT, or with the connection.
    async fn in_transaction(&self, statements: &str) -> Client {
        let client = self.database.client().await;
        client.batch_execute(&format!("BEGIN; {statements}")).await.unwrap();
        client
    }

    async fn lock(&self, user_id: &str) -> Client {
        self.in_transaction(&format!(
            "SELECT FROM balance WHERE user_id LIKE '{user_id}%' FOR UPDATE"
        ))
        .await
    }

    fn send(&self, body: Value) -> Sent {
        let client = self.client.clone();
        tokio::spawn(async move { client.change(&body).await })
    }

    fn send_with_key(&self, body: Value, key: &'static str) -> Sent {
        let client = self.client.clone();
        tokio::spawn(async move { client.change_with_key(&body, key).await })
    }

    /// Keeps the lane busy while so many changes are sent, which then go into one batch.
    async fn together<T>(&self, changes: i64, send: impl AsyncFnOnce(&Self) -> T) -> T {
        let gate = self.lock("gate").await;
        let mut first = Vec::new();
        for gate in GATES {
            first.push(self.send(change(gate, 1, LATER)));
            until(&self.sql, WAITING, first.len() as i64).await;
        }
        let sent = send(self).await;
        self.client.until_under_way(GATES.len() as i64 + changes).await;
        commit(gate).await;
        for first in first {
            first.await.unwrap().expect(200);
        }
        sent
    }

    /// Ends well: these changes are stored of each user but the gates, and the log has a line for each.
    async fn end(self, expected: BTreeMap<String, Vec<i64>>) {
        let lines = self.replica.stop_and_read().await;
        let mut ours = Vec::new();
        let mut found = BTreeMap::new();
        for user_id in users_stored(&self.sql).await {
            let user = StoredUser::read(&self.sql, &user_id).await;
            user.verify(|_, _| ());
            let changes = user.history.iter().map(|one| one.change).collect();
            found.insert(user_id, changes);
            ours.extend(user.history.into_iter().filter(|one| one.context != ELSEWHERE));
        }
        found.retain(|user_id, _| !GATES.contains(&user_id.as_str()));
        assert_eq!(found, expected);
        explain::lines_match_history(&ours.iter().collect::<Vec<_>>(), &[lines]);
    }
}

fn user_ids(users: usize) -> Vec<String> {
    (0..users).map(|number| format!("user-{number}")).collect()
}

/// Each of the users has these changes.
fn each_has(users: usize, changes: &[i64]) -> BTreeMap<String, Vec<i64>> {
    let all = user_ids(users).into_iter();
    all.map(|user_id| (user_id, changes.to_vec())).collect()
}

async fn commit(transaction: Client) {
    transaction.batch_execute("COMMIT").await.unwrap();
}

/// Each of the users changes by this, two seconds past noon.
fn send_each(stage: &Stage, users: usize, balance_change: i64) -> Vec<Sent> {
    let bodies = user_ids(users).into_iter();
    let bodies = bodies.map(|user_id| change(&user_id, balance_change, LATER));
    bodies.map(|body| stage.send(body)).collect()
}

/// Each is answered 200 with this balance.
async fn expect_each(sent: Vec<Sent>, balance: i64) {
    for sent in sent {
        assert_eq!(sent.await.unwrap().expect(200).body["balance"], balance);
    }
}

#[tokio::test]
async fn a_row_that_somebody_else_has_locked_holds_up_no_other_users() {
    let stage = Stage::with_users(4).await;
    let lock = stage.lock("user-3").await;
    let locked = stage.send(change("user-3", 5, LATER));
    until(&stage.sql, WAITING, 1).await;
    // All users are of the one lane there is.
    let others = (0..3).map(|user| stage.send(change(&format!("user-{user}"), 5, LATER)));
    expect_each(others.collect(), 105).await;
    // What comes for the same user meanwhile waits for its turn.
    let waiting = stage.send(change("user-3", -5, LATER));
    stage.client.until_under_way(2).await;
    expect_each(vec![stage.send(change("user-0", -5, LATER))], 100).await;
    assert!(!locked.is_finished() && !waiting.is_finished());
    commit(lock).await;
    expect_each(vec![locked], 105).await;
    expect_each(vec![waiting], 100).await;
    let mut expected = each_has(4, &[100, 5]);
    expected.get_mut("user-0").unwrap().push(-5);
    expected.get_mut("user-3").unwrap().push(-5);
    stage.end(expected).await;
}

#[tokio::test]
async fn one_statement_commits_as_many_users_as_are_configured() {
    for (batch_users, statements) in [("256", 1), ("5", 3), ("1", 12)] {
        let stage = Stage::with(12, batch_users).await;
        let sent = stage.together(12, async |stage| send_each(stage, 12, -10)).await;
        expect_each(sent, 90).await;
        let counted: i64 = stage.sql.query_one(STATEMENTS, &[]).await.unwrap().get(0);
        assert_eq!(counted, statements);
        stage.end(each_has(12, &[100, -10])).await;
    }
}

/// PostgreSQL refuses what is stored with this context.
const REFUSE: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.context = 'refused' THEN RAISE 'not this one'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON changes_history FOR EACH ROW EXECUTE FUNCTION refuse()";

fn refused(user_id: &str) -> Value {
    let mut body = change(user_id, 7, LATER);
    body["context"] = json!("refused");
    body
}

#[tokio::test]
async fn a_change_that_postgresql_refuses_is_told_at_once_and_fails_none_of_the_others_of_its_statement() {
    let stage = Stage::with_users(8).await;
    stage.sql.batch_execute(REFUSE).await.unwrap();
    let (sent, poison) = stage
        .together(10, async |stage| {
            let poison = [stage.send(refused("user-3")), stage.send(refused("user-3"))];
            (send_each(stage, 8, 5), poison)
        })
        .await;
    for poison in poison {
        poison.await.unwrap().expect_problem(503, "database_unavailable");
    }
    expect_each(sent, 105).await;
    stage.end(each_has(8, &[100, 5])).await;
}

/// Of 800 operations, and a checkpoint after every eighth: more than a batch would shift.
const DEEP: &str = "
    INSERT INTO changes_history (user_id, \"timestamp\", seq, balance_change, balance_after, context, operation_id,
        approved, instance, recorded_at)
    SELECT 'deep', '2026-01-31T12:00:00Z'::timestamptz + n * interval '1 s', n, 10, 10 * n, 'elsewhere',
        gen_random_uuid(), false, 'elsewhere', now() FROM generate_series(1, 800) n;
    INSERT INTO balance_checkpoints (user_id, \"timestamp\", balance, lowest, highest)
    SELECT 'deep', '2026-01-31T12:00:00Z'::timestamptz + n * interval '1 s', 10 * n, 10 * n - 70, 10 * n
        FROM generate_series(8, 792, 8) n;
    INSERT INTO balance (user_id, balance, version, latest, since_checkpoint, recorded_at)
    VALUES ('deep', 8000, 800, '2026-01-31T12:13:20Z', 8, now())";

#[tokio::test]
async fn a_change_deep_in_the_past_holds_up_no_other_user() {
    let stage = Stage::with_users(10).await;
    stage.sql.batch_execute(DEEP).await.unwrap();
    // The change has to move these, and cannot.
    let blocker = "SELECT FROM balance_checkpoints WHERE user_id = 'deep' FOR UPDATE";
    let blocker = stage.in_transaction(blocker).await;
    let (deep, others) = stage
        .together(11, async |stage| {
            let deep = stage.send(change("deep", -5, LATER));
            (deep, send_each(stage, 10, -10))
        })
        .await;
    until(&stage.sql, WAITING, 1).await;
    expect_each(others, 90).await;
    // They have waited with it for nothing, and were not tried again.
    let counted: i64 = stage.sql.query_one(STATEMENTS, &[]).await.unwrap().get(0);
    assert_eq!(counted, 1);
    let next = stage.send(change("deep", 1, "2026-01-31T13:00:00Z"));
    expect_each(send_each(&stage, 10, -10), 80).await;
    assert!(!deep.is_finished() && !next.is_finished());
    commit(blocker).await;
    assert_eq!(deep.await.unwrap().expect(200).body["balance"], 15);
    assert_eq!(next.await.unwrap().expect(200).body["balance"], 7_996);
    let mut expected = each_has(10, &[100, -10, -10]);
    expected.insert("deep".to_owned(), [vec![10; 800], vec![-5, 1]].concat());
    stage.end(expected).await;
}

#[tokio::test]
async fn changes_that_wait_for_a_locked_user_are_all_stored_once_when_the_lock_goes_and_reads_do_not_wait() {
    let stage = Stage::with_users(10).await;
    let lock = stage.lock("user-3").await;
    let mut sent = stage.together(10, async |stage| send_each(stage, 10, -10)).await;
    until(&stage.sql, WAITING, 1).await;
    let later = send_each(&stage, 10, -10);
    let locked = sent.remove(3);
    for user_id in ["user-3", "user-4", "nobody"] {
        stage.client.balance(user_id, None).await.expect(200);
    }
    let read = stage.client.balance("user-3", None).await.expect(200);
    assert_eq!(read.body["balance"], 100);
    assert!(!locked.is_finished());
    commit(lock).await;
    expect_each(vec![locked], 90).await;
    expect_each(sent, 90).await;
    expect_each(later, 80).await;
    stage.end(each_has(10, &[100, -10, -10])).await;
}

#[tokio::test]
async fn a_user_whom_another_writer_has_moved_is_judged_again_and_the_others_are_stored_once() {
    let stage = Stage::with_users(10).await;
    // As another replica would: a withdrawal, and the first operation of a new user.
    let writer = "
        UPDATE balance SET balance = 40, version = 2, latest = '2026-01-31T12:00:01Z', since_checkpoint = 2,
            recorded_at = now() WHERE user_id = 'user-3';
        INSERT INTO balance (user_id, balance, version, latest, since_checkpoint, recorded_at)
        VALUES ('new', 10, 1, '2026-01-31T12:00:01Z', 1, now());
        INSERT INTO changes_history (user_id, \"timestamp\", seq, balance_change, balance_after, context, operation_id,
            approved, instance, recorded_at)
        VALUES ('user-3', '2026-01-31T12:00:01Z', 2, -60, 40, 'elsewhere', gen_random_uuid(), false, 'elsewhere', now()),
            ('new', '2026-01-31T12:00:01Z', 1, 10, 10, 'elsewhere', gen_random_uuid(), false, 'elsewhere', now())";
    let writer = stage.in_transaction(writer).await;
    let (mut sent, new) = stage
        .together(11, async |stage| {
            let new = stage.send(change("new", 5, LATER));
            (send_each(stage, 10, -50), new)
        })
        .await;
    until(&stage.sql, WAITING, 1).await;
    commit(writer).await;
    let moved = sent.remove(3).await.unwrap();
    let moved = moved.expect_problem(403, "insufficient_funds");
    assert_eq!(
        (&moved.body["at"], &moved.body["shortfall"]),
        (&LATER.into(), &10.into())
    );
    expect_each(sent, 50).await;
    expect_each(vec![new], 15).await;
    assert!(stage.client.metric("balance_commit_conflicts_total").await >= 2);
    let mut expected = each_has(10, &[100, -50]);
    expected.insert("user-3".to_owned(), vec![100, -60]);
    expected.insert("new".to_owned(), vec![10, 5]);
    stage.end(expected).await;
}

#[tokio::test]
async fn a_user_whose_change_the_database_refuses_is_told_so_and_the_others_are_stored_once() {
    let stage = Stage::with_users(10).await;
    let refuse = "ALTER TABLE changes_history ADD CONSTRAINT refused CHECK (user_id <> 'user-3') NOT VALID";
    stage.sql.batch_execute(refuse).await.unwrap();
    let mut sent = stage.together(10, async |stage| send_each(stage, 10, -10)).await;
    let refused = sent.remove(3).await.unwrap();
    refused.expect_problem(503, "database_unavailable");
    expect_each(sent, 90).await;
    let mut expected = each_has(10, &[100, -10]);
    expected.insert("user-3".to_owned(), vec![100]);
    stage.end(expected).await;
}

#[tokio::test]
async fn changes_whose_clients_hang_up_are_stored_once_and_have_one_line_each() {
    let stage = Stage::with_users(10).await;
    let request = |user_id: &str| {
        let body = change(user_id, -10, LATER).to_string();
        format!(
            "POST /changeBalance HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let others = stage
        .together(10, async |stage| {
            let mut hanging_up = Vec::new();
            for user_id in user_ids(5) {
                hanging_up.push(raw::send(&stage.replica.url, request(&user_id).as_bytes()).await);
            }
            stage.client.until_under_way(GATES.len() as i64 + 5).await;
            drop(hanging_up);
            // What breaks off before its end was never asked for.
            let whole = request("user-0");
            drop(raw::send(&stage.replica.url, &whole.as_bytes()[..whole.len() - 20]).await);
            let others = user_ids(10).split_off(5).into_iter();
            let bodies = others.map(|user_id| change(&user_id, -10, LATER));
            bodies.map(|body| stage.send(body)).collect()
        })
        .await;
    expect_each(others, 90).await;
    until(&stage.sql, STORED, 10 + 2 * GATES.len() as i64 + 10).await;
    stage.end(each_has(10, &[100, -10])).await;
}

#[tokio::test]
async fn changes_of_many_users_that_share_a_lost_commit_are_each_answered_as_the_history_has_them() {
    let stage = Stage::with_users(10).await;
    let lock = stage.lock("user-3").await;
    let (sent, too_much, first, [twin, rival]) = stage
        .together(14, async |stage| {
            let first = stage.send_with_key(change("new", 7, LATER), "key");
            stage.client.until_under_way(GATES.len() as i64 + 1).await;
            let others = [7, 8].map(|amount| stage.send_with_key(change("new", amount, LATER), "key"));
            let too_much = stage.send(change("user-6", -1_000, LATER));
            (send_each(stage, 10, -10), too_much, first, others)
        })
        .await;
    until(&stage.sql, WAITING, 1).await;
    stage.proxy.lose(Lost::Answers);
    commit(lock).await;
    until(&stage.sql, STORED, 10 + 2 * GATES.len() as i64 + 11).await;
    stage.proxy.mend();
    stage.proxy.break_connections();
    expect_each(sent, 90).await;
    too_much.await.unwrap().expect_problem(403, "insufficient_funds");
    let [first, twin] = [first.await.unwrap().expect(200), twin.await.unwrap().expect(200)];
    assert!(!first.headers.contains_key("idempotency-replayed"));
    assert_eq!(twin.headers["idempotency-replayed"], "true");
    assert_eq!(twin.body, first.body);
    rival.await.unwrap().expect_problem(422, "idempotency_key_reused");
    let mut expected = each_has(10, &[100, -10]);
    expected.insert("new".to_owned(), vec![7]);
    stage.end(expected).await;
}

#[tokio::test]
async fn balances_that_are_read_together_are_each_the_one_that_was_asked_for() {
    let stage = Stage::with_users(0).await;
    let ids: Vec<String> = (1..=9_u8)
        .flat_map(|number| {
            [
                "{n}",
                "\"n\"",
                "{\"n\",NULL}",
                "a,n",
                "\\n",
                "'n'; --",
                "n 🙂",
                "%n",
                "n/..",
                " n",
            ]
            .map(|pattern| pattern.replace('n', &number.to_string()))
        })
        .collect();
    let moments = [
        "0001-01-01T00:00:00Z",
        "2026-01-31T11:59:59.999999Z",
        NOON,
        "2026-01-31T12:00:01.999999Z",
        LATER,
        "9999-12-31T23:59:59.999999Z",
    ];
    let mut loading = Vec::new();
    for (number, user_id) in (1..).zip(&ids) {
        loading.push(stage.send(change(user_id, 1_000 * number, NOON)));
        loading.push(stage.send(change(user_id, number, LATER)));
    }
    for loaded in loading {
        loaded.await.unwrap().expect(200);
    }
    // As long as the table is locked, a reading waits, and what is asked meanwhile goes into the next one.
    let lock = stage
        .in_transaction("LOCK TABLE balance IN ACCESS EXCLUSIVE MODE")
        .await;
    let read = |user_id: &str, moment: &'static str| {
        let client = stage.client.clone();
        let user_id = utf8_percent_encode(user_id, NON_ALPHANUMERIC).to_string();
        tokio::spawn(async move { client.balance(&user_id, Some(moment)).await })
    };
    let first = read(&ids[0], NOON);
    until(&stage.sql, WAITING, 1).await;
    let mut asked = Vec::new();
    for (number, user_id) in (1..).zip(&ids) {
        let moment = moments[number % moments.len()];
        for (user_id, known) in [(user_id.clone(), true), (format!("{user_id} unknown"), false)] {
            asked.push((read(&user_id, moment), user_id, moment, number, known));
        }
    }
    stage.client.until_under_way(1 + 2 * 90).await;
    commit(lock).await;
    first.await.unwrap().expect(200);
    for (answer, user_id, moment, number, known) in asked {
        let parts = [moment >= NOON && known, moment >= LATER && known].map(usize::from);
        let balance = parts[0] * 1_000 * number + parts[1] * number;
        let expected = json!({ "userId": user_id, "timestamp": moment, "balance": balance });
        assert_eq!(answer.await.unwrap().expect(200).body, expected);
    }
    let lines = stage.replica.stop_and_read().await;
    let reads = lines.iter().filter(|line| line["operation"] == "getBalance");
    assert_eq!(reads.count(), 1 + 2 * 90);
}
