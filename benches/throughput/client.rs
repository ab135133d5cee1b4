//! A small HTTP client: one keep-alive connection, one request after the other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use balance::domain::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Outcome;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub struct Client {
    stream: TcpStream,
}

/// What came back.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// From the first byte sent to the last received.
    pub latency: Duration,
}

impl Client {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// If nobody listens.
    pub async fn connect(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| format!("{address} cannot be reached: {error}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// `GET` of a path.
    ///
    /// # Errors
    ///
    /// If there is no whole answer.
    pub async fn get(&mut self, path: &str) -> Outcome<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    /// Adds 1 to a user's balance at a moment.
    ///
    /// # Errors
    ///
    /// If there is no whole answer.
    pub async fn change(&mut self, user: &str, at: Timestamp) -> Outcome<Answer> {
        let body = format!(r#"{{"userId":"{user}","context":"benchmark","balanceChange":1,"timestamp":"{at}"}}"#);
        let length = body.len();
        let request = format!(
            "POST /changeBalance HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.send(&request).await
    }

    async fn send(&mut self, request: &str) -> Outcome<Answer> {
        timeout(PATIENCE, self.exchange(request))
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
    }

    async fn exchange(&mut self, request: &str) -> Outcome<Answer> {
        let began = Instant::now();
        self.stream.write_all(request.as_bytes()).await?;
        let mut received = Vec::with_capacity(1_024);
        loop {
            if let Some((status, body)) = whole(&received)? {
                return Ok(Answer {
                    status,
                    body,
                    latency: began.elapsed(),
                });
            }
            if self.stream.read_buf(&mut received).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }
}

/// Status and body, once all bytes are there.
fn whole(received: &[u8]) -> Outcome<Option<(u16, String)>> {
    let text = std::str::from_utf8(received)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let status = head.split(' ').nth(1).ok_or("an answer without a status")?.parse()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    let length: usize = length.ok_or("an answer without a length")?.parse()?;
    Ok((body.len() >= length).then(|| (status, body.to_owned())))
}
