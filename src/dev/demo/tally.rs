//! How the demo's requests went.

use std::collections::VecDeque;
use std::time::Duration;

use super::client::{Answer, Fate};

/// The latest answers, of which the latencies are kept: those of about half a minute.
const KEPT: usize = 1_000;

/// What has been asked and answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DemoProgress {
    /// All that was asked.
    pub operations: u64,
    /// Answered 200.
    pub accepted: u64,
    /// Answered 4xx, as a part of them must be.
    pub refused: u64,
    /// Answered 5xx, or not at all.
    pub unavailable: u64,
    /// Half of the latest thousand answers took no longer.
    pub p50: Duration,
    /// All but one in a hundred of the latest thousand answers took no longer.
    pub p99: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    counted: DemoProgress,
    latencies: VecDeque<Duration>,
}

impl Tally {
    pub(super) fn add(&mut self, answer: &Answer) {
        self.counted.operations += 1;
        match answer.fate {
            Fate::Accepted => self.counted.accepted += 1,
            Fate::Refused => self.counted.refused += 1,
            Fate::Unavailable(_) => self.counted.unavailable += 1,
        }
        if answer.status.is_some() {
            if self.latencies.len() == KEPT {
                self.latencies.pop_front();
            }
            self.latencies.push_back(answer.took);
        }
    }

    pub(super) fn progress(&self) -> DemoProgress {
        let mut latencies: Vec<Duration> = self.latencies.iter().copied().collect();
        latencies.sort_unstable();
        let at_percent = |percent: usize| {
            // Nearest rank: the smallest that as many of a hundred do not exceed.
            let rank = (latencies.len() * percent).div_ceil(100);
            latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        DemoProgress {
            p50: at_percent(50),
            p99: at_percent(99),
            ..self.counted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest_answers_and_counts_of_all() {
        let mut tally = Tally::default();
        assert_eq!(tally.progress(), DemoProgress::default());
        for (milliseconds, fate) in (1..=1_200).zip([Fate::Accepted, Fate::Refused].into_iter().cycle()) {
            tally.add(&Answer {
                fate,
                status: Some(reqwest::StatusCode::OK),
                body: serde_json::Value::Null,
                took: Duration::from_millis(milliseconds),
            });
        }
        tally.add(&Answer {
            fate: Fate::Unavailable(Duration::ZERO),
            status: None,
            body: serde_json::Value::Null,
            took: Duration::from_secs(10),
        });
        let expected = DemoProgress {
            operations: 1_201,
            accepted: 600,
            refused: 600,
            unavailable: 1,
            p50: Duration::from_millis(700),
            p99: Duration::from_millis(1_190),
        };
        assert_eq!(tally.progress(), expected);
    }
}
