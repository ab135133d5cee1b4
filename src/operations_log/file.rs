//! The file under the log: what the writer asks of it, and the real one.
//!
//! The writer knows a file only by [`LogFile`], so that tests can give it one that fails at any byte. Nothing here
//! decides anything about lines; it never writes by itself.
//!
//! A regular file is locked (`flock`) for as long as it is open: the lines of a second process would be cut off by the
//! first one's failed writes.

use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Room for the longest line, which a probe writes in blanks: a context of 4,096 and a user id of 256 characters, each
/// escaped to 12 bytes, and the rest.
pub(super) const PROBE_BYTES: usize = 64 << 10;

/// How long a predecessor that still writes the file is waited for at the start.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How often the lock is tried meanwhile.
const LOCK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often a file is opened that is renamed each time before it is locked.
const OPENINGS: usize = 8;

/// Why the log could not be opened. The message names the path.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened for appending, or created.
    #[error("operations log {path}: cannot be opened for appending: {source}")]
    Open {
        /// As configured.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others than the owner can read or write the file, and that cannot be changed.
    #[error("operations log {path}: its mode cannot be set to 0600: {source}")]
    Mode {
        /// As configured.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It cannot be told whether the file ends with a whole line.
    #[error("operations log {path}: its end cannot be read: {source}")]
    Read {
        /// As configured.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process writes the file.
    #[error(
        "operations log {path}: another process writes it; give each replica a file of its own, or stop the other process"
    )]
    Locked {
        /// As configured.
        path: PathBuf,
    },
    /// The thread that writes cannot be started.
    #[error("operations log: its thread cannot be started: {source}")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
}

impl OpenError {
    /// What the operating system said, but for a lock that somebody else holds.
    pub(super) fn source(&self) -> Option<&io::Error> {
        match self {
            Self::Open { source, .. }
            | Self::Mode { source, .. }
            | Self::Read { source, .. }
            | Self::Thread { source } => Some(source),
            Self::Locked { .. } => None,
        }
    }
}

/// What is known of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// A regular file of so many bytes. It can be cut.
    Regular { length_bytes: u64 },
    /// A regular file that no directory names any more: what is written to it is lost.
    Unlinked,
    /// A device, a pipe or a terminal: what was written cannot be taken back.
    Stream,
}

/// An open file that only this process writes. The calls block.
pub(super) trait LogFile: Send + Sync + 'static {
    fn condition(&self) -> io::Result<Condition>;
    /// One write(2) at the end, which may take fewer bytes than given.
    fn append(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts the file to `length_bytes`.
    fn truncate(&self, length_bytes: u64) -> io::Result<()>;
    /// fdatasync(2); nothing where there is no disk under the file.
    fn sync(&self) -> io::Result<()>;
}

/// Where log files are opened; each call gives the file that is at the configured place now.
pub(super) trait Storage: Send + Sync + 'static {
    type File: LogFile;
    /// Never waits for a lock. `current` is what is open already, and is not written to any more: if that is the file, its
    /// lock goes over to what is returned.
    fn open(&self, current: Option<&Self::File>) -> Result<Opened<Self::File>, OpenError>;
}

/// A file just opened.
pub(super) struct Opened<F> {
    pub(super) file: F,
    /// It ends in the middle of a line, as a crash leaves it.
    pub(super) torn: bool,
    /// There was none at the place, and it was made.
    pub(super) is_new: bool,
}

/// The configured path.
pub(super) struct PathStorage {
    path: PathBuf,
}

impl PathStorage {
    const MODE: u32 = 0o600;
    /// What `MODE` grants to nobody.
    const LOOSE_BITS: u32 = 0o177;

    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// As [`Storage::open`], but a predecessor that still holds the lock is waited for: it may be answering its last
    /// requests.
    pub(super) fn open_first(&self) -> Result<Opened<RealFile>, OpenError> {
        self.open_within(LOCK_PATIENCE, None)
    }

    fn open_within(&self, patience: Duration, current: Option<&RealFile>) -> Result<Opened<RealFile>, OpenError> {
        let path = &self.path;
        let (file, is_new) = self.open_and_lock(patience, current)?;
        let mut torn = false;
        if file.is_regular {
            Self::tighten_mode(&file.file).map_err(|source| OpenError::Mode {
                path: path.clone(),
                source,
            })?;
            torn = Self::ends_in_mid_line(&file.file).map_err(|source| OpenError::Read {
                path: path.clone(),
                source,
            })?;
            sync_directory_of(path);
        }
        Ok(Opened { file, torn, is_new })
    }

    /// The file at the path, locked if it is a regular one, and whether it was made.
    fn open_and_lock(&self, patience: Duration, current: Option<&RealFile>) -> Result<(RealFile, bool), OpenError> {
        let give_up_at = Instant::now() + patience;
        for _ in 0..OPENINGS {
            let (opened, is_new) = self.open_for_appending().map_err(|source| self.not_opened(source))?;
            if let Some(current) = current.filter(|current| current.is_same_as(&opened)) {
                // A lock belongs to what was opened: this opening of the same file would wait for ourselves. What was
                // opened before may be broken for good, so it is not used on. Should another process take the lock in
                // between, nothing is written until it is free.
                if let Err(error) = current.file.unlock() {
                    tracing::debug!(%error, "the operations log opened before keeps its lock");
                }
            }
            if !opened.is_regular {
                return Ok((opened, is_new));
            }
            self.lock(&opened.file, give_up_at)?;
            // Whoever held the lock may have written to a file that was new a moment ago.
            let metadata = opened.file.metadata().map_err(|source| self.not_opened(source))?;
            let is_new = is_new && metadata.len() == 0;
            // Whoever held the lock may have been told meanwhile that the file was rotated: it has let go of it only when
            // it had the new one.
            if fs::metadata(&self.path).is_ok_and(|now| identity(&now) == opened.identity) {
                return Ok((opened, is_new));
            }
        }
        Err(self.not_opened(Errno::ESTALE.into()))
    }

    /// Does not wait for a FIFO's reader: without one the open fails, as a write would.
    fn open_for_appending(&self) -> io::Result<(RealFile, bool)> {
        // Reading is needed to see a torn last line. A FIFO opened for reading would have us as its reader.
        let is_file_or_new = fs::metadata(&self.path).map_or(true, |metadata| metadata.is_file());
        let mut options = OpenOptions::new();
        options
            .append(true)
            .read(is_file_or_new)
            .mode(Self::MODE)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
        let made = match options.clone().create_new(is_file_or_new).open(&self.path) {
            // A name that leads to nothing counts as a file that is there, and what it leads to is made.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            made => Some(made?),
        };
        let is_new = made.is_some() && is_file_or_new;
        let file = match made {
            Some(file) => file,
            None => options.create(true).open(&self.path)?,
        };
        // From here on a slow reader is waited for, in the log's own thread.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
        let metadata = file.metadata()?;
        let opened = RealFile {
            file,
            is_regular: metadata.is_file(),
            had_a_name: metadata.nlink() > 0,
            identity: identity(&metadata),
        };
        Ok((opened, is_new))
    }

    fn lock(&self, file: &File, give_up_at: Instant) -> Result<(), OpenError> {
        let mut is_told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up_at => {
                    if !std::mem::replace(&mut is_told, true) {
                        let (path, seconds) = (self.path.display(), LOCK_PATIENCE.as_secs());
                        tracing::warn!(%path, "another process writes the operations log; waiting up to {seconds} s for its end");
                    }
                    // A wait in the kernel has no end of its own.
                    std::thread::sleep(LOCK_AGAIN_AFTER);
                }
                Err(TryLockError::WouldBlock) => {
                    let path = self.path.clone();
                    return Err(OpenError::Locked { path });
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(%error, "the operations log cannot be locked here; no other process may write it");
                    return Ok(());
                }
            }
        }
    }

    fn not_opened(&self, source: io::Error) -> OpenError {
        OpenError::Open {
            path: self.path.clone(),
            source,
        }
    }

    fn tighten_mode(file: &File) -> io::Result<()> {
        if file.metadata()?.mode() & Self::LOOSE_BITS != 0 {
            file.set_permissions(Permissions::from_mode(Self::MODE))?;
        }
        Ok(())
    }

    /// Whether the file ends in the middle of a line. Blanks on a line of their own, left by a process that died between
    /// a probe's write and its cut, are cut off, where that can be done.
    fn ends_in_mid_line(file: &File) -> io::Result<bool> {
        let length_bytes = file.metadata()?.len();
        // The line break before the blanks too.
        let mut end = vec![0; usize::try_from(length_bytes).unwrap_or(usize::MAX).min(PROBE_BYTES + 1)];
        let begin = length_bytes - end.len() as u64;
        file.read_exact_at(&mut end, begin)?;
        let text = end.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let is_line_of_blanks = text < end.len() && (text == 0 && begin == 0 || end[..text].ends_with(b"\n"));
        // A file that is append-only keeps them, and they are closed like any fragment.
        if is_line_of_blanks && file.set_len(begin + text as u64).is_ok() {
            end.truncate(text);
        }
        Ok(end.last().is_some_and(|last| *last != b'\n'))
    }
}

impl Storage for PathStorage {
    type File = RealFile;

    fn open(&self, current: Option<&RealFile>) -> Result<Opened<RealFile>, OpenError> {
        self.open_within(Duration::ZERO, current)
    }
}

/// What tells a file from every other one.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Makes the name of a new file survive a power cut, where that can be done: a directory that may be entered but not
/// read cannot be synced, and that is no reason not to serve.
pub(super) fn sync_directory_of(path: &Path) {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        tracing::debug!(%error, "the operations log's directory was not synced");
    }
}

/// A file of the operating system.
pub(super) struct RealFile {
    file: File,
    is_regular: bool,
    /// `/dev/stdout` may lead to a file without a name (a memfd, a temporary file): opening it again changes nothing.
    had_a_name: bool,
    identity: (u64, u64),
}

impl RealFile {
    fn is_same_as(&self, other: &Self) -> bool {
        self.is_regular && other.is_regular && self.identity == other.identity
    }
}

impl LogFile for RealFile {
    fn condition(&self) -> io::Result<Condition> {
        if !self.is_regular {
            return Ok(Condition::Stream);
        }
        let metadata = self.file.metadata()?;
        Ok(if self.had_a_name && metadata.nlink() == 0 {
            Condition::Unlinked
        } else {
            Condition::Regular {
                length_bytes: metadata.len(),
            }
        })
    }

    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn truncate(&self, length_bytes: u64) -> io::Result<()> {
        self.file.set_len(length_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        match self.file.sync_data() {
            // Pipes and devices have nothing to sync and say so in these ways.
            Err(error)
                if !self.is_regular
                    && matches!(
                        Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                        Errno::EINVAL | Errno::EROFS | Errno::ENOTSUP
                    ) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::super::tests::real_files::Directory;
    use super::*;

    /// Where the next byte would be read or written by this opening of a file; each opening has a place of its own.
    fn position(file: &RealFile) -> u64 {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.file.as_raw_fd())).unwrap();
        let position = info.lines().find_map(|line| line.strip_prefix("pos:")).unwrap();
        position.trim().parse().unwrap()
    }

    #[test]
    fn a_file_that_is_opened_anew_is_not_the_old_opening_again_and_keeps_its_lock() {
        let directory = Directory::new();
        let storage = PathStorage::new(directory.log());
        let first = storage.open_first().unwrap().file;
        first.append(b"line\n").unwrap();
        assert_eq!(position(&first), 5);
        // The first one may be broken for good, as after the loss of a file server.
        let second = storage.open(Some(&first)).unwrap().file;
        assert_eq!(position(&second), 0);
        drop(first);
        assert!(matches!(storage.open(None), Err(OpenError::Locked { .. })));
        drop(second);
        storage.open(None).unwrap();
    }
}
