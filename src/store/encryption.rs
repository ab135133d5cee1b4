//! Opening a connection to PostgreSQL with as much TLS as `DATABASE_URL` asks for.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, Connection, Error, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{DatabaseTls, SslMode};
use crate::tls::TlsFailure;

/// How `tokio-postgres` says that something went wrong on the way to TLS, and that the server has none. Its errors have no
/// kinds that could be told apart otherwise; tests against such servers hold this.
const TLS_ERROR: &str = "error performing TLS handshake";
const NOT_OFFERED: &str = "server does not support TLS";

/// What carries the bytes of an encrypted connection.
pub(super) type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// Opens connections, and can say whether they are encrypted.
pub(super) struct Encryption {
    mode: SslMode,
    connect: MakeRustlsConnect,
    /// What was said last, as [`Said`]; nothing is to be said without it.
    said: Option<AtomicU8>,
}

/// What the process has said about the connections.
enum Said {
    Nothing,
    Encrypted,
    Plain,
}

impl Encryption {
    pub(super) fn new(tls: &DatabaseTls) -> Self {
        Self {
            mode: tls.mode(),
            connect: MakeRustlsConnect::new(tls.client().clone()),
            said: None,
        }
    }

    /// Says with the first connection whether it is encrypted, and again when another one is not as the last was.
    pub(super) fn telling(self) -> Self {
        let said = Some(AtomicU8::new(Said::Nothing as u8));
        Self { said, ..self }
    }

    /// Opens a connection. With a mode that asks for TLS it is encrypted, or there is none.
    pub(super) async fn connect(&self, client: &Config) -> Result<(Client, Connection<Socket, Stream>), Error> {
        let used = Arc::new(AtomicBool::new(false));
        let connected = client
            .connect(Observed {
                connect: self.connect.clone(),
                used: Arc::clone(&used),
            })
            .await?;
        self.say(used.load(Ordering::Relaxed));
        Ok(connected)
    }

    fn say(&self, is_encrypted: bool) {
        let now = if is_encrypted { Said::Encrypted } else { Said::Plain } as u8;
        let said = self.said.as_ref().map(|said| said.swap(now, Ordering::Relaxed));
        if said.is_none_or(|said| said == now) {
            return;
        }
        let sslmode = self.mode.as_str();
        match self.mode {
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                tracing::info!(sslmode, "connections to PostgreSQL are encrypted");
            }
            SslMode::Disable => tracing::info!(sslmode, "connections to PostgreSQL are not encrypted"),
            SslMode::Prefer if is_encrypted => tracing::info!(
                sslmode,
                "connections to PostgreSQL are encrypted, and who answers is not verified; sslmode=verify-full does both"
            ),
            SslMode::Prefer => tracing::info!(
                sslmode,
                "connections to PostgreSQL are not encrypted: a Unix socket, or a server that offers no TLS"
            ),
        }
    }
}

/// What TLS failed of; nothing if it is about something else.
pub(super) fn tls_failure(error: &Error) -> Option<TlsFailure> {
    TlsFailure::of(error).or_else(|| {
        // It tells of the step, then of its cause.
        let is_about_tls = error.to_string().starts_with(TLS_ERROR);
        let is_offered = error.source().is_none_or(|cause| cause.to_string() != NOT_OFFERED);
        match is_offered {
            _ if !is_about_tls => None,
            true => Some(TlsFailure::Handshake),
            false => Some(TlsFailure::NotOffered),
        }
    })
}

/// Notes whether the server took part: then the connection is encrypted or does not come to be.
struct Observed<C> {
    connect: C,
    used: Arc<AtomicBool>,
}

impl<S, C: MakeTlsConnect<S>> MakeTlsConnect<S> for Observed<C> {
    type Stream = C::Stream;
    type TlsConnect = Observed<C::TlsConnect>;
    type Error = C::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, Self::Error> {
        // Of several hosts the last one that is tried counts.
        self.used.store(false, Ordering::Relaxed);
        Ok(Observed {
            connect: self.connect.make_tls_connect(host)?,
            used: Arc::clone(&self.used),
        })
    }
}

impl<S, C: TlsConnect<S>> TlsConnect<S> for Observed<C> {
    type Stream = C::Stream;
    type Error = C::Error;
    type Future = C::Future;

    fn connect(self, stream: S) -> Self::Future {
        self.used.store(true, Ordering::Relaxed);
        self.connect.connect(stream)
    }
}
