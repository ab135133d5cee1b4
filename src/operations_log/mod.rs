//! The operations log: one line of JSON for every answered operation, read by security officers.
//!
//! The promises of the contract that are kept here:
//!
//! - No answer leaves before its line has been handed to the operating system: [`Slot::write`] returns only then, and
//!   with [`SyncPolicy::Always`] only when the line is on the disk. So `kill -9` loses no line of an answered operation.
//! - It fails closed: while lines cannot be written, [`OperationsLog::reserve`] refuses and [`OperationsLog::health`]
//!   says why; the writer tries by itself and recovers.
//! - The line of a change that is committed, or may be, is never given up: if it cannot be written now, it is written
//!   first when it can be, marked `"recovered": true`.
//! - Every line is whole and one of a kind: a torn one, left by a crash or a full disk, is cut off or closed, never
//!   glued to the next.
//!
//! The writer never waits for room in its queue, never reads lines back, never shows a balance or a context anywhere but in its
//! file, and knows nothing of why an operation was answered as it was.
//!
//! **Only one process writes a file.** What a failed write left behind is cut off by length, which would cut another
//! process's lines; each replica has its own `OPERATIONS_LOG`, and locks it. Where the file system knows no locks, that
//! is only said.
//!
//! | file | what |
//! |---|---|
//! | `record` | what is told, and its line |
//! | `writer` | the task: queue, waiters, retained lines, syncing, recovery |
//! | `appender` | appends whole lines to the file or says how many are on it |
//! | `file` | what is asked of a file, and the real one: lock, mode, torn end, devices and pipes |
//! | `health` | what is known outside the task: failing or not, counts |
//! | `trail` | before lines are written: what the log of earlier runs tells |
//! | `backwards` | a file's lines from the last to the first |
//! | `recovery_mark` | the file `<log>.recovering`: since when lines may be missing |

mod appender;
mod backwards;
mod file;
mod health;
mod record;
mod recovery_mark;
#[cfg(test)]
pub(crate) mod tests;
mod trail;
mod writer;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use self::appender::Appender;
use self::file::{Opened, PathStorage, RealFile, Storage};
use self::health::Shared;
use self::writer::{CLOSING_GRACE, Intake, Job, Keep, Leftover, Line, Writer};
use crate::config::{OperationsLogConfig, SyncPolicy};
use crate::domain::Timestamp;

pub use self::file::OpenError;
pub use self::health::{LogFailure, Statistics};
pub use self::record::{OperationName, Outcome, Record};
pub use self::recovery_mark::RecoveryMark;
pub use self::trail::{Caveat, EarlierLog, LoggedChanges, Trail, TrailQuery, read_trail};

/// Slots for the lines of an earlier run's changes, beside those of the operations. The queue takes memory only for the
/// lines that are in it.
const RECOVERY_LINES: usize = 1_024;

/// How long [`WriterTask::finish`] waits for a file that does not answer, after [`CLOSING_GRACE`].
const FINISH_GRACE: Duration = Duration::from_secs(5);

/// Why a line was not written, or could not be now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogUnavailable {
    /// Lines cannot be written; [`OperationsLog::health`] says why. It recovers by itself.
    #[error("the operations log cannot be written")]
    Failing,
    /// Too many operations wait for their lines. Try again later.
    #[error("too many operations wait for the operations log")]
    QueueFull,
    /// The log was closed: the service is shutting down.
    #[error("the operations log is closed")]
    Closed,
}

/// A handle to the log; clones share the one writer.
#[derive(Clone)]
pub struct OperationsLog {
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    sync: SyncPolicy,
}

/// A place in the queue for one line, taken before a change is committed, so that a committed change always has room
/// for its line. Dropping it gives the place back.
pub struct Slot {
    permit: mpsc::OwnedPermit<Job>,
    shared: Arc<Shared>,
}

/// The one writer, to be joined at shutdown.
#[must_use = "without `finish` nobody waits for the last lines"]
pub struct WriterTask {
    shared: Arc<Shared>,
    ended: oneshot::Receiver<Leftover>,
}

/// What could not be done when the log was closed.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Lines of committed changes are not on the file. Their operation ids have been logged.
    #[error("the operations log lacks the lines of {lines} committed changes")]
    LinesMissing {
        /// How many.
        lines: usize,
    },
    /// All lines were handed to the operating system, but the last of them may not be on the disk.
    #[error(transparent)]
    NotSynced(LogFailure),
    /// The file did not answer in time; what waited for it is not written.
    #[error("the operations log did not answer for {} s", .0.as_secs())]
    Stuck(Duration),
    /// The writer panicked.
    #[error("the operations log's writer failed")]
    Panicked,
}

/// A log that is opened and locked, and not written yet: the time to read what earlier runs have left in it.
#[must_use = "it is locked until it is dropped"]
pub struct OpenedLog {
    config: OperationsLogConfig,
    storage: PathStorage,
    opened: Opened<RealFile>,
}

impl OpenedLog {
    /// What it was opened with.
    pub fn config(&self) -> &OperationsLogConfig {
        &self.config
    }

    /// Whether there was no file at the path before.
    pub fn is_new(&self) -> bool {
        self.opened.is_new
    }

    /// Starts the writer on a thread of its own. Whether the file takes lines is tried before this returns: no change is
    /// committed only to find out that its line cannot be written. Must be called, and the writer finished, within the
    /// runtime.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if there can be no such thread.
    pub async fn start(self) -> Result<(OperationsLog, WriterTask), OpenError> {
        let appender = Appender::new(self.storage, self.opened, self.config.sync);
        let (log, mut writer) = OperationsLog::with_writer(appender, &self.config);
        let probing = tokio::task::spawn_blocking(move || {
            writer.probe_first();
            writer
        });
        let writer = probing
            .await
            .map_err(|error| OpenError::Thread { source: error.into() })?;
        let (ending, ended) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("operations-log".to_owned())
            .spawn(move || {
                let _ = ending.send(runtime.block_on(writer.run()));
            })
            .map_err(|source| OpenError::Thread { source })?;
        let shared = Arc::clone(&log.shared);
        Ok((log, WriterTask { shared, ended }))
    }
}

impl OperationsLog {
    /// Opens the file, to append to it, and locks it. A new file has mode 0600; an existing one is given that mode if its
    /// own is looser. A predecessor that still holds the lock is waited for, for up to five seconds.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the path and what is wrong with it.
    pub async fn open(config: OperationsLogConfig) -> Result<OpenedLog, OpenError> {
        let opening = tokio::task::spawn_blocking(move || {
            let storage = PathStorage::new(config.path.clone());
            let opened = storage.open_first()?;
            Ok(OpenedLog {
                config,
                storage,
                opened,
            })
        });
        opening
            .await
            .map_err(|error| OpenError::Thread { source: error.into() })?
    }

    /// [Opens](Self::open) the log and [starts](OpenedLog::start) its writer.
    ///
    /// # Errors
    ///
    /// Those of the two.
    pub async fn start(config: OperationsLogConfig) -> Result<(OperationsLog, WriterTask), OpenError> {
        Self::open(config).await?.start().await
    }

    fn with_writer<S: Storage>(appender: Appender<S>, config: &OperationsLogConfig) -> (Self, Writer<S>) {
        let (queue, jobs) = mpsc::channel(config.operations_at_once + RECOVERY_LINES);
        let shared = Arc::new(Shared::new(&config.instance));
        let writer = Writer::new(Intake::new(jobs), Arc::clone(&shared), appender, config.sync);
        let sync = config.sync;
        (Self { queue, shared, sync }, writer)
    }

    /// Takes a place in the queue for one line; never waits.
    ///
    /// # Errors
    ///
    /// [`LogUnavailable`]: answer the operation with 503, it must not be carried out.
    pub fn reserve(&self) -> Result<Slot, LogUnavailable> {
        if self.queue.is_closed() {
            return Err(LogUnavailable::Closed);
        }
        self.health().map_err(|_| LogUnavailable::Failing)?;
        let permit = self.queue.clone().try_reserve_owned().map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LogUnavailable::QueueFull,
            mpsc::error::TrySendError::Closed(_) => LogUnavailable::Closed,
        })?;
        Ok(Slot {
            permit,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Has the file opened anew once what is being written is written, as after a rotation (SIGHUP); returns before
    /// that. Lines that are queued go to the new file. If it cannot be opened, the log is failing until it can be.
    pub fn reopen(&self) {
        self.shared.reopen.notify_one();
    }

    /// Whether lines can be written, as far as is known.
    ///
    /// # Errors
    ///
    /// [`LogFailure`] says why not, in words that can be shown.
    pub fn health(&self) -> Result<(), LogFailure> {
        match self.shared.health() {
            Ok(()) if self.queue.is_closed() => Err(LogFailure::Closed),
            health => health,
        }
    }

    /// When it is forced to the disk.
    pub fn sync_policy(&self) -> SyncPolicy {
        self.sync
    }

    /// Counts for `/metrics`.
    pub fn statistics(&self) -> Statistics {
        self.shared
            .statistics(self.queue.max_capacity() - self.queue.capacity())
    }

    /// Gives out no more slots, and has the writer end when those given out are used or given back, at the latest after
    /// five seconds. Returns at once; [`WriterTask::finish`] waits.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }
}

impl Slot {
    /// Writes one line. Returns when it has been handed to the operating system, with [`SyncPolicy::Always`] when it is
    /// on the disk. The line is written even if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// [`LogUnavailable`]: the operation must not be answered as the record says. If the record tells of a change
    /// that is or may be stored, its line is kept and written later, marked `"recovered": true`; otherwise there is no
    /// such line, unless the file had taken it whole, then failed, and cannot be cut (a pipe, an append-only file).
    pub async fn write(self, record: &Record<'_>) -> Result<(), LogUnavailable> {
        let mut lines = Lines::now();
        lines.push(self, record);
        lines.write().await.first()
    }
}

/// Lines of operations that are answered at once, written together.
pub struct Lines {
    at: String,
    slots: Vec<Slot>,
    lines: Vec<Line>,
}

/// What became of lines that were written together.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// So many, from the first one on, are with the operating system.
    count: usize,
    /// What the others met.
    failure: LogUnavailable,
}

impl Lines {
    /// No lines yet; all that are added are of operations answered now.
    pub fn now() -> Self {
        Self {
            at: Timestamp::from(SystemTime::now()).to_rfc3339_microseconds(),
            slots: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Adds the line of an operation, which takes its slot.
    pub fn push(&mut self, slot: Slot, record: &Record<'_>) {
        let bytes = record.to_line(&self.at, &slot.shared.instance);
        let keep = match record.may_be_committed() {
            true => Keep::Committed(record.operation_id),
            false => Keep::No,
        };
        self.add(slot, Line { bytes, keep });
    }

    /// Adds the line of a change that was committed earlier without its line, as by a replica that died: marked
    /// `"recovered": true` and, if it cannot be written now, kept like any line of a committed change.
    pub fn push_recovered(&mut self, slot: Slot, record: &Record<'_>) {
        let mut bytes = record.to_line(&self.at, &slot.shared.instance);
        record::mark_recovered(&mut bytes);
        let keep = Keep::Recovered(record.operation_id);
        self.add(slot, Line { bytes, keep });
    }

    fn add(&mut self, slot: Slot, line: Line) {
        self.slots.push(slot);
        self.lines.push(line);
    }

    /// Hands the lines to the writer at once, in this order. What is returned resolves when the writer is done with
    /// them; they are written even if nobody waits for it.
    ///
    /// Of each line that is not written, [`Slot::write`] says what becomes of it.
    pub fn write(self) -> impl Future<Output = Written> + Send + 'static {
        let Lines { slots, lines, .. } = self;
        let mut places = slots.into_iter().map(|slot| slot.permit);
        let waiting = places.next().map(|place| {
            let (done, written) = oneshot::channel();
            let places = places.collect();
            place.send(Job { lines, places, done });
            written
        });
        async move {
            let written = match waiting {
                // Without an answer the writer is gone.
                Some(written) => written.await.unwrap_or(Err(LogUnavailable::Closed)),
                None => Ok(0),
            };
            match written {
                Ok(count) => Written {
                    count,
                    failure: LogUnavailable::Failing,
                },
                Err(failure) => Written { count: 0, failure },
            }
        }
    }
}

impl Written {
    /// That none was written in time.
    pub const NOT_IN_TIME: Written = Written {
        count: 0,
        failure: LogUnavailable::Failing,
    };

    /// Whether the line at `index`, counted from 0, was written.
    ///
    /// # Errors
    ///
    /// [`LogUnavailable`] if it was not.
    pub fn line(self, index: usize) -> Result<(), LogUnavailable> {
        if index < self.count { Ok(()) } else { Err(self.failure) }
    }

    fn first(self) -> Result<(), LogUnavailable> {
        self.line(0)
    }
}

impl WriterTask {
    /// Closes the log, waits for the lines under way, forces the file to the disk as the policy says and ends the
    /// writer: at once when no slot is out, and never later than ten seconds.
    ///
    /// # Errors
    ///
    /// [`FinishError`] says what is missing on the file.
    pub async fn finish(self) -> Result<(), FinishError> {
        self.shared.closing.cancel();
        let limit = CLOSING_GRACE + FINISH_GRACE;
        match tokio::time::timeout(limit, self.ended).await {
            Ok(Ok(Leftover {
                lines: 0,
                failure: None,
            })) => Ok(()),
            Ok(Ok(Leftover {
                lines: 0,
                failure: Some(failure),
            })) => Err(FinishError::NotSynced(failure)),
            Ok(Ok(Leftover { lines, .. })) => Err(FinishError::LinesMissing { lines }),
            Ok(Err(_)) => Err(FinishError::Panicked),
            Err(_) => Err(FinishError::Stuck(limit)),
        }
    }
}
