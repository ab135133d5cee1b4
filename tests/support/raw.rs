//! Bytes over TCP, for requests that no HTTP client would send.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// An answer as it came: the status, the head in lower case and the body.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl RawAnswer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Expects what every answer tells browsers and proxies, each once.
    pub fn expect_protection(&self) {
        for line in [
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'",
        ] {
            let count = self.head.lines().filter(|found| *found == line).count();
            assert_eq!(count, 1, "{line}: {}", self.head);
        }
    }
}

/// Sends the bytes, and leaves the connection open.
pub async fn send(url: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Sends the bytes, says that no more will come, and reads until the service closes. None: it closed without a word.
pub async fn exchange(url: &str, bytes: &[u8]) -> Option<RawAnswer> {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    // The service may have answered and closed before it has all of it.
    if stream.write_all(bytes).await.is_ok() {
        let _ = stream.shutdown().await;
    }
    until_closed(&mut stream).await
}

/// Reads until the service closes. None: it closed without a word.
pub async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<RawAnswer> {
    let mut answer = Vec::new();
    let reading = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    let _reset_is_closed_too = reading.expect("the service answers or closes the connection");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some(RawAnswer {
        status,
        head,
        body: answer[end + 4..].to_vec(),
    })
}

/// Gets a path exactly as it is written.
pub async fn get(url: &str, path: &str) -> RawAnswer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    exchange(url, request.as_bytes()).await.expect("an answer")
}
