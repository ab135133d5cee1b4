//! What the operations log costs: the same loads with the log as it is, never forced to the disk, and thrown away.

use crate::Outcome;
use crate::arguments::{RowName, Settings};
use crate::bench::Bench;
use crate::results::{Contender, Subject};
use crate::work::Work;

/// The loads.
pub const WORKS: [Work; 2] = [Work::ReadNow, Work::Change];

/// What is done with the log: the first is how all other rows are measured.
pub const WAYS: [&str; 3] = ["log as it is", "OPERATIONS_LOG_SYNC=never", "OPERATIONS_LOG=/dev/null"];

/// A part of the row.
pub fn subject(work: Work, way: &str, settings: &Settings) -> Subject {
    let detail = format!("{}, {way}", work.short());
    Subject::part(RowName::Log, &detail, Contender::Service, settings.most_connections())
}

/// How many measurements this takes.
pub fn steps(settings: &Settings) -> usize {
    WORKS.len() * WAYS.len() * settings.rounds as usize
}

/// Measures the row.
///
/// # Errors
///
/// If the service or the load generator fails.
pub async fn measure(bench: &mut Bench<'_>) -> Outcome<()> {
    bench.databases.checkpoint().await?;
    let never = bench.operations_log("never");
    let [as_it_is, never, thrown_away] = [
        bench.start_service(&[]).await?,
        bench
            .start_service(&[("OPERATIONS_LOG_SYNC", "never"), ("OPERATIONS_LOG", &never)])
            .await?,
        bench.start_service(&[("OPERATIONS_LOG", "/dev/null")]).await?,
    ];
    let servers = [&as_it_is, &never, &thrown_away];
    let connections = bench.settings.most_connections();
    for work in WORKS {
        if !bench.settings.quick {
            for server in servers {
                bench.load(work, server, connections, 1, 0).await?;
            }
        }
        for round in 1..=bench.settings.rounds {
            let mut turns: Vec<_> = WAYS.into_iter().zip(servers).collect();
            turns.rotate_left((round as usize - 1) % WAYS.len());
            for (way, server) in turns {
                let subject = subject(work, way, &bench.settings);
                bench.begin("operations log", &subject);
                let seconds = bench.settings.short_seconds();
                let figures = bench.load(work, server, connections, seconds, round).await?;
                bench.finish(subject, round, figures);
            }
        }
    }
    for server in [as_it_is, never, thrown_away] {
        server.stop().await?;
    }
    bench.remove_operations_logs()
}
