use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::service::{Encrypted, PATIENCE};
use crate::clients::{fill_history, take_steadily, until_given_up};
use crate::support::client::answer;
use crate::support::raw;

/// Connects, with a small buffer for what comes.
async fn connect_small(service: &Encrypted) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(service.address()).await.unwrap()
}

/// Asks for a history of 16 MB, with a small buffer for it.
async fn ask_for_page(service: &Encrypted) -> TlsStream<TcpStream> {
    let stream = connect_small(service).await;
    let mut stream = service.handshake(stream, service.authority.client()).await.unwrap();
    let request = b"GET /paged/history HTTP/1.1\r\nhost: x\r\naccept: text/csv\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

#[tokio::test]
async fn an_encrypted_answer_that_is_taken_slowly_but_steadily_is_not_given_up() {
    let service = Encrypted::with(|options| options.set("CLIENT_TIMEOUT_MS", "500")).await;
    fill_history(&service.world.database).await;
    let mut stream = ask_for_page(&service).await;
    take_steadily(&mut stream).await;
    drop(stream);
    service.world.replica.stop().await;
}

#[tokio::test]
async fn an_encrypted_answer_that_the_client_does_not_take_is_given_up() {
    let service = Encrypted::with(|options| options.set("CLIENT_TIMEOUT_MS", "500")).await;
    fill_history(&service.world.database).await;
    let before = service.world.replica.descriptors();
    let mut takers = Vec::new();
    for _ in 0..3 {
        let mut stream = ask_for_page(&service).await;
        // The first of it is there, and the rest is never read.
        stream.read_exact(&mut [0; 16]).await.unwrap();
        takers.push(stream);
    }
    for taker in takers {
        until_given_up(taker.get_ref().0).await;
    }
    // Connections to PostgreSQL may have been opened meanwhile.
    service.world.replica.until_descriptors(before + 8).await;
    service.world.client.balance("alice", None).await.expect(200);
    service.world.replica.stop().await;
}

/// The first message of a handshake.
async fn hello(service: &Encrypted) -> Vec<u8> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(service.authority.client()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn handshakes_that_do_not_get_on_end_in_the_clients_time_and_hold_up_nobody() {
    const CLIENT_TIMEOUT: Duration = Duration::from_millis(800);
    let service = Encrypted::with(|options| options.set("CLIENT_TIMEOUT_MS", "800")).await;
    service.world.client.balance("alice", None).await.expect(200);
    let before = service.world.replica.descriptors();
    let hello = hello(&service).await;
    let mut slow = JoinSet::new();
    // Silent, one byte, half of the first message, all of it, a garbled one.
    for part in [&[][..], &hello[..1], &hello[..hello.len() / 2], &hello] {
        for number in 0..40 {
            let (mut stream, part) = (TcpStream::connect(service.address()).await.unwrap(), part.to_vec());
            slow.spawn(async move {
                let began = Instant::now();
                stream.write_all(&part).await.unwrap();
                // Some go on to drip.
                let dripping = number % 2 == 0 && part.len() == 1;
                let mut answer = Vec::new();
                loop {
                    let read = timeout(Duration::from_millis(100), stream.read_buf(&mut answer)).await;
                    match read {
                        Ok(Ok(0) | Err(_)) => break began.elapsed(),
                        Ok(Ok(_)) => {}
                        Err(_) if dripping => drop(stream.write_all(&[3]).await),
                        Err(_) => {}
                    }
                    assert!(began.elapsed() < PATIENCE, "{part:?} is not cut");
                }
            });
        }
    }
    let began = Instant::now();
    let mut others = 0;
    while began.elapsed() < CLIENT_TIMEOUT / 2 {
        let asked = Instant::now();
        // A connection of its own each time.
        let stream = service.connect().await;
        assert!(service.get(stream, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(asked.elapsed() < CLIENT_TIMEOUT / 2, "{:?}", asked.elapsed());
        others += 1;
    }
    println!("{others} others were served meanwhile");
    while let Some(cut) = slow.join_next().await {
        let cut = cut.unwrap();
        assert!(cut >= CLIENT_TIMEOUT - Duration::from_millis(50), "{cut:?}");
        assert!(cut < CLIENT_TIMEOUT + Duration::from_secs(3), "{cut:?}");
    }
    service.world.replica.until_descriptors(before + 8).await;
    service.world.replica.stop().await;
}

#[tokio::test]
async fn a_head_that_drips_in_over_tls_is_closed_and_what_is_no_http_is_refused() {
    let service = Encrypted::with(|options| options.set("IDLE_TIMEOUT_MS", "400")).await;
    let mut stream = service.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nho").await.unwrap();
    assert!(raw::until_closed(&mut stream).await.is_none());
    let mut stream = service.connect().await;
    stream.write_all(b"garbage\r\n\r\n").await.unwrap();
    let told = raw::until_closed(&mut stream).await.expect("an answer");
    assert_eq!(told.status, 400);
    service.world.replica.stop().await;
}

#[tokio::test]
async fn a_request_without_tls_is_told_to_use_https_and_gets_nothing_else() {
    let service = Encrypted::start().await;
    let plain = service.world.replica.url.replace("https://", "http://");
    let small = b"GET /alice/balance HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    let large = [
        b"POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n"
            .to_vec(),
        vec![b' '; 60_000],
    ];
    for request in [small, large.concat(), b"EHLO\r\n".to_vec()] {
        let told = raw::exchange(&plain, &request).await.expect("an answer");
        assert_eq!(told.status, 400);
        told.expect_protection();
        assert!(told.head.contains("content-type: application/problem+json"), "{told:?}");
        assert!(told.json()["detail"].as_str().unwrap().contains("https"), "{told:?}");
    }
    let lines = service.world.replica.stop_and_read().await;
    assert!(lines.is_empty(), "{lines:?}");
}

#[tokio::test]
async fn encrypted_clients_beyond_the_limit_on_connections_are_answered_503() {
    let service = Encrypted::with(|options| options.set("CONNECTIONS", "2")).await;
    let mut inside = Vec::new();
    for _ in 0..2 {
        let mut stream = service.connect().await;
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        stream.read_exact(&mut [0; 16]).await.unwrap();
        inside.push(stream);
    }
    // Silent ones, which get nothing, do not hold the others up.
    let silent: Vec<_> = futures_util::future::join_all((0..20).map(|_| TcpStream::connect(service.address()))).await;
    for _ in 0..5 {
        let refused = answer(service.fresh_client().get("/livez")).await;
        refused.expect_problem(503, "overloaded");
        let refused = raw::until_closed(&mut service.connect().await)
            .await
            .expect("an answer");
        assert_eq!(refused.status, 503);
        refused.expect_protection();
    }
    drop((inside, silent));
    let began = Instant::now();
    while service
        .fresh_client()
        .get("/livez")
        .send()
        .await
        .map_or(true, |answer| answer.status() != 200)
    {
        assert!(began.elapsed() < PATIENCE, "no room");
    }
    service.world.replica.stop().await;
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_http_2_is_not_agreed_upon() {
    let service = Encrypted::start().await;
    for (version, name) in [
        (&rustls::version::TLS12, rustls::ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, rustls::ProtocolVersion::TLSv1_3),
    ] {
        let mut config = service.client_of(&[version]);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = TcpStream::connect(service.address()).await.unwrap();
        let stream = service.handshake(stream, config).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.protocol_version(), Some(name));
        assert_eq!(session.alpn_protocol(), Some(b"http/1.1".as_slice()));
        assert!(service.get(stream, "/livez").await.starts_with("HTTP/1.1 200"));
    }
    let mut config = service.authority.client();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(service.address()).await.unwrap();
    assert!(service.handshake(stream, config).await.is_err());
    service.world.replica.stop().await;
}

/// A handshake over a connection.
pub async fn handshake(stream: TcpStream, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(PATIENCE, handshake).await.expect("the handshake ends")
}

/// The certificate that the service has shown.
pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}
