//! What the end of a log tells, whatever it looks like.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::operations_log::trail::{Bytes, read_trail_within};

const MARGIN: Duration = Duration::from_secs(10);
/// Where the lines of the tests are in time; later than the files themselves would be an odd log.
const BEGIN: &str = "2026-01-31T12:00:00Z";

struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("balance-trail-{}", Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, addition: &str, bytes: &[u8]) {
        fs::write(self.0.join(format!("operations.log{addition}")), bytes).unwrap();
    }

    fn query(&self, unsettled_since: Option<Timestamp>) -> TrailQuery {
        TrailQuery {
            path: self.0.join("operations.log"),
            is_new: false,
            instance: "ours \"1\"".to_owned(),
            margin: MARGIN,
            unsettled_since,
        }
    }

    fn read(&self) -> Trail {
        match read_trail(&self.query(None)).unwrap() {
            EarlierLog::Trail(trail) => trail,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn second(second: u64) -> Timestamp {
    Timestamp::parse(BEGIN)
        .unwrap()
        .saturating_add(Duration::from_secs(second))
}

/// The id of an operation made in a second.
fn id(at: u64, number: u64) -> OperationId {
    let first = OperationId::first_at(second(at)).0.as_u128();
    OperationId(Uuid::from_u128(first + u128::from(number)))
}

#[derive(Clone, Debug)]
struct Written {
    at: u64,
    /// How long before its line the operation began.
    age: u64,
    instance: &'static str,
    operation: OperationName,
    outcome: Outcome,
    recovered: bool,
}

impl Written {
    fn accepted(at: u64) -> Self {
        Self {
            at,
            age: 0,
            instance: "ours \"1\"",
            operation: OperationName::ChangeBalance,
            outcome: Outcome::Accepted,
            recovered: false,
        }
    }

    fn id(&self, number: u64) -> OperationId {
        id(self.at.saturating_sub(self.age), number)
    }

    fn line(&self, number: u64) -> Vec<u8> {
        let (user_id, context) = (UserId::new("user").unwrap(), Context::new("x\ny").unwrap());
        let record = Record {
            operation_id: Some(self.id(number)),
            balance_change: Some(1),
            context: Some(&context),
            ..Record::new(self.operation, self.outcome, &user_id)
        };
        let mut line = record.to_line(&second(self.at).to_rfc3339_microseconds(), self.instance);
        if self.recovered {
            record::mark_recovered(&mut line);
        }
        line
    }

    fn is_own(&self) -> bool {
        let told = self.outcome == Outcome::Accepted || self.outcome == Outcome::Problem("outcome_unknown");
        self.instance == "ours \"1\"" && self.operation == OperationName::ChangeBalance && told
    }
}

fn written() -> impl Strategy<Value = Written> {
    let outcomes = [
        Outcome::Accepted,
        Outcome::Replayed,
        Outcome::Problem("outcome_unknown"),
        Outcome::Problem("insufficient_funds"),
    ];
    let operations = [
        OperationName::ChangeBalance,
        OperationName::ChangeBalance,
        OperationName::GetBalance,
    ];
    (
        0..10_u64,
        prop::sample::select(vec!["ours \"1\"", "ours \"1\"", "theirs"]),
        prop::sample::select(operations.to_vec()),
        prop::sample::select(outcomes.to_vec()),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(age, instance, operation, outcome, recovered)| Written {
            at: 0,
            age,
            instance,
            operation,
            outcome,
            recovered,
        })
}

/// What stands between lines and is none.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => Just(Vec::new()),
        1 => prop::collection::vec(any::<u8>(), 1..60),
        1 => Just(b"{}".to_vec()),
        1 => Just(br#"{"at":"2099-01-01T00:00:00Z","instance":"ours \"1\""#.to_vec()),
        1 => Just(vec![b' '; 32 << 10]),
        1 => Just(vec![0; 300_000]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_last_line_and_the_changes_that_have_lines_are_found_whatever_stands_between_them(
        mut lines in prop::collection::vec((written(), garbage(), 0..9_u64), 1..60),
        rotated_at in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        torn in 1..200_usize, is_torn in any::<bool>(),
    ) {
        let mut at = 20;
        for (line, _, pause) in &mut lines {
            at += *pause / 3;
            line.at = at;
        }
        let mut cuts: Vec<usize> = rotated_at.iter().map(|index| index.index(lines.len())).collect();
        cuts.extend([0, lines.len()]);
        cuts.sort_unstable();
        let files = Files::new();
        let parts: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        let last_part = parts.len() - 1;
        for (number, part) in parts.iter().enumerate() {
            let mut bytes = Vec::new();
            for place in part.clone() {
                let (line, garbage, _) = &lines[place];
                if !garbage.is_empty() {
                    bytes.extend_from_slice(garbage);
                    bytes.push(b'\n');
                }
                bytes.extend_from_slice(&line.line(place as u64));
            }
            if number == last_part && is_torn {
                let line = Written::accepted(at + 100).line(9_999);
                bytes.extend_from_slice(&line[..torn.min(line.len() - 2)]);
            }
            // The newest has the highest number in time and the lowest in its name.
            let addition = match last_part - number {
                0 => String::new(),
                back => format!("{}{back}", if back % 2 == 0 { '-' } else { '.' }),
            };
            files.write(&addition, &bytes);
            // The clock of files is coarse.
            let file = fs::File::options().append(true).open(files.0.join(format!("operations.log{addition}"))).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(last_part as u64 - number as u64)).unwrap();
        }
        let trail = files.read();
        let ours = lines.iter().enumerate().filter(|(_, (line, _, _))| line.instance == "ours \"1\"");
        let last = ours.clone().filter(|(_, (line, _, _))| !line.recovered).map(|(_, (line, _, _))| line.at).next_back();
        if let Some(last) = last {
            prop_assert_eq!(trail.complete_until, second(last));
        }
        for (place, (line, _, _)) in lines.iter().enumerate() {
            let is_needed = last.is_none_or(|last| line.at.saturating_sub(line.age) + MARGIN.as_secs() >= last);
            let found = trail.logged.contains(line.id(place as u64));
            // What is older may be known or not.
            if line.is_own() && is_needed {
                prop_assert!(found, "{line:?}");
            } else if !line.is_own() {
                prop_assert!(!found, "{line:?}");
            }
        }
        prop_assert!(trail.caveats.is_empty());
    }
}

#[test]
fn a_line_that_was_recovered_does_not_make_the_log_look_complete() {
    let files = Files::new();
    let late = Written {
        recovered: true,
        age: 50,
        ..Written::accepted(100)
    };
    files.write("", &[Written::accepted(50).line(1), late.line(2)].concat());
    let trail = files.read();
    assert_eq!(trail.complete_until, second(50));
    assert_eq!(trail.logged, LoggedChanges::new([id(50, 1), id(50, 2)]));
}

#[test]
fn a_log_without_a_line_of_the_instance_is_complete_until_it_was_made() {
    let files = Files::new();
    let before = Timestamp::from(SystemTime::now());
    for bytes in [&b""[..], b"{\"at\":\n", &[0; 70_000]] {
        files.write("", bytes);
        let trail = files.read();
        // The clock of files is coarser.
        assert!(trail.complete_until > before.saturating_sub(Duration::from_secs(1)));
        assert!(trail.complete_until <= Timestamp::from(SystemTime::now()));
        assert!(trail.logged.is_empty());
    }
}

#[test]
fn without_a_log_there_was_no_earlier_run_and_a_device_keeps_nothing() {
    let files = Files::new();
    assert_eq!(read_trail(&files.query(None)).unwrap(), EarlierLog::None);
    files.write("al", b"another file");
    files.write(".recovering", b"2026-01-31T12:00:00.000000Z\n");
    assert_eq!(read_trail(&files.query(None)).unwrap(), EarlierLog::None);
    for path in ["/dev/null", "/dev/stdout"] {
        let query = TrailQuery {
            path: path.into(),
            ..files.query(None)
        };
        assert_eq!(read_trail(&query).unwrap(), EarlierLog::Stream);
    }
}

#[test]
fn the_mark_leads_further_back_than_the_last_line() {
    let files = Files::new();
    let lines: BTreeSet<u64> = (0..100).collect();
    files.write(
        "",
        &lines
            .iter()
            .flat_map(|at| Written::accepted(*at).line(*at))
            .collect::<Vec<u8>>(),
    );
    let mark = RecoveryMark::beside(&files.query(None).path);
    assert_eq!(mark.read().unwrap(), None);
    mark.write(second(40)).unwrap();
    mark.write(second(50)).unwrap();
    assert_eq!(mark.read().unwrap(), Some(second(50)));
    let EarlierLog::Trail(trail) = read_trail(&files.query(mark.read().unwrap())).unwrap() else {
        panic!("there is a log");
    };
    assert_eq!(trail.complete_until, second(50));
    assert!((40..100).all(|at| trail.logged.contains(id(at, at))));
    // A mark later than the last line changes nothing.
    assert_eq!(
        read_trail(&files.query(Some(second(200)))).unwrap(),
        EarlierLog::Trail(files.read())
    );
    mark.remove().unwrap();
    mark.remove().unwrap();
    assert_eq!(fs::read_dir(&files.0).unwrap().count(), 1);
}

#[test]
fn a_compressed_file_is_complained_of_if_it_is_young_enough_to_matter() {
    let files = Files::new();
    let at = |age: u64| Timestamp::from(SystemTime::now()).saturating_sub(Duration::from_secs(age));
    for (age, complaints) in [(0, 1), (3_600, 1), (0, 1)] {
        let mut line = Written::accepted(0).line(1);
        let text = String::from_utf8(line)
            .unwrap()
            .replace(&second(0).to_rfc3339_microseconds(), &at(age).to_rfc3339_microseconds());
        line = text.into_bytes();
        files.write("", &line);
        files.write(".1.gz", b"\x1f\x8b");
        assert_eq!(files.read().caveats.len(), complaints);
    }
    let old = fs::File::options()
        .append(true)
        .open(files.0.join("operations.log.1.gz"))
        .unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    assert!(files.read().caveats.is_empty());
}

fn aged(files: &Files, addition: &str, seconds: u64) {
    let file = fs::File::options()
        .append(true)
        .open(files.0.join(format!("operations.log{addition}")))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
        .unwrap();
}

fn theirs(at: std::ops::Range<u64>) -> Vec<u8> {
    at.flat_map(|at| {
        let theirs = Written {
            instance: "theirs",
            ..Written::accepted(at)
        };
        theirs.line(at)
    })
    .collect()
}

#[test]
fn a_file_that_was_made_just_now_is_none_of_an_earlier_run() {
    let files = Files::new();
    files.write("", b"");
    let query = TrailQuery {
        is_new: true,
        ..files.query(None)
    };
    assert_eq!(read_trail(&query).unwrap(), EarlierLog::None);
    files.write(".1", &Written::accepted(50).line(1));
    let EarlierLog::Trail(trail) = read_trail(&query).unwrap() else {
        panic!("the rotated file is one");
    };
    assert_eq!(trail.complete_until, second(50));
}

#[test]
fn files_that_are_left_out_because_there_are_too_many_are_told_if_they_are_young_enough() {
    let files = Files::new();
    let now = Timestamp::from(SystemTime::now()).to_rfc3339_microseconds();
    let line = String::from_utf8(Written::accepted(0).line(1)).unwrap();
    files.write("", line.replace(&second(0).to_rfc3339_microseconds(), &now).as_bytes());
    for number in 1..67 {
        files.write(&format!(".{number}"), b"");
        aged(&files, &format!(".{number}"), if number == 66 { 3_600 } else { 1 });
    }
    // 64 of 67 are read, and one of the others is old.
    assert_eq!(files.read().caveats, [Caveat::TooManyFiles { count: 2 }]);
}

#[test]
fn a_file_of_another_instance_neither_hides_our_lines_nor_is_read_without_end() {
    let files = Files::new();
    files.write(
        "",
        &(0..50)
            .flat_map(|at| Written::accepted(at).line(at))
            .collect::<Vec<u8>>(),
    );
    aged(&files, "", 10);
    files.write(".theirs", &theirs(0..5_000));
    files.write(".zeros", &vec![0; 2 << 20]);
    files.write(".breaks", &vec![b'\n'; 2 << 20]);
    let ours = fs::metadata(files.query(None).path).unwrap().len();
    let most = Bytes {
        ours: ours + 1,
        others_in_file: 100_000,
        others: 1 << 20,
    };
    let EarlierLog::Trail(found) = read_trail_within(&files.query(None), most).unwrap() else {
        panic!("there is a log");
    };
    assert_eq!(found.complete_until, second(49));
    assert!((39..50).all(|at| found.logged.contains(id(at, at))));
    let mut left: Vec<String> = found.caveats.iter().map(ToString::to_string).collect();
    left.sort_unstable();
    for (message, name) in left.iter().zip([".breaks", ".theirs", ".zeros"]) {
        assert!(message.contains(&format!("{name} is full of")), "{message}");
    }
    assert_eq!(left.len(), 3);
}

#[test]
fn an_instance_without_a_line_came_after_the_last_line_of_another_in_its_file() {
    let files = Files::new();
    files.write("", &theirs(0..5_000));
    // Another log, whose lines say nothing of this one.
    files.write(".other", &theirs(9_000..9_010));
    let most = Bytes {
        ours: 1 << 30,
        others_in_file: 10_000,
        others: 1 << 30,
    };
    let EarlierLog::Trail(found) = read_trail_within(&files.query(None), most).unwrap() else {
        panic!("there is a log");
    };
    assert_eq!(found.complete_until, second(4_999));
    assert!(found.logged.is_empty());
    assert_eq!(found.caveats.len(), 1, "{:?}", found.caveats);
}
