//! Opening a connection to PostgreSQL, and finding out whether it can be used before anything is sent over it.
//!
//! No `SET` is sent: it stays on a pooler's connection, and may reach another client there. A session is started with
//! [`SESSION_SETTINGS`], or, where a pooler refuses that, has those of its role.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics as ObjectMetrics, RecycleError, RecycleResult};
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::PoolableConnection;
use futures_util::future::{Either, select};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Connection, SimpleQueryMessage, Socket};

use super::ConnectionFailure;
use super::driver::Driver;
use super::encryption::{Encryption, Stream};
use super::targets::targets_of;
use super::trust::Trust;
use crate::config::DatabaseConfig;

/// How long opening a connection may take, with the handshakes and the first question: longer than a distant server takes,
/// and short enough for a replica to be ready within 2 seconds of a new primary.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long sent bytes may stay unacknowledged, unless `DATABASE_URL` has `tcp_user_timeout`.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of a replica's sessions; `env/roles.sql` gives them to the service's role. A session without them works,
/// and the log says so.
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
    pub(super) driver: Driver,
    pub(super) answered_at: Instant,
}

/// Opens the connections of a pool.
pub(super) struct Opener {
    client: Config,
    encryption: Encryption,
    trust: Trust,
    /// Whether sessions may be started with [`SESSION_SETTINGS`]; not behind poolers.
    takes_settings: AtomicBool,
    /// None while connections can be opened.
    last_logged: Mutex<Option<ConnectionFailure>>,
    /// The settings that sessions lack.
    last_logged_settings: Mutex<String>,
}

impl Opener {
    pub(super) fn new(config: &DatabaseConfig, trust: Trust) -> Self {
        Self {
            client: client_config(config),
            encryption: Encryption::new(config.url.tls()).telling(),
            trust,
            takes_settings: AtomicBool::new(true),
            last_logged: Mutex::default(),
            last_logged_settings: Mutex::default(),
        }
    }

    async fn open(&self) -> Result<(AsyncPgConnection, Driver), ConnectionFailure> {
        let opened = open(&self.encryption, &self.client, Purpose::Serve(&self.takes_settings)).await?;
        self.log_settings(&opened.other_settings);
        to_diesel(opened.client, opened.connection).await
    }

    /// Logs a failure when it differs from the last one.
    fn log_change(&self, failure: Option<&ConnectionFailure>) {
        let mut last = self.last_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() == failure {
            return;
        }
        match failure {
            Some(failure) => tracing::warn!("{}", failure.for_the_log()),
            None => tracing::info!("connections to PostgreSQL can be opened again"),
        }
        *last = failure.cloned();
    }

    fn log_settings(&self, others: &str) {
        let mut last = self.last_logged_settings.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == others {
            return;
        }
        if !others.is_empty() {
            tracing::warn!(
                settings = others,
                "sessions behind this pooler have none of the settings that env/roles.sql gives the role: statements may be planned \
                 badly, and a change that was given up may be stored late; run env/roles.sql"
            );
        }
        others.clone_into(&mut last);
    }
}

impl Manager for Opener {
    type Type = PooledConnection;
    type Error = ConnectionFailure;

    async fn create(&self) -> Result<PooledConnection, ConnectionFailure> {
        // On the heap, so that statements take no room for what is done once a connection.
        let opened = Box::pin(self.open()).await;
        self.log_change(opened.as_ref().err());
        let (connection, driver) = opened.inspect_err(|failure| {
            if *failure == ConnectionFailure::SharedStatements {
                // The connections that are open lead to the same pooler.
                self.trust.withdraw(Instant::now());
            }
        })?;
        Ok(PooledConnection {
            connection,
            driver,
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
) -> Result<(AsyncPgConnection, Driver), ConnectionFailure> {
    let driver = Driver::start(connection);
    let opened = AsyncPgConnection::try_from(client).await;
    Ok((opened.map_err(setup_failure)?, driver))
}

fn setup_failure(error: ConnectionError) -> ConnectionFailure {
    match error {
        // diesel sets the time zone and the encoding with prepared statements, and PostgreSQL refuses neither.
        ConnectionError::CouldntSetupConfiguration(DieselError::DatabaseError(DatabaseErrorKind::Unknown, _)) => {
            ConnectionFailure::SharedStatements
        }
        error => ConnectionFailure::Unreachable(error.to_string()),
    }
}

/// A connection that can be used, and what its session lacks.
struct Opened {
    client: Client,
    connection: Connection<Socket, Stream>,
    other_settings: String,
}

/// Which servers will do, and whether the session is to have [`SESSION_SETTINGS`].
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// Statements of a replica; whether the settings may be asked for at the start of the session.
    Serve(&'a AtomicBool),
    /// One that takes writes.
    Migrate,
    /// Any, standbys too.
    Verify,
}

/// Opens a connection to the first server that serves the purpose. Each of those that are left has an equal part of the
/// time that is left.
async fn open(encryption: &Encryption, config: &Config, purpose: Purpose<'_>) -> Result<Opened, ConnectionFailure> {
    let deadline = Instant::now() + OPEN_TIMEOUT;
    let silent = || ConnectionFailure::Unreachable(format!("no answer within {OPEN_TIMEOUT:?}"));
    let targets = timeout_at(deadline, targets_of(config)).await.map_err(|_| silent())?;
    let mut failure = None;
    for (left, target) in (1..=targets.len()).rev().zip(targets) {
        let share = (deadline - Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
        let attempt = async { open_target(encryption, target?, purpose).await };
        let failed = match timeout(share, attempt).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(failed)) => failed,
            Err(_) => silent(),
        };
        // A server that answers tells more than one that does not.
        if failure.is_none() || !matches!(failed, ConnectionFailure::Unreachable(_)) {
            failure = Some(failed);
        }
    }
    Err(failure.unwrap_or_else(silent))
}

async fn open_target(
    encryption: &Encryption,
    target: Config,
    purpose: Purpose<'_>,
) -> Result<Opened, ConnectionFailure> {
    let (client, mut connection) = match purpose {
        Purpose::Serve(takes_settings) => connect_with_settings(encryption, &target, takes_settings).await?,
        Purpose::Migrate | Purpose::Verify => encryption.connect(&target).await?,
    };
    let mut other_settings = String::new();
    if !matches!(purpose, Purpose::Verify) {
        let session = Session::of(&client, &mut connection).await?;
        session.check()?;
        other_settings = session.other_settings;
    }
    Ok(Opened {
        client,
        connection,
        other_settings,
    })
}

/// Asks for the settings with the session's start, where they are the session's own and go with it. A pooler may refuse that.
async fn connect_with_settings(
    encryption: &Encryption,
    target: &Config,
    takes_settings: &AtomicBool,
) -> Result<(Client, Connection<Socket, Stream>), tokio_postgres::Error> {
    if !takes_settings.load(Ordering::Relaxed) {
        return encryption.connect(target).await;
    }
    let mut options = SESSION_SETTINGS
        .map(|(name, value)| format!("-c {name}={value}"))
        .join(" ");
    if let Some(own) = target.get_options() {
        options += &format!(" {own}");
    }
    match encryption.connect(target.clone().options(options)).await {
        Err(error) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => {
            takes_settings.store(false, Ordering::Relaxed);
            encryption.connect(target).await
        }
        connected => connected,
    }
}

fn client_config(config: &DatabaseConfig) -> Config {
    let mut client = config.url.to_client_config();
    client.application_name(&config.application_name);
    if client.get_tcp_user_timeout().is_none() {
        client.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    client
}

/// Opens a connection outside of a pool, for migrations.
pub(super) async fn open_one(config: &DatabaseConfig) -> Result<AsyncPgConnection, ConnectionFailure> {
    let encryption = Encryption::new(config.url.tls());
    let opened = open(&encryption, &client_config(config), Purpose::Migrate).await?;
    let connection = AsyncPgConnection::try_from_client_and_connection(opened.client, opened.connection).await;
    connection.map_err(setup_failure)
}

/// Opens a connection outside of a pool that is not diesel's, to read; a standby will do.
pub(super) async fn open_client(config: &DatabaseConfig) -> Result<Client, ConnectionFailure> {
    let encryption = Encryption::new(config.url.tls());
    let opened = open(&encryption, &client_config(config), Purpose::Verify).await?;
    // It ends with its client; its error is that of the statement under way.
    tokio::spawn(opened.connection);
    Ok(opened.client)
}
