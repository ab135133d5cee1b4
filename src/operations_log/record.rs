//! What is told about one answered operation, and the one line it becomes.
//!
//! Keeps the promise that no input can forge a line: whatever a user id or a context holds, the line has exactly one
//! line break of any kind, its last byte, and parses back to the same text.

use std::io;

use serde::{Serialize, Serializer};
use serde_json::ser::{Formatter, Serializer as JsonSerializer};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use crate::domain::{CallerName, Context, OperationId, Timestamp, UserId};

/// One answered operation. What does not apply is `None` and left out of the line.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Which of the service's operations.
    pub operation: OperationName,
    /// How it was answered.
    pub outcome: Outcome,
    /// Whose balance.
    pub user_id: &'a UserId,
    /// Where on the timeline the change belongs, or the moment that was asked about.
    pub timestamp: Option<Timestamp>,
    /// The accepted operation.
    pub operation_id: Option<OperationId>,
    /// How much was to be added.
    pub balance_change: Option<i64>,
    /// What the change is for.
    pub context: Option<&'a Context>,
    /// The balance that was answered.
    pub balance: Option<i64>,
    /// How much could be withdrawn, where that was answered.
    pub available: Option<i64>,
    /// How much was missing, where that was the reason of a refusal.
    pub shortfall: Option<u64>,
    /// What was known at this moment was asked for.
    pub known_at: Option<Timestamp>,
    /// Whether nothing was to be changed, whatever the answer.
    pub dry_run: bool,
    /// Who asked, where callers are known.
    pub caller: Option<&'a CallerName>,
}

/// The name of an operation in the log: the contract's `operation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationName {
    /// `POST /changeBalance`.
    ChangeBalance,
    /// `GET /{userId}/balance`.
    GetBalance,
    /// `GET /{userId}/available`.
    GetAvailable,
    /// `GET /{userId}/history`.
    GetHistory,
}

/// How an operation was answered: the contract's `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Accepted,
    /// It was not to be done, and would have been.
    WouldBeAccepted,
    /// It had been done before under the same idempotency key; the first answer was given again.
    Replayed,
    /// It may have been done or may still be: the problem `outcome_unknown`.
    Unknown,
    /// It was refused; the problem's `code`.
    Problem(&'static str),
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Accepted => "accepted",
            Self::WouldBeAccepted => "would_be_accepted",
            Self::Replayed => "replayed",
            Self::Unknown => "outcome_unknown",
            Self::Problem(code) => code,
        })
    }
}

impl<'a> Record<'a> {
    /// What every record tells; the rest does not apply.
    pub fn new(operation: OperationName, outcome: Outcome, user_id: &'a UserId) -> Self {
        Self {
            operation,
            outcome,
            user_id,
            timestamp: None,
            operation_id: None,
            balance_change: None,
            context: None,
            balance: None,
            available: None,
            shortfall: None,
            known_at: None,
            dry_run: false,
            caller: None,
        }
    }

    /// Whether the line tells of a change that is in the database, or may be. Such a line is never given up.
    pub(super) fn may_be_committed(&self) -> bool {
        match self.outcome {
            Outcome::Accepted | Outcome::Unknown => self.operation == OperationName::ChangeBalance,
            Outcome::WouldBeAccepted | Outcome::Replayed | Outcome::Problem(_) => false,
        }
    }

    /// The record as one line of JSON, its line break included, answered at `at` (RFC 3339) by `instance`.
    pub(super) fn to_line(self, at: &str, instance: &str) -> Vec<u8> {
        let fields = Fields {
            at,
            instance,
            caller: self.caller.map(CallerName::as_str),
            operation: self.operation,
            dry_run: self.dry_run,
            outcome: self.outcome,
            user_id: self.user_id.as_str(),
            timestamp: self.timestamp.map(|timestamp| timestamp.to_string()),
            known_at: self.known_at.map(|known_at| known_at.to_string()),
            operation_id: self.operation_id.map(|id| id.to_string()),
            balance_change: self.balance_change,
            context: self.context.map(Context::as_str),
            balance: self.balance,
            available: self.available,
            shortfall: self.shortfall,
        };
        let mut line = Vec::with_capacity(TYPICAL_LINE_BYTES);
        fields
            .serialize(&mut JsonSerializer::with_formatter(&mut line, OneLine))
            .expect("texts and integers always serialise into memory");
        line.push(b'\n');
        line
    }
}

const TYPICAL_LINE_BYTES: usize = 384;

const RECOVERED_END: &[u8] = b",\"recovered\":true}\n";

/// Marks a line as one that was written later than its operation was answered.
pub(super) fn mark_recovered(line: &mut Vec<u8>) {
    debug_assert!(line.ends_with(b"}\n") && !line.ends_with(RECOVERED_END));
    line.truncate(line.len() - b"}\n".len());
    line.extend_from_slice(RECOVERED_END);
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    at: &'a str,
    instance: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    operation: OperationName,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    outcome: Outcome,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance_change: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shortfall: Option<u64>,
}

/// Compact JSON that also escapes what JSON allows but a reader may take for a line break or a terminal for a command.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Most texts are plain, and a look at their bytes tells.
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut plain_from = 0;
        for (at, character) in fragment.char_indices().filter(|(_, character)| misleads(*character)) {
            writer.write_all(&fragment.as_bytes()[plain_from..at])?;
            // Two of them beyond U+FFFF, as JSON has it.
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain_from = at + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain_from..])
    }
}

/// Whether JSON leaves the character as it is, and it could make a text look like another one.
///
/// U+0085, U+2028 and U+2029 break lines for readers that follow Unicode. The other C1 controls command terminals. Format
/// characters (category Cf) are invisible or turn the direction of what follows: zero-width spaces and joiners, soft
/// hyphens, byte order marks, bidirectional controls, tags.
fn misleads(character: char) -> bool {
    match character {
        ..'\u{7f}' => false,
        '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => true,
        other => other.general_category() == GeneralCategory::Format,
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::PROBE_BYTES;
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use uuid::Uuid;

    fn line(record: Record<'_>) -> String {
        let at = Timestamp::from_unix_microseconds(1).unwrap();
        String::from_utf8(record.to_line(&at.to_rfc3339_microseconds(), "replica-1")).unwrap()
    }

    fn read(user_id: &UserId) -> Record<'_> {
        Record::new(OperationName::GetBalance, Outcome::Accepted, user_id)
    }

    /// Every character that some reader splits lines on: Unicode's mandatory breaks and Python's `str.splitlines`.
    fn breaks_lines(character: char) -> bool {
        matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    }

    #[test]
    fn fields_come_in_the_order_of_the_contract() {
        let (user_id, context) = (UserId::new("a\"b").unwrap(), Context::new("gift").unwrap());
        let record = Record {
            operation: OperationName::ChangeBalance,
            timestamp: Some(Timestamp::parse("2026-01-31T12:00:00Z").unwrap()),
            operation_id: Some(OperationId(Uuid::nil())),
            balance_change: Some(i64::MIN),
            context: Some(&context),
            balance: Some(i64::MAX),
            ..read(&user_id)
        };
        assert_eq!(
            line(record),
            concat!(
                r#"{"at":"1970-01-01T00:00:00.000001Z","instance":"replica-1","operation":"changeBalance","#,
                r#""outcome":"accepted","userId":"a\"b","timestamp":"2026-01-31T12:00:00Z","#,
                r#""operationId":"00000000-0000-0000-0000-000000000000","balanceChange":-9223372036854775808,"#,
                r#""context":"gift","balance":9223372036854775807}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_caller_stands_behind_the_instance_and_is_escaped_like_any_text() {
        let (user_id, caller) = (UserId::new("a").unwrap(), CallerName::new("b\"\\").unwrap());
        let record = Record {
            caller: Some(&caller),
            ..read(&user_id)
        };
        assert_eq!(
            line(record),
            concat!(
                r#"{"at":"1970-01-01T00:00:00.000001Z","instance":"replica-1","caller":"b\"\\","#,
                r#""operation":"getBalance","outcome":"accepted","userId":"a"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let user_id = UserId::new("a").unwrap();
        let record = Record {
            operation: OperationName::GetHistory,
            outcome: Outcome::Problem("database_unavailable"),
            ..read(&user_id)
        };
        assert_eq!(
            line(record),
            concat!(
                r#"{"at":"1970-01-01T00:00:00.000001Z","instance":"replica-1","operation":"getHistory","#,
                r#""outcome":"database_unavailable","userId":"a"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_recovered_line_says_so_and_is_otherwise_the_same() {
        let user_id = UserId::new("a").unwrap();
        let mut marked = line(read(&user_id)).into_bytes();
        mark_recovered(&mut marked);
        let mut expected: Value = serde_json::from_str(&line(read(&user_id))).unwrap();
        expected["recovered"] = Value::Bool(true);
        assert_eq!(serde_json::from_slice::<Value>(&marked).unwrap(), expected);
        assert_eq!(marked.last(), Some(&b'\n'));
    }

    fn nasty_text() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            any::<char>(),
            prop::sample::select(vec![
                '"', '\\', '\n', '\r', '\u{7f}', '\u{9b}', '\u{feff}', '}', '{', ' '
            ]),
            (0u32..0x20).prop_map(|code| char::from_u32(code).unwrap()),
            prop::sample::select(vec![
                '\u{ad}',
                '\u{200b}',
                '\u{200e}',
                '\u{feff}',
                '\u{e0001}',
                '\u{1d173}'
            ]),
            prop::sample::select(vec!['\u{85}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}', '\u{1c}']),
        ];
        prop::collection::vec(character, 0..40).prop_map(|characters| characters.into_iter().collect())
    }

    #[test]
    fn every_character_of_the_category_cf_is_escaped_and_reads_back() {
        let is_format = regress::Regex::with_flags(r"^\p{Cf}$", "u").unwrap();
        let (mut escaped, mut plain) = (Vec::new(), Vec::new());
        for character in '\u{a0}'..=char::MAX {
            // The two may be of different versions of Unicode, and neither may miss one.
            let is_format = is_format.find(character.encode_utf8(&mut [0; 4])).is_some()
                || character.general_category() == GeneralCategory::Format;
            match is_format || matches!(character, '\u{2028}' | '\u{2029}') {
                true => escaped.push(character),
                false => plain.push(character),
            }
        }
        assert!(escaped.len() > 150, "{}", escaped.len());
        for few in [
            '\u{ad}',
            '\u{200b}',
            '\u{200e}',
            '\u{202e}',
            '\u{feff}',
            '\u{e0001}',
            '\u{e007f}',
        ] {
            assert!(escaped.contains(&few), "{few:?}");
        }
        let user_id = UserId::new("a").unwrap();
        for (characters, is_escaped) in [(escaped, true), (plain, false)] {
            for characters in characters.chunks(4_096) {
                let context: String = characters.iter().collect();
                let context = Context::new(context).unwrap();
                let record = Record {
                    context: Some(&context),
                    ..read(&user_id)
                };
                let line = line(record);
                match is_escaped {
                    true => assert!(line.trim_end().bytes().all(|byte| (b' '..=b'~').contains(&byte))),
                    false => assert!(line.contains(context.as_str())),
                }
                let parsed: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(parsed["context"].as_str(), Some(context.as_str()));
            }
        }
    }

    #[test]
    fn the_longest_line_fits_the_room_that_a_probe_keeps_for_it() {
        let longest = |characters| "\u{e0001}".repeat(characters);
        let (user_id, context) = (
            UserId::new(longest(256)).unwrap(),
            Context::new(longest(4_096)).unwrap(),
        );
        let caller = CallerName::new("c".repeat(128)).unwrap();
        let moment = Timestamp::parse("2026-01-31T12:00:00.123456Z").unwrap();
        let record = Record {
            operation: OperationName::ChangeBalance,
            outcome: Outcome::Problem("idempotency_key_reused"),
            timestamp: Some(moment),
            known_at: Some(moment),
            operation_id: Some(OperationId(Uuid::max())),
            balance_change: Some(i64::MIN),
            context: Some(&context),
            balance: Some(i64::MIN),
            available: Some(i64::MIN),
            shortfall: Some(u64::MAX),
            dry_run: true,
            caller: Some(&caller),
            ..read(&user_id)
        };
        let mut line = record.to_line(&moment.to_rfc3339_microseconds(), &longest(128));
        mark_recovered(&mut line);
        assert!(line.len() <= PROBE_BYTES, "{}", line.len());
    }

    proptest! {
        #[test]
        fn any_user_id_and_context_give_one_line_that_reads_back_to_the_same_text(
            user_id in nasty_text(), context in nasty_text()
        ) {
            let user_id: String = format!("u{user_id}").chars().filter(|character| !character.is_control()).collect();
            let user_id = UserId::new(user_id).unwrap();
            let context = Context::new(context.replace('\0', "")).unwrap();
            let record = Record { context: Some(&context), ..read(&user_id) };
            let line = line(record);
            prop_assert_eq!(line.find(breaks_lines), Some(line.len() - 1));
            prop_assert!(!line.trim_end().contains(char::is_control));
            let parsed: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(parsed["userId"].as_str(), Some(user_id.as_str()));
            prop_assert_eq!(parsed["context"].as_str(), Some(context.as_str()));
        }
    }
}
