//! Accepting connections, with what poem's own listener lacks: `TCP_NODELAY`, a limit on connections, an end for those
//! that do not get on, and a pause when the operating system refuses another one.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::select;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::connection::{Connection, Times, last_answer};
use super::problem::{Code, Problem};
use super::stream::Stream;
use crate::config::HttpConfig;
use crate::metrics::{Active, Metrics, gauge_value};
use crate::tls::ServerTls;

/// How many clients the operating system may queue until they are accepted, where its own limit (`somaxconn`) is not
/// lower. Beyond that it drops what they send; a client that then waits for us to speak is never told.
const BACKLOG: u32 = 4096;
/// How long to wait after a refusal such as EMFILE, which lasts until some connection is closed.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// How long a client that is turned away may take to send what it wants, and again to take the answer. It is answered
/// when it has begun to ask, since many clients take an answer that comes before for a broken connection.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_millis(250);
/// Connections that are accepted where less than this part of the places is free are kept idle for a shorter time.
const SCARCE: usize = 10;
/// That time.
const SCARCE_IDLE: Duration = Duration::from_secs(5);

/// A bound address whose connections are accepted up to a limit.
pub struct Listening {
    times: Times,
    tls: Option<ServerTls>,
    listener: TcpListener,
    address: SocketAddr,
    most: usize,
    places: Arc<Semaphore>,
    /// For those that are turned away.
    doorstep: Arc<Semaphore>,
    /// Tells the one that has been there longest to make room.
    make_room: Arc<Notify>,
    was_full: bool,
    metrics: Arc<Metrics>,
}

impl Listening {
    /// Binds the address. `request_time` is how long it may take from the head of a request to its answer; a connection
    /// on which it takes longer is closed.
    ///
    /// # Errors
    ///
    /// If the address is in use or not this host's.
    pub fn bind(config: &HttpConfig, request_time: Duration) -> io::Result<Self> {
        let listener = listen(config.listen)?;
        let most = NonZeroUsize::get(config.connections);
        Ok(Self {
            times: Times {
                idle: config.idle_timeout,
                client: config.client_timeout,
                request: request_time,
            },
            tls: config.tls.clone(),
            address: listener.local_addr()?,
            listener,
            most,
            places: Arc::new(Semaphore::new(most)),
            doorstep: Arc::new(Semaphore::new(NonZeroUsize::get(config.turned_away))),
            make_room: Arc::default(),
            was_full: false,
            metrics: Arc::default(),
        })
    }

    /// Counts the connections there.
    pub(super) fn count(&mut self, metrics: Arc<Metrics>) {
        metrics.http.connections_limit.set(gauge_value(self.most));
        self.metrics = metrics;
    }

    /// The address that is bound, with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long the body of a request may take to arrive.
    pub(super) fn body_time(&self) -> Duration {
        self.times.client
    }

    /// Where room is scarce, connections that nothing happens on make room for others sooner.
    fn times_now(&self) -> Times {
        let is_scarce = self.places.available_permits() * SCARCE < self.most;
        let idle = if is_scarce { SCARCE_IDLE } else { self.times.idle };
        Times {
            idle: idle.min(self.times.idle),
            ..self.times
        }
    }

    /// What the next connection is accepted with, if with TLS.
    fn tls_now(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(ServerTls::config)
    }

    /// Answers 503 as soon as the client asks for something. Only so many may take their time for that at once: with
    /// each one more, the first of them is answered without having asked.
    async fn turn_away(&mut self, stream: TcpStream) {
        self.metrics.http.turned_away.inc();
        if !self.was_full {
            self.was_full = true;
            let most = self.most;
            tracing::warn!(most, "all connections are in use; more clients are answered 503");
        }
        let Some(step) = self.doorstep().await else {
            return;
        };
        let make_room = Arc::clone(&self.make_room);
        let tls = self.tls_now();
        tokio::spawn(async move {
            // A client that is gone need not be told.
            let _ = match tls {
                None => tell_overloaded(stream, &make_room).await,
                Some(tls) => tell_overloaded_with_tls(stream, tls, &make_room).await,
            };
            drop(step);
        });
    }

    /// A place to be turned away at, after a moment at most: nobody there waits for the client once told to make room.
    async fn doorstep(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(step) = Arc::clone(&self.doorstep).try_acquire_owned() {
            return Some(step);
        }
        self.make_room.notify_one();
        // The semaphore is never closed.
        Arc::clone(&self.doorstep).acquire_owned().await.ok()
    }
}

impl Acceptor for Listening {
    type Io = Connection;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Connection, LocalAddr, RemoteAddr, Scheme)> {
        loop {
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
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                self.turn_away(stream).await;
                continue;
            };
            self.was_full = false;
            let place = (place, Active::new(self.metrics.http.connections.clone()));
            let stream = Stream::new(stream, self.tls_now());
            let connection = Connection::new(stream, self.times_now(), place);
            let (local, remote) = (LocalAddr(self.address.into()), RemoteAddr(peer.into()));
            let scheme = self.tls.as_ref().map_or(Scheme::HTTP, |_| Scheme::HTTPS);
            return Ok((connection, local, remote, scheme));
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A replica that is started again need not wait for the connections of its predecessor to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// After a handshake, for which a client has as long as for its question: without one there is nothing that it would
/// understand.
async fn tell_overloaded_with_tls(stream: TcpStream, tls: Arc<ServerConfig>, make_room: &Notify) -> io::Result<()> {
    match patiently(TlsAcceptor::from(tls).accept(stream), make_room).await {
        Waited::Done(accepted) => tell_overloaded(accepted?, make_room).await,
        Waited::TooLong | Waited::MakeRoom => Ok(()),
    }
}

async fn tell_overloaded(mut stream: impl AsyncRead + AsyncWrite + Unpin, make_room: &Notify) -> io::Result<()> {
    let mut discarded = [0; 4096];
    let asked = patiently(stream.read(&mut discarded), make_room).await;
    let is_hurried = matches!(asked, Waited::MakeRoom);
    if let Waited::Done(read) = asked {
        read?;
    }
    let problem = Problem::new(
        Code::Overloaded,
        "Too many connections are open; nothing was changed. Try again after Retry-After, or use another replica.",
    );
    // The answer is the first that is sent, so that there is room for it.
    stream.write_all(&last_answer(&problem)).await?;
    stream.shutdown().await?;
    if !is_hurried {
        // What is closed with something left to read is reset, and the client may lose the answer.
        let rest = async { while stream.read(&mut discarded).await.is_ok_and(|read| read > 0) {} };
        patiently(rest, make_room).await;
    }
    Ok(())
}

/// How a wait for a client ended.
enum Waited<T> {
    Done(T),
    TooLong,
    MakeRoom,
}

async fn patiently<T>(doing: impl Future<Output = T>, make_room: &Notify) -> Waited<T> {
    select! {
        done = doing => Waited::Done(done),
        () = sleep(TURN_AWAY_TIMEOUT) => Waited::TooLong,
        () = make_room.notified() => Waited::MakeRoom,
    }
}
