//! A disk in memory that fails as it is told to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;

use super::config;
use crate::config::SyncPolicy;
use crate::operations_log::OperationsLog;
use crate::operations_log::appender::Appender;
use crate::operations_log::file::{Condition, LogFile, OpenError, Opened, Storage};

/// One disk with one log's place on it. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    /// Every file there ever was.
    pub(super) files: Vec<Content>,
    /// Which of them the log's path names.
    at_path: Option<usize>,
    /// Bytes left on the disk; `None` for plenty.
    pub(super) room: Option<usize>,
    /// A write takes at most so many bytes.
    pub(super) at_most: Option<usize>,
    /// So many writes are interrupted.
    pub(super) interruptions: u32,
    pub(super) sync_fails: bool,
    pub(super) condition_fails: bool,
    pub(super) truncate_fails: bool,
    pub(super) open_fails: bool,
    /// Every write fails with this.
    pub(super) broken: Option<Errno>,
}

#[derive(Default)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    /// How many of them are on the disk for certain.
    pub(super) synced: usize,
    unlinked: bool,
    stream: bool,
}

pub(crate) struct DiskFile {
    disk: Disk,
    index: usize,
}

impl Disk {
    /// A log on this disk; its writer is a task of this runtime.
    pub(crate) fn log(&self, sync: SyncPolicy, instance: &str) -> OperationsLog {
        let appender = Appender::new(self.clone(), self.open(None).unwrap(), sync);
        let (log, writer) = OperationsLog::with_writer(appender, &config(Path::new("disk"), sync, instance));
        tokio::spawn(writer.run());
        log
    }

    /// From now on the disk takes only so many bytes.
    pub(crate) fn fill_up_after(&self, bytes: usize) {
        self.state().room = Some(bytes);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A disk whose log is a pipe: what was written cannot be taken back.
    pub(super) fn with_stream() -> Self {
        let disk = Self::default();
        let stream = Content {
            stream: true,
            ..Content::default()
        };
        disk.state().files.push(stream);
        disk.state().at_path = Some(0);
        disk
    }

    /// Whether all of the file that the log's path names is on the disk for certain.
    pub(super) fn current_file_is_synced(&self) -> bool {
        let state = self.state();
        let current = &state.files[state.at_path.unwrap()];
        current.synced == current.bytes.len()
    }

    /// What logrotate does before it sends SIGHUP.
    pub(super) fn rename(&self) {
        self.state().at_path = None;
    }

    pub(super) fn unlink(&self) {
        let mut state = self.state();
        if let Some(index) = state.at_path.take() {
            state.files[index].unlinked = true;
        }
    }

    pub(crate) fn mend(&self) {
        let mut state = self.state();
        state.room = None;
        state.at_most = None;
        state.interruptions = 0;
        state.sync_fails = false;
        state.condition_fails = false;
        state.truncate_fails = false;
        state.open_fails = false;
        state.broken = None;
    }

    /// All that was ever written, file after file; or only what is on the disk for certain. A file that was left in
    /// the middle of a line ends there: readers of several files do not glue them either.
    pub(crate) fn text(&self, synced_only: bool) -> String {
        let mut text = String::new();
        for file in &self.state().files {
            let end = if synced_only { file.synced } else { file.bytes.len() };
            text.push_str(std::str::from_utf8(&file.bytes[..end]).unwrap());
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }
}

impl Storage for Disk {
    type File = DiskFile;

    fn open(&self, _current: Option<&DiskFile>) -> Result<Opened<DiskFile>, OpenError> {
        let mut state = self.state();
        if state.open_fails {
            return Err(OpenError::Open {
                path: PathBuf::from("disk"),
                source: Errno::EACCES.into(),
            });
        }
        let is_new = state.at_path.is_none();
        let index = state.at_path.unwrap_or_else(|| {
            state.files.push(Content::default());
            state.files.len() - 1
        });
        state.at_path = Some(index);
        let content = &state.files[index];
        let torn = !content.stream && content.bytes.last().is_some_and(|last| *last != b'\n');
        let file = DiskFile {
            disk: self.clone(),
            index,
        };
        Ok(Opened { file, torn, is_new })
    }
}

impl LogFile for DiskFile {
    fn condition(&self) -> io::Result<Condition> {
        let state = self.disk.state();
        if state.condition_fails {
            return Err(Errno::EIO.into());
        }
        Ok(match &state.files[self.index] {
            Content { stream: true, .. } => Condition::Stream,
            Content { unlinked: true, .. } => Condition::Unlinked,
            Content { bytes, .. } => Condition::Regular {
                length_bytes: bytes.len() as u64,
            },
        })
    }

    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        if state.interruptions > 0 {
            state.interruptions -= 1;
            return Err(Errno::EINTR.into());
        }
        if let Some(errno) = state.broken {
            return Err(errno.into());
        }
        let room = state.room.unwrap_or(usize::MAX);
        if room == 0 {
            return Err(Errno::ENOSPC.into());
        }
        let count = bytes.len().min(room).min(state.at_most.unwrap_or(usize::MAX));
        state.room = state.room.map(|room| room - count);
        state.files[self.index].bytes.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn truncate(&self, length_bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.truncate_fails {
            return Err(Errno::EPERM.into());
        }
        let content = &mut state.files[self.index];
        let length = usize::try_from(length_bytes).unwrap();
        assert!(length <= content.bytes.len(), "a file is never made longer");
        let freed = content.bytes.len() - length;
        content.bytes.truncate(length);
        content.synced = content.synced.min(length);
        state.room = state.room.map(|room| room + freed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.sync_fails {
            return Err(Errno::EIO.into());
        }
        let content = &mut state.files[self.index];
        content.synced = content.bytes.len();
        Ok(())
    }
}
