//! Accepting connections, with what poem's own listener lacks: `TCP_NODELAY`, a limit on connections, and a pause when
//! the operating system refuses another one.

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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::config::HttpConfig;

/// How long to wait after a refusal such as EMFILE, which lasts until some connection is closed.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// A bound address whose connections are accepted up to a limit.
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    places: Arc<Semaphore>,
}

/// A client's connection and the place it takes.
pub struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Listening {
    /// Binds the address.
    ///
    /// # Errors
    ///
    /// If the address is in use or not this host's.
    pub async fn bind(config: &HttpConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        Ok(Self {
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
            let connection = Connection { stream, _place: place };
            let (local, remote) = (LocalAddr(self.address.into()), RemoteAddr(peer.into()));
            return Ok((connection, local, remote, Scheme::HTTP));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
