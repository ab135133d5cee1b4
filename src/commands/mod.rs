//! The subcommands: each reads its configuration, does its work and gives back an error of one line.

mod dev;
mod help;
mod shell;
mod token;
mod verify;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{
    AccessArguments, ApproverArguments, ConfigError, DatabaseArguments, DevArguments, HttpConfig, LogFormat,
    ProcessLogArguments, ServiceArguments, StandInArguments, TlsArguments, TracesArguments, VerifyArguments,
};
use crate::dev::{PostgresError, StandInApprover};
use crate::replica::{self, Addresses, ReplicaConfig, ReplicaError};
use crate::store::{MigrationError, migrate};
use crate::version::VERSION;

/// Keeps users' balances on PostgreSQL: changes them, and tells what a balance is as of any moment
#[derive(Parser)]
#[command(version = VERSION, name = "balance", max_term_width = 120, after_help = help::BALANCE)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    process_log: ProcessLogArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine: a private PostgreSQL, a stand-in Approver and the service
    // Its PostgreSQL is its own.
    #[command(after_help = help::DEV, mut_arg("database_url", |argument| argument.hide(true)))]
    Dev(DevelopmentArguments),
    /// Run one replica
    #[command(after_help = help::SERVE)]
    Serve(ServeArguments),
    /// Bring the database's schema up to date; safe from many replicas at once
    #[command(after_help = help::MIGRATE)]
    Migrate(DatabaseArguments),
    /// Check every invariant of the stored ledger, and the operations logs against it
    #[command(after_help = help::VERIFY)]
    Verify(VerifyArguments),
    /// Print a fresh bearer token and its line for API_TOKENS_FILE
    #[command(after_help = "balance token payroll >> tokens")]
    Token(token::TokenArguments),
    /// Print the OpenAPI document
    Openapi,
    /// Run a stand-in for the Approver, for trying things out
    StandInApprover(StandInArguments),
    /// Print what makes a shell complete the program's commands and flags
    #[command(after_help = help::COMPLETIONS)]
    Completions(shell::CompletionsArguments),
    /// Print the man page, or write those of all commands
    #[command(after_help = help::MAN)]
    Man(shell::ManArguments),
}

#[derive(Args, Clone)]
struct ServeArguments {
    #[command(flatten)]
    database: DatabaseArguments,
    #[command(flatten)]
    approver: ApproverArguments,
    #[command(flatten)]
    service: ServiceArguments,
    #[command(flatten)]
    access: AccessArguments,
    #[command(flatten)]
    traces: TracesArguments,
    #[command(flatten)]
    tls: TlsArguments,
}

#[derive(Args, Clone)]
struct DevelopmentArguments {
    #[command(flatten)]
    dev: DevArguments,
    #[command(flatten)]
    serve: ServeArguments,
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
    /// The check came to no end.
    #[error(transparent)]
    Verify(#[from] verify::Unverified),
    /// The operating system gives no random bytes.
    #[error("there are no random bytes to make a token of")]
    NoRandomness,
    /// There is no man page of that command.
    #[error("there is no command {name:?}; give one of {known}")]
    NoSuchCommand {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The man page cannot be made.
    #[error("the man page cannot be made: {0}")]
    Man(#[source] std::io::Error),
    /// The man pages cannot be written.
    #[error("the man pages cannot be written to {}: {source}", directory.display())]
    WriteMan {
        /// Where they were to be.
        directory: PathBuf,
        /// Why they cannot.
        source: std::io::Error,
    },
    /// Signals cannot be listened for.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] std::io::Error),
    /// Something that was to be printed is lost.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Standard output or standard error takes nothing: a full disk, or a reader that has gone.
#[derive(Debug, thiserror::Error)]
#[error("the output cannot be written: {0}")]
pub struct OutputError(#[from] std::io::Error);

impl CommandError {
    /// Whether the reader of the output has gone, as `head` does: no news to whoever sent it there.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(
            self,
            Self::Output(OutputError(error)) | Self::Verify(verify::Unverified::Output(OutputError(error)))
                if error.kind() == std::io::ErrorKind::BrokenPipe
        )
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // 1 says that something is wrong with the ledger.
            CommandError::Verify(_) => ExitCode::from(2),
            CommandError::Config(_)
            | CommandError::Replica(_)
            | CommandError::Migration(_)
            | CommandError::Postgres(_)
            | CommandError::PostgresEnded { .. }
            | CommandError::StandIn { .. }
            | CommandError::NoRandomness
            | CommandError::NoSuchCommand { .. }
            | CommandError::Man(_)
            | CommandError::WriteMan { .. }
            | CommandError::Signals(_)
            | CommandError::Output(_) => ExitCode::FAILURE,
        }
    }
}

impl Cli {
    /// Reads flags and variables; an empty variable counts as not set. Prints help, or what is wrong with the flags, and
    /// ends the process if that is all.
    ///
    /// # Errors
    ///
    /// [`CommandError::Config`] for a variable that is not UTF-8, [`CommandError::Output`] for help that cannot be printed.
    pub fn from_environment() -> Result<Self, CommandError> {
        let parsed = without_empty_variables(Self::command())
            .try_get_matches()
            .and_then(|matches| Self::from_arg_matches(&matches));
        parsed.or_else(|error| {
            let error = match error.kind() {
                ErrorKind::InvalidUtf8 => return Err(not_utf8().into()),
                // The help names the empty variables too.
                ErrorKind::DisplayHelp => Self::try_parse().err().unwrap_or(error),
                _ => error,
            };
            error.print().map_err(OutputError)?;
            std::process::exit(error.exit_code())
        })
    }

    /// How the process's own log is to look.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if there is no such format.
    pub fn log_format(&self) -> Result<LogFormat, ConfigError> {
        self.process_log.format()
    }

    /// Runs the command to its end, and says what the process ends with.
    ///
    /// # Errors
    ///
    /// [`CommandError`], to be shown as it is.
    pub async fn run(self) -> Result<ExitCode, CommandError> {
        match self.command {
            Command::Verify(arguments) => return Ok(verify::run(&arguments).await?),
            Command::Dev(arguments) => dev::run(arguments).await,
            Command::Serve(arguments) => serve(&arguments).await,
            Command::Migrate(arguments) => migrate_now(&arguments).await,
            Command::Openapi => Ok(say(crate::http::document().trim_end())?),
            Command::Token(arguments) => token::run(&arguments),
            Command::StandInApprover(arguments) => stand_in(&arguments).await,
            Command::Completions(arguments) => Ok(shell::completions(&arguments)?),
            Command::Man(arguments) => shell::man(&arguments),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ServeArguments {
    fn replica(&self) -> Result<ReplicaConfig, ConfigError> {
        let service = self.service.service()?;
        let http = HttpConfig {
            tls: self.tls.server()?,
            ..self.service.http()?
        };
        Ok(ReplicaConfig {
            database: self.database.database(format!("balance {}", service.instance))?,
            approver: self.approver.approver()?,
            operations_log: self.service.operations_log()?,
            access: self.access.access(&http)?,
            http,
            ledger: self.service.ledger()?,
            traces: self.traces.traces(&service.instance)?,
            service,
        })
    }
}

async fn serve(arguments: &ServeArguments) -> Result<(), CommandError> {
    let config = arguments.replica()?;
    let mut shutdown = Shutdown::listen()?;
    let started = |Addresses { service, admin }| {
        if let Some(address) = admin {
            tracing::info!(%address, "serving metrics and documentation");
        }
        tracing::info!(address = %service, version = VERSION, "serving");
    };
    replica::run(config, started, shutdown.requested()).await?;
    tracing::info!("stopped");
    Ok(())
}

async fn migrate_now(arguments: &DatabaseArguments) -> Result<(), CommandError> {
    let applied = migrate(&arguments.database("balance migrate".to_owned())?).await?;
    if applied.is_empty() {
        say("The schema is up to date.")?;
    }
    for version in applied {
        say(format_args!("Applied migration {version}."))?;
    }
    Ok(())
}

async fn stand_in(arguments: &StandInArguments) -> Result<(), CommandError> {
    let options = arguments.stand_in()?;
    let mut shutdown = Shutdown::listen()?;
    let address = options.listen;
    let approver = StandInApprover::start(options)
        .await
        .map_err(|source| CommandError::StandIn { address, source })?;
    tracing::info!(url = approver.url(), "the stand-in Approver answers");
    shutdown.requested().await;
    approver.stop().await;
    Ok(())
}

/// Which variable it is that clap could not read.
fn not_utf8() -> ConfigError {
    let cli = Cli::command();
    let commands = std::iter::once(&cli).chain(cli.get_subcommands());
    let arguments = commands.flat_map(clap::Command::get_arguments);
    let names = arguments.filter_map(|argument| argument.get_env()?.to_str());
    let is_not_utf8 = |name: &&str| std::env::var_os(name).is_some_and(|value| value.to_str().is_none());
    let variable = names.filter(is_not_utf8).map(str::to_owned).next();
    ConfigError::NotUtf8 {
        variable: variable.unwrap_or_else(|| "a flag".to_owned()),
    }
}

/// The command with the variables that have a value.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |variable: &std::ffi::OsStr| std::env::var_os(variable).is_some_and(|value| value.is_empty());
    let unset = move |argument: Arg| match argument.get_env() {
        Some(variable) if is_empty(variable) => argument.env(None::<&str>),
        _ => argument,
    };
    command.mut_args(unset).mut_subcommands(without_empty_variables)
}

/// Prints a line; its styles reach terminals only.
fn say(line: impl Display) -> Result<(), OutputError> {
    Ok(writeln!(anstream::stdout(), "{line}")?)
}

/// Prints this as it is.
fn print(text: &[u8]) -> Result<(), OutputError> {
    let mut output = std::io::stdout();
    output.write_all(text)?;
    Ok(output.flush()?)
}

/// SIGTERM, Ctrl-C, or the end of the terminal, listened for from the moment this is made.
struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    /// Elsewhere than on a terminal, SIGHUP has files opened and read again.
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

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            Some(Some(())) = async { Some(self.hangup.as_mut()?.recv().await) } => {}
        }
    }
}
