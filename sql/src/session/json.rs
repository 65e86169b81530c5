//! Parts of a text that is JSON, such as `keys` of `system.alerts`: names and meaning are those of
//! the crate datafusion-functions-json.
//!
//! `json_get_str(json, key, ...)` and its like go from one key (or place in a list, from 0) to the
//! next; what is not there, or of another type, or no JSON, is null. `json ->> key` is
//! `json_as_text`, which gives everything as text.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, cast::AsArray,
};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{DFSchema, plan_err};
use datafusion::error::Result as DfResult;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, lit,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use serde_json::value::RawValue;

/// Makes all of them known.
pub(super) fn register(registry: &mut dyn FunctionRegistry) -> DfResult<()> {
    for get in Get::ALL {
        registry.register_udf(Arc::new(get.function()))?;
    }
    registry.register_expr_planner(Arc::new(LongArrow))
}

/// `->>`
#[derive(Debug)]
struct LongArrow;

impl ExprPlanner for LongArrow {
    fn plan_binary_op(
        &self,
        expr: RawBinaryExpr,
        _: &DFSchema,
    ) -> DfResult<PlannerResult<RawBinaryExpr>> {
        Ok(match expr.op {
            BinaryOperator::LongArrow => PlannerResult::Planned(as_text(expr.left, expr.right)),
            _ => PlannerResult::Original(expr),
        })
    }
}

/// `json ->> key`. To the parser comparisons and `||` bind more closely: it reads
/// `json ->> 'a' = 'b'` as `json ->> ('a' = 'b')`, which nobody means.
fn as_text(mut json: Expr, mut key: Expr) -> Expr {
    // Likewise `a ->> 'x' = b ->> 'y'` as `(a ->> 'x' = b) ->> 'y'`: no comparison is JSON.
    if let Expr::BinaryExpr(binary) = &mut json
        && binary.op.supports_propagation()
    {
        let last = std::mem::replace(binary.right.as_mut(), lit(false));
        *binary.right = as_text(last, key);
        return json;
    }
    let inner = match &mut key {
        Expr::BinaryExpr(binary)
            if binary.op.supports_propagation() || binary.op == Operator::StringConcat =>
        {
            &mut binary.left
        }
        Expr::Like(like) | Expr::SimilarTo(like) => &mut like.expr,
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => inner,
        Expr::InList(list) => &mut list.expr,
        Expr::Between(between) => &mut between.expr,
        _ => return Get::Text.function().call(vec![json, key]),
    };
    let first = std::mem::replace(inner.as_mut(), lit(false));
    **inner = as_text(json, first);
    key
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Get {
    Str,
    Int,
    Float,
    Bool,
    Text,
    Contains,
}

impl Get {
    const ALL: [Self; 6] =
        [Self::Str, Self::Int, Self::Float, Self::Bool, Self::Text, Self::Contains];

    fn name(self) -> &'static str {
        match self {
            Self::Str => "json_get_str",
            Self::Int => "json_get_int",
            Self::Float => "json_get_float",
            Self::Bool => "json_get_bool",
            Self::Text => "json_as_text",
            Self::Contains => "json_contains",
        }
    }

    fn function(self) -> ScalarUDF {
        let signature = Signature::user_defined(Volatility::Immutable);
        ScalarUDF::from(JsonFunction { get: self, signature })
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Str | Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Bool | Self::Contains => DataType::Boolean,
        }
    }

    /// A column of what was found in each row.
    fn column<'a>(self, found: impl Iterator<Item = Option<&'a RawValue>>) -> ArrayRef {
        match self {
            Self::Str => Arc::new(StringArray::from_iter(found.map(|v| string(v?)))),
            Self::Int => Arc::new(Int64Array::from_iter(found.map(|v| v?.get().parse().ok()))),
            Self::Float => Arc::new(Float64Array::from_iter(found.map(|v| float(v?)))),
            Self::Bool => Arc::new(BooleanArray::from_iter(found.map(|v| v?.get().parse().ok()))),
            Self::Text => Arc::new(StringArray::from_iter(found.map(|v| match v?.get() {
                "null" => None,
                other => string(v?).or_else(|| Some(other.to_owned())),
            }))),
            Self::Contains => Arc::new(BooleanArray::from_iter(found.map(|v| Some(v.is_some())))),
        }
    }
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The nearest one to what is written; as serde_json reads numbers, it can be the one beside it.
fn float(value: &RawValue) -> Option<f64> {
    value.get().parse().ok().filter(|v: &f64| v.is_finite())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonFunction {
    get: Get,
    signature: Signature,
}

impl ScalarUDFImpl for JsonFunction {
    fn name(&self) -> &'static str {
        self.get.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(self.get.data_type())
    }

    fn coerce_types(&self, given: &[DataType]) -> DfResult<Vec<DataType>> {
        let is_text = |kind: &DataType| kind.is_string() || kind.is_null();
        let step = |kind: &DataType| match kind {
            kind if is_text(kind) => Some(DataType::Utf8),
            kind if kind.is_integer() => Some(DataType::Int64),
            _ => None,
        };
        let steps: Option<Vec<DataType>> = given.iter().skip(1).map(step).collect();
        match (given, steps) {
            ([json, _, ..], Some(steps)) if is_text(json) => {
                Ok([DataType::Utf8].into_iter().chain(steps).collect())
            }
            _ => {
                let given: Vec<String> = given.iter().map(ToString::to_string).collect();
                let (name, given) = (self.name(), given.join(", "));
                plan_err!("`{name}` takes (json, key, ...), but was given ({given})")
            }
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let arrays = args.args.iter().map(|arg| arg.to_array(args.number_rows));
        let arrays: Vec<ArrayRef> = arrays.collect::<DfResult<_>>()?;
        let Some((json, steps)) = arrays.split_first() else {
            return plan_err!("`{}` takes (json, key, ...)", self.name());
        };
        let json = json.as_string::<i32>();
        let found = (0..args.number_rows).map(|row| {
            let text = json.is_valid(row).then(|| json.value(row))?;
            let whole: &RawValue = serde_json::from_str(text).ok()?;
            steps.iter().try_fold(whole, |value, step| part(value, step, row))
        });
        Ok(ColumnarValue::Array(self.get.column(found)))
    }
}

/// What a value has under a key, or in a place.
fn part<'a>(value: &'a RawValue, step: &ArrayRef, row: usize) -> Option<&'a RawValue> {
    if step.is_null(row) {
        return None;
    }
    if step.data_type() == &DataType::Utf8 {
        let members: HashMap<String, &RawValue> = serde_json::from_str(value.get()).ok()?;
        return members.get(step.as_string::<i32>().value(row)).copied();
    }
    let items: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
    let place = usize::try_from(step.as_primitive::<Int64Type>().value(row)).ok()?;
    items.get(place).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::Session;
    use crate::testing::{lines, local};

    /// As serde_json reads them by itself, some of these are the ones beside them.
    #[tokio::test]
    async fn numbers_are_those_that_are_written() {
        let (_folder, store) = local();
        let json = r#"'{"a":9.779166666666667,"b":[20.006999969482425,1e300]}'"#;
        for (asked, wanted) in [
            ("json_get_float(j, 'a')", "9.779166666666667"),
            ("j ->> 'a'", "9.779166666666667"),
            ("j ->> 'b'", "[20.006999969482425,1e300]"),
            ("json_get_float(j, 'b', 0)", "20.006999969482425"),
            ("json_get_float(j, 'b', 1)", "1e300"),
            ("json_get_float('{\"x\":1e999}', 'x')", ""),
        ] {
            let sql = format!("SELECT {asked} FROM (VALUES ({json})) AS t(j)");
            assert_eq!(lines(&store, &sql).await, [wanted], "{asked}");
        }
    }

    #[tokio::test]
    async fn parts_of_json_are_found_and_what_is_not_there_is_null() {
        let (_folder, store) = local();
        let json = r#"'{"device":"d1","n":7,"x":1.5,"on":true,"no":null,"in":{"l":[1,"b"]}}'"#;
        for (asked, wanted) in [
            ("json_get_str(j, 'device')", "d1"),
            ("json_get_str(j, 'n')", ""),
            ("json_get_str(j, 'other')", ""),
            ("json_get_str(j, NULL)", ""),
            ("json_get_int(j, 'n') + 1", "8"),
            ("json_get_int(j, 'x')", ""),
            ("json_get_float(j, 'x')", "1.5"),
            ("json_get_float(j, 'n')", "7.0"),
            ("json_get_bool(j, 'on')", "true"),
            ("json_get_int(j, 'in', 'l', 0)", "1"),
            ("json_get_str(j, 'in', 'l', 1)", "b"),
            ("json_get_str(j, 'in', 'l', -1)", ""),
            ("json_as_text(j, 'in', 'l')", r#"[1,"b"]"#),
            ("json_contains(j, 'no')", "true"),
            ("json_contains(j, 'in', 'm')", "false"),
            ("json_contains('no JSON', 'a')", "false"),
            ("json_get_str(CAST(NULL AS VARCHAR), 'a')", ""),
            ("j ->> 'device' = 'd1' AND j ->> 'n' = '7'", "true"),
            ("j ->> 'device' = j ->> 'device' AND j ->> 'n' <> j ->> 'device'", "true"),
            ("j ->> 'device' IS DISTINCT FROM 'd1' OR j ->> 'n' = '7'", "true"),
            ("j ->> 'no'", ""),
            ("j ->> 'no' IS NULL", "true"),
            ("j ->> 'device' LIKE 'd%'", "true"),
            ("j ->> 'device' IN ('d1', 'd2') OR false", "true"),
            ("NOT j ->> 'in' ->> 'l' <> '[1,\"b\"]'", "true"),
            ("j ->> 'device' || 'x'", "d1x"),
            ("j ->> 'in' ->> 'l' ->> 1", "b"),
        ] {
            let sql = format!("SELECT {asked} FROM (VALUES ({json})) AS t(j)");
            assert_eq!(lines(&store, &sql).await, [wanted], "{asked}");
        }
        let filtered = "SELECT n FROM (VALUES ('{\"a\":\"x\"}', 1), ('{\"a\":\"y\"}', 2), \
                        (NULL, 3)) AS t(j, n) WHERE j->>'a' = 'y'";
        assert_eq!(lines(&store, filtered).await, ["2"]);
        let joined = "SELECT d.room FROM (VALUES ('{\"device\":\"d1\"}')) AS a(keys) JOIN \
                      (VALUES ('d1', 'r1')) AS d(device, room) ON a.keys ->> 'device' = d.device";
        assert_eq!(lines(&store, joined).await, ["r1"]);
        let session = Session::over(store, 1 << 28).unwrap();
        let problem = session.sql("SELECT json_get_str(1, 'a')").await.unwrap_err().to_string();
        let wanted = "`json_get_str` takes (json, key, ...), but was given (whole number, text)";
        assert_eq!(problem, wanted);
    }
}
