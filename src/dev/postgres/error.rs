//! Why there is no private PostgreSQL. Each message is one line that says what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// How to get PostgreSQL, for the end of a message.
macro_rules! how_to_install {
    () => {
        "apt-get install postgresql (Debian, Ubuntu), dnf install postgresql-server (Fedora, RHEL), brew install postgresql \
         (macOS), or set POSTGRES_BIN to the directory of initdb and postgres"
    };
}

/// Why the private PostgreSQL could not be started, asked or stopped.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No directory that was searched holds both `initdb` and `postgres`, and none can be got for this platform or user.
    #[error("PostgreSQL is not installed: {}", how_to_install!())]
    NotInstalled,
    /// PostgreSQL is not installed, and no source has the archive.
    #[error("PostgreSQL is not installed and {version} cannot be downloaded ({tried}): {}", how_to_install!())]
    NotLoaded {
        /// The version that was wanted.
        version: String,
        /// Each source, and why it did not do.
        tried: String,
    },
    /// The cache cannot be made: a user without a home, say.
    #[error(
        "cannot keep PostgreSQL in {cache:?} ({source}): set XDG_CACHE_HOME to a directory of yours, or {}",
        how_to_install!()
    )]
    NoCache {
        /// Where it would be.
        cache: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another process has been loading the archive for longer than it may take.
    #[error(
        "another process has been downloading PostgreSQL into {cache:?} for {} s: end it and try again, or install PostgreSQL",
        waited.as_secs()
    )]
    LoadingElsewhere {
        /// The cache that it holds.
        cache: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The archive was loaded and could not be unpacked.
    #[error("cannot unpack PostgreSQL into {directory:?} ({reason}): put that right, or {}", how_to_install!())]
    NotUnpacked {
        /// The directory that it was unpacked into.
        directory: PathBuf,
        /// The last line of tar's output.
        reason: String,
    },
    /// The archive's programs do not run on this system: a library is missing, or too old.
    #[error(
        "the PostgreSQL that was downloaded into {directory:?} does not run here ({reason}): install what it lacks, or {}",
        how_to_install!()
    )]
    DoesNotRun {
        /// Where its programs are.
        directory: PathBuf,
        /// The dynamic linker's message, or the system's error.
        reason: String,
    },
    /// `POSTGRES_BIN` was given, and it is not where the binaries are.
    #[error(
        "POSTGRES_BIN: {directory:?} holds no initdb and postgres of version 15 or later that run; give the directory of both or \
         unset it"
    )]
    NotInDirectory {
        /// The value of `POSTGRES_BIN`.
        directory: PathBuf,
    },
    /// The data is of another major version than every installation found.
    #[error(
        "the data in {cluster:?} is of PostgreSQL {data} and {installed} is installed: install PostgreSQL {data} \
         (POSTGRES_BIN names its directory if it is not found), or move {cluster:?} away to begin with no data"
    )]
    VersionMismatch {
        /// The directory whose data was found.
        cluster: PathBuf,
        /// The major version of the data.
        data: String,
        /// The newest version found, "PostgreSQL 18" or "none".
        installed: String,
    },
    /// Another process of this program uses the data directory.
    #[error(
        "{data_dir:?} is in use by a PostgreSQL of process {process}: stop that one or give another data directory"
    )]
    AlreadyRunning {
        /// The directory that both want.
        data_dir: PathBuf,
        /// The process that holds it, or "unknown".
        process: String,
    },
    /// A PostgreSQL that this program did not start runs on the data.
    #[error("PostgreSQL process {process} already runs on {cluster:?}: stop it or give another data directory")]
    ForeignPostgres {
        /// The directory that PostgreSQL runs on.
        cluster: PathBuf,
        /// Its process.
        process: i32,
    },
    /// What a killed predecessor left behind did not end within the bound.
    #[error(
        "the PostgreSQL of a killed predecessor has not left {data_dir:?} within {} s: try again, or end it by hand",
        waited.as_secs()
    )]
    PredecessorRemains {
        /// The directory that it holds.
        data_dir: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A directory stands where the data should be, and it is not PostgreSQL's.
    #[error("{path:?} holds no PostgreSQL data: move it away or give another data directory")]
    NotACluster {
        /// The directory in the way.
        path: PathBuf,
    },
    /// A file or directory belongs to somebody else than it must.
    #[error("{path:?} belongs to user {owner}, not to {expected}: run as its owner or give another data directory")]
    NotOurs {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Whose it must be.
        expected: String,
    },
    /// A directory in a place that everybody can write to is not what this program makes.
    #[error("{path:?} was not made by this program (owner or mode differ): remove it and try again")]
    Untrusted {
        /// The directory.
        path: PathBuf,
    },
    /// PostgreSQL refuses to run as root, and there is nobody else to run it.
    #[error("PostgreSQL does not run as root, and there is no user postgres or nobody: run as another user")]
    NobodyToRunAs,
    /// `initdb` failed.
    #[error("initdb failed ({status}); the end of {log:?}: {excerpt}")]
    InitFailed {
        /// How it ended.
        status: ExitStatus,
        /// Where all its output is.
        log: PathBuf,
        /// The last lines of it, joined.
        excerpt: String,
    },
    /// `initdb` did not end within the bound.
    #[error("initdb has not ended within {} s and was stopped; its output is in {log:?}", waited.as_secs())]
    InitTooSlow {
        /// How long it was waited for.
        waited: Duration,
        /// Where all its output is.
        log: PathBuf,
    },
    /// PostgreSQL ended instead of accepting connections.
    #[error("PostgreSQL ended ({status}) before it accepted connections; the end of {log:?}: {excerpt}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The last lines of it, joined.
        excerpt: String,
    },
    /// PostgreSQL did not accept connections within the bound and was stopped.
    #[error("PostgreSQL accepts no connections after {} s ({last}); see {log:?}", waited.as_secs())]
    NotReady {
        /// How long it was waited for.
        waited: Duration,
        /// What the last attempt to connect said.
        last: String,
        /// Its log.
        log: PathBuf,
    },
    /// PostgreSQL refused what it was asked.
    #[error("PostgreSQL: cannot {action}: {reason}")]
    Refused {
        /// What was asked.
        action: String,
        /// What it said.
        reason: String,
    },
    /// Not even SIGKILL ended PostgreSQL within the bound.
    #[error("PostgreSQL process {process} does not end, not even on SIGKILL: its disk may hang")]
    StillRunning {
        /// Its process.
        process: i32,
    },
    /// The operating system refused something.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Names what was tried, and on what, in an [`io::Error`].
pub(super) fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
    let path = path.to_owned();
    move |source| PostgresError::Io { action, path, source }
}
