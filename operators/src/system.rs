//! The system tables: what Tidegate itself has to say about readings, in rows.
//!
//! Their schemas, and how keys and rows are written into them as JSON, are defined here and
//! nowhere else. JSON objects have the order of the columns, so equal rows are equal text.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::array_value_to_string;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_128;

use crate::event::{ENGINE, EngineAlert, LimitChange};
use crate::expression::Failed;
use crate::reject::Reason;
use crate::spec::{DetectSpec, INGEST_TIME, time_type};
use crate::text::{runs, texts};

fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

fn time(name: &str) -> Field {
    Field::new(name, time_type(), false)
}

/// Schema of `system.rejects`: messages, elements and rows that could not be used.
pub fn rejects_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("topic"),
        text("client_id"),
        Field::new("journal_offset", DataType::Int64, false),
        Field::new("element", DataType::Int64, true),
        text("reason"),
        text("detail"),
        Field::new("payload", DataType::Binary, false),
        Field::new("payload_bytes", DataType::Int64, false),
        Field::new("reading_time", time_type(), true),
    ]))
}

/// Schema of `system.sessions`: what happened to the sessions of devices and brokers.
pub fn sessions_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        Field::new("journal_offset", DataType::Int64, false),
        text("source"),
        text("client_id"),
        text("user_name"),
        text("event"),
        text("detail"),
        text("address"),
        text("protocol"),
    ]))
}

/// Schema of `system.gaps`: times in which messages may have been lost before they reached us.
pub fn gaps_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        Field::new("journal_offset", DataType::Int64, false),
        text("source"),
        text("filter"),
        text("reason"),
        time("gap_from"),
        time("gap_to"),
    ]))
}

/// Schema of `system.limits`: a limit of the engine was reached, or is no longer, and what is done
/// about it. `value` and `max` are bytes; of `keys` rows that were refused and keys, of `outbox`
/// notifications, of `in_flight` what its subject says, of `open_files` connections; null of `disk`
/// and where a limit is left.
pub fn limits_schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, true);
    Arc::new(Schema::new(vec![
        time("time"),
        Field::new("journal_offset", DataType::Int64, false),
        text("kind"),
        text("subject"),
        text("state"),
        number("value"),
        number("max"),
        text("action"),
    ]))
}

/// A change of a limit with its time and its place in the journal.
pub(crate) type LimitRow = (i64, u64, LimitChange);

/// Names of all system tables, each with its schema.
pub fn system_tables() -> [(&'static str, SchemaRef); 10] {
    [
        ("rejects", rejects_schema()),
        ("late", late_table_schema()),
        ("windows_kept", windows_kept_schema()),
        ("duplicates", duplicates_schema()),
        ("clock_skew", clock_skew_schema()),
        ("findings", findings_schema()),
        ("alerts", alerts_schema()),
        ("sessions", sessions_schema()),
        ("gaps", gaps_schema()),
        ("limits", limits_schema()),
    ]
}

/// Rows of `system.limits`.
pub(crate) fn limit_rows(changes: &[LimitRow]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter_values(changes.iter().map(|c| c.0));
    let number = |f: &dyn Fn(&LimitChange) -> Option<u64>| -> ArrayRef {
        let numbers = changes.iter().map(|c| f(&c.2).and_then(|n| i64::try_from(n).ok()));
        Arc::new(numbers.collect::<Int64Array>())
    };
    let text = |f: &dyn Fn(&LimitChange) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(changes.iter().map(|c| f(&c.2))))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(changes.iter().map(|c| c.1 as i64))),
        text(&|c| c.kind.clone()),
        text(&|c| c.subject.clone()),
        text(&|c| c.state.clone()),
        number(&|c| c.value),
        number(&|c| c.max),
        text(&|c| c.action.clone()),
    ];
    RecordBatch::try_new(limits_schema(), columns).expect("columns follow the schema")
}

/// What operators say of readings that came after the state of their windows was gone:
/// `window_start` is that of the first, `window_end` that of the last window that no longer takes
/// it; where the readings make the bounds, their own time, and the time before which nothing is
/// revised any more, which is their own time as well if what they change is not known yet: when it
/// is, a row of a later `time` tells from which `window_start` on, up to what `window_end` and what
/// place in the journal, of which `first_offset` is the first. Such rows also tell what has become
/// final of counts that overlap.
pub fn late_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("step"),
        text("keys"),
        time("window_start"),
        time("window_end"),
        Field::new("received_late_us", DataType::Int64, false),
        Field::new("journal_offset", DataType::Int64, true),
        Field::new("first_offset", DataType::Int64, true),
    ]))
}

/// Schema of `system.late`: [`late_schema`], and the tick time at which a reading came in.
pub fn late_table_schema() -> SchemaRef {
    let mut fields = late_schema().fields().to_vec();
    fields.push(Arc::new(time(INGEST_TIME)));
    Arc::new(Schema::new(fields))
}

/// Rows of [`late_schema`] as rows of `system.late`.
///
/// # Errors
/// The rows are of another schema.
pub fn late_rows(rows: &RecordBatch, tick_us: i64) -> Result<RecordBatch, ArrowError> {
    let mut columns = rows.columns().to_vec();
    let times = std::iter::repeat_n(tick_us, rows.num_rows());
    let times = TimestampMicrosecondArray::from_iter_values(times);
    columns.push(Arc::new(times.with_timezone("UTC")));
    RecordBatch::try_new(late_table_schema(), columns)
}

/// Schema of `system.windows_kept`: windows that late readings had no effect on, because the
/// stored readings are not all that they were made of. One row per window and table, with the late
/// readings of the first time: once a reading is missing, it is for good. And windows that were
/// computed again of which a table behind them does not have the new revision, because a step on
/// the way keeps state: that table's name, and no late readings.
pub fn windows_kept_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("step"),
        text("table_name"),
        text("keys"),
        time("window_end"),
        Field::new("late_readings", DataType::Int64, false),
        time(INGEST_TIME),
    ]))
}

/// Schema of `system.duplicates`: readings that were dropped because they came before, and readings
/// that were forgotten too early to be recognised again. One row per epoch, device and reason.
pub fn duplicates_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("device"),
        text("reason"),
        Field::new("readings", DataType::Int64, false),
        Field::new("first_offset", DataType::Int64, false),
        Field::new("last_offset", DataType::Int64, false),
    ]))
}

/// Schema of `system.clock_skew`: how far the clocks of devices are from ours. `offset_us` is the
/// device's clock less ours, the delay of the network included; `off` says whether that is more
/// than the pipeline allows, `since` from when on it was seen.
pub fn clock_skew_schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("device"),
        number("offset_us"),
        Field::new("off", DataType::Boolean, false),
        time("since"),
        number("readings"),
    ]))
}

/// How many clocks turned out to be off, by rows of `system.clock_skew`.
pub fn clocks_off(rows: &RecordBatch) -> u64 {
    rows["off"].as_boolean().true_count() as u64
}

/// Schema of `system.findings`: what detectors found.
pub fn findings_schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Float64, false);
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("step"),
        text("keys"),
        number("value"),
        number("score"),
        number("expected"),
        number("deviation"),
        text("method"),
    ]))
}

/// Schema of `system.alerts`: changes of alerts. `time` is that of the row that made it, but later
/// than that of the same key's change before it. `reason` says why an alert ended, if it was not by
/// the condition of a row: `rule_changed`; `withdrawn`: the row that it fired for was none.
pub fn alerts_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        time("time"),
        text("pipeline"),
        text("rule"),
        text("keys"),
        text("status"),
        text("alert_id"),
        time("since"),
        text("severity"),
        text("summary"),
        text("row"),
        Field::new("notify", DataType::Boolean, false),
        Field::new("reason", DataType::Utf8, true),
    ]))
}

/// The value at `row` as JSON: times as RFC 3339 text in UTC, lists as arrays, groups of values as
/// objects, what JSON lacks as null or text.
pub fn json_value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => Value::from(column.as_boolean().value(row)),
        DataType::Int64 => Value::from(column.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => Value::from(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::from(column.as_string::<i32>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
            match DateTime::from_timestamp_micros(micros) {
                Some(at) => Value::from(at.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
                None => Value::from(micros),
            }
        }
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            (0..items.len()).map(|item| json_value(&items, item)).collect()
        }
        DataType::Struct(fields) => {
            let parts = fields.iter().zip(column.as_struct().columns());
            let parts = parts.map(|(field, part)| (field.name().clone(), json_value(part, row)));
            Value::Object(parts.collect())
        }
        _ => array_value_to_string(column, row).map_or(Value::Null, Value::from),
    }
}

/// The key of `row` as a JSON object in the order of the key columns.
pub fn keys_json(names: &[&str], keys: &[ArrayRef], row: usize) -> String {
    let object: Map<String, Value> = names
        .iter()
        .zip(keys)
        .map(|(name, column)| ((*name).to_owned(), json_value(column, row)))
        .collect();
    Value::Object(object).to_string()
}

/// All columns of `row` as a JSON object in the order of the schema.
pub fn row_json(rows: &RecordBatch, row: usize) -> String {
    let schema = rows.schema();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    keys_json(&names, rows.columns(), row)
}

/// Changes of the engine's own alerts, each with its time, as rows of `system.alerts`.
pub(crate) fn engine_alerts(changes: &[(i64, EngineAlert)]) -> RecordBatch {
    let count = changes.len();
    let time = |f: &dyn Fn(&(i64, EngineAlert)) -> i64| -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(changes.iter().map(f));
        Arc::new(times.with_timezone("UTC"))
    };
    let text = |f: &dyn Fn(&EngineAlert) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(changes.iter().map(|(_, alert)| f(alert))))
    };
    let id = |a: &EngineAlert| {
        format!("{:032x}", xxh3_128(format!("{ENGINE}\n{}\n{}", a.rule, a.since_us).as_bytes()))
    };
    let columns: Vec<ArrayRef> = vec![
        time(&|(at_us, _)| *at_us),
        repeated(ENGINE, count),
        text(&|a| a.rule.clone()),
        repeated("{}", count),
        text(&|a| a.status.clone()),
        text(&id),
        time(&|(_, a)| a.since_us),
        repeated("critical", count),
        text(&|a| a.summary.clone()),
        repeated("{}", count),
        Arc::new(BooleanArray::from(vec![true; count])),
        new_null_array(&DataType::Utf8, count),
    ];
    RecordBatch::try_new(alerts_schema(), columns).expect("columns follow the schema")
}

/// A reading was dropped: `reason` of `system.duplicates`.
pub(crate) const REPEATED: &str = "repeated";
/// A reading was forgotten before its time, because its device has too many.
pub(crate) const FORGOTTEN: &str = "forgotten";

/// A row of `system.duplicates`.
pub(crate) struct DuplicateRow<'a> {
    /// Event time of the first reading.
    pub(crate) time_us: i64,
    pub(crate) device: &'a str,
    pub(crate) reason: &'a str,
    /// How many.
    pub(crate) readings: i64,
    /// Journal offsets of the first and the last one.
    pub(crate) offsets: (i64, i64),
}

/// Rows of `system.duplicates`.
pub(crate) fn duplicates<'a>(
    pipeline: &str,
    rows: impl Iterator<Item = DuplicateRow<'a>>,
) -> RecordBatch {
    let rows: Vec<DuplicateRow<'a>> = rows.collect();
    let number = |f: &dyn Fn(&DuplicateRow<'a>) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(f)))
    };
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.time_us));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        repeated(pipeline, rows.len()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.device))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.reason))),
        number(&|r| r.readings),
        number(&|r| r.offsets.0),
        number(&|r| r.offsets.1),
    ];
    RecordBatch::try_new(duplicates_schema(), columns).expect("columns follow the schema")
}

/// How many readings were dropped, by rows of `system.duplicates`.
pub fn dropped_readings(rows: &RecordBatch) -> u64 {
    let reasons = rows.column(3).as_string::<i32>();
    let readings = rows.column(4).as_primitive::<Int64Type>();
    let dropped = (0..rows.num_rows()).filter(|row| reasons.value(*row) == REPEATED);
    dropped.map(|row| readings.value(row) as u64).sum()
}

/// How many rows of `system.rejects` are there because a key found no place: in its step, and in
/// memory.
pub fn refused_rows(rows: &RecordBatch) -> (u64, u64) {
    let reasons = rows["reason"].as_string::<i32>();
    let of = |wanted: Reason| {
        let wanted = Some(wanted.text());
        reasons.iter().filter(|reason| *reason == wanted).count() as u64
    };
    (of(Reason::KeysMax), of(Reason::MemoryMax))
}

fn repeated(value: &str, rows: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows)))
}

/// Rows of a detector's output edge ([`DetectSpec::schema`]) as rows of `system.findings`.
///
/// # Errors
/// The rows are not of that schema.
pub fn findings_from(spec: &DetectSpec, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let count = rows.num_rows();
    let keys = spec.keys.len();
    let names: Vec<&str> = spec.keys.iter().map(|k| spec.input.field(*k).name().as_str()).collect();
    let json = (0..count).map(|row| keys_json(&names, &rows.columns()[..keys], row));
    let mut columns = vec![
        Arc::clone(rows.column(keys)),
        repeated(&spec.pipeline, count),
        repeated(&spec.name, count),
        Arc::new(StringArray::from_iter_values(json)),
    ];
    columns.extend(rows.columns()[keys + 1..].iter().cloned());
    RecordBatch::try_new(findings_schema(), columns)
}

/// Rows that a step could not use, as rows of `system.rejects`. Steps see rows and not messages:
/// the payload is the row as JSON, and what the row does not carry (topic, client, offset) is empty
/// or -1. They are in several batches if they have much text: as JSON a row has more than before.
///
/// # Errors
/// `rows` has no time to file the rejects under; edges always have one.
pub fn step_rejects(
    pipeline: &str,
    step: &str,
    rows: &RecordBatch,
    failed: &[Failed],
) -> Result<Vec<RecordBatch>, ArrowError> {
    if failed.is_empty() {
        return Ok(Vec::new());
    }
    let texts = texts(rows);
    // Of each byte of a text JSON makes at most six, of a number and its name less than this.
    let around = 64 * rows.num_columns() as u64 + (pipeline.len() + step.len()) as u64;
    let bytes = |f: &Failed| 6 * texts[f.row] + f.detail.len() as u64 + around;
    let parts = runs(failed.iter().map(bytes), REJECTS_BYTES).into_iter();
    parts.map(|part| rejects_of(pipeline, step, rows, &failed[part])).collect()
}

/// Bytes of rejects that become one batch.
const REJECTS_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

fn rejects_of(
    pipeline: &str,
    step: &str,
    rows: &RecordBatch,
    failed: &[Failed],
) -> Result<RecordBatch, ArrowError> {
    let count = failed.len();
    let at = UInt32Array::from_iter_values(failed.iter().map(|f| f.row as u32));
    let column = |name: &str, wanted: &DataType| -> Option<Result<ArrayRef, ArrowError>> {
        let column = rows.column_by_name(name)?;
        (column.data_type() == wanted && column.null_count() == 0).then(|| take(column, &at, None))
    };
    let times = ["received_time", "time", "window_end"]
        .iter()
        .find_map(|name| column(name, &time_type()))
        .ok_or_else(|| ArrowError::SchemaError("the edge has no time column".into()))??;
    let text = |name| column(name, &DataType::Utf8).unwrap_or_else(|| Ok(repeated("", count)));
    let offsets = match rows.column_by_name("journal_offset") {
        Some(offsets) => cast(&take(offsets, &at, None)?, &DataType::Int64)?,
        None => Arc::new(Int64Array::from_value(-1, count)),
    };
    let own_times = match rows.column_by_name("time") {
        Some(times) if *times.data_type() == time_type() => take(times, &at, None)?,
        _ => new_null_array(&time_type(), count),
    };
    let payloads: Vec<String> = failed.iter().map(|f| row_json(rows, f.row)).collect();
    let details = failed.iter().map(|f| format!("step `{step}`: {}", f.detail));
    RecordBatch::try_new(
        rejects_schema(),
        vec![
            times,
            repeated(pipeline, count),
            text("topic")?,
            text("client_id")?,
            offsets,
            new_null_array(&DataType::Int64, count),
            Arc::new(StringArray::from_iter_values(failed.iter().map(|f| f.reason))),
            Arc::new(StringArray::from_iter_values(details)),
            Arc::new(BinaryArray::from_iter_values(payloads.iter().map(String::as_bytes))),
            Arc::new(Int64Array::from_iter_values(payloads.iter().map(|p| p.len() as i64))),
            own_times,
        ],
    )
}
