//! Numbers and moments as people read them.

use crate::domain::Timestamp;

/// `+1 234` or `−1 234`: with a minus that is as wide as a plus.
pub fn signed(change: i128) -> String {
    let sign = if change > 0 { "+" } else { "" };
    format!("{sign}{}", grouped(change))
}

/// In groups of three, with a thin space between them, at which a number breaks that is wider than its place.
pub fn grouped(number: i128) -> String {
    let sign = if number < 0 { "\u{2212}" } else { "" };
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::with_capacity(digits.len() * 2 + sign.len());
    grouped.push_str(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    grouped
}

/// `2026-01-31`, in UTC.
pub fn day(at: Timestamp) -> String {
    part(at, 10)
}

/// `2026-01-31 12:00`, in UTC.
pub fn minute(at: Timestamp) -> String {
    part(at, 16)
}

/// `2026-01-31 12:00:00`, in UTC.
pub fn second(at: Timestamp) -> String {
    part(at, 19)
}

/// `2026-01-31 12:00:00.000001`, in UTC.
pub fn microsecond(at: Timestamp) -> String {
    part(at, 26)
}

fn part(at: Timestamp, length: usize) -> String {
    at.to_rfc3339_microseconds()[..length].replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_grouped_by_three_and_changes_have_a_sign() {
        assert_eq!(signed(1_234_567), "+1\u{2009}234\u{2009}567");
        assert_eq!(signed(-100), "\u{2212}100");
        assert_eq!(signed(0), "0");
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_000), "1\u{2009}000");
        assert_eq!(
            grouped((-1_i128) << 63).chars().filter(char::is_ascii_digit).count(),
            19
        );
    }

    #[test]
    fn a_moment_is_as_fine_as_it_is_wanted() {
        let at = Timestamp::parse("2026-01-31T12:00:05.000001Z").unwrap();
        assert_eq!(
            [day(at), minute(at), second(at), microsecond(at)],
            [
                "2026-01-31",
                "2026-01-31 12:00",
                "2026-01-31 12:00:05",
                "2026-01-31 12:00:05.000001"
            ]
        );
    }
}
