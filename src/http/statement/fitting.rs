//! How many operations fit on a page of 1 MiB.

use crate::http::negotiation::Form;
use crate::service::HistoryPage;
use crate::store::HistoryEntry;

/// The largest page, in bytes.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// Bytes of a page beside its operations: style, heading and links, or the user's id and the cursor.
const FRAME_BYTES: usize = 32 * 1024;
/// An operation of JSON without its context.
const JSON_BYTES: usize = 384;
/// A row of a table without its context.
const CSV_BYTES: usize = 256;
/// A row of a page, and its part of the curve, without its context.
const HTML_BYTES: usize = 768;

/// Leaves out the last operations of a page that would be too large; the first one stays.
pub fn cut(page: &mut HistoryPage, form: Form) {
    let size = match form {
        Form::Json => json,
        Form::Html => html,
        Form::Csv => csv,
    };
    let mut bytes = FRAME_BYTES;
    let fitting = page.entries.iter().take_while(|entry| {
        bytes += size(entry);
        bytes <= MAX_PAGE_BYTES
    });
    let fitting = fitting.count().max(1);
    page.more |= page.entries.len() > fitting;
    page.entries.truncate(fitting);
}

fn json(entry: &HistoryEntry) -> usize {
    let escaped = entry.context.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..=31 => "\\u0001".len(),
        _ => 1,
    });
    JSON_BYTES + escaped.sum::<usize>()
}

fn html(entry: &HistoryEntry) -> usize {
    let escaped = entry.context.bytes().map(|byte| match byte {
        b'&' => "&amp;".len(),
        b'<' | b'>' => "&lt;".len(),
        b'"' => "&quot;".len(),
        _ => 1,
    });
    HTML_BYTES + escaped.sum::<usize>()
}

fn csv(entry: &HistoryEntry) -> usize {
    // A quote is doubled, and a mark stands before each character that could begin a formula, in full width too.
    let escaped = entry.context.bytes().map(|byte| match byte {
        b'"' | b'=' | b'+' | b'-' | b'@' | b'\'' | 0xef => 2,
        _ => 1,
    });
    CSV_BYTES + escaped.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use poem_openapi::types::ToJSON;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{OperationId, Timestamp};
    use crate::http::statement::page::{StatementPage, render};
    use crate::http::types::HistoryOperation;
    use crate::store::Place;

    fn page(context: &str, operations: usize) -> HistoryPage {
        let entry = |seq| HistoryEntry {
            place: Place {
                timestamp: Timestamp::from_unix_microseconds(1_800_000_000_123_456 + seq).unwrap(),
                seq: i64::MAX,
            },
            balance_change: i64::MIN,
            balance: i64::MAX,
            context: context.to_owned(),
            operation_id: OperationId(Uuid::max()),
            approved: true,
            recorded_at: Timestamp::from_unix_microseconds(1_800_000_000_123_456).unwrap(),
        };
        HistoryPage {
            entries: (0..operations).map(|seq| entry(i64::try_from(seq).unwrap())).collect(),
            more: false,
            version: None,
            recorded_at: None,
        }
    }

    fn size(page: &HistoryPage, form: Form) -> usize {
        if form == Form::Html {
            let page = StatementPage {
                user_id: "alice",
                entries: &page.entries,
                oldest_first: true,
                known_at: None,
                next: Some("limit=1000"),
                first: Some("limit=1000"),
            };
            return render(&page).len();
        }
        let operations: Vec<HistoryOperation> = page.entries.iter().cloned().map(Into::into).collect();
        operations.to_json_string().len()
    }

    #[test]
    fn a_page_has_at_most_1_mib_and_is_well_filled_whatever_its_contexts_are() {
        for form in [Form::Json, Form::Html] {
            for context in ["", "x", "\u{1}", "\n", "\"", "&", "<", "👍", "'"] {
                for length in [1, 100, 4_096] {
                    let mut page = page(&context.repeat(length), 1_000);
                    cut(&mut page, form);
                    let size = size(&page, form);
                    assert!(size <= MAX_PAGE_BYTES, "{size} {form:?} {context:?} {length}");
                    assert_eq!(page.more, page.entries.len() < 1_000);
                    let is_full = !page.more || size > MAX_PAGE_BYTES / 3;
                    assert!(is_full, "{size} {form:?} {context:?} {length}");
                }
            }
        }
    }
}
