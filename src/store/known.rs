//! What was known at an earlier moment of recording: balances and the history from the operations recorded until then.
//!
//! A user's moments of recording go up from commit to commit, so these operations are what the user had at one version, and
//! what was known at a moment of a recording that can be seen never changes. `recorded_at` is set before the
//! commit becomes visible: in between, an answer lacks what a later answer for the same `knownAt` has. There is no index by
//! these moments. Checkpoints keep bounds instead: a
//! segment all of which was recorded by then counts whole, one of which nothing was counts not at all, and only the rows of
//! those in between are read. Up to a checkpoint before which nothing was recorded later, all counts as it is now.

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use tokio::time::Instant;

use super::conversion::to_postgres;
use super::history::{limited_by_bytes, load_page, page_with_head, to_page};
use super::reads::{past_balance, to_readings};
use super::statement::statement;
use super::{HistoryOrder, HistoryQuery, Reading, Store, StoreError, StoredPage};
use crate::domain::Timestamp;
use crate::metrics::Statement;

/// The balance of a user at a moment from the operations recorded until another: the last checkpoint at or before the moment
/// until which all was recorded by then, the segments from there on, and what follows the last of them.
///
/// Rows are told apart with `IS TRUE`, which no index serves: PostgreSQL would else combine the one by `recorded_at`, which
/// spans all users, with the key.
macro_rules! known_balance {
    ($user_id:literal, $at:literal, $known_at:literal) => {
        concat!(
            r#"(
        SELECT coalesce(base.balance, 0) + coalesce(closed.change, 0) + coalesce(rest.change, 0)
        FROM (SELECT) AS always
        LEFT JOIN LATERAL (
            SELECT k."timestamp", k.balance FROM balance_checkpoints k
            WHERE k.user_id = "#,
            $user_id,
            r#" AND k."timestamp" <= "#,
            $at,
            r#"
                AND k.all_recorded_until <= "#,
            $known_at,
            r#"
            ORDER BY k."timestamp" DESC LIMIT 1) base ON true
        CROSS JOIN LATERAL (
            SELECT max(s."timestamp") AS "timestamp", sum(
                CASE WHEN s.recorded_until <= "#,
            $known_at,
            r#" THEN s.change
                WHEN s.recorded_from > "#,
            $known_at,
            r#" THEN 0
                ELSE (
                    SELECT sum(h.balance_change) FROM changes_history h
                    WHERE h.user_id = "#,
            $user_id,
            r#" AND h."timestamp" > s.previous AND h."timestamp" <= s."timestamp"
                        AND (h.recorded_at <= "#,
            $known_at,
            r#") IS TRUE) END) AS change
            FROM (
                SELECT k."timestamp", k.recorded_from, k.recorded_until,
                    lag(k."timestamp", 1, coalesce(base."timestamp", '-infinity')) OVER timeline AS previous,
                    k.balance - lag(k.balance, 1, coalesce(base.balance, 0)) OVER timeline AS change
                FROM balance_checkpoints k
                WHERE k.user_id = "#,
            $user_id,
            r#" AND k."timestamp" <= "#,
            $at,
            r#"
                    AND k."timestamp" > coalesce(base."timestamp", '-infinity')
                WINDOW timeline AS (ORDER BY k."timestamp")) s) closed
        CROSS JOIN LATERAL (
            SELECT sum(h.balance_change) AS change FROM changes_history h
            WHERE h.user_id = "#,
            $user_id,
            r#" AND h."timestamp" <= "#,
            $at,
            r#"
                AND h."timestamp" > coalesce(closed."timestamp", base."timestamp", '-infinity')
                AND (h.recorded_at <= "#,
            $known_at,
            r#") IS TRUE) rest)"#
        )
    };
}

statement! {
    /// For each user, moment and moment of recording, in the order given. If all was recorded by then, it is the balance at
    /// the moment, at its cost. Otherwise of the history the segments are read that have some operations recorded until then
    /// and some later, and a checkpoint for each segment from the first of these to the moment. With each balance the user's
    /// version, and its [`Standing`](super::Standing). One statement is one snapshot.
    struct BalancesKnownAt<'a> {
        user_ids: &'a [&'a str] => Array<Text>,
        moments: &'a [PgTimestamp] => Array<Timestamptz>,
        known_at: &'a [PgTimestamp] => Array<Timestamptz>,
    }
    => (Nullable<Array<BigInt>>, Nullable<Array<BigInt>>, Nullable<Array<SmallInt>>)
    concat!(r#"
SELECT array_agg(amount), array_agg(version), array_agg(standing)
FROM (
    SELECT CASE WHEN b.recorded_at > q.known_at THEN "#, known_balance!("q.user_id", "q.at", "q.known_at"), r#"::bigint
        WHEN b.latest > q.at THEN "#, past_balance!("q.user_id", "q.at"), r#"::bigint
        ELSE coalesce(b.balance, 0) END AS amount,
        coalesce(b.version, 0) AS version,
        CASE WHEN b.recorded_at > q.known_at THEN 3 ELSE 0 END::smallint AS standing
    FROM asked CROSS JOIN unnest(asked.user_ids, asked.moments, asked.known_at) WITH ORDINALITY
        AS q (user_id, at, known_at, number)
    LEFT JOIN balance b ON b.user_id = q.user_id
    ORDER BY q.number) answered"#)
}

macro_rules! known_history_page {
    ($name:ident, $order:literal, whole: $whole:literal, begin: $begin:literal, next: $next:literal, within: $within:literal) => {
        statement! {
            /// A page by key of the operations recorded until a moment, and the balance after each of them from these alone.
            ///
            /// If all was recorded by then, the page is read as it stands. Otherwise stretches are gathered first, segment
            /// by segment from where the page begins, until they hold enough operations; segments of which nothing was
            /// recorded by then are passed over by their checkpoints.
            struct $name<'a> {
                user_id: &'a str => Text,
                first: PgTimestamp => Timestamptz,
                last: PgTimestamp => Timestamptz,
                beyond: PgTimestamp => Timestamptz,
                beyond_seq: i64 => BigInt,
                size: i64 => BigInt,
                bytes: i64 => BigInt,
                known_at: PgTimestamp => Timestamptz,
            }
            => (
                Nullable<BigInt>, Nullable<Timestamptz>,
                Nullable<Timestamptz>, Nullable<BigInt>, Nullable<BigInt>, Nullable<BigInt>,
                Nullable<Text>, Nullable<SqlUuid>, Nullable<Bool>, Nullable<Timestamptz>
            )
            concat!(r#"
, question AS MATERIALIZED (
    SELECT asked.*, coalesce(b.recorded_at > asked.known_at, false) AS is_past
    FROM asked LEFT JOIN balance b ON b.user_id = asked.user_id)
, stretches AS MATERIALIZED (
    WITH RECURSIVE walk (since, until, found) AS ("#, $begin, r#"
        UNION ALL
        SELECT coalesce(previous."timestamp" + interval '1 microsecond', '-infinity'),
            coalesce(segment."timestamp", 'infinity'), walk.found + known.operations
        FROM walk CROSS JOIN question q"#, $next, r#"
        LEFT JOIN LATERAL (
            SELECT k."timestamp" FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" < coalesce(segment."timestamp", 'infinity')
            ORDER BY k."timestamp" DESC LIMIT 1) previous ON true
        CROSS JOIN LATERAL (
            SELECT count(*) AS operations FROM (
                SELECT FROM changes_history h
                WHERE h.user_id = q.user_id AND h."timestamp" > coalesce(previous."timestamp", '-infinity')
                    AND h."timestamp" <= coalesce(segment."timestamp", 'infinity') AND (h.recorded_at <= q.known_at) IS TRUE
                LIMIT q.size) counted) known
        WHERE walk.found < q.size)
    SELECT since, until FROM walk UNION ALL SELECT "#, $whole, r#" FROM question q WHERE NOT q.is_past)
, page AS ("#, limited_by_bytes!($order, "(SELECT bytes FROM question)", r#"
    SELECT h.* FROM question q CROSS JOIN stretches s CROSS JOIN LATERAL (
        SELECT * FROM changes_history h
        WHERE h.user_id = q.user_id AND "#, $within, r#"
            AND (NOT q.is_past OR (h.recorded_at <= q.known_at) IS TRUE)
        ORDER BY h."timestamp" "#, $order, r#", h.seq "#, $order, r#" LIMIT q.size) h
    ORDER BY h."timestamp" "#, $order, r#", h.seq "#, $order, r#" LIMIT (SELECT size FROM question)"#), r#")
, start AS (SELECT p.user_id, p."timestamp", p.seq FROM page p ORDER BY p."timestamp", p.seq LIMIT 1)
, opening AS MATERIALIZED (
    SELECT CASE WHEN q.is_past THEN "#,
        known_balance!("q.user_id", "(start.\"timestamp\" - interval '1 microsecond')", "q.known_at"), r#"
    ELSE "#, past_balance!("q.user_id", "(start.\"timestamp\" - interval '1 microsecond')"), r#" END + coalesce((
        SELECT sum(h.balance_change) FROM changes_history h
        WHERE h.user_id = q.user_id AND h."timestamp" = start."timestamp" AND h.seq < start.seq
            AND (NOT q.is_past OR (h.recorded_at <= q.known_at) IS TRUE)), 0) AS balance
    FROM start CROSS JOIN question q)
"#, page_with_head!($order))
        }
    };
}

// A stretch begins at the place that the page is beyond, or after it. The comparison of rows, and no other, is what
// PostgreSQL begins at in the index: it must be as close as can be.
known_history_page!(KnownOldestFirst, "ASC",
    whole: "greatest(q.first, q.beyond), q.last",
    begin: r#"
        SELECT start.since, coalesce(segment."timestamp", 'infinity'), 0::bigint
        FROM question q CROSS JOIN LATERAL (SELECT greatest(q.first, q.beyond) AS since) start
        LEFT JOIN LATERAL (
            SELECT k."timestamp" FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" >= start.since
            ORDER BY k."timestamp" LIMIT 1) segment ON true
        WHERE q.is_past"#,
    // Without one, it is the open segment.
    next: r#"
        JOIN LATERAL (SELECT) AS more ON walk.until < q.last AND walk.until < 'infinity'
        LEFT JOIN LATERAL (
            SELECT k."timestamp" FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" > walk.until AND k.recorded_from <= q.known_at
            ORDER BY k."timestamp" LIMIT 1) segment ON true"#,
    within: r#"h."timestamp" <= least(s.until, q.last)
            AND (h."timestamp", h.seq) > (s.since, CASE WHEN s.since = q.beyond THEN q.beyond_seq ELSE 0 END)"#
);

known_history_page!(KnownNewestFirst, "DESC",
    whole: "q.first, least(q.last, q.beyond)",
    begin: r#"
        SELECT coalesce(previous."timestamp" + interval '1 microsecond', '-infinity'), start.until, 0::bigint
        FROM question q CROSS JOIN LATERAL (SELECT least(q.last, q.beyond) AS until) start
        LEFT JOIN LATERAL (
            SELECT k."timestamp" FROM balance_checkpoints k
            WHERE k.user_id = q.user_id AND k."timestamp" < start.until
            ORDER BY k."timestamp" DESC LIMIT 1) previous ON true
        WHERE q.is_past"#,
    next: r#"
        JOIN LATERAL (
            SELECT k."timestamp" FROM balance_checkpoints k
            WHERE walk.since > q.first AND k.user_id = q.user_id AND k."timestamp" < walk.since
                AND k.recorded_from <= q.known_at
            ORDER BY k."timestamp" DESC LIMIT 1) segment ON true"#,
    within: r#"h."timestamp" >= greatest(s.since, q.first) AND (h."timestamp", h.seq)
            < (s.until, CASE WHEN s.until = q.beyond THEN q.beyond_seq ELSE 9223372036854775807 END)"#
);

impl Store {
    /// The balance of a user as of a moment and as it was known at another: all operations stamped at or before the one and
    /// recorded at or before the other. 0 for a user nobody had heard of.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn balances_known_at(
        &self,
        user_ids: &[&str],
        moments: &[Timestamp],
        known_at: &[Timestamp],
        deadline: Instant,
    ) -> Result<Vec<Reading>, StoreError> {
        let moments: Vec<_> = moments.iter().copied().map(to_postgres).collect();
        let known_at: Vec<_> = known_at.iter().copied().map(to_postgres).collect();
        let statement = BalancesKnownAt {
            user_ids,
            moments: &moments,
            known_at: &known_at,
        };
        let read = self.connections.read(Statement::ReadKnownBalance, statement, deadline);
        Ok(to_readings(read.await?))
    }

    /// [`Store::history`] as it was known at a moment.
    pub(super) async fn history_known_at(
        &self,
        query: &HistoryQuery,
        known_at: Timestamp,
        deadline: Instant,
    ) -> Result<StoredPage, StoreError> {
        let known_at = to_postgres(known_at);
        let kind = Statement::ReadKnownHistory;
        let rows = load_page!(
            self,
            kind,
            query,
            deadline,
            KnownOldestFirst,
            KnownNewestFirst,
            known_at
        );
        Ok(to_page(rows?))
    }
}
