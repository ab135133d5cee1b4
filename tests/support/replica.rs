//! The service as a process of its own, started with the built program as an operator would.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::approver::TestApprover;
use super::certificates::Everywhere;
use super::janitor::Janitor;
use super::postgres::Database;
use super::secure_postgres::as_asked;
use super::usage::Usage;

/// How long a process may take to start or to end before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory of a test's own, removed with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let path = Janitor::get().directory().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a replica is started.
pub struct ReplicaOptions {
    environment: Vec<(String, String)>,
    log: Option<PathBuf>,
    open_files: Option<u32>,
    program: PathBuf,
}

impl ReplicaOptions {
    /// With an instance name of its own. With `TEST_COMMIT_BATCH_USERS` the tests can be run with other batches than the
    /// default, and with `TEST_TLS` over TLS.
    pub fn new(database_url: &str, approver_url: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let instance = format!("test-replica-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let environment = [
            ("INSTANCE", instance.as_str()),
            ("DATABASE_URL", &as_asked(database_url)),
            ("APPROVER_URL", approver_url),
            ("LISTEN", "127.0.0.1:0"),
            ("SHUTDOWN_DELAY_MS", "1"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let batch_users = std::env::var("TEST_COMMIT_BATCH_USERS").ok();
        let batch_users = batch_users.map(|users| ("COMMIT_BATCH_USERS".to_owned(), users));
        let tls = Everywhere::asked().into_iter().flat_map(|tls| {
            [("TLS_CERT", "service.pem"), ("TLS_KEY", "service.key")]
                .map(|(variable, file)| (variable.to_owned(), tls.file(file)))
        });
        Self {
            environment: environment.into_iter().chain(batch_users).chain(tls).collect(),
            log: None,
            open_files: None,
            program: PathBuf::from(env!("CARGO_BIN_EXE_balance")),
        }
    }

    /// Sets a variable; the last value counts.
    pub fn set(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.environment.push((variable.to_owned(), value.into()));
        self
    }

    /// Sets these variables.
    pub fn set_all(self, settings: &[(&str, &str)]) -> Self {
        let set = |options: Self, (variable, value): &(&str, &str)| options.set(variable, *value);
        settings.iter().fold(self, set)
    }

    /// Writes the operations log there, and not in a scratch directory of the replica.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// Sets `ulimit -n`, the hard limit too.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Runs the program under this name, which nothing else runs under.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    fn command(&self) -> Command {
        let program = self.program.as_os_str();
        let Some(limit) = self.open_files else {
            let mut command = Command::new(program);
            command.arg("serve");
            return command;
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" serve")]);
        command.arg(program);
        command
    }

    /// Starts the replica and waits until it serves.
    pub async fn start(self) -> Replica {
        let mut replica = self.spawn();
        replica.serves().await;
        replica
    }

    /// Starts the replica, which may never come to serve.
    pub fn spawn(self) -> Replica {
        let scratch = Scratch::new();
        let mut command = self.command();
        let log = self.log.unwrap_or_else(|| scratch.0.join("operations.log"));
        let has_tls = self.environment.iter().any(|(variable, _)| variable == "TLS_CERT");
        let scheme = if has_tls { "https" } else { "http" };
        let mut child = command
            .env_clear()
            .env("OPERATIONS_LOG", &log)
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .process_group(Janitor::get().group())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (said, output) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                said.send_modify(|lines: &mut Vec<Said>| lines.push(Said::new(line)));
            }
        });
        Replica {
            url: String::new(),
            scheme,
            log,
            child,
            output,
            scratch,
        }
    }
}

/// A line of standard error: an event of the process's log, as JSON or as it stands there.
#[derive(Clone, Debug)]
struct Said {
    event: Option<Value>,
    text: String,
}

impl Said {
    /// An event reads `LEVEL target: message name=value …`, whatever the format.
    fn new(line: String) -> Self {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(&line) else {
            return Self {
                event: None,
                text: line,
            };
        };
        let event = Some(Value::Object(fields.clone()));
        let mut take = |name: &str| {
            let value = fields.shift_remove(name);
            value.unwrap_or_else(|| panic!("an event has its {name}: {line}"))
        };
        let plain = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        take("timestamp");
        let [level, target, message] = ["level", "target", "message"].map(|name| plain(take(name)));
        let mut text = format!("{level} {target}: {message}");
        for (name, value) in fields {
            text += &format!(" {name}={}", plain(value));
        }
        Self { event, text }
    }
}

/// A running replica; killed when dropped.
pub struct Replica {
    pub url: String,
    scheme: &'static str,
    pub log: PathBuf,
    child: Child,
    output: watch::Receiver<Vec<Said>>,
    #[allow(dead_code, reason = "removed with the replica")]
    scratch: Scratch,
}

impl Drop for Replica {
    /// What the replica has said helps to understand why a test fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.output();
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("{} ended: {:?}, said last: {last:#?}", self.url, self.child.try_wait());
        }
    }
}

impl Replica {
    /// A replica on this database with this Approver and nothing else set.
    pub async fn start(database: &Database, approver: &TestApprover) -> Self {
        ReplicaOptions::new(&database.url, &approver.url()).start().await
    }

    /// Waits until it serves, and notes where.
    pub async fn serves(&mut self) {
        let line = self.said("serving address=").await;
        let (_, address) = line.split_once("address=").unwrap();
        let (address, _) = address.split_once(' ').unwrap();
        self.url = format!("{}://{address}", self.scheme);
    }

    /// Waits for a line of standard error that holds `text`.
    pub async fn said(&mut self, text: &str) -> String {
        let found = |lines: &Vec<Said>| lines.iter().any(|line| line.text.contains(text));
        let waited = timeout(PATIENCE, self.output.wait_for(found)).await;
        let found = waited.is_ok_and(|heard| heard.is_ok());
        let lines = self.output();
        assert!(found, "the replica has not said {text:?} but {lines:#?}");
        lines.into_iter().find(|line| line.contains(text)).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process_id()), signal).unwrap();
    }

    pub fn process_id(&self) -> i32 {
        i32::try_from(self.child.id().expect("the replica runs")).unwrap()
    }

    /// All that it has said on standard error, a line an event.
    pub fn output(&self) -> Vec<String> {
        self.output.borrow().iter().map(|said| said.text.clone()).collect()
    }

    /// Those of its lines that were JSON, parsed.
    pub fn events(&self) -> Vec<Value> {
        let lines = self.output.borrow();
        lines.iter().filter_map(|said| said.event.clone()).collect()
    }

    /// Waits for an event of which this is true.
    pub async fn event(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        let find = |lines: &Vec<Said>| lines.iter().filter_map(|said| said.event.clone()).find(&is_it);
        let waited = timeout(PATIENCE, self.output.wait_for(|lines| find(lines).is_some())).await;
        assert!(
            waited.is_ok_and(|heard| heard.is_ok()),
            "no such event: {:#?}",
            self.output()
        );
        find(&self.output.borrow()).unwrap()
    }

    fn usage(&self) -> Usage {
        Usage::of(self.process_id()).expect("the replica runs")
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.usage().descriptors
    }

    /// Its resident memory, in MiB.
    pub fn memory(&self) -> u64 {
        self.usage().resident_kib / 1_024
    }

    /// How much of a processor it takes over a moment, 1.0 being one of them.
    pub async fn busyness(&self) -> f64 {
        const MOMENT: Duration = Duration::from_millis(500);
        let before = self.usage().processor_ticks;
        tokio::time::sleep(MOMENT).await;
        let ticks = u32::try_from(self.usage().processor_ticks - before).unwrap();
        f64::from(ticks) / 100.0 / MOMENT.as_secs_f64()
    }

    /// Waits until it has no more file descriptors open than that.
    pub async fn until_descriptors(&self, most: usize) {
        let reached = timeout(PATIENCE, async {
            while self.descriptors() > most {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let reached = reached.await;
        assert!(
            reached.is_ok(),
            "{} descriptors are still open, not {most}",
            self.descriptors()
        );
    }

    /// Waits for the process to end.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait())
            .await
            .expect("the replica ends")
            .unwrap()
    }

    /// SIGTERM, and waits for the end, which must be a good one.
    pub async fn stop(mut self) {
        self.terminate().await;
    }

    /// As [`stop`](Self::stop); returns all lines that the operations log has in the end.
    pub async fn stop_and_read(mut self) -> Vec<Value> {
        self.terminate().await;
        self.log_lines()
    }

    async fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success() && status.signal().is_none(), "{status}");
    }

    /// The lines of the operations log, each parsed.
    pub fn log_lines(&self) -> Vec<Value> {
        log_lines(&self.log)
    }
}

/// The lines of an operations log, each parsed; a line that does not parse fails the test.
pub fn log_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn last line: {text:?}");
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    text.split_terminator('\n').map(parse).collect()
}
