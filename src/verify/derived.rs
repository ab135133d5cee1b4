//! What is derived from a user's history, checked against it in one pass along the timeline: the checkpoints and the row of
//! `balance`.

use super::block::Step;
use super::finding::Violation;
use crate::store::{StoredCheckpoint, StoredHead, StoredMoment};

/// A user's timeline as far as it was seen.
#[derive(Default)]
pub(super) struct Derived {
    operations: i64,
    balance: i128,
    latest: Option<StoredMoment>,
    /// Whether the latest moment is not yet in `extremes`, since more of its operations may come.
    open: bool,
    /// The lowest and the highest balance since the last checkpoint.
    extremes: Option<(i128, i128)>,
    since_checkpoint: i64,
    /// When the first and the last of the operations since the last checkpoint were recorded.
    recorded: Option<(StoredMoment, StoredMoment)>,
    /// When the last of all operations was recorded.
    all_recorded_until: Option<StoredMoment>,
    /// The operation accepted last: its number, and when it was recorded.
    newest: Option<(i64, StoredMoment)>,
}

impl Derived {
    /// The next operation on the timeline.
    pub(super) fn operation(&mut self, step: &Step) {
        let timestamp = step.place.timestamp;
        if self.latest != Some(timestamp) {
            self.close_moment();
        }
        self.operations += 1;
        self.since_checkpoint += 1;
        self.balance += i128::from(step.change);
        self.latest = Some(timestamp);
        self.open = true;
        let at = step.recorded_at;
        let (from, until) = self.recorded.unwrap_or((at, at));
        self.recorded = Some((from.min(at), until.max(at)));
        self.all_recorded_until = self.all_recorded_until.max(Some(at));
        self.newest = self.newest.max(Some((step.place.seq, at)));
    }

    fn close_moment(&mut self) {
        if self.open {
            let (lowest, highest) = self.extremes.unwrap_or((self.balance, self.balance));
            self.extremes = Some((lowest.min(self.balance), highest.max(self.balance)));
            self.open = false;
        }
    }

    /// A checkpoint: all operations up to its timestamp have been seen, and no later one.
    pub(super) fn checkpoint(
        &mut self,
        stored: &StoredCheckpoint<'_>,
        found: &mut impl FnMut(StoredMoment, Violation),
    ) {
        if self.latest != Some(stored.timestamp) {
            found(stored.timestamp, Violation::StrayCheckpoint);
            return;
        }
        self.close_moment();
        self.check_recorded(stored, found);
        let (lowest, highest) = self.extremes.take().unwrap_or((self.balance, self.balance));
        self.since_checkpoint = 0;
        for (column, expected, stored_value) in [
            ("balance", self.balance, stored.balance),
            ("lowest", lowest, stored.lowest),
            ("highest", highest, stored.highest),
        ] {
            if expected != i128::from(stored_value) {
                let violation = Violation::Checkpoint {
                    column,
                    expected,
                    found: stored_value,
                };
                found(stored.timestamp, violation);
            }
        }
    }

    /// The bounds need not be the closest.
    fn check_recorded(&mut self, stored: &StoredCheckpoint<'_>, found: &mut impl FnMut(StoredMoment, Violation)) {
        let (Some((from, until)), Some(all_until)) = (self.recorded.take(), self.all_recorded_until) else {
            return;
        };
        for (column, bound, expected, stored_value) in [
            ("recorded_from", "at most", from, stored.recorded_from),
            ("recorded_until", "at least", until, stored.recorded_until),
            ("all_recorded_until", "at least", all_until, stored.all_recorded_until),
        ] {
            let holds = match bound {
                "at most" => stored_value <= expected,
                _ => stored_value >= expected,
            };
            if !holds {
                let violation = Violation::CheckpointRecorded {
                    column,
                    bound,
                    expected,
                    found: stored_value,
                };
                found(stored.timestamp, violation);
            }
        }
    }

    /// The user's row of `balance`, when all has been seen. Where a row or a history is missing, there is no moment to name
    /// but the latest.
    pub(super) fn head(
        &self,
        stored: Option<&StoredHead<'_>>,
        found: &mut impl FnMut(Option<StoredMoment>, Violation),
    ) {
        let (stored, latest) = match (stored, self.latest) {
            (Some(stored), Some(latest)) => (stored, latest),
            (Some(stored), None) => {
                let version = stored.version;
                return found(Some(stored.latest), Violation::NoHistory { version });
            }
            (None, Some(latest)) => {
                let operations = self.operations;
                return found(Some(latest), Violation::NoHead { operations });
            }
            // Checkpoints of somebody unknown, each of which is a stray one.
            (None, None) => return,
        };
        let since_checkpoint = self.since_checkpoint.min(i32::MAX.into());
        for (column, expected, stored_value) in [
            ("balance", self.balance, stored.balance),
            ("version", self.operations.into(), stored.version),
            (
                "since_checkpoint",
                since_checkpoint.into(),
                stored.since_checkpoint.into(),
            ),
        ] {
            if expected != i128::from(stored_value) {
                let violation = Violation::Head {
                    column,
                    expected,
                    found: stored_value,
                };
                found(Some(latest), violation);
            }
        }
        if stored.latest != latest {
            let violation = Violation::Latest {
                expected: latest,
                found: stored.latest,
            };
            found(Some(latest), violation);
        }
        if let Some((_, expected)) = self.newest.filter(|(_, newest)| *newest != stored.recorded_at) {
            let violation = Violation::HeadRecorded {
                expected,
                found: stored.recorded_at,
            };
            found(Some(latest), violation);
        }
    }
}
