//! Figures as of any moment, and what else is looked up.

use std::collections::HashMap;

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use tokio::time::Instant;
use uuid::Uuid;

use super::conversion::to_postgres;
use super::statement::statement;
use super::{Store, StoreError};
use crate::domain::{Entry, OperationId, Timestamp, UserId};
use crate::metrics::Statement;

/// The balance of a user at a moment: the last checkpoint at or before it, and an index-only sum over what follows.
macro_rules! past_balance {
    ($user_id:literal, $at:literal) => {
        concat!(
            r#"(
        SELECT coalesce(c.balance, 0) + coalesce((
            SELECT sum(h.balance_change) FROM changes_history h
            WHERE h.user_id = "#,
            $user_id,
            r#" AND h."timestamp" <= "#,
            $at,
            r#"
                AND h."timestamp" > coalesce(c."timestamp", '-infinity')), 0)
        FROM (SELECT) AS always LEFT JOIN LATERAL (
            SELECT k."timestamp", k.balance FROM balance_checkpoints k
            WHERE k.user_id = "#,
            $user_id,
            r#" AND k."timestamp" <= "#,
            $at,
            r#"
            ORDER BY k."timestamp" DESC LIMIT 1) c ON true)"#
        )
    };
}

pub(super) use past_balance;

macro_rules! figures_statement {
    ($(#[$meta:meta])* $name:ident, with_later_operations: $with_later_operations:expr) => {
        statement! {
            $(#[$meta])*
            ///
            /// For each user and moment, in the order given: one row of `balance` when nothing is later than the moment.
            /// With each figure the user's version, and its [`Standing`]. One statement is one snapshot.
            struct $name<'a> {
                user_ids: &'a [&'a str] => Array<Text>,
                moments: &'a [PgTimestamp] => Array<Timestamptz>,
            }
            => (Nullable<Array<BigInt>>, Nullable<Array<BigInt>>, Nullable<Array<SmallInt>>)
            concat!(r#"
SELECT array_agg(amount), array_agg(version), array_agg(standing)
FROM (
    SELECT CASE WHEN b.latest > q.at THEN ("#, $with_later_operations, r#")::bigint ELSE coalesce(b.balance, 0) END AS amount,
        coalesce(b.version, 0) AS version,
        CASE WHEN b.latest > b.recorded_at THEN 1 WHEN b.latest > q.at THEN 2 ELSE 0 END::smallint AS standing
    FROM asked CROSS JOIN unnest(asked.user_ids, asked.moments) WITH ORDINALITY AS q (user_id, at, number)
    LEFT JOIN balance b ON b.user_id = q.user_id
    ORDER BY q.number) answered"#)
        }
    };
}

figures_statement! {
    /// Balances. Where operations are later than the moment: the last checkpoint at or before it and an index-only sum over
    /// what follows: a segment or two, unless one moment holds more.
    BalancesAt,
    with_later_operations: past_balance!("q.user_id", "q.at")
}

figures_statement! {
    /// The lowest balance at the moment and all later ones. Where operations are later than the moment, the lowest of: the
    /// balance at the moment; the balances after it in its segment; the lowest of each later segment that is closed, which
    /// their checkpoints say; and the balances in the open one. Of the history two or three segments are read, however long
    /// it is, and a checkpoint for each later segment.
    AvailableAt,
    with_later_operations: r#"
        SELECT least(own.lowest, later.lowest, open.lowest)
        FROM (SELECT) AS always
        LEFT JOIN LATERAL (
            SELECT k."timestamp", k.balance FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" <= q.at
            ORDER BY k."timestamp" DESC LIMIT 1) before ON true
        LEFT JOIN LATERAL (
            SELECT k."timestamp" FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" > q.at
            ORDER BY k."timestamp" LIMIT 1) until ON true
        CROSS JOIN LATERAL (
            SELECT (coalesce(before.balance, 0) + coalesce(sum(m.change) FILTER (WHERE NOT m.is_later), 0)
                + least(0, min(m.sum) FILTER (WHERE m.is_later)))::bigint AS lowest
            FROM (
                SELECT h."timestamp" > q.at AS is_later, sum(h.balance_change) AS change,
                    sum(sum(h.balance_change)) OVER (PARTITION BY h."timestamp" > q.at ORDER BY h."timestamp") AS sum
                FROM changes_history h
                WHERE h.user_id = q.user_id AND h."timestamp" > coalesce(before."timestamp", '-infinity')
                    AND h."timestamp" <= coalesce(until."timestamp", 'infinity')
                GROUP BY h."timestamp") m) own
        LEFT JOIN LATERAL (
            SELECT min(k.lowest) AS lowest FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" > until."timestamp") later ON true
        LEFT JOIN LATERAL (
            SELECT (last.balance + min(m.sum))::bigint AS lowest
            FROM (
                SELECT k."timestamp", k.balance FROM balance_checkpoints k
                WHERE until."timestamp" IS NOT NULL AND k.user_id = q.user_id
                ORDER BY k."timestamp" DESC LIMIT 1) last
            CROSS JOIN LATERAL (
                SELECT sum(sum(h.balance_change)) OVER (ORDER BY h."timestamp") AS sum
                FROM changes_history h
                WHERE h.user_id = q.user_id AND h."timestamp" > last."timestamp"
                GROUP BY h."timestamp") m
            GROUP BY last.balance) open ON true"#
}

statement! {
    /// Which operations of a user are stored, and the place of each. The timestamps lead the primary key to the rows.
    ///
    /// A commit is visible before the synchronous standbys have it where its wait for them was cut short: the session was
    /// terminated, or the server restarted. So whatever is found here is followed by a message in the write-ahead log, and the
    /// statement ends when the standbys have both. Without synchronous standbys nothing is written.
    struct StoredAmong<'a> {
        user_id: &'a str => Text,
        timestamps: &'a [PgTimestamp] => Array<Timestamptz>,
        operation_ids: &'a [Uuid] => Array<SqlUuid>,
    }
    => (SqlUuid, BigInt, BigInt, Bool)
    r#"
SELECT h.operation_id, h.seq, h.balance_after,
    current_setting('synchronous_standby_names') = '' OR pg_logical_emit_message(true, 'balance', '') IS NOT NULL
FROM asked JOIN changes_history h ON h.user_id = asked.user_id AND h."timestamp" = ANY (asked.timestamps)
    AND h.operation_id = ANY (asked.operation_ids)"#
}

statement! {
    /// Whether the service's tables are there as the last migration leaves them, and whether the role has the rights that
    /// `env/roles.sql` gives it.
    struct Readiness<'a> { relation: &'a str => Text, latest_column: &'a str => Text, }
    => (Bool, Bool)
    "SELECT EXISTS (SELECT FROM pg_attribute a \
        WHERE a.attrelid = to_regclass(asked.relation) AND a.attname = asked.latest_column AND NOT a.attisdropped), \
     coalesce((SELECT bool_and(has_table_privilege(to_regclass(needed.relation)::oid, needed.privilege)) \
        FROM (VALUES ('balance', 'SELECT'), ('balance', 'INSERT'), ('balance', 'UPDATE'), \
            ('balance_checkpoints', 'SELECT'), ('balance_checkpoints', 'INSERT'), ('balance_checkpoints', 'UPDATE'), \
            ('changes_history', 'SELECT'), ('changes_history', 'INSERT')) AS needed (relation, privilege)), false) \
     FROM asked"
}

/// A figure of a user as of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What was asked for.
    pub amount: i64,
    /// How many operations of the user were accepted when it was read.
    pub version: i64,
    /// Whether it is the user's at every later moment, too, until the next operation is accepted.
    pub standing: Standing,
}

/// What the passing of time does to a figure while the user's version stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: no operation is later than the moment that was asked about, nor was one in the future when it was recorded.
    Settled,
    /// An operation was in the future when it was recorded: it falls due without a step of the version.
    FallsDue,
    /// An operation is later than the moment that was asked about, and was not in the future when it was recorded. If the
    /// moment was the now of a clock, that clock is behind PostgreSQL's.
    Behind,
    /// Operations were recorded after the moment of recording that was asked about: the figure is not one of the version.
    Superseded,
}

/// What `/readyz` wants to know of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreReadiness {
    /// Reads and writes work.
    Ready,
    /// `balance migrate` has not been run, or not since the last migration.
    NoSchema,
    /// The role may not read or write all that the service does.
    NoRights,
}

/// Amounts, versions and standings; nothing of nobody.
pub(super) type ReadingColumns = (Option<Vec<i64>>, Option<Vec<i64>>, Option<Vec<i16>>);

pub(super) fn to_readings(rows: Vec<ReadingColumns>) -> Vec<Reading> {
    let (amounts, versions, standings) = rows.into_iter().next().unwrap_or_default();
    let numbers = amounts.into_iter().flatten().zip(versions.into_iter().flatten());
    let readings = numbers.zip(standings.into_iter().flatten());
    let readings = readings.map(|((amount, version), standing)| Reading {
        amount,
        version,
        standing: match standing {
            0 => Standing::Settled,
            1 => Standing::FallsDue,
            2 => Standing::Behind,
            _ => Standing::Superseded,
        },
    });
    readings.collect()
}

impl Store {
    /// The balances of users, each as of a moment, in the order asked: all operations stamped at or before it. 0 for a user
    /// nobody has heard of.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn balances_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        let moments: Vec<_> = moments.iter().copied().map(to_postgres).collect();
        let moments = moments.as_slice();
        let statement = BalancesAt { user_ids, moments };
        let read = self.connections.read(Statement::ReadBalances, statement, deadline);
        Ok(to_readings(read.await?))
    }

    /// How much could be withdrawn by users, each at a moment, in the order asked: the lowest balance at that moment and all
    /// later ones. 0 for a user nobody has heard of.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn available_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        let moments: Vec<_> = moments.iter().copied().map(to_postgres).collect();
        let moments = moments.as_slice();
        let statement = AvailableAt { user_ids, moments };
        let read = self.connections.read(Statement::ReadAvailable, statement, deadline);
        Ok(to_readings(read.await?))
    }

    /// Which of these operations of a user, each at its timestamp, are stored, and the place of each.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn stored_among(
        &self,
        user_id: &UserId,
        operations: &[(Timestamp, OperationId)],
        deadline: Instant,
    ) -> Result<HashMap<OperationId, Entry>, StoreError> {
        let timestamps: Vec<_> = operations
            .iter()
            .map(|(timestamp, _)| to_postgres(*timestamp))
            .collect();
        let operation_ids: Vec<_> = operations.iter().map(|(_, id)| id.0).collect();
        let statement = StoredAmong {
            user_id: user_id.as_str(),
            timestamps: &timestamps,
            operation_ids: &operation_ids,
        };
        let read = self.connections.read(Statement::FindStored, statement, deadline);
        let stored: Vec<(Uuid, i64, i64, bool)> = read.await?;
        let entry = |(id, seq, balance_after, _)| (OperationId(id), Entry { seq, balance_after });
        Ok(stored.into_iter().map(entry).collect())
    }

    /// Whether operations can be stored now.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn readiness(&self, deadline: Instant) -> Result<StoreReadiness, StoreError> {
        // What the last migration brings.
        let readiness = Readiness {
            relation: "balance_checkpoints",
            latest_column: "all_recorded_until",
        };
        let read = self.connections.read(Statement::CheckReadiness, readiness, deadline);
        let (has_schema, has_rights): (bool, bool) = read.await?.into_iter().next().unwrap_or_default();
        Ok(match (has_schema, has_rights) {
            (false, _) => StoreReadiness::NoSchema,
            (true, false) => StoreReadiness::NoRights,
            (true, true) => StoreReadiness::Ready,
        })
    }
}
