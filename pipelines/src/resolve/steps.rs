//! `[[step]]`: the order of the steps, and the stateless ones. Windows and detectors are in
//! `windows.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::physical_expr::expressions::Column;
use tidegate_operators::spec::{Expr, FilterSpec, RegistrySpec, RouteSpec, StepKind, StepSpec};

use super::edges::{Edge, Edges, RESERVED, RowKind};
use super::hanging::Root;
use super::{absence, early, join, latest, nested, registry, sequence, sql, windows};
use crate::config::kinds::Key;
use crate::config::problem::{At, Reporter};
use crate::config::section::Section;
use crate::config::tree::Entry;

/// The steps of a pipeline as they are resolved.
pub(crate) struct Steps<'t> {
    pub(super) pipeline: String,
    pub(super) reading: Section<'t>,
    pub(super) limits: Section<'t>,
    pub(super) registries: Vec<RegistrySpec>,
    /// Readings come in when they are made: the source is not files.
    pub(super) live: bool,
    /// See [`tidegate_operators::outage::OutageSpec::known_after_us`].
    pub(super) known_after_us: i64,
    /// See [`tidegate_operators::spec::QualitySpec::keeps`].
    pub(super) keeps: bool,
    /// Names of registries with mistakes, which were reported.
    pub(super) bad_registries: Vec<String>,
    edges: Edges,
    pub(super) specs: Vec<StepSpec>,
    /// Edges that are not known because of a mistake, each with where that is.
    roots: Vec<Root>,
}

impl<'t> Steps<'t> {
    /// No step yet, only the readings.
    pub(crate) fn new(
        pipeline: &str,
        reading: Section<'t>,
        limits: Section<'t>,
        edges: Edges,
    ) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            reading,
            limits,
            registries: Vec::new(),
            live: true,
            known_after_us: 0,
            keeps: false,
            bad_registries: Vec::new(),
            edges,
            specs: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// What was resolved, and why some was not.
    pub(crate) fn finish(self) -> (Vec<StepSpec>, Edges, Vec<Root>) {
        (self.specs, self.edges, self.roots)
    }

    /// Resolves all steps, each after the one whose edge it reads.
    pub(crate) fn all(&mut self, file: &Section<'t>, report: &mut Reporter<'_>) {
        let written = file.sections("step");
        let (steps, left_out) = unique(&written, report);
        // Whoever reads them reads no edge that nobody has written.
        for (name, at) in file.left_out("step").into_iter().chain(left_out) {
            if !self.edges.contains(name) {
                self.edges.add(name, None);
                self.roots.push(Root { edges: vec![name.to_owned()], at });
            }
        }
        self.edges.set_nameless(written.iter().any(|step| step.text("name").is_none()));
        let outputs: Vec<Vec<&str>> = steps.iter().map(outputs).collect();
        let mut open: Vec<usize> = (0..steps.len()).collect();
        loop {
            let (ready, blocked): (Vec<usize>, Vec<usize>) = open
                .into_iter()
                .partition(|i| inputs(&steps[*i]).all(|(_, from)| self.edges.contains(from)));
            open = blocked;
            if ready.is_empty() {
                break;
            }
            for i in ready {
                self.step(&steps[i], report);
            }
        }
        // What is left reads an edge that is nowhere, or goes round in a circle.
        for i in &open {
            for name in &outputs[*i] {
                self.edges.add(name, None);
            }
            if steps[*i].component.tag == Some("route") {
                let names = outputs[*i].iter().map(|n| (*n).to_owned()).collect();
                self.edges.add_route(steps[*i].text("name").unwrap_or_default(), names);
            }
        }
        for i in &open {
            let unknown: Vec<(&str, &str)> =
                inputs(&steps[*i]).filter(|(_, from)| !self.edges.contains(from)).collect();
            for (key, from) in &unknown {
                let at = steps[*i].at(key);
                self.edges.report_unknown(from, at, report);
                let edges = outputs[*i].iter().map(|name| (*name).to_owned()).collect();
                self.roots.push(Root { edges, at });
            }
            if unknown.is_empty() && in_circle(*i, &open, &steps, &outputs) {
                let from = steps[*i].text("from").unwrap_or_default();
                let hint = "follow `from` from step to step: it must end at `readings`".to_owned();
                let message = format!("reading `{from}` goes round in a circle");
                report.error(steps[*i].at("from"), message, hint);
            }
        }
    }

    fn step(&mut self, step: &Section<'t>, report: &mut Reporter<'_>) {
        let name = step.text("name").unwrap_or_default().to_owned();
        let mark = report.mark();
        let from = self.taken(step, "from", report);
        let input = self.edges.peek(&from).cloned();
        let has_input = input.is_some();
        let resolved = input.and_then(|input| match step.component.tag {
            Some("filter") => filter(step, &input, report),
            Some("derive") => derive(step, &input, report),
            Some("select") => select(step, &input, report),
            Some("route") => route(step, &input, report),
            Some("window") => windows::window(self, step, &name, &input, report),
            Some("join") => {
                let with = self.edges.peek(&self.taken(step, "with", report))?;
                join::join(self, step, &name, (&input, with), report)
            }
            Some("latest") => latest::latest(self, step, &name, &input, report),
            Some("absence") => absence::absence(self, step, &name, &input, report),
            Some("sequence") => sequence::sequence(self, step, &name, &input, report),
            Some("enrich") => registry::enrich(self, step, &name, &input, report),
            _ => windows::detect(self, step, &name, &input, report),
        });
        let fits = |(kind, _): &(StepKind, Edge)| nested::not_kept(step, kind, report).is_some();
        let (kind, edge) = resolved.filter(fits).filter(|_| has_its_columns(step)).unzip();
        for output in outputs(step) {
            self.edges.add(output, edge.clone());
        }
        if edge.is_none() {
            // What is wrong with a value may have been found before.
            let before = || report.first_error_in(|at| has_input && step.covers(at));
            let edges = outputs(step).into_iter().map(str::to_owned).collect();
            let at = report.first_error_since(mark).or_else(before);
            self.roots.extend(at.map(|at| Root { edges, at }));
        }
        if step.component.tag == Some("route") {
            let names = outputs(step).into_iter().map(str::to_owned).collect();
            self.edges.add_route(&name, names);
        }
        if let (Some(kind), Some(edge)) = (kind, edge) {
            let finals = early::final_edge(&name, &edge);
            self.specs.push(StepSpec { name, from, output: edge.schema, kind });
            if let Some((step, edge)) = finals {
                self.edges.add(&step.name, Some(edge));
                self.specs.push(step);
            }
        }
    }

    /// The edge that a step reads where `key` names one.
    pub(super) fn taken(&self, step: &Section<'_>, key: &str, report: &mut Reporter<'_>) -> String {
        early::taken(&self.edges, step, key, report)
    }
}

/// Whether nothing is missing or misspelt that says which columns the rows of a step have.
fn has_its_columns(step: &Section<'_>) -> bool {
    const OPTIONAL: [&str; 5] = ["by", "on", "columns", "quality", "early"];
    let is_there = |key: &Key| step.entry(key.name).is_some();
    let keys = step.component.keys.iter();
    let misspelt = step.misspelt();
    let is_lost = |key: &Key| OPTIONAL.contains(&key.name) && misspelt.contains(&key.name);
    keys.filter(|key| key.name != "name" && (key.required || is_lost(key))).all(is_there)
}

/// The keys that name the edges which a step reads, with the names.
pub(super) fn inputs<'t>(step: &Section<'t>) -> impl Iterator<Item = (&'static str, &'t str)> {
    let with = (step.component.tag == Some("join")).then(|| step.text("with")).flatten();
    let from = step.text("from").unwrap_or_default();
    [("from", Some(from)), ("with", with)].into_iter().filter_map(|(key, edge)| Some((key, edge?)))
}

/// Names of the output edges of a step.
pub(super) fn outputs<'t>(step: &Section<'t>) -> Vec<&'t str> {
    if step.component.tag == Some("route") {
        step.entries("branches").iter().map(|e| e.key.as_str()).collect()
    } else {
        step.text("name").into_iter().collect()
    }
}

/// Whether step `start` reads, over other open steps, what it puts out itself.
fn in_circle(start: usize, open: &[usize], steps: &[Section<'_>], outputs: &[Vec<&str>]) -> bool {
    let (mut reached, mut seen) = (vec![start], BTreeSet::new());
    while let Some(at) = reached.pop() {
        for (_, from) in inputs(&steps[at]) {
            match open.iter().find(|i| outputs[**i].contains(&from)) {
                Some(next) if *next == start => return true,
                Some(next) if seen.insert(*next) => reached.push(*next),
                _ => {}
            }
        }
    }
    false
}

/// The steps whose names are their own; reports the others, and gives the edges that these would
/// have made, each with where that was reported.
fn unique<'t>(
    steps: &[Section<'t>],
    report: &mut Reporter<'_>,
) -> (Vec<Section<'t>>, Vec<(&'t str, At)>) {
    let mut taken: BTreeMap<&str, At> = BTreeMap::new();
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    for step in steps {
        let own = step.text("name").map(|name| (name, step.at("name")));
        let branches: &[Entry] = match step.component.tag {
            Some("route") => step.entries("branches"),
            _ => &[],
        };
        let branches = branches.iter().map(|e| (e.key.as_str(), e.key_at));
        let mut good = own.is_some();
        let mark = report.mark();
        for (name, at) in own.into_iter().chain(branches) {
            if RESERVED.contains(&name) {
                good = false;
                let message = format!("`{name}` is a name that Tidegate uses itself");
                report.error(at, message, "choose another name".to_owned());
            } else if let Some(first) = taken.get(name) {
                good = false;
                let (_, line) = report.place(*first);
                let message = format!("there is already a step or branch `{name}`");
                report.error(at, message, format!("the first one is in line {line}"));
            } else {
                taken.insert(name, at);
            }
        }
        if good {
            kept.push(*step);
        } else if let Some(at) = report.first_error_since(mark) {
            left_out.extend(outputs(step).into_iter().map(|name| (name, at)));
        }
    }
    // A name that one of them has, and another step as well, is that of the other one.
    left_out.retain(|(name, _)| !kept.iter().any(|step| outputs(step).contains(name)));
    (kept, left_out)
}

fn filter(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<(StepKind, Edge)> {
    let text = step.text("where")?;
    let want = Some(&DataType::Boolean);
    let mut expr = sql(text, step.at("where"), &input.schema, want, report)?;
    if let RowKind::Windows { withdrawn: true, .. } = input.rows {
        // What withdraws a window must come as far as the window came.
        let text = format!("({text}) OR \"rows\" = 0");
        expr = sql(&text, step.at("where"), &input.schema, want, report)?;
    }
    let takes_back = input.takes_back();
    Some((StepKind::Filter(FilterSpec { keep: expr, takes_back }), input.picked()))
}

fn route(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<(StepKind, Edge)> {
    let want = Some(&DataType::Boolean);
    let entries = step.entries("branches");
    if entries.is_empty() {
        report.error(step.at("branches"), "a route needs a branch", None);
    }
    let branches: Vec<(String, Expr)> = entries
        .iter()
        .filter_map(|e| {
            let expr = sql(e.node.text()?, e.node.at, &input.schema, want, report)?;
            Some((e.key.clone(), expr))
        })
        .collect();
    let route = RouteSpec { branches, takes_back: input.takes_back() };
    (route.branches.len() == entries.len()).then(|| (StepKind::Route(route), input.picked()))
}

/// One column that an expression makes.
pub(super) fn made(
    entry: &Entry,
    input: &SchemaRef,
    report: &mut Reporter<'_>,
) -> Option<(String, Expr, Field)> {
    let text = entry.node.text()?;
    let expr = sql(text, entry.node.at, input, None, report)?;
    let data_type = expr.data_type(input).ok()?;
    let nullable = expr.nullable(input).unwrap_or(true);
    let mut field = Field::new(&entry.key, data_type, nullable);
    // A column that is only renamed keeps its unit.
    if let Ok(same) = input.field_with_name(text.trim()) {
        field = field.with_metadata(same.metadata().clone());
    }
    Some((entry.key.clone(), expr, field))
}

/// The columns that a step makes; reports those that would replace what identifies a row.
fn all_made(
    entries: &[Entry],
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Vec<(String, Expr, Field)>> {
    let identity = input.identity();
    let (fixed, wanted): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|e| identity.contains(&e.key));
    for entry in fixed {
        // Naming such a column as itself does no harm.
        if entry.node.text().map(str::trim) != Some(entry.key.as_str()) {
            let message = format!("`{}` says what the row is about and stays", entry.key);
            report.error(entry.key_at, message, "choose another name".to_owned());
        }
    }
    let columns: Vec<(String, Expr, Field)> =
        wanted.iter().filter_map(|e| made(e, &input.schema, report)).collect();
    (columns.len() == wanted.len()).then_some(columns)
}

fn derive(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<(StepKind, Edge)> {
    let made = all_made(step.entries("set"), input, report)?;
    let mut columns = unchanged(&input.schema, |_| true);
    for (name, expr, field) in made {
        match columns.iter_mut().find(|c| c.0 == name) {
            Some(column) => *column = (name, expr, field),
            None => columns.push((name, expr, field)),
        }
    }
    Some(project(columns, input.rows.clone()))
}

fn select(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<(StepKind, Edge)> {
    let made = all_made(step.entries("columns"), input, report)?;
    let identity = input.identity();
    let mut columns = unchanged(&input.schema, |name| identity.iter().any(|n| n == name));
    columns.extend(made);
    Some(project(columns, input.rows.clone()))
}

/// The columns of the input that pass as they are.
fn unchanged(input: &SchemaRef, keep: impl Fn(&str) -> bool) -> Vec<(String, Expr, Field)> {
    input
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| keep(field.name()))
        .map(|(i, field)| {
            let expr: Expr = Arc::new(Column::new(field.name(), i));
            (field.name().clone(), expr, field.as_ref().clone())
        })
        .collect()
}

fn project(columns: Vec<(String, Expr, Field)>, rows: RowKind) -> (StepKind, Edge) {
    let fields: Vec<Field> = columns.iter().map(|c| c.2.clone()).collect();
    let schema = Arc::new(Schema::new(fields));
    let exprs = columns.into_iter().map(|(name, expr, _)| (name, expr)).collect();
    (StepKind::Project(exprs), Edge { schema, rows })
}
