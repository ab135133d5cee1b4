//! One change of one user's balance, and the texts it carries. Each is checked where it is made.

use std::fmt;

use uuid::Uuid;

use super::{CallerName, Timestamp};

/// Whose balance: 1 to 256 characters of Unicode without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// Why a text is not a [`UserId`]. The message completes "userId …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 256 characters of Unicode without control characters (U+0000 to U+001F, U+007F to U+009F)")]
pub struct InvalidUserId;

impl UserId {
    /// The longest id, in Unicode characters.
    pub const MAX_CHARACTERS: usize = 256;

    /// # Errors
    ///
    /// [`InvalidUserId`] if the text is empty, longer than 256 characters or holds a control character.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidUserId> {
        let text = text.into();
        let fits =
            !text.is_empty() && text.chars().nth(Self::MAX_CHARACTERS).is_none() && !text.chars().any(char::is_control);
        fits.then_some(Self(text)).ok_or(InvalidUserId)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a change is for: 0 to 4,096 characters without U+0000, which PostgreSQL cannot store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context(String);

/// Why a text is not a [`Context`]. The message completes "context …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 0 to 4096 characters of Unicode without U+0000")]
pub struct InvalidContext;

impl Context {
    /// The longest context, in Unicode characters.
    pub const MAX_CHARACTERS: usize = 4_096;

    /// # Errors
    ///
    /// [`InvalidContext`] if the text is longer than 4,096 characters or holds U+0000.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidContext> {
        let text = text.into();
        let fits = text.chars().nth(Self::MAX_CHARACTERS).is_none() && !text.contains('\0');
        fits.then_some(Self(text)).ok_or(InvalidContext)
    }

    /// The context as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name a client gives to one operation of one user, so that repeating the request does not repeat the operation:
/// 1 to 255 visible ASCII characters.
///
/// Source: the IETF draft "The Idempotency-Key HTTP Header Field".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

/// Why a text is not an [`IdempotencyKey`]. The message completes "Idempotency-Key …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 255 visible ASCII characters, with or without double quotes around them")]
pub struct InvalidIdempotencyKey;

impl IdempotencyKey {
    /// The longest key, in characters.
    pub const MAX_CHARACTERS: usize = 255;

    /// # Errors
    ///
    /// [`InvalidIdempotencyKey`] if the text is empty, longer than 255 or holds anything but visible ASCII.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidIdempotencyKey> {
        let text = text.into();
        let fits = (1..=Self::MAX_CHARACTERS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(Self(text)).ok_or(InvalidIdempotencyKey)
    }

    /// The key as text, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names one operation for ever, in answers, in the history and in the operations log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub Uuid);

impl OperationId {
    /// The lowest of the ids made in the millisecond of this moment: ids are UUIDs of version 7, which begin with their
    /// moment. Every id made earlier is lower.
    pub fn first_at(moment: Timestamp) -> Self {
        let milliseconds = u128::try_from(moment.unix_microseconds() / 1_000).unwrap_or(0);
        Self(Uuid::from_u128(milliseconds << 80))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A change of a user's balance at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// Whose balance it changes.
    pub user_id: UserId,
    /// What it is for.
    pub context: Context,
    /// How much is added; the whole signed 64-bit range, 0 included.
    pub balance_change: i64,
    /// Where on the user's timeline it belongs.
    pub timestamp: Timestamp,
    /// Who asked for it, where callers are known.
    pub caller: Option<CallerName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_1_to_256_characters_of_any_unicode_but_control_characters() {
        for text in ["a", "a/b", "..", "%", "docs", "👩‍🚀", " ", &"ё".repeat(256)] {
            assert!(UserId::new(text).is_ok(), "{text:?}");
        }
        for text in ["", "a\0", "a\n", "\u{7f}", "\u{85}", &"ё".repeat(257)] {
            assert_eq!(UserId::new(text), Err(InvalidUserId), "{text:?}");
        }
    }

    #[test]
    fn ids_are_ordered_by_the_moment_they_were_made_at() {
        let id = |moment: &str| OperationId::first_at(Timestamp::parse(moment).unwrap());
        let made = OperationId("019c13f2-5a00-7123-8000-000000000000".parse().unwrap());
        // 0x019c13f25a00 milliseconds after 1970.
        assert_eq!(id("2026-01-31T12:06:15.808Z").0.as_u128() >> 80, 0x019c_13f2_5a00);
        assert!(id("2026-01-31T12:06:15.808999Z") < made && made < id("2026-01-31T12:06:15.809Z"));
        assert!(id("1900-01-01T00:00:00Z") < made && made < id("9999-12-31T23:59:59Z"));
    }

    #[test]
    fn a_context_is_0_to_4096_characters_without_u0000() {
        for text in ["", "line\nbreak", &"ё".repeat(4_096)] {
            assert!(Context::new(text).is_ok());
        }
        for text in ["\0", &"ё".repeat(4_097)] {
            assert_eq!(Context::new(text), Err(InvalidContext));
        }
    }

    #[test]
    fn an_idempotency_key_is_1_to_255_visible_ascii_characters() {
        for text in ["k", "a\"b", &"k".repeat(255)] {
            assert!(IdempotencyKey::new(text).is_ok());
        }
        for text in ["", " ", "a b", "ключ", "k\u{7f}", &"k".repeat(256)] {
            assert_eq!(IdempotencyKey::new(text), Err(InvalidIdempotencyKey));
        }
    }
}
