//! The file `<log>.recovering`: since when changes may lack their lines, kept while that is not settled.
//!
//! The lines that a replica writes after its start would make the end of the log look complete. Should it die before it
//! has looked for the changes of the run before, the next start finds here where to begin.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::file::sync_directory_of;
use crate::domain::Timestamp;
use crate::small_file;

/// What the mark's name adds to the log's. Such a file is never taken for a rotated log.
pub(super) const SUFFIX: &str = ".recovering";
/// Under this name it is written before it takes its place.
const UNFINISHED_SUFFIX: &str = ".recovering.new";

/// Longer than any moment.
const MOST_BYTES: u64 = 64;

/// The mark beside a log. The calls block.
#[derive(Clone, Debug)]
pub struct RecoveryMark {
    path: PathBuf,
    unfinished: PathBuf,
}

impl RecoveryMark {
    /// The mark that belongs to the log at `log`.
    pub fn beside(log: &Path) -> Self {
        let named = |suffix: &str| {
            let mut name = OsString::from(log);
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            path: named(SUFFIX),
            unfinished: named(UNFINISHED_SUFFIX),
        }
    }

    /// The moment of the mark, if there is one.
    ///
    /// # Errors
    ///
    /// `InvalidData` where the file holds no moment; otherwise the operating system's, or that it is larger than a mark or
    /// no regular file. Takes 10 seconds at most.
    pub fn read(&self) -> io::Result<Option<Timestamp>> {
        let bytes = match small_file::read_own(&self.path, MOST_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let text = String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some(Timestamp::parse(text.trim_end()).map_err(invalid)?))
    }

    /// Makes this the moment of the mark; a crash leaves the mark as it was or as it is to be. Its mode is 0600.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn write(&self, moment: Timestamp) -> io::Result<()> {
        let _ = fs::remove_file(&self.unfinished);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.unfinished)?;
        writeln!(file, "{}", moment.to_rfc3339_microseconds())?;
        file.sync_all()?;
        fs::rename(&self.unfinished, &self.path)?;
        sync_directory_of(&self.path);
        Ok(())
    }

    /// Takes the mark away.
    ///
    /// # Errors
    ///
    /// The operating system's; that there is none is not an error.
    pub fn remove(&self) -> io::Result<()> {
        // Left where the disk was full.
        let _ = fs::remove_file(&self.unfinished);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Whether a directory's entry is the mark of a log, or one on its way.
    pub(super) fn is_named(name: &[u8]) -> bool {
        name.ends_with(SUFFIX.as_bytes()) || name.ends_with(UNFINISHED_SUFFIX.as_bytes())
    }
}
