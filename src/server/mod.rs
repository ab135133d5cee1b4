//! Connections of clients: accepting, limits, time limits, TLS and a graceful stop. hyper speaks HTTP/1.1 on them and calls
//! the endpoint of [`http`](crate::http).
//!
//! | how long | setting |
//! |---|---|
//! | from one answer, or the beginning, to the end of the next head | `IDLE_TIMEOUT_MS` |
//! | a TLS handshake, a body, and an answer of which the client takes nothing | `CLIENT_TIMEOUT_MS` |
//!
//! [`Memory`] has the sum of the memory that connections take.

mod connection;
mod listening;
mod socket;
mod turned_away;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use poem::http::header::CONNECTION;
use poem::http::uri::Scheme;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Endpoint, Request, Response};
use tokio::net::TcpStream;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use listening::Listening;

use crate::http::{Limits, Memory, Offer, Site, application, not_encrypted};
use crate::metrics::Active;
use crate::service::UseCases;
use connection::{Connection, Progress};
use listening::{Accepted, Place, Times};
use socket::Socket;
use turned_away::drain;

/// The largest head of a request, in bytes; hyper answers 431 beyond it.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// The most headers of a request; hyper answers 431 beyond them. Their table takes memory of its own.
const MAX_HEADERS: usize = 48;
/// How long a first head may take to arrive whole once the server stops.
const LAST_HEAD_TIME: Duration = Duration::from_secs(1);
/// How everything begins that is TLS: a record of the handshake.
const HANDSHAKE: u8 = 22;

/// Shared by all connections of an address.
struct Server<E> {
    endpoint: E,
    http: Builder,
    times: Times,
    memory: Memory,
    stopping: CancellationToken,
}

/// Serves until `shutdown` resolves, then answers the requests under way, for at most `drain`.
pub async fn serve<S: UseCases>(
    mut listening: Listening,
    site: Site<S>,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) {
    if site.offer != Offer::Administration {
        listening.count(Arc::clone(&site.metrics));
    }
    let (times, memory) = (listening.times, listening.memory.clone());
    let limits = Limits {
        body_time: times.client,
        memory: memory.clone(),
    };
    let mut http = Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(times.idle)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        // A client may say that it sends no more and wait for its answer.
        .half_close(true);
    let server = Arc::new(Server {
        endpoint: application(site, limits),
        http,
        times,
        memory,
        stopping: CancellationToken::new(),
    });
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = select! {
            accepted = listening.accept() => accepted,
            () = &mut shutdown => break,
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(Arc::clone(&server).connection(accepted));
    }
    drop(listening);
    server.stopping.cancel();
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, ended).await.is_err() {
        tracing::warn!("requests that are still under way are broken off");
        connections.shutdown().await;
    }
}

impl<E: Endpoint<Output = Response> + 'static> Server<E> {
    async fn connection(self: Arc<Self>, accepted: Accepted) {
        let Accepted {
            stream,
            peer,
            local,
            tls,
            place,
        } = accepted;
        let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let socket = match tls {
            None => Socket::Plain(stream),
            Some(tls) => {
                let opened = timeout(self.times.handshake(), open(stream, TlsAcceptor::from(tls)));
                // On the heap: only connections that begin have it.
                match Box::pin(opened).await {
                    Ok(Ok(Some(socket))) => socket,
                    Ok(Ok(None)) | Err(_) => return,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        return;
                    }
                }
            }
        };
        let addresses = (LocalAddr(local.into()), RemoteAddr(peer.into()), scheme);
        self.serve(socket, addresses, place).await;
    }

    async fn serve(&self, socket: Socket, addresses: (LocalAddr, RemoteAddr, Scheme), _place: Place) {
        let progress = Arc::new(Progress::default());
        let connection = Connection::new(socket, self.times.client, self.memory.clone(), Arc::clone(&progress));
        let service = service_fn(|request: hyper::Request<Incoming>| {
            progress.head_arrived();
            let (local, remote, scheme) = addresses.clone();
            let request = Request::from((request, local, remote, scheme));
            let progress = &progress;
            // On the heap: an idle connection has none.
            Box::pin(async move {
                let response = match self.endpoint.call(request).await {
                    Ok(response) => response,
                    Err(error) => error.into_response(),
                };
                progress.answered(response.headers().contains_key(CONNECTION));
                Ok::<_, Infallible>(hyper::Response::from(response))
            })
        });
        let mut http = pin!(self.http.serve_connection(TokioIo::new(connection), service));
        let ended = select! {
            biased;
            ended = http.as_mut() => ended,
            () = self.stopping.cancelled() => {
                http.as_mut().graceful_shutdown();
                // hyper waits for a first head as for a request under way.
                match timeout(LAST_HEAD_TIME, http.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) if progress.has_begun() => http.await,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection was closed");
        }
    }
}

/// Makes the handshake. None: the client speaks plain text, and has been told.
async fn open(mut stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<Option<Socket>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
        // The answer is the first that is sent, so that there is room for it.
        let _ = stream.try_write(&not_encrypted());
        poll_fn(|cx| tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut stream), cx)).await?;
        drain(&mut stream).await;
        return Ok(None);
    }
    let mut stream = acceptor.accept(stream).await?;
    stream.get_mut().1.set_buffer_limit(Some(socket::TLS_BUFFER_BYTES));
    Ok(Some(Socket::Tls(Box::new(stream))))
}
