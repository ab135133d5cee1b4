//! The history as CSV (RFC 4180): a header, then a row an operation, with the names of the JSON answer.

use std::borrow::Cow;

use csv::{Terminator, WriterBuilder};

use crate::store::HistoryEntry;

/// The columns.
pub const HEADER: &str = "operationId,timestamp,seq,balanceChange,balance,context,approved,recordedAt\r\n";

/// Begins a cell that a spreadsheet shows as text.
const MARK: char = '\'';

/// Characters that get a [`MARK`] where a cell could begin: those that begin a formula, in both widths, and the mark itself,
/// so that taking one mark away from each such place gives the exact text.
const MARKED: [char; 9] = ['=', '+', '-', '@', '＝', '＋', '－', '＠', MARK];

/// Characters that spreadsheets split text at, whatever the file is quoted with; a cell could begin after each.
const SEPARATORS: [char; 6] = [',', ';', '|', '\t', '\r', '\n'];

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

/// The text with a mark wherever a formula could begin: clients choose it, and other people open it.
fn plain(text: &str) -> Cow<'_, str> {
    let mut marked = String::new();
    let mut copied = 0;
    let mut begins_cell = true;
    for (at, character) in text.char_indices() {
        if begins_cell && MARKED.contains(&character) {
            marked.push_str(&text[copied..at]);
            marked.push(MARK);
            copied = at;
        }
        begins_cell = SEPARATORS.contains(&character);
    }
    if marked.is_empty() {
        return Cow::Borrowed(text);
    }
    marked.push_str(&text[copied..]);
    Cow::Owned(marked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
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
        for text in ["@a", "+1", "-1", "＝a", "'", "'=a", "''=a"] {
            assert_eq!(plain(text), format!("'{text}"));
        }
        for (text, expected) in [
            ("x;=40+2;y", "x;'=40+2;y"),
            ("x\t@SUM(1)\t-y", "x\t'@SUM(1)\t'-y"),
            ("a|+1,－2\r\n＝3", "a|'+1,'－2\r\n'＝3"),
            ("a;'=1;''b", "a;''=1;'''b"),
        ] {
            assert_eq!(plain(text), expected);
        }
        for text in ["", "a=1", " =a", "rent", "a'b", "a;b\tc, d|e\r\n", "\t", ";"] {
            assert!(matches!(plain(text), Cow::Borrowed(same) if same == text));
        }
    }

    /// Takes away the mark of each place where a cell could begin, as a reader would who knows the rule alone.
    fn exact(marked: &str) -> String {
        let mut cells: Vec<&str> = marked.split_inclusive(SEPARATORS).collect();
        for cell in &mut cells {
            *cell = cell.strip_prefix('\'').unwrap_or(cell);
        }
        cells.concat()
    }

    fn text() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            ",", ";", "|", "\t", "\r", "\n", "\r\n", "=", "+", "-", "@", "＝", "＋", "－", "＠", "'", "''", "\"", "a",
            " ", "é", "\u{2028}",
        ]);
        prop_oneof![
            4 => prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat()),
            1 => any::<String>(),
        ]
    }

    proptest! {
        #[test]
        fn a_spreadsheet_that_splits_a_text_anywhere_runs_nothing_and_the_exact_text_can_be_had(context in text()) {
            let context = context.replace('\0', "");
            let table = [HEADER.as_bytes(), &rows(&[entry(&context)])].concat();
            let mut reader = csv::Reader::from_reader(table.as_slice());
            let read: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), 1);
            let marked = &read[0][5];
            prop_assert_eq!(exact(marked), context);
            let formula = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
            // One separator after the other, and any of them at once.
            for separators in SEPARATORS.iter().map(std::slice::from_ref).chain([SEPARATORS.as_slice()]) {
                for cell in marked.split(separators) {
                    prop_assert!(!cell.starts_with(formula), "{cell}");
                }
            }
        }
    }
}
