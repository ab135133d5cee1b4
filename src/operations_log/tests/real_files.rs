//! On files of the operating system.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::time::{sleep, timeout};

use super::*;

/// A directory of its own, removed at the end of the test.
pub(in crate::operations_log) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(in crate::operations_log) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("balance-operations-log-{}", Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(in crate::operations_log) fn log(&self) -> PathBuf {
        self.0.join("operations.log")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) async fn start(path: &Path, sync: SyncPolicy) -> (OperationsLog, WriterTask) {
    OperationsLog::start(config(path, sync, "replica-1")).await.unwrap()
}

pub(super) fn numbers(path: &Path) -> Vec<u128> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| told(line).expect(line).0).collect()
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.expect(what);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_new_file_can_be_read_by_its_owner_only() {
    let directory = Directory::new();
    let (_log, task) = start(&directory.log(), SyncPolicy::Never).await;
    assert_eq!(mode(&directory.log()), 0o600);
    task.finish().await.unwrap();
}

#[tokio::test]
async fn a_file_that_others_could_read_is_closed_to_them_and_keeps_its_lines() {
    let directory = Directory::new();
    fs::write(
        directory.log(),
        "{\"operationId\":\"00000000-0000-0000-0000-000000000007\"}\n",
    )
    .unwrap();
    fs::set_permissions(directory.log(), Permissions::from_mode(0o664)).unwrap();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    assert_eq!(mode(&directory.log()), 0o600);
    write(&log, 8, true).await.unwrap();
    task.finish().await.unwrap();
    assert_eq!(numbers(&directory.log()), [7, 8]);
}

#[tokio::test]
async fn a_torn_last_line_is_never_glued_to_the_next() {
    let directory = Directory::new();
    fs::write(directory.log(), "{\"at\":\"2026-01").unwrap();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    write(&log, 1, true).await.unwrap();
    write(&log, 2, false).await.unwrap();
    task.finish().await.unwrap();
    let text = fs::read_to_string(directory.log()).unwrap();
    let lines: Vec<Option<(u128, bool)>> = text.lines().map(told).collect();
    assert_eq!(lines, [None, Some((1, false)), Some((2, false))]);
}

#[tokio::test]
async fn blanks_that_a_crash_left_of_a_probe_are_cut_off_and_nothing_else_is() {
    let line = "{\"operationId\":\"00000000-0000-0000-0000-000000000007\"}\n";
    let blanks = |count| " ".repeat(count);
    for (before, kept) in [
        (format!("{line}{}", blanks(64 << 10)), line.to_owned()),
        (format!("{line} "), line.to_owned()),
        (blanks(64 << 10), String::new()),
        (line.to_owned(), line.to_owned()),
        // A torn line may end in blanks of its own.
        (format!("{line}{{\"at "), format!("{line}{{\"at \n")),
        (
            format!("{line}{}", blanks(72 << 10)),
            format!("{line}{}\n", blanks(72 << 10)),
        ),
    ] {
        let directory = Directory::new();
        fs::write(directory.log(), &before).unwrap();
        let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
        write(&log, 8, true).await.unwrap();
        task.finish().await.unwrap();
        let text = fs::read_to_string(directory.log()).unwrap();
        let (rest, last) = text.split_at(text.trim_end().rfind('\n').map_or(0, |at| at + 1));
        assert!(rest == kept, "{:?}...", &rest[..rest.len().min(200)]);
        assert_eq!(told(last), Some((8, false)));
    }
}

#[tokio::test]
async fn blanks_that_cannot_be_cut_off_are_closed_before_the_next_line() {
    // As in an append-only file, which only the superuser can make.
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
    let mut sealed = fs::File::from(memfd_create(c"operations.log", flags).unwrap());
    sealed.write_all(b"{}\n  ").unwrap();
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
    let (log, task) = start(&path, SyncPolicy::Never).await;
    write(&log, 8, true).await.unwrap();
    task.finish().await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{}\n  "), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!((lines.len(), told(lines[1])), (2, Some((8, false))), "{text}");
}

#[tokio::test]
async fn a_path_that_cannot_be_opened_is_named() {
    let directory = Directory::new();
    let path = directory.0.join("absent").join("operations.log");
    let config = config(&path, SyncPolicy::Never, "replica-1");
    let error = OperationsLog::start(config).await.err().unwrap().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_at_once_give_a_hundred_whole_lines_under_every_policy() {
    for policy in [SyncPolicy::Always, SyncPolicy::EverySecond, SyncPolicy::Never] {
        let directory = Directory::new();
        let (log, task) = start(&directory.log(), policy).await;
        let writers = (0..100).map(|number| {
            let log = log.clone();
            tokio::spawn(async move { write(&log, number, number % 2 == 0).await })
        });
        for result in join_all(writers).await {
            result.unwrap().unwrap();
        }
        // On file already: no answer leaves before its line.
        let mut written = numbers(&directory.log());
        written.sort_unstable();
        assert_eq!(written, (0..100).collect::<Vec<u128>>());
        let statistics = log.statistics();
        assert_eq!((statistics.lines_written, statistics.failed_writes), (100, 0));
        assert_eq!(statistics.bytes_written, fs::metadata(directory.log()).unwrap().len());
        task.finish().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_by_rename_and_reopen_neither_loses_nor_doubles_a_line() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    let writers: Vec<_> = (0..8u128)
        .map(|writer| {
            let log = log.clone();
            tokio::spawn(async move {
                for number in 0..200 {
                    write(&log, writer * 200 + number, true).await.unwrap();
                }
            })
        })
        .collect();
    let rotated = directory.0.join("operations.log.1");
    until("lines", || log.statistics().lines_written > 100).await;
    fs::rename(directory.log(), &rotated).unwrap();
    log.reopen();
    for writer in writers {
        writer.await.unwrap();
    }
    until("a new file", || directory.log().exists()).await;
    write(&log, 1_600, true).await.unwrap();
    task.finish().await.unwrap();
    let mut all = numbers(&rotated);
    let new = numbers(&directory.log());
    assert!(!all.is_empty() && new.contains(&1_600));
    all.extend(new);
    all.sort_unstable();
    assert_eq!(all, (0..=1_600).collect::<Vec<u128>>());
    assert_eq!(mode(&directory.log()), 0o600);
}

#[tokio::test]
async fn a_reopening_that_fails_refuses_operations_until_it_succeeds() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    fs::rename(directory.log(), directory.0.join("operations.log.1")).unwrap();
    fs::create_dir(directory.log()).unwrap();
    log.reopen();
    until("failing", || log.health().is_err()).await;
    let failure = log.health().unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the operations log cannot be opened: Is a directory"
    );
    assert_eq!(write(&log, 1, true).await, Err(LogUnavailable::Failing));
    fs::remove_dir(directory.log()).unwrap();
    until("recovery", || log.health().is_ok()).await;
    write(&log, 2, true).await.unwrap();
    task.finish().await.unwrap();
    assert_eq!(numbers(&directory.log()), [2]);
}

#[tokio::test]
async fn a_file_that_was_removed_is_made_anew_before_a_line_is_lost() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    write(&log, 1, true).await.unwrap();
    fs::remove_file(directory.log()).unwrap();
    write(&log, 2, true).await.unwrap();
    assert_eq!(numbers(&directory.log()), [2]);
    task.finish().await.unwrap();
}

#[tokio::test]
async fn a_file_emptied_by_copytruncate_is_written_on_from_its_beginning() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    write(&log, 1, true).await.unwrap();
    let file = OpenOptions::new().write(true).open(directory.log()).unwrap();
    file.set_len(0).unwrap();
    write(&log, 2, true).await.unwrap();
    task.finish().await.unwrap();
    assert_eq!(numbers(&directory.log()), [2]);
}

#[tokio::test]
async fn a_full_disk_is_known_before_the_first_operation_is_begun() {
    let (log, task) = start(Path::new("/dev/full"), SyncPolicy::EverySecond).await;
    assert_eq!(log.reserve().err(), Some(LogUnavailable::Failing));
    let failure = log.health().unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the operations log cannot be written: No space left on device"
    );
    // Longer than it takes to try again: an empty file system call must not be mistaken for recovery.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(log.health(), Err(failure));
    let error = task.finish().await.unwrap_err();
    assert!(matches!(error, FinishError::NotSynced(_)), "{error}");
}

#[tokio::test]
async fn the_line_of_a_committed_change_that_cannot_be_written_is_reported_at_the_end() {
    let directory = Directory::new();
    mkfifo(&directory.log(), Mode::S_IRWXU).unwrap();
    let both_ways = OpenOptions::new().read(true).write(true).open(directory.log());
    let reader = both_ways.unwrap();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    let slot = log.reserve().unwrap();
    drop(reader);
    let committed = Told::new(2, true);
    assert_eq!(slot.write(&committed.record()).await, Err(LogUnavailable::Failing));
    assert_eq!(log.statistics().lines_retained, 1);
    let error = task.finish().await.unwrap_err();
    assert!(matches!(error, FinishError::LinesMissing { lines: 1 }), "{error}");
}

#[tokio::test]
async fn a_pipe_gets_whole_lines_and_its_reader_may_go_and_come_back() {
    let directory = Directory::new();
    mkfifo(&directory.log(), Mode::S_IRWXU).unwrap();
    // Opened both ways, so that the pipe has a reader from the start.
    let reader = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut first = reader(&directory.log());
    let (log, task) = start(&directory.log(), SyncPolicy::Always).await;
    write(&log, 1, true).await.unwrap();
    let mut bytes = [0; 4_096];
    let count = first.read(&mut bytes).unwrap();
    assert_eq!(told(std::str::from_utf8(&bytes[..count]).unwrap()), Some((1, false)));
    drop(first);
    assert_eq!(write(&log, 2, true).await, Err(LogUnavailable::Failing));
    sleep(Duration::from_millis(500)).await;
    assert!(log.health().is_err());
    let mut second = reader(&directory.log());
    until("recovery", || log.health().is_ok()).await;
    let count = second.read(&mut bytes).unwrap();
    assert_eq!(told(std::str::from_utf8(&bytes[..count]).unwrap()), Some((2, true)));
    task.finish().await.unwrap();
}

#[tokio::test]
async fn finishing_waits_for_the_slots_that_are_out_and_not_for_the_handles() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    let slot = log.reserve().unwrap();
    log.close();
    until("closed", || log.reserve().is_err()).await;
    assert_eq!(log.reserve().err(), Some(LogUnavailable::Closed));
    slot.write(&Told::new(1, true).record()).await.unwrap();
    timeout(Duration::from_secs(4), task.finish()).await.unwrap().unwrap();
    assert_eq!(numbers(&directory.log()), [1]);
    assert_eq!(log.health(), Err(LogFailure::Closed));
}

#[tokio::test]
async fn without_handles_the_writer_ends_by_itself() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    write(&log, 1, true).await.unwrap();
    drop(log);
    let ended = timeout(Duration::from_secs(4), task.ended).await.unwrap().unwrap();
    assert_eq!((ended.lines, ended.failure), (0, None));
}

#[tokio::test]
async fn there_is_a_slot_for_every_operation_at_once_and_no_more_and_a_dropped_one_makes_room() {
    let directory = Directory::new();
    let config = OperationsLogConfig {
        operations_at_once: 100_000,
        ..config(&directory.log(), SyncPolicy::Never, "replica-1")
    };
    let (log, task) = OperationsLog::start(config).await.unwrap();
    let slots = 0..100_000 + RECOVERY_LINES;
    let mut slots: Vec<Slot> = slots.map(|_| log.reserve().unwrap()).collect();
    assert_eq!(log.reserve().err(), Some(LogUnavailable::QueueFull));
    slots.pop();
    assert!(log.reserve().is_ok());
    drop(slots);
    task.finish().await.unwrap();
}

#[tokio::test]
async fn a_change_whose_line_was_never_written_gets_one_that_says_so() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::Always).await;
    let told_late = Told::new(5, true);
    let slot = log.reserve().unwrap();
    write_recovered(slot, &told_late).await.unwrap();
    task.finish().await.unwrap();
    let text = fs::read_to_string(directory.log()).unwrap();
    assert_eq!(text.lines().map(told).collect::<Vec<_>>(), [Some((5, true))]);
}
