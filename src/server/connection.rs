//! A connection as hyper reads and writes it: large heads take memory from the budget, and a client that takes nothing of
//! an answer is cut off.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::MAX_HEAD_BYTES;
use super::socket::{Forced, Socket};
use crate::http::{Memory, Reserved, UNCOUNTED_BYTES};

/// How long a client may go on sending after its last answer. A connection that is closed with something left to read is
/// reset, and the client may lose the answer.
pub const LINGER: Duration = Duration::from_secs(2);
/// The most bytes that are read at once. As much of a next head may come with the end of a request, and as much again is
/// not counted: together hyper's first buffer, which so does not grow.
const READ_BYTES: u64 = 4 * 1024;

/// How far the requests of a connection have come; the service tells, the connection asks.
#[derive(Default)]
pub struct Progress {
    /// How many bytes came since the last answer.
    head: AtomicUsize,
    has_begun: AtomicBool,
    is_under_way: AtomicBool,
    /// Whether the client may go on sending after the last answer.
    is_cut_short: AtomicBool,
}

impl Progress {
    /// A head is complete.
    pub fn head_arrived(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
        self.is_under_way.store(true, Ordering::Relaxed);
    }

    /// The request is answered; `is_last` if the answer says that the connection will be closed.
    pub fn answered(&self, is_last: bool) {
        self.head.store(0, Ordering::Relaxed);
        self.is_under_way.store(false, Ordering::Relaxed);
        self.is_cut_short.store(is_last, Ordering::Relaxed);
    }

    /// Whether a whole head has ever come.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Adds to the head, and tells how long it is.
    fn received(&self, bytes: usize) -> usize {
        match self.is_under_way.load(Ordering::Relaxed) {
            true => 0,
            false => self.head.fetch_add(bytes, Ordering::Relaxed) + bytes,
        }
    }

    /// Whether the client may have sent something that nobody has read.
    fn is_unread(&self) -> bool {
        self.is_cut_short.load(Ordering::Relaxed) || self.head.load(Ordering::Relaxed) > 0
    }
}

/// A connection; for its time limits see [`server`](super).
pub struct Connection {
    socket: Take<Socket>,
    progress: Arc<Progress>,
    patience: Duration,
    /// Runs while the socket has no room for what is being sent.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs after the last byte was sent.
    lingering: Option<Pin<Box<Sleep>>>,
    memory: Memory,
    /// Once a head was large, hyper keeps a large buffer.
    large_buffer: Option<Reserved>,
}

impl Connection {
    /// `patience` is how long the client may take nothing of an answer.
    pub fn new(socket: Socket, patience: Duration, memory: Memory, progress: Arc<Progress>) -> Self {
        Self {
            socket: socket.take(READ_BYTES),
            progress,
            patience,
            stalled: None,
            lingering: None,
            memory,
            large_buffer: None,
        }
    }

    /// Repeats `send` until the socket takes something. Ready with an error when nothing was taken for too long; bytes of
    /// `next` that were sent meanwhile are told.
    fn poll_sent<T>(
        &mut self,
        cx: &mut Context<'_>,
        next: &[u8],
        mut send: impl FnMut(Pin<&mut Socket>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<Result<T, usize>>> {
        loop {
            if let Poll::Ready(sent) = send(Pin::new(self.socket.get_mut()), cx) {
                self.stalled = None;
                return Poll::Ready(sent.map(Ok));
            }
            let patience = self.patience;
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
            ready!(stalled.as_mut().poll(cx));
            self.stalled = None;
            // The socket counts as writable when a third of what it holds is taken, which may be megabytes; there is room
            // as soon as anything is.
            match self.socket.get_mut().force(next) {
                Ok(Forced::Sent(count)) => return Poll::Ready(Ok(Err(count))),
                Ok(Forced::Earlier) => {}
                Err(_) => {
                    // The operating system would keep what it has not sent for minutes. Only a closed socket refuses.
                    let _ = TcpStream::set_zero_linger(self.socket.get_mut().tcp());
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    /// hyper reads nothing while a request is under way, and flushes whenever it is woken. A client that has said that it
    /// sends no more still waits; one that has reset the connection does not.
    fn look_for_reset(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let tcp = self.socket.get_mut().tcp();
        if !self.progress.is_under_way.load(Ordering::Relaxed) || tcp.poll_read_ready(cx)?.is_pending() {
            return Ok(());
        }
        tcp.take_error()?.map_or(Ok(()), Err)
    }

    /// Reads what the client still sends, until it hangs up or the time is over.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if lingering.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut dropped = [0; 4096];
        loop {
            let mut dropped = ReadBuf::new(&mut dropped);
            let read = ready!(Pin::new(self.socket.get_mut().tcp()).poll_read(cx, &mut dropped));
            if read.is_err() || dropped.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.socket.set_limit(READ_BYTES);
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        let head = this.progress.received(buf.filled().len() - before);
        if head > UNCOUNTED_BYTES && this.large_buffer.is_none() {
            let reserved = this.memory.try_reserve(MAX_HEAD_BYTES);
            this.large_buffer = Some(reserved.map_err(|_| io::ErrorKind::OutOfMemory)?);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    // hyper copies answers into a buffer of its own where writes are not vectored, and keeps that buffer.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let next = bufs.iter().find(|buf| !buf.is_empty());
        let next = next.map_or(&[][..], |buf| &**buf);
        let sent = self.poll_sent(cx, next, |socket, cx| socket.poll_write_vectored(cx, bufs));
        sent.map_ok(|sent| sent.unwrap_or_else(|forced| forced))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look_for_reset(cx)?;
        self.poll_sent(cx, &[], |socket, cx| socket.poll_flush(cx))
            .map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let _sent = ready!(self.poll_sent(cx, &[], |socket, cx| socket.poll_shutdown(cx)))?;
        }
        if self.progress.is_unread() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
