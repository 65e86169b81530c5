//! Names that a table's readers would mix up: columns that differ only in case, tables that hide
//! what others show, and partitions in which two keys are one.

use tidegate_operators::spec::TableSpec;

use super::{is_builtin, steps};
use crate::config::kinds::Kind;
use crate::config::problem::{At, Reporter};
use crate::config::section::Section;
use crate::graph::{READINGS, versions_edge};

/// What the name of a table ends with under which all revisions of its rows can be read.
const REVISIONS: &str = "_revisions";

/// Looks through all tables of a pipeline. Before it is known which columns are used (`all`), those
/// that need no declaration are left out: not every table has them.
pub(super) fn check(file: &Section<'_>, specs: &[TableSpec], all: bool, report: &mut Reporter<'_>) {
    columns(file, specs, all, report);
    if all {
        tables(file, specs, report);
        partitions(file, specs, report);
    }
}

fn columns(file: &Section<'_>, tables: &[TableSpec], all: bool, report: &mut Reporter<'_>) {
    let mut said: Vec<(&str, &str)> = Vec::new();
    for table in tables {
        let names: Vec<&str> = table.schema.fields().iter().map(|f| f.name().as_str()).collect();
        for (i, name) in names.iter().enumerate() {
            let same = |other: &&&str| other.eq_ignore_ascii_case(name);
            let Some(other) = names[..i].iter().find(same) else { continue };
            let spared = all && (is_builtin(name) || is_builtin(other));
            if spared || said.contains(&(*other, *name)) {
                continue;
            }
            said.push((*other, *name));
            let places = [written(file, &table.from, other), written(file, &table.from, name)];
            let at = places.into_iter().flatten().max_by_key(|at| at.start);
            let at = at.unwrap_or_else(|| place(file, table));
            let message = format!("columns `{other}` and `{name}` differ only in case");
            let hint = format!(
                "readers of the table `{}` take them for one: give one of them another name",
                table.name
            );
            report.error(at, message, hint);
        }
    }
}

/// Warns of tables with the names under which SQL shows more of others.
fn tables(file: &Section<'_>, tables: &[TableSpec], report: &mut Reporter<'_>) {
    for table in tables {
        let revisions = format!("{}{REVISIONS}", table.name);
        let hides = |other: &&TableSpec| other.name == revisions && !table.identity.is_empty();
        if let Some(other) = tables.iter().find(hides) {
            let message =
                format!("a table `{revisions}` hides the revisions of the table `{}`", table.name);
            let hint = "these are read under that name: give one of the two another name";
            report.warning(place(file, other), message, hint.to_owned());
        }
    }
    for registry in file.sections("registry") {
        let Some(name) = registry.text("name") else { continue };
        let history = versions_edge(name);
        for table in tables {
            let message = if table.name == name {
                format!("a table `{name}` hides what holds now of the registry `{name}`")
            } else if table.name == history && table.from != history {
                format!("a table `{history}` hides the history of the registry `{name}`")
            } else {
                continue;
            };
            let hint = "give the table or the registry another name".to_owned();
            report.warning(place(file, table), message, hint);
        }
    }
}

/// Warns of partitions by a part of a window's key that can be null: the protocol of Delta reads
/// an empty value of a partition as null, so the windows of these two keys would be one.
fn partitions(file: &Section<'_>, specs: &[TableSpec], report: &mut Reporter<'_>) {
    for (table, spec) in file.sections("table").iter().filter_map(|t| Some((t, spec_of(t, specs)?)))
    {
        for (column, at) in table.texts("partition").unwrap_or_default() {
            let field = spec.schema.field_with_name(column).ok();
            if !spec.identity.iter().any(|i| i == column) || !field.is_some_and(|f| f.is_nullable())
            {
                continue;
            }
            let message = format!(
                "`{column}` can be null and is part of the windows' key: as a partition, null and \
                 the empty text are one, and of two windows only one is shown"
            );
            let hint = format!(
                "make `{column}` required, or have no empty one: a step of type \"derive\" before \
                 the window with {column} = \"coalesce(nullif({column}, ''), '-')\""
            );
            report.warning(at, message, hint);
        }
    }
}

fn name_of<'t>(table: &Section<'t>) -> Option<&'t str> {
    table.text("name").or(table.text("from"))
}

fn spec_of<'s>(table: &Section<'_>, specs: &'s [TableSpec]) -> Option<&'s TableSpec> {
    specs.iter().find(|spec| Some(spec.name.as_str()) == name_of(table))
}

/// Where a table is named. That of a registry's history is not: its registry is.
fn place(file: &Section<'_>, table: &TableSpec) -> At {
    let tables = file.sections("table");
    if let Some(section) = tables.iter().find(|t| name_of(t) == Some(table.name.as_str())) {
        return section.at(if section.entry("name").is_some() { "name" } else { "from" });
    }
    let registries = file.sections("registry");
    let own = |r: &&Section<'_>| r.text("name").map(versions_edge).as_ref() == Some(&table.name);
    registries.iter().find(own).map_or(file.at, |registry| registry.at("name"))
}

/// Where a column of an edge is written: in the last step that makes it, or where it is declared.
fn written(file: &Section<'_>, edge: &str, name: &str) -> Option<At> {
    let declared = |section: &Section<'_>, key: &str| {
        section.entries(key).iter().find(|e| e.key == name).map(|e| e.key_at)
    };
    let steps = file.sections("step");
    let (mut open, mut seen) = (vec![edge], Vec::new());
    while let Some(edge) = open.pop() {
        if seen.contains(&edge) {
            continue;
        }
        seen.push(edge);
        if edge == READINGS {
            let found = file.section("reading").and_then(|r| declared(&r, "fields"));
            if found.is_some() {
                return found;
            }
        }
        let registries = file.sections("registry");
        let own = |r: &&Section<'_>| r.text("name").is_some_and(|n| versions_edge(n) == edge);
        if let Some(at) = registries.iter().find(own).and_then(|r| declared(r, "columns")) {
            return Some(at);
        }
        let Some(step) = steps.iter().find(|s| steps::outputs(s).contains(&edge)) else { continue };
        let makes = step.component.keys.iter();
        let makes = makes.filter(|k| matches!(k.kind, Kind::SqlMap) && k.name != "branches");
        let made = makes.filter_map(|key| declared(step, key.name)).next();
        if made.is_some() {
            return made;
        }
        open.extend(steps::inputs(step).map(|(_, from)| from));
        if step.component.tag != Some("enrich") {
            continue;
        }
        let added = || step.texts("columns")?.into_iter().find(|(n, _)| *n == name).map(|c| c.1);
        let joined = |r: &&Section<'_>| r.text("name") == step.text("registry");
        let of_registry = || declared(registries.iter().find(joined)?, "columns");
        if let Some(at) = added().or_else(of_registry) {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests;
