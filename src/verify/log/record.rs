//! Lines and rows as short as they can be compared, on their way through temporary files.

use uuid::Uuid;

use super::files::Place;
use super::line::Says;
use crate::store::{StoredMoment, StoredPlace};

/// What a line and its row must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// Of user, timestamp, change and context, with a key of this run.
    pub(super) hash: u64,
    /// At the timestamp; 0 where the outcome is unknown.
    pub(super) balance: i64,
    /// The number of the instance's name.
    pub(super) instance: u32,
    /// The number of the caller's name; 0 for none.
    pub(super) caller: u32,
}

/// A line that names an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LineRecord {
    pub(super) id: Uuid,
    pub(super) says: Says,
    pub(super) content: Content,
    /// The number of the file.
    pub(super) file: u32,
    pub(super) place: Place,
}

/// A row of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRecord<'a> {
    pub(super) id: Uuid,
    pub(super) content: Content,
    pub(super) place: StoredPlace,
    /// Whether it was stored so shortly before the snapshot that its line may be still to come.
    pub(super) is_recent: bool,
    pub(super) user_id: &'a str,
}

/// Either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Line(LineRecord),
    Row(RowRecord<'a>),
}

/// Bytes that records are read from.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

const ROW: u8 = 0;
const RECENT_ROW: u8 = 4;

impl<'a> Record<'a> {
    pub(super) fn id(&self) -> Uuid {
        match self {
            Record::Line(line) => line.id,
            Record::Row(row) => row.id,
        }
    }

    /// Appends the record.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        let (kind, content) = match self {
            Record::Row(row) if row.is_recent => (RECENT_ROW, row.content),
            Record::Row(row) => (ROW, row.content),
            Record::Line(line) => match line.says {
                Says::Accepted => (1, line.content),
                Says::Unknown => (2, line.content),
                Says::Replayed => (3, line.content),
            },
        };
        to.push(kind);
        to.extend_from_slice(self.id().as_bytes());
        to.extend_from_slice(&content.hash.to_le_bytes());
        to.extend_from_slice(&content.balance.to_le_bytes());
        to.extend_from_slice(&content.instance.to_le_bytes());
        to.extend_from_slice(&content.caller.to_le_bytes());
        match self {
            Record::Row(row) => {
                to.extend_from_slice(&row.place.timestamp.0.to_le_bytes());
                to.extend_from_slice(&row.place.seq.to_le_bytes());
                to.extend_from_slice(&(row.user_id.len() as u64).to_le_bytes());
                to.extend_from_slice(row.user_id.as_bytes());
            }
            Record::Line(line) => {
                to.extend_from_slice(&line.file.to_le_bytes());
                to.extend_from_slice(&line.place.offset.to_le_bytes());
                to.extend_from_slice(&line.place.number.to_le_bytes());
            }
        }
    }

    /// Reads the record at the front and moves on; none at the end.
    pub(super) fn read(bytes: &mut &'a [u8]) -> Option<Self> {
        let mut rest = Bytes(bytes);
        let [kind] = rest.array()?;
        let id = Uuid::from_bytes(rest.array()?);
        let content = Content {
            hash: rest.u64()?,
            balance: rest.i64()?,
            instance: rest.u32()?,
            caller: rest.u32()?,
        };
        let record = if matches!(kind, ROW | RECENT_ROW) {
            let place = StoredPlace {
                timestamp: StoredMoment(rest.i64()?),
                seq: rest.i64()?,
            };
            let length = usize::try_from(rest.u64()?).ok()?;
            let user_id = std::str::from_utf8(rest.take(length)?).ok()?;
            Record::Row(RowRecord {
                id,
                content,
                place,
                is_recent: kind == RECENT_ROW,
                user_id,
            })
        } else {
            let says = match kind {
                1 => Says::Accepted,
                2 => Says::Unknown,
                _ => Says::Replayed,
            };
            let file = rest.u32()?;
            let place = Place {
                offset: rest.u64()?,
                number: rest.u64()?,
            };
            Record::Line(LineRecord {
                id,
                says,
                content,
                file,
                place,
            })
        };
        *bytes = rest.0;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let content = Content {
            hash: u64::MAX - 1,
            balance: i64::MIN,
            instance: 7,
            caller: 8,
        };
        let line = |says| {
            Record::Line(LineRecord {
                id: Uuid::from_u128(3),
                says,
                content,
                file: 9,
                place: Place {
                    offset: 1 << 40,
                    number: 5,
                },
            })
        };
        let row = |is_recent| {
            Record::Row(RowRecord {
                id: Uuid::from_u128(4),
                content,
                place: StoredPlace {
                    timestamp: StoredMoment(-1),
                    seq: 2,
                },
                is_recent,
                user_id: "ё",
            })
        };
        let records = [
            line(Says::Accepted),
            row(false),
            line(Says::Unknown),
            row(true),
            line(Says::Replayed),
        ];
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.write(&mut bytes));
        let mut rest = bytes.as_slice();
        let read: Vec<_> = std::iter::from_fn(|| Record::read(&mut rest)).collect();
        assert_eq!(read, records);
        assert!(rest.is_empty());
    }
}
