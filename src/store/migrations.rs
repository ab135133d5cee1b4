//! Brings the schema up to date. The only place that takes a lock: migrations take none of their own, and many replicas
//! may start at once.

use diesel::ConnectionError;
use diesel::result::Error as DieselError;
use diesel_async::SimpleAsyncConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connections;
use crate::config::DatabaseConfig;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The lock is the session's and goes with it. The number is the word "balance" in ASCII.
const LOCK: &str = "SET statement_timeout = '300s'; SET lock_timeout = '300s'; \
     SELECT pg_advisory_lock(x'62616c616e6365'::bigint)";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// No connection.
    #[error("PostgreSQL cannot be reached: {0}")]
    Connect(#[source] ConnectionError),
    /// Another process has been migrating for five minutes.
    #[error("the lock that keeps migrations apart was not had: {0}")]
    Lock(#[source] DieselError),
    /// A migration failed; it has been rolled back.
    #[error("a migration failed and was rolled back: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The task that runs migrations panicked.
    #[error("the migration was interrupted")]
    Interrupted,
}

/// Runs the migrations that are missing, in one process at a time; returns their names.
///
/// # Errors
///
/// [`MigrationError`]; the schema is then as it was before the migration that failed.
pub async fn migrate(config: &DatabaseConfig) -> Result<Vec<String>, MigrationError> {
    let mut connection = connections::open_one(config).await.map_err(MigrationError::Connect)?;
    connection.batch_execute(LOCK).await.map_err(MigrationError::Lock)?;
    let run = tokio::task::spawn_blocking(move || {
        let mut connection: AsyncConnectionWrapper<_> = AsyncConnectionWrapper::from(connection);
        let versions = connection.run_pending_migrations(MIGRATIONS)?;
        Ok(versions.iter().map(ToString::to_string).collect())
    });
    run.await
        .map_err(|_| MigrationError::Interrupted)?
        .map_err(MigrationError::Failed)
}
