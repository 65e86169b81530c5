//! Points in time as payloads write them, to microseconds since the Unix epoch (UTC).
//!
//! Only years 1970 to 2261 are times: they fit every engine that reads the tables (nanoseconds in
//! 64 bits end in 2262), and a clock outside of them is a broken clock.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

use super::value::Number;
use crate::spec::TimeFormat;

/// 2262-01-01T00:00:00Z, microseconds since the Unix epoch: the first moment that is not accepted.
pub(super) const END_US: i64 = 9_214_646_400_000_000;

/// The time that a number tells, none if it is outside of what is accepted.
#[inline]
pub(super) fn from_number(number: Number<'_>, format: &TimeFormat) -> Option<i64> {
    let unit_ns = match format {
        TimeFormat::Seconds => 1_000_000_000,
        TimeFormat::Milliseconds => 1_000_000,
        TimeFormat::Microseconds => 1_000,
        TimeFormat::Nanoseconds => 1,
        TimeFormat::Auto => unit_by_magnitude(number)?,
        TimeFormat::Rfc3339 => return None,
        TimeFormat::Pattern(_) => return from_text(number.as_str(), format),
    };
    let us = if number.plain {
        if number.negative && number.mantissa != 0 {
            return None;
        }
        if number.decimals == 0 && unit_ns >= 1_000 {
            number.mantissa.checked_mul(unit_ns / 1_000)?
        } else {
            let ns = u128::from(number.mantissa) * u128::from(unit_ns)
                / 10u128.pow(u32::from(number.decimals));
            u64::try_from(ns / 1_000).ok()?
        }
    } else {
        let us = number.to_f64()? * (unit_ns as f64 / 1e3);
        if us < 0.0 {
            return None;
        }
        us.round() as u64
    };
    i64::try_from(us).ok().filter(|us| *us < END_US)
}

/// Nanoseconds per unit, by the rule of [`TimeFormat::Auto`].
fn unit_by_magnitude(number: Number<'_>) -> Option<u64> {
    const LIMITS: [(u64, u64); 3] = [
        (100_000_000_000, 1_000_000_000),
        (100_000_000_000_000, 1_000_000),
        (100_000_000_000_000_000, 1_000),
    ];
    let whole = match number {
        Number { plain: true, decimals: 0, mantissa, .. } => mantissa,
        Number { plain: true, decimals, mantissa, .. } => mantissa / 10u64.pow(u32::from(decimals)),
        // Saturates, and what is that large is outside of what is accepted in any unit.
        _ => number.to_f64()?.abs() as u64,
    };
    Some(LIMITS.iter().find(|(below, _)| whole < *below).map_or(1, |(_, unit_ns)| *unit_ns))
}

/// The time that a text tells, none if it is not written as `format` says or outside of what is
/// accepted.
pub(super) fn from_text(text: &str, format: &TimeFormat) -> Option<i64> {
    let us = match format {
        TimeFormat::Pattern(pattern) => by_pattern(text, pattern)?,
        TimeFormat::Rfc3339 => DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros(),
        TimeFormat::Auto => match Number::parse(text.as_bytes()) {
            Some(number) => return from_number(number, format),
            None => DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros(),
        },
        _ => return from_number(Number::parse(text.as_bytes())?, format),
    };
    (0..END_US).contains(&us).then_some(us)
}

/// How a text would have to be written to be a time, if it only lacks its zone, or more of what
/// RFC 3339 wants. (It is not taken as it is: whose clock it shows is not known.)
pub(super) fn as_meant(text: &str, format: &TimeFormat) -> Option<String> {
    if !matches!(format, TimeFormat::Rfc3339 | TimeFormat::Auto) {
        return None;
    }
    let with_t = text.trim().replacen(' ', "T", 1);
    let ends = ["", "Z", ":00Z", "T00:00:00Z"].into_iter();
    ends.map(|end| format!("{with_t}{end}")).find(|meant| from_text(meant, format).is_some())
}

fn by_pattern(text: &str, pattern: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_str(text, pattern) {
        return Some(time.timestamp_micros());
    }
    if let Ok(time) = NaiveDateTime::parse_from_str(text, pattern) {
        return Some(time.and_utc().timestamp_micros());
    }
    let date = NaiveDate::parse_from_str(text, pattern).ok()?;
    Some(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn number(text: &str, format: TimeFormat) -> Option<i64> {
        from_number(Number::parse(text.as_bytes()).unwrap(), &format)
    }

    #[test]
    fn numbers_by_unit() {
        use TimeFormat::*;
        let us = Some(1_760_000_000_123_456);
        assert_eq!(number("1760000000.123456", Seconds), us);
        assert_eq!(number("1760000000.1234567", Seconds), us);
        assert_eq!(number("1760000000123.456", Milliseconds), us);
        assert_eq!(number("1760000000123456", Microseconds), us);
        assert_eq!(number("1760000000123456999", Nanoseconds), us);
        assert_eq!(number("1.76e9", Seconds), Some(1_760_000_000_000_000));
        assert_eq!(number("1760000000", Rfc3339), None);
        assert_eq!(from_text("1760000000123", &Milliseconds), Some(1_760_000_000_123_000));
        assert_eq!(from_text("1760000000123 ", &Milliseconds), None);
    }

    #[test]
    fn auto_goes_by_magnitude() {
        use TimeFormat::Auto;
        assert_eq!(number("1760000000", Auto), Some(1_760_000_000_000_000));
        assert_eq!(number("1760000000.5", Auto), Some(1_760_000_000_500_000));
        assert_eq!(number("1760000000123", Auto), Some(1_760_000_000_123_000));
        assert_eq!(number("1760000000123456", Auto), Some(1_760_000_000_123_456));
        assert_eq!(number("1760000000123456789", Auto), Some(1_760_000_000_123_456));
        assert_eq!(number("99999999999", Auto), None, "seconds of the year 5138");
        assert_eq!(number("100000000000", Auto), Some(100_000_000_000_000), "ms of 1973");
        assert_eq!(from_text("1760000000", &Auto), Some(1_760_000_000_000_000));
        let text = "2025-10-09T08:53:20.000001Z";
        assert_eq!(from_text(text, &Auto), Some(1_760_000_000_000_001));
        assert_eq!(from_text("2025-10-09T10:53:20+02:00", &Auto), Some(1_760_000_000_000_000));
        assert_eq!(from_text("yesterday", &Auto), None);
    }

    #[test]
    fn patterns_with_and_without_offset() {
        let pattern = |text: &str, p: &str| from_text(text, &TimeFormat::Pattern(p.into()));
        assert_eq!(
            pattern("09.10.2025 08:53:20", "%d.%m.%Y %H:%M:%S"),
            Some(1_760_000_000_000_000)
        );
        let zoned = pattern("2025-10-09 10:53:20 +0200", "%Y-%m-%d %H:%M:%S %z");
        assert_eq!(zoned, Some(1_760_000_000_000_000));
        assert_eq!(pattern("2025-10-09", "%Y-%m-%d"), Some(1_759_968_000_000_000));
        assert_eq!(pattern("2025-10-40", "%Y-%m-%d"), None);
        let digits = TimeFormat::Pattern("%Y%m%d%H%M%S".into());
        assert_eq!(number("20251009085320", digits), Some(1_760_000_000_000_000));
    }

    #[test]
    fn only_1970_to_2261() {
        let text = |t: &str| from_text(t, &TimeFormat::Auto);
        assert_eq!(text("1969-12-31T23:59:59.999999Z"), None);
        assert_eq!(text("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(text("2261-12-31T23:59:59.999999Z"), Some(END_US - 1));
        assert_eq!(text("2262-01-01T00:00:00Z"), None);
        assert_eq!(number("-1", TimeFormat::Seconds), None);
        assert_eq!(number("-0", TimeFormat::Seconds), Some(0));
        assert_eq!(number("-1e3", TimeFormat::Seconds), None);
        assert_eq!(number("1e300", TimeFormat::Auto), None);
        assert_eq!(number("18446744073709551616", TimeFormat::Nanoseconds), None);
        assert_eq!(number("999999999999999999", TimeFormat::Seconds), None);
    }

    #[test]
    fn a_text_that_lacks_its_zone_is_no_time_and_is_told_as_it_was_meant() {
        for (text, wanted) in [
            ("2026-11-27 22:40:00", Some("2026-11-27T22:40:00Z")),
            ("2026-11-27T22:40:00.5", Some("2026-11-27T22:40:00.5Z")),
            ("2026-11-27T22:40", Some("2026-11-27T22:40:00Z")),
            ("2026-11-27", Some("2026-11-27T00:00:00Z")),
            ("27.11.2026 22:40:00", None),
            ("1969-12-31 23:59:59", None),
            ("yesterday", None),
        ] {
            for format in [TimeFormat::Auto, TimeFormat::Rfc3339] {
                assert_eq!(from_text(text, &format), None, "{text}");
                assert_eq!(as_meant(text, &format).as_deref(), wanted, "{text}");
            }
            assert_eq!(as_meant(text, &TimeFormat::Pattern("%c".into())), None);
        }
    }
}
