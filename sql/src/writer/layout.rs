//! What a table looks like on disk: stored types, the `day` partition, sort order, settings.
//!
//! A layout is made from a [`TableSpec`] once, when the table is opened; every problem with a
//! column is found there, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use tidegate_operators::spec::{TableRows, TableSpec};

use crate::delta::schema::stored_type;
use crate::{Error, Result};

/// The first partition column: UTC day of the time column.
pub(crate) const DAY: &str = "day";

/// Setting of a Delta table: JSON array of the columns that identify a row up to its revision.
pub(crate) const IDENTITY_KEY: &str = "tidegate.identity";

/// Setting of a Delta table: the application that has written it from its first row on.
pub(crate) const COMPLETE_KEY: &str = "tidegate.complete_for";

/// Setting of a Delta table: what its rows are told apart by ([`TableRows`]).
pub(crate) const ROWS_KEY: &str = "tidegate.rows";

/// Setting of a Delta table: the time column.
pub(crate) const TIME_KEY: &str = "tidegate.time";

/// How rows of one table are stored.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// `namespace.name`, for errors.
    pub(super) shown: String,
    /// Schema of appended batches.
    given: SchemaRef,
    /// Given columns with stored types, then columns that only the table has.
    pub(super) stored: SchemaRef,
    /// Position of the time column in `stored`.
    pub(super) time: usize,
    /// Positions of the partition columns in `stored`, without `day`.
    pub(super) partition: Vec<usize>,
    /// Positions of the sort columns in `stored`.
    pub(super) sort: Vec<usize>,
    /// Position of `device` if rows are sorted by it.
    pub(super) device: Option<usize>,
    /// What the rows are told apart by, if that is known.
    rows: Option<TableRows>,
    /// Settings of the table.
    pub(super) configuration: BTreeMap<String, Option<String>>,
}

impl Layout {
    pub(super) fn new(spec: &TableSpec) -> Result<Self> {
        let shown = format!("{}.{}", spec.namespace, spec.name);
        let bad = |problem: String| Error::table(&shown, problem);
        let fields = spec.schema.fields().iter().map(|f| {
            let kind = stored_type(f.data_type()).ok_or_else(|| {
                bad(format!("column `{}` has type {}, which Delta lacks", f.name(), f.data_type()))
            })?;
            Ok(Field::new(f.name(), kind, true).with_metadata(f.metadata().clone()))
        });
        let stored = Schema::new(fields.collect::<Result<Vec<_>>>()?);
        check_names(&stored).map_err(bad)?;
        let position = |name: &str, role: &str| {
            stored.index_of(name).map_err(|_| bad(format!("{role} column `{name}` does not exist")))
        };
        let time = position(&spec.time, "time")?;
        if !matches!(stored.field(time).data_type(), DataType::Timestamp(_, _)) {
            return Err(bad(format!("time column `{}` is not a point in time", spec.time)));
        }
        let named = spec.partition.iter().filter(|p| *p != DAY);
        let partition = named.map(|p| position(p, "partition")).collect::<Result<Vec<_>>>()?;
        if let Some(p) = partition.iter().find(|p| stored.field(**p).data_type() != &DataType::Utf8)
        {
            let name = stored.field(*p).name();
            return Err(bad(format!("partition column `{name}` is not text")));
        }
        let sort = spec.sort.iter().map(|s| position(s, "sort")).collect::<Result<Vec<_>>>()?;
        for name in &spec.identity {
            position(name, "identity")?;
        }
        let device = stored.index_of("device").ok();
        let device = device.filter(|d| sort.contains(d) && !partition.contains(d));
        let device = device.filter(|d| stored.field(*d).data_type() == &DataType::Utf8);
        let mut configuration = BTreeMap::from([(TIME_KEY.into(), Some(spec.time.clone()))]);
        if !spec.identity.is_empty() {
            let identity = serde_json::to_string(&spec.identity).expect("text is JSON");
            configuration.insert(IDENTITY_KEY.into(), Some(identity));
        }
        let rows = spec.rows.clone();
        if let Some(rows) = &rows {
            configuration.insert(ROWS_KEY.into(), Some(rows.to_text()));
        }
        let given = Arc::clone(&spec.schema);
        let stored = Arc::new(stored);
        Ok(Self { shown, given, stored, time, partition, sort, device, rows, configuration })
    }

    /// Why our rows cannot come to those of a table that keeps `text`, if they cannot.
    pub(super) fn conflict(&self, text: &str) -> Option<String> {
        self.rows.as_ref()?.conflict(&TableRows::parse(text)?)
    }

    /// Schema of the table: the stored columns and `day`.
    pub(super) fn table_schema(&self) -> Schema {
        let mut fields: Vec<FieldRef> = self.stored.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(DAY, DataType::Date32, true)));
        Schema::new(fields)
    }

    /// Names of the partition columns, `day` first.
    pub(super) fn partition_columns(&self) -> Vec<String> {
        let named = self.partition.iter().map(|p| self.stored.field(*p).name().clone());
        std::iter::once(DAY.to_owned()).chain(named).collect()
    }

    /// The table's schema after adding our columns to `table`, which may have others.
    pub(super) fn merged(&self, table: &Schema) -> Result<Schema> {
        let mut fields: Vec<FieldRef> = table.fields().iter().cloned().collect();
        for field in self.table_schema().fields() {
            let same = |f: &&FieldRef| f.name().eq_ignore_ascii_case(field.name());
            let Some(known) = table.fields().iter().find(same) else {
                fields.push(Arc::clone(field));
                continue;
            };
            if known.name() != field.name() || known.data_type() != field.data_type() {
                return Err(Error::table(
                    &self.shown,
                    format!(
                        "column `{}` is {} in the stored table and `{}` {} in the pipeline; \
                         give the column or the table a new name",
                        known.name(),
                        known.data_type(),
                        field.name(),
                        field.data_type()
                    ),
                ));
            }
        }
        Ok(Schema::new(fields))
    }

    /// This layout with the columns that only the table has; they are filled with null.
    pub(super) fn for_table(&self, table: &Schema) -> Self {
        let mut fields: Vec<FieldRef> = self.stored.fields().iter().cloned().collect();
        let ours = |f: &&FieldRef| f.name() == DAY || self.stored.index_of(f.name()).is_ok();
        fields.extend(table.fields().iter().filter(|f| !ours(f)).cloned());
        Self { stored: Arc::new(Schema::new(fields)), ..self.clone() }
    }

    /// `batch` with stored types.
    pub(super) fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let differs = || Error::table(&self.shown, "rows have other columns than the table");
        if batch.num_columns() != self.given.fields().len() {
            return Err(differs());
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.stored.fields().len());
        for (i, field) in self.stored.fields().iter().enumerate() {
            let Some(column) = batch.columns().get(i) else {
                columns.push(new_null_array(field.data_type(), batch.num_rows()));
                continue;
            };
            if column.data_type() != self.given.field(i).data_type() {
                return Err(differs());
            }
            let cast = cast_with_options(column, field.data_type(), &options).map_err(|e| {
                Error::table(&self.shown, format!("column `{}`: {e}", field.name()))
            })?;
            columns.push(cast);
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.stored), columns)?)
    }
}

fn check_names(schema: &Schema) -> std::result::Result<(), String> {
    for (i, field) in schema.fields().iter().enumerate() {
        let name = field.name();
        if name.eq_ignore_ascii_case(DAY) {
            return Err(format!("column `{name}` cannot have this name: `{DAY}` is the partition"));
        }
        let same = |f: &&FieldRef| f.name().eq_ignore_ascii_case(name);
        if let Some(other) = schema.fields()[..i].iter().find(same) {
            let other = other.name();
            return Err(format!("columns `{other}` and `{name}` differ only in case"));
        }
    }
    Ok(())
}
