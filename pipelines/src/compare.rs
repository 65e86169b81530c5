//! Compares the rows that a test expects with those that came out.
//!
//! Only the columns that the test names are compared. Rows are put into order of time, then key,
//! first, because workers deliver them in any order; rows that are equal in that stay as they came.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use arrow::util::display::array_value_to_string;
use chrono::DateTime;
use serde_json::{Map, Number, Value};

use crate::resolve::cases::rfc3339;

/// Numbers that differ by less than this, relative to the larger one, are equal: sums in another
/// order differ in their last digits.
const TOLERANCE: f64 = 1e-9;

/// Differences that are listed; the number of the others is told.
const DIFFERENCES_MAX: usize = 20;

/// What differs, in words; empty if nothing does. `expected` are objects, all rows in order.
pub fn compare_rows(expected: &[Map<String, Value>], actual: &[RecordBatch]) -> Vec<String> {
    let rows = ordered(actual);
    let mut differences = Vec::new();
    for (i, wanted) in expected.iter().enumerate() {
        let Some(row) = rows.get(i) else {
            differences.push(format!("row {}: missing: {}", i + 1, show(wanted)));
            continue;
        };
        for (name, value) in wanted {
            let found = cell(row, name);
            if !found.is_some_and(|found| equal(value, found)) {
                let found = found.map_or_else(|| "no such column".to_owned(), Value::to_string);
                differences.push(format!("row {}: {name}: expected {value}, got {found}", i + 1));
            }
        }
    }
    for (i, row) in rows.iter().enumerate().skip(expected.len()) {
        differences.push(format!("row {}: not expected: {}", i + 1, show(row)));
    }
    let more = differences.len().saturating_sub(DIFFERENCES_MAX);
    if more > 0 {
        differences.truncate(DIFFERENCES_MAX);
        differences.push(format!("and {more} more"));
    }
    differences
}

fn show(row: &Map<String, Value>) -> String {
    let cells: Vec<String> = row.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    cells.join(", ")
}

/// A column of a row, or, in the tables of findings, alerts and late rows, a part of the key.
fn cell<'r>(row: &'r Map<String, Value>, name: &str) -> Option<&'r Value> {
    row.get(name).or_else(|| row.get("keys")?.as_object()?.get(name))
}

/// All rows as JSON, by time and key.
fn ordered(batches: &[RecordBatch]) -> Vec<Map<String, Value>> {
    let mut rows: Vec<(i64, String, Map<String, Value>)> = Vec::new();
    for batch in batches {
        let schema = batch.schema();
        let time = ["window_start", "time"].iter().find_map(|n| batch.column_by_name(n));
        for i in 0..batch.num_rows() {
            let row: Map<String, Value> = schema
                .fields()
                .iter()
                .zip(batch.columns())
                .map(|(field, column)| (field.name().clone(), value(field.name(), column, i)))
                .collect();
            rows.push((time.map_or(0, |t| micros(t, i)), key(&row), row));
        }
    }
    rows.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    rows.into_iter().map(|(_, _, row)| row).collect()
}

fn micros(column: &ArrayRef, i: usize) -> i64 {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) if column.is_valid(i) => {
            column.as_primitive::<TimestampMicrosecondType>().value(i)
        }
        _ => i64::MIN,
    }
}

/// What orders rows of one time: the columns before the first time, which are the key in windows
/// and findings, or the `keys` of system tables.
fn key(row: &Map<String, Value>) -> String {
    let stop = ["window_start", "time"];
    let own: Vec<String> = row
        .iter()
        .take_while(|(name, _)| !stop.contains(&name.as_str()))
        .map(|(_, value)| value.to_string())
        .collect();
    let keys = row.get("keys").map(Value::to_string).unwrap_or_default();
    format!("{}{keys}", own.join("\u{0}"))
}

fn value(name: &str, column: &ArrayRef, i: usize) -> Value {
    if column.is_null(i) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => Value::Bool(column.as_boolean().value(i)),
        DataType::Int64 => Value::Number(column.as_primitive::<Int64Type>().value(i).into()),
        DataType::Float64 => {
            let float = column.as_primitive::<Float64Type>().value(i);
            Number::from_f64(float).map_or_else(|| float.to_string().into(), Value::Number)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            rfc3339(column.as_primitive::<TimestampMicrosecondType>().value(i)).into()
        }
        DataType::Utf8 => {
            let text = column.as_string::<i32>().value(i);
            // These hold JSON, in which a test wants to name parts.
            let json = matches!(name, "keys" | "row").then(|| serde_json::from_str(text).ok());
            json.flatten().unwrap_or_else(|| text.into())
        }
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(i);
            (0..items.len()).map(|item| value(name, &items, item)).collect()
        }
        DataType::Struct(fields) => {
            let parts = fields.iter().zip(column.as_struct().columns());
            let parts = parts.map(|(f, part)| (f.name().clone(), value(f.name(), part, i)));
            Value::Object(parts.collect())
        }
        DataType::Binary => String::from_utf8_lossy(column.as_binary::<i32>().value(i)).into(),
        _ => array_value_to_string(column, i).unwrap_or_default().into(),
    }
}

fn equal(expected: &Value, actual: &Value) -> bool {
    match (expected, actual) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a == b,
            _ => a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| close(a, b)),
        },
        // Milliseconds since the Unix epoch.
        (Value::Number(ms), Value::String(text)) => {
            time_us(text).zip(ms.as_i64()).is_some_and(|(us, ms)| ms.checked_mul(1_000) == Some(us))
        }
        (Value::String(a), Value::String(b)) => {
            a == b || time_us(a).zip(time_us(b)).is_some_and(|(a, b)| a == b)
        }
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(name, value)| b.get(name).is_some_and(|found| equal(value, found)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        _ => expected == actual,
    }
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs())
}

fn time_us(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{
        BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Field, Schema};
    use serde_json::json;
    use tidegate_operators::spec::time_type;

    use super::*;

    fn batch(devices: &[&str], starts: &[i64], means: &[Option<f64>]) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("device", DataType::Utf8, false),
            Field::new("window_start", time_type(), false),
            Field::new("mean", DataType::Float64, true),
            Field::new("n", DataType::Int64, false),
            Field::new("ok", DataType::Boolean, false),
        ]);
        let rows = devices.len();
        RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(StringArray::from(devices.to_vec())),
                Arc::new(TimestampMicrosecondArray::from(starts.to_vec()).with_timezone("UTC")),
                Arc::new(Float64Array::from(means.to_vec())),
                Arc::new(Int64Array::from(vec![3; rows])),
                Arc::new(BooleanArray::from(vec![true; rows])),
            ],
        )
        .unwrap()
    }

    fn rows(value: Value) -> Vec<Map<String, Value>> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn equal_rows_have_no_difference() {
        let actual = [
            batch(&["b", "a"], &[0, 0], &[Some(0.3), None]),
            batch(&["a"], &[-1_000], &[Some(1.0)]),
        ];
        let expected = rows(json!([
            { "device": "a", "window_start": "1969-12-31T23:59:59.999Z", "mean": 1 },
            { "device": "a", "window_start": 0, "mean": null },
            { "device": "b", "mean": 0.1 + 0.2, "n": 3.0, "ok": true,
              "window_start": "1970-01-01T01:00:00+01:00" },
        ]));
        assert_eq!(compare_rows(&expected, &actual), Vec::<String>::new());
    }

    #[test]
    fn differences_are_told_in_words() {
        let actual = [batch(&["a", "b"], &[0, 0], &[Some(1.0), Some(2.0)])];
        let expected = rows(json!([{ "device": "a", "mean": 1.00001, "missing": 1 }]));
        let differences = compare_rows(&expected, &actual);
        assert_eq!(differences.len(), 3);
        assert_eq!(differences[0], "row 1: mean: expected 1.00001, got 1.0");
        assert_eq!(differences[1], "row 1: missing: expected 1, got no such column");
        assert!(differences[2].starts_with("row 2: not expected: device = \"b\""));
        let none = compare_rows(&rows(json!([{ "device": "a" }])), &[]);
        assert_eq!(none, ["row 1: missing: device = \"a\""]);
        let many = compare_rows(&vec![Map::new(); 30], &[]);
        assert_eq!(many.len(), DIFFERENCES_MAX + 1);
        assert_eq!(many[DIFFERENCES_MAX], "and 10 more");
    }

    #[test]
    fn parts_of_the_key_are_columns() {
        let schema = Schema::new(vec![Field::new("keys", DataType::Utf8, false)]);
        let keys = StringArray::from(vec![r#"{"device":"d1"}"#]);
        let actual = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys)]).unwrap();
        assert!(
            compare_rows(&rows(json!([{ "device": "d1" }])), std::slice::from_ref(&actual))
                .is_empty()
        );
        assert_eq!(compare_rows(&rows(json!([{ "device": "d2" }])), &[actual]).len(), 1);
    }
}
