//! One plain page: the curve, the table under it, and the way to the next page. It needs no script and loads nothing.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::curve::curve;
use super::figures::{day, grouped, second, signed};
use crate::domain::Timestamp;
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
    /// Of which operations it is: those that were recorded by then; of all, if that is left open.
    pub known_at: Option<Timestamp>,
    /// The query of the next page, after `?`, if there is one.
    pub next: Option<&'a str>,
    /// The query of the first page, after `?`, if this is another.
    pub first: Option<&'a str>,
}

/// The page as HTML.
pub fn render(page: &StatementPage<'_>) -> String {
    let document: Markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // An empty icon: the browser would ask for /favicon.ico, which is not there.
                link rel="icon" href="data:,";
                title { "Statement of account: " (page.user_id) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Statement of account" }
                    // The id may be of any script; it is laid out by its own direction.
                    p.user dir="auto" { (page.user_id) }
                    @if let Some(known_at) = page.known_at {
                        p { "As it was known at " (known_at) "." }
                    }
                }
                main {
                    @if page.entries.is_empty() {
                        p.empty { "There are no operations here." }
                    } @else {
                        (Summary::of(page).markup())
                        (table(page))
                    }
                }
                (ways(page))
            }
        }
    };
    document.into_string()
}

/// What the operations of a page come to.
struct Summary<'a> {
    /// From the earliest to the latest.
    entries: Vec<&'a HistoryEntry>,
    before: i128,
    added: i128,
    withdrawn: i128,
    after: i128,
}

impl<'a> Summary<'a> {
    fn of(page: &StatementPage<'a>) -> Self {
        let mut entries: Vec<_> = page.entries.iter().collect();
        if !page.oldest_first {
            entries.reverse();
        }
        let changes = || entries.iter().map(|entry| i128::from(entry.balance_change));
        let (first, last) = (entries.first(), entries.last());
        Self {
            before: first.map_or(0, |first| i128::from(first.balance) - i128::from(first.balance_change)),
            added: changes().filter(|change| *change > 0).sum(),
            withdrawn: changes().filter(|change| *change < 0).sum(),
            after: last.map_or(0, |last| last.balance.into()),
            entries,
        }
    }

    fn markup(&self) -> Markup {
        html! {
            dl {
                div { dt { "Balance before" } dd { (grouped(self.before)) } }
                div { dt { "Added" } dd { (signed(self.added)) } }
                div { dt { "Withdrawn" } dd { (signed(self.withdrawn)) } }
                div.after { dt { "Balance after" } dd { (grouped(self.after)) } }
            }
            figure {
                (self.drawing())
                figcaption { (self.period()) }
            }
        }
    }

    /// Of a moment only the balance after its last operation is one.
    fn drawing(&self) -> Markup {
        let moments = self
            .entries
            .chunk_by(|one, other| one.place.timestamp == other.place.timestamp);
        let balances: Vec<_> = moments
            .filter_map(|moment| moment.last())
            .map(|entry| (entry.place.timestamp, entry.balance.max(0)))
            .collect();
        let before = i64::try_from(self.before.max(0)).unwrap_or(i64::MAX);
        curve(before, &balances)
    }

    fn period(&self) -> String {
        let count = match self.entries.len() {
            1 => "1 operation".to_owned(),
            count => format!("{count} operations"),
        };
        let mut days =
            [self.entries.first(), self.entries.last()].map(|entry| entry.map(|entry| entry.place.timestamp));
        days.sort();
        match days.map(|at| at.map(day)) {
            [Some(first), Some(last)] if first == last => format!("{count} on {first} (UTC)"),
            [Some(first), Some(last)] => format!("{count} from {first} to {last} (UTC)"),
            _ => count,
        }
    }
}

/// The roles say again what a browser forgets when a row is laid out otherwise, as on a phone.
fn table(page: &StatementPage<'_>) -> Markup {
    let order = if page.oldest_first { "earliest" } else { "latest" };
    html! {
        table role="table" {
            caption { "Operations, the " (order) " first" }
            thead role="rowgroup" {
                tr role="row" {
                    th scope="col" role="columnheader" { "When (UTC)" }
                    th scope="col" role="columnheader" { "What for" }
                    th.number scope="col" role="columnheader" { "Change" }
                    th.number scope="col" role="columnheader" { "Balance" }
                }
            }
            tbody role="rowgroup" {
                @for entry in page.entries { (row(entry)) }
            }
        }
    }
}

fn row(entry: &HistoryEntry) -> Markup {
    let change = i128::from(entry.balance_change);
    let kind = if change > 0 { "number added" } else { "number" };
    html! {
        tr role="row" {
            td.when role="cell" { time datetime=(entry.place.timestamp) { (second(entry.place.timestamp)) } }
            td.what role="cell" {
                bdi { (entry.context) }
                @if entry.approved { " " span.approved { "approved" } }
            }
            td class=(kind) role="cell" { data value=(change) { (signed(change)) } }
            td.number.balance role="cell" { data value=(entry.balance) { (grouped(entry.balance.into())) } }
        }
    }
}

fn ways(page: &StatementPage<'_>) -> Markup {
    let (first, next) = match page.oldest_first {
        true => ("Earliest operations", "Later operations"),
        false => ("Latest operations", "Earlier operations"),
    };
    html! {
        @if page.first.is_some() || page.next.is_some() {
            nav aria-label="Pages" {
                @if let Some(query) = page.first { a href=(format!("?{query}")) { "\u{21E4} " (first) } }
                @if let Some(query) = page.next {
                    a.next rel="next" href=(format!("?{query}")) { (next) " \u{2192}" }
                }
            }
        }
    }
}
