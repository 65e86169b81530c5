//! Data folders with every kind of damage: found, named, with the right advice.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use tidegate_operators::SavedRows;

use super::super::report::{Row, Status};
use super::*;
use crate::checkpoint::CheckpointStore;
use crate::checkpoint::manifest::{FORMAT, Manifest, PartRef};
use crate::journal::examine::testing::{segments, write_journal};

/// A folder with a journal of some segments.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_journal(&dir.path().join("journal"), 450, 24);
    dir
}

fn look(dir: &tempfile::TempDir) -> Vec<Report> {
    let options = DataOptions { data: dir.path().into(), pipelines: None };
    examine(&options, &|_, _, _| {})
}

fn rows(reports: &[Report], status: Status) -> Vec<&Row> {
    reports.iter().flat_map(|r| &r.rows).filter(|r| r.status == status).collect()
}

fn files(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    segments(&dir.path().join("journal"))
}

#[test]
fn a_whole_folder_is_whole_also_while_it_is_used() {
    let dir = folder();
    let reports = look(&dir);
    assert!(reports.iter().all(Report::passed), "{}", reports[0].table());
    assert_eq!(rows(&reports, Status::Warn), Vec::<&Row>::new());
    let _lock = crate::journal::storage::lock_dir(&dir.path().join("journal")).unwrap();
    let reports = look(&dir);
    assert!(reports[0].subject.contains("in use by process"), "{}", reports[0].subject);
    assert!(reports.iter().all(Report::passed), "{}", reports[0].table());
    assert!(!look(&tempfile::tempdir().unwrap()).is_empty());
}

fn publish(store: &CheckpointStore, epoch: Epoch, parts: Vec<PartRef>) {
    let manifest = Manifest { format: FORMAT, epoch, parts, ..Manifest::default() };
    store.publish(&manifest).unwrap();
}

#[test]
fn a_missing_segment_is_named_with_what_it_held() {
    let dir = folder();
    let files = files(&dir);
    assert!(files.len() > 4);
    std::fs::remove_file(&files[1]).unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("segment 2 is missing"), "{fails:?}");
    assert!(fails[0].means.contains("message"), "{fails:?}");
    assert!(fails[0].change.iter().any(|c| c.contains("--salvage")), "{fails:?}");
    assert!(fails.iter().any(|r| r.check == "recovery"), "{fails:?}");
    // With a checkpoint behind the gap it is not needed.
    let store = CheckpointStore::open(dir.path().join("checkpoints")).unwrap();
    let bytes = std::fs::read(&files[3]).unwrap();
    let fourth = crate::journal::examine::scan::header_of(&bytes).unwrap().first_epoch;
    publish(&store, fourth, Vec::new());
    drop(store);
    std::fs::remove_file(&files[0]).unwrap();
    let reports = look(&dir);
    assert!(reports.iter().all(Report::passed), "{}", reports[0].table());
}

#[test]
fn swapped_and_empty_segments_are_named() {
    let dir = folder();
    let files = files(&dir);
    let spare = dir.path().join("spare");
    std::fs::rename(&files[1], &spare).unwrap();
    std::fs::rename(&files[2], &files[1]).unwrap();
    std::fs::rename(&spare, &files[2]).unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("journal-000000000002.log"), "{fails:?}");
    assert!(fails[0].measured.contains("is segment 3"), "{fails:?}");

    let dir = folder();
    let files = self::files(&dir);
    std::fs::write(&files[1], "").unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("cut off"), "{fails:?}");
    assert_eq!(fails[0].place.as_ref().unwrap().offset, Some(0));
}

#[test]
fn checkpoints_are_judged_and_recovery_follows_the_newest_whole_one() {
    let dir = folder();
    let store = CheckpointStore::open(dir.path().join("checkpoints")).unwrap();
    publish(&store, 3, Vec::new());
    let batch = RecordBatch::try_from_iter([("k", Arc::new(Int64Array::from(vec![1])) as _)]);
    let saved = SavedRows { rows: batch.unwrap(), groups: vec![(4, 1)] };
    let part = store.write_part("p/w", &saved).unwrap();
    let file = dir.path().join("checkpoints").join(&part.file);
    publish(&store, 5, vec![part]);
    drop(store);
    assert!(look(&dir).iter().all(Report::passed));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("is not what was saved"), "{fails:?}");
    let manifest = dir.path().join("checkpoints/checkpoint-00000000000000000005-0000.json");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert_eq!(fails.len(), 1, "{fails:?}");
    assert!(fails[0].measured.contains("checksum of the manifest"), "{fails:?}");
    assert!(fails[0].means.contains("uses epoch 3"), "{fails:?}");
    let recovery = reports[0].rows.iter().find(|r| r.check == "recovery").unwrap();
    assert!(recovery.measured.contains("restores epoch 3"), "{recovery:?}");
    // A start sets it aside; the doctor still tells of it.
    CheckpointStore::open(dir.path().join("checkpoints")).unwrap().recover().unwrap();
    let reports = look(&dir);
    assert!(reports.iter().all(Report::passed));
    let warned = rows(&reports, Status::Warn);
    assert!(warned.iter().any(|r| r.measured.contains("set it aside")), "{warned:?}");
}

#[test]
fn a_journal_that_does_not_reach_the_checkpoint_is_a_failure() {
    let dir = folder();
    let store = CheckpointStore::open(dir.path().join("checkpoints")).unwrap();
    publish(&store, 900, Vec::new());
    drop(store);
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("the newest checkpoint is of epoch 900"), "{fails:?}");
}

#[test]
fn what_a_start_does_is_said_as_far_as_the_folder_knows_it() {
    use crate::outbox::{Notification, Outbox};
    let dir = folder();
    let recovery = |status| {
        let reports = look(&dir);
        let mut rows = rows(&reports, status).into_iter().filter(|r| r.check == "recovery");
        rows.next().cloned().unwrap_or_else(|| panic!("{}", reports[0].table()))
    };
    // Tables are not looked at here: it is told who does, and what would be refused.
    let possible = recovery(Status::Ok);
    let command = format!("`tidegate doctor tables --data {}`", dir.path().display());
    assert!(possible.means.contains(&command), "{possible:?}");
    assert!(possible.means.contains("then it refuses"), "{possible:?}");
    // Alerts of an epoch that the journal does not reach.
    let outbox = Outbox::open(dir.path().join("outbox")).unwrap();
    let item = Notification {
        id: "id".into(),
        target: "p/ops".into(),
        key: "k".into(),
        created_us: 1,
        body: "{}".into(),
    };
    outbox.enqueue(9_000, vec![item]).unwrap();
    drop(outbox);
    let refused = recovery(Status::Fail);
    assert!(refused.measured.contains("the outbox or the sessions have epoch 9000"), "{refused:?}");
    assert!(refused.means.contains("a start refuses"), "{refused:?}");
}

#[test]
fn a_damaged_outbox_and_session_store_are_named() {
    use crate::outbox::{Notification, Outbox};
    let dir = folder();
    let outbox = Outbox::open(dir.path().join("outbox")).unwrap();
    for epoch in 1..4 {
        let item = Notification {
            id: format!("id-{epoch}"),
            target: "p/ops".into(),
            key: "k".into(),
            created_us: 1,
            body: "{}".into(),
        };
        outbox.enqueue(epoch, vec![item]).unwrap();
    }
    drop(outbox);
    std::fs::create_dir(dir.path().join("sessions")).unwrap();
    let store = dir.path().join("sessions/endpoint.redb");
    drop(redb::Database::create(&store).unwrap());
    let reports = look(&dir);
    assert!(reports.iter().all(Report::passed));
    assert!(reports[2].rows[0].measured.contains("3 pending, 0 delivered, 0 dead"));
    let path = dir.path().join("outbox/outbox-000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(&store, "no database").unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("outbox-000000000001.log at bytes"), "{fails:?}");
    assert_eq!(fails[1].check, "endpoint.redb");
    assert!(!dir.path().join("sessions").join("lock").exists());
}

#[test]
fn an_outbox_without_entries_and_with_a_damaged_header_stops_nobody() {
    let dir = folder();
    let outbox = dir.path().join("outbox");
    drop(crate::outbox::Outbox::open(&outbox).unwrap());
    let path = outbox.join("outbox-000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let reports = look(&dir);
    assert!(reports.iter().all(Report::passed), "{}", reports[2].table());
    assert!(reports[2].rows[0].measured.contains("it is empty"), "{}", reports[2].table());
    crate::outbox::Outbox::open(&outbox).unwrap();
}

#[test]
fn a_folder_that_is_none_of_ours_is_told() {
    let dir = tempfile::tempdir().unwrap();
    assert!(look(&dir).iter().all(Report::passed), "one that is empty may become one");
    std::fs::write(dir.path().join("passwd"), "root").unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert!(fails[0].measured.contains("this is no data folder"), "{fails:?}");
    assert_eq!(reports.len(), 1);
    std::fs::create_dir(dir.path().join("journal")).unwrap();
    assert!(look(&dir).iter().all(Report::passed));
}

#[test]
fn damage_of_what_ran_is_told() {
    let dir = folder();
    let file = dir.path().join("pipelines.json");
    let text = "{\"format\":1,\"pipelines\":{},\"began\":0,\"attempts\":0,\"files\":[]}";
    std::fs::write(&file, text).unwrap();
    assert!(look(&dir).iter().all(Report::passed));
    std::fs::write(&file, text.replace("[]}", "[],\"crc32\":1}")).unwrap();
    let reports = look(&dir);
    let fails = rows(&reports, Status::Fail);
    assert_eq!(fails[0].check, "pipelines", "{fails:?}");
    assert!(fails[0].measured.contains("its checksum is another one"), "{fails:?}");
}
