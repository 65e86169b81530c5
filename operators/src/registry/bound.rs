//! How much the history of a registry takes.

use super::{History, Version};
use crate::bound::{Bounded, Load, StateBound, Unbounded, row_bytes, shared_bytes};
use crate::grouped::entry_bytes;
use crate::spec::RegistrySpec;

/// Bytes of the versions of one key.
pub(crate) fn versions_bytes(registry: &RegistrySpec, text_bytes: usize) -> u64 {
    let versions = registry.versions_max as u64;
    let values = shared_bytes(row_bytes(registry.value_types().iter(), text_bytes));
    // A history is copied to be changed: if it is full, it takes twice the room that it needs.
    let room = versions.saturating_mul(2).max(4).saturating_mul(size_of::<Version>() as u64);
    room.saturating_add(versions.saturating_mul(values))
}

impl Bounded for RegistrySpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let key = row_bytes(self.key_types().iter(), load.text_bytes);
        let versions = versions_bytes(self, load.text_bytes);
        let key_bytes = entry_bytes::<History>(key).saturating_add(versions);
        Ok(StateBound { key_bytes, ..StateBound::default() })
    }
}
