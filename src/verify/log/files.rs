//! The files of operations logs: what each held when the snapshot was taken, and what it has grown by since.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::finding::LinePlace;
use super::LogError;

/// The longest line that is read. The longest that is written has 4,096 characters of context and 256 of a user's id, at
/// most 6 bytes each.
const LONGEST_LINE_BYTES: u64 = 1 << 20;

/// A file, held open: renaming it, as a rotation does, does not change what is read.
pub(super) struct LogFile {
    path: PathBuf,
    reader: BufReader<File>,
    identity: (u64, u64),
    /// How far it is to be read now.
    until: u64,
    /// Where the next line begins.
    offset: u64,
    /// How many lines lie before it.
    number: u64,
}

/// A line with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) number: u64,
}

/// What was read into the buffer.
pub(super) enum ReadLine {
    /// A line that ended, or the last one without an end.
    Line {
        place: Place,
        ended: bool,
    },
    /// A line longer than any may be.
    TooLong {
        place: Place,
    },
    End,
}

impl LogFile {
    /// Opens a file and notes how long it is.
    pub(super) fn open(path: &Path) -> Result<Self, LogError> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(|source| LogError::new(path, source))?;
        if !metadata.is_file() {
            return Err(LogError::new(path, io::Error::other("not a regular file")));
        }
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 17, file),
            identity: (metadata.dev(), metadata.ino()),
            until: metadata.len(),
            offset: 0,
            number: 0,
        })
    }

    /// Opens all of them, one that was named twice once.
    pub(super) fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>, LogError> {
        let mut files: Vec<Self> = Vec::new();
        for path in paths {
            let file = Self::open(path)?;
            if files.iter().all(|other| other.identity != file.identity) {
                files.push(file);
            }
        }
        Ok(files)
    }

    /// The file that stands at this one's path now, if it is another one.
    pub(super) fn successor(&self) -> Option<Self> {
        // After a rotation there may be no file for a moment.
        let now = Self::open(&self.path).ok()?;
        (now.identity != self.identity).then_some(now)
    }

    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    pub(super) fn place(&self, number: u64) -> LinePlace {
        LinePlace {
            file: self.path.clone(),
            number,
        }
    }

    /// Lets what was appended since be read too.
    pub(super) fn go_on(&mut self) -> Result<(), LogError> {
        let length = self.reader.get_ref().metadata().map(|metadata| metadata.len());
        self.until = length.map_err(|source| LogError::new(&self.path, source))?;
        Ok(())
    }

    /// Reads the next line, without its end. A last line without an end is given back each time, until it has one.
    pub(super) fn next_line(&mut self, line: &mut Vec<u8>) -> Result<ReadLine, LogError> {
        line.clear();
        let place = Place {
            offset: self.offset,
            number: self.number + 1,
        };
        let read = self
            .read_line(line)
            .map_err(|source| LogError::new(&self.path, source))?;
        if read == 0 {
            return Ok(ReadLine::End);
        }
        let ended = line.last() == Some(&b'\n');
        if ended {
            line.pop();
        } else if read <= LONGEST_LINE_BYTES {
            let back = SeekFrom::Start(self.offset);
            let sought = self.reader.seek(back);
            sought.map_err(|source| LogError::new(&self.path, source))?;
            return Ok(ReadLine::Line { place, ended });
        }
        self.offset += read;
        self.number += 1;
        Ok(match read > LONGEST_LINE_BYTES {
            true => ReadLine::TooLong { place },
            false => ReadLine::Line { place, ended },
        })
    }

    /// How many bytes the line had; of one that is too long, only the beginning is kept.
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<u64> {
        let mut rest = (&mut self.reader).take(self.until - self.offset);
        (&mut rest).take(LONGEST_LINE_BYTES + 1).read_until(b'\n', line)?;
        let mut read = line.len() as u64;
        while read > LONGEST_LINE_BYTES && line.last() != Some(&b'\n') {
            let buffered = rest.fill_buf()?;
            let end = buffered.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffered.len(), |end| end + 1);
            rest.consume(taken);
            read += taken as u64;
            if taken == 0 || end.is_some() {
                break;
            }
        }
        Ok(read)
    }

    /// Reads a line again.
    pub(super) fn again(&self, place: Place, line: &mut Vec<u8>) -> Result<(), LogError> {
        line.clear();
        let file = self.reader.get_ref();
        let mut bytes = [0; 4_096];
        loop {
            let read = file.read_at(&mut bytes, place.offset + line.len() as u64);
            let read = read.map_err(|source| LogError::new(&self.path, source))?;
            let end = bytes[..read].iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&bytes[..end.unwrap_or(read)]);
            if end.is_some() || read == 0 || line.len() as u64 > LONGEST_LINE_BYTES {
                return Ok(());
            }
        }
    }
}
