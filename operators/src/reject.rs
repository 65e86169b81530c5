//! Rows of `system.rejects`: what could not become a reading, and why.
//!
//! Every message or element that a pipeline takes and cannot use leads to exactly one row here,
//! with the bytes that were at fault, so that it can be looked at and sent again. This file must
//! not decide what is a reject.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryBuilder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondBuilder,
};

use crate::system::rejects_schema;

/// Bytes of a payload that are kept. Enough to see what is wrong with any message of a usual size;
/// a source that sends only rubbish must not fill the disk with it.
pub const PAYLOAD_KEPT_BYTES: usize = 64 * 1024;

/// Why a message or an element is not a reading. The text of each is part of the product's
/// interface: people filter by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No pipeline takes this topic.
    Topic,
    /// The topic is not UTF-8.
    TopicUtf8,
    /// The payload is longer than the pipeline allows, or the packet than its source does, or it
    /// has more text around the array that is exploded than can be copied into each reading.
    TooLarge,
    /// The payload is not a JSON document.
    Parse,
    /// The reading is JSON, but not an object.
    NotAnObject,
    /// There is no array where the pipeline expects one to explode.
    Explode,
    /// A value cannot become the declared type without loss.
    Type,
    /// A required value is null or missing.
    Required,
    /// A number is below its minimum or above its maximum.
    Range,
    /// A text does not match its regular expression.
    Pattern,
    /// A text is not among those allowed.
    OneOf,
    /// A text or number is not a point in time between 1970 and 2261.
    Time,
    /// The reading's time is too far ahead of its receive time.
    Future,
    /// The reading's time is too far behind its receive time.
    Past,
    /// The document is nested too deeply.
    Depth,
    /// No branch of a route takes the row.
    NoBranch,
    /// The row's key is new, and a step has as many keys as it may.
    KeysMax,
    /// The packet of the message is not what the protocol says.
    Malformed,
    /// The row's key is new, and the process has as much memory as it may.
    MemoryMax,
}

impl Reason {
    /// The stable text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::TopicUtf8 => "topic_utf8",
            Self::TooLarge => "too_large",
            Self::Parse => "parse",
            Self::NotAnObject => "not_an_object",
            Self::Explode => "explode",
            Self::Type => "type",
            Self::Required => "required",
            Self::Range => "range",
            Self::Pattern => "pattern",
            Self::OneOf => "one_of",
            Self::Time => "time",
            Self::Future => "future",
            Self::Past => "past",
            Self::Depth => "depth",
            Self::NoBranch => "no_branch",
            Self::KeysMax => "keys_max",
            Self::MemoryMax => "memory_max",
            Self::Malformed => "malformed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Rows that a step refused because it has as many keys as it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysRefused<'a> {
    /// Name of the pipeline.
    pub pipeline: &'a str,
    /// Name of the step.
    pub step: &'a str,
    /// Its budget.
    pub keys_max: u64,
    /// How many.
    pub rows: u64,
}

/// What detail a step tells of such rows.
pub(crate) fn keys_max_detail(keys_max: u64) -> String {
    format!("its key is new, and there is no place left (keys_max = {keys_max})")
}

/// Those among rows of [`rejects_schema`], by pipeline and step.
pub fn keys_refused(rows: &RecordBatch) -> Vec<KeysRefused<'_>> {
    let text = |name: &str| rows[name].as_string::<i32>();
    let (reasons, pipelines, details) = (text("reason"), text("pipeline"), text("detail"));
    let mut counts = BTreeMap::new();
    for row in 0..rows.num_rows() {
        if reasons.value(row) == Reason::KeysMax.text() {
            *counts.entry((pipelines.value(row), details.value(row))).or_insert(0) += 1;
        }
    }
    let refused = counts.into_iter().filter_map(|((pipeline, detail), rows)| {
        let (_, rest) = detail.split_once('`')?;
        let (step, rest) = rest.split_once('`')?;
        let (_, keys_max) = rest.rsplit_once("keys_max = ")?;
        let keys_max = keys_max.strip_suffix(')')?.parse().ok()?;
        Some(KeysRefused { pipeline, step, keys_max, rows })
    });
    refused.collect()
}

/// One reject.
#[derive(Clone, Copy, Debug)]
pub struct Reject<'a> {
    /// When the message was received, microseconds since the Unix epoch.
    pub received_us: i64,
    /// Name of the pipeline, empty if none takes the message.
    pub pipeline: &'a str,
    /// Its topic; what is not UTF-8 in it is shown as U+FFFD.
    pub topic: &'a [u8],
    /// The sender's client id, empty where unknown.
    pub client: &'a [u8],
    /// The message's journal offset.
    pub offset: u64,
    /// Position in the exploded array, if one element is at fault and not the whole message.
    pub element: Option<usize>,
    /// Why.
    pub reason: Reason,
    /// Why, for people.
    pub detail: &'a str,
    /// The bytes at fault: the message's payload, or the element's text. Cut at
    /// [`PAYLOAD_KEPT_BYTES`]; `payload_bytes` tells the length before that.
    pub payload: &'a [u8],
    /// The reading's own time where that is known, microseconds since the Unix epoch.
    pub reading_us: Option<i64>,
}

/// Collects rejects into a batch of [`rejects_schema`].
#[derive(Debug, Default)]
pub struct RejectBuilder {
    time: TimestampMicrosecondBuilder,
    pipeline: StringBuilder,
    topic: StringBuilder,
    client: StringBuilder,
    offset: Int64Builder,
    element: Int64Builder,
    reason: StringBuilder,
    detail: StringBuilder,
    payload: BinaryBuilder,
    payload_bytes: Int64Builder,
    reading_time: TimestampMicrosecondBuilder,
    rows: usize,
}

impl RejectBuilder {
    /// Appends one row.
    pub fn push(&mut self, reject: &Reject<'_>) {
        self.push_part(reject, reject.payload.len() as u64);
    }

    /// Appends one row, of which `payload` is only a part of so many bytes.
    pub fn push_part(&mut self, reject: &Reject<'_>, payload_bytes: u64) {
        self.rows += 1;
        self.time.append_value(reject.received_us);
        self.pipeline.append_value(reject.pipeline);
        self.topic.append_value(String::from_utf8_lossy(reject.topic));
        self.client.append_value(String::from_utf8_lossy(reject.client));
        self.offset.append_value(reject.offset as i64);
        self.element.append_option(reject.element.map(|e| e as i64));
        self.reason.append_value(reject.reason.text());
        self.detail.append_value(reject.detail);
        let kept = reject.payload.len().min(PAYLOAD_KEPT_BYTES);
        self.payload.append_value(&reject.payload[..kept]);
        self.payload_bytes.append_value(payload_bytes as i64);
        self.reading_time.append_option(reject.reading_us);
    }

    /// Number of rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Takes the rows collected.
    pub fn finish(&mut self) -> RecordBatch {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish().with_timezone("UTC")),
            Arc::new(self.pipeline.finish()),
            Arc::new(self.topic.finish()),
            Arc::new(self.client.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.element.finish()),
            Arc::new(self.reason.finish()),
            Arc::new(self.detail.finish()),
            Arc::new(self.payload.finish()),
            Arc::new(self.payload_bytes.finish()),
            Arc::new(self.reading_time.finish().with_timezone("UTC")),
        ];
        RecordBatch::try_new(rejects_schema(), columns).expect("columns follow the schema")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::Array;
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

    use super::*;

    #[test]
    fn long_payloads_are_cut_but_their_length_is_told() {
        let payload = vec![b'x'; PAYLOAD_KEPT_BYTES + 7];
        let mut builder = RejectBuilder::default();
        builder.push(&Reject {
            received_us: 5,
            pipeline: "p",
            topic: b"a/\xff",
            client: b"c",
            offset: 9,
            element: None,
            reason: Reason::TooLarge,
            detail: "why",
            payload: &payload,
            reading_us: Some(3),
        });
        assert_eq!(builder.len(), 1);
        let batch = builder.finish();
        assert!(builder.is_empty());
        assert_eq!(batch.schema(), rejects_schema());
        assert_eq!(batch["payload"].as_binary::<i32>().value(0).len(), PAYLOAD_KEPT_BYTES);
        assert_eq!(
            batch["payload_bytes"].as_primitive::<Int64Type>().value(0),
            payload.len() as i64
        );
        assert_eq!(batch["topic"].as_string::<i32>().value(0), "a/\u{fffd}");
        assert!(batch["element"].is_null(0));
        let own_times = batch["reading_time"].as_primitive::<TimestampMicrosecondType>();
        assert_eq!(own_times.value(0), 3);
    }
}
