//! What the log knows of each file, as DataFusion's pruning wants it: one row per file.
//!
//! Bounds may be wider than the values, so they serve to skip files and never as answers.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};

use super::provider::TableFile;

pub(super) struct FilePruning<'a> {
    pub(super) schema: &'a SchemaRef,
    pub(super) partition_columns: &'a [String],
    pub(super) files: &'a [TableFile],
}

impl FilePruning<'_> {
    /// `f(file, None)` for a column of the files, `f(file, Some(value))` for a partition column.
    fn gather(
        &self,
        column: &Column,
        f: impl Fn(&TableFile, Option<&ScalarValue>) -> Option<ScalarValue>,
    ) -> Option<ArrayRef> {
        let kind = self.schema.field_with_name(column.name()).ok()?.data_type();
        let unknown = ScalarValue::try_from(kind).ok()?;
        let at = self.partition_columns.iter().position(|p| p == column.name());
        let values = self
            .files
            .iter()
            .map(|file| f(file, at.map(|at| &file.values[at])).unwrap_or_else(|| unknown.clone()));
        ScalarValue::iter_to_array(values).ok()
    }
}

impl PruningStatistics for FilePruning<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.gather(column, |file, value| match value {
            Some(value) => Some(value.clone()),
            None => file.file.stats(self.schema).columns.get(column.name())?.min.clone(),
        })
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.gather(column, |file, value| match value {
            Some(value) => Some(value.clone()),
            None => file.file.stats(self.schema).columns.get(column.name())?.max.clone(),
        })
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let at = self.partition_columns.iter().position(|p| p == column.name());
        let count = |file: &TableFile| {
            let stats = file.file.stats(self.schema);
            match at {
                Some(at) if file.values[at].is_null() => stats.rows,
                Some(_) => Some(0),
                None => stats.columns.get(column.name())?.nulls,
            }
        };
        Some(Arc::new(self.files.iter().map(count).collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.files.iter().map(|f| f.file.stats(self.schema).rows);
        Some(Arc::new(rows.collect::<UInt64Array>()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
