//! Which changes an instance has stored of late: what its log is compared with.

use std::ops::ControlFlow;
use std::time::Duration;

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use tokio::time::Instant;
use uuid::Uuid;

use super::conversion::{from_postgres, to_postgres};
use super::statement::statement;
use super::{Store, StoreError};
use crate::domain::{CallerName, Context, Operation, OperationId, Timestamp, UserId};
use crate::metrics::Statement;

/// How far this host's clock and PostgreSQL's may be apart: `recorded_at` is PostgreSQL's, the ids are ours.
pub const CLOCKS_APART: Duration = Duration::from_secs(60);

statement! {
    /// The changes that an instance stored in a part of the time, in no order. The index on `recorded_at` leads to the
    /// blocks of that time, and all that stand in them are looked at.
    struct StoredBy<'a> {
        instance: &'a str => Text,
        since: PgTimestamp => Timestamptz,
        before: PgTimestamp => Timestamptz,
        first: Uuid => SqlUuid,
        beyond: Uuid => SqlUuid,
    }
    => (Text, Timestamptz, BigInt, BigInt, Text, SqlUuid, Nullable<Text>)
    r#"
SELECT h.user_id, h."timestamp", h.balance_change, h.balance_after, h.context, h.operation_id, h.caller
FROM asked JOIN changes_history h ON h.recorded_at >= asked.since AND h.recorded_at < asked.before
    AND h.instance = asked.instance AND h.operation_id >= asked.first AND h.operation_id < asked.beyond"#
}

/// Which changes to look at.
#[derive(Clone, Debug)]
pub struct StoredByQuery {
    /// Stored by this instance.
    pub instance: String,
    /// Recorded at or after this moment of PostgreSQL's clock.
    pub recorded_since: Timestamp,
    /// Recorded before this moment; `None`: however late.
    pub recorded_before: Option<Timestamp>,
    /// With this id or a higher one.
    pub first: OperationId,
    /// With a lower id than this.
    pub beyond: OperationId,
}

/// A change as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChange {
    /// The change.
    pub operation: Operation,
    /// The balance at its timestamp when it was accepted, with it.
    pub balance_after: i64,
}

/// Some of the changes that were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChanges {
    /// In no order.
    pub changes: Vec<StoredChange>,
    /// Whether there may be more.
    pub more: bool,
}

type StoredRow = (String, PgTimestamp, i64, i64, String, Uuid, Option<String>);

impl Store {
    /// The changes of `query` that are `wanted`, at most so many. The others are passed over as they come, so that what is
    /// held at once is bounded.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL has not given all of them before `deadline`.
    pub async fn stored_by(
        &self,
        query: &StoredByQuery,
        wanted: impl Fn(OperationId) -> bool + Send,
        most: usize,
        deadline: Instant,
    ) -> Result<StoredChanges, StoreError> {
        let statement = StoredBy {
            instance: &query.instance,
            since: to_postgres(query.recorded_since),
            before: query.recorded_before.map_or(PgTimestamp(i64::MAX), to_postgres),
            first: query.first.0,
            beyond: query.beyond.0,
        };
        let (mut rows, mut more) = (Vec::new(), false);
        let looking = self.connections.run(statement, deadline, |row: StoredRow| {
            if !wanted(OperationId(row.5)) {
                return ControlFlow::Continue(());
            }
            if rows.len() == most {
                more = true;
                return ControlFlow::Break(());
            }
            rows.push(row);
            ControlFlow::Continue(())
        });
        let looking = async { looking.await.map_err(StoreError::from) };
        let metrics = &self.connections.metrics.database;
        metrics.statement(Statement::FindUnlogged, looking).await?;
        let changes = rows.into_iter().filter_map(stored_change).collect();
        Ok(StoredChanges { changes, more })
    }
}

/// `None`, and said so, for what the service would never have stored.
fn stored_change(row: StoredRow) -> Option<StoredChange> {
    let (user_id, timestamp, balance_change, balance_after, context, operation_id, caller) = row;
    match (
        UserId::new(user_id),
        Context::new(context),
        caller.map(CallerName::new).transpose(),
    ) {
        (Ok(user_id), Ok(context), Ok(caller)) => Some(StoredChange {
            operation: Operation {
                id: OperationId(operation_id),
                user_id,
                context,
                balance_change,
                timestamp: from_postgres(timestamp),
                caller,
            },
            balance_after,
        }),
        (Err(_), _, _) | (_, Err(_), _) | (_, _, Err(_)) => {
            tracing::error!(%operation_id, "a stored change holds a text that the service does not store; it gets no line");
            None
        }
    }
}
