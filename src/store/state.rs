//! What operations need to be judged by, as the database has it: each reading is one statement, and so one snapshot.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::conversion::{from_postgres, from_stored_count, to_postgres, to_stored_count};
use super::statement::statement;
use super::{Store, StoreError};
use crate::domain::{
    Breach, Head, IdempotencyKey, Moment, Operation, OperationId, Segment, Timeline, Timestamp, UserId,
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
        OR (asked.at > b.latest AND b.since_checkpoint >= 2 * asked.segment_length))
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
    /// A user's head, where its last checkpoint stands, the open segment where one of the operations falls before the
    /// latest or all of them make it long enough to be divided, and what is stored under the idempotency keys. One
    /// statement is one snapshot.
    struct GroupStateStatement<'a> {
        user_id: &'a str => Text,
        earliest: PgTimestamp => Timestamptz,
        newest: PgTimestamp => Timestamptz,
        operations: i32 => Integer,
        segment_length: i32 => Integer,
        idempotency_keys: &'a [&'a str] => Array<Text>,
    }
    => (
        Nullable<BigInt>, Nullable<BigInt>, Nullable<Timestamptz>, Nullable<Integer>,
        Nullable<Timestamptz>, BigInt,
        Nullable<Array<Timestamptz>>, Nullable<Array<BigInt>>, Nullable<Array<Integer>>,
        Nullable<Array<Text>>, Nullable<Array<SqlUuid>>, Nullable<Array<Timestamptz>>, Nullable<Array<BigInt>>,
        Nullable<Array<Text>>, Nullable<Array<BigInt>>
    )
    r#"
SELECT b.version, b.balance, b.latest, b.since_checkpoint, closed."timestamp", coalesce(closed.balance, 0),
    moments.timestamps, moments.changes, moments.operations,
    earlier.keys, earlier.ids, earlier.timestamps, earlier.changes, earlier.contexts, earlier.balances
FROM asked
LEFT JOIN balance b ON b.user_id = asked.user_id
LEFT JOIN LATERAL (
    SELECT c."timestamp", c.balance FROM balance_checkpoints c
    WHERE c.user_id = asked.user_id ORDER BY c."timestamp" DESC LIMIT 1) closed ON true
LEFT JOIN LATERAL (
    SELECT array_agg(m."timestamp" ORDER BY m."timestamp") AS timestamps,
        array_agg(m.change ORDER BY m."timestamp") AS changes,
        array_agg(m.operations ORDER BY m."timestamp") AS operations
    FROM (
        SELECT h."timestamp", sum(h.balance_change)::bigint AS change, count(*)::integer AS operations
        FROM changes_history h
        WHERE (asked.earliest < b.latest OR (asked.newest > b.latest
                AND b.since_checkpoint::bigint + asked.operations > 2 * asked.segment_length))
            AND h.user_id = asked.user_id AND h."timestamp" > coalesce(closed."timestamp", '-infinity')
        GROUP BY h."timestamp") m) moments ON true
LEFT JOIN LATERAL (
    SELECT array_agg(h.idempotency_key) AS keys, array_agg(h.operation_id) AS ids,
        array_agg(h."timestamp") AS timestamps, array_agg(h.balance_change) AS changes,
        array_agg(h.context) AS contexts, array_agg(h.balance_after) AS balances
    FROM changes_history h
    WHERE h.user_id = asked.user_id AND h.idempotency_key = ANY (asked.idempotency_keys)) earlier ON true"#
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

/// What the database said of a user in one snapshot, for several operations.
#[derive(Clone, Debug)]
pub struct GroupState {
    /// The timeline, for operations later than `closed_until`.
    pub timeline: Timeline,
    /// Where the last checkpoint stands. Operations at or before it need a [`Store::state`] of their own.
    pub closed_until: Option<Timestamp>,
    /// What was accepted under the idempotency keys before.
    pub earlier: HashMap<String, EarlierOperation>,
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

type GroupStateRow = (
    Option<i64>,
    Option<i64>,
    Option<PgTimestamp>,
    Option<i32>,
    Option<PgTimestamp>,
    i64,
    Option<Vec<PgTimestamp>>,
    Option<Vec<i64>>,
    Option<Vec<i32>>,
    Option<Vec<String>>,
    Option<Vec<Uuid>>,
    Option<Vec<PgTimestamp>>,
    Option<Vec<i64>>,
    Option<Vec<String>>,
    Option<Vec<i64>>,
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
            head = to_head(version, balance, latest, since_checkpoint);
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
                segments.push(Segment {
                    opening,
                    moments: to_moments(timestamps, changes, operations),
                    closed,
                });
            }
        }
        UserState {
            timeline: Timeline::new(head, segments, self.segment_length),
            earlier,
        }
    }

    /// Reads what is needed to judge so many operations of one user, stamped within `moments`, and what was accepted under
    /// `keys` before.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn group_state(
        &self,
        user_id: &UserId,
        moments: RangeInclusive<Timestamp>,
        operations: usize,
        keys: &[&str],
        deadline: Instant,
    ) -> Result<GroupState, StoreError> {
        let state = GroupStateStatement {
            user_id: user_id.as_str(),
            earliest: to_postgres(*moments.start()),
            newest: to_postgres(*moments.end()),
            operations: i32::try_from(operations).unwrap_or(i32::MAX),
            segment_length: to_stored_count(self.segment_length.operations()),
            idempotency_keys: keys,
        };
        let mut lease = self.connections.lease(deadline).await?;
        let statement = state.get_result(lease.connection());
        let result = timeout_at(deadline, statement).await;
        let row: GroupStateRow = lease.end(result)?;
        Ok(self.to_group_state(row))
    }

    fn to_group_state(&self, row: GroupStateRow) -> GroupState {
        let (version, balance, latest, since_checkpoint, closed_until, opening, timestamps, changes, operations, ..) =
            row;
        let (.., keys, ids, earlier_at, earlier_changes, contexts, balances) = row;
        let head = to_head(version, balance, latest, since_checkpoint);
        let moments = to_moments(timestamps, changes, operations);
        // An open segment without operations is known without reading it, and is as well divided as any.
        let is_known = !moments.is_empty() || head.since_checkpoint == 0;
        let open = is_known.then_some(Segment {
            opening,
            moments,
            closed: false,
        });
        let places = earlier_at
            .unwrap_or_default()
            .into_iter()
            .zip(earlier_changes.unwrap_or_default());
        let texts = contexts
            .unwrap_or_default()
            .into_iter()
            .zip(balances.unwrap_or_default());
        let named = keys.unwrap_or_default().into_iter().zip(ids.unwrap_or_default());
        let earlier =
            named
                .zip(places.zip(texts))
                .map(|((key, id), ((at, balance_change), (context, balance_after)))| {
                    let earlier = EarlierOperation {
                        id: OperationId(id),
                        timestamp: from_postgres(at),
                        balance_change,
                        context,
                        balance_after,
                    };
                    (key, earlier)
                });
        GroupState {
            timeline: Timeline::new(head, open.into_iter().collect(), self.segment_length),
            closed_until: closed_until.map(from_postgres),
            earlier: earlier.collect(),
        }
    }
}

fn to_head(version: Option<i64>, balance: Option<i64>, latest: Option<PgTimestamp>, since: Option<i32>) -> Head {
    Head {
        version: version.unwrap_or(0),
        balance: balance.unwrap_or(0),
        latest: latest.map(from_postgres),
        since_checkpoint: from_stored_count(since.unwrap_or(0)),
    }
}

fn to_moments(
    timestamps: Option<Vec<PgTimestamp>>,
    changes: Option<Vec<i64>>,
    operations: Option<Vec<i32>>,
) -> Vec<Moment> {
    let sums = changes
        .unwrap_or_default()
        .into_iter()
        .zip(operations.unwrap_or_default());
    let moments = timestamps.unwrap_or_default().into_iter().zip(sums);
    let moment = |(timestamp, (change, operations))| Moment {
        timestamp: from_postgres(timestamp),
        change,
        operations: from_stored_count(operations),
    };
    moments.map(moment).collect()
}
