//! From journaled messages of a registry to its changes. What breaks a type or a rule is a row of
//! `system.rejects`, and what the registry said of that key before stays.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;

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

/// Longest row, bytes.
const ROW_BYTES_MAX: usize = 1 << 20;

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
}

impl RegistryDecoder {
    /// A decoder of the registry's messages.
    pub fn new(spec: &RegistrySpec) -> Self {
        Self {
            topic: spec.topic().into_bytes(),
            changes: spec.changes_schema(),
            rows: Decoder::new(decode_spec(spec, spec.columns.len())),
            gone: Decoder::new(decode_spec(spec, spec.keys)),
            does: [Property::User(DOES.to_owned())],
        }
    }

    /// Whether there is anything of this registry among the messages.
    pub fn concerns(&self, run: &Messages) -> bool {
        (0..run.len()).any(|i| self.is_ours(run, i))
    }

    fn is_ours(&self, run: &Messages, i: usize) -> bool {
        run.index[i].event && run.topic(i) == self.topic
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
            if !self.is_ours(run, at) {
                at += 1;
                continue;
            }
            let goes = self.goes(run, at);
            let start = at;
            while at < run.len() && self.is_ours(run, at) && self.goes(run, at) == goes {
                at += 1;
            }
            let messages = part(run, start, at);
            let decoded = if goes { &mut self.gone } else { &mut self.rows }.decode(&messages);
            changes.push(widened(&self.changes, &decoded.readings)?);
            rejects.push(decoded.rejects);
        }
        Ok((concat_batches(&self.changes, &changes)?, rejects))
    }

    fn goes(&self, run: &Messages, i: usize) -> bool {
        if run.index[i].refused {
            return false;
        }
        let mut found = [None];
        properties::find(run.properties(i), &self.does, &mut found);
        found[0].is_some_and(|text| text != Change::Set.text().as_bytes())
    }
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

/// How rows of the first `count` columns are read.
fn decode_spec(spec: &RegistrySpec, count: usize) -> DecodeSpec {
    let mut columns = spec.columns[..count].to_vec();
    let since = Origin::Property(Property::User(SINCE.to_owned()));
    let time = ColumnType::Time(TimeFormat::Microseconds);
    let plain = |name: &str, origin, kind| ColumnSpec {
        name: name.to_owned(),
        origin,
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    };
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
    DecodeSpec {
        pipeline: spec.pipeline.clone(),
        source: 0,
        topics: vec![topic.expect("names of pipelines and registries make a topic")],
        format: Format::Json,
        explode: None,
        columns,
        future_bound_us: i64::MAX,
        past_bound_us: None,
        payload_bytes_max: ROW_BYTES_MAX,
        clocks: false,
    }
}
