//! The chart of throughput: bars of each row's contenders.

use crate::arguments::Settings;
use crate::format::rate;
use crate::results::{Contender, Results, Subject};
use crate::svg::{COLOURS, FAINT, Svg, TEXT};
use crate::work::{LOAD_ROWS, LoadRow, Target};

/// Where the bars begin and end, how high they are, and the space between groups.
const LEFT: f64 = 170.0;
const RIGHT: f64 = 790.0;
const TOP: f64 = 74.0;
const BAR: f64 = 16.0;
const GAP: f64 = 16.0;

const CONTENDERS: [Contender; 4] = [
    Contender::Service,
    Contender::Ceiling,
    Contender::Plain,
    Contender::Pgbench,
];

/// Requests in a second of each row and contender, with a mark where the target is.
pub fn chart(results: &Results, settings: &Settings) -> Option<String> {
    let connections = settings.most_connections();
    let rates_of = |row: &LoadRow| -> Vec<(Contender, f64)> {
        let rate = |contender| Some((contender, results.rate(&Subject::of(row.name, contender, connections))?));
        CONTENDERS.into_iter().filter_map(rate).collect()
    };
    let groups: Vec<_> = LOAD_ROWS.iter().map(|row| (row, rates_of(row))).collect();
    let groups: Vec<_> = groups.into_iter().filter(|(_, rates)| !rates.is_empty()).collect();
    let bars: usize = groups.iter().map(|(_, rates)| rates.len()).sum();
    let most = groups.iter().flat_map(|(_, rates)| rates).map(|(_, rate)| *rate);
    let most = most.fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let height = TOP + bars as f64 * BAR + groups.len() as f64 * GAP + 8.0;
    let mut svg = Svg::new(height, &format!("Requests per second, {connections} connections"));
    legend(&mut svg);
    let scale = (RIGHT - LEFT) / most;
    let mut y = TOP;
    for (row, rates) in groups {
        let middle = y + rates.len() as f64 * BAR / 2.0;
        svg.text(LEFT - 10.0, middle + 4.0, "end", 13, &row.work.short());
        group(&mut svg, row, &rates, y, scale);
        y += rates.len() as f64 * BAR + GAP;
    }
    Some(svg.finish())
}

fn legend(svg: &mut Svg) {
    let mut x = LEFT;
    for (contender, colour) in CONTENDERS.into_iter().zip(COLOURS) {
        svg.rectangle(x, 44.0, 12.0, 12.0, colour);
        svg.text(x + 18.0, 55.0, "start", 13, contender.name());
        x += 100.0;
    }
    svg.line((x + 6.0, 42.0), (x + 6.0, 58.0), TEXT, 2.0);
    svg.text(x + 18.0, 55.0, "start", 13, "target, as a part of the ceiling");
}

fn group(svg: &mut Svg, row: &LoadRow, rates: &[(Contender, f64)], top: f64, scale: f64) {
    let ceiling = rates.iter().find(|(contender, _)| *contender == Contender::Ceiling);
    let target = row.targets.iter().find_map(|target| match target {
        Target::Times(times, Contender::Ceiling) => Some(LEFT + times * ceiling?.1 * scale),
        _ => None,
    });
    for (index, (contender, per_second)) in rates.iter().enumerate() {
        let y = top + index as f64 * BAR;
        let colour = CONTENDERS.into_iter().zip(COLOURS).find(|(one, _)| one == contender);
        let width = (per_second * scale).max(1.0);
        svg.rectangle(LEFT, y, width, BAR - 2.0, colour.map_or(FAINT, |(_, colour)| colour));
        let mut end = LEFT + width;
        if *contender == Contender::Service
            && let Some(target) = target
        {
            svg.line((target, y - 3.0), (target, y + BAR + 1.0), TEXT, 2.0);
            // The figure stands clear of the mark.
            if (end..end + 70.0).contains(&target) {
                end = target;
            }
        }
        svg.text(end + 6.0, y + 11.0, "start", 12, &rate(*per_second));
    }
}
