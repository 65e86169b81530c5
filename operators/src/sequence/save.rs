//! The state of a sequence step as rows, one per key: the key columns, the clocks, the readings
//! that are not final, the automaton after those that are, and what was told of what can be
//! revised.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::SequenceOperator;
use super::automaton::{Automaton, Counted, Entry, Match};
use super::key::KeyState;
use crate::intern::KeyNames;
use crate::operator::OperatorError;
use crate::saved::{Layout, SavedKey, SavedRow, is_same};
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// The first of the matches is the one that is not over in the automaton, if there is one, with a
/// revision of [`IN_AUTOMATON`].
const LAYOUT: Layout = Layout {
    numbers: &["clock_us", "settled_us", "final_us", "seen_us", "number", "moved_us"],
    lists: &[
        "entry_us",
        "marks",
        "waiting_us",
        "counted",
        "counted_us",
        "start_us",
        "completed_us",
        "over_us",
        "matched",
        "revision",
        "gone_us",
        "gone_revision",
    ],
    values: &["entries", "waiting", "counted_values", "first", "last"],
};

const IN_AUTOMATON: i64 = -1;

impl KeyState {
    fn matches(&self) -> impl Iterator<Item = (&Match, i64)> {
        let active = self.base.active.iter().map(|m| (m, IN_AUTOMATON));
        active.chain(self.told.iter().map(|(m, revision)| (m, *revision)))
    }
}

impl SavedKey for &KeyState {
    fn number(&self, at: usize) -> Option<i64> {
        Some(match at {
            0 => self.clock_us,
            1 => self.settled_us,
            2 => self.final_us,
            3 => self.seen_us,
            4 => self.base.number,
            _ => self.moved_us,
        })
    }

    fn list(&self, at: usize) -> Vec<i64> {
        let matches = |f: &dyn Fn(&Match) -> i64| self.matches().map(|m| f(m.0)).collect();
        let mark =
            |e: &Entry| i64::from(e.first) | i64::from(e.last) << 1 | i64::from(!e.heard) << 2;
        match at {
            0 => self.entries.iter().map(|e| e.time_us).collect(),
            1 => self.entries.iter().map(mark).collect(),
            2 => self.base.waiting.iter().map(|w| w.0).collect(),
            3 => self.base.counted.iter().map(|c| c.number).collect(),
            4 => self.base.counted.iter().map(|c| c.time_us).collect(),
            5 => matches(&|m| m.start_us),
            6 => matches(&|m| m.completed_us),
            7 => matches(&|m| m.over_us),
            8 => matches(&|m| m.matched),
            9 => self.matches().map(|m| m.1).collect(),
            10 => self.gone.keys().copied().collect(),
            _ => self.gone.values().copied().collect(),
        }
    }

    fn values(&self, at: usize) -> Vec<&[u8]> {
        match at {
            0 => self.entries.iter().map(|e| &*e.values).collect(),
            1 => self.base.waiting.iter().map(|w| &*w.1).collect(),
            2 => self.base.counted.iter().map(|c| &*c.values).collect(),
            3 => self.matches().map(|m| &*m.0.first).collect(),
            _ => self.matches().map(|m| &*m.0.last).collect(),
        }
    }
}

impl SequenceOperator {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let key_fields = self.spec.keys.iter().map(|k| self.spec.input.field(*k).clone());
        let (schema, names) = (LAYOUT.schema(key_fields), self.interner.snapshot());
        let keys = self.keys.clone();
        let sizes = |names: &KeyNames, groups: &GroupSet| names.sizes(groups, |_| (1, 0));
        Snapshot::sized(groups, names, sizes, move |names, groups| {
            let ids = names.ids(groups);
            let saved: Vec<&KeyState> = ids.iter().map(|id| &keys[*id as usize]).collect();
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
            let mut key = key_of(&SavedRow::new(LAYOUT, state, keys, row));
            key.restored(self.spec.pattern);
            self.silence.start(*id, key.seen_us);
            self.keys.put(*id as usize, key);
            self.watch(*id);
        }
        Ok(())
    }
}

fn key_of(row: &SavedRow<'_>) -> KeyState {
    let [clock_us, settled_us, final_us, seen_us, number, moved_us] =
        [0, 1, 2, 3, 4, 5].map(|at| row.number(at).unwrap_or_default());
    let [times_us, marks, waiting_us, counted, counted_us] = [0, 1, 2, 3, 4].map(|at| row.list(at));
    let [start, completed, over, matched, revision] = [5, 6, 7, 8, 9].map(|at| row.list(at));
    let gone = row.list(10).into_iter().zip(row.list(11)).collect();
    let [entries, waiting, values, first, last] = [0, 1, 2, 3, 4].map(|at| row.values(at));
    let entry = |i: usize| Entry {
        time_us: times_us[i],
        heard: marks[i] & 4 == 0,
        first: marks[i] & 1 != 0,
        last: marks[i] & 2 != 0,
        values: entries[i].clone(),
    };
    let found = |i: usize| Match {
        start_us: start[i],
        completed_us: completed[i],
        over_us: over[i],
        matched: matched[i],
        first: first[i].clone(),
        last: last[i].clone(),
    };
    let counted = |i: usize| Counted {
        number: counted[i],
        time_us: counted_us[i],
        values: values[i].clone(),
    };
    let active = revision.first().is_some_and(|r| *r == IN_AUTOMATON).then(|| found(0));
    let told = (usize::from(active.is_some())..start.len()).map(|i| (found(i), revision[i]));
    let told = told.collect();
    let base = Automaton {
        waiting: waiting_us.into_iter().zip(waiting).next(),
        active,
        number,
        counted: (0..counted_us.len()).map(counted).collect(),
    };
    let entries = (0..times_us.len()).map(entry).collect();
    KeyState {
        clock_us,
        settled_us,
        final_us,
        seen_us,
        moved_us,
        base,
        entries,
        told,
        gone,
        ..KeyState::default()
    }
}
