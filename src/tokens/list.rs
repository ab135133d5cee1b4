//! The text of a list of tokens. What is wrong with a line is told without what it holds: whoever mixes up the columns may
//! have written a token there.

use std::collections::HashMap;

use super::{Grant, Scopes, TokenDigest};
use crate::domain::CallerName;

/// The most tokens of a list.
pub const MAX_TOKENS: usize = 10_000;

/// Why a text is not a list of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name them")]
pub enum InvalidList {
    /// Not UTF-8.
    #[error("line {line}: not UTF-8; give a name, the SHA-256 of the token in hex and scopes")]
    NotText { line: usize },
    /// Fewer or more than three columns.
    #[error(
        "line {line}: {columns} columns; give three, with blanks between them: a name, the SHA-256 of the token in hex, \
         and scopes"
    )]
    Columns { line: usize, columns: usize },
    /// The first column.
    #[error("line {line}: the name is too long or holds characters that do not show; give 1 to 128 that do")]
    Name { line: usize },
    /// The second column.
    #[error("line {line}: the second column is no SHA-256; give 64 hex digits, as sha256sum prints them")]
    Digest { line: usize },
    /// The second column, of a variable that was not set.
    #[error("line {line}: the second column is the SHA-256 of nothing; give that of a token")]
    DigestOfNothing { line: usize },
    /// The third column.
    #[error("line {line}: the scopes are wrong; give read, write or read,write")]
    Scopes { line: usize },
    /// A name that stands there twice.
    #[error("line {line}: the name of line {earlier} again; give each token a name of its own")]
    DoubledName { line: usize, earlier: usize },
    /// A token that stands there twice.
    #[error("line {line}: the SHA-256 of line {earlier} again; give each name a token of its own")]
    DoubledToken { line: usize, earlier: usize },
    /// No token at all.
    #[error("no token in it; give at least one line: name, SHA-256 of the token in hex, scopes")]
    Empty,
    /// Too many.
    #[error("line {line}: more than {MAX_TOKENS} tokens; give fewer")]
    TooMany { line: usize },
}

/// Reads all lines but empty ones and comments, which begin with `#`, also behind the columns.
pub(super) fn parse(text: &[u8]) -> Result<Vec<(TokenDigest, Grant)>, InvalidList> {
    let mut tokens = Vec::new();
    let mut names = HashMap::new();
    let mut digests = HashMap::new();
    // Some editors put a mark of the encoding in front.
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    for (line, bytes) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let text = std::str::from_utf8(bytes).map_err(|_| InvalidList::NotText { line })?;
        let columns = text.split_whitespace().take_while(|column| !column.starts_with('#'));
        let columns: Vec<_> = columns.collect();
        let [name, digest, scopes] = columns[..] else {
            if columns.is_empty() {
                continue;
            }
            let columns = columns.len();
            return Err(InvalidList::Columns { line, columns });
        };
        if tokens.len() == MAX_TOKENS {
            return Err(InvalidList::TooMany { line });
        }
        let caller = CallerName::new(name).map_err(|_| InvalidList::Name { line })?;
        let digest = from_hex(digest).ok_or(InvalidList::Digest { line })?;
        if digest == super::digest(b"") {
            return Err(InvalidList::DigestOfNothing { line });
        }
        let scopes = Scopes::parse(scopes).ok_or(InvalidList::Scopes { line })?;
        if let Some(earlier) = names.insert(caller.clone(), line) {
            return Err(InvalidList::DoubledName { line, earlier });
        }
        if let Some(earlier) = digests.insert(digest, line) {
            return Err(InvalidList::DoubledToken { line, earlier });
        }
        tokens.push((digest, Grant { caller, scopes }));
    }
    if tokens.is_empty() {
        return Err(InvalidList::Empty);
    }
    Ok(tokens)
}

fn from_hex(text: &str) -> Option<TokenDigest> {
    let mut digest = TokenDigest::default();
    if text.len() != 2 * digest.len() {
        return None;
    }
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{Scope, digest, digest_in_hex};

    fn hex(token: &str) -> String {
        digest_in_hex(token.as_bytes())
    }

    #[test]
    fn lines_are_read_with_any_blanks_comments_and_ends() {
        let (a, b) = (hex("a"), hex("b").to_ascii_uppercase());
        let text = format!("\u{feff}# who\n\n  reader\t{a}   read\r\n\t# more\nboth {b} write,read # of payroll");
        let tokens = parse(text.as_bytes()).unwrap();
        let found: Vec<_> = tokens
            .iter()
            .map(|(digest, grant)| {
                let allowed = [Scope::Read, Scope::Write].map(|scope| grant.scopes.include(scope));
                (*digest, grant.caller.as_str(), allowed)
            })
            .collect();
        assert_eq!(
            found,
            [
                (digest(b"a"), "reader", [true, false]),
                (digest(b"b"), "both", [true, true])
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_what_is_right_but_without_what_stands_there() {
        let (a, b) = (hex("a"), hex("b"));
        let long = "n".repeat(129);
        for (second, reason) in [
            (format!("secret {b}"), InvalidList::Columns { line: 2, columns: 2 }),
            (
                format!("my secret {b} read"),
                InvalidList::Columns { line: 2, columns: 4 },
            ),
            (format!("{long} {b} read"), InvalidList::Name { line: 2 }),
            (format!("b\u{7} {b} read"), InvalidList::Name { line: 2 }),
            ("b secret read".to_owned(), InvalidList::Digest { line: 2 }),
            (format!("b {} read", &b[1..]), InvalidList::Digest { line: 2 }),
            (format!("b {}g read", &b[1..]), InvalidList::Digest { line: 2 }),
            (format!("b {}ё read", &b[2..]), InvalidList::Digest { line: 2 }),
            (format!("b {b} secret"), InvalidList::Scopes { line: 2 }),
            (format!("b {b} read,"), InvalidList::Scopes { line: 2 }),
            (format!("b {b} READ"), InvalidList::Scopes { line: 2 }),
            (format!("b {b} read,read"), InvalidList::Scopes { line: 2 }),
            (format!("a {b} read"), InvalidList::DoubledName { line: 2, earlier: 1 }),
            (format!("b {a} read"), InvalidList::DoubledToken { line: 2, earlier: 1 }),
        ] {
            let error = parse(format!("a {a} read\n{second}").as_bytes()).unwrap_err();
            assert_eq!(error, reason, "{second}");
            let message = error.to_string();
            assert!(message.starts_with("line 2: ") && message.contains("give"), "{message}");
            assert!(
                ![b.as_str(), a.as_str(), "secret", "\n"]
                    .iter()
                    .any(|part| message.contains(part)),
                "{message}"
            );
        }
        assert_eq!(parse(b"a \xff\xfe read"), Err(InvalidList::NotText { line: 1 }));
        for text in ["", "\n\n", "# nothing\n"] {
            assert_eq!(parse(text.as_bytes()), Err(InvalidList::Empty));
        }
    }

    #[test]
    fn ten_thousand_tokens_are_taken_and_one_more_is_not() {
        let line = |number: usize| format!("caller-{number} {} read\n", hex(&number.to_string()));
        let text: String = (0..MAX_TOKENS).map(line).collect();
        assert_eq!(parse(text.as_bytes()).unwrap().len(), MAX_TOKENS);
        let text = text + &line(MAX_TOKENS);
        assert!(text.len() as u64 <= crate::small_file::MAX_BYTES, "{}", text.len());
        assert_eq!(parse(text.as_bytes()), Err(InvalidList::TooMany { line: 10_001 }));
    }
}
