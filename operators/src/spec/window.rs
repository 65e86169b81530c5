//! What a window step asks of its operator.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;

use super::{CalendarSpec, Expr, KeyLimits, Period, QualitySpec, time_type};

/// The column of windows with early results that is false for these.
pub const IS_FINAL: &str = "is_final";

/// Whose clock closes windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// Each key's own event time.
    #[default]
    Device,
    /// The maximum over all keys. (One clock for the fleet: the usual global watermark.)
    Fleet,
}

/// What happens to a row whose window was emitted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatePolicy {
    /// The window is emitted again with `revision + 1`, as long as its state is kept; rows later
    /// than that go to `system.late`.
    Revise {
        /// How long (event time of the key's clock past the window's end) state is kept, µs.
        keep_us: i64,
    },
    /// Every late row goes to `system.late`.
    Table,
}

/// Which windows there are. All times in microseconds.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Windows of one length at fixed distances.
    Grid {
        /// Length of a window.
        size_us: i64,
        /// Distance between starts of windows; equal to the size for tumbling windows, and never
        /// longer than it. Windows are aligned to the Unix epoch plus `offset_us`.
        slide_us: i64,
        /// Shift of the alignment.
        offset_us: i64,
    },
    /// Days, months or shifts on the clocks of a place.
    Calendar(CalendarSpec),
    /// Readings of a key without a longer pause between them.
    Session {
        /// A pause longer than this ends a session.
        gap_us: i64,
        /// A session has no reading this long after its first, or later: the next session begins.
        max_us: Option<i64>,
    },
    /// A fixed number of readings of a key, in the order of their times. Windows are numbered.
    Count {
        /// Readings of a window.
        size: i64,
        /// Readings from the start of one window to that of the next, at most `size`.
        hop: i64,
    },
    /// From a reading of a key to a later one.
    State {
        /// The first reading for which this is true begins a window.
        begin: Expr,
        /// The next one for which this is true ends it, and belongs to it. Without it the first for
        /// which `begin` is not true ends it, and does not belong to it.
        until: Option<Expr>,
        /// A reading for which this is true ends the window without a row.
        abort: Option<Expr>,
        /// A window that is shorter gives no row.
        min_us: i64,
        /// A window is cut at this length.
        max_us: Option<i64>,
    },
    /// One window around each reading, or around each time at which there are several.
    Sliding {
        /// From so long before the reading.
        before_us: i64,
        /// Until so long after it; both ends belong to the window.
        after_us: i64,
        /// Only around readings for which this is true.
        at: Option<Expr>,
    },
}

impl Shape {
    /// The column that tells the windows of a key apart.
    pub fn identity(&self) -> &'static str {
        match self {
            Self::Count { .. } => "window_number",
            _ => "window_start",
        }
    }

    /// The columns that come after the bounds.
    pub fn columns(&self) -> &'static [(&'static str, DataType)] {
        match self {
            Self::Count { .. } => &[("window_number", DataType::Int64)],
            Self::Calendar(CalendarSpec { period: Period::Shifts(_), .. }) => {
                &[("shift", DataType::Utf8)]
            }
            _ => &[],
        }
    }

    /// How often a key has a window at most, given how often it has a row, microseconds.
    pub fn emits_every_us(&self, every_us: Option<i64>) -> Option<i64> {
        match self {
            Self::Grid { slide_us, .. } => Some(*slide_us),
            Self::Calendar(calendar) => Some(calendar.period.shortest_us()),
            Self::Count { hop, .. } => every_us.map(|us| us.saturating_mul(*hop)),
            Self::Session { gap_us, max_us: None } => Some(*gap_us),
            Self::Session { .. } | Self::State { .. } | Self::Sliding { .. } => every_us,
        }
    }

    /// Whether that is so however many rows come at once.
    pub fn emits_apart(&self) -> bool {
        matches!(self, Self::Grid { .. } | Self::Calendar(_) | Self::Session { max_us: None, .. })
    }

    /// How long before its end the readings of a window can be: those of many keys end together
    /// that had readings in so long. 0 of windows that each end with a reading of their own.
    pub fn gathers_us(&self) -> i64 {
        match self {
            Self::Grid { size_us, .. } => *size_us,
            Self::Calendar(calendar) => calendar.period.longest_us(),
            Self::Session { gap_us, max_us } => {
                max_us.map_or(0, |max_us| max_us.saturating_add(*gap_us))
            }
            Self::State { max_us, .. } => max_us.unwrap_or(0),
            Self::Count { .. } | Self::Sliding { .. } => 0,
        }
    }

    /// How long a window can be, about, microseconds; none if that has no bound.
    pub fn longest_us(&self) -> Option<i64> {
        match self {
            Self::Grid { size_us, .. } => Some(*size_us),
            Self::Calendar(calendar) => Some(calendar.period.longest_us()),
            Self::Session { max_us, .. } | Self::State { max_us, .. } => *max_us,
            Self::Sliding { before_us, after_us, .. } => Some(before_us.saturating_add(*after_us)),
            Self::Count { .. } => None,
        }
    }

    /// Whether the bounds of windows do not depend on readings.
    pub fn has_fixed_bounds(&self) -> bool {
        matches!(self, Self::Grid { .. } | Self::Calendar(_))
    }

    /// Whether the end of a window is the time of one of its readings, or belongs to it.
    pub fn ends_with_reading(&self) -> bool {
        matches!(self, Self::Session { .. } | Self::Count { .. } | Self::Sliding { .. })
    }

    /// Whether a window that was emitted can turn out not to be one: its last row has no readings.
    pub fn withdraws(&self) -> bool {
        matches!(self, Self::Session { .. } | Self::State { .. })
    }
}

/// A window aggregate.
#[derive(Clone, Debug)]
pub struct WindowSpec {
    /// Name of the pipeline, for `system.late`.
    pub pipeline: String,
    /// Name of the step.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Input columns to group by.
    pub keys: Vec<usize>,
    /// Input column that holds event time (type [`time_type`]).
    pub time: usize,
    /// Which windows there are.
    pub shape: Shape,
    /// The distinct aggregate calls.
    pub aggregates: Vec<Arc<AggregateFunctionExpr>>,
    /// `FILTER (WHERE ...)` of each aggregate, over the input.
    pub filters: Vec<Option<Expr>>,
    /// Output columns by name, each over [`WindowSpec::aggregated_schema`].
    pub select: Vec<(String, Expr)>,
    /// How much older than the newest reading of its key a reading may be, microseconds.
    pub disorder_us: i64,
    /// The clock of a key that is silent for this long (tick time) goes on with the ticks, so that
    /// its windows end without a reading, microseconds.
    pub idle_close_us: i64,
    /// Whose clock closes windows.
    pub clock: Clock,
    /// What happens to late rows.
    pub late: LatePolicy,
    /// Windows that readings are too late for are computed again from stored readings, which has
    /// to know when what they touch has become final.
    pub puts_off: bool,
    /// An open window that changed is emitted as it is at the first tick at or after the next
    /// multiple of this, in tick time, microseconds. None: only windows that are over are.
    pub early_us: Option<i64>,
    /// Whether columns say how good the windows are.
    pub quality: Option<QualitySpec>,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

impl WindowSpec {
    /// What `select` sees: the keys, `window_start`, `window_end`, then one column per aggregate,
    /// named `agg0`, `agg1`, ...
    pub fn aggregated_schema(&self) -> SchemaRef {
        let mut fields = self.key_and_bound_fields();
        for (i, a) in self.aggregates.iter().enumerate() {
            fields.push(Arc::new(a.field().as_ref().clone().with_name(format!("agg{i}"))));
        }
        Arc::new(Schema::new(fields))
    }

    /// Schema of the output edge: the keys, `window_start`, `window_end`, of counted windows
    /// `window_number`, of shifts `shift`, the selected columns, those of its quality if they are
    /// asked for, then `rows` (readings in the window; 0 if it was withdrawn) and `revision` (0 at
    /// first, 1 after late rows, ...). With early results `revision` counts these, too, and
    /// `is_final` is false for them.
    pub fn schema(&self) -> SchemaRef {
        let mut fields = self.key_and_bound_fields();
        for (name, data_type) in self.shape.columns() {
            fields.push(Arc::new(Field::new(*name, data_type.clone(), false)));
        }
        let aggregated = self.aggregated_schema();
        for (name, e) in &self.select {
            let data_type = e.data_type(&aggregated).expect("checked when planned");
            fields.push(Arc::new(Field::new(name, data_type, true)));
        }
        fields.extend(self.quality.iter().flat_map(|_| QualitySpec::fields()));
        fields.push(Arc::new(Field::new("rows", DataType::Int64, false)));
        fields.push(Arc::new(Field::new("revision", DataType::Int64, false)));
        if self.early_us.is_some() {
            fields.push(Arc::new(Field::new(IS_FINAL, DataType::Boolean, false)));
        }
        Arc::new(Schema::new(fields))
    }

    /// Types of the key columns.
    pub(crate) fn key_types(&self) -> impl Iterator<Item = &DataType> + Clone {
        self.keys.iter().map(|k| self.input.field(*k).data_type())
    }

    fn key_and_bound_fields(&self) -> Vec<Arc<Field>> {
        let mut fields: Vec<Arc<Field>> =
            self.keys.iter().map(|k| Arc::clone(&self.input.fields()[*k])).collect();
        fields.push(Arc::new(Field::new("window_start", time_type(), false)));
        fields.push(Arc::new(Field::new("window_end", time_type(), false)));
        fields
    }
}
