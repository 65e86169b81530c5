//! Holding the last reading until the end of a window.
//!
//! A window is put together from panes, which do not know in which windows they will be, so the
//! end of the window cannot be an argument of an aggregate there. `twa(x, window_end)` is planned
//! as two calls instead: a hidden aggregate that knows what the readings give up to the last one
//! ([`Parts`]), and a function that lets that last one hold. The arithmetic is that of the
//! aggregate with `until`, step by step, so the bits are the same.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float64Array, Int64Array, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion_common::{Result, internal_err};
use datafusion_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

use super::catalog::Name;
use super::measure::Parts;
use super::udaf::hidden_aggregate;
use super::value::{Value, argument, downcast};

/// What stands for an aggregate call that has `until` as its third argument.
pub struct Held {
    /// Takes the value, as a number, and its time.
    pub parts: Arc<AggregateUDF>,
    /// Takes what `parts` gives, and until when the last reading holds.
    pub finish: Arc<ScalarUDF>,
}

/// The two halves of an aggregate that can hold its last reading; none if it is not one of those.
pub fn held(name: &str) -> Option<Held> {
    let name = Name::find(name)?;
    let straight = match name {
        Name::AverageHeld | Name::IntegralHeld | Name::DurationIn => false,
        Name::AverageStraight | Name::IntegralStraight => true,
        _ => return None,
    };
    let mean = matches!(name, Name::AverageHeld | Name::AverageStraight);
    let signature = Signature::any(2, Volatility::Immutable);
    let parts = if straight { Name::PartsStraight } else { Name::PartsHeld };
    Some(Held {
        parts: hidden_aggregate(parts),
        finish: Arc::new(HoldUntil { mean, signature }.into()),
    })
}

/// The columns of [`Parts`]: two times and three numbers.
fn fields() -> Fields {
    let time = |name| Field::new(name, DataType::Int64, true);
    let number = |name| Field::new(name, DataType::Float64, true);
    let (from, to) = (time("first_us"), time("last_us"));
    vec![from, to, number("first"), number("last"), number("area")].into()
}

/// The type of what the hidden aggregate returns.
pub(super) fn parts_type() -> DataType {
    DataType::Struct(fields())
}

/// A column of parts, null where there was no reading.
pub(super) fn parts_column(parts: &[Option<Parts>]) -> Result<ArrayRef> {
    let time = |of: fn(&Parts) -> i64| i64::column(parts.iter().map(|p| p.as_ref().map(of)));
    let number = |of: fn(&Parts) -> f64| f64::column(parts.iter().map(|p| p.as_ref().map(of)));
    let columns = vec![
        time(|p| p.first_us),
        time(|p| p.last_us),
        number(|p| p.first),
        number(|p| p.last),
        number(|p| p.area),
    ];
    Ok(Arc::new(StructArray::try_new(fields(), columns, None)?))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct HoldUntil {
    /// The mean over time, else the integral.
    mean: bool,
    signature: Signature,
}

impl ScalarUDFImpl for HoldUntil {
    fn name(&self) -> &str {
        if self.mean { "mean_until" } else { "integral_until" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let [parts, until] = columns.as_slice() else {
            return internal_err!("{} takes two arguments", self.name());
        };
        let parts: &StructArray = downcast(parts)?;
        let until: &TimestampMicrosecondArray = downcast(until)?;
        let times = |i| argument::<Int64Array>(parts.columns(), i);
        let numbers = |i| argument::<Float64Array>(parts.columns(), i);
        let (first_us, last_us) = (times(0)?, times(1)?);
        let (first, last, area) = (numbers(2)?, numbers(3)?, numbers(4)?);
        let number = |row: usize| {
            let parts = first_us.is_valid(row).then(|| Parts {
                first_us: first_us.value(row),
                last_us: last_us.value(row),
                first: first.value(row),
                last: last.value(row),
                area: area.value(row),
            })?;
            let until_us = until.is_valid(row).then(|| until.value(row));
            let number = if self.mean { parts.mean(until_us) } else { parts.integral(until_us) };
            Some(number).filter(|n| n.is_finite())
        };
        Ok(ColumnarValue::Array(f64::column((0..parts.len()).map(number))))
    }
}
