//! Changes of windows that a table cannot take, because rows of the old ones and of the new ones
//! would be taken for one another.
//!
//! A row of windows is told apart by its key and its beginning, or its number. Windows of another
//! kind have the same ones, so they need another table ([`window_conflicts`]). So do windows that
//! are begun anew from a part of their readings: their revisions, and the numbers of counts, begin
//! anew below those of the table ([`begun_anew`]).

use std::collections::{BTreeMap, BTreeSet};

use tidegate_operators::spec::{
    Partners, PipelineSpec, StepKind, StepSpec, TableRows, TableSpec, TableWindows, WindowSpec,
};
use xxhash_rust::xxh3::xxh3_64;

use super::taken;
use crate::content::content_ids;
use crate::explain::shape_in_words;
use crate::recompute::maker;

/// Why tables of windows cannot go on as those of other pipelines, if they cannot.
pub fn window_conflicts(old: &[PipelineSpec], new: &[PipelineSpec]) -> Vec<String> {
    let rows = |table: &Written<'_>| rows_of(table.pipeline, table.spec);
    let before: BTreeMap<String, TableRows> =
        written(old).map(|table| (table.name.clone(), rows(&table))).collect();
    let conflicts = written(new).filter_map(|table| {
        let why = rows(&table).conflict(before.get(&table.name)?)?;
        Some(format!("table {}: {why}", table.name))
    });
    conflicts.chain(told_less(old, new)).collect()
}

/// Tables of windows whose bounds come from the readings that would be made anew by a step that
/// tells less of them early: the last row of one that is open would be below the early rows that
/// the table has. (Those of fixed bounds go on behind them.)
fn told_less(old: &[PipelineSpec], new: &[PipelineSpec]) -> Vec<String> {
    let before: Vec<Written<'_>> = written(old).collect();
    let mut less = Vec::new();
    for table in written(new) {
        let Some(was) = before.iter().find(|was| was.name == table.name) else { continue };
        let (Some((then, w)), Some((step, now))) = (was.windows.first(), table.windows.first())
        else {
            continue;
        };
        let is_less = w.early_us.is_some_and(|us| now.early_us.is_none_or(|now_us| now_us > us));
        let id =
            |p: &PipelineSpec, step: &StepSpec| content_ids(p).get(&operator(p, step)).copied();
        let is_anew = || id(was.pipeline, then) != id(table.pipeline, step);
        if is_less && !now.shape.has_fixed_bounds() && is_anew() {
            less.push(format!(
                "table {}: windows of step `{}` that are open were told early, and would be made \
                 anew with fewer early rows, so that their last rows were below those; change \
                 `early` by itself first, and the rest after it",
                table.name, step.name
            ));
        }
    }
    less
}

/// What the rows of a table are told apart by.
pub(crate) fn rows_of(p: &PipelineSpec, table: &TableSpec) -> TableRows {
    let mut windows = Vec::new();
    windows_of(p, &table.from, &mut windows);
    // The first one tells them apart.
    let windows = windows.first().map(|(step, w)| TableWindows {
        keys: taken::keys(w),
        shape: shape_in_words(&w.shape),
        bounds: hashed(&taken::bounds(w)),
        taken: taken::readings_of(p, &step.from, w).map(|text| hashed(&text)),
    });
    TableRows::of(windows)
}

fn hashed(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
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
    /// The table's name, with that of its pipeline.
    pub fn table(&self) -> &str {
        &self.table
    }

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

pub(super) fn operator(p: &PipelineSpec, step: &StepSpec) -> String {
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
pub(super) fn made_by<'p>(p: &'p PipelineSpec, edge: &str) -> Option<&'p StepSpec> {
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

#[cfg(test)]
mod tests;
