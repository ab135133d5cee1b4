//! The history as CSV (RFC 4180): a header, then a row an operation, with the names of the JSON answer.

use csv::{Terminator, WriterBuilder};

use crate::store::HistoryEntry;

/// The columns.
pub const HEADER: &str = "operationId,timestamp,seq,balanceChange,balance,context,approved,recordedAt\r\n";

/// A row for each operation.
pub fn rows(entries: &[HistoryEntry]) -> Vec<u8> {
    let mut writer = WriterBuilder::new()
        .has_headers(false)
        .terminator(Terminator::CRLF)
        .from_writer(Vec::new());
    for entry in entries {
        let fields = (
            entry.operation_id.0.to_string(),
            entry.place.timestamp.to_string(),
            entry.place.seq,
            entry.balance_change,
            entry.balance,
            &entry.context,
            entry.approved,
            entry.recorded_at.to_string(),
        );
        writer
            .serialize(fields)
            .expect("a tuple of plain fields can be written, and memory takes all");
    }
    writer.into_inner().expect("memory takes all")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{OperationId, Timestamp};
    use crate::store::Place;

    #[test]
    fn a_context_with_every_special_character_is_one_field() {
        let at = Timestamp::parse("2026-01-31T12:00:00Z").unwrap();
        let context = "a,b \"c\"\r\nd";
        let entry = HistoryEntry {
            place: Place { timestamp: at, seq: 1 },
            balance_change: i64::MAX,
            balance: i64::MAX,
            context: context.to_owned(),
            operation_id: OperationId(Uuid::nil()),
            approved: true,
            recorded_at: at,
        };
        let text = [HEADER.as_bytes(), &rows(&[entry.clone(), entry])].concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let read: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(&read[0][5], context);
        assert_eq!(&read[0][3], "9223372036854775807");
        assert_eq!(&read[0][1], "2026-01-31T12:00:00Z");
    }
}
