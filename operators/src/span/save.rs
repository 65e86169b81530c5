//! The state of a span operator as rows, one per entry (or one for a key without entries): by key
//! group, key, and time.
//!
//! Columns: the key columns, then those of [`FIXED`], what was emitted (in the first row of a key),
//! then one per state column of the aggregates, then, if it is asked for, the quality of windows.
//! Cursors and shared panes are not saved: they follow from the rest.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, UInt32Array, new_null_array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use super::SpanOperator;
use super::keys::{Entry, KeyState, Marks, Record, Told};
use super::owed::{Owed, Resets};
use super::places::{Places, owners};
use super::quality::Notes;
use super::rule::Horizon;
use crate::intern::KeyNames;
use crate::operator::OperatorError;
use crate::partial::Store;
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};
use crate::spec::Clock;

/// Of the key, then of the entry.
const FIXED: [&str; 12] = [
    "clock_us",
    "last_tick_us",
    "settled_us",
    "fleet_clock_us",
    "passed",
    "readings",
    "folded",
    "first_us",
    "last_us",
    "rows",
    "members",
    "marks",
];
/// The first of those of the entry.
const ENTRY: usize = 7;
const RECORDS: &str = "records";
/// Bytes of a record: six numbers, little-endian.
const RECORD_BYTES: usize = 48;
/// Where in the last of them it is said what its row told; below it is the revision, or from which
/// place in the journal on readings are put off (0 if that is not known).
const TOLD_BIT: u32 = 60;
const FIRST_OFFSET_MAX: i64 = (1 << TOLD_BIT) - 1;
/// What is no record, but says what is put off.
const OWED: i64 = 3;
/// And whether it is incomplete.
const INCOMPLETE: i64 = 1 << 62;

/// The state as of a cut.
struct Cut {
    schema: SchemaRef,
    names: KeyNames,
    keys: Slabs<KeyState>,
    store: Store,
    places: Places,
    notes: Option<Notes>,
    /// Of a fleet with one clock; else the least time, as the clocks of keys are all there are.
    fleet_clock_us: i64,
}

impl Cut {
    /// Groups of keys with the bytes of text of their rows.
    fn sizes(&self, groups: &GroupSet) -> Vec<(u16, usize)> {
        let text = self.store.texts();
        self.names.sizes(groups, |id| {
            let key = &self.keys[id as usize];
            let slots = key.entries.iter().map(|entry| self.places.slot(entry.place));
            let state: u64 = slots.map(&text).sum();
            (key.entries.len().max(1), state as usize + (key.records.len() + 2) * RECORD_BYTES)
        })
    }

    fn rows(&self, groups: &GroupSet) -> Result<SavedRows, OperatorError> {
        let mut ids = Vec::new();
        let mut slots = Vec::new();
        let mut slot_of_row = Vec::new();
        let mut places = Vec::new();
        let mut fixed: [Vec<Option<i64>>; FIXED.len()] = Default::default();
        let mut records: Vec<Option<Vec<u8>>> = Vec::new();
        for id in self.names.ids(groups) {
            let key = &self.keys[id as usize];
            for i in 0..key.entries.len().max(1) {
                let entry = key.entries.get(i);
                ids.push(id);
                slot_of_row.push(entry.map(|_| slots.len() as u32));
                slots.extend(entry.map(|e| self.places.slot(e.place)));
                places.push(entry.map(|e| e.place));
                let values = [
                    Some(key.clock_us),
                    Some(key.last_tick_us),
                    Some(key.settled_us),
                    Some(self.fleet_clock_us),
                    Some(key.passed),
                    Some(key.readings as i64),
                    Some(key.folded as i64),
                    entry.map(|e| e.first_us),
                    entry.map(|e| e.last_us),
                    entry.map(|e| e.rows),
                    entry.map(|e| e.members as i64),
                    entry.map(|e| i64::from(e.marks.0)),
                ];
                fixed.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
                records.push((i == 0).then(|| encode(key)));
            }
        }
        let counts = counts(groups, ids.iter().map(|id| self.names.group(*id)));
        let mut columns = self.names.columns(&ids)?;
        columns.extend(fixed.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef));
        columns.push(Arc::new(BinaryArray::from_iter(records)));
        let rows = UInt32Array::from(slot_of_row);
        let state = self.store.gather(&slots)?;
        let notes = self.notes.as_ref().map(|notes| notes.columns(&places)).unwrap_or_default();
        for i in 0..self.schema.fields().len() - columns.len() - notes.len() {
            columns.push(match state.get(i) {
                Some(column) => take(column, &rows, None)?,
                None => {
                    let field = self.schema.field(columns.len());
                    new_null_array(field.data_type(), rows.len())
                }
            });
        }
        columns.extend(notes);
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        Ok(SavedRows { rows, groups: counts })
    }
}

impl SpanOperator {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let fields = self.aggregation.state_fields();
        let fields = match fields {
            Ok(fields) => fields,
            Err(error) => return Snapshot::in_pieces(groups, move |_| Err(error)),
        };
        let cut = Cut {
            schema: Arc::new(self.state_schema(&fields)),
            names: self.interner.snapshot(),
            keys: self.keys.clone(),
            store: self.store.snapshot(),
            places: self.places.snapshot(),
            notes: self.qualities.snapshot(),
            fleet_clock_us: match self.spec.clock {
                Clock::Fleet => self.fleet_clock_us,
                Clock::Device => i64::MIN,
            },
        };
        Snapshot::sized(groups, cut, Cut::sizes, Cut::rows)
    }

    fn state_schema(&self, state: &[Field]) -> Schema {
        let keys = self.spec.keys.iter();
        let mut fields: Vec<Field> =
            keys.map(|k| self.spec.input.field(*k).clone().with_nullable(true)).collect();
        fields.extend(FIXED.iter().map(|name| Field::new(*name, DataType::Int64, true)));
        fields.push(Field::new(RECORDS, DataType::Binary, true));
        fields.extend_from_slice(state);
        fields.extend(self.qualities.saved_fields());
        Schema::new(fields)
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let key_count = self.spec.keys.len();
        let first_state = key_count + FIXED.len() + 1;
        let types = self.aggregation.state_fields()?;
        let first_note = first_state + types.len();
        if state.num_columns() != first_note + self.qualities.saved_fields().len() {
            let text = format!("window `{}` has other keys or aggregates", self.spec.name);
            return Err(OperatorError::State(text));
        }
        let mut ids = Vec::new();
        self.interner.intern(&state.columns()[..key_count], state.num_rows(), &mut ids)?;
        for key in self.interner.fresh() {
            self.keys.put(key.id as usize, KeyState::default());
        }
        let column = |i: usize| state.column(key_count + i).as_primitive::<Int64Type>();
        let records = state.column(key_count + FIXED.len()).as_binary::<i32>();
        let filled: Vec<u32> =
            (0..state.num_rows() as u32).filter(|r| column(ENTRY).is_valid(*r as usize)).collect();
        let at = UInt32Array::from(filled);
        let columns: Result<Vec<ArrayRef>, _> =
            state.columns()[first_state..first_note].iter().map(|c| take(c, &at, None)).collect();
        let places: Vec<u32> = (0..at.len()).map(|_| self.places.take()).collect();
        if !places.is_empty() {
            let chunk = self.store.add_large(columns?, owners(&places));
            self.places.settle(&places, chunk);
        }
        let mut places = places.into_iter();
        for (row, id) in ids.iter().enumerate() {
            let value = |i: usize| column(i).value(row);
            let key = &mut self.keys[*id as usize];
            key.clock_us = value(0);
            key.last_tick_us = value(1);
            key.settled_us = value(2);
            self.fleet_clock_us = self.fleet_clock_us.max(value(3));
            key.passed = value(4);
            key.readings = value(5) as u64;
            key.folded = value(6) as usize;
            if column(ENTRY).is_valid(row)
                && let Some(place) = places.next()
            {
                self.qualities.load(&state.columns()[first_note..], row, place);
                Arc::make_mut(&mut key.entries).push_back(Entry {
                    first_us: value(ENTRY),
                    last_us: value(ENTRY + 1),
                    rows: value(ENTRY + 2),
                    members: value(ENTRY + 3) as u64,
                    marks: Marks(value(ENTRY + 4) as u8),
                    place,
                });
            }
            if records.is_valid(row) {
                decode(records.value(row), key)?;
            } else if column(ENTRY).is_null(row) || key.entries.len() == 1 {
                key.gone_us = i64::MAX;
            }
        }
        ids.dedup();
        for id in ids {
            self.go_through(id);
            self.watch(id);
            self.list_early(id);
        }
        Ok(())
    }

    /// Puts the cursor of a key where it was when the state was saved. What this finds was emitted.
    fn go_through(&mut self, id: u32) {
        let final_us = self.final_us(self.keys[id as usize].settled_us);
        let key = &mut self.keys[id as usize];
        let mut cursor = self.rule.start(key);
        let horizon = Horizon { us: key.settled_us, final_us, end: false };
        key.next_us = self.rule.scan(key, &mut cursor, horizon, &mut Vec::new());
        key.cursor = Some(cursor);
    }
}

/// What was emitted of a key, and what is put off; then, if it waits for early results, until when;
/// then its newest reading of which nothing is kept.
fn encode(key: &KeyState) -> Vec<u8> {
    let incomplete = |r: &Record| if r.incomplete { INCOMPLETE } else { 0 };
    let last = |r: &Record| r.revision | (r.told as i64) << TOLD_BIT | incomplete(r);
    let numbers = |r: &Record| [r.id, r.start_us, r.end_us, r.rows, r.members as i64, last(r)];
    let owed = key.owed.as_deref().copied();
    let is_owed = owed.is_some() || key.resets != Resets::default();
    let owed = is_owed.then(|| put_off(owed.unwrap_or(NOTHING_OWED), key.resets));
    let all = key.records.iter().flat_map(numbers).chain(owed.into_iter().flatten());
    let all = all.chain([key.early_us, key.gone_us]);
    all.flat_map(i64::to_le_bytes).collect()
}

/// Nothing is put off: the first comes after the last.
const NOTHING_OWED: Owed =
    Owed { first_us: 0, last_us: -1, since_us: 0, first_offset: 0, offset: 0 };

/// The numbers that stand where those of a record do. Either nothing ended what was open, or the
/// clock does not matter.
fn put_off(owed: Owed, resets: Resets) -> [i64; 6] {
    let Owed { first_us, last_us, since_us, first_offset, offset } = owed;
    let since_us = if resets == Resets::default() { since_us } else { resets.over_us };
    let first_offset = first_offset.clamp(0, FIRST_OFFSET_MAX);
    let last = OWED << TOLD_BIT | first_offset;
    [first_us, last_us, since_us, offset, resets.last_us, last]
}

fn decode(bytes: &[u8], key: &mut KeyState) -> Result<(), OperatorError> {
    let (chunks, rest) = bytes.as_chunks::<RECORD_BYTES>();
    let (more, rest) = rest.as_chunks::<8>();
    let mut more = more.iter().copied().map(i64::from_le_bytes);
    // Older states do not have both.
    key.early_us = more.next().unwrap_or(i64::MAX);
    key.gone_us = more.next().unwrap_or(i64::MAX);
    if more.next().is_some() || !rest.is_empty() {
        return Err(OperatorError::State(format!("{} bytes of records", bytes.len())));
    }
    let numbers = |chunk: &[u8; RECORD_BYTES]| -> [i64; 6] {
        let (numbers, _) = chunk.as_chunks::<8>();
        std::array::from_fn(|i| i64::from_le_bytes(numbers[i]))
    };
    // Older states, and most keys, say nothing of what is put off.
    let (last, others) = chunks.split_last().map_or((None, chunks), |(l, o)| (Some(numbers(l)), o));
    let owed = last.filter(|last| last[5] >> TOLD_BIT == OWED);
    if let Some([first_us, last_us, since_us, offset, reset_us, first]) = owed {
        if reset_us > i64::MIN {
            key.resets = Resets { over_us: since_us, last_us: reset_us };
        }
        let first_offset = first & FIRST_OFFSET_MAX;
        let owed = Owed { first_us, last_us, since_us, first_offset, offset };
        key.owed = (first_us <= last_us).then(|| Box::new(owed));
    }
    let chunks = if owed.is_some() { others } else { chunks };
    let record = |chunk: &[u8; RECORD_BYTES]| {
        let numbers = numbers(chunk);
        let number = |i: usize| numbers[i];
        let told = match (number(5) >> TOLD_BIT) & 3 {
            0 => Told::Final,
            1 => Told::Early,
            2 => Told::EarlyAgain,
            other => return Err(OperatorError::State(format!("a row cannot tell {other}"))),
        };
        Ok(Record {
            id: number(0),
            start_us: number(1),
            end_us: number(2),
            rows: number(3),
            members: number(4) as u64,
            revision: number(5) & ((1 << TOLD_BIT) - 1),
            told,
            incomplete: number(5) & INCOMPLETE != 0,
        })
    };
    let records: Result<VecDeque<Record>, OperatorError> = chunks.iter().map(record).collect();
    key.records = Arc::new(records?);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_put_off_is_saved_and_older_states_do_not_say_from_which_place_on() {
        let owed = Owed { first_us: 5, last_us: 9, since_us: 70, first_offset: 41, offset: 43 };
        let key = KeyState { owed: Some(Box::new(owed)), ..KeyState::default() };
        let mut back = KeyState::default();
        decode(&encode(&key), &mut back).unwrap();
        assert_eq!(back.owed, key.owed);
        let mut older = encode(&key);
        older[RECORD_BYTES - 8..RECORD_BYTES].copy_from_slice(&(OWED << TOLD_BIT).to_le_bytes());
        decode(&older, &mut back).unwrap();
        assert_eq!(back.owed, Some(Box::new(Owed { first_offset: 0, ..owed })));
    }
}
