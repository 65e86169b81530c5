//! How many of the readings came that an interval lets one expect.

use arrow::array::{Array, ArrayRef, Int64Array, TimestampMicrosecondArray};
use datafusion_common::Result;

use super::groups::Kind;
use super::value::{Time, Value, argument, presence};

/// `expected_ratio`; without an interval, the count that windows make it of.
#[derive(Debug)]
pub(super) struct RatioKind {
    /// How often there should be a reading, microseconds.
    pub(super) every_us: Option<i64>,
}

/// What was seen of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Values; none if there was no row at all.
    count: Option<i64>,
    /// From when on there should be values, and until when.
    range: (Option<i64>, Option<i64>),
}

impl Seen {
    fn add(&mut self, count: i64, (from_us, to_us): (Option<i64>, Option<i64>)) {
        self.count = Some(self.count.unwrap_or(0) + count);
        self.range.0 = [self.range.0, from_us].into_iter().flatten().min();
        self.range.1 = self.range.1.max(to_us);
    }
}

/// The count by how many whole intervals there are, one at least; none if the range is none.
pub(super) fn ratio(count: i64, (from_us, to_us): (i64, i64), every_us: i64) -> Option<f64> {
    let long_us = to_us.checked_sub(from_us).filter(|us| *us >= 0)?;
    Some(count as f64 / (long_us / every_us).max(1) as f64)
}

impl Kind for RatioKind {
    type State = Seen;

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Seen],
    ) -> Result<()> {
        let values = &columns[0];
        let has_value = presence(values);
        let time = |index| argument::<TimestampMicrosecondArray>(columns, index);
        let range = match self.every_us {
            Some(_) => Some((time(2)?, time(3)?)),
            None => None,
        };
        let at = |times, row| Time::get(times, row).map(|time| time.0);
        for (row, group) in rows {
            let range = range.map_or((None, None), |(from, to)| (at(from, row), at(to, row)));
            states[group].add(i64::from(has_value(row)), range);
        }
        Ok(())
    }

    fn merge(&self, saved: &[ArrayRef], groups: &[usize], states: &mut [Seen]) -> Result<()> {
        let number = |index| argument::<Int64Array>(saved, index);
        let (counts, from, to) = (number(0)?, number(1)?, number(2)?);
        for (row, group) in groups.iter().enumerate().filter(|(row, _)| counts.is_valid(*row)) {
            states[*group].add(counts.value(row), (i64::get(from, row), i64::get(to, row)));
        }
        Ok(())
    }

    fn save(&self, states: &mut [Seen]) -> Result<Vec<ArrayRef>> {
        Ok(vec![
            i64::column(states.iter().map(|s| s.count)),
            i64::column(states.iter().map(|s| s.range.0)),
            i64::column(states.iter().map(|s| s.range.1)),
        ])
    }

    fn finish(&self, states: &mut [Seen]) -> Result<ArrayRef> {
        let Some(every_us) = self.every_us else {
            return Ok(i64::column(states.iter().map(|s| s.count)));
        };
        let of = |s: &Seen| ratio(s.count?, (s.range.0?, s.range.1?), every_us);
        Ok(f64::column(states.iter().map(of)))
    }

    fn heap_bytes(_: &Seen) -> usize {
        0
    }
}
