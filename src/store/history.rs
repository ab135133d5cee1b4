//! Pages of histories, with the balance after each operation, as they are now.

use diesel::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use tokio::time::Instant;
use uuid::Uuid;

use super::conversion::{from_postgres, to_postgres};
use super::statement::statement;
use super::{Store, StoreError};
use crate::domain::{OperationId, Timestamp, UserId};
use crate::metrics::Statement;

/// Cuts the rows of a query off after the first whose context brings the sum above `bytes` bytes. PostgreSQL knows the
/// length of a text without reading it.
macro_rules! limited_by_bytes {
    ($order:literal, $bytes:literal, $($rows:expr),+) => {
        concat!(
            r#"
    SELECT * FROM (
        SELECT h.*, sum(octet_length(h.context)) OVER (ORDER BY h."timestamp" "#,
            $order,
            ", h.seq ",
            $order,
            " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM (",
            $($rows,)+
            r#") h) h
    WHERE coalesce(h.bytes_before, 0) <= "#,
            $bytes
        )
    };
}
pub(super) use limited_by_bytes;

/// The rows of `page`, the running sum on top of `opening`, and with each of them the user's version and when it was
/// recorded; these by themselves where there is no row.
macro_rules! page_with_head {
    ($order:literal) => {
        concat!(
            r#"
SELECT head.version, head.recorded_at, p.*
FROM (SELECT b.version, b.recorded_at FROM asked LEFT JOIN balance b ON b.user_id = asked.user_id) head
LEFT JOIN (
    SELECT p."timestamp", p.seq, p.balance_change,
        least(greatest(opening.balance + sum(p.balance_change) OVER (ORDER BY p."timestamp", p.seq),
            -9223372036854775808), 9223372036854775807)::bigint,
        p.context, p.operation_id, p.approved, p.recorded_at
    FROM page p CROSS JOIN opening) p ON true
ORDER BY p."timestamp" "#,
            $order,
            ", p.seq ",
            $order
        )
    };
}
pub(super) use page_with_head;

macro_rules! history_page {
    ($name:ident, $beyond:literal, $order:literal) => {
        statement! {
            /// A page by key, and the balance after each of its operations: the last checkpoint before the page, a sum
            /// over what lies between, and a running sum. Inside one moment the running sum may pass through figures that
            /// are no balance of any moment; should such a figure not fit 64 bits, the nearest that does is shown.
            struct $name<'a> {
                user_id: &'a str => Text,
                first: PgTimestamp => Timestamptz,
                last: PgTimestamp => Timestamptz,
                beyond: PgTimestamp => Timestamptz,
                beyond_seq: i64 => BigInt,
                size: i64 => BigInt,
                bytes: i64 => BigInt,
            }
            => (
                Nullable<BigInt>, Nullable<Timestamptz>,
                Nullable<Timestamptz>, Nullable<BigInt>, Nullable<BigInt>, Nullable<BigInt>,
                Nullable<Text>, Nullable<SqlUuid>, Nullable<Bool>, Nullable<Timestamptz>
            )
            concat!(r#"
, page AS (
    SELECT h.* FROM asked CROSS JOIN LATERAL ("#, limited_by_bytes!($order, "asked.bytes", r#"
        SELECT * FROM changes_history h
        WHERE h.user_id = asked.user_id AND h."timestamp" BETWEEN asked.first AND asked.last
            AND (h."timestamp", h.seq) "#, $beyond, r#" (asked.beyond, asked.beyond_seq)
        ORDER BY h."timestamp" "#, $order, r#", h.seq "#, $order, r#" LIMIT asked.size"#), r#") h)
, start AS (SELECT p.user_id, p."timestamp", p.seq FROM page p ORDER BY p."timestamp", p.seq LIMIT 1)
, opening AS MATERIALIZED (
    SELECT coalesce(c.balance, 0) + coalesce((
        SELECT sum(h.balance_change) FROM changes_history h
        WHERE h.user_id = start.user_id AND h."timestamp" > coalesce(c."timestamp", '-infinity')
            AND (h."timestamp", h.seq) < (start."timestamp", start.seq)), 0) AS balance
    FROM start LEFT JOIN LATERAL (
        SELECT k."timestamp", k.balance FROM balance_checkpoints k
        WHERE k.user_id = start.user_id AND k."timestamp" < start."timestamp"
        ORDER BY k."timestamp" DESC LIMIT 1) c ON true)
"#, page_with_head!($order))
        }
    };
}

history_page!(OldestFirst, ">", "ASC");
history_page!(NewestFirst, "<", "DESC");

/// Which end of the timeline a page of the history begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryOrder {
    /// The earliest timestamp first.
    OldestFirst,
    /// The latest timestamp first.
    NewestFirst,
}

/// The place of an operation on its user's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its number in the order of acceptance.
    pub seq: i64,
}

/// Which operations to read.
#[derive(Clone, Debug)]
pub struct HistoryQuery {
    /// Whose.
    pub user_id: UserId,
    /// The earliest timestamp, included.
    pub from: Timestamp,
    /// The latest timestamp, included.
    pub to: Timestamp,
    /// The end to begin at.
    pub order: HistoryOrder,
    /// Only operations beyond this one, in that order.
    pub beyond: Option<Place>,
    /// The most operations to return.
    pub limit: u32,
    /// The most bytes of contexts to return; the operation that exceeds them is the last.
    pub bytes: usize,
    /// Only operations recorded at or before this moment; none for all.
    pub known_at: Option<Timestamp>,
}

/// An operation of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Where on the timeline.
    pub place: Place,
    /// How much was added.
    pub balance_change: i64,
    /// The balance after it, with all operations that are before it on the timeline and were known at the moment asked for.
    pub balance: i64,
    /// What it was for.
    pub context: String,
    /// Its name.
    pub operation_id: OperationId,
    /// Whether the Approver was asked, and approved.
    pub approved: bool,
    /// When PostgreSQL stored it.
    pub recorded_at: Timestamp,
}

/// Some operations of a user, and how far the user had come when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPage {
    /// In the order asked for.
    pub entries: Vec<HistoryEntry>,
    /// How many operations of the user were accepted.
    pub version: i64,
    /// When the last of them was stored; none for a user nobody has heard of.
    pub recorded_at: Option<Timestamp>,
}

pub(super) type HistoryRow = (
    Option<i64>,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    Option<Uuid>,
    Option<bool>,
    Option<PgTimestamp>,
);

pub(super) fn to_page(rows: Vec<HistoryRow>) -> StoredPage {
    let (version, recorded_at) = rows.as_slice().first().map_or((None, None), |row| (row.0, row.1));
    StoredPage {
        entries: rows.into_iter().filter_map(to_entry).collect(),
        version: version.unwrap_or(0),
        recorded_at: recorded_at.map(from_postgres),
    }
}

/// None for a row that tells of the user only.
fn to_entry(row: HistoryRow) -> Option<HistoryEntry> {
    let (_, _, timestamp, seq, balance_change, balance, context, operation_id, approved, recorded_at) = row;
    Some(HistoryEntry {
        place: Place {
            timestamp: from_postgres(timestamp?),
            seq: seq?,
        },
        balance_change: balance_change?,
        balance: balance?,
        context: context?,
        operation_id: OperationId(operation_id?),
        approved: approved?,
        recorded_at: from_postgres(recorded_at?),
    })
}

/// Loads the page of the query with the statement of its order.
macro_rules! load_page {
    ($store:ident, $kind:expr, $query:ident, $deadline:ident, $oldest_first:ident, $newest_first:ident $(, $known_at:ident)?) => {{
        let user_id = $query.user_id.as_str();
        let (first, last) = (to_postgres($query.from), to_postgres($query.to));
        let size = i64::from($query.limit);
        let bytes = i64::try_from($query.bytes).unwrap_or(i64::MAX);
        let beyond = $query.beyond.map(|place| (to_postgres(place.timestamp), place.seq));
        match $query.order {
            HistoryOrder::OldestFirst => {
                let (beyond, beyond_seq) = beyond.unwrap_or((first, 0));
                let page = $oldest_first { user_id, first, last, beyond, beyond_seq, size, bytes $(, $known_at)? };
                $store.connections.read::<_, $crate::store::history::HistoryRow>($kind, page, $deadline).await
            }
            HistoryOrder::NewestFirst => {
                let (beyond, beyond_seq) = beyond.unwrap_or((last, i64::MAX));
                let page = $newest_first { user_id, first, last, beyond, beyond_seq, size, bytes $(, $known_at)? };
                $store.connections.read::<_, $crate::store::history::HistoryRow>($kind, page, $deadline).await
            }
        }
    }};
}
pub(super) use load_page;

impl Store {
    /// At most `query.limit` operations in the order asked for.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if PostgreSQL gives no answer before `deadline`.
    pub async fn history(&self, query: &HistoryQuery, deadline: Instant) -> Result<StoredPage, StoreError> {
        if let Some(known_at) = query.known_at {
            return self.history_known_at(query, known_at, deadline).await;
        }
        let rows = load_page!(self, Statement::ReadHistory, query, deadline, OldestFirst, NewestFirst);
        Ok(to_page(rows?))
    }
}
