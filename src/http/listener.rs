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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, Times, last_answer};
use super::problem::{Code, Problem};
use crate::config::HttpConfig;

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
    listener: TcpListener,
    address: SocketAddr,
    most: usize,
    places: Arc<Semaphore>,
    /// For those that are turned away.
    doorstep: Arc<Semaphore>,
    was_full: bool,
}

impl Listening {
    /// Binds the address. `request_time` is how long it may take from the head of a request to its answer; a connection
    /// on which it takes longer is closed.
    ///
    /// # Errors
    ///
    /// If the address is in use or not this host's.
    pub async fn bind(config: &HttpConfig, request_time: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let most = NonZeroUsize::get(config.connections);
        Ok(Self {
            times: Times {
                idle: config.idle_timeout,
                client: config.client_timeout,
                request: request_time,
            },
            address: listener.local_addr()?,
            listener,
            most,
            places: Arc::new(Semaphore::new(most)),
            doorstep: Arc::new(Semaphore::new(NonZeroUsize::get(config.turned_away))),
            was_full: false,
        })
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

    /// Answers 503 as soon as the client asks for something. At most so many at once; the next one waits for its turn.
    async fn turn_away(&mut self, stream: TcpStream) {
        if !self.was_full {
            self.was_full = true;
            let most = self.most;
            tracing::warn!(most, "all connections are in use; more clients are answered 503");
        }
        // The semaphore is never closed.
        let Ok(step) = Arc::clone(&self.doorstep).acquire_owned().await else {
            return;
        };
        tokio::spawn(async move {
            // A client that is gone need not be told.
            let _ = tell_overloaded(stream).await;
            drop(step);
        });
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
            let connection = Connection::new(stream, self.times_now(), place);
            let (local, remote) = (LocalAddr(self.address.into()), RemoteAddr(peer.into()));
            return Ok((connection, local, remote, Scheme::HTTP));
        }
    }
}

async fn tell_overloaded(mut stream: TcpStream) -> io::Result<()> {
    let mut discarded = [0; 4096];
    if let Ok(read) = timeout(TURN_AWAY_TIMEOUT, stream.read(&mut discarded)).await {
        read?;
    }
    let problem = Problem::new(
        Code::Overloaded,
        "Too many connections are open; nothing was changed. Try again after Retry-After, or use another replica.",
    );
    stream.write_all(&last_answer(&problem)).await?;
    stream.shutdown().await?;
    // What is closed with something left to read is reset, and the client may lose the answer.
    let rest = async { while stream.read(&mut discarded).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(TURN_AWAY_TIMEOUT, rest).await;
    Ok(())
}
