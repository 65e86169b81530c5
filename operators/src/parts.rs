//! `date_part` (and `extract`) of a length of time, as PostgreSQL has it.
//!
//! A difference of two times is a count of, say, microseconds. DataFusion's own function takes the
//! whole of it in the unit asked for, and drops what is below a second; here it is days, then hours
//! below 24, minutes and seconds below 60, the seconds with their fraction, and `epoch` is all of
//! it in seconds. Whatever is no length of time stays with DataFusion's function.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::compute::kernels::cast_utils::IntervalUnit;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, TimeUnit};
use datafusion_common::{Result, ScalarValue, plan_err};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::planner::{ExprPlanner, PlannerResult};
use datafusion_expr::preimage::PreimageResult;
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature,
};

const MINUTE_SECONDS: i64 = 60;
const HOUR_SECONDS: i64 = 60 * MINUTE_SECONDS;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;

/// `date_part` in place of DataFusion's, which is given.
pub fn date_part(theirs: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(DatePart { theirs }))
}

/// Has `extract` mean this function. To be asked before DataFusion's planners.
pub fn extract(date_part: Arc<ScalarUDF>) -> Arc<dyn ExprPlanner> {
    Arc::new(Extract(date_part))
}

#[derive(Debug)]
struct Extract(Arc<ScalarUDF>);

impl ExprPlanner for Extract {
    fn plan_extract(&self, args: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        let call = ScalarFunction::new_udf(Arc::clone(&self.0), args);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

/// A part of a length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// So many whole ones of so many seconds, of what is left of the next greater part.
    Whole { seconds: i64, below: Option<i64> },
    /// What is left of the minutes, so many to a second, with a fraction.
    Fraction { per_second: i64 },
    /// Likewise, but whole ones.
    Finest { per_second: i64 },
    /// All of it, in seconds.
    Epoch,
}

impl Part {
    fn read(word: &str) -> Option<Self> {
        let quotes = ['\'', '"'];
        let bare = word.strip_prefix(quotes).and_then(|rest| rest.strip_suffix(quotes));
        let word = bare.unwrap_or(word);
        if word.eq_ignore_ascii_case("epoch") {
            return Some(Self::Epoch);
        }
        let whole = |seconds, below| Some(Self::Whole { seconds, below });
        match word.parse().ok()? {
            IntervalUnit::Day => whole(DAY_SECONDS, None),
            IntervalUnit::Hour => whole(HOUR_SECONDS, Some(DAY_SECONDS)),
            IntervalUnit::Minute => whole(MINUTE_SECONDS, Some(HOUR_SECONDS)),
            IntervalUnit::Second => Some(Self::Fraction { per_second: 1 }),
            IntervalUnit::Millisecond => Some(Self::Fraction { per_second: 1_000 }),
            IntervalUnit::Microsecond => Some(Self::Finest { per_second: 1_000_000 }),
            IntervalUnit::Nanosecond => Some(Self::Finest { per_second: 1_000_000_000 }),
            _ => None,
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Whole { .. } | Self::Finest { .. } => DataType::Int64,
            Self::Fraction { .. } | Self::Epoch => DataType::Float64,
        }
    }

    /// That of lengths of which `unit` make a second.
    fn of(self, lengths: &Int64Array, unit: i64) -> ArrayRef {
        // All of what is less than a minute.
        let rest = move |length: i64| length % (MINUTE_SECONDS * unit);
        match self {
            Self::Whole { seconds, below } => {
                Arc::new(lengths.unary::<_, Int64Type>(move |length| {
                    let whole = length / unit;
                    below.map_or(whole, |below| whole % below) / seconds
                }))
            }
            Self::Finest { per_second } => {
                let (times, of) = ((per_second / unit).max(1), (unit / per_second).max(1));
                Arc::new(lengths.unary::<_, Int64Type>(move |l| rest(l) * times / of))
            }
            Self::Fraction { per_second } => {
                Arc::new(lengths.unary::<_, Float64Type>(move |l| ratio(rest(l), unit, per_second)))
            }
            Self::Epoch => Arc::new(lengths.unary::<_, Float64Type>(move |l| ratio(l, unit, 1))),
        }
    }
}

/// What are `per_second` to a second, of so many that are `unit` to one, rounded once.
fn ratio(length: i64, unit: i64, per_second: i64) -> f64 {
    match unit < per_second {
        true => (length * (per_second / unit)) as f64,
        false => length as f64 / (unit / per_second) as f64,
    }
}

/// How many of the lengths of time of a type make a second, if it is one of them.
fn unit(data_type: &DataType) -> Option<i64> {
    match data_type {
        DataType::Duration(TimeUnit::Second) => Some(1),
        DataType::Duration(TimeUnit::Millisecond) => Some(1_000),
        DataType::Duration(TimeUnit::Microsecond) => Some(1_000_000),
        DataType::Duration(TimeUnit::Nanosecond) => Some(1_000_000_000),
        _ => None,
    }
}

/// The part that a first argument names.
fn named(word: Option<&ScalarValue>) -> Result<Part> {
    let Some(word) = word.and_then(|value| value.try_as_str().flatten()) else {
        return plan_err!("`date_part` takes the name of a part, such as 'epoch', and no column");
    };
    match Part::read(word) {
        Some(part) => Ok(part),
        None => plan_err!(
            "a length of time has no part '{}'; it has epoch (all of it, in seconds), day, hour, \
             minute, second, millisecond, microsecond, nanosecond",
            word.to_lowercase()
        ),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DatePart {
    theirs: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for DatePart {
    fn name(&self) -> &str {
        self.theirs.name()
    }

    fn aliases(&self) -> &[String] {
        self.theirs.aliases()
    }

    fn signature(&self) -> &Signature {
        self.theirs.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.theirs.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        match args.arg_fields {
            [_, length] if unit(length.data_type()).is_some() => {
                let part = named(args.scalar_arguments.first().copied().flatten())?;
                let nullable = length.is_nullable();
                Ok(Arc::new(Field::new(self.name(), part.data_type(), nullable)))
            }
            _ => self.theirs.return_field_from_args(args),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (part, value) = match &args.args[..] {
            [ColumnarValue::Scalar(part), value] => (part, value),
            _ => return self.theirs.invoke_with_args(args),
        };
        let Some(unit) = unit(&value.data_type()) else {
            return self.theirs.invoke_with_args(args);
        };
        let part = named(Some(part))?;
        let parts = |lengths: &ArrayRef| -> Result<ArrayRef> {
            let counts = cast(lengths, &DataType::Int64)?;
            Ok(part.of(counts.as_primitive::<Int64Type>(), unit))
        };
        Ok(match value {
            ColumnarValue::Array(lengths) => ColumnarValue::Array(parts(lengths)?),
            ColumnarValue::Scalar(length) => {
                let found = parts(&length.to_array()?)?;
                ColumnarValue::Scalar(ScalarValue::try_from_array(&found, 0)?)
            }
        })
    }

    fn preimage(
        &self,
        args: &[Expr],
        lit_expr: &Expr,
        info: &SimplifyContext,
    ) -> Result<PreimageResult> {
        self.theirs.preimage(args, lit_expr, info)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.theirs.documentation()
    }
}
