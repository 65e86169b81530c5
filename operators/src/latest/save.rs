//! The state of last-known values as rows, one per key: the key columns, the clocks, what waits,
//! and per column what waits of it, since when it holds, what holds, and what was told last.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, RecordBatch};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use super::packed::Packed;
use super::{Held, KeyState, LatestOperator, Reading, Told, decoded};
use crate::grouped::RowCodec;
use crate::intern::KeyNames;
use crate::keys::Waiting;
use crate::operator::OperatorError;
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};
use crate::spec::LatestSpec;

/// Numbers of a key: those of what waits, the tick of its last row, and the time of the last row
/// that was told.
const NUMBERS: [&str; 5] = ["clock_us", "through_us", "seen_us", "last_tick_us", "told_us"];

/// Columns after the numbers: the times of what waits, and whether each is to have a row.
const WAITING: usize = 2;

/// Columns per value.
const PER_VALUE: usize = 4;

fn state_schema(spec: &LatestSpec) -> Schema {
    let mut fields: Vec<Field> =
        spec.keys.iter().map(|k| spec.input.field(*k).clone().with_nullable(true)).collect();
    fields.extend(NUMBERS.map(|name| Field::new(name, DataType::Int64, true)));
    let list = |name: String, item| Field::new(name, DataType::new_list(item, true), false);
    fields.push(list("waiting_us".into(), DataType::Int64));
    fields.push(list("waiting_wanted".into(), DataType::Boolean));
    for (i, data_type) in spec.value_types().into_iter().enumerate() {
        fields.push(list(format!("waiting{i}"), data_type.clone()));
        fields.push(Field::new(format!("held{i}_us"), DataType::Int64, true));
        fields.push(Field::new(format!("held{i}"), data_type.clone(), true));
        fields.push(Field::new(format!("told{i}"), data_type, true));
    }
    Schema::new(fields)
}

/// The state as of a cut.
struct Cut {
    schema: Arc<Schema>,
    codecs: Arc<Vec<RowCodec>>,
    names: KeyNames,
    keys: Slabs<KeyState>,
    waiting: Slabs<Waiting<Reading>>,
    seen_us: Slabs<i64>,
}

impl Cut {
    /// Groups of keys with the bytes of text of their rows.
    fn sizes(&self, groups: &GroupSet) -> Vec<(u16, usize)> {
        self.names.sizes(groups, |id| {
            let (key, waiting) = (&self.keys[id as usize], &self.waiting[id as usize]);
            let held = key.held.iter().flatten().map(|h| h.values.bytes());
            let told = key.told.iter().map(|t| t.1.bytes());
            let waiting = waiting.readings.iter().map(|r| r.1.values.bytes());
            (1, held.chain(told).chain(waiting).sum())
        })
    }

    fn rows(&self, groups: &GroupSet) -> Result<SavedRows, OperatorError> {
        let ids = self.names.ids(groups);
        let keys: Vec<&KeyState> = ids.iter().map(|id| &self.keys[*id as usize]).collect();
        let waiting: Vec<&Waiting<Reading>> =
            ids.iter().map(|id| &self.waiting[*id as usize]).collect();
        let mut columns = self.names.columns(&ids)?;
        let number = |f: &dyn Fn(usize) -> Option<i64>| -> ArrayRef {
            Arc::new((0..ids.len()).map(f).collect::<Int64Array>())
        };
        columns.push(number(&|i| Some(waiting[i].clock_us)));
        columns.push(number(&|i| Some(waiting[i].through_us)));
        columns.push(number(&|i| Some(waiting[i].seen_us)));
        columns.push(number(&|i| Some(self.seen_us[ids[i] as usize])));
        columns.push(number(&|i| keys[i].told.as_ref().map(|t| t.0)));
        let lengths: Vec<usize> = waiting.iter().map(|w| w.readings.len()).collect();
        let all = || waiting.iter().flat_map(|w| &w.readings);
        let times = Int64Array::from_iter_values(all().map(|r| r.0));
        let wanted: BooleanArray = all().map(|r| Some(r.1.is_wanted)).collect();
        columns.push(lists(Arc::new(times), &lengths));
        columns.push(lists(Arc::new(wanted), &lengths));
        for (i, codec) in self.codecs.iter().enumerate() {
            let values = decoded(codec, all().map(|r| r.1.values.value(i)))?;
            columns.push(lists(values, &lengths));
            let held = || keys.iter().map(|k| k.held.get(i)?.as_ref());
            columns.push(Arc::new(held().map(|h| Some(h?.time_us)).collect::<Int64Array>()));
            columns.push(decoded(codec, held().map(|h| h?.values.value(i)))?);
            let told = keys.iter().map(|k| k.told.as_ref()?.1.value(i));
            columns.push(decoded(codec, told)?);
        }
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        let of_rows = ids.iter().map(|id| self.names.group(*id));
        Ok(SavedRows { rows, groups: counts(groups, of_rows) })
    }
}

/// A list per key of so many of the values.
fn lists(values: ArrayRef, lengths: &[usize]) -> ArrayRef {
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(ListArray::new(field, offsets, values, None))
}

/// One column of values as bytes, absent where null.
struct Values {
    rows: arrow::row::Rows,
    nulls: Option<arrow::buffer::NullBuffer>,
}

impl Values {
    fn new(codec: &RowCodec, column: &ArrayRef) -> Result<Self, OperatorError> {
        let rows = codec.encode(std::slice::from_ref(column))?;
        Ok(Self { rows, nulls: column.logical_nulls() })
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        let is_there = self.nulls.as_ref().is_none_or(|n| n.is_valid(row));
        is_there.then(|| self.rows.row(row).data())
    }
}

/// The saved values, a column each.
struct SavedValues {
    waiting: Vec<Values>,
    held: Vec<Values>,
    told: Vec<Values>,
}

impl SavedValues {
    fn new(codecs: &[RowCodec], columns: &[ArrayRef]) -> Result<Self, OperatorError> {
        let mut saved = Self { waiting: Vec::new(), held: Vec::new(), told: Vec::new() };
        for (codec, own) in codecs.iter().zip(columns.chunks(PER_VALUE)) {
            saved.waiting.push(Values::new(codec, own[0].as_list::<i32>().values())?);
            saved.held.push(Values::new(codec, &own[2])?);
            saved.told.push(Values::new(codec, &own[3])?);
        }
        Ok(saved)
    }
}

impl LatestOperator {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let cut = Cut {
            schema: Arc::new(state_schema(&self.spec)),
            codecs: Arc::clone(&self.codecs),
            names: self.interner.snapshot(),
            keys: self.keys.clone(),
            waiting: self.reorder.keys.clone(),
            seen_us: self.silence.seen_us(),
        };
        Snapshot::sized(groups, cut, Cut::sizes, Cut::rows)
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let expected = state_schema(&self.spec);
        let found = state.schema();
        let types = |schema: &Schema| -> Vec<DataType> {
            schema.fields().iter().map(|f| f.data_type().clone()).collect()
        };
        if types(&found) != types(&expected) {
            let text = format!("`{}` has other keys or other values", self.spec.name);
            return Err(OperatorError::State(text));
        }
        let (keys, rest) = state.columns().split_at(self.spec.keys.len());
        let mut ids = Vec::new();
        self.interner.intern(keys, state.num_rows(), &mut ids)?;
        let number = |i: usize| rest[i].as_primitive::<Int64Type>();
        let times = rest[NUMBERS.len()].as_list::<i32>();
        let wanted = rest[NUMBERS.len() + 1].as_list::<i32>();
        let columns = &rest[NUMBERS.len() + WAITING..];
        let saved = SavedValues::new(&self.codecs, columns)?;
        let since_us: Vec<&Int64Array> =
            columns.chunks(PER_VALUE).map(|own| own[1].as_primitive::<Int64Type>()).collect();
        let mut room = Vec::new();
        for (row, id) in ids.iter().enumerate() {
            self.silence.start(*id, number(3).value(row));
            let mut key = KeyState::default();
            if number(4).is_valid(row) {
                let told = Packed::new(saved.told.iter().map(|t| t.get(row)), &mut room);
                let each = (0..self.codecs.len()).map(|column| told.only(column, &mut room));
                key.told = Some((number(4).value(row), Told(each.collect())));
            }
            key.held = (0..self.codecs.len())
                .map(|i| {
                    let only = (0..self.codecs.len())
                        .map(|c| if c == i { saved.held[i].get(row) } else { None });
                    since_us[i].is_valid(row).then(|| Held {
                        time_us: since_us[i].value(row),
                        values: Packed::new(only, &mut room),
                    })
                })
                .collect();
            self.keys.put(*id as usize, key);
            self.reorder.start(*id);
            let waiting = &mut self.reorder.keys[*id as usize];
            waiting.clock_us = number(0).value(row);
            waiting.through_us = number(1).value(row);
            waiting.seen_us = number(2).value(row);
            let first = times.value_offsets()[row] as usize;
            let own_times = times.value(row);
            let own_wanted = wanted.value(row);
            for (i, time_us) in own_times.as_primitive::<Int64Type>().values().iter().enumerate() {
                let values = saved.waiting.iter().map(|w| w.get(first + i));
                let values = Packed::new(values, &mut room);
                let is_wanted = own_wanted.as_boolean().value(i);
                self.reorder.restore(*id, *time_us, Reading { values, is_wanted });
            }
            self.reorder.queue(*id);
        }
        Ok(())
    }
}
