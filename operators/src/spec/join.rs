//! What the operators that join two edges are asked for.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{KeyLimits, TakesBack};

/// Joins two edges by their keys.
#[derive(Clone, Debug)]
pub struct JoinSpec {
    /// Name of the pipeline, for `system.late`.
    pub pipeline: String,
    /// Name of the step.
    pub name: String,
    /// Name of the right edge.
    pub with: String,
    /// Schema of the left edge, whose rows are what is joined.
    pub left: SchemaRef,
    /// Schema of the right edge, whose columns are added.
    pub right: SchemaRef,
    /// Columns of the left edge that make the key.
    pub left_keys: Vec<usize>,
    /// Columns of the right edge that make the key, in the same order and of the same types.
    pub right_keys: Vec<usize>,
    /// Columns of the right edge that are added, each with its name in the output.
    pub columns: Vec<(usize, String)>,
    /// Whether a row of the left edge without a partner is emitted, too, with nulls.
    pub outer: bool,
    /// Which rows are partners.
    pub partners: Partners,
    /// How much older than the newest row of its key a row may be, microseconds.
    pub disorder_us: i64,
    /// Rows of a key silent for this long (tick time) wait no longer, microseconds; those that are
    /// near, not before a partner that is on time can have come.
    pub idle_close_us: i64,
    /// Ticks are the time in which readings come in. False of files: then no key is silent, and
    /// none is forgotten.
    pub live: bool,
    /// How many keys it may have.
    pub limits: KeyLimits,
}

/// Which rows of equal keys are partners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partners {
    /// Windows with the same bounds. A window that comes again revises what it was joined to.
    Window {
        /// Columns of the left edge with start, end and revision.
        left: [usize; 3],
        /// The same of the right edge.
        right: [usize; 3],
        /// Column of each edge with the number of readings, if a row without one says that it is
        /// withdrawn.
        rows: [Option<usize>; 2],
        /// How a joined row takes back those before it, if a window can be withdrawn.
        takes_back: Option<TakesBack>,
        /// How long a window is kept, in event time of its key, microseconds.
        keep_us: i64,
    },
    /// Rows whose times are near enough.
    Interval {
        /// Column of the left edge with its time.
        left: usize,
        /// Column of the right edge with its time.
        right: usize,
        /// How much older than the left row the right one may be, microseconds.
        before_us: i64,
        /// How much younger, microseconds.
        after_us: i64,
        /// Only with the nearest of them.
        nearest: bool,
        /// A left row with more partners is a reject.
        matches_max: usize,
        /// Most rows of a key that are kept of each edge after an epoch; more are rejects.
        rows_max: usize,
        /// A key that was silent for this long (tick time), and at least for `idle_close_us`, is
        /// forgotten, microseconds.
        forget_after_us: i64,
    },
}

impl JoinSpec {
    /// Schema of the output edge: the left edge, then the added columns.
    pub fn schema(&self) -> SchemaRef {
        let added = self.columns.iter().map(|(column, name)| {
            let field = self.right.field(*column).clone().with_name(name);
            let nullable = self.outer || field.is_nullable();
            Arc::new(field.with_nullable(nullable))
        });
        let left = self.left.fields().iter().cloned();
        Arc::new(Schema::new(left.chain(added).collect::<Vec<Arc<Field>>>()))
    }

    /// Whether windows with the same bounds are partners.
    pub fn is_of_windows(&self) -> bool {
        matches!(self.partners, Partners::Window { .. })
    }

    /// Whether a row can have more than one partner.
    pub fn has_many(&self) -> bool {
        matches!(self.partners, Partners::Interval { nearest: false, .. })
    }

    /// Types of the columns of the left edge.
    pub fn left_types(&self) -> Vec<DataType> {
        self.left.fields().iter().map(|f| f.data_type().clone()).collect()
    }

    /// Types of the columns that are added.
    pub fn added_types(&self) -> Vec<DataType> {
        self.columns.iter().map(|(c, _)| self.right.field(*c).data_type().clone()).collect()
    }

    /// Types of the key columns.
    pub fn key_types(&self) -> Vec<DataType> {
        self.left_keys.iter().map(|k| self.left.field(*k).data_type().clone()).collect()
    }
}
