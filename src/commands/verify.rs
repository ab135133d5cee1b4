//! `balance verify`: what is wrong goes to standard output, a line each and a summary at the end; how far the check has
//! come goes to standard error.

use std::io::Stderr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{CommandError, OutputError, Shutdown, say};
use crate::config::{ConfigError, VerifyArguments};
use crate::progress::ProgressLine;
use crate::verify::{Bounds, Finding, HELD_OPERATIONS, Observer, Progress, Stage, Summary, VerifyError, verify};

/// Why there is no verdict. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// A value cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The check came to no end.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted before the check came to its end")]
    Interrupted,
    /// Ctrl-C cannot be listened for.
    #[error("{0}")]
    Signals(String),
    /// A finding or the summary is lost.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Checks, and says what the process ends with.
pub(super) async fn run(arguments: &VerifyArguments) -> Result<ExitCode, Unverified> {
    let database = arguments.database.database("balance verify".to_owned())?;
    let bounds = Bounds {
        approval_threshold: arguments.approval_threshold()?,
        held: HELD_OPERATIONS,
    };
    let mut shutdown = Shutdown::listen().map_err(|error: CommandError| Unverified::Signals(error.to_string()))?;
    let began = Instant::now();
    let mut display = Display::new();
    let checking = verify(&database, bounds, &arguments.operations_log, &mut display);
    let ended = tokio::select! {
        summary = checking => summary.map_err(Unverified::from),
        () = shutdown.requested() => Err(Unverified::Interrupted),
    };
    display.line.clear();
    let summary = ended?;
    display.told?;
    if summary.findings > summary.told {
        say(format_args!("and {} more", summary.findings - summary.told))?;
    }
    say(format_args!(
        "{}{}",
        in_words(&summary, began.elapsed()),
        notes(&summary)
    ))?;
    Ok(match summary.findings {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn in_words(summary: &Summary, took: Duration) -> String {
    let verdict = match summary.findings {
        0 => "all is right".to_owned(),
        1 => "1 finding".to_owned(),
        many => format!("{many} findings"),
    };
    let Summary {
        users,
        operations,
        checkpoints,
        lines,
        ..
    } = summary;
    format!(
        "{verdict}: {users} users, {operations} operations, {checkpoints} checkpoints, {lines} lines, in {:.1} s, \
         {:.0} operations per second",
        took.as_secs_f64(),
        per_second(*operations, took),
    )
}

/// What is no finding and should be known.
fn notes(summary: &Summary) -> String {
    let mut notes = match summary.torn_lines {
        0 => String::new(),
        1 => "; 1 torn line, as a crash leaves it".to_owned(),
        many => format!("; {many} torn lines, as crashes leave them"),
    };
    if summary.not_compared > 0 {
        notes += &format!(
            "; {} operations of instances that no line names, not compared with lines",
            summary.not_compared
        );
    }
    notes
}

fn per_second(count: u64, took: Duration) -> f64 {
    // Rounded in any case.
    #[allow(clippy::cast_precision_loss, reason = "a rate is shown without digits")]
    let count = count as f64;
    count / took.as_secs_f64().max(0.001)
}

/// Findings on standard output, progress on standard error.
struct Display {
    line: ProgressLine<Stderr>,
    stage: Option<Stage>,
    stage_began: Instant,
    /// Whether all findings so far were printed.
    told: Result<(), OutputError>,
}

impl Display {
    fn new() -> Self {
        Self {
            line: ProgressLine::new(std::io::stderr(), Duration::from_millis(200), Duration::from_secs(5)),
            stage: None,
            stage_began: Instant::now(),
            told: Ok(()),
        }
    }
}

impl Observer for Display {
    fn finding(&mut self, finding: &Finding) {
        self.line.clear();
        if self.told.is_ok() {
            self.told = say(finding);
        }
    }

    fn progress(&mut self, progress: Progress) {
        if self.stage != Some(progress.stage) {
            self.stage = Some(progress.stage);
            self.stage_began = Instant::now();
            return;
        }
        if !self.line.is_due() {
            return;
        }
        let what = match progress.stage {
            Stage::Lines => "lines read",
            Stage::Ledger => "operations checked",
            Stage::Comparison => "operations and lines compared",
        };
        let of = progress.of.map(|of| format!(" of about {of}")).unwrap_or_default();
        let rate = per_second(progress.done, self.stage_began.elapsed());
        self.line.show(&[format!("{}{of} {what}, {rate:.0}/s", progress.done)]);
    }
}
