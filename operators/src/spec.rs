//! What a resolved pipeline asks of its operators. The `pipelines` crate makes these from a
//! configuration; everything unclear has been resolved by then, so nothing here can be "invalid".

mod absence;
mod calendar;
mod dedup;
mod filter;
mod join;
mod latest;
mod limits;
mod quality;
mod registry;
mod rows;
mod sequence;
mod skew;
mod window;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion_physical_expr::PhysicalExpr;

use crate::outage::OutageSpec;
use crate::properties::Property;
use crate::topic::TopicTemplate;

pub use absence::{AbsenceSpec, Cadence, INHIBITED};
pub use calendar::{CalendarSpec, Period, Shift, ZoneOf};
pub use dedup::DedupSpec;
pub use filter::{FilterSpec, RouteSpec, TakesBack};
pub use join::{JoinSpec, Partners};
pub use latest::LatestSpec;
pub use limits::{AtKeysMax, AtMemoryMax, Declared, KeyLimits, share_of};
pub use quality::{QUALITY_COLUMNS, QualitySpec};
pub use registry::{
    CHANGE, EnrichSpec, INGEST_TIME, Missing, REGISTRY_COLUMNS, RegistrySpec, ReviseSpec,
    TOLD_TIME, VALID_FROM, VALID_TO, registry_topic,
};
pub use rows::{TableRows, TableWindows};
pub use sequence::{Pattern, SequenceSpec};
pub use skew::SkewSpec;
pub use window::{Clock, IS_FINAL, LatePolicy, Shape, WindowSpec};

/// A planned SQL expression over the columns of one edge.
pub type Expr = Arc<dyn PhysicalExpr>;

/// The type of every point in time: microseconds since the Unix epoch, UTC.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// How the payload is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON document (RFC 8259) per message.
    Json,
    /// One line of InfluxDB's line protocol per message.
    Influx,
}

/// How a point in time is written in the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// RFC 3339 text, or a number whose magnitude tells its unit (seconds below 1e11,
    /// milliseconds below 1e14, microseconds below 1e17, else nanoseconds).
    Auto,
    /// A number (or text of a number) of seconds since the Unix epoch, fractions allowed.
    Seconds,
    /// Milliseconds since the Unix epoch.
    Milliseconds,
    /// Microseconds since the Unix epoch.
    Microseconds,
    /// Nanoseconds since the Unix epoch.
    Nanoseconds,
    /// RFC 3339 text only.
    Rfc3339,
    /// Text in the given `strftime` pattern (chrono's), UTC unless the pattern has an offset.
    Pattern(String),
}

/// Where the value of a column comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Object members to follow from the reading (the array element where the payload is exploded,
    /// else the whole document). Empty: the element itself.
    Path(Vec<String>),
    /// Object members to follow from the whole document, also where the payload is exploded.
    Root(Vec<String>),
    /// A capture of the topic template.
    Capture(String),
    /// The whole topic.
    Topic,
    /// The client id of the sender.
    Client,
    /// When Tidegate received the message.
    ReceivedTime,
    /// The journal offset of the message.
    Offset,
    /// An MQTT 5 property of the message.
    Property(Property),
    /// A hash of the topic and of the reading's own text in the payload.
    PayloadHash,
    /// Position of the reading in the exploded array, else 0.
    Element,
}

/// The declared type of a column. Coercions that lose nothing are made ("21.5" is a float64, 3.0
/// an int64, any scalar a string); everything else is a type error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// true or false.
    Bool,
    /// 64-bit integer.
    Int64,
    /// 64-bit float; NaN and infinities are type errors (JSON has none).
    Float64,
    /// UTF-8 text.
    Utf8,
    /// A point in time.
    Time(TimeFormat),
}

impl ColumnType {
    /// The Arrow type that carries it.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int64 => DataType::Int64,
            Self::Float64 => DataType::Float64,
            Self::Utf8 => DataType::Utf8,
            Self::Time(_) => time_type(),
        }
    }
}

/// What a value must satisfy. A value that breaks a rule makes its reading a reject row, or, with
/// [`OnInvalid::Null`], becomes null.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Null or missing is not allowed.
    pub required: bool,
    /// Smallest value allowed (numbers only).
    pub min: Option<f64>,
    /// Largest value allowed (numbers only).
    pub max: Option<f64>,
    /// The text must match this regular expression somewhere (`regex` crate syntax, checked when
    /// the configuration is read).
    pub matches: Option<String>,
    /// The text must be one of these.
    pub one_of: Option<Vec<String>>,
}

/// What to do with a value that breaks its type or a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInvalid {
    /// The reading becomes a row of `system.rejects`.
    #[default]
    Reject,
    /// The value becomes null and the reading goes on (never for time and device).
    Null,
}

/// One column of the decoded readings.
#[derive(Clone, Debug)]
pub struct ColumnSpec {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Its declared type.
    pub kind: ColumnType,
    /// What it must satisfy.
    pub rules: Rules,
    /// What happens where it does not.
    pub on_invalid: OnInvalid,
    /// Unit for people, such as "°C"; becomes metadata of the Arrow field.
    pub unit: Option<String>,
    /// False if the value is only checked, because nothing in the plan reads it: then it is not a
    /// column of the output.
    pub output: bool,
}

/// From message bytes to readings.
#[derive(Clone, Debug)]
pub struct DecodeSpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Index of the pipeline's source in the plan; messages of other sources are not looked at.
    pub source: u16,
    /// A message is read if one of these matches its topic, the first match giving the captures.
    pub topics: Vec<TopicTemplate>,
    /// Payload format.
    pub format: Format,
    /// Path of an array in the document each of whose elements is one reading.
    pub explode: Option<Vec<String>>,
    /// The columns, in output order. A column named `time` of type [`ColumnType::Time`] and one
    /// named `device` of type [`ColumnType::Utf8`] are always among them, both required.
    pub columns: Vec<ColumnSpec>,
    /// A reading whose time is more than this ahead of its receive time is quarantined
    /// (`system.rejects`, reason `future`); microseconds.
    pub future_bound_us: i64,
    /// A reading whose time is more than this behind its receive time is quarantined (reason
    /// `past`); microseconds.
    pub past_bound_us: Option<i64>,
    /// Longest payload that is parsed; a longer one is a reject; bytes.
    pub payload_bytes_max: usize,
    /// Whether the decoder also says what there is to know of clocks ([`crate::skew`]).
    pub clocks: bool,
}

impl DecodeSpec {
    /// Schema of the readings.
    pub fn schema(&self) -> SchemaRef {
        let fields: Vec<Field> = self
            .columns
            .iter()
            .filter(|c| c.output)
            .map(|c| {
                let nullable = !c.rules.required || c.on_invalid == OnInvalid::Null;
                let field = Field::new(&c.name, c.kind.data_type(), nullable);
                match &c.unit {
                    Some(unit) => field.with_metadata([("unit".into(), unit.clone())].into()),
                    None => field,
                }
            })
            .collect();
        Arc::new(Schema::new(fields))
    }
}

/// In which order a detector sees the readings of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectOrder {
    /// By event time: a reading waits until its key's clock has passed it by `disorder_us` (or the
    /// key is idle), so that the result does not depend on the order of arrival.
    #[default]
    EventTime,
    /// As they arrived: immediate, but dependent on the order of arrival.
    Arrival,
}

/// How a detector judges a reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DetectMethod {
    /// z-score against an exponentially weighted mean and variance of the readings before it
    /// (Finch, "Incremental calculation of weighted mean and variance", 2009).
    EwmaZ {
        /// Weight of the newest reading, 0 < alpha < 1.
        alpha: f64,
        /// Readings of a key before anything is judged.
        warmup: u64,
        /// A finding is |z| > threshold.
        threshold: f64,
    },
}

/// An anomaly detector, one state per key.
#[derive(Clone, Debug)]
pub struct DetectSpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the step.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Input columns that make the key.
    pub keys: Vec<usize>,
    /// Input column that holds event time.
    pub time: usize,
    /// The value that is judged, float64; rows where it is null are skipped.
    pub on: Expr,
    /// How the value is written in the configuration, for people.
    pub on_text: String,
    /// How it is judged.
    pub method: DetectMethod,
    /// In which order.
    pub order: DetectOrder,
    /// See [`WindowSpec::disorder_us`].
    pub disorder_us: i64,
    /// See [`WindowSpec::idle_close_us`].
    pub idle_close_us: i64,
    /// A key that was silent for this long (tick time), and at least for `idle_close_us`, is
    /// forgotten: it is new when it comes back; microseconds.
    pub forget_after_us: i64,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

impl DetectSpec {
    /// Schema of the output edge, one row per finding: the keys, `time`, `value`, `score` (z),
    /// `expected` (mean before the reading), `deviation` (standard deviation before it), `method`.
    pub fn schema(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> =
            self.keys.iter().map(|k| Arc::clone(&self.input.fields()[*k])).collect();
        fields.push(Arc::new(Field::new("time", time_type(), false)));
        for name in ["value", "score", "expected", "deviation"] {
            fields.push(Arc::new(Field::new(name, DataType::Float64, false)));
        }
        fields.push(Arc::new(Field::new("method", DataType::Utf8, false)));
        Arc::new(Schema::new(fields))
    }
}

/// A threshold alert with a life cycle, one state per key.
#[derive(Clone, Debug)]
pub struct AlertSpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the rule.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Input columns that make the key: one alert per key.
    pub keys: Vec<usize>,
    /// Key columns of windows that are not in `keys`: windows of several keys have one alert, and
    /// this tells them apart.
    pub others: Vec<usize>,
    /// Input column with the time of a row (`window_end` of windows, else `time`).
    pub time: usize,
    /// Boolean; null counts as false.
    pub fire: Expr,
    /// Boolean: a firing alert is resolved when this is true. Null counts as false.
    pub clear: Expr,
    /// How long `fire` must have been true without a row in between that says otherwise, µs.
    pub for_us: i64,
    /// Free text such as "warning" or "critical".
    pub severity: String,
    /// Text for people; `{column}` is replaced by the row's value.
    pub summary: String,
    /// Names of the notifications that hear of it.
    pub notify: Vec<String>,
    /// Notifications are not sent for changes whose event time is this much before the tick, µs.
    pub max_age_us: i64,
    /// Windows that are still open count, until their final row says otherwise. Without it all rows
    /// are taken for final ones.
    pub early: bool,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

/// A stateless or stateful step between two edges.
#[derive(Clone, Debug)]
pub enum StepKind {
    /// Keeps rows for which an expression is true.
    Filter(FilterSpec),
    /// Output columns by name, each over the input.
    Project(Vec<(String, Expr)>),
    /// Splits into branches, each an edge.
    Route(RouteSpec),
    /// Window aggregate.
    Window(WindowSpec),
    /// Detector.
    Detect(DetectSpec),
    /// As-of join with a registry.
    Enrich(Box<EnrichSpec>),
    /// Last-known values.
    Latest(LatestSpec),
    /// Times without readings.
    Absence(AbsenceSpec),
    /// Patterns over the readings of each key.
    Sequence(SequenceSpec),
    /// Join of two edges.
    Join(JoinSpec),
}

/// One step.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Its name, and that of its output edge (except for `Route`).
    pub name: String,
    /// Name of its input edge: `readings`, a step or a branch.
    pub from: String,
    /// Schema of the output edge(s).
    pub output: SchemaRef,
    /// What it does.
    pub kind: StepKind,
}

impl StepSpec {
    /// Whether an edge is its output, or one of its branches.
    pub fn makes(&self, edge: &str) -> bool {
        match &self.kind {
            StepKind::Route(route) => route.branches.iter().any(|(name, _)| name == edge),
            _ => self.name == edge,
        }
    }
}

/// A table fed by an edge.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// Schema (namespace) of the table: the pipeline's SQL name, or `system`.
    pub namespace: String,
    /// Name of the table.
    pub name: String,
    /// Name of the edge.
    pub from: String,
    /// Schema of the rows.
    pub schema: SchemaRef,
    /// Column whose UTC day is the first partition (`day`).
    pub time: String,
    /// Further partition columns (text).
    pub partition: Vec<String>,
    /// Columns to sort by inside a file, before time.
    pub sort: Vec<String>,
    /// Columns that identify a row up to its `revision`; empty if the table has no revisions.
    pub identity: Vec<String>,
    /// What its rows are told apart by; `None`: nothing is said of that, and the table keeps what
    /// it knows.
    pub rows: Option<TableRows>,
    /// Rows become visible to readers after at most about this long, microseconds.
    pub freshness_us: i64,
}

/// Everything one pipeline asks of the dataflow.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// Name as configured.
    pub name: String,
    /// Name as a SQL schema: `-` and other characters that need quotes become `_`.
    pub sql_name: String,
    /// What is declared of its devices.
    pub declared: Declared,
    /// Bytes to readings.
    pub decode: DecodeSpec,
    /// How its source is watched, for steps that have to know when nothing could be heard.
    pub outages: OutageSpec,
    /// Which readings are repetitions, if they are to be dropped. Its output is the edge
    /// `readings`, else what was decoded is.
    pub dedup: Option<DedupSpec>,
    /// How clocks are estimated, if they are.
    pub skew: Option<SkewSpec>,
    /// What is known of devices; each is also the edge `NAME_versions`.
    pub registries: Vec<RegistrySpec>,
    /// Steps in an order in which every `from` is known before it is used.
    pub steps: Vec<StepSpec>,
    /// Alert rules, each with the edge it reads.
    pub alerts: Vec<(String, AlertSpec)>,
    /// Tables.
    pub tables: Vec<TableSpec>,
}

impl PipelineSpec {
    /// Whether a step has to know when nothing could be heard.
    pub fn hears_outages(&self) -> bool {
        let hears = |s: &StepSpec| match &s.kind {
            StepKind::Absence(_)
            | StepKind::Sequence(_)
            | StepKind::Latest(_)
            | StepKind::Join(_) => true,
            StepKind::Window(window) => window.quality.is_some(),
            _ => false,
        };
        self.steps.iter().any(hears)
    }

    /// Schema of the edge `readings`.
    pub fn readings_schema(&self) -> SchemaRef {
        self.dedup.as_ref().map_or_else(|| self.decode.schema(), DedupSpec::schema)
    }
}
