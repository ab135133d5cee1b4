//! Two replicas that change the balance of one hot user at the same time, beside one replica under the same load.

use crate::Outcome;
use crate::arguments::{RowName, Settings};
use crate::bench::Bench;
use crate::data::{Users, verify_stored};
use crate::process::Server;
use crate::results::{Contender, Figures, Subject};
use crate::work::Work;

/// How many replicas there are in each part of the row.
pub const PARTS: [&str; 2] = ["one replica", "two replicas"];

/// A part of the row.
pub fn subject(part: &str, settings: &Settings) -> Subject {
    let connections = settings.most_connections();
    Subject::part(RowName::TwoReplicas, part, Contender::Service, connections)
}

/// How many measurements this takes.
pub fn steps(settings: &Settings) -> usize {
    PARTS.len() * settings.rounds as usize
}

/// Measures the row.
///
/// # Errors
///
/// If a replica or the load generator fails.
pub async fn measure(bench: &mut Bench<'_>) -> Outcome<()> {
    bench.databases.checkpoint().await?;
    let first = bench.start_service(&[]).await?;
    let log = bench.operations_log("replica-2");
    let variables = [("INSTANCE", "replica-2"), ("OPERATIONS_LOG", &log)];
    let second = bench.start_service(&variables).await?;
    let before = verify_stored(&bench.service_database, Users::Hot).await?;
    load(bench, &first, &second, 1).await?;
    for round in 1..=bench.settings.rounds {
        let mut parts = PARTS.map(|part| (part, if part == PARTS[0] { &first } else { &second }));
        parts.rotate_left((round as usize - 1) % PARTS.len());
        for (part, other) in parts {
            let subject = subject(part, &bench.settings);
            bench.begin("one hot user", &subject);
            let seconds = bench.settings.seconds;
            let figures = load(bench, &first, other, seconds).await?;
            bench.finish(subject, round, figures);
        }
    }
    for replica in [&first, &second] {
        bench.note_memory(RowName::TwoReplicas, replica);
    }
    first.stop().await?;
    second.stop().await?;
    bench.remove_operations_logs()?;
    let expected = before + bench.results.answered(RowName::TwoReplicas, Contender::Service);
    let database = bench.service_database.clone();
    bench
        .check_stored(RowName::TwoReplicas, &database, Users::Hot, expected)
        .await
}

/// The same load in both parts: two generators with half of the connections each.
async fn load(bench: &mut Bench<'_>, one: &Server, other: &Server, seconds: u32) -> Outcome<Figures> {
    let user = bench.next_hot_user();
    let half = (bench.settings.most_connections() / 2).max(1);
    let load = |seed| Work::Hot.load(&bench.settings.sizes, &bench.loaded, user.clone(), seed);
    let (ones, others) = (load(1)?, load(2)?);
    let both = [one, other];
    let replicas = if one.address == other.address {
        &both[..1]
    } else {
        &both[..]
    };
    let meter = bench.meter(replicas);
    let (ones, others) = tokio::try_join!(
        bench.wrk.run(one.address, half, seconds, &ones),
        bench.wrk.run(other.address, half, seconds, &others)
    )?;
    let mut figures = together(ones, others);
    figures.processor = meter.per_request(figures.requests);
    Ok(figures)
}

/// Rates add up; of latencies the worse is taken.
fn together(one: Figures, other: Figures) -> Figures {
    let worse = |one: Option<f64>, other: Option<f64>| Some(one?.max(other?));
    Figures {
        seconds: one.seconds.max(other.seconds),
        requests: one.requests + other.requests,
        per_second: one.per_second + other.per_second,
        p50: worse(one.p50, other.p50),
        p90: worse(one.p90, other.p90),
        p99: worse(one.p99, other.p99),
        max: worse(one.max, other.max),
        errors: one.errors + other.errors,
        processor: None,
    }
}
