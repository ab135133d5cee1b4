//! A real PgBouncer in front of a database, as Debian has it: version 1.18, which does not track prepared statements.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_postgres::config::Host;

use super::janitor::Janitor;
use super::postgres::{Database, Role};
use super::replica::Scratch;
use super::secure_postgres::free_port;

/// Where Debian and its kin have it.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// How clients share server connections.
#[derive(Clone, Copy, Debug)]
pub enum PoolMode {
    Session,
    Transaction,
}

/// A running PgBouncer; ended when dropped.
pub struct PgBouncer {
    port: u16,
    database: String,
    config: PathBuf,
    settings: String,
    child: Child,
    #[allow(dead_code, reason = "removed with it")]
    scratch: Scratch,
}

impl PgBouncer {
    /// Whether it is not installed, so that a test of it is skipped, and says so. In CI it must be.
    pub fn is_missing() -> bool {
        let is_missing = !Path::new(PROGRAM).exists();
        if is_missing {
            assert!(std::env::var_os("CI").is_none(), "{PROGRAM} is not there");
            eprintln!("skipped: {PROGRAM} is not there");
        }
        is_missing
    }

    /// One in front of a database of the tests' server, with this many server connections.
    pub async fn start(database: &Database, mode: PoolMode, connections: u32) -> Self {
        let config = tokio_postgres::Config::from_str(&database.url).unwrap();
        let server_port = config.get_ports().first().copied().unwrap_or(5432);
        let Some(Host::Unix(socket)) = config.get_hosts().first() else {
            panic!("the PostgreSQL of the tests is on a Unix socket");
        };
        // Only the server's user can enter the socket's directory, and PgBouncer does not run as root.
        let owner = fs::metadata(socket).unwrap();
        let (port, scratch) = (free_port(), Scratch::new());
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o755)).unwrap();
        let settings = format!(
            "[databases]\n{name} = host={host} port={server_port} dbname={name}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n\
             default_pool_size = {connections}\nmax_client_conn = 200\nlogfile =\npidfile =\n",
            name = database.name,
            host = socket.display(),
            users = scratch.0.join("users").display(),
        );
        let users: String = [Role::Superuser, Role::Owner, Role::Service, Role::Auditor]
            .iter()
            .map(|role| format!("\"{}\" \"\"\n", role.name()))
            .collect();
        fs::write(scratch.0.join("users"), users).unwrap();
        let path = scratch.0.join("pgbouncer.ini");
        fs::write(&path, with_mode(&settings, mode)).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("-q").arg(&path).stdin(Stdio::null()).kill_on_drop(true);
        command.process_group(Janitor::get().group());
        if geteuid().is_root() {
            for file in [&scratch.0, &path, &scratch.0.join("users")] {
                chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
            }
            command.uid(owner.uid()).gid(owner.gid());
        }
        let child = command.spawn().expect("PgBouncer is installed");
        let listens = timeout(Duration::from_secs(30), async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        });
        listens.await.expect("PgBouncer listens");
        Self {
            port,
            database: database.name.clone(),
            config: path,
            settings,
            child,
            scratch,
        }
    }

    /// The URL of the database through it.
    pub fn url_as(&self, role: Role) -> String {
        format!("postgres://{}@127.0.0.1:{}/{}", role.name(), self.port, self.database)
    }

    /// Shares connections in this way from now on.
    pub fn reload(&self, mode: PoolMode) {
        fs::write(&self.config, with_mode(&self.settings, mode)).unwrap();
        let process = self.child.id().expect("PgBouncer runs");
        kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGHUP).unwrap();
    }
}

fn with_mode(settings: &str, mode: PoolMode) -> String {
    let mode = match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
    };
    format!("{settings}pool_mode = {mode}\n")
}
