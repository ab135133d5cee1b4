//! The files of certificate and key: what is wrong with one is told in one line, and what clients will not take is too.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::service::{Encrypted, PATIENCE};
use super::{file, refused, run, shown};
use crate::support::approver::TestApprover;
use crate::support::certificates::Authority;
use crate::support::replica::{ReplicaOptions, Scratch};

const FAILED: &str = "balance_tls_reload_failed";
const STAYS: &str = "stays what it was";

/// What a start with these files is refused with.
async fn refused_with(chain: &str, key: &str) -> String {
    let variables = [
        ("DATABASE_URL", "postgres://localhost:1/x"),
        ("APPROVER_URL", "https://localhost:1"),
        ("LISTEN", "127.0.0.1:0"),
        ("TLS_CERT", chain),
        ("TLS_KEY", key),
    ];
    refused("serve", &variables).await
}

/// The headers and the bytes between the lines that begin and end a section of PEM.
fn pem(kind: &str, headers: &str, bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    format!("-----BEGIN {kind}-----\n{headers}{text}\n-----END {kind}-----\n")
}

#[tokio::test]
async fn a_pipe_that_nobody_writes_to_is_refused_at_the_start_in_place_of_waiting_for_it() {
    let scratch = Scratch::new();
    let (chain, key) = Authority::new("the service's")
        .sign(&["localhost"])
        .write(&scratch.0, "own");
    let pipe = scratch.0.join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let (chain, key, pipe) = (shown(&chain), shown(&key), shown(&pipe));
    let line = refused_with(&pipe, &key).await;
    assert!(
        line.contains("TLS_CERT: ") && line.contains("not a regular file"),
        "{line}"
    );
    let line = refused_with(&chain, &pipe).await;
    assert!(
        line.contains("TLS_KEY: ") && line.contains("not a regular file"),
        "{line}"
    );
    let url = format!("postgres://localhost:1/x?sslmode=verify-full&sslrootcert={pipe}");
    let line = refused("migrate", &[("DATABASE_URL", &url)]).await;
    assert!(line.contains("not a regular file"), "{line}");
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_holds_up_neither_later_hangups_nor_the_end() {
    let mut service = Encrypted::start().await;
    let client = service.world.client.clone();
    for name in ["service.pem", "service.key"] {
        let path = service.path(name);
        let kept = path.with_extension("kept");
        std::fs::rename(&path, &kept).unwrap();
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        service.world.replica.signal(Signal::SIGHUP);
        let line = service.world.replica.said(&format!("{name}\" cannot be read")).await;
        assert!(line.contains(STAYS) && line.contains("not a regular file"), "{line}");
        until(|| async { client.metric(FAILED).await == 1 }).await;
        std::fs::rename(&kept, &path).unwrap();
        service.world.replica.signal(Signal::SIGHUP);
        until(|| async { client.metric(FAILED).await == 0 }).await;
    }
    service.world.replica.stop().await;
}

async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let waiting = tokio::time::timeout(PATIENCE, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waiting.await.expect("it becomes so");
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    let authority = Authority::new("the service's");
    let (own, other) = (authority.sign(&["localhost"]), authority.sign(&["localhost"]));
    let chain = file(&scratch, "own.pem", &own.chain);
    let key = file(&scratch, "own.key", &own.key);
    let wrong_order = file(
        &scratch,
        "wrong-order.pem",
        &[authority.pem.as_str(), &own.chain].concat(),
    );
    let other = file(&scratch, "other.key", &other.key);
    // RFC 8410: a sequence of the version 0, the algorithm 1.3.101.113 and 57 bytes, any of which are a key.
    let ed448 = [
        b"\x30\x47\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x71\x04\x3b\x04\x39".as_slice(),
        &[7; 57],
    ];
    let ed448 = file(&scratch, "ed448.key", &pem("PRIVATE KEY", "", &ed448.concat()));
    let header = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00112233445566778899AABBCCDDEEFF\n\n";
    let older = file(&scratch, "older.key", &pem("EC PRIVATE KEY", header, &[7; 128]));
    let newer = file(&scratch, "newer.key", &pem("ENCRYPTED PRIVATE KEY", "", &[7; 128]));
    let mismatch = "the key is not that of the first certificate in TLS_CERT";
    for (chain, key, said) in [
        (&chain, &other, vec![mismatch]),
        (&wrong_order, &key, vec![mismatch]),
        (
            &chain,
            &ed448,
            vec!["RSA of 2048 to 4096 bits", "P-256 and P-384", "Ed25519"],
        ),
        (&chain, &older, vec!["encrypted with a passphrase"]),
        (&chain, &newer, vec!["encrypted with a passphrase"]),
    ] {
        let line = refused_with(chain, key).await;
        assert!(line.contains("TLS_KEY: "), "{line}");
        assert!(said.iter().all(|said| line.contains(said)), "{line}");
    }
}

#[tokio::test]
async fn a_line_break_in_the_name_of_a_file_makes_no_second_line() {
    let scratch = Scratch::new();
    let name = shown(&scratch.0.join("a\nb"));
    let database = "postgres://localhost:1/x";
    let common = [("DATABASE_URL", database), ("APPROVER_URL", "http://localhost:1")];
    let log = shown(&scratch.0.join("operations.log"));
    for variables in [
        vec![("TLS_CERT", name.as_str()), ("TLS_KEY", &name)],
        vec![
            ("API_TOKENS_FILE", &name),
            ("LISTEN", "127.0.0.1:0"),
            ("OPERATIONS_LOG", &log),
        ],
    ] {
        let all: Vec<_> = common.into_iter().chain(variables).collect();
        let output = run("serve", &all).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(said.lines().last().unwrap().contains("a\\nb\""), "{said}");
        assert!(
            said.lines()
                .all(|line| !line.starts_with('b') || line.starts_with("balance: ")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_certificate_that_clients_refuse_is_warned_of_at_the_start_and_when_it_is_read_again() {
    const NO_NAME: &str = "has no subject alternative name";
    const TOO_EARLY: &str = "is not valid yet";
    const EXPIRED: &str = "has expired";
    let authority = Authority::new("the service's");
    let hour = Duration::from_secs(3_600);
    let nameless = authority.sign(&[]);
    let early = authority.sign_later(&["127.0.0.1"], hour);
    let expired = authority.sign_for(&["127.0.0.1"], hour);
    let all = [(nameless, NO_NAME), (early, TOO_EARLY), (expired, EXPIRED)];

    let mut service = Encrypted::start().await;
    let warned = |lines: Vec<String>| -> Vec<String> {
        let is_warning = |line: &String| line.contains("WARN") && line.contains("the certificate of the service");
        lines.into_iter().filter(is_warning).collect()
    };
    assert_eq!(warned(service.world.replica.output()), [""; 0]);
    for (certificate, said) in &all {
        service.replace(&certificate.chain, &certificate.key);
        service.world.replica.signal(Signal::SIGHUP);
        let line = service.world.replica.said(said).await;
        assert!(line.contains("WARN"), "{line}");
    }
    assert_eq!(warned(service.world.replica.output()).len(), all.len());
    service.world.replica.stop().await;

    let approver = TestApprover::start().await;
    for (certificate, said) in &all {
        let scratch = Scratch::new();
        let (chain, key) = certificate.write(&scratch.0, "service");
        let options = ReplicaOptions::new("postgres://nobody@localhost:1/nowhere", &approver.url());
        let options = options.set("TLS_CERT", shown(&chain)).set("TLS_KEY", shown(&key));
        let mut replica = options.spawn();
        let line = replica.said(said).await;
        assert!(line.contains("WARN"), "{line}");
        replica.signal(Signal::SIGTERM);
        replica.ended().await;
    }
}
