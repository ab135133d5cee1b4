//! The results in words and tables: Markdown for people, JSON for whoever wants every figure.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::Outcome;
use crate::arguments::{Settings, Sizes};
use crate::findings::{Finding, findings};
use crate::format::{mebibytes, milliseconds, rate, thousands};
use crate::growth_chart;
use crate::latency::GROWTH;
use crate::log_cost::{self, WAYS};
use crate::machine::Environment;
use crate::processor::Processor;
use crate::results::{Contender, Results, Subject};
use crate::throughput_chart;
use crate::work::{LOAD_ROWS, LoadRow};

/// Everything, as it stands in the JSON file.
#[derive(Serialize)]
struct Everything<'a> {
    environment: &'a Environment,
    quick: bool,
    rounds: u32,
    seconds: u32,
    sizes: &'a Sizes,
    service_variables: &'a [(String, String)],
    findings: &'a [Finding],
    #[serde(flatten)]
    results: &'a Results,
}

/// Writes all files into the output directory; gives back what is printed.
///
/// # Errors
///
/// What the operating system said.
pub fn write(settings: &Settings, environment: &Environment, results: &Results) -> Outcome<String> {
    let findings = findings(results, settings);
    let everything = Everything {
        environment,
        quick: settings.quick,
        rounds: settings.rounds,
        seconds: settings.seconds,
        sizes: &settings.sizes,
        service_variables: &settings.variables,
        findings: &findings,
        results,
    };
    let text = markdown(settings, environment, results, &findings)?;
    let directory: &Path = &settings.output;
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("throughput.md"), &text)?;
    std::fs::write(
        directory.join("throughput.json"),
        serde_json::to_string_pretty(&everything)?,
    )?;
    // A chart of nothing is not written, and an old one not left beside other figures.
    for (name, chart) in [
        ("throughput.svg", throughput_chart::chart(results, settings)),
        ("growth.svg", growth_chart::chart(results, settings)),
    ] {
        let path = directory.join(name);
        match chart {
            Some(chart) => std::fs::write(path, chart)?,
            None if path.exists() => std::fs::remove_file(path)?,
            None => {}
        }
    }
    Ok(text)
}

fn markdown(
    settings: &Settings,
    environment: &Environment,
    results: &Results,
    findings: &[Finding],
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    header(&mut text, settings, environment)?;
    targets(&mut text, findings)?;
    faults(&mut text, results)?;
    processor(&mut text, settings, results)?;
    by_connections(&mut text, settings, results)?;
    log_costs(&mut text, settings, results)?;
    growth(&mut text, settings, results)?;
    memory(&mut text, results)?;
    Ok(text)
}

fn header(text: &mut String, settings: &Settings, environment: &Environment) -> std::fmt::Result {
    let Environment {
        date,
        commit,
        cpu,
        cores,
        memory,
        kernel,
        load,
        postgres,
        ..
    } = environment;
    writeln!(
        text,
        "{date}, commit {commit}. {cpu}, {cores} cores, {memory}, {kernel}, load {load} before the run. \
         PostgreSQL {postgres}:"
    )?;
    writeln!(text, "{}.", assignments(&environment.settings))?;
    let rounds = settings.rounds;
    writeln!(
        text,
        "Service, PostgreSQL and load generator share the machine; {} keep-alive connections, {rounds} {} of {} s, {}.",
        settings.most_connections(),
        if rounds == 1 { "round" } else { "rounds" },
        settings.seconds,
        if rounds == 1 { "no medians" } else { "medians" },
    )?;
    if settings.quick {
        writeln!(
            text,
            "A quick run: less data, one short round, and figures that are rough."
        )?;
    }
    if !settings.variables.is_empty() {
        writeln!(text, "The service ran with {}.", assignments(&settings.variables))?;
    }
    writeln!(text)
}

fn assignments(pairs: &[(String, String)]) -> String {
    let each = pairs.iter().map(|(name, value)| format!("`{name}={value}`"));
    each.collect::<Vec<_>>().join(", ")
}

fn targets(text: &mut String, findings: &[Finding]) -> std::fmt::Result {
    writeln!(
        text,
        "| work | to reach | measured | verdict | absolute | processor a request: replica + PostgreSQL |\n\
         |---|---|---|---|---|---|"
    )?;
    for finding in findings {
        let Finding {
            work,
            target,
            measured,
            figures,
            processor,
            verdict,
        } = finding;
        writeln!(
            text,
            "| {work} | {target} | {measured} | {} | {figures} | {processor} |",
            verdict.text()
        )?;
    }
    writeln!(text)
}

fn faults(text: &mut String, results: &Results) -> std::fmt::Result {
    if results.faults.is_empty() {
        return Ok(());
    }
    writeln!(text, "Faults:\n")?;
    for fault in &results.faults {
        writeln!(text, "- {}: {}", fault.row.name(), fault.what)?;
    }
    writeln!(text)
}

/// What a request costs each contender.
fn processor(text: &mut String, settings: &Settings, results: &Results) -> std::fmt::Result {
    let contenders = [
        Contender::Service,
        Contender::Ceiling,
        Contender::Plain,
        Contender::Pgbench,
    ];
    let costs = |row: &LoadRow| {
        contenders.map(|contender| results.processor(&Subject::of(row.name, contender, settings.most_connections())))
    };
    let rows: Vec<_> = LOAD_ROWS.iter().map(|row| (row, costs(row))).collect();
    let measured = |(_, costs): &&(&LoadRow, [Option<Processor>; 4])| costs.iter().any(Option::is_some);
    if !rows.iter().any(|row| measured(&row)) {
        return Ok(());
    }
    let names = contenders.map(Contender::name).join(" | ");
    writeln!(
        text,
        "Processor time of a request, user and system: the server's + PostgreSQL's.\n"
    )?;
    writeln!(text, "| | {names} |\n|---|---|---|---|---|")?;
    for (row, costs) in rows.iter().filter(measured) {
        let cells = costs.map(|cost| cost.map_or_else(|| "–".to_owned(), |cost| cost.to_string()));
        writeln!(text, "| {} | {} |", row.work.short(), cells.join(" | "))?;
    }
    writeln!(text)
}

/// The service at each number of connections, and what part of the ceiling that is.
fn by_connections(text: &mut String, settings: &Settings, results: &Results) -> std::fmt::Result {
    if settings.connections.len() < 2 || !LOAD_ROWS.iter().any(|row| settings.wants(row.name)) {
        return Ok(());
    }
    write!(text, "| service, and its part of the ceiling |")?;
    for connections in &settings.connections {
        write!(text, " {connections} |")?;
    }
    writeln!(text, "\n|---|{}", "---|".repeat(settings.connections.len()))?;
    for row in LOAD_ROWS.iter().filter(|row| settings.wants(row.name)) {
        write!(text, "| {} |", row.work.short())?;
        for connections in &settings.connections {
            let [service, ceiling] = [Contender::Service, Contender::Ceiling]
                .map(|contender| Subject::of(row.name, contender, *connections));
            let ratio = results.ratio(&service, &ceiling, |figures| Some(figures.per_second));
            let p99 = results.median(&service, |figures| figures.p99);
            match (results.rate(&service), ratio, p99) {
                (Some(per_second), Some(ratio), Some(p99)) => {
                    write!(text, " {}, {ratio:.2}, p99 {} |", rate(per_second), milliseconds(p99))?;
                }
                _ => write!(text, " – |")?,
            }
        }
        writeln!(text)?;
    }
    writeln!(text)
}

fn log_costs(text: &mut String, settings: &Settings, results: &Results) -> std::fmt::Result {
    let subject = |work, way| log_cost::subject(work, way, settings);
    let [first, ..] = log_cost::WORKS;
    if results.rate(&subject(first, WAYS[0])).is_none() {
        return Ok(());
    }
    writeln!(text, "What the operations log costs:\n\n| | {} |", WAYS.join(" | "))?;
    writeln!(text, "|---|---|---|---|")?;
    for work in log_cost::WORKS {
        write!(text, "| {} |", work.short())?;
        for way in WAYS {
            let part = subject(work, way);
            let ratio = results.ratio(&part, &subject(work, WAYS[0]), |figures| Some(figures.per_second));
            match (results.rate(&part), ratio) {
                (Some(per_second), Some(ratio)) => write!(text, " {} ({ratio:.2}) |", rate(per_second))?,
                _ => write!(text, " – |")?,
            }
        }
        writeln!(text)?;
    }
    writeln!(text)
}

fn growth(text: &mut String, settings: &Settings, results: &Results) -> std::fmt::Result {
    let lengths = &settings.sizes.lengths;
    let points: Vec<_> = GROWTH
        .into_iter()
        .map(|kind| (kind, growth_chart::points(results, settings, kind)))
        .collect();
    if points.iter().all(|(_, points)| points.is_empty()) {
        return Ok(());
    }
    let columns: Vec<String> = lengths.iter().map(|length| thousands(f64::from(*length))).collect();
    writeln!(
        text,
        "| latency (p50) by operations of the user | {} | |",
        columns.join(" | ")
    )?;
    writeln!(text, "|---|{}---|", "---|".repeat(lengths.len()))?;
    for (kind, points) in &points {
        let cells: Vec<String> = points.iter().map(|(_, p50)| milliseconds(*p50)).collect();
        let slope = growth_chart::slope(*kind, points).map(|slope| format!("{slope:+.1} ms per million"));
        writeln!(
            text,
            "| {} | {} | {} |",
            kind.name(),
            cells.join(" | "),
            slope.unwrap_or_default()
        )?;
    }
    writeln!(text)
}

fn memory(text: &mut String, results: &Results) -> std::fmt::Result {
    if results.memory.is_empty() {
        return Ok(());
    }
    let each: Vec<String> = results
        .memory
        .iter()
        .map(|memory| format!("{} {}", memory.row.name(), mebibytes(memory.bytes)))
        .collect();
    writeln!(text, "Most memory resident, of each replica: {}.", each.join(", "))
}
