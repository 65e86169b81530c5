//! A rule that was changed, or is put back: what it must know of events that were told before.
//!
//! The state of such a rule is made anew, in silence, and knows of none. Its events would have the
//! times of their rows, which can be before those of events that were told: of ends, above all,
//! which the change itself tells, at its own time ([`super::end_alerts`]). So the keys whose last
//! event is later than their rows say are handed on, with the time of that event, and what the rule
//! tells of them is later.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{max, take};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::error::ArrowError;

use super::AlertRule;
use super::ended::{end_us, is_firing, newest_us, number};
use super::save::{FIXED, keys_of};
use super::state::KeyState;
use crate::operator::{KeyedOperator, OperatorError};
use crate::snapshot::SavedRows;
use crate::spec::AlertSpec;

/// The time of a key's last event.
const TOLD: &str = FIXED[0];

/// For how long it is handed on of a rule that is not there, in tick time; microseconds.
pub const TOLD_FOR_US: i64 = 24 * 3_600_000_000;

/// Of a rule's saved state: the keys whose last event is later than their rows, once their alerts
/// were ended at `time_us`. Their columns, then the time of that event.
///
/// # Errors
/// `state` is not that of a rule.
pub fn told(state: &RecordBatch, time_us: i64) -> Result<RecordBatch, ArrowError> {
    let not_ours = || ArrowError::SchemaError("this is not the state of an alert".into());
    let keys = keys_of(state.schema_ref()).ok_or_else(not_ours)?;
    let times = number(state, TOLD).ok_or_else(not_ours)?;
    let mut those: Vec<(u32, i64)> = Vec::new();
    // What is left of keys that were put away has no times.
    for row in (0..state.num_rows()).filter(|row| times.is_valid(*row)) {
        let last_us = times.value(row);
        if is_firing(state, row).ok_or_else(not_ours)? {
            those.push((row as u32, end_us(time_us, last_us)));
        } else if last_us > newest_us(state, row).ok_or_else(not_ours)? {
            those.push((row as u32, last_us));
        }
    }
    let rows = UInt32Array::from_iter_values(those.iter().map(|(row, _)| *row));
    let mut columns: Vec<ArrayRef> =
        state.columns()[..keys].iter().map(|c| take(c, &rows, None)).collect::<Result<_, _>>()?;
    columns.push(Arc::new(Int64Array::from_iter_values(those.iter().map(|(_, us)| *us))));
    let mut fields: Vec<Arc<Field>> = state.schema().fields()[..keys].to_vec();
    fields.push(Arc::new(Field::new(TOLD, DataType::Int64, false)));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Whether something of what [`told`] gave is to be known at this tick.
pub fn is_known(told: &RecordBatch, time_us: i64) -> bool {
    let newest_us = told.column_by_name(TOLD).and_then(|c| c.as_primitive_opt::<Int64Type>());
    let newest_us = newest_us.and_then(max);
    newest_us.is_some_and(|us| us.saturating_add(TOLD_FOR_US) > time_us)
}

/// Whether [`told`] gave this of a rule with the keys of this one: others are other alerts.
pub fn has_keys_of(spec: &AlertSpec, told: &RecordBatch) -> bool {
    let (fields, keys) = (told.schema_ref().fields(), &spec.keys);
    let is_same = |(key, field): (&usize, &Arc<Field>)| {
        let own = spec.input.field(*key);
        (own.name(), own.data_type()) == (field.name(), field.data_type())
    };
    fields.len() == keys.len() + 1
        && keys.iter().zip(fields).all(is_same)
        && fields.last().is_some_and(|last| last.name() == TOLD)
}

/// The state of a rule that was made anew, at the tick `time_us`, with what was told of its keys
/// before.
///
/// # Errors
/// `rebuilt` is not the state of this rule, or `told` is of other keys.
pub fn heir(
    spec: &AlertSpec,
    rebuilt: &[RecordBatch],
    told: &[RecordBatch],
    time_us: i64,
) -> Result<Vec<SavedRows>, OperatorError> {
    let mut heir = AlertRule::new(spec.clone())?;
    for rows in rebuilt {
        heir.load(rows)?;
    }
    for rows in told.iter().filter(|rows| has_keys_of(spec, rows)) {
        heir.inherit(rows, time_us)?;
    }
    heir.cut(true).parts()
}

impl AlertRule {
    fn inherit(&mut self, told: &RecordBatch, time_us: i64) -> Result<(), OperatorError> {
        let keys = self.spec.keys.len();
        let mut ids = Vec::new();
        self.interner.intern(&told.columns()[..keys], told.num_rows(), &mut ids)?;
        for key in self.interner.fresh() {
            let left = self.remnants.take(*key).map(KeyState::back).transpose()?;
            self.states.put(key.id as usize, left.unwrap_or_else(KeyState::without_rows));
            self.silence.start(key.id, time_us);
        }
        let times = told.column(keys).as_primitive::<Int64Type>();
        for (id, told_us) in ids.iter().zip(times.values()) {
            let state = &mut self.states[*id as usize];
            state.told_us = state.told_us.max(*told_us);
        }
        Ok(())
    }
}
