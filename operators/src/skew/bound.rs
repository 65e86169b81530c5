//! How much is kept of the clock of a device.

use arrow::datatypes::DataType;

use super::Clock;
use crate::bound::{Bounded, Load, StateBound, Unbounded};
use crate::intern::key_bytes;
use crate::keys::LISTED_BYTES;
use crate::spec::SkewSpec;

impl Bounded for SkewSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let own = (size_of::<Clock>() + size_of::<i64>()) as u64 + LISTED_BYTES;
        let key_bytes = key_bytes([DataType::Utf8].iter(), load.text_bytes).saturating_add(own);
        Ok(StateBound { key_bytes, ..StateBound::default() })
    }
}
