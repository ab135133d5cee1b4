//! How `dev --demo` shows the demo's progress.

use std::io::Stdout;
use std::time::Duration;

use super::super::say;
use super::banner::{FAINT, LABEL};
use crate::dev::{DemoEvent, DemoProgress};
use crate::progress::ProgressLine;

/// Takes what the demo tells, and shows it on standard output; progress that cannot be shown is dropped.
pub(super) fn display() -> impl FnMut(DemoEvent) + Send {
    let on_terminal = Duration::from_millis(500);
    let mut line: ProgressLine<Stdout> = ProgressLine::new(std::io::stdout(), on_terminal, Duration::from_secs(10));
    move |event| match event {
        DemoEvent::Began { balance } => {
            let _ = say(format_args!(
                "{LABEL}{:<16}{LABEL:#}30 days of history, a balance of {balance}; demo-1 to demo-20 at work",
                "User demo"
            ));
        }
        DemoEvent::Progress(progress) => {
            if line.is_due() {
                line.show(&in_words(&progress));
            }
        }
        DemoEvent::Stopped(progress) => {
            line.clear();
            let [longest, ..] = in_words(&progress);
            let _ = say(format_args!("{FAINT}{longest}{FAINT:#}"));
        }
        DemoEvent::Ended(reason) => {
            line.clear();
            tracing::warn!(reason, "the demo has ended");
        }
    }
}

/// The longest first.
fn in_words(progress: &DemoProgress) -> [String; 3] {
    let DemoProgress {
        operations,
        accepted,
        refused,
        unavailable,
        p50,
        p99,
    } = *progress;
    let [p50, p99] = [p50, p99].map(milliseconds);
    let not_answered = match unavailable {
        0 => String::new(),
        many => format!(", {many} unavailable"),
    };
    [
        format!(
            "Demo: {operations} operations, {accepted} accepted, {refused} refused{not_answered}, p50 {p50} ms, p99 {p99} ms"
        ),
        format!("{operations} ops, {accepted} ok, {refused} refused, p50 {p50}, p99 {p99} ms"),
        format!("{operations} ops {refused} refused {p50}/{p99} ms"),
    ]
}

/// With a digit after the point where that says something.
fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1_000.0;
    if milliseconds < 10.0 {
        format!("{milliseconds:.1}")
    } else {
        format!("{milliseconds:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_the_demo_fits_80_columns_and_40() {
        let progress = DemoProgress {
            operations: 2_592_000,
            accepted: 2_345_678,
            refused: 246_322,
            unavailable: 0,
            p50: Duration::from_micros(4_321),
            p99: Duration::from_millis(1_313),
        };
        let lengths = in_words(&progress).map(|line| line.chars().count());
        assert!(lengths.is_sorted_by(|longer, shorter| longer > shorter), "{lengths:?}");
        assert!(lengths[1] < 80 && lengths[2] < 40, "{lengths:?}");
        assert_eq!(
            in_words(&progress)[0],
            "Demo: 2592000 operations, 2345678 accepted, 246322 refused, p50 4.3 ms, p99 1313 ms"
        );
        let troubled = DemoProgress {
            unavailable: 3,
            ..progress
        };
        assert!(in_words(&troubled)[0].contains("246322 refused, 3 unavailable, p50"));
    }
}
