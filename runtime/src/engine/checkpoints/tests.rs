//! The saver on a disk that is full at times, and what checkpoints take over from one another.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, new_null_array};
use arrow::datatypes::{DataType, Int64Type};
use tidegate_operators::alert::{STATE_COLUMNS, TOLD_FOR_US};
use tidegate_operators::{GroupSet, SavedRows, Tick};

use super::*;
use crate::checkpoint::manifest::{FORMAT, Manifest};
use crate::http::REQUESTS_PART;
use crate::journal::{AppendFile, Disk, Storage};

mod earlier;

/// A disk on which nothing can be created while it is full, whose folders cannot be synced after a
/// rename, and on which nothing can be removed, each if that is wanted.
#[derive(Clone, Default)]
struct Full(Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicBool>);

impl Storage for Full {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Disk.create(path),
        }
    }
    fn open(&self, path: &Path, len: u64) -> io::Result<Box<dyn AppendFile>> {
        Disk.open(path, len)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.1.load(Ordering::SeqCst) && dir.join("renamed").exists() {
            true => Err(io::Error::other("injected: input/output error")),
            false => Disk.sync_dir(dir),
        }
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::write(to.with_file_name("renamed"), "")?;
        Disk.rename_new(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.2.load(Ordering::SeqCst) && path.exists() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Disk.remove(path),
        }
    }
}

fn go_on(store: CheckpointStore) -> (CheckpointOptions, Restored) {
    let mut restored = Restored::read(&store, &[]).unwrap();
    (restored.go_on(store, Duration::ZERO, &Arc::default()), restored)
}

/// One key in each of these groups, with this value.
fn snapshot(groups: &[u16], value: i64) -> Snapshot {
    let mut set = GroupSet::default();
    set.extend(groups.iter().copied());
    Snapshot::new(set, move |groups| {
        let groups: Vec<u16> = groups.iter().collect();
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values(
            groups.iter().map(|group| format!("key of {group}")),
        ));
        let values: ArrayRef = Arc::new(Int64Array::from(vec![value; groups.len()]));
        let rows = RecordBatch::try_from_iter([("key", keys), ("value", values)]).unwrap();
        Ok(SavedRows { rows, groups: groups.into_iter().map(|group| (group, 1)).collect() })
    })
}

/// A saver by turns whose only operator has been saved in one whole cut, of epoch 1.
fn begun(dir: &Path, disk: &Full) -> (Checkpoints, Arc<Cuts>) {
    let store = CheckpointStore::open_on(Arc::new(disk.clone()), dir).unwrap();
    let (options, _) = go_on(store);
    let cuts = Arc::clone(&options.cuts);
    cuts.want_whole();
    let mut checkpoints = Checkpoints::by_turns(options, &[]);
    let Worker::Caller(saver) = &mut checkpoints.worker else { unreachable!() };
    saver.plan.operators.insert("p/step".into(), "0".into());
    assert_eq!(cuts.due(Tick { epoch: 1, time_us: 1 }, 0, false), Some(true));
    checkpoints.add("p/step".into(), 1, snapshot(&[1, 2, 3], 1)).unwrap();
    checkpoints.write(1, TablesAt::default()).unwrap();
    assert_eq!(checkpoints.written(), 1);
    (checkpoints, cuts)
}

/// What the newest checkpoint has of the operator: its epoch, and the sum of all values.
fn newest(dir: &Path) -> (Epoch, i64) {
    let checkpoint = CheckpointStore::look_at(dir).latest().unwrap().unwrap();
    let values = checkpoint
        .state
        .iter()
        .flat_map(|(_, saved)| saved.rows.column(1).as_primitive::<Int64Type>().values().to_vec());
    (checkpoint.manifest.epoch, values.sum())
}

#[test]
fn after_a_lost_cut_there_is_no_checkpoint_before_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Full::default();
    let (mut checkpoints, cuts) = begun(dir.path(), &disk);
    let tick = |epoch| Tick { epoch, time_us: epoch as i64 };
    assert_eq!(cuts.due(tick(2), 0, false), Some(false));
    disk.0.store(true, Ordering::SeqCst);
    checkpoints.add("p/step".into(), 2, snapshot(&[1, 2], 10)).unwrap();
    disk.0.store(false, Ordering::SeqCst);
    // The next two are asked for before anybody says what became of the one that was lost.
    assert_eq!(cuts.due(tick(3), 0, true), Some(true), "as soon as it was lost");
    cuts.finish(3);
    assert_eq!(cuts.due(tick(4), 0, true), Some(false));
    checkpoints.write(2, TablesAt::default()).unwrap();
    checkpoints.add("p/step".into(), 4, snapshot(&[3], 10)).unwrap();
    checkpoints.write(4, TablesAt::default()).unwrap();
    assert_eq!(newest(dir.path()), (1, 3), "4 has not what was lost with 2");
    // A whole one that comes later has everything, also if one after it is made visible.
    assert_eq!(cuts.due(tick(5), 0, false), Some(true));
    checkpoints.add("p/step".into(), 5, snapshot(&[1, 2, 3], 10)).unwrap();
    assert_eq!(cuts.due(tick(6), 0, true), Some(false));
    checkpoints.add("p/step".into(), 6, snapshot(&[1], 20)).unwrap();
    checkpoints.write(6, TablesAt::default()).unwrap();
    assert_eq!((newest(dir.path()), checkpoints.written()), ((6, 40), 6));
}

/// Names of all files of checkpoints.
fn files(dir: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name.contains('-')).collect()
}

#[test]
fn the_size_of_a_restored_checkpoint_is_counted_before_there_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, _) = begun(dir.path(), &Full::default());
    let Worker::Caller(saver) = &checkpoints.worker else { unreachable!() };
    let of = |stats: &Stats| {
        let stats = stats.snapshot();
        (stats.checkpoint_bytes, stats.state_rows)
    };
    let (bytes, rows) = of(&saver.options.stats);
    assert!(bytes > 0 && rows == 3, "{bytes} bytes, {rows} rows");
    drop(checkpoints);
    let stats = Arc::<Stats>::default();
    let store = CheckpointStore::open(dir.path()).unwrap();
    // Its operator is in no pipeline any more: the files are those of the newest one still.
    let mut restored = Restored::read(&store, &[]).unwrap();
    let _options = restored.go_on(store, Duration::ZERO, &stats);
    assert_eq!(of(&stats), (bytes, rows));
}

#[test]
fn what_a_lost_cut_has_written_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Full::default();
    let (mut checkpoints, cuts) = begun(dir.path(), &disk);
    let before = files(dir.path());
    let tick = |epoch| Tick { epoch, time_us: epoch as i64 };
    assert_eq!(cuts.due(tick(2), 0, false), Some(false));
    checkpoints.add("p/step".into(), 2, snapshot(&[1], 10)).unwrap();
    assert_eq!(files(dir.path()).len(), before.len() + 1);
    disk.0.store(true, Ordering::SeqCst);
    checkpoints.add("p/step".into(), 2, snapshot(&[2], 10)).unwrap();
    assert_eq!(files(dir.path()), before, "what it had");
    disk.0.store(false, Ordering::SeqCst);
    checkpoints.add("p/step".into(), 2, snapshot(&[3], 10)).unwrap();
    assert_eq!(files(dir.path()), before, "and nothing more is written for it");
    checkpoints.write(2, TablesAt::default()).unwrap();
    assert_eq!(newest(dir.path()), (1, 3));
    assert_eq!(cuts.due(tick(3), 0, false), Some(true));
    checkpoints.add("p/step".into(), 3, snapshot(&[1, 2, 3], 10)).unwrap();
    checkpoints.write(3, TablesAt::default()).unwrap();
    assert_eq!(newest(dir.path()), (3, 30));
}

#[test]
fn a_large_state_is_written_piece_by_piece_into_several_files() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Full::default();
    let (mut checkpoints, cuts) = begun(dir.path(), &disk);
    let before = files(dir.path()).len();
    let groups = || (0..200).collect::<Vec<u16>>();
    // When it is made, the disk is full from this piece on.
    let large = |full: Option<usize>| {
        let mut set = GroupSet::default();
        set.extend(groups());
        let disk = disk.clone();
        Snapshot::in_pieces(set, move |groups| {
            let groups: Vec<u16> = groups.iter().collect();
            let pieces: Vec<Vec<u16>> = groups.chunks(10).map(<[u16]>::to_vec).collect();
            Ok(Box::new(pieces.into_iter().enumerate().map(move |(number, groups)| {
                disk.0.store(Some(number) == full, Ordering::SeqCst);
                snapshot(&groups, 5).rows()
            })))
        })
    };
    assert_eq!(cuts.due(Tick { epoch: 2, time_us: 2 }, 0, false), Some(false));
    checkpoints.add("p/step".into(), 2, large(None)).unwrap();
    let more = files(dir.path()).len() - before;
    assert!((2..=10).contains(&more), "{more} files for 20 pieces");
    checkpoints.write(2, TablesAt::default()).unwrap();
    assert_eq!(newest(dir.path()), (2, 200 * 5));
    let Worker::Caller(saver) = &checkpoints.worker else { unreachable!() };
    let parts = saver.options.holdings.parts();
    let covered: Vec<u16> =
        parts.iter().flat_map(|part| part.group_set().iter().collect::<Vec<_>>()).collect();
    assert_eq!(covered, groups(), "each group is in one file");
    // The first file is there when there is no room for the second one.
    let before = files(dir.path());
    assert_eq!(cuts.due(Tick { epoch: 3, time_us: 3 }, 0, false), Some(false));
    checkpoints.add("p/step".into(), 3, large(Some(10))).unwrap();
    disk.0.store(false, Ordering::SeqCst);
    assert_eq!(files(dir.path()), before, "nothing of it stays");
    checkpoints.write(3, TablesAt::default()).unwrap();
    assert_eq!(newest(dir.path()), (2, 200 * 5));
}

/// Looks until the thread has ended, and gives what it ended with.
fn until_ended(checkpoints: &mut Checkpoints) -> anyhow::Result<()> {
    for _ in 0..12_000 {
        checkpoints.check()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn a_thread_that_has_ended_is_noticed_although_nobody_asks_it_for_anything() {
    let dir = tempfile::tempdir().unwrap();
    let (options, _) = go_on(CheckpointStore::open(dir.path()).unwrap());
    let mut checkpoints = Checkpoints::start(options, &[]).unwrap();
    checkpoints.check().unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    // A cut with nothing to save but the manifest.
    checkpoints.write(1, TablesAt::default()).unwrap();
    let error = until_ended(&mut checkpoints).unwrap_err();
    assert!(format!("{error:#}").contains("cannot write a checkpoint"), "{error:#}");
    assert!(checkpoints.check().is_ok(), "it is said once: whoever hears it ends");
}

#[test]
fn an_old_checkpoint_that_cannot_be_removed_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Full::default();
    let (mut checkpoints, cuts) = begun(dir.path(), &disk);
    disk.2.store(true, Ordering::SeqCst);
    for epoch in 2..6 {
        cuts.want_whole();
        assert!(cuts.due(Tick { epoch, time_us: 1 }, 0, false).is_some());
        checkpoints.add("p/step".into(), epoch, snapshot(&[1, 2, 3], 1)).unwrap();
        checkpoints.write(epoch, TablesAt::default()).unwrap();
        assert_eq!(checkpoints.written(), epoch);
    }
    let many = files(dir.path()).len();
    disk.2.store(false, Ordering::SeqCst);
    assert!(cuts.due(Tick { epoch: 6, time_us: 1 }, 0, false).is_some());
    checkpoints.write(6, TablesAt::default()).unwrap();
    assert!(files(dir.path()).len() < many, "they go the next time");
}

#[test]
fn a_manifest_that_cannot_be_written_is_made_up_for_by_a_whole_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Full::default();
    let (mut checkpoints, cuts) = begun(dir.path(), &disk);
    let tick = |epoch| Tick { epoch, time_us: epoch as i64 };
    assert_eq!(cuts.due(tick(2), 0, false), Some(false));
    checkpoints.add("p/step".into(), 2, snapshot(&[1], 10)).unwrap();
    disk.0.store(true, Ordering::SeqCst);
    checkpoints.write(2, TablesAt::default()).unwrap();
    disk.0.store(false, Ordering::SeqCst);
    assert_eq!(newest(dir.path()), (1, 3));
    assert_eq!(cuts.due(tick(3), 0, false), Some(true));
    checkpoints.add("p/step".into(), 3, snapshot(&[1, 2, 3], 10)).unwrap();
    checkpoints.write(3, TablesAt::default()).unwrap();
    assert_eq!(newest(dir.path()), (3, 30));
}

/// The state of a rule that fires for one device.
fn firing() -> SavedRows {
    let device: ArrayRef = Arc::new(StringArray::from(vec!["d1"]));
    let mut columns = vec![("device", device)];
    for name in STATE_COLUMNS {
        let value = match name {
            "before" | "now" => 2,
            "before_since_us" | "now_since_us" => 5,
            _ => 7,
        };
        columns.push((name, Arc::new(Int64Array::from(vec![value])) as ArrayRef));
    }
    columns.push(("forgotten", new_null_array(&DataType::LargeBinary, 1)));
    let rows = RecordBatch::try_from_iter(columns);
    SavedRows { rows: rows.unwrap(), groups: vec![(0, 1)] }
}

/// Writes a checkpoint of a plan with two rules that both fire, and of a request.
fn with_rules(store: &CheckpointStore) {
    let keys: ArrayRef = Arc::new(StringArray::from(vec!["an id"]));
    let rows = RecordBatch::try_from_iter([("key", keys)]).unwrap();
    let requests = SavedRows { rows, groups: vec![(0, 1)] };
    let rules = ["p/alert/a", "p/alert/b"];
    let mut parts: Vec<_> =
        rules.iter().map(|rule| store.write_part(rule, &firing()).unwrap()).collect();
    parts.push(store.write_part(REQUESTS_PART, &requests).unwrap());
    let operators = rules.iter().map(|rule| ((*rule).to_owned(), "00000000000000aa".to_owned()));
    store
        .publish(&Manifest {
            format: FORMAT,
            epoch: 80,
            operators: operators.collect(),
            parts,
            ..Manifest::default()
        })
        .unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let checkpoint = CheckpointStore::look_at(dir).latest().unwrap().unwrap();
    checkpoint.manifest.parts.into_iter().map(|part| part.operator).collect()
}

fn ended_of(restored: &Restored) -> Vec<(Epoch, usize)> {
    restored.ended.iter().map(|(epoch, rows)| (*epoch, rows.num_rows())).collect()
}

fn switch(ended_epoch: Epoch) -> Switch {
    Switch {
        had: BTreeSet::new(),
        epoch: 80,
        time_us: 9,
        ended_epoch,
        tables: TablesAt::default(),
        old: Vec::new(),
        new: Vec::new(),
        built: None,
        rebuilt: Vec::new(),
        since_us: None,
    }
}

#[test]
fn keys_of_requests_and_ends_of_alerts_stay_until_they_are_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let open = || CheckpointStore::open(dir.path()).unwrap();
    with_rules(&open());
    let (options, restored) = go_on(open());
    assert!(restored.ended.is_empty());
    let mut checkpoints = Checkpoints::by_turns(options, &[]);
    let ended = checkpoints.switch(switch(100)).unwrap().unwrap().ended.unwrap();
    assert_eq!(ended.num_rows(), 2);
    let [ended, a, b] = ["system/ended@100", "system/told/p/alert/a", "system/told/p/alert/b"];
    assert_eq!(names(dir.path()), [REQUESTS_PART, ended, a, b]);
    drop(checkpoints);
    // Another start with other files, before that epoch is complete: it loses none of them.
    let (options, restored) = go_on(open());
    assert_eq!(ended_of(&restored), [(100, 2)]);
    let mut checkpoints = Checkpoints::by_turns(options, &[]);
    assert!(checkpoints.switch(switch(101)).unwrap().unwrap().ended.is_none());
    // The first cut of the replay.
    checkpoints.write(85, TablesAt::default()).unwrap();
    assert_eq!(names(dir.path()), [REQUESTS_PART, ended, a, b]);
    checkpoints.write(100, TablesAt::default()).unwrap();
    assert_eq!(names(dir.path()), [REQUESTS_PART, a, b], "the rules may be put back");
    let later = |time_us| Switch { epoch: 100, time_us, ..switch(101) };
    checkpoints.switch(later(TOLD_FOR_US)).unwrap().unwrap();
    assert_eq!(names(dir.path()), [REQUESTS_PART, a, b]);
    checkpoints.switch(later(TOLD_FOR_US + 9)).unwrap().unwrap();
    assert_eq!(names(dir.path()), [REQUESTS_PART]);
}

#[test]
fn ends_of_alerts_from_two_changes_come_to_one_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let open = || CheckpointStore::open(dir.path()).unwrap();
    with_rules(&open());
    let (options, _) = go_on(open());
    let mut checkpoints = Checkpoints::by_turns(options, &[]);
    checkpoints.switch(switch(100)).unwrap().unwrap();
    drop(checkpoints);
    // As if the files in between had had one of the rules again.
    let store = open();
    let mut manifest = store.latest().unwrap().unwrap().manifest;
    manifest.operators.insert("p/alert/a".into(), "00000000000000aa".into());
    manifest.parts.push(store.write_part("p/alert/a", &firing()).unwrap());
    store.publish(&manifest).unwrap();
    let (options, _) = go_on(store);
    let mut checkpoints = Checkpoints::by_turns(options, &[]);
    let ended = checkpoints.switch(switch(100)).unwrap().unwrap().ended.unwrap();
    assert_eq!(ended.num_rows(), 1, "the other two were given to the committer before");
    drop(checkpoints);
    let (_, restored) = go_on(open());
    assert_eq!(ended_of(&restored), [(100, 3)]);
}

#[test]
fn a_switch_is_refused_or_made_and_what_is_neither_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Full::default();
    with_rules(&CheckpointStore::open(dir.path()).unwrap());
    let store = CheckpointStore::open_on(Arc::new(disk.clone()), dir.path()).unwrap();
    let mut checkpoints = Checkpoints::start(go_on(store).0, &[]).unwrap();
    disk.0.store(true, Ordering::SeqCst);
    let refused = checkpoints.switch(switch(100)).unwrap().err().unwrap();
    assert!(format!("{refused:#}").contains("create"), "{refused:#}");
    assert!(names(dir.path()).contains(&"p/alert/a".to_owned()), "nothing was changed");
    disk.0.store(false, Ordering::SeqCst);
    disk.1.store(true, Ordering::SeqCst);
    let fatal = checkpoints.switch(switch(100)).err().unwrap();
    assert!(format!("{fatal:#}").contains("cannot make the change"), "{fatal:#}");
    assert!(!names(dir.path()).contains(&"p/alert/a".to_owned()), "the rename was done");
    assert!(checkpoints.write(81, TablesAt::default()).is_err(), "and nothing comes after it");
}
