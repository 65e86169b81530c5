//! Which columns of the readings the plan uses, so that decoding can leave out the others.
//!
//! Columns are followed from the consumers back to the readings, by name. Where an expression
//! cannot be read, everything counts as used.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::section::Section;
use crate::planner::columns_read;

/// What is used of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Columns by name.
    names: BTreeSet<String>,
    /// All declared columns, because a row is used as a whole.
    declared: bool,
    /// Also when and where in the journal a reading came in, because it is kept.
    stamps: bool,
}

impl Needs {
    /// Whether a declared column, or a capture, is used.
    pub(crate) fn keeps(&self, name: &str) -> bool {
        self.declared || self.names.contains(name)
    }

    /// Whether a column that is always available is used.
    pub(crate) fn keeps_builtin(&self, name: &str) -> bool {
        let stamp = matches!(name, "received_time" | "journal_offset");
        (self.stamps && stamp) || self.names.contains(name)
    }

    fn add(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
        self.declared |= other.declared;
        self.stamps |= other.stamps;
    }

    fn read(&mut self, text: &str) {
        match columns_read(text) {
            Ok(names) => self.names.extend(names),
            Err(_) => self.declared = true,
        }
    }

    fn read_key(&mut self, section: &Section<'_>, key: &str) {
        if let Some(text) = section.text(key) {
            self.read(text);
        }
    }

    fn read_map(&mut self, section: &Section<'_>, key: &str) {
        for text in section.entries(key).iter().filter_map(|e| e.node.text()) {
            self.read(text);
        }
    }

    fn name_list(&mut self, section: &Section<'_>, key: &str) {
        let names = section.texts(key).unwrap_or_default();
        self.names.extend(names.into_iter().map(|(name, _)| name.to_owned()));
    }
}

/// What is used of the edge `readings` of a pipeline.
pub(crate) fn of_readings(file: &Section<'_>) -> Needs {
    let mut edges = of_consumers(file);
    let steps = file.sections("step");
    // Each pass carries needs at least one step further back, so as many passes as steps do.
    for _ in 0..steps.len() {
        for step in steps.iter().rev() {
            let add = of_step(file, step, &edges);
            for (_, edge) in super::steps::inputs(step) {
                edges.entry(edge.to_owned()).or_default().add(&add);
            }
        }
    }
    edges.remove("readings").unwrap_or_default()
}

/// What alerts, tables and tests use of the edges.
fn of_consumers(file: &Section<'_>) -> BTreeMap<String, Needs> {
    let mut edges: BTreeMap<String, Needs> = BTreeMap::new();
    for alert in file.sections("alert") {
        let needs = edges.entry(alert.text("from").unwrap_or_default().to_owned()).or_default();
        // The record of an alert shows the whole row.
        needs.declared = true;
        needs.read_key(&alert, "fire");
        needs.read_key(&alert, "clear");
        needs.name_list(&alert, "by");
        let summary = alert.text("summary").unwrap_or_default();
        needs.names.extend(super::outputs::placeholders(summary).map(str::to_owned));
    }
    for table in file.sections("table") {
        let needs = edges.entry(table.text("from").unwrap_or_default().to_owned()).or_default();
        needs.declared = true;
        needs.stamps = true;
        needs.name_list(&table, "partition");
    }
    for test in file.sections("test") {
        for edge in test.entries("expect") {
            let needs = edges.entry(edge.key.clone()).or_default();
            for row in edge.node.list().iter().filter_map(|r| r.table()) {
                needs.names.extend(row.entries.iter().map(|e| e.key.clone()));
            }
        }
    }
    edges
}

/// What a step uses of its input, given what is used of its outputs.
fn of_step(file: &Section<'_>, step: &Section<'_>, edges: &BTreeMap<String, Needs>) -> Needs {
    let of = |name: &str| edges.get(name).cloned().unwrap_or_default();
    let output = of(step.text("name").unwrap_or_default());
    let mut needs = Needs::default();
    match step.component.tag {
        Some("filter") => {
            needs = output;
            needs.read_key(step, "where");
        }
        Some("derive") => {
            needs = output;
            for entry in step.entries("set") {
                needs.names.remove(&entry.key);
            }
            needs.read_map(step, "set");
        }
        Some("select") => needs.read_map(step, "columns"),
        Some("route") => {
            for branch in step.entries("branches") {
                needs.add(&of(&branch.key));
            }
            needs.read_map(step, "branches");
        }
        Some("window") => {
            needs.read_map(step, "select");
            needs.name_list(step, "by");
            let zone = step.section("zone").and_then(|zone| zone.text("column"));
            needs.names.extend(zone.map(str::to_owned));
            for key in ["while", "begin", "until", "abort", "at"] {
                needs.read_key(step, key);
            }
        }
        Some("sequence") => {
            for key in ["first", "then", "without", "when"] {
                needs.read_key(step, key);
            }
            needs.read_map(step, "select_first");
            needs.read_map(step, "select");
            needs.name_list(step, "by");
        }
        Some("absence") => {
            needs.read_map(step, "select");
            needs.name_list(step, "by");
        }
        Some("detect") => {
            needs.read_key(step, "on");
            needs.name_list(step, "by");
        }
        Some("join") => {
            // Which names clash, and are changed, must not depend on what else is used.
            needs = output;
            needs.declared = true;
            needs.name_list(step, "by");
            needs.name_list(step, "columns");
        }
        Some("latest") => {
            needs.read_map(step, "select");
            needs.read_key(step, "at");
            needs.name_list(step, "by");
        }
        Some("enrich") => {
            needs = output;
            of_enrich(file, step, &mut needs);
        }
        _ => needs.declared = true,
    }
    needs
}

/// What a join with a registry reads.
fn of_enrich(file: &Section<'_>, step: &Section<'_>, needs: &mut Needs) {
    needs.read_map(step, "default");
    needs.name_list(step, "on");
    // Columns of the key's own names, where nobody says others.
    let named = |r: &Section<'_>| r.text("name") == step.text("registry");
    if let Some(registry) = file.sections("registry").into_iter().find(named) {
        needs.name_list(&registry, "key");
    }
}
