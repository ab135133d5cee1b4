//! Only one process writes a file. Openings of one process keep each other out as those of several do.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::super::file::LOCK_PATIENCE;
use super::real_files::{Directory, numbers, start, until};
use super::*;

/// Locks what is at the path, as another process would that writes it.
fn locked(path: &Path) -> fs::File {
    let file = fs::File::options().append(true).create(true).open(path).unwrap();
    file.try_lock().unwrap();
    file
}

/// How often this process has the file open.
fn openings(path: &Path) -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    files.filter(|file| file == path).count()
}

#[tokio::test]
async fn a_file_that_another_process_writes_is_not_opened_and_nothing_in_it_is_changed() {
    let directory = Directory::new();
    let _other = locked(&directory.log());
    // What the other has written in part.
    fs::write(directory.log(), "{\"at").unwrap();
    let began = Instant::now();
    let config = config(&directory.log(), SyncPolicy::EverySecond, "replica-2");
    let error = OperationsLog::start(config).await.err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains(directory.log().to_str().unwrap()), "{message}");
    let waited = began.elapsed();
    assert!(
        waited >= LOCK_PATIENCE && waited < LOCK_PATIENCE * 2,
        "a predecessor may still be ending: {waited:?}"
    );
    assert_eq!(fs::read_to_string(directory.log()).unwrap(), "{\"at");
}

#[tokio::test]
async fn a_predecessor_that_is_ending_is_waited_for_and_the_file_that_is_there_then_is_opened() {
    let directory = Directory::new();
    let (first, first_task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    let second = tokio::spawn(OperationsLog::open(config(
        &directory.log(),
        SyncPolicy::EverySecond,
        "replica-1",
    )));
    write(&first, 1, true).await.unwrap();
    // Otherwise it may be the second that makes the new file.
    until("both have it open", || openings(&directory.log()) == 2).await;
    // Rotated meanwhile: the second has perhaps opened what is now another file.
    let rotated = directory.0.join("operations.log.1");
    fs::rename(directory.log(), &rotated).unwrap();
    first.reopen();
    until("a new file", || directory.log().exists()).await;
    write(&first, 2, true).await.unwrap();
    assert!(!second.is_finished());
    first_task.finish().await.unwrap();
    let opened = timeout(Duration::from_secs(4), second).await.unwrap().unwrap().unwrap();
    assert!(!opened.is_new());
    let (second, second_task) = opened.start().await.unwrap();
    write(&second, 3, true).await.unwrap();
    second_task.finish().await.unwrap();
    assert_eq!((numbers(&rotated), numbers(&directory.log())), (vec![1], vec![2, 3]));
}

#[tokio::test]
async fn reopening_the_same_file_keeps_its_lock_and_a_new_file_is_locked_too() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    let is_locked = |path: &Path| fs::File::open(path).unwrap().try_lock().is_err();
    for number in 0..3 {
        log.reopen();
        write(&log, number, true).await.unwrap();
        assert_eq!(log.health(), Ok(()));
        assert!(is_locked(&directory.log()));
    }
    let rotated = directory.0.join("operations.log.1");
    fs::rename(directory.log(), &rotated).unwrap();
    log.reopen();
    until("a new file", || directory.log().exists()).await;
    write(&log, 3, true).await.unwrap();
    assert!(is_locked(&directory.log()));
    until("the rotated file is free", || !is_locked(&rotated)).await;
    fs::remove_file(directory.log()).unwrap();
    write(&log, 4, true).await.unwrap();
    assert!(is_locked(&directory.log()));
    assert_eq!(log.statistics().failed_writes, 0);
    task.finish().await.unwrap();
    assert!(!is_locked(&directory.log()));
}

#[tokio::test]
async fn a_new_file_that_another_process_writes_makes_the_log_fail_until_it_is_free() {
    let directory = Directory::new();
    let (log, task) = start(&directory.log(), SyncPolicy::EverySecond).await;
    fs::rename(directory.log(), directory.0.join("operations.log.1")).unwrap();
    let other = locked(&directory.log());
    log.reopen();
    until("failing", || log.health().is_err()).await;
    let failure = log.health().unwrap_err().to_string();
    assert_eq!(
        failure,
        "the operations log cannot be opened: another process writes it"
    );
    assert_eq!(write(&log, 1, true).await, Err(LogUnavailable::Failing));
    drop(other);
    until("recovery", || log.health().is_ok()).await;
    write(&log, 2, true).await.unwrap();
    task.finish().await.unwrap();
    assert_eq!(numbers(&directory.log()), [2]);
}
