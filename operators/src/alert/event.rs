//! Rows of `system.alerts`, made from the rows that changed a state.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Float64Type, SchemaRef};
use arrow::error::ArrowError;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::STATUSES;
use super::summary::{Piece, pieces};
use crate::spec::AlertSpec;
use crate::system::{alerts_schema, json_value, keys_json, row_json};

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Its time; later than that of the key's event before it.
    pub(super) time_us: i64,
    /// True: it fires now; false: it is resolved.
    pub(super) firing: bool,
    /// Since when its condition was true.
    pub(super) since_us: i64,
    /// Whether somebody is to be told.
    pub(super) notify: bool,
    /// Why it is resolved, if not because its condition says so.
    pub(super) reason: Option<&'static str>,
}

enum Part {
    Text(String),
    Column(usize),
}

/// A text for people with `{column}` in it.
pub(super) struct Summary(Vec<Part>);

impl Summary {
    /// What is no column stays as it is written.
    pub(super) fn parse(text: &str, schema: &SchemaRef) -> Self {
        let part = |(_, piece)| match piece {
            Piece::Plain(text) | Piece::Lone(text) => Part::Text(text.to_owned()),
            Piece::Column(name) => match schema.index_of(name) {
                Ok(column) => Part::Column(column),
                Err(_) => Part::Text(format!("{{{name}}}")),
            },
        };
        Self(pieces(text).into_iter().map(part).collect())
    }

    fn fill(&self, rows: &RecordBatch, row: usize) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Column(column) => people(rows.column(*column), row),
            })
            .collect()
    }
}

/// A value as people write it: no quotes, no more than three decimals unless they are all there is.
fn people(column: &ArrayRef, row: usize) -> String {
    if let Some(values) = column.as_primitive_opt::<Float64Type>()
        && values.is_valid(row)
    {
        let value = values.value(row);
        if value == 0.0 || (0.001..1e15).contains(&value.abs()) {
            let text = format!("{value:.3}");
            return text.trim_end_matches('0').trim_end_matches('.').to_owned();
        }
        return value.to_string();
    }
    match json_value(column, row) {
        Value::String(text) => text,
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// The same for every event of one alert, different for every other: 32 hexadecimal digits.
pub(super) fn alert_id((pipeline, rule): (&str, &str), keys: &str, since_us: i64) -> String {
    let mut bytes = Vec::new();
    for part in [pipeline, rule, keys] {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes.extend(since_us.to_le_bytes());
    format!("{:032x}", xxh3_128(&bytes))
}

/// One event per change, in the order given; a change comes with the index of its row.
pub(super) fn rows(
    spec: &AlertSpec,
    summary: &Summary,
    rows: &RecordBatch,
    changes: &[(usize, Change)],
) -> Result<RecordBatch, ArrowError> {
    let names: Vec<&str> = spec.keys.iter().map(|k| spec.input.field(*k).name().as_str()).collect();
    let columns: Vec<ArrayRef> = spec.keys.iter().map(|k| Arc::clone(rows.column(*k))).collect();
    let keys: Vec<String> =
        changes.iter().map(|(row, _)| keys_json(&names, &columns, *row)).collect();
    let time = |f: &dyn Fn(&Change) -> i64| -> ArrayRef {
        let values = changes.iter().map(|(_, change)| f(change));
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    };
    let text = |f: &dyn Fn(usize, Change) -> String| -> ArrayRef {
        let values = changes.iter().map(|(row, change)| f(*row, *change));
        Arc::new(StringArray::from_iter_values(values))
    };
    let rule = (spec.pipeline.as_str(), spec.name.as_str());
    let ids = changes.iter().zip(&keys).map(|((_, c), keys)| alert_id(rule, keys, c.since_us));
    let notify: Vec<bool> = changes.iter().map(|(_, change)| change.notify).collect();
    RecordBatch::try_new(
        alerts_schema(),
        vec![
            time(&|change| change.time_us),
            text(&|_, _| spec.pipeline.clone()),
            text(&|_, _| spec.name.clone()),
            Arc::new(StringArray::from_iter_values(&keys)),
            text(&|_, change| STATUSES[usize::from(!change.firing)].to_owned()),
            Arc::new(StringArray::from_iter_values(ids)),
            time(&|change| change.since_us),
            text(&|_, _| spec.severity.clone()),
            text(&|row, _| summary.fill(rows, row)),
            text(&|row, _| row_json(rows, row)),
            Arc::new(BooleanArray::from(notify)),
            Arc::new(StringArray::from_iter(changes.iter().map(|(_, c)| c.reason))),
        ],
    )
}
