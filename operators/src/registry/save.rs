//! The histories of a registry as rows of saved state: one per version, by key group, key and
//! time. Columns: the key, then [`FIXED`], then the values.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use super::{History, Version};
use crate::grouped::RowCodec;
use crate::key::stable_hashes;
use crate::operator::OperatorError;

/// Numbers of a version.
const FIXED: [&str; 2] = ["from_us", "ingest_us"];
/// Whether from then on there is nothing.
const GONE: &str = "gone";

/// Number of columns that are neither of the key nor values.
pub(crate) const FIXED_COLUMNS: usize = FIXED.len() + 1;

/// Rows of versions that are being collected.
#[derive(Default)]
pub(crate) struct VersionRows<'a> {
    keys: Vec<&'a [u8]>,
    fixed: [Vec<i64>; FIXED.len()],
    gone: Vec<bool>,
    values: Vec<Option<&'a [u8]>>,
}

impl<'a> VersionRows<'a> {
    /// Appends the versions of a key; how many.
    pub(crate) fn push(&mut self, key: &'a [u8], history: &'a History) -> usize {
        for version in &history.0 {
            self.push_one(key, [version.from_us, version.ingest_us], version.values.as_deref());
        }
        history.0.len()
    }

    /// Appends one row.
    pub(crate) fn push_one(
        &mut self,
        key: &'a [u8],
        numbers: [i64; FIXED.len()],
        values: Option<&'a [u8]>,
    ) {
        self.keys.push(key);
        self.fixed.iter_mut().zip(numbers).for_each(|(column, n)| column.push(n));
        self.gone.push(values.is_none());
        self.values.push(values);
    }

    /// The rows.
    pub(crate) fn finish(
        self,
        (keys, values): (&RowCodec, &RowCodec),
    ) -> Result<RecordBatch, OperatorError> {
        let nulls = values.nulls()?;
        let mut columns = keys.decode(self.keys)?;
        columns.extend(self.fixed.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef));
        columns.push(Arc::new(BooleanArray::from(self.gone)));
        columns.extend(values.decode(self.values.iter().map(|v| v.unwrap_or(&nulls)))?);
        Ok(RecordBatch::try_new(Arc::new(schema(keys.types(), values.types())), columns)?)
    }
}

fn schema(keys: &[DataType], values: &[DataType]) -> Schema {
    let numbered = |prefix: &'static str, types: &[DataType]| -> Vec<Field> {
        let field =
            |(i, t): (usize, &DataType)| Field::new(format!("{prefix}{i}"), t.clone(), true);
        types.iter().enumerate().map(field).collect()
    };
    let mut fields = numbered("key", keys);
    fields.extend(FIXED.map(|name| Field::new(name, DataType::Int64, false)));
    fields.push(Field::new(GONE, DataType::Boolean, false));
    fields.extend(numbered("value", values));
    Schema::new(fields)
}

/// Hands the versions of saved rows to `take`, each with the hash and the bytes of its key.
pub(crate) fn load(
    state: &RecordBatch,
    (keys, values): (&RowCodec, &RowCodec),
    mut take: impl FnMut(u64, &[u8], Version),
) -> Result<(), OperatorError> {
    let types = |s: &Schema| -> Vec<DataType> {
        s.fields().iter().map(|f| f.data_type().clone()).collect()
    };
    if types(state.schema_ref()) != types(&schema(keys.types(), values.types())) {
        return Err(OperatorError::State("it is not the history of this registry".to_owned()));
    }
    let (key, rest) = state.columns().split_at(keys.types().len());
    let mut hashes = Vec::new();
    stable_hashes(key, state.num_rows(), &mut hashes);
    let (key, said) = (keys.encode(key)?, values.encode(&rest[FIXED_COLUMNS..])?);
    let number = |i: usize| rest[i].as_primitive::<Int64Type>();
    let (from, ingest) = (number(0), number(1));
    let gone = rest[FIXED.len()].as_boolean();
    for (row, hash) in hashes.into_iter().enumerate() {
        let version = Version {
            from_us: from.value(row),
            values: (!gone.value(row)).then(|| said.row(row).as_ref().into()),
            ingest_us: ingest.value(row),
        };
        take(hash, key.row(row).as_ref(), version);
    }
    Ok(())
}
