//! Tells the compiler which commit is built: `BALANCE_COMMIT`, its first 12 digits or `unknown`, `BALANCE_DATE`, its day or
//! nothing, and `BALANCE_VERSION`, what `--version` says.
//!
//! The commit is that of the variable `BALANCE_COMMIT`, as builds of images and packages set it, or else the one that is
//! checked out. A source archive has neither. Changes that are not committed do not show: to see them, every build would
//! have to look at every file.

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "BALANCE_COMMIT";

/// How many digits of the commit are told.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-changed=src/build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let package = env!("CARGO_PKG_VERSION");
    let (commit, date) = match given() {
        // Its day is not known.
        Some(commit) => (Some(commit), None),
        None => checked_out().unzip(),
    };
    let date = date.flatten().unwrap_or_default();
    let version = match &commit {
        Some(commit) => format!("{package} ({})", format!("{commit} {date}").trim_end()),
        None => package.to_owned(),
    };
    println!("cargo:rustc-env={VARIABLE}={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo:rustc-env=BALANCE_DATE={date}");
    println!("cargo:rustc-env=BALANCE_VERSION={version}");
}

/// The commit that the builder names; empty is the same as not set, as Docker passes what it has no value for.
fn given() -> Option<String> {
    let commit = std::env::var_os(VARIABLE).filter(|commit| !commit.is_empty())?;
    let shortened = commit.to_str().and_then(shortened);
    assert!(
        shortened.is_some(),
        "{VARIABLE}: {commit:?} is not allowed; give the hash of a commit, at least {DIGITS} digits"
    );
    shortened
}

/// The commit that is checked out here and its day. A repository further up is another project's.
fn checked_out() -> Option<(String, Option<String>)> {
    if !Path::new(".git").exists() {
        return None;
    }
    // A path that does not exist would make every build run this again, and with it compile the crate.
    for name in ["HEAD", "packed-refs"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    if let Some(path) =
        git(&["symbolic-ref", "--quiet", "HEAD"]).and_then(|name| git(&["rev-parse", "--git-path", &name]))
    {
        // A branch that is only in packed-refs gets a file with its next commit: its directory is looked at until then.
        let existing = Path::new(&path).ancestors().find(|path| path.exists());
        println!(
            "cargo:rerun-if-changed={}",
            existing.unwrap_or(Path::new(".git")).display()
        );
    }
    let commit = shortened(&git(&["rev-parse", "--verify", "--quiet", "HEAD"])?)?;
    let date = git(&["show", "--no-patch", "--format=%cI", "HEAD"]);
    Some((commit, date.and_then(|date| date.get(..10).map(str::to_owned))))
}

/// What git prints, without the line break; nothing where it is not installed or does not know.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        // Whoever builds runs this repository's code anyway, be it another user's directory, as one mounted into a container.
        .args(["-c", "safe.directory=*"])
        .args(arguments)
        // Set in hooks of git, for the repository of the hook.
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim_end().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}

fn shortened(commit: &str) -> Option<String> {
    let is_hash = commit.len() >= DIGITS && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hash.then(|| commit[..DIGITS].to_ascii_lowercase())
}
