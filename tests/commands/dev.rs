//! `balance dev`: the main job with nothing to set up, and nothing left behind.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::support::client::{ServiceClient, answer, change};
use crate::support::replica::{Scratch, log_lines};
use crate::{BALANCE, text};

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
        let mut command = tokio::process::Command::new(BALANCE);
        command
            .args(["dev", "--listen", "127.0.0.1:0"])
            .env_clear()
            .envs(path())
            .current_dir(directory);
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
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
        let data = after("data in ");
        let (data_dir, _) = data.split_once(", psql").unwrap();
        let dev = Self {
            data_dir: data_dir.into(),
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

    /// Sends a signal, waits for the end, and sees that no PostgreSQL is left.
    async fn end(mut self, signal: Signal, to_group: bool) {
        let id = Pid::from_raw(self.child.id().unwrap().try_into().unwrap());
        if to_group { killpg(id, signal) } else { kill(id, signal) }.unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("dev ends").unwrap();
        if signal != Signal::SIGKILL {
            assert!(status.success(), "{status}");
            assert!(
                processes_in(&self.data_dir).is_empty(),
                "PostgreSQL has ended before dev"
            );
            let mut last = String::new();
            while let Some(line) = self.lines.next_line().await.unwrap() {
                last = line;
            }
            assert_eq!(last, "Stopped.");
        }
        let begin = Instant::now();
        while !processes_in(&self.data_dir).is_empty() {
            assert!(begin.elapsed() < PATIENCE, "{:?}", processes_in(&self.data_dir));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn path() -> Vec<(&'static str, OsString)> {
    let kept = ["PATH", "POSTGRES_BIN"];
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
