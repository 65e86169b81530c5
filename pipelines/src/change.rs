//! What becomes of everything when one plan takes the place of another.
//!
//! Pure, so that it can be said beforehand: `tidegate explain --against`, `tidegate apply
//! --dry-run` and the change itself ask here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tidegate_operators::spec::{PipelineSpec, TableSpec};

use crate::content::{content_ids, kept, shown_ids};
use crate::graph;
use crate::plan::{NotifySpec, Plan, SourceKind};

mod taken;
mod waits;
mod windows;

pub use self::waits::{same_windows, waiting_as_before};
pub(crate) use self::windows::rows_of;
pub use self::windows::{BegunAnew, begun_anew, going_on, window_conflicts};

/// What is said of a table that is new: state made anew tells nothing again.
const NEW_TABLE: &str = "new, with what is told from now on";

/// From when on state is made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// It is not known.
    Unknown,
    /// From the first message on.
    Beginning,
    /// From this time on, for people: what came before is not in the journal any more.
    Time(String),
}

/// What becomes of the state of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Kept,
    /// It stays; the operator had this name.
    Renamed(String),
    /// The operator is another one: its state is made anew from the journal.
    Rebuilt,
    /// There was no such operator: its state is made from the journal.
    New,
    /// The operator goes, and its state with it.
    Gone,
}

/// What becomes of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing: it is not touched.
    Same,
    /// It is replaced.
    Changed,
    /// It is new.
    Added,
    /// It goes.
    Removed,
}

/// A pipeline of the old plan, the new one, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineChange {
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub what: What,
    /// Its operators with state, by name.
    pub operators: BTreeMap<String, Fate>,
    /// Those of them that keep their state and make other rows of it from now on.
    pub shown: BTreeSet<String>,
    /// Those of them that begin anew with windows of which no table had rows.
    pub partial: BTreeSet<String>,
    /// Tables that it begins to write and tables that it writes no more.
    pub tables: (Vec<String>, Vec<String>),
}

/// From one plan to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// All pipelines, by name.
    pub pipelines: Vec<PipelineChange>,
}

impl Change {
    /// What is to be done to get from one plan to the other.
    pub fn between(old: &[PipelineSpec], new: &[PipelineSpec]) -> Self {
        let by_name = |list: &[PipelineSpec]| -> BTreeMap<String, PipelineSpec> {
            list.iter().map(|p| (p.name.clone(), p.clone())).collect()
        };
        let (old, new) = (by_name(old), by_name(new));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let of = |name: &String| pipeline(name, old.get(name), new.get(name));
        Self { pipelines: names.into_iter().map(of).collect() }
    }

    /// Pipelines that are not as they were.
    pub fn touched(&self) -> impl Iterator<Item = &PipelineChange> {
        self.pipelines.iter().filter(|p| p.what != What::Same)
    }

    /// Whether there is nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.touched().next().is_none()
    }

    /// Names of operators whose state has to be made anew.
    pub fn rebuilt(&self) -> BTreeSet<String> {
        let all = self.pipelines.iter().flat_map(|p| &p.operators);
        let anew = all.filter(|(_, fate)| matches!(fate, Fate::Rebuilt | Fate::New));
        anew.map(|(name, _)| name.clone()).collect()
    }

    /// Names of operators whose state goes on.
    pub fn kept(&self) -> BTreeSet<String> {
        let all = self.pipelines.iter().flat_map(|p| &p.operators);
        let kept = all.filter(|(_, fate)| matches!(fate, Fate::Kept | Fate::Renamed(_)));
        kept.map(|(name, _)| name.clone()).collect()
    }

    /// Alert rules whose open alerts end: `pipeline/alert/rule`.
    pub fn ended(&self) -> BTreeSet<String> {
        let all = self.pipelines.iter().flat_map(|p| &p.operators);
        let ended = all.filter(|(_, fate)| matches!(fate, Fate::Rebuilt | Fate::Gone));
        ended.map(|(name, _)| name.clone()).filter(|name| rule_of(name).is_some()).collect()
    }

    /// For people. `since` says from when on state is made anew.
    pub fn show(&self, since: &Since) -> String {
        let mut out = String::new();
        for p in &self.pipelines {
            let what = match p.what {
                What::Same => "unchanged, not touched",
                What::Changed => "changed",
                What::Added => "new",
                What::Removed => "removed",
            };
            let _ = writeln!(out, "pipeline {}: {what}", p.name);
            if p.what == What::Same {
                continue;
            }
            for (name, fate) in &p.operators {
                let short = name.strip_prefix(&format!("{}/", p.name)).unwrap_or(name);
                let rows = match p.shown.contains(name) {
                    true => "; its rows are other ones from now on, those before stay as they are",
                    false => "",
                };
                let part = match since {
                    Since::Time(_) if p.partial.contains(name) => {
                        "; windows that began before that are of a part of their readings"
                    }
                    _ => "",
                };
                let _ = writeln!(out, "  {short}: {}{rows}{part}", told(name, fate, since));
            }
            for (verb, tables) in [(NEW_TABLE, &p.tables.0), ("written no more", &p.tables.1)] {
                for table in tables {
                    let _ = writeln!(out, "  table {table}: {verb}");
                }
            }
        }
        out
    }
}

fn told(name: &str, fate: &Fate, since: &Since) -> String {
    let from = match since {
        Since::Unknown => "what the journal still has",
        Since::Beginning => "the first message",
        Since::Time(time) => time,
    };
    let alerts = match rule_of(name) {
        Some(_) => "; its open alerts end as rule_changed",
        None => "",
    };
    match fate {
        Fate::Kept => "keeps its state".to_owned(),
        Fate::Renamed(before) => format!("keeps its state (it was {before})"),
        Fate::Rebuilt => format!("changed, rebuilt from {from}{alerts}"),
        Fate::New => format!("new, built from {from}"),
        Fate::Gone => format!("goes, with its state{alerts}"),
    }
}

/// Pipeline and rule of the operator of an alert.
pub fn rule_of(operator: &str) -> Option<(&str, &str)> {
    let (pipeline, rest) = operator.split_once('/')?;
    Some((pipeline, rest.strip_prefix("alert/")?))
}

fn pipeline(name: &str, old: Option<&PipelineSpec>, new: Option<&PipelineSpec>) -> PipelineChange {
    let what = match (old, new) {
        (None, _) => What::Added,
        (_, None) => What::Removed,
        // Everything that is built from it, also what does not decide what it computes.
        (Some(old), Some(new)) if format!("{old:?}") == format!("{new:?}") => What::Same,
        _ => What::Changed,
    };
    let ids = |p: Option<&PipelineSpec>| p.map(content_ids).unwrap_or_default();
    let (before, now) = (ids(old), ids(new));
    let kept = kept(&before, &now);
    let mut operators = BTreeMap::new();
    for operator in now.keys() {
        let fate = match kept.get(operator) {
            Some(same) if same == operator => Fate::Kept,
            Some(other) => Fate::Renamed(other.clone()),
            None if before.contains_key(operator) => Fate::Rebuilt,
            None => Fate::New,
        };
        operators.insert(operator.clone(), fate);
    }
    let rows = |p: Option<&PipelineSpec>| p.map(shown_ids).unwrap_or_default();
    let (rows_before, rows_now) = (rows(old), rows(new));
    let other_rows = kept.iter().filter(|(is, was)| rows_now.get(*is) != rows_before.get(*was));
    let shown = other_rows.map(|(is, _)| is.clone()).collect();
    let taken: BTreeSet<&String> = kept.values().collect();
    for operator in before.keys() {
        if !now.contains_key(operator) && !taken.contains(operator) {
            operators.insert(operator.clone(), Fate::Gone);
        }
    }
    let tables = |p: Option<&PipelineSpec>| -> BTreeSet<String> {
        let full = |t: &TableSpec| format!("{}.{}", t.namespace, t.name);
        p.map(|p| p.tables.iter().map(full).collect()).unwrap_or_default()
    };
    let (before, now) = (tables(old), tables(new));
    let anew = |name: &str| matches!(operators.get(name), Some(Fate::Rebuilt | Fate::New));
    let partial = |p: &PipelineSpec| windows::partial(p, anew, |table| before.contains(table));
    let partial = new.map(partial).unwrap_or_default();
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
    let tables = (only(&now, &before), only(&before, &now));
    PipelineChange { name: name.to_owned(), what, operators, shown, partial, tables }
}

/// Numbers the sources of `new` as those that run, `old`. What cannot change while they run is
/// said, with what to do.
pub fn adopt_sources(old: &Plan, new: &mut Plan) -> Vec<String> {
    let mut problems = Vec::new();
    let mut numbers = Vec::new();
    let again = "stop Tidegate and start it with the new files: nothing is lost by that";
    for source in &new.sources {
        let place = old.sources.iter().position(|s| s.name == source.name);
        match place {
            None => problems.push(format!(
                "source {} does not run: a source cannot be opened or moved while running; {again}",
                source.name
            )),
            Some(place) if !same_source(&old.sources[place].kind, &source.kind) => {
                problems.push(format!(
                    "source {}: its settings cannot change while it runs; {again}",
                    source.name
                ));
            }
            Some(_) => {}
        }
        numbers.push(place.unwrap_or_default() as u16);
    }
    for source in &old.sources {
        if !new.sources.iter().any(|s| s.name == source.name) {
            problems.push(format!(
                "source {} would be read by no pipeline: it cannot be closed while running; \
                 {again}",
                source.name
            ));
        }
    }
    for pipeline in &mut new.pipelines {
        pipeline.decode.source = numbers[usize::from(pipeline.decode.source)];
    }
    for webhook in &new.notifications {
        let same = |o: &&NotifySpec| (&o.pipeline, &o.name) == (&webhook.pipeline, &webhook.name);
        if old.notifications.iter().find(same).is_some_and(|o| o != webhook) {
            problems.push(format!(
                "notify {} of pipeline {}: a webhook cannot change while it is in use; give the \
                 new one another name, or {again}",
                webhook.name, webhook.pipeline
            ));
        }
    }
    problems.extend(other_registries(old, new, again));
    new.sources.clone_from(&old.sources);
    problems
}

/// Registries that are not what they were: their files are opened at a start.
fn other_registries(old: &Plan, new: &Plan, again: &str) -> Vec<String> {
    let only = |a: &Plan, b: &Plan| -> Vec<String> {
        let other = a.registries.iter().filter(|r| !b.registries.iter().any(|s| r.is_as(s)));
        other.map(|r| format!("{}.{}", r.pipeline, r.name)).collect()
    };
    let mut names = only(new, old);
    names.extend(only(old, new));
    names.sort();
    names.dedup();
    let said = |name| {
        format!("registry {name}: it cannot be opened, changed or closed while running; {again}")
    };
    names.into_iter().map(said).collect()
}

/// Whether the doors stay as they are. Which topics are readings is the pipelines' own affair, as
/// long as the endpoint passes all of them on.
fn same_source(old: &SourceKind, new: &SourceKind) -> bool {
    match (old, new) {
        (SourceKind::Endpoint(old), SourceKind::Endpoint(new)) if old.deliver.is_empty() => {
            let mut with_filters = new.clone();
            with_filters.filters.clone_from(&old.filters);
            *old == with_filters
        }
        _ => old == new,
    }
}

/// Why tables of these pipelines cannot go on as those that are open, if they cannot.
pub fn table_conflicts(open: &[TableSpec], pipelines: &[PipelineSpec]) -> Vec<String> {
    let tables = graph::tables(pipelines);
    let conflicts = tables.iter().filter_map(|new| {
        let same = |o: &&TableSpec| (&o.namespace, &o.name) == (&new.namespace, &new.name);
        conflict(open.iter().find(same)?, new)
    });
    conflicts.collect()
}

/// Why a table cannot go on as another one, if it cannot: columns may come and go, nothing else;
/// and its rows stay those of the same windows.
fn conflict(open: &TableSpec, new: &TableSpec) -> Option<String> {
    let name = format!("{}.{}", new.namespace, new.name);
    let hint = "give the new table another name";
    if open.partition != new.partition {
        return Some(format!("table {name}: its partition columns cannot change; {hint}"));
    }
    for field in new.schema.fields() {
        let Ok(before) = open.schema.field_with_name(field.name()) else { continue };
        if before.data_type() != field.data_type() {
            let (was, is) = (before.data_type(), field.data_type());
            let column = field.name();
            return Some(format!("table {name}: column `{column}` is {was}, not {is}; {hint}"));
        }
    }
    let why = new.rows.as_ref()?.conflict(open.rows.as_ref()?)?;
    Some(format!("table {name}: {why}"))
}

#[cfg(test)]
mod tests;
