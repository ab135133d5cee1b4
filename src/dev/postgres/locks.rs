//! Two locks on the data directory. Both are `flock`s: the kernel drops them with the last process that has the file
//! open, so that none is ever stale.
//!
//! - `lock` is held by this process alone: it tells a second start that a first one runs.
//! - `postgres.lock` is handed down to `initdb`, PostgreSQL and all their children. While it is held and `lock` is not,
//!   somebody's killed predecessor is still shutting down. `postmaster.pid` cannot tell that: it names a number, which
//!   may be another process by now, and it says nothing of `initdb`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::{PostgresError, failed_to};

/// How long a killed predecessor's PostgreSQL may take to end: it kills its own children after 5 s.
const PREDECESSOR_BOUND: Duration = Duration::from_secs(20);

/// How often a lock is tried that cannot be awaited within a bound.
const PAUSE: Duration = Duration::from_millis(20);

/// Both locks.
pub(super) struct Locks {
    own: File,
    inherited: File,
}

impl Locks {
    /// Takes both, waiting at most 20 s for what a killed predecessor left.
    ///
    /// # Errors
    ///
    /// [`PostgresError::AlreadyRunning`] at once if a process of this program uses the directory;
    /// [`PostgresError::PredecessorRemains`] after the wait; [`PostgresError::Io`].
    pub(super) async fn take(data_dir: &Path) -> Result<Self, PostgresError> {
        let mut own = take_own(data_dir)?;
        let inherited = take_inherited(data_dir).await?;
        let path = data_dir.join("lock");
        own.set_len(0).map_err(failed_to("write", &path))?;
        writeln!(own, "{}", std::process::id()).map_err(failed_to("write", &path))?;
        Ok(Self { own, inherited })
    }

    /// What children are to hold open.
    pub(super) fn inherited(&self) -> &File {
        &self.inherited
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        // Unlocked and not only closed: a process that another thread is forking right now has it open too, until its
        // exec, and the directory must be free when this returns. The inherited one is only closed: it is to last as
        // long as any child does.
        let _ = self.own.unlock();
    }
}

fn take_own(data_dir: &Path) -> Result<File, PostgresError> {
    let path = data_dir.join("lock");
    let mut file = open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: it may be empty, or not readable.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let known = !holder.is_empty() && holder.len() <= 20 && holder.bytes().all(|b| b.is_ascii_digit());
            Err(PostgresError::AlreadyRunning {
                data_dir: data_dir.to_owned(),
                process: if known { holder } else { "(unknown)" }.to_owned(),
            })
        }
        Err(TryLockError::Error(error)) => Err(failed_to("lock", &path)(error)),
    }
}

async fn take_inherited(data_dir: &Path) -> Result<File, PostgresError> {
    let path = data_dir.join("postgres.lock");
    let file = open(&path)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed_to("lock", &path)(error)),
            Err(TryLockError::WouldBlock) if start.elapsed() < PREDECESSOR_BOUND => sleep(PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                return Err(PostgresError::PredecessorRemains {
                    data_dir: data_dir.to_owned(),
                    waited: PREDECESSOR_BOUND,
                });
            }
        }
    }
}

fn open(path: &Path) -> Result<File, PostgresError> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed_to("open", path))
}
