//! How much is kept of a key whose absences are watched.

use arrow::datatypes::DataType;

use super::cadence::GAPS_LEARNT;
use super::key::{ABSENCES_MAX, Absence, Arrived, KeyState};
use crate::bound::{
    Bounded, Load, StateBound, Unbounded, row_bytes, shared_bytes, tree_bytes, vec_bytes,
};
use crate::intern::key_bytes;
use crate::keys::{HELD_BYTES, LISTED_BYTES, waiting, waiting_bytes};
use crate::spec::{AbsenceSpec, Cadence};

impl Bounded for AbsenceSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let types: Vec<DataType> =
            self.select.iter().filter_map(|(_, e)| e.data_type(&self.input).ok()).collect();
        let values = match types.is_empty() {
            true => 0,
            false => shared_bytes(row_bytes(types.iter(), load.text_bytes)),
        };
        let absences = ABSENCES_MAX as u64;
        // What waits, what comes before each absence, and the newest reading.
        let readings = waiting(load, self.disorder_us).saturating_add(absences + 1);
        let gaps = match self.cadence {
            Cadence::Every(_) => 0,
            // Those between readings, and those between arrivals.
            Cadence::Learnt { .. } => 2 * vec_bytes(GAPS_LEARNT as u64, size_of::<i64>()),
        };
        // On the lists of those to look at, of those that are silent, and of those that wait for a
        // source, to be told of or to be forgotten.
        let listed = 2 * LISTED_BYTES + HELD_BYTES + tree_bytes(size_of::<u32>());
        let keys = self.keys.iter().map(|k| self.input.field(*k).data_type());
        let key_bytes = key_bytes(keys, load.text_bytes)
            .saturating_add((size_of::<KeyState>() + size_of::<i64>()) as u64 + listed + gaps)
            .saturating_add(vec_bytes(absences + 1, size_of::<Absence>()))
            .saturating_add(waiting_bytes::<Arrived>(load, self.disorder_us))
            .saturating_add(readings.saturating_mul(values));
        Ok(StateBound { key_bytes, ..StateBound::default() })
    }
}
