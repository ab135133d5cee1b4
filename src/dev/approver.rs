//! A stand-in for the Approver, an external service: it takes its time and decides by the size of the change alone.
//! It keeps nothing and never looks at the user.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use poem::http::StatusCode;
use poem::listener::TcpAcceptor;
use poem::web::{Data, Query};
use poem::{EndpointExt, Request, Response, Route, Server, get, handler};
use serde::Deserialize;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::StandInOptions;

/// Connections that may wait to be accepted; the operating system may hold fewer. A burst of callers must not be refused.
const BACKLOG: u32 = 8_192;

/// How long calls under way may take after [`StandInApprover::stop`], beyond the delay that each is given anyway.
const STOP_BOUND: Duration = Duration::from_secs(2);

/// A running stand-in. Dropped without [`stop`](Self::stop), it ends in the same way, and nobody waits for it.
///
/// `GET /approve?userId=&balanceChange=` is answered 200 or 403 after the delay, 400 with the reason as plain text if a
/// parameter is missing or wrong; `GET /livez` 200. Every call waits by itself: a waiting one costs a connection and a timer.
#[derive(Debug)]
pub struct StandInApprover {
    address: SocketAddr,
    delay: Duration,
    stop: oneshot::Sender<()>,
    server: JoinHandle<io::Result<()>>,
}

impl StandInApprover {
    /// Starts listening; when this returns, calls are answered.
    ///
    /// # Errors
    ///
    /// What the operating system said about the address: in use, not this machine's, not allowed.
    pub async fn start(options: StandInOptions) -> io::Result<Self> {
        let socket = match options.listen {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(options.listen)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let routes = Route::new()
            .at("/approve", get(approve))
            .at("/livez", get(livez))
            .data(options);
        let (stop, stopped) = oneshot::channel();
        let server = Server::new_with_acceptor(TcpAcceptor::from_tokio(listener)?)
            .name("stand-in approver")
            .run_with_graceful_shutdown(
                routes,
                // A dropped handle ends it too.
                async { drop(stopped.await) },
                Some(options.delay.saturating_add(STOP_BOUND)),
            );
        Ok(Self {
            address,
            delay: options.delay,
            stop,
            server: tokio::spawn(server),
        })
    }

    /// The base URL, as `APPROVER_URL` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops accepting, lets the calls under way have their verdict, and returns when all are answered: after the delay
    /// and at most 4 s more.
    pub async fn stop(mut self) {
        // An error means that the server has ended already.
        let _ = self.stop.send(());
        let bound = self.delay.saturating_add(STOP_BOUND * 2);
        if timeout(bound, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    user_id: String,
    balance_change: i64,
}

#[handler]
async fn approve(
    question: poem::Result<Query<Question>>,
    Data(options): Data<&StandInOptions>,
    request: &Request,
) -> Response {
    let header = |name: &str| request.header(name).unwrap_or_default();
    tracing::debug!(
        request_id = header("x-request-id"),
        traceparent = header("traceparent"),
        "asked"
    );
    let question = match question {
        Ok(Query(question)) if !question.user_id.is_empty() => question,
        Ok(_) => return text(StatusCode::BAD_REQUEST, "userId is empty"),
        Err(error) => return text(StatusCode::BAD_REQUEST, error),
    };
    sleep(options.delay).await;
    if question.balance_change.unsigned_abs() <= options.deny_above {
        text(StatusCode::OK, "approved")
    } else {
        text(StatusCode::FORBIDDEN, "denied")
    }
}

#[handler]
fn livez() -> &'static str {
    "alive\n"
}

fn text(status: StatusCode, text: impl Display) -> Response {
    Response::builder()
        .status(status)
        .content_type("text/plain; charset=utf-8")
        .body(format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::future::join_all;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Status and whole answer, headers included.
    async fn ask(address: SocketAddr, target: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: approver\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), answer)
    }

    async fn stand_in(delay: Duration) -> StandInApprover {
        let options = StandInOptions {
            delay,
            ..StandInOptions::default()
        };
        StandInApprover::start(options).await.unwrap()
    }

    #[tokio::test]
    async fn changes_up_to_a_million_either_way_are_approved() {
        let approver = stand_in(Duration::ZERO).await;
        for (change, status) in [
            ("1000000", 200),
            ("1000001", 403),
            ("-1000000", 200),
            ("-1000001", 403),
            ("0", 200),
            ("9223372036854775807", 403),
            ("-9223372036854775808", 403),
        ] {
            let target = format!("/approve?userId=%F0%9F%A6%80&balanceChange={change}");
            assert_eq!(ask(approver.address, &target).await.0, status, "{change}");
        }
        assert_eq!(ask(approver.address, "/livez").await.0, 200);
        approver.stop().await;
    }

    #[tokio::test]
    async fn a_wrong_question_is_answered_400_with_the_reason_as_plain_text() {
        let approver = stand_in(Duration::from_secs(3_600)).await;
        for (query, reason) in [
            ("", "userId"),
            ("?userId=a", "balanceChange"),
            ("?balanceChange=1", "userId"),
            ("?userId=&balanceChange=1", "userId"),
            ("?userId=a&balanceChange=1.5", "invalid digit"),
            ("?userId=a&balanceChange=9223372036854775808", "too large"),
        ] {
            let (status, answer) = ask(approver.address, &format!("/approve{query}")).await;
            assert_eq!(status, 400, "{query}");
            assert!(answer.contains("text/plain") && answer.contains(reason), "{answer}");
        }
    }

    #[tokio::test]
    async fn many_calls_wait_side_by_side_and_are_answered_by_a_stop() {
        let approver = stand_in(Duration::from_millis(500)).await;
        let address = approver.address;
        let begin = Instant::now();
        let calls = (0..200).map(|_| ask(address, "/approve?userId=a&balanceChange=1"));
        let statuses: Vec<u16> = join_all(calls).await.into_iter().map(|(status, _)| status).collect();
        assert_eq!(statuses, [200; 200]);
        // One after the other they would take 100 s.
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());

        let mut under_way = TcpStream::connect(address).await.unwrap();
        let request = b"GET /approve?userId=a&balanceChange=1 HTTP/1.1\r\nHost: approver\r\n\r\n";
        under_way.write_all(request).await.unwrap();
        // A later call is answered, so this one is waiting for its verdict by now.
        assert_eq!(ask(address, "/approve").await.0, 400);
        approver.stop().await;
        let mut answer = String::new();
        under_way.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
