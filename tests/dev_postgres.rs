//! What `balance dev` promises of its PostgreSQL, tried on real ones: it starts from nothing, keeps its data through every
//! way to end, and leaves nothing running. They pass as root and as an ordinary user, and leave no file behind.

#[path = "support/janitor.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod janitor;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use balance::dev::{PostgresError, PostgresOptions, PrivatePostgres, StopMode};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use janitor::Janitor;

/// An empty directory that is removed with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(mode: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
        let path = Janitor::get().directory().join(name);
        fs::DirBuilder::new().mode(mode).create(&path).unwrap();
        Self(path)
    }

    fn options(&self, below: &str) -> PostgresOptions {
        PostgresOptions::new(self.0.join(below))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn start(options: &PostgresOptions) -> PrivatePostgres {
    PrivatePostgres::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn refused(options: &PostgresOptions) -> PostgresError {
    let Err(error) = PrivatePostgres::start(options).await else {
        panic!("it started");
    };
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

async fn client(postgres: &PrivatePostgres, database: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&postgres.url(database), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

async fn mark(postgres: &PrivatePostgres, text: &str) {
    let client = client(postgres, "postgres").await;
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS mark (text text)")
        .await
        .unwrap();
    client.execute("INSERT INTO mark VALUES ($1)", &[&text]).await.unwrap();
}

async fn marks(postgres: &PrivatePostgres) -> Vec<String> {
    let client = client(postgres, "postgres").await;
    let rows = client.query("SELECT text FROM mark ORDER BY text", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Whether a process that was not our child has ended. Until its new parent reaps it, which may take its time, it is a
/// zombie; and it lets go of its files a moment before it is one.
fn ends(process: i32) -> bool {
    let is_zombie = || {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        if is_gone(process) || is_zombie() {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

fn is_gone(process: i32) -> bool {
    kill(Pid::from_raw(process), None) == Err(Errno::ESRCH)
}

#[tokio::test]
async fn data_outlives_every_way_to_stop() {
    let scratch = Scratch::new(0o755);
    let options = scratch.options("a \"quoted\" name, spaced und ünïcödé 🦀");

    let mut postgres = start(&options).await;
    mark(&postgres, "1 fast").await;
    let status = postgres.stop(StopMode::Fast).await.unwrap();
    assert!(status.success(), "{status}");

    let mut postgres = start(&options).await;
    mark(&postgres, "2 immediate").await;
    postgres.stop(StopMode::Immediate).await.unwrap();
    assert!(is_gone(postgres.process_id()));

    let postgres = start(&options).await;
    mark(&postgres, "3 dropped").await;
    let dropped = postgres.process_id();
    drop(postgres);

    let mut postgres = start(&options).await;
    assert!(ends(dropped));
    mark(&postgres, "4 killed").await;
    kill(Pid::from_raw(postgres.process_id()), Signal::SIGKILL).unwrap();
    assert_eq!(postgres.exited().await.signal(), Some(9));
    // It tells how PostgreSQL ended, however long ago, and releases the directory.
    assert_eq!(postgres.stop(StopMode::Fast).await.unwrap().signal(), Some(9));

    let mut postgres = start(&options).await;
    assert_eq!(
        marks(&postgres).await,
        ["1 fast", "2 immediate", "3 dropped", "4 killed"]
    );
    postgres.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn what_is_in_the_way_of_a_start_is_said_in_one_line() {
    let scratch = Scratch::new(0o755);
    let options = scratch.options("data");
    let mut first = start(&options).await;

    let error = refused(&options).await;
    assert!(matches!(error, PostgresError::AlreadyRunning { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("data\"") && message.contains(&std::process::id().to_string()),
        "{message}"
    );
    mark(&first, "the first is not disturbed").await;
    first.stop(StopMode::Fast).await.unwrap();

    let wrong = PostgresOptions {
        settings: vec![("shared_buffers".to_owned(), "plenty".to_owned())],
        ..options.clone()
    };
    let error = refused(&wrong).await;
    assert!(matches!(error, PostgresError::Exited { .. }), "{error}");
    assert!(error.to_string().contains("plenty"), "{error}");

    // What a crash of the machine can leave: a number that another process has by now.
    let pid_file = first.data_dir().join("postgres/postmaster.pid");
    fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
    start(&options).await.stop(StopMode::Fast).await.unwrap();

    let version = first.data_dir().join("postgres/PG_VERSION");
    fs::write(&version, "7\n").unwrap();
    let error = refused(&options).await;
    assert!(matches!(error, PostgresError::VersionMismatch { .. }), "{error}");

    fs::remove_file(&version).unwrap();
    let error = refused(&options).await;
    assert!(matches!(error, PostgresError::NotACluster { .. }), "{error}");
}

#[tokio::test]
async fn settings_databases_and_a_long_path_are_as_asked() {
    let scratch = Scratch::new(0o755);
    let long = format!("{0}/{0}", "long".repeat(30));
    let options = PostgresOptions {
        settings: vec![
            ("port".to_owned(), "6543".to_owned()),
            ("max_connections".to_owned(), "33".to_owned()),
        ],
        ..scratch.options(&long)
    };
    let mut postgres = start(&options).await;
    assert!(postgres.data_dir().ends_with(&long));
    assert!(postgres.log_path().starts_with(postgres.data_dir()));
    assert!(postgres.bin_dir().join("initdb").exists());

    let socket_dir = postgres.socket_dir().to_owned();
    assert!(socket_dir.as_os_str().len() < 60, "{socket_dir:?}");
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);

    for name in ["balance", "balance", "odd \"name\"/?"] {
        postgres
            .create_database(name)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let client = client(&postgres, name).await;
        let row = client
            .query_one("SELECT current_database()::text, current_user::text", &[])
            .await
            .unwrap();
        assert_eq!((row.get(0), row.get(1)), (name, "balance"));
    }
    let client = client(&postgres, "balance").await;
    for (setting, value) in [
        ("max_connections", "33"),
        ("fsync", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
    ] {
        let row = client
            .query_one("SELECT current_setting($1)", &[&setting])
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{setting}");
    }
    postgres.stop(StopMode::Fast).await.unwrap();
    assert!(!socket_dir.exists());
    let Err(error) = postgres.create_database("late").await else {
        panic!("PostgreSQL has ended");
    };
    assert!(matches!(error, PostgresError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_directory_that_the_user_of_postgres_cannot_enter_is_left_as_it_is() {
    let scratch = Scratch::new(0o700);
    let options = scratch.options("data");
    let mut postgres = start(&options).await;
    let data_dir = postgres.data_dir().to_owned();
    let _elsewhere = Scratch(data_dir.clone());
    mark(&postgres, "here").await;
    postgres.stop(StopMode::Fast).await.unwrap();

    let mut again = start(&options).await;
    assert_eq!(again.data_dir(), data_dir);
    assert_eq!(marks(&again).await, ["here"]);
    again.stop(StopMode::Immediate).await.unwrap();

    assert_eq!(fs::metadata(&scratch.0).unwrap().mode() & 0o777, 0o700);
    if geteuid().is_root() {
        assert!(data_dir.starts_with("/var/tmp"), "{data_dir:?}");
        assert_eq!(fs::metadata(&data_dir).unwrap().uid(), 0);
        assert_ne!(fs::metadata(data_dir.join("postgres")).unwrap().uid(), 0);
        assert!(!scratch.0.join("data").exists());
    } else {
        assert!(data_dir.ends_with("data"));
    }
}

#[tokio::test]
async fn kill_9_leaves_no_postgres_and_the_next_start_recovers() {
    let scratch = Scratch::new(0o755);
    let options = scratch.options("data");
    let (mut parent, mut lines) = parent_to_kill(&options.data_dir);
    let process: i32 = lines
        .find_map(|line| line.strip_prefix("ready ")?.parse().ok())
        .unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();

    let killed = Instant::now();
    let mut postgres = start(&options).await;
    assert!(ends(process));
    assert!(killed.elapsed() < Duration::from_secs(10));
    assert_eq!(marks(&postgres).await, ["before the kill"]);
    postgres.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn kill_9_while_initdb_runs_does_not_spoil_the_next_start() {
    let scratch = Scratch::new(0o755);
    let options = scratch.options("data");
    let (mut parent, _lines) = parent_to_kill(&options.data_dir);
    let begun = options.data_dir.join("postgres.initializing/PG_VERSION");
    let start_of_wait = Instant::now();
    while !begun.exists() {
        assert!(
            start_of_wait.elapsed() < Duration::from_secs(60),
            "initdb has not begun"
        );
        thread::sleep(Duration::from_millis(1));
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(!options.data_dir.join("postgres").exists());

    let mut postgres = start(&options).await;
    mark(&postgres, "whole").await;
    assert!(!options.data_dir.join("postgres.initializing").exists());
    postgres.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing_running() {
    let scratch = Scratch::new(0o755);
    let options = scratch.options("data");
    let begun = options.data_dir.join("postgres.initializing/PG_VERSION");
    tokio::select! {
        _ = PrivatePostgres::start(&options) => panic!("initdb was over before it was given up"),
        () = async {
            while !begun.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } => {}
    }
    // It begins when the last process of the first start has ended, and not before.
    let mut postgres = start(&options).await;
    postgres.stop(StopMode::Fast).await.unwrap();
}

const PARENT_DATA_DIR: &str = "BALANCE_TEST_PARENT_DATA_DIR";

/// Another process of this program that starts PostgreSQL, prints `ready <process id>` and waits to be killed.
fn parent_to_kill(data_dir: &Path) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut parent = Command::new(env::current_exe().unwrap())
        .args(["--exact", "the_parent_to_kill", "--ignored", "--nocapture"])
        .env(PARENT_DATA_DIR, data_dir)
        .process_group(Janitor::get().group())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = parent.stdout.take().unwrap();
    (parent, BufReader::new(output).lines().map_while(Result::ok))
}

#[tokio::test]
#[ignore = "other tests run it as a process to kill; by itself it does nothing"]
async fn the_parent_to_kill() {
    let Some(data_dir) = env::var_os(PARENT_DATA_DIR) else {
        return;
    };
    let postgres = start(&PostgresOptions::new(data_dir)).await;
    mark(&postgres, "before the kill").await;
    println!("\nready {}", postgres.process_id());
    std::future::pending::<()>().await;
}
