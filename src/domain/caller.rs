//! Who asks for an operation.

use std::fmt;
use std::sync::Arc;

/// The name under which a client is known, by its token: 1 to 128 characters of Unicode without blanks, control characters
/// and characters that do not show, and without `#` in front, which begins a comment. Copies share the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallerName(Arc<str>);

/// Why a text is not a [`CallerName`]. The message completes "the name …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 128 characters that show, without blanks, and not begin with #")]
pub struct InvalidCallerName;

impl CallerName {
    /// The longest name, in Unicode characters.
    pub const MAX_CHARACTERS: usize = 128;

    /// # Errors
    ///
    /// [`InvalidCallerName`] if the text is empty, longer than 128 characters, begins with `#` or holds a blank, a control
    /// character or one that does not show: two names must not look the same.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidCallerName> {
        let text = text.into();
        let fits = !text.is_empty()
            && text.chars().nth(Self::MAX_CHARACTERS).is_none()
            && !text.starts_with('#')
            && !text
                .chars()
                .any(|letter| letter.is_whitespace() || letter.is_control() || is_hidden(letter));
        fits.then_some(Self(text)).ok_or(InvalidCallerName)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Marks of direction, joiners and the like.
fn is_hidden(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_name_is_1_to_128_characters_without_blanks_and_control_characters() {
        for text in ["a", "payroll@example.org", "ё/👍", "a,b", &"ё".repeat(128)] {
            assert!(CallerName::new(text).is_ok(), "{text:?}");
        }
        for text in [
            "",
            " ",
            "a b",
            "a\tb",
            "a\u{a0}b",
            "a\n",
            "\u{7f}",
            "\u{85}",
            "a\u{2028}",
            "a\u{200b}",
            "\u{feff}a",
            "a\u{202e}b",
            "#a",
            &"ё".repeat(129),
        ] {
            assert_eq!(CallerName::new(text), Err(InvalidCallerName), "{text:?}");
        }
    }
}
