//! A bound address: accepts connections up to a limit and turns the others away.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::turned_away::Doorstep;
use super::{Active, Memory};
use crate::config::HttpConfig;
use crate::metrics::{Metrics, gauge_value};
use crate::tls::ServerTls;

/// How many clients the operating system may queue until they are accepted, where its own limit (`somaxconn`) is not
/// lower. Beyond it the system drops what clients send, and one that waits for us to speak is never told.
const BACKLOG: u32 = 4096;
/// How long to wait after a refusal such as EMFILE, which lasts until a connection is closed.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// A bound address.
pub struct Listening {
    pub(super) times: Times,
    pub(super) memory: Memory,
    tls: Option<ServerTls>,
    listener: TcpListener,
    address: SocketAddr,
    limit: usize,
    places: Arc<Semaphore>,
    doorstep: Doorstep,
    was_full: bool,
    metrics: Arc<Metrics>,
}

/// The time limits of connections.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// From an answer to the end of the next head.
    pub idle: Duration,
    /// For a handshake, for a body, and without anything of an answer taken.
    pub client: Duration,
}

/// One of the connections that may be open, counted.
pub(super) type Place = (OwnedSemaphorePermit, Active<IntGauge>);

/// A connection within the limit.
pub(super) struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// The TLS configuration of this moment, which a reload does not change.
    pub tls: Option<Arc<ServerConfig>>,
    pub place: Place,
}

impl Times {
    pub(super) fn handshake(self) -> Duration {
        self.client.min(self.idle)
    }
}

impl Listening {
    /// Binds the address.
    ///
    /// # Errors
    ///
    /// If the address is in use or not this host's.
    pub fn bind(config: &HttpConfig) -> io::Result<Self> {
        let listener = listen(config.listen)?;
        let limit = NonZeroUsize::get(config.connections);
        Ok(Self {
            times: Times {
                idle: config.idle_timeout,
                client: config.client_timeout,
            },
            memory: Memory::new(config.memory),
            tls: config.tls.clone(),
            address: listener.local_addr()?,
            listener,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            doorstep: Doorstep::new(config.turned_away),
            was_full: false,
            metrics: Arc::default(),
        })
    }

    /// The bound address, with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counts the connections in these metrics.
    pub(super) fn count(&mut self, metrics: Arc<Metrics>) {
        metrics.http.connections_limit.set(gauge_value(self.limit));
        self.metrics = metrics;
    }

    pub(super) async fn accept(&mut self) -> Accepted {
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
            let tls = self.tls.as_ref().map(ServerTls::config);
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                self.tell_full();
                self.doorstep.turn_away(stream, tls).await;
                continue;
            };
            self.was_full = false;
            return Accepted {
                peer,
                local: stream.local_addr().unwrap_or(self.address),
                stream,
                tls,
                place: (place, Active::new(self.metrics.http.connections.clone())),
            };
        }
    }

    fn tell_full(&mut self) {
        self.metrics.http.turned_away.inc();
        if !self.was_full {
            self.was_full = true;
            let most = self.limit;
            tracing::warn!(most, "all connections are in use; more clients are answered 503");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted replica need not wait for the connections of its predecessor to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
