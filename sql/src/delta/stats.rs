//! Per-file statistics: row count, null counts, smallest and largest values.
//!
//! Readers skip files by them, so a bound may be wider than the values but never narrower. Where a
//! value has no exact JSON form (NaN, infinities, decimals, bytes) there is no bound. Long strings
//! are cut, upper bounds rounded up. Of lists and structs nothing is said: engines do not agree on
//! the form that their counts have.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::kernels::aggregate;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Schema, TimestampMicrosecondType,
};
use datafusion::common::ScalarValue;
use serde_json::{Map, Number, Value, json};

/// Longest string bound, in characters: enough to tell devices apart, and Delta's usual limit.
const BOUND_CHARS_MAX: usize = 32;

/// By how much a parsed bound is widened, of its size: four times the distance of two numbers.
const FLOAT_SLACK: f64 = 4.0 * f64::EPSILON;

#[derive(Clone, Debug, PartialEq)]
enum Bounds {
    /// No value yet.
    Empty,
    /// Some value has no exact bound.
    Unknown,
    Int(i64, i64),
    Float(f64, f64),
    Text(String, String),
}

impl Bounds {
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Empty, b) | (b, Self::Empty) => b,
            (Self::Int(a, b), Self::Int(c, d)) => Self::Int(a.min(c), b.max(d)),
            (Self::Float(a, b), Self::Float(c, d)) => Self::Float(a.min(c), b.max(d)),
            (Self::Text(a, b), Self::Text(c, d)) => Self::Text(a.min(c), b.max(d)),
            _ => Self::Unknown,
        }
    }

    fn of(column: &dyn Array) -> Self {
        macro_rules! int {
            ($kind:ty) => {{
                let array = column.as_primitive::<$kind>();
                match (aggregate::min(array), aggregate::max(array)) {
                    (Some(a), Some(b)) => Self::Int(a.into(), b.into()),
                    _ => Self::Empty,
                }
            }};
        }
        macro_rules! float {
            ($kind:ty) => {{
                // Total order puts NaN at the ends, so a finite pair means that all are finite.
                let array = column.as_primitive::<$kind>();
                match (aggregate::min(array), aggregate::max(array)) {
                    (Some(a), Some(b)) if a.is_finite() && b.is_finite() => {
                        Self::Float(a.into(), b.into())
                    }
                    (Some(_), _) => Self::Unknown,
                    _ => Self::Empty,
                }
            }};
        }
        if column.null_count() == column.len() {
            return Self::Empty;
        }
        match column.data_type() {
            DataType::Int8 => int!(Int8Type),
            DataType::Int16 => int!(Int16Type),
            DataType::Int32 => int!(Int32Type),
            DataType::Int64 => int!(Int64Type),
            DataType::Date32 => int!(Date32Type),
            DataType::Timestamp(_, _) => int!(TimestampMicrosecondType),
            DataType::Float32 => float!(Float32Type),
            DataType::Float64 => float!(Float64Type),
            DataType::Utf8 => {
                let array = column.as_string::<i32>();
                match (aggregate::min_string(array), aggregate::max_string(array)) {
                    (Some(a), Some(b)) => Self::Text(a.into(), b.into()),
                    _ => Self::Empty,
                }
            }
            _ => Self::Unknown,
        }
    }

    fn json(&self, kind: &DataType) -> (Option<Value>, Option<Value>) {
        match self {
            Self::Empty | Self::Unknown => (None, None),
            Self::Int(a, b) => (int_json(*a, kind), int_json(*b, kind)),
            Self::Float(a, b) => {
                let value = |v: f64| Number::from_f64(v).map(Value::Number);
                (value(*a), value(*b))
            }
            Self::Text(a, b) => (Some(lower_text(a).into()), upper_text(b).map(Value::from)),
        }
    }
}

fn int_json(value: i64, kind: &DataType) -> Option<Value> {
    let scalar = match kind {
        DataType::Date32 => ScalarValue::Date32(Some(i32::try_from(value).ok()?)),
        DataType::Timestamp(_, _) => {
            let time = chrono::DateTime::from_timestamp_micros(value)?;
            return Some(time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into());
        }
        _ => return Some(value.into()),
    };
    Some(scalar.to_string().into())
}

fn lower_text(text: &str) -> String {
    text.chars().take(BOUND_CHARS_MAX).collect()
}

/// A short text that is not below `text`: the cut prefix with its last character raised.
fn upper_text(text: &str) -> Option<String> {
    let mut cut: Vec<char> = text.chars().take(BOUND_CHARS_MAX + 1).collect();
    if cut.len() <= BOUND_CHARS_MAX {
        return Some(text.into());
    }
    cut.pop();
    while let Some(last) = cut.pop() {
        // The gap of the surrogates and the end of Unicode have no next character.
        if let Some(next) = char::from_u32(last as u32 + 1) {
            cut.push(next);
            return Some(cut.into_iter().collect());
        }
    }
    None
}

/// Gathers the statistics of one file, batch by batch.
pub(crate) struct StatsBuilder {
    rows: usize,
    nulls: Vec<usize>,
    bounds: Vec<Bounds>,
}

impl StatsBuilder {
    pub(crate) fn new(columns: usize) -> Self {
        Self { rows: 0, nulls: vec![0; columns], bounds: vec![Bounds::Empty; columns] }
    }

    pub(crate) fn update(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows();
        for (i, column) in batch.columns().iter().enumerate() {
            self.nulls[i] += column.null_count();
            let known = std::mem::replace(&mut self.bounds[i], Bounds::Unknown);
            self.bounds[i] = known.merge(Bounds::of(column));
        }
    }

    /// The `stats` text of the file.
    pub(crate) fn finish(self, schema: &Schema) -> String {
        let (mut min, mut max, mut nulls) = (Map::new(), Map::new(), Map::new());
        for (i, field) in schema.fields().iter().enumerate() {
            if field.data_type().is_nested() {
                continue;
            }
            nulls.insert(field.name().clone(), self.nulls[i].into());
            let (low, high) = self.bounds[i].json(field.data_type());
            if let Some(low) = low {
                min.insert(field.name().clone(), low);
            }
            if let Some(high) = high {
                max.insert(field.name().clone(), high);
            }
        }
        json!({"numRecords": self.rows, "minValues": min, "maxValues": max, "nullCount": nulls})
            .to_string()
    }
}

/// What is known of one column of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct ColumnStats {
    pub(crate) min: Option<ScalarValue>,
    pub(crate) max: Option<ScalarValue>,
    pub(crate) nulls: Option<u64>,
}

/// What is known of one file. Bounds may be wider than the values.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileStats {
    pub(crate) rows: Option<u64>,
    pub(crate) columns: HashMap<String, ColumnStats>,
}

/// A value of the log (bound or partition value) as a typed scalar.
pub(crate) fn parse_value(value: &Value, kind: &DataType, upper: bool) -> Option<ScalarValue> {
    let text = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        other => Some(other.to_string()),
    };
    if let (DataType::Timestamp(_, zone), Value::String(s)) = (kind, value) {
        let naive = || chrono::NaiveDateTime::parse_from_str(s, "%Y-%m-%d %H:%M:%S%.f").ok();
        let parsed = chrono::DateTime::parse_from_rfc3339(s).map(|t| t.timestamp_micros());
        let us = parsed.ok().or_else(|| Some(naive()?.and_utc().timestamp_micros()))?;
        // Other engines cut to milliseconds; an upper bound has to cover what was cut.
        let us = if upper && us % 1_000 == 0 { us.checked_add(999)? } else { us };
        return Some(ScalarValue::TimestampMicrosecond(Some(us), zone.clone()));
    }
    if let (DataType::Float64, Some(v)) = (kind, value.as_f64()) {
        // The JSON parser may be off by the last bits; a bound must not be narrower than a value.
        let slack = FLOAT_SLACK * v.abs();
        return Some(ScalarValue::Float64(Some(if upper { v + slack } else { v - slack })));
    }
    let has_text_only = matches!(kind, DataType::Decimal128(_, _) | DataType::Binary);
    if kind.is_nested() || has_text_only && !value.is_string() {
        return None;
    }
    ScalarValue::try_from_string(text(value)?, kind).ok()
}

impl FileStats {
    /// Reads the `stats` text of a file; what cannot be understood is unknown.
    pub(crate) fn parse(text: Option<&str>, schema: &Schema) -> Self {
        let Some(value) = text.and_then(|t| serde_json::from_str::<Value>(t).ok()) else {
            return Self::default();
        };
        let columns = schema.fields().iter().map(|f| {
            let get = |key: &str| value.get(key).and_then(|m| m.get(f.name()));
            let bound = |key, upper| parse_value(get(key)?, f.data_type(), upper);
            let column = ColumnStats {
                min: bound("minValues", false),
                max: bound("maxValues", true),
                nulls: get("nullCount").and_then(Value::as_u64),
            };
            (f.name().clone(), column)
        });
        Self { rows: value.get("numRecords").and_then(Value::as_u64), columns: columns.collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Date32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };

    use super::*;

    #[test]
    fn bounds_come_back_and_cover_every_value() {
        let long = "ä".repeat(40);
        let times = TimestampMicrosecondArray::from(vec![Some(1_000_001), None, Some(5_000_000)]);
        let batch = RecordBatch::try_from_iter_with_nullable([
            (
                "i",
                Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)])) as _,
                true,
            ),
            ("f", Arc::new(Float64Array::from(vec![1.5, -0.1, 1e300])) as ArrayRef, true),
            ("nan", Arc::new(Float64Array::from(vec![1.5, f64::NAN, 2.0])) as _, true),
            ("s", Arc::new(StringArray::from(vec![long.as_str(), "z", "b"])) as _, true),
            ("t", Arc::new(times.with_timezone("UTC")) as _, true),
            ("d", Arc::new(Date32Array::from(vec![-1, 0, 20_000])) as _, true),
            ("none", Arc::new(Int64Array::from(vec![None::<i64>; 3])) as _, true),
        ])
        .unwrap();
        let mut builder = StatsBuilder::new(7);
        builder.update(&batch.slice(0, 1));
        builder.update(&batch.slice(1, 2));
        let text = builder.finish(&batch.schema());
        let stats = FileStats::parse(Some(&text), &batch.schema());
        assert_eq!(stats.rows, Some(3));
        let column = |n: &str| stats.columns[n].clone();
        assert_eq!(column("i").min, Some(ScalarValue::Int64(Some(i64::MIN))));
        assert_eq!(column("i").max, Some(ScalarValue::Int64(Some(i64::MAX))));
        assert_eq!(column("i").nulls, Some(1));
        let ScalarValue::Float64(Some(high)) = column("f").max.unwrap() else { panic!() };
        assert!((1e300..1.000_001e300).contains(&high), "{high}");
        assert_eq!((column("nan").min, column("nan").max), (None, None));
        assert_eq!(column("none").nulls, Some(3));
        assert_eq!(column("d").min, Some(ScalarValue::Date32(Some(-1))));
        let ScalarValue::Utf8(Some(upper)) = column("s").max.unwrap() else { panic!() };
        assert!(upper.as_str() >= long.as_str() && upper.chars().count() <= BOUND_CHARS_MAX);
        let ScalarValue::TimestampMicrosecond(Some(low), _) = column("t").min.unwrap() else {
            panic!()
        };
        assert_eq!(low, 1_000_001);
        let ScalarValue::TimestampMicrosecond(Some(high), _) = column("t").max.unwrap() else {
            panic!()
        };
        assert!((5_000_000..5_001_000).contains(&high));
    }

    proptest::proptest! {
        #[test]
        fn every_float_lies_within_its_own_bounds(value in -1e18..1e18f64, small in -1e3..1e3f64) {
            for value in [value, small] {
                let column = Arc::new(Float64Array::from(vec![value])) as ArrayRef;
                let column = [("f", column, true)];
                let batch = RecordBatch::try_from_iter_with_nullable(column).unwrap();
                let mut builder = StatsBuilder::new(1);
                builder.update(&batch);
                let text = builder.finish(&batch.schema());
                let stats = FileStats::parse(Some(&text), &batch.schema());
                let (min, max) = (stats.columns["f"].min.clone(), stats.columns["f"].max.clone());
                let exact = ScalarValue::Float64(Some(value));
                proptest::prop_assert!(min.unwrap() <= exact, "{value:?} {text}");
                proptest::prop_assert!(max.unwrap() >= exact, "{value:?} {text}");
            }
        }
    }

    #[test]
    fn the_highest_characters_have_no_upper_text() {
        assert_eq!(upper_text(&"\u{10FFFF}".repeat(40)), None);
        assert_eq!(upper_text("short"), Some("short".into()));
    }
}
