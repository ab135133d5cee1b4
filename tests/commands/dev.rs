//! `balance dev`: the main job with nothing to set up, and nothing left behind.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use balance::dev::{PostgresOptions, PrivatePostgres, StopMode};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::support::client::{ServiceClient, answer, change};
use crate::support::janitor::Janitor;
use crate::support::raw;
use crate::support::replica::{Scratch, log_lines};
use crate::{BALANCE, one_line, run, text};

const PATIENCE: Duration = Duration::from_secs(60);

/// `balance dev`, in a process group of its own as a terminal gives it.
struct Dev {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    banner: String,
    data_dir: PathBuf,
    url: String,
}

impl Dev {
    async fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[]).await
    }

    async fn start_with(directory: &Path, flags: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(BALANCE);
        command
            .args(["dev", "--listen", "127.0.0.1:0"])
            .args(flags)
            .env_clear()
            .envs(path())
            .current_dir(directory);
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Janitor::get().kill_group(i32::try_from(child.id().unwrap()).unwrap());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut banner = String::new();
        while !banner.contains("Ctrl-C") {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("dev starts").unwrap();
            banner += &line.unwrap_or_else(|| panic!("dev has ended: {banner}"));
            banner.push('\n');
        }
        let after = |mark: &str| {
            let (_, rest) = banner.split_once(mark).unwrap_or_else(|| panic!("{mark}: {banner}"));
            rest.lines().next().unwrap().trim().to_owned()
        };
        let dev = Self {
            data_dir: after("Data ").into(),
            url: after("Service "),
            banner,
            child,
            lines,
        };
        assert!(!processes_in(&dev.data_dir).is_empty(), "PostgreSQL runs");
        dev
    }

    /// The command that stands after this in the banner, run by a shell as it is printed.
    fn printed(&self, begin: &str) -> Value {
        let place = self
            .banner
            .find(begin)
            .unwrap_or_else(|| panic!("{begin}: {}", self.banner));
        let lines = self.banner[place..].lines();
        let mut command = String::new();
        for line in lines {
            command += line;
            command.push('\n');
            if !line.ends_with('\\') {
                break;
            }
        }
        let output = Command::new("sh").arg("-c").arg(&command).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {command} {output:?}"))
    }

    /// The next line that begins so.
    async fn said(&mut self, begin: &str) -> String {
        let found = timeout(PATIENCE, async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("dev still runs");
                if line.starts_with(begin) {
                    return line;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("dev does not say {begin:?}"))
    }

    /// Sends a signal, waits for the end, and sees that no PostgreSQL is left. Returns what was said meanwhile.
    async fn end(mut self, signal: Signal, to_group: bool) -> Vec<String> {
        let id = Pid::from_raw(self.child.id().unwrap().try_into().unwrap());
        if to_group { killpg(id, signal) } else { kill(id, signal) }.unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("dev ends").unwrap();
        let mut said = Vec::new();
        if signal != Signal::SIGKILL {
            assert!(status.success(), "{status}");
            assert!(
                processes_in(&self.data_dir).is_empty(),
                "PostgreSQL has ended before dev"
            );
            while let Some(line) = self.lines.next_line().await.unwrap() {
                said.push(line);
            }
            assert_eq!(said.last().unwrap(), "Stopped.");
        }
        let begin = Instant::now();
        while !processes_in(&self.data_dir).is_empty() {
            assert!(begin.elapsed() < PATIENCE, "{:?}", processes_in(&self.data_dir));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        said
    }
}

fn path() -> Vec<(&'static str, OsString)> {
    let kept = [
        "PATH",
        "POSTGRES_BIN",
        "HOME",
        "XDG_CACHE_HOME",
        "http_proxy",
        "https_proxy",
    ];
    kept.iter()
        .filter_map(|name| Some((*name, std::env::var_os(name)?)))
        .collect()
}

/// The processes whose working directory is below this one, as all of a PostgreSQL's are. A zombie has none.
fn processes_in(directory: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let within = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
    processes.filter(within).collect()
}

#[tokio::test]
async fn ctrl_c_ends_dev_before_its_postgresql_has_started() {
    let scratch = Scratch::new();
    let data_dir = scratch.0.join(".dev");
    fs::create_dir(&data_dir).unwrap();
    // It waits for the PostgreSQL of a killed predecessor, and fails in the end.
    let predecessor = fs::File::create(data_dir.join("postgres.lock")).unwrap();
    predecessor.lock().unwrap();
    let mut command = tokio::process::Command::new(BALANCE);
    command
        .args(["dev", "--listen", "127.0.0.1:0"])
        .env_clear()
        .envs(path());
    command.current_dir(&scratch.0).process_group(Janitor::get().group());
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut dev = command.spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("balance"));
    kill(Pid::from_raw(dev.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    let status = timeout(PATIENCE, dev.wait()).await.expect("dev ends").unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("Stopped."));
}

#[tokio::test]
async fn dev_answers_only_to_the_names_of_this_machine() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.0).await;
    let address = dev.url.strip_prefix("http://").unwrap().to_owned();
    let (_, port) = address.rsplit_once(':').unwrap();
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    for (host, status) in [
        (address.as_str(), 200),
        (&format!("localhost:{port}"), 200),
        ("LOCALHOST", 200),
        ("balance.localhost", 200),
        ("[::1]:8080", 200),
        (&name, 200),
        ("rebound.example.com", 421),
        (&format!("rebound.example.com:{port}"), 421),
        ("localhost.example.com", 421),
        ("192.0.2.7", 421),
        ("", 421),
    ] {
        let request = format!("GET /alice/balance HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answered = raw::exchange(&dev.url, request.as_bytes()).await.expect("an answer");
        assert_eq!(answered.status, status, "{host}");
        if status == 421 {
            assert_eq!(answered.json()["code"], "misdirected_request");
        }
    }
    dev.end(Signal::SIGTERM, false).await;
}

#[tokio::test]
async fn dev_does_the_main_job_keeps_its_data_and_leaves_no_process_however_it_ends() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.0).await;
    let data_dir = dev.data_dir.clone();
    let changed = dev.printed("curl -X POST");
    assert_eq!(
        (&changed["userId"], &changed["balance"]),
        (&"alice".into(), &100.into()),
        "{changed}"
    );
    assert_eq!(dev.printed(&format!("curl {}/alice/balance", dev.url))["balance"], 100);
    let client = ServiceClient::new(&dev.url);
    assert!(dev.banner.contains(&format!("{}/docs", dev.url)));
    assert_eq!(client.get("/docs").send().await.unwrap().status(), 200);
    let log = scratch.0.join("operations.log");
    assert!(dev.banner.contains(log.to_str().unwrap()), "{}", dev.banner);
    assert!(
        !dev.banner.contains('\u{1b}'),
        "no terminal, no colours: {}",
        dev.banner
    );
    for path in ["/openapi.json", "/metrics"] {
        assert!(dev.banner.contains(&format!("{}{path}", dev.url)), "{}", dev.banner);
    }
    let lines = log_lines(&log);
    let operations: Vec<_> = lines.iter().map(|line| line["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["changeBalance", "getBalance"]);
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    dev.end(Signal::SIGINT, false).await;

    let dev = Dev::start(&scratch.0).await;
    assert_eq!(dev.data_dir, data_dir);
    let client = ServiceClient::new(&dev.url);
    assert_eq!(client.balance("alice", None).await.expect(200).body["balance"], 100);
    // The stand-in Approver answers.
    let moment = "2026-01-31T12:00:01Z";
    client.change(&change("alice", 200_000, moment)).await.expect(200);
    let denied = client.change(&change("alice", 1_000_001, moment)).await;
    denied.expect_problem(403, "approver_denied");
    dev.end(Signal::SIGTERM, false).await;

    let dev = Dev::start(&scratch.0).await;
    ServiceClient::new(&dev.url)
        .change(&change("alice", 1, moment))
        .await
        .expect(200);
    dev.end(Signal::SIGKILL, false).await;

    // Ctrl-C in a terminal goes to all processes of the group.
    let dev = Dev::start(&scratch.0).await;
    let client = ServiceClient::new(&dev.url);
    answer(client.get("/readyz")).await.expect(200);
    assert_eq!(client.balance("alice", None).await.expect(200).body["balance"], 200_101);
    dev.end(Signal::SIGINT, true).await;
    let _ = fs::remove_dir_all(data_dir);
}

/// The history of `demo` before that moment, and its balance then, which must agree.
async fn past_of_demo(dev: &Dev, moment: &str) -> (Vec<Value>, i64) {
    let client = ServiceClient::new(&dev.url);
    let query = format!("/demo/history?order=asc&limit=1000&to={moment}");
    let history = answer(client.get(&query)).await.expect(200).body;
    let balance = client.balance("demo", Some(moment)).await.expect(200).body["balance"].as_i64();
    let operations = history["operations"].as_array().unwrap().clone();
    let sum: i64 = operations
        .iter()
        .map(|operation| operation["balanceChange"].as_i64().unwrap())
        .sum();
    assert_eq!(balance, Some(sum));
    (operations, sum)
}

#[tokio::test]
async fn the_demo_gives_its_users_a_past_and_does_a_bit_of_everything_until_ctrl_c() {
    let scratch = Scratch::new();
    let mut dev = Dev::start_with(&scratch.0, &["--demo"]).await;
    let data_dir = dev.data_dir.clone();
    let began = dev.said("User demo ").await;
    // Days that end while the test runs come later.
    let today = format!("{}T00:00:00Z", time::OffsetDateTime::now_utc().date());
    let (history, balance) = past_of_demo(&dev, &today).await;
    assert!(began.contains(&balance.to_string()), "{began}");
    assert!(history.len() > 20 && balance > 0, "{history:?}");
    for context in ["account opened", "salary", "groceries", "coffee"] {
        assert!(
            history.iter().any(|operation| operation["context"] == context),
            "{context}: {history:?}"
        );
    }

    let log = scratch.0.join("operations.log");
    let all = [
        ("changeBalance", "accepted"),
        ("changeBalance", "replayed"),
        ("changeBalance", "insufficient_funds"),
        ("changeBalance", "approver_denied"),
        ("getBalance", "accepted"),
        ("getHistory", "accepted"),
    ];
    let seen = |(operation, outcome): &(&str, &str)| {
        let marks = [
            format!("\"operation\":\"{operation}\""),
            format!("\"outcome\":\"{outcome}\""),
        ];
        let text = fs::read_to_string(&log).unwrap();
        text.lines()
            .any(|line| line.contains("\"demo-") && marks.iter().all(|mark| line.contains(mark)))
    };
    let done = timeout(PATIENCE, async {
        while !all.iter().all(seen) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    done.await.unwrap_or_else(|_| panic!("some of {all:?} is not done"));
    let said = dev.end(Signal::SIGINT, true).await;
    let summary = said
        .iter()
        .find(|line| line.starts_with("Demo: "))
        .expect("what was done");
    assert!(
        summary.contains("accepted") && summary.contains("refused") && !summary.contains("unavailable"),
        "{summary}"
    );

    let mut dev = Dev::start_with(&scratch.0, &["--demo"]).await;
    dev.said("User demo ").await;
    assert_eq!(past_of_demo(&dev, &today).await, (history, balance));
    dev.end(Signal::SIGTERM, false).await;

    let mut postgres = PrivatePostgres::start(&PostgresOptions::new(&data_dir)).await.unwrap();
    let url = postgres.url("balance");
    let output = run(
        &[
            "verify",
            "--database-url",
            &url,
            "--operations-log",
            log.to_str().unwrap(),
        ],
        &[],
    );
    assert!(output.status.success(), "{}", text(&output.stdout));
    postgres.stop(StopMode::Fast).await.unwrap();
    let _ = fs::remove_dir_all(data_dir);
}

#[test]
fn a_demo_that_is_neither_wanted_nor_not_stops_dev_with_one_line() {
    let line = one_line(&run(&["dev"], &[("DEMO", "perhaps")]));
    assert!(
        line.starts_with("balance: DEMO: \"perhaps\"") && line.contains("true or false"),
        "{line}"
    );
}

/// Runs a `dev` that cannot start, and gives back what it said last.
fn dev_that_fails(directory: &Path, listen: &str, postgres_bin: Option<&Path>) -> (String, String) {
    let mut command = Command::new(BALANCE);
    command
        .args(["dev", "--listen", listen])
        .env_clear()
        .envs(path())
        .current_dir(directory);
    if let Some(postgres_bin) = postgres_bin {
        command.env("POSTGRES_BIN", postgres_bin).env("PATH", "");
    }
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let said = text(&output.stderr);
    // What comes before is the log.
    let reasons: Vec<&str> = said.lines().filter(|line| line.starts_with("balance: ")).collect();
    assert_eq!(reasons.len(), 1, "{said}");
    assert!(said.ends_with(&format!("{}\n", reasons[0])), "{said}");
    (reasons[0].to_owned(), said)
}

#[test]
fn what_keeps_dev_from_starting_is_said_in_one_line() {
    let scratch = Scratch::new();
    let empty = scratch.0.join("empty");
    fs::create_dir(&empty).unwrap();
    let (reason, said) = dev_that_fails(&scratch.0, "127.0.0.1:0", Some(&empty));
    assert!(reason.contains("POSTGRES_BIN") && reason.contains("initdb"), "{reason}");
    assert_eq!(said.lines().count(), 1, "{said}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (reason, said) = dev_that_fails(&scratch.0, &address, None);
    assert!(
        reason.starts_with("balance: LISTEN: ") && reason.contains(&address),
        "{reason}"
    );
    let mut events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let data_dir = events.find_map(|event| event["data_dir"].as_str().map(PathBuf::from));
    let data_dir = data_dir.expect("PostgreSQL was started");
    assert!(processes_in(&data_dir).is_empty());
    let _ = fs::remove_dir_all(data_dir);
}

/// What a `dev` that finds no PostgreSQL says on a terminal.
fn on_a_terminal(directory: &Path, variables: &[(&str, &str)]) -> String {
    let command = format!("{BALANCE} dev --listen 127.0.0.1:0");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("POSTGRES_BIN", directory)
        .env("TERM", "xterm")
        .envs(variables.iter().copied())
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(
        said.contains(env!("CARGO_PKG_VERSION")) && said.contains("POSTGRES_BIN"),
        "{output:?}"
    );
    said
}

#[test]
fn dev_is_coloured_on_a_terminal_unless_colours_are_not_wanted() {
    let scratch = Scratch::new();
    let coloured = |variables: &[(&str, &str)]| on_a_terminal(&scratch.0, variables).contains("\u{1b}[1m");
    assert!(coloured(&[]));
    assert!(!coloured(&[("NO_COLOR", "1")]));
    assert!(!coloured(&[("TERM", "dumb")]));
}

#[tokio::test]
async fn dev_works_under_a_directory_that_only_its_user_can_enter() {
    let closed = Path::new("/tmp").join(format!("balance-commands-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&closed).unwrap();
    let dev = Dev::start(&closed).await;
    let data_dir = dev.data_dir.clone();
    assert_eq!(geteuid().is_root(), !data_dir.starts_with(&closed), "{data_dir:?}");
    assert_eq!(dev.printed("curl -X POST")["balance"], 100);
    dev.end(Signal::SIGTERM, false).await;
    let dev = Dev::start(&closed).await;
    assert_eq!(dev.printed(&format!("curl {}/alice/balance", dev.url))["balance"], 100);
    dev.end(Signal::SIGINT, false).await;
    let _ = fs::remove_dir_all(data_dir);
    fs::remove_dir_all(closed).unwrap();
}
