//! `count(DISTINCT (a, b))` in little memory.
//!
//! DataFusion keeps each distinct value that has parts (a struct, a list) as a slice of the batch
//! that it came in, and counts the whole batch as its memory: a few thousand of them are beyond any
//! limit. So such a value is counted as bytes instead, of which equal values have the same.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, internal_err};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// Has `count` of distinct values with parts count bytes.
#[derive(Debug)]
pub(super) struct CountBytes;

impl FunctionRewrite for CountBytes {
    fn name(&self) -> &'static str {
        "count_bytes"
    }

    fn rewrite(
        &self,
        expr: Expr,
        schema: &DFSchema,
        _: &ConfigOptions,
    ) -> DfResult<Transformed<Expr>> {
        let Expr::AggregateFunction(AggregateFunction { func, mut params }) = expr else {
            return Ok(Transformed::no(expr));
        };
        let counts = func.name() == "count" && params.distinct;
        let mut changed = false;
        if let ([argument], true) = (&mut params.args[..], counts)
            && argument.get_type(schema).is_ok_and(|kind| can_be_bytes(&kind))
        {
            let bytes = ScalarUDF::from(Bytes { signature: Signature::any(1, PURE) });
            *argument = bytes.call(vec![argument.clone()]);
            changed = true;
        }
        let expr = Expr::AggregateFunction(AggregateFunction { func, params });
        Ok(Transformed::new_transformed(expr, changed))
    }
}

const PURE: Volatility = Volatility::Immutable;

fn can_be_bytes(kind: &DataType) -> bool {
    kind.is_nested() && RowConverter::supports_fields(&[SortField::new(kind.clone())])
}

/// A value as bytes; nothing of nothing.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bytes {
    signature: Signature,
}

impl ScalarUDFImpl for Bytes {
    fn name(&self) -> &'static str {
        "bytes_of_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Binary)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let [values] = columns.as_slice() else {
            return internal_err!("{} takes one argument", self.name());
        };
        let converter = RowConverter::new(vec![SortField::new(values.data_type().clone())])?;
        let bytes = converter.convert_columns(std::slice::from_ref(values))?.try_into_binary()?;
        let (offsets, data, _) = bytes.into_parts();
        let bytes: ArrayRef = Arc::new(BinaryArray::new(offsets, data, values.logical_nulls()));
        Ok(ColumnarValue::Array(bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::testing::{lines, local, many, spec};
    use crate::{Session, TableWriter};

    #[tokio::test]
    async fn distinct_values_with_parts_are_counted_in_little_memory() {
        let (_folder, store) = local();
        let spec = spec("t", &many(0, 1));
        let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        writer.append(many(0, 15_000), 1).await.unwrap();
        writer.commit(1).await.unwrap();
        let session = Session::over(store.clone(), 64 << 20).unwrap();
        for (counted, wanted) in [
            ("(device, time)", 15_000),
            ("struct(device, value % 2)", 14),
            ("[device, device]", 7),
            ("CASE WHEN value < 2 THEN NULL ELSE struct(device, value % 3) END", 21),
            ("struct(device, [value % 2], struct(value % 3 = 0, NULL))", 28),
            ("struct(device, CASE WHEN value < 2 THEN NULL ELSE value % 2 END)", 16),
        ] {
            for beside in ["", ", count(*) AS n", ", sum(value) AS n"] {
                let sql = format!("SELECT count(DISTINCT {counted}) AS d{beside} FROM plant.t");
                let found = session.sql(&sql).await.unwrap().collect().await;
                let found = found.unwrap_or_else(|e| panic!("{sql}: {e}"));
                let shown = arrow::util::display::array_value_to_string(&found[0]["d"], 0);
                assert_eq!(shown.unwrap(), wanted.to_string(), "{sql}");
            }
        }
        let counted = "count(DISTINCT struct(value % 4, device))";
        let grouped = format!(
            "SELECT device, count(*), {counted} FROM plant.t GROUP BY device HAVING {counted} > 3 \
             ORDER BY 1"
        );
        let found = lines(&store, &grouped).await;
        assert_eq!((found.len(), found[0].as_str()), (7, "device-0 2143 4"));
        let named = session.sql("SELECT count(DISTINCT (device, 1)) FROM plant.t").await.unwrap();
        let named = named.collect().await.unwrap();
        assert!(named[0].schema().field(0).name().starts_with("count(DISTINCT struct("));
    }
}
