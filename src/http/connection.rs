//! A client's connection: whatever the client does or leaves undone on it ends within a time that is known.
//!
//! What is no HTTP never reaches poem: hyper refuses it by itself, with a status and no body. Such an answer is given the
//! body of a problem here, on its way to the socket. HTTP/2 is refused here too: its streams would be so many connections,
//! and none of these times and limits would hold on them.
//!
//! All of it is above TLS, where there is any: bytes are those of requests and answers.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use poem::http::HeaderValue;
use poem::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use poem_openapi::types::ToJSON;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

use super::headers;
use super::phase::Phase;
use super::problem::{Code, PROBLEM_JSON, Problem};
use super::stream::{Forced, Stream};
use crate::metrics::Active;
use crate::telemetry::{RequestContext, X_REQUEST_ID};

/// How a connection that speaks HTTP/2 begins.
const HTTP_2: &[u8] = b"PRI * HTTP/2";

/// What a body has in the place of its next part when it cannot go on: the connection that this is about to be sent on is
/// broken off, and whoever reads sees that the end is missing. Nobody can send it by chance or by intent.
///
/// An error of the body would not do. poem polls a connection that has failed once more, and hyper then writes the end of
/// the body as if all of it had been there.
pub static BREAK_OFF: LazyLock<Bytes> = LazyLock::new(|| Bytes::from_owner(rand::random::<[u8; 32]>()));

/// A way to send what TLS keeps back.
type SendRest = fn(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<()>>;

/// How long things may take on a connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long nothing may happen between requests.
    pub idle: Duration,
    /// How long the head of a request may take to arrive, from its first byte; and how long a client may take nothing of
    /// an answer.
    pub client: Duration,
    /// How long it may take from the head of a request to its answer.
    pub request: Duration,
}

/// A client's connection and the place it takes.
pub struct Connection {
    stream: Stream,
    times: Times,
    /// How much of [`HTTP_2`] has come; None as soon as something else has.
    http_2: Option<usize>,
    phase: Phase,
    /// What stands in for an answer of hyper's own: its bytes, how many of them are written, and how many hyper wanted to.
    instead: Option<(Vec<u8>, usize, usize)>,
    /// Whether what is sent comes in parts, between which the service may need the time of a request.
    is_in_parts: bool,
    /// Whether nothing more is sent.
    is_broken_off: bool,
    /// When the phase ends. It is looked at only when there is nothing to read or no room to write.
    until: Pin<Box<Sleep>>,
    /// Whether the socket has no room for what is being sent; then `until` is about that.
    is_stalled: bool,
    _place: (OwnedSemaphorePermit, Active<IntGauge>),
}

impl Connection {
    /// A connection that was accepted just now; while nothing is sent on it, it counts as idle. A TLS handshake has the
    /// client's time.
    pub fn new(stream: Stream, times: Times, place: (OwnedSemaphorePermit, Active<IntGauge>)) -> Self {
        let first = if stream.is_open() {
            times.idle
        } else {
            times.client.min(times.idle)
        };
        Self {
            stream,
            times,
            http_2: Some(0),
            phase: Phase::Between { is_clear: true },
            instead: None,
            is_in_parts: false,
            is_broken_off: false,
            until: Box::pin(sleep(first)),
            is_stalled: false,
            _place: place,
        }
    }

    fn end_in(&mut self, time: Duration) {
        self.until.as_mut().reset(Instant::now() + time);
    }

    fn is_http_2(&mut self, bytes: &[u8]) -> bool {
        let Some(already) = self.http_2 else {
            return false;
        };
        let expected = &HTTP_2[already..];
        let count = expected.len().min(bytes.len());
        self.http_2 = (bytes[..count] == expected[..count]).then_some(already + count);
        self.http_2 == Some(HTTP_2.len())
    }

    /// Nothing else is being sent, and what does not fit into the socket at once is not worth waiting.
    fn refuse_http_2(&mut self) {
        let problem = Problem::invalid("HTTP/2 is not spoken here; send the request with HTTP/1.1.");
        self.stream.send_last(&last_answer(&problem));
    }

    fn received(&mut self, bytes: &[u8]) {
        if let Some(time) = self.phase.received(bytes, &self.times) {
            self.end_in(time);
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        self.is_stalled = false;
        // To go on is no answer, unless one follows at once.
        if bytes == b"HTTP/1.1 100 Continue\r\n\r\n" {
            return;
        }
        self.is_in_parts = is_part(bytes);
        self.phase.answered();
        self.await_next();
    }

    /// The time that runs when something has been sent, and nothing of it is kept back.
    fn await_next(&mut self) {
        let time = match self.phase {
            // The next request may have come already.
            Phase::Between { is_clear: false } => self.times.idle.max(self.times.request),
            Phase::Between { .. } if self.is_in_parts => self.times.idle.max(self.times.request),
            Phase::Between { is_clear: true } | Phase::Head(_) | Phase::Request { .. } => self.times.idle,
        };
        self.end_in(time);
    }

    /// Ready when the connection's time is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.until.as_mut().poll(cx));
            match &mut self.phase {
                Phase::Request { has_its_time, .. } if !*has_its_time => {
                    *has_its_time = true;
                    self.end_in(self.times.request);
                }
                Phase::Head(_) => {
                    // Nothing else is being sent, and what does not fit into the socket at once is not worth waiting.
                    self.stream.send_last(&late_request(self.times.client));
                    break;
                }
                Phase::Between { .. } | Phase::Request { .. } => break,
            }
        }
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    /// Writes what there is room for; a client that takes nothing for the client's time is given up.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
            if written.is_ready() {
                return written;
            }
            if let Forced::Sent(count) = ready!(self.poll_stalled(cx, bytes))? {
                return Poll::Ready(Ok(count));
            }
        }
    }

    /// Waits for as long as a client may take nothing. The socket counts as writable when a third of what it holds is
    /// taken, which may be megabytes; there is room as soon as anything is.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<Forced>> {
        if !self.is_stalled {
            self.is_stalled = true;
            self.end_in(self.times.client);
        }
        ready!(self.until.as_mut().poll(cx));
        let forced = self.stream.force(bytes).map_err(|_| {
            self.stream.give_up();
            io::ErrorKind::TimedOut.into()
        });
        self.end_in(self.times.client);
        Poll::Ready(forced)
    }

    /// Sends what TLS keeps back; a client that takes nothing of it is given up too.
    fn poll_rest(&mut self, cx: &mut Context<'_>, send: SendRest) -> Poll<io::Result<()>> {
        loop {
            let sent = send(Pin::new(&mut self.stream), cx);
            if sent.is_ready() {
                if self.is_stalled {
                    self.is_stalled = false;
                    self.await_next();
                }
                return sent;
            }
            ready!(self.poll_stalled(cx, &[]))?;
        }
    }

    /// Writes what stands in for hyper's answer, to its end; hyper is told that its own was written.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((bytes, written, wanted)) = self.instead.take() {
            if written == bytes.len() {
                return Poll::Ready(Ok(wanted));
            }
            let sent = self.poll_send(cx, &bytes[written..]);
            let count = if let Poll::Ready(Ok(count)) = sent { count } else { 0 };
            self.instead = Some((bytes, written + count, wanted));
            if ready!(sent)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(0))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let was_open = self.stream.is_open();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if !was_open && self.stream.is_open() {
            let idle = self.times.idle;
            self.end_in(idle);
        }
        let received = &buf.filled()[before..];
        if self.is_http_2(received) {
            self.refuse_http_2();
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        self.received(received);
        // While something is being sent, it is its time that runs.
        if read.is_pending() && !self.is_stalled {
            let error = ready!(self.poll_over(cx));
            return Poll::Ready(Err(error));
        }
        read
    }
}

// Without vectored writes hyper puts head and body into one buffer, which small answers are better off with too.
impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_broken_off || breaks_off(buf) {
            self.is_broken_off = true;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.instead.is_none() && is_bare_refusal(buf) {
            self.instead = Some((unreadable_request(), 0, buf.len()));
        }
        let written = match self.instead {
            Some(_) => self.poll_instead(cx),
            None => self.poll_send(cx, buf),
        };
        if let Poll::Ready(Ok(_)) = written {
            self.sent(buf);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.keeps_back() {
            false => Pin::new(&mut self.stream).poll_flush(cx),
            true => self.poll_rest(cx, Stream::poll_flush),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.keeps_back() {
            false => Pin::new(&mut self.stream).poll_shutdown(cx),
            true => self.poll_rest(cx, Stream::poll_shutdown),
        }
    }
}

/// Whether another chunk follows. A head without a body looks so, too, and then has the longer time.
fn is_part(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n") && !bytes.ends_with(b"0\r\n\r\n")
}

/// Whether what is sent ends with [`BREAK_OFF`]: the body has nothing behind it, so that it is the last of its chunk.
fn breaks_off(bytes: &[u8]) -> bool {
    let chunk = bytes.strip_suffix(b"\r\n");
    chunk.is_some_and(|chunk| chunk.ends_with(&BREAK_OFF))
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

/// The answer to what is no HTTP, after which hyper closes the connection.
fn unreadable_request() -> Vec<u8> {
    last_answer(&unreadable())
}

/// The request is no HTTP/1.1.
pub fn unreadable() -> Problem {
    Problem::invalid(
        "This cannot be read as HTTP/1.1, or its head is too large; \
         send a request such as GET /alice/balance HTTP/1.1 with the header Host.",
    )
}

/// The answer to a head that does not come to its end.
fn late_request(time: Duration) -> Vec<u8> {
    let detail = format!("The head of the request did not arrive within {time:?}; send it again.");
    last_answer(&Problem::new(Code::RequestTimeout, detail))
}

/// An answer outside of poem, after which the connection is closed. Its id is always new: what the client has sent is not
/// looked at.
pub fn last_answer(problem: &Problem) -> Vec<u8> {
    let (status, body) = (problem.status(), problem.to_json_string());
    let id = RequestContext::new_id();
    tracing::debug!(request_id = &*id, %status, "answered before there was a request");
    let mut headers = headers::protection();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(CONTENT_LENGTH, body.len().into());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(seconds) = problem.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    let mut answer = format!("HTTP/1.1 {status}\r\n{X_REQUEST_ID}: {id}\r\n").into_bytes();
    for (name, value) in &headers {
        answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    answer.extend([b"\r\n", body.as_bytes()].concat());
    answer
}
