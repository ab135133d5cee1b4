//! Opening a connection to PostgreSQL, and finding out whether it can be used before anything is sent over it.
//!
//! No session is changed: a `SET` stays on a pooler's connection, and may reach another client there. Settings belong to
//! the role, see [`SESSION_SETTINGS`].

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics as ObjectMetrics, RecycleError, RecycleResult};
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::PoolableConnection;
use futures_util::future::{Either, select};
use tokio::time::{Instant, timeout};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, Connection, SimpleQueryMessage, Socket};

use super::ConnectionFailure;
use super::encryption::{Encryption, Stream};
use super::trust::Trust;
use crate::config::DatabaseConfig;

/// How long opening a connection may take, with the handshakes and the first question: longer than a distant server takes,
/// and short enough for a replica to be ready within 2 seconds of a new primary.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long TCP may take to connect to all hosts together, unless `DATABASE_URL` has `connect_timeout`: one that is gone
/// must leave time for the next.
const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long sent bytes may stay unacknowledged, unless `DATABASE_URL` has `tcp_user_timeout`.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings that `env/roles.sql` gives the service's role. A session without them works, and is told of in the log.
///
/// The timeouts are for a replica that is cut off in the middle of a statement. The others are how statements are planned:
/// each leads from users to their rows by the primary keys, whatever its parameters and however few rows there are yet, so
/// that one plan serves always.
pub const SESSION_SETTINGS: [(&str, &str); 7] = [
    ("statement_timeout", "10s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("client_min_messages", "warning"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("jit", "off"),
];

/// A connection, and when the server behind it last proved that it is there.
pub(super) struct PooledConnection {
    pub(super) connection: AsyncPgConnection,
    pub(super) answered_at: Instant,
}

/// Opens the connections of a pool.
pub(super) struct Opener {
    client: Config,
    encryption: Encryption,
    trust: Trust,
    /// The failure that the log was told of last; none while connections can be opened.
    told: Mutex<Option<ConnectionFailure>>,
    /// The settings that the log was told are not those of [`SESSION_SETTINGS`].
    told_settings: Mutex<String>,
}

impl Opener {
    pub(super) fn new(config: &DatabaseConfig, trust: Trust) -> Self {
        Self {
            client: client_config(config),
            encryption: Encryption::new(config.url.tls()).telling(),
            trust,
            told: Mutex::default(),
            told_settings: Mutex::default(),
        }
    }

    async fn open(&self) -> Result<AsyncPgConnection, ConnectionFailure> {
        let (client, mut connection) = self.encryption.connect(&self.client).await?;
        let session = Session::of(&client, &mut connection).await?;
        session.check()?;
        self.tell_settings(&session.other_settings);
        to_diesel(client, connection).await
    }

    /// Tells the log once of each change of the reason.
    fn tell(&self, failure: Option<&ConnectionFailure>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() == failure {
            return;
        }
        match failure {
            Some(failure) => tracing::warn!("{}", failure.for_the_log()),
            None => tracing::info!("connections to PostgreSQL can be opened again"),
        }
        *told = failure.cloned();
    }

    fn tell_settings(&self, others: &str) {
        let mut told = self.told_settings.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == others {
            return;
        }
        if !others.is_empty() {
            tracing::warn!(
                settings = others,
                "the database role lacks settings of env/roles.sql: statements may be planned badly or run for too long"
            );
        }
        others.clone_into(&mut told);
    }
}

impl Manager for Opener {
    type Type = PooledConnection;
    type Error = ConnectionFailure;

    async fn create(&self) -> Result<PooledConnection, ConnectionFailure> {
        // On the heap, so that statements take no room for what is done once a connection.
        let opened = timeout(OPEN_TIMEOUT, Box::pin(self.open())).await.unwrap_or_else(|_| {
            let silence = format!("no answer within {OPEN_TIMEOUT:?}");
            Err(ConnectionFailure::Unreachable(silence))
        });
        self.tell(opened.as_ref().err());
        let connection = opened.inspect_err(|failure| match failure {
            // The connections that are open lead to the same server or pooler.
            ConnectionFailure::ReadOnly | ConnectionFailure::SharedStatements => self.trust.withdraw(Instant::now()),
            _ => {}
        })?;
        Ok(PooledConnection {
            connection,
            answered_at: Instant::now(),
        })
    }

    async fn recycle(&self, pooled: &mut PooledConnection, _: &ObjectMetrics) -> RecycleResult<ConnectionFailure> {
        if pooled.connection.is_broken() {
            return Err(RecycleError::message("the connection is closed"));
        }
        if !self.trust.extends_to(pooled.answered_at) {
            return Err(RecycleError::message("the server behind the connection may be gone"));
        }
        Ok(())
    }
}

/// Of a session that was just opened.
struct Session {
    encoding: String,
    is_read_only: bool,
    /// Whether statements are prepared under names of ours, which this client has not prepared.
    has_statements_of_others: bool,
    /// Those of [`SESSION_SETTINGS`] that have another value, as `name=value`.
    other_settings: String,
}

impl Session {
    /// One round trip, in the simple protocol: nothing is prepared yet.
    async fn of(client: &Client, connection: &mut Connection<Socket, Stream>) -> Result<Self, ConnectionFailure> {
        let settings = SESSION_SETTINGS
            .map(|(name, value)| format!("('{name}', '{value}')"))
            .join(", ");
        let question = format!(
            "SELECT current_setting('server_encoding'), current_setting('transaction_read_only'), \
                EXISTS (SELECT FROM pg_prepared_statements WHERE name ~ '^s[0-9]+$'), \
                (SELECT string_agg(name || '=' || current_setting(name), ', ') FROM (VALUES {settings}) AS needed (name, value) \
                 WHERE current_setting(name) <> value)"
        );
        let answered = match select(pin!(client.simple_query(&question)), connection).await {
            Either::Left((answered, _)) => answered?,
            Either::Right((ended, _)) => {
                ended?;
                return Err(ConnectionFailure::Unreachable("the connection was closed".to_owned()));
            }
        };
        let rows = answered.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = rows.into_iter().next();
        let column = |index| row.and_then(|row| row.get(index)).unwrap_or_default();
        Ok(Self {
            encoding: column(0).to_owned(),
            is_read_only: column(1) != "off",
            has_statements_of_others: column(2) != "f",
            other_settings: column(3).to_owned(),
        })
    }

    fn check(&self) -> Result<(), ConnectionFailure> {
        if self.encoding != "UTF8" {
            return Err(ConnectionFailure::NotUtf8(self.encoding.clone()));
        }
        if self.has_statements_of_others {
            return Err(ConnectionFailure::SharedStatements);
        }
        if self.is_read_only {
            return Err(ConnectionFailure::ReadOnly);
        }
        Ok(())
    }
}

async fn to_diesel(
    client: Client,
    connection: Connection<Socket, Stream>,
) -> Result<AsyncPgConnection, ConnectionFailure> {
    let opened = AsyncPgConnection::try_from_client_and_connection(client, connection).await;
    opened.map_err(|error| match error {
        // diesel sets the time zone and the encoding with prepared statements, and PostgreSQL refuses neither.
        ConnectionError::CouldntSetupConfiguration(DieselError::DatabaseError(DatabaseErrorKind::Unknown, _)) => {
            ConnectionFailure::SharedStatements
        }
        error => ConnectionFailure::Unreachable(error.to_string()),
    })
}

fn client_config(config: &DatabaseConfig) -> Config {
    let mut client = config.url.to_client_config();
    client.application_name(&config.application_name);
    let hosts = u32::try_from(client.get_hosts().len()).unwrap_or(u32::MAX).max(1);
    // Of several hosts some are standbys, on whose stale data nothing may be decided.
    if hosts > 1 && client.get_target_session_attrs() == TargetSessionAttrs::Any {
        client.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    if client.get_connect_timeout().is_none() {
        client.connect_timeout(TCP_CONNECT_TIMEOUT / hosts);
    }
    if client.get_tcp_user_timeout().is_none() {
        client.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    client
}

/// Opens a connection outside of a pool that is to write, with the checks of one.
pub(super) async fn open_one(config: &DatabaseConfig) -> Result<AsyncPgConnection, ConnectionFailure> {
    let encryption = Encryption::new(config.url.tls());
    let (client, mut connection) = encryption.connect(&client_config(config)).await?;
    Session::of(&client, &mut connection).await?.check()?;
    to_diesel(client, connection).await
}

/// Opens a connection outside of a pool that is not diesel's, to read; a standby will do.
pub(super) async fn open_client(config: &DatabaseConfig) -> Result<Client, ConnectionFailure> {
    let encryption = Encryption::new(config.url.tls());
    let (client, connection) = encryption.connect(&client_config(config)).await?;
    // It ends with its client; its error is that of the statement under way.
    tokio::spawn(connection);
    Ok(client)
}
