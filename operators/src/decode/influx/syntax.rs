//! The bytes of a line: keys with backslashes, values by type, spaces between the parts.
//!
//! As InfluxDB reads them, with two differences: a doubled tag is an error everywhere, and a line
//! is strict to its end. Nothing is copied; escapes stay for whoever needs the text.

use super::super::scan::Fault;
use super::super::value::{Number, Slashes, Value};

/// A place in a line.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of a line; white space around it and its line end do not count.
    pub(super) fn new(line: &'a [u8]) -> Self {
        let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\n' | b'\r' | b'\t'));
        let bytes = &line[..end.map_or(0, |end| end + 1)];
        let at = bytes.iter().position(|b| !matches!(b, b' ' | b'\t')).unwrap_or(bytes.len());
        Self { bytes, at }
    }

    /// Where it is.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn fault<T>(&self, what: &'static str) -> Result<T, Fault> {
        Err(Fault::new(self.at, what))
    }

    /// What stands before the tags.
    pub(super) fn measurement(&mut self) -> Result<Value<'a>, Fault> {
        let name = self.until(b", ", b", ");
        if name.is_empty() {
            return self.fault("expected a measurement");
        }
        Ok(text(name, Slashes::Measurement))
    }

    /// The next tag; none when the fields begin, at which the cursor is then.
    pub(super) fn tag(&mut self) -> Result<Option<(&'a [u8], Value<'a>)>, Fault> {
        if self.peek() != Some(b',') {
            self.spaces();
            return Ok(None);
        }
        self.at += 1;
        let key = self.key()?;
        let value = self.until(b",= ", b",= ");
        if value.is_empty() {
            return self.fault("a tag without a value");
        }
        match self.peek() {
            Some(b',' | b' ') => Ok(Some((key, text(value, Slashes::Key)))),
            Some(b'=') => self.fault("an equals sign in a tag needs a backslash"),
            _ => self.fault("a line needs a field"),
        }
    }

    /// A field.
    pub(super) fn field(&mut self) -> Result<(&'a [u8], Value<'a>), Fault> {
        if self.at >= self.bytes.len() {
            return self.fault("a line needs a field");
        }
        let key = self.key()?;
        let value = match self.peek() {
            Some(b'"') => self.string()?,
            _ => self.scalar()?,
        };
        match self.peek() {
            None | Some(b',' | b' ') => Ok((key, value)),
            Some(_) => self.fault("expected a comma, a space or the end after a field"),
        }
    }

    /// Passes over a comma, if one is next.
    pub(super) fn another_field(&mut self) -> bool {
        let comma = self.peek() == Some(b',');
        self.at += usize::from(comma);
        comma
    }

    /// The timestamp and where it is, if there is one; nothing may follow it.
    pub(super) fn timestamp(&mut self) -> Result<Option<(usize, i64)>, Fault> {
        self.spaces();
        let written = &self.bytes[self.at..];
        if written.is_empty() {
            return Ok(None);
        }
        let text = std::str::from_utf8(written).unwrap_or_default();
        match text.parse() {
            Ok(count) if !text.starts_with('+') => Ok(Some((self.at, count))),
            _ => self.fault("the timestamp is not an integer"),
        }
    }

    fn spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    /// A key and the equals sign after it.
    fn key(&mut self) -> Result<&'a [u8], Fault> {
        let key = self.until(b",= ", b",= ");
        if self.peek() != Some(b'=') {
            return self.fault("expected an equals sign after a key");
        }
        if key.is_empty() {
            return self.fault("a key without a name");
        }
        self.at += 1;
        Ok(key)
    }

    /// Up to one of `stops` or a line end; a backslash before one of `escaped` hides it.
    fn until(&mut self, stops: &[u8], escaped: &[u8]) -> &'a [u8] {
        let start = self.at;
        while let Some(byte) = self.peek() {
            let next = self.bytes.get(self.at + 1);
            if byte == b'\\' && next.is_some_and(|n| escaped.contains(n)) {
                self.at += 2;
            } else if byte == b'\n' || stops.contains(&byte) {
                break;
            } else {
                self.at += 1;
            }
        }
        &self.bytes[start..self.at]
    }

    fn string(&mut self) -> Result<Value<'a>, Fault> {
        let start = self.at + 1;
        match string_end(self.bytes, self.at) {
            Some(end) => {
                self.at = end;
                Ok(text(&self.bytes[start..end - 1], Slashes::String))
            }
            None => self.fault("a string is not closed"),
        }
    }

    fn scalar(&mut self) -> Result<Value<'a>, Fault> {
        let start = self.at;
        let word = self.until(b", ", b"");
        let value = match word {
            b"t" | b"T" | b"true" | b"True" | b"TRUE" => Some(Value::Bool(true)),
            b"f" | b"F" | b"false" | b"False" | b"FALSE" => Some(Value::Bool(false)),
            [digits @ .., b'i'] => whole(digits, |text| text.parse::<i64>().is_ok()),
            [digits @ .., b'u'] => whole(digits, |text| text.parse::<u64>().is_ok()),
            word => number(word).map(Value::Number),
        };
        value.ok_or_else(|| Fault::new(start, "not a number, a boolean or a string in quotes"))
    }
}

fn text(bytes: &[u8], slashes: Slashes) -> Value<'_> {
    match bytes.contains(&b'\\') {
        true => Value::Slashed(bytes, slashes),
        false => Value::Text(bytes),
    }
}

fn whole(digits: &[u8], fits: impl Fn(&str) -> bool) -> Option<Value<'_>> {
    let number = number(digits)?;
    let plain = digits.iter().all(|b| b.is_ascii_digit() || *b == b'-');
    (plain && fits(number.as_str())).then_some(Value::Number(number))
}

/// The position after the string whose opening quote is at `at`.
pub(super) fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'"' | b'\\')));
    }
}

/// Digits that a `u64` takes without overflow.
const MANTISSA_DIGITS: usize = 19;

/// A number as Go writes and reads it: unlike in JSON there may be zeros in front, and nothing
/// before or after the point.
fn number(text: &[u8]) -> Option<Number<'_>> {
    let negative = text.first() == Some(&b'-');
    let mut at = usize::from(negative);
    let (mut mantissa, mut digits, mut decimals, mut point) = (0u64, 0, 0, false);
    while let Some(byte) = text.get(at) {
        match byte {
            b'0'..=b'9' => {
                // Overflows silently: the digits are counted.
                mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                digits += 1;
                decimals += usize::from(point);
            }
            b'.' if !point => point = true,
            _ => break,
        }
        at += 1;
    }
    if digits == 0 {
        return None;
    }
    let mut plain = digits <= MANTISSA_DIGITS && decimals < MANTISSA_DIGITS;
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = &text[at + 1 + sign..];
        if exponent.is_empty() || !exponent.iter().all(u8::is_ascii_digit) {
            return None;
        }
        plain = false;
        at = text.len();
    }
    let decimals = if plain { decimals as u8 } else { 0 };
    (at == text.len()).then_some(Number { text, mantissa, decimals, negative, plain })
}
