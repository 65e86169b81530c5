//! From messages to readings: a pure function of the spec and the messages.
//!
//! A payload is read in three steps. (1) `reader`: bytes to the wanted values, by a remembered
//! layout or, where none fits, by a walk; a document is JSON as a whole or it is a reject. (2)
//! `column`: values to typed columns under rules. (3) a row whose columns all took their value is
//! kept, else the columns are cut back and the message, or the element of an exploded array, is a
//! reject. One bad message never costs another one.

mod clocks;
mod column;
mod influx;
mod layout;
mod paths;
mod reader;
mod repeated;
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
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use self::influx::{Lines, Precision, lines};
pub use self::topics::{Taker, topics_match, unmatched_rejects};

use self::clocks::Clocks;
use self::column::Column;
use self::influx::LineReader;
use self::paths::Paths;
use self::reader::{Element, Reader, Rows};
use self::repeated::Repeated;
use self::scan::Fault;
use self::value::Value;
use crate::message::Messages;
use crate::properties::{self, Property};
use crate::reject::{Reason, Reject, RejectBuilder};
use crate::spec::{ColumnSpec, ColumnType, DecodeSpec, Format, Origin};

/// What came out of some messages.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Readings in message order, of [`DecodeSpec::schema`].
    pub readings: RecordBatch,
    /// Rejects in message order, of [`crate::system::rejects_schema`].
    pub rejects: RecordBatch,
    /// What there is to know of clocks, if [`DecodeSpec::clocks`] asks for it, of
    /// [`crate::skew::clocks_schema`].
    pub clocks: Option<RecordBatch>,
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
    repeated: Repeated,
    /// Names of captures that columns use.
    captures: Vec<String>,
    /// Properties that columns use.
    properties: Vec<Property>,
    /// The column that `future_bound_us` and `past_bound_us` are about.
    time: Option<usize>,
    clocks: Option<Clocks>,
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
    Property(usize),
    /// Nobody reads it, and nothing about it can be wrong.
    Nothing,
    Topic,
    Client,
    Received,
    Offset,
    Hash,
    Element,
}

/// What is known of a message besides its payload.
struct Envelope<'a> {
    topic: &'a [u8],
    client: &'a [u8],
    properties: &'a [u8],
    received_us: i64,
    offset: u64,
    payload: &'a [u8],
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
        let mut properties: Vec<Property> = Vec::new();
        let source = |column: &ColumnSpec| match &column.origin {
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
            Origin::Property(_) if !is_looked_at(column) => Source::Nothing,
            Origin::Property(property) => {
                let known = properties.iter().position(|p| p == property);
                Source::Property(known.unwrap_or_else(|| {
                    properties.push(property.clone());
                    properties.len() - 1
                }))
            }
            Origin::Topic => Source::Topic,
            Origin::Client => Source::Client,
            Origin::ReceivedTime => Source::Received,
            Origin::Offset => Source::Offset,
            Origin::PayloadHash => Source::Hash,
            Origin::Element => Source::Element,
        };
        let sources: Vec<Source> = spec.columns.iter().map(source).collect();
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
            repeated: Repeated::new(&spec, &sources),
            sources,
            captures,
            properties,
            time,
            clocks: Clocks::new(&spec),
            rows: 0,
            rejects: RejectBuilder::default(),
            spec,
        }
    }

    /// Decodes messages from this one on, and says which are left.
    fn decode_from(&mut self, messages: &Messages, from: usize) -> (Decoded, usize) {
        let (mut matched, mut next) = (0, messages.len());
        if messages.source == self.spec.source {
            (matched, next) = self.take_messages(messages, from);
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
        let clocks = self.clocks.as_mut().map(Clocks::finish);
        (Decoded { readings, rejects: self.rejects.finish(), clocks, matched }, next)
    }

    fn take_messages(&mut self, messages: &Messages, from: usize) -> (u64, usize) {
        self.columns.iter_mut().for_each(|c| c.reserve(messages.len() - from));
        let mut rows = self.reader.rows();
        // Captures of the topic, then properties.
        let mut outside = vec![Value::Missing; self.captures.len() + self.properties.len()];
        let mut last: Option<(&[u8], bool)> = None;
        let mut matched = 0;
        let all = messages.index.iter().enumerate().skip(from);
        for (i, meta) in all.filter(|(_, meta)| !meta.event) {
            if self.repeated.is_full() {
                return (matched, i);
            }
            let topic = messages.topic(i);
            let taken = match last {
                Some((known, taken)) if known == topic => taken,
                _ => self.match_topic(topic, &mut outside),
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
                payload: messages.payload(i),
            };
            if meta.refused {
                self.reject_refused(&envelope, messages.properties(i));
                continue;
            }
            if !self.properties.is_empty() {
                self.take_properties(messages.properties(i), &mut outside);
            }
            self.take_payload(&envelope, &outside, &mut rows);
        }
        (matched, messages.len())
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

    /// Fills the part of `outside` after the captures.
    fn take_properties<'a>(&self, block: &'a [u8], outside: &mut [Value<'a>]) {
        let mut found = vec![None; self.properties.len()];
        properties::find(block, &self.properties, &mut found);
        let places = outside[self.captures.len()..].iter_mut();
        for ((place, property), value) in places.zip(&self.properties).zip(found) {
            *place = match value {
                None => Value::Missing,
                Some(bytes) if property.is_binary() => Value::Binary(bytes),
                Some(text) => Value::Text(text),
            };
        }
    }

    #[inline]
    fn take_payload<'a>(
        &mut self,
        envelope: &Envelope<'a>,
        outside: &[Value<'a>],
        rows: &mut Rows<'a>,
    ) {
        let payload = envelope.payload;
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
        let around = (self.captures.len(), outside);
        if let Some(detail) = self.repeated.too_much(rows, envelope, around) {
            return self.reject(envelope, None, Reason::TooLarge, &detail, payload);
        }
        for (i, element) in rows.elements().iter().enumerate() {
            if let Err((reason, detail)) = self.take_row(i, *element, rows, envelope, outside) {
                // Of these it is known what the last time is that was read.
                let known = matches!(reason, Reason::Future | Reason::Past);
                let reading_us = self.time.filter(|_| known);
                let reading_us = reading_us.and_then(|time| self.columns[time].last_time_us());
                self.columns.iter_mut().for_each(|c| c.truncate(self.rows));
                let (position, payload) = match &self.spec.explode {
                    Some(_) => (Some(i), &payload[element.start..element.end]),
                    None => (None, payload),
                };
                self.reject_at(reading_us, envelope, position, reason, &detail, payload);
            }
        }
    }

    /// Appends one row. After an error some columns may be longer than others.
    #[inline]
    fn take_row<'a>(
        &mut self,
        place: usize,
        element: Element,
        rows: &Rows<'a>,
        envelope: &Envelope<'a>,
        outside: &[Value<'a>],
    ) -> Result<(), (Reason, String)> {
        let (values, captures) = (rows.values(place), self.captures.len());
        if !element.object && !self.takes_scalars() {
            return Err((Reason::NotAnObject, "a reading must be a JSON object".to_owned()));
        }
        for (column, source) in self.columns.iter_mut().zip(&self.sources) {
            let known;
            let value = match source {
                Source::Slot(slot) => &values[*slot],
                Source::Shared(slot) => &rows.shared[*slot],
                Source::Capture(capture) => &outside[*capture],
                Source::Property(property) => &outside[captures + *property],
                Source::Hash => {
                    known = Value::Integer(hash_of(element, envelope));
                    &known
                }
                Source::Element => {
                    known = Value::Integer(place as i64);
                    &known
                }
                other => {
                    known = of_envelope(*other, envelope);
                    &known
                }
            };
            if let Err(reason) = column.push(value) {
                return Err((reason, column.describe(value, reason)));
            }
        }
        if let Some(clocks) = &mut self.clocks {
            clocks.note(&self.columns, envelope.received_us);
        }
        self.is_within_bounds(envelope)?;
        self.rows += 1;
        Ok(())
    }

    /// Whether the time of the last row is neither too far in the future nor in the past.
    #[inline]
    fn is_within_bounds(&self, envelope: &Envelope<'_>) -> Result<(), (Reason, String)> {
        let Some(time_us) = self.time.and_then(|time| self.columns[time].last_time_us()) else {
            return Ok(());
        };
        let ahead_us = time_us.saturating_sub(envelope.received_us);
        if ahead_us > self.spec.future_bound_us {
            let detail = format!("`time` is {} s after it was received", ahead_us / 1_000_000);
            return Err((Reason::Future, detail));
        }
        let behind_us = envelope.received_us.saturating_sub(time_us);
        if self.spec.past_bound_us.is_some_and(|bound_us| behind_us > bound_us) {
            let detail = format!("`time` is {} s before it was received", behind_us / 1_000_000);
            return Err((Reason::Past, detail));
        }
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

    /// A message that its source could not make whole; the reason stands in for properties.
    #[cold]
    fn reject_refused(&mut self, envelope: &Envelope<'_>, why: &[u8]) {
        let detail = String::from_utf8_lossy(why);
        self.reject(envelope, None, Reason::Parse, &detail, envelope.payload);
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
        self.reject_at(None, envelope, element, reason, detail, payload);
    }

    /// [`Self::reject`] of a reading whose own time is known.
    #[cold]
    fn reject_at(
        &mut self,
        reading_us: Option<i64>,
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
            reading_us,
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
        _ => Value::Missing,
    }
}

/// What tells a reading from another one of the same device and time: its topic and its own text.
fn hash_of(element: Element, envelope: &Envelope<'_>) -> i64 {
    let text = &envelope.payload[element.start..element.end];
    xxh3_64_with_seed(text, xxh3_64(envelope.topic)) as i64
}

/// Whether a column is put out, or its value could be wrong.
fn is_looked_at(column: &ColumnSpec) -> bool {
    let rules = &column.rules;
    column.output
        || column.kind != ColumnType::Utf8
        || rules.required
        || rules.matches.is_some()
        || rules.one_of.is_some()
}
