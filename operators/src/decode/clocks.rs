//! What messages say about the clocks of their devices: how long after its own time each reading
//! came in, also of readings that are rejected because their time is in the future.
//!
//! Readings of one device that follow each other are one row with the least of them: who judges
//! clocks ([`crate::skew`]) needs no more.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringBuilder};

use super::column::Column;
use crate::skew::clocks_schema;
use crate::spec::DecodeSpec;

/// Collects the rows of one call of the decoder.
#[derive(Debug)]
pub(super) struct Clocks {
    /// Places of the columns `device` and `time`.
    device: usize,
    time: usize,
    names: Vec<u8>,
    ends: Vec<usize>,
    lags_us: Vec<i64>,
    readings: Vec<i64>,
}

impl Clocks {
    /// `None` if nobody asks for it.
    pub(super) fn new(spec: &DecodeSpec) -> Option<Self> {
        let place = |name: &str| spec.columns.iter().position(|c| c.name == name);
        let (device, time) = (place("device")?, place("time")?);
        let (names, ends) = (Vec::new(), Vec::new());
        let (lags_us, readings) = (Vec::new(), Vec::new());
        spec.clocks.then_some(Self { device, time, names, ends, lags_us, readings })
    }

    /// Takes the last row of the columns.
    #[inline]
    pub(super) fn note(&mut self, columns: &[Column], received_us: i64) {
        let device = columns[self.device].last_text();
        let (Some(device), Some(time_us)) = (device, columns[self.time].last_time_us()) else {
            return;
        };
        let lag_us = received_us.saturating_sub(time_us);
        let start = self.ends.len().checked_sub(2).map_or(0, |i| self.ends[i]);
        if let (Some(least_us), Some(readings)) =
            (self.lags_us.last_mut(), self.readings.last_mut())
            && self.names[start..] == *device
        {
            *least_us = lag_us.min(*least_us);
            *readings += 1;
            return;
        }
        self.names.extend_from_slice(device);
        self.ends.push(self.names.len());
        self.lags_us.push(lag_us);
        self.readings.push(1);
    }

    /// Takes the rows, of [`clocks_schema`].
    pub(super) fn finish(&mut self) -> RecordBatch {
        let mut names = StringBuilder::with_capacity(self.ends.len(), self.names.len());
        let mut start = 0;
        for end in self.ends.drain(..) {
            // The column has checked that it is UTF-8.
            names.append_value(std::str::from_utf8(&self.names[start..end]).unwrap_or_default());
            start = end;
        }
        self.names.clear();
        let numbers = |values: &mut Vec<i64>| -> ArrayRef {
            Arc::new(Int64Array::from(std::mem::take(values)))
        };
        let columns: Vec<ArrayRef> =
            vec![Arc::new(names.finish()), numbers(&mut self.lags_us), numbers(&mut self.readings)];
        RecordBatch::try_new(clocks_schema(), columns).expect("columns follow the schema")
    }
}
