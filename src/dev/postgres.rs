//! A PostgreSQL of this process alone: it starts with it and never outlives it. Its binaries are the installed ones or,
//! where there are none, those of a pinned release archive.
//!
//! The data stays between runs, `fsync` is on, and the only way in is a Unix socket in a directory that PostgreSQL's user
//! alone (and root) can enter: whoever is in there is trusted without a password. It is for development and tests; it is
//! not tuned, not backed up and not reachable from elsewhere.
//!
//! | module | what |
//! |---|---|
//! | `installation` | finds the binaries |
//! | `archive` | the pinned release archive: verified, unpacked, kept |
//! | `download` | where the archive comes from |
//! | `account` | whom PostgreSQL runs as, if this process is root |
//! | `place` | where data, log and socket are |
//! | `locks` | one at a time, and none before its killed predecessor has ended |
//! | `cluster` | `initdb`, once |
//! | `process` | a child that dies with its parent |
//! | `server_log` | where the output goes, and its end for messages |

mod account;
mod archive;
mod cluster;
mod download;
mod error;
mod installation;
mod locks;
mod place;
mod process;
mod server_log;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

pub use error::PostgresError;
use error::failed_to;
use installation::{Installation, SearchPlaces};
use locks::Locks;
use place::{Place, SocketDir};
use process::DirectChild;
use server_log::ServerLog;

/// How long PostgreSQL may take until it accepts connections, recovery from a crash included.
const READY_BOUND: Duration = Duration::from_secs(60);

/// How long one attempt to connect, and one statement, may take.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
const STATEMENT_BOUND: Duration = Duration::from_secs(30);

/// The pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// How long each way to stop may take before the next harsher one. In an immediate stop PostgreSQL itself kills what
/// has not ended after 5 s.
const FAST_BOUND: Duration = Duration::from_secs(10);
const IMMEDIATE_BOUND: Duration = Duration::from_secs(7);
const KILL_BOUND: Duration = Duration::from_secs(5);

/// What PostgreSQL gets when this process is killed or drops the handle. The immediate stop, since nobody is left who
/// could wait: it writes nothing and ends in milliseconds, however much a fast stop would have to checkpoint. The next
/// start recovers from the write-ahead log, and every commit that was answered is there.
const FAREWELL: Signal = Signal::SIGQUIT;

/// The settings for development; `PostgresOptions::settings` come after them and win.
const SETTINGS: [(&str, &str); 8] = [
    ("listen_addresses", ""),
    ("port", "5432"),
    ("max_connections", "200"),
    ("shared_buffers", "128MB"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] "),
    ("cluster_name", "balance-dev"),
];

/// How a private PostgreSQL is started.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where data, log and socket are kept, made if missing. Relative to the working directory.
    pub data_dir: PathBuf,
    /// More settings, as name and value, each as `-c name=value`. They override the defaults, `port` and
    /// `listen_addresses` included, but not where the Unix socket is.
    pub settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// The default settings, and data in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            settings: Vec::new(),
        }
    }

    /// All settings in the order in which PostgreSQL gets them: of two with the same name, the later wins.
    fn all_settings(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        let given = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        SETTINGS.into_iter().chain(given)
    }

    fn port(&self) -> &str {
        let port = self.all_settings().rev().find(|(name, _)| *name == "port");
        port.map_or("5432", |(_, value)| value)
    }
}

/// What a start is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStage {
    /// `initdb` makes the data, once for a directory: some seconds.
    MakingData,
    /// The server starts, and recovers first if it was not stopped in order.
    Starting,
}

/// How PostgreSQL is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT: connections are closed, everything is written out, the next start has nothing to recover.
    Fast,
    /// SIGQUIT: as a crash would, but in order. The next start recovers.
    Immediate,
}

/// A running PostgreSQL. Dropped without [`stop`](Self::stop), it is told to stop at once and is not waited for; the next
/// start on the same directory waits for it.
pub struct PrivatePostgres {
    // Dropped in this order: PostgreSQL is told to end before the directory is released.
    child: DirectChild,
    locks: Option<Locks>,
    place: Place,
    socket_dir: SocketDir,
    log_path: PathBuf,
    bin_dir: PathBuf,
    port: String,
}

impl PrivatePostgres {
    /// Starts PostgreSQL, making its data if there is none, and returns when it accepts connections.
    ///
    /// Where PostgreSQL is not installed, its release archive is got once, and standard error tells so.
    ///
    /// Bounds: 15 min to get the archive, 20 s for a killed predecessor to end, 180 s for `initdb`, 60 s until connections are accepted. A start that
    /// is given up (the future is dropped) leaves nothing running.
    ///
    /// # Errors
    ///
    /// [`PostgresError`], one line that says what to do.
    pub async fn start(options: &PostgresOptions) -> Result<Self, PostgresError> {
        Self::start_watched(options, |_| {}).await
    }

    /// As [`start`](Self::start), and tells what is waited for.
    ///
    /// # Errors
    ///
    /// [`PostgresError`], one line that says what to do.
    pub async fn start_watched(
        options: &PostgresOptions,
        mut begins: impl FnMut(StartStage),
    ) -> Result<Self, PostgresError> {
        let places = SearchPlaces::from_environment();
        let found = places.installations().await?;
        let place = Place::settle(&options.data_dir).await?;
        let locks = Locks::take(&place.base).await?;
        let data = cluster::major_of_data(&place)?;
        let is_new = data.is_none();
        let installation = places.choose(&found, data.as_deref(), &place.cluster()).await?;
        let log = ServerLog::open(place.log())?;
        if is_new {
            begins(StartStage::MakingData);
            cluster::initialize(&place, &installation, &locks, &log).await?;
        }
        begins(StartStage::Starting);
        cluster::clear_stale_pid_file(&place.cluster())?;
        let socket_dir = place.socket_dir()?;
        let child = launch(options, &place, &installation, &locks, &log, &socket_dir).await?;
        let postgres = Self {
            child,
            locks: Some(locks),
            place,
            socket_dir,
            log_path: log.path().to_owned(),
            bin_dir: installation.bin_dir,
            port: options.port().to_owned(),
        };
        postgres.ready(&log).await?;
        tracing::info!(data_dir = %postgres.data_dir().display(), process = postgres.process_id(), "PostgreSQL is ready");
        Ok(postgres)
    }

    /// A URL for one of its databases, over the Unix socket, as the superuser `balance` and without a password.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encode(self.socket_dir().as_os_str().as_bytes(), NON_ALPHANUMERIC);
        let database = utf8_percent_encode(database, NON_ALPHANUMERIC);
        format!("postgres://balance@{host}:{}/{database}", self.port)
    }

    /// Where everything is kept, an absolute path: what [`PostgresOptions::data_dir`] asked for or, if PostgreSQL's user
    /// cannot enter that, a directory below `/var/tmp`. The data itself is in `postgres` below it.
    pub fn data_dir(&self) -> &Path {
        &self.place.base
    }

    /// The directory of the Unix socket, mode 0700.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir.path
    }

    /// What PostgreSQL prints goes here, over all runs.
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// The directory of the binaries it runs from, `psql` perhaps among them.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The process id of the postmaster.
    pub fn process_id(&self) -> i32 {
        self.child.process_id()
    }

    /// Makes a database if there is none of that name. Bounded by 35 s.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Refused`] with what PostgreSQL said.
    pub async fn create_database(&self, name: &str) -> Result<(), PostgresError> {
        let refused = |reason: String| PostgresError::Refused {
            action: format!("make the database {name:?}"),
            reason,
        };
        let client = self.connect().await.map_err(refused)?;
        let statement = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
        match timeout(STATEMENT_BOUND, client.batch_execute(&statement)).await {
            Ok(Ok(())) => Ok(()),
            // Asking first would not do: another may make it in between. A race shows as a violated unique index.
            Ok(Err(error)) if is_already_there(&error) => Ok(()),
            Ok(Err(error)) => Err(refused(one_line(&error))),
            Err(_) => Err(refused(format!("no answer within {} s", STATEMENT_BOUND.as_secs()))),
        }
    }

    /// Stops PostgreSQL and waits until it has ended: 10 s for a fast stop, then 7 s for an immediate one, then SIGKILL.
    /// Afterwards the directory is free for another start. Returns how it ended; also if it had ended before.
    ///
    /// # Errors
    ///
    /// [`PostgresError::StillRunning`] if not even SIGKILL ended it within 5 s.
    pub async fn stop(&mut self, mode: StopMode) -> Result<ExitStatus, PostgresError> {
        let ways = [
            (Signal::SIGINT, FAST_BOUND),
            (Signal::SIGQUIT, IMMEDIATE_BOUND),
            (Signal::SIGKILL, KILL_BOUND),
        ];
        let gentlest = match mode {
            StopMode::Fast => 0,
            StopMode::Immediate => 1,
        };
        for (signal, bound) in ways.into_iter().skip(gentlest) {
            self.child.signal(signal);
            if let Ok(status) = timeout(bound, self.child.exited()).await {
                self.socket_dir.remove();
                self.locks = None;
                return Ok(status);
            }
            tracing::warn!(process = self.process_id(), %signal, seconds = bound.as_secs(), "PostgreSQL has not stopped");
        }
        Err(PostgresError::StillRunning {
            process: self.process_id(),
        })
    }

    /// Waits until PostgreSQL has ended, for whatever reason. May be given up and called again.
    pub async fn exited(&mut self) -> ExitStatus {
        self.child.exited().await
    }

    /// Waits until connections are accepted.
    async fn ready(&self, log: &ServerLog) -> Result<(), PostgresError> {
        let deadline = Instant::now() + READY_BOUND;
        loop {
            let attempt = tokio::select! {
                biased;
                status = self.child.exited() => {
                    self.socket_dir.remove();
                    return Err(PostgresError::Exited {
                        status,
                        log: self.log_path.clone(),
                        excerpt: log.excerpt(),
                    });
                }
                attempt = self.connect() => attempt,
            };
            match attempt {
                Ok(_) => return Ok(()),
                Err(last) if Instant::now() >= deadline => {
                    return Err(PostgresError::NotReady {
                        waited: READY_BOUND,
                        last,
                        log: self.log_path.clone(),
                    });
                }
                Err(_) => sleep(CONNECT_PAUSE).await,
            }
        }
    }

    /// A connection to the database that always exists. It closes when the client is dropped.
    async fn connect(&self) -> Result<Client, String> {
        let url = self.url("postgres");
        match timeout(CONNECT_BOUND, tokio_postgres::connect(&url, NoTls)).await {
            Ok(Ok((client, connection))) => {
                // Whatever ends the connection is told to the client's caller too.
                tokio::spawn(async { drop(connection.await) });
                Ok(client)
            }
            Ok(Err(error)) => Err(one_line(&error)),
            Err(_) => Err(format!("no answer within {} s", CONNECT_BOUND.as_secs())),
        }
    }
}

async fn launch(
    options: &PostgresOptions,
    place: &Place,
    installation: &Installation,
    locks: &Locks,
    log: &ServerLog,
    socket_dir: &SocketDir,
) -> Result<DirectChild, PostgresError> {
    let program = installation.program("postgres");
    let mut command = cluster::command(&program, place, log)?;
    command.arg("-D").arg(place.cluster());
    for (name, value) in options.all_settings() {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let mut directories = OsString::from("unix_socket_directories=");
    directories.push(quoted(&socket_dir.path));
    command.arg("-c").arg(directories);
    let spawned = DirectChild::spawn(command, FAREWELL, locks.inherited()).await;
    spawned.map_err(failed_to("run", &program))
}

/// One name for a setting that is a list of names: quoted, its commas and spaces are its own.
fn quoted(path: &Path) -> OsString {
    let name = path.as_os_str().as_bytes();
    let doubled = name.split(|byte| *byte == b'"').collect::<Vec<_>>().join(&b"\"\""[..]);
    let mut list = OsString::from("\"");
    list.push(OsStr::from_bytes(&doubled));
    list.push("\"");
    list
}

fn is_already_there(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::DUPLICATE_DATABASE) || error.code() == Some(&SqlState::UNIQUE_VIOLATION)
}

/// What PostgreSQL said, or why it could not be asked, without line breaks.
fn one_line(error: &tokio_postgres::Error) -> String {
    let text = error
        .as_db_error()
        .map_or_else(|| error.to_string(), ToString::to_string);
    text.replace('\n', " ")
}
