//! The file that `initdb` and PostgreSQL write to, and its last lines for error messages.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{PostgresError, failed_to};

/// A log larger than this is put aside at the next start (one such is kept), so that it does not grow for ever.
const ASIDE_BYTES: u64 = 16 * 1024 * 1024;

/// How much of the end is read for a message, and how many lines of it are shown.
const EXCERPT_BYTES: u64 = 16 * 1024;
const EXCERPT_LINES: usize = 6;

/// The log of one run: appended to what earlier runs wrote.
pub(super) struct ServerLog {
    path: PathBuf,
    file: File,
    /// Where this run's part begins.
    begin: u64,
}

impl ServerLog {
    /// Opens the log as this process, so that it may lie where PostgreSQL's user cannot reach: only the descriptor is
    /// handed on.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Io`] if it cannot be written.
    pub(super) fn open(path: PathBuf) -> Result<Self, PostgresError> {
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > ASIDE_BYTES) {
            let aside = path.with_extension("log.1");
            fs::rename(&path, &aside).map_err(failed_to("put aside", &path))?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed_to("write", &path))?;
        let begin = file.metadata().map_err(failed_to("read", &path))?.len();
        Ok(Self { path, file, begin })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends both outputs of `command` here.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Io`] if this process has no file descriptor left.
    pub(super) fn attach(&self, command: &mut Command) -> Result<(), PostgresError> {
        let duplicate = || self.file.try_clone().map_err(failed_to("write", &self.path));
        command.stdin(Stdio::null()).stdout(duplicate()?).stderr(duplicate()?);
        Ok(())
    }

    /// The last lines of this run, in one line.
    pub(super) fn excerpt(&self) -> String {
        match self.tail() {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                match lines.len() {
                    0 => "(nothing)".to_owned(),
                    count => lines[count.saturating_sub(EXCERPT_LINES)..].join(" | "),
                }
            }
            Err(error) => format!("(cannot be read: {error})"),
        }
    }

    fn tail(&self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(self.begin.max(length.saturating_sub(EXCERPT_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(EXCERPT_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
