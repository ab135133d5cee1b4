//! Clients that are slow, silent or many: each costs little and ends in time, and the others notice nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, answer, change};
use crate::support::postgres::{Database, fresh_database};
use crate::support::proxy::Proxy;
use crate::support::raw::{self, RawAnswer};
use crate::support::replica::ReplicaOptions;
use crate::support::world::{NOON, World};

const POST: &str =
    "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n";
const ALIVE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends one byte after the other until the service has had enough.
async fn drip(url: String, first: &'static str, bytes: Vec<u8>) -> Option<RawAnswer> {
    let (mut from, mut to) = raw::send(&url, first.as_bytes()).await.into_split();
    let dripping = tokio::spawn(async move {
        let mut pace = interval(Duration::from_millis(40));
        for byte in bytes {
            pace.tick().await;
            if to.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        // The client says nothing more, and does not hang up.
        to
    });
    let answered = raw::until_closed(&mut from).await;
    dripping.abort();
    answered
}

#[track_caller]
fn expect_timeout(case: &str, answered: Option<RawAnswer>) {
    let answered = answered.unwrap_or_else(|| panic!("{case} is closed without a word"));
    assert_eq!(answered.status, 408, "{case} {answered:?}");
    assert!(
        answered.head.contains("content-type: application/problem+json"),
        "{case}"
    );
    assert_eq!(answered.json()["code"], "request_timeout", "{case}");
}

#[tokio::test]
async fn what_does_not_arrive_in_time_ends_however_it_drips_in_and_others_are_served() {
    let world = World::with(|options| options.set("CLIENT_TIMEOUT_MS", "1000").set("IDLE_TIMEOUT_MS", "1500")).await;
    world.deposit("alice", 100).await;
    let (url, before) = (&world.replica.url, world.replica.descriptors());
    let mut slow = JoinSet::new();
    let began = Instant::now();
    let head = "GET /alice/balance HTTP/1.1\r\nx: y\r\n";
    for (case, first, bytes) in [
        ("a head in single bytes", "", head.repeat(90)),
        (
            "a head that is not finished",
            "GET /alice/balance HTTP/1.1\r\nhost:",
            String::new(),
        ),
        ("a head of half a line", "GET /ali", String::new()),
        ("a head of a blank line", "\r\n\r\n", String::new()),
        ("a head in single bytes after blank lines", "\r\n\r\n", head.repeat(90)),
        ("a body in single bytes", POST, " ".repeat(490)),
        ("a body that is never sent", POST, String::new()),
        ("half a body", POST, "{\"userId\"".to_owned()),
    ] {
        slow.spawn(drip(url.clone(), first, bytes.into_bytes()).map_case(case));
    }
    let ended = AtomicBool::new(false);
    let others = async {
        let mut served = 0;
        while !ended.load(Ordering::Relaxed) {
            world.client.balance("alice", None).await.expect(200);
            served += 1;
        }
        served
    };
    let slow_ones = async {
        while let Some(one) = slow.join_next().await {
            match one.unwrap() {
                (case, answered) if case.contains("body") => expect_timeout(case, answered),
                // There is no request that could be answered.
                (case, answered) => assert!(answered.is_none(), "{case} {answered:?}"),
            }
        }
        // Those that never spoke, and those that were served, have the idle time.
        let mut silent = raw::send(url, b"").await;
        assert!(raw::until_closed(&mut silent).await.is_none());
        let mut served = raw::send(url, ALIVE).await;
        assert_eq!(raw::until_closed(&mut served).await.unwrap().status, 200);
        ended.store(true, Ordering::Relaxed);
    };
    let (served, ()) = tokio::join!(others, slow_ones);
    println!("{served} reads beside slow clients, {:?}", began.elapsed());
    world.replica.until_descriptors(before).await;
    world.replica.stop().await;
}

/// Tells cases apart once they are mixed.
trait MapCase: Future + Sized {
    async fn map_case(self, case: &'static str) -> (&'static str, Self::Output) {
        (case, self.await)
    }
}

impl<F: Future> MapCase for F {}

/// Reads an answer whose body is less than 4 KiB, and leaves the connection open.
async fn next_answer(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 8_192];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await;
    let read = read.expect("an answer").unwrap();
    String::from_utf8(answer[..read].to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_whose_head_came_whole_is_waited_for_whatever_was_sent_before_it() {
    const CLIENT_TIMEOUT: Duration = Duration::from_millis(400);
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let proxy = Proxy::start(&database).await;
    let options = ReplicaOptions::new(&proxy.url, &approver.url()).set("CLIENT_TIMEOUT_MS", "400");
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    client.balance("alice", None).await.expect(200);

    // Two requests at once, the second but for its last line.
    proxy.hold();
    let body = change("alice", 1, NOON).to_string();
    let head = POST.replace("500", &body.len().to_string());
    let get = "GET /alice/balance HTTP/1.1\r\nhost: x\r\n";
    for (number, (first, rest)) in [(get, "\r\n"), (head.trim_end(), &format!("\r\n\r\n{body}"))]
        .into_iter()
        .enumerate()
    {
        let both = [ALIVE, first.as_bytes()].concat();
        let mut stream = raw::send(&replica.url, &both).await;
        assert!(next_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
        stream.write_all(rest.as_bytes()).await.unwrap();
        client.until_under_way(1).await;
        let too_soon = timeout(CLIENT_TIMEOUT * 2, next_answer(&mut stream)).await;
        assert!(too_soon.is_err(), "{number}: {too_soon:?}");
        proxy.mend();
        let answered = next_answer(&mut stream).await;
        assert!(answered.starts_with("HTTP/1.1 200"), "{number}: {answered}");
        proxy.hold();
    }
    proxy.mend();

    replica.stop().await;
}

const HISTORY_MIB: u64 = 15;

/// Such a history: a thousand operations with the longest contexts, of the user that is returned.
pub async fn fill_history(database: &Database) -> &'static str {
    let fill = "INSERT INTO changes_history (user_id, \"timestamp\", seq, balance_change, balance_after, context, \
                operation_id, approved, instance) \
                SELECT 'paged', now() + n * interval '1 second', n, 1, n, repeat('👍', 4096), gen_random_uuid(), false, 'x' \
                FROM generate_series(1, 1000) n";
    database.client().await.batch_execute(fill).await.unwrap();
    "paged"
}

/// Asks for all of it, with a small buffer for it.
async fn ask_for_page(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let address = world.replica.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = b"GET /paged/history HTTP/1.1\r\nhost: x\r\naccept: text/csv\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

/// Takes a little of an answer at a time, for four times as long as a client may take nothing.
pub async fn take_steadily(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut pace = interval(Duration::from_millis(50));
    let mut chunk = vec![0; 2_048];
    for number in 0..40 {
        pace.tick().await;
        let read = stream.read_exact(&mut chunk).await;
        assert!(read.is_ok(), "given up after {number} chunks: {read:?}");
    }
}

pub async fn until_given_up(taker: &TcpStream) {
    let given_up = timeout(PATIENCE, async {
        // A connection that was reset has no peer any more.
        while taker.peer_addr().is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    given_up.await.expect("the service gives it up");
}

#[tokio::test]
async fn an_answer_that_is_taken_slowly_but_steadily_is_not_given_up() {
    let world = World::with(|options| options.set("CLIENT_TIMEOUT_MS", "500")).await;
    fill_history(&world.database).await;
    let mut stream = ask_for_page(&world).await;
    stream.readable().await.unwrap();
    take_steadily(&mut stream).await;
    drop(stream);
    world.replica.stop().await;
}

#[tokio::test]
async fn an_answer_that_the_client_does_not_take_is_given_up() {
    let world = World::with(|options| options.set("CLIENT_TIMEOUT_MS", "500")).await;
    fill_history(&world.database).await;
    let mut settled = 0;
    for round in 0..4 {
        let mut takers = Vec::new();
        for _ in 0..3 {
            let stream = ask_for_page(&world).await;
            // The first of it is there, and never read.
            stream.readable().await.unwrap();
            takers.push(stream);
        }
        for taker in takers {
            until_given_up(&taker).await;
        }
        let memory = world.replica.memory();
        println!("{memory} MiB after {} pages", (round + 1) * 3);
        if round < 2 {
            settled = settled.max(memory);
        }
        // Were the pages kept, each round would add three of them.
        assert!(
            memory < settled + 3 * HISTORY_MIB * 3 / 2,
            "the memory grows: {memory} MiB"
        );
    }
    world.client.balance("alice", None).await.expect(200);
    world.replica.stop().await;
}

/// Raises this process's limit on open files, and with it those of replicas, as far as it may be. Returns it.
pub fn raise_open_files() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard
}

/// So many connections as the limits of this machine allow, at most 5,000.
fn many() -> usize {
    usize::try_from(raise_open_files() / 2).unwrap_or(usize::MAX).min(5_000)
}

#[tokio::test]
async fn five_thousand_idle_connections_cost_little_and_others_are_served() {
    let world = World::with(|options| options.set("CONNECTIONS", "10000")).await;
    world.deposit("alice", 100).await;
    let (before, memory) = (world.replica.descriptors(), world.replica.memory());
    let many = many();
    let mut idle = Vec::with_capacity(many);
    let began = Instant::now();
    while idle.len() < many {
        // Some of them ask for something before they fall silent.
        let first = |number| if number % 10 == 0 { ALIVE } else { b"".as_slice() };
        let opened = (0..100).map(|number| raw::send(&world.replica.url, first(number)));
        idle.extend(futures_util::future::join_all(opened).await);
        let accepted = timeout(PATIENCE, async {
            while world.replica.descriptors() < before + idle.len() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        accepted.await.expect("all of them are open at once");
    }
    println!("open within {:?}", began.elapsed());
    world.deposit("bob", 1).await;
    world.client.balance("alice", None).await.expect(200);
    let busyness = world.replica.busyness().await;
    let with_all = world.replica.memory();
    println!("{many} connections: {memory} MiB before, {with_all} MiB with them, {busyness:.2} of a processor");
    assert!(with_all < memory + 200, "{with_all} MiB");
    assert!(busyness < 0.5, "{busyness}");
    drop(idle);
    // Connections to PostgreSQL may have been opened meanwhile.
    world.replica.until_descriptors(before + 8).await;
    world.client.balance("alice", None).await.expect(200);
    world.replica.stop().await;
}

async fn is_served(url: &str) -> bool {
    raw::get(url, "/livez").await.status == 200
}

#[tokio::test]
async fn clients_beyond_the_limit_on_connections_are_answered_503_until_there_is_room() {
    let world = World::with(|options| options.set("CONNECTIONS", "3")).await;
    let url = &world.replica.url;
    let mut inside = Vec::new();
    for _ in 0..3 {
        let stream = raw::send(url, ALIVE).await;
        stream.readable().await.unwrap();
        inside.push(stream);
    }
    let mut outside = JoinSet::new();
    for number in 0..300 {
        let url = url.clone();
        outside.spawn(async move {
            if number % 10 > 0 {
                return raw::get(&url, "/alice/balance").await;
            }
            // Without a word, and without hanging up.
            let mut stream: TcpStream = raw::send(&url, b"").await;
            raw::until_closed(&mut stream).await.expect("an answer")
        });
    }
    while let Some(refused) = outside.join_next().await {
        let refused = refused.unwrap();
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.head.contains("retry-after: 1"), "{refused:?}");
        assert_eq!(refused.json()["code"], "overloaded");
    }
    // A client that keeps connections gets it as a problem too, and may ask again.
    answer(world.client.get("/livez"))
        .await
        .expect_problem(503, "overloaded");
    inside.pop();
    let began = Instant::now();
    while !is_served(url).await {
        assert!(began.elapsed() < PATIENCE, "no room");
    }
    println!("served {:?} after there was room", began.elapsed());
    drop(inside);
    world.replica.stop().await;
}

#[tokio::test]
async fn silent_clients_beyond_the_limit_on_connections_hold_up_nobody_who_asks() {
    // Many times those that are turned away at once; and all are queued while nobody accepts.
    const SILENT: usize = 400;
    let world = World::with(|options| options.set("CONNECTIONS", "1").open_files(64)).await;
    let url = &world.replica.url;
    let mut inside = raw::send(url, ALIVE).await;
    next_answer(&mut inside).await;
    world.replica.signal(Signal::SIGSTOP);
    let silent = futures_util::future::join_all((0..SILENT).map(|_| raw::send(url, b""))).await;
    let mut asking = raw::send(url, ALIVE).await;
    world.replica.signal(Signal::SIGCONT);
    let began = Instant::now();
    let refused = next_answer(&mut asking).await;
    let took = began.elapsed();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    println!("503 after {took:?} behind {SILENT} silent clients");
    // With half a second for each it would be many.
    assert!(took < Duration::from_secs(2), "{took:?}");
    for mut stream in silent {
        let told = raw::until_closed(&mut stream).await.expect("an answer");
        assert_eq!(told.status, 503);
    }
    drop(inside);
    world.replica.stop().await;
}
