//! The types that columns of an edge can have, and how the result of an expression gets one.
//!
//! Few types on purpose: every sink, detector and JSON form has to carry each of them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::DFSchema;
use datafusion::logical_expr::{Expr, ExprSchemable};
use tidegate_operators::spec::time_type;

use super::PlanProblem;

/// Gives the result of `expr` the type `want`, or, without, the column type of its kind.
pub(super) fn conform(
    expr: Expr,
    schema: &DFSchema,
    want: Option<&DataType>,
) -> Result<Expr, PlanProblem> {
    let planner = |e| PlanProblem::from_planner(&e);
    let is = expr.get_type(schema).map_err(planner)?;
    let target = match (want, column_type(&is)) {
        (Some(want), _) if is == DataType::Null => want.clone(),
        (None, None) => {
            let problem = PlanProblem::new(format!("a column cannot be {}", people(&is)));
            return Err(match is {
                DataType::Interval(_) | DataType::Duration(_) => {
                    problem.hint("make it a number, e.g. of seconds: date_part('epoch', ...)")
                }
                DataType::Null => problem.hint("give it a type: CAST(NULL AS DOUBLE)"),
                _ => problem.hint("convert it with CAST(... AS ...)"),
            });
        }
        (None, Some(target)) => target,
        (Some(want), Some(column)) if column == *want => column,
        (Some(DataType::Float64), Some(DataType::Int64 | DataType::Decimal128(..))) => {
            DataType::Float64
        }
        (Some(want), _) => return Err(mismatch(want, &is)),
    };
    if is == target {
        return Ok(expr);
    }
    expr.cast_to(&target, schema).map_err(planner)
}

fn mismatch(want: &DataType, is: &DataType) -> PlanProblem {
    let problem = PlanProblem::new(format!("must be {}, but is {}", people(want), people(is)));
    match want {
        DataType::Boolean => problem.hint("write a condition such as `temperature > 8`"),
        _ => problem,
    }
}

/// The column type that holds every value of a type, if there is one.
fn column_type(data_type: &DataType) -> Option<DataType> {
    use DataType as T;
    Some(match data_type {
        T::Boolean => T::Boolean,
        T::Int8 | T::Int16 | T::Int32 | T::Int64 => T::Int64,
        T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => T::Int64,
        T::Float16 | T::Float32 | T::Float64 => T::Float64,
        T::Utf8 | T::LargeUtf8 | T::Utf8View => T::Utf8,
        T::Timestamp(..) => time_type(),
        T::Date32 | T::Decimal128(..) => data_type.clone(),
        T::List(item) | T::LargeList(item) | T::ListView(item) | T::FixedSizeList(item, _) => {
            T::List(Arc::new(Field::new_list_field(column_type(item.data_type())?, true)))
        }
        T::Struct(fields) if !fields.is_empty() => {
            let part =
                |f: &Arc<Field>| Some(Field::new(f.name(), column_type(f.data_type())?, true));
            T::Struct(fields.iter().map(part).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn is_list(data_type: &DataType) -> bool {
    use DataType as T;
    matches!(data_type, T::List(_) | T::LargeList(_) | T::ListView(_) | T::FixedSizeList(..))
}

fn people(data_type: &DataType) -> String {
    use DataType as T;
    match data_type {
        T::Boolean => "true or false".into(),
        T::Float64 => "a number".into(),
        t if t.is_integer() => "a whole number".into(),
        t if t.is_floating() => "a number".into(),
        T::Utf8 | T::LargeUtf8 | T::Utf8View => "text".into(),
        T::Timestamp(..) => "a time".into(),
        T::Date32 | T::Date64 => "a date".into(),
        T::Interval(_) | T::Duration(_) => "a length of time".into(),
        T::Null => "NULL without a type".into(),
        t if is_list(t) => "a list".into(),
        T::Struct(_) => "a group of values".into(),
        other => format!("of type {other}"),
    }
}
