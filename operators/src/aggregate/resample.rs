//! Values at regular times, at the multiples of an interval since the Unix epoch: gaps filled.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, StructArray, TimestampMicrosecondArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion_common::{Result, exec_err};

use super::measure::{Point, interpolated, last_known};
use super::series::list_of;
use super::value::Value;
use crate::spec::time_type;

/// Most points of one group in SQL: a year of seconds is 31 million.
const ASKED_MAX: u64 = 1_000_000;

/// Most points of one window: a week of minutes is 10,080. They are one value of one row, which
/// goes into notifications and tables.
pub const POINTS_MAX: u64 = 20_000;

/// Which times, and what is between readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Steps {
    /// Distance of the times, microseconds, more than 0.
    pub(super) step_us: i64,
    /// Straight lines, else the value last known.
    pub(super) straight: bool,
}

/// A length of time in microseconds; none of one that has months, or is not above 0.
pub(super) fn interval_us(months: i32, days: i32, nanoseconds: i64) -> Option<i64> {
    const NS_PER_US: i64 = 1_000;
    const US_PER_DAY: i64 = 86_400_000_000;
    let us = i64::from(days) * US_PER_DAY + nanoseconds / NS_PER_US;
    (months == 0 && us > 0).then_some(us)
}

impl Steps {
    /// The number of the first multiple that is not before a time.
    fn number(&self, time_us: i64) -> i64 {
        let rest = i64::from(time_us.rem_euclid(self.step_us) != 0);
        time_us.div_euclid(self.step_us) + rest
    }

    /// The numbers of the multiples from a time on and before another.
    fn between(&self, (from_us, to_us): (i64, i64)) -> std::ops::Range<i64> {
        self.number(from_us)..self.number(to_us)
    }

    fn time_us(&self, number: i64) -> i64 {
        number.saturating_mul(self.step_us)
    }

    fn value(&self, time_us: i64, before: &Point<f64>, after: Option<&Point<f64>>) -> f64 {
        match self.straight {
            true => interpolated(time_us, before, after),
            false => last_known(before),
        }
    }

    /// The points from the first to the last reading; false, and none of them, if there are more
    /// than `most`.
    fn known(&self, points: &[Point<f64>], most: u64, grid: &mut Grid) -> bool {
        let Some((first, last)) = points.first().zip(points.last()) else { return true };
        self.fill(points, (first.0, last.0.saturating_add(1)), most, grid)
    }

    /// The points from a time on and before another, if there is a reading; false, and none of
    /// them, if there are more than `most`.
    fn fill(&self, points: &[Point<f64>], range: (i64, i64), most: u64, grid: &mut Grid) -> bool {
        let Some(last) = points.last() else { return true };
        let numbers = self.between(range);
        if !fits(&numbers, most) {
            return false;
        }
        let mut next = 0;
        for time_us in numbers.map(|n| self.time_us(n)) {
            next += points[next..].partition_point(|p| p.0 <= time_us);
            let is_known = next > 0 && (time_us <= last.0 || !self.straight);
            let value = is_known.then(|| self.value(time_us, &points[next - 1], points.get(next)));
            grid.push(time_us, value);
        }
        true
    }

    /// For SQL: from the first to the last reading.
    pub(super) fn of_readings(
        &self,
        points: &[Point<f64>],
        _: (Option<i64>, Option<i64>),
        grid: &mut Grid,
    ) -> Result<()> {
        if !self.known(points, ASKED_MAX, grid) {
            return too_many(ASKED_MAX);
        }
        grid.end(true);
        Ok(())
    }

    /// For SQL: from a time on and before another; none if there is no reading.
    pub(super) fn of_range(
        &self,
        points: &[Point<f64>],
        range: (Option<i64>, Option<i64>),
        grid: &mut Grid,
    ) -> Result<()> {
        if let (Some(from_us), Some(to_us)) = range
            && !self.fill(points, (from_us, to_us), ASKED_MAX, grid)
        {
            return too_many(ASKED_MAX);
        }
        grid.end(true);
        Ok(())
    }

    /// For windows: from the first to the last reading, and one point more, which has the value of
    /// the last reading. Null if there are more than [`POINTS_MAX`].
    pub(super) fn of_window(
        &self,
        points: &[Point<f64>],
        _: (Option<i64>, Option<i64>),
        grid: &mut Grid,
    ) -> Result<()> {
        let fits = self.known(points, POINTS_MAX, grid);
        if let Some(last) = points.last().filter(|_| fits) {
            let time_us = self.time_us(self.number(last.0.saturating_add(1)));
            grid.push(time_us, Some(last_known(last)));
        }
        grid.end(fits);
        Ok(())
    }

    /// From a time on and before another, out of what [`Steps::of_window`] made.
    pub(super) fn cut(
        &self,
        (times, values): (&[i64], &[f64]),
        range: (i64, i64),
        grid: &mut Grid,
    ) -> Result<()> {
        let Some(first_us) = times.first() else {
            grid.end(true);
            return Ok(());
        };
        let numbers = self.between(range);
        if !fits(&numbers, POINTS_MAX) {
            return too_many(POINTS_MAX);
        }
        let (first, known) = (self.number(*first_us), times.len() - 1);
        for number in numbers {
            let value = match usize::try_from(number - first) {
                Err(_) => None,
                Ok(place) if place < known => Some(values[place]),
                Ok(_) => (!self.straight).then(|| values[known]),
            };
            grid.push(self.time_us(number), value);
        }
        grid.end(true);
        Ok(())
    }
}

fn fits(numbers: &std::ops::Range<i64>, most: u64) -> bool {
    numbers.end <= numbers.start || numbers.end.abs_diff(numbers.start) <= most
}

/// The error of a list that would be too long.
pub(super) fn too_many<T>(most: u64) -> Result<T> {
    exec_err!("a resampling would have more than {most} points: take a longer interval")
}

/// Lists of times and values.
#[derive(Debug, Default)]
pub(super) struct Grid {
    times: Vec<i64>,
    values: Vec<Option<f64>>,
    /// Where each list ends, and whether it is not null.
    ends: Vec<usize>,
    valid: Vec<bool>,
}

impl Grid {
    /// Adds a point to the list that is not ended.
    pub(super) fn push(&mut self, time_us: i64, value: Option<f64>) {
        self.times.push(time_us);
        self.values.push(value);
    }

    /// Ends a list.
    pub(super) fn end(&mut self, is_valid: bool) {
        self.ends.push(self.times.len());
        self.valid.push(is_valid);
    }

    /// All lists.
    pub(super) fn column(self) -> Result<ArrayRef> {
        let times = TimestampMicrosecondArray::from(self.times).with_timezone("UTC");
        let values = f64::column(self.values.into_iter());
        let points = StructArray::try_new(fields(), vec![Arc::new(times), values], None)?;
        let begins = [0].into_iter().chain(self.ends.iter().copied());
        let lengths = self.ends.iter().zip(begins).map(|(end, begin)| end - begin);
        let offsets = OffsetBuffer::from_lengths(lengths);
        let item = Arc::new(Field::new_list_field(DataType::Struct(fields()), true));
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        Ok(Arc::new(ListArray::try_new(item, offsets, Arc::new(points), nulls)?))
    }
}

/// The type of what a resampling returns: a list of times and values.
pub(super) fn resampled_type() -> DataType {
    list_of(DataType::Struct(fields()))
}

fn fields() -> Fields {
    let time = Field::new("time", time_type(), true);
    vec![time, Field::new("value", DataType::Float64, true)].into()
}
