//! `balance dev`: all of it on this machine, with nothing to set up.

mod banner;
mod demo;

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{CommandError, DevelopmentArguments, Shutdown, say};
use crate::config::{ApproverUrl, ConfigError, DatabaseUrl, HostNames, StandInOptions};
use crate::dev::{Demo, PostgresOptions, PrivatePostgres, StandInApprover, StartStage, StopMode};
use crate::replica::{self, Addresses};
use crate::store::{SESSION_SETTINGS, migrate};
use crate::version::VERSION;
use banner::{Banner, FAINT, GOOD, LABEL, absolute};

/// The database inside the private PostgreSQL.
const DATABASE: &str = "balance";

/// What `dev` was asked for beside a replica.
struct Wanted {
    own_approver: Option<String>,
    demo: bool,
}

pub(super) async fn run(mut arguments: DevelopmentArguments) -> Result<(), CommandError> {
    let mut shutdown = Shutdown::listen()?.with_terminal()?;
    if arguments.serve.database.database_url.is_some() {
        say("DATABASE_URL is not used: dev has a PostgreSQL of its own.")?;
    }
    // The private PostgreSQL stands in for DATABASE_URL, which may well be set for another project.
    let check = "postgres://balance@localhost/balance";
    arguments.serve.database.database_url = Some(check.to_owned());
    let wanted = Wanted {
        own_approver: arguments.serve.approver.approver_url.clone(),
        demo: arguments.dev.demo()?,
    };
    if wanted.own_approver.is_none() {
        // The stand-in speaks http.
        arguments.serve.approver.approver_ca = None;
    }
    arguments
        .serve
        .approver
        .approver_url
        .get_or_insert_with(|| "http://localhost".to_owned());
    // A wrong value is reported before anything is started.
    let mut config = arguments.serve.replica()?;
    if wanted.demo && config.access.tokens_file.is_some() {
        return Err(CommandError::Config(ConfigError::Invalid {
            variable: "DEMO",
            value: "true".to_owned(),
            allowed: "it only without API_TOKENS_FILE: the demo has no token",
        }));
    }
    config.http.shutdown_delay = Duration::ZERO;
    // By DNS rebinding a page of another site reaches it under a name of that site.
    config.http.hosts = HostNames::ThisMachine(host_name());

    say(format_args!("{LABEL}balance{LABEL:#} {FAINT}{VERSION}{FAINT:#}"))?;
    let mut options = PostgresOptions::new(&arguments.dev.data_dir);
    // Its only role is the superuser, who has none of the settings of env/roles.sql.
    options.settings = SESSION_SETTINGS
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let began = Instant::now();
    let mut postgres = tokio::select! {
        started = PrivatePostgres::start_watched(&options, waiting_for) => started?,
        () = shutdown.requested() => return Ok(say("Stopped.")?),
    };
    say(format_args!(
        "{GOOD}PostgreSQL is ready{GOOD:#} {FAINT}after {:.1} s{FAINT:#}",
        began.elapsed().as_secs_f64()
    ))?;
    let outcome = with_postgres(&mut config, wanted, &mut postgres, shutdown).await;
    let stopped = postgres.stop(StopMode::Fast).await;
    outcome?;
    stopped?;
    Ok(say("Stopped.")?)
}

/// This machine's name; empty if it has none.
fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
}

fn waiting_for(stage: StartStage) {
    // The line that follows tells whether lines can be printed.
    let _ = say(match stage {
        StartStage::MakingData => {
            "Making the data of a private PostgreSQL (initdb), this once; it takes some seconds …"
        }
        StartStage::Starting => "Starting PostgreSQL …",
    });
}

async fn with_postgres(
    config: &mut replica::ReplicaConfig,
    wanted: Wanted,
    postgres: &mut PrivatePostgres,
    mut shutdown: Shutdown,
) -> Result<(), CommandError> {
    postgres.create_database(DATABASE).await?;
    config.database.url = DatabaseUrl::parse(&postgres.url(DATABASE))?;
    migrate(&config.database).await?;

    let stand_in = match wanted.own_approver {
        Some(_) => None,
        None => Some(start_stand_in().await?),
    };
    if let Some(stand_in) = &stand_in {
        config.approver.url = ApproverUrl::parse(&stand_in.url())?;
    }

    let banner = banner(config, &stand_in, postgres, wanted.demo);
    let log = postgres.log_path().display().to_string();
    // Begun when the service answers, and ended before it stops to.
    let running_demo = Cell::new(None);
    let (printed, not_printed) = (Cell::new(Ok(())), Notify::new());
    let started = |addresses: Addresses| {
        if let Err(error) = banner.print(addresses) {
            printed.set(Err(error));
            not_printed.notify_one();
        }
        if wanted.demo {
            let service = format!("{}://{}", banner.scheme, addresses.service);
            running_demo.set(Some(Demo::start(service, demo::display())));
        }
    };
    let stop = async {
        tokio::select! {
            () = shutdown.requested() => {}
            () = not_printed.notified() => {}
        }
        stop_demo(&running_demo).await;
    };
    let result = tokio::select! {
        served = replica::run(config.clone(), started, stop) => served.map_err(CommandError::from),
        status = postgres.exited() => Err(CommandError::PostgresEnded { status, log }),
    };
    stop_demo(&running_demo).await;
    if let Some(stand_in) = stand_in {
        stand_in.stop().await;
    }
    result?;
    Ok(printed.into_inner()?)
}

async fn stop_demo(demo: &Cell<Option<Demo>>) {
    if let Some(demo) = demo.take() {
        demo.stop().await;
    }
}

async fn start_stand_in() -> Result<StandInApprover, CommandError> {
    let options = StandInOptions::default();
    let address = options.listen;
    let started = StandInApprover::start(options).await;
    started.map_err(|source| CommandError::StandIn { address, source })
}

fn banner(
    config: &replica::ReplicaConfig,
    stand_in: &Option<StandInApprover>,
    postgres: &PrivatePostgres,
    demo: bool,
) -> Banner {
    let asked = format!("asked above {}", config.service.approval_threshold);
    let (approver, approver_does) = match stand_in {
        Some(stand_in) => {
            let does = format!("{asked}; a stand-in: 300 ms, denies above 1000000");
            (stand_in.url(), does)
        }
        None => (config.approver.url.to_string(), asked),
    };
    Banner {
        scheme: if config.http.tls.is_some() { "https" } else { "http" },
        has_tokens: config.access.tokens_file.is_some(),
        psql: banner::psql(postgres, DATABASE),
        data: postgres.data_dir().display().to_string(),
        approver,
        approver_does,
        log: absolute(&config.operations_log.path),
        demo,
    }
}
