//! What one request takes against the length of its user's history, on one connection: a change behind all of a long
//! history, and the growth with its length.

use std::time::{Duration, SystemTime};

use balance::domain::Timestamp;

use crate::Outcome;
use crate::arguments::{RowName, Settings};
use crate::bench::Bench;
use crate::client::Client;
use crate::data::{Users, verify_stored};
use crate::results::{Contender, Figures, Subject, sequential};

/// How many requests make a measurement.
const REQUESTS: usize = 300;
const REQUESTS_QUICK: usize = 60;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A balance now.
    ReadNow,
    /// A balance at a random moment of the history.
    ReadPast,
    /// A change now.
    InOrder,
    /// A change at a random moment of the history.
    Backdated,
    /// A change before all of the history.
    BeforeAll,
}

/// What growth is shown for. Reads come first: changes unsettle what reads of the past look at.
pub const GROWTH: [Kind; 4] = [Kind::ReadNow, Kind::ReadPast, Kind::InOrder, Kind::Backdated];

/// What is compared behind the longest history.
pub const DEEP: [Kind; 2] = [Kind::InOrder, Kind::BeforeAll];

/// The moments that a seed draws.
struct Draws(u64);

impl Kind {
    /// Its name in tables and charts.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ReadNow => "read now",
            Kind::ReadPast => "read in the past",
            Kind::InOrder => "change in order",
            Kind::Backdated => "backdated change",
            Kind::BeforeAll => "change before all of the history",
        }
    }
}

impl Draws {
    /// A number below 1 (splitmix64).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A part of a row.
pub fn subject(row: RowName, kind: Kind, length: u32) -> Subject {
    let detail = format!("{}, {length} operations", kind.name());
    Subject::part(row, &detail, Contender::Service, 1)
}

/// How many measurements a row takes.
pub fn steps(settings: &Settings, row: RowName) -> usize {
    parts(settings, row).len() * settings.rounds as usize
}

fn parts(settings: &Settings, row: RowName) -> Vec<(Kind, u32)> {
    let (kinds, lengths) = match row {
        RowName::Growth => (&GROWTH[..], settings.sizes.lengths.clone()),
        _ => (&DEEP[..], vec![settings.sizes.longest()]),
    };
    let of_length = |length| kinds.iter().map(move |kind| (*kind, length));
    lengths.into_iter().flat_map(of_length).collect()
}

/// Measures a row.
///
/// # Errors
///
/// If the service fails.
pub async fn measure(bench: &mut Bench<'_>, row: RowName) -> Outcome<()> {
    bench.databases.checkpoint().await?;
    let service = bench.start_service(&[]).await?;
    let before = verify_stored(&bench.service_database, Users::Long).await?;
    let mut client = Client::connect(service.address).await?;
    let mut changes = 0;
    for round in 1..=bench.settings.rounds {
        for (kind, length) in parts(&bench.settings, row) {
            let subject = subject(row, kind, length);
            bench.begin("long history", &subject);
            let meter = bench.meter(&[&service]);
            let mut figures = requests(bench, &mut client, kind, length, round).await?;
            figures.processor = meter.per_request(figures.requests);
            if !matches!(kind, Kind::ReadNow | Kind::ReadPast) {
                changes += figures.requests - figures.errors;
            }
            bench.finish(subject, round, figures);
        }
    }
    bench.note_memory(row, &service);
    // Its keep-alive connection would be waited for.
    drop(client);
    service.stop().await?;
    bench.remove_operations_logs()?;
    let database = bench.service_database.clone();
    bench.check_stored(row, &database, Users::Long, before + changes).await
}

async fn requests(bench: &Bench<'_>, client: &mut Client, kind: Kind, length: u32, round: u32) -> Outcome<Figures> {
    let user = Users::long(length);
    let (begin, end) = bench.loaded.long_history(length);
    let history = end.duration_since(begin)?;
    let mut draws = Draws(u64::from(round));
    let requests = if bench.settings.quick { REQUESTS_QUICK } else { REQUESTS };
    let mut latencies = Vec::with_capacity(requests);
    let mut errors = 0;
    for number in 0..=requests {
        let past = Timestamp::from(begin + history.mul_f64(draws.next()));
        let answer = match kind {
            Kind::ReadNow => client.get(&format!("/{user}/balance")).await?,
            Kind::ReadPast => client.get(&format!("/{user}/balance?timestamp={past}")).await?,
            Kind::InOrder => client.change(&user, Timestamp::from(SystemTime::now())).await?,
            Kind::Backdated => client.change(&user, past).await?,
            Kind::BeforeAll => {
                let before = begin - Duration::from_secs(1) - history.mul_f64(draws.next());
                client.change(&user, Timestamp::from(before)).await?
            }
        };
        // The first one finds the connection, or the user's pages, cold.
        if number > 0 {
            latencies.push(answer.latency.as_secs_f64() * 1_000.0);
            errors += u64::from(answer.status != 200);
        }
    }
    Ok(sequential(latencies, errors))
}
