//! Sequences: a reading and then another, a reading and then no other, so many of some readings.
//!
//! What is found is defined over the readings of a key in the order of their times, not over their
//! arrival ([`automaton`]): readings of the same time are in the order of what they say. A key has
//! a clock, its newest event time; what is not newer than clock - `disorder` is settled, and what
//! is found in it is told. If a key is silent for `idle_close`, ticks take the place of its clock:
//! what waits for others is settled, and what did not come is told without a message. What is older
//! than clock - `disorder` - `keep` is final: an older reading is late, and silence makes none so.
//! Any other late reading revises: a match that is another now comes again with the next revision,
//! one that is none is withdrawn, as windows are ([`crate::span`]).
//!
//! A silence in ticks during which the source was away, or Tidegate did not run, says nothing
//! ([`crate::outage`]): once that is over, every key has its whole time anew. If the next reading
//! comes after that time by the key's own clock, whether what was waited for came is not known:
//! then there is no match. That is the first reading by its time, whenever it comes. A silence
//! that an outage could explain of which nobody knows yet waits until it would be known.
//!
//! A match is told when it is complete and again when it is over. State of a key: the readings of
//! `disorder` and `keep`, at most [`ENTRIES_MAX`], and one automaton for all that are older.

mod automaton;
mod bound;
mod emit;
mod key;
mod save;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};

use self::automaton::Entry;
use self::key::{KeyState, Rule, Told};
use crate::batch::Tick;
use crate::expression::{Failed, condition, expression_failed};
use crate::intern::KeyInterner;
use crate::keys::{KeyedStep, Quiet, gone_us};
use crate::late::LateRows;
use crate::operator::{Emit, JoinOperator, OperatorError};
use crate::outage::Outages;
use crate::picked::Picker;
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::{Expr, SequenceSpec};
use crate::system::step_rejects;

pub use self::key::ENTRIES_MAX;

/// So long a key can wait for something that does not come, microseconds.
fn waits_us(spec: &SequenceSpec) -> i64 {
    let SequenceSpec { pattern, disorder_us, idle_close_us, known_after_us, .. } = spec;
    let waits_us = [pattern.within_us(), *disorder_us, *idle_close_us, *known_after_us, 1];
    waits_us.into_iter().fold(0, i64::saturating_add)
}

/// A sequence step at work on the keys of one worker.
pub struct SequenceOperator {
    spec: SequenceSpec,
    output: SchemaRef,
    interner: KeyInterner,
    /// The columns of the first reading, then those of the last one.
    picker: Picker,
    keys: Slabs<KeyState>,
    silence: Quiet,
    outages: Outages,
    /// The tick time at which to look whether a key has been silent for long enough; of each key
    /// at most one.
    due: BTreeSet<(i64, u32)>,
    /// Keys that wait for the end of an outage: to be looked at when the outages change.
    waiting: BTreeSet<u32>,
    late: LateRows,
    ids: Vec<u32>,
    told: Vec<Told>,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
}

impl SequenceOperator {
    /// An operator without state.
    ///
    /// # Errors
    /// The key columns have types that cannot be keys; planning rules that out.
    pub fn new(mut spec: SequenceSpec) -> Result<Self, OperatorError> {
        let types: Vec<DataType> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        let select: Vec<(String, Expr)> =
            spec.select_first.iter().chain(&spec.select).cloned().collect();
        // Not before what it waits for was told.
        spec.forget_after_us = spec.forget_after_us.max(waits_us(&spec));
        let forget_after_us = if spec.live { spec.forget_after_us } else { i64::MAX };
        Ok(Self {
            output: spec.schema(),
            interner: KeyInterner::new(&types)?,
            picker: Picker::new((&spec.pipeline, &spec.name), &select, &spec.input)?,
            keys: Slabs::default(),
            silence: Quiet::new(forget_after_us),
            outages: Outages::default(),
            due: BTreeSet::new(),
            waiting: BTreeSet::new(),
            late: LateRows::new(&spec.pipeline, &spec.name),
            ids: Vec::new(),
            told: Vec::new(),
            changed: GroupSet::default(),
            spec,
        })
    }

    fn rule(&self) -> Rule {
        let SequenceSpec { pattern, disorder_us, idle_close_us, keep_us, known_after_us, .. } =
            self.spec;
        Rule { pattern, disorder_us, idle_close_us, keep_us, known_after_us }
    }

    /// The rows whose keys have or find a place; sets `ids`.
    fn admit(&mut self, rows: &RecordBatch, emit: &mut Emit) -> Result<RecordBatch, OperatorError> {
        let SequenceSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let rows = step.admitted(&mut self.interner, keys, rows, &mut self.ids, emit)?;
        for key in self.interner.fresh() {
            self.keys.put(key.id as usize, KeyState::default());
            self.silence.start(key.id, i64::MIN);
        }
        Ok(rows)
    }

    /// Which readings can be first and last. One of which that cannot be said is neither, and is
    /// told as a reject.
    fn marks(
        &self,
        rows: &RecordBatch,
        emit: &mut Emit,
    ) -> Result<(BooleanArray, BooleanArray), OperatorError> {
        let (last, errors) = condition(&self.spec.last, rows)?;
        let mut failed: Vec<Failed> = errors.into_iter().map(expression_failed).collect();
        let first = match &self.spec.first {
            Some(first) => {
                let (first, errors) = condition(first, rows)?;
                failed.extend(errors.into_iter().map(expression_failed));
                first
            }
            None => last.clone(),
        };
        if !failed.is_empty() {
            failed.sort_by_key(|f| f.row);
            failed.dedup_by_key(|f| f.row);
            let (pipeline, step) = (&self.spec.pipeline, &self.spec.name);
            emit.rejects.extend(step_rejects(pipeline, step, rows, &failed)?);
        }
        Ok((first, last))
    }

    fn take(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let rows = &self.admit(rows, emit)?;
        let values = self.picker.pick(rows, emit)?;
        let (first, last) = self.marks(rows, emit)?;
        let ids = std::mem::take(&mut self.ids);
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let mut touched = Vec::new();
        for (row, ((id, time_us), values)) in ids.iter().zip(times.values()).zip(values).enumerate()
        {
            self.silence.heard(*id, tick.time_us);
            let key = &mut self.keys[*id as usize];
            if key.epoch != tick.epoch {
                // An old reading, or one that came before, says nothing of the time since then.
                let missed = self.outages.overlap(key.moved_us, tick.time_us);
                let missed = missed && key.clock_us != i64::MIN;
                touched.push((*id, missed.then_some(key.clock_us)));
                key.epoch = tick.epoch;
                key.seen_us = tick.time_us;
            }
            if *time_us > key.clock_us {
                (key.clock_us, key.moved_us) = (*time_us, tick.time_us);
            }
            if *time_us < key.final_us {
                self.late.push(*id, *time_us, (*time_us, *time_us), key.clock_us - time_us);
                continue;
            }
            let (first, last) = (first.value(row), last.value(row));
            key.insert(Entry { time_us: *time_us, heard: true, first, last, values });
        }
        self.ids = ids;
        for (id, missed_since_us) in touched {
            let key = &mut self.keys[id as usize];
            if let Some(clock_us) = missed_since_us {
                key.missed_since(clock_us);
            }
            let horizon_us = key.clock_us.saturating_sub(self.spec.disorder_us);
            self.settle(id, horizon_us);
        }
        Ok(())
    }

    fn settle(&mut self, id: u32, horizon_us: i64) {
        let rule = self.rule();
        self.keys[id as usize].settle(id, rule, horizon_us, &mut self.told);
        self.changed.insert(self.interner.group(id));
        self.watch(id);
    }

    /// Puts a key on the list of those to look at, unless it is looked at earlier.
    fn watch(&mut self, id: u32) {
        if !self.spec.live {
            return;
        }
        let rule = self.rule();
        let key = &mut self.keys[id as usize];
        if key.timer_us(rule.pattern).is_some() && self.outages.over_us().is_none() {
            self.waiting.insert(id);
        }
        if let Some((look_us, _)) = key.next_look(rule, &self.outages)
            && key.wake_us.is_none_or(|wake_us| look_us < wake_us)
        {
            if let Some(wake_us) = key.wake_us.replace(look_us) {
                self.due.remove(&(wake_us, id));
            }
            self.due.insert((look_us, id));
        }
    }

    /// Tells what keys say by their silence.
    fn look(&mut self, now_us: i64) {
        let rule = self.rule();
        while let Some((_, id)) = self.due.first().copied().filter(|look| look.0 <= now_us) {
            self.due.pop_first();
            let key = &mut self.keys[id as usize];
            key.wake_us = None;
            match key.next_look(rule, &self.outages) {
                Some((look_us, horizon_us)) if look_us <= now_us => self.settle(id, horizon_us),
                _ => self.watch(id),
            }
        }
    }

    /// Keys that were silent for long enough to be forgotten: time in which nothing could be heard
    /// is no silence, and after that each has its whole time anew.
    fn gone(&mut self, now_us: i64) -> Vec<u32> {
        if !self.spec.live {
            return Vec::new();
        }
        let silent_us = (waits_us(&self.spec), self.spec.forget_after_us);
        let (keys, outages) = (&self.keys, &self.outages);
        self.silence.silent(now_us, |id, _| gone_us(outages, keys[id as usize].seen_us, silent_us))
    }

    fn forget(&mut self, gone: &[u32]) {
        for id in gone {
            self.changed.insert(self.interner.group(*id));
            self.waiting.remove(id);
            if let Some(wake_us) = self.keys[*id as usize].wake_us {
                self.due.remove(&(wake_us, *id));
            }
            let is_last = self.interner.forget(*id);
            self.keys.forget(*id as usize, is_last);
            self.silence.forget(*id, is_last);
        }
    }
}

impl JoinOperator for SequenceOperator {
    /// Readings, and the log of outages.
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        outages: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if outages.num_rows() > 0 {
            self.outages.take(outages);
            for id in std::mem::take(&mut self.waiting) {
                self.watch(id);
            }
            self.silence.changed();
        }
        if rows.num_rows() > 0 {
            self.take(rows, tick, emit)?;
        }
        let mut gone = Vec::new();
        if !emit.more {
            self.look(tick.time_us);
            gone = self.gone(tick.time_us);
        }
        for id in &gone {
            let key = &mut self.keys[*id as usize];
            key.forgotten(*id, self.spec.forget_after_us, &mut self.told);
        }
        self.give(emit)?;
        self.late.finish_of(&self.interner, (&self.spec.keys, &self.spec.input), emit)?;
        self.forget(&gone);
        Ok(())
    }

    /// What waits for others comes now. That something does not come, nothing has said.
    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let ids: Vec<u32> = self.interner.ids().collect();
        for id in ids {
            let clock_us = self.keys[id as usize].clock_us;
            self.settle(id, clock_us);
        }
        self.give(emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let changed = std::mem::take(&mut self.changed);
        self.cut_state(if whole { GroupSet::ALL } else { changed })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}
