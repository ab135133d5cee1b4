//! The lines of a file from its last to its first, in bounded memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of one read.
const CHUNK_BYTES: usize = 256 << 10;

/// More than the longest line: a context of 4,096 and a user id of 256 characters, each escaped to 12 bytes, and the rest.
/// What is longer is no line of ours and is passed over.
const LONGEST_LINE_BYTES: usize = 64 << 10;

/// Reads a file that nobody writes meanwhile.
pub(super) struct LinesBackwards {
    file: File,
    chunk_bytes: usize,
    /// How much of the file, from its beginning, has not been read.
    unread: u64,
    /// What was read and not given out, up to `end`.
    buffer: Vec<u8>,
    end: usize,
    /// The end of what is looked at belongs to a line that is too long.
    too_long: bool,
}

impl LinesBackwards {
    pub(super) fn new(file: File) -> io::Result<Self> {
        Self::with_chunks(file, CHUNK_BYTES)
    }

    fn with_chunks(file: File, chunk_bytes: usize) -> io::Result<Self> {
        Ok(Self {
            unread: file.metadata()?.len(),
            file,
            chunk_bytes,
            buffer: Vec::new(),
            end: 0,
            too_long: false,
        })
    }

    /// How much of the file, from its beginning, has not been given.
    pub(super) fn unread_bytes(&self) -> u64 {
        self.unread + self.end as u64
    }

    /// The line before the last one given, without its line break, or what stands after the file's last line break, and how
    /// many bytes are before it; `None` before the first. For each part of a line that is too long an empty one is given,
    /// so that who reads can stop.
    pub(super) fn next(&mut self) -> io::Result<Option<(&[u8], u64)>> {
        loop {
            let line = match self.buffer[..self.end].iter().rposition(|byte| *byte == b'\n') {
                Some(line_break) => {
                    let line = line_break + 1..self.end;
                    self.end = line_break;
                    line
                }
                None if self.unread > 0 => {
                    self.read_on()?;
                    if self.too_long {
                        return Ok(Some((&[], self.unread_bytes())));
                    }
                    continue;
                }
                None if self.end == 0 && !self.too_long => return Ok(None),
                None => 0..std::mem::take(&mut self.end),
            };
            let is_line = !std::mem::take(&mut self.too_long) && line.len() <= LONGEST_LINE_BYTES;
            let line = if is_line { line } else { 0..0 };
            return Ok(Some((&self.buffer[line], self.unread_bytes())));
        }
    }

    /// Puts the bytes before those in the buffer in front of them.
    fn read_on(&mut self) -> io::Result<()> {
        if self.end > LONGEST_LINE_BYTES {
            self.too_long = true;
            self.end = 0;
        }
        let count = self.unread.min(self.chunk_bytes as u64);
        self.unread -= count;
        let count = usize::try_from(count).expect("not more than a chunk");
        let mut buffer = vec![0; count];
        self.file.read_exact_at(&mut buffer, self.unread)?;
        buffer.extend_from_slice(&self.buffer[..self.end]);
        self.end = buffer.len();
        self.buffer = buffer;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("balance-backwards-{}", uuid::Uuid::now_v7()));
        let mut file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn backwards(bytes: &[u8], chunk_bytes: usize) -> Vec<Vec<u8>> {
        let mut reader = LinesBackwards::with_chunks(file(bytes), chunk_bytes).unwrap();
        let mut lines = Vec::new();
        let mut unread = reader.unread_bytes();
        assert_eq!(unread, bytes.len() as u64);
        while let Some((line, before)) = reader.next().unwrap() {
            assert!(before + line.len() as u64 <= unread);
            unread = before;
            lines.push(line.to_vec());
        }
        lines.retain(|line| !line.is_empty());
        lines
    }

    fn forwards(bytes: &[u8]) -> Vec<Vec<u8>> {
        let lines = bytes.split(|byte| *byte == b'\n');
        lines
            .filter(|line| (1..=LONGEST_LINE_BYTES).contains(&line.len()))
            .map(<[u8]>::to_vec)
            .collect()
    }

    fn segment() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            20 => prop::collection::vec(any::<u8>(), 0..40),
            1 => (LONGEST_LINE_BYTES - 2..3 * LONGEST_LINE_BYTES).prop_map(|length| vec![b'x'; length]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_line_of_a_possible_length_comes_once_from_the_last_to_the_first(
            segments in prop::collection::vec(segment(), 0..20), chunk_bytes in prop_oneof![1_usize..80, 60_000_usize..70_000],
        ) {
            let bytes = segments.join(&b'\n');
            // Chunks of a few bytes take long over lines that are too long.
            let chunk_bytes = if bytes.len() > LONGEST_LINE_BYTES { chunk_bytes.max(4_000) } else { chunk_bytes };
            let mut expected = forwards(&bytes);
            expected.reverse();
            prop_assert_eq!(backwards(&bytes, chunk_bytes), expected);
        }
    }

    #[test]
    fn a_file_without_a_line_has_none() {
        for bytes in ["", "\n", "\n\n\n"] {
            assert!(backwards(bytes.as_bytes(), 1).is_empty());
        }
    }
}
