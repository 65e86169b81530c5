//! Joins windows of two edges that have the same key and the same bounds.
//!
//! Definition: for each window of the left edge there is a row with what the newest revision of the
//! left edge says of it, and the newest of the right one. It comes when both are there, and again,
//! with the next `revision`, whenever one of the two comes again. Of a left join it comes without
//! the right edge's columns when the clock of the key (the newest end of a window on either edge)
//! is `disorder` past its end, or the key was silent for `idle_close`; if the right window comes
//! after that, it revises the row. A window that is withdrawn (it is none any more, or does not
//! pass a filter any more) is not there, and takes back, with `rows` = 0, what it was joined to.
//!
//! A window is kept until the clock is `disorder` and `keep` past its end; what comes for one that
//! is not kept any more is a row of `system.late`. A key that was silent for `idle_close` and
//! `keep` is forgotten but for how far it came, though not before its next window can have come:
//! while its newest window is kept, that takes the length of a window longer. A time in which the
//! source was away, or Tidegate did not run, is no silence ([`crate::outage`]). So what is emitted
//! last of a window that is kept depends only on the revisions that came, not on their order.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

use super::known::Known;
use super::save::{self, StateRow};
use super::sides::{Arrived, Joined, Row, Side, Sides};
use crate::batch::Tick;
use crate::bound::tree_bytes;
use crate::expression::taken_back;
use crate::keys::Remnant;
use crate::late::LateRows;
use crate::operator::{AsideOperator, Emit, JoinOperator, OperatorError};
use crate::snapshot::Snapshot;
use crate::spec::{JoinSpec, Partners, TakesBack};

/// Numbers of a state row: of the key, then of the window.
const NUMBERS: [&str; 9] = [
    "clock_us",
    "settled_us",
    "dropped_us",
    "last_tick_us",
    "window_end_us",
    "window_start_us",
    "left_revision",
    "right_revision",
    "revision",
];

/// End and start of a window.
type Bounds = (i64, i64);

/// A window of an edge.
#[derive(Clone, Debug)]
struct Revised {
    revision: i64,
    row: Row,
    /// It says that the window is none.
    gone: bool,
}

impl Revised {
    /// The revision as it is saved, which says whether it is gone as well.
    fn saved(&self) -> i64 {
        if self.gone { !self.revision } else { self.revision }
    }

    fn load((saved, row): (i64, Row)) -> Self {
        let gone = saved < 0;
        Self { revision: if gone { !saved } else { saved }, row, gone }
    }
}

/// What came for one window.
#[derive(Clone, Debug, Default)]
struct Pair {
    left: Option<Revised>,
    right: Option<Revised>,
    /// Revision of the row that was emitted last.
    emitted: Option<i64>,
}

impl Pair {
    /// The right window, unless it is none.
    fn right(&self) -> Option<&Revised> {
        self.right.as_ref().filter(|right| !right.gone)
    }
}

#[derive(Clone, Debug)]
struct KeyState {
    /// Newest end of a window.
    clock_us: i64,
    /// Left windows that end here or before wait for no partner.
    settled_us: i64,
    /// Windows that end here or before are not kept any more.
    dropped_us: i64,
    pairs: BTreeMap<Bounds, Pair>,
}

/// Bytes of a key without its windows.
pub(super) const KEY_BYTES: u64 = size_of::<KeyState>() as u64;
/// Bytes of a window without its rows.
pub(super) const PAIR_BYTES: u64 = tree_bytes(size_of::<(Bounds, Pair)>());

impl Default for KeyState {
    fn default() -> Self {
        Self::back(Remnant { bound: i64::MIN, extra: i64::MIN })
    }
}

impl KeyState {
    /// A key that was forgotten.
    fn back(left: Remnant) -> Self {
        let Remnant { bound, extra } = left;
        Self { clock_us: extra, settled_us: bound, dropped_us: bound, pairs: BTreeMap::new() }
    }
}

/// The operator.
pub struct WindowJoin {
    sides: Sides,
    /// Columns with start, end and revision of the left edge and the right one.
    columns: [[usize; 3]; 2],
    keep_us: i64,
    takes_back: Option<TakesBack>,
    known: Known<KeyState>,
    late: LateRows,
    /// Windows that are to be looked at in this epoch, by their keys.
    touched: Vec<(u32, Bounds)>,
}

/// What is emitted of a window.
struct Due {
    id: u32,
    bounds: Bounds,
    revision: i64,
    joined: Joined,
    /// It is not there any more.
    gone: bool,
}

impl WindowJoin {
    /// An operator without state.
    ///
    /// # Errors
    /// It is a join within an interval, or has columns of types that no row can have; planning
    /// rules both out.
    pub fn new(spec: JoinSpec) -> Result<Self, OperatorError> {
        let Partners::Window { left, right, keep_us, ref takes_back, .. } = spec.partners else {
            let text = format!("`{}` does not join windows", spec.name);
            return Err(OperatorError::State(text));
        };
        let idle_us = if spec.live { spec.idle_close_us } else { i64::MAX };
        let forget_us = idle_us.saturating_add(keep_us);
        Ok(Self {
            columns: [left, right],
            keep_us,
            takes_back: takes_back.clone(),
            known: Known::new(spec.limits.share(), (idle_us, forget_us)),
            late: LateRows::new(&spec.pipeline, &spec.name),
            touched: Vec::new(),
            sides: Sides::new(spec)?,
        })
    }

    /// Takes the windows of one edge.
    fn take(
        &mut self,
        side: Side,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<Vec<(u32, i64)>, OperatorError> {
        if rows.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let (arrived, fresh) = self.sides.admit((side, &self.known.remnants), rows, emit)?;
        self.known.start(&fresh, KeyState::back);
        let [start, end, revision] = self.columns[usize::from(side == Side::Right)];
        let Arrived { ids, rows, gone, .. } = &arrived;
        let time = |c: usize| rows.column(c).as_primitive::<TimestampMicrosecondType>();
        let (starts, ends) = (time(start), time(end));
        let revisions = rows.column(revision).as_primitive::<Int64Type>();
        let mut clocks = Vec::with_capacity(ids.len());
        for (row, id) in ids.iter().enumerate() {
            let (start_us, end_us) = (starts.value(row), ends.value(row));
            self.known.heard(*id, &self.sides.interner, tick.time_us);
            clocks.push((*id, end_us));
            let key = &mut self.known.keys[*id as usize];
            if end_us <= key.dropped_us {
                // Of a key below the floor of its group no clock is known.
                let behind_us = key.clock_us.max(end_us).saturating_sub(end_us);
                self.late.push(*id, end_us, (start_us, end_us), behind_us);
                continue;
            }
            let pair = key.pairs.entry((end_us, start_us)).or_default();
            let kept = match side {
                Side::Left => &mut pair.left,
                Side::Right => &mut pair.right,
            };
            // Rows of an epoch are in the order of what is in them, not of their revisions.
            let revision = revisions.value(row);
            if kept.as_ref().is_none_or(|k| k.revision < revision) {
                let gone = gone.as_ref().is_some_and(|gone| gone.value(row));
                *kept = Some(Revised { revision, row: arrived.bytes(row), gone });
                self.touched.push((*id, (end_us, start_us)));
            }
        }
        Ok(clocks)
    }

    /// Moves the clocks of keys, and finds the left windows that need not wait any more.
    fn settle(&mut self, clocks: Vec<(u32, i64)>) {
        let disorder_us = self.sides.spec.disorder_us;
        for (id, end_us) in clocks {
            let key = &mut self.known.keys[id as usize];
            key.clock_us = key.clock_us.max(end_us);
            let clock_us = key.clock_us;
            self.settle_to(id, clock_us.saturating_sub(disorder_us));
        }
    }

    /// The same for keys that were silent for long enough.
    fn settle_silent(&mut self, tick: Tick) {
        for id in self.known.silent(tick.time_us) {
            let clock_us = self.known.keys[id as usize].clock_us;
            self.settle_to(id, clock_us);
        }
    }

    fn settle_to(&mut self, id: u32, to_us: i64) {
        if to_us <= self.known.keys[id as usize].settled_us {
            return;
        }
        self.known.change(id, &self.sides.interner);
        let key = &mut self.known.keys[id as usize];
        let (from, to) = ((key.settled_us, i64::MAX), (to_us, i64::MAX));
        let now = key.pairs.range((Bound::Excluded(from), Bound::Included(to)));
        let alone = now.filter(|(_, pair)| pair.right().is_none() && pair.emitted.is_none());
        self.touched.extend(alone.map(|(bounds, _)| (id, *bounds)));
        key.settled_us = to_us;
    }

    /// The windows that are to be emitted, of those that were touched.
    fn due(&mut self) -> Vec<Due> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        let mut due = Vec::new();
        for (id, bounds) in touched.drain(..) {
            let key = &mut self.known.keys[id as usize];
            let Some(pair) = key.pairs.get_mut(&bounds) else { continue };
            let Some(left) = &pair.left else { continue };
            let is_alone = pair.right().is_none();
            let gone = left.gone || (is_alone && !self.sides.spec.outer);
            let waits = bounds.0 > key.settled_us;
            if pair.emitted.is_none() && (gone || (is_alone && waits)) {
                continue;
            }
            // What is taken back has some row of the right edge, which may be required.
            let right = pair.right.as_ref().filter(|right| gone || !right.gone);
            let joined = (Arc::clone(&left.row), right.map(|right| Arc::clone(&right.row)));
            let revision = pair.emitted.map_or(0, |revision| revision + 1);
            pair.emitted = Some(revision);
            due.push(Due { id, bounds, revision, joined, gone });
        }
        self.touched = touched;
        due
    }

    fn give(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut due = self.due();
        if due.is_empty() {
            return Ok(());
        }
        let interner = &self.sides.interner;
        due.sort_unstable_by(|a, b| {
            let by_key = || interner.bytes(a.id).cmp(interner.bytes(b.id));
            a.bounds.cmp(&b.bounds).then_with(by_key)
        });
        let revisions = due.iter().map(|d| d.revision).collect();
        let there: Vec<bool> = due.iter().map(|d| !d.gone).collect();
        let joined: Vec<Joined> = due.into_iter().map(|d| d.joined).collect();
        let column = self.columns[0][2];
        let mut from = 0;
        for rows in self.sides.batches(&joined, Some((column, revisions)))? {
            let there = BooleanArray::from(there[from..from + rows.num_rows()].to_vec());
            from += rows.num_rows();
            emit.rows.push(match &self.takes_back {
                Some(columns) => taken_back(&rows, &there, columns)?,
                None => rows,
            });
        }
        Ok(())
    }

    /// Lets go of the windows that are too old to be revised.
    fn drop_old(&mut self, ids: &[u32]) {
        let keep_us = self.sides.spec.disorder_us.saturating_add(self.keep_us);
        for id in ids {
            let key = &mut self.known.keys[*id as usize];
            let dropped_us = key.clock_us.saturating_sub(keep_us);
            if dropped_us > key.dropped_us {
                key.dropped_us = dropped_us;
                key.pairs = key.pairs.split_off(&(dropped_us.saturating_add(1), i64::MIN));
            }
        }
    }

    /// Forgets keys that were silent for so long that nothing of them is expected any more, not
    /// even the next window.
    fn forget(&mut self, tick: Tick) -> Result<(), OperatorError> {
        let next_us = |key: &KeyState| {
            let newest = key.pairs.last_key_value();
            newest.map_or(0, |((end_us, start_us), _)| end_us - start_us)
        };
        let left = |key: &KeyState| Remnant { bound: key.clock_us, extra: key.clock_us };
        self.known.forget(&mut self.sides.interner, tick.time_us, next_us, left)
    }
}

impl JoinOperator for WindowJoin {
    fn epoch(
        &mut self,
        left: &RecordBatch,
        right: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let mut clocks = self.take(Side::Left, left, tick, emit)?;
        clocks.extend(self.take(Side::Right, right, tick, emit)?);
        let ids: Vec<u32> = clocks.iter().map(|c| c.0).collect();
        self.settle(clocks);
        if !emit.more {
            self.settle_silent(tick);
        }
        self.give(emit)?;
        let spec = &self.sides.spec;
        self.late.finish_of(&self.sides.interner, (&spec.left_keys, &spec.left), emit)?;
        self.drop_old(&ids);
        if emit.more { Ok(()) } else { self.forget(tick) }
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let ids: Vec<u32> = self.sides.interner.ids().collect();
        for id in ids {
            let clock_us = self.known.keys[id as usize].clock_us;
            self.settle_to(id, clock_us);
        }
        self.give(emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let groups = self.known.cut(whole);
        let (keys, seen_us) = (self.known.keys.clone(), self.known.seen_us());
        let rows_of = move |id: u32| {
            let key = &keys[id as usize];
            let own = [key.clock_us, key.settled_us, key.dropped_us, seen_us[id as usize]];
            let own = own.map(Some);
            let of_pair = |(bounds, pair): (&Bounds, &Pair)| StateRow {
                numbers: own
                    .into_iter()
                    .chain([
                        Some(bounds.0),
                        Some(bounds.1),
                        pair.left.as_ref().map(Revised::saved),
                        pair.right.as_ref().map(Revised::saved),
                        pair.emitted,
                    ])
                    .collect(),
                left: pair.left.as_ref().map(|left| Arc::clone(&left.row)),
                right: pair.right.as_ref().map(|right| Arc::clone(&right.row)),
            };
            match key.pairs.is_empty() {
                true => vec![StateRow::of_key(&own, NUMBERS.len())],
                false => key.pairs.iter().map(of_pair).collect(),
            }
        };
        save::cut(&self.sides, self.known.remnants.clone(), groups, &NUMBERS, rows_of)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        for (id, rows) in save::load(&mut self.sides, &mut self.known.remnants, state, &NUMBERS)? {
            let (mut key, mut seen_us) = (KeyState::default(), i64::MIN);
            for row in rows {
                let [clock, settled, dropped, seen, end, start, left, right, emitted] =
                    row.numbers[..]
                else {
                    return Err(OperatorError::State("a row has too few numbers".to_owned()));
                };
                // They are the same in all rows of a key.
                [key.clock_us, key.settled_us, key.dropped_us, seen_us] =
                    [clock, settled, dropped, seen].map(|number| number.unwrap_or(i64::MIN));
                if let Some(bounds) = end.zip(start) {
                    let left = left.zip(row.left).map(Revised::load);
                    let right = right.zip(row.right).map(Revised::load);
                    key.pairs.insert(bounds, Pair { left, right, emitted });
                }
            }
            self.known.restore(id, key, seen_us);
        }
        Ok(())
    }
}

impl AsideOperator for WindowJoin {
    /// The log of outages.
    fn aside(&mut self, rows: &RecordBatch) {
        self.known.outages(rows);
    }
}

#[cfg(test)]
mod tests;
