//! What an absence step asks of its operator.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{Expr, KeyLimits, time_type};

/// The column that says whether an outage explains an absence; only absences have it.
pub const INHIBITED: &str = "inhibited";

/// How far apart the readings of a key are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cadence {
    /// So far, microseconds.
    Every(i64),
    /// As far as they have been lately: nine of ten of the last gaps of the key were not longer
    /// (see [`crate::absence::GAPS_LEARNT`]). Not less than this, microseconds.
    Learnt {
        /// The least.
        least_us: i64,
    },
}

/// Times in which a key should have had readings and had none, one state per key.
#[derive(Clone, Debug)]
pub struct AbsenceSpec {
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
    /// How far apart readings are.
    pub cadence: Cadence,
    /// How many in a row must be missing.
    pub missed: i64,
    /// Output columns by name, each over the last reading before the absence.
    pub select: Vec<(String, Expr)>,
    /// See [`super::WindowSpec::disorder_us`].
    pub disorder_us: i64,
    /// How much older than the newest reading of its key a reading may be to correct what was said,
    /// microseconds.
    pub keep_us: i64,
    /// Ticks are the time in which readings come in, so that a key is silent without a message.
    /// False where readings come faster than they were made: from files.
    pub live: bool,
    /// How long an outage may last before it is known, microseconds: a silence that so young an
    /// outage could explain is not told yet.
    pub known_after_us: i64,
    /// A key that was silent for this long (tick time) is forgotten, microseconds.
    pub forget_after_us: i64,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

impl AbsenceSpec {
    /// Schema of the output edge: the keys; `window_start`, the time of the last reading before the
    /// absence; `window_end`, that of the next one, or, while there is none, of when the absence
    /// was certain; `status` (see [`crate::absence::Status`]); `missed`, how many readings are
    /// missing; `cadence`, how far apart they should have been, in seconds; `inhibited`: the source
    /// was away, or Tidegate did not run, and this explains it; the selected columns; then `rows`
    /// (1, or 0 if it was withdrawn) and `revision`.
    pub fn schema(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> =
            self.keys.iter().map(|k| Arc::clone(&self.input.fields()[*k])).collect();
        let mut add = |name: &str, data_type: DataType, nullable: bool| {
            fields.push(Arc::new(Field::new(name, data_type, nullable)));
        };
        add("window_start", time_type(), false);
        add("window_end", time_type(), false);
        add("status", DataType::Utf8, false);
        add("missed", DataType::Int64, false);
        add("cadence", DataType::Float64, false);
        add(INHIBITED, DataType::Boolean, false);
        for (name, e) in &self.select {
            let data_type = e.data_type(&self.input).expect("checked when planned");
            add(name, data_type, true);
        }
        add("rows", DataType::Int64, false);
        add("revision", DataType::Int64, false);
        Arc::new(Schema::new(fields))
    }
}
