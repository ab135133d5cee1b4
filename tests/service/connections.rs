//! Connections of clients: nothing that is sent or stored becomes anything but the body that
//! it belongs to, memory is bounded, and an answer arrives whatever else the client sends.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::client::answer;
use crate::support::postgres::Database;
use crate::support::raw::{self, RawAnswer};
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(60);
/// The most that clients may add to a replica's memory at the default settings, in MiB.
const MOST_MIB: u64 = 192;

/// Stores operations with these contexts, a thousand of each in turn.
async fn fill(database: &Database, user: &str, contexts: &[&str], operations: usize) {
    let contexts = contexts.iter().map(|context| (*context).to_owned()).collect::<Vec<_>>();
    let fill = format!(
        "INSERT INTO changes_history (user_id, \"timestamp\", seq, balance_change, balance_after, context, \
         operation_id, approved, instance) \
         SELECT '{user}', timestamptz '2020-01-01 00:00Z' + n * interval '1 second', n, 1, n, \
         ($1::text[])[1 + n % cardinality($1::text[])], gen_random_uuid(), false, 'x' \
         FROM generate_series(1, {operations}) n"
    );
    database.client().await.execute(&fill, &[&contexts]).await.unwrap();
    let balance = format!(
        "INSERT INTO balance VALUES ('{user}', {operations}, {operations}, timestamptz '2030-01-01 00:00Z', 0)"
    );
    database.client().await.batch_execute(&balance).await.unwrap();
}

/// Asks with a small buffer for the answer.
async fn ask(url: &str, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The body of a chunked answer, which must be framed to its end.
fn unchunked(answer: &[u8]) -> Vec<u8> {
    let end = |bytes: &[u8]| bytes.windows(2).position(|window| window == b"\r\n").expect("a line");
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let (mut rest, mut body) = (&answer[head + 4..], Vec::new());
    loop {
        let line = end(rest);
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).expect("a chunk's size");
        let chunk = &rest[line + 2..];
        body.extend(&chunk[..size]);
        assert_eq!(&chunk[size..size + 2], b"\r\n");
        rest = &chunk[size + 2..];
        if size == 0 {
            assert!(rest.is_empty(), "more follows than the answer");
            return body;
        }
    }
}

#[tokio::test]
async fn a_stored_text_never_becomes_anything_but_the_field_that_it_belongs_to() {
    let world = World::start().await;
    let refusal = format!("content-length: 0\r\n{}\r\n\r\n", "HTTP/1.1 4".repeat(407));
    let forged = format!(
        "0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello{}",
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".repeat(70)
    );
    let plain = "x".repeat(4_000);
    fill(&world.database, "forger", &[&refusal, &forged, &plain], 1_500).await;
    let mut readers = JoinSet::new();
    for _ in 0..12 {
        let request =
            "GET /forger/history?order=asc HTTP/1.1\r\nhost: x\r\naccept: text/csv\r\nconnection: close\r\n\r\n";
        let mut stream = ask(&world.replica.url, request).await;
        readers.spawn(async move {
            let (mut bytes, mut buffer) = (Vec::new(), vec![0; 30_000]);
            loop {
                match stream.read(&mut buffer).await.unwrap() {
                    0 => return bytes,
                    read => bytes.extend(&buffer[..read]),
                }
                // Slower than the service, so that writes are partial.
                if bytes.len() < 3_000_000 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    while let Some(read) = readers.join_next().await {
        let table = unchunked(&read.unwrap());
        let mut reader = csv::Reader::from_reader(table.as_slice());
        let mut rows = 0;
        for (index, row) in reader.records().enumerate() {
            let context = row.unwrap()[5].to_owned();
            let n = index + 1;
            let stored = [&refusal, &forged, &plain][n % 3];
            assert!(context == *stored, "row {n}");
            rows = n;
        }
        assert_eq!(rows, 1_500);
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn a_head_has_at_most_32_kib_and_the_refusal_of_a_larger_one_arrives() {
    let world = World::start().await;
    let request = |bytes: usize| {
        let begin = "GET /alice/balance HTTP/1.1\r\nhost: x\r\nx: ";
        let end = "\r\nconnection: close\r\n\r\n";
        format!("{begin}{}{end}", "y".repeat(bytes - begin.len() - end.len()))
    };
    for _ in 0..20 {
        for (bytes, status) in [(100, 200), (5_000, 200), (32_000, 200), (34_000, 431), (400_000, 431)] {
            let mut stream = raw::send(&world.replica.url, b"").await;
            // The service may close before it has all of it.
            let _ = stream.write_all(request(bytes).as_bytes()).await;
            let answered = raw::until_closed(&mut stream).await.expect("an answer");
            assert_eq!(answered.status, status, "{bytes} bytes");
            assert!(answered.head.contains("connection: close"));
        }
    }
    world.replica.stop().await;
}

/// Opens many connections that each send this, and holds them.
async fn hold_many(url: &str, many: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::with_capacity(many);
    while held.len() < many {
        let opened = (0..100).map(|_| async {
            let mut stream = raw::send(url, b"").await;
            // It may be closed meanwhile.
            let _ = timeout(Duration::from_secs(2), stream.write_all(bytes)).await;
            stream
        });
        held.extend(futures_util::future::join_all(opened).await);
    }
    held
}

#[tokio::test]
async fn unfinished_heads_and_bodies_take_bounded_memory_and_others_are_served() {
    crate::clients::raise_open_files();
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let url = &world.replica.url;
    let before = world.replica.memory();
    let head = format!("GET /alice/balance HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(400_000));
    let large_body = format!(
        "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx: {}\r\ncontent-length: 65000\r\n\r\n{}",
        "y".repeat(30_000),
        " ".repeat(60_000)
    );
    let small_head = format!("GET /alice/balance HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(31_000));
    for (case, many, bytes) in [
        ("heads of 400 KB", 1_000, head),
        ("heads of 31 KB", 1_400, small_head),
        ("bodies of 60 KB", 1_400, large_body),
    ] {
        let held = hold_many(url, many, bytes.as_bytes()).await;
        world.client.balance("alice", None).await.expect(200);
        world.deposit("bob", 1).await;
        let with_them = world.replica.memory();
        println!("{many} {case}: {before} MiB before, {with_them} MiB with them");
        assert!(with_them <= before + MOST_MIB, "{with_them} MiB with {case}");
        drop(held);
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn a_body_for_which_there_is_no_memory_is_answered_503_and_memory_is_given_back() {
    crate::clients::raise_open_files();
    let world = World::with(|options| options.set("CLIENT_TIMEOUT_MS", "30000")).await;
    let url = &world.replica.url;
    let context = "y".repeat(4_000);
    let padded = |user: &str| {
        let change =
            json!({"userId": user, "context": context, "balanceChange": 1, "timestamp": "2026-01-31T12:00:00Z"});
        format!("{}{change}", " ".repeat(59_000))
    };
    let change = || {
        world
            .client
            .post("/changeBalance")
            .header("content-type", "application/json")
    };
    answer(change().body(padded("alice"))).await.expect(200);
    let begin = format!(
        "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 65000\r\n\r\n{}",
        " ".repeat(60_000)
    );
    let mut held = Vec::new();
    let refused = loop {
        held.extend(hold_many(url, 20, begin.as_bytes()).await);
        let answered = answer(change().body(padded("alice"))).await;
        if answered.status != 200 {
            break answered;
        }
        assert!(held.len() < 1_000, "bodies of 60 KB take no memory");
    };
    refused.expect_problem(503, "overloaded");
    world.deposit("alice", 1).await;
    drop(held);
    let began = Instant::now();
    while answer(change().body(padded("alice"))).await.status != 200 {
        assert!(began.elapsed() < PATIENCE, "the memory is not given back");
        sleep(Duration::from_millis(50)).await;
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn pages_have_at_most_1_mib_and_together_with_their_cursors_all_operations() {
    let world = World::start().await;
    let controls = "\u{1}".repeat(4_096);
    fill(
        &world.database,
        "paged",
        &[&controls, "short", &"👍".repeat(4_096)],
        1_000,
    )
    .await;
    for order in ["asc", "desc"] {
        let (mut path, mut read, mut pages) = (format!("/paged/history?limit=1000&order={order}"), Vec::new(), 0);
        loop {
            let page = raw::get(&world.replica.url, &path).await;
            assert!(page.body.len() <= 1 << 20, "{} bytes", page.body.len());
            let page = page.json();
            let operations = page["operations"].as_array().unwrap();
            assert!(!operations.is_empty());
            read.extend(operations.iter().map(|operation| operation["seq"].as_u64().unwrap()));
            pages += 1;
            match page["nextCursor"].as_str() {
                Some(cursor) => path = format!("/paged/history?limit=1000&cursor={cursor}"),
                None => break,
            }
        }
        let mut expected: Vec<u64> = (1..=1_000).collect();
        if order == "desc" {
            expected.reverse();
        }
        assert!(read == expected, "{order}: {} operations", read.len());
        println!("{pages} pages");
    }
    let page = world
        .client
        .get("/paged/history?limit=1000")
        .header("accept", "text/html");
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.len() <= 1 << 20 && page.contains("cursor="), "{}", page.len());
    let known = "/paged/history?limit=1000&knownAt=9000-01-01T00:00:00Z";
    let known = raw::get(&world.replica.url, known).await;
    assert!(known.body.len() <= 1 << 20 && known.json()["nextCursor"].is_string());
    world.replica.stop().await;
}

#[tokio::test]
async fn slow_readers_of_large_answers_take_bounded_memory_and_others_are_served() {
    crate::clients::raise_open_files();
    let world = World::start().await;
    world.deposit("alice", 100).await;
    fill(&world.database, "paged", &[&"\u{1}".repeat(4_096)], 1_000).await;
    let before = world.replica.memory();
    let mut refused = 0;
    for (case, many, path, accept) in [
        ("pages", 20, "/paged/history?limit=1000", "*/*"),
        ("pages", 1_000, "/paged/history?limit=1000", "*/*"),
        ("pages for people", 500, "/paged/history?limit=1000", "text/html"),
        ("tables", 500, "/paged/history", "text/csv"),
        ("metrics", 1_000, "/metrics", "*/*"),
        ("documents", 1_000, "/docs", "*/*"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n");
        let mut readers = Vec::new();
        while readers.len() < many {
            let opened = (0..20).map(|_| ask(&world.replica.url, &request));
            readers.extend(futures_util::future::join_all(opened).await);
        }
        // A refused page has waited for memory.
        sleep(Duration::from_secs(2)).await;
        world.client.until_served("alice").await;
        let with_them = world.replica.memory();
        println!("{many} readers of {case}: {before} MiB before, {with_them} MiB with them");
        assert!(
            with_them <= before + MOST_MIB,
            "{with_them} MiB with {many} readers of {case}"
        );
        if path.starts_with("/paged") {
            let begin = |reader: &TcpStream| {
                let mut begin = [0; 12];
                reader.try_read(&mut begin).is_ok() && begin == *b"HTTP/1.1 503"
            };
            refused += readers.iter().filter(|reader| begin(reader)).count();
        }
        drop(readers);
        sleep(Duration::from_millis(500)).await;
    }
    let lines = world.replica.stop_and_read().await;
    let lines = lines
        .iter()
        .filter(|line| line["operation"] == "getHistory" && line["outcome"] == "overloaded");
    let lines = lines.count();
    assert!(refused > 0 && lines >= refused, "{refused} refusals have {lines} lines");
}

/// Sends head and body apart on one connection, and then a second request.
async fn refused_and_used_again(url: &str, head: &str, body: &str) -> (u16, Option<String>) {
    let mut stream = raw::send(url, head.as_bytes()).await;
    sleep(Duration::from_millis(50)).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let first = next_answer(&mut stream).await.expect("an answer");
    if first.head.contains("connection: close") {
        return (first.status, None);
    }
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let second = next_answer(&mut stream)
        .await
        .expect("an answer on the same connection");
    (first.status, Some(second.status.to_string()))
}

/// Reads an answer of known length.
async fn next_answer(stream: &mut TcpStream) -> Option<RawAnswer> {
    let mut bytes = Vec::new();
    loop {
        let read = timeout(PATIENCE, stream.read_buf(&mut bytes)).await.expect("an answer");
        if read.ok()? == 0 {
            return None;
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ")?;
        let length: usize = length.split("\r\n").next()?.parse().ok()?;
        if bytes.len() >= end + 4 + length {
            let status = head.split(' ').nth(1)?.parse().ok()?;
            let body = bytes.split_off(end + 4);
            return Some(RawAnswer { status, head, body });
        }
    }
}

#[tokio::test]
async fn a_connection_on_which_a_body_was_refused_unread_can_be_used_again() {
    let world = World::start().await;
    let body = r#"{"userId":"alice"}"#;
    let head = |line: &str, headers: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        )
    };
    for _ in 0..10 {
        for (line, headers, status) in [
            ("POST /changeBalance", "content-type: text/plain\r\n", 415),
            ("POST /nowhere", "content-type: application/json\r\n", 404),
            ("PUT /changeBalance", "content-type: application/json\r\n", 405),
            ("POST /alice/balance", "content-type: application/json\r\n", 405),
            ("POST /changeBalance?x=y", "content-type: application/json\r\n", 400),
        ] {
            let answered = refused_and_used_again(&world.replica.url, &head(line, headers), body).await;
            assert_eq!(answered, (status, Some("200".to_owned())), "{line}");
        }
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn the_refusal_of_a_large_body_arrives_whatever_is_sent() {
    let world = World::start().await;
    let body = vec![b' '; 2_000_000];
    for (path, content_type, status) in [
        ("/nowhere", "application/json", 404),
        ("/changeBalance", "text/plain", 415),
        ("/changeBalance", "application/json", 413),
        ("/alice/balance", "application/json", 405),
    ] {
        for _ in 0..30 {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut stream = raw::send(&world.replica.url, head.as_bytes()).await;
            let (mut from, mut to) = stream.split();
            let (_, answered) = tokio::join!(to.write_all(&body), async {
                let mut bytes = vec![0; 16];
                timeout(PATIENCE, from.read_exact(&mut bytes))
                    .await
                    .expect("an answer")
                    .expect("no reset");
                String::from_utf8(bytes).unwrap()
            });
            assert!(answered.contains(&status.to_string()), "{path}: {answered}");
        }
    }
    // More than is taken, and one that never comes: the answer says that the connection is closed.
    for (length, sent) in [(100_000_000, 2_000_000), (1_000, 10)] {
        let head = format!("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let mut stream = raw::send(&world.replica.url, head.as_bytes()).await;
        let _ = timeout(Duration::from_secs(1), stream.write_all(&body[..sent])).await;
        let answered = next_answer(&mut stream).await.expect("an answer");
        assert_eq!(answered.status, 404);
        assert!(answered.head.contains("connection: close"), "{answered:?}");
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn a_request_of_http_1_1_names_its_host_once() {
    let world = World::start().await;
    let headers = |hosts: usize| {
        (0..hosts).fold(String::new(), |mut text, number| {
            write!(text, "host: x{number}\r\n").unwrap();
            text
        })
    };
    for (version, hosts, status) in [
        ("1.1", 0, 400),
        ("1.1", 1, 200),
        ("1.1", 2, 400),
        ("1.0", 0, 200),
        ("1.0", 1, 200),
        ("1.0", 2, 400),
    ] {
        let request = format!(
            "GET /livez HTTP/{version}\r\n{}connection: close\r\n\r\n",
            headers(hosts)
        );
        let answered = raw::exchange(&world.replica.url, request.as_bytes())
            .await
            .expect("an answer");
        assert_eq!(answered.status, status, "HTTP/{version} with {hosts}");
        if status == 400 {
            assert_eq!(answered.json()["code"], "invalid_request");
        }
    }
    // In production whoever runs the service decides which names lead to it.
    let request = "GET /livez HTTP/1.1\r\nhost: balance.example.com\r\nconnection: close\r\n\r\n";
    let answered = raw::exchange(&world.replica.url, request.as_bytes())
        .await
        .expect("an answer");
    assert_eq!(answered.status, 200);
    world.replica.stop().await;
}

#[tokio::test]
async fn an_unfinished_first_head_does_not_hold_up_the_stop() {
    let mut world = World::with(|options| options.set("SHUTDOWN_TIMEOUT_MS", "600000")).await;
    let _held = raw::send(&world.replica.url, b"GET /livez HTTP/1.1\r\nhost: x\r\n").await;
    world.deposit("alice", 1).await;
    world.replica.signal(nix::sys::signal::Signal::SIGTERM);
    // Within less than the drain: `ended` does not wait for that long.
    assert!(world.replica.ended().await.success());
}

#[tokio::test]
async fn a_page_of_a_table_has_its_length_so_that_http_1_0_sees_where_it_was_cut_off() {
    let world = World::start().await;
    world.deposit("alice", 100).await;
    let request = b"GET /alice/history?limit=5 HTTP/1.0\r\nhost: x\r\naccept: text/csv\r\n\r\n";
    let page = raw::exchange(&world.replica.url, request).await.expect("an answer");
    assert_eq!(page.status, 200);
    let length = format!("content-length: {}", page.body.len());
    assert!(page.head.lines().any(|line| line == length), "{}", page.head);
    world.replica.stop().await;
}
