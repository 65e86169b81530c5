//! Whether rows have the columns that a registry declares: one that nobody writes is misspelt, in
//! the header or in the plan, and everything would have its default from then on.
//!
//! Rows of tables (CSV, Parquet) have all columns of their header or schema, if only as null, so
//! one row tells; objects of JSON may leave members out, and only what none of them has is missing.

use serde_json::Value;
use tidegate_operators::Messages;
use tidegate_pipelines::config::problem::nearest;
use tidegate_pipelines::plan::RegistrySource;

/// Rows do not have a column that is declared; the rest of them could be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Lacks(pub(super) String);

/// Names that are there are collected from so many rows, and up to so many.
const LOOK_ROWS: usize = 1_000;
const NAMES_MAX: usize = 1_000;

/// Names that are told at most, and characters of each.
const TOLD_MAX: usize = 12;
const NAME_CHARS_MAX: usize = 60;

/// The columns that no row has, for people, with what there may be in their place. `is_table` is
/// whether each row has all columns; if not, since when they hold may be said by no row.
pub(super) fn missing(
    source: &RegistrySource,
    file: &[Messages],
    is_table: bool,
) -> Option<String> {
    let since = source.valid_from.as_ref().filter(|_| is_table);
    let since = since.map(|member| ("valid_from", vec![member.clone()]));
    let columns = source.columns.iter().map(|(name, path)| (name.as_str(), path.clone()));
    let mut missing: Vec<(&str, Vec<String>)> = columns.chain(since).collect();
    for row in rows(file) {
        if missing.is_empty() {
            return None;
        }
        missing.retain(|(_, path)| !has(&row, path));
    }
    if missing.is_empty() {
        return None;
    }
    let told: Vec<String> =
        missing.iter().map(|(name, path)| told(source, file, name, path)).collect();
    let told = told.join(", nor ");
    Some(format!("{told}; a column that may be in none of it says `required = false`"))
}

fn rows(file: &[Messages]) -> impl Iterator<Item = Value> + '_ {
    let messages = file.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
    let messages = messages.filter(|(m, i)| !m.index[*i].refused);
    messages.filter_map(|(m, i)| serde_json::from_slice(m.payload(i)).ok())
}

/// Whether a row has this member, if only as null.
fn has(row: &Value, path: &[String]) -> bool {
    let mut at = row;
    for member in path {
        match at.get(member) {
            Some(value) => at = value,
            // What is null has nothing in it, but it is there.
            None => return at.is_null(),
        }
    }
    true
}

/// One column that is missing, and what was probably meant.
fn told(source: &RegistrySource, file: &[Messages], name: &str, path: &[String]) -> String {
    let wanted = path.join(".");
    let of = if name == wanted { String::new() } else { format!(", which is `{name}`") };
    let there = names(file, path.len());
    let declared = |name: &String| {
        let mut columns = source.key.iter().chain(&source.columns);
        columns.any(|(_, path)| path.join(".") == *name) || source.valid_from.as_ref() == Some(name)
    };
    let others = there.iter().filter(|name| !declared(name)).map(String::as_str);
    if let Some(near) = nearest(&wanted, others) {
        return format!("`{wanted}`{of} (it has `{}`: did you mean that?)", shown(near));
    }
    let list: Vec<String> =
        there.iter().take(TOLD_MAX).map(|name| format!("`{}`", shown(name))).collect();
    let more = if there.len() > TOLD_MAX { ", ..." } else { "" };
    format!("`{wanted}`{of} (it has {}{more})", list.join(", "))
}

/// A name that somebody else wrote.
fn shown(name: &str) -> String {
    name.escape_debug().take(NAME_CHARS_MAX).collect()
}

/// Names of members down to `depth`, in the order in which they come.
fn names(file: &[Messages], depth: usize) -> Vec<String> {
    let mut names = Vec::new();
    for row in rows(file).take(LOOK_ROWS) {
        collect(&row, "", depth, &mut names);
    }
    names
}

fn collect(row: &Value, before: &str, depth: usize, names: &mut Vec<String>) {
    let Some(members) = row.as_object() else { return };
    for (member, value) in members {
        let name = format!("{before}{member}");
        if value.is_object() && depth > 1 {
            collect(value, &format!("{name}."), depth - 1, names);
        } else if names.len() < NAMES_MAX && !names.contains(&name) {
            names.push(name);
        }
    }
}
