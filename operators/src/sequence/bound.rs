//! How much is kept of a key in whose readings something is looked for.

use arrow::datatypes::DataType;

use super::automaton::{Counted, Entry, Match};
use super::key::{ENTRIES_MAX, KeyState};
use crate::bound::{
    Bounded, Load, StateBound, Unbounded, row_bytes, shared_bytes, tree_bytes, vec_bytes,
};
use crate::intern::key_bytes;
use crate::keys::{HELD_BYTES, LISTED_BYTES};
use crate::spec::{Pattern, SequenceSpec};

impl Bounded for SequenceSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let most = ENTRIES_MAX as u64;
        let tail_us = self.disorder_us.saturating_add(self.keep_us);
        // One more than stays is there for a moment.
        let entries = load.rows_within(tail_us).map_or(most, |n| n.min(most)).saturating_add(1);
        // It takes two readings to begin and to end a match, but for one that is silence.
        let (matches, counted) = match self.pattern {
            Pattern::Without { .. } => (entries, 0),
            Pattern::Then { .. } => (entries / 2 + 2, 0),
            Pattern::Among { times, .. } | Pattern::Times { times, .. } => {
                (entries / 2 + 2, times.unsigned_abs().saturating_add(1))
            }
        };
        let select = self.select_first.iter().chain(&self.select);
        let types: Vec<DataType> =
            select.filter_map(|(_, e)| e.data_type(&self.input).ok()).collect();
        let values = match types.is_empty() {
            true => 0,
            false => shared_bytes(row_bytes(types.iter(), load.text_bytes)),
        };
        let keys = self.keys.iter().map(|k| self.input.field(*k).data_type());
        // When it is looked at, and forgotten; that it waits for the end of an outage.
        let waits = tree_bytes(size_of::<(i64, u32)>()) + tree_bytes(size_of::<u32>());
        let listed = LISTED_BYTES + HELD_BYTES + waits;
        let own = (size_of::<KeyState>() + size_of::<i64>()) as u64 + listed;
        let key_bytes = key_bytes(keys, load.text_bytes)
            .saturating_add(own)
            .saturating_add(vec_bytes(entries, size_of::<Entry>()))
            .saturating_add(vec_bytes(matches, size_of::<Match>()))
            .saturating_add(vec_bytes(matches, size_of::<(Match, i64)>()))
            .saturating_add(matches.saturating_mul(tree_bytes(size_of::<(i64, i64)>())))
            .saturating_add(vec_bytes(counted, size_of::<Counted>()).saturating_mul(2))
            .saturating_add(entries.saturating_add(2 * counted + 4).saturating_mul(values));
        Ok(StateBound { key_bytes, ..StateBound::default() })
    }
}
