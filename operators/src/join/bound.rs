//! How much a join keeps: the rows of both edges that can still find partners. The load is that of
//! the quicker edge; of windows with the same bounds both have as many.

use super::sides::Row;
use super::{interval, window};
use crate::bound::{Bounded, Load, StateBound, Unbounded, row_bytes, shared_bytes, vec_bytes};
use crate::intern::key_bytes;
use crate::keys::{HELD_BYTES, LISTED_BYTES, REMNANT_BYTES};
use crate::spec::{JoinSpec, Partners};

impl Bounded for JoinSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        let row = |types: Vec<arrow::datatypes::DataType>| {
            shared_bytes(row_bytes(types.iter(), load.text_bytes))
        };
        let (left, right) = (row(self.left_types()), row(self.added_types()));
        let both = left.saturating_add(right);
        let types = self.key_types();
        // Two lists tell how long a key is silent.
        let lists = 2 * (LISTED_BYTES + HELD_BYTES + size_of::<i64>() as u64);
        let own = key_bytes(types.iter(), load.text_bytes).saturating_add(lists);
        let rows = match &self.partners {
            Partners::Window { keep_us, .. } => {
                let kept_us = keep_us.saturating_add(self.disorder_us);
                let pairs = load.rows_within(kept_us)?.saturating_add(1);
                let pair = window::PAIR_BYTES.saturating_add(both);
                window::KEY_BYTES.saturating_add(pairs.saturating_mul(pair))
            }
            Partners::Interval { before_us, after_us, rows_max, .. } => {
                // Left rows wait until all that can be their partners is settled. Right rows are
                // kept for the oldest of them.
                let wait_us = after_us.saturating_add(self.disorder_us);
                let most = *rows_max as u64;
                let rows =
                    |us: i64| load.rows_within(us).map_or(most, |n| n.saturating_add(1).min(most));
                let kept = |rows: u64, row_bytes: u64| {
                    vec_bytes(rows, size_of::<(i64, Row)>())
                        .saturating_add(rows.saturating_mul(row_bytes))
                };
                interval::KEY_BYTES
                    .saturating_add(kept(rows(wait_us), left))
                    .saturating_add(kept(rows(wait_us.saturating_add(*before_us)), right))
            }
        };
        let key_bytes = own.saturating_add(rows);
        Ok(StateBound { key_bytes, shared: None, forgotten_bytes: REMNANT_BYTES })
    }
}
