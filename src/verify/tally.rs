//! What was seen and found so far, told to whoever watches.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};

use super::finding::{Finding, Violation};
use crate::store::StoredMoment;

/// Most findings that are told one by one; the others are counted. Lost operations are all told, and do not count here.
pub const MOST_FINDINGS: u64 = 100;

/// Most findings of one kind that are told of one user's rows, so that the others come to be told too: a wrong change
/// makes all that comes after it wrong.
pub const MOST_FINDINGS_OF_A_KIND: u64 = 5;

/// Most findings of one kind that are told of operations logs, but for lost operations.
const MOST_OF_A_KIND_IN_LOGS: u64 = 20;

/// How often progress is told, in operations or lines.
const PROGRESS_EVERY: u64 = 4_096;

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The lines of the operations logs are read.
    Lines,
    /// The stored ledger is checked.
    Ledger,
    /// Lines and operations are compared.
    Comparison,
}

/// How far the check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is under way.
    pub stage: Stage,
    /// Operations checked, lines read, or operations and lines compared.
    pub done: u64,
    /// About how many there are, if that is known.
    pub of: Option<u64>,
}

/// Who is told while the check runs.
pub trait Observer: Send {
    /// Something is wrong.
    fn finding(&mut self, finding: &Finding);
    /// Called often; to be shown as seldom as is good.
    fn progress(&mut self, progress: Progress);
}

/// What was checked, and how much of it is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Users of whom anything is stored.
    pub users: u64,
    /// Operations stored.
    pub operations: u64,
    /// Checkpoints stored.
    pub checkpoints: u64,
    /// Lines of operations logs.
    pub lines: u64,
    /// Lines among them that a crash tore.
    pub torn_lines: u64,
    /// Operations of instances that no line is by.
    pub not_compared: u64,
    /// All that is wrong.
    pub findings: u64,
    /// How much of it was told one by one.
    pub told: u64,
}

pub(super) struct Tally<'a> {
    pub(super) summary: Summary,
    pub(super) progress: Progress,
    /// So many of each kind, of the user or the stage.
    told: HashMap<Discriminant<Violation>, u64>,
    /// Lost operations that were told.
    lost: u64,
    observer: &'a mut dyn Observer,
}

impl<'a> Tally<'a> {
    pub(super) fn new(observer: &'a mut dyn Observer) -> Self {
        Self {
            summary: Summary::default(),
            progress: Progress {
                stage: Stage::Ledger,
                done: 0,
                of: None,
            },
            told: HashMap::new(),
            lost: 0,
            observer,
        }
    }

    pub(super) fn begin(&mut self, stage: Stage, of: Option<u64>) {
        self.progress = Progress { stage, done: 0, of };
        self.told.clear();
        self.observer.progress(self.progress);
    }

    /// One more of what the stage counts.
    pub(super) fn step(&mut self) {
        self.progress.done += 1;
        if self.progress.done.is_multiple_of(PROGRESS_EVERY) {
            self.observer.progress(self.progress);
        }
    }

    pub(super) fn user(&mut self) {
        self.summary.users += 1;
        self.told.clear();
    }

    pub(super) fn operation(&mut self) {
        self.summary.operations += 1;
        self.step();
    }

    pub(super) fn line(&mut self) {
        self.summary.lines += 1;
        self.step();
    }

    pub(super) fn torn_line(&mut self) {
        self.summary.torn_lines += 1;
        self.line();
    }

    pub(super) fn checkpoint(&mut self) {
        self.summary.checkpoints += 1;
    }

    /// Something is wrong with the rows of the user who is checked.
    pub(super) fn found(&mut self, user_id: &str, at: Option<StoredMoment>, violation: Violation) {
        if !self.admits(&violation, MOST_FINDINGS_OF_A_KIND) {
            return;
        }
        self.tell(&Finding {
            user_id: Some(user_id.to_owned()),
            at,
            line: None,
            violation,
        });
    }

    /// Whether a finding about a log is to be told. It is counted in any case.
    pub(super) fn admits_of_log(&mut self, violation: &Violation) -> bool {
        violation.is_lost_operation() || self.admits(violation, MOST_OF_A_KIND_IN_LOGS)
    }

    fn admits(&mut self, violation: &Violation, most: u64) -> bool {
        let told = self.told.entry(discriminant(violation)).or_default();
        let admitted = *told < most && self.summary.told - self.lost < MOST_FINDINGS;
        if admitted {
            *told += 1;
        } else {
            self.summary.findings += 1;
        }
        admitted
    }

    /// Something is wrong, whoever's it is.
    pub(super) fn tell(&mut self, finding: &Finding) {
        self.summary.findings += 1;
        let is_lost = finding.violation.is_lost_operation();
        if is_lost || self.summary.told - self.lost < MOST_FINDINGS {
            self.summary.told += 1;
            self.lost += u64::from(is_lost);
            self.observer.finding(finding);
        }
    }
}
