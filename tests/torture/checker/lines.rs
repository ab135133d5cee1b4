//! Every answer and every stored change has its one line, and no line says what was not answered or is not stored.

use std::collections::HashMap;

use serde_json::Value;

use super::{Kind, Violation};
use crate::evidence::{Ask, Evidence, Exchange, Log, Said};
use crate::model::{Micros, Stored, micros};

/// What the lines of one change, or of one user's reads of one kind, are told apart by.
type Subject<'a> = (&'a str, &'a str, &'a str);

#[derive(Default)]
struct Matter<'a> {
    exchanges: Vec<&'a Exchange>,
    lines: Vec<Line<'a>>,
}

#[derive(Clone, Copy)]
struct Line<'a> {
    value: &'a Value,
    instance: &'a str,
}

impl<'a> Line<'a> {
    fn text(self, name: &str) -> &'a str {
        self.value[name].as_str().unwrap_or_default()
    }

    fn outcome(self) -> &'a str {
        self.text("outcome")
    }

    fn moment(self) -> Option<Micros> {
        self.value["timestamp"].as_str().map(micros)
    }

    fn is_recovered(self) -> bool {
        self.value["recovered"] == true
    }

    /// Whether it is the line of a stored change, and not of a repeat.
    fn is_own(self) -> bool {
        matches!(self.outcome(), "accepted" | "outcome_unknown")
    }
}

pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut matters: HashMap<Subject<'_>, Matter<'_>> = HashMap::new();
    for exchange in &evidence.exchanges {
        let subject = subject_of(&exchange.ask);
        matters.entry(subject).or_default().exchanges.push(exchange);
    }
    for log in &evidence.logs {
        readable(log, &mut violations);
        for value in log.lines.iter().filter(|value| value.is_object()) {
            let line = Line {
                value,
                instance: &log.instance,
            };
            let subject = (line.text("operation"), line.text("userId"), line.text("context"));
            matters.entry(subject).or_default().lines.push(line);
        }
    }
    let stored = stored_by_id(evidence);
    own_lines(&stored, evidence, &mut violations);
    for ((operation, user, _), matter) in &matters {
        let mut say = |kind, explanation: String| violations.push(Violation::new(kind, user, explanation));
        match *operation {
            "changeBalance" => {
                matter.lines_of_changes_are_true(&stored, &mut say);
                matter.match_changes(&mut say);
            }
            _ => matter.match_reads(&mut say),
        }
    }
    violations
}

fn subject_of(ask: &Ask) -> Subject<'_> {
    match ask {
        Ask::Change(change) => ("changeBalance", &change.user, &change.context),
        Ask::Balance { user, .. } => ("getBalance", user, ""),
        Ask::History { user, .. } => ("getHistory", user, ""),
    }
}

fn readable(log: &Log, violations: &mut Vec<Violation>) {
    let torn = log.lines.iter().filter(|line| !line.is_object()).count();
    if torn > log.kills {
        let explanation = format!(
            "{torn} torn lines in the log of {}, killed {} times",
            log.instance, log.kills
        );
        violations.push(Violation::new(Kind::UnreadableLine, "", explanation));
    }
    for line in log.lines.iter().filter(|line| line.is_object()) {
        let texts = ["at", "operation", "outcome", "userId"];
        let complete = texts
            .iter()
            .all(|name| line[*name].as_str().is_some_and(|text| !text.is_empty()));
        if !complete || line["instance"] != *log.instance {
            let explanation = format!("in the log of {}: {line}", log.instance);
            violations.push(Violation::new(Kind::UnreadableLine, "", explanation));
        }
    }
}

fn stored_by_id(evidence: &Evidence) -> HashMap<&str, (&str, &Stored)> {
    let rows = evidence.stored.iter().flat_map(|(user, stored)| {
        let name = |one| (user.as_str(), one);
        stored.history.iter().map(name)
    });
    rows.map(|(user, one)| (one.operation_id.as_str(), (user, one)))
        .collect()
}

/// Each stored change has one line of its own, in the log of the replica that stored it.
fn own_lines(stored: &HashMap<&str, (&str, &Stored)>, evidence: &Evidence, violations: &mut Vec<Violation>) {
    let mut own: HashMap<&str, Vec<Line<'_>>> = HashMap::new();
    for log in &evidence.logs {
        let lines = log.lines.iter().map(|value| Line {
            value,
            instance: &log.instance,
        });
        for line in lines.filter(|line| line.is_own()) {
            own.entry(line.text("operationId")).or_default().push(line);
        }
    }
    for (id, (user, one)) in stored {
        let (kind, explanation) = match own.get(id).map(Vec::as_slice) {
            None | Some([]) => (Kind::MissingLine, format!("{one:?} has no line")),
            Some([line]) if line.instance == one.instance => continue,
            Some([line]) => (
                Kind::ForgedLine,
                format!("{one:?} has its line in the log of {}", line.instance),
            ),
            Some([first, second, ..]) => (
                Kind::DoubledLine,
                format!("{one:?} has the lines {} and {}", first.value, second.value),
            ),
        };
        violations.push(Violation::new(kind, user, explanation));
    }
}

impl Matter<'_> {
    /// Lines that name a stored change say what is stored.
    fn lines_of_changes_are_true(&self, stored: &HashMap<&str, (&str, &Stored)>, say: &mut impl FnMut(Kind, String)) {
        let change = self.exchanges.iter().find_map(|exchange| match &exchange.ask {
            Ask::Change(change) => Some(change),
            Ask::Balance { .. } | Ask::History { .. } => None,
        });
        for line in &self.lines {
            let as_asked = change.is_some_and(|change| {
                line.value["balanceChange"] == change.change && line.moment() == Some(change.timestamp)
            });
            let row = stored.get(line.text("operationId"));
            let as_stored = match line.outcome() {
                "accepted" | "replayed" => row.is_some_and(|(user, one)| {
                    line.text("userId") == *user
                        && line.text("context") == one.context
                        && line.value["balance"] == one.balance_after
                }),
                _ => true,
            };
            if !as_asked || !as_stored {
                say(
                    Kind::ForgedLine,
                    format!("{}: asked was {change:?}, stored is {row:?}", line.value),
                );
            }
        }
    }

    /// How many lines there may be beside those of answers: of requests whose answer did not arrive, or was that the log
    /// cannot be written.
    fn others_allowed(&self) -> usize {
        let may_have_one = |exchange: &&&Exchange| exchange.said.as_ref().is_none_or(|said| !is_lined(said));
        self.exchanges.iter().filter(may_have_one).count()
    }

    fn answers(&self) -> impl Iterator<Item = (&Exchange, &Said)> {
        self.exchanges
            .iter()
            .filter_map(|exchange| exchange.said.as_ref().map(|said| (*exchange, said)))
            .filter(|(_, said)| is_lined(said))
    }

    fn match_changes(&self, say: &mut impl FnMut(Kind, String)) {
        let mut rest = self.lines.clone();
        let mut without = Vec::new();
        for (exchange, said) in self.answers() {
            let is_its_line = |line: &Line<'_>| {
                line.outcome() == said.outcome()
                    && (said.status != 200
                        || line.value["operationId"] == said.body["operationId"]
                            && line.value["balance"] == said.body["balance"])
            };
            match rest.iter().position(is_its_line) {
                Some(place) => drop(rest.swap_remove(place)),
                None => without.push((exchange, said)),
            }
        }
        for (exchange, said) in without {
            // The change was in the database when its line could not be written; the line came later.
            let late = |line: &Line<'_>| line.is_recovered() && line.outcome() == "accepted";
            match rest.iter().position(late).filter(|_| said.code == "outcome_unknown") {
                Some(place) => drop(rest.swap_remove(place)),
                None => say(Kind::MissingLine, format!("no line for {exchange:?}")),
            }
        }
        self.no_more_than_allowed(rest.iter().map(|line| line.value.to_string()).collect(), say);
    }

    fn match_reads(&self, say: &mut impl FnMut(Kind, String)) {
        let mut rest: HashMap<(Option<Micros>, &str, Option<i64>), usize> = HashMap::new();
        for line in &self.lines {
            let name = (line.moment(), line.outcome(), line.value["balance"].as_i64());
            *rest.entry(name).or_default() += 1;
        }
        let mut nameless = Vec::new();
        for (exchange, said) in self.answers() {
            let asked = match &exchange.ask {
                Ask::Balance { at, .. } => at.or_else(|| said.body["timestamp"].as_str().map(micros)),
                Ask::History { to, .. } => Some(*to),
                Ask::Change(_) => None,
            };
            let Some(moment) = asked else {
                // A read as of now that failed: which moment the service took for now is not known.
                nameless.push((exchange, said));
                continue;
            };
            let name = (Some(moment), said.outcome(), said.body["balance"].as_i64());
            match rest.get_mut(&name).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => say(Kind::MissingLine, format!("no line for {exchange:?}")),
            }
        }
        for (exchange, said) in nameless {
            let found = rest
                .iter_mut()
                .find(|((_, outcome, _), count)| *outcome == said.outcome() && **count > 0);
            match found {
                Some((_, count)) => *count -= 1,
                None => say(Kind::MissingLine, format!("no line for {exchange:?}")),
            }
        }
        let rest = rest.iter().flat_map(|(name, count)| vec![format!("{name:?}"); *count]);
        self.no_more_than_allowed(rest.collect(), say);
    }

    fn no_more_than_allowed(&self, rest: Vec<String>, say: &mut impl FnMut(Kind, String)) {
        let allowed = self.others_allowed();
        if rest.len() > allowed {
            say(
                Kind::DoubledLine,
                format!("{} more lines than answers, {allowed} may be: {rest:?}", rest.len()),
            );
        }
    }
}

/// While the log cannot be written, that is answered without a line.
fn is_lined(said: &Said) -> bool {
    said.code != "operations_log_unavailable"
}
