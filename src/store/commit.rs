//! The conditional commit: one statement moves a user from one version to a later one, with all that belongs to it.

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::connections::StatementError;
use super::conversion::{to_postgres, to_stored_count};
use super::error::{CommitFailure, classify};
use super::statement::statement;
use super::{CommitError, Store, StoreError};
use crate::domain::{Changes, Checkpoint, Entry, IdempotencyKey, Operation};

statement! {
    /// Moves the user from one version to the version after the operations, or does nothing. Everything else hangs on
    /// `won`, so that a loser writes nothing. The row of `balance` is the only one that two commits can wait for each
    /// other on: whoever gets it second sees another version and loses; a new user's first row is won by whoever inserts
    /// it.
    struct Commit<'a> {
        user_id: &'a str => Text,
        expected_version: i64 => BigInt,
        version: i64 => BigInt,
        balance: i64 => BigInt,
        latest: PgTimestamp => Timestamptz,
        since_checkpoint: i32 => Integer,
        instance: &'a str => Text,
        timestamps: &'a [PgTimestamp] => Array<Timestamptz>,
        seqs: &'a [i64] => Array<BigInt>,
        changes: &'a [i64] => Array<BigInt>,
        balances_after: &'a [i64] => Array<BigInt>,
        contexts: &'a [&'a str] => Array<Text>,
        operation_ids: &'a [Uuid] => Array<SqlUuid>,
        idempotency_keys: &'a [Option<&'a str>] => Array<Nullable<Text>>,
        approved: &'a [bool] => Array<Bool>,
        shift_after: Option<PgTimestamp> => Nullable<Timestamptz>,
        shift_by: i64 => BigInt,
        checkpoints: &'a [PgTimestamp] => Array<Timestamptz>,
        checkpoint_balances: &'a [i64] => Array<BigInt>,
        lowest: &'a [i64] => Array<BigInt>,
        highest: &'a [i64] => Array<BigInt>,
    }
    => (BigInt,)
    r#"
, created AS (
    INSERT INTO balance (user_id, balance, version, latest, since_checkpoint)
    SELECT user_id, balance, version, latest, since_checkpoint FROM asked WHERE expected_version = 0
    ON CONFLICT (user_id) DO NOTHING
    RETURNING user_id)
, moved AS (
    UPDATE balance b
    SET balance = asked.balance, version = asked.version, latest = asked.latest,
        since_checkpoint = asked.since_checkpoint
    FROM asked WHERE b.user_id = asked.user_id AND b.version = asked.expected_version
    RETURNING b.user_id)
, won AS (SELECT user_id FROM created UNION ALL SELECT user_id FROM moved)
, entered AS (
    INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id,
        idempotency_key, approved, instance)
    SELECT asked.user_id, o.at, o.seq, o.change, o.balance_after, o.context, o.operation_id, o.idempotency_key,
        o.approved, asked.instance
    FROM asked JOIN won USING (user_id)
    CROSS JOIN unnest(asked.timestamps, asked.seqs, asked.changes, asked.balances_after, asked.contexts,
        asked.operation_ids, asked.idempotency_keys, asked.approved)
        AS o (at, seq, change, balance_after, context, operation_id, idempotency_key, approved))
, shifted AS (
    UPDATE balance_checkpoints c
    SET balance = c.balance + asked.shift_by, lowest = c.lowest + asked.shift_by, highest = c.highest + asked.shift_by
    FROM asked JOIN won USING (user_id)
    WHERE c.user_id = asked.user_id AND c."timestamp" > asked.shift_after)
, closed AS (
    INSERT INTO balance_checkpoints (user_id, "timestamp", balance, lowest, highest)
    SELECT asked.user_id, k."timestamp", k.balance, k.lowest, k.highest
    FROM asked JOIN won USING (user_id)
    CROSS JOIN unnest(asked.checkpoints, asked.checkpoint_balances, asked.lowest, asked.highest)
        AS k ("timestamp", balance, lowest, highest)
    ON CONFLICT (user_id, "timestamp")
    DO UPDATE SET balance = excluded.balance, lowest = excluded.lowest, highest = excluded.highest)
SELECT count(*) FROM won"#
}

/// An accepted operation, to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Commitment<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// The key a repeat will come with.
    pub idempotency_key: Option<&'a IdempotencyKey>,
    /// Whether the Approver was asked, and approved.
    pub approved: bool,
    /// Its place, as the timeline said.
    pub entry: Entry,
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The operation is stored.
    Stored,
    /// The user has moved on since the state was read; nothing was stored.
    Conflict,
}

impl Store {
    /// Stores operations of one user, accepted by one timeline one after the other, if the user is still at the version
    /// that the timeline was read at. All of them or none.
    ///
    /// # Errors
    ///
    /// [`CommitError`] says whether nothing was stored or whether that is unknown.
    pub async fn commit(
        &self,
        commitments: &[Commitment<'_>],
        changes: &Changes,
        instance: &str,
        deadline: Instant,
    ) -> Result<CommitOutcome, CommitError> {
        let Some(first) = commitments.first() else {
            return Ok(CommitOutcome::Stored);
        };
        let columns = Columns::of(commitments);
        let checkpoints = CheckpointColumns::of(&changes.checkpoints);
        let statement = Commit {
            user_id: first.operation.user_id.as_str(),
            expected_version: first.entry.seq - 1,
            version: changes.head.version,
            balance: changes.head.balance,
            latest: to_postgres(changes.head.latest.unwrap_or(first.operation.timestamp)),
            since_checkpoint: to_stored_count(changes.head.since_checkpoint),
            instance,
            timestamps: &columns.timestamps,
            seqs: &columns.seqs,
            changes: &columns.changes,
            balances_after: &columns.balances_after,
            contexts: &columns.contexts,
            operation_ids: &columns.operation_ids,
            idempotency_keys: &columns.idempotency_keys,
            approved: &columns.approved,
            shift_after: changes.shift.map(|shift| to_postgres(shift.after)),
            shift_by: changes.shift.map_or(0, |shift| shift.by),
            checkpoints: &checkpoints.timestamps,
            checkpoint_balances: &checkpoints.balances,
            lowest: &checkpoints.lowest,
            highest: &checkpoints.highest,
        };
        let lease = self.connections.lease(deadline).await;
        let mut lease = lease.map_err(CommitError::NotStored)?;
        let result = timeout_at(deadline, statement.get_result::<(i64,)>(lease.connection())).await;
        match lease.end(result) {
            Ok((0,)) => Ok(CommitOutcome::Conflict),
            Ok(_) => Ok(CommitOutcome::Stored),
            Err(StatementError::TimedOut) => Err(CommitError::InDoubt(StoreError::TimedOut)),
            Err(StatementError::Failed(error)) => match classify(&error) {
                CommitFailure::Conflict => Ok(CommitOutcome::Conflict),
                CommitFailure::NotStored => Err(CommitError::NotStored(StoreError::Failed(error))),
                CommitFailure::InDoubt => Err(CommitError::InDoubt(StoreError::Failed(error))),
            },
        }
    }
}

/// Operations as the columns of one `unnest`.
#[derive(Default)]
struct Columns<'a> {
    timestamps: Vec<PgTimestamp>,
    seqs: Vec<i64>,
    changes: Vec<i64>,
    balances_after: Vec<i64>,
    contexts: Vec<&'a str>,
    operation_ids: Vec<Uuid>,
    idempotency_keys: Vec<Option<&'a str>>,
    approved: Vec<bool>,
}

impl<'a> Columns<'a> {
    fn of(commitments: &[Commitment<'a>]) -> Self {
        let mut columns = Self::default();
        for commitment in commitments {
            let operation = commitment.operation;
            columns.timestamps.push(to_postgres(operation.timestamp));
            columns.seqs.push(commitment.entry.seq);
            columns.changes.push(operation.balance_change);
            columns.balances_after.push(commitment.entry.balance_after);
            columns.contexts.push(operation.context.as_str());
            columns.operation_ids.push(operation.id.0);
            columns
                .idempotency_keys
                .push(commitment.idempotency_key.map(IdempotencyKey::as_str));
            columns.approved.push(commitment.approved);
        }
        columns
    }
}

/// Checkpoints as the columns of one `unnest`.
#[derive(Default)]
struct CheckpointColumns {
    timestamps: Vec<PgTimestamp>,
    balances: Vec<i64>,
    lowest: Vec<i64>,
    highest: Vec<i64>,
}

impl CheckpointColumns {
    fn of(checkpoints: &[Checkpoint]) -> Self {
        let mut columns = Self::default();
        for checkpoint in checkpoints {
            columns.timestamps.push(to_postgres(checkpoint.timestamp));
            columns.balances.push(checkpoint.balance);
            columns.lowest.push(checkpoint.lowest);
            columns.highest.push(checkpoint.highest);
        }
        columns
    }
}
