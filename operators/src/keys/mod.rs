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
pub(crate) use self::silence::{HELD_BYTES, LISTED_BYTES, Quiet, Silence, anew_us, gone_us};

use std::collections::BTreeSet;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use crate::expression::Failed;
use crate::intern::{Admission, KeyInterner, NO_PLACE};
use crate::key::stable_hashes;
use crate::operator::{Emit, OperatorError};
use crate::reject::{Reason, keys_max_detail};
use crate::spec::{AtKeysMax, AtMemoryMax, KeyLimits};
use crate::system::step_rejects;

/// What is told of a row whose key finds no place while memory is used up.
pub(crate) const MEMORY_MAX_DETAIL: &str = "its key is new, and memory is used up (memory_max)";

/// The rows without those that only say that a window is none (`gone`), of keys of which nothing
/// else came: these take no place.
pub(crate) fn without_strangers(
    (interner, remnants): (&mut KeyInterner, &Remnants),
    keys: &[usize],
    rows: &RecordBatch,
    gone: &BooleanArray,
) -> Result<RecordBatch, OperatorError> {
    let columns: Vec<ArrayRef> = keys.iter().map(|k| ArrayRef::clone(rows.column(*k))).collect();
    let (mut ids, mut hashes) = (Vec::new(), Vec::new());
    interner.intern_within(0, &columns, rows.num_rows(), &mut ids)?;
    stable_hashes(&columns, rows.num_rows(), &mut hashes);
    let all = || hashes.iter().enumerate();
    let come: BTreeSet<u64> = all().filter(|(row, _)| !gone.value(*row)).map(|(_, h)| *h).collect();
    let stays = |(row, hash): (usize, &u64)| {
        Some(ids[row] != NO_PLACE || come.contains(hash) || remnants.has(*hash))
    };
    Ok(filter_record_batch(rows, &all().map(stays).collect())?)
}

/// The step whose keys these are.
#[derive(Clone, Copy)]
pub(crate) struct KeyedStep<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) name: &'a str,
    pub(crate) limits: KeyLimits,
}

impl KeyedStep<'_> {
    /// Whether new keys of these columns find no place in this epoch. Without columns there is one
    /// key for all rows, which is nobody's new one.
    pub(crate) fn is_closed(&self, keys: &[usize], emit: &Emit) -> bool {
        emit.closed && self.limits.at_memory_max == AtMemoryMax::Reject && !keys.is_empty()
    }

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
        self.admit_known(interner, &|_| false, keys, rows, ids, emit)
    }

    /// The same; a key is not new, either, if `is_known` says so of its stable hash.
    fn admit_known(
        &self,
        interner: &mut KeyInterner,
        is_known: &dyn Fn(u64) -> bool,
        keys: &[usize],
        rows: &RecordBatch,
        ids: &mut Vec<u32>,
        emit: &mut Emit,
    ) -> Result<Option<BooleanArray>, OperatorError> {
        let columns: Vec<ArrayRef> =
            keys.iter().map(|k| ArrayRef::clone(rows.column(*k))).collect();
        let only = self.is_closed(keys, emit).then_some(is_known);
        let admission = Admission { share: self.limits.share(), only };
        interner.intern_admitted(admission, &columns, rows.num_rows(), ids)?;
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

    /// [`KeyedStep::admitted`] of a step that keeps something of the keys that it forgets: who
    /// comes back is not new.
    pub(crate) fn admitted_back(
        &self,
        (interner, remnants): (&mut KeyInterner, &Remnants),
        keys: &[usize],
        rows: &RecordBatch,
        ids: &mut Vec<u32>,
        emit: &mut Emit,
    ) -> Result<RecordBatch, OperatorError> {
        let is_known = |hash| remnants.has(hash);
        match self.admit_known(interner, &is_known, keys, rows, ids, emit)? {
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
        let closed = self.is_closed(keys, emit);
        if self.limits.at_keys_max == AtKeysMax::Stop && !closed {
            let schema = rows.schema();
            let names: Vec<&str> = keys.iter().map(|k| schema.field(*k).name().as_str()).collect();
            let columns: Vec<ArrayRef> = keys.iter().map(|k| rows.column(*k).clone()).collect();
            let key = crate::system::keys_json(&names, &columns, *first);
            return Err(OperatorError::KeysMax { keys_max, key });
        }
        let (reason, detail) = match closed {
            true => (Reason::MemoryMax, MEMORY_MAX_DETAIL.to_owned()),
            false => (Reason::KeysMax, keys_max_detail(keys_max)),
        };
        let reason = reason.text();
        let failed = refused.iter().map(|row| Failed { row: *row, reason, detail: detail.clone() });
        let failed: Vec<Failed> = failed.collect();
        emit.rejects.extend(step_rejects(self.pipeline, self.name, rows, &failed)?);
        Ok(())
    }
}
