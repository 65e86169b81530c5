//! What is asked of the quality of windows.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};

use super::Shape;

/// The columns that say how good a window is.
pub const QUALITY_COLUMNS: [&str; 4] = ["expected", "late", "duplicates", "complete"];

/// How good windows are is said in columns of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QualitySpec {
    /// How far apart the readings of a key are, if somebody declared it, microseconds.
    pub every_us: Option<i64>,
    /// A broker keeps for its source what that cannot hear: an outage alone loses nothing.
    pub keeps: bool,
    /// The operator is told of the readings that were dropped as repeated; else nothing is known
    /// of them.
    pub repeated: bool,
}

impl QualitySpec {
    /// [`QUALITY_COLUMNS`]: `expected`, how many readings the declared distance of readings lets
    /// one expect at least (null if there is none); `late`, how many came when the window had been
    /// closed; `duplicates`, how many more were dropped as repeated until its row was told (null if
    /// that is not known); `complete`, whether no message can have been lost while its readings
    /// came in. All are null in a window that was withdrawn.
    pub fn fields() -> [Arc<Field>; 4] {
        let [expected, late, duplicates, complete] = QUALITY_COLUMNS;
        [
            Arc::new(Field::new(expected, DataType::Int64, true)),
            Arc::new(Field::new(late, DataType::Int64, true)),
            Arc::new(Field::new(duplicates, DataType::Int64, true)),
            Arc::new(Field::new(complete, DataType::Boolean, true)),
        ]
    }

    /// Readings to expect at least of a window, if that is known.
    pub fn expected(&self, shape: &Shape, (start_us, end_us): (i64, i64)) -> Option<i64> {
        let every_us = self.every_us?.max(1);
        let long_us = end_us.saturating_sub(start_us);
        let apart = match shape {
            // The reading that it is around is somewhere inside.
            Shape::Sliding { before_us, after_us, .. } => {
                before_us / every_us + after_us / every_us
            }
            _ => long_us / every_us,
        };
        let ends_with_reading = match shape {
            Shape::Grid { .. } | Shape::Calendar(_) | Shape::State { until: None, .. } => false,
            // What is cut has no reading at its end.
            Shape::State { max_us, .. } => max_us.is_none_or(|max_us| long_us < max_us),
            Shape::Session { .. } | Shape::Count { .. } | Shape::Sliding { .. } => true,
        };
        Some(apart + i64::from(ends_with_reading))
    }
}
