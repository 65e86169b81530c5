//! From messages to readings: a pure function of the spec and the messages.
//!
//! A payload is read in three steps. (1) `reader`: bytes to the wanted values, by a remembered
//! layout or, where none fits, by a walk; a document is JSON as a whole or it is a reject. (2)
//! `column`: values to typed columns under rules. (3) a row whose columns all took their value is
//! kept, else the columns are cut back and the message, or the element of an exploded array, is a
//! reject. One bad message never costs another one.

mod column;
mod influx;
mod layout;
mod paths;
mod reader;
mod scan;
mod time;
mod topics;
mod value;
mod walk;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;

pub use self::influx::{Lines, Precision, lines};
pub use self::topics::{topics_match, unmatched_rejects};

use self::column::Column;
use self::influx::LineReader;
use self::paths::Paths;
use self::reader::{Element, Reader, Rows};
use self::scan::Fault;
use self::value::Value;
use crate::message::Messages;
use crate::reject::{Reason, Reject, RejectBuilder};
use crate::spec::{ColumnType, DecodeSpec, Format, Origin};

/// What came out of some messages.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Readings in message order, of [`DecodeSpec::schema`].
    pub readings: RecordBatch,
    /// Rejects in message order, of [`crate::system::rejects_schema`].
    pub rejects: RecordBatch,
    /// Messages whose topic this pipeline takes. The others are no rejects: another pipeline may
    /// take them (see [`unmatched_rejects`]).
    pub matched: u64,
}

/// Decodes the messages of one pipeline. It keeps nothing from one call to the next but room and
/// the layouts it learned, and those never change a result.
#[derive(Debug)]
pub struct Decoder {
    spec: DecodeSpec,
    schema: SchemaRef,
    reader: Formatted,
    columns: Vec<Column>,
    sources: Vec<Source>,
    /// Names of captures that columns use.
    captures: Vec<String>,
    /// The column that `future_bound_us` is about.
    time: Option<usize>,
    rows: usize,
    rejects: RejectBuilder,
}

/// What reads payloads of a format.
#[derive(Debug)]
enum Formatted {
    Json(Reader),
    Influx(LineReader),
}

impl Formatted {
    fn rows<'a>(&self) -> Rows<'a> {
        match self {
            Self::Json(reader) => reader.rows(),
            Self::Influx(lines) => Rows::new(lines.slots(), 0),
        }
    }

    /// Reads a payload into `rows`, which mean nothing after an error.
    #[inline]
    fn read<'a>(
        &mut self,
        payload: &'a [u8],
        envelope: &Envelope<'_>,
        rows: &mut Rows<'a>,
    ) -> Result<(), (Reason, Fault)> {
        match self {
            Self::Json(reader) => reader
                .read(payload, rows)
                .map_err(|fault| (if fault.deep { Reason::Depth } else { Reason::Parse }, fault)),
            Self::Influx(lines) => {
                lines.read(payload, envelope.properties, envelope.received_us, rows)
            }
        }
    }
}

/// Where the value of a column is when a row is put together.
#[derive(Clone, Copy, Debug)]
enum Source {
    Slot(usize),
    Shared(usize),
    Capture(usize),
    Topic,
    Client,
    Received,
    Offset,
}

/// What is known of a message besides its payload.
struct Envelope<'a> {
    topic: &'a [u8],
    client: &'a [u8],
    properties: &'a [u8],
    received_us: i64,
    offset: u64,
}

impl Decoder {
    /// A decoder for one pipeline.
    pub fn new(spec: DecodeSpec) -> Self {
        let mut elements = Paths::new();
        let mut document = spec.explode.as_ref().map(|path| {
            let mut paths = Paths::new();
            paths.want_elements(path);
            paths
        });
        let mut line = (spec.format == Format::Influx).then(LineReader::default);
        let mut captures: Vec<String> = Vec::new();
        let source = |column: &crate::spec::ColumnSpec| match &column.origin {
            Origin::Path(path) => Source::Slot(match &mut line {
                Some(line) => line.want(path),
                None => elements.want(path),
            }),
            Origin::Root(path) => match (&mut line, &mut document) {
                (Some(line), _) => Source::Slot(line.want(path)),
                (None, Some(document)) => Source::Shared(document.want(path)),
                (None, None) => Source::Slot(elements.want(path)),
            },
            Origin::Capture(name) => {
                let known = captures.iter().position(|c| c == name);
                Source::Capture(known.unwrap_or_else(|| {
                    captures.push(name.clone());
                    captures.len() - 1
                }))
            }
            Origin::Topic => Source::Topic,
            Origin::Client => Source::Client,
            Origin::ReceivedTime => Source::Received,
            Origin::Offset => Source::Offset,
        };
        let sources = spec.columns.iter().map(source).collect();
        let time = spec
            .columns
            .iter()
            .position(|c| c.name == "time" && matches!(c.kind, ColumnType::Time(_)));
        Self {
            schema: spec.schema(),
            reader: match line {
                Some(line) => Formatted::Influx(line),
                None => Formatted::Json(Reader::new(elements, document)),
            },
            columns: spec.columns.iter().map(Column::new).collect(),
            sources,
            captures,
            time,
            rows: 0,
            rejects: RejectBuilder::default(),
            spec,
        }
    }

    /// Decodes messages. Those of another source, or whose topic fits no template of this pipeline,
    /// are passed over.
    pub fn decode(&mut self, messages: &Messages) -> Decoded {
        let mut matched = 0;
        if messages.source == self.spec.source {
            matched = self.take_messages(messages);
        }
        let columns = self.columns.iter_mut().filter(|c| c.spec().output).map(Column::finish);
        let columns = columns.collect();
        // What is only checked is not part of the batch.
        self.columns.iter_mut().filter(|c| !c.spec().output).for_each(|c| c.truncate(0));
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        let schema = Arc::clone(&self.schema);
        let readings = RecordBatch::try_new_with_options(schema, columns, &options)
            .expect("columns follow the schema");
        self.rows = 0;
        Decoded { readings, rejects: self.rejects.finish(), matched }
    }

    fn take_messages(&mut self, messages: &Messages) -> u64 {
        self.columns.iter_mut().for_each(|c| c.reserve(messages.len()));
        let mut rows = self.reader.rows();
        let mut captures = vec![Value::Missing; self.captures.len()];
        let mut last: Option<(&[u8], bool)> = None;
        let mut matched = 0;
        for (i, meta) in messages.index.iter().enumerate().filter(|(_, meta)| !meta.event) {
            let topic = messages.topic(i);
            let taken = match last {
                Some((known, taken)) if known == topic => taken,
                _ => self.match_topic(topic, &mut captures),
            };
            last = Some((topic, taken));
            if !taken {
                continue;
            }
            matched += 1;
            let envelope = Envelope {
                topic,
                client: messages.client(i),
                properties: messages.properties(i),
                received_us: meta.received_us,
                offset: messages.first_offset + i as u64,
            };
            self.take_payload(messages.payload(i), &envelope, &captures, &mut rows);
        }
        matched
    }

    /// Fills `captures` from the first template that takes `topic`; false if none does.
    fn match_topic<'a>(&self, topic: &'a [u8], captures: &mut [Value<'a>]) -> bool {
        // A topic that is not UTF-8 is for `unmatched_rejects`: no pipeline takes it.
        let Ok(topic) = std::str::from_utf8(topic) else { return false };
        let mut texts = Vec::new();
        let Some(template) = self.spec.topics.iter().find(|t| t.matches(topic, &mut texts)) else {
            return false;
        };
        for (capture, name) in captures.iter_mut().zip(&self.captures) {
            let position = template.names().iter().position(|n| n == name);
            *capture = position.map_or(Value::Missing, |p| Value::Text(texts[p].as_bytes()));
        }
        true
    }

    #[inline]
    fn take_payload<'a>(
        &mut self,
        payload: &'a [u8],
        envelope: &Envelope<'a>,
        captures: &[Value<'a>],
        rows: &mut Rows<'a>,
    ) {
        if payload.len() > self.spec.payload_bytes_max {
            let detail = format!(
                "{} bytes, at most {} are read",
                payload.len(),
                self.spec.payload_bytes_max
            );
            return self.reject(envelope, None, Reason::TooLarge, &detail, payload);
        }
        if let Err((reason, fault)) = self.reader.read(payload, envelope, rows) {
            let detail = format!("{} at byte {}", fault.what, fault.at);
            return self.reject(envelope, None, reason, &detail, payload);
        }
        if !rows.found {
            let path = self.spec.explode.as_deref().unwrap_or_default().join(".");
            let detail = format!("there is no array at `{path}`");
            return self.reject(envelope, None, Reason::Explode, &detail, payload);
        }
        for (i, element) in rows.elements().iter().enumerate() {
            if let Err((reason, detail)) =
                self.take_row(*element, rows.values(i), &rows.shared, envelope, captures)
            {
                self.columns.iter_mut().for_each(|c| c.truncate(self.rows));
                let (position, payload) = match &self.spec.explode {
                    Some(_) => (Some(i), &payload[element.start..element.end]),
                    None => (None, payload),
                };
                self.reject(envelope, position, reason, &detail, payload);
            }
        }
    }

    /// Appends one row. After an error some columns may be longer than others.
    #[inline]
    fn take_row<'a>(
        &mut self,
        element: Element,
        values: &[Value<'a>],
        shared: &[Value<'a>],
        envelope: &Envelope<'a>,
        captures: &[Value<'a>],
    ) -> Result<(), (Reason, String)> {
        if !element.object && !self.takes_scalars() {
            return Err((Reason::NotAnObject, "a reading must be a JSON object".to_owned()));
        }
        for (column, source) in self.columns.iter_mut().zip(&self.sources) {
            let known;
            let value = match source {
                Source::Slot(slot) => &values[*slot],
                Source::Shared(slot) => &shared[*slot],
                Source::Capture(capture) => &captures[*capture],
                other => {
                    known = of_envelope(*other, envelope);
                    &known
                }
            };
            if let Err(reason) = column.push(value) {
                return Err((reason, column.describe(value, reason)));
            }
        }
        if let Some(time) = self.time {
            let ahead_us = self.columns[time]
                .last_time_us()
                .map_or(0, |us| us.saturating_sub(envelope.received_us));
            if ahead_us > self.spec.future_bound_us {
                let detail = format!("`time` is {} s after it was received", ahead_us / 1_000_000);
                return Err((Reason::Future, detail));
            }
        }
        self.rows += 1;
        Ok(())
    }

    #[cfg(test)]
    fn json(&mut self) -> &mut Reader {
        match &mut self.reader {
            Formatted::Json(reader) => reader,
            Formatted::Influx(_) => panic!("not JSON"),
        }
    }

    /// Whether an element can be a bare value: a column takes the element itself.
    fn takes_scalars(&self) -> bool {
        let path = |o: &Origin| matches!(o, Origin::Path(p) if p.is_empty());
        self.spec.columns.iter().any(|c| path(&c.origin))
    }

    #[cold]
    fn reject(
        &mut self,
        envelope: &Envelope<'_>,
        element: Option<usize>,
        reason: Reason,
        detail: &str,
        payload: &[u8],
    ) {
        self.rejects.push(&Reject {
            received_us: envelope.received_us,
            pipeline: &self.spec.pipeline,
            topic: envelope.topic,
            client: envelope.client,
            offset: envelope.offset,
            element,
            reason,
            detail,
            payload,
        });
    }
}

fn of_envelope<'a>(source: Source, envelope: &Envelope<'a>) -> Value<'a> {
    match source {
        Source::Topic => Value::Text(envelope.topic),
        Source::Client if envelope.client.is_empty() => Value::Missing,
        Source::Client if std::str::from_utf8(envelope.client).is_ok() => {
            Value::Text(envelope.client)
        }
        Source::Client => Value::NotUtf8,
        Source::Received => Value::Instant(envelope.received_us),
        Source::Offset => Value::Integer(envelope.offset as i64),
        Source::Slot(_) | Source::Shared(_) | Source::Capture(_) => Value::Missing,
    }
}
