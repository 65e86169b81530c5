//! The texts that an expression compares its columns with.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Value, Visit, Visitor};

use super::parse;

/// Columns, each with a text that it is compared with; nothing of what is no SQL expression.
pub(crate) fn compared(text: &str) -> Vec<(String, String)> {
    let mut found = Compared::default();
    if let Ok(ast) = parse(text) {
        let _ = ast.expr.visit(&mut found);
    }
    found.0
}

#[derive(Default)]
struct Compared(Vec<(String, String)>);

impl Compared {
    fn pair(&mut self, one: &Expr, other: &Expr) {
        for (column, value) in [(one, other), (other, one)] {
            if let (Some(column), Some(value)) = (column_of(column), text_of(value)) {
                self.0.push((column.to_owned(), value.to_owned()));
            }
        }
    }
}

impl Visitor for Compared {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::BinaryOp { left, op: BinaryOperator::Eq | BinaryOperator::NotEq, right }
            | Expr::IsDistinctFrom(left, right)
            | Expr::IsNotDistinctFrom(left, right) => self.pair(left, right),
            Expr::InList { expr, list, .. } => list.iter().for_each(|value| self.pair(expr, value)),
            Expr::Case { operand: Some(operand), conditions, .. } => {
                conditions.iter().for_each(|when| self.pair(operand, &when.condition));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn column_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Identifier(name) => Some(name.value.as_str()),
        Expr::Nested(inner) => column_of(inner),
        _ => None,
    }
}

fn text_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(v) => match &v.value {
            Value::SingleQuotedString(text) => Some(text.as_str()),
            _ => None,
        },
        Expr::Nested(inner) => text_of(inner),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_wherever_a_column_is_compared() {
        for (text, wanted) in [
            ("a = 'x'", &[("a", "x")][..]),
            ("'x' <> (a) AND b > 'y'", &[("a", "x")]),
            ("a IN ('x', 'y', b)", &[("a", "x"), ("a", "y")]),
            ("a IS DISTINCT FROM 'x'", &[("a", "x")]),
            ("CASE a WHEN 'x' THEN 1 ELSE 0 END", &[("a", "x")]),
            ("count(*) FILTER (WHERE a = 'x')", &[("a", "x")]),
            ("lower(a) = 'x' OR a = 3", &[]),
            ("a = ", &[]),
        ] {
            let found = compared(text);
            let found: Vec<(&str, &str)> = found.iter().map(|(c, t)| (&**c, &**t)).collect();
            assert_eq!(found, wanted, "{text}");
        }
    }
}
