//! The time of the reading as an argument of the aggregates that need it, where it is left out.
//!
//! This is done in the syntax tree: the planner looks at the types of some calls at once.

use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::logical_expr::ExprSchemable;
use datafusion::sql::sqlparser::ast::{
    Expr, ExprWithAlias, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, VisitMut,
    VisitorMut,
};
use tidegate_operators::aggregate::takes_time;

use super::STATE;

/// Adds the column `time` as the second argument to calls in `expr` that take a time, unless they
/// name one that the rows of `input` have. (A bound of the window is none of theirs.)
pub(super) fn add_times(expr: &mut Expr, time: &str, input: &DFSchema) {
    let done = expr.visit(&mut Times { time, input });
    debug_assert!(done.is_continue(), "nothing stops this walk");
}

struct Times<'a> {
    time: &'a str,
    input: &'a DFSchema,
}

impl VisitorMut for Times<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && takes_time(&function.name.to_string().to_lowercase())
            && let FunctionArguments::List(list) = &mut function.args
            && !list.args.get(1).is_some_and(|argument| self.is_time(argument))
        {
            let time = FunctionArgExpr::Expr(Expr::Identifier(Ident::new(self.time)));
            list.args.insert(1.min(list.args.len()), FunctionArg::Unnamed(time));
        }
        ControlFlow::Continue(())
    }
}

impl Times<'_> {
    fn is_time(&self, argument: &FunctionArg) -> bool {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else { return false };
        let ast = ExprWithAlias { expr: expr.clone(), alias: None };
        let planned = STATE.create_logical_expr_from_sql_expr(ast, self.input);
        let data_type = planned.and_then(|e| e.get_type(self.input));
        data_type.is_ok_and(|t| matches!(t, DataType::Timestamp(..)))
    }
}
