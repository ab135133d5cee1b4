//! What the contract says of a schedule that has been run. It shares no code with the ledger: a history is replayed as a
//! sorted list that is summed, in 128 bits.

use std::collections::HashMap;

use serde_json::Value;

use super::schedule::Course;
use super::*;
use crate::domain::Refusal;
use crate::store::fake::{StoredOperation, StoredUser};

/// How much later than its deadline an operation may be answered, by the README.
const GRACE: Duration = Duration::from_secs(2);

/// Operations in order of their timestamps.
#[derive(Clone, Default)]
struct Model(Vec<(Timestamp, i64)>);

impl Model {
    fn insert(&mut self, timestamp: Timestamp, change: i64) {
        let place = self.0.partition_point(|(earlier, _)| *earlier <= timestamp);
        self.0.insert(place, (timestamp, change));
    }

    fn balance_at(&self, timestamp: Timestamp) -> i128 {
        let until = self.0.iter().take_while(|(earlier, _)| *earlier <= timestamp);
        until.map(|(_, change)| i128::from(*change)).sum()
    }

    /// The lowest balance at a moment and all later ones.
    fn available_at(&self, timestamp: Timestamp) -> i64 {
        let later = self.0.iter().map(|(own, _)| *own).filter(|own| *own > timestamp);
        let lowest = later.chain([timestamp]).map(|moment| self.balance_at(moment)).min();
        i64::try_from(lowest.unwrap()).unwrap()
    }

    /// Why the rule forbids a change, if it does.
    fn refusal(&self, operation: &Operation) -> Option<Refusal> {
        let mut with = self.clone();
        with.insert(operation.timestamp, operation.balance_change);
        let later = with.0.iter().map(|(timestamp, _)| *timestamp);
        later.filter(|at| *at >= operation.timestamp).find_map(|at| {
            let balance = with.balance_at(at);
            if balance < 0 {
                let shortfall = u64::try_from(-balance).unwrap();
                let available = self.available_at(operation.timestamp);
                Some(Refusal::InsufficientFunds {
                    at,
                    shortfall,
                    available,
                })
            } else {
                (balance > i128::from(i64::MAX)).then_some(Refusal::BalanceLimit { at })
            }
        })
    }
}

/// A user's history, replayed.
struct Replayed {
    history: Vec<StoredOperation>,
    /// At every version, from 0 on.
    models: Vec<Model>,
}

impl Replayed {
    /// Replays what is stored, and checks that it is a valid history and that the head is its sum.
    fn new(user: StoredUser) -> Self {
        let mut models = vec![Model::default()];
        let mut keys = HashMap::new();
        for (seq, row) in (1..).zip(&user.history) {
            let operation = &row.operation;
            let mut model = models.last().unwrap().clone();
            assert_eq!(row.seq, seq, "the versions have a gap");
            assert_eq!(model.refusal(operation), None, "stored against the rule: {row:?}");
            model.insert(operation.timestamp, operation.balance_change);
            assert_eq!(
                model.balance_at(operation.timestamp),
                i128::from(row.balance_after),
                "{row:?}"
            );
            if let Some(key) = &row.key {
                assert_eq!(keys.insert(key, seq), None, "a key is stored twice");
            }
            models.push(model);
        }
        let latest = user.history.iter().map(|row| row.operation.timestamp).max();
        let balance = models.last().unwrap().balance_at(Timestamp::MAX);
        let head = (user.head.version, i128::from(user.head.balance), user.head.latest);
        assert_eq!(head, (user.history.len() as i64, balance, latest));
        Self {
            history: user.history,
            models,
        }
    }

    fn stored(&self, id: OperationId) -> Option<&StoredOperation> {
        let mut rows = self.history.iter().filter(|row| row.operation.id == id);
        let row = rows.next();
        assert!(rows.next().is_none(), "stored twice: {row:?}");
        row
    }

    fn of_key(&self, key: &IdempotencyKey) -> Option<&StoredOperation> {
        self.history.iter().find(|row| row.key.as_deref() == Some(key.as_str()))
    }
}

/// The version after a stored operation.
fn version(row: &StoredOperation) -> usize {
    usize::try_from(row.seq).unwrap()
}

fn is_same(one: &Operation, other: &Operation) -> bool {
    (one.timestamp, one.balance_change, &one.context) == (other.timestamp, other.balance_change, &other.context)
}

/// Everybody is served when the trouble is over.
pub(super) fn all_is_well_again(last: &[Exchange]) {
    for exchange in last {
        assert!(matches!(exchange.answer, Given::Change(Ok(_))), "{:?}", exchange.answer);
    }
}

pub(super) fn all(schedule: &Schedule, store: &FakeStore, replicas: &[Replica], exchanges: &[Exchange]) {
    let users: HashMap<_, _> = schedule
        .users
        .iter()
        .map(|user_id| (user_id, Replayed::new(store.user(user_id))))
        .collect();
    for exchange in exchanges {
        let late = exchange.ended.saturating_duration_since(exchange.deadline);
        // Timers count in milliseconds.
        assert!(
            late <= GRACE + Duration::from_millis(2),
            "{late:?} after the deadline: {exchange:?}"
        );
        let user = &users[exchange.ask.user_id()];
        match (&exchange.ask.what, exchange.answer) {
            (What::Change(proposal), Given::Change(answer) | Given::Foreseen(answer)) => {
                change(user, proposal, answer, exchange);
            }
            (What::Change(proposal), _) => assert!(user.stored(proposal.operation.id).is_none()),
            (What::Read { figure, at, .. }, Given::Read(Ok(reading))) => {
                let version = usize::try_from(reading.version).unwrap();
                assert!(
                    (exchange.begin..=exchange.end).contains(&version),
                    "not the version: {exchange:?}"
                );
                let model = &user.models[version];
                let amount = match figure {
                    Figure::Balance => model.balance_at(*at),
                    Figure::Available => model.available_at(*at).into(),
                };
                assert_eq!(amount, i128::from(reading.amount), "never so: {exchange:?}");
            }
            (What::Read { .. }, _) => {}
        }
        if schedule.course == Course::Healthy {
            assert_eq!(unavailable(exchange.answer), None, "without need: {exchange:?}");
        }
    }
    for (number, replica) in replicas.iter().enumerate() {
        let exchanges = exchanges.iter().filter(|exchange| exchange.ask.replica == number);
        lines(&replica.disk.text(false), exchanges, &users);
    }
}

fn unavailable(given: Given) -> Option<&'static str> {
    match given {
        Given::Change(Err(error @ (ChangeError::Unavailable(_) | ChangeError::OutcomeUnknown)))
        | Given::Foreseen(Err(error @ (ChangeError::Unavailable(_) | ChangeError::OutcomeUnknown))) => {
            Some(error.code())
        }
        Given::Read(Err(unavailable)) | Given::Refused(unavailable) => Some(unavailable.code()),
        _ => None,
    }
}

/// An answer to a change is true of what is stored, at some version between asking and answering.
fn change(user: &Replayed, proposal: &Proposal, answer: Answer, exchange: &Exchange) {
    let Proposal {
        operation,
        idempotency_key: key,
        precondition,
        ..
    } = proposal;
    let may_be_judged_at = |version: usize| match precondition {
        None => true,
        Some(Precondition::AnyStored) => version != 0,
        Some(Precondition::OneOf(versions)) => versions.iter().any(|one| usize::try_from(*one) == Ok(version)),
    };
    let own = user.stored(operation.id);
    let of_key = key.as_ref().and_then(|key| user.of_key(key));
    let known_before = of_key.is_some_and(|row| version(row) <= exchange.begin);
    match answer {
        Ok(recorded) if recorded.replayed => {
            let first = of_key.expect("what is replayed is stored");
            assert!(own.is_none(), "applied again: {exchange:?}");
            assert_eq!(
                (recorded.id, recorded.balance, recorded.version),
                (first.operation.id, first.balance_after, first.seq)
            );
            assert!(
                is_same(operation, &first.operation) && version(first) <= exchange.end,
                "{exchange:?}"
            );
        }
        Ok(recorded) => {
            let own = own.unwrap_or_else(|| panic!("accepted and not stored: {exchange:?}"));
            assert_eq!(
                (recorded.id, recorded.balance, recorded.version),
                (operation.id, own.balance_after, own.seq)
            );
            assert!(
                may_be_judged_at(version(own) - 1),
                "against its condition: {exchange:?}"
            );
            assert!(is_same(operation, &own.operation) && own.key.as_deref() == key.as_ref().map(|key| key.as_str()));
            let while_asked = exchange.begin < version(own) && version(own) <= exchange.end;
            assert!(while_asked, "out of real-time order: {exchange:?}");
        }
        Err(ChangeError::OutcomeUnknown) => {}
        Err(ChangeError::Refused(refusal)) => {
            let seen = exchange.begin..=exchange.end;
            let is_true = |at: usize| {
                let key_is_free = of_key.is_none_or(|row| version(row) > at);
                key_is_free && may_be_judged_at(at) && user.models[at].refusal(operation) == Some(refusal)
            };
            assert!(
                own.is_none() && seen.into_iter().any(is_true),
                "refused without reason: {exchange:?}"
            );
        }
        Err(ChangeError::PreconditionFailed { version: said }) => {
            let said = usize::try_from(said).unwrap();
            let key_is_free = of_key.is_none_or(|row| version(row) > said);
            assert!(
                own.is_none() && (exchange.begin..=exchange.end).contains(&said) && key_is_free,
                "another version: {exchange:?}"
            );
            assert!(!may_be_judged_at(said), "its condition holds: {exchange:?}");
        }
        Err(ChangeError::IdempotencyKeyReused) => {
            let first = of_key.expect("a key that is reused is stored");
            assert!(own.is_none() && version(first) <= exchange.end && !is_same(operation, &first.operation));
        }
        Err(ChangeError::Unavailable(_)) => assert!(own.is_none(), "said not to be stored: {exchange:?}"),
        Err(ChangeError::ApproverDenied) => panic!("nobody was asked"),
    }
    let is_replay = matches!(answer, Ok(recorded) if recorded.replayed);
    let may_differ =
        is_replay || unavailable(exchange.answer).is_some() || answer == Err(ChangeError::IdempotencyKeyReused);
    assert!(
        !known_before || may_differ,
        "a repeat got another answer than the first: {exchange:?}"
    );
}

/// Each answered operation has its one line, which says what was answered, and there are no others.
fn lines<'a>(text: &str, exchanges: impl Iterator<Item = &'a Exchange>, users: &HashMap<&UserId, Replayed>) {
    let mut lines: HashMap<String, usize> = HashMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a whole line");
        *lines.entry(told(&line)).or_default() += 1;
    }
    let mut take = |line: &str| match lines.get_mut(line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    for exchange in exchanges {
        let Some(line) = expected(exchange) else {
            continue;
        };
        let has_line = take(&line);
        match (&exchange.ask.what, exchange.answer) {
            (What::Change(proposal), Given::Change(Err(ChangeError::OutcomeUnknown))) if !has_line => {
                // The log failed, and got the line later: of an answer that was not known, or of a change that is stored.
                let operation = &proposal.operation;
                let stored = users[&operation.user_id].stored(operation.id).map(|own| {
                    let recorded = Recorded {
                        id: operation.id,
                        balance: own.balance_after,
                        version: own.seq,
                        replayed: false,
                    };
                    change_line(operation, &Ok(recorded))
                });
                let mut later = [Some(line), stored].into_iter().flatten();
                let has_line = later.any(|line| take(&format!("{line} recovered")));
                assert!(has_line, "no line: {exchange:?}\n{text}");
            }
            _ => assert!(has_line, "no line: {exchange:?}\n{line}\n{text}"),
        }
    }
    lines.retain(|_, count| *count > 0);
    assert!(lines.is_empty(), "lines of nothing that was answered: {lines:?}");
}

/// The line that an answer must have; none where the answer is that there is none.
fn expected(exchange: &Exchange) -> Option<String> {
    match (&exchange.ask.what, exchange.answer) {
        (_, Given::Refused(_) | Given::Foreseen(_)) => None,
        (_, Given::Change(Err(ChangeError::Unavailable(Unavailable::OperationsLog))))
        | (_, Given::Read(Err(Unavailable::OperationsLog))) => None,
        (What::Change(proposal), Given::Change(answer)) => Some(change_line(&proposal.operation, &answer)),
        (What::Read { user_id, figure, at }, Given::Read(read)) => {
            let (outcome, amount) = match read {
                Ok(reading) => ("accepted", reading.amount.to_string()),
                Err(unavailable) => (unavailable.code(), String::new()),
            };
            Some(match figure {
                Figure::Balance => format!("getBalance {outcome} {user_id} {at}    {amount}  "),
                Figure::Available => format!("getAvailable {outcome} {user_id} {at}     {amount} "),
            })
        }
        (What::Change(_), Given::Read(_)) | (What::Read { .. }, Given::Change(_)) => unreachable!("another answer"),
    }
}

fn change_line(operation: &Operation, answer: &Answer) -> String {
    let (outcome, id, balance) = match answer {
        Ok(recorded) => {
            let outcome = if recorded.replayed { "replayed" } else { "accepted" };
            (outcome, recorded.id.to_string(), recorded.balance.to_string())
        }
        Err(error @ ChangeError::OutcomeUnknown) => (error.code(), operation.id.to_string(), String::new()),
        Err(error) => (error.code(), String::new(), String::new()),
    };
    let explained = match answer {
        Err(ChangeError::Refused(Refusal::InsufficientFunds {
            available, shortfall, ..
        })) => format!("{available} {shortfall}"),
        _ => " ".to_owned(),
    };
    let Operation {
        user_id,
        context,
        balance_change,
        timestamp,
        ..
    } = operation;
    let context = context.as_str();
    format!("changeBalance {outcome} {user_id} {timestamp} {id} {balance_change} {context} {balance} {explained}")
}

/// A line of the log in the form that is expected.
fn told(line: &Value) -> String {
    let field = |name: &str| match &line[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let names = [
        "operation",
        "outcome",
        "userId",
        "timestamp",
        "operationId",
        "balanceChange",
        "context",
        "balance",
        "available",
        "shortfall",
    ];
    let recovered = if line["recovered"] == true { " recovered" } else { "" };
    names.map(field).join(" ") + recovered
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            ask,
            begin,
            end,
            answer,
            ..
        } = self;
        write!(f, "{answer:?} between versions {begin} and {end} to {ask:?}")
    }
}
