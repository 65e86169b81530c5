//! Changes of windows that a table cannot take, because rows of the old ones and of the new ones
//! would be taken for one another.
//!
//! A row of windows is told apart by its key and its beginning, or its number. Windows of another
//! kind have the same ones, so they need another table ([`window_conflicts`]). So do windows that
//! are begun anew from a part of their readings: their revisions, and the numbers of counts, begin
//! anew below those of the table ([`begun_anew`]).

use std::collections::BTreeSet;

use tidegate_operators::spec::{
    CalendarSpec, DedupSpec, Partners, PipelineSpec, Shape, StepKind, StepSpec, TableSpec,
    WindowSpec, ZoneOf,
};

use crate::explain::shape_in_words;
use crate::fingerprint::{expr, exprs, shape_text};
use crate::recompute::maker;
use crate::resolve::early::is_of_finals;

/// Why tables of windows cannot go on as those of other pipelines, if they cannot.
pub fn window_conflicts(old: &[PipelineSpec], new: &[PipelineSpec]) -> Vec<String> {
    let before: Vec<Written<'_>> = written(old).collect();
    let conflicts = written(new).filter_map(|now| {
        let was = before.iter().find(|was| was.name == now.name)?;
        let why = difference(was.first()?, now.first()?)?;
        let table = &now.name;
        Some(format!(
            "table {table}: {why}, and rows of both would be taken for one another; give the new \
             table another name"
        ))
    });
    conflicts.collect()
}

/// A table that goes on with windows whose state is made anew from the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BegunAnew {
    /// Its name, with that of its pipeline.
    table: String,
    /// The step that makes the windows.
    step: String,
    /// The edge of which the table is.
    from: String,
    /// After this time all windows that had begun are final, microseconds; `None`: nobody knows.
    open_us: Option<i64>,
}

impl BegunAnew {
    /// Why this cannot be if the journal goes back to `since_us`, which is `since` for people, and
    /// the new windows begin at `now_us`.
    pub fn refused(&self, (since_us, since): (i64, &str), now_us: i64) -> Option<String> {
        if self.open_us.is_some_and(|open_us| open_us <= now_us.saturating_sub(since_us)) {
            return None;
        }
        let Self { table, step, from, .. } = self;
        let (_, name) = table.split_once('.')?;
        Some(format!(
            "table {table}: the windows of step `{step}` would begin anew, and the journal is kept \
             from {since} on: those that began before and are not over would lack readings, below \
             rows that the table has; give the table another name (`[[table]] from = \"{from}\", \
             name = \"{name}2\"`: what is there stays, the rows of the new one begin with that \
             time), or keep more of the journal (`--journal-keep`)"
        ))
    }
}

/// Tables that there were (`had`) and that go on with windows whose state (`keeps`, by operator)
/// does not.
pub fn begun_anew(
    new: &[PipelineSpec],
    keeps: impl Fn(&str) -> bool,
    had: impl Fn(&str) -> bool,
) -> Vec<BegunAnew> {
    let (keeps, had): (Keeps<'_>, Keeps<'_>) = (&keeps, &had);
    let anew = written(new).filter(|table| had(&table.name)).flat_map(|table| {
        let Written { pipeline: p, name, spec, windows } = table;
        let anew = windows.into_iter().filter(|(step, _)| !keeps(&operator(p, step)));
        anew.map(move |(step, window)| BegunAnew {
            table: name.clone(),
            step: step.name.clone(),
            from: spec.from.split('.').next().unwrap_or_default().to_owned(),
            open_us: open_us(p, (step, window), keeps),
        })
    });
    anew.collect()
}

/// The operators of windows among `anew` from which nothing is in a table that there was: those
/// that began before the journal are of a part of their readings.
pub(super) fn partial(
    p: &PipelineSpec,
    anew: impl Fn(&str) -> bool,
    had: impl Fn(&str) -> bool,
) -> BTreeSet<String> {
    let goes_on = going_on(std::slice::from_ref(p), had);
    let windows = p.steps.iter().filter(|step| matches!(step.kind, StepKind::Window(_)));
    let windows = windows.map(|step| operator(p, step));
    windows.filter(|name| anew(name) && !goes_on.contains(name)).collect()
}

/// The operators of windows from which something goes to a table that there was (`had`).
pub fn going_on(new: &[PipelineSpec], had: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let tables = written(new).filter(|table| had(&table.name));
    let all = tables.flat_map(|Written { pipeline: p, windows, .. }| {
        windows.into_iter().map(move |(step, _)| operator(p, step))
    });
    all.collect()
}

type Keeps<'a> = &'a dyn Fn(&str) -> bool;

fn operator(p: &PipelineSpec, step: &StepSpec) -> String {
    format!("{}/{}", p.name, step.name)
}

/// A table, and the window steps of which each of its rows is: first the one that tells its rows
/// apart. None: it is of something else.
struct Written<'p> {
    pipeline: &'p PipelineSpec,
    name: String,
    spec: &'p TableSpec,
    windows: Vec<(&'p StepSpec, &'p WindowSpec)>,
}

/// What tells the rows of a table apart.
type Rows<'p> = (&'p PipelineSpec, Option<(&'p StepSpec, &'p WindowSpec)>);

impl<'p> Written<'p> {
    fn first(&self) -> Option<Rows<'p>> {
        Some((self.pipeline, self.windows.first().copied()))
    }
}

fn written(pipelines: &[PipelineSpec]) -> impl Iterator<Item = Written<'_>> {
    let tables = pipelines.iter().flat_map(|p| p.tables.iter().map(move |t| (p, t)));
    tables.map(|(pipeline, spec)| {
        let name = format!("{}.{}", spec.namespace, spec.name);
        let mut windows = Vec::new();
        windows_of(pipeline, &spec.from, &mut windows);
        Written { pipeline, name, spec, windows }
    })
}

/// The window steps behind which an edge has one row of each of their windows.
fn windows_of<'p>(p: &'p PipelineSpec, edge: &str, out: &mut Vec<(&'p StepSpec, &'p WindowSpec)>) {
    let Some(step) = made_by(p, edge) else { return };
    match &step.kind {
        StepKind::Window(window) => out.push((step, window)),
        StepKind::Filter(_) | StepKind::Project(_) | StepKind::Route(_) | StepKind::Enrich(_) => {
            windows_of(p, &step.from, out);
        }
        StepKind::Join(join) => {
            windows_of(p, &step.from, out);
            if let Partners::Window { .. } = join.partners {
                windows_of(p, &join.with, out);
            }
        }
        StepKind::Detect(_)
        | StepKind::Latest(_)
        | StepKind::Absence(_)
        | StepKind::Sequence(_) => {}
    }
}

/// The step that makes an edge.
fn made_by<'p>(p: &'p PipelineSpec, edge: &str) -> Option<&'p StepSpec> {
    let own = || p.steps.iter().find(|step| step.name == edge);
    maker(p, edge).map(|(step, _)| step).or_else(own)
}

/// How long after its beginning a window is final for certain, and everything before it that may
/// have begun with it.
fn open_us(p: &PipelineSpec, (step, w): (&StepSpec, &WindowSpec), keeps: Keeps<'_>) -> Option<i64> {
    let waits_us = w.disorder_us.max(w.idle_close_us);
    let own_us = match keeps(&operator(p, step)) {
        // What it had begun it ends.
        true if w.shape.has_fixed_bounds() => waits_us,
        // Where these begin follows from all readings before: what is made anew beside the live
        // step begins elsewhere.
        true => return None,
        false if w.shape.has_fixed_bounds() => w.shape.longest_us()?.saturating_add(waits_us),
        false => return None,
    };
    let mut before = Vec::new();
    windows_of(p, &step.from, &mut before);
    let before = before.into_iter().map(|window| open_us(p, window, keeps));
    let before_us = before.collect::<Option<Vec<i64>>>()?.into_iter().max().unwrap_or_default();
    Some(own_us.saturating_add(before_us))
}

/// How rows that are told apart in this way differ from those of before, if they do.
fn difference((p, was): Rows<'_>, (q, now): Rows<'_>) -> Option<String> {
    let ((step_before, was), (step, now)) = match (was, now) {
        (Some(was), Some(now)) => (was, now),
        (None, None) => return None,
        (Some(_), None) => return Some("it has rows of windows, and would get others".to_owned()),
        (None, Some(_)) => return Some("it has rows of no windows, and would get some".to_owned()),
    };
    let (keys_before, keys) = (keys(was), keys(now));
    let (shape_before, shape) = (shape_in_words(&was.shape), shape_in_words(&now.shape));
    let what = if keys_before != keys {
        let list = |keys: &BTreeSet<&str>| match keys.is_empty() {
            true => "by nothing".to_owned(),
            false => format!("by {}", Vec::from_iter(keys.iter().copied()).join(", ")),
        };
        format!(" ({} before, now {})", list(&keys_before), list(&keys))
    } else if bounds(was) != bounds(now) {
        match shape_before == shape {
            true => String::new(),
            false => format!(" ({shape_before} before, now {shape})"),
        }
    } else if follows_readings(&now.shape) && taken(p, &step_before.from) != taken(q, &step.from) {
        " (of other readings than before)".to_owned()
    } else {
        return None;
    };
    Some(format!("its windows are others{what}"))
}

fn keys(w: &WindowSpec) -> BTreeSet<&str> {
    w.keys.iter().map(|key| w.input.field(*key).name().as_str()).collect()
}

/// What decides where windows begin and end, and their numbers.
fn bounds(w: &WindowSpec) -> String {
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

/// Whether the bounds, or the numbers, of a window depend on the readings before it.
fn follows_readings(shape: &Shape) -> bool {
    match shape {
        Shape::Session { .. } | Shape::Count { .. } | Shape::State { .. } => true,
        Shape::Grid { .. } | Shape::Calendar(_) | Shape::Sliding { .. } => false,
    }
}

/// Which rows come to an edge, and not what is in them.
fn taken(p: &PipelineSpec, edge: &str) -> String {
    let Some(step) = made_by(p, edge) else {
        let name = |d: &DedupSpec, key: usize| d.input.field(key).name().clone();
        let key = |d: &DedupSpec| d.key.iter().map(|key| name(d, *key)).collect::<Vec<_>>();
        return format!("{edge} {:?}", p.dedup.as_ref().map(key));
    };
    let own = match &step.kind {
        StepKind::Filter(_) if is_of_finals(&step.name) => String::new(),
        StepKind::Filter(filter) => format!(" filter {}", expr(&filter.keep)),
        StepKind::Route(route) => {
            let last = route.branches.iter().position(|(name, _)| name == edge);
            let conditions = route.branches.iter().take(last.map_or(0, |last| last + 1));
            let conditions: Vec<_> = conditions.map(|(_, when)| ("", when.clone())).collect();
            format!(" route {}", exprs(&conditions))
        }
        StepKind::Window(w) => format!(" windows {:?} {}", keys(w), bounds(w)),
        StepKind::Project(_) | StepKind::Enrich(_) => String::new(),
        StepKind::Detect(_) => " detect".to_owned(),
        StepKind::Latest(_) => " latest".to_owned(),
        StepKind::Absence(_) => " absence".to_owned(),
        StepKind::Sequence(_) => " sequence".to_owned(),
        StepKind::Join(join) => format!(" with ({}) {}", taken(p, &join.with), join.outer),
    };
    taken(p, &step.from) + &own
}

#[cfg(test)]
mod tests;
