//! What the operator of last-known values is asked for.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{Expr, KeyLimits, time_type};

/// The newest value of each of several expressions, as of the time of a reading, one state per key.
#[derive(Clone, Debug)]
pub struct LatestSpec {
    /// Name of the pipeline, for `system.late`.
    pub pipeline: String,
    /// Name of the step.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Input columns that make the key.
    pub keys: Vec<usize>,
    /// Input column that holds event time.
    pub time: usize,
    /// The values, each with the column that it becomes. Null: the reading says nothing of it.
    pub select: Vec<(Arc<Field>, Expr)>,
    /// Rows only of times at which a reading meets this (boolean; null counts as false).
    pub at: Option<Expr>,
    /// Rows only where a value is another than in the row before.
    pub on_change: bool,
    /// A value that is older than this is not known any more, microseconds.
    pub max_age_us: Option<i64>,
    /// How much older than the newest reading of its key a reading may be, microseconds.
    pub disorder_us: i64,
    /// Readings of a key silent for this long (tick time) wait no longer, microseconds.
    pub idle_close_us: i64,
    /// Ticks are the time in which readings come in. False of files: then no key is silent, and
    /// none is forgotten.
    pub live: bool,
    /// A key that was silent for this long (tick time), and at least for `idle_close_us`, is
    /// forgotten: it is new when it comes back; microseconds.
    pub forget_after_us: i64,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

impl LatestSpec {
    /// Schema of the output edge: the keys, `time`, then the values, each of them nullable.
    pub fn schema(&self) -> SchemaRef {
        let keys = self.keys.iter().map(|k| Arc::clone(&self.input.fields()[*k]));
        let time = Arc::new(Field::new("time", time_type(), false));
        let values = self.select.iter().map(|(field, _)| Arc::clone(field));
        Arc::new(Schema::new(keys.chain([time]).chain(values).collect::<Vec<_>>()))
    }

    /// Types of the values.
    pub fn value_types(&self) -> Vec<DataType> {
        self.select.iter().map(|(field, _)| field.data_type().clone()).collect()
    }
}
