//! Every single measurement, and what is made of several: medians, and medians of the ratios of each round.

use serde::Serialize;

use crate::arguments::RowName;
use crate::processor::Processor;

/// Who did the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Contender {
    /// `balance serve`.
    Service,
    /// The same HTTP stack without a store.
    Ceiling,
    /// A read and one conditional statement per request.
    Plain,
    /// PostgreSQL's own client.
    Pgbench,
}

impl Contender {
    /// Its name in tables and charts.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Service => "service",
            Contender::Ceiling => "ceiling",
            Contender::Plain => "plain",
            Contender::Pgbench => "pgbench",
        }
    }
}

/// What one run of a load came to. Latencies are in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    /// How long it took.
    pub seconds: f64,
    /// Requests that were answered, errors among them.
    pub requests: u64,
    /// Requests that were answered well, in a second.
    pub per_second: f64,
    /// Half of the requests took at most this.
    pub p50: Option<f64>,
    /// Nine of ten.
    pub p90: Option<f64>,
    /// 99 of a hundred.
    pub p99: Option<f64>,
    /// The slowest.
    pub max: Option<f64>,
    /// Answers other than 2xx, and requests without an answer.
    pub errors: u64,
    /// What a request cost the machine, in microseconds of processor time.
    pub processor: Option<Processor>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// The row of the table.
    pub row: RowName,
    /// What of it, where the row has several parts.
    pub detail: String,
    /// By whom.
    pub contender: Contender,
    /// Over how many connections.
    pub connections: u32,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What was measured.
    #[serde(flatten)]
    pub subject: Subject,
    /// In which round, from 1.
    pub round: u32,
    /// What it came to.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The most memory that a replica had resident under a row's load.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// The row.
    pub row: RowName,
    /// In bytes.
    pub bytes: u64,
}

/// Something that is wrong with what was stored or answered.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// In which row it was found.
    pub row: RowName,
    /// What is wrong.
    pub what: String,
}

/// All that was found out.
#[derive(Default, Serialize)]
pub struct Results {
    /// In the order of time.
    pub measurements: Vec<Measurement>,
    /// One for each replica and row.
    pub memory: Vec<Memory>,
    /// None, one hopes.
    pub faults: Vec<Fault>,
}

impl Subject {
    /// The whole of a row.
    pub fn of(row: RowName, contender: Contender, connections: u32) -> Self {
        Self {
            row,
            detail: String::new(),
            contender,
            connections,
        }
    }

    /// A part of a row.
    pub fn part(row: RowName, detail: &str, contender: Contender, connections: u32) -> Self {
        Self {
            detail: detail.to_owned(),
            ..Self::of(row, contender, connections)
        }
    }
}

impl Results {
    /// A figure of each round.
    pub fn each<T>(&self, subject: &Subject, figure: impl Fn(&Figures) -> Option<T>) -> Vec<T> {
        let of_subject = self.measurements.iter().filter(|one| one.subject == *subject);
        of_subject.filter_map(|one| figure(&one.figures)).collect()
    }

    /// The median of a figure over the rounds; `None` if it was not measured.
    pub fn median(&self, subject: &Subject, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        median(self.each(subject, figure))
    }

    /// Requests in a second.
    pub fn rate(&self, subject: &Subject) -> Option<f64> {
        self.median(subject, |figures| Some(figures.per_second))
    }

    /// The medians of the server's and of PostgreSQL's processor time of a request, in microseconds.
    pub fn processor(&self, subject: &Subject) -> Option<Processor> {
        Some(Processor {
            server: self.median(subject, |figures| figures.processor?.server),
            postgres: self.median(subject, |figures| Some(figures.processor?.postgres))?,
        })
    }

    /// The median of the rounds' ratios of a figure of one subject to that of another.
    pub fn ratio(&self, one: &Subject, other: &Subject, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        let (ones, others) = (self.each(one, &figure), self.each(other, &figure));
        median(ones.into_iter().zip(others).map(|(one, other)| one / other).collect())
    }

    /// How many requests of a row failed, of the service's alone.
    pub fn errors(&self, row: RowName) -> u64 {
        let of_row = self.measurements.iter().filter(|one| one.subject.row == row);
        let of_service = of_row.filter(|one| one.subject.contender == Contender::Service);
        of_service.map(|one| one.figures.errors).sum()
    }

    /// How many requests a contender answered well in a row.
    pub fn answered(&self, row: RowName, contender: Contender) -> u64 {
        let of_row = self.measurements.iter().filter(|one| one.subject.row == row);
        let of_contender = of_row.filter(|one| one.subject.contender == contender);
        of_contender
            .map(|one| one.figures.requests.saturating_sub(one.figures.errors))
            .sum()
    }

    /// Whether something was found wrong in a row.
    pub fn is_faulty(&self, row: RowName) -> bool {
        self.faults.iter().any(|fault| fault.row == row)
    }
}

/// The value in the middle, or between the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(
            *values.get(middle.checked_sub(1)?)?,
            *values.get(middle)?,
        )),
    }
}

/// The figures of requests that were sent one after the other, from their latencies in milliseconds.
pub fn sequential(mut latencies: Vec<f64>, errors: u64) -> Figures {
    latencies.sort_by(f64::total_cmp);
    let seconds = latencies.iter().sum::<f64>() / 1_000.0;
    let at = |percent: usize| latencies.get((latencies.len() * percent / 100).min(latencies.len().saturating_sub(1)));
    let requests = latencies.len() as u64;
    Figures {
        seconds,
        requests,
        per_second: (requests - errors) as f64 / seconds,
        p50: at(50).copied(),
        p90: at(90).copied(),
        p99: at(99).copied(),
        max: latencies.last().copied(),
        errors,
        processor: None,
    }
}
