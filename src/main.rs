//! The program `balance`; see the library for all it does.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use balance::commands::Cli;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How long threads may go on when the command has ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::from_environment() {
        Ok(cli) => cli,
        Err(error) if error.is_broken_pipe() => return error.exit_code(),
        Err(error) => return fail(&error, error.exit_code()),
    };
    if let Err(error) = cli.log_format().and_then(balance::telemetry::install) {
        return fail(&error, ExitCode::FAILURE);
    }
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, ExitCode::FAILURE),
    };
    let ended = runtime.block_on(cli.run());
    // What matters has ended; a call to a file system that is away may not have.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match ended {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => error.exit_code(),
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// Every connection takes a file descriptor, and many systems start programs with a limit far below what they allow.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}

fn fail(error: &dyn std::error::Error, code: ExitCode) -> ExitCode {
    // Whoever cannot read standard error cannot be told.
    let _ = writeln!(std::io::stderr(), "balance: {error}");
    code
}
