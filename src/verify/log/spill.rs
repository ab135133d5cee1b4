//! Records on disk, in parts: all of one operation are in the same part, and a part fits in memory.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Read, Seek, Write};

use super::record::Record;

/// How many parts records are divided into at once.
const PARTS: usize = 256;

/// A part longer than this is divided again.
const LONGEST_PART_BYTES: u64 = 64 << 20;

/// Parts are divided again at most so often; what is still too long then is all of a few operations.
const MOST_DIVISIONS: u32 = 6;

/// Records that are being written. The files have no names and are gone with the process.
pub(super) struct Spill {
    parts: Vec<Option<BufWriter<File>>>,
    /// The same for all divisions of the same records.
    keys: RandomState,
    division: u32,
    buffer: Vec<u8>,
}

impl Spill {
    pub(super) fn new() -> Self {
        Self::division(RandomState::new(), 0)
    }

    fn division(keys: RandomState, division: u32) -> Self {
        Self {
            parts: (0..PARTS).map(|_| None).collect(),
            keys,
            division,
            buffer: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, record: &Record<'_>) -> io::Result<()> {
        let hash = self.keys.hash_one(record.id());
        let [part, ..] = (hash >> (8 * self.division)).to_le_bytes();
        self.buffer.clear();
        record.write(&mut self.buffer);
        let part = &mut self.parts[usize::from(part)];
        if part.is_none() {
            *part = Some(BufWriter::with_capacity(1 << 14, tempfile::tempfile()?));
        }
        part.as_mut().map_or(Ok(()), |part| part.write_all(&self.buffer))
    }

    /// The parts, to be read one after the other.
    pub(super) fn into_parts(self) -> io::Result<Parts> {
        let division = self.division;
        let files = self.parts.into_iter().flatten();
        let files = files.map(|part| Ok((part.into_inner().map_err(io::IntoInnerError::into_error)?, division)));
        Ok(Parts {
            files: files.collect::<io::Result<_>>()?,
            keys: self.keys,
        })
    }
}

/// Parts that are not yet read.
pub(super) struct Parts {
    files: Vec<(File, u32)>,
    keys: RandomState,
}

impl Parts {
    /// The bytes of the next part; none at the end.
    pub(super) fn next_part(&mut self) -> io::Result<Option<Vec<u8>>> {
        while let Some((mut file, division)) = self.files.pop() {
            file.rewind()?;
            let length = file.metadata()?.len();
            if length <= LONGEST_PART_BYTES || division == MOST_DIVISIONS {
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                file.read_to_end(&mut bytes)?;
                return Ok(Some(bytes));
            }
            self.divide(file, division + 1)?;
        }
        Ok(None)
    }

    fn divide(&mut self, mut file: File, division: u32) -> io::Result<()> {
        let mut spill = Spill::division(self.keys.clone(), division);
        let (mut bytes, mut kept) = (vec![0; 1 << 16], 0);
        loop {
            let read = file.read(&mut bytes[kept..])?;
            let filled = kept + read;
            let mut rest = &bytes[..filled];
            while let Some(record) = Record::read(&mut rest) {
                spill.push(&record)?;
            }
            if read == 0 {
                break;
            }
            // The beginning of a record whose end is still to be read; no record is as long as the buffer.
            kept = rest.len();
            bytes.copy_within(filled - kept..filled, 0);
        }
        self.files.extend(spill.into_parts()?.files);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use uuid::Uuid;

    use super::super::record::{Content, RowRecord};
    use super::*;
    use crate::store::{StoredMoment, StoredPlace};

    fn row(number: u128, user_id: &str) -> Record<'_> {
        Record::Row(RowRecord {
            id: Uuid::from_u128(number),
            content: Content {
                hash: 0,
                balance: 0,
                instance: 0,
                caller: 0,
            },
            place: StoredPlace {
                timestamp: StoredMoment(0),
                seq: 1,
            },
            is_recent: false,
            user_id,
        })
    }

    #[test]
    fn parts_that_are_divided_again_hold_the_same_and_keep_an_operation_together() {
        let user_id = "u".repeat(700);
        let mut spill = Spill::new();
        for number in (0..3_000).chain(0..3_000) {
            spill.push(&row(number, &user_id)).unwrap();
        }
        let mut parts = spill.into_parts().unwrap();
        let (file, division) = parts.files.swap_remove(3);
        let (mut file, before) = (file, parts.files.len());
        file.rewind().unwrap();
        parts.divide(file, division + 1).unwrap();
        assert!(parts.files.len() > before + 1);
        let mut counts = HashMap::new();
        while let Some(bytes) = parts.next_part().unwrap() {
            let mut rest = bytes.as_slice();
            let mut of_part: HashMap<_, usize> = HashMap::new();
            while let Some(record) = Record::read(&mut rest) {
                *of_part.entry(record.id()).or_default() += 1;
            }
            assert!(rest.is_empty());
            counts.extend(of_part);
        }
        assert_eq!(counts.len(), 3_000);
        assert!(counts.values().all(|count| *count == 2));
    }
}
