//! What the columns of a result are called: the text of the query, where DataFusion would show its
//! own form of an expression.
//!
//! This is done to the result and not to the query, so nothing that a query may refer to changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, SelectItem, SetExpr, Statement as SqlStatement};

use crate::Result;

/// The headings that a query gives to its columns.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Headings {
    /// Those of the first columns; `None` where the column's own name is right.
    first: Vec<Option<String>>,
    /// Those of the last ones, if there are columns between whose number is not known (`*`).
    last: Option<Vec<Option<String>>>,
}

impl Headings {
    /// Those of the outermost SELECT of a query, of its first one if it combines several.
    pub(crate) fn of(statement: &Statement) -> Self {
        let Statement::Statement(statement) = statement else { return Self::default() };
        let SqlStatement::Query(query) = statement.as_ref() else { return Self::default() };
        let mut body = query.body.as_ref();
        let select = loop {
            body = match body {
                SetExpr::Select(select) => break select,
                SetExpr::Query(inner) => inner.body.as_ref(),
                SetExpr::SetOperation { left, .. } => left.as_ref(),
                _ => return Self::default(),
            };
        };
        let items = &select.projection;
        let is_one = |item: &&SelectItem| {
            matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. })
        };
        let first: Vec<_> = items.iter().take_while(is_one).map(heading).collect();
        let last = (first.len() < items.len()).then(|| {
            let mut last: Vec<_> = items.iter().rev().take_while(is_one).map(heading).collect();
            last.reverse();
            last
        });
        Self { first, last }
    }

    /// The schema of the result with them. Where columns are not those that were counted on, or two
    /// would be called the same, it stays as it is.
    pub(crate) fn over(&self, schema: &SchemaRef) -> SchemaRef {
        let Some(names) = self.names(schema) else { return Arc::clone(schema) };
        let mut fields = Vec::new();
        for (field, name) in schema.fields().iter().zip(names) {
            fields.push(field.as_ref().clone().with_name(name));
        }
        Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
    }

    /// Rows of the result with them.
    pub(crate) fn over_rows(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let (schema, columns) = (self.over(rows.schema_ref()), rows.columns().to_vec());
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }

    fn names(&self, schema: &SchemaRef) -> Option<Vec<String>> {
        let count = schema.fields().len();
        let between = match &self.last {
            None => (self.first.len() == count).then_some(0)?,
            Some(last) => count.checked_sub(self.first.len() + last.len())?,
        };
        let unknown = std::iter::repeat_n(&None, between);
        let headings = self.first.iter().chain(unknown).chain(self.last.iter().flatten());
        let named = |(heading, field): (&Option<String>, &FieldRef)| {
            heading.as_ref().unwrap_or_else(|| field.name()).clone()
        };
        let names: Vec<String> = headings.zip(schema.fields()).map(named).collect();
        let different: BTreeSet<&String> = names.iter().collect();
        (different.len() == count).then_some(names)
    }
}

/// A column keeps its name, and what has one from the query keeps that.
fn heading(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => None,
        SelectItem::UnnamedExpr(expr) => Some(expr.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow::datatypes::{DataType, Field};

    use super::*;
    use crate::session::parse;

    /// The headings of a result whose columns have the names `0`, `1`, ...
    fn shown(sql: &str, columns: usize) -> Vec<String> {
        let statement = parse(sql).unwrap().pop().unwrap();
        let field = |i: usize| Field::new(i.to_string(), DataType::Int64, true);
        let schema = Arc::new(Schema::new((0..columns).map(field).collect::<Vec<_>>()));
        let schema = Headings::of(&statement).over(&schema);
        schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    #[test]
    fn expressions_are_called_as_the_query_has_them() {
        for (sql, wanted) in [
            ("SELECT 1", vec!["1"]),
            ("SELECT a, t.b, c AS d, a + 1 FROM t", vec!["0", "1", "2", "a + 1"]),
            ("SELECT count(*), a ->> 'x' FROM t", vec!["count(*)", "a ->> 'x'"]),
            ("SELECT a + 1, *, b + 1 FROM t", vec!["a + 1", "1", "2", "b + 1"]),
            ("SELECT a + 1, *, b + 1, t.* FROM t", vec!["a + 1", "1", "2", "3", "4"]),
            ("SELECT *, b + 1 FROM t", vec!["0", "b + 1"]),
            ("WITH t AS (SELECT 1 AS a) SELECT a * 2 FROM t", vec!["a * 2"]),
            ("(SELECT a + 1 FROM t) UNION SELECT b FROM t ORDER BY 1", vec!["a + 1"]),
        ] {
            assert_eq!(shown(sql, wanted.len()), wanted, "{sql}");
        }
    }

    #[test]
    fn names_stay_where_they_cannot_be_told() {
        for (sql, columns) in [
            ("SELECT a + 1, *, b + 1 FROM t", 1),
            ("SELECT unnest(a) FROM t", 2),
            ("VALUES (1)", 1),
            ("EXPLAIN SELECT 1", 1),
        ] {
            let own: Vec<String> = (0..columns).map(|i| i.to_string()).collect();
            assert_eq!(shown(sql, columns), own, "{sql}");
        }
        let statement = parse("SELECT a + 1, b FROM t").unwrap().pop().unwrap();
        let field = |name: &str| Field::new(name, DataType::Int64, true);
        let schema = Arc::new(Schema::new(vec![field("t.a + 1"), field("a + 1")]));
        assert_eq!(Headings::of(&statement).over(&schema), schema);
    }
}
