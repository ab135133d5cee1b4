//! Pages as they are drawn.

use uuid::Uuid;

use super::page::{StatementPage, render};
use crate::domain::{OperationId, Timestamp};
use crate::store::{HistoryEntry, Place};

fn entry(seq: i64, balance_change: i64, balance: i64, context: &str) -> HistoryEntry {
    let timestamp = Timestamp::parse("2026-01-31T12:00:00Z").unwrap();
    HistoryEntry {
        place: Place { timestamp, seq },
        balance_change,
        balance,
        context: context.to_owned(),
        operation_id: OperationId(Uuid::nil()),
        approved: false,
        recorded_at: timestamp,
    }
}

fn page(entries: &[HistoryEntry]) -> StatementPage<'_> {
    StatementPage {
        user_id: "alice",
        entries,
        oldest_first: true,
        known_at: None,
        next: None,
        first: None,
    }
}

#[test]
fn what_clients_have_sent_cannot_become_markup() {
    let evil = "</td><script>alert(1)</script>&\"'";
    let entries = [entry(1, 5, 5, evil)];
    let text = render(&StatementPage {
        user_id: "<b>&\"",
        next: Some("cursor=\"><script>"),
        first: Some("limit=<script>"),
        ..page(&entries)
    });
    assert!(!text.contains("<script") && !text.contains("<b>"), "{text}");
    assert!(text.contains("&lt;script&gt;alert(1)"), "{text}");
}

#[test]
fn every_page_can_be_drawn() {
    for entries in [
        vec![],
        vec![entry(1, 0, 0, "")],
        vec![entry(1, i64::MAX, i64::MAX, ""), entry(2, i64::MIN + 1, 0, "")],
        // In the middle of a moment a balance may be anything.
        vec![entry(2, -50, -50, ""), entry(3, 100, 50, "")],
        vec![entry(2, i64::MIN, i64::MIN, "")],
    ] {
        for oldest_first in [true, false] {
            let text = render(&StatementPage {
                oldest_first,
                ..page(&entries)
            });
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            assert_eq!(text.contains("<svg"), !entries.is_empty());
        }
    }
}

#[test]
fn a_page_tells_what_its_operations_come_to() {
    let text = render(&page(&[
        entry(1, 3_000, 4_000, "salary"),
        entry(2, -1_200, 2_800, "rent"),
    ]));
    for shown in [
        "<dt>Balance before</dt><dd>1\u{2009}000</dd>",
        "<dt>Added</dt><dd>+3\u{2009}000</dd>",
        "<dt>Withdrawn</dt><dd>\u{2212}1\u{2009}200</dd>",
        "<dt>Balance after</dt><dd>2\u{2009}800</dd>",
        "2 operations on 2026-01-31 (UTC)",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
}
