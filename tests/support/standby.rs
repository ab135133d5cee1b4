//! A real standby of a private PostgreSQL, and the failover to it.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::process::Command;
use tokio_postgres::config::Host;

use super::postgres::{Database, until};

/// How many standbys stream, and how many of these every commit waits for.
const STREAMING: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
const SYNCHRONOUS: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'";

/// Starts a standby of `primary`. PostgreSQL's user must be able to enter the data directory of `options`.
pub async fn standby_of(primary: &PrivatePostgres, options: &PostgresOptions) -> PrivatePostgres {
    let directory: &Path = &options.data_dir;
    let data = primary.data_dir().join("postgres");
    let config = tokio_postgres::Config::from_str(&primary.url("postgres")).unwrap();
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let Some(Host::Unix(socket)) = config.get_hosts().first() else {
        panic!("the PostgreSQL of the tests is on a Unix socket");
    };
    let owner = fs::metadata(&data).unwrap();
    let mut copy = Command::new(programs_of(&data).join("pg_basebackup"));
    copy.arg("--pgdata").arg(directory.join("postgres"));
    copy.arg("--host").arg(socket).arg("--port").arg(port.to_string());
    copy.args(["--username", "balance", "--write-recovery-conf", "--checkpoint", "fast"]);
    copy.stdin(Stdio::null()).current_dir("/");
    fs::create_dir_all(directory).unwrap();
    if geteuid().is_root() {
        chown(directory, Some(owner.uid()), Some(owner.gid())).unwrap();
        copy.uid(owner.uid()).gid(owner.gid());
    }
    let copied = copy.output().await.unwrap();
    assert!(copied.status.success(), "{copied:?}");
    PrivatePostgres::start(options).await.unwrap()
}

/// Makes every commit of the primary wait for its standby from now on, and returns when the standby streams. The setting is
/// not replicated: a standby that was copied before does not wait for one of its own once it is promoted.
pub async fn make_synchronous(primary: &Database) {
    let sql = primary.client().await;
    until(&sql, STREAMING, 1).await;
    sql.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        .await
        .unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until_synchronous(primary).await;
}

/// Waits until the primary's commits wait for a standby that streams.
pub async fn until_synchronous(primary: &Database) {
    until(&primary.client().await, SYNCHRONOUS, 1).await;
}

/// Waits until the primary has a standby that streams.
pub async fn until_streaming(primary: &Database) {
    until(&primary.client().await, STREAMING, 1).await;
}

/// Promotes a standby, and returns when it takes writes.
pub async fn promote(standby: &Database) {
    let promoted = standby.client().await.query_one("SELECT pg_promote()", &[]).await;
    assert!(promoted.unwrap().get::<_, bool>(0), "the standby is promoted");
}

/// Ends a server as the death of its machine would: `kill -9` of every process that serves. Its postmaster, stopped
/// meanwhile so that it starts none anew, ends in order after them, and leaves no shared memory behind.
pub async fn kill_server(mut server: PrivatePostgres) {
    let postmaster = server.process_id();
    let signal = |process, signal| kill(Pid::from_raw(process), signal).ok();
    signal(postmaster, Signal::SIGSTOP);
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    for child in children.split_whitespace() {
        signal(child.parse().unwrap(), Signal::SIGKILL);
    }
    signal(postmaster, Signal::SIGQUIT);
    signal(postmaster, Signal::SIGCONT);
    server.stop(StopMode::Immediate).await.unwrap();
}

/// Where the programs of the server are that runs on this data.
fn programs_of(data: &Path) -> std::path::PathBuf {
    let pid_file = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let process = pid_file.lines().next().unwrap();
    let program = fs::read_link(format!("/proc/{process}/exe")).unwrap();
    program.parent().unwrap().to_owned()
}
