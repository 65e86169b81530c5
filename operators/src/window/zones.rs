//! Each key's zone, where it is a column of the key: readings without a zone that is known are
//! rejects, so a key always has one.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;

use super::WindowOperator;
use crate::expression::Failed;
use crate::operator::{Emit, OperatorError};
use crate::spec::{Shape, WindowSpec, ZoneOf};
use crate::system::step_rejects;
use crate::zone::Zone;

/// Reason of a row whose zone nobody knows.
pub const REASON_ZONE: &str = "zone";

impl WindowOperator {
    /// The column of the key with the name of its zone, if keys have zones of their own.
    pub(super) fn zone_of_key(&self) -> Option<usize> {
        match &self.spec.shape {
            Shape::Calendar(calendar) => match calendar.zone {
                ZoneOf::Key(column) => Some(column),
                ZoneOf::All(_) => None,
            },
            _ => None,
        }
    }

    /// The zone of all keys, if they have none of their own.
    pub(super) fn zone_of_all(&self) -> Zone {
        match &self.spec.shape {
            Shape::Calendar(calendar) => match calendar.zone {
                ZoneOf::All(zone) => zone,
                ZoneOf::Key(_) => Zone::UTC,
            },
            _ => Zone::UTC,
        }
    }

    /// The rows with a zone that is known; the others become rejects.
    pub(super) fn with_zones(
        &self,
        rows: &RecordBatch,
        emit: &mut Emit,
    ) -> Result<RecordBatch, OperatorError> {
        let Some(key) = self.zone_of_key() else { return Ok(rows.clone()) };
        let WindowSpec { pipeline, name, keys, input, .. } = &self.spec;
        let names = rows.column(keys[key]).as_string::<i32>();
        let known = known(names);
        if known.true_count() == rows.num_rows() {
            return Ok(rows.clone());
        }
        let column = input.field(keys[key]).name();
        let unknown = (0..rows.num_rows()).filter(|row| !known.value(*row));
        let failed = unknown.map(|row| {
            let detail = match names.is_valid(row) {
                true => format!("`{column}` is `{}`, which is no IANA time zone", names.value(row)),
                false => format!("`{column}` is null, so there is no time zone"),
            };
            Failed { row, reason: REASON_ZONE, detail }
        });
        let failed: Vec<Failed> = failed.collect();
        emit.rejects.extend(step_rejects(pipeline, name, rows, &failed)?);
        Ok(filter_record_batch(rows, &known)?)
    }

    /// The zones of keys that have ids.
    pub(super) fn zones_of(&self, ids: &[u32]) -> Result<Vec<Zone>, OperatorError> {
        let Some(key) = self.zone_of_key() else { return Ok(vec![self.zone_of_all(); ids.len()]) };
        let columns = self.interner.keys(ids)?;
        let zone = |name: Option<&str>| {
            let unknown = || OperatorError::State(format!("there is no time zone {name:?}"));
            name.and_then(Zone::parse).ok_or_else(unknown)
        };
        columns[key].as_string::<i32>().iter().map(zone).collect()
    }

    /// The column with the name of each window's shift, if there are shifts.
    pub(super) fn shifts(&self, windows: impl Iterator<Item = i64>) -> Option<ArrayRef> {
        let shifts: Option<Vec<&str>> = windows.map(|w| self.bounds.shift(w)).collect();
        shifts.map(|shifts| Arc::new(StringArray::from(shifts)) as ArrayRef)
    }
}

/// Which names are those of zones. Neighbours mostly have the same.
fn known(names: &StringArray) -> BooleanArray {
    let mut last: Option<(&str, bool)> = None;
    let is_known = |name: Option<&'_ str>| name.is_some_and(|n| Zone::parse(n).is_some());
    let mut flags = Vec::with_capacity(names.len());
    for row in 0..names.len() {
        let name = names.is_valid(row).then(|| names.value(row));
        flags.push(match (name, last) {
            (Some(name), Some((before, flag))) if name == before => flag,
            _ => is_known(name),
        });
        last = name.map(|name| (name, flags[row]));
    }
    flags.into()
}
