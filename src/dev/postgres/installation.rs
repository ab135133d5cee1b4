//! Finds PostgreSQL's binaries: installed, in the cache, or in the release archive, which is then got.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::archive::Cache;
use super::error::PostgresError;

/// Where packages put the binaries: a directory, how the names of the versions' directories begin, and what follows.
const PACKAGED: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
];

/// The oldest major version that the service works with.
const OLDEST_MAJOR: u32 = 15;

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
    fn for_test(bin_dir: &str) -> Self {
        let major = bin_dir.trim_start_matches('/').parse().unwrap();
        Self {
            bin_dir: bin_dir.into(),
            version: (major, 0),
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// The error says why `initdb` and `postgres` are not both there or do not run.
    async fn in_directory(bin_dir: PathBuf) -> Result<Self, String> {
        if !bin_dir.join("initdb").is_file() {
            return Err("it has no initdb".to_owned());
        }
        let version = Command::new(bin_dir.join("postgres"))
            .arg("--version")
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(VERSION_BOUND, version)
            .await
            .map_err(|_| format!("no answer within {} s", VERSION_BOUND.as_secs()))?
            .map_err(|error| error.to_string())?;
        match parse_version(&String::from_utf8_lossy(&output.stdout)) {
            Some(version) => Ok(Self { bin_dir, version }),
            // The dynamic linker names the library that is missing.
            None => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ")),
        }
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
    /// Where the release archive is kept, if it may be got.
    pub(super) cache: Option<Cache>,
}

impl SearchPlaces {
    pub(super) fn from_environment() -> Self {
        Self {
            only: env::var_os("POSTGRES_BIN")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            path: env::var_os("PATH").unwrap_or_default(),
            packaged: &PACKAGED,
            cache: Cache::from_environment(),
        }
    }

    /// The installations on this machine: the installed ones, then those of the cache, each the newest first.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NotInDirectory`] if `POSTGRES_BIN` is wrong; [`PostgresError::NotInstalled`] if there is none, and
    /// none can be got either.
    pub(super) async fn installations(&self) -> Result<Vec<Installation>, PostgresError> {
        let mut found = Self::newest_first(self.directories()).await;
        match (&self.only, &self.cache) {
            (Some(directory), _) if found.is_empty() => {
                return Err(PostgresError::NotInDirectory {
                    directory: directory.clone(),
                });
            }
            (None, None) if found.is_empty() => return Err(PostgresError::NotInstalled),
            (None, Some(cache)) if cache.is_trusted() => {
                let cached = subdirectories(&cache.directory, "postgresql-", "bin").collect();
                found.extend(Self::newest_first(cached).await);
            }
            _ => {}
        }
        Ok(found)
    }

    async fn newest_first(directories: Vec<PathBuf>) -> Vec<Installation> {
        let mut found = Vec::new();
        for directory in directories {
            found.extend(Installation::in_directory(directory).await);
        }
        found.retain(|installation| installation.major() >= OLDEST_MAJOR);
        // Stable: of the same version, the one in PATH comes first.
        found.sort_by_key(|installation| std::cmp::Reverse(installation.version));
        found
    }

    /// The first of these that can work with data of that major version, or with none yet; else the release archive, if
    /// that can.
    ///
    /// # Errors
    ///
    /// [`PostgresError::VersionMismatch`] if neither can; [`PostgresError::DoesNotRun`] if the archive is not for this
    /// system; those of [`Cache::obtain`].
    pub(super) async fn choose(
        &self,
        found: &[Installation],
        data: Option<&str>,
        cluster: &Path,
    ) -> Result<Installation, PostgresError> {
        let fits = |major: &str| data.is_none_or(|data| data == major);
        if let Some(fitting) = found.iter().find(|found| fits(&found.major().to_string())) {
            return Ok(fitting.clone());
        }
        match (&self.cache, data) {
            (Some(cache), _) if self.only.is_none() && fits(cache.archive.major()) => {
                let directory = cache.obtain().await?.join("bin");
                Installation::in_directory(directory.clone())
                    .await
                    .map_err(|reason| PostgresError::DoesNotRun { directory, reason })
            }
            (_, Some(data)) => Err(PostgresError::VersionMismatch {
                cluster: cluster.to_owned(),
                data: data.to_owned(),
                installed: match found.iter().map(Installation::major).max() {
                    Some(newest) => format!("PostgreSQL {newest}"),
                    None => "none".to_owned(),
                },
            }),
            (_, None) => Err(PostgresError::NotInstalled),
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
        let places = self.packaged.iter();
        let packaged =
            places.flat_map(|(directory, prefix, below)| subdirectories(Path::new(directory), prefix, below));
        let mut directories = Vec::new();
        for directory in in_path.chain(packaged) {
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        directories
    }
}

/// The directories `<directory>/<prefix>…/<below>`.
fn subdirectories(directory: &Path, prefix: &str, below: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .filter_map(move |entry| fs::canonicalize(entry.path().join(below)).ok())
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
    use std::os::unix::fs::PermissionsExt;

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
    async fn the_first_binaries_are_taken_unless_the_data_is_of_another_version() {
        // One that is installed comes before a newer one of the cache.
        let found = ["/17", "/15", "/18"].map(Installation::for_test);
        let places = SearchPlaces::default();
        let taken = async |data| places.choose(&found, data, Path::new("/data/postgres")).await;
        assert_eq!(taken(None).await.unwrap().bin_dir, Path::new("/17"));
        assert_eq!(taken(Some("18")).await.unwrap().bin_dir, Path::new("/18"));
        assert_eq!(taken(Some("15")).await.unwrap().bin_dir, Path::new("/15"));
        let message = taken(Some("16")).await.unwrap_err().to_string();
        assert!(
            message.contains("is of PostgreSQL 16 and PostgreSQL 18 is installed"),
            "{message}"
        );
        assert!(
            message.contains("/data/postgres") && !message.contains('\n'),
            "{message}"
        );
    }

    /// A directory with stand-ins for the programs of this version.
    fn programs(bin_dir: &Path, version: &str) {
        fs::create_dir_all(bin_dir).unwrap();
        for name in ["initdb", "postgres"] {
            let program = bin_dir.join(name);
            fs::write(&program, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[tokio::test]
    async fn an_installation_that_is_too_old_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        for (version, counted) in [("14.20", 0), ("15.0", 1)] {
            programs(directory.path(), version);
            let places = SearchPlaces {
                path: directory.path().into(),
                cache: Cache::from_environment().map(|cache| Cache {
                    directory: directory.path().join("cache"),
                    ..cache
                }),
                ..SearchPlaces::default()
            };
            assert_eq!(places.installations().await.unwrap().len(), counted, "{version}");
        }
    }

    #[tokio::test]
    async fn root_runs_nothing_of_a_cache_that_others_can_write_to() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        programs(&cache.join("postgresql-18.6.0-any/bin"), "18.6");
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
        let places = SearchPlaces {
            cache: Cache::from_environment().map(|own| Cache {
                directory: cache.clone(),
                ..own
            }),
            ..SearchPlaces::default()
        };
        let found = places.installations().await.unwrap().len();
        assert_eq!(found, usize::from(!super::super::account::is_root()));
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(places.installations().await.unwrap().len(), 1);
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
