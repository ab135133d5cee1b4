//! Lists of tokens, as an operator would write them: the digests come from `sha256sum`, not from the service.

use std::io::Write;
use std::process::{Command, Stdio};

/// The line of a list for this token.
pub fn line(name: &str, token: &str, scopes: &str) -> String {
    format!("{name}  {}  {scopes}\n", sha256(token))
}

/// As `printf %s "$TOKEN" | sha256sum` prints it.
pub fn sha256(token: &str) -> String {
    let mut program = Command::new("sha256sum");
    let mut running = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    printed.split_whitespace().next().unwrap().to_owned()
}
