//! `balance dev`: all of it on this machine, with nothing to set up.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use super::{CommandError, DevelopmentArguments, Shutdown, say};
use crate::config::{ApproverUrl, DatabaseUrl, StandInOptions};
use crate::dev::{PostgresOptions, PrivatePostgres, StandInApprover, StopMode};
use crate::replica::{self, Addresses};
use crate::store::migrate;

/// The database inside the private PostgreSQL.
const DATABASE: &str = "balance";

pub(super) async fn run(mut arguments: DevelopmentArguments) -> Result<(), CommandError> {
    let shutdown = Shutdown::listen()?.with_terminal()?;
    if arguments.serve.database.database_url.is_some() {
        say("DATABASE_URL is not used: dev has a PostgreSQL of its own.");
    }
    // The private PostgreSQL stands in for DATABASE_URL, which may well be set for another project.
    let check = "postgres://balance@localhost/balance";
    arguments.serve.database.database_url = Some(check.to_owned());
    let own_approver = arguments.serve.approver.approver_url.clone();
    arguments
        .serve
        .approver
        .approver_url
        .get_or_insert_with(|| "http://localhost".to_owned());
    // A wrong value is reported before anything is started.
    let mut config = arguments.serve.replica()?;
    config.http.shutdown_delay = Duration::ZERO;

    say("Starting PostgreSQL …");
    let mut postgres = PrivatePostgres::start(&PostgresOptions::new(&arguments.dev.data_dir)).await?;
    let outcome = with_postgres(&mut config, own_approver, &mut postgres, shutdown).await;
    let stopped = postgres.stop(StopMode::Fast).await;
    outcome?;
    stopped?;
    say("Stopped.");
    Ok(())
}

async fn with_postgres(
    config: &mut replica::ReplicaConfig,
    own_approver: Option<String>,
    postgres: &mut PrivatePostgres,
    shutdown: Shutdown,
) -> Result<(), CommandError> {
    postgres.create_database(DATABASE).await?;
    config.database.url = DatabaseUrl::parse(&postgres.url(DATABASE))?;
    migrate(&config.database).await?;

    let stand_in = match own_approver {
        Some(_) => None,
        None => {
            let options = StandInOptions::default();
            let address = options.listen;
            let started = StandInApprover::start(options).await;
            Some(started.map_err(|source| CommandError::StandIn { address, source })?)
        }
    };
    if let Some(stand_in) = &stand_in {
        config.approver.url = ApproverUrl::parse(&stand_in.url())?;
    }

    let banner = Banner {
        postgres: format!(
            "data in {}, psql -h {} -U balance {DATABASE}",
            postgres.data_dir().display(),
            postgres.socket_dir().display()
        ),
        approver: match &stand_in {
            Some(stand_in) => format!("{} (a stand-in: 300 ms, denies above 1000000)", stand_in.url()),
            None => config.approver.url.to_string(),
        },
        log: absolute(&config.operations_log.path),
        threshold: config.service.approval_threshold,
    };
    let log = postgres.log_path().display().to_string();
    let serving = replica::run(
        config.clone(),
        |addresses| banner.print(addresses),
        shutdown.requested(),
    );
    let result = tokio::select! {
        served = serving => served.map_err(CommandError::from),
        status = postgres.exited() => Err(CommandError::PostgresEnded { status, log }),
    };
    if let Some(stand_in) = stand_in {
        stand_in.stop().await;
    }
    result
}

struct Banner {
    postgres: String,
    approver: String,
    log: String,
    threshold: u64,
}

impl Banner {
    fn print(&self, addresses: Addresses) {
        let url = format!("http://{}", addresses.service);
        let admin = format!("http://{}", addresses.admin.unwrap_or(addresses.service));
        let bold = if std::io::stdout().is_terminal() {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        say(format_args!("PostgreSQL      {}", self.postgres));
        say(format_args!(
            "Approver        {}, asked for changes above {}",
            self.approver, self.threshold
        ));
        say(format_args!("Operations log  {}", self.log));
        say(format_args!("Service         {}{url}{}", bold.0, bold.1));
        say(format_args!("Swagger UI      {admin}/docs"));
        say("");
        say("Try, in another terminal:");
        say("");
        say(format_args!(
            "  curl -X POST {url}/changeBalance -H 'Content-Type: application/json' \\\n    \
             -d '{{\"userId\":\"alice\",\"context\":\"first deposit\",\"balanceChange\":100,\
             \"timestamp\":\"2026-01-31T12:00:00Z\"}}'"
        ));
        say(format_args!("  curl {url}/alice/balance"));
        say("");
        say("Ctrl-C stops all of it; the data stays.");
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .display()
        .to_string()
}
