//! Decides from the evidence of a run whether the promises of the contract were kept. It is written against the contract
//! and shares no code with the service.
//!
//! - `answers`: every answer has the form of one, comes in time, and is one of those that the operation has.
//! - `changes`: every change answered 200 is stored once, every one refused is not, any other at most once.
//! - `approvals`: no big change without an approval of its own, asked for while it was under way.
//! - `order`: the versions of each user have no gap, no moment is negative at any of them, what was answered before
//!   another operation began comes first, and every answer is true of one of the versions of its time.
//! - `derived`: the row of `balance` and the checkpoints follow from the history.
//! - `lines`: every answer and every stored change has its one line in the logs, every other line is of a request whose
//!   answer did not arrive, and what it says is as true.

mod answers;
mod approvals;
mod changes;
mod derived;
mod lines;
mod matching;
mod order;
#[cfg(test)]
mod planted;
mod timeline;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::evidence::Evidence;
use crate::model::Micros;

/// How far the clocks of clients and replicas may be apart, in microseconds. It is one clock, but a program may wait for
/// its turn between a look at it and what it does then.
const CLOCKS_APART: Micros = 1_000_000;

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A change answered 200 is not stored.
    LostChange,
    /// A change is stored, or was answered as new, more than once.
    DoubledChange,
    /// A change is stored that was refused, or answered as one that changed nothing.
    RefusedYetStored,
    /// A change is stored that nobody asked for, or with other fields.
    ForgedChange,
    /// A big change is stored that the Approver has not approved, or the Approver's denial was made up.
    Unapproved,
    /// An answer does not agree with what is stored, or is none that the operation has.
    WrongAnswer,
    /// An answer came later than any may.
    Late,
    /// A change with a key has no final answer in the end.
    Unsettled,
    VersionGap,
    /// A moment is negative at some version.
    NegativeMoment,
    /// `balance_after`, the row of `balance` or a checkpoint does not follow from the history.
    WrongStored,
    /// A change that was answered before another one began comes after it.
    OutOfOrder,
    /// A read is true of no version of its time.
    StaleRead,
    /// A refusal is true of no version of its time.
    UnexplainedRefusal,
    MissingLine,
    /// A line is nobody's: its request has one already, or was never sent.
    DoubledLine,
    /// A line says what is not stored, or not what was asked.
    ForgedLine,
    /// More lines are torn than replicas were killed, or a line lacks a field, says when in another form, or is marked as
    /// recovered though it is of nothing that can be.
    UnreadableLine,
}

/// One broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    pub user: String,
    pub explanation: String,
}

impl Violation {
    fn new(kind: Kind, user: &str, explanation: impl Into<String>) -> Self {
        Self {
            kind,
            user: user.to_owned(),
            explanation: explanation.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} of {:?}: {}", self.kind, self.user, self.explanation)
    }
}

/// All promises that were broken.
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = answers::check(evidence);
    violations.extend(changes::check(evidence));
    violations.extend(approvals::check(evidence));
    violations.extend(derived::check(evidence));
    let (of_lines, unheard) = lines::check(evidence);
    violations.extend(of_lines);
    violations.extend(order::check(evidence, &unheard));
    violations
}

/// Reads a moment as the service writes it, if it is one.
pub fn moment(value: &Value) -> Option<Micros> {
    let moment = OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).ok()
}

/// How many there are of each kind, and the shortest explanations.
pub fn summary(violations: &[Violation]) -> String {
    let mut kinds = BTreeMap::new();
    for violation in violations {
        *kinds.entry(violation.kind).or_insert(0) += 1;
    }
    let mut shortest: Vec<String> = violations.iter().map(ToString::to_string).collect();
    shortest.sort_by_key(String::len);
    shortest.truncate(8);
    format!("{kinds:?}\n{}", shortest.join("\n"))
}
