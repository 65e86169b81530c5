//! How much an alert rule keeps of a key.

use super::early::open_bytes;
use super::state::KeyState;
use crate::bound::{Bounded, Load, StateBound, Unbounded};
use crate::intern::key_bytes;
use crate::keys::{LISTED_BYTES, REMNANT_BYTES};
use crate::spec::AlertSpec;

impl Bounded for AlertSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let types = self.keys.iter().map(|k| self.input.field(*k).data_type());
        let own = (size_of::<KeyState>() + size_of::<i64>()) as u64 + LISTED_BYTES;
        let open = if self.early { open_bytes() } else { 0 };
        let key_bytes = key_bytes(types, load.text_bytes).saturating_add(own).saturating_add(open);
        Ok(StateBound { key_bytes, shared: None, forgotten_bytes: REMNANT_BYTES })
    }
}
