//! A registry that is a topic: each message there is an entry, as a broker keeps it (retained).
//!
//! The columns of the key are levels of the topic or members of the payload. An empty payload
//! removes the entry; it has no members, so the key has to be in the topic then, and since when it
//! goes is a user property of the name of `valid_from`, or else when it was received. What is
//! received again says nothing new, so it does not matter how often a broker sends what it keeps.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::is_null;
use arrow::compute::kernels::zip::zip;
use arrow::datatypes::{DataType, Field, Schema};

use super::Change;
use super::decode::{plain, with_columns};
use crate::decode::{Decoder, topics_match};
use crate::message::{Messages, MessagesBuilder};
use crate::operator::OperatorError;
use crate::properties::Property;
use crate::spec::{
    CHANGE, ColumnSpec, ColumnType, INGEST_TIME, Origin, RegistrySpec, TimeFormat, VALID_FROM,
};
use crate::topic::TopicTemplate;

/// Stands in for the empty payload of an entry that was removed.
const NO_MEMBERS: &[u8] = b"{}";

/// Changes without what they do, and the messages that are none.
type Read = (RecordBatch, RecordBatch);

/// Reads the entries of a registry.
#[derive(Debug)]
pub(super) struct Entries {
    topics: [TopicTemplate; 1],
    /// What every topic of it begins with: most messages are something else.
    prefix: String,
    source: u16,
    entries: Decoder,
    left: Decoder,
    /// Whether an entry itself says since when it holds.
    own_times: bool,
}

impl Entries {
    pub(super) fn new(spec: &RegistrySpec, topic: &TopicTemplate, source: u16) -> Self {
        let time = ColumnType::Time(TimeFormat::Microseconds);
        let received = |name: &str| plain(name, Origin::ReceivedTime, time.clone());
        let decoder = |count: usize, since: ColumnSpec| {
            let mut columns = spec.columns[..count].to_vec();
            columns.extend([since, received(INGEST_TIME)]);
            Decoder::new(with_columns(spec, topic.clone(), columns))
        };
        let named = |own: &ColumnSpec| ColumnSpec { name: VALID_FROM.to_owned(), ..own.clone() };
        let property = |own: &ColumnSpec| match &own.origin {
            Origin::Path(path) => {
                let origin = Origin::Property(Property::User(path.join(".")));
                ColumnSpec { origin, ..named(own) }
            }
            _ => named(own),
        };
        let own = spec.valid_from.as_ref();
        let since = own.map_or_else(|| received(VALID_FROM), named);
        let since_left = own.map_or_else(|| received(VALID_FROM), property);
        let filter = topic.filter();
        Self {
            prefix: filter.split(['+', '#']).next().unwrap_or_default().to_owned(),
            topics: [topic.clone()],
            source,
            entries: decoder(spec.columns.len(), since),
            left: decoder(spec.keys, since_left),
            own_times: own.is_some(),
        }
    }

    /// Whether a message is an entry, or was one.
    pub(super) fn takes(&self, run: &Messages, i: usize) -> bool {
        // `a/#` matches `a` as well.
        let prefix = self.prefix.trim_end_matches('/').as_bytes();
        run.source == self.source
            && run.topic(i).starts_with(prefix)
            && topics_match(&self.topics, run.topic(i))
    }

    /// What entries say; `messages` are nothing else.
    pub(super) fn rows(&mut self, messages: &Messages) -> Result<Read, OperatorError> {
        let decoded = self.entries.decode(messages);
        let change = if self.own_times { Change::Set } else { Change::Receive };
        Ok((doing(change, &decoded.readings)?, decoded.rejects))
    }

    /// What goes with the messages from `start` to `end` (not included), which have no payload.
    pub(super) fn gone(
        &mut self,
        run: &Messages,
        start: usize,
        end: usize,
    ) -> Result<Read, OperatorError> {
        let mut left = MessagesBuilder::default();
        for i in start..end {
            let (topic, client) = (run.topic(i), run.client(i));
            left.push_with(topic, NO_MEMBERS, client, run.properties(i), run.index[i]);
        }
        let decoded = self.left.decode(&left.finish(0, run.first_offset + start as u64));
        let rows = match self.own_times {
            true => or_received(&decoded.readings)?,
            false => decoded.readings,
        };
        let change = if self.own_times { Change::Remove } else { Change::Drop };
        Ok((doing(change, &rows)?, decoded.rejects))
    }
}

/// The rows with what they do.
fn doing(change: Change, rows: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let mut fields = rows.schema().fields().to_vec();
    let mut columns = rows.columns().to_vec();
    fields.push(Arc::new(Field::new(CHANGE, DataType::Utf8, false)));
    columns.push(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
        change.text(),
        rows.num_rows(),
    ))));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The rows, where since when is when they were received if they do not say.
fn or_received(rows: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let place = rows.schema().index_of(VALID_FROM)?;
    let said: &ArrayRef = rows.column(place);
    let mut columns = rows.columns().to_vec();
    columns[place] = zip(&is_null(said)?, &rows[INGEST_TIME], said)?;
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}
