//! The whole ledger as of one moment, read from end to end by a checker: streams in the order of the keys, as wide as a
//! connection and never a table in memory.
//!
//! Several streams are read side by side, each on a connection of its own; they see the same snapshot because the first
//! connection exports its own and stays in its transaction.

use std::marker::PhantomData;
use std::pin::Pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row, RowStream};
use uuid::Uuid;

use super::ConnectionFailure;
use super::conversion::POSTGRES_EPOCH;
use super::failure::with_cause;
use super::opening::open_client;
use crate::config::DatabaseConfig;

/// Unlike a service's statements these last: they take as long as the tables are long, and the first connection does nothing
/// while the others read. `cursor_tuple_fraction` is for cursors only; all rows are wanted, and fast. The settings are the
/// transaction's, so that none stays on a pooler's connection.
const TRANSACTION: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = '5s'; \
     SET LOCAL client_min_messages = warning; SET LOCAL jit = off; SET LOCAL enable_seqscan = on; SET LOCAL work_mem = '64MB'";

/// The columns of a [`StoredOperation`], but for the last, which is the context or what stands for it.
const OPERATION: &str = "user_id, \"timestamp\", seq, balance_change, balance_after, operation_id, approved, instance, \
     caller, recorded_at";

/// Why the ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No connection.
    #[error("{}", .0.for_the_log())]
    Connect(ConnectionFailure),
    /// A statement failed, or the connection broke.
    #[error("PostgreSQL failed to read the ledger: {0}")]
    Failed(String),
}

impl From<tokio_postgres::Error> for SnapshotError {
    fn from(error: tokio_postgres::Error) -> Self {
        SnapshotError::Failed(with_cause(&error))
    }
}

/// A moment as it is stored, which need not be one that the service would store: microseconds since
/// 1970-01-01T00:00:00Z. The infinities are the ends of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredMoment(pub i64);

impl<'a> FromSql<'a> for StoredMoment {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_sql(kind, raw)?.saturating_add(POSTGRES_EPOCH)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

impl ToSql for StoredMoment {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        // The infinities are the only values that were cut off when they were read.
        let since_epoch = if self.0 == i64::MAX {
            i64::MAX
        } else {
            self.0.saturating_sub(POSTGRES_EPOCH)
        };
        since_epoch.to_sql(kind, out)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Where a row of the history stands on its user's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredPlace {
    /// Its timestamp.
    pub timestamp: StoredMoment,
    /// Its number in the order of acceptance.
    pub seq: i64,
}

/// What a stream gives: borrowed from one row.
pub trait StoredRow {
    /// The row's columns.
    type Columns<'a>;
    /// Reads the columns of a row.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if a column is not what the schema says, as NULL.
    fn columns(row: &Row) -> Result<Self::Columns<'_>, SnapshotError>;
}

macro_rules! stored_row {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<'a> {
            /// Whose row.
            pub user_id: &'a str,
            $($(#[$doc])* pub $field: $type,)*
        }

        impl StoredRow for $name<'static> {
            type Columns<'a> = $name<'a>;

            fn columns(row: &Row) -> Result<$name<'_>, SnapshotError> {
                let mut column = 0..;
                let mut next = || column.next().unwrap_or_default();
                Ok($name {
                    user_id: row.try_get(next())?,
                    $($field: row.try_get(next())?,)*
                })
            }
        }
    };
}

stored_row! {
    /// A row of `balance`.
    StoredHead {
        /// After the last operation.
        balance: i64,
        /// How many operations there are.
        version: i64,
        /// The last operation's timestamp.
        latest: StoredMoment,
        /// Operations after the last checkpoint.
        since_checkpoint: i32,
        /// When the operations accepted last were stored.
        recorded_at: StoredMoment,
    }
}

stored_row! {
    /// A row of `balance_checkpoints`.
    StoredCheckpoint {
        /// Where it stands.
        timestamp: StoredMoment,
        /// At this timestamp.
        balance: i64,
        /// Of the balances at the segment's timestamps.
        lowest: i64,
        /// Of the balances at the segment's timestamps.
        highest: i64,
        /// None of the segment's operations was stored earlier.
        recorded_from: StoredMoment,
        /// None of the segment's operations was stored later.
        recorded_until: StoredMoment,
        /// None of the operations up to the checkpoint was stored later.
        all_recorded_until: StoredMoment,
    }
}

stored_row! {
    /// A row of `changes_history`.
    StoredOperation {
        /// Where on the timeline.
        timestamp: StoredMoment,
        /// The order of acceptance.
        seq: i64,
        /// How much was added.
        balance_change: i64,
        /// At this timestamp when it was accepted.
        balance_after: i64,
        /// Its name.
        operation_id: Uuid,
        /// Whether the Approver approved.
        approved: bool,
        /// The replica that stored it.
        instance: &'a str,
        /// Whose token it was asked for with, if there were tokens.
        caller: Option<&'a str>,
        /// When it was stored, by PostgreSQL's clock.
        recorded_at: StoredMoment,
        /// What it was for; empty where the stream was asked for without.
        context: &'a str,
    }
}

/// Rows as they arrive. Nothing is read ahead but what the connection holds.
pub struct Stored<R> {
    rows: Pin<Box<RowStream>>,
    current: Option<Row>,
    kind: PhantomData<R>,
    /// Keeps the connection open.
    #[allow(dead_code, reason = "the connection closes with its client")]
    client: Option<Client>,
}

impl<R: StoredRow> Stored<R> {
    async fn begin(rows: RowStream, client: Option<Client>) -> Result<Self, SnapshotError> {
        let mut stored = Self {
            rows: Box::pin(rows),
            current: None,
            kind: PhantomData,
            client,
        };
        stored.advance().await?;
        Ok(stored)
    }

    /// The row that is come to; none at the end.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if a column is not what the schema says.
    pub fn current(&self) -> Result<Option<R::Columns<'_>>, SnapshotError> {
        self.current.as_ref().map(R::columns).transpose()
    }

    /// Goes on to the next row.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn advance(&mut self) -> Result<(), SnapshotError> {
        self.current = self.rows.try_next().await?;
        Ok(())
    }
}

/// One moment of the ledger, seen for as long as this is held. PostgreSQL keeps what was deleted or updated since: a
/// ledger that is checked for hours grows meanwhile.
pub struct Snapshot {
    config: DatabaseConfig,
    client: Client,
    id: String,
    taken_at: StoredMoment,
}

async fn connect(config: &DatabaseConfig) -> Result<Client, SnapshotError> {
    let client = open_client(config).await.map_err(SnapshotError::Connect)?;
    client.batch_execute(TRANSACTION).await?;
    Ok(client)
}

impl Snapshot {
    /// Sees the ledger as it is now.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL cannot be reached or fails.
    pub async fn take(config: &DatabaseConfig) -> Result<Self, SnapshotError> {
        let client = connect(config).await?;
        let exported = client.query_one("SELECT pg_export_snapshot(), now()", &[]).await?;
        Ok(Self {
            config: config.clone(),
            client,
            id: exported.try_get(0)?,
            taken_at: exported.try_get(1)?,
        })
    }

    /// When it was taken, by PostgreSQL's clock.
    pub fn taken_at(&self) -> StoredMoment {
        self.taken_at
    }

    /// About how many operations there are, as PostgreSQL's statistics say; 0 if they say nothing.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn operations_estimated(&self) -> Result<u64, SnapshotError> {
        let query = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'changes_history'::regclass";
        let rows: i64 = self.client.query_one(query, &[]).await?.try_get(0)?;
        Ok(rows.unsigned_abs())
    }

    /// All rows of `balance`, by user.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL cannot be reached or fails.
    pub async fn heads(&self) -> Result<Stored<StoredHead<'static>>, SnapshotError> {
        self.whole(
            "SELECT user_id, balance, version, latest, since_checkpoint, recorded_at FROM balance ORDER BY user_id",
        )
        .await
    }

    /// All checkpoints, by user and timestamp.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL cannot be reached or fails.
    pub async fn checkpoints(&self) -> Result<Stored<StoredCheckpoint<'static>>, SnapshotError> {
        self.whole(
            "SELECT user_id, \"timestamp\", balance, lowest, highest, recorded_from, recorded_until, \
             all_recorded_until FROM balance_checkpoints ORDER BY user_id, \"timestamp\"",
        )
        .await
    }

    /// All operations, by user, timestamp and order of acceptance; with their contexts, if they are wanted.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL cannot be reached or fails.
    pub async fn operations(&self, with_contexts: bool) -> Result<Stored<StoredOperation<'static>>, SnapshotError> {
        let context = if with_contexts { "context" } else { "''" };
        self.whole(&format!(
            "SELECT {OPERATION}, {context} FROM changes_history ORDER BY user_id, \"timestamp\", seq"
        ))
        .await
    }

    async fn whole<R: StoredRow>(&self, query: &str) -> Result<Stored<R>, SnapshotError> {
        let client = connect(&self.config).await?;
        let adopt = format!("SET TRANSACTION SNAPSHOT '{}'", self.id);
        client.batch_execute(&adopt).await?;
        let rows = client.query_raw(query, std::iter::empty::<i64>()).await?;
        Stored::begin(rows, Some(client)).await
    }

    /// The first `limit` distinct timestamps of a user's operations after one place and up to another, in order.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn moments(
        &self,
        user_id: &str,
        after: StoredPlace,
        to: StoredPlace,
        limit: usize,
    ) -> Result<Vec<StoredMoment>, SnapshotError> {
        let query = format!(
            "SELECT DISTINCT \"timestamp\" FROM changes_history WHERE user_id = $1 \
             AND (\"timestamp\", seq) > ($2, $3) AND (\"timestamp\", seq) <= ($4, $5) ORDER BY 1 LIMIT {limit}"
        );
        let rows = self.stretch(&query, user_id, after, to).await?;
        let moments = rows.and_then(|row| async move { row.try_get::<_, StoredMoment>(0) });
        Ok(moments.try_collect().await?)
    }

    /// A user's operations from one place to another, both included, in the order of acceptance. PostgreSQL sorts them,
    /// on its disk where they are many.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn by_acceptance(
        &self,
        user_id: &str,
        from: StoredPlace,
        to: StoredPlace,
    ) -> Result<Stored<StoredOperation<'static>>, SnapshotError> {
        let query = format!(
            "SELECT {OPERATION}, '' FROM changes_history \
             WHERE user_id = $1 AND (\"timestamp\", seq) >= ($2, $3) AND (\"timestamp\", seq) <= ($4, $5) \
             ORDER BY seq, \"timestamp\""
        );
        let rows = self.stretch(&query, user_id, from, to).await?;
        Stored::begin(rows, None).await
    }

    /// The operation at a place of a user's timeline, with its context.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn operation(
        &self,
        user_id: &str,
        place: StoredPlace,
    ) -> Result<Stored<StoredOperation<'static>>, SnapshotError> {
        let query = format!(
            "SELECT {OPERATION}, context FROM changes_history \
             WHERE user_id = $1 AND (\"timestamp\", seq) >= ($2, $3) AND (\"timestamp\", seq) <= ($4, $5)"
        );
        let rows = self.stretch(&query, user_id, place, place).await?;
        Stored::begin(rows, None).await
    }

    async fn stretch(
        &self,
        query: &str,
        user_id: &str,
        from: StoredPlace,
        to: StoredPlace,
    ) -> Result<RowStream, SnapshotError> {
        let parameters: [&(dyn ToSql + Sync); 5] = [&user_id, &from.timestamp, &from.seq, &to.timestamp, &to.seq];
        Ok(self.client.query_raw(query, parameters).await?)
    }

    /// Operations that share their id with another one, of whatever user; at most `limit` ids are looked at.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn doubled_ids(&self, limit: i64) -> Result<Stored<StoredOperation<'static>>, SnapshotError> {
        let query = format!(
            "WITH doubled AS MATERIALIZED (SELECT operation_id FROM changes_history \
             GROUP BY operation_id HAVING count(*) > 1 LIMIT $1) \
             SELECT {OPERATION}, context FROM changes_history JOIN doubled USING (operation_id) \
             ORDER BY operation_id, user_id, \"timestamp\", seq"
        );
        Stored::begin(self.client.query_raw(&query, [limit]).await?, None).await
    }

    /// Operations that share their user and idempotency key with another one; at most `limit` keys are looked at. The
    /// key stands for the context.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if PostgreSQL fails.
    pub async fn doubled_keys(&self, limit: i64) -> Result<Stored<StoredOperation<'static>>, SnapshotError> {
        let query = format!(
            "WITH doubled AS MATERIALIZED (SELECT user_id, idempotency_key FROM changes_history \
             WHERE idempotency_key IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1 LIMIT $1) \
             SELECT {OPERATION}, idempotency_key FROM changes_history JOIN doubled USING (user_id, idempotency_key) \
             ORDER BY user_id, idempotency_key, \"timestamp\", seq"
        );
        Stored::begin(self.client.query_raw(&query, [limit]).await?, None).await
    }
}
