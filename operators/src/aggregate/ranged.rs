//! Results that reach to the bounds of a window.
//!
//! As with [`super::until`], an aggregate cannot know these bounds: it is planned as a hidden one
//! that knows what the readings give, and a function that makes the result of that and the bounds.
//! The bits are those of the aggregate in SQL, which takes the bounds as arguments.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, IntervalMonthDayNanoArray, ListArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use datafusion_common::{Result, internal_err};
use datafusion_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

use super::catalog::Name;
use super::ratio::ratio;
use super::resample::{Grid, POINTS_MAX, Steps, interval_us, resampled_type, too_many};
use super::udaf::hidden_aggregate;
use super::value::{Value, argument, downcast};

/// What stands in a window for an aggregate whose result may reach to bounds.
pub struct Ranged {
    /// Takes the arguments of the call up to the interval.
    pub part: Arc<AggregateUDF>,
    /// Which argument that is; from and to come after it, if they are given.
    pub interval: usize,
    /// Whether they are the bounds of the window, if they are not.
    pub needs_range: bool,
    /// Takes what `part` gives, the interval, then from and to, if there are.
    pub finish: Arc<ScalarUDF>,
}

/// The two halves of such an aggregate; none if it is not one of those. `ends_with_reading`:
/// nobody gave `to`, and windows here end with a reading.
pub fn ranged(name: &str, ends_with_reading: bool) -> Option<Ranged> {
    let (part, finish) = match Name::find(name)? {
        Name::ResampleHeld => (Name::PointsHeld, Finish::Held),
        Name::ResampleStraight => (Name::PointsStraight, Finish::Straight),
        Name::ExpectedRatio if ends_with_reading => (Name::Seen, Finish::RatioWithLast),
        Name::ExpectedRatio => (Name::Seen, Finish::Ratio),
        _ => return None,
    };
    let signature = Signature::variadic_any(Volatility::Immutable);
    let needs_range = part == Name::Seen;
    Some(Ranged {
        part: hidden_aggregate(part),
        interval: if needs_range { 1 } else { 2 },
        needs_range,
        finish: Arc::new(Ranging { finish, signature }.into()),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Finish {
    Held,
    Straight,
    Ratio,
    RatioWithLast,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ranging {
    finish: Finish,
    signature: Signature,
}

impl ScalarUDFImpl for Ranging {
    fn name(&self) -> &str {
        match self.finish {
            Finish::Held => "resampled",
            Finish::Straight => "resampled_linear",
            Finish::Ratio => "ratio_between",
            Finish::RatioWithLast => "ratio_through",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.finish {
            Finish::Held | Finish::Straight => resampled_type(),
            Finish::Ratio | Finish::RatioWithLast => DataType::Float64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let (Some(part), Some(interval)) = (columns.first(), columns.get(1)) else {
            return internal_err!("{} takes two arguments at least", self.name());
        };
        let intervals: &IntervalMonthDayNanoArray = downcast(interval)?;
        let every_us = match intervals.iter().flatten().next() {
            Some(i) => interval_us(i.months, i.days, i.nanoseconds),
            // There are no rows.
            None => Some(1),
        };
        let Some(every_us) = every_us else {
            return internal_err!("the interval was checked when it was planned");
        };
        let range = Range::of(&columns)?;
        Ok(ColumnarValue::Array(match self.finish {
            Finish::Held | Finish::Straight => {
                let straight = self.finish == Finish::Straight;
                resampled(part, Steps { step_us: every_us, straight }, range)?
            }
            Finish::Ratio => ratios(part, every_us, range, 0)?,
            Finish::RatioWithLast => ratios(part, every_us, range, every_us)?,
        }))
    }
}

/// From when until when, of each row.
#[derive(Clone, Copy)]
struct Range<'c> {
    from: &'c TimestampMicrosecondArray,
    to: &'c TimestampMicrosecondArray,
}

impl<'c> Range<'c> {
    fn of(columns: &'c [ArrayRef]) -> Result<Option<Self>> {
        match columns.len() {
            2 => Ok(None),
            _ => Ok(Some(Self { from: argument(columns, 2)?, to: argument(columns, 3)? })),
        }
    }

    fn get(&self, row: usize) -> Option<(i64, i64)> {
        let is_valid = self.from.is_valid(row) && self.to.is_valid(row);
        is_valid.then(|| (self.from.value(row), self.to.value(row)))
    }
}

fn resampled(part: &ArrayRef, steps: Steps, range: Option<Range<'_>>) -> Result<ArrayRef> {
    let lists: &ListArray = downcast(part)?;
    let mut grid = Grid::default();
    for row in 0..lists.len() {
        if lists.is_null(row) {
            return too_many(POINTS_MAX);
        }
        let points = lists.value(row);
        let columns = points.as_struct().columns();
        let times = argument::<TimestampMicrosecondArray>(columns, 0)?.values();
        let values = argument::<Float64Array>(columns, 1)?.values();
        match range {
            None => {
                let known = times.len().saturating_sub(1);
                let points = times[..known].iter().zip(&values[..known]);
                points.for_each(|(time, value)| grid.push(*time, Some(*value)));
                grid.end(true);
            }
            Some(range) => match range.get(row) {
                Some(range) => steps.cut((times, values), range, &mut grid)?,
                None => grid.end(true),
            },
        }
    }
    grid.column()
}

fn ratios(
    part: &ArrayRef,
    every_us: i64,
    range: Option<Range<'_>>,
    more_us: i64,
) -> Result<ArrayRef> {
    let counts: &Int64Array = downcast(part)?;
    let of = |row: usize| {
        let count = i64::get(counts, row)?;
        let (from_us, to_us) = range?.get(row)?;
        ratio(count, (from_us, to_us.saturating_add(more_us)), every_us)
    };
    Ok(f64::column((0..counts.len()).map(of)))
}
