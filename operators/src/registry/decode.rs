//! From journaled messages of a registry to its changes. What breaks a type or a rule is a row of
//! `system.rejects`, and what the registry said of that key before stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};

use super::entries::Entries;
use super::refused::{Heard, together};
use super::{Change, DOES, SINCE};
use crate::decode::Decoder;
use crate::message::{MessageMeta, Messages};
use crate::operator::OperatorError;
use crate::properties::{self, Property};
use crate::spec::{
    CHANGE, ColumnSpec, ColumnType, DecodeSpec, Format, INGEST_TIME, OnInvalid, Origin,
    RegistrySpec, Rules, TimeFormat, VALID_FROM,
};
use crate::topic::TopicTemplate;

/// Longest row, bytes; a longer one is a reject.
pub const ROW_BYTES_MAX: usize = 1 << 20;

/// Reads the changes of one registry.
#[derive(Debug)]
pub struct RegistryDecoder {
    topic: Vec<u8>,
    changes: SchemaRef,
    /// Rows with all their columns.
    rows: Decoder,
    /// What goes has only its key.
    gone: Decoder,
    does: [Property; 1],
    /// What is received on a topic, if that is where it is.
    entries: Option<Entries>,
}

impl RegistryDecoder {
    /// A decoder of the registry's messages; `source` is that of its pipeline.
    pub fn new(spec: &RegistrySpec, source: u16) -> Self {
        Self {
            topic: spec.topic().into_bytes(),
            changes: spec.changes_schema(),
            rows: Decoder::new(decode_spec(spec, spec.columns.len())),
            gone: Decoder::new(decode_spec(spec, spec.keys)),
            does: [Property::User(DOES.to_owned())],
            entries: spec.entries.as_ref().map(|topic| Entries::new(spec, topic, source)),
        }
    }

    /// Whether there is anything of this registry among the messages.
    pub fn concerns(&self, run: &Messages) -> bool {
        (0..run.len()).any(|i| self.kind(run, i).is_some())
    }

    /// What a message is to this registry; `None` if it is nothing.
    fn kind(&self, run: &Messages, i: usize) -> Option<Kind> {
        if run.index[i].event {
            let ours = run.topic(i) == self.topic;
            return ours.then(|| if self.goes(run, i) { Kind::Gone } else { Kind::Row });
        }
        let is_entry = self.entries.as_ref().is_some_and(|e| e.takes(run, i));
        is_entry.then(|| if run.payload(i).is_empty() { Kind::Left } else { Kind::Entry })
    }

    /// Changes, of [`RegistrySpec::changes_schema`], and rejects, both in message order.
    ///
    /// # Errors
    /// Arrow's, which are broken invariants.
    pub fn decode(
        &mut self,
        run: &Messages,
    ) -> Result<(RecordBatch, Vec<RecordBatch>), OperatorError> {
        let (mut changes, mut rejects) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < run.len() {
            let Some(kind) = self.kind(run, at) else {
                at += 1;
                continue;
            };
            let start = at;
            while at < run.len() && self.kind(run, at) == Some(kind) {
                at += 1;
            }
            let (rows, refused) = match (kind, &mut self.entries) {
                (Kind::Entry, Some(entries)) => entries.rows(&part(run, start, at))?,
                (Kind::Left, Some(entries)) => entries.gone(run, start, at)?,
                _ => {
                    let gone = kind == Kind::Gone;
                    let decoder = if gone { &mut self.gone } else { &mut self.rows };
                    let decoded = decoder.decode(&part(run, start, at));
                    (decoded.readings, decoded.rejects)
                }
            };
            changes.push(widened(&self.changes, &rows)?);
            rejects.push(refused);
        }
        Ok((concat_batches(&self.changes, &changes)?, rejects))
    }

    /// Rejects that [`RegistryDecoder::decode`] made of a run: those of what is no entry, and all
    /// entries, as rows of [`heard_schema`](super::heard_schema).
    ///
    /// # Errors
    /// As [`RegistryDecoder::decode`].
    pub fn divide(
        &self,
        run: &Messages,
        rejects: &[RecordBatch],
    ) -> Result<(RecordBatch, RecordBatch), OperatorError> {
        let rejects = together(rejects)?;
        let (mut of_entries, mut others) = (BTreeMap::new(), Vec::new());
        let offsets = rejects["journal_offset"].as_primitive::<Int64Type>();
        for (row, offset) in (0u32..).zip(offsets.values()) {
            let i = (offset.cast_unsigned() - run.first_offset) as usize;
            match self.kind(run, i) {
                Some(Kind::Entry) => drop(of_entries.insert(i, row)),
                _ => others.push(row),
            }
        }
        let mut heard = Heard::default();
        for i in 0..run.len() {
            match self.kind(run, i) {
                Some(Kind::Entry) => heard.push(run, i, of_entries.get(&i).copied()),
                Some(Kind::Left) => heard.push(run, i, None),
                Some(Kind::Row | Kind::Gone) | None => {}
            }
        }
        let others = take_record_batch(&rejects, &UInt32Array::from(others))?;
        Ok((others, heard.finish(&rejects)?))
    }

    /// The messages that become changes, by their number in the run, each with since when it holds
    /// (`None`: since ever). Those of this registry that are not among them are rejects.
    ///
    /// # Errors
    /// As [`RegistryDecoder::decode`].
    pub fn accepted(
        &mut self,
        run: &Messages,
    ) -> Result<BTreeMap<usize, Option<i64>>, OperatorError> {
        let (changes, rejects) = self.decode(run)?;
        let offsets =
            |r: &RecordBatch| r["journal_offset"].as_primitive::<Int64Type>().values().to_vec();
        let refused: BTreeSet<i64> = rejects.iter().flat_map(offsets).collect();
        let from = changes[VALID_FROM].as_primitive::<TimestampMicrosecondType>();
        let is_refused = |i: usize| refused.contains(&((run.first_offset + i as u64) as i64));
        let is_good = |i: &usize| self.kind(run, *i).is_some() && !is_refused(*i);
        Ok((0..run.len()).filter(is_good).zip(from.iter()).collect())
    }

    fn goes(&self, run: &Messages, i: usize) -> bool {
        if run.index[i].refused {
            return false;
        }
        let mut found = [None];
        properties::find(run.properties(i), &self.does, &mut found);
        let text = found[0].and_then(|text| std::str::from_utf8(text).ok());
        text.is_some_and(|text| !Change::parse(text).has_row())
    }
}

/// What a message is to a registry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The edge says that a row holds.
    Row,
    /// The edge says that one goes.
    Gone,
    /// An entry on the topic.
    Entry,
    /// An entry that was removed from the topic.
    Left,
}

/// Some messages of a run, as ordinary ones.
fn part(run: &Messages, start: usize, end: usize) -> Messages {
    let ordinary = |meta: &MessageMeta| MessageMeta { event: false, ..*meta };
    Messages {
        source: 0,
        first_offset: run.first_offset + start as u64,
        data: run.data.clone(),
        index: run.index[start..end].iter().map(ordinary).collect(),
    }
}

/// The same rows with nulls in the columns that they do not have.
fn widened(schema: &SchemaRef, rows: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let column = |field: &Arc<arrow::datatypes::Field>| -> ArrayRef {
        match rows.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), rows.num_rows()),
        }
    };
    let columns = schema.fields().iter().map(column).collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// A column that can only be what it is.
pub(super) fn plain(name: &str, origin: Origin, kind: ColumnType) -> ColumnSpec {
    ColumnSpec {
        name: name.to_owned(),
        origin,
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    }
}

/// How rows of the first `count` columns are read.
fn decode_spec(spec: &RegistrySpec, count: usize) -> DecodeSpec {
    let mut columns = spec.columns[..count].to_vec();
    for column in &mut columns {
        // The edge puts what was a level of a topic into the row.
        if matches!(column.origin, Origin::Capture(_)) {
            column.origin = Origin::Path(vec![column.name.clone()]);
        }
    }
    let since = Origin::Property(Property::User(SINCE.to_owned()));
    let time = ColumnType::Time(TimeFormat::Microseconds);
    columns.push(match &spec.valid_from {
        Some(own) => ColumnSpec { name: VALID_FROM.to_owned(), ..own.clone() },
        None => plain(VALID_FROM, since, time.clone()),
    });
    let does = Origin::Property(Property::User(DOES.to_owned()));
    let required = Rules { required: true, ..Rules::default() };
    let mut does = plain(CHANGE, does, ColumnType::Utf8);
    does.rules = required.clone();
    let mut ingest = plain(INGEST_TIME, Origin::ReceivedTime, time);
    ingest.rules = required;
    columns.extend([does, ingest]);
    let topic = TopicTemplate::parse(&spec.topic());
    let topic = topic.expect("names of pipelines and registries make a topic");
    with_columns(spec, topic, columns)
}

/// How objects on a topic are read.
pub(super) fn with_columns(
    spec: &RegistrySpec,
    topic: TopicTemplate,
    columns: Vec<ColumnSpec>,
) -> DecodeSpec {
    DecodeSpec {
        pipeline: spec.pipeline.clone(),
        source: 0,
        topics: vec![topic],
        format: Format::Json,
        explode: None,
        columns,
        future_bound_us: i64::MAX,
        past_bound_us: None,
        payload_bytes_max: ROW_BYTES_MAX,
        clocks: false,
    }
}
