//! One plain page: the curve, the table under it, and the way to the next page. It needs no script and loads nothing.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::curve::curve;
use crate::store::HistoryEntry;

/// In the page, so that nothing else is loaded; the Content-Security-Policy names its hash.
pub const STYLE: &str = include_str!("page.css");

/// What a page shows.
#[derive(Clone, Copy, Debug)]
pub struct StatementPage<'a> {
    /// Whose.
    pub user_id: &'a str,
    /// In the order asked for.
    pub entries: &'a [HistoryEntry],
    /// Whether the earliest comes first.
    pub oldest_first: bool,
    /// The query of the next page, after `?`.
    pub next: Option<&'a str>,
    /// Whether another page comes before this one.
    pub is_continued: bool,
}

/// The page as HTML.
pub fn render(page: &StatementPage<'_>) -> String {
    let title = format!("Statement of account: {}", page.user_id);
    let document: Markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Statement of account" }
                p.user { (page.user_id) }
                @if page.entries.is_empty() {
                    p { "There are no operations here." }
                } @else {
                    (drawing(page))
                    (table(page.entries))
                }
                (ways(page))
            }
        }
    };
    document.into_string()
}

fn drawing(page: &StatementPage<'_>) -> Markup {
    let mut entries: Vec<_> = page.entries.iter().collect();
    if !page.oldest_first {
        entries.reverse();
    }
    // Of a moment only the balance after its last operation is one.
    let moments = entries.chunk_by(|one, other| one.place.timestamp == other.place.timestamp);
    let balances: Vec<_> = moments
        .filter_map(|moment| moment.last())
        .map(|entry| (entry.place.timestamp, entry.balance.max(0)))
        .collect();
    let before = entries
        .first()
        .map_or(0, |first| first.balance.saturating_sub(first.balance_change).max(0));
    curve(before, &balances)
}

fn table(entries: &[HistoryEntry]) -> Markup {
    html! {
        table {
            thead {
                tr { th { "When" } th { "What for" } th.number { "Change" } th.number { "Balance" } }
            }
            tbody {
                @for entry in entries {
                    tr {
                        td.when { time datetime=(entry.place.timestamp) { (when(entry)) } }
                        td.what {
                            (entry.context)
                            @if entry.approved { " " span.approved { "approved" } }
                        }
                        td.number { (signed(entry.balance_change)) }
                        td.number { (grouped(entry.balance)) }
                    }
                }
            }
        }
    }
}

fn ways(page: &StatementPage<'_>) -> Markup {
    let next = if page.oldest_first {
        "Later operations"
    } else {
        "Earlier operations"
    };
    html! {
        nav {
            @if page.is_continued { a href="?" { "Latest operations" } " " }
            @if let Some(query) = page.next { a rel="next" href=(format!("?{query}")) { (next) } }
        }
    }
}

/// `2026-01-31 12:00:00 UTC`; finer digits are in the element's `datetime`.
fn when(entry: &HistoryEntry) -> String {
    let text = entry.place.timestamp.to_rfc3339_microseconds();
    format!("{} {} UTC", &text[..10], &text[11..19])
}

/// With a sign, and a minus that is as wide as a plus.
fn signed(change: i64) -> String {
    let sign = match change {
        1.. => "+",
        0 => "",
        _ => "\u{2212}",
    };
    format!("{sign}{}", digits(change.unsigned_abs()))
}

fn grouped(balance: i64) -> String {
    let sign = if balance < 0 { "\u{2212}" } else { "" };
    format!("{sign}{}", digits(balance.unsigned_abs()))
}

/// In groups of three, with a narrow space between them that does not break.
fn digits(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push('\u{202F}');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{OperationId, Timestamp};
    use crate::store::Place;

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

    #[test]
    fn what_clients_have_sent_cannot_become_markup() {
        let evil = "</td><script>alert(1)</script>&\"'";
        let entries = [entry(1, 5, 5, evil)];
        let page = StatementPage {
            user_id: "<b>&\"",
            entries: &entries,
            oldest_first: false,
            next: Some("cursor=\"><script>"),
            is_continued: true,
        };
        let text = render(&page);
        assert!(!text.contains("<script") && !text.contains("<b>"), "{text}");
        assert!(text.contains("&lt;script&gt;alert(1)"), "{text}");
    }

    #[test]
    fn every_page_can_be_drawn() {
        for entries in [
            vec![],
            vec![entry(1, 0, 0, "")],
            vec![entry(1, i64::MAX, i64::MAX, ""), entry(2, i64::MIN + 1, 0, "")],
        ] {
            for oldest_first in [true, false] {
                let page = StatementPage {
                    user_id: "alice",
                    entries: &entries,
                    oldest_first,
                    next: None,
                    is_continued: false,
                };
                let text = render(&page);
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
                assert_eq!(text.contains("<svg"), !entries.is_empty());
            }
        }
    }

    #[test]
    fn amounts_are_grouped_by_three() {
        assert_eq!(signed(1_234_567), "+1\u{202F}234\u{202F}567");
        assert_eq!(signed(-100), "\u{2212}100");
        assert_eq!(grouped(0), "0");
        assert_eq!(digits(1_000), "1\u{202F}000");
    }
}
