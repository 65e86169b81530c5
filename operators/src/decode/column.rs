//! One column being filled: type, rules, and Arrow buffers that can be cut back to whole rows.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Float64Array, Int64Array, NullBufferBuilder,
    StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use regex::Regex;

use super::time;
use super::value::{Number, Value, unescape, unslash};
use crate::reject::Reason;
use crate::spec::{ColumnSpec, ColumnType, OnInvalid, TimeFormat};

/// Values and, in parallel, which of them are null.
#[derive(Debug)]
pub(super) struct Column {
    spec: ColumnSpec,
    pattern: Option<Regex>,
    cells: Cells,
    nulls: NullBufferBuilder,
    /// Unescaped text, reused.
    scratch: Vec<u8>,
}

#[derive(Debug)]
enum Cells {
    Bool(BooleanBufferBuilder),
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Text { bytes: Vec<u8>, ends: Vec<i32> },
    Time(Vec<i64>),
}

/// Text in a reject's detail, bytes.
const SHOWN_BYTES: usize = 80;

impl Column {
    /// An empty column.
    pub(super) fn new(spec: &ColumnSpec) -> Self {
        let pattern = spec.rules.matches.as_ref();
        let cells = match spec.kind {
            ColumnType::Bool => Cells::Bool(BooleanBufferBuilder::new(0)),
            ColumnType::Int64 => Cells::Int64(Vec::new()),
            ColumnType::Float64 => Cells::Float64(Vec::new()),
            ColumnType::Utf8 => Cells::Text { bytes: Vec::new(), ends: vec![0] },
            ColumnType::Time(_) => Cells::Time(Vec::new()),
        };
        Self {
            spec: spec.clone(),
            pattern: pattern.map(|p| Regex::new(p).expect("checked when configured")),
            cells,
            nulls: NullBufferBuilder::new(0),
            scratch: Vec::new(),
        }
    }

    /// What the column is.
    pub(super) fn spec(&self) -> &ColumnSpec {
        &self.spec
    }

    /// Makes room for `rows` more rows.
    pub(super) fn reserve(&mut self, rows: usize) {
        match &mut self.cells {
            Cells::Bool(bits) => bits.reserve(rows),
            Cells::Int64(values) | Cells::Time(values) => values.reserve(rows),
            Cells::Float64(values) => values.reserve(rows),
            Cells::Text { ends, .. } => ends.reserve(rows),
        }
    }

    /// Appends a row. After an error the column is as long as before.
    #[inline]
    pub(super) fn push(&mut self, value: &Value<'_>) -> Result<(), Reason> {
        if matches!(value, Value::Missing | Value::Null) {
            return self.push_absent();
        }
        match self.push_present(value) {
            Ok(()) => {
                self.nulls.append_non_null();
                Ok(())
            }
            Err(_) if self.spec.on_invalid == OnInvalid::Null => {
                self.push_null();
                Ok(())
            }
            Err(reason) => Err(reason),
        }
    }

    fn push_absent(&mut self) -> Result<(), Reason> {
        if self.spec.rules.required && self.spec.on_invalid == OnInvalid::Reject {
            return Err(Reason::Required);
        }
        self.push_null();
        Ok(())
    }

    fn push_null(&mut self) {
        match &mut self.cells {
            Cells::Bool(bits) => bits.append(false),
            Cells::Int64(values) | Cells::Time(values) => values.push(0),
            Cells::Float64(values) => values.push(0.0),
            Cells::Text { bytes, ends } => ends.push(bytes.len() as i32),
        }
        self.nulls.append_null();
    }

    #[inline]
    fn push_present(&mut self, value: &Value<'_>) -> Result<(), Reason> {
        let rules = &self.spec.rules;
        match &mut self.cells {
            Cells::Bool(bits) => bits.append(to_bool(value)?),
            Cells::Int64(values) => {
                let value = to_i64(value)?;
                in_range(value as f64, rules.min, rules.max)?;
                values.push(value);
            }
            Cells::Float64(values) => {
                let value = to_f64(value)?;
                in_range(value, rules.min, rules.max)?;
                values.push(value);
            }
            Cells::Text { bytes, ends } => {
                let start = bytes.len();
                let done = append_text(value, bytes)
                    .and_then(|()| text_rules(&bytes[start..], &self.pattern, &rules.one_of))
                    .and_then(|()| i32::try_from(bytes.len()).map_err(|_| Reason::TooLarge));
                match done {
                    Ok(end) => ends.push(end),
                    Err(reason) => {
                        bytes.truncate(start);
                        return Err(reason);
                    }
                }
            }
            Cells::Time(values) => {
                let ColumnType::Time(format) = &self.spec.kind else {
                    unreachable!("cells follow the declared type")
                };
                values.push(to_time(value, format, &mut self.scratch)?);
            }
        }
        Ok(())
    }

    /// The last value of a time column.
    pub(super) fn last_time_us(&self) -> Option<i64> {
        match &self.cells {
            Cells::Time(values) => values.last().copied(),
            _ => None,
        }
    }

    /// The bytes of the last value of a text column; a null is empty.
    pub(super) fn last_text(&self) -> Option<&[u8]> {
        match &self.cells {
            Cells::Text { bytes, ends } => {
                let [start, end] = *ends.last_chunk::<2>()?;
                Some(&bytes[start as usize..end as usize])
            }
            _ => None,
        }
    }

    /// Cuts back to `rows` rows.
    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.cells {
            Cells::Bool(bits) => bits.truncate(rows),
            Cells::Int64(values) | Cells::Time(values) => values.truncate(rows),
            Cells::Float64(values) => values.truncate(rows),
            Cells::Text { bytes, ends } => {
                ends.truncate(rows + 1);
                bytes.truncate(ends.last().map_or(0, |end| *end as usize));
            }
        }
        self.nulls.truncate(rows);
    }

    /// Takes the rows. The next batch is expected to be of about the same size.
    pub(super) fn finish(&mut self) -> ArrayRef {
        let nulls = self.nulls.finish();
        match &mut self.cells {
            Cells::Bool(bits) => Arc::new(BooleanArray::new(bits.finish(), nulls)),
            Cells::Int64(values) => Arc::new(Int64Array::new(take(values).into(), nulls)),
            Cells::Float64(values) => Arc::new(Float64Array::new(take(values).into(), nulls)),
            Cells::Time(values) => {
                let times = TimestampMicrosecondArray::new(take(values).into(), nulls);
                Arc::new(times.with_timezone("UTC"))
            }
            Cells::Text { bytes, ends } => {
                let text = Buffer::from_vec(take(bytes));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(take(ends)));
                ends.push(0);
                let array = StringArray::try_new(offsets, text, nulls);
                Arc::new(array.expect("every text was checked to be UTF-8"))
            }
        }
    }

    /// What was wrong with `value`, for people.
    pub(super) fn describe(&self, value: &Value<'_>, reason: Reason) -> String {
        let (name, rules) = (&self.spec.name, &self.spec.rules);
        let shown = show(value);
        match reason {
            Reason::Required => format!("`{name}` is missing or null"),
            Reason::Range => {
                let bounds = match (rules.min, rules.max) {
                    (Some(min), Some(max)) => format!("between {min} and {max}"),
                    (Some(min), None) => format!("at least {min}"),
                    (None, Some(max)) => format!("at most {max}"),
                    (None, None) => "another value".to_owned(),
                };
                format!("`{name}` is {shown}, expected {bounds}")
            }
            Reason::Pattern => {
                let pattern = rules.matches.as_deref().unwrap_or_default();
                format!("`{name}` is {shown}, which does not match {pattern}")
            }
            Reason::OneOf => {
                let allowed = rules.one_of.as_deref().unwrap_or_default().join(", ");
                format!("`{name}` is {shown}, expected one of {allowed}")
            }
            Reason::Time => match self.meant(value) {
                Some(meant) => {
                    format!("`{name}` is {shown}, expected RFC 3339 with its zone, as in {meant}")
                }
                None => format!("`{name}` is {shown}, not a time between 1970 and 2261"),
            },
            _ => format!("`{name}` is {shown}, expected {}", self.type_name()),
        }
    }

    /// How a text that is nearly a time would have to be written.
    fn meant(&self, value: &Value<'_>) -> Option<String> {
        let (ColumnType::Time(format), Value::Text(text)) = (&self.spec.kind, value) else {
            return None;
        };
        time::as_meant(std::str::from_utf8(text).ok()?, format)
    }

    fn type_name(&self) -> &'static str {
        match self.spec.kind {
            ColumnType::Bool => "true or false",
            ColumnType::Int64 => "an integer",
            ColumnType::Float64 => "a number",
            ColumnType::Utf8 => "text",
            ColumnType::Time(_) => "a time",
        }
    }
}

/// Takes a vector and leaves an empty one with the same room.
fn take<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(values.len());
    std::mem::replace(values, room)
}

fn show(value: &Value<'_>) -> String {
    let cut = |text: &[u8]| match text.get(..SHOWN_BYTES) {
        Some(start) => format!("{}...", String::from_utf8_lossy(start)),
        None => String::from_utf8_lossy(text).into_owned(),
    };
    match value {
        Value::Missing | Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => cut(number.text),
        Value::Text(text) | Value::Escaped(text) | Value::Slashed(text, _) => {
            format!("\"{}\"", cut(text))
        }
        Value::Array => "an array".to_owned(),
        Value::Object => "an object".to_owned(),
        Value::Instant(value) | Value::Integer(value) => value.to_string(),
        Value::NotUtf8 => "not UTF-8".to_owned(),
        Value::Binary(bytes) => format!("{} bytes", bytes.len()),
    }
}

fn to_bool(value: &Value<'_>) -> Result<bool, Reason> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Number(number) => match number.to_i64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(Reason::Type),
        },
        Value::Text(b"true") => Ok(true),
        Value::Text(b"false") => Ok(false),
        _ => Err(Reason::Type),
    }
}

#[inline]
fn to_i64(value: &Value<'_>) -> Result<i64, Reason> {
    match value {
        Value::Number(number) => number.to_i64(),
        Value::Text(text) => Number::parse(text).and_then(Number::to_i64),
        Value::Integer(value) | Value::Instant(value) => Some(*value),
        _ => None,
    }
    .ok_or(Reason::Type)
}

#[inline]
fn to_f64(value: &Value<'_>) -> Result<f64, Reason> {
    match value {
        Value::Number(number) => number.to_f64(),
        Value::Text(text) => Number::parse(text).and_then(Number::to_f64),
        Value::Integer(value) => Some(*value as f64),
        _ => None,
    }
    .ok_or(Reason::Type)
}

/// Appends the text of a value; after an error something may have been appended.
#[inline]
fn append_text(value: &Value<'_>, out: &mut Vec<u8>) -> Result<(), Reason> {
    match value {
        Value::Text(text) => out.extend_from_slice(text),
        Value::Number(number) => out.extend_from_slice(number.text),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Escaped(body) => return unescape(body, out).then_some(()).ok_or(Reason::Type),
        Value::Slashed(body, slashes) => unslash(body, *slashes, out),
        Value::Binary(bytes) => {
            let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
            out.extend(bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]));
        }
        _ => return Err(Reason::Type),
    }
    Ok(())
}

fn to_time(value: &Value<'_>, format: &TimeFormat, scratch: &mut Vec<u8>) -> Result<i64, Reason> {
    let text = match value {
        Value::Number(number) => return time::from_number(*number, format).ok_or(Reason::Time),
        Value::Instant(us) => return Ok(*us),
        Value::Text(text) => text,
        Value::Escaped(body) => {
            scratch.clear();
            if !unescape(body, scratch) {
                return Err(Reason::Type);
            }
            scratch.as_slice()
        }
        Value::Slashed(body, slashes) => {
            scratch.clear();
            unslash(body, *slashes, scratch);
            scratch.as_slice()
        }
        _ => return Err(Reason::Type),
    };
    let text = std::str::from_utf8(text).map_err(|_| Reason::Time)?;
    time::from_text(text, format).ok_or(Reason::Time)
}

#[inline]
fn in_range(value: f64, min: Option<f64>, max: Option<f64>) -> Result<(), Reason> {
    let low = min.is_some_and(|min| value < min);
    let high = max.is_some_and(|max| value > max);
    if low || high { Err(Reason::Range) } else { Ok(()) }
}

#[inline]
fn text_rules(
    text: &[u8],
    pattern: &Option<Regex>,
    one_of: &Option<Vec<String>>,
) -> Result<(), Reason> {
    if let Some(pattern) = pattern {
        let text = std::str::from_utf8(text).map_err(|_| Reason::Type)?;
        if !pattern.is_match(text) {
            return Err(Reason::Pattern);
        }
    }
    match one_of {
        Some(allowed) if !allowed.iter().any(|a| a.as_bytes() == text) => Err(Reason::OneOf),
        _ => Ok(()),
    }
}
