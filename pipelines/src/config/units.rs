//! Durations and sizes as people write them: a number with its unit, as `"250ms"` or `"64KiB"`.
//!
//! Arithmetic is exact: what cannot be said in whole microseconds or bytes is an error, never
//! rounded. A number without a unit is an error too, because nobody can know what was meant.

/// Longest duration that can be written: a hundred years. More is a typing mistake, and sums of a
/// few such values stay far inside 64 bits.
const DURATION_US_MAX: i128 = 100 * 366 * 86_400 * 1_000_000;

/// Largest size that can be written: a thousand TiB, far beyond one machine's memory or disk.
const SIZE_BYTES_MAX: i128 = 1 << 50;

const DURATION_UNITS: [(&str, i128); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

const SIZE_UNITS: [(&str, i128); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads a duration such as `"5s"`, `"1.5h"` or `"1h30m"`; microseconds. The error says what is
/// wrong with the text.
pub fn duration_us(text: &str) -> Result<i64, String> {
    let mut rest = text.trim();
    let mut total: i128 = 0;
    if rest.is_empty() {
        return Err("a duration cannot be empty".into());
    }
    while !rest.is_empty() {
        let (number, unit, tail) = split(rest)?;
        if unit.is_empty() {
            return Err(format!("`{text}` has no unit: is it \"{text}s\" or \"{text}ms\"?"));
        }
        let Some((_, factor)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("`{unit}` is not a unit of time (us, ms, s, m, h, d)"));
        };
        total += scale(number, *factor)
            .ok_or_else(|| format!("`{text}` is too long or finer than a microsecond"))?;
        if total > DURATION_US_MAX {
            return Err(format!("`{text}` is longer than a hundred years"));
        }
        rest = tail.trim_start();
    }
    Ok(total as i64)
}

/// Reads a time of day such as `"06:00"` or `"22:30:15"`; microseconds since midnight. The error
/// says what is wrong with the text.
pub fn time_of_day_us(text: &str) -> Result<i64, String> {
    let bad = || format!("`{text}` is not a time of day");
    let mut us = 0;
    let parts: Vec<&str> = text.split(':').collect();
    if !(2..=3).contains(&parts.len()) {
        return Err(bad());
    }
    for (part, (limit, unit_us)) in
        parts.iter().zip([(24, 3_600_000_000), (60, 60_000_000), (60, 1_000_000)])
    {
        let is_number = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        let number = part.parse().ok().filter(|number: &i64| is_number && *number < limit);
        us += number.ok_or_else(bad)? * unit_us;
    }
    Ok(us)
}

/// Writes a time of day; the inverse of [`time_of_day_us`].
pub fn show_time_of_day(us: i64) -> String {
    let (hours, minutes, seconds) = (us / 3_600_000_000, us / 60_000_000 % 60, us / 1_000_000 % 60);
    match seconds {
        0 => format!("{hours:02}:{minutes:02}"),
        _ => format!("{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

/// Reads a size such as `"64KiB"` or `"1MB"`; bytes. The error says what is wrong with the text.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let (number, unit, tail) = split(text.trim())?;
    if !tail.is_empty() {
        return Err(format!("`{text}` is not one number with one unit"));
    }
    if unit.is_empty() {
        return Err(format!("`{text}` has no unit: is it \"{text}KiB\" or \"{text}B\"?"));
    }
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "`{unit}` is not a unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"
        ));
    };
    match scale(number, *factor) {
        Some(bytes) if bytes <= SIZE_BYTES_MAX => Ok(bytes as u64),
        Some(_) => Err(format!("`{text}` is larger than 1024 TiB")),
        None => Err(format!("`{text}` is not a whole number of bytes")),
    }
}

/// Writes a duration in the largest unit that keeps it whole; the inverse of [`duration_us`].
pub fn show_duration(us: i64) -> String {
    show(i128::from(us), &DURATION_UNITS, "0s")
}

/// Writes a size in the largest unit that keeps it whole; the inverse of [`size_bytes`].
pub fn show_size(bytes: u64) -> String {
    show(i128::from(bytes), &SIZE_UNITS, "0B")
}

fn show(value: i128, units: &[(&str, i128)], zero: &str) -> String {
    if value == 0 {
        return zero.to_owned();
    }
    let (name, factor) = units
        .iter()
        .filter(|(_, factor)| value % factor == 0)
        .max_by_key(|(_, factor)| *factor)
        .expect("the smallest unit divides everything");
    format!("{}{name}", value / factor)
}

/// Splits `1.5h30m` into `1.5`, `h` and `30m`.
fn split(text: &str) -> Result<(&str, &str, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    if number.is_empty() || number.starts_with('.') || number.ends_with('.') {
        return Err(format!("`{text}` does not start with a number"));
    }
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(letters);
    if unit.is_empty() && !tail.is_empty() {
        return Err(format!("`{tail}` is not a unit"));
    }
    Ok((number, unit, tail))
}

/// `number * factor`, if it is whole and representable.
fn scale(number: &str, factor: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Eighteen digits on either side keep the product inside 128 bits.
    if whole.len() > 18 || fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let divisor = 10_i128.pow(fraction.len() as u32);
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let product = digits.checked_mul(factor)?;
    (product % divisor == 0).then_some(product / divisor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_units() {
        for (text, us) in [
            ("250ms", 250_000),
            ("5s", 5_000_000),
            ("1m", 60_000_000),
            ("1.5h", 5_400_000_000),
            ("1h30m", 5_400_000_000),
            ("7d", 604_800_000_000),
            ("10 us", 10),
            ("0s", 0),
        ] {
            assert_eq!(duration_us(text), Ok(us), "{text}");
        }
        for (text, bytes) in [("64KiB", 65_536), ("1MB", 1_000_000), ("0.5KiB", 512), ("7B", 7)] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("5", "no unit"),
            ("5 sec", "`sec` is not a unit"),
            ("", "empty"),
            ("-5s", "does not start with a number"),
            ("1.5us", "finer than a microsecond"),
            ("99999999d", "longer than"),
            ("1..5s", "finer than"),
            ("5s!", "does not start with a number"),
        ] {
            let message = duration_us(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
        for (text, part) in
            [("5", "no unit"), ("5kb", "`kb`"), ("0.3B", "whole number"), ("5MB1", "one number")]
        {
            let message = size_bytes(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_the_round_trip(us in 0..3_000_000_000_000_000_i64) {
            prop_assert_eq!(duration_us(&show_duration(us)), Ok(us));
        }

        #[test]
        fn a_size_survives_the_round_trip(bytes in 0..(1_u64 << 50)) {
            prop_assert_eq!(size_bytes(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,24}") {
            let _ = duration_us(&text);
            let _ = size_bytes(&text);
        }
    }
}
