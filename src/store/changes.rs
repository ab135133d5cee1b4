//! The write path: what an operation needs to be judged, in one statement, and the conditional commit, in another.

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::connections::StatementError;
use super::error::{CommitFailure, classify};
use super::moment::{from_postgres, to_postgres};
use super::statement::statement;
use super::{CommitError, Store, StoreError};
use crate::domain::{
    Acceptance, Breach, Head, IdempotencyKey, Moment, Operation, OperationId, Segment, Timeline, Timestamp,
};

statement! {
    /// A user's head, the segments that `Timeline` asks for, each as its opening and its moments, and what is stored
    /// under the idempotency key. Part 1 is the segment the operation falls into, part 2 the first later closed one that
    /// it would breach, part 3 the open one. One statement is one snapshot, so all of it belongs to one version.
    struct State<'a> {
        user_id: &'a str => Text,
        at: PgTimestamp => Timestamptz,
        lowest_at_most: i64 => BigInt,
        highest_above: i64 => BigInt,
        segment_length: i32 => Integer,
        idempotency_key: Option<&'a str> => Nullable<Text>,
    }
    => (
        Nullable<BigInt>, Nullable<BigInt>, Nullable<Timestamptz>, Nullable<Integer>,
        Nullable<Bool>, BigInt, Bool,
        Nullable<Array<Timestamptz>>, Nullable<Array<BigInt>>, Nullable<Array<Integer>>,
        Nullable<SqlUuid>, Nullable<Timestamptz>, Nullable<BigInt>, Nullable<Text>, Nullable<BigInt>
    )
    r#"
SELECT b.version, b.balance, b.latest, b.since_checkpoint,
    part.wanted, coalesce(previous.balance, 0), part.until IS NOT NULL,
    moments.timestamps, moments.changes, moments.operations,
    earlier.operation_id, earlier."timestamp", earlier.balance_change, earlier.context, earlier.balance_after
FROM asked
LEFT JOIN balance b ON b.user_id = asked.user_id
LEFT JOIN changes_history earlier
    ON earlier.user_id = asked.user_id AND earlier.idempotency_key = asked.idempotency_key
LEFT JOIN LATERAL (
    SELECT c."timestamp" FROM balance_checkpoints c
    WHERE asked.at < b.latest AND c.user_id = asked.user_id AND c."timestamp" >= asked.at
    ORDER BY c."timestamp" LIMIT 1) own ON true
LEFT JOIN LATERAL (
    SELECT c."timestamp" FROM balance_checkpoints c
    WHERE own."timestamp" IS NOT NULL AND c.user_id = asked.user_id AND c."timestamp" > own."timestamp"
        AND (c.lowest <= asked.lowest_at_most OR c.highest > asked.highest_above)
    ORDER BY c."timestamp" LIMIT 1) breached ON true
CROSS JOIN LATERAL (VALUES
    (1, own."timestamp", asked.at < b.latest),
    (2, breached."timestamp", breached."timestamp" IS NOT NULL),
    (3, NULL, own."timestamp" IS NOT NULL
        OR (asked.at > b.latest AND b.since_checkpoint >= asked.segment_length))
) part (number, until, wanted)
LEFT JOIN LATERAL (
    SELECT c."timestamp", c.balance FROM balance_checkpoints c
    WHERE part.wanted AND c.user_id = asked.user_id AND c."timestamp" < coalesce(part.until, 'infinity')
    ORDER BY c."timestamp" DESC LIMIT 1) previous ON true
LEFT JOIN LATERAL (
    SELECT array_agg(m."timestamp" ORDER BY m."timestamp") AS timestamps,
        array_agg(m.change ORDER BY m."timestamp") AS changes,
        array_agg(m.operations ORDER BY m."timestamp") AS operations
    FROM (
        SELECT h."timestamp", sum(h.balance_change)::bigint AS change, count(*)::integer AS operations
        FROM changes_history h
        WHERE part.wanted AND h.user_id = asked.user_id
            AND h."timestamp" > coalesce(previous."timestamp", '-infinity')
            AND h."timestamp" <= coalesce(part.until, 'infinity')
        GROUP BY h."timestamp") m) moments ON part.wanted
WHERE part.number = 1 OR part.wanted
ORDER BY part.number"#
}

statement! {
    /// Moves the user from version seq - 1 to seq, or does nothing. Everything else hangs on `won`, so that a loser
    /// writes nothing. The row of `balance` is the only one that two operations can wait for each other on: whoever gets
    /// it second sees another version and loses; a new user's first row is won by whoever inserts it.
    struct Commit<'a> {
        user_id: &'a str => Text,
        at: PgTimestamp => Timestamptz,
        seq: i64 => BigInt,
        balance_change: i64 => BigInt,
        balance_after: i64 => BigInt,
        context: &'a str => Text,
        operation_id: Uuid => SqlUuid,
        idempotency_key: Option<&'a str> => Nullable<Text>,
        approved: bool => Bool,
        instance: &'a str => Text,
        balance: i64 => BigInt,
        latest: PgTimestamp => Timestamptz,
        since_checkpoint: i32 => Integer,
        shift_after: Option<PgTimestamp> => Nullable<Timestamptz>,
        checkpoints: &'a [PgTimestamp] => Array<Timestamptz>,
        balances: &'a [i64] => Array<BigInt>,
        lowest: &'a [i64] => Array<BigInt>,
        highest: &'a [i64] => Array<BigInt>,
    }
    => (BigInt,)
    r#"
, created AS (
    INSERT INTO balance (user_id, balance, version, latest, since_checkpoint)
    SELECT user_id, balance, seq, latest, since_checkpoint FROM asked WHERE seq = 1
    ON CONFLICT (user_id) DO NOTHING
    RETURNING user_id)
, moved AS (
    UPDATE balance b
    SET balance = asked.balance, version = asked.seq, latest = asked.latest, since_checkpoint = asked.since_checkpoint
    FROM asked WHERE b.user_id = asked.user_id AND b.version = asked.seq - 1
    RETURNING b.user_id)
, won AS (SELECT user_id FROM created UNION ALL SELECT user_id FROM moved)
, entered AS (
    INSERT INTO changes_history (user_id, "timestamp", seq, balance_change, balance_after, context, operation_id,
        idempotency_key, approved, instance)
    SELECT user_id, at, seq, balance_change, balance_after, context, operation_id, idempotency_key, approved, instance
    FROM asked JOIN won USING (user_id))
, shifted AS (
    UPDATE balance_checkpoints c
    SET balance = c.balance + asked.balance_change, lowest = c.lowest + asked.balance_change,
        highest = c.highest + asked.balance_change
    FROM asked JOIN won USING (user_id)
    WHERE c.user_id = asked.user_id AND c."timestamp" > asked.shift_after)
, closed AS (
    INSERT INTO balance_checkpoints (user_id, "timestamp", balance, lowest, highest)
    SELECT asked.user_id, k."timestamp", k.balance, k.lowest, k.highest
    FROM asked JOIN won USING (user_id)
    CROSS JOIN unnest(asked.checkpoints, asked.balances, asked.lowest, asked.highest)
        AS k ("timestamp", balance, lowest, highest)
    ON CONFLICT (user_id, "timestamp")
    DO UPDATE SET balance = excluded.balance, lowest = excluded.lowest, highest = excluded.highest)
SELECT count(*) FROM won"#
}

/// What the database said of a user in one snapshot.
#[derive(Clone, Debug)]
pub struct UserState {
    /// The timeline, as far as the operation needs it.
    pub timeline: Timeline,
    /// The operation that was accepted under the same idempotency key before.
    pub earlier: Option<EarlierOperation>,
}

/// An operation that was accepted under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierOperation {
    /// Its name.
    pub id: OperationId,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// How much it added.
    pub balance_change: i64,
    /// What it was for.
    pub context: String,
    /// The balance at its timestamp when it was accepted, with it.
    pub balance_after: i64,
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
    /// The replica that stores it.
    pub instance: &'a str,
    /// What the timeline said.
    pub acceptance: &'a Acceptance,
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The operation is stored.
    Stored,
    /// The user has moved on since the state was read; nothing was stored.
    Conflict,
}

type StateRow = (
    Option<i64>,
    Option<i64>,
    Option<PgTimestamp>,
    Option<i32>,
    Option<bool>,
    i64,
    bool,
    Option<Vec<PgTimestamp>>,
    Option<Vec<i64>>,
    Option<Vec<i32>>,
    Option<Uuid>,
    Option<PgTimestamp>,
    Option<i64>,
    Option<String>,
    Option<i64>,
);

impl Store {
    /// Reads what is needed to judge `operation`, and what was accepted under `key` before.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn state(
        &self,
        operation: &Operation,
        key: Option<&IdempotencyKey>,
        deadline: Instant,
    ) -> Result<UserState, StoreError> {
        let breach = Breach::of(operation.balance_change);
        let state = State {
            user_id: operation.user_id.as_str(),
            at: to_postgres(operation.timestamp),
            lowest_at_most: breach.lowest_at_most,
            highest_above: breach.highest_above,
            segment_length: to_stored_count(self.segment_length.operations()),
            idempotency_key: key.map(IdempotencyKey::as_str),
        };
        let mut lease = self.connections.lease(deadline).await?;
        let statement = state.load(lease.connection());
        let result = timeout_at(deadline, statement).await;
        let rows: Vec<StateRow> = lease.end(result)?;
        Ok(self.to_user_state(rows))
    }

    fn to_user_state(&self, rows: Vec<StateRow>) -> UserState {
        let mut head = Head::default();
        let mut segments = Vec::new();
        let mut earlier = None;
        for row in rows {
            let (
                version,
                balance,
                latest,
                since_checkpoint,
                wanted,
                opening,
                closed,
                timestamps,
                changes,
                operations,
                ..,
            ) = row;
            if let (Some(version), Some(balance), Some(since_checkpoint)) = (version, balance, since_checkpoint) {
                head = Head {
                    version,
                    balance,
                    latest: latest.map(from_postgres),
                    since_checkpoint: from_stored_count(since_checkpoint),
                };
            }
            if let (.., Some(id), Some(timestamp), Some(balance_change), Some(context), Some(balance_after)) = row {
                earlier = Some(EarlierOperation {
                    id: OperationId(id),
                    timestamp: from_postgres(timestamp),
                    balance_change,
                    context,
                    balance_after,
                });
            }
            if wanted == Some(true) {
                let moments = timestamps.unwrap_or_default().into_iter();
                let sums = changes
                    .unwrap_or_default()
                    .into_iter()
                    .zip(operations.unwrap_or_default());
                let moments = moments.zip(sums).map(|(timestamp, (change, operations))| Moment {
                    timestamp: from_postgres(timestamp),
                    change,
                    operations: from_stored_count(operations),
                });
                segments.push(Segment {
                    opening,
                    moments: moments.collect(),
                    closed,
                });
            }
        }
        UserState {
            timeline: Timeline::new(head, segments, self.segment_length),
            earlier,
        }
    }

    /// Stores an accepted operation if the user is still at the version that its acceptance rests on.
    ///
    /// # Errors
    ///
    /// [`CommitError`] says whether nothing was stored or whether that is unknown.
    pub async fn commit(&self, commitment: Commitment<'_>, deadline: Instant) -> Result<CommitOutcome, CommitError> {
        let Commitment {
            operation,
            idempotency_key,
            approved,
            instance,
            acceptance,
        } = commitment;
        let Acceptance {
            seq,
            balance_after,
            head,
            checkpoints,
            shift_after,
        } = acceptance;
        let timestamps: Vec<_> = checkpoints
            .iter()
            .map(|checkpoint| to_postgres(checkpoint.timestamp))
            .collect();
        let balances: Vec<_> = checkpoints.iter().map(|checkpoint| checkpoint.balance).collect();
        let lowest: Vec<_> = checkpoints.iter().map(|checkpoint| checkpoint.lowest).collect();
        let highest: Vec<_> = checkpoints.iter().map(|checkpoint| checkpoint.highest).collect();
        let statement = Commit {
            user_id: operation.user_id.as_str(),
            at: to_postgres(operation.timestamp),
            seq: *seq,
            balance_change: operation.balance_change,
            balance_after: *balance_after,
            context: operation.context.as_str(),
            operation_id: operation.id.0,
            idempotency_key: idempotency_key.map(IdempotencyKey::as_str),
            approved,
            instance,
            balance: head.balance,
            latest: to_postgres(head.latest.unwrap_or(operation.timestamp)),
            since_checkpoint: to_stored_count(head.since_checkpoint),
            shift_after: shift_after.map(to_postgres),
            checkpoints: &timestamps,
            balances: &balances,
            lowest: &lowest,
            highest: &highest,
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

/// Counts of operations of one segment are stored as 32-bit integers. Only a segment that is a single moment can grow
/// without bound; past two thousand million operations its count stays where it is, and it is still closed in time.
fn to_stored_count(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn from_stored_count(count: i32) -> u32 {
    u32::try_from(count).unwrap_or(0)
}
