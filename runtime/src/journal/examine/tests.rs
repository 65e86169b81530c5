//! Each byte of a journal flipped, each length cut: what the examination says is what a start does.
//!
//! Without `TIDEGATE_FLIPS=all` every 31st byte and length is tried.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::{Feed, Journal, JournalOptions};
use super::testing::{segments, write_journal};
use super::*;
use crate::clock::Clock;

/// What a start does: all payloads in order, or where it stops.
fn start(dir: &Path) -> Result<Vec<String>, DurableError> {
    let options = JournalOptions {
        epoch_interval: Duration::from_millis(1),
        idle_interval: Duration::from_secs(3600),
        ..JournalOptions::new(dir)
    };
    let names = ["x".to_owned(), "y".to_owned()];
    let (_journal, replay) = Journal::open(options, Clock::manual(7_000_000), &names, 1)?;
    let mut payloads = Vec::new();
    for feed in replay {
        if let Feed::Messages(run) = feed? {
            payloads.extend((0..run.len()).map(|i| text(run.payload(i))));
        }
    }
    Ok(payloads)
}

fn text(payload: &[u8]) -> String {
    String::from_utf8(payload.to_vec()).unwrap()
}

fn look(dir: &Path, mode: Mode) -> (Examined, Vec<String>) {
    let mut payloads = Vec::new();
    let mut visit = |_, whole: Whole<'_>| {
        if let Whole::Messages(run, _) = whole {
            payloads.extend((0..run.len()).map(|i| text(run.payload(i))));
        }
        Ok(())
    };
    let names = ["x".to_owned(), "y".to_owned()];
    let watch = Watch { progress: &|_, _| {}, visit: &mut visit, sources: &names };
    let examined = examine(dir, mode, watch).unwrap();
    (examined, payloads)
}

/// Byte ranges of the message frames of a file, with the payloads that each holds.
fn message_frames(path: &Path) -> Vec<(std::ops::Range<usize>, Vec<String>)> {
    let bytes: Bytes = std::fs::read(path).unwrap().into();
    let salt = scan::header_of(&bytes).unwrap().salt;
    let mut found = Vec::new();
    for piece in scan::Scan::new(bytes, salt) {
        let scan::Piece::Frame(frame) = piece else { panic!("the journal is whole") };
        if frame.kind != super::super::frame::Kind::Messages {
            continue;
        }
        let run = super::super::record::get_messages(&frame.body).unwrap();
        let start = frame.offset as usize;
        let end = start + super::super::frame::HEADER_BYTES + frame.body.len();
        found.push((start..end, (0..run.len()).map(|i| text(run.payload(i))).collect()));
    }
    found
}

/// From one byte or length that is tried to the next; a prime, so that all parts of frames are met.
fn step() -> usize {
    if std::env::var("TIDEGATE_FLIPS").as_deref() == Ok("all") { 1 } else { 31 }
}

/// The journal of these tests: some segments, about 10 KB.
fn journal(dir: &Path) -> Vec<String> {
    write_journal(dir, 3_000, 90)
}

#[test]
fn a_whole_journal_is_read_as_a_start_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = journal(dir.path());
    let total: u64 = segments(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!((8_000..14_000).contains(&total) && segments(dir.path()).len() == 4, "{total}");
    for mode in [Mode::Stopped, Mode::Live, Mode::Everything] {
        let (examined, seen) = look(dir.path(), mode);
        assert_eq!(seen, payloads, "{mode:?}");
        assert!(examined.damages.is_empty() && examined.torn.is_none(), "{examined:?}");
        assert_eq!(examined.messages, payloads.len() as u64);
        assert_eq!(examined.bytes(), total);
    }
    assert_eq!(start(dir.path()).unwrap(), payloads);
}

/// One damaged copy: the verdicts of the doctor and of a start have to be the same.
fn agree(copy: &Path, payloads: &[String], what: &str) -> (Examined, bool) {
    let (examined, seen) = look(copy, Mode::Stopped);
    let stops = examined.stops_at(1).next().cloned();
    match (start(copy), stops) {
        (Ok(got), None) => {
            assert_eq!(got, payloads[..got.len()], "{what}: not a prefix");
            assert_eq!(seen, got, "{what}: the doctor saw something else");
            (examined, false)
        }
        (Err(DurableError::Damaged { path, offset, .. }), Some(damage)) => {
            assert_eq!((path, Some(offset)), (damage.path, damage.offset), "{what}");
            (examined, true)
        }
        (started, stops) => panic!("{what}: a start says {started:?}, the doctor {stops:?}"),
    }
}

#[test]
fn a_flipped_byte_is_where_a_start_stops_and_nothing_else_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = journal(dir.path());
    let files = segments(dir.path());
    let copy = tempfile::tempdir().unwrap();
    let mut stopped = 0;
    for (n, path) in files.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        let frames = message_frames(path);
        // Each copy is a fresh one: a start cuts a torn end off.
        for at in (n % step()..whole.len()).step_by(step()) {
            for file in &files {
                std::fs::copy(file, copy.path().join(file.file_name().unwrap())).unwrap();
            }
            let damaged = copy.path().join(path.file_name().unwrap());
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&damaged, &bytes).unwrap();
            let what = format!("byte {at} of segment {n}");
            let hit = frames.iter().find(|(range, _)| range.contains(&at));
            let gone: BTreeSet<&String> = hit.iter().flat_map(|(_, lost)| lost).collect();
            let left: Vec<_> = payloads.iter().filter(|p| !gone.contains(p)).cloned().collect();
            let (everything, saved) = look(copy.path(), Mode::Everything);
            assert_eq!(saved, left, "{what}: what can be saved");
            assert_eq!(everything.damages.len(), 1, "{what}: {:?}", everything.damages);
            match everything.damages[0].lost {
                Lost::Exactly(lost) => assert_eq!(lost, gone.len() as u64, "{what}"),
                Lost::AtMost(lost) => assert!(lost >= gone.len() as u64, "{what}"),
                Lost::Unknown => panic!("{what}: {:?}", everything.damages),
            }
            stopped += usize::from(agree(copy.path(), &payloads, &what).1);
        }
    }
    let total: usize = files.iter().map(|p| p.metadata().unwrap().len() as usize).sum();
    let tried = total / step();
    assert!(stopped > tried * 9 / 10, "{stopped} of {tried} are told as damage");
}

#[test]
fn a_cut_is_a_correct_prefix_or_damage_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = journal(dir.path());
    let files = segments(dir.path());
    let copy = tempfile::tempdir().unwrap();
    let mut torn = 0;
    for (n, path) in files.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        for len in (0..whole.len()).step_by(step()) {
            for file in &files {
                std::fs::copy(file, copy.path().join(file.file_name().unwrap())).unwrap();
            }
            std::fs::write(copy.path().join(path.file_name().unwrap()), &whole[..len]).unwrap();
            let what = format!("segment {n} cut to {len}");
            let (examined, stopped) = agree(copy.path(), &payloads, &what);
            assert_eq!(stopped, n + 1 < files.len(), "{what}: {:?}", examined.damages);
            torn += usize::from(examined.torn.is_some());
        }
    }
    assert!(torn > 100 / step(), "{torn}");
}

/// All (epoch, payload) that a start on `dir` replays.
fn replayed(dir: &Path) -> Vec<(Epoch, String)> {
    let names = ["x".to_owned(), "y".to_owned()];
    let options = JournalOptions::new(dir);
    let (_journal, replay) = Journal::open(options, Clock::manual(7_000_000), &names, 1).unwrap();
    let (mut all, mut open) = (Vec::new(), Vec::new());
    for feed in replay {
        match feed.unwrap() {
            Feed::Messages(run) => open.extend((0..run.len()).map(|i| text(run.payload(i)))),
            Feed::Tick(tick) => all.extend(open.drain(..).map(|p| (tick.epoch, p))),
        }
    }
    all
}

#[test]
fn what_is_saved_is_what_was_whole_in_its_epochs() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path());
    let files = segments(dir.path());
    let original = replayed(dir.path());
    for path in &files {
        let whole = std::fs::read(path).unwrap();
        let frames = message_frames(path);
        // The header of the file, its first frame, and all else in larger steps.
        let places = (0..100).step_by(9).chain((100..whole.len()).step_by(3 * step()));
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(path, &bytes).unwrap();
            let hit = frames.iter().find(|(range, _)| range.contains(&at));
            let gone: BTreeSet<&String> = hit.iter().flat_map(|(_, lost)| lost).collect();
            let to = tempfile::tempdir().unwrap();
            let range = super::super::salvage::Range::default();
            let saved = super::super::salvage::salvage(dir.path(), to.path(), range, &|_, _| {});
            let saved = saved.unwrap();
            let left: Vec<_> =
                original.iter().filter(|(_, p)| !gone.contains(p)).cloned().collect();
            assert_eq!(replayed(to.path()), left, "byte {at} of {path:?}");
            assert_eq!(saved.messages, left.len() as u64);
        }
        std::fs::write(path, &whole).unwrap();
    }
}
