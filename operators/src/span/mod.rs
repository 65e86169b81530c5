//! Windows whose bounds come from the readings: sessions, counts, states, and sliding windows.
//!
//! What windows there are is defined over the readings of a key in the order of their times
//! ([`rule`], one file per shape), not over their arrival: any order of arrival ends in the same
//! windows. A key has a clock, its newest event time; what is older than clock - `disorder` is
//! settled, and the windows that this ends are emitted. A key that is silent for `idle_close` has
//! its clock go on with the ticks, so that a session ends, or a state reaches its maximum, without
//! a message. What is older than settled - `revise_for` is final: an older reading is too late,
//! unless all that it changes is still open ([`taken`]).
//!
//! In each epoch: (1) readings that are not too late become entries, each with its own partial
//! aggregates; (2) for each key that had readings, or was silent for long enough, the rule finds
//! the windows that have ended; those that were not emitted, or with other readings, are due, and
//! those that were emitted and are none any more are withdrawn; what is open and changed is due as
//! well, where early results are asked for ([`early`]); (3) what is final is folded: what
//! no window needs goes, what will stay together becomes one entry ([`due`]); (4) the merges of all
//! keys are done at once, then the due windows are put together and emitted ([`emit`]). Of an epoch
//! that comes in several calls, all but (1) is done in the last.
//!
//! So a key has in memory the readings of `disorder` and `revise_for` (of sessions without a
//! maximum one entry per session), one entry for what is open and older, and what was emitted and
//! can be revised. Everything depends on the key's own readings and on ticks; with `clock =
//! "fleet"` on all keys, which are then on one worker.

mod bound;
mod count;
mod due;
mod early;
mod emit;
mod keys;
mod owed;
mod places;
mod quality;
mod rule;
mod save;
mod session;
mod sliding;
mod state;
mod taken;
#[cfg(test)]
mod tests;

pub(crate) use self::bound::bound;

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};

use self::due::Work;
use self::keys::{KeyState, Marks};
use self::places::{Places, owners};
use self::quality::Qualities;
use self::rule::Rule;
use self::taken::Taken;
use crate::batch::Tick;
use crate::early::Early;
use crate::expression::{Failed, condition, expression_failed};
use crate::intern::KeyInterner;
use crate::keys::KeyedStep;
use crate::late::LateRows;
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::partial::{Aggregation, Store};
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::{Clock, Expr, LatePolicy, Shape, WindowSpec};
use crate::system::step_rejects;

/// A window step of one of these shapes at work on the keys of one worker.
pub struct SpanOperator {
    spec: WindowSpec,
    rule: Rule,
    output: SchemaRef,
    interner: KeyInterner,
    keys: Slabs<KeyState>,
    store: Store,
    places: Places,
    aggregation: Aggregation,
    /// Keys by the tick time at which to look whether they have been silent for long enough.
    idle: BTreeMap<i64, Vec<u32>>,
    /// Keys whose open windows are not as they were emitted.
    early: Early,
    /// Newest event time of any key, for `clock = "fleet"`.
    fleet_clock_us: i64,
    late: LateRows,
    qualities: Qualities,
    /// Keys that had readings in the current epoch, or were looked at because they had none.
    touched: Vec<u32>,
    /// The current epoch.
    epoch: u64,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
    /// What is to be done at the end of the current epoch.
    work: Work,
    ids: Vec<u32>,
}

impl SpanOperator {
    /// An operator without state.
    ///
    /// # Errors
    /// The step has windows of fixed bounds, or aggregates or keys that cannot be computed;
    /// planning rules all of it out.
    pub fn new(spec: WindowSpec) -> Result<Self, OperatorError> {
        let Some(rule) = Rule::new(&spec.shape) else {
            let text = format!("the windows of `{}` have fixed bounds", spec.name);
            return Err(OperatorError::State(text));
        };
        let types: Vec<_> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        Ok(Self {
            rule,
            output: spec.schema(),
            interner: KeyInterner::new(&types)?,
            keys: Slabs::default(),
            store: Store::default(),
            places: Places::default(),
            aggregation: Aggregation::new(&spec)?,
            idle: BTreeMap::new(),
            early: Early::new(spec.early_us),
            fleet_clock_us: i64::MIN,
            late: LateRows::new(&spec.pipeline, &spec.name),
            qualities: Qualities::new(&spec),
            touched: Vec::new(),
            epoch: 0,
            changed: GroupSet::default(),
            work: Work::default(),
            ids: Vec::new(),
            spec,
        })
    }

    fn keep_us(&self) -> i64 {
        match self.spec.late {
            LatePolicy::Revise { keep_us } => keep_us,
            LatePolicy::Table => 0,
        }
    }

    /// What is older is final, given how far a key is settled.
    fn final_us(&self, settled_us: i64) -> i64 {
        settled_us.saturating_sub(self.keep_us())
    }

    /// Which readings leave a state behind that is the same whatever the readings before them were.
    ///
    /// # Errors
    /// The windows are no states, or the rows not those of the step.
    pub fn resets(&self, rows: &RecordBatch) -> Result<Vec<bool>, OperatorError> {
        let Rule::State(rule) = self.rule else {
            let text = format!("the windows of `{}` are no states", self.spec.name);
            return Err(OperatorError::State(text));
        };
        Ok(self.marks(rows)?.0.into_iter().map(|marks| rule.resets(marks)).collect())
    }

    /// The keys that have a window open, with the time of its first reading.
    ///
    /// # Errors
    /// A key cannot be made a row.
    pub fn open(&self) -> Result<(Vec<ArrayRef>, Vec<i64>), OperatorError> {
        let open_us = |id: u32| {
            let key = &self.keys[id as usize];
            Some((id, key.entries[key.cursor?.open?].first_us))
        };
        let (ids, times): (Vec<u32>, Vec<i64>) = self.interner.ids().filter_map(open_us).unzip();
        Ok((self.interner.keys(&ids)?, times))
    }

    /// The readings whose keys have a place; sets `ids`.
    fn admit(&mut self, rows: &RecordBatch, emit: &mut Emit) -> Result<RecordBatch, OperatorError> {
        let WindowSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let rows = step.admitted(&mut self.interner, keys, rows, &mut self.ids, emit)?;
        for key in self.interner.fresh() {
            self.keys.put(key.id as usize, KeyState::default());
        }
        Ok(rows)
    }

    /// Step 1: readings become entries.
    fn take(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let rows = &self.admit(rows, emit)?;
        let ids = std::mem::take(&mut self.ids);
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let (marks, mut failed) = self.marks(rows)?;
        let offsets = rows.column_by_name("journal_offset");
        let offsets = offsets.and_then(|o| o.as_primitive_opt::<Int64Type>());
        let (keep_us, mut open) = (self.keep_us(), BTreeMap::new());
        let mut included = Vec::with_capacity(rows.num_rows());
        let mut places = Vec::with_capacity(rows.num_rows());
        for (row, (id, time_us)) in ids.iter().zip(times.values()).enumerate() {
            let key = &mut self.keys[*id as usize];
            if key.comes(tick, *time_us) {
                self.touched.push(*id);
            }
            let offset = offsets.map(|offsets| offsets.value(row));
            key.owed.iter_mut().for_each(|owed| owed.reach(offset));
            let final_us = key.settled_us.saturating_sub(keep_us);
            if *time_us < final_us {
                let (of_key, reading) = ((&*key, open.entry(*id).or_default()), marks[row]);
                let taken = self.rule.taken(&self.spec, of_key, (*time_us, reading), final_us);
                if taken != Taken::Whole {
                    self.late.offset = offset;
                    let puts_off = self.spec.puts_off && taken == Taken::Late;
                    let late = (&mut self.late, puts_off);
                    self.rule.tell_late((*id, &mut *key), (*time_us, final_us), late);
                }
                if taken == Taken::Late {
                    key.gone_us = key.gone_us.max(*time_us);
                    continue;
                }
            }
            let place = self.places.take();
            self.qualities.take(key, *time_us, tick, place);
            key.insert(*time_us, marks[row], place);
            if let Rule::Sliding(rule) = self.rule
                && let Some(pane) = key.forget_pane(rule.pane(*time_us))
            {
                self.store.release(self.places.release(pane));
            }
            included.push(row as u32);
            places.push(place);
        }
        self.ids = ids;
        if !failed.is_empty() {
            // The reading stays; what could not be evaluated counts as false.
            failed.retain(|f| included.binary_search(&(f.row as u32)).is_ok());
            let (pipeline, step) = (&self.spec.pipeline, &self.spec.name);
            emit.rejects.extend(step_rejects(pipeline, step, rows, &failed)?);
        }
        if places.is_empty() {
            return Ok(());
        }
        let taken = match included.len() == rows.num_rows() {
            true => rows.clone(),
            false => take_record_batch(rows, &UInt32Array::from(included))?,
        };
        let of_row: Vec<usize> = (0..places.len()).collect();
        let state = self.aggregation.update((&[], 0), &taken, &of_row, places.len(), emit)?;
        let chunk = self.store.add(state, owners(&places));
        self.places.settle(&places, chunk);
        Ok(())
    }

    /// What the expressions of the shape say about each reading, and where one of them failed.
    fn marks(&self, rows: &RecordBatch) -> Result<(Vec<Marks>, Vec<Failed>), OperatorError> {
        let mut marks = vec![Marks::default(); rows.num_rows()];
        let mut failed: Vec<Failed> = Vec::new();
        let mut mark = |e: &Expr, name: &str, bit: u8| -> Result<(), OperatorError> {
            let (values, errors): (BooleanArray, _) = condition(e, rows)?;
            let set = values.values().iter();
            marks.iter_mut().zip(set).filter(|(_, set)| *set).for_each(|(m, _)| m.0 |= bit);
            let named = |(row, text): (usize, String)| (row, format!("`{name}`: {text}"));
            failed.extend(errors.into_iter().map(named).map(expression_failed));
            Ok(())
        };
        match &self.spec.shape {
            Shape::State { begin, until, abort, .. } => {
                mark(begin, if until.is_some() { "begin" } else { "while" }, Marks::BEGIN)?;
                until.iter().try_for_each(|e| mark(e, "until", Marks::UNTIL))?;
                abort.iter().try_for_each(|e| mark(e, "abort", Marks::ABORT))?;
            }
            Shape::Sliding { at: Some(at), .. } => mark(at, "at", Marks::AT)?,
            Shape::Sliding { at: None, .. } => marks.fill(Marks(Marks::AT)),
            _ => {}
        }
        failed.sort_by_key(|f| f.row);
        failed.dedup_by_key(|f| f.row);
        Ok((marks, failed))
    }

    /// Step 2 for the keys that had readings; with one clock for the fleet, for all.
    fn settle_by_clock(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        for id in &touched {
            self.fleet_clock_us = self.fleet_clock_us.max(self.keys[*id as usize].clock_us);
        }
        match self.spec.clock {
            Clock::Device => {
                for id in &touched {
                    let clock_us = self.keys[*id as usize].clock_us;
                    self.settle(*id, clock_us.saturating_sub(self.spec.disorder_us), false);
                    self.watch(*id);
                }
            }
            Clock::Fleet if !touched.is_empty() => {
                let horizon_us = self.fleet_clock_us.saturating_sub(self.spec.disorder_us);
                let ids: Vec<u32> = self.interner.ids().collect();
                for id in ids {
                    self.settle(id, horizon_us, false);
                    self.watch(id);
                }
            }
            Clock::Fleet => {}
        }
        self.touched = touched;
    }

    /// Settled so far, a key has nothing left that can still change.
    fn all_final_us(&self, id: u32) -> i64 {
        let last_us = self.keys[id as usize].entries.back().map_or(i64::MAX, |e| e.last_us);
        self.final_after_us(last_us)
    }

    /// Settled so far, a key has nothing left that a reading of this time can change.
    fn final_after_us(&self, time_us: i64) -> i64 {
        let reach_us = self.rule.reach_us().saturating_add(self.keep_us()).saturating_add(1);
        time_us.saturating_add(reach_us)
    }

    /// When to look at a key, in tick time, if it stays silent: when its clock, going on, has
    /// something to do.
    fn look_us(&self, id: u32) -> Option<i64> {
        let key = &self.keys[id as usize];
        // What is put off is told then, also by silence.
        let owed_us = key.owed.as_ref().map(|owed| self.final_after_us(owed.last_us));
        let held_us = key.entries.back().map(|_| self.all_final_us(id));
        let all_us = held_us.max(owed_us)?;
        let all_us = if key.settled_us < all_us { all_us } else { i64::MAX };
        let next_us = key.next_us.min(all_us);
        if next_us == i64::MAX {
            return None;
        }
        let silence_us = next_us.saturating_sub(key.clock_us).saturating_add(self.spec.disorder_us);
        // At least the least time: a key is settled once in an epoch.
        let silence_us = silence_us.max(self.spec.idle_close_us).max(1);
        Some(key.last_tick_us.saturating_add(silence_us))
    }

    /// Puts a key on the list of those to look at.
    fn watch(&mut self, id: u32) {
        if let Some(look_us) = self.look_us(id) {
            let key = &mut self.keys[id as usize];
            if look_us < key.wake_us {
                key.wake_us = look_us;
                self.idle.entry(look_us).or_default().push(id);
            }
        }
    }

    /// Step 2 for silent keys.
    fn settle_silent(&mut self, tick: Tick) {
        while let Some(entry) = self.idle.first_entry() {
            let listed_us = *entry.key();
            if listed_us > tick.time_us {
                return;
            }
            for id in entry.remove() {
                let key = &mut self.keys[id as usize];
                if key.wake_us != listed_us {
                    continue;
                }
                key.wake_us = i64::MAX;
                if self.look_us(id).is_some_and(|look_us| look_us <= tick.time_us) {
                    let key = &self.keys[id as usize];
                    let silent_us = tick.time_us.saturating_sub(key.last_tick_us);
                    let clock_us = key.clock_us.saturating_add(silent_us);
                    self.settle(id, clock_us.saturating_sub(self.spec.disorder_us), false);
                    self.touched.push(id);
                }
                self.watch(id);
            }
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
}

impl KeyedOperator for SpanOperator {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.epoch = tick.epoch;
        if rows.num_rows() > 0 {
            self.take(rows, tick, emit)?;
        }
        self.count_repeated()?;
        if emit.more {
            return Ok(());
        }
        self.judge_again();
        self.settle_by_clock();
        self.settle_silent(tick);
        self.emit_early(tick);
        self.finish(emit)?;
        self.late.finish(&self.interner, &self.spec, emit)?;
        self.note_changed();
        self.compact()
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let ids: Vec<u32> = self.interner.ids().collect();
        for id in ids {
            let key = &self.keys[id as usize];
            let end_us = key.clock_us.saturating_add(self.rule.end_us()).saturating_add(1);
            self.settle(id, end_us, true);
            self.watch(id);
        }
        self.changed = GroupSet::ALL;
        self.finish(emit)?;
        self.late.finish(&self.interner, &self.spec, emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let changed = std::mem::take(&mut self.changed);
        self.cut_state(if whole { GroupSet::ALL } else { changed })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}
