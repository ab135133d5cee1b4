//! Parameters in path, query and header, and the cursor.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use poem::Request;
use url::form_urlencoded;

use super::problem::Problem;
use super::types::{CursorText, DateTime, DryRunText, KnownAtText, LimitText, OrderText, UserIdText};
use crate::domain::{CallerName, IdempotencyKey, InvalidIdempotencyKey, Timestamp, UserId};
use crate::store::{HistoryOrder, Place};

/// The largest page of the history.
pub const MAX_LIMIT: u32 = 1_000;
/// The page of the history when nothing is said.
pub const DEFAULT_LIMIT: u32 = 100;

/// Refuses what a query holds beside the parameters that an operation knows, and parameters given twice: either way
/// something the client meant would be lost silently.
pub fn check_query(request: &Request, known: &[&str]) -> Result<(), Problem> {
    let query = request.uri().query().unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(&name.as_ref()) {
            let allowed = match known {
                [] => "none".to_owned(),
                known => known.join(", "),
            };
            let name = name.chars().take(64).collect::<String>();
            return Err(Problem::invalid(format!(
                "The query parameter {name:?} is not known here; known: {allowed}."
            )));
        }
        if seen.iter().any(|earlier| *earlier == name) {
            return Err(Problem::invalid(format!(
                "{name} is given more than once; give it once."
            )));
        }
        seen.push(name.into_owned());
    }
    Ok(())
}

/// Who asks, as the request's token has told before it came here.
pub fn caller(request: &Request) -> Option<CallerName> {
    request.extensions().get().cloned()
}

pub fn user_id(text: UserIdText) -> Result<UserId, Problem> {
    UserId::new(text.0).map_err(|error| Problem::invalid(format!("userId {error}, for example alice.")))
}

/// A moment in a query. A `+` in a query means a space, so a space where an offset begins was a plus.
pub fn timestamp(name: &str, text: Option<DateTime>) -> Result<Option<Timestamp>, Problem> {
    let Some(DateTime(mut text)) = text else {
        return Ok(None);
    };
    if let Some(space) = text.len().checked_sub("+00:00".len())
        && text.as_bytes().get(space) == Some(&b' ')
    {
        text.replace_range(space..=space, "+");
    }
    Timestamp::parse(&text).map(Some).map_err(|error| {
        Problem::invalid(format!(
            "{name} {error}, for example 2026-01-31T12:00:00Z or 2026-01-31T14:00:00%2B02:00."
        ))
    })
}

/// The moment of recording `knownAt`.
pub fn known_at(text: Option<KnownAtText>) -> Result<Option<Timestamp>, Problem> {
    timestamp("knownAt", text.map(|KnownAtText(text)| DateTime(text)))
}

pub fn limit(text: Option<LimitText>) -> Result<Option<u32>, Problem> {
    let Some(LimitText(text)) = text else {
        return Ok(None);
    };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let limit = text
        .parse()
        .ok()
        .filter(|limit| digits && (1..=MAX_LIMIT).contains(limit));
    limit.map(Some).ok_or_else(|| {
        Problem::invalid(format!(
            "limit must be a whole number from 1 to {MAX_LIMIT}, for example 100."
        ))
    })
}

pub fn dry_run(text: Option<DryRunText>) -> Result<bool, Problem> {
    match text.as_ref().map(|DryRunText(text)| text.as_str()) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Problem::invalid("dryRun must be true or false, for example true.")),
    }
}

pub fn order(text: Option<OrderText>) -> Result<Option<HistoryOrder>, Problem> {
    match text.as_ref().map(|OrderText(text)| text.as_str()) {
        None => Ok(None),
        Some("asc") => Ok(Some(HistoryOrder::OldestFirst)),
        Some("desc") => Ok(Some(HistoryOrder::NewestFirst)),
        Some(_) => Err(Problem::invalid("order must be asc or desc, for example desc.")),
    }
}

/// The key of the header `Idempotency-Key`, given bare or as the string of a structured field (RFC 9651).
pub fn idempotency_key(request: &Request) -> Result<Option<IdempotencyKey>, Problem> {
    let invalid =
        |reason: &str| Problem::invalid(format!("Idempotency-Key {reason}, for example salary-2026-01-alice."));
    let mut values = request.headers().get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(invalid("is given more than once; give it once"));
    }
    let text = value
        .to_str()
        .map_err(|_| invalid(&InvalidIdempotencyKey.to_string()))?;
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(quoted) => {
            unquote(quoted).ok_or_else(|| invalid("has a quote at its beginning that is not closed at its end"))?
        }
    };
    IdempotencyKey::new(key)
        .map(Some)
        .map_err(|error| invalid(&error.to_string()))
}

/// What stands between the quotes; a backslash escapes a quote or a backslash.
fn unquote(quoted: &str) -> Option<String> {
    let mut key = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(key),
            '\\' => key.push(characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => key.push(other),
        }
    }
}

/// Where a page of the history ended, and what it was a page of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub order: HistoryOrder,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub known_at: Option<Timestamp>,
    pub last: Place,
}

/// Changes when the meaning of the bytes does, so that an old cursor is refused and not misread.
const CURSOR_VERSION: u8 = 2;

impl Cursor {
    pub fn to_text(self) -> CursorText {
        let order = match self.order {
            HistoryOrder::OldestFirst => 0,
            HistoryOrder::NewestFirst => 1,
        };
        let mut bytes = vec![CURSOR_VERSION, order];
        let bound = |bound: Option<Timestamp>| bound.map_or(i64::MIN, Timestamp::unix_microseconds);
        for number in [
            bound(self.from),
            bound(self.to),
            bound(self.known_at),
            self.last.timestamp.unix_microseconds(),
            self.last.seq,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        CursorText(URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn parse(text: &CursorText) -> Result<Self, Problem> {
        Self::from_text(&text.0).ok_or_else(|| {
            Problem::invalid(
                "cursor must be the nextCursor of an earlier page, as it was; leave it out for the first page.",
            )
        })
    }

    /// Every text of the schema's pattern is a cursor: bounds and places outside the range of a timestamp are taken for
    /// the nearest moment in it.
    fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, numbers) = bytes.split_at_checked(2)?;
        let order = match head {
            [CURSOR_VERSION, 0] => HistoryOrder::OldestFirst,
            [CURSOR_VERSION, 1] => HistoryOrder::NewestFirst,
            _ => return None,
        };
        let (numbers, rest) = numbers.as_chunks::<8>();
        let [from, to, known_at, timestamp, seq] = *numbers else {
            return None;
        };
        let bound = |bytes| match i64::from_be_bytes(bytes) {
            i64::MIN => None,
            microseconds => Some(Timestamp::nearest(microseconds)),
        };
        rest.is_empty().then_some(Self {
            order,
            from: bound(from),
            to: bound(to),
            known_at: bound(known_at),
            last: Place {
                timestamp: Timestamp::nearest(i64::from_be_bytes(timestamp)),
                seq: i64::from_be_bytes(seq),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(query: &str) -> Request {
        Request::builder().uri_str(format!("/alice/balance{query}")).finish()
    }

    #[test]
    fn a_parameter_that_is_not_known_or_given_twice_is_refused() {
        assert!(check_query(&request(""), &[]).is_ok());
        assert!(check_query(&request("?timestamp=x"), &["timestamp"]).is_ok());
        for query in [
            "?timestmap=x",
            "?timestamp=x&timestamp=x",
            "?timestamp=x&time%73tamp=y",
            "?x",
        ] {
            assert!(check_query(&request(query), &["timestamp"]).is_err(), "{query}");
        }
    }

    #[test]
    fn a_space_in_front_of_the_offset_was_a_plus() {
        let read = |text: &str| timestamp("timestamp", Some(DateTime(text.to_owned())));
        let expected = Timestamp::parse("2026-01-31T10:00:00Z").ok();
        assert_eq!(read("2026-01-31T12:00:00 02:00").unwrap(), expected);
        assert_eq!(read("2026-01-31T12:00:00+02:00").unwrap(), expected);
        for text in ["", " ", "é 02:00", "2026-01-31 12:00:00Z", "2026-01-31T12:00:00 2:00"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_the_same_with_and_without_quotes() {
        let read = |value: &str| {
            let request = Request::builder().header("idempotency-key", value).finish();
            idempotency_key(&request).map(|key| key.map(|key| key.as_str().to_owned()))
        };
        assert_eq!(read("k-1").unwrap().as_deref(), Some("k-1"));
        assert_eq!(read("\"k-1\"").unwrap().as_deref(), Some("k-1"));
        assert_eq!(read(r#""a\"\\b""#).unwrap().as_deref(), Some(r#"a"\b"#));
        for value in [
            "",
            "\"\"",
            "\"k",
            "\"k\"x",
            "\"k\\\"",
            "a b",
            "\"a b\"",
            &"k".repeat(256),
        ] {
            assert!(read(value).is_err(), "{value}");
        }
        assert!(read(&format!("\"{}\"", "k".repeat(255))).is_ok());
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_was(
            newest_first: bool,
            from in prop::option::of(-1_000..1_000_i64),
            to in prop::option::of(-1_000..1_000_i64),
            known_at in prop::option::of(-1_000..1_000_i64),
            timestamp in -1_000..1_000_i64,
            seq: i64,
        ) {
            let moment = |microseconds| Timestamp::from_unix_microseconds(microseconds);
            let order = if newest_first { HistoryOrder::NewestFirst } else { HistoryOrder::OldestFirst };
            let last = Place { timestamp: moment(timestamp).unwrap(), seq };
            let (from, to) = (from.and_then(moment), to.and_then(moment));
            let cursor = Cursor { order, from, to, known_at: known_at.and_then(moment), last };
            prop_assert_eq!(Cursor::parse(&cursor.to_text()).unwrap(), cursor);
        }

        #[test]
        fn no_cursor_panics(text in ".{0,80}") {
            let _ = Cursor::parse(&CursorText(text));
        }
    }
}
