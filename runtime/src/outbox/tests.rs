//! The outbox over restarts, torn ends, damage and compaction.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::*;
use crate::journal::AppendFile;
use crate::journal::storage::testing::Appending;

pub(crate) fn note(id: &str, key: &str) -> Notification {
    Notification {
        id: id.into(),
        target: "ops".into(),
        key: key.into(),
        created_us: 5,
        body: Bytes::from(format!("{{\"id\":\"{id}\"}}")),
    }
}

fn ids(list: &[Arc<Notification>]) -> Vec<&str> {
    list.iter().map(|item| item.id.as_str()).collect()
}

fn newest(dir: &Path) -> PathBuf {
    segment::list(dir, PREFIX).unwrap().pop().unwrap().1
}

#[test]
fn what_was_not_delivered_is_pending_again_and_known_ids_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    {
        let outbox = Outbox::open(dir.path()).unwrap();
        assert_eq!(outbox.through_epoch(), 0);
        let list = vec![note("a", "k"), note("b", "k"), note("a", "k"), note("c", "l")];
        assert_eq!(outbox.enqueue(7, list).unwrap(), 3);
        assert_eq!(outbox.enqueue(8, vec![note("b", "k"), note("d", "k")]).unwrap(), 1);
        assert_eq!(ids(&outbox.fetch("ops")), ["a", "b", "c", "d"]);
        assert!(outbox.fetch("ops").is_empty());
        outbox.delivered("b").unwrap();
        outbox.failed("a", "HTTP 500").unwrap();
        outbox.dead("c", "HTTP 404").unwrap();
        assert!(matches!(Outbox::open(dir.path()), Err(DurableError::InUse { .. })));
    }
    let outbox = Outbox::open(dir.path()).unwrap();
    assert_eq!((outbox.pending(), outbox.dead_count(), outbox.through_epoch()), (2, 1, 8));
    assert_eq!(outbox.enqueue(8, vec![note("b", "k"), note("c", "l")]).unwrap(), 0);
    let pending = outbox.fetch("ops");
    assert_eq!(ids(&pending), ["a", "d"]);
    assert_eq!(*pending[0], note("a", "k"));
}

#[test]
fn a_torn_end_is_cut_and_damage_before_it_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    {
        let outbox = Outbox::open(dir.path()).unwrap();
        for (epoch, id) in ["a", "b", "c"].into_iter().enumerate() {
            outbox.enqueue(epoch as u64 + 1, vec![note(id, "k")]).unwrap();
        }
    }
    let path = newest(dir.path());
    let whole = std::fs::read(&path).unwrap();
    for len in segment::HEADER_BYTES..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        let got = outbox.fetch("ops");
        assert_eq!(ids(&got), ["a", "b", "c"][..got.len()]);
        assert!(got.len() < 3);
        assert_eq!(outbox.enqueue(3, vec![note("c", "k")]).unwrap(), 1);
    }
    let mut damaged = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        match Outbox::open(dir.path()) {
            Ok(outbox) => assert_eq!(ids(&outbox.fetch("ops")), ["a", "b"], "flip at {at}"),
            Err(DurableError::Damaged { offset, .. }) => {
                assert!(offset <= at as u64);
                damaged += 1;
            }
            Err(other) => panic!("flip at {at}: {other}"),
        }
    }
    assert!(damaged > whole.len() / 2);
}

#[test]
fn history_is_compacted_away_but_what_a_replay_can_repeat_stays_known() {
    let dir = tempfile::tempdir().unwrap();
    let big = |id: &str| Notification { body: vec![b'x'; 4000].into(), ..note(id, "k") };
    let outbox = Outbox::open(dir.path()).unwrap();
    outbox.enqueue(1, vec![big("stays")]).unwrap();
    assert_eq!(outbox.fetch("ops").len(), 1);
    for epoch in 2..1_000 {
        let id = format!("n{epoch}");
        outbox.enqueue(epoch, vec![big(&id)]).unwrap();
        outbox.forget(epoch.saturating_sub(10));
        outbox.delivered(&id).unwrap();
    }
    let left = std::fs::metadata(newest(dir.path())).unwrap().len();
    assert!(left < 2 << 20, "{left} bytes");
    assert_eq!(segment::list(dir.path(), PREFIX).unwrap().len(), 1);
    assert!(newest(dir.path()) != dir.path().join(segment::file_name(PREFIX, 1)));
    // What nobody fetched is still to be fetched, what was fetched is not handed out twice.
    let fresh = outbox.fetch("ops");
    assert!(!ids(&fresh).contains(&"stays"));
    drop(outbox);
    let outbox = Outbox::open(dir.path()).unwrap();
    assert_eq!((outbox.pending(), outbox.through_epoch()), (1, 999));
    assert_eq!(ids(&outbox.fetch("ops")), ["stays"]);
    assert_eq!(outbox.enqueue(999, vec![big("n999"), big("n998"), big("stays")]).unwrap(), 0);
    assert_eq!(outbox.enqueue(1_000, vec![big("new")]).unwrap(), 1);
}

/// A disk whose folders cannot be synced any more.
#[derive(Clone, Default)]
struct NoFolders(Arc<std::sync::atomic::AtomicBool>);

impl Storage for NoFolders {
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn AppendFile>> {
        Disk.create(path)
    }
    fn open(&self, path: &Path, len: u64) -> std::io::Result<Box<dyn AppendFile>> {
        Disk.open(path, len)
    }
    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(std::io::Error::other("injected: input/output error")),
            false => Disk.sync_dir(dir),
        }
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        Disk.remove(path)
    }
}

/// A start takes the newest file, so nothing may go into an older one once there is that.
#[test]
fn what_is_taken_after_a_compaction_that_failed_is_not_forgotten_by_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = NoFolders::default();
    let big = |id: &str| Notification { body: vec![b'x'; 40_000].into(), ..note(id, "k") };
    let outbox = Outbox::open_on(Arc::new(disk.clone()), dir.path()).unwrap();
    disk.0.store(true, Ordering::SeqCst);
    let (mut taken, mut failed) = (Vec::new(), false);
    for epoch in 1..500 {
        let id = format!("n{epoch:03}");
        match outbox.enqueue(epoch, vec![big(&id)]) {
            Ok(_) => taken.push(id.clone()),
            Err(error) => {
                assert!(failed && matches!(error, DurableError::Failed { .. }), "{error}");
                break;
            }
        }
        outbox.forget(epoch);
        failed |= epoch % 10 > 0 && outbox.delivered(&id).is_err();
    }
    assert!(failed, "it was compacted");
    let left: Vec<String> =
        taken.iter().filter(|id| id.ends_with('0')).map(ToString::to_string).collect();
    assert!(taken.len() < 499 && !left.is_empty());
    drop(outbox);
    let outbox = Outbox::open(dir.path()).unwrap();
    assert_eq!(outbox.through_epoch(), taken.len() as u64);
    assert_eq!(ids(&outbox.fetch("ops")), left);
}

/// The disk on which a new file finds no room is full, and how often one was written to.
#[derive(Clone, Default)]
struct Full {
    is_full: Arc<std::sync::atomic::AtomicBool>,
    written: Arc<AtomicU64>,
}

impl Full {
    /// What there is can still be written.
    fn append(&self, file: &mut dyn AppendFile, bytes: &[u8]) -> std::io::Result<()> {
        file.append(bytes)?;
        self.written.fetch_add(1, Ordering::SeqCst);
        match self.is_full.load(Ordering::SeqCst) && bytes.len() > 1_000 {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

#[test]
fn a_compaction_that_finds_no_room_leaves_nothing_behind_and_is_not_begun_at_every_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let big = |id: &str| Notification { body: vec![b'x'; 40_000].into(), ..note(id, "k") };
    drop(Outbox::open(dir.path()).unwrap());
    std::fs::write(dir.path().join("outbox.tmp"), "of a compaction that a kill has ended").unwrap();
    let disk = Full::default();
    let of_outbox = disk.clone();
    let storage =
        Appending(move |file: &mut dyn AppendFile, bytes: &[u8]| of_outbox.append(file, bytes));
    let outbox = Outbox::open_on(Arc::new(storage), dir.path()).unwrap();
    disk.is_full.store(true, Ordering::SeqCst);
    let left = || std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left(), 2, "the outbox and its lock");
    outbox.enqueue(1, vec![big("stays")]).unwrap();
    for epoch in 2..200 {
        let id = format!("n{epoch}");
        outbox.enqueue(epoch, vec![big(&id)]).unwrap();
        outbox.forget(epoch);
        outbox.delivered(&id).unwrap();
        assert_eq!(left(), 2, "{epoch}");
    }
    // A header, and then the notification for which there is no room.
    let begun = disk.written.load(Ordering::SeqCst) / 2;
    assert!((2..10).contains(&begun), "begun {begun} times");
    disk.is_full.store(false, Ordering::SeqCst);
    let grown = std::fs::metadata(newest(dir.path())).unwrap().len();
    for epoch in 200..400 {
        let id = format!("n{epoch}");
        outbox.enqueue(epoch, vec![big(&id)]).unwrap();
        outbox.forget(epoch);
        outbox.delivered(&id).unwrap();
    }
    assert!(std::fs::metadata(newest(dir.path())).unwrap().len() < grown / 2);
    drop(outbox);
    assert_eq!(ids(&Outbox::open(dir.path()).unwrap().fetch("ops")), ["stays"]);
}

#[test]
fn an_epoch_that_a_crash_cut_in_its_middle_is_completed_by_the_replay() {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..3 * FRAME_ITEMS_MAX).map(|n| note(&format!("n{n:03}"), "k")).collect();
    {
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.enqueue(1, vec![note("before", "k")]).unwrap();
        outbox.enqueue(2, all.clone()).unwrap();
    }
    let path = newest(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let mut partial = 0;
    for len in (segment::HEADER_BYTES..whole.len()).step_by(101) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        let kept = outbox.pending();
        partial += usize::from(kept > 1 && kept <= all.len());
        // As the engine's replay does: nothing before the newest epoch, and that one again.
        for (epoch, list) in [(1, vec![note("before", "k")]), (2, all.clone())] {
            if outbox.may_lack(epoch) {
                outbox.enqueue(epoch, list).unwrap();
            }
        }
        let got = outbox.fetch("ops");
        assert_eq!(ids(&got[1..]), all.iter().map(|n| n.id.as_str()).collect::<Vec<_>>(), "{len}");
    }
    assert!(partial > 10, "a cut inside of the epoch was tried {partial} times");
}

#[test]
fn dead_letters_outlive_restarts_and_compaction_and_can_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let big = |id: &str| Notification { body: vec![b'x'; 4000].into(), ..note(id, "k") };
    {
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.enqueue(1, vec![big("a"), big("b"), big("c")]).unwrap();
        outbox.failed("a", "HTTP 500").unwrap();
        outbox.dead("a", "too old").unwrap();
        outbox.dead("b", "HTTP 404").unwrap();
        for epoch in 2..1_000 {
            outbox.enqueue(epoch, vec![big(&format!("n{epoch}"))]).unwrap();
            outbox.forget(epoch);
            outbox.delivered(&format!("n{epoch}")).unwrap();
        }
        assert!(segment::list(dir.path(), PREFIX).unwrap()[0].0 > 1, "it was compacted");
        assert_eq!((outbox.pending(), outbox.dead_count()), (1, 2));
    }
    let shown = |letters: Vec<Letter>| -> Vec<(String, bool, String)> {
        letters.into_iter().map(|l| (l.notification.id, l.dead, l.reason)).collect()
    };
    let row = |id: &str, dead: bool, why: &str| (id.to_owned(), dead, why.to_owned());
    let listed = shown(letters(dir.path()).unwrap());
    let expected = [row("a", true, "too old"), row("b", true, "HTTP 404"), row("c", false, "")];
    assert_eq!(listed, expected);
    // Asked for while nobody runs, done by the next who does.
    request(dir.path(), &Resend::One("a".into())).unwrap();
    let outbox = Outbox::open(dir.path()).unwrap();
    outbox.fetch("ops");
    assert_eq!(outbox.take_requests(77).unwrap(), 1);
    let again = outbox.fetch("ops");
    assert_eq!((ids(&again), again[0].created_us), (vec!["a"], 77));
    assert_eq!((outbox.pending(), outbox.dead_count()), (2, 1));
    // Asked for beside the one who runs; what is no dead letter is passed over.
    for wish in [Resend::All, Resend::One("a".into()), Resend::All, Resend::One("?".into())] {
        request(dir.path(), &wish).unwrap();
    }
    assert_eq!(outbox.take_requests(78).unwrap(), 1);
    assert_eq!(outbox.take_requests(79).unwrap(), 0);
    assert_eq!(ids(&outbox.fetch("ops")), ["b"]);
    outbox.delivered("a").unwrap();
    drop(outbox);
    let outbox = Outbox::open(dir.path()).unwrap();
    assert_eq!((outbox.pending(), outbox.dead_count()), (2, 0));
    // Known all the time: a replay does not make them again.
    assert_eq!(outbox.enqueue(1, vec![big("a"), big("b"), big("c")]).unwrap(), 0);
    assert_eq!(ids(&outbox.fetch("ops")), ["c", "b"]);
}

/// Two wishes, of which the second cannot be read: what the first one asked for is told to senders
/// all the same.
#[tokio::test]
async fn what_is_sent_again_is_told_although_another_wish_fails() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(dir.path()).unwrap();
    outbox.enqueue(1, vec![note("a", "k")]).unwrap();
    outbox.fetch("ops");
    outbox.dead("a", "HTTP 404").unwrap();
    request(dir.path(), &Resend::All).unwrap();
    std::fs::write(dir.path().join("resend-000002.request"), [0xff, 0xfe]).unwrap();
    let mut news = std::pin::pin!(outbox.news.notified());
    news.as_mut().enable();
    outbox.take_requests(9).unwrap_err();
    tokio::time::timeout(std::time::Duration::from_secs(5), news).await.expect("it was told");
    assert_eq!(ids(&outbox.fetch("ops")), ["a"]);
}

#[test]
fn how_many_were_given_up_is_counted_beyond_what_is_kept_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(dir.path()).unwrap();
    let big = |id: &str| Notification { body: vec![b'x'; 1 << 19].into(), ..note(id, "k") };
    for n in 0..200 {
        let id = n.to_string();
        outbox.enqueue(n + 1, vec![big(&id)]).unwrap();
        outbox.dead(&id, "HTTP 404").unwrap();
    }
    // 64 MiB of letters are kept.
    assert_eq!((outbox.given_up(), outbox.dead_count()), (200, 127));
}

#[test]
fn what_is_beyond_the_limit_is_given_up_at_once_and_counted_and_can_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    {
        let outbox = Outbox::open(dir.path()).unwrap().limited(2);
        outbox.enqueue(1, vec![note("a", "k")]).unwrap();
        assert_eq!((outbox.pending(), outbox.overflowed()), (1, 0));
        outbox.enqueue(2, ["b", "c", "d"].map(|id| note(id, "k")).to_vec()).unwrap();
        assert_eq!((outbox.pending(), outbox.dead_count(), outbox.overflowed()), (2, 2, 2));
        assert_eq!(ids(&outbox.fetch("ops")), ["a", "b"]);
        // With room again, the next one is taken.
        outbox.delivered("a").unwrap();
        outbox.enqueue(3, vec![note("e", "k")]).unwrap();
        assert_eq!((outbox.pending(), outbox.overflowed()), (2, 2));
    }
    let dead: Vec<_> = letters(dir.path()).unwrap().into_iter().filter(|l| l.dead).collect();
    let reasons: Vec<_> = dead.iter().map(|l| (&*l.notification.id, &*l.reason)).collect();
    let reason = "2 notifications were pending (outbox_max)";
    assert_eq!(reasons, [("c", reason), ("d", reason)]);
    // A smaller limit gives up nothing that waits, and what somebody wants again is taken.
    let outbox = Outbox::open(dir.path()).unwrap().limited(1);
    request(dir.path(), &Resend::All).unwrap();
    assert_eq!(outbox.take_requests(9).unwrap(), 2);
    assert_eq!((outbox.pending(), outbox.dead_count(), outbox.overflowed()), (4, 0, 0));
}
