//! The writer against crashes, lost answers, rivals, odd values and arrival order.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Int8Array,
    Int16Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, TimeUnit};
use arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::store::folders::tests::Step;
use crate::testing::{DAY_US, FaultyStore, START_US, lines, local, many, query, rows, spec};

async fn count(store: &Store, table: &str) -> String {
    lines(store, &format!("SELECT count(*) FROM {table}")).await.join(",")
}

fn all_types() -> RecordBatch {
    let times = TimestampMicrosecondArray::from(vec![
        Some(START_US + 1),
        Some(START_US + DAY_US),
        Some(-1),
    ]);
    let times: ArrayRef = Arc::new(times.with_timezone("UTC"));
    let list = ListArray::from_iter_primitive::<Float64Type, _, _>([
        Some(vec![Some(1.0), None]),
        None,
        Some(vec![]),
    ]);
    let decimal = Decimal128Array::from(vec![Some(12345), None, Some(-1)]);
    let decimal = decimal.with_precision_and_scale(10, 2).unwrap();
    let bytes: Vec<Option<&[u8]>> = vec![Some(b"\x00\xff"), None, Some(b"")];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("device", Arc::new(StringArray::from(vec!["c", "b", "a"]))),
        ("time", times),
        ("site", Arc::new(StringArray::from(vec![Some("a/b c"), Some("100% ü"), None]))),
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(i8::MIN), None, Some(i8::MAX)]))),
        ("i16", Arc::new(Int16Array::from(vec![Some(i16::MIN), None, Some(3)]))),
        ("i32", Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(3)]))),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)]))),
        ("u64", Arc::new(UInt64Array::from(vec![Some(7), None, Some(u64::MAX / 2)]))),
        ("f32", Arc::new(Float32Array::from(vec![Some(1.5), None, Some(f32::NAN)]))),
        ("text", Arc::new(StringArray::from(vec![Some(""), None, Some("ü\n\"")]))),
        ("bytes", Arc::new(BinaryArray::from(bytes))),
        ("date", Arc::new(Date32Array::from(vec![Some(-1), None, Some(20_000)]))),
        ("list", Arc::new(list)),
        ("decimal", Arc::new(decimal)),
    ];
    let columns = columns.into_iter().map(|(n, c)| (n, c, true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

#[tokio::test]
async fn every_type_comes_back_with_nulls_and_odd_partitions() {
    let (_folder, store) = local();
    let batch = all_types();
    let mut writer = TableWriter::open(&store, &spec("all", &batch), "a".into()).await.unwrap();
    writer.append(batch.clone(), 1).await.unwrap();
    let report = writer.commit(1).await.unwrap();
    assert_eq!((report.files, report.rows, report.version), (3, 3, Some(1)));
    let names: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
    let sql = format!("SELECT {} FROM plant.all ORDER BY device DESC", names.join(", "));
    let sql = sql.replace("plant.all", "plant.\"all\"");
    let found = query(&store, &sql).await;
    let found = concat_batches(&found[0].schema(), &found).unwrap();
    let text =
        |b: &RecordBatch| pretty_format_batches(std::slice::from_ref(b)).unwrap().to_string();
    assert_eq!(text(&found), text(&batch));
    assert_eq!(found.column(8).data_type(), &DataType::Int64);
    let days = lines(&store, "SELECT day, site FROM plant.\"all\" ORDER BY device DESC").await;
    assert_eq!(days, ["2026-01-01 a/b c", "2026-01-02 100% ü", "1969-12-31 "]);
    let one = lines(&store, "SELECT device FROM plant.\"all\" WHERE site = 'a/b c'").await;
    assert_eq!(one, ["c"]);
}

#[tokio::test]
async fn a_number_that_delta_cannot_hold_is_an_error() {
    let (_folder, store) = local();
    let big: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
    let time = all_types().column(1).slice(0, 1);
    let batch =
        RecordBatch::try_from_iter_with_nullable([("big", big, true), ("time", time, true)]);
    let batch = batch.unwrap();
    let mut writer = TableWriter::open(&store, &spec("t", &batch), "a".into()).await.unwrap();
    let problem = writer.append(batch, 1).await.unwrap_err().to_string();
    assert!(problem.contains("`big`"), "{problem}");
}

#[tokio::test]
async fn files_without_a_commit_are_invisible_and_a_replay_adds_nothing() {
    let (_folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut first = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    first.append(many(0, 10), 1).await.unwrap();
    first.commit(1).await.unwrap();
    first.append(many(10, 10), 2).await.unwrap();
    first.flush(2).await.unwrap();
    assert_eq!(count(&store, "plant.t").await, "10");
    drop(first);

    let mut second = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    assert_eq!(second.committed_epoch(), 1);
    second.append(many(0, 10), 1).await.unwrap();
    assert_eq!(second.commit(1).await.unwrap(), CommitReport::default());
    second.append(many(10, 10), 2).await.unwrap();
    second.commit(2).await.unwrap();
    let all = lines(&store, "SELECT count(*), sum(value) FROM plant.t").await;
    assert_eq!(all, ["20 190.0"]);
    let other = TableWriter::open(&store, &spec, "other".into()).await.unwrap();
    assert_eq!(other.committed_epoch(), 0);
}

#[tokio::test]
async fn lost_answers_and_failures_do_not_double_rows() {
    let (_folder, inner) = local();
    let (store, faults) = FaultyStore::over(&inner);
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    faults.lost_commit_replies.store(1, Ordering::SeqCst);
    writer.append(many(0, 10), 1).await.unwrap();
    assert_eq!(writer.commit(1).await.unwrap().version, Some(1));
    faults.failed_commits.store(2, Ordering::SeqCst);
    writer.append(many(10, 10), 2).await.unwrap();
    assert_eq!(writer.commit(2).await.unwrap().version, Some(2));
    faults.lost_file_replies.store(1, Ordering::SeqCst);
    writer.append(many(20, 10), 3).await.unwrap();
    assert!(writer.commit(3).await.is_err());
    assert_eq!(writer.commit(3).await.unwrap().rows, 10);
    let all = lines(&inner, "SELECT count(*), sum(value) FROM plant.t").await;
    assert_eq!(all, ["30 435.0"]);
}

#[tokio::test]
async fn a_commit_or_a_file_whose_folder_was_not_synced_is_synced_before_it_counts() {
    let (folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    let [table, log] = ["plant/t", "plant/t/_delta_log"].map(|path| folder.path().join(path));
    // No file could be opened: nothing was synced, and the commit is visible.
    store.probe().fail("_delta_log", Step::Open);
    writer.append(many(0, 10), 1).await.unwrap();
    store.probe().synced();
    assert_eq!(writer.commit(1).await.unwrap().version, Some(1));
    assert!(store.probe().synced().contains(&log), "a power loss would take it");
    // The same where a new day's folder is named.
    store.probe().fail("plant/t", Step::Open);
    writer.append(rows(&[("d", None, START_US + 9 * DAY_US, 1.0)]), 2).await.unwrap();
    assert!(writer.commit(2).await.is_err());
    store.probe().synced();
    assert_eq!(writer.commit(2).await.unwrap().rows, 1);
    assert!(store.probe().synced().contains(&table), "a power loss would take the day");
}

#[tokio::test]
async fn a_commit_whose_folder_failed_to_sync_never_counts() {
    let (_folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tell = Arc::clone(&told);
    store.on_failed_sync(Arc::new(move |_| {
        tell.fetch_add(1, Ordering::SeqCst);
    }));
    store.probe().fail("_delta_log", Step::Sync);
    writer.append(many(0, 10), 1).await.unwrap();
    for _ in 0..2 {
        let error = writer.commit(1).await.unwrap_err().to_string();
        assert!(error.contains("_delta_log: sync"), "{error}");
    }
    assert_eq!(told.load(Ordering::SeqCst), 1, "whoever ends the process is told once");
}

/// The epochs of all commits of `plant.t`, in the order of its log.
fn committed_epochs(folder: &std::path::Path) -> Vec<u64> {
    let log = folder.join("plant/t/_delta_log");
    let mut commits: Vec<_> =
        std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    commits.retain(|path| path.extension().is_some_and(|e| e == "json"));
    commits.sort();
    let text = |path: &std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    let epoch = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["txn"]["version"].as_u64()
    };
    commits.iter().map(text).flat_map(|t| t.lines().filter_map(epoch).collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn a_hundred_lost_answers_to_commits_double_no_epoch() {
    const LOST: u64 = 100;
    let (folder, inner) = local();
    let (store, faults) = FaultyStore::over(&inner);
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    for epoch in 1..=LOST {
        // Now and then the first try does not even happen, and now and then it is another process
        // that finds its predecessor's commit.
        faults.failed_commits.store(usize::from(epoch % 3 == 0), Ordering::SeqCst);
        faults.lost_commit_replies.store(1, Ordering::SeqCst);
        writer.append(many(epoch as i64 * 5, 5), epoch).await.unwrap();
        assert_eq!(writer.commit(epoch).await.unwrap().version, Some(epoch));
        assert_eq!(faults.lost_commit_replies.load(Ordering::SeqCst), 0, "no answer was lost");
        if epoch % 10 == 0 {
            writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
            assert_eq!(writer.committed_epoch(), epoch);
            writer.append(many(epoch as i64 * 5, 5), epoch).await.unwrap();
            assert_eq!(writer.commit(epoch).await.unwrap(), CommitReport::default());
        }
    }
    assert_eq!(committed_epochs(folder.path()), (1..=LOST).collect::<Vec<_>>());
    let query = "SELECT count(*), count(DISTINCT value), sum(value) FROM plant.t";
    let all = lines(&inner, query).await;
    let sum: u64 = (5..5 * (LOST + 1)).sum();
    assert_eq!(all, [format!("{} {} {sum}.0", 5 * LOST, 5 * LOST)]);
}

#[tokio::test]
async fn two_applications_share_a_table_and_two_of_one_are_fenced() {
    let (_folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let open = |app: &str| TableWriter::open(&store, &spec, app.to_owned());
    let (mut a, mut b) = (open("a").await.unwrap(), open("b").await.unwrap());
    for epoch in 1..=5 {
        a.append(many(0, 10), epoch).await.unwrap();
        b.append(many(0, 10), epoch).await.unwrap();
        let (ra, rb) = tokio::join!(a.commit(epoch), b.commit(epoch));
        assert_ne!(ra.unwrap().version, rb.unwrap().version);
    }
    assert_eq!(count(&store, "plant.t").await, "100");
    let mut rival = open("a").await.unwrap();
    assert_eq!(rival.committed_epoch(), 5);
    rival.append(many(0, 1), 6).await.unwrap();
    rival.commit(6).await.unwrap();
    a.append(many(0, 2), 6).await.unwrap();
    a.append(many(0, 2), 7).await.unwrap();
    let fenced = a.commit(7).await.unwrap_err();
    assert!(matches!(fenced, Error::Fenced { found: 6, .. }), "{fenced}");
    assert_eq!(count(&store, "plant.t").await, "101");
}

fn files_below(folder: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if path.extension().is_some_and(|e| e == "parquet") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test]
async fn bytes_do_not_depend_on_arrival_order_or_batches() {
    // Equal device and time with different values: ties that only the other columns break.
    let mut input = many(0, 400);
    let tied: Vec<_> = (0..50).map(|i| ("device-1", Some("x"), START_US, f64::from(i))).collect();
    input = concat_batches(&input.schema(), &[input, rows(&tied)]).unwrap();
    let mut seen = Vec::new();
    for (step, size) in [(1, 450), (7, 100), (349, 33)] {
        let order = (0..450_i64).map(|i| i * step % 450).collect::<Int64Array>();
        let shuffled = take_record_batch(&input, &order).unwrap();
        let (folder, store) = local();
        let spec = spec("t", &input);
        let mut writer = TableWriter::open(&store, &spec, "a/b".into()).await.unwrap();
        for from in (0..450).step_by(size) {
            let part = shuffled.slice(from, size.min(450 - from));
            writer.append(part, 1).await.unwrap();
        }
        writer.commit(1).await.unwrap();
        seen.push(files_below(folder.path()));
    }
    assert_eq!(seen[0].len(), 2);
    assert!(seen[0] == seen[1] && seen[0] == seen[2]);
}

#[tokio::test]
async fn columns_may_be_added_and_left_out_but_not_changed() {
    let (_folder, store) = local();
    let old = many(0, 5);
    let mut writer = TableWriter::open(&store, &spec("t", &old), "a".into()).await.unwrap();
    writer.append(old.clone(), 1).await.unwrap();
    writer.commit(1).await.unwrap();

    let extra: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5));
    let mut columns = old.columns().to_vec();
    columns.push(extra);
    columns.remove(3);
    let mut fields: Vec<_> = old.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("extra", DataType::Int64, false)));
    fields.remove(3);
    let new = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let mut writer = TableWriter::open(&store, &spec("t", &new), "a".into()).await.unwrap();
    writer.append(new, 2).await.unwrap();
    writer.commit(2).await.unwrap();
    let counts = "SELECT count(*), count(value), count(extra), sum(extra) FROM plant.t";
    assert_eq!(lines(&store, counts).await, ["10 5 5 10"]);

    let mut changed = spec("t", &old);
    let text = Arc::new(Field::new("value", DataType::Utf8, true));
    let mut fields: Vec<_> = old.schema().fields().iter().cloned().collect();
    fields[3] = text;
    changed.schema = Arc::new(Schema::new(fields));
    let problem = TableWriter::open(&store, &changed, "a".into()).await.unwrap_err().to_string();
    assert!(problem.contains("`value`") && problem.contains("plant.t"), "{problem}");
    let mut changed = spec("t", &old);
    changed.partition.clear();
    let problem = TableWriter::open(&store, &changed, "a".into()).await.unwrap_err().to_string();
    assert!(problem.contains("day, site"), "{problem}");
    let mut odd = spec("t2", &old);
    let duration = DataType::Duration(TimeUnit::Second);
    let fields = vec![
        Field::new("time", old.schema().field(2).data_type().clone(), true),
        Field::new("took", duration, true),
    ];
    odd.schema = Arc::new(Schema::new(fields));
    let problem = TableWriter::open(&store, &odd, "a".into()).await.unwrap_err().to_string();
    assert!(problem.contains("`took`"), "{problem}");
}

#[tokio::test]
async fn a_full_buffer_becomes_files_that_stay_invisible_until_the_commit() {
    let (_folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    writer.buffer_bytes_max = 10_000;
    for epoch in 1..=20 {
        writer.append(many(epoch * 100, 100), epoch.unsigned_abs()).await.unwrap();
        assert!(writer.buffered_bytes() < 30_000);
    }
    assert!(!writer.staged.adds.is_empty());
    assert_eq!(count(&store, "plant.t").await, "0");
    let report = writer.commit(20).await.unwrap();
    assert!(report.files > 1 && report.rows == 2_000);
    assert_eq!(count(&store, "plant.t").await, "2000");
}

#[tokio::test]
async fn a_torn_newest_commit_is_removed_and_its_rows_come_again() {
    for torn in [&b""[..], b"{\"commitInfo\":{\"engineInfo\":\"tidegate/0.1.0\"}}\n{\"txn\":{\"ap"]
    {
        let (folder, store) = local();
        let spec = spec("t", &many(0, 1));
        let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        writer.append(many(0, 10), 1).await.unwrap();
        writer.commit(1).await.unwrap();
        writer.append(many(10, 10), 2).await.unwrap();
        writer.commit(2).await.unwrap();
        let newest = folder.path().join("plant/t/_delta_log/00000000000000000002.json");
        std::fs::write(&newest, torn).unwrap();
        let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        assert_eq!(writer.committed_epoch(), 1);
        writer.append(many(10, 10), 2).await.unwrap();
        writer.commit(2).await.unwrap();
        assert_eq!(count(&store, "plant.t").await, "20");
        std::fs::write(&newest, b"{\"add\": not ours").unwrap();
        assert!(TableWriter::open(&store, &spec, "a".into()).await.is_err());
    }
}

#[tokio::test]
async fn a_checkpoint_replaces_the_commits_before_it() {
    let (folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    for epoch in 1..=103 {
        let row = ("d", (epoch % 2 == 0).then_some("a b"), START_US + epoch, epoch as f64);
        writer.append(rows(&[row]), epoch.unsigned_abs()).await.unwrap();
        writer.commit(epoch.unsigned_abs()).await.unwrap();
    }
    let log = folder.path().join("plant/t/_delta_log");
    for version in 0..=100 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    let writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    assert_eq!(writer.committed_epoch(), 103);
    let sums = "SELECT count(*), sum(value), count(site), max(day) FROM plant.t";
    assert_eq!(lines(&store, sums).await, ["103 5356.0 51 2026-01-01"]);
    std::fs::remove_file(log.join("_last_checkpoint")).unwrap();
    assert_eq!(lines(&store, sums).await, ["103 5356.0 51 2026-01-01"]);
}

/// Days of which rows were deleted, by the files that are left.
async fn changed(store: &Store, app_id: &str) -> Option<Vec<String>> {
    let snapshot = existing(store, &table_path("plant", "t").unwrap()).await.unwrap();
    snapshot.days_changed(app_id).map(|days| days.into_iter().collect())
}

#[tokio::test]
async fn a_table_knows_of_which_days_rows_were_deleted() {
    let (folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let open = || TableWriter::open_from(&store, &spec, "a".into(), true);
    let of_day = |day: i64| rows(&[("d", None, START_US + day * DAY_US, 1.0)]);
    let mut writer = open().await.unwrap();
    for epoch in 1..=104 {
        // By one process after the other, over a checkpoint of the log.
        if epoch % 50 == 0 {
            writer = open().await.unwrap();
        }
        writer.append(of_day(epoch % 3), epoch.unsigned_abs()).await.unwrap();
        writer.append(of_day(epoch % 2), epoch.unsigned_abs()).await.unwrap();
        writer.commit(epoch.unsigned_abs()).await.unwrap();
    }
    assert_eq!(changed(&store, "a").await, Some(vec![]));
    assert_eq!(changed(&store, "b").await, None, "nobody knows what it wrote");
    // Others bring the rows of a file into another one, and then delete one of them.
    let log = folder.path().join("plant/t/_delta_log");
    let table = table_path("plant", "t").unwrap();
    let snapshot = existing(&store, &table).await.unwrap();
    let file = snapshot.files().find(|f| f.add.path.contains("2026-01-02")).unwrap();
    let moved = Add { path: "day=2026-01-02/other.parquet".into(), ..file.add.clone() };
    for (version, (gone, new)) in
        [(file.add.path.clone(), Some(moved.clone())), (moved.path.clone(), None)]
            .into_iter()
            .enumerate()
    {
        let remove = serde_json::json!({ "remove": { "path": gone, "dataChange": new.is_none() } });
        let add = new.map(|add| serde_json::json!({ "add": add }).to_string());
        let commit = [remove.to_string()].into_iter().chain(add).collect::<Vec<_>>().join("\n");
        let version = snapshot.version + 1 + version as u64;
        std::fs::write(log.join(format!("{version:020}.json")), commit + "\n").unwrap();
        let gone: &[&str] = if version > snapshot.version + 1 { &["2026-01-02"] } else { &[] };
        assert_eq!(changed(&store, "a").await.unwrap(), gone);
    }
    // What comes after that does not hide it.
    let mut writer = open().await.unwrap();
    writer.append(of_day(1), 105).await.unwrap();
    writer.append(of_day(9), 105).await.unwrap();
    writer.commit(105).await.unwrap();
    assert_eq!(changed(&store, "a").await.unwrap(), ["2026-01-02"]);
}

/// Leaves tables for other readers in the folder that `TIDEGATE_TEST_KEEP_TABLES` names. Run again
/// after another engine compacted, vacuumed and checkpointed them, it adds nothing and finds the
/// same rows.
#[tokio::test]
async fn tables_for_other_readers() {
    let Ok(folder) = std::env::var("TIDEGATE_TEST_KEEP_TABLES") else {
        eprintln!("skipped: TIDEGATE_TEST_KEEP_TABLES is not set");
        return;
    };
    let store = Store::open(&folder).unwrap();
    let batch = all_types();
    let mut writer = TableWriter::open(&store, &spec("all", &batch), "a".into()).await.unwrap();
    writer.append(batch, 1).await.unwrap();
    writer.commit(1).await.unwrap();
    let mut writer = TableWriter::open(&store, &spec("t", &many(0, 1)), "a".into()).await.unwrap();
    for epoch in 1..=205 {
        writer.append(many(epoch * 50, 50), epoch.unsigned_abs()).await.unwrap();
        writer.commit(epoch.unsigned_abs()).await.unwrap();
    }
    let sums = "SELECT count(*), sum(value), min(time) FROM plant.t";
    assert_eq!(lines(&store, sums).await, ["10250 53038625.0 2026-01-01T00:00:50Z"]);
    partitions::write_odd(&store).await;
}
