//! The curve of a balance as an SVG: it is a step at each operation, since nothing happens in between.

use std::fmt::Write;

use maud::{Markup, html};

use super::figures::{day, grouped, microsecond, minute, second};
use crate::domain::Timestamp;

/// Units of the drawing, which the page scales to its width: on a phone about a pixel each.
const WIDTH: f64 = 360.0;
/// Where the highest mark of the scale stands, and where 0 does.
const TOP: f64 = 18.0;
const GROUND: f64 = 158.0;
/// Left of the first operation and right of the last, so that what was before and is at the end can be seen.
const ASIDE: f64 = 14.0;
/// What a character of the scale's labels takes on a phone, where they are largest, and the most that all of a label may
/// take: longer ones stand on the curve.
const CHARACTER: f64 = 7.2;
const WIDEST_LABEL: f64 = 60.0;
/// Where the dates stand.
const DATES: f64 = GROUND + 16.0;
const HEIGHT: f64 = DATES + 6.0;

/// Marks above 0 that a scale has about.
const MARKS: i128 = 5;

/// Where the curve runs.
struct Scale {
    /// Where it begins, right of the scale's labels.
    left: f64,
    first: i64,
    last: i64,
    /// From one mark of the balance to the next.
    step: i128,
    /// How many of them.
    marks: i128,
}

impl Scale {
    fn new(first: Timestamp, last: Timestamp, highest: i64) -> Self {
        let highest = i128::from(highest.max(1));
        let step = round_step(highest);
        let marks = (highest + step - 1) / step;
        let label = u32::try_from(grouped(marks * step).chars().count()).unwrap_or(u32::MAX);
        Self {
            left: (f64::from(label) * CHARACTER).min(WIDEST_LABEL),
            first: first.unix_microseconds(),
            last: last.unix_microseconds(),
            step,
            marks,
        }
    }

    /// A single moment stands in the middle.
    fn x(&self, at: Timestamp) -> f64 {
        let at = i128::from(at.unix_microseconds());
        let left = self.left + ASIDE;
        left + share(self.first.into(), self.last.into(), at) * (WIDTH - ASIDE - left)
    }

    /// 0 is always there: without it half a curve looks like a whole one.
    fn y(&self, balance: i128) -> f64 {
        GROUND - share(0, self.step * self.marks, balance) * (GROUND - TOP)
    }
}

/// The smallest of 1, 2, 5, 10, 20, … with which few marks reach the highest balance.
fn round_step(highest: i128) -> i128 {
    let mut power = 1;
    loop {
        for factor in [1, 2, 5] {
            if factor * power * MARKS >= highest {
                return factor * power;
            }
        }
        power *= 10;
    }
}

/// How far the value is from the first to the last, 0 to 1.
#[allow(
    clippy::cast_precision_loss,
    reason = "a drawing of a few hundred units shows no more than four digits"
)]
fn share(first: i128, last: i128, value: i128) -> f64 {
    match last - first {
        0 => 0.5,
        length => (value - first) as f64 / length as f64,
    }
}

/// The balances from the earliest moment to the latest, none of them negative; `before` is the balance before the first.
/// Nothing where there are none.
pub fn curve(before: i64, balances: &[(Timestamp, i64)]) -> Markup {
    let (Some(&(first, _)), Some(&(last, at_end))) = (balances.first(), balances.last()) else {
        return html! {};
    };
    let all = || balances.iter().map(|(_, balance)| *balance).chain([before]);
    let highest = all().max().unwrap_or(before);
    let lowest = all().min().unwrap_or(before);
    let scale = Scale::new(first, last, highest);
    let line = line(&scale, before, balances);
    let area = format!("{line}V{GROUND}H{:.1}Z", scale.left);
    let described = format!(
        "The balance from {} to {} UTC: {} before, {} at the end, at least {} and at most {}.",
        second(first),
        second(last),
        grouped(before.into()),
        grouped(at_end.into()),
        grouped(lowest.into()),
        grouped(highest.into()),
    );
    // Inside of an svg only what is closed is closed, even to a reader of HTML.
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(described) {
            path.area d=(area) {}
            @for mark in 0..=scale.marks {
                @let balance = mark * scale.step;
                @let y = scale.y(balance);
                path.mark d=(format!("M0 {y:.1}H{WIDTH}")) {}
                text x="0" y=(format!("{:.1}", y - 4.0)) { (grouped(balance)) }
            }
            path.line d=(line) {}
            circle cx=(WIDTH - 3.0) cy=(format!("{:.1}", scale.y(at_end.into()))) r="2.5" {}
            (dates(scale.left, first, last))
        }
    }
}

fn line(scale: &Scale, before: i64, balances: &[(Timestamp, i64)]) -> String {
    let mut line = format!("M{:.1} {:.1}", scale.left, scale.y(before.into()));
    for &(at, balance) in balances {
        write!(line, "H{:.1}V{:.1}", scale.x(at), scale.y(balance.into())).expect("a String takes all");
    }
    write!(line, "H{:.1}", WIDTH - 3.0).expect("a String takes all");
    line
}

/// As fine as needed to tell both ends from each other.
fn dates(left: f64, first: Timestamp, last: Timestamp) -> Markup {
    const SECOND: i64 = 1_000_000;
    const MINUTE: i64 = 60 * SECOND;
    const DAY: i64 = 24 * 60 * MINUTE;
    let length = last.unix_microseconds() - first.unix_microseconds();
    let write = match length {
        0 => second,
        1..SECOND => microsecond,
        SECOND..MINUTE => second,
        MINUTE..DAY => minute,
        _ => day,
    };
    let middle = Timestamp::nearest(first.unix_microseconds() + length / 2);
    html! {
        @if length == 0 {
            text.middle x=((left + WIDTH) / 2.0) y=(DATES) { (write(first)) }
        } @else {
            text x=(left) y=(DATES) { (write(first)) }
            @if length >= 4 * DAY {
                text.middle x=((left + WIDTH) / 2.0) y=(DATES) { (write(middle)) }
            }
            text.end x=(WIDTH) y=(DATES) { (write(last)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn a_scale_has_a_few_round_marks_and_reaches_the_highest_balance() {
        for (highest, step, marks) in [
            (0, 1, 1),
            (1, 1, 1),
            (5, 1, 5),
            (6, 2, 3),
            (99, 20, 5),
            (2_501, 1_000, 3),
            (i64::MAX, 2_000_000_000_000_000_000, 5),
        ] {
            let scale = Scale::new(Timestamp::MIN, Timestamp::MAX, highest);
            assert_eq!((scale.step, scale.marks), (step, marks), "{highest}");
        }
    }

    #[test]
    fn the_curve_is_a_step_at_each_operation_inside_of_the_drawing() {
        let (first, last) = (at("2026-01-01T00:00:00Z"), at("2026-01-03T00:00:00Z"));
        let balances = [(first, 100), (at("2026-01-02T00:00:00Z"), 50), (last, 0)];
        let scale = Scale::new(first, last, 100);
        assert_eq!(
            line(&scale, 0, &balances),
            "M21.6 158.0H35.6V18.0H190.8V88.0H346.0V158.0H357.0"
        );
        let ends = [(Timestamp::MIN, i64::MAX), (Timestamp::MAX, 0)];
        let drawn = curve(0, &ends).into_string();
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        for element in ["path", "circle", "text"] {
            let count = |tag: String| drawn.matches(&tag).count();
            assert_eq!(count(format!("<{element} ")), count(format!("</{element}>")), "{drawn}");
        }
        for label in ["0001-01-01", "9999-12-31", "8\u{2009}000\u{2009}000"] {
            assert!(drawn.contains(label), "{label}: {drawn}");
        }
    }

    #[test]
    fn dates_are_as_fine_as_the_ends_are_near() {
        let first = at("2026-01-31T12:00:00Z");
        for (last, label) in [
            ("2026-01-31T12:00:00Z", "2026-01-31 12:00:00<"),
            ("2026-01-31T12:00:00.000001Z", "2026-01-31 12:00:00.000001<"),
            ("2026-01-31T12:00:01Z", "2026-01-31 12:00:01<"),
            ("2026-01-31T12:01:00Z", "2026-01-31 12:01<"),
            ("2026-02-01T12:00:00Z", "2026-02-01<"),
            ("2028-01-31T12:00:00Z", "2027-01-31<"),
        ] {
            let drawn = dates(0.0, first, at(last)).into_string();
            assert!(drawn.contains(label), "{last}: {drawn}");
        }
    }
}
