//! What operations need to be judged by, as the database has it: each reading is one statement, and so one snapshot.

use std::collections::HashMap;

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use tokio::time::Instant;
use uuid::Uuid;

use super::conversion::{from_postgres, from_stored_count, to_postgres, to_stored_count};
use super::statement::statement;
use super::{Group, Reach, Store, StoreError};
use crate::domain::{Breach, Entry, Head, Moment, Operation, OperationId, Segment, SegmentLength, Timeline, Timestamp};
use crate::metrics::Statement;

statement! {
    /// The heads of all users, in one row of arrays; then, for those users of whom more is wanted, a row for each segment
    /// that `Timeline` asks for. One statement is one snapshot, so all of a user belongs to one version.
    ///
    /// | operations | part 1 | part 2 | part 3 |
    /// |---|---|---|---|
    /// | in order | | | the open segment, if it is due to be divided |
    /// | all in the open segment (`is_tail`) | | | of it what is later than the earliest |
    /// | several, not too far back (`is_near`) | each closed segment from the earliest's on | | the open one |
    /// | others | the deep operation's segment | the first later one that it would breach | the open one |
    ///
    /// With the last of these comes the lowest balance of the closed segments after the deep operation's.
    ///
    /// The operations stored under the idempotency keys come with part 3, or with a row without a part. A repeat is answered
    /// from them, so the synchronous standbys must have them, as in `StoredAmong`.
    ///
    /// A user whose operations are in order, without keys, costs one row of `balance` and nothing else: a third of what it
    /// costs to go through the joins for it, measured with 64 users a statement.
    struct States<'a> {
        user_ids: &'a [&'a str] => Array<Text>,
        earliest: &'a [PgTimestamp] => Array<Timestamptz>,
        newest: &'a [PgTimestamp] => Array<Timestamptz>,
        operations: &'a [i32] => Array<Integer>,
        deep: &'a [PgTimestamp] => Array<Timestamptz>,
        lowest_at_most: &'a [i64] => Array<BigInt>,
        highest_above: &'a [i64] => Array<BigInt>,
        first_keys: &'a [i32] => Array<Integer>,
        last_keys: &'a [i32] => Array<Integer>,
        idempotency_keys: &'a [&'a str] => Array<Text>,
        segment_length: i32 => Integer,
        reach: Option<i64> => Nullable<BigInt>,
        near: i64 => BigInt,
    }
    => (
        BigInt, Nullable<Integer>,
        Nullable<Array<Nullable<BigInt>>>, Nullable<Array<Nullable<BigInt>>>,
        Nullable<Array<Nullable<Timestamptz>>>, Nullable<Array<Nullable<Integer>>>,
        Nullable<Timestamptz>, Nullable<Bool>, Nullable<Bool>, Nullable<Bool>,
        Nullable<Timestamptz>, Nullable<BigInt>, Nullable<BigInt>,
        Nullable<Array<Timestamptz>>, Nullable<Array<BigInt>>,
        Nullable<Array<Text>>, Nullable<Array<SqlUuid>>, Nullable<Array<Timestamptz>>, Nullable<Array<BigInt>>,
        Nullable<Array<Text>>, Nullable<Array<BigInt>>, Nullable<Array<BigInt>>
    )
    r#"
, heads AS MATERIALIZED (
    SELECT q.*, b.version, b.balance, b.latest, b.since_checkpoint
    FROM asked CROSS JOIN unnest(asked.user_ids, asked.earliest, asked.newest, asked.operations, asked.deep,
        asked.lowest_at_most, asked.highest_above, asked.first_keys, asked.last_keys) WITH ORDINALITY
        AS q (user_id, earliest, newest, operations, deep, lowest_at_most, highest_above, first_key, last_key, number)
    LEFT JOIN balance b ON b.user_id = q.user_id)
SELECT 0::bigint, NULL::integer,
    array_agg(version ORDER BY number), array_agg(balance ORDER BY number),
    array_agg(latest ORDER BY number), array_agg(since_checkpoint ORDER BY number),
    NULL::timestamptz, NULL::boolean, NULL::boolean, NULL::boolean, NULL::timestamptz, NULL::bigint, NULL::bigint,
    NULL::timestamptz[], NULL::bigint[],
    NULL::text[], NULL::uuid[], NULL::timestamptz[], NULL::bigint[], NULL::text[], NULL::bigint[], NULL::bigint[]
FROM heads
UNION ALL
SELECT q.number, part.number, NULL, NULL, NULL, NULL,
    coalesce(closed."timestamp", own."timestamp"), far."timestamp" IS NOT NULL, near.is_near, near.is_tail,
    part.until, previous.balance, later.lowest,
    moments.timestamps, moments.changes,
    earlier.keys, earlier.ids, earlier.timestamps, earlier.changes, earlier.contexts, earlier.seqs, earlier.balances
FROM asked CROSS JOIN heads q
CROSS JOIN LATERAL (
    SELECT q.operations > 1 AND count(*) BETWEEN 1 AND asked.near AS is_near,
        count(*) = 0 AND q.earliest < q.latest
            AND q.since_checkpoint::bigint + q.operations <= 2 * asked.segment_length AS is_tail
    FROM (
        SELECT FROM balance_checkpoints c
        WHERE q.earliest < q.latest AND c.user_id = q.user_id AND c."timestamp" >= q.earliest
        LIMIT CASE WHEN q.operations > 1 THEN asked.near + 1 ELSE 1 END) behind) near
LEFT JOIN LATERAL (
    SELECT c."timestamp" FROM balance_checkpoints c
    WHERE q.earliest < q.latest AND q.operations > 1 AND NOT near.is_near AND NOT near.is_tail
        AND c.user_id = q.user_id
    ORDER BY c."timestamp" DESC LIMIT 1) closed ON true
LEFT JOIN LATERAL (
    SELECT c."timestamp" FROM balance_checkpoints c
    WHERE q.deep < q.latest AND NOT near.is_near AND NOT near.is_tail
        AND c.user_id = q.user_id AND c."timestamp" >= q.deep
    ORDER BY c."timestamp" LIMIT 1) own ON true
LEFT JOIN LATERAL (
    SELECT c."timestamp" FROM balance_checkpoints c
    WHERE own."timestamp" IS NOT NULL AND asked.reach IS NOT NULL
        AND c.user_id = q.user_id AND c."timestamp" > own."timestamp"
    ORDER BY c."timestamp" OFFSET asked.reach LIMIT 1) far ON true
LEFT JOIN LATERAL (
    SELECT c."timestamp" FROM balance_checkpoints c
    WHERE own."timestamp" IS NOT NULL AND far."timestamp" IS NULL
        AND c.user_id = q.user_id AND c."timestamp" > own."timestamp"
        AND (c.lowest <= q.lowest_at_most OR c.highest > q.highest_above)
    ORDER BY c."timestamp" LIMIT 1) breached ON true
LEFT JOIN LATERAL (
    SELECT min(c.lowest) AS lowest FROM balance_checkpoints c
    WHERE own."timestamp" IS NOT NULL AND far."timestamp" IS NULL
        AND c.user_id = q.user_id AND c."timestamp" > own."timestamp") later ON true
LEFT JOIN LATERAL (
    SELECT p.number, p.until FROM (VALUES
        (1, own."timestamp", own."timestamp" IS NOT NULL AND far."timestamp" IS NULL),
        (2, breached."timestamp", breached."timestamp" IS NOT NULL),
        (3, NULL, q.earliest < q.latest OR (q.newest > q.latest
            AND q.since_checkpoint::bigint + q.operations > 2 * asked.segment_length))) p (number, until, wanted)
    WHERE p.wanted
    UNION ALL
    SELECT 1, c."timestamp" FROM balance_checkpoints c
    WHERE near.is_near AND c.user_id = q.user_id AND c."timestamp" >= q.earliest) part ON true
LEFT JOIN LATERAL (
    SELECT c."timestamp", c.balance FROM balance_checkpoints c
    WHERE part.number IS NOT NULL AND NOT near.is_tail
        AND c.user_id = q.user_id AND c."timestamp" < coalesce(part.until, 'infinity')
    ORDER BY c."timestamp" DESC LIMIT 1) previous ON true
LEFT JOIN LATERAL (
    SELECT array_agg(h."timestamp") AS timestamps, array_agg(h.balance_change) AS changes
    FROM changes_history h
    WHERE part.number IS NOT NULL AND h.user_id = q.user_id
        AND h."timestamp" > CASE WHEN near.is_tail THEN q.earliest ELSE coalesce(previous."timestamp", '-infinity') END
        AND h."timestamp" <= coalesce(part.until, 'infinity')) moments ON part.number IS NOT NULL
LEFT JOIN LATERAL (
    SELECT array_agg(h.idempotency_key) AS keys, array_agg(h.operation_id) AS ids,
        array_agg(h."timestamp") AS timestamps, array_agg(h.balance_change) AS changes,
        array_agg(h.context) AS contexts, array_agg(h.seq) AS seqs, array_agg(h.balance_after) AS balances
    FROM changes_history h
    WHERE coalesce(part.number, 3) = 3 AND h.user_id = q.user_id
        AND h.idempotency_key = ANY (asked.idempotency_keys[q.first_key:q.last_key])
    HAVING count(*) = 0 OR current_setting('synchronous_standby_names') = ''
        OR pg_logical_emit_message(true, 'balance', '') IS NOT NULL) earlier
    ON q.first_key <= q.last_key AND coalesce(part.number, 3) = 3
WHERE q.earliest < q.latest OR q.first_key <= q.last_key
    OR (q.newest > q.latest AND q.since_checkpoint::bigint + q.operations > 2 * asked.segment_length)"#
}

statement! {
    /// The heads of users in one row of arrays, in the order asked.
    struct Heads<'a> { user_ids: &'a [&'a str] => Array<Text>, }
    => (
        Array<Nullable<BigInt>>, Array<Nullable<BigInt>>, Array<Nullable<Timestamptz>>, Array<Nullable<Integer>>
    )
    r#"
SELECT array_agg(b.version ORDER BY q.number), array_agg(b.balance ORDER BY q.number),
    array_agg(b.latest ORDER BY q.number), array_agg(b.since_checkpoint ORDER BY q.number)
FROM asked CROSS JOIN unnest(asked.user_ids) WITH ORDINALITY AS q (user_id, number)
LEFT JOIN balance b ON b.user_id = q.user_id"#
}

/// The most closed segments that are read for one group of operations, however far it may reach: these take some tens of
/// milliseconds, once for a backlog. Of operations further back, one reading covers a single one.
const MOST_SEGMENTS: u32 = 1_024;

/// What the database said of a user in one snapshot.
#[derive(Clone, Debug)]
pub struct UserState {
    /// The timeline, as far as the operations that are [covered](Self::covers) need it.
    pub timeline: Timeline,
    /// What was accepted under the idempotency keys before.
    pub earlier: HashMap<String, EarlierOperation>,
    /// Where the last checkpoint stands, or the end of a single operation's segment, if operations may lie at or before it.
    pub(super) closed_until: Option<Timestamp>,
    /// The one operation that may lie at or before it; none if that is out of reach.
    pub(super) deep: Option<OperationId>,
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
    /// Its place, as it was accepted.
    pub entry: Entry,
}

impl UserState {
    /// Whether the timeline was read far enough to judge this operation of the group.
    pub fn covers(&self, operation: &Operation) -> bool {
        self.closed_until.is_none_or(|closed| operation.timestamp > closed) || self.deep == Some(operation.id)
    }
}

type StateRow = (
    i64,
    Option<i32>,
    Option<Vec<Option<i64>>>,
    Option<Vec<Option<i64>>>,
    Option<Vec<Option<PgTimestamp>>>,
    Option<Vec<Option<i32>>>,
    Option<PgTimestamp>,
    Option<bool>,
    Option<bool>,
    Option<bool>,
    Option<PgTimestamp>,
    Option<i64>,
    Option<i64>,
    Option<Vec<PgTimestamp>>,
    Option<Vec<i64>>,
    Option<Vec<String>>,
    Option<Vec<Uuid>>,
    Option<Vec<PgTimestamp>>,
    Option<Vec<i64>>,
    Option<Vec<String>>,
    Option<Vec<i64>>,
    Option<Vec<i64>>,
);

/// The groups as the columns of one `unnest`.
#[derive(Default)]
struct Columns<'a> {
    user_ids: Vec<&'a str>,
    earliest: Vec<PgTimestamp>,
    newest: Vec<PgTimestamp>,
    operations: Vec<i32>,
    deep: Vec<PgTimestamp>,
    lowest_at_most: Vec<i64>,
    highest_above: Vec<i64>,
    first_keys: Vec<i32>,
    last_keys: Vec<i32>,
    idempotency_keys: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn of(groups: &[Group<'a>]) -> Self {
        let mut columns = Self::default();
        for group in groups {
            let breach = Breach::of(group.deep.balance_change);
            columns.user_ids.push(group.user_id.as_str());
            columns.earliest.push(to_postgres(group.earliest));
            columns.newest.push(to_postgres(group.newest));
            columns.operations.push(group.operations);
            columns.deep.push(to_postgres(group.deep.timestamp));
            columns.lowest_at_most.push(breach.lowest_at_most);
            columns.highest_above.push(breach.highest_above);
            columns.first_keys.push(columns.key_count() + 1);
            columns.idempotency_keys.extend(&group.idempotency_keys);
            columns.last_keys.push(columns.key_count());
        }
        columns
    }

    fn key_count(&self) -> i32 {
        i32::try_from(self.idempotency_keys.len()).expect("a statement has far fewer keys than two thousand million")
    }
}

impl Store {
    /// Reads what is needed to judge groups of operations, each of another user: a state for each, in their order.
    ///
    /// One round trip; two where most are single operations without a key, which are likely in order, and one of them is
    /// not.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn states(
        &self,
        groups: &[Group<'_>],
        reach: Reach,
        deadline: Instant,
    ) -> Result<Vec<UserState>, StoreError> {
        let simple = groups.iter().filter(|group| group.is_likely_in_order()).count();
        if simple * 2 < groups.len() {
            return self.full_states(groups, reach, deadline).await;
        }
        let heads = self.heads(groups, deadline).await?;
        let asked: Vec<_> = groups.iter().zip(heads).collect();
        let wanting = asked.iter().filter(|(group, head)| self.wants_more(group, head));
        let wanting: Vec<_> = wanting.map(|(group, _)| (*group).clone()).collect();
        let full = match wanting.is_empty() {
            true => Vec::new(),
            false => self.full_states(&wanting, reach, deadline).await?,
        };
        let mut full = full.into_iter();
        let states = asked
            .into_iter()
            .map(|(group, head)| match self.wants_more(group, &head) {
                // All of this user is from the second snapshot.
                true => full.next().expect("there is a state for each group that was asked for"),
                false => self.to_user_state(group, head, std::iter::empty()),
            });
        Ok(states.collect())
    }

    /// Whether the head alone is not enough to judge the group, and to divide the open segment where it is due.
    fn wants_more(&self, group: &Group<'_>, head: &Head) -> bool {
        let operations = u32::try_from(group.operations).unwrap_or(u32::MAX);
        let with_them = head.since_checkpoint.saturating_add(operations);
        let is_long = with_them > self.segment_length.operations().saturating_mul(2);
        let Some(latest) = head.latest else {
            // Nothing is stored of the user, under no key either.
            return false;
        };
        group.earliest < latest || (group.newest > latest && is_long) || !group.idempotency_keys.is_empty()
    }

    async fn heads(&self, groups: &[Group<'_>], deadline: Instant) -> Result<Vec<Head>, StoreError> {
        let user_ids: Vec<_> = groups.iter().map(|group| group.user_id.as_str()).collect();
        let statement = Heads { user_ids: &user_ids };
        let read = self.connections.read(Statement::ReadUsers, statement, deadline);
        Ok(to_heads(read.await?.into_iter().next().unwrap_or_default()))
    }

    async fn full_states(
        &self,
        groups: &[Group<'_>],
        reach: Reach,
        deadline: Instant,
    ) -> Result<Vec<UserState>, StoreError> {
        let columns = Columns::of(groups);
        let statement = States {
            user_ids: &columns.user_ids,
            earliest: &columns.earliest,
            newest: &columns.newest,
            operations: &columns.operations,
            deep: &columns.deep,
            lowest_at_most: &columns.lowest_at_most,
            highest_above: &columns.highest_above,
            first_keys: &columns.first_keys,
            last_keys: &columns.last_keys,
            idempotency_keys: &columns.idempotency_keys,
            segment_length: to_stored_count(self.segment_length.operations()),
            reach: match reach {
                Reach::Unlimited => None,
                Reach::Checkpoints(count) => Some(i64::from(count)),
            },
            near: match reach {
                Reach::Unlimited => i64::from(MOST_SEGMENTS),
                Reach::Checkpoints(count) => i64::from(count.min(MOST_SEGMENTS)),
            },
        };
        let read = self.connections.read(Statement::ReadUsers, statement, deadline);
        let mut rows: Vec<StateRow> = read.await?;
        // The heads first, then the parts of each user in their order.
        rows.sort_unstable_by_key(|row| (row.0, row.1, row.10));
        let mut rows = rows.into_iter().peekable();
        let heads = rows.next_if(|row| row.0 == 0).map(heads_of).unwrap_or_default();
        let mut heads = to_heads(heads).into_iter();
        let states = (1..).zip(groups).map(|(number, group)| {
            let head = heads.next().unwrap_or_default();
            let parts = std::iter::from_fn(|| rows.next_if(|row| row.0 == number));
            self.to_user_state(group, head, parts)
        });
        Ok(states.collect())
    }

    fn to_user_state(&self, group: &Group<'_>, head: Head, parts: impl Iterator<Item = StateRow>) -> UserState {
        let mut segments = Vec::new();
        let mut earlier = HashMap::new();
        let mut closed_until = None;
        let mut deep = Some(group.deep.id);
        let mut lowest_closed = None;
        let mut kind: fn(Head, Vec<Segment>, SegmentLength) -> Timeline = Timeline::new;
        for row in parts {
            let (_, part, _, _, _, _, last_checkpoint, is_far, is_near, is_tail, until, opening, lowest, ..) = row;
            let (.., timestamps, changes, keys, ids, at, balance_changes, contexts, seqs, after) = row;
            closed_until = last_checkpoint.map(from_postgres);
            deep = deep.filter(|_| is_far != Some(true));
            lowest_closed = lowest;
            kind = match (is_near, is_tail) {
                (Some(true), _) => Timeline::contiguous,
                (_, Some(true)) => Timeline::tail,
                _ => Timeline::new,
            };
            if part.is_some() {
                segments.push(Segment {
                    opening: opening.unwrap_or(0),
                    moments: to_moments(timestamps, changes),
                    closed: until.is_some(),
                });
            }
            if earlier.is_empty() {
                earlier = to_earlier(keys, ids, at.zip(balance_changes), contexts, seqs.zip(after));
            }
        }
        // The open segment of a user nobody has heard of is known without reading it, and is as well divided as any.
        if head.latest.is_none() {
            segments.push(Segment {
                opening: 0,
                moments: Vec::new(),
                closed: false,
            });
        }
        UserState {
            timeline: kind(head, segments, self.segment_length).with_lowest_closed(lowest_closed),
            earlier,
            closed_until,
            deep,
        }
    }
}

/// The heads of users as columns; nothing is stored of those for whom there is no version.
type HeadColumns = (
    Vec<Option<i64>>,
    Vec<Option<i64>>,
    Vec<Option<PgTimestamp>>,
    Vec<Option<i32>>,
);

fn heads_of(row: StateRow) -> HeadColumns {
    let (_, _, versions, balances, latest, since_checkpoint, ..) = row;
    (
        versions.unwrap_or_default(),
        balances.unwrap_or_default(),
        latest.unwrap_or_default(),
        since_checkpoint.unwrap_or_default(),
    )
}

fn to_heads((versions, balances, latest, since_checkpoint): HeadColumns) -> Vec<Head> {
    let places = latest.into_iter().zip(since_checkpoint);
    let heads = versions.into_iter().zip(balances).zip(places);
    let heads = heads.map(|((version, balance), (latest, since_checkpoint))| Head {
        version: version.unwrap_or(0),
        balance: balance.unwrap_or(0),
        latest: latest.map(from_postgres),
        since_checkpoint: from_stored_count(since_checkpoint.unwrap_or(0)),
    });
    heads.collect()
}

/// Operations in any order, summed by their timestamps.
fn to_moments(timestamps: Option<Vec<PgTimestamp>>, changes: Option<Vec<i64>>) -> Vec<Moment> {
    let operations = timestamps.into_iter().flatten().zip(changes.into_iter().flatten());
    let mut operations: Vec<_> = operations.collect();
    // In the order of the index already, which is quick to find out.
    operations.sort_by_key(|(timestamp, _)| timestamp.0);
    let moments = operations.chunk_by(|(one, _), (other, _)| one == other);
    let moments = moments.map(|operations| Moment {
        timestamp: from_postgres(operations[0].0),
        // The whole sum fits, and wrapping gives it whatever a part of it comes to.
        change: operations.iter().fold(0, |sum, (_, change)| sum.wrapping_add(*change)),
        operations: u32::try_from(operations.len()).unwrap_or(u32::MAX),
    });
    moments.collect()
}

fn to_earlier(
    keys: Option<Vec<String>>,
    ids: Option<Vec<Uuid>>,
    changes: Option<(Vec<PgTimestamp>, Vec<i64>)>,
    contexts: Option<Vec<String>>,
    entries: Option<(Vec<i64>, Vec<i64>)>,
) -> HashMap<String, EarlierOperation> {
    let Some(keys) = keys else {
        return HashMap::new();
    };
    let named = keys.into_iter().zip(ids.into_iter().flatten());
    let changes = changes
        .into_iter()
        .flat_map(|(timestamps, changes)| timestamps.into_iter().zip(changes));
    let entries = entries
        .into_iter()
        .flat_map(|(seqs, balances)| seqs.into_iter().zip(balances));
    let stored = contexts.into_iter().flatten().zip(entries);
    let earlier = named.zip(changes).zip(stored);
    let earlier = earlier.map(|(((key, id), (at, balance_change)), (context, (seq, balance_after)))| {
        let earlier = EarlierOperation {
            id: OperationId(id),
            timestamp: from_postgres(at),
            balance_change,
            context,
            entry: Entry { seq, balance_after },
        };
        (key, earlier)
    });
    earlier.collect()
}
