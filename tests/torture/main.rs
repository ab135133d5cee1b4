//! Several replicas on one PostgreSQL keep every promise of the contract while things die.
//!
//! The short run is one of the tests. A long one takes its time and its seed from the environment:
//!
//! ```text
//! TORTURE_SECONDS=3600 TORTURE_SEED=1 cargo test --release --test torture depend_on -- --nocapture
//! ```
//!
//! It is made of rounds of `TORTURE_ROUND_SECONDS` (180), each with the next seed and on a new database. The seed decides
//! what goes wrong in which order and what the clients ask; what comes first on the machine it does not. A round that fails
//! prints its seed and the shortest explanations, and leaves its record under `target/tmp/`.

#[path = "../support/mod.rs"]
mod support;

mod asynchronous;
mod calm;
mod checker;
mod cluster;
mod evidence;
mod link;
mod nemesis;
mod servers;
mod workload;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::{Cluster, LONGEST_ANSWER, LONGEST_VERDICT, Site};
use evidence::{Ended, Evidence};
use nemesis::{Fault, Faults, Nemesis};
use servers::Replication;
use support::model::{self, Random, StoredUser, users_stored};
use support::postgres::Role;
use support::usage::Usage;
use tokio::process::Command;
use workload::{Recorder, THRESHOLD, Workload};

const SHORT_RUN: Duration = Duration::from_secs(24);
const ROUND_SECONDS: u64 = 180;
const CLIENTS: usize = 24;
/// How fast the service is back is a matter of the machine too, which other programs may share with the short run.
const SHORT_RUN_PATIENCE: u32 = 5;
/// Every Nth round kills no replica, so that leaks add up.
const SPARED_EVERY: u64 = 5;
/// More than a replica takes in any of the runs.
const MOST_RESIDENT_KIB: u64 = 128 * 1024;

fn from_environment(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a whole number, not {text:?}")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_is_kept_while_replicas_and_what_they_depend_on_die() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = from_environment("TORTURE_SEED").unwrap_or(now.as_secs());
    let Some(seconds) = from_environment("TORTURE_SECONDS") else {
        return round(seed, SHORT_RUN, SHORT_RUN_PATIENCE).await;
    };
    let each = from_environment("TORTURE_ROUND_SECONDS")
        .unwrap_or(ROUND_SECONDS)
        .min(seconds);
    for seed in (seed..).take(usize::try_from(seconds.div_ceil(each)).unwrap()) {
        round(seed, Duration::from_secs(each), 1).await;
    }
}

/// What a round has seen.
struct Round {
    seed: u64,
    faults: Faults,
    /// What went wrong beside the promises that the checker decides.
    troubles: Vec<String>,
    evidence: Evidence,
    /// What `balance verify` has said.
    verified: String,
    peak: Usage,
    took: Duration,
}

async fn round(seed: u64, duration: Duration, patience: u32) {
    println!("torture: seed {seed}, {} s", duration.as_secs());
    let began = Instant::now();
    let mut random = Random(seed);
    let mut cluster = Cluster::start(Replication::Synchronous).await;
    if !cluster.has_balancer() {
        println!("without the load balancer: haproxy is not installed");
    }
    if !cluster.has_pooler() {
        println!("without the pooler: PgBouncer is not installed");
    }
    if !cluster.has_small_disks() {
        println!("without full disks: a small file system cannot be mounted");
    }
    let recorder = Arc::new(Recorder::new(cluster.urls()));
    let mut workload = Workload::start(&recorder, CLIENTS, &mut random);
    let mut nemesis = Nemesis {
        random: Random(random.next()),
        cluster: &mut cluster,
        recorder: Arc::clone(&recorder),
        faults: Faults::new(),
        patience,
        peak: Usage::default(),
        spares_replicas: seed.is_multiple_of(SPARED_EVERY),
        early: Vec::new(),
        troubles: Vec::new(),
    };
    nemesis.rage(Instant::now() + duration).await;
    workload.stop().await;
    let sql = nemesis.cluster.sql().await;
    // Those that have lived through faults, before the last one ends them.
    let calm = calm::troubles(nemesis.cluster, &sql).await;
    nemesis.troubles.extend(calm);
    nemesis.has_not_grown();
    // What has no final answer is settled by a repeat, though every process has died in between.
    nemesis.rage_once(Fault::AllKilledAndPostgresToo).await;
    workload.settle(&mut random).await;
    // What reached PostgreSQL after its replica had died has its line after another start.
    nemesis.troubles.extend(nemesis.cluster.terminate_all().await);
    nemesis.cluster.launch_all().await;
    nemesis.troubles.extend(nemesis.cluster.terminate_all().await);
    let (faults, peak, mut troubles) = (nemesis.faults, nemesis.peak, nemesis.troubles);
    troubles.extend(cluster.balancer_lives().err());
    let verified = verify(&cluster).await;
    troubles.extend(verified.as_ref().err().cloned());
    let hangs = recorder.take_hangs();
    troubles.extend(hangs.into_iter().map(|hang| format!("no answer: {hang}")));
    let evidence = evidence(&cluster, &recorder).await;
    troubles.extend(nameless(&evidence.stored));
    let round = Round {
        seed,
        faults,
        troubles,
        evidence,
        verified: verified.clone().unwrap_or_default(),
        peak,
        took: began.elapsed(),
    };
    let verdict = round.verdict();
    if verdict.is_err() {
        round.keep(&cluster);
    }
    cluster.stop().await;
    if let Err(explanation) = verdict {
        panic!("torture with seed {seed} failed:\n{explanation}");
    }
}

/// The record of a run whose replicas have ended.
async fn evidence(cluster: &Cluster, recorder: &Recorder) -> Evidence {
    let (exchanges, pauses) = recorder.take();
    Evidence {
        exchanges,
        stored: stored(&cluster.sql().await).await,
        logs: cluster.read_logs(),
        verdicts: cluster.verdicts(recorder.began),
        pauses,
        threshold: THRESHOLD,
        longest_answer: LONGEST_ANSWER,
        longest_verdict: LONGEST_VERDICT,
    }
}

/// What the service's own examination of ledger and logs says.
async fn verify(cluster: &Cluster) -> Result<String, String> {
    let logs = cluster.sites.iter().flat_map(Site::log_files);
    let output = Command::new(env!("CARGO_BIN_EXE_balance"))
        .args([
            "verify",
            "--database-url",
            &cluster.database_url(Role::Auditor),
            "--operations-log",
        ])
        .args(logs)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("balance verify ends with {}: {said}", output.status))
    }
}

/// Every change came with the token of the clients, whoever stored it and whatever happened then. That the lines name the
/// same caller as the rows is the checker's matter.
fn nameless(stored: &BTreeMap<String, StoredUser>) -> Option<String> {
    let mut changes = stored.values().flat_map(|user| &user.history);
    let found = changes.find(|one| one.caller.as_deref() != Some(cluster::CALLER))?;
    Some(format!("not by the caller of all clients: {found:?}"))
}

async fn stored(sql: &tokio_postgres::Client) -> BTreeMap<String, StoredUser> {
    let mut stored = BTreeMap::new();
    for user in users_stored(sql).await {
        let one = StoredUser::read(sql, &user).await;
        stored.insert(user, one);
    }
    stored
}

impl Round {
    /// Prints what was seen, and says what was wrong.
    fn verdict(&self) -> Result<(), String> {
        let violations = checker::check(&self.evidence);
        println!("{}", self.report());
        let mut wrong = String::new();
        if !violations.is_empty() {
            writeln!(wrong, "{}", checker::summary(&violations)).unwrap();
        }
        for trouble in &self.troubles {
            writeln!(wrong, "{trouble}").unwrap();
        }
        if self.peak.peak_kib > MOST_RESIDENT_KIB {
            writeln!(wrong, "memory has grown: {:?}", self.peak).unwrap();
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn report(&self) -> String {
        let evidence = &self.evidence;
        let mut answers = BTreeMap::new();
        let mut times = Vec::new();
        for exchange in &evidence.exchanges {
            let outcome = match &exchange.ended {
                Ended::Answered(said) => said.outcome(),
                Ended::Malformed(_) => "malformed",
                Ended::NotReached => "not reached",
                Ended::Broken => "none",
            };
            *answers.entry(outcome).or_insert(0) += 1;
            times.push(exchange.ended_at.saturating_sub(exchange.sent_at));
        }
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 1_000).copied().unwrap_or_default();
        let stored: usize = evidence.stored.values().map(|user| user.history.len()).sum();
        let lines = || evidence.logs.iter().flat_map(|log| &log.lines);
        let recovered = lines().filter(|line| line["recovered"] == true).count();
        let mut report = format!(
            "seed {}: {} requests, answered {answers:?} (half within {:?}, 99 of 100 within {:?}, all within {:?})\n\
             {stored} changes of {} users stored, {} lines, {recovered} of them recovered; {} MiB at most; {} s in all\n",
            self.seed,
            times.len(),
            at(500),
            at(990),
            times.last().copied().unwrap_or_default(),
            evidence.stored.len(),
            lines().count(),
            self.peak.peak_kib / 1024,
            self.took.as_secs(),
        );
        for (fault, (times, longest)) in &self.faults {
            writeln!(
                report,
                "    {times:3} x {fault:?}, back within {} ms",
                longest.as_millis()
            )
            .unwrap();
        }
        report + &self.verified
    }

    /// Keeps the record for whoever looks into it.
    fn keep(&self, cluster: &Cluster) {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{}", self.seed));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).unwrap();
        let of = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join("\n");
        let exchanges = of(&mut self.evidence.exchanges.iter().map(|exchange| format!("{exchange:?}")));
        fs::write(place.join("exchanges"), exchanges).unwrap();
        let stored = of(&mut self.evidence.stored.iter().map(|stored| format!("{stored:#?}")));
        fs::write(place.join("stored"), stored).unwrap();
        for (number, site) in (1..).zip(&cluster.sites) {
            for path in site.log_files() {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                fs::copy(&path, place.join(format!("replica-{number}-{name}"))).unwrap();
            }
        }
        println!("the record is in {}", place.display());
    }
}
