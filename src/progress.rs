//! How far something has come: on a terminal one line that is rewritten, elsewhere a line now and then.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The columns of a terminal that does not tell how many it has.
const COLUMNS: usize = 80;

/// The line, on standard output or standard error.
pub(crate) struct ProgressLine<O> {
    output: O,
    terminal: bool,
    interval: Duration,
    shown: Instant,
    /// Whether the terminal's line is in use.
    in_use: bool,
}

impl<O: Write + IsTerminal + AsFd> ProgressLine<O> {
    /// A line that is shown at most once in this time; the first one only after it.
    pub(crate) fn new(output: O, on_terminal: Duration, elsewhere: Duration) -> Self {
        // A dumb one cannot erase.
        let terminal = output.is_terminal() && std::env::var_os("TERM").is_none_or(|name| name != "dumb");
        Self {
            output,
            terminal,
            interval: if terminal { on_terminal } else { elsewhere },
            shown: Instant::now(),
            in_use: false,
        }
    }

    /// Whether it is time for another line.
    pub(crate) fn is_due(&self) -> bool {
        self.shown.elapsed() >= self.interval
    }

    /// Shows the first of these that fits the terminal, or as much of the last as fits.
    pub(crate) fn show(&mut self, longest_first: &[String]) {
        self.shown = Instant::now();
        let room = self.room();
        let fitting = longest_first.iter().find(|line| line.chars().count() <= room);
        let Some(line) = fitting.or(longest_first.last()) else {
            return;
        };
        let line: String = line.chars().take(room).collect();
        // Whoever does not see progress is not told of it. The cursor goes back, so that a line of the log overwrites this
        // one and does not follow it.
        let _ = match self.terminal {
            true => write!(self.output, "\r\x1b[K{line}\r"),
            false => writeln!(self.output, "{line}"),
        };
        let _ = self.output.flush();
        self.in_use = self.terminal;
    }

    /// Gives the terminal's line free.
    pub(crate) fn clear(&mut self) {
        if self.in_use {
            let _ = write!(self.output, "\r\x1b[K").and_then(|()| self.output.flush());
            self.in_use = false;
        }
    }

    /// How many characters a line may have: one less than the terminal has columns, since the last makes some wrap.
    fn room(&self) -> usize {
        if !self.terminal {
            return usize::MAX;
        }
        let columns = terminal_size::terminal_size_of(&self.output).map(|(columns, _)| usize::from(columns.0));
        columns.filter(|columns| *columns > 1).unwrap_or(COLUMNS) - 1
    }
}
