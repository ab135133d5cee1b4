//! Reads small files whole, within bounds of size and time, and regular files only.
//!
//! It may be read while requests are served, and no reading may hold anything up: opening a pipe waits for someone to write
//! to it, and a network file system that is away answers nothing. So a thread of its own reads, and is waited for only so
//! long; it does not keep the process from ending.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;

/// The largest file that a setting may name, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// How long one may take.
const READ_TIME: Duration = Duration::from_secs(10);

/// The most that are being read at once, those included that are no longer waited for.
const MAX_READINGS: usize = 16;

static READINGS: AtomicUsize = AtomicUsize::new(0);

/// Reads the file. Blocks, for 10 seconds at most.
///
/// # Errors
///
/// If it cannot be read, is no regular file, has more than [`MAX_BYTES`] or takes too long; or if many earlier readings hang.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    within(READ_TIME, &READINGS, move || {
        read_at_most(open_regular(&path, Links::Followed)?, MAX_BYTES)
    })
}

/// Reads a file that this program wrote itself. Blocks, for 10 seconds at most.
///
/// # Errors
///
/// As [`read`], with a limit of `max_bytes`. A symbolic link is refused, since the program makes none.
pub fn read_own(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    within(READ_TIME, &READINGS, move || {
        read_at_most(open_regular(&path, Links::Refused)?, max_bytes)
    })
}

/// Whether a symbolic link as the last part of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Open what it leads to.
    Followed,
    /// Fail.
    Refused,
}

/// Opens a regular file for reading; never waits for the writer of a pipe, and opens no device.
///
/// # Errors
///
/// If it cannot be opened, or is no regular file.
pub fn open_regular(path: &Path, links: Links) -> io::Result<File> {
    let metadata = match links {
        Links::Followed => path.metadata()?,
        Links::Refused => path.symlink_metadata()?,
    };
    let not_regular = || io::Error::other("not a regular file");
    // Opening a device can do something by itself.
    if !metadata.is_file() {
        return Err(not_regular());
    }
    let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    flags.set(OFlag::O_NOFOLLOW, links == Links::Refused);
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    // Another one may have taken its place meanwhile.
    if !file.metadata()?.is_file() {
        return Err(not_regular());
    }
    Ok(file)
}

fn read_at_most(file: File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let message = match max_bytes {
            MAX_BYTES => "longer than a mebibyte".to_owned(),
            bytes => format!("longer than {bytes} bytes"),
        };
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// One of the readings under way.
struct Reading(&'static AtomicUsize);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Gives what `read` gives, if it does so in time. Of one that is given up nothing is taken later.
fn within(
    time: Duration,
    readings: &'static AtomicUsize,
    read: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
) -> io::Result<Vec<u8>> {
    let before = readings.fetch_add(1, Ordering::Relaxed);
    let reading = Reading(readings);
    if before >= MAX_READINGS {
        return Err(io::Error::other(
            "too many earlier attempts to read files have not ended",
        ));
    }
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new().name("small-file".to_owned()).spawn(move || {
        let read = read();
        drop(reading);
        // Whoever has given it up needs it no more.
        let _ = sender.send(read);
    })?;
    match receiver.recv_timeout(time) {
        Ok(read) => read,
        Err(RecvTimeoutError::Timeout) => {
            let message = format!("not read within {time:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        }
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the attempt to read it failed")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_no_regular_file_or_is_too_large_is_refused_and_the_rest_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        for path in [&path, directory.path(), Path::new("/dev/zero")] {
            assert_eq!(read(path).unwrap_err().to_string(), "not a regular file", "{path:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let most = vec![7; usize::try_from(MAX_BYTES).unwrap()];
        std::fs::write(&path, &most).unwrap();
        assert!(read(&path).unwrap() == most);
        std::fs::write(&path, [most, vec![7]].concat()).unwrap();
        assert_eq!(read(&path).unwrap_err().to_string(), "longer than a mebibyte");
    }

    #[test]
    fn a_file_of_our_own_is_no_link_and_has_its_own_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "1234").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_own(&file, 4).unwrap(), b"1234");
        assert_eq!(read_own(&file, 3).unwrap_err().to_string(), "longer than 3 bytes");
        assert_eq!(read_own(&link, 4).unwrap_err().to_string(), "not a regular file");
        assert_eq!(read(&link).unwrap(), b"1234");
    }

    #[test]
    fn a_reading_that_hangs_is_given_up_and_later_ones_are_made_up_to_a_limit() {
        static READINGS: AtomicUsize = AtomicUsize::new(0);
        let began = Instant::now();
        let mut hanging = Vec::new();
        for _ in 0..MAX_READINGS {
            assert_eq!(within(LONG, &READINGS, || Ok(vec![1])).unwrap(), [1]);
            let (release, released) = channel::<()>();
            hanging.push(release);
            let given_up = within(Duration::from_millis(1), &READINGS, move || {
                let _ = released.recv();
                Ok(Vec::new())
            });
            assert_eq!(given_up.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        let refused = within(LONG, &READINGS, || Ok(Vec::new())).unwrap_err();
        assert!(refused.to_string().contains("have not ended"), "{refused}");
        drop(hanging);
        while within(LONG, &READINGS, || Ok(Vec::new())).is_err() {
            thread::yield_now();
        }
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn a_reading_that_panics_has_failed() {
        static READINGS: AtomicUsize = AtomicUsize::new(0);
        let failed = within(LONG, &READINGS, || panic!("as it is told to"));
        assert!(failed.is_err());
        assert_eq!(READINGS.load(Ordering::Relaxed), 0);
    }
}
