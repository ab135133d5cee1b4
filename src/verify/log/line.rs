//! One line, held against the contract by itself.

use std::borrow::Cow;

use serde::Deserialize;
use uuid::Uuid;

use super::super::finding::Violation;
use crate::domain::{CallerName, Context, Timestamp, UserId};
use crate::store::StoredMoment;

/// How every line begins.
const BEGINNING: &[u8] = b"{\"at\":\"";

/// Whether text that is no line is the beginning of one. A crash in mid-write leaves it at the end of the file, and the
/// next start closes it with a line break. Of the blanks that try out whether lines can be written, blanks are left.
pub(super) fn is_torn(bytes: &[u8]) -> bool {
    let begins_as_a_line = bytes.starts_with(BEGINNING) || BEGINNING.starts_with(bytes);
    let lacks_its_end = || serde_json::from_slice::<Line<'_>>(bytes).is_err_and(|error| error.is_eof());
    let are_blanks = || bytes.iter().all(|byte| *byte == b' ');
    !bytes.is_empty() && (begins_as_a_line && lacks_its_end() || are_blanks())
}

/// Outcomes of changes only, beside `accepted`.
pub const CHANGE_OUTCOMES: [&str; 7] = [
    "replayed",
    "approver_denied",
    "insufficient_funds",
    "balance_limit",
    "precondition_failed",
    "idempotency_key_reused",
    "outcome_unknown",
];

/// The outcome of a change that was only tried; it may have the others too, but for those that tell that it was stored.
const TRIED: &str = "would_be_accepted";

/// Outcomes of every operation, beside `accepted`.
pub const COMMON_OUTCOMES: [&str; 6] = [
    "database_unavailable",
    "approver_unavailable",
    "too_many_conflicts",
    "operations_log_unavailable",
    "overloaded",
    "internal_error",
];

/// The fields of the contract, and no others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) instance: Cow<'a, str>,
    pub(super) caller: Option<Cow<'a, str>>,
    #[serde(borrow)]
    operation: Cow<'a, str>,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) user_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) timestamp: Cow<'a, str>,
    operation_id: Option<Uuid>,
    pub(super) balance_change: Option<i64>,
    pub(super) context: Option<Cow<'a, str>>,
    pub(super) balance: Option<i64>,
    available: Option<i64>,
    shortfall: Option<u64>,
    known_at: Option<Cow<'a, str>>,
    dry_run: Option<bool>,
    recovered: Option<bool>,
}

/// What a line says of an operation of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It was accepted.
    Accepted,
    /// It may have been.
    Unknown,
    /// It had been accepted before.
    Replayed,
}

/// What a good line tells of the ledger.
pub(super) struct Told {
    pub(super) says: Says,
    pub(super) id: Uuid,
    pub(super) timestamp: StoredMoment,
}

/// What was expected of a line, and what was found.
fn wrong(expected: &'static str, found: impl Into<String>) -> Violation {
    Violation::Line {
        expected,
        found: found.into(),
    }
}

fn presence(name: &str, is_there: bool) -> String {
    let word = if is_there { "one" } else { "none" };
    format!("{name}: {word}")
}

impl<'a> Line<'a> {
    /// Reads a line.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Violation> {
        const EXPECTED: &str = "a whole line of JSON with the fields of the contract";
        let shown = || {
            let text = String::from_utf8_lossy(bytes);
            text.chars().take(80).collect::<String>()
        };
        serde_json::from_slice(bytes).map_err(|error| wrong(EXPECTED, format!("{:?} ({error})", shown())))
    }

    /// Looks at each field by itself and at which are there; what the line tells of the ledger, if anything.
    pub(super) fn check(&self) -> Result<Option<Told>, Violation> {
        let quoted = |text: &str| format!("{text:?}");
        Timestamp::parse(&self.at).map_err(|_| wrong("at: a moment in RFC 3339", quoted(&self.at)))?;
        let timestamp = Timestamp::parse(&self.timestamp)
            .map_err(|_| wrong("timestamp: a moment in RFC 3339", quoted(&self.timestamp)))?;
        if self.instance.is_empty() {
            return Err(wrong("instance: a name", "none"));
        }
        if self
            .caller
            .as_deref()
            .is_some_and(|caller| CallerName::new(caller).is_err())
        {
            return Err(wrong(
                "caller: 1 to 128 characters without blanks, or none",
                "another text",
            ));
        }
        if UserId::new(self.user_id.as_ref()).is_err() {
            return Err(wrong("userId: 1 to 256 characters", quoted(&self.user_id)));
        }
        let is_change = match self.operation.as_ref() {
            "changeBalance" => true,
            "getBalance" | "getAvailable" | "getHistory" => false,
            other => {
                return Err(wrong(
                    "operation: changeBalance, getBalance, getAvailable or getHistory",
                    quoted(other),
                ));
            }
        };
        let is_tried = self.check_dry_run(is_change)?;
        let outcome = self.outcome.as_ref();
        // What needs the Approver or a commit.
        let is_of_changes_only = matches!(outcome, "approver_denied" | "outcome_unknown");
        let is_known = match is_tried {
            true => outcome == TRIED || CHANGE_OUTCOMES.contains(&outcome) && !is_of_changes_only,
            false => outcome == "accepted" || (is_change && CHANGE_OUTCOMES.contains(&outcome)),
        };
        if !is_known && !COMMON_OUTCOMES.contains(&outcome) {
            return Err(wrong(
                "outcome: accepted, replayed or a code of the operation",
                quoted(outcome),
            ));
        }
        self.check_presence(is_change)?;
        let says = match outcome {
            "accepted" => Says::Accepted,
            "outcome_unknown" => Says::Unknown,
            "replayed" => Says::Replayed,
            _ => return Ok(None),
        };
        Ok(self.operation_id.map(|id| Told {
            says,
            id,
            timestamp: StoredMoment(timestamp.unix_microseconds()),
        }))
    }

    /// Whether the change was only tried.
    fn check_dry_run(&self, is_change: bool) -> Result<bool, Violation> {
        match self.dry_run {
            None => Ok(false),
            Some(true) if is_change => Ok(true),
            Some(value) => Err(wrong("dryRun: true, of a change, or nothing", value.to_string())),
        }
    }

    /// Each field is there where it applies, and nowhere else.
    fn check_presence(&self, is_change: bool) -> Result<(), Violation> {
        let outcome = self.outcome.as_ref();
        let is_done = matches!(outcome, "accepted" | "replayed" | TRIED);
        let has_balance = is_done && !matches!(self.operation.as_ref(), "getAvailable" | "getHistory");
        let has_id = is_change && (is_done || outcome == "outcome_unknown");
        let is_explained = outcome == "insufficient_funds";
        let has_available = is_explained || (is_done && self.operation == "getAvailable");
        for (name, is_there, belongs) in [
            ("balanceChange", self.balance_change.is_some(), is_change),
            ("context", self.context.is_some(), is_change),
            ("operationId", self.operation_id.is_some(), has_id),
            ("balance", self.balance.is_some(), has_balance),
            ("available", self.available.is_some(), has_available),
            ("shortfall", self.shortfall.is_some(), is_explained),
        ] {
            match (is_there, belongs) {
                (false, true) => return Err(wrong("a field that belongs to this outcome", presence(name, is_there))),
                (true, false) => {
                    return Err(wrong(
                        "no field that does not belong to this outcome",
                        presence(name, is_there),
                    ));
                }
                (true, true) | (false, false) => {}
            }
        }
        if self
            .context
            .as_deref()
            .is_some_and(|context| Context::new(context).is_err())
        {
            return Err(wrong("context: at most 4096 characters", "more"));
        }
        let has_known_at = matches!(self.operation.as_ref(), "getBalance" | "getHistory");
        if self
            .known_at
            .as_deref()
            .is_some_and(|known_at| !has_known_at || Timestamp::parse(known_at).is_err())
        {
            return Err(wrong(
                "knownAt: a moment in RFC 3339, of a balance or a history, or nothing",
                "another",
            ));
        }
        match self.recovered {
            None => Ok(()),
            // Found in the history by a later run, or kept while the log failed.
            Some(true) if is_change && matches!(outcome, "accepted" | "outcome_unknown") => Ok(()),
            Some(value) => Err(wrong(
                "recovered: true, of a change that was accepted or may have been, or nothing",
                value.to_string(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = concat!(
        r#"{"at":"2026-01-31T12:00:00.000001Z","instance":"ё\"\u2028","caller":"ё\"","operation":"changeBalance","outcome":"accepted","#,
        r#""userId":"\\🐫","timestamp":"2026-01-31T12:00:00Z","operationId":"00000000-0000-0000-0000-000000000000","#,
        r#""balanceChange":-10,"context":"","balance":1000,"recovered":true}"#
    );

    #[test]
    fn every_part_that_a_crash_can_leave_of_a_line_is_torn() {
        assert!(Line::parse(WHOLE.as_bytes()).is_ok());
        for length in 1..WHOLE.len() {
            let part = &WHOLE.as_bytes()[..length];
            assert!(is_torn(part), "{}", String::from_utf8_lossy(part));
        }
        assert!(is_torn(&[b' '; 32 << 10]));
    }

    #[test]
    fn what_no_crash_leaves_of_a_line_is_not_torn() {
        let no_at = WHOLE.replacen("at", "instance", 1);
        let unknown_field = WHOLE.replacen("context", "colour", 1);
        for text in ["", "x", "\0\0", "{}", " {", "null", &WHOLE[1..], &no_at[..40], &no_at] {
            assert!(!is_torn(text.as_bytes()), "{text}");
        }
        let glued = format!("{}{WHOLE}", &WHOLE[..20]);
        for text in [WHOLE, &glued, &unknown_field[..unknown_field.len() - 1]] {
            assert!(!is_torn(text.as_bytes()), "{text}");
        }
    }
}
