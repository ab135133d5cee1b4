//! Whatever the disk does, and whenever: what was acknowledged is on file, what was not is not, and nothing of a
//! committed change is lost.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use nix::errno::Errno;
use proptest::prelude::*;
use tokio::time::sleep;

use super::disk::Disk;
use super::*;
use crate::config::SyncPolicy;

/// What happens to the log or to its disk, one after another.
#[derive(Clone, Debug)]
enum Event {
    /// Operations that are answered at once; `true` for a committed change.
    Operations(Vec<bool>),
    /// The disk has room for so many bytes more.
    Room(usize),
    /// A write takes at most so many bytes.
    ShortWrites(usize),
    SyncFails,
    TruncateFails,
    OpenFails,
    WritesFail(Errno),
    Mended,
    RenamedAndHungUp,
    Unlinked,
    Milliseconds(u64),
}

fn event(truncate_may_fail: bool) -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => prop::collection::vec(any::<bool>(), 1..12).prop_map(Event::Operations),
        3 => (0usize..4_000).prop_map(Event::Room),
        1 => (1usize..300).prop_map(Event::ShortWrites),
        1 => Just(Event::SyncFails),
        1 => Just(if truncate_may_fail { Event::TruncateFails } else { Event::SyncFails }),
        1 => Just(Event::OpenFails),
        1 => prop::sample::select(vec![Errno::EIO, Errno::ENOSPC, Errno::EPIPE]).prop_map(Event::WritesFail),
        2 => Just(Event::Mended),
        1 => Just(Event::RenamedAndHungUp),
        1 => Just(Event::Unlinked),
        3 => (1u64..1_500).prop_map(Event::Milliseconds),
    ]
}

fn events(truncate_may_fail: bool) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event(truncate_may_fail), 1..25)
}

fn policy() -> impl Strategy<Value = SyncPolicy> {
    prop::sample::select(vec![SyncPolicy::Always, SyncPolicy::EverySecond, SyncPolicy::Never])
}

/// One operation, as its client saw it.
struct Answered {
    number: u128,
    committed: bool,
    /// Refused before it was carried out.
    reserved: bool,
    result: Result<(), LogUnavailable>,
}

struct Run {
    disk: Disk,
    log: OperationsLog,
    policy: SyncPolicy,
    answered: Vec<Answered>,
}

impl Run {
    async fn happen(&mut self, event: Event) {
        let disk = &self.disk;
        match event {
            Event::Operations(kinds) => self.operate(kinds).await,
            Event::Room(bytes) => disk.state().room = Some(bytes),
            Event::ShortWrites(bytes) => disk.state().at_most = Some(bytes),
            Event::SyncFails => disk.state().sync_fails = true,
            Event::TruncateFails => disk.state().truncate_fails = true,
            Event::OpenFails => disk.state().open_fails = true,
            Event::WritesFail(errno) => disk.state().broken = Some(errno),
            Event::Mended => disk.mend(),
            Event::RenamedAndHungUp => {
                disk.rename();
                self.log.reopen();
            }
            Event::Unlinked => disk.unlink(),
            Event::Milliseconds(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
        }
    }

    async fn operate(&mut self, kinds: Vec<bool>) {
        let first = self.answered.len() as u128;
        let operations = kinds.into_iter().zip(first..).map(|(committed, number)| {
            let slot = self.log.reserve();
            async move {
                let told = Told::new(number, committed);
                let reserved = slot.is_ok();
                let result = match slot {
                    Ok(slot) => slot.write(&told.record()).await,
                    Err(unavailable) => Err(unavailable),
                };
                Answered {
                    number,
                    committed,
                    reserved,
                    result,
                }
            }
        });
        let answered = join_all(operations).await;
        let text = self.disk.text(self.policy == SyncPolicy::Always);
        let on_file: Vec<u128> = text.lines().filter_map(told).map(|(number, _)| number).collect();
        for answer in &answered {
            assert!(
                answer.result.is_err() || on_file.contains(&answer.number),
                "answered without a line"
            );
        }
        self.answered.extend(answered);
    }
}

/// Lets all of it happen, mends the disk, lets the log recover and ends it.
fn run(disk: Disk, policy: SyncPolicy, events: Vec<Event>) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async move {
        let appender = Appender::new(disk.clone(), disk.open().unwrap(), policy);
        let (log, writer) = OperationsLog::with_writer(appender, policy, "replica-1");
        let writer = tokio::spawn(writer.run());
        let mut run = Run {
            disk,
            log,
            policy,
            answered: Vec::new(),
        };
        for event in events {
            run.happen(event).await;
        }
        run.disk.mend();
        sleep(Duration::from_secs(2)).await;
        assert_eq!(run.log.health(), Ok(()), "it recovers by itself");
        run.operate(vec![true, false]).await;
        assert!(run.answered.iter().rev().take(2).all(|answer| answer.result.is_ok()));
        run.log.close();
        let leftover = writer.await.unwrap();
        assert_eq!((leftover.lines, leftover.failure), (0, None));
        run
    })
}

/// How often each operation is told of, as it happened and as recovered.
fn lines_told(text: &str) -> HashMap<u128, (usize, usize)> {
    let mut counts = HashMap::new();
    for (number, recovered) in text.lines().filter_map(told) {
        let count: &mut (usize, usize) = counts.entry(number).or_default();
        match recovered {
            false => count.0 += 1,
            true => count.1 += 1,
        }
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_line_is_on_file_exactly_as_its_operation_was_answered(policy in policy(), events in events(false)) {
        let run = run(Disk::default(), policy, events);
        let text = run.disk.text(false);
        prop_assert!(text.lines().all(|line| told(line).is_some()), "all lines parse: {text}");
        let lines = lines_told(&text);
        for answer in &run.answered {
            let expected = match (answer.result, answer.committed && answer.reserved) {
                (Ok(()), _) => (1, 0),
                (Err(_), true) => (0, 1),
                (Err(_), false) => (0, 0),
            };
            prop_assert_eq!(lines.get(&answer.number).copied().unwrap_or_default(), expected, "{}", answer.number);
        }
        let in_order: Vec<u128> = text.lines().filter_map(told).filter(|told| !told.1).map(|told| told.0).collect();
        prop_assert!(in_order.is_sorted(), "lines have the order of the queue: {in_order:?}");
        prop_assert!(policy == SyncPolicy::Never || run.disk.current_file_is_synced(), "synced at the end");
    }

    #[test]
    fn what_cannot_be_cut_off_is_closed_and_every_other_line_is_whole(
        policy in policy(), stream in any::<bool>(), events in events(true)
    ) {
        let disk = if stream { Disk::with_stream() } else { Disk::default() };
        let run = run(disk, policy, events);
        let text = run.disk.text(false);
        for fragment in text.lines().filter(|line| told(line).is_none()) {
            let begins_a_line = fragment.starts_with("{\"at\":\"") || "{\"at\":\"".starts_with(fragment.trim_start());
            prop_assert!(begins_a_line && fragment.matches("\"at\":").count() <= 1, "{fragment}");
        }
        let lines = lines_told(&text);
        for answer in &run.answered {
            let (plain, recovered) = lines.get(&answer.number).copied().unwrap_or_default();
            match (answer.result, answer.committed && answer.reserved) {
                (Ok(()), _) => prop_assert_eq!((plain, recovered), (1, 0)),
                (Err(_), true) => prop_assert_eq!(plain + recovered, 1),
                // It was whole on the file when that failed, but for its line break perhaps, and could not be cut off.
                (Err(_), false) if answer.reserved => prop_assert!(plain <= 1 && recovered == 0),
                (Err(_), false) => prop_assert_eq!((plain, recovered), (0, 0)),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn under_everysec_a_line_is_forced_to_the_disk_within_a_second_and_a_failure_to_do_so_is_told() {
    let disk = Disk::default();
    let appender = Appender::new(disk.clone(), disk.open().unwrap(), SyncPolicy::EverySecond);
    let (log, writer) = OperationsLog::with_writer(appender, SyncPolicy::EverySecond, "replica-1");
    tokio::spawn(writer.run());
    write(&log, 1, true).await.unwrap();
    assert!(!disk.current_file_is_synced());
    sleep(Duration::from_millis(1_100)).await;
    assert!(disk.current_file_is_synced());
    disk.state().sync_fails = true;
    write(&log, 2, true).await.unwrap();
    sleep(Duration::from_millis(1_100)).await;
    assert!(matches!(log.health(), Err(LogFailure::Sync { .. })));
    assert_eq!(write(&log, 3, true).await, Err(LogUnavailable::Failing));
    disk.mend();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(log.health(), Ok(()));
    assert!(disk.current_file_is_synced());
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_kept_past_the_end_is_told_so() {
    let disk = Disk::default();
    let appender = Appender::new(disk.clone(), disk.open().unwrap(), SyncPolicy::Never);
    let (log, writer) = OperationsLog::with_writer(appender, SyncPolicy::Never, "replica-1");
    let writer = tokio::spawn(writer.run());
    let slot = log.reserve().unwrap();
    log.close();
    writer.await.unwrap();
    let told = Told::new(1, false);
    let result = tokio::time::timeout(Duration::from_secs(5), slot.write(&told.record())).await;
    assert_eq!(result, Ok(Err(LogUnavailable::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_recovered_line_that_is_refused_is_kept_and_marked_once() {
    let disk = Disk::default();
    let appender = Appender::new(disk.clone(), disk.open().unwrap(), SyncPolicy::EverySecond);
    let (log, writer) = OperationsLog::with_writer(appender, SyncPolicy::EverySecond, "replica-1");
    tokio::spawn(writer.run());
    let told_late = Told::new(1, true);
    let slot = log.reserve().unwrap();
    disk.state().room = Some(10);
    let result = write_recovered(slot, &told_late).await;
    assert_eq!(result, Err(LogUnavailable::Failing));
    assert_eq!(disk.text(false), "");
    disk.mend();
    sleep(Duration::from_millis(300)).await;
    let text = disk.text(false);
    assert_eq!(text.matches("recovered").count(), 1);
    assert_eq!(lines_told(&text), HashMap::from([(1, (0, 1))]));
}

#[tokio::test(start_paused = true)]
async fn a_kept_line_that_is_on_the_file_but_cannot_be_synced_or_cut_off_is_not_written_twice() {
    let disk = Disk::default();
    let appender = Appender::new(disk.clone(), disk.open().unwrap(), SyncPolicy::Always);
    let (log, writer) = OperationsLog::with_writer(appender, SyncPolicy::Always, "replica-1");
    tokio::spawn(writer.run());
    disk.state().room = Some(0);
    assert_eq!(write(&log, 1, true).await, Err(LogUnavailable::Failing));
    disk.mend();
    disk.state().sync_fails = true;
    disk.state().truncate_fails = true;
    sleep(Duration::from_secs(1)).await;
    assert!(log.health().is_err());
    disk.mend();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(log.health(), Ok(()));
    assert_eq!(lines_told(&disk.text(true)), HashMap::from([(1, (0, 1))]));
}

#[tokio::test(start_paused = true)]
async fn a_line_that_lacks_only_its_line_break_on_a_pipe_is_not_written_twice() {
    let disk = Disk::with_stream();
    let appender = Appender::new(disk.clone(), disk.open().unwrap(), SyncPolicy::EverySecond);
    let (log, writer) = OperationsLog::with_writer(appender, SyncPolicy::EverySecond, "replica-1");
    tokio::spawn(writer.run());
    write(&log, 1, true).await.unwrap();
    let line_bytes = disk.text(false).len();
    // As long as the first: numbers that are 97 apart have contexts of the same length.
    disk.state().room = Some(line_bytes - 1);
    assert_eq!(write(&log, 98, true).await, Err(LogUnavailable::Failing));
    disk.mend();
    sleep(Duration::from_millis(300)).await;
    write(&log, 3, true).await.unwrap();
    let all_once = HashMap::from([(1, (1, 0)), (98, (1, 0)), (3, (1, 0))]);
    assert_eq!(lines_told(&disk.text(false)), all_once);
}
