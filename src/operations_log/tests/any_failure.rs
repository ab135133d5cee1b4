//! Whatever the disk does, and whenever: what was acknowledged is on file, what was not is not, and nothing of a
//! committed change is lost.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use nix::errno::Errno;
use proptest::prelude::*;
use tokio::time::sleep;

use super::disk::Disk;
use super::*;

/// What an operation's line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Accepted,
    Unknown,
    Refused,
}

/// Lines that are written together, or a line of a change that was committed long ago.
#[derive(Clone, Debug)]
enum Job {
    Lines(Vec<Kind>),
    Recovered,
}

/// What happens to the log or to its disk, one after another.
#[derive(Clone, Debug)]
enum Event {
    /// Operations that are answered at once; what happens meanwhile happens before any of their lines is written.
    Operations {
        jobs: Vec<Job>,
        meanwhile: Vec<Trouble>,
    },
    Trouble(Trouble),
    Milliseconds(u64),
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The disk has room for so many bytes more.
    Room(usize),
    /// A write takes at most so many bytes.
    ShortWrites(usize),
    /// So many writes are interrupted by a signal.
    Interrupted(u32),
    /// A write takes nothing and says so.
    NothingTaken,
    SyncFails,
    TruncateFails,
    /// Nothing can be learnt of the file.
    ConditionFails,
    OpenFails,
    WritesFail(Errno),
    Mended,
    RenamedAndHungUp,
    Unlinked,
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let kind = prop::sample::select(vec![Kind::Accepted, Kind::Accepted, Kind::Unknown, Kind::Refused]);
    let job = prop_oneof![
        6 => prop::collection::vec(kind, 1..6).prop_map(Job::Lines),
        1 => Just(Job::Recovered),
    ];
    prop::collection::vec(job, 1..5)
}

fn trouble(may_stay: bool) -> impl Strategy<Value = Trouble> {
    prop_oneof![
        3 => (0usize..4_000).prop_map(Trouble::Room),
        1 => (1usize..300).prop_map(Trouble::ShortWrites),
        1 => (1u32..4).prop_map(Trouble::Interrupted),
        1 => Just(Trouble::NothingTaken),
        1 => Just(Trouble::SyncFails),
        1 => Just(if may_stay { Trouble::TruncateFails } else { Trouble::SyncFails }),
        1 => Just(if may_stay { Trouble::ConditionFails } else { Trouble::OpenFails }),
        1 => Just(Trouble::OpenFails),
        1 => prop::sample::select(vec![Errno::EIO, Errno::ENOSPC, Errno::EPIPE]).prop_map(Trouble::WritesFail),
        2 => Just(Trouble::Mended),
        1 => Just(Trouble::RenamedAndHungUp),
        1 => Just(Trouble::Unlinked),
    ]
}

/// `may_stay`: what was written in part may stay on the file, since it cannot be cut off.
fn events(may_stay: bool) -> impl Strategy<Value = Vec<Event>> {
    let operations = (jobs(), prop::collection::vec(trouble(may_stay), 0..3));
    let event = prop_oneof![
        8 => operations.prop_map(|(jobs, meanwhile)| Event::Operations { jobs, meanwhile }),
        10 => trouble(may_stay).prop_map(Event::Trouble),
        3 => (1u64..1_500).prop_map(Event::Milliseconds),
    ];
    prop::collection::vec(event, 1..25)
}

fn policy() -> impl Strategy<Value = SyncPolicy> {
    prop::sample::select(vec![SyncPolicy::Always, SyncPolicy::EverySecond, SyncPolicy::Never])
}

/// One operation, as its client saw it.
struct Answered {
    number: u128,
    /// Its line is never given up.
    kept: bool,
    /// It was committed long ago, and its line says so from the first.
    recovered: bool,
    /// Not refused before it was carried out.
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
        match event {
            Event::Operations { jobs, meanwhile } => self.operate(jobs, meanwhile).await,
            Event::Trouble(trouble) => self.trouble(trouble),
            Event::Milliseconds(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
        }
    }

    fn trouble(&self, trouble: Trouble) {
        let disk = &self.disk;
        match trouble {
            Trouble::Room(bytes) => disk.state().room = Some(bytes),
            Trouble::ShortWrites(bytes) => disk.state().at_most = Some(bytes),
            Trouble::Interrupted(times) => disk.state().interruptions = times,
            Trouble::NothingTaken => disk.state().at_most = Some(0),
            Trouble::SyncFails => disk.state().sync_fails = true,
            Trouble::TruncateFails => disk.state().truncate_fails = true,
            Trouble::ConditionFails => disk.state().condition_fails = true,
            Trouble::OpenFails => disk.state().open_fails = true,
            Trouble::WritesFail(errno) => disk.state().broken = Some(errno),
            Trouble::Mended => disk.mend(),
            Trouble::RenamedAndHungUp => {
                disk.rename();
                self.log.reopen();
            }
            Trouble::Unlinked => disk.unlink(),
        }
    }

    async fn operate(&mut self, jobs: Vec<Job>, meanwhile: Vec<Trouble>) {
        let mut numbers = self.answered.len() as u128..;
        let jobs: Vec<_> = jobs.into_iter().map(|job| self.begin(job, &mut numbers)).collect();
        meanwhile.into_iter().for_each(|trouble| self.trouble(trouble));
        let answered: Vec<Answered> = join_all(jobs).await.into_iter().flatten().collect();
        let text = self.disk.text(self.policy == SyncPolicy::Always);
        let on_file: Vec<u128> = text.lines().filter_map(told).map(|(number, _)| number).collect();
        // Whoever was answered before the file was removed has had the line.
        for answer in &answered {
            assert!(
                answer.result.is_err() || on_file.contains(&answer.number),
                "answered without a line"
            );
        }
        self.answered.extend(answered);
    }

    /// Hands lines over at once; what is returned tells what became of them.
    fn begin(&self, job: Job, numbers: &mut impl Iterator<Item = u128>) -> BoxFuture<'static, Vec<Answered>> {
        let mut answered = Vec::new();
        let mut lines = Lines::now();
        let mut slots = Vec::new();
        let (kinds, recovered) = match job {
            Job::Lines(kinds) => (kinds, false),
            Job::Recovered => (vec![Kind::Accepted], true),
        };
        for (kind, number) in kinds.into_iter().zip(numbers) {
            let slot = self.log.reserve();
            answered.push(Answered {
                number,
                kept: kind != Kind::Refused,
                recovered,
                reserved: slot.is_ok(),
                result: slot.as_ref().map(|_| ()).map_err(|unavailable| *unavailable),
            });
            let outcome = match kind {
                Kind::Accepted => Outcome::Accepted,
                Kind::Unknown => Outcome::Unknown,
                Kind::Refused => Outcome::Problem("insufficient_funds"),
            };
            let told = Told {
                outcome,
                ..Told::new(number, true)
            };
            match slot {
                Ok(slot) if recovered => slots.push((slot, told)),
                Ok(slot) => lines.push(slot, &told.record()),
                Err(_) => {}
            }
        }
        let writing = lines.write();
        async move {
            for (slot, told) in slots {
                answered[0].result = write_recovered(slot, &told).await;
            }
            if !recovered {
                let written = writing.await;
                let reserved = answered.iter_mut().filter(|answer| answer.reserved);
                reserved
                    .enumerate()
                    .for_each(|(index, answer)| answer.result = written.line(index));
            }
            answered
        }
        .boxed()
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
        let appender = Appender::new(disk.clone(), disk.open(None).unwrap(), policy);
        let (log, writer) = OperationsLog::with_writer(appender, &config(Path::new("disk"), policy, "replica-1"));
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
        run.operate(vec![Job::Lines(vec![Kind::Accepted, Kind::Refused])], Vec::new())
            .await;
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

/// Every line is on file exactly as its operation was answered.
fn assert_exact(run: &Run) {
    let text = run.disk.text(false);
    assert!(text.lines().all(|line| told(line).is_some()), "all lines parse: {text}");
    let lines = lines_told(&text);
    for answer in &run.answered {
        let expected = match (answer.result, answer.kept && answer.reserved) {
            (Ok(()), _) if !answer.recovered => (1, 0),
            (Ok(()), _) | (Err(_), true) => (0, 1),
            (Err(_), false) => (0, 0),
        };
        let counts = lines.get(&answer.number).copied().unwrap_or_default();
        assert_eq!(counts, expected, "{}", answer.number);
    }
    let in_order = text.lines().filter_map(told).filter(|told| !told.1);
    let in_order: Vec<u128> = in_order.map(|told| told.0).collect();
    assert!(in_order.is_sorted(), "lines have the order of the queue: {in_order:?}");
    let is_synced = run.policy == SyncPolicy::Never || run.disk.current_file_is_synced();
    assert!(is_synced, "synced at the end");
}

/// Every line is whole, or a fragment by itself, and none is lost or there twice.
fn assert_whole(run: &Run) {
    let text = run.disk.text(false);
    for fragment in text.lines().filter(|line| told(line).is_none()) {
        let begins_a_line = fragment.starts_with("{\"at\":\"") || "{\"at\":\"".starts_with(fragment.trim_start());
        assert!(begins_a_line && fragment.matches("\"at\":").count() <= 1, "{fragment}");
    }
    let lines = lines_told(&text);
    for answer in &run.answered {
        let (plain, recovered) = lines.get(&answer.number).copied().unwrap_or_default();
        match (answer.result, answer.kept && answer.reserved) {
            (Ok(()), _) if !answer.recovered => assert_eq!((plain, recovered), (1, 0)),
            (Ok(()), _) => assert_eq!((plain, recovered), (0, 1)),
            (Err(_), true) => assert_eq!(plain + recovered, 1),
            // It was whole on the file when that failed, but for its line break perhaps, and could not be cut off.
            (Err(_), false) if answer.reserved => assert!(plain <= 1 && recovered == 0),
            (Err(_), false) => assert_eq!((plain, recovered), (0, 0)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_line_is_on_file_exactly_as_its_operation_was_answered(policy in policy(), events in events(false)) {
        assert_exact(&run(Disk::default(), policy, events));
    }

    #[test]
    fn what_cannot_be_cut_off_is_closed_and_every_other_line_is_whole(
        policy in policy(), stream in any::<bool>(), events in events(true)
    ) {
        let disk = if stream { Disk::with_stream() } else { Disk::default() };
        assert_whole(&run(disk, policy, events));
    }
}

/// Lines that are written together, several times, on a disk that is full after so many bytes.
fn full_after(bytes: usize, policy: SyncPolicy, disk: Disk, and: Option<Trouble>) -> Run {
    let jobs = vec![
        Job::Lines(vec![Kind::Accepted, Kind::Refused]),
        Job::Recovered,
        Job::Lines(vec![Kind::Unknown]),
    ];
    let meanwhile = [Some(Trouble::Room(bytes)), and].into_iter().flatten().collect();
    run(disk, policy, vec![Event::Operations { jobs, meanwhile }])
}

/// The bytes of these lines, on a disk with room for all of them.
fn all_bytes() -> usize {
    let run = full_after(usize::MAX, SyncPolicy::Never, Disk::default(), None);
    // Without the two lines at the end of every run.
    let lines = run.disk.text(false);
    lines.split_inclusive('\n').take(4).map(str::len).sum()
}

#[test]
fn at_whatever_byte_the_disk_is_full_every_line_is_exact() {
    for bytes in 0..=all_bytes() {
        let lazy = [SyncPolicy::EverySecond, SyncPolicy::Never][bytes % 2];
        for policy in [SyncPolicy::Always, lazy] {
            assert_exact(&full_after(bytes, policy, Disk::default(), None));
        }
    }
}

#[test]
fn at_whatever_byte_a_disk_that_cannot_be_cut_is_full_every_line_is_whole() {
    for bytes in 0..=all_bytes() {
        let policy = [SyncPolicy::Always, SyncPolicy::EverySecond, SyncPolicy::Never][bytes % 3];
        let (disk, trouble) = match bytes % 2 {
            0 => (Disk::with_stream(), Trouble::ShortWrites(7)),
            _ => (Disk::default(), Trouble::TruncateFails),
        };
        assert_whole(&full_after(bytes, policy, disk, Some(trouble)));
    }
}

#[tokio::test(start_paused = true)]
async fn under_everysec_a_line_is_forced_to_the_disk_within_a_second_and_a_failure_to_do_so_is_told() {
    let disk = Disk::default();
    let log = disk.log(SyncPolicy::EverySecond, "replica-1");
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
    let appender = Appender::new(disk.clone(), disk.open(None).unwrap(), SyncPolicy::Never);
    let (log, writer) =
        OperationsLog::with_writer(appender, &config(Path::new("disk"), SyncPolicy::Never, "replica-1"));
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
    let log = disk.log(SyncPolicy::EverySecond, "replica-1");
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
    let log = disk.log(SyncPolicy::Always, "replica-1");
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
    let log = disk.log(SyncPolicy::EverySecond, "replica-1");
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

#[tokio::test(start_paused = true)]
async fn a_fragment_on_a_pipe_is_closed_even_if_nothing_can_be_learnt_of_the_pipe_when_it_is_opened_anew() {
    let disk = Disk::with_stream();
    let log = disk.log(SyncPolicy::EverySecond, "replica-1");
    disk.state().room = Some(1);
    assert_eq!(write(&log, 1, true).await, Err(LogUnavailable::Failing));
    disk.state().condition_fails = true;
    log.reopen();
    sleep(Duration::from_millis(300)).await;
    disk.mend();
    sleep(Duration::from_millis(300)).await;
    write(&log, 2, true).await.unwrap();
    let text = disk.text(false);
    let lines: Vec<_> = text.lines().map(told).collect();
    assert_eq!(lines, [None, Some((1, true)), Some((2, false))]);
}
