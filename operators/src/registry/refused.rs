//! Entries of a registry on a topic that were refused: an entry is told once, however often a
//! broker or an endpoint sends again what it has retained.
//!
//! Known of a topic is which content of it was refused last, as a hash. Another content, and the
//! same one after the entry was good or removed, is told again. That is in the saved state; it has
//! no keys, so it is on one worker and does not depend on how many there are.

// order never shows: only looked up by topic
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use xxhash_rust::xxh3::xxh3_64;

use crate::batch::Tick;
use crate::key::key_group;
use crate::message::Messages;
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};
use crate::system::rejects_schema;

/// Topics of which that is remembered; then the one that was told first is forgotten, and told
/// again when it comes. It is less than a megabyte.
pub const REFUSED_MAX: usize = 8192;

/// Columns before those of the reject: hash of the topic, and of the payload; null if there is
/// nothing to refuse.
const FIXED: [&str; 2] = ["topic_hash", "content_hash"];

/// Schema of what [`Refused`] takes: entries in the order of the journal. What was not refused has
/// nulls in the columns of the reject.
pub fn heard_schema() -> SchemaRef {
    let mut fields = vec![
        Arc::new(Field::new(FIXED[0], DataType::Int64, false)),
        Arc::new(Field::new(FIXED[1], DataType::Int64, true)),
    ];
    let rejects = rejects_schema();
    fields
        .extend(rejects.fields().iter().map(|f| Arc::new(f.as_ref().clone().with_nullable(true))));
    Arc::new(Schema::new(fields))
}

/// Collects rows of [`heard_schema`].
#[derive(Default)]
pub(super) struct Heard {
    topics: Vec<i64>,
    contents: Vec<Option<i64>>,
    rejects: Vec<Option<u32>>,
}

impl Heard {
    /// An entry of a run; `reject`: its row, if it is refused.
    pub(super) fn push(&mut self, run: &Messages, i: usize, reject: Option<u32>) {
        let hash = |bytes: &[u8]| xxh3_64(bytes).cast_signed();
        self.topics.push(hash(run.topic(i)));
        self.contents.push(reject.map(|_| hash(run.payload(i))));
        self.rejects.push(reject);
    }

    /// All of them; `rejects` are what their numbers count.
    pub(super) fn finish(self, rejects: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(self.topics)),
            Arc::new(Int64Array::from(self.contents)),
        ];
        let rows = UInt32Array::from(self.rejects);
        for column in rejects.columns() {
            columns.push(take(column, &rows, None)?);
        }
        Ok(RecordBatch::try_new(heard_schema(), columns)?)
    }
}

/// Tells what is refused, each entry once.
pub struct Refused {
    /// Of each topic which telling it was, and the content.
    known: HashMap<i64, (u64, i64)>,
    /// The topics by that.
    order: BTreeMap<u64, i64>,
    told: u64,
    changed: bool,
}

impl Refused {
    /// Nothing is known.
    pub fn new() -> Self {
        Self { known: HashMap::new(), order: BTreeMap::new(), told: 0, changed: false }
    }

    fn forget(&mut self, topic: i64) {
        if let Some((told, _)) = self.known.remove(&topic) {
            self.order.remove(&told);
            self.changed = true;
        }
    }

    /// Whether this content is to be told.
    fn is_new(&mut self, topic: i64, content: i64) -> bool {
        if self.known.get(&topic).is_some_and(|known| known.1 == content) {
            return false;
        }
        self.forget(topic);
        if self.known.len() >= REFUSED_MAX
            && let Some((_, first)) = self.order.pop_first()
        {
            self.known.remove(&first);
        }
        self.known.insert(topic, (self.told, content));
        self.order.insert(self.told, topic);
        (self.told, self.changed) = (self.told + 1, true);
        true
    }
}

impl Default for Refused {
    fn default() -> Self {
        Self::new()
    }
}

/// Columns of the saved state.
fn saved_schema() -> SchemaRef {
    Arc::new(Schema::new(FIXED.map(|name| Field::new(name, DataType::Int64, false)).to_vec()))
}

impl KeyedOperator for Refused {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        _tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let [topics, contents] = [0, 1].map(|c| rows.column(c).as_primitive::<Int64Type>());
        let mut told: Vec<u32> = Vec::new();
        for (row, topic) in (0u32..).zip(topics.values()) {
            match contents.is_valid(row as usize) {
                true if self.is_new(*topic, contents.value(row as usize)) => told.push(row),
                true => {}
                false => self.forget(*topic),
            }
        }
        if !told.is_empty() {
            let told = UInt32Array::from(told);
            let columns = rows.columns()[FIXED.len()..].iter();
            let columns = columns.map(|column| take(column, &told, None));
            let columns = columns.collect::<Result<_, _>>()?;
            emit.rejects.push(RecordBatch::try_new(rejects_schema(), columns)?);
        }
        Ok(())
    }

    fn end(&mut self, _emit: &mut Emit) -> Result<(), OperatorError> {
        Ok(())
    }

    /// A row of each topic, the one that was told first in front.
    fn cut(&mut self, whole: bool) -> Snapshot {
        let group = key_group(0);
        let mut changed = GroupSet::default();
        if std::mem::take(&mut self.changed) {
            changed.insert(group);
        }
        let topics: Vec<i64> = self.order.values().copied().collect();
        let contents: Vec<i64> = topics.iter().map(|topic| self.known[topic].1).collect();
        Snapshot::new(if whole { GroupSet::ALL } else { changed }, move |groups| {
            let columns: [ArrayRef; 2] =
                [Arc::new(Int64Array::from(topics)), Arc::new(Int64Array::from(contents))];
            let rows = RecordBatch::try_new(saved_schema(), columns.to_vec())?;
            let rows = if groups.contains(group) { rows } else { rows.slice(0, 0) };
            let of_rows = std::iter::repeat_n(group, rows.num_rows());
            Ok(SavedRows { groups: counts(groups, of_rows), rows })
        })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        if state.schema().fields() != saved_schema().fields() {
            return Err(OperatorError::State("these are no entries that were refused".into()));
        }
        let [topics, contents] = [0, 1].map(|c| state.column(c).as_primitive::<Int64Type>());
        for (topic, content) in topics.values().iter().zip(contents.values()) {
            self.is_new(*topic, *content);
        }
        self.changed = false;
        Ok(())
    }
}

/// Batches of rejects as one.
pub(super) fn together(rejects: &[RecordBatch]) -> Result<RecordBatch, OperatorError> {
    Ok(concat_batches(&rejects_schema(), rejects)?)
}
