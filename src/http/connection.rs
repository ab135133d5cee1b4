//! A client's connection: whatever the client does or leaves undone on it ends within a time that is known.
//!
//! What is no HTTP never reaches poem: hyper refuses it by itself, with a status and no body. Such an answer is given the
//! body of a problem here, on its way to the socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use poem_openapi::types::ToJSON;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

use super::problem::{Code, PROBLEM_JSON, Problem};

/// How a connection that speaks HTTP/2 begins.
const HTTP_2: &[u8] = b"PRI * HTTP/2";

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
    stream: TcpStream,
    times: Times,
    phase: Phase,
    /// What stands in for an answer of hyper's own: its bytes, how many of them are written, and how many hyper wanted to.
    instead: Option<(Vec<u8>, usize, usize)>,
    /// When the phase ends. It is looked at only when there is nothing to read or no room to write.
    until: Pin<Box<Sleep>>,
    /// Whether the client takes nothing of what is being sent.
    is_stalled: bool,
    _place: OwnedSemaphorePermit,
}

/// What is going on.
enum Phase {
    /// Nothing, since the connection was opened or something was sent on it.
    Between,
    /// A head drips in.
    Head(HeadEnd),
    /// Requests and answers side by side, as HTTP/2 has them: only the idle time applies.
    Multiplexed,
    /// A head is there, and what follows is up to those who answer it.
    Request {
        /// Whether `until` is this request's. It is not set with every request, since most are answered before it matters.
        has_its_time: bool,
    },
}

/// Finds the end of a head: an empty line.
#[derive(Default)]
struct HeadEnd {
    has_begun: bool,
    at_line_start: bool,
}

impl HeadEnd {
    /// Whether the head ends in what comes next.
    fn is_in(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match byte {
                b'\n' if self.at_line_start => return true,
                // Line breaks before the first line do not count.
                b'\n' => self.at_line_start = self.has_begun,
                b'\r' => {}
                _ => (self.has_begun, self.at_line_start) = (true, false),
            }
        }
        false
    }
}

impl Connection {
    /// A connection that was accepted just now; while nothing is sent on it, it counts as idle.
    pub fn new(stream: TcpStream, times: Times, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            times,
            phase: Phase::Between,
            instead: None,
            until: Box::pin(sleep(times.idle)),
            is_stalled: false,
            _place: place,
        }
    }

    fn end_in(&mut self, time: Duration) {
        self.until.as_mut().reset(Instant::now() + time);
    }

    fn received(&mut self, bytes: &[u8]) {
        match &mut self.phase {
            Phase::Between if bytes.starts_with(HTTP_2) => self.phase = Phase::Multiplexed,
            Phase::Between => {
                let mut end = HeadEnd::default();
                if bytes.ends_with(b"\r\n\r\n") || end.is_in(bytes) {
                    self.phase = Phase::Request { has_its_time: false };
                } else if !bytes.is_empty() {
                    self.phase = Phase::Head(end);
                    self.end_in(self.times.client);
                }
            }
            Phase::Head(end) => {
                if end.is_in(bytes) {
                    self.phase = Phase::Request { has_its_time: true };
                    self.end_in(self.times.request);
                }
            }
            Phase::Multiplexed | Phase::Request { .. } => {}
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        self.is_stalled = false;
        // To go on is no answer.
        if bytes.starts_with(b"HTTP/1.1 100") {
            return;
        }
        if !matches!(self.phase, Phase::Multiplexed) {
            self.phase = Phase::Between;
        }
        self.end_in(self.times.idle);
    }

    /// Ready when the connection's time is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.until.as_mut().poll(cx));
            match &mut self.phase {
                Phase::Request { has_its_time } if !*has_its_time && !self.is_stalled => {
                    *has_its_time = true;
                    self.end_in(self.times.request);
                }
                Phase::Head(_) if !self.is_stalled => {
                    // Nothing else is being sent, and what does not fit into the socket at once is not worth waiting.
                    let _ = self.stream.try_write(&late_request(self.times.client));
                    break;
                }
                Phase::Between | Phase::Head(_) | Phase::Multiplexed | Phase::Request { .. } => break,
            }
        }
        if self.is_stalled {
            // Otherwise the operating system would keep what was not taken, for minutes.
            let _ = self.stream.set_zero_linger();
        }
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

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

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match read {
            Poll::Ready(Ok(())) => self.received(&buf.filled()[before..]),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let error = ready!(self.poll_over(cx));
                return Poll::Ready(Err(error));
            }
        }
        read
    }
}

// Without vectored writes hyper puts head and body into one buffer, which small answers are better off with too.
impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.instead.is_none() && is_bare_refusal(buf) {
            self.instead = Some((unreadable_request(), 0, buf.len()));
        }
        let written = match self.instead {
            Some(_) => self.poll_instead(cx),
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
        };
        match written {
            Poll::Ready(Ok(_)) => self.sent(buf),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if !self.is_stalled {
                    self.is_stalled = true;
                    let time = self.times.client;
                    self.end_in(time);
                }
                let error = ready!(self.poll_over(cx));
                return Poll::Ready(Err(error));
            }
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
    last_answer(&Problem::invalid(
        "This cannot be read as HTTP/1.1, or its head is too large; \
         send a request such as GET /alice/balance HTTP/1.1 with the header Host.",
    ))
}

/// The answer to a head that does not come to its end.
fn late_request(time: Duration) -> Vec<u8> {
    let detail = format!("The head of the request did not arrive within {time:?}; send it again.");
    last_answer(&Problem::new(Code::RequestTimeout, detail))
}

/// An answer outside of poem, after which the connection is closed.
pub fn last_answer(problem: &Problem) -> Vec<u8> {
    let (status, body) = (problem.status(), problem.to_json_string());
    let retry_after = problem
        .retry_after()
        .map_or(String::new(), |seconds| format!("retry-after: {seconds}\r\n"));
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\n{retry_after}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_however_it_is_cut() {
        for head in [
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "GET / HTTP/1.1\nhost: x\n\n",
        ] {
            for step in 1..head.len() {
                let mut end = HeadEnd::default();
                let mut chunks = head.as_bytes().chunks(step).map(|chunk| end.is_in(chunk));
                let found = chunks.position(|is_in| is_in);
                assert_eq!(found, Some(head.len().div_ceil(step) - 1), "{head:?} in {step}");
            }
        }
    }
}
