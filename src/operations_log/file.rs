//! The file under the log: what the writer asks of it, and the real one.
//!
//! The writer knows a file only by [`LogFile`], so that tests can give it one that fails at any byte. Nothing here
//! decides anything about lines; it never writes by itself.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

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
    /// The thread that writes cannot be started.
    #[error("operations log: its thread cannot be started: {source}")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn source(&self) -> &io::Error {
        match self {
            Self::Open { source, .. }
            | Self::Mode { source, .. }
            | Self::Read { source, .. }
            | Self::Thread { source } => source,
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
    fn open(&self) -> Result<Opened<Self::File>, OpenError>;
}

/// A file just opened.
pub(super) struct Opened<F> {
    pub(super) file: F,
    /// It ends in the middle of a line, as a crash leaves it.
    pub(super) torn: bool,
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

    /// Does not wait for a FIFO's reader: without one the open fails, as a write would.
    fn open_for_appending(&self) -> io::Result<RealFile> {
        // Reading is needed to see a torn last line. A FIFO opened for reading would have us as its reader.
        let is_file_or_new = fs::metadata(&self.path).map_or(true, |metadata| metadata.is_file());
        let file = OpenOptions::new()
            .append(true)
            .read(is_file_or_new)
            .create(is_file_or_new)
            .mode(Self::MODE)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(&self.path)?;
        // From here on a slow reader is waited for, in the log's own thread.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
        let metadata = file.metadata()?;
        Ok(RealFile {
            file,
            is_regular: metadata.is_file(),
            had_a_name: metadata.nlink() > 0,
        })
    }

    fn tighten_mode(file: &File) -> io::Result<()> {
        if file.metadata()?.mode() & Self::LOOSE_BITS != 0 {
            file.set_permissions(Permissions::from_mode(Self::MODE))?;
        }
        Ok(())
    }

    fn ends_in_mid_line(file: &File) -> io::Result<bool> {
        let Some(last) = file.metadata()?.len().checked_sub(1) else {
            return Ok(false);
        };
        let mut byte = [0];
        file.read_exact_at(&mut byte, last)?;
        Ok(byte != *b"\n")
    }
}

impl Storage for PathStorage {
    type File = RealFile;

    fn open(&self) -> Result<Opened<RealFile>, OpenError> {
        let path = &self.path;
        let opened = self.open_for_appending().map_err(|source| OpenError::Open {
            path: path.clone(),
            source,
        })?;
        let mut torn = false;
        if opened.is_regular {
            Self::tighten_mode(&opened.file).map_err(|source| OpenError::Mode {
                path: path.clone(),
                source,
            })?;
            torn = Self::ends_in_mid_line(&opened.file).map_err(|source| OpenError::Read {
                path: path.clone(),
                source,
            })?;
            sync_directory_of(path);
        }
        Ok(Opened { file: opened, torn })
    }
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
