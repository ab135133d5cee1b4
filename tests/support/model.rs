//! An independent model of the ledger: a list of operations, sorted and summed. It shares no code with the service, is as
//! slow as it is simple, and counts in 128 bits so that nothing can overflow unnoticed.

use std::fmt::Write;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

/// A moment, in microseconds since 1970.
pub type Micros = i64;

/// Reads a moment as the service writes it.
pub fn micros(text: &str) -> Micros {
    let moment = OffsetDateTime::parse(text, &Rfc3339).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).unwrap()
}

/// Writes a moment for the service.
pub fn rfc3339(micros: Micros) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000).unwrap();
    moment.format(&Rfc3339).unwrap()
}

/// A row of `changes_history`.
#[derive(Clone, Debug)]
pub struct Stored {
    pub seq: i64,
    pub timestamp: Micros,
    pub change: i64,
    pub balance_after: i64,
    pub context: String,
    pub operation_id: String,
    pub key: Option<String>,
    pub approved: bool,
    /// The replica that stored it.
    pub instance: String,
    /// Whose token it was asked for with.
    pub caller: Option<String>,
}

/// All that is stored of one user.
#[derive(Clone, Debug, Default)]
pub struct StoredUser {
    /// In order of acceptance.
    pub history: Vec<Stored>,
    /// balance, version, latest, `since_checkpoint`.
    pub row: Option<(i64, i64, Micros, i32)>,
    /// timestamp, balance, lowest, highest; in order of timestamps.
    pub checkpoints: Vec<(Micros, i64, i64, i64)>,
    pub recorded: Recorded,
}

/// When what is stored of a user was stored, by PostgreSQL's clock.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The operations, in order of acceptance.
    pub history: Vec<Micros>,
    /// The row of `balance`: its last operations.
    pub row: Option<Micros>,
    /// The bounds that checkpoints keep, in order of timestamps: none of the segment's operations was earlier than the first,
    /// if there is one, or later than the second; none up to the checkpoint was later than the third.
    pub checkpoints: Vec<(Option<Micros>, Micros, Micros)>,
}

/// The ids of all users of whom anything is stored.
pub async fn users_stored(sql: &Client) -> Vec<String> {
    let ids = "SELECT user_id FROM balance UNION SELECT user_id FROM changes_history \
         UNION SELECT user_id FROM balance_checkpoints ORDER BY 1";
    let rows = sql.query(ids, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

impl StoredUser {
    pub async fn read(sql: &Client, user_id: &str) -> Self {
        const MICROS: &str = "(extract(epoch FROM MOMENT) * 1000000)::bigint";
        let of = |column: &str| MICROS.replace("MOMENT", column);
        let timestamp = of("\"timestamp\"");
        let history = format!(
            "SELECT seq, {timestamp}, balance_change, balance_after, context, operation_id::text, idempotency_key, \
             approved, instance, caller, {} FROM changes_history WHERE user_id = $1 ORDER BY seq",
            of("recorded_at")
        );
        let history = sql.query(&history, &[&user_id]).await.unwrap();
        let row = format!(
            "SELECT balance, version, {}, since_checkpoint, {} FROM balance WHERE user_id = $1",
            of("latest"),
            of("recorded_at")
        );
        let row = sql.query_opt(&row, &[&user_id]).await.unwrap();
        let checkpoints = format!(
            "SELECT {timestamp}, balance, lowest, highest, {}, {}, {} FROM balance_checkpoints WHERE user_id = $1 \
             ORDER BY 1",
            of("nullif(recorded_from, '-infinity')"),
            of("recorded_until"),
            of("all_recorded_until")
        );
        let checkpoints = sql.query(&checkpoints, &[&user_id]).await.unwrap();
        let recorded = Recorded {
            history: history.iter().map(|row| row.get(10)).collect(),
            row: row.as_ref().map(|row| row.get(4)),
            checkpoints: checkpoints
                .iter()
                .map(|row| (row.get(4), row.get(5), row.get(6)))
                .collect(),
        };
        Self {
            recorded,
            history: history
                .iter()
                .map(|row| Stored {
                    seq: row.get(0),
                    timestamp: row.get(1),
                    change: row.get(2),
                    balance_after: row.get(3),
                    context: row.get(4),
                    operation_id: row.get(5),
                    key: row.get(6),
                    approved: row.get(7),
                    instance: row.get(8),
                    caller: row.get(9),
                })
                .collect(),
            row: row.map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))),
            checkpoints: checkpoints
                .iter()
                .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
                .collect(),
        }
    }

    /// Replays the history from empty and compares all that is stored with the model. `each` sees the model before the
    /// first operation and after every one.
    pub fn verify(&self, mut each: impl FnMut(i64, &Model)) {
        let mut model = Model::default();
        each(0, &model);
        for (expected, stored) in (1..).zip(&self.history) {
            assert_eq!(stored.seq, expected, "the versions have a gap: {stored:?}");
            let refused = model.first_negative(stored.timestamp, stored.change);
            assert_eq!(refused, None, "a moment is negative: {stored:?}");
            model.insert(stored.timestamp, stored.change);
            assert_eq!(
                model.balance_at(stored.timestamp),
                i128::from(stored.balance_after),
                "{stored:?}"
            );
            assert_eq!(stored.approved, stored.change.unsigned_abs() > 100_000, "{stored:?}");
            each(stored.seq, &model);
        }
        self.verify_derived(&model);
        self.verify_recorded();
    }

    /// The moments of recording, and the bounds that are kept of them.
    fn verify_recorded(&self) {
        let Recorded {
            history,
            row,
            checkpoints,
        } = &self.recorded;
        assert_eq!(history.len(), self.history.len());
        assert!(history.is_sorted(), "{history:?}");
        assert_eq!(*row, history.last().copied());
        let mut after = Micros::MIN;
        for ((until, ..), bounds) in self.checkpoints.iter().zip(checkpoints) {
            let (earliest, latest, latest_of_all) = *bounds;
            let operations = self.history.iter().zip(history);
            for (stored, recorded) in operations.filter(|(stored, _)| stored.timestamp <= *until) {
                assert!(*recorded <= latest_of_all, "{bounds:?} {stored:?}");
                if stored.timestamp > after {
                    assert!(*recorded <= latest, "{bounds:?} {stored:?}");
                    assert!(
                        earliest.is_none_or(|earliest| earliest <= *recorded),
                        "{bounds:?} {stored:?}"
                    );
                }
            }
            after = *until;
        }
    }

    /// The row of `balance` and the checkpoints, which are derived from the history.
    fn verify_derived(&self, model: &Model) {
        let Some(latest) = model.operations.last().map(|(timestamp, _)| *timestamp) else {
            assert!(self.row.is_none() && self.checkpoints.is_empty());
            return;
        };
        let (balance, version, stored_latest, since_checkpoint) = self.row.expect("a user with a history has a row");
        assert_eq!(i128::from(balance), model.balance_at(latest));
        assert_eq!(usize::try_from(version).unwrap(), self.history.len());
        assert_eq!(stored_latest, latest);
        let mut after = Micros::MIN;
        for checkpoint in &self.checkpoints {
            let (until, balance, lowest, highest) = *checkpoint;
            let segment = model.operations.iter().map(|(timestamp, _)| *timestamp);
            let balances: Vec<i128> = segment
                .filter(|timestamp| (after + 1..=until).contains(timestamp))
                .map(|timestamp| model.balance_at(timestamp))
                .collect();
            assert_eq!(i128::from(balance), model.balance_at(until), "{checkpoint:?}");
            assert_eq!(Some(&i128::from(lowest)), balances.iter().min(), "{checkpoint:?}");
            assert_eq!(Some(&i128::from(highest)), balances.iter().max(), "{checkpoint:?}");
            after = until;
        }
        let later = model.operations.iter().filter(|(timestamp, _)| *timestamp > after);
        assert_eq!(usize::try_from(since_checkpoint).unwrap(), later.count());
    }
}

/// Operations in the order of their timestamps; equal ones in order of acceptance.
#[derive(Clone, Default)]
pub struct Model {
    operations: Vec<(Micros, i64)>,
}

impl Model {
    pub fn insert(&mut self, timestamp: Micros, change: i64) {
        let place = self.operations.partition_point(|(earlier, _)| *earlier <= timestamp);
        self.operations.insert(place, (timestamp, change));
    }

    pub fn balance_at(&self, timestamp: Micros) -> i128 {
        let until = self.operations.iter().take_while(|(earlier, _)| *earlier <= timestamp);
        until.map(|(_, change)| i128::from(*change)).sum()
    }

    /// The lowest balance at a moment and all later ones.
    pub fn available_at(&self, timestamp: Micros) -> i128 {
        let later = self
            .operations
            .iter()
            .map(|(own, _)| *own)
            .filter(|own| *own > timestamp);
        let balances = later.chain([timestamp]).map(|moment| self.balance_at(moment));
        balances.min().expect("there is one for the moment itself")
    }

    /// The first moment that would be negative with this operation, and by how much.
    pub fn first_negative(&self, timestamp: Micros, change: i64) -> Option<(Micros, i128)> {
        let mut with = self.clone();
        with.insert(timestamp, change);
        let mut balance = 0;
        for (index, (moment, change)) in with.operations.iter().enumerate() {
            balance += i128::from(*change);
            let is_last_of_moment = with.operations.get(index + 1).is_none_or(|(next, _)| next != moment);
            if is_last_of_moment && *moment >= timestamp && balance < 0 {
                return Some((*moment, -balance));
            }
        }
        None
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `from` to `to`, both included.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        let width = u64::try_from(to - from).unwrap() + 1;
        from + i64::try_from(self.next() % width).unwrap()
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// Two bags must hold the same, whatever the order; says which texts are on one side only.
#[track_caller]
pub fn assert_same(what: &str, mut left: Vec<String>, mut right: Vec<String>) {
    left.sort();
    right.sort();
    if left == right {
        return;
    }
    let mut report = String::new();
    for text in left.iter().chain(&right) {
        let counts = [&left, &right].map(|side| side.iter().filter(|other| *other == text).count());
        if counts[0] != counts[1] && !report.contains(text.as_str()) {
            writeln!(report, "{} against {}: {text}", counts[0], counts[1]).unwrap();
        }
    }
    panic!("{what} differ:\n{report}");
}
