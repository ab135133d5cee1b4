//! What goes wrong, in an order that the seed decides; and how long the service takes to be back afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

use crate::cluster::{Cluster, LONGEST_PAUSE, OPERATION_TIMEOUT, REPLICAS, SHORTEST_PAUSE};
use crate::evidence::{Ask, Change};
use crate::model::{Micros, Random};
use crate::support::approver::Behaviour;
use crate::support::postgres::Role;
use crate::support::proxy::{Lost, Proxy};
use crate::support::usage::Usage;
use crate::workload::Recorder;

/// The service is back within this time after most faults.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// A probe is sent this often until one has a good answer.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// What a replica may take more than after the first time of each fault: memory, and descriptors of clients that came.
const MOST_GROWTH_KIB: u64 = 16 * 1024;
const MOST_NEW: usize = 40;
/// How many connections to PostgreSQL a replica may have.
const CONNECTIONS: usize = 16;
/// Enough for a replica to use all connections that it has for them.
const PAGES_AT_ONCE: usize = 64;
/// Long after this the service will not be back by itself.
const GIVE_UP: Duration = Duration::from_secs(20);

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ReplicaKilled,
    AllReplicasKilled,
    ReplicaTerminated,
    RollingRestart,
    PostgresStoppedAtOnce,
    PostgresKilled,
    BackendKilled,
    BackendsTerminated,
    AnswersSwallowed,
    RequestsSwallowed,
    ConnectionsCut,
    ConnectionsHeld,
    ConnectionsSlow,
    KilledWhileAnswersAreSwallowed,
    KilledWhileRequestsAreHeld,
    AllKilledAndPostgresToo,
    ApproverHangs,
    ApproverErrs,
    ApproverResets,
    ApproverTooSlow,
    DiskFull,
    KilledWhileDiskIsFull,
    LogRotated,
    KilledAfterRotation,
    RowLocked,
    TerminatedWhileConnectionsAreHeld,
    PrimaryKilledStandbyPromoted,
    ReplicaPaused,
    ConnectionsSwallowed,
    PoolerKilled,
}

const ALL: [Fault; 30] = [
    Fault::ReplicaKilled,
    Fault::AllReplicasKilled,
    Fault::ReplicaTerminated,
    Fault::RollingRestart,
    Fault::PostgresStoppedAtOnce,
    Fault::PostgresKilled,
    Fault::BackendKilled,
    Fault::BackendsTerminated,
    Fault::AnswersSwallowed,
    Fault::RequestsSwallowed,
    Fault::ConnectionsCut,
    Fault::ConnectionsHeld,
    Fault::ConnectionsSlow,
    Fault::KilledWhileAnswersAreSwallowed,
    Fault::KilledWhileRequestsAreHeld,
    Fault::AllKilledAndPostgresToo,
    Fault::ApproverHangs,
    Fault::ApproverErrs,
    Fault::ApproverResets,
    Fault::ApproverTooSlow,
    Fault::DiskFull,
    Fault::KilledWhileDiskIsFull,
    Fault::LogRotated,
    Fault::KilledAfterRotation,
    Fault::RowLocked,
    Fault::TerminatedWhileConnectionsAreHeld,
    Fault::PrimaryKilledStandbyPromoted,
    Fault::ReplicaPaused,
    Fault::ConnectionsSwallowed,
    Fault::PoolerKilled,
];

impl Fault {
    fn ends_replicas(self) -> bool {
        matches!(
            self,
            Self::ReplicaKilled
                | Self::AllReplicasKilled
                | Self::ReplicaTerminated
                | Self::RollingRestart
                | Self::KilledWhileAnswersAreSwallowed
                | Self::KilledWhileRequestsAreHeld
                | Self::AllKilledAndPostgresToo
                | Self::KilledWhileDiskIsFull
                | Self::KilledAfterRotation
                | Self::TerminatedWhileConnectionsAreHeld
        )
    }
}

/// How often each fault came about, and the longest time that the service took to be back after it.
pub type Faults = BTreeMap<Fault, (usize, Duration)>;

pub struct Nemesis<'a> {
    pub cluster: &'a mut Cluster,
    pub recorder: Arc<Recorder>,
    pub random: Random,
    pub faults: Faults,
    /// So many times as long as a fault allows may it take until the service is back.
    pub patience: u32,
    /// The most that any replica has taken.
    pub peak: Usage,
    /// Ends no replica.
    pub spares_replicas: bool,
    /// What each replica had taken when all faults had come once.
    pub early: Vec<Usage>,
    /// What should not have been.
    pub troubles: Vec<String>,
}

impl Nemesis<'_> {
    /// One fault after the other until the time is over; each comes once before any comes again.
    pub async fn rage(&mut self, until: Instant) {
        let mut order = Vec::new();
        while Instant::now() < until {
            if order.is_empty() {
                if !self.faults.is_empty() && self.early.is_empty() {
                    self.early = self.usages();
                }
                order = ALL.to_vec();
                order.retain(|fault| !(self.spares_replicas && fault.ends_replicas()));
                for index in (1..order.len()).rev() {
                    order.swap(index, usize::try_from(self.random.next() % (index as u64 + 1)).unwrap());
                }
                // A short run, whose patience is longer, has time for some of them, and for this one.
                if self.patience > 1 {
                    order.sort_by_key(|fault| *fault == Fault::PrimaryKilledStandbyPromoted);
                }
            }
            let Some(fault) = order.pop() else { continue };
            self.rage_once(fault).await;
        }
    }

    /// One fault, and how long the service takes to be back.
    pub async fn rage_once(&mut self, fault: Fault) {
        if self.befall(fault).await {
            self.back(fault, Instant::now()).await;
            self.cluster.replicate().await;
            self.watch();
            self.pause(200, 800).await;
        }
    }

    fn usages(&self) -> Vec<Usage> {
        let running = self.cluster.sites.iter().filter_map(|site| site.running.as_ref());
        running.filter_map(|replica| Usage::of(replica.process_id())).collect()
    }

    fn watch(&mut self) {
        let usages = self.usages().into_iter().chain([self.peak]);
        self.peak = usages.max_by_key(|usage| usage.peak_kib).unwrap_or_default();
    }

    /// Where no replica was ended, none takes much more than when all faults had come once.
    pub fn has_not_grown(&mut self) {
        if !self.spares_replicas {
            return;
        }
        let late = self.usages();
        for (early, late) in self.early.iter().zip(&late) {
            if late.resident_kib > early.resident_kib + MOST_GROWTH_KIB
                || late.descriptors > early.descriptors + MOST_NEW
            {
                self.troubles
                    .push(format!("a replica has grown from {early:?} to {late:?}"));
            }
        }
    }

    async fn pause(&mut self, from_ms: i64, to_ms: i64) {
        let pause = self.random.between(from_ms, to_ms);
        sleep(Duration::from_millis(u64::try_from(pause).unwrap())).await;
    }

    /// Lets a fault begin and end; false where it cannot be had here.
    async fn befall(&mut self, fault: Fault) -> bool {
        let one = usize::try_from(self.random.next() % REPLICAS as u64).unwrap();
        match fault {
            Fault::ReplicaKilled => {
                self.kill(one).await;
                self.pause(0, 700).await;
                self.cluster.launch(one).await;
            }
            Fault::AllReplicasKilled => {
                self.kill_all().await;
                self.cluster.launch_all().await;
            }
            Fault::ReplicaTerminated => self.restart(one).await,
            Fault::RollingRestart => {
                for number in 0..REPLICAS {
                    self.restart(number).await;
                }
            }
            Fault::PostgresStoppedAtOnce | Fault::PostgresKilled => {
                self.cluster.servers.stop_primary(fault == Fault::PostgresKilled).await;
                self.pause(0, 1_500).await;
                self.cluster.servers.start_primary().await;
            }
            Fault::BackendKilled => self.kill_backend().await,
            Fault::BackendsTerminated => {
                for _ in 0..3 {
                    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                                     WHERE datname = current_database() AND pid <> pg_backend_pid() \
                                     AND backend_type = 'client backend'";
                    self.cluster.sql().await.batch_execute(terminate).await.unwrap();
                    self.pause(0, 200).await;
                }
            }
            Fault::AnswersSwallowed => self.lose(one, Lost::Answers).await,
            Fault::RequestsSwallowed => self.lose(one, Lost::Requests).await,
            Fault::ConnectionsCut => {
                for _ in 0..5 {
                    self.cluster.sites[one].link.each(Proxy::break_connections);
                    self.pause(0, 150).await;
                }
            }
            Fault::ConnectionsHeld => {
                self.cluster.sites[one].link.each(Proxy::hold);
                self.pause(300, 2_500).await;
                self.cluster.sites[one].link.each(Proxy::mend);
            }
            Fault::ConnectionsSlow => {
                self.cluster.sites[one].link.each(Proxy::slow);
                self.pause(500, 2_500).await;
                self.cluster.sites[one].link.each(Proxy::mend);
            }
            Fault::KilledWhileAnswersAreSwallowed => {
                self.cluster.sites[one].link.each(|proxy| proxy.lose(Lost::Answers));
                self.pause(20, 300).await;
                self.kill(one).await;
                self.cluster.sites[one].link.each(Proxy::mend);
                self.cluster.launch(one).await;
            }
            Fault::KilledWhileRequestsAreHeld => {
                self.cluster.sites[one].link.each(Proxy::hold);
                self.pause(20, 300).await;
                self.kill(one).await;
                // What is held reaches PostgreSQL while the next life of the replica begins.
                self.cluster.sites[one].link.each(Proxy::mend);
                self.cluster.launch(one).await;
            }
            Fault::AllKilledAndPostgresToo => {
                self.kill_all().await;
                self.cluster.servers.stop_primary(true).await;
                self.cluster.servers.start_primary().await;
                self.cluster.launch_all().await;
            }
            Fault::ApproverHangs | Fault::ApproverErrs | Fault::ApproverResets | Fault::ApproverTooSlow => {
                match fault {
                    Fault::ApproverHangs => self.cluster.approver.always(Behaviour::Hang),
                    Fault::ApproverErrs => self.cluster.approver.always(Behaviour::Status(500)),
                    Fault::ApproverResets => self.cluster.approver.always(Behaviour::Reset),
                    // More than one call may take, and at times more than an operation.
                    _ => self.cluster.approver.delay(Duration::from_millis(2_000)),
                }
                self.pause(300, 2_000).await;
                self.cluster.approver_recovers();
            }
            Fault::DiskFull => {
                let Some(disk) = self.cluster.sites[one].disk() else {
                    return false;
                };
                disk.fill();
                self.pause(300, 1_500).await;
                if let Some(disk) = self.cluster.sites[one].disk() {
                    disk.free();
                }
            }
            Fault::KilledWhileDiskIsFull => {
                let Some(disk) = self.cluster.sites[one].disk() else {
                    return false;
                };
                disk.fill();
                self.pause(20, 500).await;
                self.kill(one).await;
                // The lines that it could not write are found missing as soon as there is room.
                self.cluster.launch(one).await;
                self.pause(0, 500).await;
                if let Some(disk) = self.cluster.sites[one].disk() {
                    disk.free();
                }
            }
            Fault::LogRotated => {
                for _ in 0..3 {
                    self.cluster.sites[one].rotate();
                    let there = self.cluster.sites[one].until_log().await;
                    self.troubles.extend(there.err());
                    self.pause(0, 200).await;
                }
            }
            Fault::KilledAfterRotation => {
                self.cluster.sites[one].rotate();
                self.pause(0, 60).await;
                self.kill(one).await;
                self.cluster.launch(one).await;
            }
            Fault::RowLocked => {
                let sql = self.cluster.sql().await;
                let lock = "BEGIN; SELECT FROM balance WHERE user_id = 'docs' FOR UPDATE";
                sql.batch_execute(lock).await.unwrap();
                self.pause(100, 1_000).await;
                sql.batch_execute("ROLLBACK").await.unwrap();
            }
            Fault::TerminatedWhileConnectionsAreHeld => {
                self.cluster.sites[one].link.each(Proxy::hold);
                self.pause(0, 300).await;
                let ended = self.cluster.sites[one].terminate().await;
                self.troubles.extend(ended.err());
                self.cluster.sites[one].link.each(Proxy::mend);
                self.cluster.launch(one).await;
            }
            Fault::PrimaryKilledStandbyPromoted => self.cluster.fail_over().await,
            Fault::ReplicaPaused => {
                let (shortest, longest) = (SHORTEST_PAUSE.as_millis(), LONGEST_PAUSE.as_millis());
                let recorder = Arc::clone(&self.recorder);
                let stopped = async {
                    self.cluster.sites[one].signal(Signal::SIGSTOP);
                    self.pause(i64::try_from(shortest).unwrap(), i64::try_from(longest).unwrap())
                        .await;
                    self.cluster.sites[one].signal(Signal::SIGCONT);
                };
                recorder.pause(one, stopped).await;
            }
            Fault::ConnectionsSwallowed => {
                // Many clients would try all connections at once, so that any number of them costs one deadline.
                let recorder = Arc::clone(&self.recorder);
                recorder.hush(self.swallow_connections(one)).await;
            }
            Fault::PoolerKilled => {
                let pooled = self.cluster.sites.iter().position(|site| site.link.has_pooler());
                let Some(pooled) = pooled else { return false };
                self.cluster.sites[pooled].link.kill_pooler();
                self.pause(0, 500).await;
                self.cluster.start_pooler(pooled).await;
            }
        }
        true
    }

    async fn kill(&mut self, number: usize) {
        let ended = self.cluster.sites[number].kill().await;
        self.troubles.extend(ended.err());
    }

    async fn kill_all(&mut self) {
        for number in 0..REPLICAS {
            self.kill(number).await;
        }
    }

    /// SIGTERM, the end, and a new life.
    async fn restart(&mut self, number: usize) {
        let ended = self.cluster.sites[number].terminate().await;
        self.troubles.extend(ended.err());
        self.cluster.launch(number).await;
    }

    async fn lose(&mut self, one: usize, lost: Lost) {
        self.cluster.sites[one].link.each(|proxy| proxy.lose(lost));
        self.pause(50, 1_500).await;
        self.cluster.sites[one].link.each(Proxy::mend);
        // A connection that has lost something is of no use.
        self.cluster.sites[one].link.each(Proxy::break_connections);
    }

    /// Swallows what is sent on the connections that a replica has open, as many as it may have. One deadline and a second
    /// later it answers every request well.
    async fn swallow_connections(&mut self, number: usize) {
        // Pages of histories are read each by itself.
        let pages = (0..PAGES_AT_ONCE).map(|_| self.recorder.send(number, self.recorder.last_page("probe")));
        join_all(pages).await;
        self.cluster.sites[number].link.each(Proxy::swallow_open_connections);
        let found_out = self.recorder.send(number, probe(&self.recorder, 0));
        join(found_out, sleep(OPERATION_TIMEOUT + Duration::from_secs(1))).await;
        for _ in 0..CONNECTIONS {
            let said = self.recorder.send(number, probe(&self.recorder, 1)).await;
            if said.as_ref().is_none_or(|said| said.status != 200) {
                self.troubles.push(format!("swallowed connections still cost {said:?}"));
                return;
            }
        }
    }

    /// `kill -9` of one of PostgreSQL's processes: it ends the others too and recovers by itself.
    async fn kill_backend(&mut self) {
        let sql = self.cluster.sql().await;
        let backends =
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let backends = sql.query(backends, &[]).await.unwrap();
        if let Some(backend) = backends.first() {
            // It may have gone meanwhile.
            if kill(Pid::from_raw(backend.get(0)), Signal::SIGKILL).is_err() {
                return;
            }
        }
        // It is back when it takes connections again.
        let url = self.cluster.database_url(Role::Superuser);
        let back = timeout(GIVE_UP, async {
            sql.simple_query("SELECT pg_sleep(60)").await.unwrap_err();
            while tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        back.await.expect("PostgreSQL recovers");
    }

    /// Waits until each replica, and the load balancer, give good answers to a read, a change and a big change.
    async fn back(&mut self, fault: Fault, over: Instant) {
        let probes = (0..self.recorder.urls.len()).map(|way| back(&self.recorder, way));
        let back = join_all(probes).await;
        let took = over.elapsed();
        let (times, longest) = self.faults.entry(fault).or_default();
        *times += 1;
        *longest = took.max(*longest);
        for (way, is_back) in back.into_iter().enumerate() {
            if !is_back {
                let trouble = format!("{} is not back {GIVE_UP:?} after {fault:?}", self.recorder.urls[way]);
                self.troubles.push(trouble);
            }
        }
        if took > BACK_WITHIN * self.patience {
            self.troubles
                .push(format!("the service was back {took:?} after {fault:?}"));
        }
    }
}

/// Probes one way until there was a good answer to each kind of request; probes that hang hold up no others.
async fn back(recorder: &Arc<Recorder>, way: usize) -> bool {
    let (good, mut answered) = mpsc::unbounded_channel();
    let mut missing = vec![0, 1, 2];
    let mut ticks = interval(PROBE_EVERY);
    let deadline = Instant::now() + GIVE_UP;
    while !missing.is_empty() && Instant::now() < deadline {
        tokio::select! {
            _ = ticks.tick() => for kind in missing.clone() {
                let (recorder, good) = (Arc::clone(recorder), good.clone());
                tokio::spawn(async move {
                    if recorder.send(way, probe(&recorder, kind)).await.is_some_and(|said| said.status == 200) {
                        let _nobody_waits_any_more = good.send(kind);
                    }
                });
            },
            Some(kind) = answered.recv() => missing.retain(|other| *other != kind),
        }
    }
    missing.is_empty()
}

fn probe(recorder: &Recorder, kind: usize) -> Ask {
    const MOMENT: Micros = 1_769_860_800_000_000;
    let user = "probe".to_owned();
    let number = recorder.number();
    match kind {
        0 => Ask::Balance { user, at: None },
        _ => Ask::Change(Arc::new(Change {
            user,
            context: format!("probe {number}"),
            // The Approver denies what is divisible by 7.
            change: if kind == 1 { 1 } else { 100_001 + 7 * number },
            timestamp: MOMENT + number,
            key: None,
        })),
    }
}
