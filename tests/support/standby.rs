//! A real standby of a private PostgreSQL.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;

use balance::dev::{PostgresOptions, PrivatePostgres};
use nix::unistd::geteuid;
use tokio::process::Command;
use tokio_postgres::config::Host;

/// Starts a standby that follows `primary`, with its data in `directory`, which must be one that PostgreSQL's user can enter.
pub async fn standby_of(primary: &PrivatePostgres, directory: &Path) -> PrivatePostgres {
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
    PrivatePostgres::start(&PostgresOptions::new(directory)).await.unwrap()
}

/// Where the programs of the server are that runs on this data.
fn programs_of(data: &Path) -> std::path::PathBuf {
    let pid_file = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let process = pid_file.lines().next().unwrap();
    let program = fs::read_link(format!("/proc/{process}/exe")).unwrap();
    program.parent().unwrap().to_owned()
}
