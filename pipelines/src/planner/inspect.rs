//! What an expression mentions, found in its syntax tree before any planning.
//!
//! Names and forbidden constructs are checked here and not left to the planner, because here the
//! problem can be told in the words of the person who wrote it, with the nearest known name.

use std::ops::ControlFlow;

use datafusion::execution::SessionState;
use datafusion::logical_expr::Volatility;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArgumentClause, FunctionArguments, Query, Value, Visit,
    Visitor,
};

use tidegate_operators::spec::IS_FINAL;

use super::{PlanProblem, nearest};

/// Where an expression stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Over one row.
    Scalar,
    /// In the `select` of a window: over groups of rows.
    Window,
}

struct Column {
    name: String,
    /// Written in double quotes, as people do who mean text.
    quoted: bool,
}

/// Columns and functions in order of first mention.
#[derive(Default)]
pub(super) struct Inspection {
    columns: Vec<Column>,
    functions: Vec<String>,
}

impl Inspection {
    /// Walks the tree.
    pub(super) fn of(expr: &Expr) -> Result<Self, PlanProblem> {
        let mut found = Self::default();
        match expr.visit(&mut found) {
            ControlFlow::Continue(()) => Ok(found),
            ControlFlow::Break(problem) => Err(problem),
        }
    }

    pub(super) fn column_names(self) -> Vec<String> {
        self.columns.into_iter().map(|c| c.name).collect()
    }

    /// Names in lower case.
    pub(super) fn function_names(self) -> Vec<String> {
        self.functions
    }

    /// Checks every name against what there is.
    pub(super) fn check(
        &self,
        state: &SessionState,
        columns: &[&str],
        place: Place,
    ) -> Result<(), PlanProblem> {
        for name in &self.functions {
            check_function(state, name, place)?;
        }
        self.columns.iter().try_for_each(|c| check_column(c, columns))
    }

    fn function(&mut self, function: &Function) -> Result<(), PlanProblem> {
        let name = function.name.to_string().to_lowercase();
        if function.over.is_some() {
            return Err(PlanProblem::new(format!(
                "`{name}(...) OVER` cannot be used: an expression sees one row or one window"
            ))
            .hint("use a step of type \"window\", or ask over the stored table with SQL"));
        }
        if let FunctionArguments::List(list) = &function.args
            && list.clauses.iter().any(|c| matches!(c, FunctionArgumentClause::OrderBy(_)))
        {
            return Err(PlanProblem::new(format!(
                "ORDER BY inside `{name}(...)` is not supported"
            ))
            .hint(format!(
                "keep the readings in a [[table]]: SQL over it takes `{name}(... ORDER BY ...)`; \
                 in a window `first(x)`, `last(x)` and `resample(x, INTERVAL '1 minute')` go by \
                 the time of the readings"
            )));
        }
        if !self.functions.contains(&name) {
            self.functions.push(name);
        }
        Ok(())
    }

    fn column(&mut self, name: &str, quoted: bool) {
        if !self.columns.iter().any(|c| c.name == name) {
            self.columns.push(Column { name: name.to_string(), quoted });
        }
    }
}

impl Visitor for Inspection {
    type Break = PlanProblem;

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<PlanProblem> {
        ControlFlow::Break(
            PlanProblem::new("a subquery cannot be used: an expression sees only its own row")
                .hint("ask over stored tables with `tidegate sql`"),
        )
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<PlanProblem> {
        match expr {
            Expr::Identifier(i) if i.value.starts_with('@') => ControlFlow::Break(
                PlanProblem::new(format!("`{}`: there are no variables", i.value)),
            ),
            Expr::Identifier(i) => {
                self.column(&i.value, i.quote_style.is_some());
                ControlFlow::Continue(())
            }
            Expr::CompoundIdentifier(parts) => {
                let written: Vec<&str> = parts.iter().map(|p| p.value.as_str()).collect();
                let written = written.join(".");
                let problem = PlanProblem::new(format!("`{written}` is not the name of a column"));
                ControlFlow::Break(problem.hint(
                    "a path in the payload becomes a column in [reading.fields]: \
                     name = { type = ..., field = \"a.b\" }",
                ))
            }
            Expr::BinaryOp { op: BinaryOperator::PGOverlap, .. } => {
                ControlFlow::Break(PlanProblem::new("there is no operator `&&`").hint("write AND"))
            }
            Expr::BinaryOp { left, op: BinaryOperator::StringConcat, .. } if is_no_text(left) => {
                ControlFlow::Break(
                    PlanProblem::new("`||` joins texts, it is not a logical operator")
                        .hint("write OR"),
                )
            }
            Expr::Value(v) if v.to_string().starts_with(['$', '?']) => ControlFlow::Break(
                PlanProblem::new(format!("`{v}`: an expression has no parameters")),
            ),
            Expr::Function(f) => match self.function(f) {
                Ok(()) => ControlFlow::Continue(()),
                Err(problem) => ControlFlow::Break(problem),
            },
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Whether the left side of `||` shows that a logical OR was meant: `a > 3 || b` reads as
/// `a > (3 || b)`.
fn is_no_text(left: &Expr) -> bool {
    use BinaryOperator as B;
    match left {
        Expr::Nested(inner) => is_no_text(inner),
        Expr::BinaryOp { op, .. } => {
            matches!(op, B::Gt | B::Lt | B::GtEq | B::LtEq | B::Eq | B::NotEq)
        }
        Expr::Value(v) => matches!(v.value, Value::Number(..) | Value::Boolean(_)),
        _ => false,
    }
}

/// Columns that windows have if they are asked for, each with the key that does.
const ADDED: [(&str, &str); 5] = [
    ("expected", "quality = true"),
    ("late", "quality = true"),
    ("duplicates", "quality = true"),
    ("complete", "quality = true"),
    (IS_FINAL, "early = \"10s\""),
];

fn check_column(column: &Column, known: &[&str]) -> Result<(), PlanProblem> {
    let name = &column.name;
    if known.contains(&name.as_str()) {
        return Ok(());
    }
    let problem = PlanProblem::new(format!("there is no column `{name}`"));
    let of_windows = known.contains(&"window_start");
    if let Some((_, key)) = ADDED.iter().find(|(added, _)| of_windows && added == name) {
        return Err(problem.hint(format!("`{key}` in the step of the windows adds it")));
    }
    Err(match nearest(name, known.iter().copied()) {
        Some(n) => problem.hint(format!("did you mean `{n}`?")),
        None if column.quoted => problem.hint(format!("text is in single quotes: '{name}'")),
        None => problem.hint(format!("the columns here are: {}", known.join(", "))),
    })
}

fn check_function(state: &SessionState, name: &str, place: Place) -> Result<(), PlanProblem> {
    if let Some(f) = state.scalar_functions().get(name) {
        return match f.signature().volatility {
            Volatility::Immutable => Ok(()),
            Volatility::Stable | Volatility::Volatile => Err(PlanProblem::new(format!(
                "`{name}()` cannot be used: the same readings must give the same result whenever \
                 they are processed"
            ))
            .hint("the columns `time` and `received_time` carry times that are recorded")),
        };
    }
    if state.aggregate_functions().contains_key(name) {
        return match place {
            Place::Window => Ok(()),
            Place::Scalar => {
                Err(PlanProblem::new(format!("`{name}` is an aggregate and needs a group of rows"))
                    .hint("use it in the `select` of a step of type \"window\""))
            }
        };
    }
    if state.window_functions().contains_key(name) {
        return Err(PlanProblem::new(format!("`{name}` needs OVER, which cannot be used")));
    }
    let problem = PlanProblem::new(format!("there is no function `{name}`"));
    Err(match nearest(name, known_functions(state, place)) {
        Some(n) => problem.hint(format!("did you mean `{n}`?")),
        None => problem,
    })
}

#[expect(clippy::disallowed_methods, reason = "the names are sorted below")]
fn known_functions(state: &SessionState, place: Place) -> Vec<&str> {
    let mut known: Vec<&str> = state.scalar_functions().keys().map(String::as_str).collect();
    if place == Place::Window {
        known.extend(state.aggregate_functions().keys().map(String::as_str));
    }
    known.sort_unstable();
    known
}
