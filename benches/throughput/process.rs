//! Child processes that never outlive the benchmark, and the servers among them.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::Outcome;
use crate::client::Client;

/// How long a server may take to be ready, and to stop.
const START_BOUND: Duration = Duration::from_secs(20);
const STOP_BOUND: Duration = Duration::from_secs(20);
/// The pause between two questions whether it is ready.
const READY_PAUSE: Duration = Duration::from_millis(10);

/// A command whose process ends with this one, `kill -9` included, and that gets nothing of this one's environment. It is
/// in a process group of its own: Ctrl-C reaches the benchmark alone, which then ends its children.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .process_group(0);
    tie_to_parent(&mut command);
    command
}

#[cfg(target_os = "linux")]
#[allow(
    unsafe_code,
    reason = "the parent-death signal can be set only between fork and exec"
)]
fn tie_to_parent(command: &mut Command) {
    // The signal comes when the thread that forked ends. All children are started by the main thread: the benchmark's
    // runtime has no other.
    let parent = nix::unistd::getpid();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // A parent that died before the line above sends no signal any more.
        if nix::unistd::getppid() != parent {
            return Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: two system calls and no allocation, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Elsewhere children are killed when their handles are dropped.
#[cfg(not(target_os = "linux"))]
fn tie_to_parent(_: &mut Command) {}

/// A program in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// A running server; killed when dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts a server that takes `LISTEN` from its environment, and waits until it is ready. What it says goes to `said`.
    ///
    /// # Errors
    ///
    /// If it cannot be started or is not ready in time.
    pub async fn start(mut command: Command, said: &Path) -> Outcome<Self> {
        // Free a moment ago. Nobody else on this machine is likely to take it within a moment.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let output = File::options().create(true).append(true).open(said)?;
        command
            .env("LISTEN", address.to_string())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut server = Self {
            address,
            child: command.spawn()?,
        };
        let deadline = Instant::now() + START_BOUND;
        while !server.is_ready().await {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("a server ended ({status}); what it said is in {}", said.display()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("a server is not ready; what it said is in {}", said.display()).into());
            }
            sleep(READY_PAUSE).await;
        }
        Ok(server)
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut client) = Client::connect(self.address).await else {
            return false;
        };
        client.get("/readyz").await.is_ok_and(|answer| answer.status == 200)
    }

    /// The most memory that was resident since the start, in bytes; `None` where the operating system does not tell.
    pub fn peak_memory(&self) -> Option<u64> {
        self.memory("VmHWM:")
    }

    /// What `/proc` says of the memory under this name, in bytes.
    pub fn memory(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = peak.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1_024)
    }

    /// Its process id; `None` once it has ended.
    pub fn process_id(&self) -> Option<i32> {
        i32::try_from(self.child.id()?).ok()
    }

    /// Stops it in order, so that its last lines are written.
    ///
    /// # Errors
    ///
    /// If it ends badly or not in time.
    pub async fn stop(mut self) -> Outcome<()> {
        if let Some(id) = self.process_id() {
            kill(Pid::from_raw(id), Signal::SIGTERM)?;
        }
        let status = timeout(STOP_BOUND, self.child.wait())
            .await
            .map_err(|_| "a server does not stop")??;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a server ended badly ({status})").into())
        }
    }
}
