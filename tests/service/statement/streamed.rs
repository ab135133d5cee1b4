//! A history of any length: in constant memory, at the client's pace, whole or seen not to be.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use super::{CSV, expected, parsed, without_recorded_at};
use crate::support::approver::TestApprover;
use crate::support::client::{ServiceClient, answer, change};
use crate::support::postgres::{Database, fresh_database, until};
use crate::support::proxy::{Lost, Proxy};
use crate::support::raw;
use crate::support::replica::ReplicaOptions;
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(60);
/// Of a kilobyte each: far more than sockets hold.
const OPERATIONS: usize = 20_000;
/// For the test of the memory; a replica may take so much more for a stream, which is a few pages in different hands.
const MANY: usize = 70_000;
const MEMORY_MIB: u64 = 40;
const STREAMS: &str = "balance_history_streams";
const CUT_OFF: &str = "balance_history_streams_cut_off_total";
/// Sessions of replicas that do or hold anything.
const AT_WORK: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'";

/// A history with checkpoints, each operation a second after the one before.
async fn fill(database: &Database, operations: usize) {
    let user_id = "long";
    let fill = format!(
        "INSERT INTO changes_history (user_id, \"timestamp\", seq, balance_change, balance_after, context, \
            operation_id, approved, instance) \
            SELECT '{user_id}', timestamptz '2020-01-01 00:00Z' + n * interval '1 second', n, 1, n, repeat('x', 1000), \
            gen_random_uuid(), false, 'elsewhere' FROM generate_series(1, {operations}) n;
        INSERT INTO balance_checkpoints \
            SELECT '{user_id}', timestamptz '2020-01-01 00:00Z' + n * interval '1 second', n, n - 63, n \
            FROM generate_series(64, {operations}, 64) n;
        INSERT INTO balance VALUES ('{user_id}', {operations}, {operations}, \
            timestamptz '2020-01-01 00:00Z' + {operations} * interval '1 second', {operations} % 64);"
    );
    database.client().await.batch_execute(&fill).await.unwrap();
}

/// A client that takes what it wants to take.
struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// How a table ended.
#[derive(Debug, PartialEq)]
enum End {
    Whole,
    CutOff,
}

impl Reader {
    /// Asks for a table with a small buffer for it, and takes the head of the answer.
    async fn ask(url: &str, path: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: {CSV}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reader = Self {
            stream,
            bytes: Vec::new(),
        };
        reader.take(1).await;
        reader
    }

    /// Takes at least so much more.
    async fn take(&mut self, bytes: usize) {
        assert!(self.can_take(bytes).await, "it ends");
    }

    /// The same, unless the connection ends before.
    async fn can_take(&mut self, bytes: usize) -> bool {
        let enough = self.bytes.len() + bytes;
        let taken = timeout(PATIENCE, async {
            while self.bytes.len() < enough {
                // A reset is an end, too.
                if self.stream.read_buf(&mut self.bytes).await.unwrap_or(0) == 0 {
                    return false;
                }
            }
            true
        });
        taken.await.expect("there is more")
    }

    /// Takes the rest: the table as far as it came.
    async fn rest(mut self) -> (Vec<u8>, End) {
        let taken = timeout(PATIENCE, async {
            // A reset is an end, too.
            while !self.bytes.ends_with(b"\r\n0\r\n\r\n") {
                match self.stream.read_buf(&mut self.bytes).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        });
        taken.await.expect("it ends");
        let head = self.bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let (head, mut body) = self.bytes.split_at(head + 4);
        let head = std::str::from_utf8(head).unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("\r\ntransfer-encoding: chunked\r\n"),
            "{head}"
        );
        let mut table = Vec::new();
        loop {
            let Some(line) = body.windows(2).position(|window| window == b"\r\n") else {
                return (table, End::CutOff);
            };
            let size = std::str::from_utf8(&body[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                return (table, End::Whole);
            }
            let Some(chunk) = body.get(line + 2..line + 2 + size) else {
                table.extend(&body[line + 2..]);
                return (table, End::CutOff);
            };
            table.extend(chunk);
            body = body.get(line + 4 + size..).unwrap_or_default();
        }
    }
}

/// How many operations a table has that must be whole; their contexts have no line breaks.
async fn count(reader: Reader) -> usize {
    let (table, end) = reader.rest().await;
    assert_eq!(end, End::Whole);
    table.split(|byte| *byte == b'\n').count() - 2
}

async fn until_metric(client: &ServiceClient, name: &str, expected: i64) {
    let reached = timeout(PATIENCE, async {
        while client.metric(name).await != expected {
            sleep(Duration::from_millis(10)).await;
        }
    });
    reached
        .await
        .unwrap_or_else(|_| panic!("{name} does not become {expected}"));
}

async fn until_streams(client: &ServiceClient, streams: i64) {
    until_metric(client, STREAMS, streams).await;
}

#[tokio::test]
async fn a_table_is_the_history_as_it_was_when_it_began_whatever_is_added_while_a_slow_client_reads() {
    let world = World::start().await;
    fill(&world.database, OPERATIONS).await;
    let sql = world.database.client().await;
    // What is known in the future is what is known when it is asked.
    for order in ["asc", "desc", "asc&knownAt=9999-01-01T00:00:00Z"] {
        let before = expected(&sql, "long").await;
        let mut reader = Reader::ask(&world.replica.url, &format!("/long/history?order={order}")).await;
        reader.take(100_000).await;
        // Before, among and after what was there.
        let moments = ["2019-01-01T00:00:00Z", "2020-01-01T02:00:00.5Z", "2020-01-01T09:00:00Z"];
        for (number, moment) in moments.into_iter().cycle().take(30).enumerate() {
            if number % 10 == 0 {
                reader.take(1_000_000).await;
            }
            world.client.change(&change("long", 1, moment)).await.expect(200);
        }
        assert_eq!(world.client.metric(STREAMS).await, 1, "it is read while they are added");
        let (table, end) = reader.rest().await;
        assert_eq!(end, End::Whole);
        let mut rows = without_recorded_at(&parsed(&table));
        if order == "desc" {
            rows.reverse();
        }
        // All of them, and the balances that they come to alone.
        assert!(rows == before, "{order}: another history");
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn a_long_history_takes_no_more_memory_than_a_page_and_a_client_that_waits_holds_nothing_else() {
    let world = World::start().await;
    fill(&world.database, MANY).await;
    let sql = world.database.client().await;
    // Whatever is allocated once is there.
    let mut first = Reader::ask(&world.replica.url, "/long/history").await;
    first.take(5_000_000).await;
    drop(first);
    until_streams(&world.client, 0).await;
    let (settled, mut most) = (world.replica.memory(), 0);
    let mut reader = Reader::ask(&world.replica.url, "/long/history").await;
    for part in 0..20 {
        reader.take(3_000_000).await;
        most = most.max(world.replica.memory());
        if part == 3 {
            // It waits for the client now, with no connection, turn or place of an operation.
            world.client.until_under_way(0).await;
            until(&sql, AT_WORK, 0).await;
            let open = world.client.metric("balance_database_connections").await;
            until_metric(&world.client, "balance_database_connections_idle", open).await;
            until_metric(&world.client, "balance_queue_operations{queue=\"history\"}", 0).await;
            assert_eq!(world.client.metric(STREAMS).await, 1);
        }
    }
    let mebibytes = reader.bytes.len() as u64 >> 20;
    assert_eq!(count(reader).await, MANY);
    println!("{settled} MiB before, {most} MiB at most, more than {mebibytes} MiB were sent");
    assert!(
        mebibytes > MEMORY_MIB + 10 && most <= settled + MEMORY_MIB,
        "{settled} MiB before, {most} MiB at most"
    );
    assert_eq!(world.client.metric(STREAMS).await, 0);
    assert_eq!(world.client.metric(CUT_OFF).await, 0);
    let lines = world.replica.stop_and_read().await;
    let tables: Vec<_> = lines.iter().filter(|line| line["operation"] == "getHistory").collect();
    assert_eq!(tables.len(), 2, "one line for each");
    assert!(tables.iter().all(|line| line["outcome"] == "accepted"));
}

#[tokio::test]
async fn a_table_whose_next_page_cannot_be_read_is_seen_to_be_cut_off() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    fill(&database, OPERATIONS).await;
    let proxy = Proxy::start(&database).await;
    let options = ReplicaOptions::new(&proxy.url, &approver.url()).set("OPERATION_TIMEOUT_MS", "1000");
    let mut replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let mut reader = Reader::ask(&replica.url, "/long/history").await;
    reader.take(1_000_000).await;
    proxy.lose(Lost::Requests);
    let (table, end) = reader.rest().await;
    assert_eq!(end, End::CutOff);
    assert!(
        table.len() > 1_000_000 && table.len() < OPERATIONS * 1_000,
        "{}",
        table.len()
    );
    replica.said("a history was cut off in the middle").await;
    proxy.mend();
    proxy.break_connections();
    client.until_under_way(0).await;
    assert_eq!(client.metric(CUT_OFF).await, 1);
    assert_eq!(client.metric(STREAMS).await, 0);
    let lines = replica.log_lines();
    assert_eq!(lines.len(), 1, "one line, of the answer that had begun");
    assert_eq!(lines[0]["outcome"], "accepted");
    // A break that is mended in time is not noticed.
    let mut reader = Reader::ask(&replica.url, "/long/history").await;
    reader.take(1_000_000).await;
    proxy.break_connections();
    assert_eq!(count(reader).await, OPERATIONS);
    replica.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_leaves_nothing_behind() {
    let world = World::start().await;
    fill(&world.database, OPERATIONS).await;
    let sql = world.database.client().await;
    let before = world.replica.descriptors();
    for with_reset in [false, true] {
        let mut readers = Vec::new();
        for number in 0..6 {
            let mut reader = Reader::ask(&world.replica.url, "/long/history").await;
            reader.take(number * 500_000).await;
            readers.push(reader);
        }
        until_streams(&world.client, 6).await;
        for reader in readers {
            if with_reset {
                reader.stream.set_zero_linger().unwrap();
            }
        }
        until_streams(&world.client, 0).await;
        world.client.until_under_way(0).await;
        until(&sql, AT_WORK, 0).await;
    }
    // Connections to PostgreSQL may have been opened meanwhile.
    world.replica.until_descriptors(before + 8).await;
    assert_eq!(world.client.metric(CUT_OFF).await, 0, "no page could not be read");
    world.replica.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_and_one_that_takes_a_little_is_not() {
    let database = fresh_database().await;
    fill(&database, OPERATIONS).await;
    for client_timeout in [500, 5_000].map(Duration::from_millis) {
        // Where the machine kept the steady client from its turn for too long, only a longer time tells.
        if silent_is_cut_off_and_steady_is_not(&database, client_timeout).await {
            return;
        }
    }
    panic!("no client had its turn in time");
}

/// False if the steady client was cut off, but after it had not taken anything for half of the time.
async fn silent_is_cut_off_and_steady_is_not(database: &Database, client_timeout: Duration) -> bool {
    let approver = TestApprover::start().await;
    let options = ReplicaOptions::new(&database.url, &approver.url())
        .set("CLIENT_TIMEOUT_MS", client_timeout.as_millis().to_string());
    let replica = options.start().await;
    let client = ServiceClient::new(&replica.url);
    let _silent = Reader::ask(&replica.url, "/long/history").await;
    let mut steady = Reader::ask(&replica.url, "/long/history").await;
    let (began, mut taken_at, mut longest_pause) = (Instant::now(), Instant::now(), Duration::ZERO);
    while began.elapsed() < client_timeout * 2 || client.metric(STREAMS).await > 1 {
        sleep(client_timeout / 8).await;
        let is_cut_off = !steady.can_take(20_000).await;
        longest_pause = longest_pause.max(taken_at.elapsed());
        if is_cut_off {
            assert!(longest_pause > client_timeout / 2, "cut off after {longest_pause:?}");
            return false;
        }
        taken_at = Instant::now();
    }
    assert_eq!(count(steady).await, OPERATIONS);
    replica.stop().await;
    true
}

#[tokio::test]
async fn a_page_that_takes_longer_than_a_connection_may_be_idle_is_waited_for() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    fill(&database, OPERATIONS).await;
    let proxy = Proxy::start(&database).await;
    let options = ReplicaOptions::new(&proxy.url, &approver.url()).set("IDLE_TIMEOUT_MS", "300");
    let replica = options.start().await;
    let mut reader = Reader::ask(&replica.url, "/long/history").await;
    reader.take(1_000_000).await;
    proxy.hold();
    let mended = async {
        sleep(Duration::from_millis(1_500)).await;
        proxy.mend();
    };
    let (count, ()) = tokio::join!(count(reader), mended);
    assert_eq!(count, OPERATIONS);
    replica.stop().await;
}

#[tokio::test]
async fn more_histories_than_may_be_streamed_are_refused_with_a_line_until_there_is_room() {
    // One for 64 of the places for operations.
    let world = World::with(|options| options.set("OPERATIONS_IN_FLIGHT", "128")).await;
    fill(&world.database, OPERATIONS).await;
    world.deposit("short", 1).await;
    let streams = [
        Reader::ask(&world.replica.url, "/long/history").await,
        Reader::ask(&world.replica.url, "/long/history").await,
    ];
    until_streams(&world.client, 2).await;
    assert_eq!(world.client.metric("balance_history_streams_limit").await, 2);
    let ask = |path: &str| answer(world.client.get(path).header("accept", CSV));
    ask("/long/history").await.expect_problem(503, "overloaded");
    world.client.balance("short", None).await.expect(200);
    let part = world.client.get("/long/history?limit=1000").header("accept", CSV);
    assert_eq!(part.send().await.unwrap().status(), 200);
    drop(streams);
    until_streams(&world.client, 0).await;
    for _ in 0..5 {
        let short = world.client.get("/short/history").header("accept", CSV);
        assert_eq!(short.send().await.unwrap().status(), 200);
    }
    let lines = world.replica.stop_and_read().await;
    let refused = lines.iter().filter(|line| line["outcome"] == "overloaded");
    assert_eq!(refused.count(), 1);
}

#[tokio::test]
async fn a_table_has_its_line_before_its_first_byte_and_none_is_sent_while_lines_cannot_be_written() {
    let world = World::start().await;
    fill(&world.database, OPERATIONS).await;
    for number in 1..=20 {
        let _reader = Reader::ask(&world.replica.url, "/long/history").await;
        let lines = world.replica.log_lines();
        assert_eq!(lines.len(), number, "the head is there");
    }
    let failing = World::with(|options| options.log("/dev/full")).await;
    let request = failing.client.get("/a/history").header("accept", CSV);
    answer(request).await.expect_problem(503, "operations_log_unavailable");
    world.replica.stop().await;
}

#[tokio::test]
async fn a_table_that_is_read_too_slowly_for_the_shutdown_is_cut_off_by_it() {
    let mut world = World::with(|options| options.set("SHUTDOWN_TIMEOUT_MS", "500")).await;
    fill(&world.database, OPERATIONS).await;
    let mut reader = Reader::ask(&world.replica.url, "/long/history").await;
    reader.take(500_000).await;
    until_streams(&world.client, 1).await;
    world.replica.signal(Signal::SIGTERM);
    let status = world.replica.ended().await;
    assert!(status.success(), "{status}");
    let (table, end) = reader.rest().await;
    assert_eq!(end, End::CutOff);
    assert!(table.len() < OPERATIONS * 1_000, "{}", table.len());
}

#[tokio::test]
async fn a_client_of_http_1_0_which_cannot_see_that_a_table_was_cut_off_gets_none_without_a_limit() {
    let world = World::start().await;
    world.deposit("a", 1).await;
    let ask = async |path: &str, accept: &str| {
        let request = format!("GET {path} HTTP/1.0\r\nhost: x\r\naccept: {accept}\r\n\r\n");
        raw::exchange(&world.replica.url, request.as_bytes())
            .await
            .expect("an answer")
    };
    let refused = ask("/a/history", CSV).await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (400, &json!("invalid_request"))
    );
    for (path, accept) in [
        ("/a/history?limit=5", CSV),
        ("/a/history", "*/*"),
        ("/a/history", "text/html"),
    ] {
        assert_eq!(ask(path, accept).await.status, 200, "{path} {accept}");
    }
    world.replica.stop().await;
}
