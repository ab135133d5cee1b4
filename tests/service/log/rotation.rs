//! The operations log is rotated by the very files under `env/` while clients are at work, and no line is lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::load::{Lines, Load, Unanswered};
use crate::support::janitor::Janitor;
use crate::support::replica::Scratch;
use crate::support::world::World;

const CLIENTS: usize = 4;
const ROTATIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(30);

fn of_env(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("env").join(file)
}

/// Where logrotate is, if it is installed; Debian keeps it where not every user looks.
fn logrotate() -> Option<&'static str> {
    let runs = |program: &&str| std::process::Command::new(program).arg("--version").output().is_ok();
    ["logrotate", "/usr/sbin/logrotate"].into_iter().find(runs)
}

/// Replaces what must be there.
fn replaced(text: &str, what: &str, by: &str) -> String {
    assert!(text.contains(what), "{what:?} is not in {text}");
    text.replace(what, by)
}

/// The configuration for a log elsewhere, of whoever runs the test, and for a replica that systemd knows nothing of.
fn configuration(directory: &Path, process: i32) -> String {
    let text = fs::read_to_string(of_env("balance.logrotate")).unwrap();
    let text = replaced(&text, "/var/log/balance/", &format!("{}/", directory.display()));
    let whom = match nix::unistd::geteuid().is_root() {
        true => "    su root root\n",
        false => "",
    };
    let text = replaced(&text, "    su balance balance\n", whom);
    let reload = "if systemctl is-active --quiet balance.service; then systemctl reload balance.service; fi";
    replaced(&text, reload, &format!("kill -HUP {process}"))
}

/// Waits until the replica has a log again under its name.
async fn opened_anew(log: &Path) {
    let there = timeout(PATIENCE, async {
        while !log.exists() {
            sleep(Duration::from_millis(2)).await;
        }
    });
    there.await.expect("the replica opens its log anew");
}

/// The log and what was rotated, by name, but for the mark that goes away by itself.
fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let is_log = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("operations.log") && name != "operations.log.recovering"
    };
    let mut files: Vec<_> = entries.filter(is_log).collect();
    files.sort();
    files
}

/// All lines of all files, compressed ones included; none of them can be read by anybody else.
fn lines_of(directory: &Path) -> Vec<Value> {
    let mut lines = Vec::new();
    for path in files_of(directory) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{}", path.display());
        let text = if path.extension().is_some_and(|extension| extension == "gz") {
            let unpacked = std::process::Command::new("gzip")
                .arg("-dc")
                .arg(&path)
                .output()
                .unwrap();
            assert!(unpacked.status.success(), "{unpacked:?}");
            unpacked.stdout
        } else {
            fs::read(&path).unwrap()
        };
        assert!(text.is_empty() || text.ends_with(b"\n"), "torn: {}", path.display());
        let parse = |line: &str| serde_json::from_str(line).unwrap();
        lines.extend(
            std::str::from_utf8(&text)
                .unwrap()
                .lines()
                .map(parse)
                .collect::<Vec<Value>>(),
        );
    }
    lines
}

fn compressed(files: &[PathBuf]) -> usize {
    files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .count()
}

#[tokio::test]
async fn logrotate_with_the_file_under_env_loses_no_line() {
    let Some(logrotate) = logrotate() else {
        println!("logrotate is not installed: nothing was tested");
        return;
    };
    let scratch = Scratch::new();
    let log = scratch.0.join("operations.log");
    let world = World::with(|options| options.log(&log)).await;
    let (file, state) = (scratch.0.join("balance.logrotate"), scratch.0.join("state"));
    fs::write(&file, configuration(&scratch.0, world.replica.process_id())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let run = async |force: &[&str]| -> Output {
        let mut command = Command::new(logrotate);
        command.args(force).arg("--state").arg(&state).arg(&file);
        command.output().await.unwrap()
    };
    let load = Load::start(&world.client, CLIENTS, Unanswered::Repeat);
    for _ in 0..ROTATIONS {
        load.answered(40).await;
        let rotated = run(&["--force"]).await;
        assert!(rotated.status.success() && rotated.stderr.is_empty(), "{rotated:?}");
        opened_anew(&log).await;
    }
    load.answered(40).await;
    let files = files_of(&scratch.0);
    assert_eq!(files.len(), 1 + ROTATIONS, "{files:?}");
    // All but the log itself and the one rotated last.
    assert_eq!(compressed(&files), ROTATIONS - 1, "{files:?}");
    assert!(scratch.0.join("operations.log.1").exists(), "{files:?}");
    let sql = world.database.client().await;
    load.finish(&sql, || lines_of(&scratch.0), Lines::Whole).await;
    world.replica.stop().await;
}

#[tokio::test]
async fn the_script_that_rotates_on_kubernetes_loses_no_line() {
    let scratch = Scratch::new();
    let log = scratch.0.join("operations.log");
    // Under a name of its own, so that the script finds no other test's replica.
    let program = scratch.0.join("balance");
    if fs::hard_link(env!("CARGO_BIN_EXE_balance"), &program).is_err() {
        fs::copy(env!("CARGO_BIN_EXE_balance"), &program).unwrap();
    }
    let world = World::with(|options| options.log(&log).program(&program)).await;
    let mut script = Command::new("/bin/sh")
        .arg(of_env("kubernetes_statefulset/rotate.sh"))
        .env("OPERATIONS_LOG", &log)
        .env("PROGRAM", &program)
        .env("ROTATE_SECONDS", "0.2")
        .env("KEEP_DAYS", "1")
        .kill_on_drop(true)
        .process_group(Janitor::get().group())
        .spawn()
        .unwrap();
    let load = Load::start(&world.client, CLIENTS, Unanswered::Repeat);
    let rotated = timeout(PATIENCE, async {
        while compressed(&files_of(&scratch.0)) < 2 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    rotated.await.expect("three rotations");
    let process = nix::unistd::Pid::from_raw(i32::try_from(script.id().unwrap()).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(timeout(PATIENCE, script.wait()).await.unwrap().unwrap().success());
    opened_anew(&log).await;
    load.answered(40).await;
    let sql = world.database.client().await;
    load.finish(&sql, || lines_of(&scratch.0), Lines::Whole).await;
    world.replica.stop().await;
}
