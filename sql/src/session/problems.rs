//! Query errors as a person wants them: one sentence, what is close, what exists.

use std::io::ErrorKind;

use arrow::error::ArrowError;
use datafusion::common::{Column, SchemaError, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionState;
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::parser::ParserError;
use tidegate_pipelines::bounds::about;

use super::TableName;
use super::wording::reword;
use crate::Error;

/// Names that are listed in an error before it says how many more there are.
const LISTED_MAX: usize = 20;

/// Tables of a query whose columns are listed.
const TABLES_MAX: usize = 3;

/// How similar (0 to 1, Jaro-Winkler) a name must be to be proposed.
const SIMILAR_MIN: f64 = 0.75;

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let score = |k: &str| strsim::jaro_winkler(&name, &k.to_lowercase());
    let scored = known.map(|k| (score(k), k)).filter(|(s, _)| *s >= SIMILAR_MIN);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
}

/// A table that does not exist.
pub(super) fn unknown_table(reference: &TableReference, tables: &[TableName]) -> Error {
    // Those of pipelines first: it is them that people misspell.
    let (system, own): (Vec<&TableName>, Vec<&TableName>) =
        tables.iter().partition(|t| t.schema == "system");
    let full: Vec<String> = own.iter().chain(&system).map(ToString::to_string).collect();
    let close = match reference.schema() {
        Some(schema) => {
            let wanted = format!("{schema}.{}", reference.table());
            nearest(&wanted, full.iter().map(String::as_str))
        }
        None => nearest(reference.table(), tables.iter().map(|t| t.name.as_str())),
    };
    let known = match full.is_empty() {
        true => "there are no tables yet".to_owned(),
        false => format!("tables: {}", list(&full)),
    };
    Error::Query(format!("unknown table `{reference}`{}\n{known}", hint(close)))
}

/// What the parser says, in the middle of a sentence.
fn syntax(error: &ParserError) -> String {
    match error {
        ParserError::ParserError(text) | ParserError::TokenizerError(text) => text
            .replace("Expected: ", "expected ")
            .replace(" at Line: ", " at line ")
            .replace(", Column: ", ", column "),
        ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    }
}

/// Words that make a query what it is: whoever wrote them meant no name.
const STRUCTURE: [&str; 16] = [
    "SELECT", "FROM", "WHERE", "AS", "AND", "OR", "NOT", "ON", "JOIN", "BY", "HAVING", "LIMIT",
    "UNION", "WITH", "DESC", "ASC",
];

/// What a word of SQL needs to be a name, if the parser did not expect that word.
fn quoting(said: &str) -> String {
    let found = said.split_once("found: ").map_or("", |(_, rest)| rest);
    let word = found.split(' ').next().unwrap_or_default();
    let upper = word.to_uppercase();
    let is_word = ALL_KEYWORDS.binary_search(&upper.as_str()).is_ok();
    match is_word && !STRUCTURE.contains(&upper.as_str()) {
        true => format!("; a name that is a word of SQL is in double quotes: \"{word}\""),
        false => String::new(),
    }
}

/// The tables of a query as it calls them, each with its columns, in their order.
fn by_table(columns: &[Column]) -> Vec<(String, Vec<String>)> {
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for column in columns {
        let table = column.relation.as_ref().map(ToString::to_string).unwrap_or_default();
        let at = tables.iter().position(|(name, _)| *name == table).unwrap_or_else(|| {
            tables.push((table, Vec::new()));
            tables.len() - 1
        });
        let names = &mut tables[at].1;
        if !names.contains(&column.name) {
            names.push(column.name.clone());
        }
    }
    tables
}

/// A column that does not exist; `text` is the query.
fn unknown_column(field: &Column, valid: &[Column], text: &str) -> String {
    let name = &field.name;
    let mut tables = by_table(valid);
    if let Some(relation) = &field.relation {
        let last = |table: &str| table.rsplit('.').next().unwrap_or_default().to_owned();
        let (wanted, short) = (relation.to_string(), relation.table());
        let of = |table: &str| table == wanted || last(table) == short;
        if !tables.iter().any(|(table, _)| of(table)) {
            let known = tables.into_iter().map(|(table, _)| table);
            let known: Vec<String> = known.filter(|table| !table.is_empty()).collect();
            if known.is_empty() {
                return format!("no table `{wanted}` is in FROM");
            }
            let hint = hint(nearest(&wanted, known.iter().map(String::as_str)));
            let known = list(&known);
            return format!("no table `{wanted}` is in FROM{hint}\ntables in FROM: {known}");
        }
        tables.retain(|(table, _)| of(table));
    }
    let all = || tables.iter().flat_map(|(_, names)| names.iter().map(String::as_str));
    let close = nearest(name, all());
    let shown = close.map(|close| {
        let column = match close.chars().any(char::is_uppercase) {
            true => format!("\"{close}\""),
            false => close.to_owned(),
        };
        let mut of = tables.iter().filter(|(_, names)| names.iter().any(|n| n == close));
        match (of.next(), of.next()) {
            (Some((table, _)), Some(_)) => format!("{table}.{column}"),
            _ => column,
        }
    });
    let hint = match &shown {
        None if text.contains(&format!("\"{name}\"")) => {
            format!("; text is in single quotes: '{name}'")
        }
        shown => hint(shown.as_deref()),
    };
    match &tables[..] {
        [] => format!("unknown column `{name}`\nthere are no columns without a FROM"),
        [(table, names)] => {
            let of = if table.is_empty() { String::new() } else { format!(" of {table}") };
            format!("unknown column `{name}`{of}{hint}\ncolumns: {}", list(names))
        }
        several => {
            let lines = several.iter().take(TABLES_MAX).map(|(table, names)| {
                let of = if table.is_empty() { "the result" } else { table.as_str() };
                format!("\ncolumns of {of}: {}", list(names))
            });
            format!("unknown column `{name}`{hint}{}", lines.collect::<String>())
        }
    }
}

/// A column that several tables have.
fn ambiguous(field: &Column, error: &DataFusionError) -> String {
    let name = &field.name;
    let notes = error.diagnostic().map(|d| d.notes.as_slice()).unwrap_or_default();
    let known: Vec<String> = notes
        .iter()
        .filter_map(|note| note.message.strip_prefix("possible column "))
        .map(|column| format!("`{column}`"))
        .collect();
    match known.is_empty() {
        true => format!("several tables have a column `{name}`: write `TABLE.{name}`"),
        false => format!("several tables have a column `{name}`: write {}", known.join(" or ")),
    }
}

/// What people write who know other databases, or the word, and what it is called here.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("average", "avg"),
    ("maximum", "max"),
    ("minimum", "min"),
    ("time_bucket", "date_bin"),
    ("percentile", "quantile"),
    ("percentile_cont", "quantile"),
];

/// Aggregates that are meant before others, where a word is as close to several functions.
const USUAL: [&str; 8] = ["avg", "count", "first", "last", "max", "min", "sum", "median"];

/// A function that does not exist; `known` are those that do.
fn unknown_function(name: &str, known: &[&str]) -> String {
    let lower = name.to_lowercase();
    let others = OTHER_NAMES.iter().filter(|(_, here)| known.contains(here));
    let all = others.copied().chain(known.iter().map(|known| (*known, *known)));
    let scored = all.map(|(word, here)| {
        let distance = strsim::damerau_levenshtein(&lower, word);
        (distance, !USUAL.contains(&here), here)
    });
    // A third of it may be wrong.
    let close =
        scored.filter(|(distance, ..)| *distance <= lower.chars().count().div_ceil(3)).min();
    format!("unknown function `{name}`{}", hint(close.map(|(.., here)| here)))
}

/// The function that a query calls and that does not exist, if that is its error.
fn missing_function(error: &DataFusionError) -> Option<&str> {
    let DataFusionError::Plan(text) = error.find_root() else { return None };
    text.split_once("Invalid function '")?.1.split('\'').next()
}

/// [`explain`] where the functions are known.
pub(super) fn explain_with(error: DataFusionError, text: &str, state: &SessionState) -> Error {
    let Some(name) = missing_function(&error) else { return explain(error, text) };
    Error::Query(unknown_function(name, &functions(state)))
}

fn functions(state: &SessionState) -> Vec<&str> {
    let names = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
    names.chain(state.window_functions().keys()).map(String::as_str).collect()
}

/// An error of the query `text`, or of one whose text is not known here.
pub(crate) fn explain(error: DataFusionError, text: &str) -> Error {
    let root = error.find_root();
    Error::Query(match root {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                unknown_column(field, valid_fields, text)
            }
            SchemaError::AmbiguousReference { field } => ambiguous(field, &error),
            other => other.to_string(),
        },
        DataFusionError::SQL(parser, _) => {
            let said = syntax(parser);
            let hint = quoting(&said);
            format!("not valid SQL: {said}{hint}")
        }
        DataFusionError::Plan(text)
        | DataFusionError::NotImplemented(text)
        | DataFusionError::Execution(text)
        | DataFusionError::Internal(text) => reword(text),
        DataFusionError::ArrowError(arrow, _) => reword(&arrow.to_string()),
        DataFusionError::External(inner) if inner.is::<Error>() => inner.to_string(),
        _ => return Error::DataFusion(error),
    })
}

/// What may be done about a query that is too large.
const ASK_FOR_LESS: &str = "Ask for less: fewer days or devices (WHERE), fewer columns, with ORDER \
                            BY a LIMIT; or for one part after the other";

/// What DataFusion says where the limit of what queries put on disk is reached.
const SPILLED_TOO_MUCH: &str = "used disk space during the spilling process";

/// [`explain`] of an error while a query runs, with the limits that it has there.
pub(super) fn explain_run(error: DataFusionError, limits: &RuntimeEnv) -> Error {
    let disk = &limits.disk_manager;
    match error.find_root() {
        // It has no kind of its own, and comes in several.
        root if root.to_string().contains(SPILLED_TOO_MUCH) => {
            let max = size(disk.max_temp_directory_size());
            Error::Query(format!(
                "stopped: the statement puts more than {max} of what does not fit into memory on \
                 disk\n{ASK_FOR_LESS}."
            ))
        }
        DataFusionError::ResourcesExhausted(_) => {
            let max = match limits.memory_pool.memory_limit() {
                MemoryLimit::Finite(bytes) => size(bytes as u64),
                _ => "there is".to_owned(),
            };
            Error::Query(format!(
                "stopped: the statement needs more than {max} of memory, besides what it can put \
                 on disk\n{ASK_FOR_LESS}; or give it more: --memory-max SIZE."
            ))
        }
        root if is_full(root) => {
            let folders = disk.temp_dir_paths();
            let folder = folders.first().map_or_else(std::env::temp_dir, Clone::clone);
            Error::Query(format!(
                "stopped: there is no room in {}, where the statement puts what does not fit into \
                 memory\nMake room there, or name another folder in TMPDIR. {ASK_FOR_LESS}.",
                folder.display()
            ))
        }
        _ => explain(error, ""),
    }
}

/// Whether it is a disk without room: queries write only what does not fit into memory.
fn is_full(error: &DataFusionError) -> bool {
    let kind = match error {
        DataFusionError::IoError(error) => error.kind(),
        DataFusionError::ArrowError(arrow, _) => match arrow.as_ref() {
            ArrowError::IoError(_, error) => error.kind(),
            _ => return false,
        },
        _ => return false,
    };
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    about(bytes).replace(".0 ", " ")
}

/// A statement that would change something.
pub(super) fn refused(what: &str) -> Error {
    Error::Query(format!(
        "{what} is refused: this session only reads\nTables are written by pipelines; \
         to save a result use `-o csv`, `-o json` or `-o parquet`"
    ))
}
