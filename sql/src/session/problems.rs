//! Query errors as a person wants them: one sentence, what is close, what exists.

use datafusion::common::{SchemaError, TableReference};
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;

use super::TableName;
use crate::Error;

/// Names that are listed in an error before it says how many more there are.
const LISTED_MAX: usize = 20;

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
    let full: Vec<String> = tables.iter().map(ToString::to_string).collect();
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

/// A planning or parsing error.
pub(super) fn explain(error: DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let mut names: Vec<String> = valid_fields.iter().map(|c| c.name.clone()).collect();
                names.dedup();
                let close = nearest(&field.name, names.iter().map(String::as_str));
                let quoted = close.map(|c| match c.chars().any(char::is_uppercase) {
                    true => format!("\"{c}\""),
                    false => c.to_owned(),
                });
                let hint = hint(quoted.as_deref());
                let known = match names.is_empty() {
                    true => "there are no columns without a FROM".to_owned(),
                    false => format!("columns: {}", list(&names)),
                };
                let name = &field.name;
                Error::Query(format!("unknown column `{name}`{hint}\n{known}"))
            }
            other => Error::Query(other.to_string()),
        },
        DataFusionError::SQL(parser, _) => {
            Error::Query(format!("not valid SQL: {}", syntax(parser)))
        }
        DataFusionError::Plan(text) | DataFusionError::NotImplemented(text) => {
            Error::Query(text.clone())
        }
        DataFusionError::External(inner) if inner.is::<Error>() => Error::Query(inner.to_string()),
        _ => Error::DataFusion(error),
    }
}

/// A statement that would change something.
pub(super) fn refused(what: &str) -> Error {
    Error::Query(format!(
        "{what} is refused: this session only reads\nTables are written by pipelines; \
         to save a result use `-o csv`, `-o json` or `-o parquet`"
    ))
}
