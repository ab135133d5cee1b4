//! Bearer tokens: who may ask for what, what others are told, and what is written of it.

mod admin;
mod headers;
mod list;
mod log;

use std::path::PathBuf;

use nix::sys::signal::Signal;
use reqwest::header::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;

use crate::support::client::{Answer, ServiceClient, answer, change};
use crate::support::raw;
use crate::support::replica::Scratch;
use crate::support::tokens::{line, sha256};
use crate::support::world::{NOON, World};

/// Tokens as `openssl rand -hex 32` makes them.
const READER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
const WRITER: &str = "9a8b7c6d5e4f30211203f4e5d6c7b8a99a8b7c6d5e4f30211203f4e5d6c7b8a9";
const BOTH: &str = "c0ffee00c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77";
const UNKNOWN: &str = "deadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeef";

/// The challenges of RFC 6750.
const NO_TOKEN: &str = r#"Bearer realm="balance""#;
const INVALID_TOKEN: &str = r#"Bearer realm="balance", error="invalid_token""#;

/// A replica with a list of tokens, which tests may write anew.
struct Guarded {
    world: World,
    list: PathBuf,
    /// Removed in the end.
    _scratch: Scratch,
}

fn three() -> String {
    [
        ("reader", READER, "read"),
        ("writer", WRITER, "write"),
        ("both", BOTH, "read,write"),
    ]
    .map(|(name, token, scopes)| line(name, token, scopes))
    .concat()
}

impl Guarded {
    async fn start() -> Self {
        let scratch = Scratch::new();
        let list = scratch.0.join("tokens");
        std::fs::write(&list, three()).unwrap();
        let path = list.to_str().unwrap().to_owned();
        let world = World::with(|options| options.set("API_TOKENS_FILE", path)).await;
        Self {
            world,
            list,
            _scratch: scratch,
        }
    }

    fn client(&self, token: &str) -> ServiceClient {
        ServiceClient::with_token(&self.world.replica.url, token)
    }

    /// Writes another list in the place of the one there is, has it read and waits until that is said.
    async fn reload(&mut self, text: &str, said: &str) {
        self.replace(text);
        self.world.replica.signal(Signal::SIGHUP);
        self.world.replica.said(said).await;
    }

    /// As an editor or a deployment does: nobody sees half of it.
    fn replace(&self, text: &str) {
        let next = self.list.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, &self.list).unwrap();
    }
}

/// Each operation, as it is asked for.
fn operations(client: &ServiceClient) -> [(&'static str, reqwest::RequestBuilder); 5] {
    [
        ("write", client.post_body(change("alice", 1, NOON).to_string())),
        ("read", client.get("/alice/balance")),
        ("read", client.get(&format!("/alice/balance?timestamp={NOON}"))),
        ("read", client.get("/alice/history")),
        ("read", client.request("HEAD", "/alice/balance")),
    ]
}

fn challenge(headers: &HeaderMap) -> Option<&str> {
    let mut challenges = headers.get_all("www-authenticate").iter();
    let challenge = challenges.next().map(|value| value.to_str().unwrap());
    assert_eq!(challenges.next(), None);
    challenge
}

#[track_caller]
fn expect_refusal(answered: Answer, status: u16, code: &str, expected: Option<&str>) {
    let answered = answered.expect_problem(status, code);
    assert_eq!(challenge(&answered.headers), expected, "{}", answered.body);
}

#[tokio::test]
async fn an_operation_without_a_token_that_is_known_is_answered_401_with_the_challenge_of_rfc_6750() {
    let guarded = Guarded::start().await;
    let client = &guarded.world.client;
    let long = format!("Bearer {}", "a".repeat(5_000));
    let absent = format!("Bearer {}", sha256(BOTH));
    for (authorization, expected) in [
        (None, NO_TOKEN),
        (Some("Basic YWxpY2U6c2VjcmV0"), NO_TOKEN),
        (Some(BOTH), NO_TOKEN),
        (Some("Token token"), NO_TOKEN),
        (Some("Bearer"), INVALID_TOKEN),
        (Some("Bearer  "), INVALID_TOKEN),
        (Some(&format!("Bearer {UNKNOWN}")), INVALID_TOKEN),
        (Some(&format!("Bearer {}", &BOTH[1..])), INVALID_TOKEN),
        (Some(&format!("Bearer {BOTH}0")), INVALID_TOKEN),
        (Some(&format!("Bearer {}", BOTH.to_uppercase())), INVALID_TOKEN),
        (Some(&format!("Bearer {BOTH}, Bearer {READER}")), INVALID_TOKEN),
        // What stands in the list is not the token.
        (Some(&absent), INVALID_TOKEN),
        (Some(&long), INVALID_TOKEN),
    ] {
        for (_, request) in operations(client) {
            let is_head = request.try_clone().unwrap().build().unwrap().method() == "HEAD";
            let request = match authorization {
                Some(value) => request.header("authorization", value),
                None => request,
            };
            if is_head {
                let answered = request.send().await.unwrap();
                assert_eq!(answered.status(), 401, "{authorization:?}");
                assert_eq!(challenge(answered.headers()), Some(expected));
            } else {
                expect_refusal(answer(request).await, 401, "unauthenticated", Some(expected));
            }
        }
    }
    assert_eq!(guarded.world.stored().await, Vec::<String>::new());
}

#[tokio::test]
async fn each_scope_allows_its_operations_and_no_others() {
    let guarded = Guarded::start().await;
    for (token, scopes) in [(READER, "read"), (WRITER, "write"), (BOTH, "read,write")] {
        let client = guarded.client(token);
        for (needed, request) in operations(&client) {
            let method = request.try_clone().unwrap().build().unwrap().method().clone();
            let allowed = scopes.split(',').any(|scope| scope == needed);
            if method == "HEAD" {
                let answered = request.send().await.unwrap();
                assert_eq!(answered.status(), if allowed { 200 } else { 403 }, "{scopes}");
            } else if allowed {
                answer(request).await.expect(200);
            } else {
                let expected = format!(r#"Bearer realm="balance", error="insufficient_scope", scope="{needed}""#);
                expect_refusal(answer(request).await, 403, "insufficient_scope", Some(&expected));
            }
        }
    }
    let balance = guarded.client(READER).balance("alice", None).await.expect(200);
    assert_eq!(balance.body["balance"], 2);
}

#[tokio::test]
async fn the_name_of_the_scheme_is_read_in_any_case_and_the_header_may_be_given_once() {
    let guarded = Guarded::start().await;
    let client = &guarded.world.client;
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR "] {
        let request = client
            .get("/alice/balance")
            .header("authorization", format!("{scheme} {READER}"));
        answer(request).await.expect(200);
    }
    for second in [READER, UNKNOWN] {
        for (_, request) in operations(client).into_iter().take(4) {
            let request = request.header("authorization", format!("Bearer {READER}"));
            let request = request.header("authorization", format!("Bearer {second}"));
            expect_refusal(answer(request).await, 400, "invalid_request", None);
        }
    }
}

#[tokio::test]
async fn nothing_of_a_request_is_looked_at_before_its_token() {
    let guarded = Guarded::start().await;
    let client = &guarded.world.client;
    for request in [
        client.post_body("{"),
        client.post_body(vec![b' '; 70_000]),
        client.post("/changeBalance").body("text"),
        client.post_body("{}").header("idempotency-key", "a b"),
        client.get("/%FF/balance"),
        client.get("/alice/balance?timestamp=x"),
        client.get("/alice/history?limit=0&unknown=1"),
        client.request("DELETE", "/changeBalance"),
        client.request("GET", "/changeBalance"),
        client.request("PUT", "/alice/balance"),
    ] {
        expect_refusal(answer(request).await, 401, "unauthenticated", Some(NO_TOKEN));
    }
    // Nor is the body waited for.
    for expectation in ["", "expect: 100-continue\r\n"] {
        let head = format!(
            "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: 60000\r\nconnection: close\r\n{expectation}\r\n"
        );
        let mut stream = raw::send(&guarded.world.replica.url, head.as_bytes()).await;
        let answered = raw::until_closed(&mut stream).await.unwrap();
        assert_eq!(answered.status, 401, "{}", answered.head);
        assert!(!answered.head.contains("100 continue"), "{}", answered.head);
    }
    // With a token it is an ordinary request, that may be wrong.
    let client = guarded.client(BOTH);
    answer(client.post_body("{"))
        .await
        .expect_problem(400, "invalid_request");
    answer(client.request("DELETE", "/changeBalance"))
        .await
        .expect_problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_client_that_waits_to_send_its_body_is_told_when_nothing_more_is_taken_on_the_connection() {
    let guarded = Guarded::start().await;
    let url = &guarded.world.replica.url;
    let head = |fields: &str| {
        format!("POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nexpect: 100-continue\r\n{fields}\r\n")
    };
    let token = format!("authorization: Bearer {BOTH}\r\n");
    for (fields, status) in [
        (String::new(), 401),
        (format!("authorization: Bearer {READER}\r\n"), 403),
        (format!("{token}content-type: text/plain\r\n"), 415),
    ] {
        let mut stream = raw::send(url, head(&fields).as_bytes()).await;
        let answered = raw::until_closed(&mut stream).await.unwrap();
        assert_eq!(answered.status, status, "{}", answered.head);
        assert!(answered.head.contains("\r\nconnection: close"), "{}", answered.head);
    }
    // One that has been told to go on can go on with the next request too.
    let head = head(&format!("{token}content-type: application/json\r\n"));
    let mut stream = raw::send(url, head.as_bytes()).await;
    let mut told = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    let next = b"{GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(next).await.unwrap();
    let answered = raw::until_closed(&mut stream).await.unwrap();
    assert_eq!(answered.status, 400, "{}", answered.head);
    assert!(!answered.head.contains("connection: close"), "{}", answered.head);
    let rest = String::from_utf8_lossy(&answered.body);
    assert!(rest.contains("HTTP/1.1 200 OK"), "{rest}");
}

#[tokio::test]
async fn a_large_body_without_a_token_is_answered_and_the_connection_is_of_use_afterwards() {
    let guarded = Guarded::start().await;
    let mut body = change("alice", 1, NOON);
    body["context"] = "x".repeat(4_096).into();
    let padded = format!("{body}{}", " ".repeat(60_000));
    for _ in 0..20 {
        let request = guarded.world.client.post_body(padded.clone());
        expect_refusal(answer(request).await, 401, "unauthenticated", Some(NO_TOKEN));
    }
}

#[tokio::test]
async fn probes_metrics_and_documentation_need_no_token_and_other_paths_are_not_there() {
    let guarded = Guarded::start().await;
    let client = &guarded.world.client;
    for path in ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json"] {
        for request in [
            client.get(path),
            client.get(path).header("authorization", "Bearer unknown"),
        ] {
            assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        }
    }
    for path in [
        "/nowhere",
        "/a/b/balance",
        "/alice/balance/",
        "//balance/x",
        "/alice/%62alance",
        "/changeBalance/",
    ] {
        answer(client.get(path)).await.expect_problem(404, "not_found");
    }
}

#[tokio::test]
async fn without_a_list_everyone_may_ask_for_everything_and_a_token_changes_nothing() {
    let world = World::with(|options| options.set("API_TOKENS_FILE", "")).await;
    for (_, request) in operations(&world.client).into_iter().take(4) {
        let with = request.try_clone().unwrap().header("authorization", "Bearer whatever");
        answer(request).await.expect(200);
        answer(with).await.expect(200);
    }
    assert!(world.replica.log_lines().iter().all(|line| line["caller"].is_null()));
}

#[tokio::test]
async fn refused_requests_are_counted_by_what_was_wrong_and_operators_are_told() {
    let mut guarded = Guarded::start().await;
    let client = guarded.world.client.clone();
    let counter = |reason: &str| format!("balance_unauthenticated_requests_total{{reason=\"{reason}\"}}");
    let reasons = ["no_token", "unknown_token", "repeated_header", "insufficient_scope"];
    for reason in reasons {
        assert_eq!(client.metric(&counter(reason)).await, 0);
    }
    let reading = || client.get("/alice/balance");
    reading().send().await.unwrap();
    for _ in 0..2 {
        reading().header("authorization", "Bearer x").send().await.unwrap();
    }
    let twice = reading()
        .header("authorization", "Bearer x")
        .header("authorization", "Bearer x");
    twice.send().await.unwrap();
    guarded.client(WRITER).balance("alice", None).await.expect(403);
    guarded.client(READER).balance("alice", None).await.expect(200);
    for (reason, count) in reasons.into_iter().zip([1, 2, 1, 1]) {
        assert_eq!(client.metric(&counter(reason)).await, count, "{reason}");
    }
    let said = guarded
        .world
        .replica
        .said("requests without authorisation were refused")
        .await;
    assert!(
        said.contains("WARN") && said.contains("last_from=") && said.contains("127.0.0.1"),
        "{said}"
    );
    // A flood of them is not one of lines.
    let said = guarded.world.replica.output();
    let told = said
        .iter()
        .filter(|line| line.contains("without authorisation"))
        .count();
    assert!(told <= 2, "{said:#?}");
}
