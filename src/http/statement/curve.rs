//! The curve of a balance as an SVG: it is a step at each operation, since nothing happens in between.

use maud::{Markup, html};

use crate::domain::Timestamp;

/// Units of the drawing; the page scales it to its width.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 200.0;
/// Room for the labels above and below.
const MARGIN: f64 = 24.0;

/// Where the curve runs; both ends of each scale.
struct Scale {
    first: i64,
    last: i64,
    lowest: i64,
    highest: i64,
}

impl Scale {
    /// A single moment stands in the middle.
    fn x(&self, at: Timestamp) -> f64 {
        share(self.first, self.last, at.unix_microseconds()) * WIDTH
    }

    fn y(&self, balance: i64) -> f64 {
        HEIGHT - share(self.lowest, self.highest, balance) * HEIGHT
    }
}

/// How far the value is from the first to the last, 0 to 1.
#[allow(
    clippy::cast_precision_loss,
    reason = "a drawing of 720 units shows no more than three digits"
)]
fn share(first: i64, last: i64, value: i64) -> f64 {
    let length = i128::from(last) - i128::from(first);
    if length == 0 {
        return 0.5;
    }
    (i128::from(value) - i128::from(first)) as f64 / length as f64
}

/// The balances from the earliest moment to the latest, at least one; `before` is the balance before the first.
pub fn curve(before: i64, balances: &[(Timestamp, i64)]) -> Markup {
    let (Some((first, _)), Some((last, at_end))) = (balances.first(), balances.last()) else {
        return html! {};
    };
    let all = || balances.iter().map(|(_, balance)| *balance).chain([before]);
    let highest = all().max().unwrap_or(0);
    let scale = Scale {
        first: first.unix_microseconds(),
        last: last.unix_microseconds(),
        // Half a curve looks like a whole one where 0 is left out.
        lowest: 0,
        highest: highest.max(1),
    };
    let mut path = format!("M0 {:.1}", scale.y(before));
    for (at, balance) in balances {
        path.push_str(&format!("H{:.1}V{:.1}", scale.x(*at), scale.y(*balance)));
    }
    path.push_str(&format!("H{WIDTH}"));
    let ground = format!("M0 {HEIGHT}H{WIDTH}");
    let view = format!("0 {} {WIDTH} {}", -MARGIN, HEIGHT + 2.0 * MARGIN);
    let described =
        format!("The balance from {first} to {last}: {before} before, {at_end} at the end, at most {highest}.");
    html! {
        svg viewBox=(view) role="img" aria-label=(described) {
            path.ground d=(ground);
            path.curve d=(path);
            text x="0" y="-8" { (highest) }
            text x="0" y=(HEIGHT + 16.0) { (day(*first)) }
            text.end x=(WIDTH) y=(HEIGHT + 16.0) { (day(*last)) }
        }
    }
}

fn day(at: Timestamp) -> String {
    at.to_rfc3339_microseconds()[..10].to_owned()
}
