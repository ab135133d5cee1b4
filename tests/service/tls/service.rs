use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::{ClientConfig, SupportedProtocolVersion};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::clients::{handshake, shown as shown_by};
use super::{file, refused};
use crate::clients::fill_history;
use crate::support::approver::TestApprover;
use crate::support::certificates::{Authority, Certificate};
use crate::support::client::{ServiceClient, answer, change};
use crate::support::postgres::fresh_database;
use crate::support::replica::{ReplicaOptions, Scratch};
use crate::support::world::{NOON, World};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A replica that serves https, and its authority.
pub struct Encrypted {
    pub world: World,
    pub authority: Authority,
    certificate: Certificate,
    scratch: Scratch,
}

impl Encrypted {
    pub async fn start() -> Self {
        Self::with(|options| options).await
    }

    pub async fn with(configure: impl FnOnce(ReplicaOptions) -> ReplicaOptions) -> Self {
        let authority = Authority::new("the service's");
        let certificate = authority.sign(&["127.0.0.1"]);
        let scratch = Scratch::new();
        let (chain, key) = certificate.write(&scratch.0, "service");
        let (database, approver) = (fresh_database().await, TestApprover::start().await);
        let options = ReplicaOptions::new(&database.url, &approver.url())
            .set("TLS_CERT", chain.to_str().unwrap())
            .set("TLS_KEY", key.to_str().unwrap());
        let replica = configure(options).start().await;
        let client = ServiceClient::trusting(&authority, &replica.url);
        let world = World {
            database,
            approver,
            replica,
            client,
        };
        Self {
            world,
            authority,
            certificate,
            scratch,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.world
            .replica
            .url
            .strip_prefix("https://")
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A client with connections of its own.
    pub fn fresh_client(&self) -> ServiceClient {
        ServiceClient::trusting(&self.authority, &self.world.replica.url)
    }

    /// A client's side that speaks these versions.
    pub fn client_of(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        let authority = Certificate {
            chain: self.authority.pem.clone(),
            key: String::new(),
        };
        roots.add(authority.der()).unwrap();
        let builder = ClientConfig::builder_with_provider(balance::tls::provider());
        let builder = builder.with_protocol_versions(versions).unwrap();
        builder.with_root_certificates(roots).with_no_client_auth()
    }

    pub async fn handshake(&self, stream: TcpStream, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        handshake(stream, config).await
    }

    pub async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        self.handshake(stream, self.authority.client()).await.unwrap()
    }

    /// Asks on a connection, and reads until the service closes it.
    pub async fn get(&self, mut stream: TlsStream<TcpStream>, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        // It says goodbye before it hangs up: nobody has cut the answer.
        read.expect("an answer").unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// The path of `service.pem` or `service.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    /// Puts another certificate in the place of the one that is shown; `key` may be another one's.
    pub fn replace(&self, chain: &str, key: &str) {
        file(&self.scratch, "service.pem", chain);
        file(&self.scratch, "service.key", key);
    }
}

#[tokio::test]
async fn what_is_asked_and_answered_over_https_is_as_over_http() {
    let service = Encrypted::start().await;
    let client = &service.world.client;
    let mut deposit = change("alice", 100, NOON);
    deposit["context"] = Value::from("👍".repeat(4_096));
    client.change(&deposit).await.expect(200);
    let history = answer(client.get("/alice/history")).await.expect(200);
    assert_eq!(history.body["operations"][0]["context"], deposit["context"]);
    client
        .change(&change("alice", -101, NOON))
        .await
        .expect_problem(403, "insufficient_funds");
    client.balance("alice", Some(NOON)).await.expect(200);

    let bob = fill_history(&service.world.database).await;
    let page = client.get(&format!("/{bob}/history?limit=50")).send().await.unwrap();
    let page: Value = serde_json::from_slice(&page.bytes().await.unwrap()).unwrap();
    let operations = page["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 50);
    assert!(
        operations
            .iter()
            .all(|operation| operation["context"].as_str().unwrap().len() == 4 * 4_096)
    );
    let lines = service.world.replica.stop_and_read().await;
    assert_eq!(lines.len(), 5);
}

#[tokio::test]
async fn a_hangup_replaces_the_certificate_while_no_request_fails() {
    const NOT_AFTER: &str = "balance_tls_certificate_not_after_seconds";
    const FAILED: &str = "balance_tls_reload_failed";
    let mut service = Encrypted::start().await;
    let client = service.world.client.clone();
    client.change(&change("alice", 1, NOON)).await.expect(200);
    let first = service.certificate.clone();
    assert_eq!(shown_by(&service.connect().await), first.der());
    assert_eq!(client.metric(FAILED).await, 0);
    let not_after = client.metric(NOT_AFTER).await;

    // Requests all the while, on connections that stay and on new ones.
    let ended = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|number| {
            let (ended, own) = (Arc::clone(&ended), service.fresh_client());
            let (config, url) = (service.authority.client(), service.world.replica.url.clone());
            tokio::spawn(async move {
                let mut answered = 0;
                while !ended.load(Ordering::Relaxed) {
                    if number % 2 == 0 {
                        own.balance("alice", None).await.expect(200);
                    } else {
                        let client = reqwest::Client::builder().no_proxy();
                        let client = client.tls_backend_preconfigured(config.clone());
                        let got = client.build().unwrap().get(format!("{url}/alice/balance")).send().await;
                        assert_eq!(got.unwrap().status(), 200);
                    }
                    answered += 1;
                }
                answered
            })
        })
        .collect();

    let second = service
        .authority
        .sign_for(&["127.0.0.1"], Duration::from_secs(60 * 86_400));
    service.replace(&second.chain, &second.key);
    service.world.replica.signal(Signal::SIGHUP);
    service.world.replica.said("was read again").await;
    assert_eq!(shown_by(&service.connect().await), second.der());
    let later = client.metric(NOT_AFTER).await;
    assert!(
        (30 * 86_400..30 * 86_400 + 600).contains(&(later - not_after)),
        "{not_after} {later}"
    );

    // A key that is not the certificate's, half a file, none.
    let third = service.authority.sign(&["127.0.0.1"]);
    for (chain, key) in [
        (third.chain.as_str(), second.key.as_str()),
        (&third.chain[..third.chain.len() / 2], third.key.as_str()),
        ("", third.key.as_str()),
    ] {
        let errors = |lines: &[String]| lines.iter().filter(|line| line.contains("stays what it was")).count();
        let before = errors(&service.world.replica.output());
        service.replace(chain, key);
        service.world.replica.signal(Signal::SIGHUP);
        let told = timeout(PATIENCE, async {
            while errors(&service.world.replica.output()) == before {
                sleep(Duration::from_millis(5)).await;
            }
        });
        told.await.expect("the replica says that it cannot be used");
        assert_eq!(client.metric(FAILED).await, 1);
        assert_eq!(client.metric(NOT_AFTER).await, later);
        assert_eq!(shown_by(&service.connect().await), second.der());
    }
    for line in service.world.replica.output() {
        assert!(!line.contains("PRIVATE KEY"), "{line}");
    }

    service.replace(&third.chain, &third.key);
    service.world.replica.signal(Signal::SIGHUP);
    let mended = timeout(PATIENCE, async {
        while client.metric(FAILED).await == 1 {
            sleep(Duration::from_millis(5)).await;
        }
    });
    mended.await.expect("the next one is taken");
    assert_eq!(shown_by(&service.connect().await), third.der());
    ended.store(true, Ordering::Relaxed);
    for asking in asking {
        let answered = asking.await.expect("no request failed");
        assert!(answered > 0);
    }
    service.world.replica.stop().await;
}

#[tokio::test]
async fn a_request_under_way_over_https_is_answered_when_the_replica_is_told_to_stop() {
    let mut service = Encrypted::start().await;
    let gate = Arc::new(Semaphore::new(0));
    service.world.approver.hold(&gate);
    let client = service.world.client.clone();
    let idle = service.connect().await;
    let changing = tokio::spawn(async move { client.change(&change("alice", 200_000, NOON)).await });
    service.world.approver.until_called(1).await;
    service.world.replica.signal(Signal::SIGTERM);
    let refused = timeout(PATIENCE, async {
        while TcpStream::connect(service.address()).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    refused.await.expect("no more connections are taken");
    gate.add_permits(1);
    changing.await.unwrap().expect(200);
    drop(idle);
    assert!(service.world.replica.ended().await.success());
    assert_eq!(service.world.replica.log_lines().len(), 1);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start_and_the_variable_is_named() {
    let scratch = Scratch::new();
    let authority = Authority::new("the service's");
    let (own, other) = (authority.sign(&["localhost"]), authority.sign(&["localhost"]));
    let (chain, key) = (
        file(&scratch, "own.pem", &own.chain),
        file(&scratch, "own.key", &own.key),
    );
    let wrong_key = file(&scratch, "other.key", &other.key);
    let missing = super::shown(&scratch.0.join("missing.pem"));
    let start = [
        ("DATABASE_URL", "postgres://localhost:1/x"),
        ("APPROVER_URL", "https://localhost:1"),
        ("LISTEN", "127.0.0.1:0"),
    ];
    for (variables, said) in [
        (vec![("TLS_CERT", chain.as_str())], "TLS_KEY: "),
        (vec![("TLS_KEY", &key)], "TLS_CERT: "),
        (vec![("TLS_CERT", &missing), ("TLS_KEY", &key)], "TLS_CERT: "),
        (vec![("TLS_CERT", &key), ("TLS_KEY", &key)], "TLS_CERT: "),
        (vec![("TLS_CERT", &chain), ("TLS_KEY", &chain)], "TLS_KEY: "),
        (vec![("TLS_CERT", &chain), ("TLS_KEY", &wrong_key)], "TLS_KEY: "),
        (vec![("APPROVER_CA", &missing)], "APPROVER_CA: "),
        (vec![("APPROVER_CA", &key)], "APPROVER_CA: "),
        (
            vec![("APPROVER_CA", &chain), ("APPROVER_URL", "http://localhost:1")],
            "APPROVER_CA: ",
        ),
    ] {
        let log = super::shown(&scratch.0.join("operations.log"));
        let all: Vec<_> = start
            .into_iter()
            .chain([("OPERATIONS_LOG", log.as_str())])
            .chain(variables)
            .collect();
        let line = refused("serve", &all).await;
        assert!(line.contains(said) && line.contains("; give "), "{line}");
    }
}
