//! Connections to PostgreSQL: how one is opened, how many there are, and when one is thrown away.

use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::Object as PoolObject;
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, PoolError, RecyclingMethod};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use futures_util::FutureExt;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;

use super::StoreError;
use super::encryption::{Encryption, tls_failure};
use crate::config::DatabaseConfig;
use crate::retry::Pauses;
use crate::tls::TlsFailure;

/// How long opening a connection may take, and how long one is waited for when all are in use.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How such an error begins. diesel's error of a connection holds a text and nothing else that could be told apart.
const NONE_LEFT: &str = "no connection left";

/// What PostgreSQL itself enforces, should we be cut off from it in the middle of a statement; and how it plans. Every
/// statement leads from users to their rows by the primary keys, whatever its parameters and however few rows there are
/// yet, so that one plan serves always.
const SESSION_SETTINGS: &str = "SET statement_timeout = '10s'; SET lock_timeout = '5s'; \
     SET idle_in_transaction_session_timeout = '10s'; SET client_min_messages = warning; \
     SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off";

pub(super) struct Connections {
    pool: Pool<AsyncPgConnection>,
}

/// How the pool of connections stands.
#[derive(Clone, Copy, Debug)]
pub struct PoolStatus {
    /// Connections that are open.
    pub open: usize,
    /// Those of them that wait for work.
    pub idle: usize,
    /// Statements that wait for a connection.
    pub waiting: usize,
}

/// A connection taken from the pool. It goes back only when its statement has ended well: one whose statement failed,
/// timed out or was cancelled may still be busy or broken, and is closed.
pub(super) struct Lease(Option<Object<AsyncPgConnection>>);

impl Lease {
    pub(super) fn connection(&mut self) -> &mut AsyncPgConnection {
        self.0.as_mut().expect("a lease has its connection until it is dropped")
    }

    /// Ends the lease with what came of its statement before the deadline.
    pub(super) fn end<T>(mut self, result: Result<Result<T, DieselError>, Elapsed>) -> Result<T, StatementError> {
        let error = match result {
            Ok(Ok(value)) => {
                drop(self.0.take());
                return Ok(value);
            }
            Ok(Err(error)) => error,
            Err(Elapsed { .. }) => return Err(StatementError::TimedOut),
        };
        if leaves_connection_usable(&error) {
            drop(self.0.take());
        }
        Err(StatementError::Failed(error))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(PoolObject::take(connection));
        }
    }
}

impl Connections {
    pub(super) fn new(config: &DatabaseConfig) -> Self {
        let mut manager = ManagerConfig::default();
        // `Fast` checks without a round trip that the connection is not closed.
        manager.recycling_method = RecyclingMethod::Fast;
        let client = client_config(config);
        let encryption = Arc::new(Encryption::new(config.url.tls()).telling());
        manager.custom_setup = Box::new(move |_| {
            let (encryption, client) = (Arc::clone(&encryption), client.clone());
            async move { open(&encryption, &client).await }.boxed()
        });
        let manager = AsyncDieselConnectionManager::new_with_config("", manager);
        let pool = Pool::builder(manager)
            .max_size(config.connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .build()
            .expect("a pool with timeouts needs a runtime, and has one");
        Self { pool }
    }

    /// Takes a connection for one statement.
    pub(super) async fn lease(&self, deadline: Instant) -> Result<Lease, StoreError> {
        let mut pauses = Pauses::between_calls();
        loop {
            let taken = timeout_at(deadline, self.pool.get())
                .await
                .map_err(|_| StoreError::Busy)?;
            match taken.map_err(StoreError::from) {
                Ok(connection) => return Ok(Lease(Some(connection))),
                // Those that are open serve all, one after the other.
                Err(StoreError::NoneLeft) if self.pool.status().size > 0 => {
                    pauses.pause(deadline).await.map_err(|_| StoreError::Busy)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn status(&self) -> PoolStatus {
        let status = self.pool.status();
        PoolStatus {
            open: status.size,
            idle: status.available,
            waiting: status.waiting,
        }
    }

    /// The most there are at once.
    pub(super) fn most(&self) -> usize {
        self.pool.status().max_size
    }

    pub(super) fn close(&self) {
        self.pool.close();
    }
}

/// Why a statement that was sent gave no result.
pub(super) enum StatementError {
    Failed(DieselError),
    TimedOut,
}

impl From<StatementError> for StoreError {
    fn from(error: StatementError) -> Self {
        match error {
            StatementError::Failed(error) => StoreError::Failed(error),
            StatementError::TimedOut => StoreError::TimedOut,
        }
    }
}

/// Conflicts are everyday; all else is rare enough to pay for a new connection. A primary that was demoted refuses every
/// write and answers every read, so its connections must go.
fn leaves_connection_usable(error: &DieselError) -> bool {
    matches!(
        error,
        DieselError::DatabaseError(
            DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::SerializationFailure,
            _
        )
    )
}

fn client_config(config: &DatabaseConfig) -> tokio_postgres::Config {
    let mut client = config.url.to_client_config();
    client.application_name(&config.application_name);
    // Of several hosts some are standbys, on whose stale data nothing may be decided.
    if client.get_hosts().len() > 1 && client.get_target_session_attrs() == TargetSessionAttrs::Any {
        client.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    if client.get_connect_timeout().is_none() {
        client.connect_timeout(CONNECT_TIMEOUT);
    }
    if client.get_tcp_user_timeout().is_none() {
        client.tcp_user_timeout(Duration::from_secs(10));
    }
    client
}

/// Opens a connection with the settings of those of the pool.
async fn open(encryption: &Encryption, client: &tokio_postgres::Config) -> Result<AsyncPgConnection, ConnectionError> {
    let connected = encryption.connect(client).await;
    let (client, connection) = connected.map_err(|error| {
        ConnectionError::BadConnection(match error.code() {
            Some(&SqlState::TOO_MANY_CONNECTIONS) => format!("{NONE_LEFT}: {error}"),
            _ => reason(&error),
        })
    })?;
    let mut connection = AsyncPgConnection::try_from_client_and_connection(client, connection).await?;
    connection
        .batch_execute(SESSION_SETTINGS)
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(connection)
}

/// Whether PostgreSQL takes no more connections.
pub(super) fn is_none_left(error: &PoolError) -> bool {
    matches!(error, PoolError::ConnectionError(ConnectionError::BadConnection(text)) if text.starts_with(NONE_LEFT))
}

/// What TLS failed of, if that is why there is no connection.
pub(super) fn tls_failure_of(error: &PoolError) -> Option<TlsFailure> {
    let PoolError::ConnectionError(ConnectionError::BadConnection(text)) = error else {
        return None;
    };
    TlsFailure::ALL
        .into_iter()
        .find(|failure| *text == no_secure_connection(*failure))
}

fn no_secure_connection(failure: TlsFailure) -> String {
    format!("no secure connection: {failure}")
}

/// Why there is no connection. What failed of TLS is said without hosts and names.
fn reason(error: &tokio_postgres::Error) -> String {
    match tls_failure(error) {
        Some(failure) => {
            tracing::debug!(error = with_cause(error), "a failed TLS handshake with PostgreSQL");
            no_secure_connection(failure)
        }
        None => with_cause(error),
    }
}

/// tokio-postgres names only the step that failed; the reason is its source.
pub(super) fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Opens a connection outside the pool for `config`, with the settings of one.
pub(super) async fn open_one(config: &DatabaseConfig) -> Result<AsyncPgConnection, ConnectionError> {
    open(&Encryption::new(config.url.tls()), &client_config(config)).await
}

/// Opens a connection outside the pool for `config` that is not diesel's; the error says why there is none.
pub(super) async fn open_client(config: &DatabaseConfig) -> Result<Client, String> {
    let encryption = Encryption::new(config.url.tls());
    let connected = encryption.connect(&client_config(config)).await;
    let (client, connection) = connected.map_err(|error| reason(&error))?;
    // It ends with its client; its error is that of the statement under way.
    tokio::spawn(connection);
    Ok(client)
}
