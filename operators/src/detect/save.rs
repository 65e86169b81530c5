//! The state of a detector as rows, one per key: the key columns, the method's columns, and in
//! event-time order the clocks and what waits; last the tick of the key's last row.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Float64Builder, Int64Array, Int64Builder, ListBuilder, RecordBatch,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema};

use super::Detector;
use crate::intern::KeyNames;
use crate::keys::Waiting;
use crate::operator::OperatorError;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// Tick time of a key's last row.
const SEEN: &str = "last_tick_us";

fn waiting_fields() -> [Field; 5] {
    let list = |name: &str, item| Field::new(name, DataType::new_list(item, true), false);
    [
        Field::new("clock_us", DataType::Int64, false),
        Field::new("judged_us", DataType::Int64, false),
        Field::new("seen_us", DataType::Int64, false),
        list("waiting_us", DataType::Int64),
        list("waiting", DataType::Float64),
    ]
}

fn waiting_columns(keys: &[&Waiting<f64>]) -> [ArrayRef; 5] {
    let number = |f: &dyn Fn(&Waiting<f64>) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(keys.iter().map(|k| f(k))))
    };
    let mut times = ListBuilder::new(Int64Builder::new());
    let mut values = ListBuilder::new(Float64Builder::new());
    for key in keys {
        for (time_us, value) in &key.readings {
            times.values().append_value(*time_us);
            values.values().append_value(*value);
        }
        times.append(true);
        values.append(true);
    }
    [
        number(&|k| k.clock_us),
        number(&|k| k.through_us),
        number(&|k| k.seen_us),
        Arc::new(times.finish()),
        Arc::new(values.finish()),
    ]
}

impl Detector {
    fn state_schema(&self) -> Schema {
        let keys = self.spec.keys.iter();
        let mut fields: Vec<Field> =
            keys.map(|k| self.spec.input.field(*k).clone().with_nullable(true)).collect();
        fields.extend(self.method.state_fields());
        if self.reorder.is_some() {
            fields.extend(waiting_fields());
        }
        fields.push(Field::new(SEEN, DataType::Int64, false));
        Schema::new(fields)
    }

    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let schema = Arc::new(self.state_schema());
        let (names, methods) = (self.interner.snapshot(), self.method.states());
        let seen_us = self.silence.seen_us.clone();
        let waiting = self.reorder.as_ref().map(|reorder| reorder.keys.clone());
        let sizes = |names: &KeyNames, groups: &GroupSet| names.sizes(groups, |_| (1, 0));
        Snapshot::sized(groups, names, sizes, move |names, groups| {
            let ids = names.ids(groups);
            let mut columns = names.columns(&ids)?;
            columns.extend(methods.columns(&ids));
            if let Some(waiting) = &waiting {
                let keys: Vec<&Waiting<f64>> =
                    ids.iter().map(|id| &waiting[*id as usize]).collect();
                columns.extend(waiting_columns(&keys));
            }
            let seen = ids.iter().map(|id| seen_us[*id as usize]);
            columns.push(Arc::new(Int64Array::from_iter_values(seen)));
            let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
            Ok(SavedRows { rows, groups: counts(groups, ids.iter().map(|id| names.group(*id))) })
        })
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let expected = self.state_schema();
        let same = |(a, b): (&Arc<Field>, &Arc<Field>)| {
            a.name() == b.name() && a.data_type() == b.data_type()
        };
        let found = state.schema();
        if found.fields().len() != expected.fields().len()
            || !found.fields().iter().zip(expected.fields()).all(same)
        {
            let text = format!("detector `{}` has other keys or another method", self.spec.name);
            return Err(OperatorError::State(text));
        }
        let (keys, methods) = (self.spec.keys.len(), self.method.state_fields().len());
        let columns = state.columns();
        let mut ids = Vec::new();
        self.interner.intern(&columns[..keys], state.num_rows(), &mut ids)?;
        let seen = columns[columns.len() - 1].as_primitive::<Int64Type>();
        for (row, id) in ids.iter().enumerate() {
            self.method.start(*id);
            self.silence.start(*id, seen.value(row));
        }
        self.method.load(&ids, &columns[keys..keys + methods])?;
        let Some(reorder) = &mut self.reorder else { return Ok(()) };
        let columns = &columns[keys + methods..];
        let number = |i: usize| columns[i].as_primitive::<Int64Type>();
        for (row, id) in ids.iter().enumerate() {
            let times = columns[3].as_list::<i32>().value(row);
            let values = columns[4].as_list::<i32>().value(row);
            let times = times.as_primitive::<Int64Type>().values().iter().copied();
            let values = values.as_primitive::<Float64Type>().values().iter().copied();
            reorder.start(*id);
            let key = &mut reorder.keys[*id as usize];
            key.clock_us = number(0).value(row);
            key.through_us = number(1).value(row);
            key.seen_us = number(2).value(row);
            key.readings = times.zip(values).collect();
            reorder.queue(*id);
        }
        Ok(())
    }
}
