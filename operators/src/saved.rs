//! Columns of saved state that operators with lists per key have in common: numbers, lists of
//! numbers, and lists of values as bytes, after the key columns.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, Int64Builder, LargeBinaryBuilder, ListBuilder,
    RecordBatch,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

/// Names of the columns, by kind.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) numbers: &'static [&'static str],
    pub(crate) lists: &'static [&'static str],
    pub(crate) values: &'static [&'static str],
}

impl Layout {
    /// The schema, with these key columns.
    pub(crate) fn schema(&self, keys: impl Iterator<Item = Field>) -> SchemaRef {
        let mut fields: Vec<Field> = keys.map(|key| key.with_nullable(true)).collect();
        let list = |name: &&str, item| Field::new(*name, DataType::new_list(item, true), false);
        fields.extend(self.numbers.iter().map(|name| Field::new(*name, DataType::Int64, true)));
        fields.extend(self.lists.iter().map(|name| list(name, DataType::Int64)));
        fields.extend(self.values.iter().map(|name| list(name, DataType::LargeBinary)));
        Arc::new(Schema::new(fields))
    }

    /// The columns after the keys, one row per key.
    pub(crate) fn columns<K: SavedKey>(&self, keys: &[K]) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        for at in 0..self.numbers.len() {
            columns.push(Arc::new(Int64Array::from_iter(keys.iter().map(|key| key.number(at)))));
        }
        for at in 0..self.lists.len() {
            let mut lists = ListBuilder::new(Int64Builder::new());
            for key in keys {
                lists.values().append_slice(&key.list(at));
                lists.append(true);
            }
            columns.push(Arc::new(lists.finish()));
        }
        for at in 0..self.values.len() {
            let mut lists = ListBuilder::new(LargeBinaryBuilder::new());
            for key in keys {
                key.values(at).into_iter().for_each(|bytes| lists.values().append_value(bytes));
                lists.append(true);
            }
            columns.push(Arc::new(lists.finish()));
        }
        columns
    }
}

/// A key that is saved; columns are counted by kind.
pub(crate) trait SavedKey {
    /// A number.
    fn number(&self, at: usize) -> Option<i64>;
    /// A list of numbers.
    fn list(&self, at: usize) -> Vec<i64>;
    /// A list of values.
    fn values(&self, at: usize) -> Vec<&[u8]>;
}

/// Whether columns have the same names and types.
pub(crate) fn is_same(a: &Schema, b: &Schema) -> bool {
    let same =
        |(a, b): (&Arc<Field>, &Arc<Field>)| a.name() == b.name() && a.data_type() == b.data_type();
    a.fields().len() == b.fields().len() && a.fields().iter().zip(b.fields()).all(same)
}

/// A saved row without its key columns; its schema has been checked.
pub(crate) struct SavedRow<'a> {
    layout: Layout,
    columns: &'a [ArrayRef],
    row: usize,
}

impl<'a> SavedRow<'a> {
    /// Row `row` of saved state with so many key columns.
    pub(crate) fn new(layout: Layout, state: &'a RecordBatch, keys: usize, row: usize) -> Self {
        Self { layout, columns: &state.columns()[keys..], row }
    }

    pub(crate) fn number(&self, at: usize) -> Option<i64> {
        let column = self.columns[at].as_primitive::<Int64Type>();
        column.is_valid(self.row).then(|| column.value(self.row))
    }

    pub(crate) fn list(&self, at: usize) -> Vec<i64> {
        let list = self.columns[self.layout.numbers.len() + at].as_list::<i32>().value(self.row);
        list.as_primitive::<Int64Type>().values().to_vec()
    }

    pub(crate) fn values(&self, at: usize) -> Vec<Arc<[u8]>> {
        let before = self.layout.numbers.len() + self.layout.lists.len();
        let list = self.columns[before + at].as_list::<i32>().value(self.row);
        list.as_binary::<i64>().iter().map(|v| v.unwrap_or_default().into()).collect()
    }
}
