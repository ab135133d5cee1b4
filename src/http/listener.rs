//! Accepting connections, with what poem's own listener lacks: `TCP_NODELAY`, a limit on connections, an end for those on
//! which no answer is sent for long (idle ones, and requests that never end), and a pause when the operating system
//! refuses another one.
//!
//! What is no HTTP never reaches poem: hyper refuses it by itself, with a status and no body. Such an answer is given the
//! body of a problem here, on its way to the socket.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use poem_openapi::types::ToJSON;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use super::problem::{PROBLEM_JSON, Problem};
use crate::config::HttpConfig;

/// How long to wait after a refusal such as EMFILE, which lasts until some connection is closed.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// A bound address whose connections are accepted up to a limit.
pub struct Listening {
    idle_timeout: Duration,
    listener: TcpListener,
    address: SocketAddr,
    places: Arc<Semaphore>,
}

/// A client's connection and the place it takes.
pub struct Connection {
    stream: TcpStream,
    /// What stands in for an answer of hyper's own: its bytes, how many of them are written, and how many hyper wanted to.
    instead: Option<(Vec<u8>, usize, usize)>,
    /// When the connection is closed unless something is sent on it. What is received does not count: a request that
    /// drips in would never end.
    idle: Pin<Box<Sleep>>,
    idle_timeout: Duration,
    _place: OwnedSemaphorePermit,
}

impl Listening {
    /// Binds the address. A connection on which nothing is sent for `idle_timeout` is closed.
    ///
    /// # Errors
    ///
    /// If the address is in use or not this host's.
    pub async fn bind(config: &HttpConfig, idle_timeout: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        Ok(Self {
            idle_timeout,
            address: listener.local_addr()?,
            listener,
            places: Arc::new(Semaphore::new(NonZeroUsize::get(config.connections))),
        })
    }

    /// The address that is bound, with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Acceptor for Listening {
    type Io = Connection;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Connection, LocalAddr, RemoteAddr, Scheme)> {
        loop {
            let place = Arc::clone(&self.places)
                .acquire_owned()
                .await
                .map_err(io::Error::other)?;
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(REFUSED_PAUSE).await;
                    continue;
                }
            };
            // Without it an answer waits for the acknowledgement of the one before. Only a closed socket refuses.
            let _ = stream.set_nodelay(true);
            let connection = Connection {
                stream,
                instead: None,
                idle: Box::pin(sleep(self.idle_timeout)),
                idle_timeout: self.idle_timeout,
                _place: place,
            };
            let (local, remote) = (LocalAddr(self.address.into()), RemoteAddr(peer.into()));
            return Ok((connection, local, remote, Scheme::HTTP));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && self.idle.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl Connection {
    /// Writes what stands in for hyper's answer, to its end; hyper is told that its own was written.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((bytes, written, wanted)) = &mut self.instead {
            if *written == bytes.len() {
                let wanted = *wanted;
                self.instead = None;
                return Poll::Ready(Ok(wanted));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &bytes[*written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => *written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(0))
    }
}

/// hyper's own refusals: a head that says there is no body. Every refusal of ours has one.
fn is_bare_refusal(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.1 4")
        && bytes.ends_with(b"\r\n\r\n")
        && contains(bytes, b"content-length: 0\r\n")
        && !contains(bytes, b"content-type:")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

// Without vectored writes hyper puts head and body into one buffer, which small answers are better off with too.
impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.instead.is_none() && is_bare_refusal(buf) {
            self.instead = Some((unreadable_request(), 0, buf.len()));
        }
        if self.instead.is_some() {
            return self.poll_instead(cx);
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(_))) {
            let until = Instant::now() + self.idle_timeout;
            self.idle.as_mut().reset(until);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The answer to what is no HTTP, after which hyper closes the connection.
fn unreadable_request() -> Vec<u8> {
    let detail = "This cannot be read as HTTP/1.1, or its head is too large; \
                  send a request such as GET /alice/balance HTTP/1.1 with the header Host.";
    let body = Problem::invalid(detail).to_json_string();
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
