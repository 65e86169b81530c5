//! The state of an absence step as rows, one per key: the key columns, the clocks and what waits,
//! the newest reading, what is learnt, and the absences that can be corrected.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::AbsenceOperator;
use super::cadence::{Arrivals, Expected, Gaps};
use super::key::{Absence, Arrived, KeyState};
use crate::intern::KeyNames;
use crate::keys::Waiting;
use crate::operator::OperatorError;
use crate::saved::{Layout, SavedKey, SavedRow, is_same};
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// The three numbers before the last one are null before the first reading is settled,
/// `arrival_us` always where the cadence is declared. Lists of numbers are of what
/// waits, of gaps, then of absences; those of values of the newest reading (one or none), of what
/// waits, and of absences.
const LAYOUT: Layout = Layout {
    numbers: &[
        "clock_us",
        "through_us",
        "seen_us",
        "last_us",
        "last_tick_us",
        "arrival_us",
        "final_us",
    ],
    lists: &[
        "waiting_us",
        "waiting_tick_us",
        "gaps_us",
        "start_us",
        "end_us",
        "after_us",
        "cadence_us",
        "limit_us",
        "inhibited",
        "revision",
        "arrivals_us",
    ],
    values: &["last", "waiting", "absences"],
};

/// A key as it is saved.
#[derive(Clone, Copy)]
struct Saved<'a> {
    waiting: &'a Waiting<Arrived>,
    key: &'a KeyState,
}

impl SavedKey for Saved<'_> {
    fn number(&self, at: usize) -> Option<i64> {
        let last = self.key.last.as_ref();
        match at {
            0 => Some(self.waiting.clock_us),
            1 => Some(self.waiting.through_us),
            2 => Some(self.waiting.seen_us),
            3 => last.map(|l| l.0),
            4 => last.map(|l| l.1.tick_us),
            5 => self.key.arrivals.last_us,
            _ => Some(self.key.final_us),
        }
    }

    fn list(&self, at: usize) -> Vec<i64> {
        let waiting = &self.waiting.readings;
        let absences = |f: &dyn Fn(&Absence) -> i64| self.key.absences.iter().map(f).collect();
        match at {
            0 => waiting.iter().map(|w| w.0).collect(),
            1 => waiting.iter().map(|w| w.1.tick_us).collect(),
            2 => self.key.gaps.0.iter().copied().collect(),
            3 => absences(&|a| a.start_us),
            4 => absences(&|a| a.end_us),
            5 => absences(&|a| a.after_us),
            6 => absences(&|a| a.expected.cadence_us),
            7 => absences(&|a| a.expected.limit_us),
            8 => absences(&|a| i64::from(a.inhibited)),
            9 => absences(&|a| a.revision),
            _ => self.key.arrivals.gaps.0.iter().copied().collect(),
        }
    }

    fn values(&self, at: usize) -> Vec<&[u8]> {
        match at {
            0 => self.key.last.iter().map(|l| &*l.1.values).collect(),
            1 => self.waiting.readings.iter().map(|w| &*w.1.values).collect(),
            _ => self.key.absences.iter().map(|a| &*a.values).collect(),
        }
    }
}

impl AbsenceOperator {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let key_fields = self.spec.keys.iter().map(|k| self.spec.input.field(*k).clone());
        let (schema, names) = (LAYOUT.schema(key_fields), self.interner.snapshot());
        let (keys, waiting) = (self.keys.clone(), self.reorder.keys.clone());
        let sizes = |names: &KeyNames, groups: &GroupSet| names.sizes(groups, |_| (1, 0));
        Snapshot::sized(groups, names, sizes, move |names, groups| {
            let ids = names.ids(groups);
            let saved = |id: &u32| {
                let at = *id as usize;
                Saved { waiting: &waiting[at], key: &keys[at] }
            };
            let saved: Vec<Saved<'_>> = ids.iter().map(saved).collect();
            let mut columns = names.columns(&ids)?;
            columns.extend(LAYOUT.columns(&saved));
            let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
            Ok(SavedRows { rows, groups: counts(groups, ids.iter().map(|id| names.group(*id))) })
        })
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let key_fields = self.spec.keys.iter().map(|k| self.spec.input.field(*k).clone());
        if !is_same(&state.schema(), &LAYOUT.schema(key_fields)) {
            let text = format!("step `{}` has other keys", self.spec.name);
            return Err(OperatorError::State(text));
        }
        let keys = self.spec.keys.len();
        let mut ids = Vec::new();
        self.interner.intern(&state.columns()[..keys], state.num_rows(), &mut ids)?;
        for (row, id) in ids.iter().enumerate() {
            self.load_key(*id, &SavedRow::new(LAYOUT, state, keys, row));
            self.watch(*id);
        }
        Ok(())
    }

    fn load_key(&mut self, id: u32, row: &SavedRow<'_>) {
        let [clock_us, through_us, seen_us, last_us, last_tick_us, arrival_us, final_us] =
            [0, 1, 2, 3, 4, 5, 6].map(|at| row.number(at));
        let [times_us, ticks_us, gaps, start, end, after, cadence, limit, inhibited] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|at| row.list(at));
        let [revision, arrivals] = [9, 10].map(|at| row.list(at));
        let [last, waiting, absences] = [0, 1, 2].map(|at| row.values(at));
        self.reorder.start(id);
        let key = &mut self.reorder.keys[id as usize];
        key.clock_us = clock_us.unwrap_or(i64::MIN);
        key.through_us = through_us.unwrap_or(i64::MIN);
        key.seen_us = seen_us.unwrap_or_default();
        let arrived = ticks_us.into_iter().zip(waiting);
        let arrived = arrived.map(|(tick_us, values)| Arrived { tick_us, values });
        key.readings = times_us.into_iter().zip(arrived).collect();
        self.reorder.queue(id);
        self.silence.start(id, seen_us.unwrap_or(i64::MIN));
        let last = last_us.zip(last_tick_us).zip(last.into_iter().next());
        let absence = |i: usize| Absence {
            start_us: start[i],
            end_us: end[i],
            after_us: after[i],
            expected: Expected { cadence_us: cadence[i], limit_us: limit[i] },
            inhibited: inhibited[i] != 0,
            revision: revision[i],
            values: absences[i].clone(),
        };
        let state = KeyState {
            last: last.map(|((time_us, tick_us), values)| (time_us, Arrived { tick_us, values })),
            gaps: Gaps(gaps.into()),
            arrivals: Arrivals { gaps: Gaps(arrivals.into()), last_us: arrival_us },
            absences: (0..start.len()).map(absence).collect(),
            final_us: final_us.unwrap_or(i64::MIN),
            wake_us: None,
        };
        self.keys.put(id as usize, state);
    }
}
