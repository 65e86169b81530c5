//! The aggregates for time series as DataFusion's user-defined aggregates: arguments, types, plans.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, Schema};
use datafusion_common::{Result, ScalarValue, plan_err};
use datafusion_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, DocSection, Documentation,
    GroupsAccumulator, Signature, Volatility,
};

use super::catalog::{ALL, Function, Name, hidden};
use super::distribution::{HistogramKind, QuantileKind, buckets_type};
use super::edge::{DeltaKind, Edge, EdgeKind};
use super::groups::Planned;
use super::measure::{self, Parts};
use super::ratio::RatioKind;
use super::resample::{Steps, interval_us, resampled_type};
use super::series::{Measure, Resampling, SeriesKind, SlotsKind, Told, list_of};
use super::sketch::{ERROR, ERRORS, Scale};
use super::until::parts_type;
use super::value::{Time, Value};
use crate::spec::time_type;

/// Most bounds of a histogram.
const BOUNDS_MAX: usize = 1_000;

/// All aggregates for time series, to be registered.
pub fn time_series() -> Vec<Arc<AggregateUDF>> {
    let udaf = |(name, function)| Arc::new(AggregateUDF::from(TimeSeries::new(name, function)));
    ALL.iter().map(|(name, function)| udaf((*name, function))).collect()
}

/// Whether an aggregate's second argument is the time of the reading; false of those that are not
/// in this module.
pub fn takes_time(name: &str) -> bool {
    Name::find(name).is_some_and(Name::takes_time)
}

/// An aggregate that has no name in SQL.
pub(super) fn hidden_aggregate(name: Name) -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::from(TimeSeries::new(name, hidden(name))))
}

#[derive(Debug)]
struct TimeSeries {
    name: Name,
    function: &'static Function,
    aliases: Vec<String>,
    signature: Signature,
    documentation: Documentation,
}

impl PartialEq for TimeSeries {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for TimeSeries {}

impl std::hash::Hash for TimeSeries {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl TimeSeries {
    fn new(name: Name, function: &'static Function) -> Self {
        let section = DocSection { include: true, label: "Time Series", description: None };
        let syntax = format!("{}({})", function.name, function.arguments);
        Self {
            name,
            function,
            aliases: function.aliases.iter().map(|a| (*a).to_owned()).collect(),
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: Documentation::builder(section, function.doc, syntax).build(),
        }
    }

    /// The types that arguments are converted to.
    fn arguments(&self, given: &[DataType]) -> Option<Vec<DataType>> {
        use Name as N;
        let (value, rest) = given.split_first()?;
        let rest = rest.iter();
        let mut wanted = vec![match self.name {
            N::First | N::Last | N::Changes => natural(value)?,
            N::FilledSlots | N::ExpectedRatio | N::Seen => natural(value)?,
            N::DurationIn => {
                matches!(value, DataType::Boolean | DataType::Null).then_some(DataType::Boolean)?
            }
            _ => number(value)?,
        }];
        let fits = |count: usize| match self.name {
            N::Quantile => (1..=2).contains(&count),
            N::Histogram | N::Buckets => (1..=BOUNDS_MAX).contains(&count),
            N::ExpectedRatio => count == 1 || count == 3,
            N::Seen => count == 1,
            N::FilledSlots => count == 2,
            name if name.resamples() => count == 2 || count == 4,
            name => (1..=1 + usize::from(name.takes_until())).contains(&count),
        };
        if !fits(rest.len()) {
            return None;
        }
        for (i, given) in rest.enumerate() {
            wanted.push(match (self.name, i) {
                (N::Quantile | N::Histogram | N::Buckets, _) => number(given)?,
                (N::FilledSlots, 1) | (N::ExpectedRatio | N::Seen, 0) => interval(given)?,
                (name, 1) if name.resamples() => interval(given)?,
                _ => time(given)?,
            });
        }
        Some(wanted)
    }

    fn plan(&self, args: &AccumulatorArgs<'_>) -> Result<Box<dyn Planned>> {
        if args.is_distinct {
            return plan_err!("`{}` has no DISTINCT: leave it out", self.function.name);
        }
        use Name as N;
        let value = args.expr_fields[0].data_type();
        Ok(match self.name {
            N::First => by_type(value, Call::Edge(Edge::First))?,
            N::Last => by_type(value, Call::Edge(Edge::Last))?,
            N::Changes => by_type(value, Call::Changes)?,
            N::Delta => Box::new(DeltaKind),
            N::AverageHeld => number_of(measure::average_held, args),
            N::AverageStraight => number_of(measure::average_straight, args),
            N::IntegralHeld => number_of(measure::integral_held, args),
            N::IntegralStraight => number_of(measure::integral_straight, args),
            N::Increase => number_of(measure::increase, args),
            N::Rate => number_of(measure::rate, args),
            N::DurationIn => number_of(measure::duration_in, args),
            N::PartsHeld => parts_of(Parts::held),
            N::PartsStraight => parts_of(Parts::straight),
            N::FilledSlots => Box::new(SlotsKind { step_us: self.interval(args, 2)? }),
            N::ResampleHeld | N::PointsHeld => self.resample(args, false)?,
            N::ResampleStraight | N::PointsStraight => self.resample(args, true)?,
            N::Quantile => self.quantile(args)?,
            N::Histogram => self.histogram(args, false)?,
            N::Buckets => self.histogram(args, true)?,
            N::ExpectedRatio => self.ratio(args)?,
            N::Seen => {
                // The function that makes a ratio of it relies on that.
                self.interval(args, 1)?;
                Box::new(RatioKind { every_us: None })
            }
        })
    }

    fn ratio(&self, args: &AccumulatorArgs<'_>) -> Result<Box<dyn Planned>> {
        if args.exprs.len() < 4 {
            return plan_err!(
                "`expected_ratio` takes ({}): here is no window whose bounds they could be",
                self.function.arguments
            );
        }
        Ok(Box::new(RatioKind { every_us: Some(self.interval(args, 1)?) }))
    }

    fn resample(&self, args: &AccumulatorArgs<'_>, straight: bool) -> Result<Box<dyn Planned>> {
        let steps = Steps { step_us: self.interval(args, 2)?, straight };
        let (fill, told): (Resampling<f64>, Told) = match self.name {
            Name::PointsHeld | Name::PointsStraight => (Steps::of_window, Told::Nothing),
            _ if args.exprs.len() > 3 => (Steps::of_range, Told::Range),
            _ => (Steps::of_readings, Told::Nothing),
        };
        Ok(Box::new(SeriesKind { measure: Measure::Resample(steps, fill), told }))
    }

    fn quantile(&self, args: &AccumulatorArgs<'_>) -> Result<Box<dyn Planned>> {
        let quantile = self.literal(args, 1)?;
        if !(0.0..=1.0).contains(&quantile) {
            return plan_err!("`quantile` of {quantile}: give a number from 0 to 1");
        }
        let error = if args.exprs.len() > 2 { self.literal(args, 2)? } else { ERROR };
        if !ERRORS.contains(&error) {
            let (from, to) = (ERRORS.start(), ERRORS.end());
            return plan_err!("`quantile` with a relative error of {error}: from {from} to {to}");
        }
        Ok(Box::new(QuantileKind { quantile, scale: Scale::new(error) }))
    }

    fn histogram(&self, args: &AccumulatorArgs<'_>, named: bool) -> Result<Box<dyn Planned>> {
        let bounds: Result<Vec<f64>> =
            (1..args.exprs.len()).map(|i| self.literal(args, i)).collect();
        let bounds = bounds?;
        if !bounds.is_sorted_by(|a, b| a < b) {
            return plan_err!("the bounds of `{}` must ascend, each once", self.function.name);
        }
        Ok(Box::new(HistogramKind { bounds, named }))
    }

    /// An argument that is a number and the same for all rows.
    fn literal(&self, args: &AccumulatorArgs<'_>, index: usize) -> Result<f64> {
        match constant(args, index)? {
            Some(ScalarValue::Float64(Some(v))) if v.is_finite() => Ok(v + 0.0),
            _ => plan_err!("argument {} of `{}` must be a number", index + 1, self.function.name),
        }
    }

    /// An interval, microseconds.
    fn interval(&self, args: &AccumulatorArgs<'_>, index: usize) -> Result<i64> {
        let us = match constant(args, index)? {
            Some(ScalarValue::IntervalMonthDayNano(Some(i))) => {
                interval_us(i.months, i.days, i.nanoseconds)
            }
            _ => None,
        };
        match us {
            Some(us) => Ok(us),
            None => plan_err!(
                "argument {} of `{}` must be a length of time without months, such as \
                 INTERVAL '10 seconds'",
                index + 1,
                self.function.name
            ),
        }
    }
}

/// The value of an argument that does not depend on any row.
fn constant(args: &AccumulatorArgs<'_>, index: usize) -> Result<Option<ScalarValue>> {
    let empty = RecordBatch::new_empty(Arc::new(Schema::empty()));
    Ok(match args.exprs[index].evaluate(&empty) {
        Ok(ColumnarValue::Scalar(value)) => Some(value),
        // It names a column.
        _ => None,
    })
}

fn number_of<V: Value>(
    compute: fn(&[measure::Point<V>], Option<i64>) -> Option<f64>,
    args: &AccumulatorArgs<'_>,
) -> Box<dyn Planned> {
    let told = if args.exprs.len() > 2 { Told::Until } else { Told::Nothing };
    Box::new(SeriesKind { measure: Measure::Number(compute), told })
}

fn parts_of(compute: fn(&[measure::Point<f64>]) -> Option<Parts>) -> Box<dyn Planned> {
    Box::new(SeriesKind { measure: Measure::Parts(compute), told: Told::Nothing })
}

/// A call that takes values of any type.
enum Call {
    Edge(Edge),
    Changes,
}

impl Call {
    fn of<V: Value>(self) -> Box<dyn Planned> {
        match self {
            Self::Edge(edge) => Box::new(EdgeKind::<V>::new(edge)),
            Self::Changes => Box::new(SeriesKind::<V> {
                measure: Measure::Count(measure::changes),
                told: Told::Nothing,
            }),
        }
    }
}

fn by_type(value: &DataType, call: Call) -> Result<Box<dyn Planned>> {
    Ok(match value {
        DataType::Float64 => call.of::<f64>(),
        DataType::Int64 => call.of::<i64>(),
        DataType::Boolean => call.of::<bool>(),
        DataType::Utf8 => call.of::<Arc<str>>(),
        DataType::Timestamp(..) => call.of::<Time>(),
        other => return plan_err!("there are no series of type {other}"),
    })
}

/// The type in which values of a type are kept.
fn natural(given: &DataType) -> Option<DataType> {
    use DataType as T;
    match given {
        T::Boolean => Some(T::Boolean),
        T::Utf8 | T::LargeUtf8 | T::Utf8View => Some(T::Utf8),
        T::Dictionary(_, values) => natural(values),
        T::Timestamp(..) | T::Date32 => Some(time_type()),
        given if given.is_integer() => Some(T::Int64),
        given => number(given),
    }
}

fn number(given: &DataType) -> Option<DataType> {
    (given.is_numeric() || given.is_null()).then_some(DataType::Float64)
}

fn time(given: &DataType) -> Option<DataType> {
    matches!(given, DataType::Timestamp(..) | DataType::Date32).then(time_type)
}

fn interval(given: &DataType) -> Option<DataType> {
    let wanted = DataType::Interval(IntervalUnit::MonthDayNano);
    matches!(given, DataType::Interval(_)).then_some(wanted)
}

impl AggregateUDFImpl for TimeSeries {
    fn name(&self) -> &str {
        self.function.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match self.arguments(given) {
            Some(wanted) => Ok(wanted),
            None => {
                let given: Vec<String> = given.iter().map(ToString::to_string).collect();
                let (name, wanted) = (self.function.name, self.function.arguments);
                plan_err!("`{name}` takes ({wanted}), but was given ({})", given.join(", "))
            }
        }
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.name {
            Name::First | Name::Last => arguments[0].clone(),
            Name::Changes | Name::FilledSlots => DataType::Int64,
            Name::Seen => DataType::Int64,
            Name::Histogram => list_of(DataType::Int64),
            Name::Buckets => buckets_type(),
            name if name.resamples() => resampled_type(),
            Name::PartsHeld | Name::PartsStraight => parts_type(),
            _ => DataType::Float64,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let value = args.input_fields[0].data_type();
        let types = match self.name {
            Name::First | Name::Last => vec![DataType::Int64, value.clone()],
            Name::Delta => {
                vec![DataType::Int64, DataType::Float64, DataType::Int64, DataType::Float64]
            }
            Name::FilledSlots | Name::Histogram | Name::Buckets => vec![list_of(DataType::Int64)],
            Name::ExpectedRatio | Name::Seen => vec![DataType::Int64; 3],
            Name::Quantile => {
                let lists = [list_of(DataType::Int32), list_of(DataType::Int64)];
                lists.into_iter().chain([DataType::Float64, DataType::Float64]).collect()
            }
            name => {
                let mut types = vec![list_of(DataType::Int64), list_of(value.clone())];
                let with_range = name.resamples() && args.input_fields.len() > 3;
                types.extend(vec![DataType::Int64; 1 + usize::from(with_range)]);
                types
            }
        };
        let field = |(i, t): (usize, DataType)| -> FieldRef {
            Arc::new(Field::new(format_state_name(args.name, &format!("state{i}")), t, true))
        };
        Ok(types.into_iter().enumerate().map(field).collect())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(self.plan(&args)?.single())
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(self.plan(&args)?.groups())
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}
