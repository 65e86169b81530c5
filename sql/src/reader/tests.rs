//! Which files a query opens, what the log alone answers, and how a snapshot moves on.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use datafusion::datasource::physical_plan::ParquetSource;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;

use super::DeltaTable;
use crate::testing::{DAY_US, START_US, lines, local, many, rows, spec};
use crate::{Session, Store, TableWriter};

/// Files that a plan opens.
pub(crate) fn scanned(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let here = plan.downcast_ref::<DataSourceExec>();
    let here = here.and_then(|e| e.downcast_to_file_source::<ParquetSource>());
    let here = here.map_or(0, |(c, _)| c.file_groups.iter().map(|g| g.len()).sum());
    here + plan.children().into_iter().map(scanned).sum::<usize>()
}

async fn files_opened(store: &Store, sql: &str) -> usize {
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    scanned(&session.sql(sql).await.unwrap().create_physical_plan().await.unwrap())
}

/// Four days, two sites, one file each per commit.
async fn eight_files(store: &Store) {
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(store, &spec, "a".into()).await.unwrap();
    for day in 0..4 {
        let time = START_US + day * DAY_US;
        let value = day as f64;
        let two = [("d1", Some("north"), time, value), ("d2", Some("so/uth"), time + 1, value)];
        writer.append(rows(&two), day.unsigned_abs() + 1).await.unwrap();
    }
    writer.commit(4).await.unwrap();
}

#[tokio::test]
async fn files_are_skipped_by_partition_and_by_bounds() {
    let (_folder, store) = local();
    eight_files(&store).await;
    for (filter, files) in [
        ("true", 8),
        ("day = '2026-01-02'", 2),
        ("day = '2026-01-02' AND site = 'so/uth'", 1),
        ("site = 'north'", 4),
        ("time >= '2026-01-03T00:00:00Z'", 4),
        ("value = 3", 2),
        // Bounds of floats are a little wider than the values.
        ("device = 'd1' AND value > 1.5", 2),
        ("value > 3.5", 0),
        ("site IS NULL", 0),
    ] {
        let sql = format!("SELECT device, value FROM plant.t WHERE {filter}");
        assert_eq!(files_opened(&store, &sql).await, files, "{filter}");
    }
    let one = "SELECT value FROM plant.t WHERE day = '2026-01-02' AND site = 'so/uth'";
    assert_eq!(lines(&store, one).await, ["1.0"]);
}

#[tokio::test]
async fn the_log_alone_knows_the_number_of_rows() {
    let (_folder, store) = local();
    eight_files(&store).await;
    assert_eq!(files_opened(&store, "SELECT count(*) FROM plant.t").await, 0);
    assert_eq!(lines(&store, "SELECT count(*) FROM plant.t").await, ["8"]);
    // Bounds in the log may be wider than the values: never an answer.
    let exact = "SELECT max(time), min(device), max(site) FROM plant.t";
    assert_eq!(lines(&store, exact).await, ["2026-01-04T00:00:00.000001Z d1 so/uth"]);
}

#[tokio::test]
async fn a_snapshot_stays_and_the_table_moves_on() {
    let (_folder, store) = local();
    let table = DeltaTable::new(&store, "plant", "t").unwrap();
    assert!(table.snapshot().await.unwrap().is_none());
    assert!(table.open().await.is_err());
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    let empty = table.open().await.unwrap();
    assert_eq!((empty.version, empty.rows()), (0, Some(0)));
    writer.append(many(0, 10), 4).await.unwrap();
    writer.commit(4).await.unwrap();
    let ten = table.open().await.unwrap();
    assert_eq!((empty.rows(), ten.rows()), (Some(0), Some(10)));
    assert_eq!((ten.version, ten.committed("a")), (1, 4));
    let same = table.open().await.unwrap();
    assert!(Arc::ptr_eq(&ten, &same));
}

#[tokio::test]
async fn one_minute_opens_two_of_two_hundred_files_at_most() {
    let (_folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    for epoch in 0..200_u32 {
        // One row per second, one commit per minute of them.
        writer.append(many(i64::from(epoch) * 60, 60), u64::from(epoch) + 1).await.unwrap();
        writer.commit(u64::from(epoch) + 1).await.unwrap();
    }
    assert_eq!(files_opened(&store, "SELECT value FROM plant.t").await, 200);
    // A minute that lies across two files, and one that is a file.
    for (from, through, files) in [("01:10:30", "01:11:29", 2), ("02:00:00", "02:00:59", 1)] {
        let range = format!("time BETWEEN '2026-01-01T{from}Z' AND '2026-01-01T{through}Z'");
        let sql = format!("SELECT value FROM plant.t WHERE {range}");
        assert_eq!(files_opened(&store, &sql).await, files, "{range}");
        let explained = lines(&store, &format!("EXPLAIN {sql}")).await.join("\n");
        let named = explained.matches(".parquet").count();
        assert_eq!(named, files, "{explained}");
        let count = format!("SELECT count(*) FROM plant.t WHERE {range}");
        assert_eq!(lines(&store, &count).await, ["60"]);
    }
}
