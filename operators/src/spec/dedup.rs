//! What the operator that drops repeated readings is asked for.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};

use super::KeyLimits;

/// Drops readings that came before, one memory per device.
#[derive(Clone, Debug)]
pub struct DedupSpec {
    /// Name of the pipeline, for `system.duplicates`.
    pub pipeline: String,
    /// Schema of the decoded readings.
    pub input: SchemaRef,
    /// Input column with the device.
    pub device: usize,
    /// Input column with event time.
    pub time: usize,
    /// Input column with the journal offset.
    pub offset: usize,
    /// Input columns that make a reading what it is; the device is among them. A reading with a
    /// null in one of them is never a repetition.
    pub key: Vec<usize>,
    /// Input columns that the edge `readings` has; the others are only for the key.
    pub output: Vec<usize>,
    /// Input columns, among those of the output, by which readings are in the order of the journal.
    pub order: Vec<usize>,
    /// Repetitions come out as well, marked ([`crate::dedup::parted`]): somebody counts them.
    pub marks: bool,
    /// How long after its arrival (tick time) a reading is remembered, microseconds.
    pub horizon_us: i64,
    /// Most readings of one device that are remembered.
    pub keys_max: usize,
    /// Most readings of all devices that are remembered.
    pub fleet_max: u64,
    /// How many devices it may know.
    pub limits: KeyLimits,
}

impl DedupSpec {
    /// Schema of the edge `readings`.
    pub fn schema(&self) -> SchemaRef {
        let field = |i: &usize| Arc::clone(&self.input.fields()[*i]);
        Arc::new(Schema::new(self.output.iter().map(field).collect::<Vec<_>>()))
    }

    /// The columns of the output by which readings are in the order of the journal.
    pub fn output_order(&self) -> Vec<usize> {
        let place = |i: &usize| self.output.iter().position(|o| o == i);
        self.order.iter().filter_map(place).collect()
    }
}
