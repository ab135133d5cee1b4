//! Which form of an answer a client wants, by its `Accept` (RFC 9110, section 12.5.1).

use poem::http::HeaderMap;
use poem::http::header::ACCEPT;

/// The forms of a history; of those that a client likes equally well the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For programs, and for whoever does not say.
    Json,
    /// For spreadsheets.
    Csv,
    /// For people.
    Html,
}

const FORMS: [Form; 3] = [Form::Json, Form::Csv, Form::Html];

impl Form {
    /// The one that the request's header asks for; several headers are one.
    ///
    /// JSON where none of them is wanted, rather than 406: it is what every client got before it could choose, and clients
    /// that ask for what there is not (`application/problem+json` alone, `application/xml`) read it all the same. What is no
    /// media range counts as not there.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let ranges: Vec<_> = lines
            .flat_map(|line| parts(line, ','))
            .filter_map(Range::parse)
            .collect();
        let mut wanted = (Form::Json, 0);
        for form in FORMS {
            let quality = quality(form, &ranges);
            if quality > wanted.1 {
                wanted = (form, quality);
            }
        }
        wanted.0
    }

    /// Its media type, with all its parameters.
    pub const fn media_type(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Csv => "text/csv; charset=utf-8",
            Form::Html => "text/html; charset=utf-8",
        }
    }

    /// Type and subtype.
    const fn essence(self) -> (&'static str, &'static str) {
        match self {
            Form::Json => ("application", "json"),
            Form::Csv => ("text", "csv"),
            Form::Html => ("text", "html"),
        }
    }

    fn has_parameter(self, name: &str, value: &str) -> bool {
        match name.to_ascii_lowercase().as_str() {
            // JSON has no such parameter, but is in no other encoding, and many clients ask for it so.
            "charset" => value.eq_ignore_ascii_case("utf-8"),
            "header" => self == Form::Csv && value.eq_ignore_ascii_case("present"),
            _ => false,
        }
    }
}

/// A media range and how much it is wanted.
struct Range<'a> {
    type_: &'a str,
    subtype: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    /// In thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = parts(text, ';');
        let (type_, subtype) = parts.next()?.split_once('/')?;
        let mut range = Self {
            type_,
            subtype,
            parameters: Vec::new(),
            quality: 1_000,
        };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or(value);
            if name.eq_ignore_ascii_case("q") {
                range.quality = thousandths(value)?;
                // What follows is not about the media type.
                break;
            }
            range.parameters.push((name, value));
        }
        Some(range)
    }

    /// How exactly it names the form; None if it does not.
    fn precision(&self, form: Form) -> Option<usize> {
        let (type_, subtype) = form.essence();
        let precision = match (self.type_, self.subtype) {
            ("*", "*") => 0,
            (of_type, "*") if of_type.eq_ignore_ascii_case(type_) => 1,
            (of_type, of_subtype)
                if of_type.eq_ignore_ascii_case(type_) && of_subtype.eq_ignore_ascii_case(subtype) =>
            {
                2
            }
            _ => return None,
        };
        let mut parameters = self.parameters.iter();
        let has_all = parameters.all(|(name, value)| form.has_parameter(name, value));
        has_all.then_some(precision + self.parameters.len())
    }
}

/// That of the range that names the form most exactly, whatever others say.
fn quality(form: Form, ranges: &[Range<'_>]) -> u16 {
    let named = ranges
        .iter()
        .filter_map(|range| Some((range.precision(form)?, range.quality)));
    named.max().map_or(0, |(_, quality)| quality)
}

/// 0 to 1 with up to three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let are_digits = decimals.bytes().all(|byte| byte.is_ascii_digit()) && decimals.len() <= 3;
    let decimals: u16 = format!("{decimals:0<3}").parse().ok().filter(|_| are_digits)?;
    match whole {
        // Some clients leave out the 0, as HttpURLConnection of older Javas does.
        "0" | "" => Some(decimals),
        "1" if decimals == 0 => Some(1_000),
        _ => None,
    }
}

/// What stands between the separators that are in no quotes.
fn parts(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let parts = text.split(move |character| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match character {
            '"' if !was_escaped => is_quoted = !is_quoted,
            '\\' if is_quoted && !was_escaped => is_escaped = true,
            _ => {}
        }
        character == separator && !is_quoted
    });
    parts.map(str::trim)
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::Form::{Csv, Html, Json};
    use super::*;

    fn wanted(lines: &[&str]) -> Form {
        let lines = lines.iter().map(|line| (ACCEPT, HeaderValue::from_str(line).unwrap()));
        let mut headers = HeaderMap::new();
        lines.for_each(|(name, value)| {
            headers.append(name, value);
        });
        Form::wanted(&headers)
    }

    #[test]
    fn the_form_is_the_one_that_is_wanted_most_by_the_range_that_names_it_most_exactly() {
        for (accept, form) in [
            // Nothing is said.
            ("", Json),
            ("*/*", Json),
            ("application/*", Json),
            // Browsers, and what clients and generators send.
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
                Html,
            ),
            ("application/json, text/plain, */*", Json),
            ("application/json, application/problem+json", Json),
            ("application/json, text/csv, text/html, application/problem+json", Json),
            ("application/json; charset=utf-8", Json),
            ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", Html),
            // One alone, however it is written.
            ("text/csv", Csv),
            ("TEXT/CSV", Csv),
            ("text/csv;header=present", Csv),
            ("text/csv ; charset=\"UTF-8\" ; header=present", Csv),
            ("text/html", Html),
            ("text/html; Charset=utf-8", Html),
            ("text/csv ;Q=0.5;; , ,application/json;q=0.1", Csv),
            // What there is of a kind, and the preference among equals.
            ("text/*", Csv),
            ("text/html, text/csv", Csv),
            ("text/html, application/json", Json),
            ("text/csv, */*", Json),
            // Qualities.
            ("application/json;q=0.5, text/csv", Csv),
            ("application/json;q=0.500, text/csv;q=0.501", Csv),
            ("text/csv;q=0.2, text/html;q=0.3", Html),
            ("text/csv;q=1.000, */*;q=0.999", Csv),
            ("text/html;q=0, */*", Json),
            ("application/json;q=0, */*", Csv),
            ("application/json;q=0, text/csv;q=0, */*;q=0.1", Html),
            // The most exact one counts, not the best one.
            ("text/*, text/csv;q=0.1, application/json;q=0.2", Html),
            ("text/*;q=0.3, text/csv;q=0.7, application/json;q=0.4", Csv),
            ("*/*, application/json;q=0.1, text/*;q=0.5", Csv),
            ("application/*;q=0.9, application/json;q=0.1, text/html;q=0.5", Html),
            (
                "text/csv;q=0.1, text/csv;header=present;q=0.9, application/json;q=0.5",
                Csv,
            ),
            // Another version of it is not this one.
            ("text/csv;header=absent, application/json;q=0.1", Json),
            ("text/html;level=1, text/csv;q=0.1", Csv),
            ("application/json;q=0.1, text/csv;q=0.2;extension=\"a,b\"", Csv),
            ("application/x;a=\"text/csv, text/html\", text/html", Html),
            // None is wanted, or nothing is understood.
            ("application/xml", Json),
            ("application/problem+json", Json),
            ("application/json;q=0, text/csv;q=0, text/html;q=0", Json),
            ("*/*;q=0", Json),
            ("text/csv;q=2", Json),
            ("text/csv;q=0.1234", Json),
            ("text/csv;q=high, text/html", Html),
            ("text/csv;q=-1", Json),
            ("text", Json),
            (",,;,\"", Json),
            ("*/csv", Json),
        ] {
            assert_eq!(wanted(&[accept]), form, "{accept}");
        }
        assert_eq!(wanted(&[]), Json);
        assert_eq!(wanted(&["application/json;q=0.1", "text/csv;q=0.2"]), Csv);
        assert_eq!(wanted(&["*/*", "application/json;q=0.1, text/html;q=0.2"]), Csv);
    }

    #[test]
    fn an_accept_header_of_any_bytes_is_answered() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, HeaderValue::from_bytes(b"text/csv\xff").unwrap());
        headers.append(ACCEPT, HeaderValue::from_static("text/html;q=0.1"));
        assert_eq!(Form::wanted(&headers), Html);
    }
}
