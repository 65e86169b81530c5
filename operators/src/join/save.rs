//! The state of a join as rows: one for each row, or pair of rows, that is kept, or one for a key
//! of which none is; then what is left of forgotten keys, in rows of its own.
//!
//! Columns: the key columns, the numbers that the operator keeps, whether there is a row of each
//! edge, the columns of these rows, and what is left of forgotten keys.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, new_null_array,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use super::sides::{Row, Sides};
use crate::grouped::RowCodec;
use crate::intern::KeyNames;
use crate::keys::{Remnants, forgotten_field};
use crate::operator::OperatorError;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// Columns between the numbers and the rows: whether there is a row of the left edge and of the
/// right one.
const PRESENT: [&str; 2] = ["has_left", "has_right"];

/// One row of the state.
#[derive(Clone, Debug)]
pub(super) struct StateRow {
    pub(super) numbers: Vec<Option<i64>>,
    pub(super) left: Option<Row>,
    pub(super) right: Option<Row>,
}

impl StateRow {
    /// That of a key without rows, given its own numbers and how many there are in all.
    pub(super) fn of_key(own: &[Option<i64>], all: usize) -> Self {
        let mut numbers = own.to_vec();
        numbers.resize(all, None);
        Self { numbers, left: None, right: None }
    }

    fn bytes(&self) -> usize {
        [&self.left, &self.right].into_iter().flatten().map(|row| row.len()).sum()
    }
}

fn state_schema(sides: &Sides, names: &[&str]) -> Schema {
    let spec = &sides.spec;
    let keys = spec.left_keys.iter();
    let mut fields: Vec<Field> =
        keys.map(|k| spec.left.field(*k).clone().with_nullable(true)).collect();
    fields.extend(names.iter().map(|name| Field::new(*name, DataType::Int64, true)));
    fields.extend(PRESENT.map(|name| Field::new(name, DataType::Boolean, true)));
    for (edge, types) in [("left", spec.left_types()), ("right", spec.added_types())] {
        let of_edge = types.into_iter().enumerate();
        fields.extend(of_edge.map(|(i, t)| Field::new(format!("{edge}{i}"), t, true)));
    }
    fields.push(forgotten_field());
    Schema::new(fields)
}

/// The state as of a cut.
struct Cut {
    schema: SchemaRef,
    names: KeyNames,
    codecs: Arc<(RowCodec, RowCodec)>,
    remnants: Remnants,
    numbers: usize,
}

impl Cut {
    /// Groups of keys with the bytes of text of each of their rows.
    fn sizes(
        &self,
        groups: &GroupSet,
        rows_of: impl Fn(u32) -> Vec<StateRow>,
    ) -> Vec<(u16, usize)> {
        let mut sizes = Vec::new();
        for id in self.names.ids(groups) {
            let (group, key) = (self.names.group(id), self.names.bytes(id).len());
            sizes.extend(rows_of(id).iter().map(|row| (group, key + row.bytes())));
        }
        sizes
    }

    fn rows(
        &self,
        groups: &GroupSet,
        rows_of: impl Fn(u32) -> Vec<StateRow>,
    ) -> Result<SavedRows, OperatorError> {
        let ids = self.names.ids(groups).into_iter();
        let (ids, rows): (Vec<u32>, Vec<StateRow>) =
            ids.flat_map(|id| rows_of(id).into_iter().map(move |row| (id, row))).unzip();
        let mut columns = self.names.columns(&ids)?;
        for i in 0..self.numbers {
            columns.push(Arc::new(rows.iter().map(|r| r.numbers[i]).collect::<Int64Array>()));
        }
        let has = |f: &dyn Fn(&StateRow) -> bool| -> ArrayRef {
            Arc::new(rows.iter().map(|r| Some(f(r))).collect::<BooleanArray>())
        };
        columns.push(has(&|r| r.left.is_some()));
        columns.push(has(&|r| r.right.is_some()));
        let (left, right) = &*self.codecs;
        let (no_left, no_right) = (left.nulls()?, right.nulls()?);
        columns.extend(left.decode(rows.iter().map(|r| r.left.as_deref().unwrap_or(&no_left)))?);
        columns.extend(right.decode(rows.iter().map(|r| r.right.as_deref().unwrap_or(&no_right)))?);
        columns.push(new_null_array(forgotten_field().data_type(), rows.len()));
        let counts = counts(groups, ids.iter().map(|id| self.names.group(*id)));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.remnants.save(&self.names, SavedRows { rows, groups: counts })
    }
}

/// The state of these groups; `names` are those of the numbers, `rows_of` gives those of a key.
pub(super) fn cut(
    sides: &Sides,
    remnants: Remnants,
    groups: GroupSet,
    names: &[&str],
    rows_of: impl Fn(u32) -> Vec<StateRow> + Send + 'static,
) -> Snapshot {
    let cut = Cut {
        schema: Arc::new(state_schema(sides, names)),
        names: sides.interner.snapshot(),
        codecs: Arc::clone(&sides.codecs),
        remnants,
        numbers: names.len(),
    };
    let sizes = |(cut, rows_of): &(Cut, _), groups: &GroupSet| cut.sizes(groups, rows_of);
    let rows = |(cut, rows_of): &(Cut, _), groups: &GroupSet| cut.rows(groups, rows_of);
    Snapshot::sized(groups, (cut, rows_of), sizes, rows)
}

/// Takes state in: the keys, each with its rows. What is left of forgotten keys goes where it
/// belongs.
pub(super) fn load(
    sides: &mut Sides,
    remnants: &mut Remnants,
    state: &RecordBatch,
    names: &[&str],
) -> Result<Vec<(u32, Vec<StateRow>)>, OperatorError> {
    let expected = state_schema(sides, names);
    let types = |schema: &Schema| -> Vec<DataType> {
        schema.fields().iter().map(|f| f.data_type().clone()).collect()
    };
    if types(&state.schema()) != types(&expected) {
        let text = format!("the join `{}` has other keys or other columns", sides.spec.name);
        return Err(OperatorError::State(text));
    }
    let keys = sides.spec.left_keys.len();
    let state = remnants.load(state, keys, &sides.interner)?;
    let (key_columns, rest) = state.columns().split_at(keys);
    let mut ids = Vec::new();
    sides.interner.intern(key_columns, state.num_rows(), &mut ids)?;
    let (numbers, rest) = rest.split_at(names.len());
    let numbers: Vec<&Int64Array> = numbers.iter().map(|c| c.as_primitive::<Int64Type>()).collect();
    let (has_left, has_right) = (rest[0].as_boolean(), rest[1].as_boolean());
    let rest = &rest[PRESENT.len()..rest.len() - 1];
    let (left, right) = rest.split_at(sides.spec.left.fields().len());
    let left = sides.codecs.0.encode(left)?;
    let right = sides.codecs.1.encode(right)?;
    let mut loaded: Vec<(u32, Vec<StateRow>)> = Vec::new();
    for (row, id) in ids.into_iter().enumerate() {
        let state_row = StateRow {
            numbers: numbers.iter().map(|n| n.is_valid(row).then(|| n.value(row))).collect(),
            left: has_left.value(row).then(|| left.row(row).data().into()),
            right: has_right.value(row).then(|| right.row(row).data().into()),
        };
        match loaded.last_mut().filter(|last| last.0 == id) {
            Some((_, rows)) => rows.push(state_row),
            None => loaded.push((id, vec![state_row])),
        }
    }
    Ok(loaded)
}
