//! Measures the rows that put a load on servers: all contenders take turns inside a round, so that whatever the machine
//! does meanwhile hits all of them.

use crate::Outcome;
use crate::arguments::Settings;
use crate::bench::{Bench, say};
use crate::data::verify_stored;
use crate::pgbench::PgbenchWork;
use crate::process::Server;
use crate::results::{Contender, Subject};
use crate::work::{LoadRow, Work};

/// How long a server is used before it is measured.
const WARM_UP_SECONDS: u32 = 1;

/// The numbers of clients among which pgbench's best is sought, and how long each is tried.
const PGBENCH_CLIENTS: [u32; 5] = [4, 8, 16, 32, 64];
const PGBENCH_CLIENTS_QUICK: [u32; 2] = [8, 32];
const PGBENCH_TRIAL_SECONDS: u32 = 2;
const PGBENCH_TRIAL_SECONDS_QUICK: u32 = 1;

/// The servers of a row.
struct Servers {
    service: Server,
    ceiling: Server,
    plain: Option<Server>,
}

impl Servers {
    async fn start(bench: &Bench<'_>, row: &LoadRow) -> Outcome<Self> {
        Ok(Self {
            service: bench.start_service(&[]).await?,
            ceiling: bench.start_comparison(Contender::Ceiling).await?,
            plain: match row.has_plain(&bench.settings) {
                true => Some(bench.start_comparison(Contender::Plain).await?),
                false => None,
            },
        })
    }

    fn of(&self, contender: Contender) -> Option<&Server> {
        match contender {
            Contender::Service => Some(&self.service),
            Contender::Ceiling => Some(&self.ceiling),
            Contender::Plain => self.plain.as_ref(),
            Contender::Pgbench => None,
        }
    }

    async fn stop(self) -> Outcome<()> {
        self.service.stop().await?;
        self.ceiling.stop().await?;
        match self.plain {
            Some(plain) => plain.stop().await,
            None => Ok(()),
        }
    }
}

/// How many measurements a row takes.
pub fn steps(settings: &Settings, row: &LoadRow) -> usize {
    let of_round = settings
        .connections
        .iter()
        .map(|connections| row.contenders(settings, *connections).len());
    of_round.sum::<usize>() * settings.rounds as usize
}

/// Measures a row.
///
/// # Errors
///
/// If a server or a load generator fails. Failed requests and wrong balances are kept with the results.
pub async fn measure(bench: &mut Bench<'_>, row: &LoadRow) -> Outcome<()> {
    bench.databases.checkpoint().await?;
    let servers = Servers::start(bench, row).await?;
    let stored_before = stored(bench, row).await?;
    warm_up(bench, row, &servers).await?;
    let clients = match row.pgbench {
        Some(work) => best_clients(bench, work).await?,
        None => 0,
    };
    for round in 1..=bench.settings.rounds {
        for connections in bench.settings.connections.clone() {
            let mut contenders = row.contenders(&bench.settings, connections);
            // Nobody always comes first.
            let first = (round as usize - 1) % contenders.len();
            contenders.rotate_left(first);
            for contender in contenders {
                turn(
                    bench,
                    row,
                    &servers,
                    Subject::of(row.name, contender, connections),
                    round,
                    clients,
                )
                .await?;
            }
        }
    }
    bench.note_memory(row.name, &servers.service);
    servers.stop().await?;
    bench.remove_operations_logs()?;
    check(bench, row, stored_before).await
}

/// One measurement.
async fn turn(
    bench: &mut Bench<'_>,
    row: &LoadRow,
    servers: &Servers,
    subject: Subject,
    round: u32,
    clients: u32,
) -> Outcome<()> {
    bench.begin(&row.work.short(), &subject);
    let seconds = bench.settings.seconds_with(subject.connections);
    let figures = match (servers.of(subject.contender), row.pgbench) {
        (Some(server), _) => {
            bench
                .load(row.work, server, subject.connections, seconds, round)
                .await?
        }
        (None, Some(work)) => {
            let (database, users) = (&bench.pgbench_database, bench.settings.sizes.users);
            let meter = bench.meter(&[]);
            let mut figures = bench.pgbench.run(work, database, users, clients, seconds).await?;
            figures.processor = meter.per_request(figures.requests);
            figures
        }
        (None, None) => return Err("no such contender in this row".into()),
    };
    bench.finish(subject, round, figures);
    Ok(())
}

/// Lets connections be opened and statements be prepared.
async fn warm_up(bench: &mut Bench<'_>, row: &LoadRow, servers: &Servers) -> Outcome<()> {
    let connections = bench.settings.most_connections();
    let all = [Some(&servers.service), Some(&servers.ceiling), servers.plain.as_ref()];
    // A quick run has no time for servers that are only compared with.
    let warmed = if bench.settings.quick { &all[..1] } else { &all[..] };
    for server in warmed.iter().copied().flatten() {
        bench.load(row.work, server, connections, WARM_UP_SECONDS, 0).await?;
    }
    Ok(())
}

/// The number of clients with which pgbench does most.
async fn best_clients(bench: &Bench<'_>, work: PgbenchWork) -> Outcome<u32> {
    let (numbers, seconds) = match bench.settings.quick {
        true => (&PGBENCH_CLIENTS_QUICK[..], PGBENCH_TRIAL_SECONDS_QUICK),
        false => (&PGBENCH_CLIENTS[..], PGBENCH_TRIAL_SECONDS),
    };
    let (database, users) = (&bench.pgbench_database, bench.settings.sizes.users);
    let mut best = (0, 0.0);
    for clients in numbers {
        let figures = bench.pgbench.run(work, database, users, *clients, seconds).await?;
        if figures.per_second > best.1 {
            best = (*clients, figures.per_second);
        }
    }
    say(&format!("pgbench does most with {} clients", best.0));
    Ok(best.0)
}

/// How many operations the row's users have, of the service and of the plain server.
async fn stored(bench: &Bench<'_>, row: &LoadRow) -> Outcome<(u64, u64)> {
    if !row.work.changes() {
        return Ok((0, 0));
    }
    let users = row.work.users();
    let service = verify_stored(&bench.service_database, users).await?;
    Ok((service, verify_stored(&bench.plain_database, users).await?))
}

/// Makes sure that whatever was answered is stored, and stored right.
async fn check(bench: &mut Bench<'_>, row: &LoadRow, (service_before, plain_before): (u64, u64)) -> Outcome<()> {
    if !row.work.changes() {
        return Ok(());
    }
    let answered = |contender| match row.work {
        // It is not known which answers were changes.
        Work::Mixed(_) => 0,
        _ => bench.results.answered(row.name, contender),
    };
    let service = service_before + answered(Contender::Service);
    let plain = plain_before + answered(Contender::Plain);
    let (service_database, plain_database) = (bench.service_database.clone(), bench.plain_database.clone());
    let users = row.work.users();
    bench.check_stored(row.name, &service_database, users, service).await?;
    if row.has_plain(&bench.settings) {
        bench.check_stored(row.name, &plain_database, users, plain).await?;
    }
    Ok(())
}
