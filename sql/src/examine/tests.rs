//! Tables with every kind of damage: found, named; and what is whole of them saved.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::TableWriter;
use crate::testing::{FaultyStore, lines, local, many, spec};

/// `plant.t` with ten commits of ten rows each.
async fn filled() -> (tempfile::TempDir, Store) {
    let (folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "i/plant.t".into()).await.unwrap();
    for epoch in 1..=10_u64 {
        writer.append(many(epoch as i64 * 10, 10), epoch).await.unwrap();
        writer.commit(epoch).await.unwrap();
    }
    (folder, store)
}

async fn look(store: &Store) -> TableHealth {
    let names = tables(store).await.unwrap();
    table(store, &names[0], &|_, _| {}).await.unwrap()
}

fn fails(health: &TableHealth) -> Vec<&Finding> {
    health.findings.iter().filter(|f| f.severity == Severity::Fail).collect()
}

fn entry(folder: &tempfile::TempDir, version: u64) -> PathBuf {
    folder.path().join(format!("plant/t/_delta_log/{version:020}.json"))
}

fn parquet_files(folder: &tempfile::TempDir) -> Vec<PathBuf> {
    let partition = folder.path().join("plant/t/day=2026-01-01/site=hall");
    let mut files: Vec<_> =
        fs::read_dir(partition).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Rows and their sum in the table that is rebuilt, and what was lost.
async fn rebuilt(store: &Store) -> (Vec<String>, Rebuilt) {
    rebuilt_up_to(store, 0).await
}

/// The same where no replay reaches epochs up to this one.
async fn rebuilt_up_to(store: &Store, reached: u64) -> (Vec<String>, Rebuilt) {
    let (_folder, to) = local();
    let name = TableName::new("plant", "t");
    let report = rebuild(store, &to, &name, ("i/plant.t", reached)).await.unwrap().unwrap();
    let health = look(&to).await;
    assert!(fails(&health).is_empty(), "{:?}", health.findings);
    (lines(&to, "SELECT count(*), sum(value) FROM plant.t").await, report)
}

#[tokio::test]
async fn a_whole_table_is_whole_and_a_copy_of_it_too() {
    let (_folder, store) = filled().await;
    let health = look(&store).await;
    assert!(health.findings.iter().all(|f| f.severity == Severity::Ok), "{:?}", health.findings);
    assert_eq!((health.rows, health.committed["i/plant.t"]), (100, 10));
    let (rows, report) = rebuilt(&store).await;
    assert_eq!(rows, ["100 5950.0"]);
    assert!(report.lost.is_empty() && report.bad_versions.is_empty());
    assert_eq!(report.committed["i/plant.t"], 10);
}

#[tokio::test]
async fn one_entry_is_said_as_one() {
    let (_folder, store) = local();
    let spec = spec("t", &many(0, 1));
    drop(TableWriter::open(&store, &spec, "i/plant.t".into()).await.unwrap());
    let health = look(&store).await;
    let log = health.findings.iter().find(|f| f.check == "log").unwrap();
    assert_eq!(log.text, "versions 0 to 0, 1 readable entry, none missing");
}

#[tokio::test]
async fn a_missing_and_a_torn_entry_are_named_and_closed_by_the_names_of_files() {
    for torn in [None, Some("{\"add\":{\"pa")] {
        let (folder, store) = filled().await;
        match torn {
            None => fs::remove_file(entry(&folder, 4)).unwrap(),
            Some(text) => fs::write(entry(&folder, 4), text).unwrap(),
        }
        let health = look(&store).await;
        let fails = fails(&health);
        assert!(fails[0].object.as_ref().unwrap().ends_with("00000000000000000004.json"));
        assert!(fails[0].change.iter().any(|c| c.contains("--salvage")), "{fails:?}");
        let (rows, report) = rebuilt(&store).await;
        assert_eq!((rows, report.found), (vec!["100 5950.0".to_owned()], 1));
        assert_eq!(report.bad_versions, [4]);
    }
}

#[tokio::test]
async fn several_lost_entries_are_closed_and_what_is_not_is_told() {
    let (folder, store) = filled().await;
    for version in [4, 5] {
        fs::remove_file(entry(&folder, version)).unwrap();
    }
    let (rows, report) = rebuilt(&store).await;
    assert_eq!((rows, report.found), (vec!["100 5950.0".to_owned()], 2));
    assert!(report.open.is_empty() && !report.rolled_back, "{report:?}");
    // A file of theirs is gone, too: then nobody writes those rows again.
    fs::remove_file(&parquet_files(&folder)[4]).unwrap();
    let (rows, report) = rebuilt(&store).await;
    assert_eq!((rows, report.found), (vec!["90 5405.0".to_owned()], 1));
    assert_eq!(report.open, [("i/plant.t".to_owned(), 5, 5)]);
}

#[tokio::test]
async fn a_torn_newest_entry_that_no_replay_reaches_is_closed() {
    let (folder, store) = filled().await;
    fs::write(entry(&folder, 10), "").unwrap();
    let (rows, report) = rebuilt_up_to(&store, 10).await;
    assert_eq!((rows, report.committed["i/plant.t"]), (vec!["100 5950.0".to_owned()], 10));
    fs::remove_file(&parquet_files(&folder)[9]).unwrap();
    let (rows, report) = rebuilt_up_to(&store, 10).await;
    assert_eq!(rows, ["90 4905.0"]);
    assert_eq!(report.open, [("i/plant.t".to_owned(), 10, 10)]);
}

#[tokio::test]
async fn a_torn_newest_entry_is_rolled_back() {
    let (folder, store) = filled().await;
    fs::write(entry(&folder, 10), "").unwrap();
    let health = look(&store).await;
    let fails = fails(&health);
    assert!(fails[0].means.contains("the next start removes it"), "{fails:?}");
    let (rows, report) = rebuilt(&store).await;
    assert_eq!(rows, ["90 4905.0"]);
    assert_eq!(report.committed["i/plant.t"], 9);
}

#[tokio::test]
async fn missing_empty_short_and_wrong_files_are_named_and_left_out() {
    type Harm = fn(&PathBuf);
    let harms: [(&str, Harm); 4] = [
        ("is missing", |path| fs::remove_file(path).unwrap()),
        ("has 0 bytes", |path| fs::write(path, "").unwrap()),
        ("has", |path| fs::write(path, &fs::read(path).unwrap()[..100]).unwrap()),
        ("does not end as a Parquet file", |path| {
            fs::write(path, vec![0; fs::read(path).unwrap().len()]).unwrap();
        }),
    ];
    for (word, harm) in harms {
        let (folder, store) = filled().await;
        let files = parquet_files(&folder);
        harm(&files[2]);
        let health = look(&store).await;
        let fails = fails(&health);
        assert_eq!(fails.len(), 1, "{fails:?}");
        assert!(fails[0].text.contains(word), "{fails:?}");
        assert!(fails[0].means.contains("10 rows"), "{fails:?}");
        let (rows, report) = rebuilt(&store).await;
        assert_eq!(report.lost.len(), 1);
        assert_eq!((report.rows, report.lost[0].1), (90, 10));
        assert!(rows[0].starts_with("90 "), "{rows:?}");
    }
}

#[tokio::test]
async fn wrong_counts_bounds_and_doubled_epochs_are_named() {
    let (folder, store) = filled().await;
    let good = fs::read_to_string(entry(&folder, 3)).unwrap();
    fs::write(entry(&folder, 3), good.replace("\\\"numRecords\\\":10", "\\\"numRecords\\\":11"))
        .unwrap();
    let health = look(&store).await;
    assert_eq!(fails(&health)[0].check, "counts", "{:?}", health.findings);
    assert!(good.contains("\\\"value\\\":39.0"), "{good}");
    fs::write(entry(&folder, 3), good.replace("\\\"value\\\":39.0", "\\\"value\\\":35.0")).unwrap();
    let health = look(&store).await;
    assert_eq!(fails(&health)[0].check, "bounds", "{:?}", health.findings);
    for (whole, broken) in [
        ("\\\"numRecords\\\":10", "\\\"numRecords\\\";10"),
        ("\\\"numRecords\\\":10", "\\\"numRecords\\\":-10"),
    ] {
        assert!(good.contains(whole), "{good}");
        fs::write(entry(&folder, 3), good.replace(whole, broken)).unwrap();
        let health = look(&store).await;
        assert_eq!(fails(&health)[0].check, "statistics", "{:?}", health.findings);
    }
    fs::write(entry(&folder, 3), &good).unwrap();
    fs::copy(entry(&folder, 10), entry(&folder, 11)).unwrap();
    let health = look(&store).await;
    let fails = fails(&health);
    assert!(fails[0].text.contains("epoch 10 of i/plant.t"), "{fails:?}");
    assert_eq!(fails[0].check, "epochs");
}

#[tokio::test]
async fn orphans_and_a_folder_without_a_log_are_told() {
    let (folder, store) = filled().await;
    let files = parquet_files(&folder);
    let orphan = files[0].with_file_name("part-i_plant_t-0000000011-0000000011-0000-aa.parquet");
    fs::copy(&files[0], &orphan).unwrap();
    let health = look(&store).await;
    assert!(fails(&health).is_empty());
    let note = health.findings.iter().find(|f| f.check == "orphans").unwrap();
    assert!(note.text.starts_with("1 file ("), "{note:?}");
    // Without `full`, delta-rs leaves what the log never named.
    assert!(note.change.iter().any(|c| c.contains("full=True")), "{note:?}");
    fs::remove_dir_all(folder.path().join("plant/t/_delta_log")).unwrap();
    let health = look(&store).await;
    assert!(fails(&health)[0].text.contains("has no log"), "{:?}", health.findings);
}

#[tokio::test]
async fn a_disk_keeps_what_commits_rely_on_and_nothing_is_left() {
    let (folder, store) = local();
    let findings = probe(&store, "one").await;
    assert!(findings.iter().all(|f| f.severity == Severity::Ok), "{findings:?}");
    assert_eq!(findings.len(), 3);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_store_that_overwrites_is_told() {
    let (_folder, store) = local();
    let (store, faults) = FaultyStore::over(&store);
    faults.overwrites.store(true, std::sync::atomic::Ordering::SeqCst);
    let findings = probe(&store, "one").await;
    let fails: Vec<_> = findings.iter().filter(|f| f.severity == Severity::Fail).collect();
    assert!(fails.iter().any(|f| f.check == "put if absent"), "{findings:?}");
    assert!(fails.iter().any(|f| f.check == "rivals"), "{findings:?}");
}
