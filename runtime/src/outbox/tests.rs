//! The outbox over restarts, torn ends, damage and compaction.
#![allow(clippy::unwrap_used)]

use super::*;

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
