//! The journal on a real disk, on a disk that fails, cut at every length and flipped at every byte.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use tidegate_operators::event::{Blocked, Gap, NoNewKeys, SessionEvent};
use tidegate_operators::{MessageMeta, MessagesBuilder};

use super::segment::FileHeader;
use super::*;
use crate::intake::IntakeError;

struct ChannelSink(mpsc::Sender<Feed>);

impl FeedSink for ChannelSink {
    fn push(&mut self, feed: Feed) {
        let _ = self.0.send(feed);
    }
}

/// Counts syncs of journal files, and fails on demand.
#[derive(Default)]
struct Faults {
    syncs: AtomicU64,
    /// Bytes that can still be written; negative: no limit.
    room_bytes: AtomicI64,
    limited: AtomicBool,
    fail_sync: AtomicBool,
    sync_pause_ms: AtomicU64,
}

struct FaultyDisk(Arc<Faults>);
struct FaultyFile(Box<dyn AppendFile>, Arc<Faults>);

impl Storage for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(FaultyFile(Disk.create(path)?, self.0.clone())))
    }
    fn open(&self, path: &Path, len: u64) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(FaultyFile(Disk.open(path, len)?, self.0.clone())))
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        Disk.sync_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
}

impl AppendFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.1.limited.load(Ordering::SeqCst) {
            let room = self.1.room_bytes.fetch_sub(bytes.len() as i64, Ordering::SeqCst);
            if room < bytes.len() as i64 {
                self.1.room_bytes.store(0, Ordering::SeqCst);
                // Part of it gets there, as on a real disk.
                self.0.append(&bytes[..room.max(0) as usize])?;
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.0.append(bytes)
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn sync(&mut self) -> io::Result<()> {
        if self.1.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("injected: input/output error"));
        }
        std::thread::sleep(Duration::from_millis(self.1.sync_pause_ms.load(Ordering::SeqCst)));
        self.0.sync()?;
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn options(dir: &Path) -> JournalOptions {
    JournalOptions {
        epoch_interval: Duration::from_millis(1),
        idle_interval: Duration::from_secs(3600),
        ..JournalOptions::new(dir)
    }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn builder(payloads: &[String]) -> MessagesBuilder {
    let mut builder = MessagesBuilder::default();
    for payload in payloads {
        let meta = MessageMeta { received_us: 1_000, packet_id: 9, qos: 1, ..Default::default() };
        builder.push(b"a/b", payload.as_bytes(), b"client", meta);
    }
    builder
}

/// A journal of one source, and what it hands on.
fn started(options: JournalOptions) -> (Journal, mpsc::Receiver<Feed>) {
    let (journal, _) = Journal::open(options, Clock::system(), &names(&["x"]), 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    (journal, receiver)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What a dataflow would see: per epoch the messages as (offset, source, payload).
type Epochs = Vec<(Tick, Vec<(u64, u16, String)>)>;

/// Waits until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn epochs(feeds: impl IntoIterator<Item = Feed>) -> Epochs {
    let (mut all, mut open) = (Vec::new(), Vec::new());
    for feed in feeds {
        match feed {
            Feed::Messages(run) => open.extend((0..run.len()).map(|i| {
                assert_eq!((run.topic(i), run.client(i)), (&b"a/b"[..], &b"client"[..]));
                assert_eq!((run.index[i].packet_id, run.index[i].received_us), (9, 1_000));
                let payload = String::from_utf8(run.payload(i).to_vec()).unwrap();
                (run.first_offset + i as u64, run.source, payload)
            })),
            Feed::Tick(tick) => all.push((tick, std::mem::take(&mut open))),
        }
    }
    assert!(open.is_empty(), "messages without a tick: {open:?}");
    all
}

fn replay(dir: &Path, sources: &[&str], from: Epoch) -> Result<Epochs, DurableError> {
    let (_journal, replay) =
        Journal::open(options(dir), Clock::manual(7_000_000), &names(sources), from)?;
    Ok(epochs(replay.collect::<Result<Vec<_>, _>>()?))
}

/// Writes `offers` of `each` messages, each acknowledged before the next; returns the live feed.
fn write(dir: &Path, segment_bytes: u64, offers: usize, each: usize) -> Epochs {
    let options = JournalOptions { segment_bytes, ..options(dir) };
    let (journal, old) =
        Journal::open(options, Clock::manual(5_000), &names(&["x", "y"]), 0).unwrap();
    let first = old.filter(|feed| matches!(feed, Ok(Feed::Tick(_)))).count();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    runtime().block_on(async {
        for offer in 0..offers {
            let payloads: Vec<_> = (0..each).map(|i| format!("{first}/{offer}/{i}")).collect();
            journal.intake(offer % 2).offer(builder(&payloads)).await.unwrap();
        }
    });
    journal.shutdown();
    assert_eq!(journal.stats().messages, (offers * each) as u64);
    epochs(receiver.try_iter())
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir, files::PREFIX).unwrap().into_iter().map(|(_, path)| path).collect()
}

fn copy_journal(from: &Path, to: &Path) {
    for path in segments(from) {
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_replay_equals_the_live_run_over_restarts_and_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = write(dir.path(), 600, 40, 3);
    assert!(segments(dir.path()).len() > 3);
    live.extend(write(dir.path(), 600, 7, 2));
    assert_eq!(live.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 134);
    assert!(live.iter().enumerate().all(|(i, (tick, _))| tick.epoch == i as u64 + 1));
    assert!(live.windows(2).all(|pair| pair[0].0.time_us < pair[1].0.time_us));
    let rows: Vec<_> = live.iter().flat_map(|(_, rows)| rows).map(|row| row.0).collect();
    assert_eq!(rows, (0..134).collect::<Vec<_>>());
    assert_eq!(replay(dir.path(), &["x", "y"], 1).unwrap(), live);
    let from = live.len() as u64 / 2;
    assert_eq!(replay(dir.path(), &["x", "y"], from).unwrap(), live[from as usize - 1..]);
}

#[test]
fn sources_are_known_by_name_when_the_plan_changes() {
    let dir = tempfile::tempdir().unwrap();
    let live = write(dir.path(), 1 << 20, 6, 1);
    let swapped = replay(dir.path(), &["y", "new", "x"], 1).unwrap();
    for ((_, old), (_, new)) in live.iter().zip(&swapped) {
        for (old, new) in old.iter().zip(new) {
            assert_eq!((old.0, &old.2), (new.0, &new.2));
            assert_eq!(new.1, if old.1 == 0 { 2 } else { 0 });
        }
    }
    let (_journal, mut replay) =
        Journal::open(options(dir.path()), Clock::system(), &names(&["y"]), 1).unwrap();
    let kept = epochs(replay.by_ref().map(Result::unwrap));
    assert_eq!(kept.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 3);
    assert_eq!(replay.orphans(), 3);
    let mut ticks = ticks_of(dir.path()).unwrap();
    let kept = epochs(ticks.by_ref().map(Result::unwrap));
    assert_eq!(kept.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 0);
    assert_eq!(ticks.orphans(), 0, "nobody asked for messages");
}

#[test]
fn a_journal_cut_at_any_length_is_a_correct_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let live = write(dir.path(), 1 << 20, 4, 2);
    let path = segments(dir.path()).pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let rows: Vec<_> = live.iter().flat_map(|(_, rows)| rows.clone()).collect();
    let mut lengths = std::collections::BTreeSet::new();
    for len in 0..=whole.len() {
        let cut = tempfile::tempdir().unwrap();
        std::fs::write(cut.path().join(path.file_name().unwrap()), &whole[..len]).unwrap();
        let got = replay(cut.path(), &["x", "y"], 1).unwrap();
        let got: Vec<_> = got.into_iter().flat_map(|(_, rows)| rows).collect();
        assert_eq!(got, rows[..got.len()], "cut at {len}");
        lengths.insert(got.len());
        // What was found once is found again, and the journal goes on from there.
        let more = write(cut.path(), 1 << 20, 1, 1);
        assert_eq!(more[0].1[0].0, got.len() as u64);
        let again = replay(cut.path(), &["x", "y"], 1).unwrap();
        assert_eq!(again.iter().map(|(_, rows)| rows.len()).sum::<usize>(), got.len() + 1);
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
}

/// Where the last write to a file began: what was before it had been synced.
fn last_write(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let salt = FileHeader::decode(bytes.first_chunk().unwrap()).unwrap().salt;
    let (mut at, mut synced_to) = (segment::HEADER_BYTES, 0);
    while at < bytes.len() {
        let header = frame::decode_header(salt, &bytes[at..]).unwrap();
        synced_to = frame::synced_before(salt, &bytes[at..]).unwrap() as usize;
        at += frame::HEADER_BYTES + header.body_bytes;
    }
    synced_to
}

#[test]
fn a_flipped_byte_is_found_or_was_in_the_last_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = write(dir.path(), 300, 3, 2);
    live.extend(write(dir.path(), 1 << 20, 4, 1));
    let rows: Vec<_> = live.iter().flat_map(|(_, rows)| rows.clone()).collect();
    let files = segments(dir.path());
    assert!(files.len() >= 2, "{}", files.len());
    let last_write = last_write(files.last().unwrap());
    assert!(last_write > segment::HEADER_BYTES);
    let (mut damaged, mut torn) = (0, 0);
    for (number, path) in files.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        for at in 0..whole.len() {
            let copy = tempfile::tempdir().unwrap();
            copy_journal(dir.path(), copy.path());
            let name = path.file_name().unwrap();
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(copy.path().join(name), &bytes).unwrap();
            match replay(copy.path(), &["x", "y"], 1) {
                Err(DurableError::Damaged { path, offset, .. }) => {
                    assert_eq!(path.file_name().unwrap(), name);
                    assert!(offset <= at as u64);
                    damaged += 1;
                }
                Err(other) => panic!("flip at {at} of {name:?}: {other}"),
                Ok(got) => {
                    let may_be_torn = number + 1 == files.len() && at >= last_write;
                    assert!(may_be_torn, "flip at {at} of {name:?} not seen");
                    let got: Vec<_> = got.into_iter().flat_map(|(_, rows)| rows).collect();
                    assert_eq!(got, rows[..got.len()]);
                    torn += 1;
                }
            }
        }
    }
    assert!(damaged > torn && torn > 0, "{damaged} damaged, {torn} torn");
}

#[test]
fn a_missing_segment_and_a_short_one_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 450, 20, 2);
    let files = segments(dir.path());
    assert!(files.len() > 3);
    let first = std::fs::read(&files[0]).unwrap();
    std::fs::write(&files[0], &first[..first.len() - 45]).unwrap();
    assert!(matches!(
        replay(dir.path(), &["x", "y"], 1),
        Err(DurableError::Damaged { path, .. }) if path == files[0]
    ));
    std::fs::write(&files[0], &first).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    let error = replay(dir.path(), &["x", "y"], 1).unwrap_err().to_string();
    assert!(error.contains("segment 2 is missing"), "{error}");
    std::fs::remove_file(&files[0]).unwrap();
    let error = replay(dir.path(), &["x", "y"], 1).unwrap_err().to_string();
    assert!(error.contains("has to be replayed"), "{error}");
    let data = dir.path().parent().unwrap().display();
    let help = format!("`tidegate doctor data --data {data} --salvage NEW_FOLDER`");
    assert!(error.contains(&help), "{error}");
    let error = replay(dir.path(), &["x", "y"], 1_000).unwrap_err().to_string();
    assert!(error.contains("do not belong together"), "{error}");
}

#[test]
fn a_second_instance_is_refused_until_the_first_ends() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Journal::open(options(dir.path()), Clock::system(), &names(&["x"]), 0);
    let first = open().unwrap();
    let error = open().err().unwrap();
    assert!(matches!(&error, DurableError::InUse { .. }), "{error}");
    let holder = format!("(process {})", std::process::id());
    assert!(error.to_string().contains("another Tidegate is running"), "{error}");
    assert!(error.to_string().ends_with(&holder), "{error}");
    drop(first);
    open().unwrap();
}

#[test]
fn nobody_is_answered_before_the_sync_and_many_share_one() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    faults.sync_pause_ms.store(5, Ordering::SeqCst);
    let storage = Arc::new(FaultyDisk(faults.clone()));
    let (journal, _) =
        Journal::open_on(storage, options(dir.path()), Clock::system(), &names(&["x"]), 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    let before = faults.syncs.load(Ordering::SeqCst);
    runtime().block_on(async {
        let mut tasks = Vec::new();
        for i in 0..400 {
            let (intake, faults) = (journal.intake(0), faults.clone());
            tasks.push(tokio::spawn(async move {
                let at = faults.syncs.load(Ordering::SeqCst);
                intake.offer(builder(&[format!("{i}")])).await.unwrap();
                assert!(faults.syncs.load(Ordering::SeqCst) > at, "answered without a sync");
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    let syncs = faults.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 100, "{syncs} syncs for 400 offers");
    journal.shutdown();
    let live = epochs(receiver.try_iter());
    drop(journal);
    assert_eq!(live.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 400);
    assert_eq!(replay(dir.path(), &["x"], 1).unwrap(), live);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let storage = Arc::new(FaultyDisk(faults.clone()));
    let told = Arc::new(Mutex::new(Vec::new()));
    let options = JournalOptions {
        on_fatal: Some({
            let told = told.clone();
            Arc::new(move |reason: &str| told.lock().unwrap().push(reason.to_owned()))
        }),
        ..options(dir.path())
    };
    let (journal, _) =
        Journal::open_on(storage, options, Clock::system(), &names(&["x"]), 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    runtime().block_on(async {
        journal.intake(0).offer(builder(&["a".into()])).await.unwrap();
        faults.fail_sync.store(true, Ordering::SeqCst);
        let error = journal.intake(0).offer(builder(&["b".into()])).await.unwrap_err();
        assert!(matches!(&error, IntakeError::Failed(reason) if reason.contains("injected")));
        faults.fail_sync.store(false, Ordering::SeqCst);
        let error = journal.intake(0).offer(builder(&["c".into()])).await.unwrap_err();
        assert!(matches!(error, IntakeError::Failed(_)));
    });
    journal.shutdown();
    assert!(journal.failed().unwrap().contains("injected"));
    assert!(journal.stats().unhealthy.is_some());
    assert_eq!(told.lock().unwrap().len(), 1);
    let handed = receiver.try_iter().filter(|feed| matches!(feed, Feed::Messages(_))).count();
    assert_eq!(handed, 1, "only what was synced is handed on");
    drop(journal);
    let rows = replay(dir.path(), &["x"], 1).unwrap().into_iter().flat_map(|(_, rows)| rows);
    let payloads: Vec<String> = rows.map(|row| row.2).collect();
    assert_eq!(payloads, ["a"], "the next start does not take for durable what may be on no disk");
}

#[test]
fn a_full_disk_makes_offers_wait_and_then_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let storage = Arc::new(FaultyDisk(faults.clone()));
    let (journal, _) =
        Journal::open_on(storage, options(dir.path()), Clock::system(), &names(&["x"]), 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    runtime().block_on(async {
        journal.intake(0).offer(builder(&["before".into()])).await.unwrap();
        faults.room_bytes.store(31, Ordering::SeqCst);
        faults.limited.store(true, Ordering::SeqCst);
        let intake = journal.intake(0);
        let waiting = tokio::spawn(async move { intake.offer(builder(&["during".into()])).await });
        until("the full disk is told", || journal.stats().unhealthy.is_some()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        faults.limited.store(false, Ordering::SeqCst);
        waiting.await.unwrap().unwrap();
        assert_eq!(journal.stats().unhealthy, None);
    });
    journal.shutdown();
    let live = epochs(receiver.try_iter());
    drop(journal);
    assert_eq!(live.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 2);
    assert_eq!(replay(dir.path(), &["x"], 1).unwrap(), live);
}

/// The tick is written together with messages, or alone: while there is no room for it, the epoch
/// before it is not whole on disk.
#[test]
fn while_the_disk_is_full_whole_epochs_are_read_and_nothing_looks_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let storage = Arc::new(FaultyDisk(faults.clone()));
    let options = JournalOptions { epoch_interval: Duration::from_secs(2), ..options(dir.path()) };
    let (journal, _) =
        Journal::open_on(storage, options, Clock::system(), &names(&["x"]), 0).unwrap();
    let (sender, _receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    runtime().block_on(async {
        let sealed = || journal.stats().sealed_epoch;
        let whole = loop {
            let before = sealed();
            journal.intake(0).offer(builder(&["open".into()])).await.unwrap();
            faults.room_bytes.store(0, Ordering::SeqCst);
            faults.limited.store(true, Ordering::SeqCst);
            // On a slow machine the tick may have come already: once more.
            until("the full disk or a tick", || {
                journal.stats().disk_full.is_some() || sealed() > before
            })
            .await;
            if journal.stats().disk_full.is_some() {
                break before;
            }
            faults.limited.store(false, Ordering::SeqCst);
        };
        // The writer looks at its segments at each try.
        for _ in 0..20 {
            let read: Result<Vec<Feed>, _> = journal.read(&names(&["x"]), 0).collect();
            assert_eq!(epochs(read.unwrap()).len() as u64, whole);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        faults.limited.store(false, Ordering::SeqCst);
        until("the tick", || sealed() > whole).await;
        let read: Result<Vec<Feed>, _> = journal.read(&names(&["x"]), 0).collect();
        assert_eq!(epochs(read.unwrap()).len() as u64, sealed());
    });
}

/// An older version must not take what a newer one has written for the torn end of a write.
#[test]
fn a_whole_frame_that_this_version_does_not_know_is_never_cut_off() {
    for (kind, version) in [(99, frame::VERSION), (frame::Kind::Tick as u8, frame::VERSION + 1)] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1 << 20, 4, 1);
        let path = segments(dir.path()).pop().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let header = FileHeader::decode(bytes[..segment::HEADER_BYTES].try_into().unwrap());
        frame::testing::append_other(&mut bytes, header.unwrap().salt, (version, kind), b"new");
        std::fs::write(&path, &bytes).unwrap();
        let error = replay(dir.path(), &["x", "y"], 1).unwrap_err();
        assert!(matches!(error, DurableError::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains("another version of Tidegate"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was changed");
        // Only what is torn in its header is cut off: nobody can tell what it would have been.
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = replay(dir.path(), &["x", "y"], 1).unwrap_err();
        assert!(matches!(error, DurableError::Mismatch { .. }), "its header is whole: {error}");
        std::fs::write(&path, &bytes[..bytes.len() - 3 - frame::HEADER_BYTES / 2]).unwrap();
        replay(dir.path(), &["x", "y"], 1).unwrap();
    }
}

/// It also says what was durable before it: damage there is no torn end.
#[test]
fn a_frame_of_another_version_tells_damage_from_a_torn_end() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1 << 20, 4, 1);
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let header = FileHeader::decode(bytes[..segment::HEADER_BYTES].try_into().unwrap());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let other = (frame::VERSION + 1, frame::Kind::Tick as u8);
    frame::testing::append_other(&mut bytes, header.unwrap().salt, other, b"new");
    std::fs::write(&path, &bytes).unwrap();
    let error = replay(dir.path(), &["x", "y"], 1).unwrap_err();
    assert!(matches!(error, DurableError::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was changed");
}

#[test]
fn a_used_up_budget_makes_offers_wait_until_epochs_are_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        budget_bytes: 256 << 10,
        idle_interval: Duration::from_millis(5),
        ..options(dir.path())
    };
    let budget_bytes = options.budget_bytes;
    let (journal, receiver) = started(options);
    runtime().block_on(async {
        let intake = journal.intake(0);
        let offers = tokio::spawn(async move {
            for i in 0..100 {
                intake.offer(builder(&[format!("{i}{}", "x".repeat(10_000))])).await.unwrap();
            }
        });
        let mut rounds = 0;
        while !offers.is_finished() {
            rounds += 1;
            assert!(rounds < 2_000, "stuck: {:?}", journal.stats());
            let sealed = journal.stats().sealed_epoch;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(journal.stats().bytes_on_disk <= budget_bytes);
            if journal.stats().waiting_for_room {
                // As checkpoints do: always some epochs behind.
                journal.trim(sealed.saturating_sub(2));
            }
        }
        offers.await.unwrap();
        assert!(rounds > 3);
        let big = journal.intake(0).offer(builder(&["x".repeat(200_000)])).await;
        assert!(matches!(big, Err(IntakeError::TooLarge { .. })));
    });
    journal.shutdown();
    let rows: usize = epochs(receiver.try_iter()).iter().map(|(_, rows)| rows.len()).sum();
    assert_eq!(rows, 100);
}

/// What a source collects does not know how much fits into a small journal at once.
#[test]
fn a_batch_that_is_too_large_is_taken_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions { budget_bytes: 4 << 20, ..options(dir.path()) };
    let (journal, receiver) = started(options);
    let texts: Vec<String> = (0..300).map(|i| format!("{i:03}{}", "x".repeat(10_000))).collect();
    runtime().block_on(async {
        journal.intake(0).offer(builder(&texts)).await.unwrap();
    });
    journal.shutdown();
    let rows = epochs(receiver.try_iter()).into_iter().flat_map(|(_, rows)| rows);
    let taken: Vec<(u64, String)> = rows.map(|(offset, _, text)| (offset, text)).collect();
    let wanted: Vec<(u64, String)> = (0..).zip(texts).collect();
    assert!(taken == wanted, "{} in their order", taken.len());
}

/// Many small messages: what each segment begins with is large. And the engine says meanwhile that
/// the journal is full.
#[test]
fn neither_heads_of_segments_nor_what_the_engine_says_exceed_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions { budget_bytes: 256 << 10, ..options(dir.path()) };
    let budget_bytes = options.budget_bytes;
    let (journal, receiver) = started(options);
    let some: Vec<String> = (0..50).map(|i| format!("{i:040}")).collect();
    runtime().block_on(async {
        let (intake, offered) = (journal.intake(0), some.clone());
        let offers = tokio::spawn(async move {
            for _ in 0..200 {
                intake.offer(builder(&offered)).await.unwrap();
            }
        });
        let mut said = 0;
        while !offers.is_finished() {
            let sealed = journal.stats().sealed_epoch;
            tokio::time::sleep(Duration::from_millis(5)).await;
            if journal.stats().waiting_for_room {
                for _ in 0..5 {
                    journal.urgent_intake().offer(builder(&["urgent".into()])).await.unwrap();
                    said += 1;
                    until("its epoch", || journal.stats().sealed_epoch > sealed).await;
                    let bytes = journal.stats().bytes_on_disk;
                    assert!(bytes <= budget_bytes, "{bytes} bytes when {said} were said");
                }
                journal.trim(journal.stats().sealed_epoch);
            }
        }
        offers.await.unwrap();
        assert!(said >= 10, "full once only: {said}");
    });
    journal.shutdown();
    let rows = receiver.try_iter().map(|feed| match feed {
        Feed::Messages(messages) => messages.len(),
        Feed::Tick(_) => 0,
    });
    assert!(rows.sum::<usize>() > 200 * 50);
}

/// A checkpoint is cut at a tick: whoever waits for one does not wait for that of an idle journal.
/// But ticks need room, too, and it may take long.
#[test]
fn while_offers_wait_for_room_some_ticks_come_as_soon_as_after_messages() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions { budget_bytes: 256 << 10, ..options(dir.path()) };
    let budget_bytes = options.budget_bytes;
    let (journal, receiver) = started(options);
    runtime().block_on(async {
        let intake = journal.intake(0);
        let offers = tokio::spawn(async move {
            for _ in 0..40 {
                intake.offer(builder(&["x".repeat(10_000)])).await.unwrap();
            }
        });
        let empty = std::cell::Cell::new(0);
        let count = || {
            for feed in receiver.try_iter() {
                empty.set(if matches!(feed, Feed::Tick(_)) { empty.get() + 1 } else { -1 });
            }
            empty.get()
        };
        until("all that come so soon", || count() >= 64).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(count(), 64, "the others come once an hour here");
        assert!(journal.stats().waiting_for_room && !offers.is_finished());
        assert!(journal.stats().bytes_on_disk <= budget_bytes);
        while !offers.is_finished() {
            journal.trim(journal.stats().sealed_epoch);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        offers.await.unwrap();
    });
    journal.shutdown();
}

/// What the epochs of a feed say of new keys, and how many messages they have beside that.
fn closed(feeds: impl IntoIterator<Item = Feed>) -> Vec<(Epoch, Option<NoNewKeys>, usize)> {
    let (mut all, mut open) = (Vec::new(), (None, 0));
    for feed in feeds {
        match feed {
            Feed::Messages(run) => {
                open.0 = NoNewKeys::of(&run).or(open.0);
                open.1 += run.index.iter().filter(|meta| !meta.event).count();
            }
            Feed::Tick(tick) => {
                all.push((tick.epoch, open.0, open.1));
                open = (None, 0);
            }
        }
    }
    all
}

#[test]
fn epochs_that_are_closed_to_new_keys_are_so_in_every_replay() {
    let dir = tempfile::tempdir().unwrap();
    let names = names(&["x"]);
    let (journal, _) = Journal::open(options(dir.path()), Clock::system(), &names, 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    let intake = journal.intake(0);
    let runtime = runtime();
    // An epoch may be sealed before its offer is seen to be answered.
    let sealed = |before| {
        while journal.stats().sealed_epoch == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let young = NoNewKeys { but: ["p/young".to_owned(), "p/alert/é".to_owned()].into() };
    let (all, some) = (Some(NoNewKeys::default()), Some(young));
    for (offers, refuse) in [(3, None), (4, all.clone()), (2, some.clone()), (2, None)] {
        journal.refuse_new_keys(refuse);
        for i in 0..offers {
            let before = journal.stats().sealed_epoch;
            runtime.block_on(intake.offer(builder(&[format!("{i}")]))).unwrap();
            sealed(before);
        }
    }
    journal.shutdown();
    let live = closed(receiver.try_iter());
    let refusing: Vec<_> = live.iter().filter(|e| e.2 > 0).map(|e| e.1.clone()).collect();
    assert_eq!(refusing, [vec![None; 3], vec![all; 4], vec![some; 2], vec![None; 2]].concat());
    assert!(live.iter().all(|(_, mark, messages)| mark.is_none() || *messages > 0), "{live:?}");
    drop(journal);
    for from in [1, 3, 6, 9] {
        let (_journal, replay) =
            Journal::open(options(dir.path()), Clock::manual(7_000_000), &names, from).unwrap();
        let again = closed(replay.map(Result::unwrap));
        assert_eq!(again, live[from as usize - 1..], "from epoch {from}");
    }
}

/// Messages as (offset, source, whether it is an event, topic, payload), ticks as (epoch).
type Told = Vec<Result<(u64, u16, bool, String, String), Epoch>>;

fn told(feeds: impl IntoIterator<Item = Feed>) -> Told {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Vec::new();
    for feed in feeds {
        match feed {
            Feed::Messages(run) => all.extend((0..run.len()).map(|i| {
                let (topic, payload) = (text(run.topic(i)), text(run.payload(i)));
                Ok((run.first_offset + i as u64, run.source, run.index[i].event, topic, payload))
            })),
            Feed::Tick(tick) => all.push(Err(tick.epoch)),
        }
    }
    all
}

#[test]
fn what_the_engine_says_outlives_the_source_that_it_stands_under() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) =
        Journal::open(options(dir.path()), Clock::system(), &names(&["x", "y"]), 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    journal.refuse_new_keys(Some(NoNewKeys::default()));
    runtime().block_on(async {
        for i in 0..5 {
            let mut mixed = builder(&[format!("x {i}"), format!("x {i} again")]);
            Blocked { from_us: i, to_us: 9 }.put(&mut mixed, 1_000);
            let lost = SessionEvent { event: "lost".into(), ..SessionEvent::default() };
            lost.put(&mut mixed, 1_000, 0);
            Gap { from_us: i, ..Gap::default() }.put(&mut mixed, 1_000);
            mixed.push(b"session", b"{}", b"client", MessageMeta::default());
            Blocked { from_us: i, to_us: 10 }.put(&mut mixed, 1_000);
            journal.intake(0).offer(mixed).await.unwrap();
            journal.intake(1).offer(builder(&[format!("y {i}")])).await.unwrap();
        }
    });
    journal.shutdown();
    drop(journal);
    let live = told(receiver.try_iter());
    let marks = live.iter().flatten().filter(|m| m.3 == "no_new_keys").count();
    assert!(marks > 0, "{live:?}");
    for (plan, number_of_y) in [(["new", "y"], 1), (["y", "new"], 0)] {
        let (_journal, mut replay) =
            Journal::open(options(dir.path()), Clock::manual(7_000_000), &names(&plan), 1).unwrap();
        let again = told(replay.by_ref().map(Result::unwrap));
        let wanted = live.iter().filter_map(|one| match one.clone() {
            Ok((_, 0, false, ..)) => None,
            Ok((offset, source, event, topic, payload)) => {
                let of_sessions = topic == "session" || topic == "gap";
                let source = match source {
                    0 if of_sessions => u16::MAX,
                    0 => 0,
                    _ => number_of_y,
                };
                Some(Ok((offset, source, event, topic, payload)))
            }
            tick => Some(tick),
        });
        assert_eq!(again, wanted.collect::<Told>());
        assert_eq!(replay.orphans(), 15);
    }
}

#[test]
fn offers_wait_while_they_are_held_and_what_the_engine_says_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let names = names(&["x"]);
    let (journal, _) = Journal::open(options(dir.path()), Clock::system(), &names, 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    journal.hold(true);
    runtime().block_on(async {
        let intake = journal.intake(0);
        let offer = |text: &str| intake.offer(builder(&[text.to_owned()]));
        let urgent = journal.urgent_intake();
        let short = Duration::from_millis(200);
        let mut held = Box::pin(offer("held"));
        assert!(tokio::time::timeout(short, &mut held).await.is_err(), "it waits");
        urgent.offer(builder(&["urgent".to_owned()])).await.unwrap();
        assert!(tokio::time::timeout(short, &mut held).await.is_err(), "it still waits");
        while !journal.stats().waiting_for_memory {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!journal.stats().waiting_for_room);
        journal.hold(false);
        held.await.unwrap();
        journal.hold(true);
        let last = offer("last");
        let stop = async {
            tokio::time::sleep(short).await;
            tokio::task::block_in_place(|| journal.shutdown());
        };
        let (last, ()) = tokio::join!(last, stop);
        assert_eq!(last, Err(IntakeError::Closed), "who is held at the end is not acknowledged");
    });
    let taken: Vec<String> =
        epochs(receiver.try_iter()).into_iter().flat_map(|e| e.1).map(|row| row.2).collect();
    assert_eq!(taken, ["urgent", "held"]);
}

/// Each segment begins with a copy of what is recognised: one that only holds that copy must not be
/// followed by another for as long as offers wait.
#[test]
fn while_offers_wait_no_segments_are_added() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        budget_bytes: 256 << 10,
        idle_interval: Duration::from_millis(2),
        ..options(dir.path())
    };
    let (journal, receiver) = started(options);
    runtime().block_on(async {
        // More than 8 KiB of records.
        let mut many = MessagesBuilder::default();
        for packet_id in 1..=1_500 {
            let meta = MessageMeta { received_us: 1_000, packet_id, qos: 1, ..Default::default() };
            many.push(b"a/b", b"", b"client", meta);
        }
        journal.intake(0).offer(many).await.unwrap();
        let intake = journal.intake(0);
        let offers = tokio::spawn(async move {
            for i in 0..40 {
                intake.offer(builder(&[format!("{i}{}", "x".repeat(10_000))])).await.unwrap();
            }
        });
        while !journal.stats().waiting_for_room {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = journal.stats();
        until("20 ticks", || journal.stats().sealed_epoch > before.sealed_epoch + 20).await;
        let after = journal.stats();
        assert_eq!(after.segments, before.segments);
        // Nothing but ticks.
        let ticks = after.sealed_epoch - before.sealed_epoch + 2;
        assert!(after.bytes_on_disk <= before.bytes_on_disk + 64 * ticks, "{before:?} {after:?}");
        while !offers.is_finished() {
            journal.trim(journal.stats().sealed_epoch.saturating_sub(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        offers.await.unwrap();
    });
    journal.shutdown();
    let count = |feed| match feed {
        Feed::Messages(run) => run.len(),
        Feed::Tick(_) => 0,
    };
    assert_eq!(receiver.try_iter().map(count).sum::<usize>(), 1_540);
}

#[test]
fn what_is_kept_goes_when_it_is_old_or_its_room_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    // Its ticks are of the first second after the epoch.
    let next = write(dir.path(), 8_000, 200, 60).len() as u64 + 1;
    let trimmed = |clock: &Clock, budget_bytes| {
        let keep = Duration::from_secs(60);
        let options = JournalOptions { keep, budget_bytes, ..options(dir.path()) };
        let (journal, _) =
            Journal::open(options, clock.clone(), &names(&["x", "y"]), next).unwrap();
        let through = journal.stats().sealed_epoch;
        journal.start(Box::new(ChannelSink(mpsc::channel().0))).unwrap();
        journal.trim(through);
        journal.shutdown();
        segments(dir.path()).len()
    };
    let before = segments(dir.path()).len();
    let sizes = segments(dir.path()).into_iter().map(|s| std::fs::metadata(s).unwrap().len());
    let bytes: u64 = sizes.sum();
    assert!(before > 4 && bytes > 180 << 10, "{before} segments, {bytes} bytes");
    assert_eq!(trimmed(&Clock::manual(10_000_000), 64 << 20), before);
    // Half of this budget is three quarters of the journal.
    let fewer = trimmed(&Clock::manual(20_000_000), bytes * 3 / 2);
    assert!(1 < fewer && fewer < before, "{fewer} of {before}");
    assert_eq!(trimmed(&Clock::manual(120_000_000), 64 << 20), 1);
}

#[test]
fn trimming_deletes_only_segments_that_are_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let live = write(dir.path(), 450, 30, 1);
    let before = segments(dir.path()).len();
    let keep_from = live.len() as u64 / 2;
    let (journal, _) =
        Journal::open(options(dir.path()), Clock::system(), &names(&["x", "y"]), 1).unwrap();
    journal.start(Box::new(ChannelSink(mpsc::channel().0))).unwrap();
    journal.trim(keep_from - 1);
    journal.shutdown();
    drop(journal);
    assert!(segments(dir.path()).len() < before);
    let again = replay(dir.path(), &["x", "y"], keep_from).unwrap();
    let (last, rest) = again.split_last().unwrap();
    assert_eq!(rest, &live[keep_from as usize - 1..]);
    // Each end seals an epoch, for the last checkpoint to be cut at.
    assert_eq!((last.0.epoch, last.1.len()), (live.len() as u64 + 1, 0));
}

#[test]
fn an_idle_journal_ticks_and_closed_offers_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions { idle_interval: Duration::from_millis(5), ..options(dir.path()) };
    let (journal, _) = Journal::open(options, Clock::manual(50), &names(&["x"]), 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    journal.start(Box::new(ChannelSink(sender))).unwrap();
    let ticks: Vec<_> = receiver.iter().take(3).collect();
    // The clock stands still; ticks do not.
    assert_eq!(
        epochs(ticks).iter().map(|(t, _)| (t.epoch, t.time_us)).collect::<Vec<_>>(),
        [(1, 50), (2, 51), (3, 52)]
    );
    journal.shutdown();
    let closed = runtime().block_on(journal.intake(0).offer(builder(&["late".into()])));
    assert_eq!(closed, Err(IntakeError::Closed));
}
