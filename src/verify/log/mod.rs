//! Operations logs against the ledger: every stored change has its line, and no line tells of a change that is not stored.
//!
//! Lines and rows meet by the id of the operation. Neither fits in memory: what is needed of each goes to temporary
//! files, divided by the id, and the parts are compared one after the other. What differs is read again for its words.
//!
//! While replicas run, the files grow. How long each is is noted before the ledger's snapshot is taken: what stands
//! before that point was answered, and so committed, before the snapshot, and must be in it. A row whose line does not
//! stand there is looked for in what has been written since: once, or, if it was stored within the last minute, for as long
//! as an operation may take. Lines after the point prove nothing else.
//!
//! A line that a crash tore is counted and is no finding: its operation was not answered, or has another line that a later
//! start wrote, or is a row without a line, which is one.
//!
//! Only rows of instances that are named by a line are held against the logs: others have their logs elsewhere. A file
//! without a line names nobody, so that rows of a replica whose log was emptied count as not compared; the summary says
//! how many there are.

mod compare;
mod files;
mod line;
mod record;
mod spill;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use tokio::task::yield_now;

use super::VerifyError;
use super::finding::{Finding, LinePlace, Violation};
use super::tally::{Stage, Tally};
use crate::store::{StoredMoment, StoredOperation, StoredPlace};
use files::{LogFile, Place, ReadLine};
use line::Line;
use record::{Content, LineRecord, Record, RowRecord};
use spill::Spill;

pub(super) use compare::Comparison;
pub use line::{CHANGE_OUTCOMES, COMMON_OUTCOMES};

/// How many lines are read before others come to their turn.
const LINES_AT_ONCE: u64 = 256;

/// Lines of operations that were stored longer before the snapshot are there or do not come: far more than the time in
/// which an operation is answered.
const RECENT_MICROSECONDS: i64 = 60 * 1_000_000;

/// Why the logs could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file cannot be read.
    #[error("operations log {path}: {source}")]
    Read {
        /// As it was given.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Temporary files cannot be written or read.
    #[error("temporary files in {}: {source}", std::env::temp_dir().display())]
    Spill {
        /// What the operating system said.
        #[from]
        source: io::Error,
    },
}

impl LogError {
    fn new(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        LogError::Read { path, source }
    }
}

/// Names of instances, each with a number and whether a line is by it.
#[derive(Default)]
struct Instances {
    numbers: HashMap<String, u32>,
    in_files: Vec<bool>,
}

impl Instances {
    fn number(&mut self, name: &str, in_files: bool) -> u32 {
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.in_files.len()).unwrap_or(u32::MAX);
                self.numbers.insert(name.to_owned(), number);
                self.in_files.push(false);
                number
            }
        };
        if in_files {
            self.in_files[number as usize] = true;
        }
        number
    }

    fn are_in_files(&self, number: u32) -> bool {
        self.in_files.get(number as usize).copied().unwrap_or_default()
    }
}

/// Names of callers, each with a number from 1; 0 is no name.
#[derive(Default)]
struct Callers(HashMap<String, u32>);

impl Callers {
    fn number(&mut self, name: Option<&str>) -> u32 {
        let Some(name) = name else {
            return 0;
        };
        if let Some(number) = self.0.get(name) {
            return *number;
        }
        let number = u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX);
        self.0.insert(name.to_owned(), number);
        number
    }
}

/// The logs, and what is known of them and of the rows.
pub(super) struct Logs {
    files: Vec<LogFile>,
    instances: Instances,
    callers: Callers,
    keys: RandomState,
    spill: Spill,
}

impl Logs {
    /// Opens the files and notes how long they are.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, LogError> {
        Ok(Self {
            files: LogFile::open_all(paths)?,
            instances: Instances::default(),
            callers: Callers::default(),
            keys: RandomState::new(),
            spill: Spill::new(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Reads all lines up to where the files ended when they were opened.
    pub(super) async fn read(&mut self, tally: &mut Tally<'_>) -> Result<(), VerifyError> {
        tally.begin(Stage::Lines, None);
        let mut bytes = Vec::new();
        for file in 0..self.files.len() {
            loop {
                let (place, ended) = match self.files[file].next_line(&mut bytes)? {
                    ReadLine::Line { place, ended } => (place, ended),
                    ReadLine::TooLong { place } => {
                        let place = self.files[file].place(place.number);
                        tell_of_line(tally, place, too_long());
                        continue;
                    }
                    ReadLine::End => break,
                };
                match self.take_in(file, place, &bytes) {
                    Ok(record) => {
                        tally.line();
                        if let Some(record) = record {
                            self.spill.push(&Record::Line(record)).map_err(LogError::from)?;
                        }
                    }
                    // It is being written.
                    Err(_) if !ended => {}
                    Err(_) if line::is_torn(&bytes) => tally.torn_line(),
                    Err(violation) => tell_of_line(tally, self.files[file].place(place.number), violation),
                }
                if !ended {
                    break;
                }
                if place.number.is_multiple_of(LINES_AT_ONCE) {
                    yield_now().await;
                }
            }
        }
        Ok(())
    }

    /// What a line tells of the ledger, if it is a good one.
    fn take_in(&mut self, file: usize, place: Place, bytes: &[u8]) -> Result<Option<LineRecord>, Violation> {
        let line = Line::parse(bytes)?;
        let told = line.check()?;
        let instance = self.instances.number(&line.instance, true);
        let caller = self.callers.number(line.caller.as_deref());
        Ok(told.map(|told| LineRecord {
            id: told.id,
            says: told.says,
            content: Content {
                hash: self.hash(
                    &line.user_id,
                    told.timestamp,
                    line.balance_change.unwrap_or_default(),
                    line.context.as_deref().unwrap_or_default(),
                ),
                balance: line.balance.unwrap_or_default(),
                instance,
                caller,
            },
            file: u32::try_from(file).unwrap_or(u32::MAX),
            place,
        }))
    }

    fn hash(&self, user_id: &str, timestamp: StoredMoment, change: i64, context: &str) -> u64 {
        self.keys.hash_one((user_id, timestamp, change, context))
    }

    /// Takes an operation that is stored, of a snapshot that was taken then.
    pub(super) fn row(&mut self, operation: &StoredOperation<'_>, taken_at: StoredMoment) -> Result<(), LogError> {
        let hash = self.hash(
            operation.user_id,
            operation.timestamp,
            operation.balance_change,
            operation.context,
        );
        let record = RowRecord {
            id: operation.operation_id,
            content: Content {
                hash,
                balance: operation.balance_after,
                instance: self.instances.number(operation.instance, false),
                caller: self.callers.number(operation.caller),
            },
            place: StoredPlace {
                timestamp: operation.timestamp,
                seq: operation.seq,
            },
            is_recent: is_recent(operation.recorded_at, taken_at),
            user_id: operation.user_id,
        };
        Ok(self.spill.push(&Record::Row(record))?)
    }
}

/// Whether the line of an operation may be still to come: both moments are by PostgreSQL's clock.
fn is_recent(recorded_at: StoredMoment, taken_at: StoredMoment) -> bool {
    recorded_at.0 >= taken_at.0.saturating_sub(RECENT_MICROSECONDS)
}

fn too_long() -> Violation {
    Violation::Line {
        expected: "a line of at most a mebibyte",
        found: "a longer one".to_owned(),
    }
}

/// Tells of a line that is wrong by itself.
fn tell_of_line(tally: &mut Tally<'_>, place: LinePlace, violation: Violation) {
    tally.line();
    if tally.admits_of_log(&violation) {
        tally.tell(&Finding {
            user_id: None,
            at: None,
            line: Some(place),
            violation,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_the_last_minute_are_waited_for() {
        let taken_at = StoredMoment(1_800_000_000_000_000);
        let ago = |microseconds| is_recent(StoredMoment(taken_at.0 - microseconds), taken_at);
        assert!(ago(0) && ago(60_000_000));
        assert!(!ago(60_000_001) && !ago(i64::MAX));
        // Stored while the snapshot was being taken, and at the end of time.
        assert!(ago(-1_000) && is_recent(StoredMoment(i64::MAX), taken_at));
        assert!(!is_recent(StoredMoment(i64::MIN), taken_at));
    }
}
