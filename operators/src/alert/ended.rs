//! What becomes of alerts whose rule is removed or replaced: from saved state alone.
//!
//! The rule itself is gone by then, so nothing here may need it: names of key columns are those of
//! the state.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;

use super::event::alert_id;
use super::save::{FIRING, FIXED, FRESH, NONE, OPEN, PENDING, SAID, UNHEARD, keys_of};
use super::state::KEPT;
use crate::system::{alerts_schema, keys_json};

/// Why an alert ended: `reason` of `system.alerts`.
pub const RULE_CHANGED: &str = "rule_changed";

/// A rule that is no more.
#[derive(Clone, Copy, Debug)]
pub struct EndedRule<'a> {
    /// Name of its pipeline.
    pub pipeline: &'a str,
    /// Its own name.
    pub rule: &'a str,
    /// What its events had as severity.
    pub severity: &'a str,
}

pub(super) fn number<'a>(state: &'a RecordBatch, name: &str) -> Option<&'a Int64Array> {
    state.column_by_name(name)?.as_primitive_opt::<Int64Type>()
}

/// Whether the key of this row of a state fires; `None`: it is no state of a rule.
pub(super) fn is_firing(state: &RecordBatch, row: usize) -> Option<bool> {
    Some(matches!(number(state, FIXED[3])?.value(row), FIRING | UNHEARD))
}

/// The time of its newest row that is known, or the least one.
pub(super) fn newest_us(state: &RecordBatch, row: usize) -> Option<i64> {
    let mut newest_us = number(state, FIXED[6])?.value(row);
    for at in 0..KEPT {
        if number(state, SAID[at])?.value(row) != NONE {
            newest_us = newest_us.max(number(state, FIXED[8 + 3 * at])?.value(row));
        }
    }
    Some(newest_us)
}

/// The time of an end that is told at `time_us`, after an event of `told_us`.
pub(super) fn end_us(time_us: i64, told_us: i64) -> i64 {
    time_us.max(told_us.saturating_add(1))
}

/// Rows of `system.alerts` that resolve what fires in the saved `state` of a rule, at `time_us`, or
/// right after the key's event before that if its clock is ahead. What was only pending was told to
/// nobody, and ends in silence.
///
/// # Errors
/// `state` is not that of a rule.
pub fn end_alerts(
    ended: EndedRule<'_>,
    state: &RecordBatch,
    time_us: i64,
) -> Result<RecordBatch, ArrowError> {
    let not_ours = || ArrowError::SchemaError("this is not the state of an alert".into());
    let last = number(state, FIXED[0]).ok_or_else(not_ours)?;
    let phases = number(state, FIXED[3]).ok_or_else(not_ours)?;
    let since = number(state, FIXED[4]).ok_or_else(not_ours)?;
    let schema = state.schema();
    let count = keys_of(&schema).ok_or_else(not_ours)?;
    let names: Vec<&str> = schema.fields()[..count].iter().map(|f| f.name().as_str()).collect();
    let columns: &[ArrayRef] = &state.columns()[..count];
    let mut firing: Vec<(String, i64, bool, i64)> = (0..state.num_rows())
        .filter(|row| is_firing(state, *row) == Some(true))
        .map(|row| {
            let told = phases.value(row) == FIRING;
            let end_us = end_us(time_us, last.value(row));
            (keys_json(&names, columns, row), since.value(row), told, end_us)
        })
        .collect();
    firing.sort();
    let rows = firing.len();
    let text = |value: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows)))
    };
    let keys: ArrayRef = Arc::new(StringArray::from_iter_values(firing.iter().map(|f| &f.0)));
    let times = |f: &dyn Fn(i64, i64) -> i64| -> ArrayRef {
        let values = firing.iter().map(|(_, since_us, _, end_us)| f(*since_us, *end_us));
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    };
    let EndedRule { pipeline, rule, severity } = ended;
    let ids = firing.iter().map(|(keys, since_us, ..)| alert_id((pipeline, rule), keys, *since_us));
    RecordBatch::try_new(
        alerts_schema(),
        vec![
            times(&|_, end_us| end_us),
            text(pipeline),
            text(rule),
            Arc::clone(&keys),
            text("resolved"),
            Arc::new(StringArray::from_iter_values(ids)),
            times(&|since_us, _| since_us),
            text(severity),
            text("the rule was changed or removed"),
            keys,
            Arc::new(BooleanArray::from_iter(firing.iter().map(|f| Some(f.2)))),
            text(RULE_CHANGED),
        ],
    )
}

/// The state of a rule that was made anew from old messages, in silence: what would be firing is
/// pending since then, and nobody was told of it, so that its next row tells it.
///
/// # Errors
/// `state` is not that of a rule.
pub fn untold(state: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let (before, now) = (FIXED[1], FIXED[3]);
    let schema = state.schema();
    let columns = schema.fields().iter().zip(state.columns()).map(|(field, column)| {
        let change: fn(i64) -> i64 = match field.name().as_str() {
            name if name == before => |phase| if phase == FIRING { UNHEARD } else { phase },
            name if name == now => {
                |phase| if matches!(phase, FIRING | UNHEARD) { PENDING } else { phase }
            }
            // They come again when they change, or are over.
            OPEN => return new_null_array(field.data_type(), state.num_rows()),
            name if SAID.contains(&name) => |said| if said < 0 { said } else { said & !FRESH },
            _ => return Arc::clone(column),
        };
        let values = column.as_primitive::<Int64Type>().values();
        Arc::new(Int64Array::from_iter_values(values.iter().map(|v| change(*v)))) as ArrayRef
    });
    RecordBatch::try_new(state.schema(), columns.collect::<Vec<ArrayRef>>())
}
