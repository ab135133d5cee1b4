//! The name under which a statement is kept as a file (RFC 6266), made of an id that may hold anything.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use poem::http::HeaderValue;

/// What RFC 8187 lets stand as it is.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// So many characters of an id: with four bytes each, and what stands around them, a name still has less than the 255
/// bytes that file systems take.
const MOST_CHARACTERS: usize = 48;

/// `Content-Disposition` of the statement of this user. The name in ASCII is for programs that know no other.
pub fn disposition(user_id: &str) -> HeaderValue {
    let id: String = user_id.chars().take(MOST_CHARACTERS).map(in_file_name).collect();
    let ascii: String = id.chars().map(in_ascii).collect();
    let mut text = format!("attachment; filename=\"statement-{ascii}.csv\"");
    if ascii != id {
        text += &format!(
            "; filename*=UTF-8''statement-{}.csv",
            utf8_percent_encode(&id, ATTR_CHAR)
        );
    }
    HeaderValue::try_from(text).expect("letters, digits and a few signs of ASCII are a header's value")
}

/// Without what some file system takes for more than a part of a name, or what makes a name look like another.
fn in_file_name(character: char) -> char {
    match character {
        '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '%' => '_',
        // Marks of direction, which show what follows backwards.
        '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}' => '_',
        character if character.is_control() => '_',
        other => other,
    }
}

fn in_ascii(character: char) -> char {
    match character {
        ' ' | '-' | '.' | '_' | '@' => character,
        character if character.is_ascii_alphanumeric() => character,
        _ => '_',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_safe_whatever_the_id_holds() {
        for (user_id, expected) in [
            ("alice", "attachment; filename=\"statement-alice.csv\""),
            ("a/../b", "attachment; filename=\"statement-a_.._b.csv\""),
            (
                "C:\\x\"; y",
                "attachment; filename=\"statement-C__x__ y.csv\"; filename*=UTF-8''statement-C__x_%3B%20y.csv",
            ),
            (
                "é😀",
                "attachment; filename=\"statement-__.csv\"; filename*=UTF-8''statement-%C3%A9%F0%9F%98%80.csv",
            ),
            ("x\u{202E}vsc", "attachment; filename=\"statement-x_vsc.csv\""),
        ] {
            assert_eq!(disposition(user_id), expected, "{user_id}");
        }
        let long = disposition(&"😀".repeat(256));
        assert_eq!(long.to_str().unwrap().matches("%F0%9F%98%80").count(), MOST_CHARACTERS);
    }
}
