//! The files that a snapshot names: there, of the stated size, readable from their footer, with the
//! rows and within the bounds that the log states; and the files that no version names.

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use chrono::{DateTime, TimeDelta, Utc};
use datafusion::common::ScalarValue;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::statistics::Statistics;
use serde_json::Value;

use super::{Finding, Listing, Severity, TableHealth, counted};
use crate::delta::{DataFile, Snapshot, path};
use crate::{Error, Result, Store};

/// Footers that are read at the same time.
const READS_MAX: usize = 16;
/// As much is read from the end of a file at first; most footers are shorter.
const TAIL_BYTES: u64 = 64 << 10;
/// Bytes at the end of a Parquet file behind its footer: the footer's length and the magic.
const TRAILER_BYTES: u64 = 8;
/// Findings of one kind beyond this many are only counted.
const TOLD_MAX: usize = 200;

pub(super) async fn examine(
    store: &Store,
    table: &Path,
    listing: &Listing,
    snapshot: &Snapshot,
    health: &mut TableHealth,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<()> {
    let total = snapshot.files.len() as u64;
    let mut checks = futures::stream::iter(snapshot.files())
        .map(|file| async move { (file, check(store, table, listing, snapshot, file).await) })
        .buffered(READS_MAX);
    let (mut done, mut bad, mut bytes) = (0, 0, 0_u64);
    while let Some((file, outcome)) = checks.next().await {
        done += 1;
        progress(done, total);
        let stated = file.stats(&snapshot.schema).rows.unwrap_or(0);
        health.rows += stated;
        bytes += u64::try_from(file.add.size).unwrap_or(0);
        let Some(finding) = outcome? else { continue };
        bad += 1;
        if bad <= TOLD_MAX {
            let rows =
                format!("{} of this table cannot be trusted or read", counted(stated, "row"));
            let means = if finding.means.is_empty() { rows } else { finding.means.clone() };
            health.findings.push(finding.means(means));
        }
    }
    if bad > TOLD_MAX {
        let text = match bad - TOLD_MAX {
            1 => "1 more file is missing or damaged".to_owned(),
            more => format!("{more} more files are missing or damaged"),
        };
        health.findings.push(Finding::new(Severity::Fail, "files", text));
    }
    if bad == 0 {
        let text = format!(
            "files {total}, rows {}, bytes {bytes}: all there, sizes, footers, counts and bounds \
             as the log says",
            health.rows
        );
        health.findings.push(Finding::new(Severity::Ok, "files", text));
    }
    orphans(table, listing, snapshot, health)
}

fn damaged(check: &'static str, location: &Path, text: String) -> Finding {
    Finding::new(Severity::Fail, check, format!("{location}: {text}"))
        .at(location)
        .change("restore it from a copy")
        .change("tidegate doctor data --data DIR --salvage NEW_FOLDER leaves it out of the log")
}

async fn check(
    store: &Store,
    table: &Path,
    listing: &Listing,
    snapshot: &Snapshot,
    file: &DataFile,
) -> Result<Option<Finding>> {
    let location = path::from_log(table, &file.add.path)?;
    let size = match listing.files.get(&location) {
        Some(meta) => meta.size,
        // Newer than the listing, or gone.
        None => match store.objects().head(&location).await {
            Ok(meta) => meta.size,
            Err(StoreError::NotFound { .. }) => {
                return Ok(Some(damaged("files", &location, "is missing".into())));
            }
            Err(e) => return Err(Error::store(format!("reading {location}"))(e)),
        },
    };
    let stated = u64::try_from(file.add.size).unwrap_or(0);
    if size != stated {
        let text = format!("has {}, the log says {stated}", counted(size, "byte"));
        return Ok(Some(damaged("files", &location, text)));
    }
    let footer = match footer(store, &location, size).await? {
        Ok(footer) => footer,
        Err(reason) => return Ok(Some(damaged("footer", &location, reason))),
    };
    if file.add.stats.as_deref().is_some_and(|text| !is_readable(text)) {
        let text = format!("{location}: the log's statistics of it cannot be read");
        let finding = Finding::new(Severity::Fail, "statistics", text).at(&location);
        return Ok(Some(
            finding
                .means("the log is damaged here; whether the file has the rows it had is not known")
                .change("rewrite it: read the file as Parquet and append its rows anew"),
        ));
    }
    let stats = file.stats(&snapshot.schema);
    let rows = u64::try_from(footer.file_metadata().num_rows()).unwrap_or(0);
    if stats.rows.is_some_and(|stated| stated != rows) {
        let rows = counted(rows, "row");
        let text = format!("holds {rows}, the log says {}", stats.rows.unwrap_or(0));
        return Ok(Some(damaged("counts", &location, text)));
    }
    Ok(narrow_bound(snapshot, file, &footer).map(|column| {
        let text = format!("{location}: the log's bounds of `{column}` do not cover its values");
        Finding::new(Severity::Fail, "bounds", text)
            .at(&location)
            .means("readers skip the file although it has rows that they look for")
            .change("rewrite it: read the file as Parquet and append its rows anew")
    }))
}

/// Whether statistics are what they should be: an object with the number of rows, if it says one.
fn is_readable(text: &str) -> bool {
    let Ok(Value::Object(stats)) = serde_json::from_str(text) else { return false };
    let parts = ["minValues", "maxValues", "nullCount"];
    stats.get("numRecords").is_none_or(Value::is_u64)
        && parts.iter().all(|part| stats.get(*part).is_none_or(Value::is_object))
}

/// The footer of a Parquet file, or why it cannot be read.
pub(super) async fn footer(
    store: &Store,
    location: &Path,
    size: u64,
) -> Result<std::result::Result<ParquetMetaData, String>> {
    if size < 2 * TRAILER_BYTES {
        return Ok(Err(format!("{size} bytes are no Parquet file")));
    }
    let mut from = size.saturating_sub(TAIL_BYTES);
    loop {
        let what = || format!("reading {location}");
        let tail = match store.objects().get_range(location, from..size).await {
            Ok(tail) => tail,
            Err(StoreError::NotFound { .. }) => return Ok(Err("is missing".into())),
            Err(e) => return Err(Error::store(what())(e)),
        };
        let end = tail.len() - TRAILER_BYTES as usize;
        let (length, magic) = tail[end..].split_at(4);
        if magic != b"PAR1" {
            return Ok(Err("does not end as a Parquet file does".into()));
        }
        let length = u64::from(u32::from_le_bytes(length.try_into().expect("four bytes")));
        if length + TRAILER_BYTES > size {
            return Ok(Err("its footer is longer than the file".into()));
        }
        let Some(start) = (end as u64).checked_sub(length) else {
            from = size - length - TRAILER_BYTES;
            continue;
        };
        let decoded = ParquetMetaDataReader::decode_metadata(&tail[start as usize..end]);
        return Ok(decoded.map_err(|e| format!("its footer cannot be read: {e}")));
    }
}

/// A column whose values are outside of the bounds that the log states.
fn narrow_bound(snapshot: &Snapshot, file: &DataFile, footer: &ParquetMetaData) -> Option<String> {
    let stats = file.stats(&snapshot.schema);
    for group in footer.row_groups() {
        for column in group.columns() {
            let name = column.column_path().string();
            let Ok(field) = snapshot.schema.field_with_name(&name) else { continue };
            let (Some(stated), Some(values)) = (stats.columns.get(&name), column.statistics())
            else {
                continue;
            };
            let Some((low, high)) = values_of(values) else { continue };
            let bound =
                |b: &Option<ScalarValue>| b.as_ref().and_then(|b| number(b, field.data_type()));
            let below = bound(&stated.min).is_some_and(|min| low < min);
            let above = bound(&stated.max).is_some_and(|max| high > max);
            if below || above {
                return Some(name);
            }
        }
    }
    None
}

/// Smallest and largest value of a row group, of numbers.
fn values_of(statistics: &Statistics) -> Option<(f64, f64)> {
    match statistics {
        Statistics::Int64(v) => Some((*v.min_opt()? as f64, *v.max_opt()? as f64)),
        Statistics::Int32(v) => Some((f64::from(*v.min_opt()?), f64::from(*v.max_opt()?))),
        Statistics::Double(v) => Some((*v.min_opt()?, *v.max_opt()?)),
        _ => None,
    }
}

fn number(bound: &ScalarValue, kind: &DataType) -> Option<f64> {
    match (bound, kind) {
        (ScalarValue::Int64(v), DataType::Int64) => v.map(|v| v as f64),
        (ScalarValue::Int32(v), DataType::Int32) => v.map(f64::from),
        (ScalarValue::Float64(v), DataType::Float64) => *v,
        (ScalarValue::TimestampMicrosecond(v, _), DataType::Timestamp(_, _)) => v.map(|v| v as f64),
        _ => None,
    }
}

/// Files that no version names: of a commit that is under way, or left by a crash.
fn orphans(
    table: &Path,
    listing: &Listing,
    snapshot: &Snapshot,
    health: &mut TableHealth,
) -> Result<()> {
    let mut named = BTreeSet::new();
    for encoded in snapshot.files.keys().chain(snapshot.removed.keys()) {
        // Another engine may name files elsewhere.
        if let Ok(location) = path::from_log(table, encoded) {
            named.insert(location);
        }
    }
    let orphans: Vec<&ObjectMeta> = listing
        .files
        .values()
        .filter(|m| m.location.as_ref().ends_with(".parquet") && !named.contains(&m.location))
        .collect();
    let Some(oldest) = orphans.iter().map(|m| m.last_modified).min() else { return Ok(()) };
    let bytes: u64 = orphans.iter().map(|m| m.size).sum();
    let text = format!(
        "{} ({}) that the log does not name, the oldest {} old",
        counted(orphans.len() as u64, "file"),
        counted(bytes, "byte"),
        age(listing.listed_at, oldest)
    );
    let finding = Finding::new(Severity::Note, "orphans", text).at(&orphans[0].location);
    health.findings.push(
        finding
            .means("of a commit that is under way, or left by a crash: readers do not see them")
            .change("on a local disk a later commit of the same application removes its own")
            .change(
                "others: stop all writers, then DeltaTable(PATH).vacuum(dry_run=False, full=True) \
                 of delta-rs removes those older than a week",
            ),
    );
    Ok(())
}

fn age(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    let age = (now - then).max(TimeDelta::zero());
    match (age.num_days(), age.num_hours(), age.num_minutes()) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, _, _) => counted(days.unsigned_abs(), "day"),
    }
}
