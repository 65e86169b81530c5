//! What a registry says of devices, and what the step that joins it is asked for.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{ColumnSpec, Expr, time_type};
use crate::topic::TopicTemplate;

/// Since when a version of a registry holds.
pub const VALID_FROM: &str = "valid_from";
/// Until when it holds.
pub const VALID_TO: &str = "valid_to";
/// When it was taken in.
pub const INGEST_TIME: &str = "ingest_time";
/// When a row of its history was told: the time of the tick.
pub const TOLD_TIME: &str = "told_time";
/// What a change does.
pub const CHANGE: &str = "change";

/// Names that columns of a registry cannot have.
pub const REGISTRY_COLUMNS: [&str; 6] =
    [VALID_FROM, VALID_TO, INGEST_TIME, TOLD_TIME, CHANGE, "revision"];

/// A table of what is known of devices, sites or models, that changes over time.
#[derive(Clone, Debug)]
pub struct RegistrySpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Its name.
    pub name: String,
    /// The columns: those of the key first, all of them required, then the others.
    pub columns: Vec<ColumnSpec>,
    /// Number of key columns.
    pub keys: usize,
    /// Where a row itself says since when it holds; if absent, it holds from when it was taken in.
    pub valid_from: Option<ColumnSpec>,
    /// Most versions of one key that are remembered; beyond it the oldest is forgotten.
    pub versions_max: usize,
    /// The topic of its pipeline's source whose messages are its entries: one each, that holds from
    /// when it was received (the first of a key: since ever), and that goes with an empty payload.
    pub entries: Option<TopicTemplate>,
}

impl RegistrySpec {
    /// What the messages in the journal have as their topic, so that only they are read.
    pub fn topic(&self) -> String {
        registry_topic(&self.pipeline, &self.name)
    }

    /// Types of the key columns.
    pub fn key_types(&self) -> Vec<DataType> {
        self.columns[..self.keys].iter().map(|c| c.kind.data_type()).collect()
    }

    /// The columns that are not of the key.
    pub fn value_fields(&self) -> Vec<Field> {
        self.columns[self.keys..].iter().map(|c| field(c, true)).collect()
    }

    /// Types of the columns that are not of the key.
    pub fn value_types(&self) -> Vec<DataType> {
        self.value_fields().iter().map(|f| f.data_type().clone()).collect()
    }

    /// Schema of what changes: the columns, `valid_from` (null: since ever), `change` (see
    /// [`crate::registry::Change`]) and `ingest_time`.
    pub fn changes_schema(&self) -> SchemaRef {
        let mut fields = self.own_fields();
        fields.push(Field::new(VALID_FROM, time_type(), true));
        fields.push(Field::new(CHANGE, DataType::Utf8, false));
        fields.push(Field::new(INGEST_TIME, time_type(), false));
        Arc::new(Schema::new(fields))
    }

    /// Schema of the versions: the columns, `valid_from` (null: since ever), `valid_to` (null:
    /// until further notice), `ingest_time`, `revision`, the greatest of which is right, and
    /// `told_time` (null in rows of earlier versions of Tidegate), before which nobody knew that
    /// it ends, or was withdrawn. A version that was withdrawn holds at no time: until its
    /// `valid_from`, or, since ever, until 1970.
    pub fn versions_schema(&self) -> SchemaRef {
        let mut fields = self.own_fields();
        fields.push(Field::new(VALID_FROM, time_type(), true));
        fields.push(Field::new(VALID_TO, time_type(), true));
        fields.push(Field::new(INGEST_TIME, time_type(), false));
        fields.push(Field::new("revision", DataType::Int64, false));
        fields.push(Field::new(TOLD_TIME, time_type(), true));
        Arc::new(Schema::new(fields))
    }

    fn own_fields(&self) -> Vec<Field> {
        let (keys, values) = self.columns.split_at(self.keys);
        let keys = keys.iter().map(|c| field(c, false));
        keys.chain(values.iter().map(|c| field(c, true))).collect()
    }
}

/// Topic of the journaled messages of a registry.
pub fn registry_topic(pipeline: &str, name: &str) -> String {
    format!("registry/{pipeline}/{name}")
}

fn field(column: &ColumnSpec, nullable: bool) -> Field {
    let field = Field::new(&column.name, column.kind.data_type(), nullable);
    match &column.unit {
        Some(unit) => field.with_metadata([("unit".into(), unit.clone())].into()),
        None => field,
    }
}

/// What happens to a row for which a registry has nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// The columns are null, or their default.
    #[default]
    Null,
    /// The row is a row of `system.rejects`.
    Reject,
}

/// How rows that were joined are revised by changes that come late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviseSpec {
    /// How long rows are kept after their end, in event time of their key, microseconds.
    pub keep_us: i64,
    /// Input columns that say which row another one is a revision of.
    pub identity: Vec<usize>,
    /// Input column with the revision.
    pub revision: usize,
    /// Input column with the time at which what a row tells ends.
    pub end: usize,
    /// Whether a revision of a row can have another end, and an earlier start.
    pub moves: bool,
    /// Input column with the number of readings, if a row without one says that it is withdrawn.
    pub rows: Option<usize>,
}

/// Joins rows with the version of a registry that was valid at their time.
#[derive(Clone, Debug)]
pub struct EnrichSpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the step.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Input columns that make the registry's key, in its order and of its types.
    pub on: Vec<usize>,
    /// Input column with the time as of which the registry is asked.
    pub time: usize,
    /// The registry.
    pub registry: RegistrySpec,
    /// The registry's columns that are added: places among those that are not of the key.
    pub columns: Vec<usize>,
    /// What stands in for a null of each added column, over the input.
    pub defaults: Vec<Option<Expr>>,
    /// What happens to rows of unknown keys.
    pub missing: Missing,
    /// Whether and how changes that come late revise rows.
    pub revise: Option<ReviseSpec>,
    /// Input column that says which windows are over, if others are among the rows: those come
    /// again, and are no rejects.
    pub is_final: Option<usize>,
    /// Input column with the number of readings, if a row without one says that it is withdrawn:
    /// it passes whatever the registry says, as what it withdraws may have passed.
    pub rows: Option<usize>,
}

impl EnrichSpec {
    /// Schema of the output edge: the input, then the added columns.
    pub fn schema(&self) -> SchemaRef {
        let values = self.registry.value_fields();
        let added = self.columns.iter().map(|c| Arc::new(values[*c].clone()));
        Arc::new(Schema::new(self.input.fields().iter().cloned().chain(added).collect::<Vec<_>>()))
    }
}
