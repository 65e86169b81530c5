//! How values are distributed: quantiles from a sketch, and counts between given bounds.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, ListArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type};
use datafusion_common::Result;

use super::groups::Kind;
use super::series::{list, list_of};
use super::sketch::{Scale, Sketch};
use super::value::{Value, argument};

/// `quantile`.
#[derive(Debug)]
pub(super) struct QuantileKind {
    /// From 0 to 1.
    pub(super) quantile: f64,
    /// The buckets.
    pub(super) scale: Scale,
}

impl Kind for QuantileKind {
    type State = Sketch;

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Sketch],
    ) -> Result<()> {
        let values: &Float64Array = argument(columns, 0)?;
        for (row, group) in rows {
            if let Some(value) = f64::get(values, row) {
                states[group].add(value, self.scale);
            }
        }
        Ok(())
    }

    fn merge(&self, saved: &[ArrayRef], groups: &[usize], states: &mut [Sketch]) -> Result<()> {
        let keys: &ListArray = argument(saved, 0)?;
        let counts: &ListArray = argument(saved, 1)?;
        let (min, max): (&Float64Array, &Float64Array) = (argument(saved, 2)?, argument(saved, 3)?);
        for (row, group) in groups.iter().enumerate().filter(|(row, _)| min.is_valid(*row)) {
            let (keys, counts) = (keys.value(row), counts.value(row));
            let keys = keys.as_primitive::<Int32Type>().values();
            let counts = counts.as_primitive::<Int64Type>().values();
            let state = &mut states[*group];
            if state.buckets.is_empty() {
                state.buckets = keys.iter().copied().zip(counts.iter().copied()).collect();
            } else {
                let buckets = keys.iter().zip(counts);
                buckets.for_each(|(key, count)| state.add_bucket(*key, *count, self.scale));
            }
            state.widen(min.value(row), max.value(row));
        }
        Ok(())
    }

    fn save(&self, states: &mut [Sketch]) -> Result<Vec<ArrayRef>> {
        let lengths: Vec<usize> = states.iter().map(|s| s.buckets.len()).collect();
        let buckets = || states.iter().flat_map(|s| &s.buckets);
        let keys = Int32Array::from_iter_values(buckets().map(|b| b.0));
        let counts = Int64Array::from_iter_values(buckets().map(|b| b.1));
        Ok(vec![
            list(&lengths, Arc::new(keys))?,
            list(&lengths, Arc::new(counts))?,
            f64::column(states.iter().map(|s| s.extremes.map(|e| e.0))),
            f64::column(states.iter().map(|s| s.extremes.map(|e| e.1))),
        ])
    }

    fn finish(&self, states: &mut [Sketch]) -> Result<ArrayRef> {
        Ok(f64::column(states.iter().map(|s| s.quantile(self.quantile, self.scale))))
    }

    fn heap_bytes(state: &Sketch) -> usize {
        state.buckets.capacity() * size_of::<(i32, i64)>()
    }
}

/// `histogram` and `buckets`: element `i` of the result counts the values above bound `i - 1` up to
/// and including bound `i`; the last element counts what is above all bounds.
#[derive(Debug)]
pub(super) struct HistogramKind {
    /// Ascending.
    pub(super) bounds: Vec<f64>,
    /// Whether each count comes with the bound that it is up to.
    pub(super) named: bool,
}

/// The type of lists of counts with their bounds.
pub(super) fn buckets_type() -> DataType {
    list_of(DataType::Struct(bucket_fields()))
}

fn bucket_fields() -> Fields {
    let (up_to, count) = (DataType::Float64, DataType::Int64);
    vec![Field::new("up_to", up_to, true), Field::new("count", count, true)].into()
}

impl HistogramKind {
    /// A group without values has no counts yet.
    fn counts<'a>(&self, state: &'a mut Vec<i64>) -> &'a mut Vec<i64> {
        state.resize(self.bounds.len() + 1, 0);
        state
    }

    fn columns(&self, states: &mut [Vec<i64>]) -> Result<ArrayRef> {
        let counts = states.iter_mut().flat_map(|s| self.counts(s).iter().copied());
        let counts = Arc::new(Int64Array::from_iter_values(counts));
        list(&vec![self.bounds.len() + 1; states.len()], counts)
    }
}

impl Kind for HistogramKind {
    type State = Vec<i64>;

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Vec<i64>],
    ) -> Result<()> {
        let values: &Float64Array = argument(columns, 0)?;
        for (row, group) in rows {
            if let Some(value) = f64::get(values, row) {
                let at = self.bounds.partition_point(|bound| *bound < value);
                self.counts(&mut states[group])[at] += 1;
            }
        }
        Ok(())
    }

    fn merge(&self, saved: &[ArrayRef], groups: &[usize], states: &mut [Vec<i64>]) -> Result<()> {
        let counts: &ListArray = argument(saved, 0)?;
        for (row, group) in groups.iter().enumerate().filter(|(row, _)| counts.is_valid(*row)) {
            let counts = counts.value(row);
            let state = self.counts(&mut states[*group]);
            let counts = counts.as_primitive::<Int64Type>().values();
            state.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        Ok(())
    }

    fn save(&self, states: &mut [Vec<i64>]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.columns(states)?])
    }

    fn finish(&self, states: &mut [Vec<i64>]) -> Result<ArrayRef> {
        if !self.named {
            return self.columns(states);
        }
        let counts = states.iter_mut().flat_map(|s| self.counts(s).iter().copied());
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(counts));
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        let total = states.len() * (self.bounds.len() + 1);
        let bounds = f64::column(bounds.cycle().take(total));
        let buckets = StructArray::try_new(bucket_fields(), vec![bounds, counts], None)?;
        list(&vec![self.bounds.len() + 1; states.len()], Arc::new(buckets))
    }

    fn heap_bytes(state: &Vec<i64>) -> usize {
        state.capacity() * size_of::<i64>()
    }
}
