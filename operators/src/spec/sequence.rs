//! What a sequence step asks of its operator.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{Expr, KeyLimits, time_type};

/// What is looked for among the readings of a key, in the order of their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// A first reading, and after it, within this time, another. It is over with the first reading
    /// after that for which the second condition is not true. Microseconds.
    Then {
        /// Longest time between the two.
        within_us: i64,
    },
    /// A first reading, and within this time no other. It is over with the next such reading.
    /// Microseconds.
    Without {
        /// How long the other is waited for.
        within_us: i64,
    },
    /// So many readings that meet a condition among the last ones. It is over when there are fewer.
    Among {
        /// How many must meet it.
        times: i64,
        /// Of so many.
        of: i64,
    },
    /// So many readings that meet a condition within a time. It is over when there are fewer.
    Times {
        /// How many must meet it.
        times: i64,
        /// How long the time is, microseconds; its beginning does not belong to it.
        within_us: i64,
    },
}

impl Pattern {
    /// How long it waits after a reading, microseconds; nothing if it only counts readings.
    pub fn within_us(self) -> i64 {
        match self {
            Self::Then { within_us }
            | Self::Without { within_us }
            | Self::Times { within_us, .. } => within_us,
            Self::Among { .. } => 0,
        }
    }
}

/// Patterns over the readings of each key, by event time.
#[derive(Clone, Debug)]
pub struct SequenceSpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the step.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Input columns that make the key.
    pub keys: Vec<usize>,
    /// Input column that holds event time.
    pub time: usize,
    /// What is looked for.
    pub pattern: Pattern,
    /// What a first reading meets; `None` for patterns of one condition. Null is not true.
    pub first: Option<Expr>,
    /// What the other reading, or each of those that are counted, meets. Null is not true.
    pub last: Expr,
    /// Output columns by name, each over the first reading of a match.
    pub select_first: Vec<(String, Expr)>,
    /// Output columns by name, each over the last one of a match (without another: the first).
    pub select: Vec<(String, Expr)>,
    /// See [`super::WindowSpec::disorder_us`].
    pub disorder_us: i64,
    /// See [`super::WindowSpec::idle_close_us`].
    pub idle_close_us: i64,
    /// How much older than what is settled a reading may be to revise what was said, microseconds.
    pub keep_us: i64,
    /// See [`super::AbsenceSpec::live`].
    pub live: bool,
    /// See [`super::AbsenceSpec::known_after_us`].
    pub known_after_us: i64,
    /// A key that was silent for this long (tick time) is forgotten, microseconds; not before what
    /// it waits for was told.
    pub forget_after_us: i64,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

impl SequenceSpec {
    /// Schema of the output edge: the keys; `window_start`, the time of the first reading of the
    /// match; `window_end`, when it was complete, or, once it is over, when that was; `active`: it
    /// is not over; `completed`, when it was complete; `matched`, how many readings made it; the
    /// selected columns; then `rows` (1, or 0 if it was withdrawn) and `revision`.
    pub fn schema(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> =
            self.keys.iter().map(|k| Arc::clone(&self.input.fields()[*k])).collect();
        let mut add = |name: &str, data_type: DataType, nullable: bool| {
            fields.push(Arc::new(Field::new(name, data_type, nullable)));
        };
        add("window_start", time_type(), false);
        add("window_end", time_type(), false);
        add("active", DataType::Boolean, false);
        add("completed", time_type(), false);
        add("matched", DataType::Int64, false);
        for (name, e) in self.select_first.iter().chain(&self.select) {
            let data_type = e.data_type(&self.input).expect("checked when planned");
            add(name, data_type, true);
        }
        add("rows", DataType::Int64, false);
        add("revision", DataType::Int64, false);
        Arc::new(Schema::new(fields))
    }
}
