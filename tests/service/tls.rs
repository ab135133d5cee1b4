//! TLS to PostgreSQL, to the Approver and to clients: who is not who it should be is refused, and it is said why.

mod approver;
mod clients;
mod database;
mod files;
mod service;

use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use crate::support::replica::Scratch;

/// Writes a file of the test's own, and gives its path as it stands in a variable.
fn file(scratch: &Scratch, name: &str, text: &str) -> String {
    let path = scratch.0.join(name);
    std::fs::write(&path, text).unwrap();
    shown(&path)
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Runs the program to its end, with these variables and no others.
async fn run(command: &str, variables: &[(&str, &str)]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_balance"));
    program.arg(command).env_clear().envs(variables.iter().copied());
    program.kill_on_drop(true).output().await.unwrap()
}

/// Runs a command that must fail, and gives the one line that says why.
async fn refused(command: &str, variables: &[(&str, &str)]) -> String {
    let output = run(command, variables).await;
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    said.lines().last().unwrap_or_default().to_owned()
}
