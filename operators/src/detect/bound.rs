//! How much a detector keeps of a key: what it has learnt, and the readings that wait.

use super::method::state_bytes;
use crate::bound::{Bounded, Load, StateBound, Unbounded};
use crate::intern::key_bytes;
use crate::keys::{LISTED_BYTES, waiting_bytes};
use crate::spec::{DetectOrder, DetectSpec};

impl Bounded for DetectSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let types = self.keys.iter().map(|k| self.input.field(*k).data_type());
        let learnt = state_bytes(&self.method) + (size_of::<i64>() as u64) + LISTED_BYTES;
        let waiting = match self.order {
            DetectOrder::Arrival => 0,
            DetectOrder::EventTime => waiting_bytes::<f64>(load, self.disorder_us),
        };
        let key = key_bytes(types, load.text_bytes).saturating_add(learnt);
        Ok(StateBound { key_bytes: key.saturating_add(waiting), ..StateBound::default() })
    }
}
