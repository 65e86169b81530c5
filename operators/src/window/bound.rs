//! How much a window step keeps of a key: panes, and what was revised.

use super::grid::Grid;
use super::keys::{Emitted, KeyState, Pane};
use super::quality::{KeyQuality, PANE_BYTES, TOLD_BYTES};
use crate::aggregate::PartialBytes;
use crate::bound::{Load, StateBound, Unbounded, tree_bytes, vec_bytes};
use crate::early::EARLY_BYTES;
use crate::intern::key_bytes;
use crate::keys::REMNANT_BYTES;
use crate::partial::store_bytes;
use crate::spec::{LatePolicy, Shape, WindowSpec};

/// For how long windows may be shorter because clocks are changed.
const CLOCK_CHANGE_US: i64 = 2 * 3_600_000_000;

/// How many panes and revised windows a key can have, and how long ago the readings in them can be:
/// those of the windows that are open, wait for `disorder` or can be revised.
fn counts(spec: &WindowSpec) -> (u64, u64, i64) {
    let keep_us = match spec.late {
        LatePolicy::Revise { keep_us } => keep_us,
        LatePolicy::Table => 0,
    };
    let tail_us = spec.disorder_us.saturating_add(keep_us);
    let (size_us, slide_us, pane_us) = match &spec.shape {
        Shape::Grid { size_us, slide_us, offset_us } => {
            (*size_us, *slide_us, Grid::new(*size_us, *slide_us, *offset_us).pane_us())
        }
        Shape::Calendar(calendar) => {
            let shortest_us = calendar.period.shortest_us().max(1);
            (calendar.period.longest_us(), shortest_us, shortest_us)
        }
        Shape::Session { .. }
        | Shape::Count { .. }
        | Shape::State { .. }
        | Shape::Sliding { .. } => return (0, 0, 0),
    };
    let span_us = size_us.saturating_add(tail_us);
    // Windows of a calendar are one pane each: the one that is open, and those before it.
    let paned_us = match &spec.shape {
        Shape::Calendar(_) => tail_us.saturating_add(CLOCK_CHANGE_US + pane_us),
        _ => span_us,
    };
    let panes = (paned_us / pane_us).saturating_add(i64::from(paned_us % pane_us != 0));
    // A window that was told is kept with its last pane.
    let revised = if keep_us > 0 { keep_us / slide_us + 2 } else { 0 };
    // With early results, those that are open as well.
    let open_us = size_us.saturating_add(spec.disorder_us);
    let open = spec.early_us.map_or(0, |_| open_us / slide_us + 2);
    let revised = revised.saturating_add(open);
    (panes.unsigned_abs(), revised.unsigned_abs(), span_us)
}

/// Room for panes beyond which that of a key is made smaller: after a burst of old readings it has
/// room for more than it ever needs again.
pub(super) fn panes_room(spec: &WindowSpec) -> usize {
    let bytes = vec_bytes(counts(spec).0.saturating_add(1), 1);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What is kept of a key for the quality of its windows.
fn quality_bytes(spec: &WindowSpec, panes: u64) -> u64 {
    let (size_us, slide_us) = match &spec.shape {
        Shape::Grid { size_us, slide_us, .. } => (*size_us, *slide_us),
        Shape::Calendar(calendar) => {
            (calendar.period.longest_us(), calendar.period.shortest_us().max(1))
        }
        _ => (0, 1),
    };
    let keep_us = match spec.late {
        LatePolicy::Revise { keep_us } => keep_us,
        LatePolicy::Table => 0,
    };
    // Of a silent key, windows are closed beyond its clock.
    let told = keep_us.saturating_add(size_us).unsigned_abs() / slide_us.unsigned_abs() + 2;
    vec_bytes(panes.saturating_add(1), PANE_BYTES)
        .saturating_add(vec_bytes(told, TOLD_BYTES))
        .saturating_add(size_of::<KeyQuality>() as u64)
}

/// See [`crate::bound::Bounded::state_bound`].
pub(crate) fn bound(spec: &WindowSpec, load: &Load) -> Result<StateBound, Unbounded> {
    let (panes, revised, span_us) = counts(spec);
    let partial = PartialBytes::of(&spec.aggregates, load.text_bytes);
    let partial = partial.total(panes, load.rows_within(span_us))?;
    // One pane more than stays is there until the epoch is over.
    let own = vec_bytes(panes.saturating_add(1), size_of::<Pane>())
        .saturating_add(vec_bytes(revised, size_of::<Emitted>()))
        .saturating_add(size_of::<KeyState>() as u64)
        .saturating_add(tree_bytes(size_of::<(i64, u32)>()))
        .saturating_add(spec.early_us.map_or(0, |_| EARLY_BYTES))
        .saturating_add(spec.quality.map_or(0, |_| quality_bytes(spec, panes)));
    let key = key_bytes(spec.key_types(), load.text_bytes);
    let key_bytes = own.saturating_add(key).saturating_add(store_bytes(panes, partial));
    Ok(StateBound { key_bytes, shared: None, forgotten_bytes: REMNANT_BYTES })
}
