//! What the log of earlier runs tells: when the last line was written, and which changes have theirs.
//!
//! Only the end is read, backwards, in the file at the configured place and in the rotated ones beside it: until the lines
//! are older than any that could matter. It is read while the log is locked and not written yet, and nothing is changed.
//!
//! A file beside the log may be the log of another replica. Of lines that are not ours no more than a bounded number is
//! read in each file, so that they neither hide ours nor hold up the start.

use std::borrow::Cow;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use uuid::Uuid;

use super::backwards::LinesBackwards;
use super::recovery_mark::RecoveryMark;
use crate::domain::{OperationId, Timestamp};
use crate::small_file::{Links, open_regular};

/// Most files that are read, the newest first.
const MOST_FILES: usize = 64;
/// Most operation ids that are held: 16 bytes each.
const MOST_IDS: usize = 4_000_000;
/// Most bytes that are read: of this instance's lines, of all else in one file, and of all else in all of them.
const MOST_BYTES: Bytes = Bytes {
    ours: 2 << 30,
    others_in_file: 128 << 20,
    others: 512 << 20,
};
/// What rotated files that were compressed end in.
const COMPRESSED: [&str; 7] = [".gz", ".bz2", ".xz", ".zst", ".lz4", ".Z", ".zip"];

/// What to look for in a log.
#[derive(Clone, Debug)]
pub struct TrailQuery {
    /// The log's path as configured.
    pub path: PathBuf,
    /// The file at the path was made just now: it is not one of an earlier run.
    pub is_new: bool,
    /// Whose lines.
    pub instance: String,
    /// The longest time from the making of an operation's id to its line.
    pub margin: Duration,
    /// From the mark beside the log: read back to there even if later lines look complete.
    pub unsettled_since: Option<Timestamp>,
}

/// What the end of a log tells of one instance.
#[derive(Debug, PartialEq, Eq)]
pub struct Trail {
    /// All changes whose ids were made before this moment, less the margin, have their lines.
    pub complete_until: Timestamp,
    /// The changes that have a line, of those made since then, less the margin.
    pub logged: LoggedChanges,
    /// What may be missing or twice because not all could be read; to be told to operators.
    pub caveats: Vec<Caveat>,
}

/// Why the recovery may not be exact. The message says what follows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Caveat {
    /// A rotated file, or the directory, cannot be read.
    #[error("{path} cannot be read ({reason}): changes whose lines are in it may get a second one")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A rotated file was compressed before it was old enough.
    #[error(
        "{path} is compressed and not read: changes whose lines are in it may get a second one; let logrotate delay it"
    )]
    Compressed {
        /// The file.
        path: PathBuf,
    },
    /// There are more files than are read.
    #[error(
        "{count} files beside the log are not read, there are too many: changes whose lines are in them may get a second one"
    )]
    TooManyFiles {
        /// How many are left out, the oldest, that are young enough to matter.
        count: usize,
    },
    /// A file was not read to where it is old enough, since it holds too many lines of other instances.
    #[error(
        "{path} is full of lines of other instances: older lines in it are not read, and changes that have theirs there may \
         get a second one"
    )]
    TooManyOthers {
        /// The file.
        path: PathBuf,
    },
    /// The bounds of reading were reached.
    #[error("too many lines to read: changes made before {since} are not recovered")]
    TooMany {
        /// From here on all is known.
        since: Timestamp,
    },
}

/// The changes that have a line of their own, by operation id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LoggedChanges(Vec<Uuid>);

impl LoggedChanges {
    /// Those of these ids.
    pub fn new(ids: impl IntoIterator<Item = OperationId>) -> Self {
        Self::sorted(ids.into_iter().map(|id| id.0).collect())
    }

    fn sorted(mut ids: Vec<Uuid>) -> Self {
        // What is sorted already is noticed.
        ids.sort();
        ids.dedup();
        Self(ids)
    }

    /// Whether the change has a line.
    pub fn contains(&self, id: OperationId) -> bool {
        self.0.binary_search(&id.0).is_ok()
    }

    /// These have one too.
    pub fn add(&mut self, ids: impl IntoIterator<Item = OperationId>) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(ids.into_iter().map(|id| id.0));
        *self = Self::sorted(all);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What there is of a log before it is opened.
#[derive(Debug, PartialEq, Eq)]
pub enum EarlierLog {
    /// Nothing: there was no earlier run.
    None,
    /// A device or a pipe, which keeps nothing that could be read.
    Stream,
    /// Files.
    Trail(Trail),
}

/// Reads the end of a log. Blocks.
///
/// # Errors
///
/// The operating system's, where the directory or the file at the configured path cannot be read.
pub fn read_trail(query: &TrailQuery) -> io::Result<EarlierLog> {
    read_trail_within(query, MOST_BYTES)
}

/// How much is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    pub(super) ours: u64,
    pub(super) others_in_file: u64,
    pub(super) others: u64,
}

pub(super) fn read_trail_within(query: &TrailQuery, most: Bytes) -> io::Result<EarlierLog> {
    if is_stream(&query.path) {
        return Ok(EarlierLog::Stream);
    }
    let files = TrailFiles::of(query)?;
    let Some(fallback) = files.made_last(&query.path) else {
        let unsettled = query.unsettled_since.map(|since| Trail {
            complete_until: since,
            logged: LoggedChanges::default(),
            caveats: Vec::new(),
        });
        return Ok(unsettled.map_or(EarlierLog::None, EarlierLog::Trail));
    };
    let mut reading = Reading::new(query, most);
    let mut caveats = Vec::from_iter(files.caveat);
    for file in &files.readable {
        if reading.is_older_than_needed(file.modified) {
            break;
        }
        match reading.read(&file.path) {
            Ok(ReadTo::Enough) => {}
            Ok(ReadTo::TooManyOthers) => caveats.push(Caveat::TooManyOthers {
                path: file.path.clone(),
            }),
            Err(error) if file.path != query.path => caveats.push(Caveat::Unreadable {
                path: file.path.clone(),
                reason: error.to_string(),
            }),
            Err(error) => return Err(error),
        }
    }
    let last = reading.last.or(reading.last_of_others).unwrap_or(fallback);
    let complete_until = query.unsettled_since.map_or(last, |since| since.min(last));
    let is_young = |file: &&TrailFile| file.modified >= complete_until.saturating_sub(query.margin * 2);
    caveats.extend(files.compressed.iter().filter(is_young).map(|file| Caveat::Compressed {
        path: file.path.clone(),
    }));
    let count = files.left_out.iter().filter(is_young).count();
    caveats.extend((count > 0).then_some(Caveat::TooManyFiles { count }));
    let since = reading.oldest.filter(|_| reading.is_exhausted());
    caveats.extend(since.map(|since| Caveat::TooMany { since }));
    Ok(EarlierLog::Trail(Trail {
        complete_until: since.map_or(complete_until, |since| {
            since.saturating_add(query.margin).max(complete_until)
        }),
        logged: LoggedChanges::sorted(reading.ids),
        caveats,
    }))
}

/// `/dev/stdout` may well lead to a regular file, but not to one of which anything is known.
fn is_stream(path: &Path) -> bool {
    let is_special =
        path.parent() == Some(Path::new("/dev")) || path.starts_with("/dev/fd") || path.starts_with("/proc");
    is_special || fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// The parts of a line that matter here. Our own moments, outcomes and ids hold no escapes.
#[derive(Deserialize)]
struct LoggedLine<'a> {
    at: &'a str,
    #[serde(borrow)]
    instance: Cow<'a, str>,
    operation: &'a str,
    outcome: &'a str,
    #[serde(rename = "operationId", default)]
    operation_id: Option<&'a str>,
    #[serde(default)]
    recovered: bool,
}

impl LoggedLine<'_> {
    /// The change that this line is the own one of. A replay repeats the answer to a change that has another line.
    fn own_line_of(&self) -> Option<Uuid> {
        let is_own = self.operation == "changeBalance" && matches!(self.outcome, "accepted" | "outcome_unknown");
        is_own.then_some(self.operation_id?)?.parse().ok()
    }
}

/// `None` for a line that is torn or none of a log.
fn parse(line: &[u8]) -> Option<(LoggedLine<'_>, Timestamp)> {
    let line: LoggedLine<'_> = serde_json::from_slice(line).ok()?;
    let at = Timestamp::parse(line.at).ok()?;
    Some((line, at))
}

struct Reading<'a> {
    query: &'a TrailQuery,
    most: Bytes,
    /// When the last line was written.
    last: Option<Timestamp>,
    /// When another instance wrote the last line of the file at the configured path. One process writes a file at a time:
    /// an instance without a line in it came after that.
    last_of_others: Option<Timestamp>,
    /// When the oldest line that was read was written.
    oldest: Option<Timestamp>,
    ids: Vec<Uuid>,
    bytes_of_ours: u64,
    bytes_of_others: u64,
}

/// How far a file was read.
enum ReadTo {
    /// To where its lines are too old to matter, or to its beginning.
    Enough,
    TooManyOthers,
}

impl<'a> Reading<'a> {
    fn new(query: &'a TrailQuery, most: Bytes) -> Self {
        Self {
            query,
            most,
            last: None,
            last_of_others: None,
            oldest: None,
            ids: Vec::new(),
            bytes_of_ours: 0,
            bytes_of_others: 0,
        }
    }

    /// Reads a file until its lines are too old to matter.
    fn read(&mut self, path: &Path) -> io::Result<ReadTo> {
        let mut lines = LinesBackwards::new(open_regular(path, Links::Followed)?)?;
        let (mut bytes_of_others, mut unread) = (0, lines.unread_bytes());
        while !self.is_exhausted()
            && let Some((line, before)) = lines.next()?
        {
            let bytes = std::mem::replace(&mut unread, before) - before;
            let parsed = parse(line);
            let ours = parsed.as_ref().filter(|(line, _)| line.instance == self.query.instance);
            if ours.is_some() {
                self.bytes_of_ours += bytes;
            } else {
                bytes_of_others += bytes;
                self.bytes_of_others += bytes;
            }
            if let Some((line, at)) = &parsed {
                // A line that comes late says nothing of when the others were written.
                if !line.recovered {
                    self.note_moment(*at, ours.is_some(), path);
                    if self.is_older_than_needed(*at) {
                        return Ok(ReadTo::Enough);
                    }
                }
                if ours.is_some() {
                    self.ids.extend(line.own_line_of().filter(|id| self.is_needed(*id)));
                    continue;
                }
            }
            if bytes_of_others > self.most.others_in_file || self.bytes_of_others > self.most.others {
                return Ok(ReadTo::TooManyOthers);
            }
        }
        Ok(ReadTo::Enough)
    }

    fn note_moment(&mut self, at: Timestamp, is_ours: bool, path: &Path) {
        if is_ours {
            self.last.get_or_insert(at);
            // What others' lines say of how far was read is not to the point: their files may be read before ours.
            self.oldest = Some(at);
        } else if path == self.query.path {
            self.last_of_others.get_or_insert(at);
        }
    }

    /// The beginning of what may lack its line, once that is known.
    fn since(&self) -> Option<Timestamp> {
        let last = self.last?;
        let since = self.query.unsettled_since.map_or(last, |since| since.min(last));
        Some(since.saturating_sub(self.query.margin))
    }

    fn is_needed(&self, id: Uuid) -> bool {
        self.since()
            .is_none_or(|since| OperationId(id) >= OperationId::first_at(since))
    }

    /// Lines come nearly in the order of their moments; the margin once more is far beyond that.
    fn is_older_than_needed(&self, moment: Timestamp) -> bool {
        self.since()
            .is_some_and(|since| moment < since.saturating_sub(self.query.margin))
    }

    fn is_exhausted(&self) -> bool {
        self.ids.len() >= MOST_IDS || self.bytes_of_ours >= self.most.ours
    }
}

/// The log's files, those written last first.
struct TrailFiles {
    readable: Vec<TrailFile>,
    /// As well, and older than those; beyond what is read.
    left_out: Vec<TrailFile>,
    compressed: Vec<TrailFile>,
    caveat: Option<Caveat>,
}

struct TrailFile {
    path: PathBuf,
    modified: Timestamp,
    born: Timestamp,
}

impl TrailFile {
    fn new(path: PathBuf, metadata: &Metadata) -> io::Result<Self> {
        let modified = metadata.modified()?;
        Ok(Self {
            path,
            modified: modified.into(),
            // Not every file system knows.
            born: metadata.created().unwrap_or(modified).into(),
        })
    }
}

impl TrailFiles {
    fn of(query: &TrailQuery) -> io::Result<Self> {
        let log = &query.path;
        let mut files = Self {
            readable: Vec::new(),
            left_out: Vec::new(),
            compressed: Vec::new(),
            caveat: None,
        };
        match fs::metadata(log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ if query.is_new => {}
            metadata => files.readable.push(TrailFile::new(log.clone(), &metadata?)?),
        }
        let (Some(name), directory) = (log.file_name(), directory_of(log)) else {
            return Ok(files);
        };
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
            // A directory may be one to enter and not to read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                files.caveat = Some(Caveat::Unreadable {
                    path: directory,
                    reason: error.to_string(),
                });
                return Ok(files);
            }
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let other = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
            let Some(addition) = other.strip_prefix(name.as_bytes()) else {
                continue;
            };
            if !matches!(addition.first(), Some(b'.' | b'-')) || RecoveryMark::is_named(addition) {
                continue;
            }
            // It may be removed meanwhile.
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_file() {
                let is_compressed = COMPRESSED.iter().any(|ending| addition.ends_with(ending.as_bytes()));
                let list = if is_compressed {
                    &mut files.compressed
                } else {
                    &mut files.readable
                };
                list.push(TrailFile::new(path, &metadata)?);
            }
        }
        // Stable: of files written at the same moment the one at the configured place comes first.
        files.readable.sort_by_key(|file| std::cmp::Reverse(file.modified));
        files.left_out = files.readable.split_off(files.readable.len().min(MOST_FILES));
        Ok(files)
    }

    /// When the file at the configured path was made, or else the one that was written last.
    fn made_last(&self, log: &Path) -> Option<Timestamp> {
        let at_path = self.readable.iter().find(|file| file.path == log);
        at_path.or(self.readable.first()).map(|file| file.born)
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
