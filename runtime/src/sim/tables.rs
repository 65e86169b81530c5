//! Reads Delta tables with nothing but JSON and Parquet: what checks the product shares no code
//! with it.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::objects::SimObjects;

/// A row, as text by column.
pub(crate) type Row = BTreeMap<String, String>;

/// The rows of tables by name.
pub(crate) type Tables = BTreeMap<String, Vec<Row>>;

/// The names of all tables, as `pipeline/table`.
fn tables(objects: &SimObjects) -> BTreeSet<String> {
    let names = objects.names().into_iter();
    names.filter_map(|n| n.split_once("/_delta_log/").map(|n| n.0.to_owned())).collect()
}

/// The data files that the log of a table names, with their sizes; an error if it has a gap or
/// cannot be read.
fn files(objects: &SimObjects, table: &str) -> Result<BTreeMap<String, u64>, String> {
    let mut files = BTreeMap::new();
    for version in 0.. {
        let name = format!("{table}/_delta_log/{version:020}.json");
        let Some(content) = objects.content(&name) else {
            let later = objects.names().into_iter().any(|n| {
                n.starts_with(&format!("{table}/_delta_log/"))
                    && n.ends_with(".json")
                    && n > name
                    && !n.contains("_last_checkpoint")
            });
            return if later { Err(format!("{name} is missing")) } else { Ok(files) };
        };
        for line in String::from_utf8_lossy(&content).lines() {
            let action: Value =
                serde_json::from_str(line).map_err(|error| format!("{name}: {error}"))?;
            if let Some(path) = action["add"]["path"].as_str() {
                files.insert(decoded(path), action["add"]["size"].as_u64().unwrap_or(0));
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                files.remove(&decoded(path));
            }
        }
    }
    Ok(files)
}

/// Paths in a log are percent-encoded.
pub(super) fn decoded(path: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), path.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => out.push(*first),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether readers would find every file that a log names, whole.
pub(crate) fn check_whole(objects: &SimObjects) -> Result<(), String> {
    for table in tables(objects) {
        for (path, bytes) in files(objects, &table)? {
            let found = objects.content(&format!("{table}/{path}")).map(|c| c.len() as u64);
            if found != Some(bytes) {
                return Err(format!("{table}: {path} of {bytes} bytes is {found:?}"));
            }
        }
    }
    Ok(())
}

/// The rows of every table by its name, in the order of files and rows.
pub(crate) fn all(objects: &SimObjects) -> Result<Tables, String> {
    tables(objects).into_iter().map(|table| Ok((table.clone(), rows(objects, &table)?))).collect()
}

fn rows(objects: &SimObjects, table: &str) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for path in files(objects, table)?.into_keys() {
        let content =
            objects.content(&format!("{table}/{path}")).ok_or(format!("{path} is missing"))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(content)
            .and_then(|builder| builder.build())
            .map_err(|error| format!("{path}: {error}"))?;
        for batch in reader {
            let batch = batch.map_err(|error| format!("{path}: {error}"))?;
            rows_of(&batch, &mut rows).map_err(|error| format!("{path}: {error}"))?;
        }
    }
    Ok(rows)
}

fn rows_of(batch: &RecordBatch, into: &mut Vec<Row>) -> Result<(), ArrowError> {
    let options = FormatOptions::default();
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        Ok((field.name().clone(), ArrayFormatter::try_new(column.as_ref(), &options)?))
    });
    let columns = columns.collect::<Result<Vec<_>, ArrowError>>()?;
    into.extend((0..batch.num_rows()).map(|row| {
        columns.iter().map(|(name, column)| (name.clone(), column.value(row).to_string())).collect()
    }));
    Ok(())
}
