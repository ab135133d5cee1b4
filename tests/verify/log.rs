//! Operations logs against the ledger: good ones, at rest and while they are written, and what is done to their lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use balance::verify::{CHANGE_OUTCOMES, COMMON_OUTCOMES};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Child;
use tokio::task::JoinSet;

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, answer, change};
use crate::support::postgres::Database;
use crate::support::replica::{Replica, ReplicaOptions, Scratch, log_lines};
use crate::support::tokens::line;
use crate::support::world::World;
use crate::{OPERATIONS, Verified, ended, fill, second, start, verify};

/// A ledger at rest with the log of the replica that filled it.
struct Logged {
    database: Database,
    approver: TestApprover,
    scratch: Scratch,
    log: PathBuf,
}

async fn logged() -> Logged {
    let scratch = Scratch::new();
    let log = scratch.0.join("operations.log");
    let list = scratch.0.join("tokens");
    let callers = [("payroll", "one"), ("shop", "other")].map(|(name, token)| line(name, token, "read,write"));
    fs::write(&list, callers.concat()).unwrap();
    let settings = [("INSTANCE", "one"), ("API_TOKENS_FILE", list.to_str().unwrap())];
    let mut world = World::with(|options| options.set_all(&settings).log(&log)).await;
    world.client = ServiceClient::with_token(&world.replica.url, "one");
    fill(&world.client).await;
    // Lines of all kinds.
    let misleading = change("a\u{2028}b", 1, &second(1));
    world.client.change_with_key(&misleading, "k").await.expect(200);
    let another = ServiceClient::with_token(&world.replica.url, "other");
    another.change_with_key(&misleading, "k").await.expect(200);
    let other = change("a\u{2028}b", 2, &second(1));
    world.client.change_with_key(&other, "k").await.expect(422);
    world.client.balance("alice", None).await.expect(200);
    answer(world.client.get("/alice/history")).await.expect(200);
    let World {
        database,
        approver,
        replica,
        ..
    } = world;
    replica.stop().await;
    // Lines of an hour ago are not waited for.
    let make_old = "UPDATE changes_history SET recorded_at = recorded_at - interval '1 hour'; \
         UPDATE balance SET recorded_at = recorded_at - interval '1 hour'; \
         UPDATE balance_checkpoints SET recorded_from = recorded_from - interval '1 hour'";
    database.client().await.batch_execute(make_old).await.unwrap();
    Logged {
        database,
        approver,
        scratch,
        log,
    }
}

impl Logged {
    async fn verify(&self, logs: &[&Path]) -> Verified {
        let logs = logs.iter().map(|log| log.to_str().unwrap());
        let arguments: Vec<_> = std::iter::once("--operations-log").chain(logs).collect();
        verify(&self.database, &arguments).await
    }

    /// The log with its lines changed.
    fn edited(&self, edit: impl FnOnce(&mut Vec<String>)) -> PathBuf {
        let text = fs::read_to_string(&self.log).unwrap();
        let mut lines = text.lines().map(str::to_owned).collect();
        edit(&mut lines);
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.scratch.0.join(format!("edited-{number}.log"));
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        path
    }

    /// Another replica on the same database.
    async fn another(&self, log: &Path) -> Replica {
        let options = ReplicaOptions::new(&self.database.url, &self.approver.url());
        options.set("INSTANCE", "two").log(log).start().await
    }
}

/// The line of alice's deposit at second 50.
fn line_of_50(lines: &[String]) -> usize {
    let is_it = |line: &&String| line.contains("\"userId\":\"alice\"") && line.contains("12:00:50Z");
    let found = lines.iter().position(|line| is_it(&line));
    found.unwrap()
}

#[tokio::test]
async fn a_good_log_is_right_in_one_file_or_in_many_and_counted_once() {
    let logged = logged().await;
    let text = fs::read_to_string(&logged.log).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let verified = logged.verify(&[&logged.log, &logged.log]).await.expect_right();
    let counts = format!(", {} operations, ", 2 * OPERATIONS + 61);
    assert!(verified.lines[0].contains(&counts), "{verified:?}");
    assert!(
        verified.lines[0].contains(&format!(", {} lines, ", lines.len())),
        "{verified:?}"
    );
    let parts: Vec<_> = (0..3)
        .map(|number| logged.scratch.0.join(format!("{number}.log")))
        .collect();
    for (part, lines) in parts.iter().zip(lines.chunks(lines.len() / 3 + 1)) {
        fs::write(part, lines.join("\n") + "\n").unwrap();
    }
    logged.verify(&[&parts[2], &parts[0], &parts[1]]).await.expect_right();
    let verified = logged.verify(&[&parts[2], &parts[1]]).await;
    verified.expect_finding(
        "user \"alice\" at 2026-01-31T12:0",
        "expected one in the logs of its instance, found none",
    );
}

#[tokio::test]
async fn a_line_that_is_lost_or_doubled_or_forged_is_found_with_user_and_moment() {
    let logged = logged().await;
    let about = "user \"alice\" at 2026-01-31T12:00:50Z: ";
    let lost = logged.edited(|lines| {
        lines.remove(line_of_50(lines));
    });
    let verified = logged.verify(&[&lost]).await;
    verified.expect_finding(about, "the line of seq 50, operation ");
    assert_eq!(verified.lines.len(), 2, "{verified:#?}");

    let doubled = logged.edited(|lines| lines.push(lines[line_of_50(lines)].clone()));
    let count = fs::read_to_string(&doubled).unwrap().lines().count();
    let verified = logged.verify(&[&doubled]).await;
    verified.expect_finding(
        &format!("{}:{count} {about}", doubled.display()),
        "expected once, found again",
    );
    assert_eq!(verified.lines.len(), 2, "{verified:#?}");

    let forged_id = "00000000-0000-7000-8000-000000000000";
    for outcome in ["accepted", "replayed"] {
        let mut number = 0;
        let forged = logged.edited(|lines| {
            let mut line: Value = serde_json::from_str(&lines[line_of_50(lines)]).unwrap();
            line["operationId"] = forged_id.into();
            line["outcome"] = outcome.into();
            number = lines.len() / 2;
            lines.insert(number, line.to_string());
        });
        let verified = logged.verify(&[&forged]).await;
        let about = format!("{}:{} {about}", forged.display(), number + 1);
        verified.expect_finding(&about, &format!("operation {forged_id}: expected in the history"));
        assert_eq!(verified.lines.len(), 2, "{verified:#?}");
    }
    // Whose outcome was unknown need not have happened.
    let unknown = logged.edited(|lines| {
        let mut line: Value = serde_json::from_str(&lines[line_of_50(lines)]).unwrap();
        line["operationId"] = forged_id.into();
        line["outcome"] = "outcome_unknown".into();
        line.as_object_mut().unwrap().remove("balance");
        lines.push(line.to_string());
    });
    logged.verify(&[&unknown]).await.expect_right();
}

#[tokio::test]
async fn every_operation_that_was_answered_and_is_not_stored_is_named_however_many_there_are() {
    let logged = logged().await;
    // As after the promotion of a standby that had not heard of them.
    let lose = "DELETE FROM changes_history WHERE user_id = 'alice'; DELETE FROM balance WHERE user_id = 'alice'; \
         DELETE FROM balance_checkpoints WHERE user_id = 'alice'";
    logged.database.client().await.batch_execute(lose).await.unwrap();
    let verified = logged.verify(&[&logged.log]).await;
    assert_eq!(verified.code, Some(1), "{verified:#?}");
    assert_eq!(verified.lines.len(), OPERATIONS + 1, "{verified:#?}");
    assert!(verified.lines[OPERATIONS].starts_with(&format!("{OPERATIONS} findings: ")));
    for line in log_lines(&logged.log) {
        if line["userId"] == "alice" && line["operation"] == "changeBalance" {
            let id = line["operationId"].as_str().unwrap();
            let names = |finding: &&String| finding.contains(&format!("operation {id}: expected in the history"));
            assert_eq!(verified.lines.iter().filter(names).count(), 1, "{id}: {verified:#?}");
        }
    }
}

#[tokio::test]
async fn an_operation_whose_outcome_was_unknown_or_that_was_recovered_has_its_line() {
    let logged = logged().await;
    let change_50 = |edit: fn(&mut Value)| {
        logged.edited(|lines| {
            let place = line_of_50(lines);
            let mut line: Value = serde_json::from_str(&lines[place]).unwrap();
            edit(&mut line);
            lines[place] = line.to_string();
        })
    };
    let recovered = change_50(|line| line["recovered"] = true.into());
    logged.verify(&[&recovered]).await.expect_right();
    fn make_unknown(line: &mut Value) {
        line["outcome"] = "outcome_unknown".into();
        line.as_object_mut().unwrap().remove("balance");
    }
    let unknown = change_50(make_unknown);
    logged.verify(&[&unknown]).await.expect_right();
    // The log failed when it was answered, and has the line since.
    let written_late = change_50(|line| {
        make_unknown(line);
        line["recovered"] = true.into();
    });
    logged.verify(&[&written_late]).await.expect_right();
}

#[tokio::test]
async fn every_field_of_a_line_is_held_against_what_is_stored() {
    let logged = logged().await;
    for (field, value, said) in [
        (
            "userId",
            Value::from("mallory"),
            "userId of the line: expected \"alice\" as it is stored, found \"mallory\"",
        ),
        (
            "timestamp",
            "2026-01-31T12:00:50.000001Z".into(),
            "timestamp of the line: expected 2026-01-31T12:00:50Z as it is stored, found 2026-01-31T12:00:50.000001Z",
        ),
        (
            "balanceChange",
            11.into(),
            "balanceChange of the line: expected 10 as it is stored, found 11",
        ),
        (
            "context",
            "bribe".into(),
            "context of the line: expected \"test\" as it is stored, found \"bribe\"",
        ),
        (
            "balance",
            501.into(),
            "balance of the line: expected 500 as it is stored, found 501",
        ),
        (
            "instance",
            "two".into(),
            "instance of the line: expected \"one\" as it is stored, found \"two\"",
        ),
        (
            "caller",
            "shop".into(),
            "caller of the line: expected \"payroll\" as it is stored, found \"shop\"",
        ),
        (
            "caller",
            Value::Null,
            "caller of the line: expected \"payroll\" as it is stored, found none",
        ),
    ] {
        let mut number = 0;
        let edited = logged.edited(|lines| {
            number = line_of_50(lines);
            let mut line: Value = serde_json::from_str(&lines[number]).unwrap();
            line[field] = value;
            lines[number] = line.to_string();
        });
        let verified = logged.verify(&[&edited]).await;
        let about = format!(
            "{}:{} user \"alice\" at 2026-01-31T12:00:50Z: ",
            edited.display(),
            number + 1
        );
        verified.expect_finding(&about, said);
        assert_eq!(verified.lines.len(), 2, "{verified:#?}");
    }
    // A repeat that was answered with something else.
    let edited = logged.edited(|lines| {
        let place = lines.iter().position(|line| line.contains("\"replayed\"")).unwrap();
        lines[place] = lines[place].replace("\"balance\":1", "\"balance\":2");
    });
    let verified = logged.verify(&[&edited]).await;
    verified.expect_finding(
        edited.to_str().unwrap(),
        "balance of the line: expected 1 as it is stored, found 2",
    );
}

#[tokio::test]
async fn only_a_change_that_was_accepted_or_may_have_been_is_recovered() {
    let logged = logged().await;
    for outcome in ["replayed", "insufficient_funds", "getBalance"] {
        let mut number = 0;
        let edited = logged.edited(|lines| {
            number = lines.iter().position(|line| line.contains(outcome)).unwrap();
            let end = lines[number].len() - 1;
            lines[number].replace_range(end.., ",\"recovered\":true}");
        });
        let about = format!("{}:{}: the line: ", edited.display(), number + 1);
        let verified = logged.verify(&[&edited]).await;
        verified.expect_finding(
            &about,
            "recovered: true, of a change that was accepted or may have been",
        );
        assert_eq!(verified.lines.len(), 2, "{verified:#?}");
    }
}

#[tokio::test]
async fn what_is_no_line_of_the_contract_is_found_with_file_and_number() {
    let logged = logged().await;
    let cases = [
        ("{", "", "a whole line of JSON"),
        ("\"balance\":500}", "\"balance\":}", "a whole line of JSON"),
        ("\"context\"", "\"colour\":1,\"context\"", "unknown field `colour`"),
        (
            "\"context\"",
            "\"userId\":\"b\",\"context\"",
            "duplicate field `userId`",
        ),
        ("\"balanceChange\":10,", "", "balanceChange: none"),
        ("changeBalance", "getBalance", "balanceChange: one"),
        (
            "changeBalance",
            "transfer",
            "operation: changeBalance, getBalance, getAvailable or getHistory, found \"transfer\"",
        ),
        (
            "\"accepted\"",
            "\"granted\"",
            "outcome: accepted, replayed or a code of the operation, found \"granted\"",
        ),
        ("\"accepted\"", "\"overloaded\"", "operationId: one"),
        (
            "\"balance\":500}",
            "\"balance\":500,\"recovered\":false}",
            "recovered: true, of a change",
        ),
        ("12:00:50Z", "12:00:60Z", "timestamp: a moment in RFC 3339"),
        ("\"instance\":\"one\"", "\"instance\":\"\"", "instance: a name"),
        ("\"userId\":\"alice\"", "\"userId\":\"\"", "userId: 1 to 256 characters"),
    ];
    let logged = &logged;
    let checks = cases.map(|(find, replace, said)| async move {
        let mut number = 0;
        let edited = logged.edited(|lines| {
            number = line_of_50(lines);
            assert!(lines[number].contains(find), "{find}: {}", lines[number]);
            lines[number] = lines[number].replacen(find, replace, 1);
        });
        let verified = logged.verify(&[&edited]).await;
        verified.expect_finding(&format!("{}:{}: the line: ", edited.display(), number + 1), said);
        // And the operation is without a line.
        verified.expect_finding("user \"alice\" at 2026-01-31T12:00:50Z: ", "found none");
        assert_eq!(verified.lines.len(), 3, "{verified:#?}");
    });
    join_all(checks).await;
}

#[tokio::test]
async fn a_last_line_that_is_being_written_is_not_read() {
    let logged = logged().await;
    let mut text = fs::read_to_string(&logged.log).unwrap();
    let torn = text[..40].to_owned();
    text += &torn;
    let growing = logged.scratch.0.join("growing.log");
    fs::write(&growing, &text).unwrap();
    logged.verify(&[&growing]).await.expect_right();
    // One that is whole but for its end is read.
    fs::write(&growing, fs::read_to_string(&logged.log).unwrap().trim_end()).unwrap();
    logged.verify(&[&growing]).await.expect_right();
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_counted_and_only_a_change_that_is_stored_is_missed() {
    let logged = logged().await;
    let line = |user_id: &'static str| {
        move |lines: &Vec<String>| {
            let is_it = |line: &String| line.contains(user_id);
            lines.iter().rposition(is_it).unwrap()
        }
    };
    // A refused change and a read, and a probe; none of them is in the ledger.
    let torn = logged.edited(|lines| {
        let refused = line("idempotency_key_reused")(lines);
        lines[refused].truncate(100);
        let read = line("getHistory")(lines);
        lines[read].truncate(1);
        lines.insert(7, " ".repeat(32 << 10));
    });
    let verified = logged.verify(&[&torn]).await.expect_right();
    let note = "; 3 torn lines, as crashes leave them";
    assert!(verified.lines[0].ends_with(note), "{verified:?}");
    // The line of a change that is stored, and the one that the next start writes.
    let mut whole = String::new();
    let torn = logged.edited(|lines| {
        let place = line_of_50(lines);
        whole = lines[place].clone();
        lines[place].truncate(150);
    });
    let verified = logged.verify(&[&torn]).await;
    verified.expect_finding("user \"alice\" at 2026-01-31T12:00:50Z: ", "found none");
    assert_eq!(verified.lines.len(), 2, "{verified:#?}");
    let recovered = whole.replacen("\"balance\":500}", "\"balance\":500,\"recovered\":true}", 1);
    fs::write(&torn, fs::read_to_string(&torn).unwrap() + &recovered + "\n").unwrap();
    let verified = logged.verify(&[&torn]).await.expect_right();
    assert!(
        verified.lines[0].ends_with("; 1 torn line, as a crash leaves it"),
        "{verified:?}"
    );
}

#[tokio::test]
async fn what_a_replica_makes_of_a_line_that_was_torn_is_right() {
    let logged = logged().await;
    // As the kernel leaves a write that kill -9 ends: a part of the last line, without its end.
    let text = fs::read_to_string(&logged.log).unwrap();
    let log = logged.scratch.0.join("two.log");
    let last = text.lines().next_back().unwrap();
    fs::write(&log, &last[..60]).unwrap();
    let replica = logged.another(&log).await;
    let client = crate::support::client::ServiceClient::new(&replica.url);
    client.change(&change("carol", 1, &second(1))).await.expect(200);
    replica.stop().await;
    let verified = logged.verify(&[&logged.log, &log]).await.expect_right();
    assert!(
        verified.lines[0].ends_with("; 1 torn line, as a crash leaves it"),
        "{verified:?}"
    );
}

#[tokio::test]
async fn operations_of_instances_whose_logs_are_not_given_are_counted_and_not_compared() {
    let logged = logged().await;
    let log = logged.scratch.0.join("two.log");
    let replica = logged.another(&log).await;
    let client = crate::support::client::ServiceClient::new(&replica.url);
    for number in 0..3 {
        client.change(&change("carol", 1, &second(number))).await.expect(200);
    }
    replica.stop().await;
    let verified = logged.verify(&[&logged.log]).await.expect_right();
    assert!(verified.lines[0].ends_with("; 3 operations of instances that no line names, not compared with lines"));
    logged.verify(&[&logged.log, &log]).await.expect_right();
    fs::write(&log, "").unwrap();
    let verified = logged.verify(&[&logged.log, &log]).await.expect_right();
    assert!(
        verified.lines[0].contains("; 3 operations of instances"),
        "{verified:?}"
    );
}

/// Waits until the process has the file open.
async fn until_open(process: &mut Child, file: &Path) {
    let directory = format!("/proc/{}/fd", process.id().unwrap());
    let is_open = || {
        let mut open = fs::read_dir(&directory).into_iter().flatten().flatten();
        open.any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file))
    };
    while !is_open() {
        assert_eq!(process.try_wait().unwrap(), None, "it ended early");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn logs_that_are_written_and_rotated_meanwhile_are_right_at_every_moment() {
    let scratch = Scratch::new();
    let log = scratch.0.join("operations.log");
    let world = World::with(|options| options.log(&log)).await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for number in 0..16_usize {
        let (client, enough) = (world.client.clone(), Arc::clone(&enough));
        load.spawn(async move {
            for round in 0.. {
                let user_id = format!("user-{}", number % 5);
                let key = format!("{number}-{}", round / 2);
                let body = change(&user_id, 10, &second((round / 2 * 31 + number * 17) % 3_000));
                client.change_with_key(&body, &key).await.expect(200);
                if enough.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
    }
    let mut files = vec![log.clone()];
    for number in 0..4 {
        let paths: Vec<_> = files.iter().map(|file| file.to_str().unwrap()).collect();
        let arguments = [&["--operations-log"], &paths[..]].concat();
        let mut checking = start(&world.database, &arguments);
        if number % 2 == 1 {
            until_open(&mut checking, &log).await;
            let rotated = scratch.0.join(format!("operations.log.{number}"));
            fs::rename(&log, &rotated).unwrap();
            world.replica.signal(Signal::SIGHUP);
            while !log.exists() {
                tokio::task::yield_now().await;
            }
            files.push(rotated);
        }
        ended(checking).await.expect_right();
    }
    enough.store(true, Ordering::Relaxed);
    load.join_all().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_no_finding() {
    let logged = logged().await;
    for path in [Path::new("/nowhere/operations.log"), &logged.scratch.0] {
        let verified = logged.verify(&[path]).await;
        assert_eq!((verified.code, verified.lines.len()), (Some(2), 0), "{verified:?}");
        let begin = format!("balance: operations log {}: ", path.display());
        assert!(
            verified.said.starts_with(&begin) && verified.said.lines().count() == 1,
            "{verified:?}"
        );
    }
}

#[test]
fn every_code_of_the_contract_is_an_outcome_or_never_logged() {
    let never_logged = [
        "invalid_request",
        "payload_too_large",
        "unsupported_media_type",
        "method_not_allowed",
        "misdirected_request",
        "not_found",
        "not_ready",
        "request_timeout",
        "unauthenticated",
        "insufficient_scope",
    ];
    let document: Value = serde_json::from_str(include_str!("../../openapi/openapi.json")).unwrap();
    let codes = document["components"]["schemas"]["ProblemCode"]["enum"]
        .as_array()
        .unwrap();
    let mut codes: Vec<_> = codes.iter().map(|code| code.as_str().unwrap()).collect();
    let mut known: Vec<_> = [&CHANGE_OUTCOMES[1..], &COMMON_OUTCOMES, &never_logged].concat();
    codes.sort_unstable();
    known.sort_unstable();
    assert_eq!(codes, known);
}
