//! The bytes of JSON (RFC 8259): strings, numbers, literals, white space.
//!
//! Both ways of reading a document use these functions and no others, so they cannot disagree about
//! a value. Nothing is accepted here that the RFC forbids, and nothing is copied.

use super::value::{Number, Value};

/// Why a document is not JSON (or nested too deeply), and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Position in the document, bytes.
    pub(super) at: usize,
    /// What is wrong there.
    pub(super) what: &'static str,
    /// The document is nested too deeply, which is not a matter of syntax.
    pub(super) deep: bool,
}

impl Fault {
    pub(super) fn new(at: usize, what: &'static str) -> Self {
        Self { at, what, deep: false }
    }
}

/// The first position at or after `at` that is not white space.
#[inline]
pub(super) fn space(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// Reads the scalar that starts at `at`; the position after it. `Ok(None)`: no scalar starts here.
#[inline(always)]
pub(super) fn scalar(bytes: &[u8], at: usize) -> Result<Option<(Value<'_>, usize)>, Fault> {
    let Some(first) = bytes.get(at) else {
        return Err(Fault::new(at, "the document ends early"));
    };
    let (value, end) = match first {
        b'"' => string(bytes, at)?,
        b'-' | b'0'..=b'9' => {
            let (number, end) = number(bytes, at)?;
            (Value::Number(number), end)
        }
        b't' => (Value::Bool(true), literal(bytes, at, b"true")?),
        b'f' => (Value::Bool(false), literal(bytes, at, b"false")?),
        b'n' => (Value::Null, literal(bytes, at, b"null")?),
        _ => return Ok(None),
    };
    Ok(Some((value, end)))
}

fn literal(bytes: &[u8], at: usize, text: &'static [u8]) -> Result<usize, Fault> {
    if bytes[at..].starts_with(text) {
        Ok(at + text.len())
    } else {
        Err(Fault::new(at, "expected true, false or null"))
    }
}

/// Digits that a `u64` mantissa takes without overflow.
const MANTISSA_DIGITS: usize = 19;

/// Reads the number that starts at `at`.
#[inline(always)]
pub(super) fn number(bytes: &[u8], at: usize) -> Result<(Number<'_>, usize), Fault> {
    let first = at + usize::from(bytes.get(at) == Some(&b'-'));
    let (mut mantissa, mut end) = digits(bytes, first, 0);
    let whole = end - first;
    if whole == 0 || (whole > 1 && bytes[first] == b'0') {
        return Err(Fault::new(first, "not a number"));
    }
    let mut decimals = 0;
    if bytes.get(end) == Some(&b'.') {
        let start = end + 1;
        (mantissa, end) = digits(bytes, start, mantissa);
        decimals = end - start;
        if decimals == 0 {
            return Err(Fault::new(end, "a number needs a digit after its point"));
        }
    }
    let mut plain = whole + decimals <= MANTISSA_DIGITS;
    if let Some(b'e' | b'E') = bytes.get(end) {
        let start = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        end = digits(bytes, start, 0).1;
        if end == start {
            return Err(Fault::new(end, "a number needs a digit in its exponent"));
        }
        plain = false;
    }
    let negative = first > at;
    let decimals = if plain { decimals as u8 } else { 0 };
    Ok((Number { text: &bytes[at..end], mantissa, decimals, negative, plain }, end))
}

/// Reads digits onto `value` (which overflows silently: the caller counts them).
#[inline(always)]
fn digits(bytes: &[u8], mut at: usize, mut value: u64) -> (u64, usize) {
    while let Some(byte) = bytes.get(at) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    (value, at)
}

/// Reads the string whose opening quote is at `at`; the position after its closing quote.
#[inline(always)]
pub(super) fn string(bytes: &[u8], at: usize) -> Result<(Value<'_>, usize), Fault> {
    let start = at + 1;
    let end = plain_end(bytes, start);
    if bytes.get(end) == Some(&b'"') {
        return Ok((Value::Text(&bytes[start..end]), end + 1));
    }
    unusual_string(bytes, start, end)
}

/// A string with escapes, characters outside ASCII, or a mistake; plain up to `at`.
#[cold]
fn unusual_string(bytes: &[u8], start: usize, mut at: usize) -> Result<(Value<'_>, usize), Fault> {
    let (mut escaped, mut ascii) = (false, true);
    loop {
        match bytes.get(at) {
            None => return Err(Fault::new(at, "a string is not closed")),
            Some(b'"') => break,
            Some(b'\\') => {
                escaped = true;
                at = escape_end(bytes, at + 1)?;
            }
            Some(0..0x20) => return Err(Fault::new(at, "a control character in a string")),
            Some(byte) => {
                ascii &= byte.is_ascii();
                at += 1;
            }
        }
        if ascii {
            at = plain_end(bytes, at);
        }
    }
    let body = &bytes[start..at];
    if !ascii && let Err(e) = std::str::from_utf8(body) {
        return Err(Fault::new(start + e.valid_up_to(), "a string is not UTF-8"));
    }
    Ok((if escaped { Value::Escaped(body) } else { Value::Text(body) }, at + 1))
}

fn escape_end(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    match bytes.get(at) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 1),
        Some(b'u') => {
            let end = at + 5;
            match bytes.get(at + 1..end) {
                Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => Ok(end),
                _ => Err(Fault::new(at, "\\u needs four hexadecimal digits")),
            }
        }
        _ => Err(Fault::new(at, "an unknown escape in a string")),
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = ONES << 7;

/// The first position at or after `at` of a quote, a backslash, a control character or a byte
/// outside ASCII, eight bytes at a time; the length of `bytes` if there is none.
#[inline(always)]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(word) = bytes.get(at..).and_then(|b| b.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        // A byte of `x - ONES` has its high bit set if the byte was zero. A borrow can spoil bytes
        // above a hit, never below one, so the lowest hit is true.
        let hits = (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | (word.wrapping_sub(ONES * 0x20) & !word)
            | word;
        let hits = hits & HIGHS;
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = bytes.get(at) {
        if matches!(byte, b'"' | b'\\' | 0..0x20 | 0x80..) {
            break;
        }
        at += 1;
    }
    at
}
