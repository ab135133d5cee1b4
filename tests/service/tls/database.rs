use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio_postgres::config::Host;

use super::{file, refused, run, shown};
use crate::support::approver::TestApprover;
use crate::support::certificates::{Authority, self_signed};
use crate::support::client::{ServiceClient, answer, change};
use crate::support::postgres::{Database, connect, fresh_database};
use crate::support::proxy::Proxy;
use crate::support::replica::{ReplicaOptions, Scratch};
use crate::support::secure_postgres::SecurePostgres;
use crate::support::world::NOON;

const DATABASE: &str = "ledger";

/// Connections of replicas to the database, encrypted and not.
async fn connections(server: &SecurePostgres) -> (i64, i64) {
    let count = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl \
                 JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'balance %'";
    let row = connect(&server.server.url(DATABASE)).await.query_one(count, &[]).await;
    let row = row.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn every_connection_to_postgresql_is_encrypted_and_whoever_is_not_the_trusted_one_is_refused() {
    let (authority, stranger) = (Authority::new("the database's"), Authority::new("a stranger's"));
    // For this name, and not for the address.
    let server = SecurePostgres::start("tls", &authority, &authority.sign(&["localhost"])).await;
    server.server.create_database(DATABASE).await.unwrap();
    let scratch = Scratch::new();
    let ca = file(&scratch, "ca.pem", &authority.pem);
    let wrong = file(&scratch, "wrong.pem", &stranger.pem);

    // It takes nothing in plain text, so whatever works is encrypted.
    let plain = server.url("localhost", DATABASE, "sslmode=disable");
    let line = refused("migrate", &[("DATABASE_URL", &plain)]).await;
    assert!(line.contains("no encryption"), "{line}");

    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    for (host, parameters, said) in [
        (
            "localhost",
            format!("sslmode=require&sslrootcert={wrong}"),
            Some("not signed by a trusted authority"),
        ),
        (
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={wrong}"),
            Some("not signed by a trusted authority"),
        ),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={wrong}"),
            Some("not signed by a trusted authority"),
        ),
        (
            "localhost",
            "sslrootcert=system".to_owned(),
            Some("not signed by a trusted authority"),
        ),
        ("127.0.0.1", full.clone(), Some("for another name")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}"), None),
        ("127.0.0.1", "sslmode=require".to_owned(), None),
        ("127.0.0.1", "sslmode=prefer".to_owned(), None),
        ("127.0.0.1", String::new(), None),
        ("localhost", format!("{full}&channel_binding=require"), None),
    ] {
        let url = server.url(host, DATABASE, &parameters);
        for command in ["migrate", "verify"] {
            let variables = [("DATABASE_URL", url.as_str())];
            let Some(said) = said else {
                let output = run(command, &variables).await;
                assert!(output.status.success(), "{command} {host} {parameters}: {output:?}");
                continue;
            };
            let line = refused(command, &variables).await;
            assert!(
                line.contains("no secure connection to PostgreSQL: ") && line.contains(said),
                "{command} {parameters}: {line}"
            );
            assert!(!line.contains("localhost") && !line.contains("127.0.0.1"), "{line}");
        }
    }

    let missing = shown(&scratch.0.join("missing.pem"));
    for command in ["migrate", "verify"] {
        let url = server.url(
            "localhost",
            DATABASE,
            &format!("sslmode=verify-full&sslrootcert={missing}"),
        );
        let line = refused(command, &[("DATABASE_URL", &url)]).await;
        assert!(
            line.contains("DATABASE_URL: ") && line.contains("missing.pem\" cannot be read"),
            "{line}"
        );
    }

    let approver = TestApprover::start().await;
    for (parameters, told) in [
        ("sslmode=require", "connections to PostgreSQL are encrypted"),
        (&full, "connections to PostgreSQL are encrypted"),
        (
            "",
            "connections to PostgreSQL are encrypted, and who answers is not verified",
        ),
    ] {
        let url = server.url("localhost", DATABASE, parameters);
        let options = ReplicaOptions::new("postgres://localhost:1/x", &approver.url()).set("DATABASE_URL", &url);
        let mut replica = options.start().await;
        let client = ServiceClient::new(&replica.url);
        for number in 0..20 {
            client
                .change(&change(&format!("user{number}"), 1, NOON))
                .await
                .expect(200);
        }
        replica.said(told).await;
        let (encrypted, plain) = connections(&server).await;
        assert!(encrypted > 0 && plain == 0, "{encrypted} {plain}");
        replica.stop().await;
    }
}

#[tokio::test]
async fn a_replica_whose_postgresql_shows_an_expired_certificate_says_so_and_comes_back_by_itself() {
    let authority = Authority::new("the database's");
    let names = ["localhost"];
    // From yesterday, for an hour.
    let expired = authority.sign_for(&names, Duration::from_secs(3_600));
    let server = SecurePostgres::start("tls-expired", &authority, &expired).await;
    let database = Database::migrated(&server.server, DATABASE).await;
    let scratch = Scratch::new();
    let ca = file(&scratch, "ca.pem", &authority.pem);
    let url = server.url(
        "localhost",
        &database.name,
        &format!("sslmode=verify-full&sslrootcert={ca}"),
    );
    let approver = TestApprover::start().await;
    let options = ReplicaOptions::new("postgres://localhost:1/x", &approver.url()).set("DATABASE_URL", &url);
    let mut replica = options.start().await;
    let client = ServiceClient::new(&replica.url);

    let detail = answer(client.get("/readyz")).await.expect_problem(503, "not_ready");
    assert_eq!(
        detail.detail(),
        "There is no secure connection to the database: the server's certificate has expired."
    );
    client
        .change(&change("alice", 1, NOON))
        .await
        .expect_problem(503, "database_unavailable");
    replica
        .said("no secure connection to PostgreSQL: the server's certificate has expired")
        .await;
    assert_eq!(connections(&server).await, (0, 0));

    // One that has signed itself is trusted where it is named itself, and by nobody else.
    let own = self_signed(&names);
    server.show(&own).await;
    let own_ca = file(&scratch, "own.pem", &own.chain);
    for (ca, is_trusted) in [(&ca, false), (&own_ca, true)] {
        let url = server.url(
            "localhost",
            &database.name,
            &format!("sslmode=verify-full&sslrootcert={ca}"),
        );
        let output = run("migrate", &[("DATABASE_URL", &url)]).await;
        assert_eq!(output.status.success(), is_trusted, "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            said.contains("not signed by a trusted authority"),
            !is_trusted,
            "{said}"
        );
    }
    let url = server.url(
        "127.0.0.1",
        &database.name,
        &format!("sslmode=verify-full&sslrootcert={own_ca}"),
    );
    let line = refused("migrate", &[("DATABASE_URL", &url)]).await;
    assert!(line.contains("for another name"), "{line}");

    server.show(&authority.sign(&names)).await;
    let back = tokio::time::timeout(Duration::from_secs(20), async {
        while client.get("/readyz").send().await.unwrap().status() != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    back.await.expect("the replica is ready again");
    client.change(&change("alice", 1, NOON)).await.expect(200);
    replica.stop().await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_postgresql_that_wants_one() {
    let authority = Authority::new("the database's");
    let server = SecurePostgres::start("tls-client", &authority, &authority.sign(&["localhost"])).await;
    server.server.create_database(DATABASE).await.unwrap();
    let scratch = Scratch::new();
    let ca = file(&scratch, "ca.pem", &authority.pem);
    let named = |name| authority.sign_client(name).write(&scratch.0, name);
    let parameters = format!("sslmode=verify-full&sslrootcert={ca}");
    let (own, own_key) = named(crate::support::secure_postgres::BY_CERTIFICATE);
    let (other, other_key) = named("somebody_else");
    let identity = |certificate, key| format!("{parameters}&sslcert={}&sslkey={}", shown(certificate), shown(key));

    let url = server.url_by_certificate(DATABASE, &identity(&own, &own_key));
    let output = run("migrate", &[("DATABASE_URL", &url)]).await;
    assert!(output.status.success(), "{output:?}");
    for parameters in [parameters.clone(), identity(&other, &other_key)] {
        let url = server.url_by_certificate(DATABASE, &parameters);
        refused("migrate", &[("DATABASE_URL", &url)]).await;
    }
    let url = server.url_by_certificate(DATABASE, &identity(&own, &other_key));
    let line = refused("migrate", &[("DATABASE_URL", &url)]).await;
    assert!(line.contains("DATABASE_URL") && line.contains("sslkey"), "{line}");
}

/// What clients have sent on each connection to a PostgreSQL that offers no TLS.
struct Recorder {
    url: String,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    async fn start(database: &Database) -> Self {
        let config = tokio_postgres::Config::from_str(&database.url).unwrap();
        let Some(Host::Unix(directory)) = config.get_hosts().first() else {
            panic!("the PostgreSQL of the tests is on a Unix socket");
        };
        let socket = directory.join(format!(".s.PGSQL.{}", config.get_ports()[0]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&sent);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let number = {
                    let mut recorded = recorded.lock().unwrap();
                    recorded.push(Vec::new());
                    recorded.len() - 1
                };
                let recorded = Arc::clone(&recorded);
                let mut server = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.split();
                    let (mut from_server, mut to_server) = server.split();
                    let requests = async {
                        let mut buffer = [0; 4_096];
                        while let Ok(read) = from_client.read(&mut buffer).await {
                            if read == 0 {
                                break;
                            }
                            recorded.lock().unwrap()[number].extend_from_slice(&buffer[..read]);
                            to_server.write_all(&buffer[..read]).await.unwrap();
                        }
                    };
                    tokio::select! {
                        () = requests => {}
                        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                    }
                });
            }
        });
        Self {
            url: format!("postgres://balance:hunter2@{address}/{}", database.name),
            sent,
        }
    }
}

/// How PostgreSQL is asked whether it offers TLS; the answer is one byte.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

#[tokio::test]
async fn where_tls_is_asked_for_a_postgresql_without_it_is_sent_nothing_but_the_question() {
    let database = fresh_database().await;
    let recorder = Recorder::start(&database).await;
    let authority = Authority::new("the database's");
    let scratch = Scratch::new();
    let ca = file(&scratch, "ca.pem", &authority.pem);
    for parameters in [
        "sslmode=require".to_owned(),
        format!("sslmode=verify-ca&sslrootcert={ca}"),
        format!("sslmode=verify-full&sslrootcert={ca}"),
    ] {
        let url = format!("{}?{parameters}", recorder.url);
        for command in ["migrate", "verify"] {
            let line = refused(command, &[("DATABASE_URL", &url)]).await;
            assert!(
                line.ends_with("no secure connection to PostgreSQL: the server offers no TLS"),
                "{line}"
            );
        }
        let approver = TestApprover::start().await;
        let options = ReplicaOptions::new("postgres://localhost:1/x", &approver.url()).set("DATABASE_URL", &url);
        let mut replica = options.start().await;
        let client = ServiceClient::new(&replica.url);
        client
            .change(&change("alice", 1, NOON))
            .await
            .expect_problem(503, "database_unavailable");
        let detail = answer(client.get("/readyz")).await.expect_problem(503, "not_ready");
        assert_eq!(
            detail.detail(),
            "There is no secure connection to the database: the server offers no TLS."
        );
        replica
            .said("no secure connection to PostgreSQL: the server offers no TLS")
            .await;
        replica.stop().await;
    }
    {
        let sent = recorder.sent.lock().unwrap();
        assert!(sent.len() >= 9, "{}", sent.len());
        for sent in sent.iter() {
            assert_eq!(sent[..], SSL_REQUEST);
        }
    }
    // The recorder does see what is sent after it.
    let output = run(
        "migrate",
        &[("DATABASE_URL", &format!("{}?sslmode=prefer", recorder.url))],
    )
    .await;
    assert!(output.status.success(), "{output:?}");
    let sent = recorder.sent.lock().unwrap();
    assert!(sent.last().unwrap().windows(7).any(|window| window == b"balance"));
}

#[tokio::test]
async fn where_nothing_is_asked_for_the_start_says_that_connections_are_not_encrypted() {
    let database = fresh_database().await;
    let (proxy, approver) = (Proxy::start(&database).await, TestApprover::start().await);
    let port = proxy.url.rsplit_once(':').unwrap().1;
    let url = format!("postgres://balance:hunter2@127.0.0.1:{port}");
    for (url, said) in [
        (&url, "connections to PostgreSQL are not encrypted"),
        (&database.url, "are not encrypted"),
    ] {
        if crate::support::certificates::Everywhere::asked().is_some() {
            // Then the proxy leads to a PostgreSQL that speaks TLS.
            return;
        }
        let mut replica = ReplicaOptions::new(url, &approver.url()).start().await;
        let client = ServiceClient::new(&replica.url);
        client.change(&change("alice", 1, NOON)).await.expect(200);
        replica.said(said).await;
        replica.stop().await;
    }
}
