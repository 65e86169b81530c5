//! From SQL text in a configuration to expressions that operators evaluate.
//!
//! Everything that could make an expression fail as a whole is found here, as a [`PlanProblem`]
//! for the person who wrote it: what is left at run time are single rows that cannot be evaluated
//! (a division by zero, say). Names are case-sensitive as written, because payload fields are.
//! Nothing here may let a clock, a random number or another table into an expression: a pipeline
//! is a pure function of its plan and its journal.

mod compared;
mod inspect;
mod keeping;
mod mixed;
pub mod precedence;
mod times;
mod types;
mod window;

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr as LogicalExpr, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast::ExprWithAlias;
use tidegate_operators::aggregate::time_series;
use tidegate_operators::parts;
use tidegate_operators::spec::Expr;

pub(crate) use compared::compared;
use inspect::{Inspection, Place};
pub(crate) use keeping::keeping;
pub(crate) use mixed::{is_reserved, mixed};
pub use window::{PlannedWindow, plan_window};

/// Why an expression cannot be used, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PlanProblem {
    /// What is wrong, without a full stop.
    pub message: String,
    /// What to write instead, if that can be guessed.
    pub hint: Option<String>,
}

impl PlanProblem {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps what a person can use of a planner's error: its first line, without its class.
    fn from_planner(error: &DataFusionError) -> Self {
        let text = error.strip_backtrace();
        let mut text = text.lines().next().unwrap_or_default().trim();
        for prefix in [
            "Error during planning: ",
            "SQL error: ",
            "Schema error: ",
            "This feature is not implemented: ",
            "Optimizer rule 'simplify_expressions' failed",
            "Execution error: ",
            "Arrow error: ",
            "Cast error: ",
            "type_coercion",
            "caused by",
        ] {
            text = text.trim_start_matches(prefix).trim();
        }
        // A list of all signatures that did not fit ends with the most general one.
        let text = text.rsplit("Error during planning: ").next().unwrap_or(text);
        let text = text.split(" (DataType: ").next().unwrap_or(text);
        let text = ["ParserError(\"", "TokenizerError(\""]
            .iter()
            .find_map(|p| text.strip_prefix(p))
            .unwrap_or(text);
        let text = text.strip_suffix("\")").unwrap_or(text);
        Self::new(text.trim_end_matches('.'))
    }
}

/// Plans an expression over the columns of one row.
///
/// With `want`, the result has exactly that type (numbers are widened, nothing else is converted);
/// without, it has a type that a column of an edge can have: integers become int64, floats
/// float64, text Utf8, timestamps microseconds in UTC.
///
/// # Errors
/// The first problem found, see [`PlanProblem`].
pub fn plan_scalar(
    text: &str,
    schema: &SchemaRef,
    want: Option<&DataType>,
) -> Result<Expr, PlanProblem> {
    let ast = parse(text)?;
    let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    Inspection::of(&ast.expr)?.check(&STATE, &columns, Place::Scalar)?;
    let df_schema = df_schema(schema)?;
    let logical = types::conform(logical(ast, &df_schema)?, &df_schema, want)?;
    physical(logical, &df_schema)
}

/// Names of the columns that an expression reads, in order of first use, without knowing a schema.
///
/// # Errors
/// The text is no SQL expression, or contains a subquery.
pub fn columns_read(text: &str) -> Result<Vec<String>, PlanProblem> {
    Ok(Inspection::of(&parse(text)?.expr)?.column_names())
}

/// Functions and parser options of pipeline expressions. Built once: it holds no session data.
static STATE: LazyLock<SessionState> = LazyLock::new(|| {
    let mut config = SessionConfig::new();
    let parser = &mut config.options_mut().sql_parser;
    parser.enable_ident_normalization = false;
    parser.map_string_types_to_utf8view = false;
    let date_part = parts::date_part(datafusion::functions::datetime::date_part());
    let mut state = SessionStateBuilder::new()
        .with_config(config)
        .with_expr_planners(vec![parts::extract(Arc::clone(&date_part))])
        .with_default_features()
        .build();
    state.register_udf(date_part).expect("a session takes any function");
    for function in time_series() {
        state.register_udaf(function).expect("a session takes any aggregate");
    }
    state
});

fn parse(text: &str) -> Result<ExprWithAlias, PlanProblem> {
    if text.trim().is_empty() {
        return Err(PlanProblem::new("the expression is empty"));
    }
    let dialect = STATE.config_options().sql_parser.dialect;
    let mut ast = STATE.sql_to_expr_with_alias(text, &dialect).map_err(|e| not_sql(&e))?;
    precedence::regroup(&mut ast);
    match &ast.alias {
        Some(alias) => Err(PlanProblem::new(format!("`AS {alias}` is not used here"))
            .hint("the name of a column is the key that the expression is assigned to")),
        None => Ok(ast),
    }
}

fn not_sql(error: &DataFusionError) -> PlanProblem {
    let found = PlanProblem::from_planner(error).message;
    let problem = PlanProblem::new(format!("not a SQL expression: {found}"));
    match found.contains("found: EOF") {
        true => problem.hint("the expression ends too early"),
        false => problem,
    }
}

fn df_schema(schema: &SchemaRef) -> Result<DFSchema, PlanProblem> {
    DFSchema::try_from(Arc::clone(schema)).map_err(|e| PlanProblem::from_planner(&e))
}

/// Plans, makes types match and computes constants.
fn logical(ast: ExprWithAlias, schema: &DFSchema) -> Result<LogicalExpr, PlanProblem> {
    let plan = || {
        let expr = STATE.create_logical_expr_from_sql_expr(ast, schema)?;
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(schema.clone()))
            .with_config_options(Arc::clone(STATE.config_options()))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let expr = simplifier.coerce(expr, schema)?;
        expr.get_type(schema)?;
        simplifier.simplify(expr)
    };
    plan().map_err(|e| PlanProblem::from_planner(&e))
}

fn physical(expr: LogicalExpr, schema: &DFSchema) -> Result<Expr, PlanProblem> {
    STATE.create_physical_expr(expr, schema).map_err(|e| PlanProblem::from_planner(&e))
}

/// The most similar name, if one is similar enough to be meant.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.cmp(x)))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests;
