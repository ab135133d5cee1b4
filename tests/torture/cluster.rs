//! Three replicas, each with a link of its own to the PostgreSQL that is the primary, with an Approver, and a load balancer
//! in front.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

use crate::evidence::{Log, Verdict};
use crate::link::Link;
use crate::model::Random;
use crate::servers::{Replication, Servers};
use crate::support::approver::{Behaviour, TestApprover};
use crate::support::client::http_client;
use crate::support::disk::SmallDisk;
use crate::support::janitor::Janitor;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Role;
use crate::support::replica::{Replica, ReplicaOptions, Scratch};
use crate::support::tokens;

pub const REPLICAS: usize = 3;
/// What the replicas run with.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
const APPROVER_TIMEOUT_MS: &str = "800";
/// An operation's time and 2 s, and one more for a machine that does much else.
pub const LONGEST_ANSWER: Duration = OPERATION_TIMEOUT.saturating_add(Duration::from_secs(2 + 1));
/// A replica is stopped for longer than any of its operations may take.
pub const SHORTEST_PAUSE: Duration = OPERATION_TIMEOUT.saturating_add(Duration::from_secs(2));
pub const LONGEST_PAUSE: Duration = SHORTEST_PAUSE.saturating_add(Duration::from_secs(1));
/// The time of a call to the Approver, and a second more for such a machine.
pub const LONGEST_VERDICT: Duration = Duration::from_millis(800 + 1_000);
/// How long a verdict takes.
const VERDICT_DELAY: Duration = Duration::from_millis(80);
/// Enough for the log of a long round.
const DISK_MEBIBYTES: u32 = 512;

/// The token of all clients, under a name that JSON has to escape.
pub const TOKEN: &str = "5e2d8b0c7f2a4d1e9b3c6a8f";
pub const CALLER: &str = "clients-\"α\"";

/// A name that PostgreSQL, JSON and URLs all have to escape.
fn instance(number: usize) -> String {
    format!("replica-{} \"α\"", number + 1)
}

/// Where the logs of a replica are.
enum LogPlace {
    Small(SmallDisk),
    /// A small file system cannot be mounted here.
    Ordinary(Scratch),
}

impl LogPlace {
    fn path(&self) -> &Path {
        match self {
            Self::Small(disk) => disk.path(),
            Self::Ordinary(directory) => &directory.0,
        }
    }
}

/// A replica through its lives.
pub struct Site {
    instance: String,
    address: String,
    /// Where HAProxy asks whether it is ready.
    admin_address: String,
    pub link: Link,
    place: LogPlace,
    tokens_file: PathBuf,
    pub running: Option<Replica>,
    kills: usize,
    rotations: usize,
}

impl Site {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn log(&self) -> PathBuf {
        self.place.path().join("operations.log")
    }

    /// The disk under the log, if it can be filled.
    pub fn disk(&self) -> Option<&SmallDisk> {
        match &self.place {
            LogPlace::Small(disk) => Some(disk),
            LogPlace::Ordinary(_) => None,
        }
    }

    pub async fn launch(&mut self, approver_url: &str) {
        let options = ReplicaOptions::new(&self.link.url(), approver_url)
            .set("INSTANCE", &self.instance)
            .set("API_TOKENS_FILE", self.tokens_file.to_str().unwrap())
            .set("LISTEN", &self.address)
            .set("ADMIN_LISTEN", &self.admin_address)
            .set("OPERATION_TIMEOUT_MS", OPERATION_TIMEOUT.as_millis().to_string())
            .set("APPROVER_TIMEOUT_MS", APPROVER_TIMEOUT_MS)
            .set("SHUTDOWN_DELAY_MS", "500")
            .log(self.log());
        self.running = Some(options.start().await);
    }

    /// Signals the replica, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(replica) = &self.running {
            replica.signal(signal);
        }
    }

    /// `kill -9`; says what was wrong with the life that it ends.
    pub async fn kill(&mut self) -> Result<(), String> {
        let Some(mut replica) = self.running.take() else {
            return Ok(());
        };
        replica.signal(Signal::SIGKILL);
        let status = replica.ended().await;
        self.kills += 1;
        if status.signal() == Some(Signal::SIGKILL as i32) {
            self.no_panic(&replica)
        } else {
            Err(format!(
                "{} had ended by itself with {status}: {}",
                self.instance,
                last_words(&replica)
            ))
        }
    }

    fn no_panic(&self, replica: &Replica) -> Result<(), String> {
        let said = replica.output();
        match said.iter().find(|line| line.contains("panicked")) {
            None => Ok(()),
            Some(line) => Err(format!("{}: {line}", self.instance)),
        }
    }

    /// SIGTERM; says what was wrong with the end.
    pub async fn terminate(&mut self) -> Result<(), String> {
        let Some(mut replica) = self.running.take() else {
            return Ok(());
        };
        replica.signal(Signal::SIGTERM);
        let status = replica.ended().await;
        if status.success() {
            return self.no_panic(&replica);
        }
        Err(format!(
            "{} ended after SIGTERM with {status}: {}",
            self.instance,
            last_words(&replica)
        ))
    }

    /// As logrotate does: renames the log and sends SIGHUP. Does not wait.
    pub fn rotate(&mut self) {
        self.rotations += 1;
        let old = self.place.path().join(format!("operations.log.{}", self.rotations));
        if let Some(replica) = &self.running
            && fs::rename(self.log(), old).is_ok()
        {
            replica.signal(Signal::SIGHUP);
        }
    }

    /// Waits until the log is there, as it is again soon after a rotation.
    pub async fn until_log(&self) -> Result<(), String> {
        let there = timeout(Duration::from_secs(5), async {
            while !self.log().exists() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        there
            .await
            .map_err(|_| format!("{} has no log after a rotation", self.instance))
    }

    /// All logs that the rotations and lives have left, in the order they were written in.
    pub fn log_files(&self) -> Vec<PathBuf> {
        let old = (1..=self.rotations).map(|number| self.place.path().join(format!("operations.log.{number}")));
        old.chain([self.log()]).filter(|path| path.exists()).collect()
    }

    fn read_log(&self) -> Log {
        let mut lines = Vec::new();
        for path in self.log_files() {
            let text = fs::read(path).unwrap();
            let parse = |line| serde_json::from_slice(line).unwrap_or(Value::Null);
            lines.extend(
                text.split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .map(parse),
            );
        }
        Log {
            instance: self.instance.clone(),
            lines,
            kills: self.kills,
        }
    }
}

fn last_words(replica: &Replica) -> String {
    let said = replica.output();
    said[said.len().saturating_sub(5)..].join("\n")
}

pub struct Cluster {
    pub sites: Vec<Site>,
    pub approver: TestApprover,
    pub servers: Servers,
    balancer: Option<(Child, String)>,
    /// Removed with the cluster.
    scratch: Scratch,
}

impl Cluster {
    /// What is drawn for it is not of the seed: other programs take ports too.
    pub async fn start(replication: Replication) -> Self {
        static CLUSTERS: AtomicU64 = AtomicU64::new(0);
        let cluster = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let random = &mut Random(u64::from(std::process::id()) | cluster << 32);
        let scratch = Scratch::new();
        let servers = Servers::start(replication).await;
        let approver = TestApprover::start().await;
        let tokens_file = scratch.0.join("tokens");
        std::fs::write(&tokens_file, tokens::line(CALLER, TOKEN, "read,write")).unwrap();
        let mut sites = Vec::new();
        for number in 0..REPLICAS {
            let place = match SmallDisk::mount(DISK_MEBIBYTES) {
                Ok(disk) => LogPlace::Small(disk),
                Err(_) => LogPlace::Ordinary(Scratch::new()),
            };
            let mut site = Site {
                instance: instance(number),
                address: free_address(random),
                admin_address: free_address(random),
                link: link(number, &servers).await,
                place,
                tokens_file: tokens_file.clone(),
                running: None,
                kills: 0,
                rotations: 0,
            };
            site.launch(&approver.url()).await;
            sites.push(site);
        }
        let mut cluster = Self {
            balancer: start_balancer(&sites, free_address(random), &balancer_log(&scratch)),
            sites,
            approver,
            servers,
            scratch,
        };
        cluster.approver_recovers();
        cluster.until_balanced().await;
        cluster
    }

    /// Where requests can be sent: to each replica, and to the load balancer.
    pub fn urls(&self) -> Vec<String> {
        let replicas = self.sites.iter().map(Site::url);
        replicas
            .chain(self.balancer.as_ref().map(|(_, url)| url.clone()))
            .collect()
    }

    pub fn has_balancer(&self) -> bool {
        self.balancer.is_some()
    }

    /// What was wrong with the load balancer.
    pub fn balancer_lives(&mut self) -> Result<(), String> {
        match &mut self.balancer {
            Some((child, _)) => match child.try_wait() {
                Ok(None) => Ok(()),
                ended => {
                    let said = fs::read_to_string(balancer_log(&self.scratch)).unwrap_or_default();
                    Err(format!("HAProxy has ended: {ended:?}: {said}"))
                }
            },
            None => Ok(()),
        }
    }

    pub fn has_small_disks(&self) -> bool {
        self.sites.iter().all(|site| site.disk().is_some())
    }

    async fn until_balanced(&mut self) {
        let Some((_, url)) = &self.balancer else { return };
        let ready = format!("{url}/readyz");
        let http = http_client();
        let reached = timeout(Duration::from_secs(20), async {
            while !http.get(&ready).send().await.is_ok_and(|answer| answer.status() == 200) {
                sleep(Duration::from_millis(20)).await;
            }
        });
        if reached.await.is_err() {
            panic!("HAProxy finds no replica: {:?}", self.balancer_lives());
        }
    }

    /// A connection past the proxies.
    pub async fn sql(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.database_url(Role::Superuser), NoTls)
            .await
            .unwrap();
        tokio::spawn(async { drop(connection.await) });
        client
    }

    pub fn database_url(&self, role: Role) -> String {
        self.servers.primary().url_as(role)
    }

    pub async fn launch(&mut self, number: usize) {
        let url = self.approver.url();
        self.sites[number].launch(&url).await;
    }

    /// The primary's machine dies, and everything follows the standby that is promoted. Returns when that answers.
    pub async fn fail_over(&mut self) {
        let dead = self.servers.kill_primary().await;
        self.servers.promote_standby().await;
        self.follow();
        for site in &self.sites {
            site.link.lose_host(dead);
        }
    }

    /// Returns when commits wait for a standby that streams; makes one where the last one has become the primary.
    pub async fn replicate(&mut self) {
        self.servers.replicate().await;
        self.follow();
    }

    fn follow(&mut self) {
        for site in &mut self.sites {
            site.link.follow(&self.servers);
        }
    }

    /// Tells all replicas to end, and waits for them; says what was wrong with their ends.
    pub async fn terminate_all(&mut self) -> Vec<String> {
        let ended = join_all(self.sites.iter_mut().map(Site::terminate)).await;
        ended.into_iter().filter_map(Result::err).collect()
    }

    pub async fn launch_all(&mut self) {
        for number in 0..REPLICAS {
            self.launch(number).await;
        }
    }

    /// PgBouncer of this site starts again.
    pub async fn start_pooler(&mut self, number: usize) {
        self.sites[number].link.start_pooler(&self.servers).await;
    }

    pub fn has_pooler(&self) -> bool {
        self.sites.iter().any(|site| site.link.has_pooler())
    }

    /// Approves at once but what is divisible by 7.
    pub fn approver_recovers(&self) {
        self.approver.delay(VERDICT_DELAY);
        self.approver.always(Behaviour::Judge(judge));
    }

    /// All verdicts of a run that began then.
    pub fn verdicts(&self, began: Instant) -> Vec<Verdict> {
        let verdicts = self.approver.verdicts().into_iter();
        let verdicts = verdicts.filter(|sent| matches!(sent.status, 200 | 403));
        verdicts
            .map(|sent| Verdict {
                user: percent_decode_str(parameter(&sent.target, "userId"))
                    .decode_utf8()
                    .unwrap()
                    .into_owned(),
                change: parameter(&sent.target, "balanceChange").parse().unwrap(),
                approved: sent.status == 200,
                asked_at: sent.called_at.saturating_duration_since(began),
                sent_at: sent.sent_at.saturating_duration_since(began),
            })
            .collect()
    }

    pub fn read_logs(&self) -> Vec<Log> {
        self.sites.iter().map(Site::read_log).collect()
    }

    /// Ends everything; the directories of PostgreSQL go too.
    pub async fn stop(mut self) {
        for site in &mut self.sites {
            // What there was to say has been said.
            let _ = site.kill().await;
        }
        self.servers.stop().await;
    }
}

/// Each replica has another one.
async fn link(number: usize, servers: &Servers) -> Link {
    match number {
        1 if !PgBouncer::is_missing() => Link::pooler(servers).await,
        2 => Link::hosts(servers).await,
        _ => Link::proxy(servers).await,
    }
}

fn judge(target: &str) -> u16 {
    let change: i64 = parameter(target, "balanceChange").parse().unwrap();
    if change % 7 == 0 { 403 } else { 200 }
}

fn parameter<'a>(target: &'a str, name: &str) -> &'a str {
    let mut parts = target.split(['?', '&']).filter_map(|part| part.split_once('='));
    parts.find(|(found, _)| *found == name).map_or("", |(_, value)| value)
}

/// One that stays the same through a replica's lives, and below the ports that the system gives to others meanwhile.
fn free_address(random: &mut Random) -> String {
    loop {
        let address = format!("127.0.0.1:{}", random.between(10_000, 30_000));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

fn balancer_log(scratch: &Scratch) -> PathBuf {
    scratch.0.join("haproxy.log")
}

/// HAProxy with the configuration that is under `env/`; nothing where it is not installed.
fn start_balancer(sites: &[Site], address: String, log: &Path) -> Option<(Child, String)> {
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("env/haproxy.cfg");
    // Debian's is in a directory that is not in every user's path.
    ["haproxy", "/usr/sbin/haproxy"].into_iter().find_map(|program| {
        let mut command = Command::new(program);
        command.arg("-f").arg(&configuration).env("BALANCE_BIND", &address);
        for (number, site) in (1..).zip(sites) {
            command.env(format!("REPLICA_{number}"), &site.address);
            command.env(format!("ADMIN_{number}"), &site.admin_address);
        }
        let log = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.kill_on_drop(true).process_group(Janitor::get().group());
        let child = command.spawn().ok()?;
        Some((child, format!("http://{address}")))
    })
}
