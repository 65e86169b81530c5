//! Which windows a step has: of one length at fixed distances, or by a calendar.
//!
//! Windows and panes have numbers. On a calendar each window is one pane, and what the numbers mean
//! depends on the zone of the key; on a grid all keys have the same windows.

use super::calendar::{Calendar, Stretch};
use super::grid::Grid;
use crate::operator::OperatorError;
use crate::spec::{Shape, WindowSpec};
use crate::zone::Zone;

/// The windows of a step.
#[derive(Debug)]
pub(super) enum Bounds {
    Grid(Grid),
    Calendar(Calendar),
}

impl Bounds {
    pub(super) fn new(spec: &WindowSpec) -> Result<Self, OperatorError> {
        match &spec.shape {
            Shape::Grid { size_us, slide_us, offset_us } => {
                Ok(Self::Grid(Grid::new(*size_us, *slide_us, *offset_us)))
            }
            Shape::Calendar(calendar) => Ok(Self::Calendar(Calendar::new(calendar))),
            _ => {
                let text = format!("the windows of `{}` have bounds from the data", spec.name);
                Err(OperatorError::State(text))
            }
        }
    }

    /// The pane that holds an instant.
    pub(super) fn pane_at(&self, at_us: i64, zone: Zone) -> Stretch {
        match self {
            Self::Grid(grid) => {
                let number = grid.pane(at_us);
                let start_us = grid.pane_start(number);
                Stretch { number, start_us, end_us: start_us + grid.pane_us() }
            }
            Self::Calendar(calendar) => calendar.at(at_us, zone),
        }
    }

    /// First and last window that contain a pane.
    pub(super) fn windows_of(&self, pane: i64) -> (i64, i64) {
        match self {
            Self::Grid(grid) => grid.windows_of(pane),
            Self::Calendar(_) => (pane, pane),
        }
    }

    /// First and last pane of a window.
    pub(super) fn panes_of(&self, window: i64) -> (i64, i64) {
        match self {
            Self::Grid(grid) => grid.panes_of(window),
            Self::Calendar(_) => (window, window),
        }
    }

    /// Start of a window.
    pub(super) fn start(&self, window: i64, zone: Zone) -> i64 {
        match self {
            Self::Grid(grid) => grid.start(window),
            Self::Calendar(calendar) => calendar.start_us(window, zone),
        }
    }

    /// End of a window, exclusive.
    pub(super) fn end(&self, window: i64, zone: Zone) -> i64 {
        match self {
            Self::Grid(grid) => grid.end(window),
            Self::Calendar(calendar) => calendar.start_us(window + 1, zone),
        }
    }

    /// The newest window that ends at or before an instant.
    pub(super) fn last_ended(&self, at_us: i64, zone: Zone) -> i64 {
        match self {
            Self::Grid(grid) => grid.last_ended(at_us),
            Self::Calendar(calendar) => calendar.at(at_us, zone).number - 1,
        }
    }

    /// The shift of a window.
    pub(super) fn shift(&self, window: i64) -> Option<&str> {
        match self {
            Self::Grid(_) => None,
            Self::Calendar(calendar) => calendar.shift(window),
        }
    }
}
