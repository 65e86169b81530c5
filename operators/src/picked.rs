//! The values of a reading that a step wants to show later: evaluated when the reading comes, kept
//! as bytes.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};

use crate::expression::{Failed, evaluate, expression_failed};
use crate::grouped::RowCodec;
use crate::operator::{Emit, OperatorError};
use crate::spec::Expr;
use crate::system::step_rejects;

/// The values of one reading.
pub(crate) type Values = Arc<[u8]>;

/// What is to be kept of each reading.
pub(crate) struct Picker {
    pipeline: String,
    step: String,
    columns: Vec<(String, Expr)>,
    codec: RowCodec,
    nulls: Values,
}

impl Picker {
    pub(crate) fn new(
        (pipeline, step): (&str, &str),
        columns: &[(String, Expr)],
        input: &SchemaRef,
    ) -> Result<Self, OperatorError> {
        let types: Result<Vec<DataType>, _> =
            columns.iter().map(|(_, e)| e.data_type(input)).collect();
        let codec = RowCodec::new(&types?)?;
        let nulls = if columns.is_empty() { Arc::from([]) } else { codec.nulls()? };
        let (pipeline, step) = (pipeline.to_owned(), step.to_owned());
        Ok(Self { pipeline, step, columns: columns.to_vec(), codec, nulls })
    }

    /// The values of each row. What cannot be evaluated is null, and told as a reject: the reading
    /// stays.
    pub(crate) fn pick(
        &self,
        rows: &RecordBatch,
        emit: &mut Emit,
    ) -> Result<Vec<Values>, OperatorError> {
        if self.columns.is_empty() || rows.num_rows() == 0 {
            return Ok(vec![Arc::clone(&self.nulls); rows.num_rows()]);
        }
        let mut failed: Vec<Failed> = Vec::new();
        let mut columns = Vec::with_capacity(self.columns.len());
        for (name, expr) in &self.columns {
            let (column, errors) = evaluate(expr, rows)?;
            columns.push(column);
            let named = |(row, text): (usize, String)| (row, format!("`{name}`: {text}"));
            failed.extend(errors.into_iter().map(named).map(expression_failed));
        }
        if !failed.is_empty() {
            failed.sort_by_key(|f| f.row);
            failed.dedup_by_key(|f| f.row);
            emit.rejects.extend(step_rejects(&self.pipeline, &self.step, rows, &failed)?);
        }
        let encoded = self.codec.encode(&columns)?;
        Ok(encoded.iter().map(|row| row.as_ref().into()).collect())
    }

    /// The columns of values; of `None`, nulls.
    pub(crate) fn columns<'v>(
        &self,
        values: impl Iterator<Item = Option<&'v Values>>,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        if self.columns.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<&[u8]> = values.map(|v| v.map_or(&*self.nulls, |v| &**v)).collect();
        Ok(self.codec.decode(values)?)
    }
}
