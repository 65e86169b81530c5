//! Absences: times in which a key should have had readings and had none.
//!
//! Definition: of two readings of a key that follow each other in event time, more than `limit`
//! apart (the cadence times how many must be missing), the time between them is an absence. It is
//! told as soon as it is certain, by the clock that shows it first: (1) the key's own, when a
//! reading that is settled comes after such a gap; (2) the ticks, when no newer reading came for
//! more than `limit` of them, so that it needs no message. An absence of the second kind lasts
//! until a newer reading comes: then it has ended, or, if that reading follows closely in event
//! time, was none. So does a late reading, up to `keep`, that falls into one. What is said is
//! corrected by a row of the next revision; one that was none is withdrawn, as windows are
//! ([`crate::span`]). What is told last is what all readings say, in whatever order they came.
//!
//! A silence in ticks during which the source was away, or Tidegate did not run, says nothing about
//! the key: it is inhibited. Once the source is back, every key has its whole `limit` anew; who is
//! silent for that long counts as silent then, and is not forgotten before it has been so for as
//! long again; time in which nothing could be heard does not count for that. A silence that an
//! outage could explain of which nobody knows yet is not told until it would be known; nor is one
//! after an outage that may be the way back of the key.
//!
//! State of a key: what waits for `disorder`, the newest reading, what is learnt of its cadence,
//! and at most [`ABSENCES_MAX`] absences that can be corrected.

mod bound;
mod cadence;
mod emit;
mod key;
mod save;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};

use self::key::{Arrived, Judge, KeyState, Told};
use crate::batch::Tick;
use crate::intern::KeyInterner;
use crate::keys::{KeyedStep, Pushed, Quiet, Ready, Reorder, Waiting};
use crate::late::LateRows;
use crate::operator::{Emit, JoinOperator, OperatorError};
use crate::outage::Outages;
use crate::picked::Picker;
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::AbsenceSpec;

pub use self::cadence::{GAPS_LEARNT, GAPS_LEAST};
pub use self::key::ABSENCES_MAX;

/// What a row says of an absence. The text is part of the product's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It lasts.
    Silent,
    /// It lasts, and an outage explains it.
    Inhibited,
    /// It has ended with a reading.
    Back,
    /// It lasted for so long that the key is taken for gone.
    Forgotten,
    /// It was none.
    Withdrawn,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Silent, Self::Inhibited, Self::Back, Self::Forgotten, Self::Withdrawn];

    /// As it is in rows.
    pub fn text(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Inhibited => "inhibited",
            Self::Back => "back",
            Self::Forgotten => "forgotten",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// An absence step at work on the keys of one worker.
pub struct AbsenceOperator {
    spec: AbsenceSpec,
    output: SchemaRef,
    interner: KeyInterner,
    picker: Picker,
    reorder: Reorder<Arrived>,
    keys: Slabs<KeyState>,
    silence: Quiet,
    outages: Outages,
    /// Keys by the tick time at which to look whether they have been silent for long enough.
    due: BTreeMap<i64, Vec<u32>>,
    /// Keys whose absence an outage explains: to be looked at when the outages change.
    waiting: BTreeSet<u32>,
    late: LateRows,
    ids: Vec<u32>,
    told: Vec<Told>,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
}

impl AbsenceOperator {
    /// An operator without state.
    ///
    /// # Errors
    /// The key columns have types that cannot be keys; planning rules that out.
    pub fn new(spec: AbsenceSpec) -> Result<Self, OperatorError> {
        let types: Vec<DataType> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        let forget_after_us = match spec.live {
            true => spec.forget_after_us.max(spec.disorder_us),
            false => i64::MAX,
        };
        Ok(Self {
            output: spec.schema(),
            interner: KeyInterner::new(&types)?,
            picker: Picker::new((&spec.pipeline, &spec.name), &spec.select, &spec.input)?,
            // What is in order already need not wait for the next reading.
            reorder: Reorder::new(
                spec.disorder_us,
                if spec.live { spec.disorder_us } else { i64::MAX },
            ),
            keys: Slabs::default(),
            silence: Quiet::new(forget_after_us),
            outages: Outages::default(),
            due: BTreeMap::new(),
            waiting: BTreeSet::new(),
            late: LateRows::new(&spec.pipeline, &spec.name),
            ids: Vec::new(),
            told: Vec::new(),
            changed: GroupSet::default(),
            spec,
        })
    }

    /// The rows whose keys have or find a place; sets `ids`.
    fn admit(&mut self, rows: &RecordBatch, emit: &mut Emit) -> Result<RecordBatch, OperatorError> {
        let AbsenceSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let rows = step.admitted(&mut self.interner, keys, rows, &mut self.ids, emit)?;
        for key in self.interner.fresh() {
            self.keys.put(key.id as usize, KeyState::default());
            self.reorder.start(key.id);
            self.silence.start(key.id, i64::MIN);
        }
        Ok(rows)
    }

    fn take(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let rows = &self.admit(rows, emit)?;
        let values = self.picker.pick(rows, emit)?;
        let ids = std::mem::take(&mut self.ids);
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let mut ready = Ready::default();
        for ((id, time_us), values) in ids.iter().zip(times.values()).zip(values) {
            self.silence.heard(*id, tick.time_us);
            let new = Arrived { tick_us: tick.time_us, values };
            match self.reorder.push(*id, (*time_us, new), tick.time_us, &mut ready) {
                Pushed::InOrder | Pushed::Forced => {}
                Pushed::Late(new) => {
                    // What went through before it comes before it.
                    self.settle(&mut ready);
                    self.late(*id, *time_us, new);
                }
            }
        }
        self.settle(&mut ready);
        self.changed.extend(ids.iter().map(|id| self.interner.group(*id)));
        ids.iter().for_each(|id| self.watch(*id));
        self.ids = ids;
        Ok(())
    }

    /// Readings in the order of their times.
    fn settle(&mut self, ready: &mut Ready<Arrived>) {
        let Ready { ids, times_us, values } = std::mem::take(ready);
        let (spec, outages, told) = (&self.spec, &self.outages, &mut self.told);
        let mut judge = Judge { spec, outages, told };
        for ((id, time_us), new) in ids.iter().zip(times_us).zip(values) {
            judge.in_order(*id, &mut self.keys[*id as usize], time_us, new);
        }
        self.changed.extend(ids.iter().map(|id| self.interner.group(*id)));
        ids.iter().for_each(|id| self.watch(*id));
    }

    fn late(&mut self, id: u32, time_us: i64, new: Arrived) {
        let Waiting { through_us, clock_us, .. } = self.reorder.keys[id as usize];
        let (spec, outages, told) = (&self.spec, &self.outages, &mut self.told);
        let mut judge = Judge { spec, outages, told };
        if time_us < through_us.saturating_sub(spec.keep_us)
            || !judge.late(id, &mut self.keys[id as usize], time_us, new)
        {
            self.late.push(id, time_us, (time_us, time_us), clock_us - time_us);
        }
    }

    /// Puts a key on the list of those to look at.
    fn watch(&mut self, id: u32) {
        if !self.spec.live {
            return;
        }
        let key = &self.keys[id as usize];
        if key.waits_for_source() {
            self.waiting.insert(id);
        }
        let heard_us = self.reorder.keys[id as usize].seen_us;
        let Some(look_us) = key.look_us(&self.spec, &self.outages, heard_us) else { return };
        if key.wake_us.is_none_or(|wake_us| look_us < wake_us) {
            self.keys[id as usize].wake_us = Some(look_us);
            self.due.entry(look_us).or_default().push(id);
        }
    }

    /// Looks at the keys that may have been silent for long enough.
    fn look(&mut self, now_us: i64) {
        while let Some(entry) = self.due.first_entry() {
            let listed_us = *entry.key();
            if listed_us > now_us {
                return;
            }
            for id in entry.remove() {
                if self.keys.get(id as usize).is_none_or(|key| key.wake_us != Some(listed_us)) {
                    continue;
                }
                let key = &mut self.keys[id as usize];
                key.wake_us = None;
                let Waiting { readings, seen_us: heard_us, .. } = &self.reorder.keys[id as usize];
                if !readings.is_empty() {
                    // A newer reading is there; once it is settled, the key is watched again.
                    continue;
                }
                let (spec, outages, told) = (&self.spec, &self.outages, &mut self.told);
                let before = told.len();
                Judge { spec, outages, told }.look(id, key, *heard_us, now_us);
                if self.told.len() > before {
                    self.changed.insert(self.interner.group(id));
                }
                self.watch(id);
            }
        }
    }

    /// Keys that were silent for long enough to be forgotten, and not because of an outage.
    fn gone(&mut self, now_us: i64) -> Vec<u32> {
        let (spec, outages) = (&self.spec, &self.outages);
        let (keys, heard) = (&self.keys, &self.reorder.keys);
        self.silence.silent(now_us, |id, _| {
            let id = id as usize;
            keys[id].gone_us(spec, outages, heard[id].seen_us)
        })
    }

    /// Says of keys that are about to be forgotten that they are gone.
    fn forgotten(&mut self, ids: &[u32]) {
        let (spec, outages, told) = (&self.spec, &self.outages, &mut self.told);
        let mut judge = Judge { spec, outages, told };
        for id in ids {
            let heard_us = self.reorder.keys[*id as usize].seen_us;
            judge.forgotten(*id, &mut self.keys[*id as usize], heard_us);
        }
    }
}

impl JoinOperator for AbsenceOperator {
    /// Readings, and the log of outages.
    fn epoch(
        &mut self,
        left: &RecordBatch,
        right: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if right.num_rows() > 0 {
            self.outages.take(right);
            for id in std::mem::take(&mut self.waiting) {
                self.watch(id);
            }
            self.silence.changed();
        }
        if left.num_rows() > 0 {
            self.take(left, tick, emit)?;
        }
        if !emit.more {
            let mut ready = Ready::default();
            self.reorder.release_idle(tick.time_us, &mut ready);
            self.settle(&mut ready);
            self.look(tick.time_us);
        }
        self.finish(tick, emit)
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut ready = Ready::default();
        self.reorder.release_all(self.interner.ids(), &mut ready);
        self.settle(&mut ready);
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
