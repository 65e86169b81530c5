//! The `select` of a window: which aggregate calls it needs, and what is computed from them.
//!
//! Each item is planned on its own, so that a problem belongs to a name. Its aggregate calls are
//! replaced by columns `agg0`, `agg1`, ... of [`WindowSpec::aggregated_schema`]; calls that are
//! equal after planning are computed once for all items.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr as LogicalExpr, ExprSchemable};
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};

use tidegate_operators::aggregate::{create_groups_accumulator, held, ranged};
use tidegate_operators::distinct;
use tidegate_operators::spec::{Clock, Expr, KeyLimits, LatePolicy, Shape, WindowSpec, time_type};

use super::inspect::{Inspection, Place};
use super::times::add_times;
use super::{PlanProblem, STATE, df_schema, logical, nearest, parse, physical, types};

/// What a window computes: the parts of a [`WindowSpec`] that come from SQL.
#[derive(Clone, Debug)]
pub struct PlannedWindow {
    /// See [`WindowSpec::aggregates`].
    pub aggregates: Vec<Arc<AggregateFunctionExpr>>,
    /// See [`WindowSpec::filters`].
    pub filters: Vec<Option<Expr>>,
    /// See [`WindowSpec::select`].
    pub select: Vec<(String, Expr)>,
}

const BOUNDS: [&str; 2] = ["window_start", "window_end"];

/// Plans the items `select` (name, SQL) of a window over `schema`, grouped by the columns `keys`.
/// `time` is the column of event time: aggregates over time take it if they name none. Whether
/// windows end with a reading is for [`Ranged`](tidegate_operators::aggregate::Ranged).
///
/// # Errors
/// All problems, each with the name of the item (or key) that has it.
pub fn plan_window(
    select: &[(String, String)],
    keys: &[String],
    schema: &SchemaRef,
    (time, ends_with_reading): (&str, bool),
) -> Result<PlannedWindow, Vec<(String, PlanProblem)>> {
    let mut problems = key_problems(keys, schema);
    let mut planning = match Planning::new(keys, schema, (time, ends_with_reading)) {
        Ok(planning) => planning,
        Err(problem) => {
            problems.push((String::new(), problem));
            return Err(problems);
        }
    };
    let mut items = Vec::with_capacity(select.len());
    for (name, text) in select {
        match planning.item(text) {
            Ok(expr) => items.push((name, expr)),
            Err(problem) => problems.push((name.clone(), problem)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let aggregated = planning.aggregated_schema();
    let mut planned = Vec::with_capacity(items.len());
    for (name, expr) in items {
        let finished = df_schema(&aggregated)
            .and_then(|df| types::conform(expr, &df, None).and_then(|e| physical(e, &df)));
        match finished {
            Ok(expr) => planned.push((name.clone(), expr)),
            Err(problem) => problems.push((name.clone(), problem)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let Planning { aggregates, filters, .. } = planning;
    Ok(PlannedWindow { aggregates, filters, select: planned })
}

fn key_problems(keys: &[String], schema: &SchemaRef) -> Vec<(String, PlanProblem)> {
    let mut problems = Vec::new();
    for key in keys {
        if schema.index_of(key).is_err() {
            let problem = PlanProblem::new(format!("there is no column `{key}` to group by"));
            let known = schema.fields().iter().map(|f| f.name().as_str());
            problems.push((
                key.clone(),
                match nearest(key, known) {
                    Some(n) => problem.hint(format!("did you mean `{n}`?")),
                    None => problem,
                },
            ));
        } else if BOUNDS.contains(&key.as_str()) || is_aggregate_column(key) {
            problems.push((
                key.clone(),
                PlanProblem::new(format!(
                    "`{key}` cannot be grouped by: the window has a column of its own of that name"
                )),
            ));
        }
    }
    problems
}

fn is_aggregate_column(name: &str) -> bool {
    name.strip_prefix("agg").is_some_and(|n| n.parse::<usize>().is_ok())
}

/// What the items planned so far need.
struct Planning<'a> {
    keys: &'a [String],
    schema: &'a SchemaRef,
    time: &'a str,
    ends_with_reading: bool,
    input: DFSchema,
    /// The input, and the window's bounds if the input has no columns of these names.
    visible: DFSchema,
    columns: Vec<String>,
    calls: Vec<LogicalExpr>,
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    filters: Vec<Option<Expr>>,
}

impl<'a> Planning<'a> {
    fn new(
        keys: &'a [String],
        schema: &'a SchemaRef,
        (time, ends_with_reading): (&'a str, bool),
    ) -> Result<Self, PlanProblem> {
        let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
        for bound in BOUNDS {
            if schema.index_of(bound).is_err() {
                fields.push(Arc::new(Field::new(bound, time_type(), false)));
            }
        }
        let columns = fields.iter().map(|f| f.name().clone()).collect();
        Ok(Self {
            keys,
            schema,
            time,
            ends_with_reading,
            input: df_schema(schema)?,
            visible: df_schema(&Arc::new(Schema::new(fields)))?,
            columns,
            calls: Vec::new(),
            aggregates: Vec::new(),
            filters: Vec::new(),
        })
    }

    /// Plans one item as an expression over the aggregated schema.
    fn item(&mut self, text: &str) -> Result<LogicalExpr, PlanProblem> {
        let mut ast = parse(text)?;
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        Inspection::of(&ast.expr)?.check(&STATE, &columns, Place::Window)?;
        add_times(&mut ast.expr, self.time, &self.input);
        let expr = logical(ast, &self.visible)?;
        let mut problem = None;
        let rewritten = expr.transform_down(|e| {
            let step = match &e {
                LogicalExpr::AggregateFunction(call) => self.aggregate(&e, call).map(Some),
                LogicalExpr::Column(c) => self.outside(&c.name).map(|()| None),
                _ => Ok(None),
            };
            Ok(match step {
                Ok(None) => Transformed::no(e),
                Ok(Some(column)) => Transformed::new(column, true, TreeNodeRecursion::Jump),
                Err(p) => {
                    problem = Some(p);
                    Transformed::new(e, false, TreeNodeRecursion::Stop)
                }
            })
        });
        match problem {
            Some(problem) => Err(problem),
            None => rewritten.map(|t| t.data).map_err(|e| PlanProblem::from_planner(&e)),
        }
    }

    /// What stands for an aggregate call.
    fn aggregate(
        &mut self,
        e: &LogicalExpr,
        call: &AggregateFunction,
    ) -> Result<LogicalExpr, PlanProblem> {
        if let Some(held) = self.held(call)? {
            return Ok(held);
        }
        match self.ranged(call)? {
            Some(ranged) => Ok(ranged),
            None => self.call(e),
        }
    }

    /// What stands for an aggregate whose result can reach to bounds of the window.
    fn ranged(&mut self, call: &AggregateFunction) -> Result<Option<LogicalExpr>, PlanProblem> {
        let args = &call.params.args;
        let has_range = |interval: usize| args.len() > interval + 1;
        let of = |ends| ranged(call.func.name(), ends);
        let Some(ranged) =
            of(false).and_then(|r| of(self.ends_with_reading && !has_range(r.interval)))
        else {
            return Ok(None);
        };
        let mut part = call.clone();
        part.func = ranged.part;
        part.params.args.truncate(ranged.interval + 1);
        let part = self.call(&LogicalExpr::AggregateFunction(part))?;
        let mut finish = vec![part, args[ranged.interval].clone()];
        match &args[ranged.interval + 1..] {
            [from, to] => {
                finish.extend([self.edge(from, call, "min")?, self.edge(to, call, "max")?]);
            }
            _ if ranged.needs_range => {
                finish.extend(BOUNDS.map(|bound| LogicalExpr::Column(Column::from_name(bound))));
            }
            _ => {}
        }
        Ok(Some(ranged.finish.call(finish)))
    }

    /// A bound of what an aggregate is asked for: of the window, or the first or last of its rows.
    fn edge(
        &mut self,
        bound: &LogicalExpr,
        call: &AggregateFunction,
        of_rows: &str,
    ) -> Result<LogicalExpr, PlanProblem> {
        let mut columns: Vec<&Column> = bound.column_refs().into_iter().collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        let is_of_rows = |c: &&Column| self.schema.index_of(&c.name).is_ok();
        if let Some(function) = STATE.aggregate_functions().get(of_rows)
            && !columns.is_empty()
            && columns.iter().all(is_of_rows)
        {
            let mut edge = call.clone();
            edge.func = Arc::clone(function);
            edge.params.args = vec![bound.clone()];
            return self.call(&LogicalExpr::AggregateFunction(edge));
        }
        columns.iter().try_for_each(|c| self.outside(&c.name))?;
        Ok(bound.clone())
    }

    /// What stands for an aggregate whose last reading holds until a bound of the window.
    fn held(&mut self, call: &AggregateFunction) -> Result<Option<LogicalExpr>, PlanProblem> {
        let [value, time, until] = call.params.args.as_slice() else { return Ok(None) };
        let mut of_window: Vec<&Column> = until.column_refs().into_iter().collect();
        of_window.sort_by(|a, b| a.name.cmp(&b.name));
        if of_window.iter().all(|c| self.schema.index_of(&c.name).is_ok()) {
            return Ok(None);
        }
        let Some(held) = held(call.func.name()) else { return Ok(None) };
        for column in of_window {
            self.outside(&column.name)?;
        }
        let value = value.clone().cast_to(&DataType::Float64, &self.input);
        let value = value.map_err(|e| PlanProblem::from_planner(&e))?;
        let mut parts = call.clone();
        parts.func = held.parts;
        parts.params.args = vec![value, time.clone()];
        let parts = self.call(&LogicalExpr::AggregateFunction(parts))?;
        Ok(Some(held.finish.call(vec![parts, until.clone()])))
    }

    /// The column that stands for an aggregate call.
    fn call(&mut self, call: &LogicalExpr) -> Result<LogicalExpr, PlanProblem> {
        let at = match self.calls.iter().position(|c| c == call) {
            Some(at) => at,
            None => {
                self.check_arguments(call)?;
                let at = self.calls.len();
                let (aggregate, filter) = self
                    .physical_call(call, format!("agg{at}"))
                    .map_err(|e| PlanProblem::from_planner(&e))?;
                self.aggregates.push(aggregate);
                self.filters.push(filter);
                self.calls.push(call.clone());
                at
            }
        };
        Ok(LogicalExpr::Column(Column::from_name(format!("agg{at}"))))
    }

    fn physical_call(
        &self,
        call: &LogicalExpr,
        name: String,
    ) -> Result<(Arc<AggregateFunctionExpr>, Option<Expr>), DataFusionError> {
        let context = PhysicalPlanningContext::default();
        let lowered = LoweredAggregateBuilder::new(
            call,
            &self.input,
            self.schema,
            STATE.execution_props(),
            &context,
        )
        .with_name(name)
        .build()?;
        // Found now and not when the first row comes: an aggregate that lacks what a window needs,
        // by itself (one may refuse DISTINCT) and over distinct values.
        create_groups_accumulator(&lowered.aggregate)?;
        let aggregate = distinct::in_one_order(lowered.aggregate, self.schema)?;
        create_groups_accumulator(&aggregate)?;
        aggregate.state_fields()?;
        Ok((aggregate, lowered.filter))
    }

    fn check_arguments(&self, call: &LogicalExpr) -> Result<(), PlanProblem> {
        let mut problem = self.keeps_parts(call);
        let walked = call.apply_children(|argument| {
            argument.apply(|e| {
                match e {
                    LogicalExpr::AggregateFunction(_) => {
                        problem = Some(
                            PlanProblem::new("an aggregate inside an aggregate")
                                .hint("use a second window step over the result of the first"),
                        );
                    }
                    LogicalExpr::Column(c) if self.schema.index_of(&c.name).is_err() => {
                        problem = Some(PlanProblem::new(format!(
                            "`{}` is known only outside of an aggregate",
                            c.name
                        )));
                    }
                    _ => return Ok(TreeNodeRecursion::Continue),
                }
                Ok(TreeNodeRecursion::Stop)
            })
        });
        walked.map_err(|e| PlanProblem::from_planner(&e))?;
        problem.map_or(Ok(()), Err)
    }

    /// An aggregate that would keep lists or groups of values, for which there is no bound.
    fn keeps_parts(&self, call: &LogicalExpr) -> Option<PlanProblem> {
        let LogicalExpr::AggregateFunction(AggregateFunction { func, params }) = call else {
            return None;
        };
        let is_nested = |e: &LogicalExpr| e.get_type(&self.input).is_ok_and(|t| t.is_nested());
        let counts = func.name() == "count" && !params.distinct;
        (params.args.iter().any(is_nested) && !counts).then(|| {
            PlanProblem::new(format!("`{}` cannot be of lists or groups of values", func.name()))
                .hint("give it a part of them, such as max(counts[1])")
        })
    }

    /// Outside of aggregates only what is one value per window can be read.
    fn outside(&self, column: &str) -> Result<(), PlanProblem> {
        if self.keys.iter().any(|k| k == column) || BOUNDS.contains(&column) {
            return Ok(());
        }
        Err(PlanProblem::new(format!(
            "`{column}` has many values in a window: it must be inside an aggregate or in `by`"
        ))
        .hint(format!("for example max({column}) or last({column})")))
    }

    fn aggregated_schema(&self) -> SchemaRef {
        let spec = WindowSpec {
            pipeline: String::new(),
            name: String::new(),
            input: Arc::clone(self.schema),
            keys: self.keys.iter().filter_map(|k| self.schema.index_of(k).ok()).collect(),
            time: 0,
            shape: Shape::Grid { size_us: 1, slide_us: 1, offset_us: 0 },
            aggregates: self.aggregates.clone(),
            filters: self.filters.clone(),
            select: Vec::new(),
            disorder_us: 0,
            idle_close_us: 0,
            clock: Clock::Device,
            late: LatePolicy::Table,
            puts_off: false,
            early_us: None,
            quality: None,
            limits: KeyLimits::default(),
        };
        spec.aggregated_schema()
    }
}
