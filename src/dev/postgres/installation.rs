//! Finds the installed PostgreSQL binaries. It never installs or downloads any.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::error::PostgresError;

/// Where packages put the binaries: a directory, how the names of the versions' directories begin, and what follows.
const PACKAGED: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
];

/// How long `postgres --version` may take before the binary counts as one that does not run.
const VERSION_BOUND: Duration = Duration::from_secs(10);

/// A directory with `initdb` and `postgres` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installation {
    pub(super) bin_dir: PathBuf,
    /// Major and minor, so that the newest can be told.
    version: (u32, u32),
}

impl Installation {
    pub(super) fn major(&self) -> u32 {
        self.version.0
    }

    /// One of the major version that the directory is named after.
    #[cfg(test)]
    pub(super) fn for_test(bin_dir: &str) -> Self {
        let major = bin_dir.trim_start_matches('/').parse().unwrap();
        Self {
            bin_dir: bin_dir.into(),
            version: (major, 0),
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// `None` unless both binaries are there and run.
    async fn in_directory(bin_dir: PathBuf) -> Option<Self> {
        if !bin_dir.join("initdb").is_file() {
            return None;
        }
        let version = Command::new(bin_dir.join("postgres"))
            .arg("--version")
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(VERSION_BOUND, version).await.ok()?.ok()?;
        let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { bin_dir, version })
    }
}

/// Where binaries are looked for.
#[derive(Default)]
pub(super) struct SearchPlaces {
    /// `POSTGRES_BIN`: if given, nothing else counts.
    pub(super) only: Option<PathBuf>,
    /// `PATH`.
    pub(super) path: OsString,
    /// See [`PACKAGED`].
    pub(super) packaged: &'static [(&'static str, &'static str, &'static str)],
}

impl SearchPlaces {
    pub(super) fn from_environment() -> Self {
        Self {
            only: env::var_os("POSTGRES_BIN")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            path: env::var_os("PATH").unwrap_or_default(),
            packaged: &PACKAGED,
        }
    }

    /// Every installation there is, the newest first.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NotInstalled`] or [`PostgresError::NotInDirectory`] if there is none.
    pub(super) async fn installations(&self) -> Result<Vec<Installation>, PostgresError> {
        let mut found = Vec::new();
        for directory in self.directories() {
            found.extend(Installation::in_directory(directory).await);
        }
        // Stable: of the same version, the one in PATH comes first.
        found.sort_by_key(|installation| std::cmp::Reverse(installation.version));
        match (&self.only, found.is_empty()) {
            (_, false) => Ok(found),
            (Some(directory), true) => Err(PostgresError::NotInDirectory {
                directory: directory.clone(),
            }),
            (None, true) => Err(PostgresError::NotInstalled),
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        if let Some(only) = &self.only {
            // Absolute, since the binaries run in another working directory.
            return std::path::absolute(only).into_iter().collect();
        }
        let in_path = env::split_paths(&self.path)
            // Distributions link single programs into a directory of PATH; the others of the version are beside the target.
            .filter_map(|directory| fs::canonicalize(directory.join("postgres")).ok())
            .filter_map(|program| program.parent().map(Path::to_owned));
        let packaged = self.packaged.iter().flat_map(|(directory, prefix, below)| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries
                .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .filter_map(move |entry| fs::canonicalize(entry.path().join(below)).ok())
        });
        let mut directories = Vec::new();
        for directory in in_path.chain(packaged) {
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        directories
    }
}

/// Reads `postgres (PostgreSQL) 15.4 (Debian 15.4-1)` or `… 17beta1`, as (15, 4) or (17, 0).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split("(PostgreSQL)").nth(1)?.split_whitespace().next()?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    // Of a beta, what follows the letters is not a minor version: any release is newer.
    let released = version.contains('.');
    let minor = numbers.next().filter(|_| released).and_then(|minor| minor.parse().ok());
    Some((major, minor.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.4 (Debian 15.4-1.pgdg120+1)\n", Some((15, 4))),
            ("postgres (PostgreSQL) 18.0\n", Some((18, 0))),
            ("postgres (PostgreSQL) 17beta1\n", Some((17, 0))),
            ("bash: postgres: not found", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }

    #[tokio::test]
    async fn without_postgresql_one_line_says_what_to_install() {
        let places = SearchPlaces::default();
        let error = places.installations().await.unwrap_err();
        assert!(matches!(error, PostgresError::NotInstalled));
        let message = error.to_string();
        assert!(message.contains("apt-get install postgresql") && message.contains("brew install postgresql"));
        assert!(!message.contains('\n'));
    }

    #[tokio::test]
    async fn postgres_bin_overrides_every_other_place() {
        let places = SearchPlaces {
            only: Some(PathBuf::from("/nowhere")),
            ..SearchPlaces::from_environment()
        };
        let error = places.installations().await.unwrap_err().to_string();
        assert!(
            error.starts_with("POSTGRES_BIN") && error.contains("/nowhere"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_postgres_in_path_without_initdb_beside_it_does_not_count() {
        let directory = env::temp_dir().join(format!("balance-installation-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("postgres"), "").unwrap();
        let places = SearchPlaces {
            path: directory.clone().into(),
            ..SearchPlaces::default()
        };
        let outcome = places.installations().await;
        fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(outcome, Err(PostgresError::NotInstalled)));
    }
}
