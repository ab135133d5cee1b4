//! A moment, kept to the microsecond.

use std::fmt;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const MICROSECONDS_PER_SECOND: i64 = 1_000_000;

/// A moment in UTC: microseconds since 1970-01-01T00:00:00Z, from the first microsecond of year 1 to the last of year
/// 9999, which is what RFC 3339 can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Why a text is not a [`Timestamp`]. The message completes "timestamp …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimestamp {
    /// The text is not a date-time of RFC 3339, or names a day or an hour that does not exist.
    #[error(
        "must be an RFC 3339 date-time of an existing day, from 00:00:00 to 23:59:59, with `Z` or an offset such as `+02:00`"
    )]
    NotRfc3339,
    /// The moment, counted in UTC, is before year 1 or after year 9999.
    #[error("must lie between 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z, counted in UTC")]
    OutOfRange,
}

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Timestamp = Timestamp(-62_135_596_800 * MICROSECONDS_PER_SECOND);
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Timestamp = Timestamp(253_402_300_800 * MICROSECONDS_PER_SECOND - 1);

    /// Reads an RFC 3339 date-time with an offset or `Z`; `T` and `Z` may be lower case.
    ///
    /// Digits finer than a microsecond are cut off, towards the past. A leap second (`23:59:60` in UTC on the last day
    /// of a month) is the last microsecond of the second before it: later than all of that second, earlier than the
    /// next day.
    ///
    /// # Errors
    ///
    /// [`InvalidTimestamp`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        // RFC 3339 lets applications agree on other separators; we have not.
        if !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
            return Err(InvalidTimestamp::NotRfc3339);
        }
        let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| InvalidTimestamp::NotRfc3339)?;
        let microseconds = moment.unix_timestamp_nanos().div_euclid(1_000);
        i64::try_from(microseconds)
            .ok()
            .and_then(Self::from_unix_microseconds)
            .ok_or(InvalidTimestamp::OutOfRange)
    }

    /// The moment `microseconds` after 1970-01-01T00:00:00Z, or `None` outside [`MIN`](Self::MIN)`..=`[`MAX`](Self::MAX).
    pub fn from_unix_microseconds(microseconds: i64) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0)
            .contains(&microseconds)
            .then_some(Self(microseconds))
    }

    /// The moment `microseconds` after 1970-01-01T00:00:00Z, or the nearest to it that is in range.
    pub fn nearest(microseconds: i64) -> Self {
        Self(microseconds.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub fn unix_microseconds(self) -> i64 {
        self.0
    }

    /// The moment so much earlier, or [`MIN`](Self::MIN); less than a microsecond is left out.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(microseconds)).max(Self::MIN)
    }

    /// The moment so much later, or [`MAX`](Self::MAX); less than a microsecond is left out.
    pub fn saturating_add(self, duration: Duration) -> Self {
        let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(microseconds)).min(Self::MAX)
    }

    /// RFC 3339 with `Z` and always six digits of a second, so that texts sort as moments do.
    pub fn to_rfc3339_microseconds(self) -> String {
        text(&self.to_digits()).to_owned()
    }

    /// `YYYY-MM-DDThh:mm:ss.ffffffZ`. Written by hand, since every answer and every line of the log has one or two:
    /// a tenth of the time that a format description takes.
    fn to_digits(self) -> [u8; 27] {
        let moment = self.to_date_time();
        let (year, month, day) = moment.to_calendar_date();
        let (hour, minute, second, microsecond) = moment.to_hms_micro();
        let mut digits = *b"0000-00-00T00:00:00.000000Z";
        write_number(&mut digits[0..4], year.unsigned_abs());
        write_number(&mut digits[5..7], u8::from(month).into());
        write_number(&mut digits[8..10], day.into());
        write_number(&mut digits[11..13], hour.into());
        write_number(&mut digits[14..16], minute.into());
        write_number(&mut digits[17..19], second.into());
        write_number(&mut digits[20..26], microsecond);
        digits
    }

    fn to_date_time(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .expect("a Timestamp lies in the years 1 to 9999, which OffsetDateTime holds")
    }
}

/// The reading of a clock, finer digits cut off towards the past; a clock outside the years 1 to 9999 is taken for the
/// nearest moment in them.
impl From<SystemTime> for Timestamp {
    fn from(reading: SystemTime) -> Self {
        let nanoseconds = OffsetDateTime::from(reading).unix_timestamp_nanos();
        let microseconds = nanoseconds
            .div_euclid(1_000)
            .clamp(i128::from(Self::MIN.0), i128::from(Self::MAX.0));
        Self(i64::try_from(microseconds).expect("clamped to the range of a Timestamp, which is an i64"))
    }
}

/// RFC 3339 with `Z`, with as many digits of a second as needed: what a client sent in UTC comes back as it was.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.to_digits();
        let (seconds, fraction) = text(&digits).split_at(SECONDS_END);
        f.write_str(seconds)?;
        f.write_str(
            fraction
                .trim_end_matches('Z')
                .trim_end_matches('0')
                .trim_end_matches('.'),
        )?;
        f.write_str("Z")
    }
}

/// Where the seconds end in RFC 3339's text.
const SECONDS_END: usize = "YYYY-MM-DDThh:mm:ss".len();

/// Writes the last digits of a number, with zeros in front.
fn write_number(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("a digit is less than 10");
        number /= 10;
    }
}

fn text(digits: &[u8; 27]) -> &str {
    std::str::from_utf8(digits).expect("digits and separators are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Result<String, InvalidTimestamp> {
        Timestamp::parse(text).map(|timestamp| timestamp.to_string())
    }

    #[test]
    fn an_offset_is_counted_into_utc() {
        assert_eq!(shown("2026-01-31T12:00:00+02:00").unwrap(), "2026-01-31T10:00:00Z");
        assert_eq!(shown("2026-01-31t12:00:00z").unwrap(), "2026-01-31T12:00:00Z");
    }

    #[test]
    fn finer_digits_are_cut_off_towards_the_past() {
        assert_eq!(
            shown("2026-01-31T12:00:00.123456999Z").unwrap(),
            "2026-01-31T12:00:00.123456Z"
        );
        assert_eq!(
            shown("1969-12-31T23:59:59.999999999Z").unwrap(),
            "1969-12-31T23:59:59.999999Z"
        );
    }

    #[test]
    fn a_leap_second_is_later_than_the_second_before_it_and_earlier_than_the_next_day() {
        let leap = Timestamp::parse("2016-12-31T23:59:60Z").unwrap();
        assert!(leap > Timestamp::parse("2016-12-31T23:59:59.9Z").unwrap());
        assert!(leap < Timestamp::parse("2017-01-01T00:00:00Z").unwrap());
        assert_eq!(Timestamp::parse("2016-12-31T18:59:60.5-05:00"), Ok(leap));
        assert_eq!(shown("2026-01-31T12:00:60Z"), Err(InvalidTimestamp::NotRfc3339));
    }

    #[test]
    fn the_first_and_the_last_year_are_held_in_utc() {
        assert_eq!(Timestamp::parse("0001-01-01T00:00:00Z"), Ok(Timestamp::MIN));
        assert_eq!(Timestamp::parse("9999-12-31T23:59:59.999999999Z"), Ok(Timestamp::MAX));
        assert_eq!(shown("0001-01-01T00:00:00+00:01"), Err(InvalidTimestamp::OutOfRange));
        assert_eq!(shown("9999-12-31T23:59:59-00:01"), Err(InvalidTimestamp::OutOfRange));
        assert_eq!(shown("0000-12-31T23:59:59Z"), Err(InvalidTimestamp::OutOfRange));
    }

    #[test]
    fn what_is_not_a_moment_is_refused() {
        for text in [
            "",
            "now",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00Z",
            "2026-01-31 12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-02-30T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00+02:60",
            "2026-01-31T12:00:00+0200",
            "2026-01-31T12:00:00.Z",
            " 2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00Z ",
            "+2026-01-31T12:00:00Z",
            "１２26-01-31T12:00:00Z",
        ] {
            assert_eq!(shown(text), Err(InvalidTimestamp::NotRfc3339), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(microseconds in Timestamp::MIN.0..=Timestamp::MAX.0) {
            let timestamp = Timestamp(microseconds);
            prop_assert_eq!(Timestamp::parse(&timestamp.to_string()), Ok(timestamp));
            prop_assert_eq!(Timestamp::parse(&timestamp.to_rfc3339_microseconds()), Ok(timestamp));
            prop_assert_eq!(timestamp.to_string(), timestamp.to_date_time().format(&Rfc3339).unwrap());
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Timestamp::parse(&text);
        }
    }
}
