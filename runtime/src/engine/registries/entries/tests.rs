//! What is told again is what the last messages said, and since when.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_operators::registry::Change;
use tidegate_operators::spec::Origin;
use tidegate_operators::{MessageMeta, Tick};
use tidegate_pipelines::plan::RegistryPlace;

use super::super::diff::Said;
use super::super::tests::spec;
use super::*;
use crate::engine::cuts::Cuts;
use crate::engine::feed::{Command, FeedQueue, InFlight, WorkerPort};
use crate::engine::standing::Standing;

const NUMBER: u16 = 2;

fn entries(folder: &Path, own_times: bool) -> Entries {
    let template = TopicTemplate::parse("reg/{site}/{device}").unwrap();
    let captures = vec![("device".to_owned(), "device".to_owned())];
    let place = RegistryTopic { template, captures };
    let source = RegistrySource {
        pipeline: "p".into(),
        name: "limits".into(),
        key: vec![("device".into(), vec!["device".into()])],
        columns: vec![],
        valid_from: own_times.then(|| "since".into()),
        place: RegistryPlace::Topic(place.clone()),
        format: None,
        delimiter: None,
    };
    let known = Notes::read(Note::new(folder.join("note"))).unwrap();
    let mut spec = spec(Origin::Capture("device".into()), own_times);
    spec.entries = Some(place.template.clone());
    let known = (known, Checker::new(&spec, NUMBER));
    Entries::new(vec![Topic::new(&source, &place, known)])
}

/// Messages on topics, each with when it is received.
fn run(said: &[(&str, &str, i64)]) -> Messages {
    let mut out = MessagesBuilder::default();
    for (topic, payload, received_us) in said {
        let meta = MessageMeta { received_us: *received_us, ..MessageMeta::default() };
        out.push(topic.as_bytes(), payload.as_bytes(), b"", meta);
    }
    out.finish(NUMBER, 0)
}

fn known(entries: &Entries) -> Vec<(Change, String, Option<i64>)> {
    let said = entries.topics()[0].lock().known.again();
    let change = |s: Said| match s {
        Said::Change { change, row, since_us } => (change, row, since_us),
        Said::Refused { .. } => panic!("nothing is refused here"),
    };
    said.into_iter().map(change).collect()
}

#[test]
fn what_was_received_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let before = entries(folder.path(), false);
    before.hear(
        &run(&[
            ("reg/x/a", r#"{"high":1}"#, 5),
            ("reg/x/b", r#"{"high":1}"#, 6),
            ("reg/x/a", r#"{"high":2}"#, 7),
            ("reg/x/a", r#"{"high":2}"#, 8),
            ("reg/x/b", "", 9),
            ("reg/x/never", "", 9),
            ("reg/x/bad", "{", 9),
            ("reg/x/bad", "[1]", 9),
            // What decoding refuses is not known either.
            ("reg/x/bad", r#"{"high":"many"}"#, 9),
            ("reg/x/a", r#"{"high":"many"}"#, 9),
            ("other/x/c", r#"{"high":1}"#, 9),
        ]),
        false,
    );
    let mut of_another = run(&[("reg/x/d", r#"{"high":1}"#, 9)]);
    of_another.source += 1;
    before.hear(&of_another, false);
    let row = |high: i64| format!(r#"{{"high":{high},"device":"a"}}"#);
    let gone = (Change::Remove, r#"{"device":"b"}"#.to_owned(), Some(9));
    assert_eq!(known(&before), [(Change::Set, row(2), Some(7)), gone.clone()]);
    assert_eq!(known(&entries(folder.path(), false)), [], "nothing was noted");
    assert!(before.note());
    let after = entries(folder.path(), false);
    assert_eq!(known(&after), known(&before));
    // What was removed is not there since ever if it comes back.
    after.hear(&run(&[("reg/y/b", r#"{"high":3}"#, 10), ("reg/y/c", r#"{"high":3}"#, 10)]), false);
    let row = |device: &str| format!(r#"{{"high":3,"device":"{device}"}}"#);
    let came = [(Change::Set, row("b"), Some(10)), (Change::Set, row("c"), None)];
    assert_eq!(known(&after)[1..], came);
    let told: usize = after.again(11).iter().map(MessagesBuilder::len).sum();
    assert_eq!(told, 3);
}

#[test]
fn an_entry_that_says_since_when_is_told_with_all_its_versions() {
    let folder = tempfile::tempdir().unwrap();
    let entries = entries(folder.path(), true);
    let day = 86_400_000_000;
    entries.hear(
        &run(&[
            ("reg/x/a", r#"{"high":1,"since":null}"#, day),
            ("reg/x/a", r#"{"high":2,"since":"1970-01-05T00:00:00Z"}"#, day),
            ("reg/x/a", "", 9 * day),
        ]),
        false,
    );
    let rows: Vec<(Change, String)> = known(&entries).into_iter().map(|k| (k.0, k.1)).collect();
    let removed = r#"{"device":"a","since":"1970-01-10T00:00:00.000000Z"}"#;
    for row in [
        (Change::Set, r#"{"high":1,"since":null,"device":"a"}"#),
        (Change::Set, r#"{"high":2,"since":"1970-01-05T00:00:00Z","device":"a"}"#),
        (Change::Remove, removed),
    ] {
        assert!(rows.contains(&(row.0, row.1.to_owned())), "{rows:?}");
    }
    assert_eq!(rows.len(), 3);
}

proptest! {
    /// However it is cut into runs, noted and replayed, the end is the same.
    #[test]
    fn a_replay_ends_where_the_journal_does(
        said in prop::collection::vec((0..3_u8, prop::option::of(0..3_u8)), 0..20),
        noted in 0..20_usize,
        replayed_from in 0..20_usize
    ) {
        let folder = tempfile::tempdir().unwrap();
        let texts: Vec<(String, String, i64)> = said
            .iter()
            .enumerate()
            .map(|(at, (device, high))| {
                let payload = high.map(|h| format!(r#"{{"high":{h}}}"#)).unwrap_or_default();
                (format!("reg/x/{device}"), payload, at as i64)
            })
            .collect();
        let all: Vec<(&str, &str, i64)> =
            texts.iter().map(|(t, p, at)| (t.as_str(), p.as_str(), *at)).collect();
        let whole = entries(folder.path(), false);
        whole.hear(&run(&all), false);
        let noted = noted.min(all.len());
        let first = entries(folder.path(), false);
        first.hear(&run(&all[..noted]), false);
        first.note();
        let second = entries(folder.path(), false);
        second.hear(&run(&all[replayed_from.min(noted)..]), false);
        let now = |e: &Entries| -> Vec<(Change, String)> {
            known(e).into_iter().map(|k| (k.0, k.1)).collect()
        };
        prop_assert_eq!(now(&second), now(&whole));
    }
}

#[test]
fn the_text_is_kept_as_it_was_received() {
    let folder = tempfile::tempdir().unwrap();
    let entries = entries(folder.path(), false);
    // Some numbers are others after they were read and written.
    let odd = r#" { "high" : 0.1000000000000000055511151231257827, "device":"hidden" }"#;
    entries.hear(&run(&[("reg/x/a", odd, 5), ("reg/x/b", "{ }", 5)]), false);
    let a = format!(r#"{},"device":"a"}}"#, odd.trim().trim_end_matches('}'));
    let b = r#"{ "device":"b"}"#.to_owned();
    assert_eq!(known(&entries), [(Change::Set, a, None), (Change::Set, b, None)]);
    // The same in another way holds since it did; something else from now on.
    let payload = r#"{"high":2}"#;
    entries.hear(&run(&[("reg/x/b", r#"{"high":1}"#, 6), ("reg/x/b", r#"{ "high":1}"#, 7)]), false);
    assert_eq!(known(&entries)[1].2, Some(6));
    entries.hear(&run(&[("reg/x/b", payload, 8)]), false);
    assert_eq!(known(&entries)[1].2, Some(8));
}

#[test]
fn of_a_key_no_more_versions_are_known_than_a_join_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let entries = entries(folder.path(), true);
    let payload = |day: u8| format!(r#"{{"high":1,"since":"1970-01-{day:02}T00:00:00Z"}}"#);
    for day in [5, 3, 9, 4, 2, 8] {
        entries.hear(&run(&[("reg/x/a", &payload(day), 1), ("reg/x/b", &payload(day), 1)]), false);
    }
    let rows: Vec<String> = known(&entries).into_iter().map(|k| k.1).collect();
    let days = |device: &str| -> Vec<bool> {
        let has = |day: u8| {
            let of =
                |row: &&String| row.contains(&format!("1970-01-{day:02}")) && row.contains(device);
            rows.iter().any(|row| of(&row))
        };
        [2, 3, 4, 5, 8, 9].map(has).to_vec()
    };
    for device in [r#""a""#, r#""b""#] {
        assert_eq!(days(device), [false, false, false, true, true, true], "{rows:?}");
    }
}

#[test]
fn while_memory_is_used_up_no_new_key_is_known() {
    for own_times in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let entries = entries(folder.path(), own_times);
        let payload = |day: u8| format!(r#"{{"high":{day},"since":"1970-01-{day:02}T00:00:00Z"}}"#);
        entries.hear(&run(&[("reg/x/a", &payload(1), 1)]), false);
        let said = run(&[("reg/x/a", &payload(2), 2), ("reg/x/b", &payload(2), 2)]);
        entries.hear(&said, true);
        let has = |device: &str| {
            known(&entries)
                .iter()
                .filter(|k| k.1.contains(&format!(r#""device":"{device}""#)))
                .count()
        };
        assert_eq!((has("a"), has("b")), (if own_times { 2 } else { 1 }, 0));
        assert!(known(&entries).iter().any(|k| k.1.contains(r#""high":2"#)));
        entries.hear(&said, false);
        assert_eq!(has("b"), 1);
    }
}

#[test]
fn without_a_note_no_state_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("registries");
    let entries = Arc::new(entries(&notes, false));
    let (commands, told) = channel();
    let ports = vec![WorkerPort { commands, thread: std::thread::current() }];
    let cuts = Some(Arc::new(Cuts::new(Duration::ZERO)));
    let in_flight = Arc::new(InFlight::default());
    let queue = FeedQueue::new(ports, in_flight, Arc::default(), cuts, Arc::default());
    let mut queue = queue.heard_by(Arc::clone(&entries), &Standing::default());
    let mut tick = |epoch: u64, high: u64| {
        let payload = format!(r#"{{"high":{high}}}"#);
        queue.messages(Arc::new(run(&[("reg/x/a", &payload, 5)])));
        queue.tick(Tick { epoch, time_us: 5 });
        told.try_iter().any(|c| matches!(c, Command::Checkpoint { .. }))
    };
    assert!(!tick(1, 1) && !tick(2, 2));
    assert!(entries.topics()[0].stats.problem().is_some());
    std::fs::create_dir(&notes).unwrap();
    assert!(tick(3, 2), "it is cut as soon as it can be noted");
    assert!(entries.topics()[0].stats.is_healthy());
}

#[test]
fn what_was_put_away_gives_way_to_what_is_retained() {
    let folder = tempfile::tempdir().unwrap();
    let before = entries(folder.path(), false);
    let entry = |high: i64| format!(r#"{{"high":{high}}}"#);
    before.hear(&run(&[("reg/x/a", &entry(1), 5), ("reg/x/b", &entry(1), 5)]), false);
    assert!(before.note());
    let kept = run(&[("reg/x/a", &entry(1), 9), ("reg/x/b", &entry(2), 9)]);
    let offered = |entries: &Entries| -> Vec<String> {
        let mut offers = entries.topics()[0].unheard_of(&kept, 9);
        let runs: Vec<Messages> = offers.iter_mut().map(|o| o.finish(NUMBER, 0)).collect();
        let texts = |m: &Messages| String::from_utf8(m.topic(0).to_vec()).unwrap();
        runs.iter().map(texts).collect()
    };
    assert_eq!(offered(&entries(folder.path(), false)), Vec::<String>::new());
    // The registry leaves the plan, and comes back.
    std::fs::rename(folder.path().join("note"), folder.path().join("note.left")).unwrap();
    let after = entries(folder.path(), false);
    assert_eq!(known(&after), known(&before), "what is known is told all the same");
    assert_eq!(offered(&after), ["reg/x/b"]);
    // A crash in between changes nothing of that.
    assert!(after.note());
    assert_eq!(offered(&entries(folder.path(), false)), ["reg/x/b"]);
    after.settle().unwrap();
    assert_eq!(offered(&after), Vec::<String>::new());
    assert_eq!(offered(&entries(folder.path(), false)), Vec::<String>::new());
    assert!(!folder.path().join("note.left").exists());
}
