//! The data as PostgreSQL keeps it: made once by `initdb`, kept from then on.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::error::{PostgresError, failed_to};
use super::installation::Installation;
use super::locks::Locks;
use super::place::Place;
use super::process::DirectChild;
use super::server_log::ServerLog;

/// How long `initdb` may take; it takes about a second where the disk is not busy.
const INITDB_BOUND: Duration = Duration::from_secs(180);

/// The variables that PostgreSQL's programs inherit. Not the others: `PG…` would change settings behind our back, and
/// some of the service's hold secrets.
const INHERITED: [&str; 2] = ["PATH", "TZ"];

/// The major version of the data, or `None` if there is none yet.
///
/// # Errors
///
/// [`PostgresError::NotACluster`] if something else is there.
pub(super) fn major_of_data(place: &Place) -> Result<Option<String>, PostgresError> {
    let cluster = place.cluster();
    match fs::read_to_string(cluster.join("PG_VERSION")) {
        Ok(version) => Ok(Some(version.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(&cluster).is_err() => Ok(None),
        Err(_) => Err(PostgresError::NotACluster { path: cluster }),
    }
}

/// A command of PostgreSQL's, run as its user, printing to the log.
///
/// # Errors
///
/// [`PostgresError::Io`] if this process has no file descriptor left.
pub(super) fn command(program: &Path, place: &Place, log: &ServerLog) -> Result<Command, PostgresError> {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // The release archive's library of replication does not look for libpq beside itself, and would take the system's.
    let own = program.ancestors().nth(2).map(|installation| installation.join("lib"));
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let inherited = std::env::split_paths(&inherited).filter(|path| !path.as_os_str().is_empty());
    let libraries = own.into_iter().chain(inherited);
    if let Ok(libraries) = std::env::join_paths(libraries) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    place.account.run(&mut command);
    log.attach(&mut command)?;
    Ok(command)
}

/// Makes the data. It appears under its name only when it is complete: what an interrupted `initdb` left has another
/// name, is ours without doubt (the locks are held) and is removed here.
///
/// Over the socket everybody is trusted, whose directory only PostgreSQL's user and root can enter. Over TCP, which only
/// a caller's setting opens, nobody is let in without a password, and there is none until somebody sets one.
///
/// # Errors
///
/// [`PostgresError::InitFailed`], [`PostgresError::InitTooSlow`] or [`PostgresError::Io`].
pub(super) async fn initialize(
    place: &Place,
    installation: &Installation,
    locks: &Locks,
    log: &ServerLog,
) -> Result<(), PostgresError> {
    let unfinished = place.initializing();
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed_to("remove", &unfinished)(error)),
        _ => place.make_private(&unfinished)?,
    }
    let initdb = installation.program("initdb");
    let mut command = command(&initdb, place, log)?;
    command.arg("-D").arg(&unfinished);
    command.args(["-U", "balance", "--encoding=UTF8", "--locale=C"]);
    command.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
    tracing::info!(directory = %place.cluster().display(), "making the data of PostgreSQL");
    // On SIGTERM initdb removes what it has made so far. Its own child ends when initdb's end of their pipe closes.
    let child = DirectChild::spawn(command, Signal::SIGTERM, locks.inherited())
        .await
        .map_err(failed_to("run", &initdb))?;
    let status = timeout(INITDB_BOUND, child.exited())
        .await
        .map_err(|_| PostgresError::InitTooSlow {
            waited: INITDB_BOUND,
            log: log.path().to_owned(),
        })?;
    if !status.success() {
        return Err(PostgresError::InitFailed {
            status,
            log: log.path().to_owned(),
            excerpt: log.excerpt(),
        });
    }
    let cluster = place.cluster();
    fs::rename(&unfinished, &cluster).map_err(failed_to("name", &cluster))?;
    // initdb has synced what is inside; the new name is in the directory above.
    let synced = File::open(&place.base).and_then(|directory| directory.sync_all());
    synced.map_err(failed_to("sync", &place.base))
}

/// Removes a `postmaster.pid` whose process is no PostgreSQL of this data.
///
/// PostgreSQL itself does so if no process has that number. If one has (after a reboot, some daemon of the same user)
/// it refuses to start, although the locks say that none of ours runs.
///
/// # Errors
///
/// [`PostgresError::ForeignPostgres`] if a PostgreSQL that somebody started by hand runs there; [`PostgresError::Io`].
#[cfg(target_os = "linux")]
pub(super) fn clear_stale_pid_file(cluster: &Path) -> Result<(), PostgresError> {
    let path = cluster.join("postmaster.pid");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let Some(process) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else {
        return Ok(());
    };
    let directory = Path::new("/proc").join(process.to_string());
    if !directory.exists() {
        return Ok(());
    }
    // A postmaster's working directory is its data directory.
    if fs::read_link(directory.join("cwd")).is_ok_and(|cwd| cwd == cluster) {
        return Err(PostgresError::ForeignPostgres {
            cluster: cluster.to_owned(),
            process,
        });
    }
    fs::remove_file(&path).map_err(failed_to("remove", &path))
}

/// Elsewhere nothing says cheaply what a process is: PostgreSQL decides, and says which file to remove.
#[cfg(not(target_os = "linux"))]
pub(super) fn clear_stale_pid_file(_cluster: &Path) -> Result<(), PostgresError> {
    Ok(())
}
