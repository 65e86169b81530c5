//! Comparisons of numbers with texts, which a planner makes possible by converting one of them.

use std::ops::ControlFlow;

use datafusion::common::DFSchema;
use datafusion::logical_expr::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{ExprSchemable, Operator};
use datafusion::sql::parser::{DFParser, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, ExprWithAlias, SelectItem, SetExpr, Statement, Value, Visit, Visitor,
};

use arrow::datatypes::{DataType, SchemaRef};

use super::{STATE, df_schema, parse};

/// A comparison of a number with a text that is no literal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mixed {
    /// How SQL writes it.
    pub shown: String,
    /// Both are compared as texts, not as numbers.
    pub as_text: bool,
}

/// Such comparisons in an expression over `schema`; nothing of what is no SQL expression.
pub(crate) fn mixed(text: &str, schema: &SchemaRef) -> Vec<Mixed> {
    let (Ok(ast), Ok(schema)) = (parse(text), df_schema(schema)) else { return Vec::new() };
    let mut found = Comparisons { schema, found: Vec::new() };
    let _ = ast.expr.visit(&mut found);
    found.found
}

struct Comparisons {
    schema: DFSchema,
    found: Vec<Mixed>,
}

impl Comparisons {
    fn pair(&mut self, one: &Expr, other: &Expr, whole: &Expr) {
        let (Some(a), Some(b)) = (self.type_of(one), self.type_of(other)) else { return };
        let text = match (a.is_numeric(), b.is_numeric()) {
            (true, false) if b.is_string() => other,
            (false, true) if a.is_string() => one,
            _ => return,
        };
        if is_literal(text) {
            return;
        }
        let compared = BinaryTypeCoercer::new(&a, &Operator::Eq, &b).get_input_types();
        let Ok((compared, _)) = compared else { return };
        self.found.push(Mixed { shown: whole.to_string(), as_text: !compared.is_numeric() });
    }

    /// The type of a part, if it can be planned by itself.
    fn type_of(&self, expr: &Expr) -> Option<DataType> {
        let alone = ExprWithAlias { expr: expr.clone(), alias: None };
        let logical = STATE.create_logical_expr_from_sql_expr(alone, &self.schema).ok()?;
        logical.get_type(&self.schema).ok()
    }
}

impl Visitor for Comparisons {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        use BinaryOperator as B;
        match expr {
            Expr::BinaryOp {
                left,
                op: B::Eq | B::NotEq | B::Lt | B::LtEq | B::Gt | B::GtEq,
                right,
            }
            | Expr::IsDistinctFrom(left, right)
            | Expr::IsNotDistinctFrom(left, right) => self.pair(left, right, expr),
            Expr::Between { expr: inner, low, high, .. } => {
                self.pair(inner, low, expr);
                self.pair(inner, high, expr);
            }
            Expr::InList { expr: inner, list, .. } => {
                list.iter().for_each(|value| self.pair(inner, value, expr));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn is_literal(expr: &Expr) -> bool {
    match expr {
        Expr::Value(v) => matches!(v.value, Value::SingleQuotedString(_)),
        Expr::Nested(inner) => is_literal(inner),
        _ => false,
    }
}

/// Whether queries have to put the name of a column into double quotes, since it is a word of SQL.
pub(crate) fn is_reserved(name: &str) -> bool {
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return false;
    }
    let query = format!(
        "SELECT device, {name}, {name} FROM t WHERE {name} = 1 GROUP BY {name} ORDER BY {name}"
    );
    let Ok(mut statements) = DFParser::parse_sql(&query) else { return true };
    let Some(DfStatement::Statement(statement)) = statements.pop_front() else { return true };
    let Statement::Query(query) = *statement else { return true };
    let SetExpr::Select(select) = *query.body else { return true };
    let is_name = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(Expr::Identifier(found)) => found.value == name,
        _ => false,
    };
    select.projection.len() != 3 || !select.projection[1..].iter().all(is_name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[test]
    fn numbers_that_are_compared_with_texts_are_found() {
        let column = |name: &str, is| Field::new(name, is, true);
        let fields = vec![
            column("v", DataType::Float64),
            column("n", DataType::Int64),
            column("s", DataType::Utf8),
        ];
        let schema = Arc::new(Schema::new(fields));
        for (text, wanted) in [
            ("v < s", &["v < s"][..]),
            ("v > 1 AND (s = n OR s <> 'x')", &["s = n"]),
            ("s >= 5", &["s >= 5"]),
            ("s IN (1, 2)", &["s IN (1, 2)", "s IN (1, 2)"]),
            ("v BETWEEN n AND s", &["v BETWEEN n AND s"]),
            ("avg(v) FILTER (WHERE lower(s) = n)", &["lower(s) = n"]),
            ("v = '5'", &[]),
            ("v < CAST(s AS DOUBLE) OR v < n", &[]),
            ("v < ", &[]),
        ] {
            let found = mixed(text, &schema);
            let shown: Vec<&str> = found.iter().map(|m| m.shown.as_str()).collect();
            assert_eq!(shown, wanted, "{text}");
        }
    }

    #[test]
    fn what_is_told_of_a_comparison_is_what_it_does() {
        let fields =
            vec![Field::new("v", DataType::Float64, true), Field::new("s", DataType::Utf8, true)];
        let schema = Arc::new(Schema::new(fields));
        let df = df_schema(&schema).unwrap();
        let whole = super::super::logical(parse("v < s").unwrap(), &df).unwrap().to_string();
        let as_text = whole.contains("CAST(v AS Utf8");
        assert_eq!(mixed("v < s", &schema)[0].as_text, as_text, "{whole}");
    }

    #[test]
    fn words_of_sql_are_told_from_names() {
        for name in ["top", "order", "select", "group", "null", "true", "current_date"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in
            ["temperature", "time", "rows", "value", "n", "status", "level", "count", "Ab", "a b"]
        {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
