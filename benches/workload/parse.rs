//! One line to one reading, by hand: the members in the order in which the generator writes them,
//! and a general parser for all else. The limit of what a decoder for any schema can reach.

use serde::Deserialize;

/// What the jobs need of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading<'a> {
    /// The device's name.
    pub(crate) device: &'a [u8],
    /// Event time, milliseconds since the Unix epoch.
    pub(crate) ts_ms: i64,
    /// Degrees.
    pub(crate) temperature: f64,
    /// Its status is `ok`.
    pub(crate) ok: bool,
}

/// Reads a line without its end; none if it is malformed.
#[inline]
pub(crate) fn parse(line: &[u8]) -> Option<Reading<'_>> {
    expected(line).or_else(|| general(line))
}

#[inline(always)]
fn expected(line: &[u8]) -> Option<Reading<'_>> {
    let rest = line.strip_prefix(b"{\"device\":\"")?;
    let (device, rest) = text(rest)?;
    let rest = rest.strip_prefix(b",\"ts\":")?;
    let (ts_ms, rest) = integer(rest)?;
    let rest = rest.strip_prefix(b",\"temperature\":")?;
    let (temperature, rest) = number(rest)?;
    let rest = rest.strip_prefix(b",\"humidity\":")?;
    let (_, rest) = number(rest)?;
    let rest = rest.strip_prefix(b",\"vibration\":")?;
    let (_, rest) = number(rest)?;
    let rest = rest.strip_prefix(b",\"status\":\"")?;
    let (status, rest) = text(rest)?;
    (rest == b"}").then_some(Reading { device, ts_ms, temperature, ok: status == b"ok" })
}

/// A plain string up to its closing quote, and what follows that.
#[inline(always)]
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    for (i, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' => return Some((&bytes[..i], &bytes[i + 1..])),
            b'\\' | 0..0x20 | 0x80.. => return None,
            _ => {}
        }
    }
    None
}

#[inline(always)]
fn digits(bytes: &[u8], mut value: u64) -> (u64, usize) {
    let mut length = 0;
    while let Some(byte) = bytes.get(length) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        length += 1;
    }
    (value, length)
}

#[inline(always)]
fn integer(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (value, length) = digits(bytes, 0);
    if length == 0 || length > 18 || bytes[0] == b'0' {
        return None;
    }
    Some((value as i64, &bytes[length..]))
}

/// A number of few digits and no exponent: exact by one division.
#[inline(always)]
fn number(bytes: &[u8]) -> Option<(f64, &[u8])> {
    const TENS: [f64; 10] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
    let negative = *bytes.first()? == b'-';
    let rest = if negative { &bytes[1..] } else { bytes };
    let (mut mantissa, length) = digits(rest, 0);
    if length == 0 || length > 15 || (length > 1 && rest[0] == b'0') {
        return None;
    }
    let mut rest = &rest[length..];
    let mut decimals = 0;
    if *rest.first()? == b'.' {
        (mantissa, decimals) = digits(&rest[1..], mantissa);
        if decimals == 0 || decimals > 9 || length + decimals > 15 {
            return None;
        }
        rest = &rest[1 + decimals..];
    }
    let value = mantissa as f64 / TENS[decimals];
    Some((if negative { -value } else { value }, rest))
}

/// All members, as the other engines that are compared read them.
#[derive(Deserialize)]
struct Line<'a> {
    device: &'a str,
    ts: i64,
    temperature: f64,
    #[serde(rename = "humidity")]
    _humidity: f64,
    #[serde(rename = "vibration")]
    _vibration: f64,
    status: &'a str,
}

#[cold]
fn general(line: &[u8]) -> Option<Reading<'_>> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    Some(Reading {
        device: line.device.as_bytes(),
        ts_ms: line.ts,
        temperature: line.temperature,
        ok: line.status == "ok",
    })
}
