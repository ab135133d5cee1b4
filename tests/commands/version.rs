//! `--version` tells the commit, and the build script finds it wherever it can be known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{run, text};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    text(&output.stdout).trim_end().to_owned()
}

#[track_caller]
fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=Test", "-c", "user.email=test@example.org"])
        .args(["-c", "safe.directory=*", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(directory);
    done(&mut command)
}

/// The build script, compiled as cargo does.
struct BuildScript {
    program: PathBuf,
    /// Outside of any repository.
    directory: tempfile::TempDir,
}

impl BuildScript {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("build");
        let mut compiler = Command::new("rustc");
        compiler
            .env("CARGO_PKG_VERSION", "1.2.3")
            .args(["--edition", "2024", "-o"])
            .arg(&program);
        done(compiler.arg(Path::new(ROOT).join("src/build.rs")));
        Self { program, directory }
    }

    fn run(&self, directory: &Path, variable: Option<&str>) -> Output {
        let mut command = Command::new(&self.program);
        command.current_dir(directory).env_remove("BALANCE_COMMIT");
        if let Some(variable) = variable {
            command.env("BALANCE_COMMIT", variable);
        }
        command.output().unwrap()
    }

    /// Commit, version and the files that it wants to be run again for, of which each but the script must exist: cargo takes
    /// one that does not for changed, always.
    #[track_caller]
    fn tells(&self, directory: &Path, variable: Option<&str>) -> (String, String, Vec<PathBuf>) {
        let output = self.run(directory, variable);
        assert!(output.status.success(), "{output:?}");
        let told = text(&output.stdout);
        let after = |mark: &str| {
            let mut found = told.lines().filter_map(|line| line.strip_prefix(mark));
            found.next().unwrap_or_else(|| panic!("{mark}: {told}")).to_owned()
        };
        let watched = told
            .lines()
            .filter_map(|line| line.strip_prefix("cargo:rerun-if-changed="))
            .filter(|path| *path != "src/build.rs")
            .map(|path| directory.join(path));
        let watched: Vec<PathBuf> = watched.collect();
        assert!(watched.iter().all(|path| path.exists()), "{watched:?}");
        (
            after("cargo:rustc-env=BALANCE_COMMIT="),
            after("cargo:rustc-env=BALANCE_VERSION="),
            watched,
        )
    }
}

/// When each was changed last, as cargo sees it: of a directory, the latest of what is in it.
fn changed(watched: &[PathBuf]) -> Vec<std::time::SystemTime> {
    let modified = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    watched.iter().map(modified).collect()
}

#[test]
fn version_tells_the_package_and_the_commit() {
    let package = env!("CARGO_PKG_VERSION");
    // As it was when all of this was compiled.
    let given = option_env!("BALANCE_COMMIT").filter(|commit| *commit != "unknown");
    let expected = match given {
        Some(commit) => format!(
            "balance {package} ({})\n",
            format!("{commit} {}", env!("BALANCE_DATE")).trim_end()
        ),
        None => format!("balance {package}\n"),
    };
    for flag in ["--version", "-V"] {
        let output = run(&[flag], &[]);
        assert_eq!(
            (text(&output.stdout), text(&output.stderr)),
            (expected.clone(), String::new())
        );
    }
    if Path::new(ROOT).join(".git").exists() && std::env::var_os("BALANCE_COMMIT").is_none() {
        let head = git(Path::new(ROOT), &["rev-parse", "HEAD"]);
        assert_eq!(given, Some(&head[..12]));
        let date = git(Path::new(ROOT), &["show", "--no-patch", "--format=%cs", "HEAD"]);
        assert_eq!(env!("BALANCE_DATE"), date);
    }
}

#[test]
fn the_commit_is_found_in_clones_worktrees_and_the_variable_and_told_unknown_elsewhere() {
    let script = BuildScript::new();
    let scratch = script.directory.path();
    let clone = scratch.join("clone");
    fs::create_dir(&clone).unwrap();
    // A source archive.
    assert_eq!(
        script.tells(&clone, None),
        ("unknown".to_owned(), "1.2.3".to_owned(), vec![])
    );
    assert_eq!(script.tells(&clone, Some("")).0, "unknown");

    git(&clone, &["init", "--quiet"]);
    // No commit yet.
    assert_eq!(script.tells(&clone, None).0, "unknown");
    let commit = || {
        git(&clone, &["commit", "--quiet", "--allow-empty", "--message", "one more"]);
        git(&clone, &["rev-parse", "HEAD"])[..12].to_owned()
    };
    let first = commit();
    let today = git(&clone, &["show", "--no-patch", "--format=%cs"]);
    let (told, version, watched) = script.tells(&clone, None);
    assert_eq!(
        (told.as_str(), version),
        (first.as_str(), format!("1.2.3 ({first} {today})"))
    );
    let before = changed(&watched);
    let second = commit();
    assert_ne!(changed(&watched), before, "the next commit is seen: {watched:?}");
    assert_eq!(script.tells(&clone, None).0, second);

    // The branch is in one file with all others, until the next commit.
    git(&clone, &["pack-refs", "--all"]);
    let (told, _, watched) = script.tells(&clone, None);
    assert_eq!(told, second);
    let before = changed(&watched);
    let third = commit();
    assert_ne!(changed(&watched), before, "the next commit is seen: {watched:?}");

    let worktree = scratch.join("worktree");
    git(
        &clone,
        &[
            "worktree",
            "add",
            "--quiet",
            "-b",
            "other",
            worktree.to_str().unwrap(),
            &second,
        ],
    );
    let (told, _, watched) = script.tells(&worktree, None);
    assert_eq!(told, second);
    let before = changed(&watched);
    git(&worktree, &["checkout", "--quiet", "--detach", &third]);
    assert_ne!(changed(&watched), before, "a checkout is seen: {watched:?}");
    assert_eq!(script.tells(&worktree, None).0, third);

    // Another project's repository around an archive is not ours.
    let within = clone.join("within");
    fs::create_dir(&within).unwrap();
    assert_eq!(script.tells(&within, None).0, "unknown");

    // The variable wins.
    let named = "0123456789ABCDEF0123456789abcdef01234567";
    assert_eq!(script.tells(&clone, Some(named)).1, "1.2.3 (0123456789ab)");
    for wrong in ["main", "0123456", "0123456789ag"] {
        let output = script.run(&clone, Some(wrong));
        assert!(
            !output.status.success() && text(&output.stderr).contains("BALANCE_COMMIT: "),
            "{output:?}"
        );
    }
}
