//! Partition values of any length and with any character: each row comes back with its own, and a
//! filter opens the files of its value only.

#![allow(clippy::unwrap_used)]

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use datafusion::prelude::{col, lit};

use super::*;
use crate::examine::{Severity, rebuild, table as examined};
use crate::reader::files_of;
use crate::session::TableName;
use crate::testing::{START_US, lines, local, query, rows, spec};
use crate::{Session, Store};

/// Values that are alike, long, or mean something to a file system or to a reader of folders.
fn values() -> Vec<Option<String>> {
    let long = "x".repeat(300);
    let given: Vec<String> = [
        &"a".repeat(250),
        &"\u{436}".repeat(100),
        &format!("{long}1"),
        &format!("{long}2"),
        &"%/".repeat(20_000),
        "",
        ".",
        "..",
        "/",
        "a/../b/",
        "a//b",
        "c:\\d",
        "a!b",
        "100% = \"so\"\n\u{1F30A}",
        "__HIVE_DEFAULT_PARTITION__",
    ]
    .map(str::to_owned)
    .to_vec();
    given.into_iter().map(Some).chain([None]).collect()
}

/// A row for each of `values`, told by its number.
fn numbered(values: &[Option<String>]) -> RecordBatch {
    let row = |(i, v): (usize, &Option<String>)| (v.clone(), i);
    let all: Vec<(Option<String>, usize)> = values.iter().enumerate().map(row).collect();
    let all: Vec<_> =
        all.iter().map(|(v, i)| ("d", v.as_deref(), START_US + *i as i64, *i as f64)).collect();
    rows(&all)
}

/// What is read for each number; an empty value is a null one.
async fn read(store: &Store, table: &str) -> Vec<Option<String>> {
    let sql = format!("SELECT value, site FROM plant.{table} ORDER BY value");
    let found = query(store, &sql).await;
    let sites = found.iter().flat_map(|batch| {
        let column = cast(batch.column(1), &DataType::Utf8).unwrap();
        column.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>()
    });
    sites.collect()
}

fn expected(values: &[Option<String>]) -> Vec<Option<String>> {
    values.iter().map(|v| v.clone().filter(|v| !v.is_empty())).collect()
}

/// Writes them all, into `plant.odd`.
pub(super) async fn write_odd(store: &Store) {
    let batch = numbered(&values());
    let mut writer = TableWriter::open(store, &spec("odd", &batch), "a".into()).await.unwrap();
    writer.append(batch, 1).await.unwrap();
    writer.commit(1).await.unwrap();
    assert_eq!(read(store, "odd").await, expected(&values()));
}

#[tokio::test]
async fn partition_values_of_any_kind_come_back_and_are_filtered_by() {
    let (_folder, store) = local();
    let values = values();
    let batch = numbered(&values);
    let mut writer = TableWriter::open(&store, &spec("t", &batch), "i/t".into()).await.unwrap();
    writer.append(batch, 1).await.unwrap();
    assert_eq!(writer.commit(1).await.unwrap().files, values.len());
    assert_eq!(read(&store, "t").await, expected(&values));
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    for (i, value) in values.iter().enumerate() {
        let Some(value) = value.as_deref().filter(|v| !v.is_empty()) else { continue };
        let all = session.sql("SELECT value, site FROM plant.t").await.unwrap();
        let one = all.filter(col("site").eq(lit(value))).unwrap();
        let plan = one.clone().create_physical_plan().await.unwrap();
        assert_eq!(files_of(&plan), 1, "{value}");
        let found = one.collect().await.unwrap();
        assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 1, "{value}");
        let number = found.iter().find(|b| b.num_rows() > 0).unwrap().column(0);
        let number = number.as_primitive::<Float64Type>().value(0);
        assert_eq!(number, i as f64, "{value}");
    }
    let nulls = "SELECT count(*) FROM plant.t WHERE site IS NULL";
    assert_eq!(lines(&store, nulls).await, ["2"]);
}

#[tokio::test]
async fn many_long_partition_columns_fit_into_a_key() {
    let (_folder, store) = local();
    let long = format!("{}{}", "%".repeat(300), "\u{436}".repeat(200));
    let names: Vec<String> = (0..12).map(|i| format!("column_{i:02}_{}", "n".repeat(60))).collect();
    let plain = numbered(&[None, None]);
    let mut fields: Vec<_> = plain.schema().fields().iter().cloned().collect();
    let mut columns = plain.columns().to_vec();
    for (i, name) in names.iter().enumerate() {
        // Of the last column only the end differs between the two rows.
        let end = |row: usize| if i == 11 { row } else { 0 };
        let text = (0..2).map(|row| Some(format!("{long}{}", end(row))));
        columns.push(Arc::new(text.collect::<StringArray>()));
        fields.push(Arc::new(Field::new(name, DataType::Utf8, true)));
    }
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let mut spec = spec("t", &batch);
    spec.partition.extend(names.clone());
    let mut writer = TableWriter::open(&store, &spec, "i/t".into()).await.unwrap();
    writer.append(batch, 1).await.unwrap();
    assert_eq!(writer.commit(1).await.unwrap().files, 2);
    let last = &names[11];
    for row in 0..2 {
        let sql = format!("SELECT value FROM plant.t WHERE {last} = '{long}{row}'");
        assert_eq!(lines(&store, &sql).await, [format!("{row}.0")]);
    }
    let listed: Vec<_> = store.objects().list(None).try_collect().await.unwrap();
    assert!(listed.iter().all(|o| o.location.as_ref().len() < 700), "{listed:?}");
}

#[tokio::test]
async fn a_table_whose_log_lost_an_entry_gets_its_partition_values_back() {
    let (folder, store) = local();
    let values = values();
    let spec = spec("t", &numbered(&values));
    let mut writer = TableWriter::open(&store, &spec, "i/plant.t".into()).await.unwrap();
    writer.append(numbered(&values), 1).await.unwrap();
    writer.commit(1).await.unwrap();
    writer.append(rows(&[("d", Some("later"), START_US, 999.0)]), 2).await.unwrap();
    writer.commit(2).await.unwrap();
    let log = folder.path().join("plant/t/_delta_log");
    std::fs::remove_file(log.join("00000000000000000001.json")).unwrap();
    let (_other, to) = local();
    let name = TableName::new("plant", "t");
    let report = rebuild(&store, &to, &name, ("i/plant.t", 0)).await.unwrap().unwrap();
    assert_eq!((report.found, report.files), (values.len(), values.len() + 1));
    let mut all = expected(&values);
    all.push(Some("later".into()));
    assert_eq!(read(&to, "t").await, all);
    let health = examined(&to, &name, &|_, _| {}).await.unwrap();
    let wrong: Vec<_> = health.findings.iter().filter(|f| f.severity > Severity::Ok).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
