//! Which windows can be computed again from what is stored, and from what.
//!
//! A reading that comes when the state of its windows is gone is still stored, where a table keeps
//! the edge that the windows read, or one before it with nothing but stateless steps in between.
//! Rows of such a table say where they were in the journal, so the window is computed again from
//! the readings that had come by then, in the order in which they came.

mod behind;

use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{Field, Schema, SchemaRef};
use tidegate_operators::OperatorError;
use tidegate_operators::expression::StatelessStep;
use tidegate_operators::spec::{
    Clock, KeyLimits, LatePolicy, PipelineSpec, QUALITY_COLUMNS, Shape, StepKind, StepSpec,
    TableSpec, WindowSpec,
};

pub(crate) use self::behind::made_of;
pub use self::behind::{Behind, Between};
use crate::graph::READINGS;
use crate::resolve::early::is_of;

/// Where in the journal a reading was.
pub(crate) const OFFSET: &str = "journal_offset";
/// Which of the readings of a message it was.
const ELEMENT: &str = "journal_element";

/// Longer than any two readings are apart (reading times are between 1970 and 2261), and short
/// enough to be subtracted from a time: microseconds.
const FOREVER_US: i64 = 200 * 365 * 86_400_000_000;

/// A window step whose late windows are computed again.
pub struct Recomputation {
    /// The step, with windows of fixed bounds that stay open until the end of the input. Others are
    /// made of readings that come by time; a tick at time 1 tells a state that no more is to come.
    pub window: WindowSpec,
    /// The table of its input, or of an edge before it.
    pub stored: TableSpec,
    /// Columns by which rows of that table are in the order of the journal.
    pub order: Vec<String>,
    /// The tables of its rows.
    pub tables: Vec<TableSpec>,
    /// The steps from the stored edge to the input, each with the branch that leads there.
    path: Path,
    /// The tables behind the windows.
    behind: Vec<Behind>,
    /// Tables of what is made of the windows that are not among these.
    beyond: Vec<TableSpec>,
}

impl Recomputation {
    /// Whether the windows read the stored edge itself.
    pub fn is_direct(&self) -> bool {
        self.path.is_empty()
    }

    /// The tables that get what steps make of the windows together with this table: the first one
    /// of the step has them.
    pub fn behind(&self, table: &TableSpec) -> &[Behind] {
        let is_first = self.tables.first().is_some_and(|first| first.name == table.name);
        if is_first { &self.behind } else { &[] }
    }

    /// The tables of what is made of the windows by steps that know more than the windows, which do
    /// not get what was computed again.
    pub fn beyond(&self, table: &TableSpec) -> &[TableSpec] {
        let is_first = self.tables.first().is_some_and(|first| first.name == table.name);
        if is_first { &self.beyond } else { &[] }
    }

    /// The tables of what registries said that is made of the windows with.
    pub fn histories(&self) -> impl Iterator<Item = &TableSpec> {
        self.behind.iter().flat_map(Behind::histories)
    }

    /// The rows that the windows read, of rows of the stored edge, whose columns may all be null.
    /// What steps reject was told when it came.
    ///
    /// # Errors
    /// The rows are not of the stored schema.
    pub fn input(&self, rows: RecordBatch) -> Result<RecordBatch, OperatorError> {
        self.path.iter().try_fold(rows, |rows, (step, branch)| {
            let mut made = step.apply(&rows)?;
            Ok(made.branches.swap_remove(*branch))
        })
    }

    /// Windows that were made of stored readings, if their quality is asked for: those do not say
    /// when they came in, so nobody knows what was late, or lost, or came again.
    ///
    /// # Errors
    /// The rows are not those of the step.
    pub fn unsaid(&self, rows: RecordBatch) -> Result<RecordBatch, OperatorError> {
        if self.window.quality.is_none() {
            return Ok(rows);
        }
        let [_, late, duplicates, complete] = QUALITY_COLUMNS;
        let schema = rows.schema();
        let mut columns = rows.columns().to_vec();
        for name in [late, duplicates, complete] {
            let at = schema.index_of(name)?;
            columns[at] = new_null_array(schema.field(at).data_type(), rows.num_rows());
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

/// The window steps of a pipeline whose late windows can be computed again.
pub fn recomputations(p: &PipelineSpec) -> Vec<Recomputation> {
    let of_step = |step: &StepSpec| {
        let StepKind::Window(window) = &step.kind else { return None };
        if !is_computed_again(p, step, window) {
            return None;
        }
        let tables = p.tables.iter().filter(|t| is_of(&t.from, &step.name)).cloned().collect();
        let (stored, path) = stored(p, &step.from)?;
        // Where every reading waits for those before it, one at a time is enough.
        let is_fixed = window.shape.has_fixed_bounds();
        let is_state = matches!(window.shape, Shape::State { .. });
        let window = WindowSpec {
            disorder_us: if is_fixed { FOREVER_US } else { 0 },
            idle_close_us: if is_state { 1 } else { FOREVER_US },
            clock: Clock::Device,
            late: LatePolicy::Table,
            puts_off: false,
            // The column is there, and nothing is early.
            early_us: window.early_us.map(|_| FOREVER_US),
            limits: KeyLimits { keys_max: u64::from(u32::MAX), ..KeyLimits::default() },
            ..window.clone()
        };
        let order = order(p, &stored);
        let behind = behind::behind(p, &step.name);
        let beyond = made_of(p, &step.name).into_iter();
        let beyond = beyond.filter_map(|(table, why_not)| why_not.map(|_| table.clone()));
        let beyond = beyond.collect();
        Some(Recomputation { window, stored, order, tables, path, behind, beyond })
    };
    p.steps.iter().filter_map(of_step).collect()
}

/// Has the window steps know whose late windows are computed again.
pub(crate) fn note(p: &mut PipelineSpec) {
    let again = |step: &StepSpec| match &step.kind {
        StepKind::Window(window) => is_computed_again(p, step, window),
        _ => false,
    };
    let again: Vec<bool> = p.steps.iter().map(again).collect();
    for (step, again) in p.steps.iter_mut().zip(again) {
        if let StepKind::Window(window) = &mut step.kind {
            window.puts_off = again;
        }
    }
}

/// Whether the late windows of a step are computed again: there are tables of them, and of what
/// they are made of.
fn is_computed_again(p: &PipelineSpec, step: &StepSpec, window: &WindowSpec) -> bool {
    let is_revised = matches!(window.late, LatePolicy::Revise { .. });
    let has_table = p.tables.iter().any(|t| is_of(&t.from, &step.name));
    is_revised && has_table && has_places(window) && stored_as(p, &step.from).is_some()
}

/// Whether the late readings of a window tell where in the journal they were: a step before it can
/// drop that.
pub(crate) fn has_places(window: &WindowSpec) -> bool {
    window.input.index_of(OFFSET).is_ok()
}

/// The table from which the rows of an edge can be made again.
pub(crate) fn stored_as<'p>(p: &'p PipelineSpec, edge: &str) -> Option<&'p TableSpec> {
    let own = p.tables.iter().find(|t| t.from == edge && t.schema.index_of(OFFSET).is_ok());
    own.or_else(|| stored_as(p, &maker(p, edge)?.0.from))
}

/// The stateless step that makes an edge, and which of its branches it is.
pub(crate) fn maker<'p>(p: &'p PipelineSpec, edge: &str) -> Option<(&'p StepSpec, usize)> {
    p.steps.iter().find_map(|step| match &step.kind {
        StepKind::Route(route) => {
            Some((step, route.branches.iter().position(|(name, _)| name == edge)?))
        }
        StepKind::Filter(_) | StepKind::Project(_) if step.name == edge => Some((step, 0)),
        _ => None,
    })
}

/// The edge of single readings that an edge is made of by stateless steps.
pub(crate) fn readings_before<'p>(p: &'p PipelineSpec, edge: &'p str) -> &'p str {
    maker(p, edge).map_or(edge, |(step, _)| readings_before(p, &step.from))
}

/// Whether a table of an edge can say where in the journal its rows were.
fn says_places(p: &PipelineSpec, edge: &str) -> bool {
    if edge == READINGS {
        return true;
    }
    let Some(step) = step_of(p, edge) else { return false };
    match &step.kind {
        StepKind::Filter(_) | StepKind::Route(_) | StepKind::Enrich(_) | StepKind::Join(_) => {
            says_places(p, &step.from)
        }
        StepKind::Project(columns) => {
            // Nobody may have needed it yet: then it is not among the columns of any step.
            let passes = columns.iter().any(|(name, _)| name == OFFSET)
                || columns_of(p, &step.from).is_none_or(|input| input.index_of(OFFSET).is_err());
            passes && says_places(p, &step.from)
        }
        StepKind::Window(_)
        | StepKind::Detect(_)
        | StepKind::Latest(_)
        | StepKind::Absence(_)
        | StepKind::Sequence(_) => false,
    }
}

/// The step that makes an edge.
fn step_of<'p>(p: &'p PipelineSpec, edge: &str) -> Option<&'p StepSpec> {
    let own = || p.steps.iter().find(|step| step.name == edge);
    maker(p, edge).map(|(step, _)| step).or_else(own)
}

/// The columns of an edge.
fn columns_of(p: &PipelineSpec, edge: &str) -> Option<SchemaRef> {
    match edge {
        READINGS => Some(p.decode.schema()),
        _ => step_of(p, edge).map(|step| Arc::clone(&step.output)),
    }
}

/// Why late readings of windows over `edge` are without effect where no table is of any use: which
/// one would be, and why one that is there is not.
pub(crate) fn missing(p: &PipelineSpec, edge: &str) -> String {
    let needed = readings_before(p, edge);
    if !says_places(p, needed) {
        return format!(
            "rows of `{needed}` do not say where in the journal they come from, so no table lets \
             it be computed again"
        );
    }
    let wanted = format!("a table of `{needed}` would let it be computed again");
    let full = |table: &TableSpec| format!("{}.{}", table.namespace, table.name);
    if let Some(table) = p.tables.iter().find(|t| t.from == needed) {
        return format!("{} would let it be computed again if it had `{OFFSET}`", full(table));
    }
    let Some(between) = step_of(p, needed) else { return wanted };
    let Some(table) = first_stored(p, &between.from) else { return wanted };
    let what = match &between.kind {
        StepKind::Enrich(e) => {
            format!("what the registry `{}` said of a reading when it came", e.registry.name)
        }
        _ => "what a reading was joined with".to_owned(),
    };
    format!("{wanted}; {} does not do, because {what} is not in it", full(table))
}

/// The nearest table of an edge, or of one before it, whatever lies in between.
fn first_stored<'p>(p: &'p PipelineSpec, edge: &str) -> Option<&'p TableSpec> {
    let own = p.tables.iter().find(|table| table.from == edge);
    own.or_else(|| first_stored(p, &step_of(p, edge)?.from))
}

/// Stateless steps, each with the branch that leads on.
pub(crate) type Path = Vec<(StatelessStep, usize)>;

fn stored(p: &PipelineSpec, edge: &str) -> Option<(TableSpec, Path)> {
    let table = stored_as(p, edge)?;
    if table.from == edge {
        return Some((table.clone(), Path::new()));
    }
    let (step, branch) = maker(p, edge)?;
    let (table, mut path) = stored(p, &step.from)?;
    let input = match table.from == step.from {
        true => table.schema.clone(),
        false => maker(p, &step.from)?.0.output.clone(),
    };
    let (input, output) = (nullable(&input), nullable(&step.output));
    path.push((StatelessStep::new(&step.kind, input, output)?, branch));
    Some((table, path))
}

/// What is required now is null in rows from before that.
fn nullable(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    let fields: Vec<Field> = fields.collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn order(p: &PipelineSpec, table: &TableSpec) -> Vec<String> {
    let mut order = vec![OFFSET.to_owned()];
    if table.schema.index_of(ELEMENT).is_ok() {
        order.push(ELEMENT.to_owned());
    } else if p.decode.explode.is_some() {
        // What a message has of one time is told apart by all that is known of it.
        let others = table.schema.fields().iter().map(|f| f.name().clone());
        order.push(table.time.clone());
        order.extend(others.filter(|name| name != OFFSET && *name != table.time));
    }
    order
}
