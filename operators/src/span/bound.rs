//! How much a step whose windows follow from the readings keeps of a key: its readings as long as
//! they can be in a window that is still to come or to be revised, and what was told of those.

use std::collections::VecDeque;

use super::due::FOLD_EVERY;
use super::keys::{Entry, KeyState, Record};
use super::owed::Owed;
use super::places::PLACE_BYTES;
use super::quality::NOTE_BYTES;
use super::sliding;
use crate::aggregate::{PartialBytes, keeps_readings};
use crate::bound::{Load, StateBound, Unbounded, vec_bytes};
use crate::early::EARLY_BYTES;
use crate::intern::key_bytes;
use crate::keys::LISTED_BYTES;
use crate::partial::store_bytes;
use crate::spec::{LatePolicy, Shape, WindowSpec};

/// What a key has at most.
struct Most {
    entries: u64,
    records: u64,
    /// Partial aggregates that sliding windows share.
    panes: u64,
    /// Readings whose aggregates are kept, if that has a bound.
    readings: Result<u64, Unbounded>,
}

impl Default for Most {
    fn default() -> Self {
        Self { entries: 0, records: 0, panes: 0, readings: Ok(0) }
    }
}

/// See [`crate::bound::Bounded::state_bound`]; none of windows of fixed length.
pub(crate) fn bound(spec: &WindowSpec, load: &Load) -> Option<Result<StateBound, Unbounded>> {
    if let Shape::Grid { .. } | Shape::Calendar(_) = spec.shape {
        return None;
    }
    Some(most(spec, load).and_then(|most| bytes(spec, load, most)))
}

fn bytes(spec: &WindowSpec, load: &Load, most: Most) -> Result<StateBound, Unbounded> {
    let Most { entries, records, panes, readings } = most;
    // It is not looked at each entry whether something can go.
    let later = |count: u64| count.saturating_add(FOLD_EVERY as u64);
    // What was told early of a window that is none any more is kept as long as its first reading.
    let records = match spec.early_us {
        Some(_) if spec.shape.withdraws() => records.saturating_add(with_early(spec, load)?),
        _ => records,
    };
    let (entries, records, readings) = (later(entries), later(records), readings.map(later));
    let partial = PartialBytes::of(&spec.aggregates, load.text_bytes);
    let pieces = entries.saturating_add(panes);
    // A reading of a shared pane is in the partial aggregates of both.
    let readings = readings.map(|n| if panes > 0 { n.saturating_mul(2) } else { n });
    let partial = partial.total(pieces, readings)?;
    let note_bytes = spec.quality.map_or(0, |_| NOTE_BYTES as u64);
    let places = pieces.saturating_mul(PLACE_BYTES + note_bytes);
    let behind = 3 * (size_of::<VecDeque<Entry>>() + 2 * size_of::<usize>());
    let own = vec_bytes(entries.saturating_add(1), size_of::<Entry>())
        .saturating_add(vec_bytes(records, size_of::<Record>()))
        .saturating_add(vec_bytes(panes, size_of::<(i64, u32)>()))
        .saturating_add((size_of::<KeyState>() + behind) as u64)
        .saturating_add(if spec.puts_off { size_of::<Owed>() as u64 } else { 0 })
        .saturating_add(places);
    let key = key_bytes(spec.key_types(), load.text_bytes).saturating_add(LISTED_BYTES);
    let key_bytes = own.saturating_add(key).saturating_add(store_bytes(pieces, partial));
    let key_bytes = key_bytes.saturating_add(spec.early_us.map_or(0, |_| EARLY_BYTES));
    Ok(StateBound { key_bytes, ..StateBound::default() })
}

/// Readings with which a window can have begun that is not final.
fn with_early(spec: &WindowSpec, load: &Load) -> Result<u64, Unbounded> {
    let keep_us = match spec.late {
        LatePolicy::Revise { keep_us } => keep_us,
        LatePolicy::Table => 0,
    };
    load.rows_within(spec.disorder_us.saturating_add(keep_us))
}

fn most(spec: &WindowSpec, load: &Load) -> Result<Most, Unbounded> {
    let keep_us = match spec.late {
        LatePolicy::Revise { keep_us } => keep_us,
        LatePolicy::Table => 0,
    };
    let tail_us = spec.disorder_us.saturating_add(keep_us);
    let tail = || load.rows_within(tail_us);
    // What is open and older is one entry.
    let with_open = || tail().map(|n| n.saturating_add(1));
    let no_end = || match keeps_readings(&spec.aggregates) {
        Some(name) => Err(Unbounded::NoEnd(name.to_owned())),
        None => Ok(0),
    };
    Ok(match &spec.shape {
        Shape::Grid { .. } | Shape::Calendar(_) => Most::default(),
        Shape::Session { gap_us, max_us: None } => {
            // A session is one entry, and the next one begins after a pause.
            let sessions = (tail_us / (*gap_us).max(1)).unsigned_abs().saturating_add(2);
            let entries = with_open().map_or(sessions, |n| n.min(sessions));
            let readings = Ok(no_end()?);
            Most { entries, records: entries, readings, ..Most::default() }
        }
        Shape::Session { gap_us, max_us: Some(max_us) } => {
            let readings = load.rows_within(tail_us.saturating_add(*max_us));
            let (entries, sessions) = (with_open()?, tail_us / (*gap_us).min(*max_us).max(1));
            let records = entries.min(sessions.unsigned_abs().saturating_add(2));
            Most { entries, records, panes: 0, readings }
        }
        Shape::State { until, max_us, .. } => {
            let readings = match max_us {
                Some(max_us) => load.rows_within(tail_us.saturating_add(*max_us)),
                None => Ok(no_end()?),
            };
            let records = match until {
                Some(_) => with_open()?,
                // What one reading begins another one ends, or it is cut.
                None => {
                    let cut = max_us.map_or(0, |max_us| (tail_us / max_us.max(1)).unsigned_abs());
                    (tail()? / 2).saturating_add(cut).saturating_add(2).min(with_open()?)
                }
            };
            Most { entries: with_open()?, records, panes: 0, readings }
        }
        Shape::Count { size, hop } => {
            let (size, hop) = (size.unsigned_abs(), hop.unsigned_abs().max(1));
            let blocks = size / super::count::block(size, hop);
            let entries = tail()?.saturating_add(blocks).saturating_add(1);
            let open = spec.early_us.map_or(0, |_| size / hop + 1);
            let records = (tail()? / hop).saturating_add(2).saturating_add(open);
            let readings = Ok(tail()?.saturating_add(size).saturating_add(hop));
            Most { entries, records, panes: 0, readings }
        }
        Shape::Sliding { before_us, after_us, .. } => {
            let around_us = before_us.saturating_add(*after_us);
            let entries = load.rows_within(around_us.saturating_add(tail_us))?;
            let panes = sliding::panes_max(*before_us, *after_us, tail_us, entries);
            // With early results also those whose end is not there yet.
            let open_us = spec.early_us.map_or(0, |_| after_us.saturating_add(spec.disorder_us));
            let records = load.rows_within(keep_us.saturating_add(open_us))?.saturating_add(1);
            Most { entries, records, panes, readings: Ok(entries) }
        }
    })
}
