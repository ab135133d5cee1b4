//! One client and a service that has nothing else to do: what a single request takes, beside the plain server.

use crate::Outcome;
use crate::arguments::{RowName, Settings};
use crate::bench::Bench;
use crate::data::{Users, verify_stored};
use crate::results::{Contender, Subject};
use crate::work::Work;

/// What the client asks for.
pub const WORKS: [Work; 2] = [Work::ReadNow, Work::Change];
/// Who is asked.
const CONTENDERS: [Contender; 2] = [Contender::Service, Contender::Plain];

/// A part of the row.
pub fn subject(work: Work, contender: Contender) -> Subject {
    Subject::part(RowName::OneClient, &work.short(), contender, 1)
}

/// How many measurements this takes.
pub fn steps(settings: &Settings) -> usize {
    WORKS.len() * CONTENDERS.len() * settings.rounds as usize
}

/// Measures the row.
///
/// # Errors
///
/// If a server or the load generator fails.
pub async fn measure(bench: &mut Bench<'_>) -> Outcome<()> {
    bench.databases.checkpoint().await?;
    let service = bench.start_service(&[]).await?;
    let plain = bench.start_comparison(Contender::Plain).await?;
    let before = verify_stored(&bench.service_database, Users::Many).await?;
    for round in 1..=bench.settings.rounds {
        for work in WORKS {
            let mut contenders = CONTENDERS;
            contenders.rotate_left((round as usize - 1) % CONTENDERS.len());
            for contender in contenders {
                let server = if contender == Contender::Plain {
                    &plain
                } else {
                    &service
                };
                let subject = subject(work, contender);
                bench.begin("one client", &subject);
                let seconds = bench.settings.short_seconds();
                let figures = bench.load(work, server, 1, seconds, round).await?;
                bench.finish(subject, round, figures);
            }
        }
    }
    bench.note_memory(RowName::OneClient, &service);
    service.stop().await?;
    plain.stop().await?;
    bench.remove_operations_logs()?;
    let changes = bench
        .results
        .each(&subject(Work::Change, Contender::Service), |figures| {
            Some(figures.requests - figures.errors)
        });
    let expected = before + changes.iter().sum::<u64>();
    let database = bench.service_database.clone();
    bench
        .check_stored(RowName::OneClient, &database, Users::Many, expected)
        .await
}
