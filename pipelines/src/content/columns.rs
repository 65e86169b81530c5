//! Which columns of an edge are read, and what each of them is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::expressions::Column;
use tidegate_operators::spec::{
    AlertSpec, CalendarSpec, ColumnSpec, DecodeSpec, EnrichSpec, Expr, JoinSpec, Missing, Partners,
    Period, Shape, StepKind, WindowSpec,
};

use super::id;
use crate::fingerprint::expr;

/// Columns by which an alert tells windows apart, and one row of a window from another, wherever
/// they are there.
const OF_WINDOWS: [&str; 4] = ["window_start", "window_number", "revision", "rows"];

/// What comes to an edge.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    /// Which rows there are, and all that is in them but for the columns below.
    pub(super) rows: u64,
    /// What is in the columns that can be others while the rows are the same, by name.
    pub(super) columns: BTreeMap<String, u64>,
}

impl Edge {
    /// Decoded readings.
    pub(super) fn of_decode(d: &DecodeSpec) -> Self {
        let text = |c: &ColumnSpec| {
            format!("{:?} {:?} {:?} {:?}", c.origin, c.kind, c.rules, c.on_invalid)
        };
        let columns = d.columns.iter().map(|c| (c.name.clone(), id(0, &text(c)))).collect();
        let topics: Vec<String> = d.topics.iter().map(ToString::to_string).collect();
        let own = format!(
            "{topics:?} {:?} {:?} {} {} {:?}",
            d.format, d.explode, d.future_bound_us, d.payload_bytes_max, d.past_bound_us
        );
        let all = Self { rows: 0, columns };
        // A reading that lacks one of these is none, whoever reads it.
        let rows = all.id(&own, &Columns::from(["device", "time"]));
        all.with_rows(rows)
    }

    /// Rows of windows, given the id of their step. What is not selected goes with the state.
    pub(super) fn of_windows(w: &WindowSpec, own: u64) -> Self {
        let selected = w.select.iter().map(|(name, e)| (name.clone(), id(0, &expr(e))));
        let mut columns: BTreeMap<String, u64> = selected.collect();
        if let Shape::Calendar(CalendarSpec { period: Period::Shifts(shifts), .. }) = &w.shape {
            let names: Vec<&str> = shifts.iter().map(|s| s.name.as_str()).collect();
            columns.insert("shift".to_owned(), id(0, &format!("{names:?}")));
        }
        if let Some(quality) = w.quality {
            columns.insert("expected".to_owned(), id(0, &format!("{:?}", quality.every_us)));
        }
        Self { rows: own, columns }
    }

    /// These rows joined with a registry, given the id of the step. All of them pass on, unless it
    /// revises them or keeps those back of which the registry has nothing.
    pub(super) fn enriched(&self, e: &EnrichSpec, own: u64) -> Self {
        let all_pass = e.missing == Missing::Null && e.revise.is_none();
        let rows = if all_pass { self.rows } else { id(own, &format!("{:?}", e.missing)) };
        let mut made = self.with_rows(rows);
        let values = e.registry.value_fields();
        for (column, default) in e.columns.iter().zip(&e.defaults) {
            let name = values[*column].name();
            let default = default.as_ref().map(|e| self.value(e));
            made.columns.insert(name.clone(), id(own, &format!("{name:?} {default:?}")));
        }
        made
    }

    /// The same columns in other rows.
    pub(super) fn with_rows(&self, rows: u64) -> Self {
        Self { rows, columns: self.columns.clone() }
    }

    /// The id of what is made of these rows in this way, by reading these columns.
    pub(super) fn id(&self, own: &str, columns: &Columns) -> u64 {
        id(self.rows, &self.reading(own, columns))
    }

    /// What is done, and what the columns are that it is done with.
    pub(super) fn reading(&self, own: &str, columns: &Columns) -> String {
        let mut text = format!("{own} of");
        for name in &columns.0 {
            let _ = write!(text, " {name:?} {:016x}", self.column(name));
        }
        text
    }

    /// What a column is. What is not among the columns goes with the rows.
    fn column(&self, name: &str) -> u64 {
        self.columns.get(name).copied().unwrap_or_else(|| id(0, &format!("{name:?}")))
    }

    /// What an expression is, wherever its columns come from.
    pub(super) fn value(&self, e: &Expr) -> u64 {
        match e.downcast_ref::<Column>() {
            Some(column) => self.column(column.name()),
            None => id(0, &self.reading(&expr(e), &Columns::of([e]))),
        }
    }
}

/// Names of columns that are read.
#[derive(Debug, Default)]
pub(super) struct Columns(BTreeSet<String>);

impl<const N: usize> From<[&str; N]> for Columns {
    fn from(names: [&str; N]) -> Self {
        Self(names.map(str::to_owned).into())
    }
}

impl Columns {
    /// Those of expressions.
    pub(super) fn of<'e>(all: impl IntoIterator<Item = &'e Expr>) -> Self {
        let mut columns = Self::default();
        columns.add(all);
        columns
    }

    /// Those at these places.
    pub(super) fn named<'i>(
        schema: &SchemaRef,
        places: impl IntoIterator<Item = &'i usize>,
    ) -> Self {
        let name = |place: &usize| schema.field(*place).name().clone();
        Self(places.into_iter().map(name).collect())
    }

    /// Those of a step with state.
    pub(super) fn read_by(kind: &StepKind) -> Self {
        let (schema, places, time) = match kind {
            StepKind::Window(w) => (&w.input, &w.keys[..], Some(w.time)),
            StepKind::Detect(d) => (&d.input, &d.keys[..], Some(d.time)),
            StepKind::Latest(l) => (&l.input, &l.keys[..], Some(l.time)),
            StepKind::Absence(a) => (&a.input, &a.keys[..], Some(a.time)),
            StepKind::Sequence(s) => (&s.input, &s.keys[..], Some(s.time)),
            StepKind::Enrich(e) => (&e.input, &e.on[..], Some(e.time)),
            StepKind::Join(j) => (&j.left, &j.left_keys[..], None),
            StepKind::Filter(_) | StepKind::Project(_) | StepKind::Route(_) => {
                return Self::default();
            }
        };
        let mut columns = Self::named(schema, places.iter().chain(&time));
        match kind {
            StepKind::Window(w) => columns.of_window(w),
            StepKind::Detect(d) => columns.add([&d.on]),
            StepKind::Latest(l) => columns.add(l.select.iter().map(|(_, e)| e).chain(&l.at)),
            StepKind::Absence(a) => columns.add(a.select.iter().map(|(_, e)| e)),
            StepKind::Sequence(s) => {
                columns.add(s.first.iter().chain([&s.last]));
                columns.add(s.select_first.iter().chain(&s.select).map(|(_, e)| e));
            }
            // Rows that are kept are whole ones.
            StepKind::Enrich(e) if e.revise.is_none() => {}
            _ => columns.0.extend(schema.fields().iter().map(|f| f.name().clone())),
        }
        columns
    }

    /// Those of the edge that a join adds.
    pub(super) fn read_beside(j: &JoinSpec) -> Self {
        let own = j.right_keys.iter().chain(j.columns.iter().map(|(column, _)| column));
        let mut columns = Self::named(&j.right, own);
        let places = match &j.partners {
            Partners::Window { right, rows, .. } => [&right[..], rows[1].as_slice()].concat(),
            Partners::Interval { right, .. } => vec![*right],
        };
        columns.0.extend(Self::named(&j.right, &places).0);
        columns
    }

    /// Those of what decides the phase of an alert.
    pub(super) fn read_by_alert(a: &AlertSpec) -> Self {
        let places = a.keys.iter().chain(&a.others).chain([&a.time]);
        let mut columns = Self::named(&a.input, places);
        columns.add([&a.fire, &a.clear]);
        let there = OF_WINDOWS.iter().filter(|name| a.input.index_of(name).is_ok());
        columns.0.extend(there.map(|name| (*name).to_owned()));
        columns
    }

    fn of_window(&mut self, w: &WindowSpec) {
        for aggregate in &w.aggregates {
            self.add(&aggregate.expressions());
            self.add(aggregate.order_bys().iter().map(|order| &order.expr));
        }
        self.add(w.filters.iter().flatten());
        match &w.shape {
            Shape::State { begin, until, abort, .. } => {
                self.add([begin].into_iter().chain(until).chain(abort));
            }
            Shape::Sliding { at, .. } => self.add(at),
            // The zone of a calendar is one, or in a column of the key.
            Shape::Grid { .. }
            | Shape::Calendar(_)
            | Shape::Session { .. }
            | Shape::Count { .. } => {}
        }
    }

    fn add<'e>(&mut self, all: impl IntoIterator<Item = &'e Expr>) {
        for e in all {
            // The closure does not fail.
            let _ = e.apply(|node| {
                self.0.extend(node.downcast_ref::<Column>().map(|c| c.name().to_owned()));
                Ok(TreeNodeRecursion::Continue)
            });
        }
    }
}
