//! Which readings come to windows whose bounds, or numbers, follow from the readings before.
//!
//! Such windows are others when other readings come to them: with state made anew they would be
//! numbered, or begin, differently from those that a table has. Invariant: whatever can change
//! which rows come to an edge is in [`taken`], and of what is in these rows only what a condition,
//! a key or a bound asks for. So what only decides values of aggregates can change. Not in it are
//! topics: more of them bring further devices, and what came in by them before was none of the
//! readings.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::expressions::Column;
use tidegate_operators::spec::{
    CalendarSpec, ColumnSpec, EnrichSpec, Expr, JoinSpec, Missing, Partners, PipelineSpec, Shape,
    StepKind, WindowSpec, ZoneOf,
};

use super::windows::made_by;
use crate::fingerprint::{expr, exprs, shape_text, shown_text, state_text};
use crate::graph::READINGS;
use crate::resolve::early::is_of_finals;

type Names = BTreeSet<String>;

/// What decides which readings come to windows, if these follow from them.
pub(super) fn readings_of(p: &PipelineSpec, from: &str, w: &WindowSpec) -> Option<String> {
    match w.shape {
        Shape::Session { .. } | Shape::Count { .. } | Shape::State { .. } => {
            let mut names = keys(w);
            names.extend(shape_columns(&w.shape));
            Some(taken(p, from, &names))
        }
        Shape::Grid { .. } | Shape::Calendar(_) | Shape::Sliding { .. } => None,
    }
}

/// The columns of the key.
pub(super) fn keys(w: &WindowSpec) -> Names {
    named(w.input.fields(), &w.keys)
}

/// What decides where windows begin and end, and their numbers.
pub(super) fn bounds(w: &WindowSpec) -> String {
    let zone = match &w.shape {
        Shape::Calendar(CalendarSpec { zone: ZoneOf::Key(key), .. }) => {
            w.keys.get(*key).map(|key| w.input.field(*key).name().as_str())
        }
        _ => return shape_text(&w.shape),
    };
    let Shape::Calendar(calendar) = &w.shape else { return String::new() };
    // The place of the column among the keys is of no matter.
    let calendar = CalendarSpec { zone: ZoneOf::Key(0), ..calendar.clone() };
    format!("{} {zone:?}", shape_text(&Shape::Calendar(calendar)))
}

/// Which rows come to an edge, and what is in `names` of their columns.
fn taken(p: &PipelineSpec, edge: &str, names: &Names) -> String {
    let Some(step) = made_by(p, edge) else { return readings(p, edge, names) };
    let (own, names) = match &step.kind {
        StepKind::Filter(_) if is_of_finals(&step.name) => (String::new(), names.clone()),
        StepKind::Filter(f) => (format!(" filter {}", expr(&f.keep)), with(names, [&f.keep])),
        StepKind::Route(route) => {
            let last = route.branches.iter().position(|(name, _)| name == edge);
            let conditions = route.branches.iter().take(last.map_or(0, |last| last + 1));
            let conditions: Vec<_> = conditions.map(|(_, when)| ("", when.clone())).collect();
            let names = with(names, conditions.iter().map(|(_, when)| when));
            (format!(" route {}", exprs(&conditions)), names)
        }
        StepKind::Project(list) => {
            let asked = || list.iter().filter(|(name, _)| names.contains(name));
            let made: Vec<_> = asked().filter(|(name, e)| expr(e) != *name).cloned().collect();
            let own = match made.is_empty() {
                true => String::new(),
                false => format!(" derive {}", exprs(&made)),
            };
            (own, with(&Names::new(), asked().map(|(_, e)| e)))
        }
        StepKind::Window(w) => windows(w, names),
        StepKind::Enrich(e) => enrich(e, names),
        StepKind::Join(join) => {
            let right = join.columns.iter().filter(|(_, name)| names.contains(name));
            let right = right.map(|(column, _)| *column).chain(join.right_keys.iter().copied());
            let right: Vec<usize> = right.collect();
            let right = taken(p, &join.with, &named(join.right.fields(), &right));
            (format!(" with ({right}) {}", partners(join)), joined(join, names))
        }
        kind => (format!(" {} {}", state_text(kind), shown_text(kind)), asked_by(kind)),
    };
    taken(p, &step.from, &names) + &own
}

/// What decides which readings there are, and what is in `names` of them.
fn readings(p: &PipelineSpec, edge: &str, names: &Names) -> String {
    if edge != READINGS {
        return edge.to_owned();
    }
    let dedup = p.dedup.as_ref().map(|d| (named(d.input.fields(), &d.key), d.horizon_us));
    let d = &p.decode;
    // Fields that nothing reads can keep readings back, but only from now on: state that goes on
    // is not another one by that (see [`crate::content`]). Who sent it when is always read.
    let decides =
        |c: &&ColumnSpec| ["device", "time"].contains(&c.name.as_str()) || names.contains(&c.name);
    let text = |c: &ColumnSpec| {
        format!("{} {:?} {:?} {:?} {:?}", c.name, c.origin, c.kind, c.rules, c.on_invalid)
    };
    let columns: BTreeSet<String> = d.columns.iter().filter(decides).map(text).collect();
    format!(
        "{edge} {dedup:?} {:?} {:?} {} {:?} {columns:?}",
        d.format, d.explode, d.future_bound_us, d.past_bound_us
    )
}

/// Windows before others: what is in them matters where it is asked for.
fn windows(w: &WindowSpec, names: &Names) -> (String, Names) {
    let asked: Vec<_> = w.select.iter().filter(|(name, _)| names.contains(name)).cloned().collect();
    let own = format!(" windows {:?} {}", keys(w), bounds(w));
    let mut before = keys(w);
    before.extend(shape_columns(&w.shape));
    if asked.is_empty() {
        return (own, before);
    }
    // Calls are numbered by what is selected beside: here, by what is asked for.
    let called = with(&Names::new(), asked.iter().map(|(_, e)| e));
    let calls: Vec<usize> =
        (0..w.aggregates.len()).filter(|i| called.contains(&format!("agg{i}"))).collect();
    let mut shown = exprs(&asked);
    for (i, call) in calls.iter().enumerate().rev() {
        shown = shown.replace(&format!("agg{call}"), &format!("call {i}"));
    }
    let mut of = w.clone();
    of.aggregates = calls.iter().map(|call| Arc::clone(&w.aggregates[*call])).collect();
    of.filters = calls.iter().map(|call| w.filters[*call].clone()).collect();
    let arguments = of.aggregates.iter().flat_map(|a| {
        let orders = a.order_bys().iter().map(|order| Arc::clone(&order.expr));
        a.expressions().into_iter().chain(orders.collect::<Vec<_>>())
    });
    let all: Vec<Expr> = arguments.chain(of.filters.iter().flatten().cloned()).collect();
    (format!("{own} {} {shown}", state_text(&StepKind::Window(of))), with(&before, &all))
}

fn enrich(e: &EnrichSpec, names: &Names) -> (String, Names) {
    let values = e.registry.value_fields();
    let added: Vec<_> = e.columns.iter().map(|c| values[*c].name()).zip(&e.defaults).collect();
    let asked = added.iter().filter(|(name, _)| names.contains(*name));
    let asked: Vec<_> =
        asked.map(|(name, d)| format!("{name} {:?}", d.as_ref().map(expr))).collect();
    let mut before: Names = names.clone();
    added.iter().for_each(|(name, _)| {
        before.remove(*name);
    });
    if asked.is_empty() && e.missing == Missing::Null {
        return (String::new(), before);
    }
    let mut on = e.on.clone();
    on.push(e.time);
    let on = named(e.input.fields(), &on);
    before.extend(on.iter().cloned());
    let defaults = with(&Names::new(), e.defaults.iter().flatten());
    before.extend(defaults);
    (format!(" enrich {} {on:?} {:?} {asked:?}", e.registry.name, e.missing), before)
}

fn partners(join: &JoinSpec) -> String {
    let near = match &join.partners {
        Partners::Window { .. } => String::new(),
        Partners::Interval { before_us, after_us, nearest, .. } => {
            format!(" {before_us} {after_us} {nearest}")
        }
    };
    let left = named_in_order(join.left.fields(), &join.left_keys);
    let right = named_in_order(join.right.fields(), &join.right_keys);
    format!("{left:?} {right:?} {}{near}", join.outer)
}

fn joined(join: &JoinSpec, names: &Names) -> Names {
    let has = |name: &&String| join.left.index_of(name).is_ok();
    let mut left: Names = names.iter().filter(has).cloned().collect();
    left.extend(named(join.left.fields(), &join.left_keys));
    left
}

/// The columns of which a step makes rows of its own.
fn asked_by(kind: &StepKind) -> Names {
    match kind {
        StepKind::Detect(d) => with(&named(d.input.fields(), &d.keys), [&d.on]),
        StepKind::Latest(l) => {
            let all = l.select.iter().map(|(_, e)| e).chain(&l.at);
            with(&named(l.input.fields(), &l.keys), all)
        }
        StepKind::Absence(a) => {
            with(&named(a.input.fields(), &a.keys), a.select.iter().map(|(_, e)| e))
        }
        StepKind::Sequence(s) => {
            let all = s.select.iter().chain(&s.select_first).map(|(_, e)| e);
            let all = all.chain(&s.first).chain([&s.last]);
            with(&named(s.input.fields(), &s.keys), all)
        }
        StepKind::Filter(_)
        | StepKind::Project(_)
        | StepKind::Route(_)
        | StepKind::Window(_)
        | StepKind::Enrich(_)
        | StepKind::Join(_) => Names::new(),
    }
}

fn shape_columns(shape: &Shape) -> Names {
    let of = |all: &[&Expr]| with(&Names::new(), all.iter().copied());
    match shape {
        Shape::State { begin, until, abort, .. } => {
            of(&std::iter::once(begin).chain(until).chain(abort).collect::<Vec<_>>())
        }
        Shape::Sliding { at: Some(at), .. } => of(&[at]),
        _ => Names::new(),
    }
}

/// These names, and those in expressions.
fn with<'e>(names: &Names, all: impl IntoIterator<Item = &'e Expr>) -> Names {
    let mut names = names.clone();
    for e in all {
        // The closure does not fail.
        let _ = e.apply(|node| {
            names.extend(node.downcast_ref::<Column>().map(|column| column.name().to_owned()));
            Ok(TreeNodeRecursion::Continue)
        });
    }
    names
}

fn named(fields: &arrow::datatypes::Fields, columns: &[usize]) -> Names {
    named_in_order(fields, columns).into_iter().collect()
}

fn named_in_order(fields: &arrow::datatypes::Fields, columns: &[usize]) -> Vec<String> {
    columns.iter().map(|column| fields[*column].name().clone()).collect()
}
