//! The one way to run a statement: it takes a connection, keeps the deadline, and sorts what can go wrong.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{Object, Pool, PoolError};
use diesel::deserialize::FromSqlRow;
use diesel::pg::Pg;
use diesel::query_builder::{Query, QueryFragment, QueryId};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncConnectionCore, AsyncPgConnection, SimpleAsyncConnection};
use futures_util::TryStreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::opening::{Opener, PooledConnection};
use super::statement::failed_condition;
use super::trust::Trust;
use super::{ConnectionFailure, StoreError};
use crate::config::DatabaseConfig;
use crate::metrics::{Metrics, Statement};
use crate::retry::Pauses;

/// How long a connection is waited for when all are in use.
const LEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that answered within this time is trusted when another one times out.
const RECENTLY: Duration = Duration::from_secs(1);
/// How long a connection may take to show that it outlived an error.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a read is tried: enough for connections that a restart of PostgreSQL has broken.
const READ_ATTEMPTS: u32 = 3;
/// How often a read is tried that PostgreSQL refuses: once more for one that an administrator cancelled.
const REFUSED_READ_ATTEMPTS: u32 = 2;

/// The connections of a replica: a pool whose every connection was checked when it was opened.
pub(super) struct Connections {
    pool: Pool<Opener>,
    trust: Trust,
    pub(super) metrics: Arc<Metrics>,
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

/// Why a statement gave no result.
pub(super) enum StatementError {
    /// It was not sent.
    NotSent(StoreError),
    /// PostgreSQL rolled it back, since another session was faster.
    Conflict(DieselError),
    /// PostgreSQL refused it, and rolled it back.
    Refused(DieselError),
    /// The prepared statement was another one, or the session is read-only: nothing was done.
    WrongSession(ConnectionFailure),
    /// The connection broke after it was sent: what it wrote may be stored.
    Broken(DieselError),
    /// No answer came before the deadline: what it wrote may be stored, or may still be.
    TimedOut,
}

impl From<StatementError> for StoreError {
    fn from(error: StatementError) -> Self {
        match error {
            StatementError::NotSent(error) => error,
            StatementError::Refused(error) => StoreError::Refused(error),
            StatementError::WrongSession(failure) => StoreError::NoConnection(failure),
            StatementError::Conflict(error) | StatementError::Broken(error) => StoreError::Failed(error),
            StatementError::TimedOut => StoreError::TimedOut,
        }
    }
}

/// A connection taken from the pool. It goes back only when its statement has ended well: one whose statement failed,
/// timed out or was cancelled may still be busy or broken, and is closed.
struct Lease {
    pooled: Option<Object<Opener>>,
    trust: Trust,
}

impl Lease {
    fn pooled(&mut self) -> &mut PooledConnection {
        self.pooled
            .as_mut()
            .expect("a lease has its connection until it is dropped")
    }

    fn connection(&mut self) -> &mut AsyncPgConnection {
        &mut self.pooled().connection
    }

    /// Gives the connection back to the pool.
    fn give_back(mut self) {
        self.pooled().answered_at = Instant::now();
        drop(self.pooled.take());
    }

    /// Classifies an error of the statement, and ends the lease.
    async fn fail(mut self, error: DieselError) -> StatementError {
        let DieselError::DatabaseError(kind, information) = &error else {
            return match error {
                // Nothing was sent.
                DieselError::SerializationError(_)
                | DieselError::QueryBuilderError(_)
                | DieselError::InvalidCString(_) => StatementError::Refused(error),
                _ => StatementError::Broken(error),
            };
        };
        if let Some(failure) = failed_condition(information.message()) {
            self.trust.withdraw(Instant::now());
            return StatementError::WrongSession(failure);
        }
        match kind {
            // The idempotency key or the place in the order of acceptance was taken meanwhile.
            DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::SerializationFailure => {
                self.give_back();
                StatementError::Conflict(error)
            }
            DatabaseErrorKind::ReadOnlyTransaction => {
                self.trust.withdraw(Instant::now());
                StatementError::WrongSession(ConnectionFailure::ReadOnly)
            }
            DatabaseErrorKind::ForeignKeyViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation
            | DatabaseErrorKind::RestrictViolation
            | DatabaseErrorKind::ExclusionViolation => StatementError::Refused(error),
            DatabaseErrorKind::Unknown if self.has_outlived_the_error().await => StatementError::Refused(error),
            // The enum is open; what comes later is in doubt as well.
            _ => StatementError::Broken(error),
        }
    }

    /// Whether PostgreSQL rolled the statement back, where diesel keeps no SQLSTATE to tell by. An error that leaves the
    /// session alive has rolled back. One that ends it may have come after a commit, as when a server is shut down. A pooler
    /// that loses the server's connection in the middle of a statement must end the client's, as PgBouncer does.
    async fn has_outlived_the_error(&mut self) -> bool {
        let probe = self.connection().batch_execute("");
        timeout(PROBE_TIMEOUT, probe)
            .await
            .is_ok_and(|answered| answered.is_ok())
    }

    /// Ends the lease of a statement that got no answer. A network that swallowed it has swallowed the others too, however
    /// long ago it was sent; connections that answered just now live.
    fn time_out(self) -> StatementError {
        let now = Instant::now();
        self.trust.withdraw(now.checked_sub(RECENTLY).unwrap_or(now));
        StatementError::TimedOut
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            drop(Object::take(pooled));
        }
    }
}

impl Connections {
    pub(super) fn new(config: &DatabaseConfig, metrics: Arc<Metrics>) -> Self {
        let trust = Trust::default();
        let pool = Pool::builder(Opener::new(config, trust.clone()))
            .max_size(config.connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(LEASE_TIMEOUT))
            .build()
            .expect("a pool with timeouts needs a runtime, and has one");
        Self { pool, trust, metrics }
    }

    async fn lease(&self, deadline: Instant) -> Result<Lease, StoreError> {
        let mut pauses = Pauses::between_calls();
        let mut last_failure = None;
        loop {
            let out_of_time = |failure: Option<_>| failure.map_or(StoreError::Busy, StoreError::NoConnection);
            let Ok(taken) = timeout_at(deadline, self.pool.get()).await else {
                return Err(out_of_time(last_failure));
            };
            match taken {
                Ok(pooled) => {
                    return Ok(Lease {
                        pooled: Some(pooled),
                        trust: self.trust.clone(),
                    });
                }
                // The open connections serve all statements in turn. A pooler without a free connection says nothing.
                Err(PoolError::Backend(
                    failure @ (ConnectionFailure::NoneLeft(_) | ConnectionFailure::Unreachable(_)),
                )) if self.pool.status().size > 0 => {
                    last_failure = Some(failure);
                    if pauses.pause(deadline).await.is_err() {
                        return Err(out_of_time(last_failure));
                    }
                }
                Err(PoolError::Backend(failure)) => return Err(StoreError::NoConnection(failure)),
                Err(
                    PoolError::Timeout(_)
                    | PoolError::Closed
                    | PoolError::NoRuntimeSpecified
                    | PoolError::PostCreateHook(_),
                ) => return Err(StoreError::Busy),
            }
        }
    }

    /// Runs a statement once, and gives its rows to `take` until that breaks. Returns when PostgreSQL has committed it, not
    /// when its last row has come: the commit may still fail after that, as when a server is shut down.
    ///
    /// # Errors
    ///
    /// [`StatementError`] says whether it may have been done.
    pub(super) async fn run<Q, R>(
        &self,
        query: Q,
        deadline: Instant,
        mut take: impl FnMut(R) -> ControlFlow<()>,
    ) -> Result<(), StatementError>
    where
        Q: Query + QueryFragment<Pg> + QueryId,
        R: FromSqlRow<Q::SqlType, Pg>,
    {
        let mut lease = self.lease(deadline).await.map_err(StatementError::NotSent)?;
        let sent = AsyncConnectionCore::load(lease.connection(), query);
        let running = async {
            let mut rows = sent.await?;
            while let Some(row) = rows.try_next().await? {
                let row = R::build_from_row(&row).map_err(DieselError::DeserializationError)?;
                if take(row).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        };
        match timeout_at(deadline, running).await {
            Ok(Ok(ControlFlow::Continue(()))) => {
                let is_in_doubt = lease.pooled().driver.take_warning();
                lease.give_back();
                if is_in_doubt {
                    let warned = "PostgreSQL has warned of it".to_owned();
                    let error = DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(warned));
                    return Err(StatementError::Broken(error));
                }
                Ok(())
            }
            // The rest of the rows is still on its way: the connection is closed.
            Ok(Ok(ControlFlow::Break(()))) => Ok(()),
            // On the heap, since it is rare.
            Ok(Err(error)) => Err(Box::pin(lease.fail(error)).await),
            Err(_) => Err(lease.time_out()),
        }
    }

    /// Reads all rows of a statement, again if PostgreSQL failed: reads change nothing. Counted as `kind`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the last attempt.
    pub(super) async fn read<Q, R>(&self, kind: Statement, query: Q, deadline: Instant) -> Result<Vec<R>, StoreError>
    where
        Q: Query + QueryFragment<Pg> + QueryId + Copy,
        R: FromSqlRow<Q::SqlType, Pg>,
    {
        let mut pauses = Pauses::between_calls();
        let (mut attempts, mut last) = (1, None);
        loop {
            let attempt = async {
                let mut rows = Vec::new();
                let run = self.run(query, deadline, |row| {
                    rows.push(row);
                    ControlFlow::Continue(())
                });
                run.await?;
                Ok::<_, StoreError>(rows)
            };
            let error = match self.metrics.database.statement(kind, attempt).await {
                Ok(rows) => return Ok(rows),
                Err(error) => error,
            };
            match error {
                StoreError::Refused(_) if attempts < REFUSED_READ_ATTEMPTS => {}
                StoreError::NoConnection(_) | StoreError::Failed(_)
                    if attempts < READ_ATTEMPTS && pauses.pause(deadline).await.is_ok() => {}
                // The time that is left was too short to find out more.
                error if error.is_out_of_time() => return Err(last.unwrap_or(error)),
                error => return Err(error),
            }
            last = Some(error);
            attempts += 1;
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
