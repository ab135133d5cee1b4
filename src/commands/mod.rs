//! The subcommands: each reads its configuration, does its work and gives back an error of one line.

mod dev;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{ApproverArguments, ConfigError, DatabaseArguments, ServiceArguments};
use crate::dev::{PostgresError, StandInApprover, StandInOptions};
use crate::replica::{self, ReplicaConfig, ReplicaError};
use crate::store::{MigrationError, migrate};

/// Keeps users' balances on PostgreSQL: changes them, and tells what a balance is as of any moment
#[derive(Parser)]
#[command(version, name = "balance", max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine: a private PostgreSQL, a stand-in Approver and the service
    Dev(DevArguments),
    /// Run one replica
    Serve(ServeArguments),
    /// Bring the database's schema up to date; safe from many replicas at once
    Migrate(DatabaseArguments),
    /// Print the OpenAPI document
    Openapi,
    /// Run a stand-in for the Approver, for trying things out
    StandInApprover(StandInArguments),
}

#[derive(Args, Clone)]
struct ServeArguments {
    #[command(flatten)]
    database: DatabaseArguments,
    #[command(flatten)]
    approver: ApproverArguments,
    #[command(flatten)]
    service: ServiceArguments,
}

#[derive(Args, Clone)]
struct DevArguments {
    /// Where PostgreSQL's data is kept between runs
    #[arg(long, env = "DATA_DIR", value_name = "DIRECTORY", default_value = ".dev")]
    data_dir: PathBuf,
    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Args, Clone)]
struct StandInArguments {
    /// Address of the stand-in
    #[arg(
        long,
        env = "STAND_IN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090"
    )]
    listen: SocketAddr,
    /// How long each verdict takes, in milliseconds
    #[arg(long, env = "STAND_IN_DELAY_MS", value_name = "MILLISECONDS", default_value = "300")]
    delay_ms: u64,
    /// Changes larger than this, either way, are denied
    #[arg(long, env = "STAND_IN_DENY_ABOVE", value_name = "AMOUNT", default_value = "1000000")]
    deny_above: u64,
}

/// Why a command failed. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A value cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The replica.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The migration.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// The private PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The private PostgreSQL ended by itself.
    #[error("PostgreSQL ended ({status}); its log is {log}")]
    PostgresEnded {
        /// How it ended.
        status: std::process::ExitStatus,
        /// Where it says why.
        log: String,
    },
    /// The stand-in Approver.
    #[error("the stand-in Approver cannot be started on {address}: {source}")]
    StandIn {
        /// Where it was to listen.
        address: SocketAddr,
        /// Why it cannot.
        source: std::io::Error,
    },
    /// Signals cannot be listened for.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] std::io::Error),
}

impl Cli {
    /// Runs the command to its end.
    ///
    /// # Errors
    ///
    /// [`CommandError`], to be shown as it is.
    pub async fn run(self) -> Result<(), CommandError> {
        match self.command {
            Command::Dev(arguments) => dev::run(arguments).await,
            Command::Serve(arguments) => serve(&arguments).await,
            Command::Migrate(arguments) => migrate_now(&arguments).await,
            Command::Openapi => {
                print!("{}", crate::http::document());
                Ok(())
            }
            Command::StandInApprover(arguments) => stand_in(arguments).await,
        }
    }
}

impl ServeArguments {
    fn replica(&self) -> Result<ReplicaConfig, ConfigError> {
        let service = self.service.service()?;
        Ok(ReplicaConfig {
            database: self.database.database(format!("balance {}", service.instance))?,
            approver: self.approver.approver()?,
            operations_log: self.service.operations_log()?,
            http: self.service.http()?,
            service,
        })
    }
}

async fn serve(arguments: &ServeArguments) -> Result<(), CommandError> {
    let config = arguments.replica()?;
    let shutdown = Shutdown::listen()?;
    let started = |address| tracing::info!(%address, "serving");
    replica::run(config, started, shutdown.requested()).await?;
    tracing::info!("stopped");
    Ok(())
}

async fn migrate_now(arguments: &DatabaseArguments) -> Result<(), CommandError> {
    let applied = migrate(&arguments.database("balance migrate".to_owned())?).await?;
    if applied.is_empty() {
        println!("The schema is up to date.");
    }
    for version in applied {
        println!("Applied migration {version}.");
    }
    Ok(())
}

async fn stand_in(arguments: StandInArguments) -> Result<(), CommandError> {
    let shutdown = Shutdown::listen()?;
    let options = StandInOptions {
        listen: arguments.listen,
        delay: Duration::from_millis(arguments.delay_ms),
        deny_above: arguments.deny_above,
    };
    let address = options.listen;
    let approver = StandInApprover::start(options)
        .await
        .map_err(|source| CommandError::StandIn { address, source })?;
    tracing::info!(url = approver.url(), "the stand-in Approver answers");
    shutdown.requested().await;
    approver.stop().await;
    Ok(())
}

/// SIGTERM, Ctrl-C, or the end of the terminal, listened for from the moment this is made.
struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    /// Elsewhere than on a terminal, SIGHUP only reopens the log.
    hangup: Option<Signal>,
}

impl Shutdown {
    fn listen() -> Result<Self, CommandError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(CommandError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(CommandError::Signals)?,
            hangup: None,
        })
    }

    /// Takes the end of the terminal for a request too, where there is one.
    fn with_terminal(self) -> Result<Self, CommandError> {
        let hangup = if std::io::stdout().is_terminal() {
            Some(signal(SignalKind::hangup()).map_err(CommandError::Signals)?)
        } else {
            None
        };
        Ok(Self { hangup, ..self })
    }

    async fn requested(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            Some(Some(())) = async { Some(self.hangup.as_mut()?.recv().await) } => {}
        }
    }
}
