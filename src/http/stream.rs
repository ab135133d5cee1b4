//! The bytes of a client's connection, in plain text or through TLS.
//!
//! TLS keeps what it was given and the socket had no room for: some of what counts as written may still be here, until a
//! flush has ended. The handshake is made by whoever reads first, so that accepting others does not wait for it.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::unistd::write;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::connection::last_answer;
use super::problem::Problem;

/// How everything begins that is TLS: a record of the handshake.
const HANDSHAKE: u8 = 22;

/// Plain text, or TLS at some stage.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// How far a connection has come.
pub enum Tls {
    /// Nothing has come yet.
    New(TcpStream, Arc<ServerConfig>),
    Handshake(Accept<TcpStream>),
    Open(TlsStream<TcpStream>),
    /// The client speaks plain text and has been told; what else it sends is thrown away until it hangs up. What is closed
    /// with something left to read is reset, and the client may lose the answer.
    Told(TcpStream),
    /// The handshake failed.
    Ended,
}

/// What became of bytes that were sent with force.
pub enum Forced {
    /// So many of them are on their way.
    Sent(usize),
    /// Some that were written before are, and there may be room for these now.
    Earlier,
}

impl Stream {
    /// A connection that was accepted just now; with `tls` it is one.
    pub fn new(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Self {
        match tls {
            None => Self::Plain(stream),
            Some(config) => Self::Tls(Box::new(Tls::New(stream, config))),
        }
    }

    /// Whether requests can come over it: it is plain text, or the handshake is done.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(tls) => matches!(**tls, Tls::Open(_)),
        }
    }

    /// Whether what was written may still be here.
    pub fn keeps_back(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Sends what there is room for at once; nothing follows it, and it is not worth waiting. What has come of the client's
    /// is thrown away first: what is closed with something left to read is reset, and the client may lose the answer.
    pub fn send_last(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(stream) => {
                let _ = stream.try_read(&mut [0; 4096]);
                let _ = stream.try_write(bytes);
            }
            Self::Tls(tls) => {
                if let Tls::Open(stream) = &mut **tls {
                    let (socket, session) = stream.get_mut();
                    let _ = socket.try_read(&mut [0; 4096]);
                    let _ = session.writer().write_all(bytes);
                    session.send_close_notify();
                    while session.wants_write() && session.write_tls(&mut AtOnce(socket)).is_ok_and(|sent| sent > 0) {}
                }
            }
        }
    }

    /// Sends whatever the socket has room for, be it less than the operating system counts as writable.
    pub fn force(&mut self, bytes: &[u8]) -> io::Result<Forced> {
        match self {
            Self::Plain(stream) => Ok(Forced::Sent(write(&*stream, bytes)?)),
            Self::Tls(tls) => {
                let Tls::Open(stream) = &mut **tls else {
                    return Err(io::ErrorKind::NotConnected.into());
                };
                let (socket, session) = stream.get_mut();
                match session.write_tls(&mut WithForce(socket))? {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Ok(Forced::Earlier),
                }
            }
        }
    }

    /// From now on the operating system throws away what it has not sent when the connection is closed, which it would
    /// otherwise keep for minutes.
    pub fn give_up(&self) {
        let socket = match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(tls) => match &**tls {
                Tls::New(stream, _) | Tls::Told(stream) => Some(stream),
                Tls::Handshake(accept) => accept.get_ref(),
                Tls::Open(stream) => Some(stream.get_ref().0),
                Tls::Ended => None,
            },
        };
        // Only a closed socket refuses.
        let _ = socket.map(TcpStream::set_zero_linger);
    }
}

impl Tls {
    /// Goes on with the handshake; ready when it is done, with an error when nothing will come of it.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut TlsStream<TcpStream>>> {
        loop {
            match self {
                Self::Open(_) => break,
                Self::New(stream, _) => {
                    let mut first = [0];
                    if ready!(stream.poll_peek(cx, &mut ReadBuf::new(&mut first)))? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    self.begin(first[0] == HANDSHAKE, cx);
                }
                Self::Handshake(accept) => match ready!(Pin::new(accept).poll(cx)) {
                    Ok(stream) => *self = Self::Open(stream),
                    Err(error) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        *self = Self::Ended;
                        return Poll::Ready(Err(error));
                    }
                },
                Self::Told(stream) => {
                    let mut discarded = [0; 4096];
                    let mut discarded = ReadBuf::new(&mut discarded);
                    ready!(Pin::new(stream).poll_read(cx, &mut discarded))?;
                    if discarded.filled().is_empty() {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                }
                Self::Ended => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            }
        }
        match self {
            Self::Open(stream) => Poll::Ready(Ok(stream)),
            Self::New(..) | Self::Handshake(_) | Self::Told(_) | Self::Ended => {
                Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
            }
        }
    }

    /// Begins the handshake, or tells the client that it should have.
    fn begin(&mut self, is_tls: bool, cx: &mut Context<'_>) {
        *self = match std::mem::replace(self, Self::Ended) {
            Self::New(stream, config) if is_tls => Self::Handshake(TlsAcceptor::from(config).accept(stream)),
            Self::New(mut stream, _) => {
                // The answer is the first that is sent, so that there is room for it.
                let _ = stream.try_write(&not_encrypted());
                // At once, since nothing is kept back. Only a closed socket refuses.
                let _ = Pin::new(&mut stream).poll_shutdown(cx);
                Self::Told(stream)
            }
            other => other,
        };
    }

    /// The socket, before anything but a handshake can have been written to it.
    fn unopened(&mut self) -> Option<&mut TcpStream> {
        match self {
            Self::New(stream, _) | Self::Told(stream) => Some(stream),
            Self::Handshake(accept) => accept.get_mut(),
            Self::Open(_) | Self::Ended => None,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tls) => {
                let stream = ready!(tls.poll_open(cx))?;
                Pin::new(stream).poll_read(cx, buf)
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(tls) => {
                let stream = ready!(tls.poll_open(cx))?;
                Pin::new(stream).poll_write(cx, buf)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tls) => match &mut **tls {
                Tls::Open(stream) => Pin::new(stream).poll_flush(cx),
                // Nothing has been written.
                Tls::New(..) | Tls::Handshake(_) | Tls::Told(_) | Tls::Ended => Poll::Ready(Ok(())),
            },
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tls) => match &mut **tls {
                Tls::Open(stream) => Pin::new(stream).poll_shutdown(cx),
                unopened => match unopened.unopened() {
                    Some(stream) => Pin::new(stream).poll_shutdown(cx),
                    None => Poll::Ready(Ok(())),
                },
            },
        }
    }
}

/// Writes what tokio knows there is room for.
struct AtOnce<'a>(&'a TcpStream);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks the operating system, whatever tokio knows.
struct WithForce<'a>(&'a TcpStream);

impl Write for WithForce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The answer to plain text where TLS is spoken.
fn not_encrypted() -> Vec<u8> {
    last_answer(&Problem::invalid(
        "Only https is spoken here, and the request came without TLS; send it to https:// at the same address.",
    ))
}
