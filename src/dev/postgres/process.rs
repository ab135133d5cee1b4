//! A direct child that never outlives this process.
//!
//! Linux sends a signal to a child when its parent dies (`PR_SET_PDEATHSIG`), `kill -9` included. "Parent" there means
//! the *thread* that spawned it: a thread of a runtime's pool may end while the process lives on, and would take
//! PostgreSQL along. So each child gets a thread of its own, which spawns it, waits for it and reports its end.
//!
//! On other systems a child is stopped by an orderly end of this process only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use tokio::sync::{oneshot, watch};

/// A child process. Dropping it sends its farewell signal and does not wait.
pub(super) struct DirectChild {
    process: Pid,
    farewell: Signal,
    exit: watch::Receiver<Option<ExitStatus>>,
    /// True until the child is reaped. Only while this is locked and true does the process id surely mean our child.
    unreaped: Arc<Mutex<bool>>,
}

impl DirectChild {
    /// Starts `command` in a process group of its own, so that a Ctrl-C in the terminal reaches this process only, which
    /// then stops its children in the right order.
    ///
    /// The child gets `farewell` when this process dies or the handle is dropped. It keeps `held_open` open, and so do
    /// all its descendants: a lock on that file lasts as long as any of them.
    ///
    /// # Errors
    ///
    /// What `fork`, `setuid`, `chdir` or `exec` said.
    pub(super) async fn spawn(mut command: Command, farewell: Signal, held_open: &File) -> io::Result<Self> {
        let held_open = held_open.as_fd().try_clone_to_owned()?;
        command.process_group(0);
        tie_to_parent(&mut command, farewell, held_open);
        let (started, start) = oneshot::channel();
        thread::Builder::new()
            .name("dev-child".to_owned())
            .spawn(move || run(command, farewell, started))?;
        // The thread answers in every case; were it to panic, there would be no child.
        start.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// The child's process id.
    pub(super) fn process_id(&self) -> i32 {
        self.process.as_raw()
    }

    /// Sends a signal, unless the child has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if *lock(&self.unreaped) {
            // It fails only for a process that is gone, or one that became another user's: neither is ours to signal.
            let _ = kill(self.process, signal);
        }
    }

    /// Waits until the child has ended and is reaped. May be called again, and given up at any time.
    pub(super) async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            Err(_) => ExitStatus::default(),
        }
    }
}

impl Drop for DirectChild {
    fn drop(&mut self) {
        self.signal(self.farewell);
    }
}

/// The life of the child's thread.
fn run(mut command: Command, farewell: Signal, started: oneshot::Sender<io::Result<DirectChild>>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // Nobody waits any more if the start was given up.
            let _ = started.send(Err(error));
            return;
        }
    };
    // The log and the lock are the child's now.
    drop(command);
    let unreaped = Arc::new(Mutex::new(true));
    let (report, exit) = watch::channel(None);
    let handle = DirectChild {
        process: Pid::from_raw(child.id().cast_signed()),
        farewell,
        exit,
        unreaped: Arc::clone(&unreaped),
    };
    // If the start was given up meanwhile, the handle comes back, is dropped here, and says farewell to the child.
    let _ = started.send(Ok(handle));

    wait_without_reaping(&mut child);
    let mut unreaped = lock(&unreaped);
    let status = child.wait().unwrap_or_default();
    *unreaped = false;
    drop(unreaped);
    report.send_replace(Some(status));
}

fn lock(unreaped: &Mutex<bool>) -> MutexGuard<'_, bool> {
    // A panic while it was held leaves a bool as good as any.
    unreaped.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns when the child has ended, while its process id still cannot be given to another process.
#[cfg(target_os = "linux")]
fn wait_without_reaping(child: &mut Child) {
    use nix::errno::Errno;
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let id = Pid::from_raw(child.id().cast_signed());
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(id), flags) == Err(Errno::EINTR) {}
}

/// Elsewhere it is reaped at once (`Child` remembers the status), and a signal sent in the instant until that is noted
/// could reach another process.
#[cfg(not(target_os = "linux"))]
fn wait_without_reaping(child: &mut Child) {
    let _ = child.wait();
}

#[allow(
    unsafe_code,
    reason = "the parent-death signal can be set only between fork and exec"
)]
fn tie_to_parent(command: &mut Command, farewell: Signal, held_open: OwnedFd) {
    let parent = getpid();
    let prepare = move || {
        fcntl(&held_open, FcntlArg::F_SETFD(FdFlag::empty()))?;
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_pdeathsig(farewell)?;
        // A parent that died before the line above sends no signal any more; then another process is the parent now.
        if getppid() != parent {
            return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        Ok(())
    };
    #[cfg(not(target_os = "linux"))]
    let _ = farewell;
    // SAFETY: between fork and exec only async-signal-safe functions may be called. The closure makes three system calls
    // (fcntl, prctl, getppid) and allocates nothing: an error is a number, here and in nix. It runs after setuid, as it
    // must, since a change of user clears the parent-death signal: std calls these closures last, just before exec.
    unsafe {
        command.pre_exec(prepare);
    }
}
