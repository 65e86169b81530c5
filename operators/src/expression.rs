//! Evaluation of planned expressions over batches, and the stateless steps made of them.
//!
//! An expression that fails on some rows (division by zero, overflow, a cast of bad text) must not
//! take the others with it: the batch is halved until the rows at fault stand alone. Every row of
//! the input is either in exactly one output branch, dropped by a filter that was false, or in
//! [`StepOutput::failed`]; where rows come again, who drops one says so of those before.

mod back;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{concat, filter_record_batch, not, prep_null_mask_filter};
use arrow::datatypes::SchemaRef;
use datafusion_common::DataFusionError;

use self::back::{filled, standing};
pub(crate) use self::back::{taken_back, withdrawn};
use crate::operator::OperatorError;
use crate::spec::{Expr, FilterSpec, RouteSpec, StepKind};

/// Reason of a row on which an expression fails.
pub const REASON_EXPRESSION: &str = "expression";
/// Reason of a row that no branch of a route takes.
pub const REASON_NO_BRANCH: &str = "no_branch";

/// A row that a step cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its index in the input batch.
    pub row: usize,
    /// Reason code for `system.rejects`.
    pub reason: &'static str,
    /// What happened, for people.
    pub detail: String,
}

/// Evaluates `expr` for every row. Rows on which it fails are null in the result and listed, in
/// order, with the error's text.
///
/// # Errors
/// The expression does not fit the schema at all; planning rules that out.
pub fn evaluate(
    expr: &Expr,
    rows: &RecordBatch,
) -> Result<(ArrayRef, Vec<(usize, String)>), OperatorError> {
    let first = match evaluate_all(expr, rows) {
        Ok(values) => return Ok((values, Vec::new())),
        Err(error) => error,
    };
    let data_type = expr.data_type(rows.schema_ref())?;
    if rows.num_rows() == 0 {
        return Ok((new_null_array(&data_type, 0), Vec::new()));
    }
    let mut pieces = Vec::new();
    let mut failed = Vec::new();
    // Ranges still to be tried, the next one last; the whole is known to fail.
    let mut ranges = vec![(0, rows.num_rows(), Some(first))];
    while let Some((start, len, known)) = ranges.pop() {
        let result = match known {
            Some(error) => Err(error),
            None => evaluate_all(expr, &rows.slice(start, len)),
        };
        match result {
            Ok(values) => pieces.push(values),
            Err(error) if len <= 1 => {
                failed.push((start, one_line(&error)));
                pieces.push(new_null_array(&data_type, len));
            }
            Err(_) => {
                let half = len / 2;
                ranges.push((start + half, len - half, None));
                ranges.push((start, half, None));
            }
        }
    }
    let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
    Ok((concat(&pieces)?, failed))
}

fn evaluate_all(expr: &Expr, rows: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
    expr.evaluate(rows)?.into_array(rows.num_rows())
}

fn one_line(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    let text = text.lines().next().unwrap_or_default();
    ["Arrow error: ", "Execution error: ", "Compute error: "]
        .iter()
        .fold(text, |text, prefix| text.trim_start_matches(prefix))
        .to_owned()
}

/// Evaluates a condition: null is false, and so is a row that fails.
pub(crate) fn condition(
    expr: &Expr,
    rows: &RecordBatch,
) -> Result<(BooleanArray, Vec<(usize, String)>), OperatorError> {
    let (values, failed) = evaluate(expr, rows)?;
    let values = values.as_boolean();
    let mask = match values.null_count() {
        0 => values.clone(),
        _ => prep_null_mask_filter(values),
    };
    Ok((mask, failed))
}

/// What a stateless step made of a batch.
#[derive(Debug)]
pub struct StepOutput {
    /// Rows of each output edge, in the order of the input: one for filter and project, one per
    /// branch for route.
    pub branches: Vec<RecordBatch>,
    /// Rows that could not be used, in order.
    pub failed: Vec<Failed>,
}

/// Of the rows that failed those that are final, as this column says, if there is one: windows that
/// are still open come again.
pub(crate) fn keep_finals(failed: &mut Vec<Failed>, rows: &RecordBatch, is_final: Option<usize>) {
    if let Some(flags) = is_final.and_then(|column| rows.column(column).as_boolean_opt()) {
        failed.retain(|f| flags.value(f.row));
    }
}

/// A step without state.
pub struct StatelessStep {
    kind: StepKind,
    output: SchemaRef,
    /// See [`StatelessStep::of_early`].
    is_final: Option<usize>,
    /// See [`StatelessStep::of_withdrawn`].
    rows: Option<usize>,
}

impl StatelessStep {
    /// A step of the given kind, or none if the kind keeps state. `input` is the schema that
    /// [`StatelessStep::apply`] gets, `output` that of its branches.
    pub fn new(kind: &StepKind, input: SchemaRef, output: SchemaRef) -> Option<Self> {
        match kind {
            StepKind::Filter(_) | StepKind::Route(_) => {
                debug_assert_eq!(input.fields(), output.fields(), "rows pass unchanged");
            }
            StepKind::Project(_) => {}
            StepKind::Window(_)
            | StepKind::Detect(_)
            | StepKind::Enrich(_)
            | StepKind::Latest(_)
            | StepKind::Absence(_)
            | StepKind::Sequence(_)
            | StepKind::Join(_) => return None,
        }
        Some(Self { kind: kind.clone(), output, is_final: None, rows: None })
    }

    /// The same step over rows that come again unless this input column says that they are final:
    /// those that are not do not fail, and are nothing if they cannot be used.
    #[must_use]
    pub fn of_early(self, is_final: Option<usize>) -> Self {
        Self { is_final, ..self }
    }

    /// The same step over rows that may say that their window is none, because this input column,
    /// the number of readings, is 0: they do not fail, whatever else is in them.
    #[must_use]
    pub fn of_withdrawn(self, rows: Option<usize>) -> Self {
        Self { rows, ..self }
    }

    /// Number of output edges.
    pub fn branches(&self) -> usize {
        match &self.kind {
            StepKind::Route(route) => route.branches.len(),
            _ => 1,
        }
    }

    /// Applies the step to a batch.
    ///
    /// # Errors
    /// The batch is not of the planned schema.
    pub fn apply(&self, rows: &RecordBatch) -> Result<StepOutput, OperatorError> {
        let gone = withdrawn(rows, self.rows);
        let mut made = match &self.kind {
            StepKind::Filter(spec) => filter(spec, rows),
            StepKind::Project(columns) => project(columns, rows, gone.as_ref(), &self.output),
            StepKind::Route(spec) => route(spec, rows),
            StepKind::Window(_)
            | StepKind::Detect(_)
            | StepKind::Enrich(_)
            | StepKind::Latest(_)
            | StepKind::Absence(_)
            | StepKind::Sequence(_)
            | StepKind::Join(_) => unreachable!("refused by `new`"),
        }?;
        keep_finals(&mut made.failed, rows, self.is_final);
        if let Some(gone) = gone {
            made.failed.retain(|f| !gone.value(f.row));
        }
        Ok(made)
    }
}

/// Keeps rows for which `keep` is true, and of those that take others back, that they do.
fn filter(spec: &FilterSpec, rows: &RecordBatch) -> Result<StepOutput, OperatorError> {
    let (mask, errors) = condition(&spec.keep, rows)?;
    let kept = match &spec.takes_back {
        None => kept(rows, &mask)?,
        Some(columns) => standing(rows, &mask, columns)?,
    };
    let failed = errors.into_iter().map(expression_failed).collect();
    Ok(StepOutput { branches: vec![kept], failed })
}

/// Computes new columns. A row that fails in several columns is reported for the first of them.
/// One whose window is `gone` says that, whatever fails.
fn project(
    columns: &[(String, Expr)],
    rows: &RecordBatch,
    gone: Option<&BooleanArray>,
    output: &SchemaRef,
) -> Result<StepOutput, OperatorError> {
    let mut failed: Vec<Failed> = Vec::new();
    let mut values = Vec::with_capacity(columns.len());
    for ((name, expr), field) in columns.iter().zip(output.fields()) {
        let (column, errors) = evaluate(expr, rows)?;
        let is_gone = |(row, _): &(usize, String)| gone.is_some_and(|gone| gone.value(*row));
        let (of_gone, errors): (Vec<_>, Vec<_>) = errors.into_iter().partition(is_gone);
        values.push(match of_gone.is_empty() || field.is_nullable() {
            true => column,
            false => filled(&column)?,
        });
        let errors = errors.into_iter().map(|(row, text)| (row, format!("`{name}`: {text}")));
        failed.extend(errors.map(expression_failed));
    }
    if failed.is_empty() {
        let branch = RecordBatch::try_new(output.clone(), values)?;
        return Ok(StepOutput { branches: vec![branch], failed });
    }
    failed.sort_by_key(|f| f.row);
    failed.dedup_by_key(|f| f.row);
    let mut good = vec![true; rows.num_rows()];
    failed.iter().for_each(|f| good[f.row] = false);
    let good = BooleanArray::from(good);
    let values: Result<Vec<ArrayRef>, _> =
        values.iter().map(|v| arrow::compute::filter(v, &good)).collect();
    let branch = RecordBatch::try_new(output.clone(), values?)?;
    Ok(StepOutput { branches: vec![branch], failed })
}

/// Gives each row to the first branch whose condition is true; later conditions do not see it. The
/// other branches get of those that take others back that they do.
fn route(spec: &RouteSpec, rows: &RecordBatch) -> Result<StepOutput, OperatorError> {
    let mut rest = rows.clone();
    let mut origin: Vec<usize> = (0..rows.num_rows()).collect();
    let mut out = Vec::with_capacity(spec.branches.len());
    let mut failed: Vec<Failed> = Vec::new();
    for (name, expr) in &spec.branches {
        let (mask, errors) = condition(expr, &rest)?;
        out.push(match &spec.takes_back {
            None => kept(&rest, &mask)?,
            Some(columns) => {
                let mut own = vec![false; rows.num_rows()];
                origin.iter().zip(mask.values()).for_each(|(row, is_own)| own[*row] = is_own);
                standing(rows, &BooleanArray::from(own), columns)?
            }
        });
        let mut leaves: Vec<bool> = mask.values().iter().collect();
        for (row, text) in errors {
            leaves[row] = true;
            failed.push(expression_failed((origin[row], format!("`{name}`: {text}"))));
        }
        let mut leaving = leaves.iter();
        origin.retain(|_| !leaving.next().copied().unwrap_or(false));
        rest = kept(&rest, &not(&BooleanArray::from(leaves))?)?;
    }
    failed.extend(origin.into_iter().map(|row| Failed {
        row,
        reason: REASON_NO_BRANCH,
        detail: "no branch takes this row".to_owned(),
    }));
    failed.sort_by_key(|f| f.row);
    Ok(StepOutput { branches: out, failed })
}

fn kept(rows: &RecordBatch, mask: &BooleanArray) -> Result<RecordBatch, OperatorError> {
    Ok(match mask.true_count() {
        all if all == rows.num_rows() => rows.clone(),
        0 => rows.slice(0, 0),
        _ => filter_record_batch(rows, mask)?,
    })
}

pub(crate) fn expression_failed((row, detail): (usize, String)) -> Failed {
    Failed { row, reason: REASON_EXPRESSION, detail }
}

#[cfg(test)]
mod tests;
