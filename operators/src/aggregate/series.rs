//! Aggregates that need all readings of their group in order of time.
//!
//! A reading may arrive late and fall between two others, so no summary of a stretch of time can
//! be final: the state is the readings themselves, 16 bytes each for numbers. It is always merged
//! as a set of points, and everything is computed from the sorted points at the end. So results
//! are equal to the last bit for any order of arrival and any cut into batches and workers.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, TimestampMicrosecondArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion_common::Result;

use super::groups::Kind;
use super::measure::{Parts, Point};
use super::resample::{Grid, Steps};
use super::until::parts_column;
use super::value::{Value, argument, downcast, presence};

/// The readings of one group.
#[derive(Debug)]
pub(super) struct Series<V> {
    /// By time, each time once, up to `sorted`; then as they came.
    points: Vec<Point<V>>,
    sorted: usize,
    /// Until when the last reading holds, if that was given.
    until_us: Option<i64>,
    /// From when on values are asked for, if that was given.
    from_us: Option<i64>,
}

impl<V> Default for Series<V> {
    fn default() -> Self {
        Self { points: Vec::new(), sorted: 0, until_us: None, from_us: None }
    }
}

impl<V: Value> Series<V> {
    /// The points by time, each time once: of several values of one time the greatest stays.
    fn points(&mut self) -> &[Point<V>] {
        if self.sorted < self.points.len() {
            // Stable sorting is quick on what is nearly sorted.
            self.points.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.order(&a.1)));
            self.points.dedup_by_key(|point| point.0);
            self.sorted = self.points.len();
        }
        &self.points
    }

    fn hold_until(&mut self, until_us: Option<i64>) {
        self.until_us = self.until_us.max(until_us);
    }

    fn begin_at(&mut self, from_us: Option<i64>) {
        self.from_us = [self.from_us, from_us].into_iter().flatten().min();
    }
}

/// What is computed from the points.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure<V> {
    /// A number (or nothing); the second argument is until when the last reading holds.
    Number(fn(&[Point<V>], Option<i64>) -> Option<f64>),
    /// What there is up to the last reading, for a function that lets that one hold longer.
    Parts(fn(&[Point<V>]) -> Option<Parts>),
    /// A count.
    Count(fn(&[Point<V>]) -> i64),
    /// Values at regular times.
    Resample(Steps, Resampling<V>),
}

/// Fills in values at regular times, given from when until when they are asked for, µs.
pub(super) type Resampling<V> =
    fn(&Steps, &[Point<V>], (Option<i64>, Option<i64>), &mut Grid) -> Result<()>;

/// What a call is told beside values and their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing.
    Nothing,
    /// In the third argument, until when the last reading holds.
    Until,
    /// In the fourth and fifth, from when until when values are asked for.
    Range,
}

/// A planned call: arguments are the value, its time, and what is [`Told`].
#[derive(Debug)]
pub(super) struct SeriesKind<V> {
    pub(super) measure: Measure<V>,
    pub(super) told: Told,
}

impl<V: Value> Kind for SeriesKind<V> {
    type State = Series<V>;

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Series<V>],
    ) -> Result<()> {
        let values: &V::Column = argument(columns, 0)?;
        let times: &TimestampMicrosecondArray = argument(columns, 1)?;
        let time = |index| argument::<TimestampMicrosecondArray>(columns, index);
        let (from, until) = match self.told {
            Told::Nothing => (None, None),
            Told::Until => (None, Some(time(2)?)),
            Told::Range => (Some(time(3)?), Some(time(4)?)),
        };
        for (row, group) in rows {
            if let (Some(from), Some(to)) = (from, until) {
                // Also of a row without a value.
                let state = &mut states[group];
                state.begin_at(from.is_valid(row).then(|| from.value(row)));
                state.hold_until(to.is_valid(row).then(|| to.value(row)));
            }
            let Some(value) = V::get(values, row).filter(|_| times.is_valid(row)) else { continue };
            let state = &mut states[group];
            state.points.push((times.value(row), value));
            if let Some(until) = until.filter(|u| u.is_valid(row)) {
                state.hold_until(Some(until.value(row)));
            }
        }
        Ok(())
    }

    fn merge(&self, saved: &[ArrayRef], groups: &[usize], states: &mut [Series<V>]) -> Result<()> {
        let times: &ListArray = argument(saved, 0)?;
        let values: &ListArray = argument(saved, 1)?;
        let until: &Int64Array = argument(saved, 2)?;
        let from: Option<&Int64Array> =
            (self.told == Told::Range).then(|| argument(saved, 3)).transpose()?;
        for (row, group) in groups.iter().enumerate() {
            if times.is_null(row) || values.is_null(row) {
                continue;
            }
            let state = &mut states[*group];
            let (times, values) = (times.value(row), values.value(row));
            let (times, values) = (times.as_primitive::<Int64Type>(), downcast(&values)?);
            let points = times.values().iter().enumerate();
            let points = points.filter_map(|(i, t)| V::get(values, i).map(|v| (*t, v)));
            let was_empty = state.points.is_empty();
            state.points.extend(points);
            if was_empty {
                // It was saved sorted.
                state.sorted = state.points.len();
            }
            state.hold_until(until.is_valid(row).then(|| until.value(row)));
            state.begin_at(from.filter(|f| f.is_valid(row)).map(|f| f.value(row)));
        }
        Ok(())
    }

    fn save(&self, states: &mut [Series<V>]) -> Result<Vec<ArrayRef>> {
        let lengths: Vec<usize> = states.iter_mut().map(|s| s.points().len()).collect();
        let points = || states.iter().flat_map(|s| &s.points);
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(points().map(|p| p.0)));
        let values = V::column(points().map(|p| Some(p.1.clone())));
        let until: Int64Array = states.iter().map(|s| s.until_us).collect();
        let mut columns: Vec<ArrayRef> =
            vec![list(&lengths, times)?, list(&lengths, values)?, Arc::new(until)];
        if self.told == Told::Range {
            columns.push(i64::column(states.iter().map(|s| s.from_us)));
        }
        Ok(columns)
    }

    fn finish(&self, states: &mut [Series<V>]) -> Result<ArrayRef> {
        Ok(match self.measure {
            Measure::Number(compute) => {
                let number = |s: &mut Series<V>| {
                    let until_us = s.until_us;
                    // What overflows is no answer.
                    compute(s.points(), until_us).filter(|v| v.is_finite())
                };
                f64::column(states.iter_mut().map(number))
            }
            Measure::Parts(compute) => {
                let parts: Vec<_> = states.iter_mut().map(|s| compute(s.points())).collect();
                parts_column(&parts)?
            }
            Measure::Count(compute) => {
                i64::column(states.iter_mut().map(|s| Some(compute(s.points()))))
            }
            Measure::Resample(steps, fill) => {
                let mut grid = Grid::default();
                for state in states {
                    let range = (state.from_us, state.until_us);
                    fill(&steps, state.points(), range, &mut grid)?;
                }
                grid.column()?
            }
        })
    }

    fn heap_bytes(state: &Series<V>) -> usize {
        state.points.capacity() * size_of::<Point<V>>()
            + state.points.iter().map(|p| p.1.heap_bytes()).sum::<usize>()
    }
}

/// A list as states have it.
pub(super) fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(element, true)))
}

/// A list column from all elements and the length of each list.
pub(super) fn list(lengths: &[usize], elements: ArrayRef) -> Result<ArrayRef> {
    let field = Arc::new(Field::new_list_field(elements.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Ok(Arc::new(ListArray::try_new(field, offsets, elements, None)?))
}

/// The distinct slots of time in which there was a value: how many of the expected readings came.
#[derive(Debug)]
pub(super) struct SlotsKind {
    /// Length of a slot, microseconds; slots are aligned to the Unix epoch.
    pub(super) step_us: i64,
}

/// Numbers of slots, sorted and each once up to the given position, then as they came.
type Slots = (Vec<i64>, usize);

fn normal(slots: &mut Slots) -> &[i64] {
    if slots.1 < slots.0.len() {
        slots.0.sort();
        slots.0.dedup();
        slots.1 = slots.0.len();
    }
    &slots.0
}

impl Kind for SlotsKind {
    type State = Slots;

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Slots],
    ) -> Result<()> {
        let values = &columns[0];
        let has_value = presence(values);
        let times: &TimestampMicrosecondArray = argument(columns, 1)?;
        for (row, group) in rows {
            if has_value(row) && times.is_valid(row) {
                let slot = times.value(row).div_euclid(self.step_us);
                let state = &mut states[group];
                if state.0.last() != Some(&slot) {
                    state.0.push(slot);
                }
            }
        }
        Ok(())
    }

    fn merge(&self, saved: &[ArrayRef], groups: &[usize], states: &mut [Slots]) -> Result<()> {
        let slots: &ListArray = argument(saved, 0)?;
        for (row, group) in groups.iter().enumerate().filter(|(row, _)| slots.is_valid(*row)) {
            let slots = slots.value(row);
            states[*group].0.extend_from_slice(slots.as_primitive::<Int64Type>().values());
        }
        Ok(())
    }

    fn save(&self, states: &mut [Slots]) -> Result<Vec<ArrayRef>> {
        let lengths: Vec<usize> = states.iter_mut().map(|s| normal(s).len()).collect();
        let slots = states.iter().flat_map(|s| s.0.iter().copied());
        Ok(vec![list(&lengths, Arc::new(Int64Array::from_iter_values(slots)))?])
    }

    fn finish(&self, states: &mut [Slots]) -> Result<ArrayRef> {
        Ok(i64::column(states.iter_mut().map(|s| Some(normal(s).len() as i64))))
    }

    fn heap_bytes(state: &Slots) -> usize {
        state.0.capacity() * size_of::<i64>()
    }
}
