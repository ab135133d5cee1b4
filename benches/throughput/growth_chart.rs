//! The chart of growth: latency against the length of a history.

use crate::arguments::{RowName, Settings};
use crate::format::{milliseconds, thousands};
use crate::latency::{self, GROWTH, Kind};
use crate::results::Results;
use crate::svg::{COLOURS, FAINT, Svg};

/// Where the plot lies.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 400.0;
/// The least distance between two labels at the ends of lines.
const LABEL_DISTANCE: f64 = 34.0;

/// The median latency at each length of history.
pub fn points(results: &Results, settings: &Settings, kind: Kind) -> Vec<(f64, f64)> {
    let point = |length: &u32| {
        let subject = latency::subject(RowName::Growth, kind, *length);
        let p50 = results.median(&subject, |figures| figures.p50)?;
        Some((f64::from(*length), p50))
    };
    settings.sizes.lengths.iter().filter_map(point).collect()
}

/// How many milliseconds a million operations add, from the shortest history to the longest; of the others, which are
/// flat, it would tell the noise.
pub fn slope(kind: Kind, points: &[(f64, f64)]) -> Option<f64> {
    if kind != Kind::Backdated {
        return None;
    }
    let ((first, from), (last, to)) = (*points.first()?, *points.last()?);
    (last > first).then(|| (to - from) / (last - first) * 1e6)
}

/// Where lengths and latencies lie, both on logarithmic scales.
struct Plot {
    /// Powers of ten.
    lengths: (f64, f64),
    /// Whole powers of ten.
    values: (f64, f64),
}

impl Plot {
    /// Large enough for all points; `None` if there is nothing to draw.
    fn around(series: &[(Kind, Vec<(f64, f64)>)], lengths: &[u32]) -> Option<Self> {
        let values = || series.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
        let lowest = values().fold(f64::INFINITY, f64::min).log10().floor();
        let highest = values().fold(f64::NEG_INFINITY, f64::max).log10().ceil();
        let power = |length: &u32| f64::from(*length).log10();
        let (first, last) = (power(lengths.first()?), power(lengths.last()?));
        (highest > lowest && last > first).then_some(Self {
            lengths: (first, last),
            values: (lowest, highest),
        })
    }

    fn x(&self, length: f64) -> f64 {
        let (first, last) = self.lengths;
        LEFT + (length.log10() - first) / (last - first) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        let (lowest, highest) = self.values;
        BOTTOM - (value.log10() - lowest) / (highest - lowest) * (BOTTOM - TOP)
    }

    fn grid(&self, svg: &mut Svg, lengths: &[u32]) {
        let mut power = self.values.0;
        while power <= self.values.1 {
            let value = 10_f64.powf(power);
            svg.line((LEFT, self.y(value)), (RIGHT, self.y(value)), FAINT, 1.0);
            svg.text(LEFT - 10.0, self.y(value) + 4.0, "end", 12, &decade_label(value));
            power += 1.0;
        }
        for length in lengths.iter().map(|length| f64::from(*length)) {
            svg.line((self.x(length), TOP), (self.x(length), BOTTOM), FAINT, 1.0);
            svg.text(self.x(length), BOTTOM + 20.0, "middle", 12, &thousands(length));
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        svg.text(middle, BOTTOM + 42.0, "middle", 13, "operations of the user");
    }
}

/// Latency against length of history.
pub fn chart(results: &Results, settings: &Settings) -> Option<String> {
    let series: Vec<_> = GROWTH
        .into_iter()
        .map(|kind| (kind, points(results, settings, kind)))
        .filter(|(_, points)| points.len() > 1)
        .collect();
    let lengths = &settings.sizes.lengths;
    let plot = Plot::around(&series, lengths)?;
    let title = "Latency of one request (p50) by operations of the user before it";
    let mut svg = Svg::new(BOTTOM + 56.0, title);
    plot.grid(&mut svg, lengths);
    let mut ends = Vec::new();
    for ((kind, points), colour) in series.iter().zip(COLOURS) {
        let places: Vec<_> = points
            .iter()
            .map(|(length, value)| (plot.x(*length), plot.y(*value)))
            .collect();
        for pair in places.windows(2) {
            svg.line(pair[0], pair[1], colour, 2.5);
        }
        for (x, y) in &places {
            svg.push(format_args!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{colour}"/>"#
            ));
        }
        ends.push(End {
            y: places.last()?.1,
            kind: *kind,
            points,
            colour,
        });
    }
    labels(&mut svg, ends);
    Some(svg.finish())
}

fn decade_label(value: f64) -> String {
    if value < 1.0 {
        format!("{value} ms")
    } else {
        format!("{value:.0} ms")
    }
}

/// Where a line ends.
struct End<'a> {
    y: f64,
    kind: Kind,
    points: &'a [(f64, f64)],
    colour: &'static str,
}

/// Names and slopes at the ends of the lines, moved apart where lines end close to each other.
fn labels(svg: &mut Svg, mut ends: Vec<End<'_>>) {
    ends.sort_by(|one, other| one.y.total_cmp(&other.y));
    let room = ends.len() as f64 * LABEL_DISTANCE;
    let mut free = f64::NEG_INFINITY;
    for (index, end) in ends.into_iter().enumerate() {
        // No lower than leaves room for the labels that follow.
        let lowest = BOTTOM - room + (index as f64 + 1.0) * LABEL_DISTANCE - 14.0;
        let y = end.y.min(lowest).max(free);
        free = y + LABEL_DISTANCE;
        svg.line((RIGHT + 6.0, end.y), (RIGHT + 24.0, y), end.colour, 1.5);
        svg.text(RIGHT + 30.0, y + 2.0, "start", 13, end.kind.name());
        let last = end.points.last().map_or(0.0, |(_, value)| *value);
        let figures = match slope(end.kind, end.points) {
            Some(slope) => format!("{}; {slope:+.1} ms per million", milliseconds(last)),
            None => milliseconds(last),
        };
        svg.text(RIGHT + 30.0, y + 17.0, "start", 12, &figures);
    }
}
