//! Appends whole lines to the file, or says exactly how many are on it.
//!
//! After a failure the file ends where its last good line ends: what a short write left is cut off, or, where it cannot
//! be cut off, closed with a line break before anything else is written. It never waits, retries or keeps a line: that
//! is the writer's. The calls block.

use std::io;
use std::sync::Arc;

use nix::errno::Errno;

use super::file::{Condition, LogFile, Opened, PROBE_BYTES, Storage};
use super::health::LogFailure;
use crate::config::SyncPolicy;

/// Most bytes of one write(2), but for a single line that is longer.
const WRITE_BYTES: usize = 1 << 20;

/// What became of the lines of one call. They are in the order given: first the acknowledged, then the unsettled, then
/// those that are not on the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Lines that are on the file, as safe as the policy asks for.
    pub(super) acknowledged: usize,
    /// Lines that are on the file though they failed: they could not be forced to the disk, or lack their line break, and
    /// could not be taken back. To write them again would double them.
    pub(super) unsettled: usize,
    /// Bytes of the acknowledged lines.
    pub(super) bytes: usize,
    /// Why the rest is not on the file.
    pub(super) failure: Option<LogFailure>,
}

pub(super) struct Appender<S: Storage> {
    storage: S,
    file: Arc<S::File>,
    policy: SyncPolicy,
    /// The file ends in the middle of a line; the next write begins with a line break.
    torn: bool,
    /// The open file is no use any more, or not the one that is wanted.
    must_open: bool,
    buffer: Vec<u8>,
}

impl<S: Storage> Appender<S> {
    pub(super) fn new(storage: S, opened: Opened<S::File>, policy: SyncPolicy) -> Self {
        Self {
            storage,
            file: Arc::new(opened.file),
            policy,
            torn: opened.torn,
            must_open: false,
            buffer: Vec::new(),
        }
    }

    /// The open file, to be synced elsewhere while lines are written.
    pub(super) fn file(&self) -> Arc<S::File> {
        Arc::clone(&self.file)
    }

    /// Opens the file at the configured place anew; lines go there from now on, or nowhere until that succeeds.
    pub(super) fn reopen(&mut self) -> Result<(), LogFailure> {
        self.must_open = true;
        let opened = self.storage.open(Some(&self.file));
        let opened = opened.map_err(|error| LogFailure::open(&error))?;
        // Opening a stream again leads to the same stream, and to the same fragment at its end. A fragment that is closed
        // without need is an empty line.
        let may_be_stream = matches!(opened.file.condition(), Ok(Condition::Stream) | Err(_));
        self.torn = opened.torn || may_be_stream && self.torn;
        self.file = Arc::new(opened.file);
        self.must_open = false;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), LogFailure> {
        match self.policy {
            SyncPolicy::Never => Ok(()),
            SyncPolicy::Always | SyncPolicy::EverySecond => self.file.sync().map_err(|error| LogFailure::sync(&error)),
        }
    }

    /// Appends as many of the lines as can be, each ending in a line break.
    pub(super) fn append<L: AsRef<[u8]>>(&mut self, lines: &[L]) -> Progress {
        let mut progress = Progress::default();
        while progress.acknowledged < lines.len() && progress.failure.is_none() {
            let rest = &lines[progress.acknowledged..];
            let chunk = self.append_chunk(&rest[..chunk_len(rest)]);
            progress.acknowledged += chunk.acknowledged;
            progress.unsettled = chunk.unsettled;
            progress.bytes += chunk.bytes;
            progress.failure = chunk.failure;
        }
        progress
    }

    /// Finds out whether lines can be written, and leaves nothing behind that is not a line.
    ///
    /// On a regular file it writes room for the longest line, in blanks without a line break, and cuts it off again:
    /// the very calls that a line needs. One byte would still fit into the last block of a full disk. No reader of
    /// lines sees them; what a crash between the two calls leaves is cut off when the file is opened. On a stream, where nothing can be
    /// taken back, an empty write asks the driver (`/dev/full` refuses it).
    pub(super) fn probe(&mut self) -> Result<(), LogFailure> {
        let base = self.prepare()?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(if base.is_some() { PROBE_BYTES } else { 0 }, b' ');
        let (written, error) = self.write(&buffer);
        self.buffer = buffer;
        // Blanks that cannot be cut off (the file may be append-only) are closed with a line break like any fragment:
        // that lines can be written is known all the same.
        let _ = self.cut(base, 0, written);
        match error {
            Some(error) => Err(self.failed(&error)),
            None => self.sync(),
        }
    }

    fn append_chunk<L: AsRef<[u8]>>(&mut self, lines: &[L]) -> Progress {
        let base = match self.prepare() {
            Ok(base) => base,
            Err(failure) => {
                return Progress {
                    failure: Some(failure),
                    ..Progress::default()
                };
            }
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        lines.iter().for_each(|line| buffer.extend_from_slice(line.as_ref()));
        let (written, error) = self.write(&buffer);
        buffer.shrink_to(WRITE_BYTES);
        self.buffer = buffer;

        let (whole, bytes) = whole_lines(lines, written);
        let mut progress = Progress {
            acknowledged: whole,
            bytes,
            ..Progress::default()
        };
        if let Some(error) = error {
            progress.failure = Some(self.failed(&error));
            let is_cut = self.cut(base, bytes, written).is_ok();
            // A line that lacks only its line break, and stays, is made whole by whatever is written next.
            let lacks_its_break = lines
                .get(whole)
                .is_some_and(|line| bytes + line.as_ref().len() == written + 1);
            progress.unsettled = usize::from(lacks_its_break && !is_cut);
        }
        if whole > 0
            && self.policy == SyncPolicy::Always
            && let Err(failure) = self.sync()
        {
            let was_torn = self.torn;
            let taken_back = self.cut(base, 0, bytes).is_ok();
            self.torn = was_torn && !taken_back;
            progress = Progress {
                unsettled: if taken_back { 0 } else { whole + progress.unsettled },
                failure: Some(failure),
                ..Progress::default()
            };
        }
        progress
    }

    /// Makes the file ready for a line, and tells where that line will begin: nowhere in particular on a stream.
    fn prepare(&mut self) -> Result<Option<u64>, LogFailure> {
        if self.must_open {
            self.reopen()?;
        }
        let mut condition = self.file.condition();
        if let Ok(Condition::Unlinked) = condition {
            tracing::warn!("the operations log's file was removed; opening it anew");
            self.reopen()?;
            condition = self.file.condition();
        }
        let mut base = match condition.map_err(|error| self.failed(&error))? {
            Condition::Regular { length_bytes } => Some(length_bytes),
            Condition::Stream => None,
            Condition::Unlinked => return Err(self.failed(&io::Error::from(Errno::ENOENT))),
        };
        if self.torn {
            if let (_, Some(error)) = self.write(b"\n") {
                return Err(self.failed(&error));
            }
            self.torn = false;
            base = base.map(|length_bytes| length_bytes + 1);
        }
        Ok(base)
    }

    /// Writes all of it unless there is an error; tells how many bytes were taken.
    fn write(&self, bytes: &[u8]) -> (usize, Option<io::Error>) {
        let mut written = 0;
        loop {
            match self.file.append(&bytes[written..]) {
                Ok(0) if written < bytes.len() => return (written, Some(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Some(error)),
            }
            if written == bytes.len() {
                return (written, None);
            }
        }
    }

    /// Cuts off what lies beyond the first `keep` of the `written` bytes that were appended at `base`.
    fn cut(&mut self, base: Option<u64>, keep: usize, written: usize) -> Result<(), LogFailure> {
        let result = match (base, self.file.condition()) {
            (Some(base), Ok(Condition::Regular { length_bytes })) => {
                let end = base + keep as u64;
                // Shorter: someone else emptied the file meanwhile. It must not be made longer, that would fill it
                // with zeros; and where what was written begins in it is not known.
                let is_shorter = length_bytes < base + written as u64;
                match length_bytes > end {
                    true => self.file.truncate(end),
                    false if is_shorter && written > keep && length_bytes > 0 => Err(Errno::ESPIPE.into()),
                    false => Ok(()),
                }
            }
            (_, Err(error)) => Err(error),
            _ if written == keep => Ok(()),
            _ => Err(Errno::ESPIPE.into()),
        };
        result.map_err(|error| {
            self.torn = written > keep;
            self.failed(&error)
        })
    }

    /// Notes when an error means that this open file will never work again, but another may.
    fn failed(&mut self, error: &io::Error) -> LogFailure {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        self.must_open |= matches!(
            errno,
            Errno::EBADF | Errno::EIO | Errno::ENXIO | Errno::EPIPE | Errno::EROFS | Errno::ESTALE | Errno::ENOENT
        );
        LogFailure::write(error)
    }
}

/// How many of the lines go into one write: at least one.
fn chunk_len<L: AsRef<[u8]>>(lines: &[L]) -> usize {
    let mut bytes = 0;
    lines
        .iter()
        .take_while(|line| {
            let is_first = bytes == 0;
            bytes += line.as_ref().len();
            is_first || bytes <= WRITE_BYTES
        })
        .count()
}

/// How many lines lie wholly within the first `written` bytes, and how many bytes they are.
fn whole_lines<L: AsRef<[u8]>>(lines: &[L], written: usize) -> (usize, usize) {
    let mut bytes = 0;
    let whole = lines
        .iter()
        .map(|line| line.as_ref().len())
        .take_while(|length| {
            let fits = bytes + length <= written;
            bytes += if fits { *length } else { 0 };
            fits
        })
        .count();
    (whole, bytes)
}
