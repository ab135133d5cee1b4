//! Where the data, the log and the socket are, and who may use them.
//!
//! ```text
//! <data directory>/postgres               the data, 0700, PostgreSQL's user's
//! <data directory>/postgres.initializing  the same while initdb is at work
//! <data directory>/postgres.log           what initdb and PostgreSQL print
//! <data directory>/socket                 the Unix socket, 0700, if its path is short enough
//! <data directory>/lock, postgres.lock    see `locks`
//! ```
//!
//! The data directory is the one asked for, unless PostgreSQL's user cannot enter it: a clone below root's home. Then it
//! is one below `/var/tmp` that is the same at every start. Nobody's directory is ever opened up for PostgreSQL.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::account::{Account, is_root, name_of};
use super::error::{PostgresError, failed_to};

/// Where root's data is that PostgreSQL's user could not reach. It outlives a reboot, as `/tmp` need not.
const ELSEWHERE: &str = "/var/tmp";

/// The longest path of a Unix socket on every supported system, in bytes: `sun_path` has 104 on macOS, 108 on Linux,
/// with the terminating zero.
const SOCKET_PATH_BYTES: usize = 103;

/// The longest name of a file in the socket's directory: `.s.PGSQL.65535.lock`.
const SOCKET_NAME_BYTES: usize = 19;

/// The data directory and the user that PostgreSQL runs as there.
pub(super) struct Place {
    /// Absolute.
    pub(super) base: PathBuf,
    pub(super) account: Account,
}

impl Place {
    /// Settles on a directory and makes it.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NobodyToRunAs`]; [`PostgresError::NotOurs`] if the data there is another user's;
    /// [`PostgresError::Untrusted`] if the directory below `/var/tmp` is not root's; [`PostgresError::Io`].
    pub(super) async fn settle(wanted: &Path) -> Result<Self, PostgresError> {
        let wanted = resolve(wanted).map_err(failed_to("find", wanted))?;
        if is_root() {
            let elsewhere = Path::new(ELSEWHERE).join(format!("balance-dev-{:016x}", fingerprint(&wanted)));
            if let Some(account) = root_can_use(&wanted, &elsewhere).await? {
                make_enterable(&wanted)?;
                return Self { base: wanted, account }.checked();
            }
            make_own(&elsewhere)?;
            let account = Account::choose(owner(&elsewhere.join("postgres")))?;
            return Self {
                base: elsewhere,
                account,
            }
            .checked();
        }
        let account = Account::choose(None)?;
        fs::create_dir_all(&wanted).map_err(failed_to("make", &wanted))?;
        Self { base: wanted, account }.checked()
    }

    fn checked(self) -> Result<Self, PostgresError> {
        match owner(&self.cluster()) {
            Some(owner) if owner != self.account.uid => Err(PostgresError::NotOurs {
                path: self.cluster(),
                owner: name_of(owner),
                expected: self.account.name.clone(),
            }),
            _ => Ok(self),
        }
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.base.join("postgres")
    }

    pub(super) fn initializing(&self) -> PathBuf {
        self.base.join("postgres.initializing")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.base.join("postgres.log")
    }

    /// Makes an empty directory that only PostgreSQL's user (and root) can enter.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Io`]: [`ErrorKind::AlreadyExists`] if anything has that name, a dangling link included.
    pub(super) fn make_private(&self, path: &Path) -> Result<(), PostgresError> {
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(failed_to("make", path))?;
        self.account.give(path)
    }

    /// The directory of the socket, empty. Whoever can enter it is trusted as every user of the database: it is what
    /// `trust` rests on.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Untrusted`] if something of that name is not such a directory; [`PostgresError::Io`].
    pub(super) fn socket_dir(&self) -> Result<SocketDir, PostgresError> {
        let beside = self.base.join("socket");
        if beside.as_os_str().len() + 1 + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES {
            if !self.take_socket_dir(&beside)? {
                return Err(PostgresError::Untrusted { path: beside });
            }
            return Ok(SocketDir {
                path: beside,
                temporary: false,
            });
        }
        // The name is the same at every start, so that starts that end with `kill -9` do not pile up directories; the
        // numbers are for somebody else's directory of that name.
        let stem = format!("/tmp/balance-{:016x}", fingerprint(&self.base));
        for number in 0..8 {
            let path = PathBuf::from(format!("{stem}-{number}"));
            if self.take_socket_dir(&path)? {
                return Ok(SocketDir { path, temporary: true });
            }
        }
        Err(PostgresError::Untrusted { path: stem.into() })
    }

    /// Makes the directory, or empties the one of an earlier run; false if what is there is neither.
    fn take_socket_dir(&self, path: &Path) -> Result<bool, PostgresError> {
        match self.make_private(path) {
            Ok(()) => return Ok(true),
            Err(PostgresError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let metadata = fs::symlink_metadata(path).map_err(failed_to("read", path))?;
        if !metadata.is_dir() || metadata.uid() != self.account.uid || metadata.mode() & 0o077 != 0 {
            return Ok(false);
        }
        // A socket's lock file names a process. After a crash that number may be anybody's, and PostgreSQL would not
        // start; our own locks say already that nobody uses this directory.
        for entry in fs::read_dir(path).map_err(failed_to("read", path))?.flatten() {
            if entry.file_name().as_bytes().starts_with(b".s.PGSQL.") {
                fs::remove_file(entry.path()).map_err(failed_to("remove", &entry.path()))?;
            }
        }
        Ok(true)
    }
}

/// Where the Unix socket is.
pub(super) struct SocketDir {
    pub(super) path: PathBuf,
    /// True if it is below `/tmp` and to be removed at the end.
    temporary: bool,
}

impl SocketDir {
    /// Removes it if it is below `/tmp`. PostgreSQL must have ended.
    pub(super) fn remove(&self) {
        if self.temporary {
            // What is left (nothing, after an orderly end) is cleared when the directory is taken again.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Whom root runs PostgreSQL as in `wanted`, or `None` if the data belongs in `elsewhere`.
async fn root_can_use(wanted: &Path, elsewhere: &Path) -> Result<Option<Account>, PostgresError> {
    let owner_there = owner(&wanted.join("postgres"));
    // Data that went elsewhere once stays there, even if the way to `wanted` has been opened since.
    if owner_there.is_none() && owner(elsewhere) == Some(0) && owner(&elsewhere.join("postgres")).is_some() {
        return Ok(None);
    }
    let account = Account::choose(owner_there)?;
    let existing = wanted.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let reachable = account
        .can_enter(existing)
        .await
        .map_err(failed_to("try to enter", existing))?;
    Ok(reachable.then_some(account))
}

/// Makes what is missing of a path, root's, and such that PostgreSQL's user can pass whatever the umask is.
pub(super) fn make_enterable(path: &Path) -> Result<(), PostgresError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.is_dir()).collect();
    for directory in missing.into_iter().rev() {
        fs::create_dir(directory).map_err(failed_to("make", directory))?;
        fs::set_permissions(directory, Permissions::from_mode(0o755)).map_err(failed_to("open", directory))?;
    }
    Ok(())
}

/// Makes a directory of root's in a place where everybody can make one. PostgreSQL's user may pass through it (what is
/// inside is private or root's), and cannot change what root will find there.
pub(super) fn make_own(path: &Path) -> Result<(), PostgresError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed_to("make", path)(error)),
        _ => {}
    }
    if !is_roots_alone(path).map_err(failed_to("read", path))? {
        return Err(PostgresError::Untrusted { path: path.to_owned() });
    }
    fs::set_permissions(path, Permissions::from_mode(0o711)).map_err(failed_to("open", path))
}

/// Whether this is a directory in which only root can change anything. A link is not followed.
pub(super) fn is_roots_alone(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0)
}

/// Whose it is; `None` if there is nothing of that name. A link is not followed.
pub(super) fn owner(path: &Path) -> Option<u32> {
    fs::symlink_metadata(path).as_ref().map(Metadata::uid).ok()
}

/// Absolute, and with links resolved as far as the path exists: two names of one directory are one directory.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for existing in absolute.ancestors() {
        match fs::canonicalize(existing) {
            Ok(resolved) => {
                let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
                // Joining an empty path would add a slash.
                return Ok(if rest.as_os_str().is_empty() {
                    resolved
                } else {
                    resolved.join(rest)
                });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(absolute)
}

/// The FNV-1a hash of a path: the same in every version of this program. It keeps names apart and secures nothing.
fn fingerprint(path: &Path) -> u64 {
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_of_a_path_never_changes() {
        // The test vector of the FNV reference for "foobar".
        assert_eq!(fingerprint(Path::new("foobar")), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_path_that_does_not_exist_yet_is_resolved_as_far_as_it_does() {
        assert_eq!(
            resolve(Path::new("/no/such/place")).unwrap(),
            Path::new("/no/such/place")
        );
        let here = fs::canonicalize(".").unwrap();
        assert_eq!(resolve(Path::new(".")).unwrap(), here);
        assert_eq!(
            resolve(Path::new("no-such-place/below")).unwrap(),
            here.join("no-such-place/below")
        );
    }
}
