//! Brings the schema up to date. The only place that takes a lock: many replicas may start at once.

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::result::Error as DieselError;
use diesel::sql_types::Bool;
use diesel::{Connection, RunQueryDsl};
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{ConnectionFailure, opening};
use crate::config::DatabaseConfig;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Settings and lock end with the transaction, so that neither stays on a pooler's connection.
/// READ COMMITTED, so that the migrations of another process are seen when its lock is gone.
const SETTINGS: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '300s'; SET LOCAL lock_timeout = '300s'; \
     SET LOCAL idle_in_transaction_session_timeout = '300s'; SET LOCAL client_min_messages = warning";
/// The number is the word "balance" in ASCII.
const TRY_LOCK: &str = "pg_try_advisory_xact_lock(x'62616c616e6365'::bigint)";
const LOCK: &str = "SELECT pg_advisory_xact_lock(x'62616c616e6365'::bigint)";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// There is no connection to a database that can hold the ledger.
    #[error("{}", .0.for_the_log())]
    Connect(ConnectionFailure),
    /// Another process has been migrating for five minutes.
    #[error("the migration lock could not be taken: {0}")]
    Lock(#[source] DieselError),
    /// A migration failed, and all of this run were rolled back.
    #[error("a migration failed, and nothing was changed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The task that runs migrations panicked.
    #[error("the migration was interrupted")]
    Interrupted,
}

impl From<DieselError> for MigrationError {
    fn from(error: DieselError) -> Self {
        MigrationError::Failed(Box::new(error))
    }
}

/// Runs the migrations that are missing, in one transaction and in one process at a time; returns their names. Says so in
/// the process log where it waits for another process.
///
/// # Errors
///
/// [`MigrationError`]; the schema is then as it was.
pub async fn migrate(config: &DatabaseConfig) -> Result<Vec<String>, MigrationError> {
    let connection = opening::open_one(config).await.map_err(MigrationError::Connect)?;
    let run = tokio::task::spawn_blocking(move || {
        let mut connection: AsyncConnectionWrapper<AsyncPgConnection> = AsyncConnectionWrapper::from(connection);
        connection.transaction(|connection| {
            connection.batch_execute(SETTINGS)?;
            lock(connection).map_err(MigrationError::Lock)?;
            let versions = connection.run_pending_migrations(MIGRATIONS);
            let versions = versions.map_err(MigrationError::Failed)?;
            Ok(versions.iter().map(ToString::to_string).collect())
        })
    });
    run.await.map_err(|_| MigrationError::Interrupted)?
}

fn lock(connection: &mut AsyncConnectionWrapper<AsyncPgConnection>) -> Result<(), DieselError> {
    let is_free: bool = diesel::select(sql::<Bool>(TRY_LOCK)).get_result(connection)?;
    if is_free {
        return Ok(());
    }
    tracing::info!("another process migrates the database; waiting for it, for at most 5 minutes");
    connection.batch_execute(LOCK)
}
