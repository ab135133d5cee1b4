//! Lines for changes that an earlier run of this instance committed and did not live to write the lines of.
//!
//! The database is the truth: `changes_history` names the instance of every change. What it has stored since the last line
//! of the log, and a while before, is compared with the lines of that time; a change without a line of its own gets one,
//! marked as recovered. Neither the whole history is read nor the whole log.
//!
//! 1. When the log is locked and not written yet: its end is read, and the mark beside it says since when lines may be
//!    missing, until all looks are made ([`Recovery::prepare`]).
//! 2. Before the replica serves: a look, bounded in time. If PostgreSQL or the log fails, it is made in the background, as
//!    soon as it can be ([`Recovery::begin`]).
//! 3. In the background, twice more: a commit that was on its way when its replica died may reach PostgreSQL later.
//!
//! A line that was handed to the writer is never written again: the writer keeps it until it can be written.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Service, now};
use crate::causes::causes;
use crate::domain::{OperationId, Timestamp};
use crate::ledger::{LOG_GRACE, longest_without_line};
use crate::operations_log::{
    Caveat, EarlierLog, Lines, LogUnavailable, LoggedChanges, OpenedLog, OperationName, Outcome, Record, RecoveryMark,
    Slot, Trail, TrailQuery, Written, read_trail,
};
use crate::retry::Pauses;
use crate::store::{CLOCKS_APART, StoreError, StoredByQuery, StoredChange};

/// How long the first look may hold up the start.
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a look in the background may take before it pauses.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long PostgreSQL may take over a part of the time; it ends statements itself after ten seconds.
const SLICE_TIMEOUT: Duration = Duration::from_secs(9);
/// When to look again after the first look: connections that are cut off are given up after ten seconds, and so are
/// statements.
const LOOK_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
/// When, after the last look, its lines are on the disk if the log is synced at all.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Changes without a line that are held at once.
const MOST_CHANGES: usize = 1_024;
/// Lines that are written together.
const LINES_TOGETHER: usize = 256;

/// The time that one statement looks at: at first, at least and at most. It adapts to what PostgreSQL can do quickly.
const FIRST_WIDTH: Duration = Duration::from_secs(600);
const LEAST_WIDTH: Duration = Duration::from_millis(100);
const MOST_WIDTH: Duration = Duration::from_secs(86_400);
/// A statement that took less may look at more the next time.
const QUICK: Duration = Duration::from_millis(500);

/// What is known of the earlier run before the log is written.
pub struct Recovery {
    search: Option<Search>,
    notes: Vec<Note>,
}

/// A comparison of the log's end with the history's, still to be made or under way.
struct Search {
    window: Window,
    logged: LoggedChanges,
    mark: Mark,
    recovered: usize,
}

/// The mark beside the log, and what is still to be done to it. The calls block.
#[derive(Clone)]
struct Mark {
    file: RecoveryMark,
    /// There is one that cannot be read. It may hold an earlier moment than ours, and stays.
    is_unread: bool,
    /// What it should hold, and does not.
    unwritten: Option<Timestamp>,
}

impl Mark {
    fn read(file: RecoveryMark, query: &mut TrailQuery, notes: &mut Vec<Note>) -> Self {
        let mut is_unread = false;
        match file.read() {
            Ok(moment) => query.unsettled_since = moment,
            Err(error) => {
                // What holds no moment tells nothing.
                is_unread = error.kind() != io::ErrorKind::InvalidData;
                notes.push(Note::MarkNotRead(error));
            }
        }
        Self {
            file,
            is_unread,
            unwritten: None,
        }
    }

    fn set(&mut self, moment: Timestamp) -> io::Result<()> {
        self.unwritten = Some(moment).filter(|_| !self.is_unread);
        self.write()
    }

    /// Tries again what has failed before.
    fn write(&mut self) -> io::Result<()> {
        if let Some(moment) = self.unwritten {
            self.file.write(moment)?;
            self.unwritten = None;
        }
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        if self.is_unread { Ok(()) } else { self.file.remove() }
    }
}

/// What operators should know of the recovery.
#[derive(Debug, thiserror::Error)]
enum Note {
    #[error("the operations log is no regular file: a change whose line is lost by a crash is not recovered")]
    KeepsNothing,
    #[error(
        "the operations log cannot be read: changes of an earlier run that lack their lines are not recovered: {0}"
    )]
    NotRead(io::Error),
    #[error("the operations log: {0}")]
    Caveat(Caveat),
    #[error(
        "the file .recovering beside the operations log cannot be read and is left as it is; changes of the runs that it \
         tells of may lack their lines: {0}"
    )]
    MarkNotRead(io::Error),
    #[error(
        "the file .recovering cannot be written beside the operations log; until the looks are made, a crash may leave \
         changes without their lines: {0}"
    )]
    MarkNotWritten(io::Error),
    #[error("the clock was set back, to before {0}: changes of an earlier run may not be recovered")]
    ClockSetBack(Timestamp),
}

/// Why a look was not made to its end.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the history cannot be read")]
    Store(#[from] StoreError),
    #[error("the lines cannot be written")]
    Log(#[from] LogUnavailable),
}

impl Recovery {
    /// Finds out since when lines may be missing. To be called before the log is started and before any operation begins:
    /// it is locked, so that a predecessor has written all its lines, and nobody adds to them.
    pub async fn prepare(log: &OpenedLog, operation_timeout: Duration) -> Self {
        // Later ids of this process are higher, even if the clock is set back.
        let beyond = OperationId(Uuid::now_v7());
        let query = TrailQuery {
            path: log.config().path.clone(),
            is_new: log.is_new(),
            instance: log.config().instance.clone(),
            margin: longest_without_line(operation_timeout),
            unsettled_since: None,
        };
        let preparing = spawn_blocking(move || {
            let mut notes = Vec::new();
            let search = Search::prepare(query, beyond, &mut notes);
            Self { search, notes }
        });
        preparing.await.unwrap_or_else(|error| Self {
            search: None,
            notes: vec![Note::NotRead(error.into())],
        })
    }

    /// Looks for the first time, and goes on in the background.
    pub async fn begin(self, service: Arc<Service>) -> Recovering {
        for note in &self.notes {
            tracing::warn!("{note}");
        }
        let stop = CancellationToken::new();
        let task = match self.search {
            Some(mut search) => {
                service.metrics.operations_log.recovery_pending.set(1);
                let looked = search.look(&service, FIRST_LOOK_TIMEOUT).await;
                let stopped = stop.clone();
                Some(tokio::spawn(async move {
                    stopped.run_until_cancelled(search.go_on(&service, looked)).await;
                }))
            }
            None => None,
        };
        Recovering { stop, task }
    }
}

impl Search {
    /// `None` if there was no earlier run, or none of which anything is known. Blocks.
    fn prepare(mut query: TrailQuery, beyond: OperationId, notes: &mut Vec<Note>) -> Option<Self> {
        let (began, margin) = (now(), query.margin);
        let mut mark = Mark::read(RecoveryMark::beside(&query.path), &mut query, notes);
        let trail = trail(&query, notes)?;
        notes.extend(mark.set(trail.complete_until).err().map(Note::MarkNotWritten));
        if trail.complete_until > began {
            notes.push(Note::ClockSetBack(trail.complete_until));
        }
        Some(Self {
            window: Window::new(trail.complete_until.saturating_sub(margin), beyond),
            logged: trail.logged,
            mark,
            recovered: 0,
        })
    }

    async fn go_on(mut self, service: &Service, looked: bool) {
        if !looked {
            self.look_until_made(service).await;
        }
        let first = Instant::now();
        for after in LOOK_AGAIN_AFTER {
            sleep_until(first + after).await;
            self.look_until_made(service).await;
        }
        // A line that the writer still holds is not on the file.
        sleep(SETTLED_AFTER).await;
        while service.log.health().is_err() {
            sleep(SETTLED_AFTER).await;
        }
        if let Err(error) = self.mark.remove() {
            tracing::warn!(%error, "the file .recovering beside the operations log cannot be removed");
        }
        service.metrics.operations_log.recovery_pending.set(0);
    }

    async fn look_until_made(&mut self, service: &Service) {
        let mut pauses = Pauses::between_looks();
        while !self.look(service, LOOK_TIMEOUT).await {
            // Far beyond any pause.
            let _ = pauses.pause(Instant::now() + LOOK_TIMEOUT).await;
        }
    }

    /// The disk that was full at the start may have room by now.
    async fn write_mark(&mut self) {
        if self.mark.unwritten.is_some() {
            let mut mark = self.mark.clone();
            let writing = spawn_blocking(move || mark.write().map(|()| mark));
            match writing.await {
                Ok(Ok(mark)) => self.mark = mark,
                Ok(Err(error)) => tracing::debug!(%error, "the file .recovering cannot be written yet"),
                Err(error) => tracing::error!(%error, "the file .recovering was not written"),
            }
        }
    }

    /// Looks through the window, or on from where the last look failed; tells whether it came to the end.
    async fn look(&mut self, service: &Service, limit: Duration) -> bool {
        self.write_mark().await;
        let began = Instant::now();
        let looked = self.look_through(service, began + limit).await;
        let (lines, took_ms) = (std::mem::take(&mut self.recovered), began.elapsed().as_millis());
        if lines > 0 {
            tracing::warn!(
                lines,
                took_ms,
                "changes of an earlier run had no line in the operations log; they have one now"
            );
        }
        match &looked {
            Ok(()) if lines == 0 => tracing::info!(
                took_ms,
                "no change of an earlier run lacks its line in the operations log"
            ),
            Ok(()) => {}
            Err(error) => tracing::warn!(
                took_ms,
                "it is not known yet whether changes of an earlier run lack their lines: {}",
                causes(error)
            ),
        }
        looked.is_ok()
    }

    async fn look_through(&mut self, service: &Service, deadline: Instant) -> Result<(), LookError> {
        loop {
            let slice = self.window.slice(&service.config.instance, now());
            let began = Instant::now();
            let logged = &self.logged;
            let is_missing = |id| !logged.contains(id);
            let reading =
                service
                    .store
                    .stored_by(&slice, is_missing, MOST_CHANGES, deadline.min(began + SLICE_TIMEOUT));
            let mut found = match reading.await {
                Ok(found) => found,
                Err(error) => {
                    if error.is_out_of_time() {
                        self.window.narrow();
                    }
                    return Err(error.into());
                }
            };
            // The ids are in the order in which the operations began.
            found.changes.sort_unstable_by_key(|change| change.operation.id);
            for changes in found.changes.chunks(LINES_TOGETHER) {
                self.write(service, changes, deadline).await?;
            }
            if found.more {
                self.window.narrow();
            } else if self.window.pass(&slice, began.elapsed()) {
                return Ok(());
            }
        }
    }

    async fn write(
        &mut self,
        service: &Service,
        changes: &[StoredChange],
        deadline: Instant,
    ) -> Result<(), LogUnavailable> {
        let Some(last) = changes.len().checked_sub(1) else {
            return Ok(());
        };
        let mut slots = Vec::with_capacity(changes.len());
        for _ in changes {
            slots.push(slot(service, deadline).await?);
        }
        // There are slots, so there is room again, if there was none before.
        self.write_mark().await;
        let mut lines = Lines::now();
        for (slot, change) in slots.into_iter().zip(changes) {
            lines.push_recovered(slot, &record(change));
        }
        let writing = lines.write();
        // From here on the lines are the writer's.
        self.logged.add(changes.iter().map(|change| change.operation.id));
        self.recovered += changes.len();
        service.metrics.operations_log.recovered.inc_by(changes.len() as u64);
        let latest = deadline.max(Instant::now()) + LOG_GRACE;
        let written = timeout_at(latest, writing).await;
        written.unwrap_or(Written::NOT_IN_TIME).line(last)
    }
}

/// Waits for a place in the log's queue.
async fn slot(service: &Service, deadline: Instant) -> Result<Slot, LogUnavailable> {
    let mut pauses = Pauses::between_calls();
    loop {
        match service.log.reserve() {
            Err(LogUnavailable::QueueFull) if pauses.pause(deadline).await.is_ok() => {}
            result => return result,
        }
    }
}

fn record(change: &StoredChange) -> Record<'_> {
    let operation = &change.operation;
    Record {
        timestamp: Some(operation.timestamp),
        operation_id: Some(operation.id),
        balance_change: Some(operation.balance_change),
        context: Some(&operation.context),
        balance: Some(change.balance_after),
        caller: operation.caller.as_ref(),
        ..Record::new(OperationName::ChangeBalance, Outcome::Accepted, &operation.user_id)
    }
}

/// What the log of earlier runs tells, as far as it can be read. Blocks.
fn trail(query: &TrailQuery, notes: &mut Vec<Note>) -> Option<Trail> {
    match read_trail(query) {
        Ok(EarlierLog::None) => None,
        Ok(EarlierLog::Stream) => {
            notes.push(Note::KeepsNothing);
            None
        }
        Ok(EarlierLog::Trail(mut trail)) => {
            notes.extend(trail.caveats.drain(..).map(Note::Caveat));
            Some(trail)
        }
        Err(error) => {
            notes.push(Note::NotRead(error));
            None
        }
    }
}

/// The part of the history that is looked at, slice by slice.
struct Window {
    since: Timestamp,
    first: OperationId,
    beyond: OperationId,
    /// Where the next slice begins, on PostgreSQL's clock, and how wide it is.
    position: Timestamp,
    width: Duration,
}

impl Window {
    /// Changes whose ids were made at or after `since`, and are lower than `beyond`.
    fn new(since: Timestamp, beyond: OperationId) -> Self {
        let recorded_since = since.saturating_sub(CLOCKS_APART);
        Self {
            since: recorded_since,
            first: OperationId::first_at(since),
            beyond,
            position: recorded_since,
            width: FIRST_WIDTH,
        }
    }

    fn slice(&self, instance: &str, now: Timestamp) -> StoredByQuery {
        let end = self.position.saturating_add(self.width);
        StoredByQuery {
            instance: instance.to_owned(),
            recorded_since: self.position,
            // The last slice has no end: commits are still on their way.
            recorded_before: Some(end).filter(|end| *end < now.saturating_add(CLOCKS_APART)),
            first: self.first,
            beyond: self.beyond,
        }
    }

    /// Goes on behind a slice that was looked at; `true` at the end, from where the next look begins anew.
    fn pass(&mut self, slice: &StoredByQuery, took: Duration) -> bool {
        if took < QUICK {
            self.width = (self.width * 2).min(MOST_WIDTH);
        }
        self.position = slice.recorded_before.unwrap_or(self.since);
        slice.recorded_before.is_none()
    }

    fn narrow(&mut self) {
        self.width = (self.width / 4).max(LEAST_WIDTH);
    }
}

/// The looks in the background, to be stopped at shutdown.
#[must_use = "without `stop` it runs on while the replica is taken apart"]
pub struct Recovering {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Recovering {
    /// Ends it at once. What is not done yet the next start does.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && task.await.is_err()
        {
            tracing::error!("the search for changes without their lines ended early");
        }
    }
}
