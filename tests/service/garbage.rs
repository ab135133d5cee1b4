//! What is no HTTP, or none that any client sends: answered with a problem or with a closed connection, and the service
//! goes on.

use tokio::io::AsyncWriteExt;

use crate::support::client::answer;
use crate::support::raw::{self, RawAnswer};
use crate::support::world::World;

const LINE: &str = "GET /alice/balance HTTP/1.1\r\nhost: x\r\n";
const POST: &str = "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

#[track_caller]
fn expect_problem(answer: &RawAnswer, case: &str) {
    assert!(
        answer.head.contains("content-type: application/problem+json"),
        "{case} {answer:?}"
    );
    let problem = answer.json();
    assert_eq!(problem["status"], answer.status, "{case}");
    assert!(
        problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
        "{case}"
    );
}

/// Sends each, and expects a refusal, the HTTP library's bare one at least, or a closed connection.
async fn is_refused(cases: &[(&str, Vec<u8>)]) {
    let world = World::start().await;
    for (case, bytes) in cases {
        if let Some(refused) = raw::exchange(&world.replica.url, bytes).await {
            assert!([400, 414, 431].contains(&refused.status), "{case} {refused:?}");
            assert!(refused.head.contains("connection: close"), "{case} {refused:?}");
            if !refused.body.is_empty() {
                expect_problem(&refused, case);
            }
        }
        answer(world.client.get("/livez")).await.expect(200);
    }
    assert!(world.stored().await.is_empty());
    assert!(world.replica.log_lines().is_empty());
    world.replica.stop().await;
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_the_service_goes_on() {
    let tls = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"
        .iter()
        .chain(&[0; 160])
        .copied()
        .collect();
    is_refused(&[
        ("nothing", vec![]),
        ("a TLS hello", tls),
        ("zeros", vec![0; 5_000]),
        ("all bytes", (0..=255).cycle().take(100_000).collect()),
        ("words", b"hello there\r\n\r\n".to_vec()),
        ("line breaks", b"\r\n\r\n\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("PostgreSQL", b"\x00\x00\x00\x08\x04\xd2\x16\x2f".to_vec()),
        ("HTTP/0.9", b"GET /alice/balance\r\n".to_vec()),
        ("HTTP/3.7", b"GET /alice/balance HTTP/3.7\r\nhost: x\r\n\r\n".to_vec()),
        ("HTTP/x", b"GET /alice/balance HTTP/x\r\nhost: x\r\n\r\n".to_vec()),
        (
            "a space in the path",
            b"GET /a b/balance HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        ),
        (
            "a control in the path",
            b"GET /a\x01/balance HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        ),
        ("no path", b"GET  HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        (
            "a method of controls",
            b"\x01\x02 / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        ),
    ])
    .await;
}

#[tokio::test]
async fn http_2_is_refused_however_it_begins() {
    let world = World::start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // In one piece, and so that the first bytes could begin a POST.
    for cut in [preface.len(), 1, 3] {
        let mut stream = raw::send(&world.replica.url, &preface[..cut]).await;
        tokio::task::yield_now().await;
        stream.write_all(&preface[cut..]).await.unwrap();
        if let Some(refused) = raw::until_closed(&mut stream).await {
            assert_eq!(refused.status, 400, "{cut} {refused:?}");
        }
    }
    answer(world.client.get("/livez")).await.expect(200);
    world.replica.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_or_broken_is_refused() {
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = "a".repeat(70_000);
    is_refused(&[
        (
            "a path of 70,000 bytes",
            format!("GET /{long}/balance HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes(),
        ),
        (
            "a query of 70,000 bytes",
            format!("GET /a/balance?{long} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes(),
        ),
        ("200 headers", format!("{LINE}{many}\r\n").into_bytes()),
        (
            "a header of 700,000 bytes",
            format!("{LINE}x: {}\r\n\r\n", long.repeat(10)).into_bytes(),
        ),
        (
            "a header without a colon",
            format!("{LINE}nonsense\r\n\r\n").into_bytes(),
        ),
        ("a header without a name", format!("{LINE}: x\r\n\r\n").into_bytes()),
        ("a folded header", format!("{LINE}x: y\r\n z\r\n\r\n").into_bytes()),
        ("a zero in a header", format!("{LINE}x: \0\r\n\r\n").into_bytes()),
        (
            "a length of letters",
            format!("{POST}content-length: ten\r\n\r\n").into_bytes(),
        ),
        (
            "a negative length",
            format!("{POST}content-length: -1\r\n\r\n").into_bytes(),
        ),
        (
            "a length of 2^64",
            format!("{POST}content-length: 18446744073709551616\r\n\r\n").into_bytes(),
        ),
        (
            "two lengths",
            format!("{POST}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}").into_bytes(),
        ),
        (
            "an unknown encoding",
            format!("{POST}transfer-encoding: x\r\n\r\n{{}}").into_bytes(),
        ),
        (
            "no chunk size",
            format!("{POST}transfer-encoding: chunked\r\n\r\nxyz\r\n").into_bytes(),
        ),
        (
            "a chunk size of 2^68",
            format!("{POST}transfer-encoding: chunked\r\n\r\n100000000000000000\r\n").into_bytes(),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_request_that_breaks_off_is_refused_wherever_it_does() {
    let body = r#"{"userId":"alice","context":"","balanceChange":1,"timestamp":"2026-01-31T12:00:00Z"}"#;
    let whole = format!("{POST}content-length: {}\r\n\r\n{body}", body.len());
    let chunked = format!(
        "{POST}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let cuts = |request: &str| {
        let steps = (1..request.len()).step_by(7);
        steps
            .map(|at| ("cut", request.as_bytes()[..at].to_vec()))
            .collect::<Vec<_>>()
    };
    let mut cases = cuts(&whole);
    // A client that has sent the last chunk but not the end of it has still not said that this is all.
    cases.extend(cuts(&chunked[..chunked.len() - "\r\n0\r\n\r\n".len()]));
    is_refused(&cases).await;
}

#[tokio::test]
async fn odd_requests_of_good_http_get_no_5xx_and_no_body_but_a_problem() {
    let world = World::start().await;
    for path in [
        "/%/balance",
        "/%zz/balance",
        "/%4/balance",
        "//balance",
        "///",
        "/;/balance",
        "/a/../b/balance",
        "*",
        "/a%",
        "/é/balance",
        "http://x/a/balance",
        "/a/balance?%",
        "/a/balance?&&=&",
    ] {
        for head in [
            "HTTP/1.1\r\nhost: x\r\n",
            "HTTP/1.1\r\n",
            "HTTP/1.0\r\n",
            "HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n",
        ] {
            let request = format!("GET {path} {head}connection: close\r\n\r\n");
            let Some(answered) = raw::exchange(&world.replica.url, request.as_bytes()).await else {
                continue;
            };
            assert!(answered.status < 500, "{request} {answered:?}");
            if answered.status != 200 {
                expect_problem(&answered, &request);
            }
        }
    }
    for method in [
        "CONNECT x:1",
        "OPTIONS *",
        "TRACE /a/balance",
        "get /a/balance",
        "GET /a/balance?timestamp=%00",
    ] {
        let request = format!("{method} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let Some(answered) = raw::exchange(&world.replica.url, request.as_bytes()).await else {
            continue;
        };
        assert!((400..500).contains(&answered.status), "{request} {answered:?}");
        expect_problem(&answered, &request);
    }
    answer(world.client.get("/readyz")).await.expect(200);
}
