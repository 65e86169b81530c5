//! Damaged data folders, saved: exactly what was whole is there, and the new folder opens.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::super::report::Status;
use super::*;
use crate::checkpoint::manifest::{FORMAT, Manifest};
use crate::clock::Clock;
use crate::journal::examine::testing::{segments, write_journal};
use crate::journal::{Feed, Journal, JournalOptions};

fn quiet(_: &str, _: u64, _: u64) {}

/// [`write_journal`], which has a runtime of its own.
fn filled(dir: &Path, offers: usize) -> Vec<String> {
    std::thread::scope(|scope| scope.spawn(|| write_journal(dir, 450, offers)).join()).unwrap()
}

async fn save(data: &Path) -> (tempfile::TempDir, anyhow::Result<Vec<Report>>) {
    let to = tempfile::tempdir().unwrap();
    let options = SalvageOptions { data: data.into(), to: to.path().join("saved") };
    let outcome = salvage(&options, &quiet).await;
    (to, outcome)
}

/// All payloads that a start on `data` replays after its newest checkpoint.
fn start(data: &Path) -> Vec<String> {
    let checkpoints = data.join("checkpoints");
    let newest = match checkpoints.is_dir() {
        true => CheckpointStore::open(checkpoints).unwrap().latest().unwrap(),
        false => None,
    };
    let options = JournalOptions {
        idle_interval: Duration::from_secs(3600),
        ..JournalOptions::new(data.join("journal"))
    };
    let names = ["x".to_owned(), "y".to_owned()];
    let from = newest.map_or(1, |c| c.manifest.epoch + 1);
    let (_journal, replay) = Journal::open(options, Clock::system(), &names, from).unwrap();
    let mut payloads = Vec::new();
    let mut epochs = Vec::new();
    for feed in replay {
        match feed.unwrap() {
            Feed::Messages(run) => {
                let text = |i| String::from_utf8(run.payload(i).to_vec()).unwrap();
                payloads.extend((0..run.len()).map(text));
            }
            Feed::Tick(tick) => epochs.push(tick.epoch),
        }
    }
    assert!(epochs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{epochs:?}");
    payloads
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_is_saved_and_the_rest_is_told_in_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = filled(&dir.path().join("journal"), 24);
    fs::write(dir.path().join("instance"), "0123").unwrap();
    let files = segments(&dir.path().join("journal"));
    // A byte of a payload: `payload 3/0` is the first of its run.
    let victim = files.iter().find(|f| contains(f, b"payload 3/0")).unwrap();
    let mut bytes = fs::read(victim).unwrap();
    let at = memchr::memmem::find(&bytes, b"payload 3/0").unwrap();
    bytes[at] ^= 0x20;
    fs::write(victim, &bytes).unwrap();
    let before = fs::read(&files[0]).unwrap();
    fs::remove_file(files.last().unwrap()).unwrap();
    let gone = payloads_of(files.last().unwrap());
    let (to, outcome) = save(dir.path()).await;
    let reports = outcome.unwrap();
    let report = &reports[0];
    assert!(!report.passed(), "{}", report.table());
    let journal = report.rows.iter().find(|r| r.check == "journal").unwrap();
    assert!(journal.change[0].contains(", 2 messages:"), "{journal:?}");
    let left: Vec<&String> =
        payloads.iter().filter(|p| !p.starts_with("payload 3/") && !gone(p.as_str())).collect();
    assert_eq!(start(&to.path().join("saved")).iter().collect::<Vec<_>>(), left);
    // The old folder is as it was.
    assert_eq!(fs::read(&files[0]).unwrap(), before);
    assert_eq!(fs::read(victim).unwrap(), bytes);
    assert_eq!(fs::read_to_string(to.path().join("saved/instance")).unwrap(), "0123");
}

fn contains(path: &Path, word: &[u8]) -> bool {
    memchr::memmem::find(&fs::read(path).unwrap(), word).is_some()
}

/// Which payloads only the removed segment held: those that none of the others has.
fn payloads_of(removed: &Path) -> impl Fn(&str) -> bool + use<> {
    let others: Vec<Vec<u8>> =
        segments(removed.parent().unwrap()).iter().map(|path| fs::read(path).unwrap()).collect();
    move |payload| others.iter().all(|b| memchr::memmem::find(b, payload.as_bytes()).is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_segments_and_a_lost_checkpoint_are_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let payloads = filled(&journal, 24);
    let files = segments(&journal);
    let spare = dir.path().join("spare");
    fs::rename(&files[1], &spare).unwrap();
    fs::rename(&files[2], &files[1]).unwrap();
    fs::rename(&spare, &files[2]).unwrap();
    let (to, outcome) = save(dir.path()).await;
    assert_eq!(start(&to.path().join("saved")), payloads, "{}", outcome.unwrap()[0].table());

    // Trimmed behind a checkpoint that is damaged now: state begins empty where the journal does.
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let payloads = filled(&journal, 24);
    let files = segments(&journal);
    fs::remove_file(&files[0]).unwrap();
    let store = CheckpointStore::open(dir.path().join("checkpoints")).unwrap();
    let manifest = Manifest { format: FORMAT, epoch: 5, ..Manifest::default() };
    store.publish(&manifest).unwrap();
    drop(store);
    let manifest = dir.path().join("checkpoints/checkpoint-00000000000000000005-0000.json");
    fs::write(manifest, "").unwrap();
    let (to, outcome) = save(dir.path()).await;
    let report = &outcome.unwrap()[0];
    let state = report.rows.iter().find(|r| r.check == "state").unwrap();
    assert_eq!(state.status, Status::Warn);
    let saved = start(&to.path().join("saved"));
    assert!(!saved.is_empty() && payloads.ends_with(&saved), "{saved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_never_writes_in_place_nor_beside_a_running_instance() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    filled(&journal, 4);
    let into = |to: PathBuf| SalvageOptions { data: dir.path().into(), to };
    let inside = into(dir.path().join("new"));
    let error = salvage(&inside, &quiet).await.unwrap_err().to_string();
    assert!(error.contains("must not lie inside"), "{error}");
    assert!(!dir.path().join("new").exists());
    let full = tempfile::tempdir().unwrap();
    fs::write(full.path().join("mine"), "").unwrap();
    let error = salvage(&into(full.path().into()), &quiet).await.unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    let _lock = crate::journal::storage::lock_dir(&journal).unwrap();
    let error = save(dir.path()).await.1.unwrap_err().to_string();
    assert!(error.contains("an instance is running"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_behind_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = filled(&dir.path().join("journal"), 4);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(dir.path().join("other.sock")).unwrap();
    fs::create_dir(dir.path().join("spill")).unwrap();
    fs::create_dir(dir.path().join("recompute")).unwrap();
    fs::write(dir.path().join("spill/rows"), "many").unwrap();
    fs::create_dir(dir.path().join("mine")).unwrap();
    fs::write(dir.path().join("mine/note"), "kept").unwrap();
    // The last write was under way.
    let newest = segments(&dir.path().join("journal")).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes.extend([0x5a; 100]);
    fs::write(&newest, bytes).unwrap();
    let (to, outcome) = save(dir.path()).await;
    let report = &outcome.unwrap()[0];
    assert!(report.passed(), "{}", report.table());
    let saved = to.path().join("saved");
    assert_eq!(start(&saved), payloads);
    assert_eq!(fs::read_to_string(saved.join("mine/note")).unwrap(), "kept");
    assert!(!saved.join("spill").exists() && !saved.join("recompute").exists());
    assert!(!saved.join("control.sock").exists());
}

/// The row of a check.
fn row<'a>(report: &'a Report, check: &str) -> &'a super::super::report::Row {
    report.rows.iter().find(|r| r.check == check).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_gone_or_begins_too_late_is_made_and_told() {
    use crate::outbox::{Notification, Outbox};
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(dir.path().join("checkpoints")).unwrap();
    let time_us = 1_767_225_600_000_000;
    let manifest = Manifest { format: FORMAT, epoch: 5, time_us, ..Manifest::default() };
    store.publish(&manifest).unwrap();
    drop(store);
    let outbox = Outbox::open(dir.path().join("outbox")).unwrap();
    let item = Notification {
        id: "one".into(),
        target: "p/ops".into(),
        key: "k".into(),
        created_us: 1,
        body: "{}".into(),
    };
    outbox.enqueue(9, vec![item]).unwrap();
    drop(outbox);
    let (to, outcome) = save(dir.path()).await;
    let report = &outcome.unwrap()[0];
    let journal = row(report, "journal");
    assert_eq!(journal.status, Status::Fail, "{}", report.table());
    assert!(journal.change[0].contains("epochs 6 to 9 are in no segment"), "{journal:?}");
    // Alerts of epoch 10 and later are told, and time goes on after the checkpoint's.
    let options = JournalOptions::new(to.path().join("saved/journal"));
    let (journal, replay) = Journal::open(options, Clock::manual(0), &["x".into()], 6).unwrap();
    assert_eq!(journal.stats().sealed_epoch, 9);
    let ticks = replay.map(|feed| match feed.unwrap() {
        Feed::Tick(tick) => tick.time_us,
        Feed::Messages(_) => panic!("there are none"),
    });
    assert!(ticks.collect::<Vec<_>>().iter().all(|tick_us| *tick_us > time_us));
    // Sessions have alerts of later ones: of new epochs with their numbers they would get none.
    fs::create_dir(dir.path().join("sessions")).unwrap();
    let sessions = redb::Database::create(dir.path().join("sessions/one.redb")).unwrap();
    let transaction = sessions.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("alerts_through", 12).unwrap();
    transaction.commit().unwrap();
    drop(sessions);
    let (to, outcome) = save(dir.path()).await;
    outcome.unwrap();
    let options = JournalOptions::new(to.path().join("saved/journal"));
    let (journal, _) = Journal::open(options, Clock::manual(0), &["x".into()], 6).unwrap();
    assert_eq!(journal.stats().sealed_epoch, 12);

    // Its first segments are gone, and the checkpoint is older.
    let dir = tempfile::tempdir().unwrap();
    filled(&dir.path().join("journal"), 24);
    let store = CheckpointStore::open(dir.path().join("checkpoints")).unwrap();
    store.publish(&Manifest { format: FORMAT, epoch: 1, ..Manifest::default() }).unwrap();
    drop(store);
    let files = segments(&dir.path().join("journal"));
    for file in &files[..3] {
        fs::remove_file(file).unwrap();
    }
    let (_to, outcome) = save(dir.path()).await;
    let report = &outcome.unwrap()[0];
    let journal = row(report, "journal");
    assert_eq!(journal.status, Status::Fail, "{}", report.table());
    assert!(journal.change[0].contains("lost: epochs 2 to "), "{journal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_elsewhere_stay_there_and_are_named() {
    let dir = tempfile::tempdir().unwrap();
    filled(&dir.path().join("journal"), 4);
    fs::write(dir.path().join(tidegate_sql::TABLES_URL_FILE), "nowhere://bucket/plant").unwrap();
    let (_to, outcome) = save(dir.path()).await;
    let report = &outcome.unwrap()[0];
    assert!(report.rows.iter().any(|r| r.check == "tables" && r.status == Status::Warn));
    let commands = &report.rows.last().unwrap().change;
    assert!(commands[1].ends_with("--tables nowhere://bucket/plant"), "{commands:?}");
}
