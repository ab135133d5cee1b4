//! Values as PostgreSQL keeps them: timestamps as microseconds since 2000-01-01T00:00:00Z, counts as 32-bit integers.

use diesel::data_types::PgTimestamp;

use crate::domain::Timestamp;

/// 2000-01-01T00:00:00Z in microseconds since 1970-01-01T00:00:00Z.
pub(super) const POSTGRES_EPOCH: i64 = 946_684_800 * 1_000_000;

pub(super) fn to_postgres(timestamp: Timestamp) -> PgTimestamp {
    PgTimestamp(timestamp.unix_microseconds() - POSTGRES_EPOCH)
}

/// A moment that our own schema stores; its constraint keeps it within the years 1 to 9999.
pub(super) fn from_postgres(stored: PgTimestamp) -> Timestamp {
    stored
        .0
        .checked_add(POSTGRES_EPOCH)
        .and_then(Timestamp::from_unix_microseconds)
        .expect("changes_history_timestamp keeps stored moments within the years 1 to 9999")
}

/// Counts of operations of one segment are stored as 32-bit integers. Only a segment that is a single moment can grow
/// without bound; past two thousand million operations its count stays where it is, and it is still closed in time.
pub(super) fn to_stored_count(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

pub(super) fn from_stored_count(count: i32) -> u32 {
    u32::try_from(count).unwrap_or(0)
}
