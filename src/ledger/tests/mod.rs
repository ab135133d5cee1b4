//! The ledger on a store that fails: thousands of schedules, each drawn from a seed and run in virtual time, and each held
//! against the contract.
//!
//! - `schedule`: what is asked of which replica and when, what goes wrong, and how the replicas are set up.
//! - `explain`: whether all that was answered, stored and logged is as the contract says.
//!
//! `LEDGER_SEED=17 cargo test --lib ledger::tests` runs a single schedule of each course again;
//! `LEDGER_SCHEDULES=100000` runs that many.

mod explain;
mod schedule;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use super::*;
use crate::config::SyncPolicy;
use crate::domain::Timestamp;
use crate::operations_log::tests::disk::Disk;
use crate::store::fake::{FakeStore, LATEST};
use schedule::{Ask, Course, PLACES, Schedule, What};

/// How many schedules each course runs.
const SCHEDULES: u64 = 500;

/// The counts are of no interest here, and a registry takes longer to make than a schedule to run.
static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(Arc::default);

/// One replica: a ledger and a log of its own on a store that it shares.
struct Replica {
    ledger: Ledger<FakeStore>,
    log: OperationsLog,
    disk: Disk,
    under_way: Arc<Semaphore>,
}

/// What was asked, what came of it, and between which versions of the user and which moments.
struct Exchange {
    ask: Ask,
    begin: usize,
    end: usize,
    deadline: Instant,
    ended: Instant,
    answer: Given,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
enum Given {
    Change(Answer),
    /// What a first look at a change told, which has no line.
    Foreseen(Answer),
    Read(Result<Reading, Unavailable>),
    /// The log gave no slot.
    Refused(Unavailable),
}

impl Replica {
    fn start(number: usize, store: &FakeStore, schedule: &Schedule) -> Self {
        let disk = Disk::default();
        let instance = format!("replica-{number}");
        let log = disk.log(schedule.sync, &instance);
        let ledger = Ledger::new(
            Arc::new(store.clone()),
            log.clone(),
            Arc::clone(&METRICS),
            instance,
            schedule.config,
            schedule.batches_apart,
        );
        Self {
            ledger,
            log,
            disk,
            under_way: Arc::new(Semaphore::new(PLACES)),
        }
    }

    /// Does with one operation what the service does.
    async fn answer(&self, ask: &Ask, deadline: Instant) -> Given {
        let slot = match self.log.reserve() {
            Ok(slot) => slot,
            Err(unavailable) => return Given::Refused(unavailable.into()),
        };
        let under_way = Arc::clone(&self.under_way).try_acquire_owned().unwrap();
        let place = Place {
            request: None,
            slot,
            under_way,
            deadline,
        };
        match &ask.what {
            What::Change(proposal) => {
                if let Some(verdict_takes) = ask.verdict_takes {
                    // The Approver is asked meanwhile.
                    let verdict_at = Instant::now() + verdict_takes;
                    let foreseeing = AssertUnwindSafe(self.ledger.foresee(proposal, deadline)).catch_unwind();
                    match foreseeing.await {
                        Ok(Ok(())) => sleep_until(verdict_at).await,
                        Ok(Err(answer)) => return Given::Foreseen(answer),
                        Err(_) => return Given::Change(self.ledger.panicked(&proposal.operation).await),
                    }
                }
                Given::Change(self.ledger.record(proposal.clone(), place).await)
            }
            What::Read { user_id, figure, at } => {
                let question = Question {
                    user_id: user_id.clone(),
                    figure: *figure,
                    at: *at,
                    caller: None,
                };
                let read = self.ledger.read(question, place).await;
                Given::Read(read.map(|(_, reading)| reading))
            }
        }
    }
}

async fn exchange(replica: &Replica, store: &FakeStore, ask: &Ask, timeout: Duration) -> Exchange {
    let deadline = Instant::now() + timeout;
    let begin = store.version(ask.user_id());
    let answer = replica.answer(ask, deadline).await;
    Exchange {
        ask: ask.clone(),
        begin,
        end: store.version(ask.user_id()),
        deadline,
        ended: Instant::now(),
        answer,
    }
}

/// Runs a schedule to its end, and checks it.
async fn run(schedule: Schedule) {
    let store = FakeStore::new(schedule.layout, schedule.faults, schedule.random.clone());
    let replicas: Vec<_> = (0..schedule.replicas)
        .map(|number| Replica::start(number, &store, &schedule))
        .collect();
    let began = Instant::now();
    if let Some(outage) = schedule.log_outage {
        let disk = replicas[0].disk.clone();
        tokio::spawn(async move {
            sleep(outage.after).await;
            disk.fill_up_after(outage.bytes);
            sleep(outage.lasts).await;
            disk.mend();
        });
    }
    let asks = schedule.asks.iter().map(|ask| {
        let (replica, store) = (&replicas[ask.replica], &store);
        async move {
            sleep_until(began + ask.after).await;
            exchange(replica, store, ask, schedule.timeout).await
        }
    });
    let mut exchanges = join_all(asks).await;
    // Statements that nobody waits for any more end too, and may do so in the midst of what follows.
    store.mend();
    sleep(Duration::from_secs(2)).await;
    let last = schedule.last_asks();
    let last = last
        .iter()
        .map(|ask| exchange(&replicas[ask.replica], &store, ask, schedule.timeout));
    let last = join_all(last).await;
    explain::all_is_well_again(&last);
    exchanges.extend(last);
    sleep(LATEST).await;
    for replica in &replicas {
        assert_eq!(replica.under_way.available_permits(), PLACES, "a place is lost");
        assert_eq!(replica.log.statistics().lines_queued, 0, "a slot is lost");
    }
    explain::all(&schedule, &store, &replicas, &exchanges);
}

/// Runs a schedule; what is wrong with it, if anything.
fn outcome(seed: u64, course: Course) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let running = || runtime.block_on(run(Schedule::draw(seed, course)));
    catch_unwind(AssertUnwindSafe(running)).map_err(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(_) => "see above".to_owned(),
    })
}

/// Runs the schedules of a course, all of them even if some fail: their number tells how rare it is.
fn run_all(course: Course) {
    let number = |variable| std::env::var(variable).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds: Vec<_> = match number("LEDGER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("LEDGER_SCHEDULES").unwrap_or(SCHEDULES)).collect(),
    };
    let failed = seeds
        .iter()
        .filter_map(|seed| Some((seed, outcome(*seed, course).err()?)));
    let failed: Vec<_> = failed.collect();
    if let Some((seed, message)) = failed.first() {
        let (count, of) = (failed.len(), seeds.len());
        panic!("{count} of {of} schedules fail ({course:?}), the first with LEDGER_SEED={seed}: {message}");
    }
}

#[test]
fn without_faults_every_operation_is_answered_by_the_rule_however_replicas_interleave() {
    run_all(Course::Healthy);
}

#[test]
fn lost_races_and_failing_statements_leave_every_answer_true() {
    run_all(Course::Failing);
}

#[test]
fn commits_whose_result_is_lost_are_found_out_or_said_to_be_unknown() {
    run_all(Course::Doubtful);
}

#[test]
fn no_operation_is_answered_late_while_the_database_hangs() {
    run_all(Course::Hanging);
}

#[test]
fn a_panic_is_answered_and_logged_and_nobody_else_waits_for_it() {
    run_all(Course::Panicking);
}

#[test]
fn a_log_that_fails_meanwhile_loses_and_doubles_no_line() {
    run_all(Course::LogFails);
}

#[test]
fn a_schedule_is_the_same_every_time_it_is_run() {
    let trace = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async move {
            let schedule = Schedule::draw(seed, Course::Doubtful);
            let store = FakeStore::new(schedule.layout, schedule.faults, schedule.random.clone());
            let replica = Replica::start(0, &store, &schedule);
            let began = Instant::now();
            let asks = schedule.asks.iter().map(|ask| {
                let (replica, store) = (&replica, &store);
                async move {
                    sleep_until(began + ask.after).await;
                    let exchange = exchange(replica, store, ask, schedule.timeout).await;
                    format!("{:?} {:?}", exchange.ended - began, exchange.answer)
                }
            });
            join_all(asks).await
        })
    };
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed));
    }
}
