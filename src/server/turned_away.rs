//! Clients beyond the limit on connections: each is answered 503 as soon as it has begun to ask.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::http::too_many_connections;

/// How long a client may take for its handshake, to begin to ask, and to take the answer. Many clients take an answer
/// that comes before they have asked for a broken connection.
const PATIENCE: Duration = Duration::from_millis(250);

/// Where clients are turned away.
pub(super) struct Doorstep {
    /// Maximum concurrent refusals; beyond it the oldest is cut short.
    places: Arc<Semaphore>,
    make_room: Arc<Notify>,
}

impl Doorstep {
    pub(super) fn new(limit: NonZeroUsize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limit.get())),
            make_room: Arc::default(),
        }
    }

    /// Begins to answer 503.
    pub(super) async fn turn_away(&self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
        if self.places.available_permits() == 0 {
            self.make_room.notify_one();
        }
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return;
        };
        let make_room = Arc::clone(&self.make_room);
        tokio::spawn(async move {
            // A client that is gone need not be told.
            let _ = match tls {
                None => refuse(stream, &make_room).await,
                Some(tls) => match patiently(TlsAcceptor::from(tls).accept(stream), &make_room).await {
                    Waited::Done(Ok(stream)) => refuse(stream, &make_room).await,
                    Waited::Done(Err(error)) => Err(error),
                    Waited::TooLong | Waited::MakeRoom => Ok(()),
                },
            };
            drop(place);
        });
    }
}

async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin, make_room: &Notify) -> io::Result<()> {
    let mut dropped = [0; 4096];
    let asked = patiently(stream.read(&mut dropped), make_room).await;
    let is_hurried = matches!(asked, Waited::MakeRoom);
    if let Waited::Done(read) = asked {
        read?;
    }
    // The answer is the first that is sent, so that there is room for it.
    stream.write_all(&too_many_connections()).await?;
    stream.shutdown().await?;
    if !is_hurried {
        patiently(drain(&mut stream), make_room).await;
    }
    Ok(())
}

/// Reads until the client hangs up. A connection that is closed with something left to read is reset, and the client may
/// lose the answer.
pub(super) async fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    let mut dropped = [0; 4096];
    let rest = async { while stream.read(&mut dropped).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(super::connection::LINGER, rest).await;
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
        () = sleep(PATIENCE) => Waited::TooLong,
        () = make_room.notified() => Waited::MakeRoom,
    }
}
