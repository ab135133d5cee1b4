//! The user's version as an entity tag, and what requests make hang on it (RFC 9110, sections 8.8.3 and 13.1).

use poem::Request;
use poem::http::{HeaderName, HeaderValue, header};

use super::problem::Problem;
use crate::service::Precondition;

/// The version as a strong entity tag.
pub fn entity_tag(version: i64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("quotes, digits and a sign are visible ASCII")
}

/// The versions that the header `If-Match` names.
pub fn if_match(request: &Request) -> Result<Option<Precondition>, Problem> {
    let tags = Tags::of(request, &header::IF_MATCH, "If-Match")?;
    Ok(tags.map(|tags| match tags {
        Tags::Any => Precondition::AnyStored,
        // A weak tag is equal to none where strong ones are wanted.
        Tags::Listed(tags) => {
            let strong = tags.into_iter().filter(|tag| !tag.is_weak);
            Precondition::OneOf(strong.filter_map(|tag| tag.version).collect())
        }
    }))
}

/// The versions that the header `If-None-Match` names.
pub fn if_none_match(request: &Request) -> Result<Option<Known>, Problem> {
    let tags = Tags::of(request, &header::IF_NONE_MATCH, "If-None-Match")?;
    Ok(tags.map(Known))
}

/// Refuses the header `If-None-Match` on a change: what it was to prevent would happen.
pub fn no_if_none_match(request: &Request) -> Result<(), Problem> {
    match request.headers().contains_key(header::IF_NONE_MATCH) {
        false => Ok(()),
        true => Err(Problem::invalid(
            "If-None-Match is not for changes; send If-Match: \"0\" for a change that is to be the user's first.",
        )),
    }
}

/// Answers that a client has.
#[derive(Debug, PartialEq, Eq)]
pub struct Known(Tags);

impl Known {
    /// Whether that of this version is among them.
    pub fn includes(&self, version: i64) -> bool {
        match &self.0 {
            Tags::Any => true,
            Tags::Listed(tags) => tags.iter().any(|tag| tag.version == Some(version)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    Listed(Vec<Tag>),
}

#[derive(Debug, PartialEq, Eq)]
struct Tag {
    is_weak: bool,
    /// None, if it is no tag that this service gives.
    version: Option<i64>,
}

impl Tags {
    /// The tags of a header, which may be sent in several lines; none without it.
    fn of(request: &Request, name: &HeaderName, title: &str) -> Result<Option<Self>, Problem> {
        let mut lines = request.headers().get_all(name).iter().peekable();
        if lines.peek().is_none() {
            return Ok(None);
        }
        let parsed = lines
            .map(|line| Self::parse(line.as_bytes()))
            .collect::<Option<Vec<_>>>();
        let joined = parsed.and_then(|parsed| parsed.into_iter().reduce(Self::join)?.non_empty());
        joined.map(Some).ok_or_else(|| {
            Problem::invalid(format!(
                "{title} must be the ETag of an answer as it was, with its quotes, for example \"3\"; or several with commas \
                 between them, or *."
            ))
        })
    }

    /// `None` for what is no list of tags.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut rest = line.trim_ascii();
        if rest == b"*" {
            return Some(Tags::Any);
        }
        let mut tags = Vec::new();
        loop {
            // Empty elements of a list are allowed, and mean nothing.
            while let Some(behind) = rest.strip_prefix(b",") {
                rest = behind.trim_ascii_start();
            }
            if rest.is_empty() {
                return Some(Tags::Listed(tags));
            }
            let (tag, behind) = Tag::parse(rest)?;
            tags.push(tag);
            rest = behind.trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b",") {
                return None;
            }
        }
    }

    /// What several lines say together; `*` beside tags says nothing that could be meant.
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Tags::Listed(mut tags), Tags::Listed(more)) => {
                tags.extend(more);
                Tags::Listed(tags)
            }
            _ => Tags::Listed(Vec::new()),
        }
    }

    fn non_empty(self) -> Option<Self> {
        match self {
            Tags::Listed(tags) if tags.is_empty() => None,
            tags => Some(tags),
        }
    }
}

impl Tag {
    /// The tag that a text begins with, and what is behind it.
    fn parse(text: &[u8]) -> Option<(Self, &[u8])> {
        let (is_weak, quoted) = match text.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        // A version without the quotes is taken for what it is meant to be.
        if quoted.first().is_some_and(u8::is_ascii_digit) {
            let end = quoted.iter().position(|byte| !byte.is_ascii_digit());
            let (digits, behind) = quoted.split_at(end.unwrap_or(quoted.len()));
            let version = str::from_utf8(digits).ok().and_then(version_of);
            return Some((Self { is_weak, version }, behind));
        }
        let opaque = quoted.strip_prefix(b"\"")?;
        let end = opaque.iter().position(|byte| *byte == b'"')?;
        let (opaque, behind) = opaque.split_at(end);
        let is_tag = opaque.iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..));
        let version = str::from_utf8(opaque).ok().and_then(version_of);
        is_tag.then_some((Self { is_weak, version }, &behind[1..]))
    }
}

/// The version that is written just so.
fn version_of(text: &str) -> Option<i64> {
    let version: i64 = text.parse().ok()?;
    (version >= 0 && version.to_string() == text).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(lines: &[&str]) -> Request {
        let mut request = Request::builder();
        for line in lines {
            request = request.header("if-match", *line).header("if-none-match", *line);
        }
        request.finish()
    }

    #[test]
    fn a_change_hangs_on_the_strong_tags_that_it_names() {
        let one_of = |versions: &[i64]| Some(Precondition::OneOf(versions.to_vec()));
        for (lines, expected) in [
            (&[][..], None),
            (&["\"3\""], one_of(&[3])),
            (&["\"0\""], one_of(&[0])),
            (&[" , \"3\" ,, \"4\","], one_of(&[3, 4])),
            (&["\"3\"", "\"4\""], one_of(&[3, 4])),
            (&["3"], one_of(&[3])),
            (&["\"3\", 4"], one_of(&[3, 4])),
            (&["*"], Some(Precondition::AnyStored)),
            // Tags that are none of ours, or not the same by strong comparison.
            (&["W/\"3\""], one_of(&[])),
            (&["\"\""], one_of(&[])),
            (&["\"03\", \"+3\", \"-3\", \"3,4\", \"é\""], one_of(&[])),
            (&["\"9223372036854775808\""], one_of(&[])),
        ] {
            assert_eq!(if_match(&sent(lines)).unwrap(), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_client_knows_a_version_by_its_weak_tag_too() {
        for (lines, knows_3) in [
            (&["\"3\""][..], true),
            (&["W/\"3\""], true),
            (&["\"2\", W/\"3\""], true),
            (&["*"], true),
            (&["\"4\""], false),
            (&["\"x\""], false),
        ] {
            let known = if_none_match(&sent(lines)).unwrap().unwrap();
            assert_eq!(known.includes(3), knows_3, "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for lines in [
            &["x"][..],
            &["3x"],
            &["-3"],
            &[""],
            &[","],
            &["\"3"],
            &["3\""],
            &["w/\"3\""],
            &["\"3\" \"4\""],
            &["\"3\", x"],
            &["\"a b\""],
            &["*, \"3\""],
            &["*", "\"3\""],
            &["*", "*"],
        ] {
            assert!(if_match(&sent(lines)).is_err(), "{lines:?}");
            assert!(if_none_match(&sent(lines)).is_err(), "{lines:?}");
        }
    }
}
