//! Tumbling, hopping and calendar windows with any DataFusion aggregate, one clock per key.
//!
//! In each epoch: (1) readings are put into panes and checked for lateness against what was closed
//! before the epoch; (2) the epoch's panes get their earlier state merged and the readings added,
//! in journal order, which makes every float exact and repeatable; (3) keys whose clock passed the
//! end of a window emit it (the clock of a key that is silent for `idle_close` goes on with the
//! ticks); windows that late readings touched are emitted again with the next revision, and so are
//! open ones that changed, where early results are asked for ([`early`]); (4) state that can no
//! longer be revised is dropped.
//! Of an epoch that comes in several calls, (3) and (4) are done in the last.
//! All of it depends on the key's own readings and on ticks, never on other keys or workers (with
//! `clock = "fleet"` the rows of all keys are on one worker).
//!
//! Partial state lives in Arrow arrays ([`crate::partial`]).

mod bound;
mod bounds;
mod calendar;
mod close;
mod early;
mod grid;
mod heir;
mod keys;
mod quality;
mod save;
#[cfg(test)]
mod tests;
mod zones;

pub(crate) use self::bound::bound;
pub use self::heir::heir;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};

use self::bounds::Bounds;
use self::close::Due;
use self::keys::KeyState;
use crate::batch::{Epoch, Tick};
use crate::early::Early;
use crate::intern::KeyInterner;
use crate::keys::{KeyedStep, Remnants};
use crate::late::LateRows;
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::partial::{Aggregation, Slot, Store};
use crate::quality::{Losses, Repeated};
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::{Clock, LatePolicy, WindowSpec};
pub use zones::REASON_ZONE;

/// A window step at work on the keys of one worker.
pub struct WindowOperator {
    spec: WindowSpec,
    bounds: Bounds,
    output: SchemaRef,
    interner: KeyInterner,
    keys: Slabs<KeyState>,
    /// What is left of keys without windows.
    remnants: Remnants,
    /// Keys that lost their last window in the current epoch.
    gone: Vec<u32>,
    /// Nothing is forgotten, to compare with.
    #[cfg(test)]
    keep_all: bool,
    store: Store,
    aggregation: Aggregation,
    /// Keys after the tick time at which to look whether they have been silent for long enough:
    /// one entry for each that has [`KeyState::look_us`].
    idle: BTreeSet<(i64, u32)>,
    /// Newest event time of any key, for `clock = "fleet"`.
    fleet_clock_us: i64,
    late: LateRows,
    losses: Losses,
    /// Readings of the current epoch that were dropped because they had come before.
    repeated: Repeated,
    /// Keys touched in the current epoch.
    touched: Vec<u32>,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
    /// Keys whose open windows changed since they were emitted.
    early: Early,
    /// Windows to emit at the end of the current epoch.
    due: Vec<Due>,
    ids: Vec<u32>,
}

/// The panes of an epoch, in order of first appearance, and which one each reading went to.
#[derive(Default)]
struct Groups {
    owners: Vec<(u32, i64)>,
    /// Where the state of a pane lies, if it had readings in earlier epochs.
    earlier: Vec<Option<Slot>>,
    of_row: Vec<usize>,
    /// Readings that are too late for every window; not in `of_row`.
    excluded: Vec<u32>,
}

impl Groups {
    /// The same panes, those that had readings before in front: see [`Aggregation::update`].
    fn earlier_first(self) -> Self {
        if self.earlier.is_sorted_by_key(Option::is_none) {
            return self;
        }
        let (mut order, new): (Vec<usize>, Vec<usize>) =
            (0..self.owners.len()).partition(|group| self.earlier[*group].is_some());
        order.extend(new);
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, group)| places[*group] = place);
        Self {
            owners: order.iter().map(|group| self.owners[*group]).collect(),
            earlier: order.iter().map(|group| self.earlier[*group]).collect(),
            of_row: self.of_row.into_iter().map(|group| places[group]).collect(),
            excluded: self.excluded,
        }
    }

    /// The readings without those that are too late.
    fn included(&self, rows: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        if self.excluded.is_empty() {
            return Ok(rows.clone());
        }
        let mut excluded = self.excluded.iter().peekable();
        let keep =
            (0..rows.num_rows() as u32).filter(|row| excluded.next_if(|e| *e == row).is_none());
        Ok(take_record_batch(rows, &UInt32Array::from_iter_values(keep))?)
    }
}

impl WindowOperator {
    /// An operator without state.
    pub fn new(spec: WindowSpec) -> Result<Self, OperatorError> {
        let types: Vec<_> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        Ok(Self {
            bounds: Bounds::new(&spec)?,
            output: spec.schema(),
            interner: KeyInterner::new(&types)?,
            keys: Slabs::default(),
            remnants: Remnants::new(spec.limits.share()),
            gone: Vec::new(),
            #[cfg(test)]
            keep_all: false,
            changed: GroupSet::default(),
            store: Store::default(),
            aggregation: Aggregation::new(&spec)?,
            idle: BTreeSet::new(),
            fleet_clock_us: i64::MIN,
            late: LateRows::new(&spec.pipeline, &spec.name),
            losses: Losses::new(spec.quality),
            repeated: Repeated::default(),
            touched: Vec::new(),
            early: Early::new(spec.early_us),
            due: Vec::new(),
            ids: Vec::new(),
            spec,
        })
    }

    /// Which readings have keys with a place; sets `ids`.
    fn admit(&mut self, rows: &RecordBatch, emit: &mut Emit) -> Result<RecordBatch, OperatorError> {
        let rows = self.with_zones(rows, emit)?;
        let WindowSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let known = (&mut self.interner, &self.remnants);
        let rows = step.admitted_back(known, keys, &rows, &mut self.ids, emit)?;
        let fresh: Vec<u32> = self.interner.fresh().iter().map(|key| key.id).collect();
        let zones = self.zones_of(&fresh)?;
        for (key, zone) in self.interner.fresh().iter().zip(zones) {
            let left = self.remnants.take(*key).map(|r| (r.bound, r.extra));
            let state = match left {
                Some(left) => self.come_back(left, zone),
                None => KeyState { zone, ..KeyState::default() },
            };
            self.keys.put(key.id as usize, state);
        }
        Ok(rows)
    }

    /// Step 1: which pane each reading goes to.
    fn assign(&mut self, rows: &RecordBatch, tick: Tick) -> Result<Groups, OperatorError> {
        let ids = std::mem::take(&mut self.ids);
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let offsets = rows.column_by_name("journal_offset");
        let offsets = offsets.and_then(|o| o.as_primitive_opt::<Int64Type>());
        let mut groups =
            Groups { of_row: Vec::with_capacity(rows.num_rows()), ..Default::default() };
        for (row, (id, time_us)) in ids.iter().zip(times.values()).enumerate() {
            let key = &mut self.keys[*id as usize];
            if key.epoch != tick.epoch {
                key.epoch = tick.epoch;
                self.touched.push(*id);
            }
            key.clock_us = key.clock_us.max(*time_us);
            let hot = key.hot_epoch == tick.epoch
                && *time_us >= key.hot_start_us
                && *time_us < key.hot_end_us;
            if hot {
                groups.of_row.push(key.hot_group as usize);
                continue;
            }
            self.late.offset = offsets.map(|offsets| offsets.value(row));
            match self.assign_cold(*id, *time_us, tick.epoch, &mut groups)? {
                Some(group) => groups.of_row.push(group as usize),
                None => groups.excluded.push(row as u32),
            }
        }
        self.ids = ids;
        Ok(groups)
    }

    /// The pane of a reading that is not in the same pane as the reading of its key before it.
    fn assign_cold(
        &mut self,
        id: u32,
        time_us: i64,
        epoch: Epoch,
        groups: &mut Groups,
    ) -> Result<Option<u32>, OperatorError> {
        let key = &mut self.keys[id as usize];
        let (pane_at, zone) = (self.bounds.pane_at(time_us, key.zone), key.zone);
        let number = pane_at.number;
        let (first, last) = self.bounds.windows_of(number);
        if first <= key.dropped {
            let end_us = self.bounds.end(last.min(key.dropped), zone);
            let window = (self.bounds.start(first, zone), end_us);
            let behind_us = key.clock_us - time_us;
            self.late.push(id, time_us, window, behind_us);
            if last <= key.dropped {
                return Ok(None);
            }
        }
        let (closed, dropped) = (key.closed, key.dropped);
        let pane = key.pane_mut(number);
        if pane.epoch != epoch {
            pane.epoch = epoch;
            pane.group = groups.owners.len() as u32;
            groups.owners.push((id, number));
            groups.earlier.push(pane.slot);
            // Windows that were closed already: emitted again, or for the first time if they had
            // no reading until now.
            for window in first.max(dropped.saturating_add(1))..=last.min(closed) {
                let (from, to) = self.bounds.panes_of(window);
                let revise = key.panes_in(from, to).iter().any(|p| p.slot.is_some());
                self.due.push(Due::again(id, window, revise));
            }
        }
        let group = key.pane_mut(number).group;
        if first > dropped {
            key.hot_epoch = epoch;
            (key.hot_start_us, key.hot_end_us) = (pane_at.start_us, pane_at.end_us);
            key.hot_group = group;
        } else {
            // Every further reading of a partly dropped pane is a late row, too.
            key.hot_epoch = 0;
        }
        Ok(Some(group))
    }

    /// Step 2: earlier state and the epoch's readings into new state.
    fn accumulate(
        &mut self,
        rows: &RecordBatch,
        groups: Groups,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let total = groups.owners.len();
        if total == 0 {
            return Ok(());
        }
        let rows = &groups.included(rows)?;
        let groups = groups.earlier_first();
        let slots: Vec<Slot> = groups.earlier.iter().flatten().copied().collect();
        let state = self.store.gather(&slots)?;
        let (earlier, of_row) = ((&state[..], slots.len()), &groups.of_row);
        let columns = self.aggregation.update(earlier, rows, of_row, total, emit)?;
        for slot in slots {
            self.store.release(slot);
        }
        let mut counts = vec![0i64; total];
        groups.of_row.iter().for_each(|g| counts[*g] += 1);
        let chunk = self.store.add(columns, groups.owners.clone());
        for (row, (id, number)) in groups.owners.into_iter().enumerate() {
            let pane = self.keys[id as usize].pane_mut(number);
            pane.slot = Some(Slot { chunk, row: row as u32 });
            pane.rows += counts[row];
        }
        Ok(())
    }

    /// Bytes held, without the accumulators' room for the windows of one epoch.
    pub fn size_bytes(&self) -> usize {
        let keys = self.interner.ids().map(|id| self.keys[id as usize].size_bytes());
        // A node of the set is at least half full.
        let idle = self.idle.len() * 2 * size_of::<(i64, u32)>();
        self.interner.size_bytes()
            + self.keys.size_bytes()
            + self.remnants.size_bytes()
            + self.store.size_bytes()
            + keys.sum::<usize>()
            + idle
            + self.early.size_bytes()
    }

    fn horizon_us(&self, key: &KeyState) -> i64 {
        let clock_us = match self.spec.clock {
            Clock::Device => key.clock_us,
            Clock::Fleet => self.fleet_clock_us,
        };
        clock_us.saturating_sub(self.spec.disorder_us)
    }

    fn keep_us(&self) -> i64 {
        match self.spec.late {
            LatePolicy::Revise { keep_us } => keep_us,
            LatePolicy::Table => 0,
        }
    }

    /// Notes the groups of the keys that this epoch touched. One clock for the fleet is part of the
    /// state of every key.
    fn note_changed(&mut self) {
        match self.spec.clock {
            Clock::Fleet if !self.touched.is_empty() => self.changed = GroupSet::ALL,
            _ => {
                let groups = self.touched.iter().map(|id| self.interner.group(*id));
                self.changed.extend(groups);
            }
        }
        self.touched.clear();
    }

    fn compact(&mut self) -> Result<(), OperatorError> {
        let keys = std::cell::RefCell::new(&mut self.keys);
        self.store.compact(
            |(id, number), slot| {
                let keys = keys.borrow();
                let pane = keys.get(id as usize).and_then(|key| key.pane(number));
                pane.is_some_and(|p| p.slot == Some(slot))
            },
            |(id, number), _, slot| {
                keys.borrow_mut()[id as usize].pane_mut(number).slot = Some(slot);
            },
        )?;
        Ok(())
    }
}

impl KeyedOperator for WindowOperator {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if rows.num_rows() > 0 {
            let rows = self.admit(rows, emit)?;
            let groups = self.assign(&rows, tick)?;
            self.note_delays(&rows, &groups, tick);
            self.accumulate(&rows, groups, emit)?;
        }
        self.count_repeated()?;
        if emit.more {
            return Ok(());
        }
        self.judge_again();
        self.close_by_clock(tick);
        self.close_idle(tick);
        self.emit_early(tick);
        self.emit_due(emit)?;
        self.late.finish(&self.interner, &self.spec, emit)?;
        self.drop_old();
        self.note_changed();
        self.forget_gone()?;
        self.compact()
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let ids: Vec<u32> = self.interner.ids().collect();
        ids.into_iter().for_each(|id| self.close_all(id));
        self.changed = GroupSet::ALL;
        self.emit_due(emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let changed = std::mem::take(&mut self.changed);
        self.cut_state(if whole { GroupSet::ALL } else { changed })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}

fn int64(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(arrow::array::Int64Array::from_iter_values(values))
}
