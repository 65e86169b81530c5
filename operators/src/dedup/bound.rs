//! How much is remembered of a device whose repetitions are dropped.

use std::sync::Arc;

use super::{Device, Hash};
use crate::bound::{
    Bounded, Load, Shared, StateBound, Unbounded, changing_table_bytes, shared_bytes, table_bytes,
    tree_bytes, vec_bytes,
};
use crate::key::KEY_GROUPS;
use crate::spec::{DedupSpec, share_of};

/// A reading in the table of all.
const KNOWN_BYTES: u64 = changing_table_bytes(size_of::<Hash>());
/// A reading in the list of its device.
const SEEN_BYTES: usize = size_of::<(i64, Hash)>();

impl Bounded for DedupSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let most = self.keys_max as u64;
        let readings = load.rows_within(self.horizon_us).map_or(most, |n| n.min(most));
        let list =
            tree_bytes(size_of::<(i64, Vec<Arc<str>>)>()) + vec_bytes(1, size_of::<Arc<str>>());
        let name = shared_bytes(load.text_bytes as u64);
        let key_bytes = name.saturating_add(table_bytes(size_of::<Device>()) + list);
        let all = u64::from(share_of(self.fleet_max)) * u64::from(KEY_GROUPS);
        let shared = Shared {
            key_bytes: readings
                .saturating_mul(KNOWN_BYTES)
                .saturating_add(vec_bytes(readings.saturating_add(1), SEEN_BYTES)),
            // A list has at most twice the room that it needs.
            all_bytes: all.saturating_mul(KNOWN_BYTES + 2 * SEEN_BYTES as u64),
        };
        Ok(StateBound { key_bytes, shared: Some(shared), forgotten_bytes: 0 })
    }
}
