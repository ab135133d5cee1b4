//! Lines and rows of the same operation, side by side.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::task::yield_now;
use uuid::Uuid;

use super::super::VerifyError;
use super::super::finding::{Finding, Violation, shown};
use super::super::tally::{Stage, Tally};
use super::files::{LogFile, ReadLine};
use super::line::{Line, Says};
use super::record::{Content, LineRecord, Record, RowRecord};
use super::{LINES_AT_ONCE, LogError, Logs};
use crate::domain::Timestamp;
use crate::store::{Snapshot, StoredMoment, StoredOperation, StoredPlace};

/// How long after the snapshot the line of an operation may be written: the time in which an operation is answered, by
/// default, and some more.
const LATE: Duration = Duration::from_secs(8);

/// How often files that may grow are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Most rows without a line that are looked for in what the files have grown by.
const MOST_MISSING: usize = 100_000;

/// A row whose line was not found.
struct Missing {
    content: Content,
    place: StoredPlace,
    is_recent: bool,
    user_id: String,
}

impl Missing {
    fn row(&self, id: Uuid) -> RowRecord<'_> {
        RowRecord {
            id,
            content: self.content,
            place: self.place,
            is_recent: self.is_recent,
            user_id: &self.user_id,
        }
    }
}

/// The comparison under way.
pub(in super::super) struct Comparison<'a, 't> {
    pub(in super::super) logs: &'a mut Logs,
    pub(in super::super) snapshot: &'a Snapshot,
    pub(in super::super) tally: &'a mut Tally<'t>,
}

/// Whether a line says what is stored.
fn agrees(row: &RowRecord<'_>, line: &LineRecord) -> bool {
    let (stored, told) = (row.content, line.content);
    match line.says {
        Says::Accepted => stored == told,
        Says::Unknown => (stored.hash, stored.instance, stored.caller) == (told.hash, told.instance, told.caller),
        // Another replica may have answered, and another caller may have asked.
        Says::Replayed => (stored.hash, stored.balance) == (told.hash, told.balance),
    }
}

impl Comparison<'_, '_> {
    /// Compares all lines and rows, of a snapshot that was taken then.
    pub(in super::super) async fn run(&mut self, taken: Instant) -> Result<(), VerifyError> {
        self.tally.begin(Stage::Comparison, None);
        let spill = std::mem::replace(&mut self.logs.spill, super::Spill::new());
        let mut parts = spill.into_parts().map_err(LogError::from)?;
        let mut missing = HashMap::new();
        while let Some(bytes) = parts.next_part().map_err(LogError::from)? {
            let mut index = Vec::new();
            let mut rest = bytes.as_slice();
            let mut at = 0;
            while let Some(record) = Record::read(&mut rest) {
                index.push((record.id(), at));
                at = bytes.len() - rest.len();
            }
            index.sort_unstable();
            for of_one in index.chunk_by(|(one, _), (other, _)| one == other) {
                let records = of_one.iter().filter_map(|(_, at)| Record::read(&mut &bytes[*at..]));
                self.operation(records, &mut missing).await?;
                self.tally.step();
                if self.tally.progress.done.is_multiple_of(LINES_AT_ONCE) {
                    yield_now().await;
                }
            }
        }
        self.look_for_late(&mut missing, taken + LATE).await?;
        let mut missing: Vec<_> = missing.iter().map(|(id, row)| row.row(*id)).collect();
        missing.sort_unstable_by_key(|row| (row.user_id, row.place));
        for row in missing {
            self.tell_missing(&row);
        }
        Ok(())
    }

    /// All that there is of one operation.
    async fn operation<'r>(
        &mut self,
        records: impl Iterator<Item = Record<'r>> + Clone,
        missing: &mut HashMap<Uuid, Missing>,
    ) -> Result<(), VerifyError> {
        let row = records.clone().find_map(|record| match record {
            Record::Row(row) => Some(row),
            Record::Line(_) => None,
        });
        let mut own_lines = 0;
        for record in records {
            let Record::Line(line) = record else { continue };
            let id = line.id;
            if line.says != Says::Replayed {
                own_lines += 1;
                if own_lines > 1 {
                    self.tell(&line, Violation::SecondLine { id })?;
                }
            }
            match (row, line.says) {
                (Some(row), _) if agrees(&row, &line) => {}
                (Some(row), _) => self.differs(&row, &line).await?,
                (None, Says::Accepted | Says::Replayed) => self.tell(&line, Violation::Forged { id })?,
                // It has not happened.
                (None, Says::Unknown) => {}
            }
        }
        let Some(row) = row.filter(|_| own_lines == 0) else {
            return Ok(());
        };
        if !self.logs.instances.are_in_files(row.content.instance) {
            self.tally.summary.not_compared += 1;
        } else if missing.len() < MOST_MISSING {
            let of_row = Missing {
                content: row.content,
                place: row.place,
                is_recent: row.is_recent,
                user_id: row.user_id.to_owned(),
            };
            missing.insert(row.id, of_row);
        } else {
            self.tell_missing(&row);
        }
        Ok(())
    }

    /// Looks for lines in what the files have grown by and in those that have taken their places: once, and again until
    /// then for as long as one of an operation that may be under way is missing.
    async fn look_for_late(&mut self, missing: &mut HashMap<Uuid, Missing>, until: Instant) -> Result<(), VerifyError> {
        let mut bytes = Vec::new();
        while !missing.is_empty() {
            let is_last_time = Instant::now() >= until || missing.values().all(|row| !row.is_recent);
            self.logs.open_successors();
            for file in 0..self.logs.files.len() {
                self.logs.files[file].go_on()?;
                loop {
                    let place = match self.logs.files[file].next_line(&mut bytes)? {
                        ReadLine::Line { place, ended: true } => place,
                        ReadLine::TooLong { .. } => continue,
                        ReadLine::Line { ended: false, .. } | ReadLine::End => break,
                    };
                    if let Ok(Some(line)) = self.logs.take_in(file, place, &bytes)
                        && line.says != Says::Replayed
                        && let Some(row) = missing.remove(&line.id)
                        && !agrees(&row.row(line.id), &line)
                    {
                        self.differs(&row.row(line.id), &line).await?;
                    }
                    if place.number.is_multiple_of(LINES_AT_ONCE) {
                        yield_now().await;
                    }
                }
            }
            if is_last_time {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn tell_missing(&mut self, row: &RowRecord<'_>) {
        let (seq, id) = (row.place.seq, row.id);
        let violation = Violation::NoLine { seq, id };
        if self.tally.admits_of_log(&violation) {
            self.tally.tell(&Finding {
                user_id: Some(row.user_id.to_owned()),
                at: Some(row.place.timestamp),
                line: None,
                violation,
            });
        }
    }

    /// Tells of a line, with the user and the moment that stand in it.
    fn tell(&mut self, line: &LineRecord, violation: Violation) -> Result<(), LogError> {
        if !self.tally.admits_of_log(&violation) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let file = &self.logs.files[line.file as usize];
        file.again(line.place, &mut bytes)?;
        let parsed = Line::parse(&bytes).ok();
        let told = parsed.as_ref().and_then(|parsed| parsed.check().ok().flatten());
        self.tally.tell(&Finding {
            user_id: parsed.map(|parsed| parsed.user_id.into_owned()),
            at: told.map(|told| told.timestamp),
            line: Some(file.place(line.place.number)),
            violation,
        });
        Ok(())
    }

    /// Tells which fields of a line differ from what is stored.
    async fn differs(&mut self, row: &RowRecord<'_>, line: &LineRecord) -> Result<(), VerifyError> {
        let mut stored = self.snapshot.operation(row.user_id, row.place).await?;
        let Some(operation) = stored.current()? else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let file = &self.logs.files[line.file as usize];
        file.again(line.place, &mut bytes)?;
        // It was a good one.
        let Ok(parsed) = Line::parse(&bytes) else {
            return Ok(());
        };
        for (field, expected, found) in differences(&operation, &parsed, line.says) {
            let violation = Violation::Differs { field, expected, found };
            if self.tally.admits_of_log(&violation) {
                self.tally.tell(&Finding {
                    user_id: Some(row.user_id.to_owned()),
                    at: Some(row.place.timestamp),
                    line: Some(file.place(line.place.number)),
                    violation,
                });
            }
        }
        stored.advance().await?;
        Ok(())
    }
}

/// The fields that differ, with what is stored and what the line says.
fn differences(stored: &StoredOperation<'_>, line: &Line<'_>, says: Says) -> Vec<(&'static str, String, String)> {
    let quoted = |text: &str| format!("{:?}", text.chars().take(80).collect::<String>());
    let number = |value: Option<i64>| value.unwrap_or_default().to_string();
    let timestamp = Timestamp::parse(&line.timestamp).map(|at| StoredMoment(at.unix_microseconds()));
    let timestamp = timestamp.unwrap_or(StoredMoment(i64::MIN));
    let context = line.context.as_deref().unwrap_or_default();
    let balance = line.balance.filter(|_| says != Says::Unknown);
    let mut fields = Vec::new();
    let mut field = |name, differs: bool, expected, found| {
        if differs {
            fields.push((name, expected, found));
        }
    };
    let (expected, found) = (quoted(stored.user_id), quoted(&line.user_id));
    field("userId", stored.user_id != line.user_id, expected, found);
    let (expected, found) = (shown(stored.timestamp), shown(timestamp));
    field("timestamp", stored.timestamp != timestamp, expected, found);
    let (expected, found) = (stored.balance_change.to_string(), number(line.balance_change));
    field("balanceChange", expected != found, expected, found);
    let (expected, found) = (quoted(stored.context), quoted(context));
    field("context", stored.context != context, expected, found);
    let (expected, found) = (stored.balance_after.to_string(), number(balance));
    field("balance", balance.is_some() && expected != found, expected, found);
    let (expected, found) = (quoted(stored.instance), quoted(&line.instance));
    let by_another = says != Says::Replayed && stored.instance != line.instance;
    field("instance", by_another, expected, found);
    let caller = |name: Option<&str>| name.map_or_else(|| "none".to_owned(), quoted);
    let (expected, found) = (caller(stored.caller), caller(line.caller.as_deref()));
    let for_another = says != Says::Replayed && stored.caller != line.caller.as_deref();
    field("caller", for_another, expected, found);
    fields
}

impl Logs {
    /// Opens the files that stand where ours stood before a rotation.
    fn open_successors(&mut self) {
        let successors: Vec<_> = self.files.iter().filter_map(LogFile::successor).collect();
        for successor in successors {
            let is_new = self.files.iter().all(|file| file.identity() != successor.identity());
            if is_new {
                self.files.push(successor);
            }
        }
    }
}
