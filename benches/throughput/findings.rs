//! What is to be reached, what was, and whether that is enough.

use serde::Serialize;

use crate::arguments::{RowName, Settings};
use crate::format::{mebibytes, milliseconds, rate, thousands};
use crate::idle;
use crate::latency::{self, Kind};
use crate::replicas;
use crate::results::{Contender, Figures, Results, Subject};
use crate::work::{LOAD_ROWS, LoadRow, Target, Work};

/// A change behind a long history may take so many times what a change in order takes.
const DEEP_TIMES: f64 = 100.0;
/// The memory that a replica may have resident.
const MEMORY: u64 = 64 * 1_024 * 1_024;
/// Where nothing more is asked than to be no worse, what rounds to 1.00 is no worse.
const EQUAL: f64 = 0.005;

/// Whether a target is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// It is.
    #[serde(rename = "reached")]
    Reached,
    /// It is not, or something failed on the way.
    #[serde(rename = "not reached")]
    NotReached,
    /// Nobody looked.
    #[serde(rename = "not measured")]
    NotMeasured,
}

/// A row of the table.
#[derive(Serialize)]
pub struct Finding {
    /// The work.
    pub work: String,
    /// What is to be reached.
    pub target: String,
    /// What was.
    pub measured: String,
    /// In absolute figures.
    pub figures: String,
    /// Processor time of a request: the replica's and PostgreSQL's.
    pub processor: String,
    /// Whether that is enough.
    pub verdict: Verdict,
}

impl Verdict {
    /// As it stands in the table.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Reached => "reached",
            Verdict::NotReached => "**not reached**",
            Verdict::NotMeasured => "not measured",
        }
    }

    fn of(reached: bool) -> Self {
        if reached { Verdict::Reached } else { Verdict::NotReached }
    }
}

impl Finding {
    fn new(work: String, target: &str) -> Self {
        Self {
            work,
            target: target.to_owned(),
            measured: "–".to_owned(),
            figures: "–".to_owned(),
            processor: "–".to_owned(),
            verdict: Verdict::NotMeasured,
        }
    }

    fn measured(self, measured: String, figures: String, reached: bool) -> Self {
        Self {
            measured,
            figures,
            verdict: Verdict::of(reached),
            ..self
        }
    }

    /// Adds what a request of the subject cost the machine.
    fn costing(mut self, results: &Results, subject: &Subject) -> Self {
        if let Some(processor) = results.processor(subject) {
            self.processor = processor.to_string();
        }
        self
    }

    /// Nothing is reached in a row in which requests failed or something wrong was found.
    fn unless_failed(mut self, results: &Results, row: RowName) -> Self {
        let errors = results.errors(row);
        if errors > 0 {
            self.figures += &format!("; {} requests failed", thousands(errors as f64));
        }
        if results.is_faulty(row) {
            self.figures += "; see the faults below";
        }
        if errors > 0 || results.is_faulty(row) {
            self.verdict = Verdict::NotReached;
        }
        self
    }
}

/// All rows of the table, those that were not measured too.
pub fn findings(results: &Results, settings: &Settings) -> Vec<Finding> {
    let mut findings: Vec<Finding> = LOAD_ROWS.iter().map(|row| load(results, settings, row)).collect();
    findings.push(deep(results, settings));
    findings.extend(idle::WORKS.map(|work| one_client(results, work)));
    findings.push(two_replicas(results, settings));
    findings.push(memory(results));
    findings
}

fn load(results: &Results, settings: &Settings, row: &LoadRow) -> Finding {
    let subject = |contender| Subject::of(row.name, contender, settings.most_connections());
    let service = subject(Contender::Service);
    let targets: Vec<String> = row.targets.iter().map(|target| target.text()).collect();
    let finding = Finding::new(row.work.title(&settings.sizes), &targets.join(", and ")).costing(results, &service);
    let outcomes: Vec<(String, bool)> = row
        .targets
        .iter()
        .filter_map(|target| target.outcome(results, &service))
        .collect();
    if outcomes.len() < row.targets.len() {
        return finding.unless_failed(results, row.name);
    }
    let reached = outcomes.iter().all(|(_, reached)| *reached);
    let measured: Vec<String> = outcomes.into_iter().map(|(text, _)| text).collect();
    let contenders = [
        Contender::Service,
        Contender::Ceiling,
        Contender::Plain,
        Contender::Pgbench,
    ];
    let rates = contenders.into_iter().filter_map(|contender| {
        let per_second = results.rate(&subject(contender))?;
        Some(format!("{} {}", contender.name(), rate(per_second)))
    });
    let mut figures: Vec<String> = rates.collect();
    figures.extend(latencies(results, &service));
    finding
        .measured(measured.join(", "), figures.join("; "), reached)
        .unless_failed(results, row.name)
}

impl Target {
    fn text(&self) -> String {
        match *self {
            Target::Times(times, Contender::Ceiling) => format!("{times:.2} of ceiling"),
            Target::Times(times, contender) => format!("{times:.0} × {}", contender.name()),
            Target::P99Below(limit) => format!("p99 under {limit:.0} ms"),
        }
    }

    /// What was measured, and whether it is enough; `None` if it was not.
    fn outcome(&self, results: &Results, service: &Subject) -> Option<(String, bool)> {
        match *self {
            Target::Times(wanted, contender) => {
                let other = Subject {
                    contender,
                    ..service.clone()
                };
                let ratio = results.ratio(service, &other, |figures| Some(figures.per_second))?;
                let text = match contender {
                    Contender::Ceiling => format!("{ratio:.2}"),
                    _ => format!("{ratio:.1} × {}", contender.name()),
                };
                Some((text, ratio >= wanted))
            }
            Target::P99Below(limit) => {
                let p99 = results.median(service, |figures| figures.p99)?;
                Some((format!("p99 {}", milliseconds(p99)), p99 < limit))
            }
        }
    }
}

fn latencies(results: &Results, subject: &Subject) -> Option<String> {
    let median = |figure: fn(&Figures) -> Option<f64>| results.median(subject, figure).map(milliseconds);
    let (p50, p99) = (median(|figures| figures.p50)?, median(|figures| figures.p99)?);
    Some(format!("p50 {p50}, p99 {p99}"))
}

fn deep(results: &Results, settings: &Settings) -> Finding {
    let length = settings.sizes.longest();
    let work = format!(
        "change backdated behind {} later operations of the user",
        thousands(f64::from(length))
    );
    let finding = Finding::new(work, "under 100 × a change in order");
    let subject = |kind| latency::subject(RowName::Deep, kind, length);
    let (deep, in_order) = (subject(Kind::BeforeAll), subject(Kind::InOrder));
    let finding = finding.costing(results, &deep);
    let Some(ratio) = results.ratio(&deep, &in_order, |figures| figures.p50) else {
        return finding.unless_failed(results, RowName::Deep);
    };
    let figures = [("behind all", &deep), ("in order", &in_order)].map(|(name, subject)| {
        let latencies = latencies(results, subject).unwrap_or_default();
        format!("{name} {latencies}")
    });
    finding
        .measured(format!("{ratio:.0} ×"), figures.join("; "), ratio < DEEP_TIMES)
        .unless_failed(results, RowName::Deep)
}

fn one_client(results: &Results, work: Work) -> Finding {
    let title = format!("one client, idle service: latency of {}", work.short());
    let finding = Finding::new(title, "not above plain");
    let [service, plain] = [Contender::Service, Contender::Plain].map(|contender| idle::subject(work, contender));
    let finding = finding.costing(results, &service);
    let Some(ratio) = results.ratio(&service, &plain, |figures| figures.p50) else {
        return finding.unless_failed(results, RowName::OneClient);
    };
    let figures = [("service", &service), ("plain", &plain)].map(|(name, subject)| {
        let latencies = latencies(results, subject).unwrap_or_default();
        format!("{name} {latencies}")
    });
    finding
        .measured(format!("{ratio:.2} of plain"), figures.join("; "), ratio < 1.0 + EQUAL)
        .unless_failed(results, RowName::OneClient)
}

fn two_replicas(results: &Results, settings: &Settings) -> Finding {
    let work = "two replicas on one hot user".to_owned();
    let finding = Finding::new(work, "no slower than one replica, no answer lost to conflicts");
    let [one, two] = replicas::PARTS.map(|part| replicas::subject(part, settings));
    let finding = finding.costing(results, &two);
    let Some(ratio) = results.ratio(&two, &one, |figures| Some(figures.per_second)) else {
        return finding.unless_failed(results, RowName::TwoReplicas);
    };
    let lost: u64 = results.each(&two, |figures| Some(figures.errors)).iter().sum();
    let figures = [("two", &two), ("one", &one)].map(|(name, subject)| {
        let per_second = results.rate(subject).unwrap_or_default();
        let latencies = latencies(results, subject).unwrap_or_default();
        format!("{name} {}, {latencies}", rate(per_second))
    });
    let measured = format!("{ratio:.2} of one, {lost} lost");
    finding
        .measured(measured, figures.join("; "), ratio > 1.0 - EQUAL)
        .unless_failed(results, RowName::TwoReplicas)
}

fn memory(results: &Results) -> Finding {
    let work = "memory of a replica under each of these loads".to_owned();
    let finding = Finding::new(work, "under 64 MiB resident");
    let Some(most) = results.memory.iter().max_by_key(|memory| memory.bytes) else {
        return finding;
    };
    let least = results
        .memory
        .iter()
        .map(|memory| memory.bytes)
        .min()
        .unwrap_or_default();
    let measured = format!("at most {}", mebibytes(most.bytes));
    let figures = format!("from {}; most in {}", mebibytes(least), most.row.name());
    finding.measured(measured, figures, most.bytes < MEMORY)
}
