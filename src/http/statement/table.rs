//! The history as CSV (RFC 4180): a header, then a row an operation, with the names of the JSON answer.

use std::borrow::Cow;

use csv::{Terminator, WriterBuilder};

use crate::store::HistoryEntry;

/// The columns.
pub const HEADER: &str = "operationId,timestamp,seq,balanceChange,balance,context,approved,recordedAt\r\n";

/// What a spreadsheet takes for the beginning of a formula, in both widths, and the mark itself: so whoever wants the exact
/// text takes away one mark where there is one.
const MARKED: [char; 12] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠', MARK];

/// In front of a text, it tells a spreadsheet that this is one.
const MARK: char = '\'';

/// A row for each operation.
pub fn rows(entries: &[HistoryEntry]) -> Vec<u8> {
    let mut writer = WriterBuilder::new()
        .has_headers(false)
        .terminator(Terminator::CRLF)
        .from_writer(Vec::new());
    for entry in entries {
        let fields = (
            entry.operation_id.0,
            entry.place.timestamp.to_string(),
            entry.place.seq,
            entry.balance_change,
            entry.balance,
            plain(&entry.context),
            entry.approved,
            entry.recorded_at.to_string(),
        );
        writer
            .serialize(fields)
            .expect("a tuple of plain fields can be written, and memory takes all");
    }
    writer.into_inner().expect("memory takes all")
}

/// A text that no spreadsheet runs as a formula: clients choose it, and other people open it.
fn plain(text: &str) -> Cow<'_, str> {
    match text.starts_with(MARKED) {
        true => Cow::Owned(format!("{MARK}{text}")),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{OperationId, Timestamp};
    use crate::store::Place;

    fn entry(context: &str) -> HistoryEntry {
        let at = Timestamp::parse("2026-01-31T12:00:00Z").unwrap();
        HistoryEntry {
            place: Place { timestamp: at, seq: 1 },
            balance_change: i64::MIN + 1,
            balance: i64::MAX,
            context: context.to_owned(),
            operation_id: OperationId(Uuid::nil()),
            approved: true,
            recorded_at: at,
        }
    }

    #[test]
    fn a_context_with_every_special_character_is_one_field() {
        let context = "a,b \"c\"\r\nd";
        let text = [HEADER.as_bytes(), &rows(&[entry(context), entry("")])].concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let read: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(&read[0][5], context);
        assert_eq!(&read[0][1], "2026-01-31T12:00:00Z");
        assert_eq!(&read[1][5], "");
    }

    #[test]
    fn numbers_stay_numbers_and_no_text_is_a_formula() {
        let row = String::from_utf8(rows(&[entry("=1+1")])).unwrap();
        let expected = "00000000-0000-0000-0000-000000000000,2026-01-31T12:00:00Z,1,-9223372036854775807,\
                        9223372036854775807,'=1+1,true,2026-01-31T12:00:00Z\r\n";
        assert_eq!(row, expected);
        for text in ["@a", "+1", "-1", "\t=a", "\r=a", "\n=a", "＝a", "'", "'=a"] {
            assert_eq!(plain(text), format!("'{text}"));
        }
        for text in ["", "a=1", " =a", "rent"] {
            assert_eq!(plain(text), text);
        }
    }
}
