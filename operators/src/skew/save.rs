//! The clocks as rows, one per device: its stretches, what was told of it, and the tick of its last
//! reading.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use super::{Clock, ClockSkew, Stretch};
use crate::intern::KeyNames;
use crate::operator::OperatorError;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// Columns of a stretch; null where there is none.
const STRETCH: [&str; 4] = ["number", "from_us", "lag_us", "readings"];

fn schema() -> Schema {
    let mut fields = vec![Field::new("device", DataType::Utf8, true)];
    for which in ["last", "open"] {
        let name = |part: &str| format!("{which}_{part}");
        fields.extend(STRETCH.iter().map(|part| Field::new(name(part), DataType::Int64, true)));
    }
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    let off = Field::new("off", DataType::Boolean, false);
    fields.extend([number("told_us"), off, number("readings"), number("seen_us")]);
    Schema::new(fields)
}

impl ClockSkew {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let (names, clocks) = (self.interner.snapshot(), self.clocks.clone());
        let seen_us = self.silence.seen_us.clone();
        let sizes = |names: &KeyNames, groups: &GroupSet| names.sizes(groups, |_| (1, 0));
        Snapshot::sized(groups, names, sizes, move |names, groups| {
            let ids = names.ids(groups);
            let of = |id: &u32| clocks[*id as usize];
            let numbers = |f: &dyn Fn(Clock) -> i64| -> ArrayRef {
                Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| f(of(id)))))
            };
            let stretch = |f: &dyn Fn(Clock) -> Option<i64>| -> ArrayRef {
                Arc::new(Int64Array::from_iter(ids.iter().map(|id| f(of(id)))))
            };
            let off: BooleanArray = ids.iter().map(|id| Some(of(id).off)).collect();
            let seen = ids.iter().map(|id| seen_us[*id as usize]);
            let mut columns = names.columns(&ids)?;
            for which in [|c: Clock| c.last, |c: Clock| c.open] {
                columns.push(stretch(&|c| which(c).map(|s| s.number)));
                columns.push(stretch(&|c| which(c).map(|s| s.from_us)));
                columns.push(stretch(&|c| which(c).map(|s| s.lag_us)));
                columns.push(stretch(&|c| which(c).map(|s| s.readings)));
            }
            columns.push(numbers(&|c| c.told_us));
            columns.push(Arc::new(off));
            columns.push(numbers(&|c| c.readings));
            columns.push(Arc::new(Int64Array::from_iter_values(seen)));
            let rows = RecordBatch::try_new(Arc::new(schema()), columns)?;
            Ok(SavedRows { rows, groups: counts(groups, ids.iter().map(|id| names.group(*id))) })
        })
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let types = |s: &Schema| -> Vec<DataType> {
            s.fields().iter().map(|f| f.data_type().clone()).collect()
        };
        if types(state.schema_ref()) != types(&schema()) {
            return Err(OperatorError::State("it is not what is known of clocks".to_owned()));
        }
        let number = |i: usize| state.column(i).as_primitive::<Int64Type>();
        let stretch = |from: usize, row: usize| {
            number(from).is_valid(row).then(|| Stretch {
                number: number(from).value(row),
                from_us: number(from + 1).value(row),
                lag_us: number(from + 2).value(row),
                readings: number(from + 3).value(row),
            })
        };
        let told = 1 + 2 * STRETCH.len();
        let mut ids = Vec::new();
        self.interner.intern(&state.columns()[..1], state.num_rows(), &mut ids)?;
        for (row, id) in ids.into_iter().enumerate() {
            let clock = Clock {
                last: stretch(1, row),
                open: stretch(1 + STRETCH.len(), row),
                told_us: number(told).value(row),
                off: state.column(told + 1).as_boolean().value(row),
                readings: number(told + 2).value(row),
            };
            self.clocks.put(id as usize, clock);
            self.silence.start(id, number(told + 3).value(row));
        }
        Ok(())
    }
}
