//! What keyed operators share about their keys: which find a place, in what order their readings
//! are, which were silent for long enough to be forgotten, and what has to be known of those.
//!
//! Invariant: all of it depends on the rows of a key's own group and on ticks, so it is the same on
//! any number of workers and after any restart.

mod remnants;
mod reorder;
mod silence;

pub(crate) use self::remnants::{REMNANT_BYTES, Remnant, Remnants, forgotten_field};
#[cfg(test)]
pub(crate) use self::reorder::READINGS_PER_KEY_MAX;
pub(crate) use self::reorder::{Pushed, Ready, Reorder, Waiting, waiting, waiting_bytes};
pub(crate) use self::silence::{LISTED_BYTES, Silence};

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use crate::expression::Failed;
use crate::intern::{KeyInterner, NO_PLACE};
use crate::operator::{Emit, OperatorError};
use crate::reject::Reason;
use crate::spec::{AtKeysMax, KeyLimits};
use crate::system::step_rejects;

/// The step whose keys these are.
#[derive(Clone, Copy)]
pub(crate) struct KeyedStep<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) name: &'a str,
    pub(crate) limits: KeyLimits,
}

impl KeyedStep<'_> {
    /// Sets `ids` to the ids of the rows whose keys have or find a place. The others become
    /// rejects: then it is told which rows stay.
    pub(crate) fn admit(
        &self,
        interner: &mut KeyInterner,
        keys: &[usize],
        rows: &RecordBatch,
        ids: &mut Vec<u32>,
        emit: &mut Emit,
    ) -> Result<Option<BooleanArray>, OperatorError> {
        let columns: Vec<ArrayRef> =
            keys.iter().map(|k| ArrayRef::clone(rows.column(*k))).collect();
        interner.intern_within(self.limits.share(), &columns, rows.num_rows(), ids)?;
        if !ids.contains(&NO_PLACE) {
            return Ok(None);
        }
        let refused: Vec<usize> = (0..ids.len()).filter(|row| ids[*row] == NO_PLACE).collect();
        self.refuse(keys, rows, &refused, emit)?;
        let keep = ids.iter().map(|id| Some(*id != NO_PLACE)).collect();
        ids.retain(|id| *id != NO_PLACE);
        Ok(Some(keep))
    }

    /// The same, with the rows that stay.
    pub(crate) fn admitted(
        &self,
        interner: &mut KeyInterner,
        keys: &[usize],
        rows: &RecordBatch,
        ids: &mut Vec<u32>,
        emit: &mut Emit,
    ) -> Result<RecordBatch, OperatorError> {
        match self.admit(interner, keys, rows, ids, emit)? {
            Some(keep) => Ok(filter_record_batch(rows, &keep)?),
            None => Ok(rows.clone()),
        }
    }

    /// Makes rejects of rows whose keys found no place, or stops.
    pub(crate) fn refuse(
        &self,
        keys: &[usize],
        rows: &RecordBatch,
        refused: &[usize],
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let Some(first) = refused.first() else { return Ok(()) };
        let keys_max = self.limits.keys_max;
        if self.limits.at_keys_max == AtKeysMax::Stop {
            let schema = rows.schema();
            let names: Vec<&str> = keys.iter().map(|k| schema.field(*k).name().as_str()).collect();
            let columns: Vec<ArrayRef> = keys.iter().map(|k| rows.column(*k).clone()).collect();
            let key = crate::system::keys_json(&names, &columns, *first);
            return Err(OperatorError::KeysMax { keys_max, key });
        }
        let detail = format!("its key is new, and there is no place left (keys_max = {keys_max})");
        let reason = Reason::KeysMax.text();
        let failed = refused.iter().map(|row| Failed { row: *row, reason, detail: detail.clone() });
        let failed: Vec<Failed> = failed.collect();
        emit.rejects.push(step_rejects(self.pipeline, self.name, rows, &failed)?);
        Ok(())
    }
}
