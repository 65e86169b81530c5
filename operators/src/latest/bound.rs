//! How much is kept of a key whose last-known values are asked for.

use super::packed::Packed;
use super::{Held, KeyState, Reading};
use crate::bound::{Bounded, Load, StateBound, Unbounded, row_bytes, shared_bytes, tree_bytes};
use crate::intern::key_bytes;
use crate::keys::{HELD_BYTES, LISTED_BYTES, waiting, waiting_bytes};
use crate::spec::LatestSpec;

impl Bounded for LatestSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let types = self.value_types();
        let columns = types.len() as u64;
        let lengths = columns.saturating_mul(size_of::<u32>() as u64);
        let packed = shared_bytes(row_bytes(types.iter(), load.text_bytes).saturating_add(lengths));
        // At worst each column was said last by another reading, and the last row says of each
        // what the reading before that said.
        let kept = columns.saturating_mul(2);
        let readings = waiting(load, self.disorder_us).saturating_add(kept);
        let told = shared_bytes(columns.saturating_mul(size_of::<Option<Packed>>() as u64));
        let held = columns.saturating_mul(size_of::<Option<Held>>() as u64).saturating_add(told);
        // That it waits for the end of an outage, to be told and to be forgotten.
        let listed = LISTED_BYTES + HELD_BYTES + tree_bytes(size_of::<u32>());
        let own = (size_of::<KeyState>() + size_of::<i64>()) as u64 + listed;
        let keys = self.keys.iter().map(|k| self.input.field(*k).data_type());
        let key_bytes = key_bytes(keys, load.text_bytes)
            .saturating_add(own)
            .saturating_add(held)
            .saturating_add(waiting_bytes::<Reading>(load, self.disorder_us))
            .saturating_add(readings.saturating_mul(packed));
        Ok(StateBound { key_bytes, ..StateBound::default() })
    }
}
