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
    pub port: u16,
    database: String,
    config: PathBuf,
    /// Where it leads to, and all the rest but the way in which connections are shared.
    databases: String,
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
        Self::start_with(database, mode, connections, "").await
    }

    /// The same with more settings, a line each.
    pub async fn start_with(database: &Database, mode: PoolMode, connections: u32, more: &str) -> Self {
        let (socket, _) = socket_of(database);
        // Only the server's user can enter the socket's directory, and PgBouncer does not run as root.
        let owner = fs::metadata(socket).unwrap();
        let (port, scratch) = (free_port(), Scratch::new());
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o755)).unwrap();
        let settings = format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
             auth_file = {users}\ndefault_pool_size = {connections}\nmax_client_conn = 200\nlogfile =\npidfile =\n{more}",
            users = scratch.0.join("users").display(),
        );
        let users: String = [Role::Superuser, Role::Owner, Role::Service, Role::Auditor]
            .iter()
            .map(|role| format!("\"{}\" \"\"\n", role.name()))
            .collect();
        fs::write(scratch.0.join("users"), users).unwrap();
        let path = scratch.0.join("pgbouncer.ini");
        let databases = databases(database);
        fs::write(&path, with_mode(&databases, &settings, mode)).unwrap();
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
            databases,
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
        fs::write(&self.config, with_mode(&self.databases, &self.settings, mode)).unwrap();
        let process = self.child.id().expect("PgBouncer runs");
        kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGHUP).unwrap();
    }

    /// Leads connections that it opens from now on to this database of the same name.
    pub fn lead_to(&mut self, database: &Database, mode: PoolMode) {
        self.databases = databases(database);
        self.reload(mode);
    }
}

/// The directory of the socket and the port of the tests' server.
fn socket_of(database: &Database) -> (PathBuf, u16) {
    let config = tokio_postgres::Config::from_str(&database.url).unwrap();
    let Some(Host::Unix(socket)) = config.get_hosts().first() else {
        panic!("the PostgreSQL of the tests is on a Unix socket");
    };
    (socket.clone(), config.get_ports().first().copied().unwrap_or(5432))
}

fn databases(database: &Database) -> String {
    let ((socket, port), name) = (socket_of(database), &database.name);
    format!(
        "[databases]\n{name} = host={} port={port} dbname={name}\n",
        socket.display()
    )
}

fn with_mode(databases: &str, settings: &str, mode: PoolMode) -> String {
    let mode = match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
    };
    format!("{databases}{settings}pool_mode = {mode}\n")
}
