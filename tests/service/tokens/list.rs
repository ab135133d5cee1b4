//! The list of tokens: what it may hold, and how it is read again.

use super::*;
use crate::support::approver::TestApprover;
use crate::support::replica::ReplicaOptions;

const READ_AGAIN: &str = "the tokens were read again";
const AS_THEY_WERE: &str = "the tokens stay as they were";

/// What a start with this list, or with whatever else is at the path, ends with.
async fn refused_start(prepare: impl FnOnce(&PathBuf)) -> String {
    let (scratch, approver) = (Scratch::new(), TestApprover::start().await);
    let list = scratch.0.join("list");
    prepare(&list);
    let options = ReplicaOptions::new("postgres://nobody@localhost:1/nowhere", &approver.url());
    let mut replica = options.set("API_TOKENS_FILE", list.to_str().unwrap()).spawn();
    let said = replica.said("balance: ").await;
    assert_eq!(replica.ended().await.code(), Some(1));
    let place = format!("balance: API_TOKENS_FILE: {list:?}: ");
    let reason = said.strip_prefix(&place).unwrap_or_else(|| panic!("{said}"));
    assert!(!said.contains(&sha256(READER)[..16]), "{said}");
    reason.to_owned()
}

#[tokio::test]
async fn a_list_that_is_wrong_stops_the_start_with_a_line_that_names_file_line_and_what_is_right() {
    let good = line("reader", READER, "read");
    let written = |text: String| move |path: &PathBuf| std::fs::write(path, text).unwrap();
    for (text, begins, says) in [
        (String::new(), "no token in it", "at least one line"),
        ("# nothing\n".to_owned(), "no token in it", "at least one line"),
        (format!("{good}\nwriter read\n"), "line 3: ", "three"),
        (
            format!("{good}{}", good.replace("reader", "again")),
            "line 2: ",
            "SHA-256 of line 1 again",
        ),
        (
            format!("{good}{}", line("reader", WRITER, "read")),
            "line 2: ",
            "name of line 1 again",
        ),
        (line("reader", READER, "reads"), "line 1: ", "read, write or read,write"),
        (
            format!("reader {} read\n", &sha256(READER)[1..]),
            "line 1: ",
            "64 hex digits",
        ),
        ("#".repeat((1 << 20) + 1), "longer than a mebibyte", "one token a line"),
    ] {
        let reason = refused_start(written(text)).await;
        assert!(reason.starts_with(begins) && reason.contains(says), "{reason}");
    }
    let reason = refused_start(|_| {}).await;
    assert!(
        reason.contains("No such file") && reason.contains("give a file"),
        "{reason}"
    );
    let reason = refused_start(|path| std::fs::create_dir(path).unwrap()).await;
    assert!(reason.contains("not a regular file"), "{reason}");
    // Nobody writes to it; a start that opened it would wait for ever.
    let pipe = |path: &PathBuf| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reason = refused_start(pipe).await;
    assert!(reason.contains("not a regular file"), "{reason}");
}

#[tokio::test]
async fn the_list_is_read_again_on_sighup_and_counts_at_once() {
    let mut guarded = Guarded::start().await;
    let next = [line("reader", READER, "read,write"), line("newcomer", UNKNOWN, "read")].concat();
    guarded.client(UNKNOWN).balance("alice", None).await.expect(401);
    guarded.reload(&next, READ_AGAIN).await;
    guarded.client(UNKNOWN).balance("alice", None).await.expect(200);
    guarded
        .client(READER)
        .change(&change("alice", 1, NOON))
        .await
        .expect(200);
    guarded.client(BOTH).balance("alice", None).await.expect(401);
    let lines = guarded.world.replica.log_lines();
    assert_eq!(lines.last().unwrap()["caller"], "reader");
    assert!(lines.iter().any(|line| line["caller"] == "newcomer"));
}

#[tokio::test]
async fn a_list_that_is_wrong_when_it_is_read_again_leaves_the_tokens_as_they_were_and_says_so() {
    let mut guarded = Guarded::start().await;
    let failed = "balance_api_tokens_reload_failed";
    assert_eq!(guarded.world.client.metric(failed).await, 0);
    guarded
        .reload(
            &format!("{}nonsense\n", line("newcomer", UNKNOWN, "read")),
            AS_THEY_WERE,
        )
        .await;
    let said = guarded.world.replica.said(AS_THEY_WERE).await;
    assert!(said.contains("ERROR") && said.contains("line 2"), "{said}");
    until_metric(&guarded.world.client, failed, 1).await;
    guarded.client(BOTH).balance("alice", None).await.expect(200);
    guarded.client(UNKNOWN).balance("alice", None).await.expect(401);
    guarded.reload(&line("newcomer", UNKNOWN, "read"), READ_AGAIN).await;
    until_metric(&guarded.world.client, failed, 0).await;
    guarded.client(UNKNOWN).balance("alice", None).await.expect(200);
    // Gone altogether.
    std::fs::remove_file(&guarded.list).unwrap();
    guarded.world.replica.signal(Signal::SIGHUP);
    guarded.world.replica.said("No such file").await;
    guarded.client(UNKNOWN).balance("alice", None).await.expect(200);
}

async fn until_metric(client: &ServiceClient, name: &str, value: i64) {
    while client.metric(name).await != value {
        yield_now().await;
    }
}

#[tokio::test]
async fn no_request_with_a_token_of_the_old_and_the_new_list_is_refused_while_lists_are_read() {
    let guarded = Guarded::start().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (client, stopped) = (
            guarded.client(if number % 2 == 0 { READER } else { BOTH }),
            stopped.clone(),
        );
        clients.spawn(async move {
            let mut answered = 0;
            while !*stopped.borrow() {
                client.balance("alice", None).await.expect(200);
                answered += 1;
            }
            answered
        });
    }
    let filler: String = (0..500)
        .map(|number| format!("filler-{number} {number:064x} read\n"))
        .collect();
    let (plain, full) = (three(), format!("{filler}{}", three()));
    for round in 0..60 {
        match round % 3 {
            0 => guarded.replace(&full),
            1 => guarded.replace(&format!("{full}wrong\n")),
            _ => guarded.replace(&plain),
        }
        guarded.world.replica.signal(Signal::SIGHUP);
        // Something is answered by this list, or by the one before it.
        guarded.client(BOTH).change(&change("alice", 1, NOON)).await.expect(200);
    }
    stop.send(true).unwrap();
    let answered: usize = clients.join_all().await.into_iter().sum();
    assert!(answered > 60, "{answered}");
    let said = guarded.world.replica.output();
    for text in [READ_AGAIN, AS_THEY_WERE] {
        assert!(said.iter().any(|line| line.contains(text)), "{said:#?}");
    }
}
