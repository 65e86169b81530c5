//! A snapshot as a DataFusion table: partition columns come from the log, files that cannot match
//! are not opened, and row counts are known without reading.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result as DfResult;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::prune::FilePruning;
use crate::delta::stats::parse_value;
use crate::delta::{DataFile, Snapshot, path};
use crate::{Error, Result};

/// Under which URL a session finds the objects of its tables.
pub(crate) fn objects_url() -> ObjectStoreUrl {
    ObjectStoreUrl::parse("tidegate://tables/").expect("a plain URL")
}

/// A file with its place and its partition values as scalars.
#[derive(Clone, Debug)]
pub(super) struct TableFile {
    pub(super) file: Arc<DataFile>,
    location: Path,
    pub(super) values: Vec<ScalarValue>,
}

/// One snapshot, ready to be scanned.
#[derive(Clone, Debug)]
pub struct DeltaProvider {
    snapshot: Arc<Snapshot>,
    /// Columns inside the files, then the partition columns.
    schema: SchemaRef,
    table_schema: TableSchema,
    files: Vec<TableFile>,
}

impl DeltaProvider {
    pub(super) fn new(table: &Path, snapshot: Arc<Snapshot>) -> Result<Self> {
        let partition_columns = snapshot.partition_columns();
        let (mut inside, mut partition): (Vec<FieldRef>, Vec<FieldRef>) = (vec![], vec![]);
        for field in snapshot.schema.fields() {
            if !partition_columns.contains(field.name()) {
                inside.push(Arc::clone(field));
            }
        }
        for name in partition_columns {
            let field = snapshot.schema.field_with_name(name);
            let missing = |_| Error::log(table, format!("partition column `{name}` is missing"));
            partition.push(Arc::new(field.map_err(missing)?.clone()));
        }
        let files = snapshot.files().map(|file| {
            Ok(TableFile {
                location: path::from_log(table, &file.add.path)?,
                values: partition_values(table, file, &partition)?,
                file: Arc::clone(file),
            })
        });
        let files = files.collect::<Result<Vec<_>>>()?;
        let table_schema = TableSchema::builder(Arc::new(Schema::new(inside)))
            .with_table_partition_cols(partition)
            .build();
        let schema = Arc::clone(table_schema.table_schema());
        Ok(Self { snapshot, schema, table_schema, files })
    }

    /// The snapshot that is scanned.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Two tables: the files for which `keep` holds, and all others.
    pub(super) fn split(&self, keep: impl Fn(&DataFile) -> bool) -> (Self, Self) {
        let (kept, others) = self.files.iter().cloned().partition(|f| keep(&f.file));
        (Self { files: kept, ..self.clone() }, Self { files: others, ..self.clone() })
    }

    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// The filters as one predicate over the table's columns.
    fn predicate(
        &self,
        state: &dyn Session,
        filters: &[Expr],
    ) -> DfResult<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        state.create_physical_expr(filter, &schema).map(Some)
    }

    fn matching(&self, predicate: Option<&Arc<dyn PhysicalExpr>>) -> DfResult<Vec<TableFile>> {
        let pruning = predicate.and_then(|p| {
            let builder = PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.schema));
            builder.build(Arc::clone(p))
        });
        let Some(pruning) = pruning else { return Ok(self.files.clone()) };
        let keep = pruning.prune(&FilePruning {
            schema: &self.schema,
            partition_columns: self.snapshot.partition_columns(),
            files: &self.files,
        })?;
        Ok(self.files.iter().zip(keep).filter(|(_, k)| *k).map(|(f, _)| f.clone()).collect())
    }

    /// Columns inside the files, as the log knows them.
    fn file_statistics(&self, file: &DataFile) -> Statistics {
        let stats = file.stats(&self.schema);
        let known = |n: Option<u64>| match n.and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Precision::Exact(n),
            None => Precision::Absent,
        };
        let bound = |b: &Option<ScalarValue>| match b {
            Some(b) => Precision::Inexact(b.clone()),
            None => Precision::Absent,
        };
        let columns = self.table_schema.file_schema().fields().iter().map(|f| {
            let mut column = ColumnStatistics::new_unknown();
            if let Some(c) = stats.columns.get(f.name()) {
                column.null_count = known(c.nulls);
                column.min_value = bound(&c.min);
                column.max_value = bound(&c.max);
            }
            column
        });
        Statistics {
            num_rows: known(stats.rows),
            total_byte_size: Precision::Absent,
            column_statistics: columns.collect(),
        }
    }

    fn partitioned_file(&self, file: &TableFile) -> PartitionedFile {
        let meta = ObjectMeta {
            location: file.location.clone(),
            last_modified: chrono::DateTime::from_timestamp_millis(file.file.add.modification_time)
                .unwrap_or_default(),
            size: u64::try_from(file.file.add.size).unwrap_or(0),
            e_tag: None,
            version: None,
        };
        let mut statistics = self.file_statistics(&file.file);
        for value in &file.values {
            let mut column = ColumnStatistics::new_unknown();
            // A null partition has no bounds; saying otherwise would be a wrong answer to max().
            if !value.is_null() {
                column.null_count = Precision::Exact(0);
                column.min_value = Precision::Exact(value.clone());
                column.max_value = Precision::Exact(value.clone());
            } else {
                column.null_count = statistics.num_rows;
            }
            statistics.column_statistics.push(column);
        }
        let mut planned = PartitionedFile::new_from_meta(meta);
        planned.partition_values = file.values.clone();
        planned.statistics = Some(Arc::new(statistics));
        planned
    }

    /// Files spread over `count` groups of about equal bytes.
    fn groups(&self, files: &[TableFile], count: usize) -> Vec<FileGroup> {
        let mut groups = vec![(0_u64, Vec::new()); count.clamp(1, files.len().max(1))];
        let mut largest_first: Vec<_> = files.iter().map(|f| self.partitioned_file(f)).collect();
        largest_first.sort_by_key(|f| std::cmp::Reverse(f.object_meta.size));
        for file in largest_first {
            let group = groups.iter_mut().min_by_key(|g| g.0).expect("at least one group");
            group.0 += file.object_meta.size;
            group.1.push(file);
        }
        groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect()
    }

    fn merged_statistics(&self, files: &[FileGroup]) -> DfResult<Statistics> {
        let all = files.iter().flat_map(FileGroup::iter).filter_map(|f| f.statistics.as_deref());
        Statistics::try_merge_iter(all, &self.schema)
    }
}

fn partition_values(
    table: &Path,
    file: &DataFile,
    columns: &[FieldRef],
) -> Result<Vec<ScalarValue>> {
    let value = |column: &FieldRef| {
        let kind = column.data_type();
        match file.add.partition_values.get(column.name()).and_then(Option::as_deref) {
            None | Some("") => ScalarValue::try_from(kind).map_err(Error::from),
            Some(text) => parse_value(&text.into(), kind, false).ok_or_else(|| {
                Error::log(table, format!("partition {}=`{text}` is not {kind}", column.name()))
            }),
        }
    };
    columns.iter().map(value).collect()
}

#[async_trait]
impl TableProvider for DeltaProvider {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let predicate = self.predicate(state, filters)?;
        let files = self.matching(predicate.as_ref())?;
        if files.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => Arc::clone(&self.schema),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let mut source = ParquetSource::new(self.table_schema.clone())
            .with_table_parquet_options(state.table_options().parquet.clone());
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate);
        }
        let groups = self.groups(&files, state.config().target_partitions());
        let config = FileScanConfigBuilder::new(objects_url(), Arc::new(source))
            .with_statistics(self.merged_statistics(&groups)?)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            // A limit on top of filters that are not exact here would lose rows.
            .with_limit(limit.filter(|_| filters.is_empty()))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}
