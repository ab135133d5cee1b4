//! Every answer and every stored change has its one line, and no line says what was not answered or is not stored. A line
//! that is nobody's is allowed only to a request whose answer did not arrive; what such a line says of a balance is handed
//! on, to be held against the history like an answer.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::matching::pair;
use super::{CLOCKS_APART, Kind, Violation, moment};
use crate::evidence::{Ask, Ended, Evidence, Exchange, Log, Said};
use crate::model::{Micros, Stored};

/// By which the lines of one change, or of one user's reads of one kind, find together.
pub(super) type Subject<'a> = (&'a str, &'a str, &'a str);

/// RFC 3339 in UTC with six digits: all moments of answers are as long.
const AT: &str = "2026-01-31T12:00:00.000000Z";

#[derive(Default)]
struct Matter<'a> {
    exchanges: Vec<&'a Exchange>,
    lines: Vec<Line<'a>>,
}

#[derive(Clone, Copy)]
struct Line<'a> {
    value: &'a Value,
    instance: &'a str,
    /// When it was answered.
    at: Option<Micros>,
    /// The moment that it is about.
    about: Option<Micros>,
}

impl<'a> Line<'a> {
    fn of(log: &'a Log, value: &'a Value) -> Self {
        Self {
            value,
            instance: &log.instance,
            at: moment(&value["at"]),
            about: moment(&value["timestamp"]),
        }
    }

    fn text(self, name: &str) -> &'a str {
        self.value[name].as_str().unwrap_or_default()
    }

    fn outcome(self) -> &'a str {
        self.text("outcome")
    }

    fn caller(self) -> Option<&'a str> {
        self.value["caller"].as_str()
    }

    fn is_recovered(self) -> bool {
        self.value["recovered"] == true
    }

    /// Whether it is the line of a stored change, and not of a repeat.
    fn is_own(self) -> bool {
        matches!(self.outcome(), "accepted" | "outcome_unknown")
    }
}

/// What is wrong, and the answers that only lines tell of.
pub(super) fn check(evidence: &Evidence) -> (Vec<Violation>, Vec<Exchange>) {
    let (mut violations, mut unheard) = (Vec::new(), Vec::new());
    let mut matters: HashMap<Subject<'_>, Matter<'_>> = HashMap::new();
    for exchange in &evidence.exchanges {
        let subject = subject_of(&exchange.ask);
        matters.entry(subject).or_default().exchanges.push(exchange);
    }
    for log in &evidence.logs {
        readable(log, &mut violations);
        for value in log.lines.iter().filter(|value| value.is_object()) {
            let line = Line::of(log, value);
            let subject = (line.text("operation"), line.text("userId"), line.text("context"));
            matters.entry(subject).or_default().lines.push(line);
        }
    }
    let stored = stored_by_id(evidence);
    own_lines(&stored, evidence, &mut violations);
    for ((operation, user, _), matter) in &matters {
        let mut say = |kind, explanation: String| violations.push(Violation::new(kind, user, explanation));
        if *operation == "changeBalance" {
            matter.lines_of_changes_are_true(&stored, &mut say);
        }
        unheard.extend(matter.pair(evidence, &mut say));
    }
    (violations, unheard)
}

pub(super) fn subject_of(ask: &Ask) -> Subject<'_> {
    match ask {
        Ask::Change(change) => ("changeBalance", &change.user, &change.context),
        Ask::Balance { user, .. } => ("getBalance", user, ""),
        Ask::History(page) => ("getHistory", &page.user, ""),
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
        let may_be_late = line["operation"] == "changeBalance"
            && matches!(line["outcome"].as_str(), Some("accepted" | "outcome_unknown"));
        let says_when = line["at"].as_str().is_some_and(|text| text.len() == AT.len()) && moment(&line["at"]).is_some();
        let recovered = &line["recovered"];
        let is_late_or_not = recovered.is_null() || *recovered == true && may_be_late;
        if !complete || !says_when || !is_late_or_not || line["instance"] != *log.instance {
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

/// Each stored change has one line of its own, in the log of the replica that stored it, with the caller who asked for it.
fn own_lines(stored: &HashMap<&str, (&str, &Stored)>, evidence: &Evidence, violations: &mut Vec<Violation>) {
    let mut own: HashMap<&str, Vec<Line<'_>>> = HashMap::new();
    for log in &evidence.logs {
        let lines = log.lines.iter().map(|value| Line::of(log, value));
        for line in lines.filter(|line| line.is_own()) {
            own.entry(line.text("operationId")).or_default().push(line);
        }
    }
    for (id, (user, one)) in stored {
        let (kind, explanation) = match own.get(id).map(Vec::as_slice) {
            None | Some([]) => (Kind::MissingLine, format!("{one:?} has no line")),
            Some([line]) if line.instance == one.instance && line.caller() == one.caller.as_deref() => continue,
            Some([line]) => (
                Kind::ForgedLine,
                format!("{one:?} has its line in the log of {}: {}", line.instance, line.value),
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
            Ask::Balance { .. } | Ask::History(_) => None,
        });
        for line in &self.lines {
            let as_asked = change.is_some_and(|change| {
                line.value["balanceChange"] == change.change && line.about == Some(change.timestamp)
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

    /// Each answer with a line has it, and no line is left over. Returns what the lines tell that no client has heard.
    fn pair(&self, evidence: &Evidence, say: &mut impl FnMut(Kind, String)) -> Vec<Exchange> {
        let (with, without): (Vec<&Exchange>, Vec<&Exchange>) =
            self.exchanges.iter().partition(|one| one.said().is_some_and(is_lined));
        let may_have = without
            .into_iter()
            .filter(|one: &&Exchange| !matches!(one.ended, Ended::NotReached));
        let seekers: Vec<Seeker<'_>> = with
            .iter()
            .map(|exchange| Seeker::of(exchange, evidence))
            .chain(may_have.map(|exchange| Seeker::of(exchange, evidence)))
            .collect();
        let candidates = Candidates::of(&self.lines);
        let fitting: Vec<Vec<usize>> = seekers
            .iter()
            .map(|seeker| {
                let places = candidates.of_moment(seeker).iter();
                places
                    .copied()
                    .filter(|place| seeker.fits(self.lines[*place]))
                    .collect()
            })
            .collect();
        let has = pair(&fitting, self.lines.len());
        for (exchange, _) in with.iter().zip(&has).filter(|(_, has)| has.is_none()) {
            say(Kind::MissingLine, format!("no line for {exchange:?}"));
        }
        let mut nobodys = vec![true; self.lines.len()];
        has.iter().flatten().for_each(|place| nobodys[*place] = false);
        for (line, _) in self.lines.iter().zip(nobodys).filter(|(_, nobodys)| *nobodys) {
            say(Kind::DoubledLine, format!("no request for the line {}", line.value));
        }
        // Which of those that may have a line have it is not known: the first of them may.
        let others = &has[with.len()..];
        let unheard = others.iter().flatten().filter_map(|place| {
            let may_have = seekers[with.len()..].iter().zip(&fitting[with.len()..]);
            let may_have = may_have.filter(|(_, fitting)| fitting.contains(place));
            let first = may_have
                .map(|(seeker, _)| seeker.exchange)
                .min_by_key(|one| one.sent_at)?;
            told(self.lines[*place], first)
        });
        unheard.collect()
    }
}

/// The answer to a read of a balance that this line tells of; it was given to the exchange or one that began later.
fn told(line: Line<'_>, exchange: &Exchange) -> Option<Exchange> {
    let Ask::Balance { user, at } = &exchange.ask else {
        return None;
    };
    if line.outcome() != "accepted" {
        return None;
    }
    let answered = line.at? - exchange.sent_by_clock + CLOCKS_APART;
    Some(Exchange {
        ask: Ask::Balance {
            user: user.clone(),
            at: *at,
        },
        ended_at: exchange.sent_at + Duration::from_micros(u64::try_from(answered).unwrap_or_default()),
        ended: Ended::Answered(Said {
            status: 200,
            code: String::new(),
            replayed: false,
            body: json!({ "userId": user, "timestamp": line.value["timestamp"], "balance": line.value["balance"] }),
        }),
        ..exchange.clone()
    })
}

/// Lines by the moments that they are about, lest each exchange is held against all of them.
struct Candidates {
    all: Vec<usize>,
    by_moment: HashMap<Option<Micros>, Vec<usize>>,
}

impl Candidates {
    fn of(lines: &[Line<'_>]) -> Self {
        let mut by_moment: HashMap<_, Vec<usize>> = HashMap::new();
        for (place, line) in lines.iter().enumerate() {
            by_moment.entry(line.about).or_default().push(place);
        }
        Self {
            all: (0..lines.len()).collect(),
            by_moment,
        }
    }

    fn of_moment(&self, seeker: &Seeker<'_>) -> &[usize] {
        match seeker.about {
            Some(_) => self.by_moment.get(&seeker.about).map_or(&[], Vec::as_slice),
            None => &self.all,
        }
    }
}

/// An exchange that has a line, or may have one.
struct Seeker<'a> {
    exchange: &'a Exchange,
    /// The moment that the line is about, if the client knows it.
    about: Option<Micros>,
    /// On the clock, when it was under way: its answer was given then.
    under_way: (Micros, Micros),
}

impl<'a> Seeker<'a> {
    fn of(exchange: &'a Exchange, evidence: &Evidence) -> Self {
        let about = match &exchange.ask {
            Ask::Change(change) => Some(change.timestamp),
            Ask::Balance { at, .. } => at.or_else(|| moment(&exchange.said()?.body["timestamp"])),
            Ask::History(page) => Some(page.to),
        };
        let took = match exchange.said() {
            Some(_) => exchange.ended_at.saturating_sub(exchange.sent_at),
            // The replica goes on when its client has gone.
            None => evidence.longest_answer + evidence.slept_over(exchange),
        };
        let took = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
        let from = exchange.sent_by_clock;
        Self {
            exchange,
            about,
            under_way: (from - CLOCKS_APART, from + took + CLOCKS_APART),
        }
    }

    fn is_under_way(&self, moment: Option<Micros>) -> bool {
        let (from, to) = self.under_way;
        moment.is_some_and(|moment| (from..=to).contains(&moment))
    }

    fn fits(&self, line: Line<'_>) -> bool {
        let about_it = match self.about {
            Some(about) => line.about == Some(about),
            // As of now, whenever the service took that to be.
            None => self.is_under_way(line.about),
        };
        about_it && (line.is_recovered() || self.is_under_way(line.at)) && self.says_so(line)
    }

    /// Whether the line may say what it does of such an answer.
    fn says_so(&self, line: Line<'_>) -> bool {
        let Some(said) = self.exchange.said() else {
            return true;
        };
        match (said.outcome(), line.outcome()) {
            ("accepted", "accepted") => {
                // No answer before its line.
                !line.is_recovered()
                    && line.value["operationId"] == said.body["operationId"]
                    && line.value["balance"] == said.body["balance"]
            }
            ("replayed", "replayed") => {
                line.value["operationId"] == said.body["operationId"] && line.value["balance"] == said.body["balance"]
            }
            // The change was in the database when its line could not be written; the line came later.
            ("outcome_unknown", "accepted") => line.is_recovered(),
            // Of what was stored that is not said.
            ("operations_log_unavailable", line) => !matches!(
                (&self.exchange.ask, line),
                (Ask::Change(_), "accepted" | "outcome_unknown")
            ),
            (said, line) => said == line,
        }
    }
}

/// While the log cannot be written, that is answered without a line.
fn is_lined(said: &Said) -> bool {
    said.code != "operations_log_unavailable"
}
