//! The state of an alert rule as rows, one per key: the key columns, then [`FIXED`].

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, new_null_array,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use super::AlertRule;
use super::state::{Evaluated, KEPT, KeyState, Phase, Said};
use crate::intern::KeyNames;
use crate::keys::forgotten_field;
use crate::operator::OperatorError;
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// A phase in which nobody was told yet.
pub(super) const PENDING: i64 = 1;
/// The phase in which the alert was told.
pub(super) const FIRING: i64 = 2;
/// The phase in which it is a row, but was too old to tell anybody.
pub(super) const UNHEARD: i64 = 3;

/// Columns after the keys; `last_tick_us` is the tick time of the key's last row, the last ones are
/// of the rows that are kept, the older first. What is left of keys that were put away is one more
/// column, in rows of its own.
pub const FIXED: [&str; 8 + 3 * KEPT] = [
    "told_us",
    "before",
    "before_since_us",
    "now",
    "now_since_us",
    "last_tick_us",
    "floor_us",
    "floor_window",
    "older_us",
    "older_window",
    SAID[0],
    "newer_us",
    "newer_window",
    SAID[1],
];

/// What the rows that are kept say: a bit for `fire`, one for `clear`, and [`FRESH`]; [`NONE`]:
/// there is no such row.
pub(super) const SAID: [&str; KEPT] = ["older_said", "newer_said"];

/// A row was not too old to tell anybody.
pub(super) const FRESH: i64 = 4;

pub(super) const NONE: i64 = -1;

/// What a row says, as a number.
pub(super) fn said_as(Said { fire, clear, fresh }: Said) -> i64 {
    i64::from(fire) | (i64::from(clear) << 1) | (i64::from(fresh) * FRESH)
}

/// What [`said_as`] made a number.
pub(super) fn said_of(number: i64) -> Said {
    let said = |bit: i64| number & bit != 0;
    Said { fire: said(1), clear: said(2), fresh: said(FRESH) }
}

fn said(row: &Option<Evaluated>) -> i64 {
    row.map_or(NONE, |row| said_as(row.said))
}

/// Only of rules that take early results, before the last column: the windows that are still open.
pub(super) const OPEN: &str = "open_windows";

/// How many columns of a state are keys.
pub(super) fn keys_of(state: &Schema) -> Option<usize> {
    let has_open = state.fields().iter().rev().nth(1).is_some_and(|f| f.name() == OPEN);
    state.fields().len().checked_sub(FIXED.len() + 1 + usize::from(has_open))
}

pub(super) fn encode(phase: Phase) -> (i64, i64) {
    match phase {
        Phase::Normal => (0, 0),
        Phase::Pending { since_us } => (PENDING, since_us),
        Phase::Firing { since_us, told: true } => (FIRING, since_us),
        Phase::Firing { since_us, told: false } => (UNHEARD, since_us),
    }
}

pub(super) fn decode(code: i64, since_us: i64) -> Result<Phase, OperatorError> {
    match code {
        0 => Ok(Phase::Normal),
        PENDING => Ok(Phase::Pending { since_us }),
        FIRING => Ok(Phase::Firing { since_us, told: true }),
        UNHEARD => Ok(Phase::Firing { since_us, told: false }),
        other => Err(OperatorError::State(format!("an alert cannot be in phase {other}"))),
    }
}

impl AlertRule {
    fn state_schema(&self) -> Schema {
        let keys = self.spec.keys.iter();
        let mut fields: Vec<Field> =
            keys.map(|k| self.spec.input.field(*k).clone().with_nullable(true)).collect();
        fields.extend(FIXED.iter().map(|name| Field::new(*name, DataType::Int64, true)));
        if self.spec.early {
            fields.push(Field::new(OPEN, DataType::Binary, true));
        }
        fields.push(forgotten_field());
        Schema::new(fields)
    }

    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let schema = Arc::new(self.state_schema());
        let (names, states) = (self.interner.snapshot(), self.states.clone());
        let takes_early = self.spec.early;
        let (seen_us, remnants) = (self.silence.seen_us.clone(), self.remnants.clone());
        let sizes = move |(names, states): &(KeyNames, Slabs<KeyState>), groups: &GroupSet| {
            let open = |id: u32| states[id as usize].encode_open().map_or(0, |b| b.len());
            names.sizes(groups, |id| (1, if takes_early { open(id) } else { 0 }))
        };
        Snapshot::sized(groups, (names, states), sizes, move |(names, states), groups| {
            let ids = names.ids(groups);
            let number = |f: &dyn Fn(&KeyState) -> i64| -> ArrayRef {
                Arc::new(Int64Array::from_iter_values(
                    ids.iter().map(|id| f(&states[*id as usize])),
                ))
            };
            let mut columns = names.columns(&ids)?;
            columns.extend([
                number(&|s| s.told_us),
                number(&|s| encode(s.before).0),
                number(&|s| encode(s.before).1),
                number(&|s| encode(s.now).0),
                number(&|s| encode(s.now).1),
                Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| seen_us[*id as usize]))),
                number(&|s| s.floor_us),
                number(&|s| s.floor_id),
            ]);
            for at in 0..KEPT {
                columns.extend([
                    number(&|s| s.rows[at].map_or(0, |row| row.time_us)),
                    number(&|s| s.rows[at].map_or(0, |row| row.id)),
                    number(&|s| said(&s.rows[at])),
                ]);
            }
            if takes_early {
                let open = ids.iter().map(|id| states[*id as usize].encode_open());
                columns.push(Arc::new(BinaryArray::from_iter(open)));
            }
            columns.push(new_null_array(forgotten_field().data_type(), ids.len()));
            let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
            let groups = counts(groups, ids.iter().map(|id| names.group(*id)));
            remnants.save(names, SavedRows { rows, groups })
        })
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let expected = self.state_schema();
        let types = |schema: &Schema| -> Vec<(String, DataType)> {
            let fields = schema.fields().iter();
            fields.map(|f| (f.name().clone(), f.data_type().clone())).collect()
        };
        if types(&state.schema()) != types(&expected) {
            return Err(OperatorError::State(format!("rule `{}` has other keys", self.spec.name)));
        }
        let keys = self.spec.keys.len();
        let state = &self.remnants.load(state, keys, &self.interner)?;
        let mut ids = Vec::new();
        self.interner.intern(&state.columns()[..keys], state.num_rows(), &mut ids)?;
        let number = |i: usize, row: usize| -> i64 {
            state.column(keys + i).as_primitive::<Int64Type>().value(row)
        };
        let open = state.column_by_name(OPEN).filter(|_| self.spec.early);
        let open = open.and_then(|c| c.as_binary_opt::<i32>());
        for (row, id) in ids.iter().enumerate() {
            let kept = |at: usize| {
                let [time_us, id, said] = [8, 9, 10].map(|i| number(i + 3 * at, row));
                let known = Evaluated { time_us, id, said: said_of(said) };
                (said != NONE).then_some(known)
            };
            let mut key = KeyState {
                told_us: number(0, row),
                before: decode(number(1, row), number(2, row))?,
                now: decode(number(3, row), number(4, row))?,
                floor_us: number(6, row),
                floor_id: number(7, row),
                rows: std::array::from_fn(kept),
                open: None,
            };
            if let Some(open) = open.filter(|open| open.is_valid(row)) {
                key.decode_open(open.value(row))?;
            }
            self.states.put(*id as usize, key);
            self.silence.start(*id, number(5, row));
        }
        Ok(())
    }
}
