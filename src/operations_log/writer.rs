//! The one task that writes: takes what waits in the queue, writes it at once, tells every waiter.
//!
//! It runs on a thread of its own, so that a slow disk holds up no worker of the runtime and no line is handed from
//! thread to thread on its way. Lines are written in the order of the queue.
//!
//! While lines cannot be written it refuses them as they come and tries by itself every [`PROBE_EVERY`]. It keeps the
//! lines of committed changes meanwhile and writes them first when it can; their number is bounded, because no slot is
//! given out while it is failing. It never keeps a line of anything else: that operation has been answered otherwise.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

use super::LogUnavailable;
use super::appender::{Appender, Progress};
use super::file::{LogFile, Storage};
use super::health::{LogFailure, Shared};
use super::record::mark_recovered;
use crate::config::SyncPolicy;
use crate::domain::OperationId;

/// Most jobs of one batch.
const BATCH_JOBS: usize = 1_024;
/// How often a failing log is tried again.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// How long a line may be on the file before it is forced to the disk under `everysec`.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// How long, after the log was closed, slots that were given out before are waited for.
pub(super) const CLOSING_GRACE: Duration = Duration::from_secs(5);

/// Lines on their way to the file, that somebody waits for together.
pub(super) struct Job {
    pub(super) lines: Vec<Line>,
    /// The places of the lines in the queue, but for the one that the job itself takes.
    pub(super) places: Vec<mpsc::OwnedPermit<Job>>,
    /// Told how many of the lines, from the first one on, have been handed to the operating system.
    pub(super) done: oneshot::Sender<Result<usize, LogUnavailable>>,
}

/// Whoever waits for lines, and for how many.
struct Waiter {
    lines: usize,
    done: oneshot::Sender<Result<usize, LogUnavailable>>,
    _places: Vec<mpsc::OwnedPermit<Job>>,
}

pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) keep: Keep,
}

/// What to do with a line that could not be written.
pub(super) enum Keep {
    /// Nothing: its operation is answered with an error.
    No,
    /// Write it later: the change is in the database.
    Committed(Option<OperationId>),
    /// Write it later as it is: it says already that it is late.
    Recovered(Option<OperationId>),
}

impl AsRef<[u8]> for Line {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The receiving end of the queue. Whatever way the writer ends, a slot that is used after it is told so.
pub(super) struct Intake(Option<mpsc::Receiver<Job>>);

impl Intake {
    pub(super) fn new(queue: mpsc::Receiver<Job>) -> Self {
        Self(Some(queue))
    }

    fn queue(&mut self) -> &mut mpsc::Receiver<Job> {
        self.0.as_mut().expect("the queue is there until the intake is dropped")
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let (Some(mut queue), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            queue.close();
            // Ends when the last slot is gone.
            runtime.spawn(async move {
                while let Some(job) = queue.recv().await {
                    let _ = job.done.send(Err(LogUnavailable::Closed));
                }
            });
        }
    }
}

/// What could not be done by the time the writer ended.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    pub(super) lines: usize,
    pub(super) failure: Option<LogFailure>,
}

pub(super) struct Writer<S: Storage> {
    intake: Intake,
    shared: std::sync::Arc<Shared>,
    appender: Appender<S>,
    policy: SyncPolicy,
    retained: Vec<Line>,
    /// The lines of a batch and those who wait for them; empty between batches, kept for their room.
    lines: Vec<Line>,
    waiters: Vec<Waiter>,
    /// When to try again; `None` while lines can be written.
    probe_at: Option<Instant>,
    /// When to force the file to the disk; `None` while all of it is there.
    sync_at: Option<Instant>,
    /// An fdatasync under way beside the writes.
    syncing: Option<JoinHandle<Result<(), LogFailure>>>,
}

impl<S: Storage> Writer<S> {
    pub(super) fn new(
        intake: Intake,
        shared: std::sync::Arc<Shared>,
        appender: Appender<S>,
        policy: SyncPolicy,
    ) -> Self {
        Self {
            intake,
            shared,
            appender,
            policy,
            retained: Vec::new(),
            lines: Vec::new(),
            waiters: Vec::new(),
            probe_at: None,
            sync_at: None,
            syncing: None,
        }
    }

    /// Writes until the log is closed and every slot is used or given back, or all handles are gone. Blocks its thread
    /// on the file.
    pub(super) async fn run(mut self) -> Leftover {
        let closing = self.shared.closing.clone();
        let shared = std::sync::Arc::clone(&self.shared);
        let mut end_at = None;
        let mut jobs = Vec::with_capacity(BATCH_JOBS);
        loop {
            let sync_at = self.sync_at.filter(|_| self.syncing.is_none());
            tokio::select! {
                biased;
                () = closing.cancelled(), if end_at.is_none() => {
                    self.intake.queue().close();
                    end_at = Some(Instant::now() + CLOSING_GRACE);
                }
                () = at(end_at) => break,
                () = shared.reopen.notified() => self.reopen(),
                result = ended(&mut self.syncing) => self.note_sync(result),
                () = at(sync_at) => self.start_sync(),
                () = at(self.probe_at) => self.probe(),
                received = self.intake.queue().recv_many(&mut jobs, BATCH_JOBS) => match received {
                    0 => break,
                    _ => self.write(&mut jobs),
                },
            }
        }
        self.end()
    }

    fn write(&mut self, jobs: &mut Vec<Job>) {
        let mut lines = std::mem::take(&mut self.lines);
        let mut waiters = std::mem::take(&mut self.waiters);
        for job in jobs.drain(..) {
            waiters.push(Waiter {
                lines: job.lines.len(),
                done: job.done,
                _places: job.places,
            });
            lines.extend(job.lines);
        }
        let progress = match self.probe_at {
            Some(_) => Progress::default(),
            None => self.append(&lines),
        };
        lines
            .drain(..)
            .skip(progress.acknowledged + progress.unsettled)
            .for_each(|line| self.keep(line));
        self.shared.count_retained(self.retained.len());
        let mut written = progress.acknowledged;
        for waiter in waiters.drain(..) {
            let its_own = written.min(waiter.lines);
            written -= its_own;
            let _ = waiter.done.send(Ok(its_own));
        }
        (self.lines, self.waiters) = (lines, waiters);
    }

    fn append(&mut self, lines: &[Line]) -> Progress {
        let mut progress = self.shared.watched(|| self.appender.append(lines));
        self.count(&progress);
        if let Some(failure) = progress.failure.take() {
            // Before anyone is told, so that who was refused finds the log failing.
            self.fail(failure);
        }
        progress
    }

    /// Keeps a line that could not be written, if the change is in the database.
    fn keep(&mut self, mut line: Line) {
        match line.keep {
            Keep::No => {}
            Keep::Recovered(_) => self.retained.push(line),
            Keep::Committed(id) => {
                mark_recovered(&mut line.bytes);
                line.keep = Keep::Recovered(id);
                self.retained.push(line);
            }
        }
    }

    fn count(&mut self, progress: &Progress) {
        self.shared.count_lines(progress.acknowledged, progress.bytes);
        match self.policy {
            SyncPolicy::Always if progress.acknowledged > 0 => self.shared.count_sync(),
            SyncPolicy::EverySecond if progress.acknowledged > 0 => {
                self.sync_at.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
            }
            _ => {}
        }
    }

    fn fail(&mut self, failure: LogFailure) {
        self.shared.count_failure();
        if self.probe_at.is_none() {
            tracing::error!(%failure, "operations are refused until the operations log can be written");
        }
        self.shared.set_failing(failure);
        self.probe_at = Some(Instant::now() + PROBE_EVERY);
    }

    /// Finds out whether lines can be written, before the first one comes.
    pub(super) fn probe_first(&mut self) {
        if let Err(failure) = self.shared.watched(|| self.appender.probe()) {
            self.fail(failure);
        }
    }

    /// Tries to write again: the lines that were kept, if there are any, and only then are new ones taken.
    fn probe(&mut self) {
        match self.recover() {
            Ok(()) => {
                self.probe_at = None;
                self.shared.set_working();
                tracing::info!("the operations log can be written again");
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn recover(&mut self) -> Result<(), LogFailure> {
        if self.retained.is_empty() {
            self.shared.watched(|| self.appender.probe())?;
        } else {
            let progress = self.shared.watched(|| self.appender.append(&self.retained));
            self.retained.drain(..progress.acknowledged + progress.unsettled);
            self.shared.count_retained(self.retained.len());
            self.count(&progress);
            progress.failure.map_or(Ok(()), Err)?;
            self.shared.watched(|| self.appender.sync())?;
        }
        if self.policy != SyncPolicy::Never {
            self.shared.count_sync();
        }
        Ok(())
    }

    fn reopen(&mut self) {
        let result = self.shared.watched(|| {
            if let Err(failure) = self.appender.sync() {
                // The file is being put away; refusing operations would not bring back what it has lost.
                tracing::error!(%failure, "the operations log was rotated with lines that are not on the disk");
            }
            self.appender.reopen()
        });
        match result {
            Ok(()) => tracing::info!("the operations log was opened anew"),
            Err(failure) => self.fail(failure),
        }
    }

    /// Forces the file to the disk beside the writes, which go on.
    fn start_sync(&mut self) {
        self.sync_at = None;
        let file = self.appender.file();
        self.syncing = Some(tokio::task::spawn_blocking(move || {
            file.sync().map_err(|error| LogFailure::sync(&error))
        }));
    }

    fn note_sync(&mut self, result: Result<Result<(), LogFailure>, JoinError>) {
        self.syncing = None;
        match result {
            Ok(Ok(())) => self.shared.count_sync(),
            Ok(Err(failure)) => self.fail(failure),
            // The runtime is shutting down; the last sync is done in this thread.
            Err(_) => {}
        }
    }

    /// One last try for what is left.
    fn end(mut self) -> Leftover {
        let result = match self.probe_at {
            Some(_) => self.recover(),
            None => self.shared.watched(|| self.appender.sync()),
        };
        if !self.retained.is_empty() {
            let operation_ids: Vec<String> = self.retained.iter().filter_map(Line::operation_id).collect();
            tracing::error!(
                lines = self.retained.len(),
                operation_ids = operation_ids.join(" "),
                "the operations log ends without the lines of these committed changes"
            );
        }
        self.shared.set_failing(LogFailure::Closed);
        Leftover {
            lines: self.retained.len(),
            failure: result.err(),
        }
    }
}

impl Line {
    fn operation_id(&self) -> Option<String> {
        match self.keep {
            Keep::No => None,
            Keep::Committed(id) | Keep::Recovered(id) => id.map(|id| id.to_string()),
        }
    }
}

/// Waits until a moment; for ever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a task; for ever without one.
async fn ended<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}
