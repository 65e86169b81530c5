//! How much a join with a registry keeps: the versions of each key of the registry, and the rows
//! that can be revised.

use std::sync::Arc;

use arrow::datatypes::DataType;

use super::KeyState;
use super::kept::{Kept, RowKey};
use crate::bound::{
    Bounded, Load, StateBound, Unbounded, row_bytes, shared_bytes, tree_bytes, vec_bytes,
};
use crate::grouped::entry_bytes;
use crate::registry::versions_bytes;
use crate::spec::EnrichSpec;

/// One that comes before the oldest is let go, and room for the inner node of a small tree.
const SPARE_ROWS: u64 = 2;

impl Bounded for EnrichSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let key_types = self.registry.key_types();
        let key = row_bytes(key_types.iter(), load.text_bytes);
        let mut key_bytes = entry_bytes::<KeyState>(key)
            .saturating_add(versions_bytes(&self.registry, load.text_bytes));
        let mut forgotten_bytes = 0;
        if let Some(revise) = &self.revise {
            let rows = load.rows_within(revise.keep_us)?;
            let types = |columns: &mut dyn Iterator<Item = usize>| -> u64 {
                let types: Vec<DataType> =
                    columns.map(|c| self.input.field(c).data_type().clone()).collect();
                shared_bytes(row_bytes(types.iter(), load.text_bytes))
            };
            let row = tree_bytes(size_of::<(RowKey, Kept)>())
                .saturating_add(types(&mut revise.identity.iter().copied()))
                .saturating_add(types(&mut (0..self.input.fields().len())));
            let moved = tree_bytes(size_of::<(Arc<[u8]>, i64)>());
            let row = row.saturating_add(if revise.moves { moved } else { 0 });
            // What it was joined with may be older than all versions that are kept.
            let said = row_bytes(self.registry.value_types().iter(), load.text_bytes);
            let row = row.saturating_add(shared_bytes(said));
            // A key that the registry had, and of which rows had come again.
            forgotten_bytes = entry_bytes::<KeyState>(key);
            // In the list of what came when a key is as often as it had rows.
            let listed = vec_bytes(rows, size_of::<(i64, u64, Arc<[u8]>)>())
                .saturating_add(rows.saturating_mul(shared_bytes(key)));
            key_bytes = key_bytes
                .saturating_add(rows.saturating_add(SPARE_ROWS).saturating_mul(row))
                .saturating_add(listed);
        }
        Ok(StateBound { key_bytes, forgotten_bytes, ..StateBound::default() })
    }
}
