//! What is told again is what the last messages said, and since when.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tidegate_operators::MessageMeta;
use tidegate_operators::registry::Change;
use tidegate_pipelines::plan::RegistryPlace;

use super::super::diff::Said;
use super::*;

const NUMBER: u16 = 2;

fn entries(folder: &std::path::Path, own_times: bool) -> Entries {
    let template = TopicTemplate::parse("reg/{site}/{device}").unwrap();
    let captures = vec![("device".to_owned(), "device".to_owned())];
    let place = RegistryTopic { template, captures };
    let source = RegistrySource {
        pipeline: "p".into(),
        name: "limits".into(),
        key: vec![("device".into(), vec!["device".into()])],
        valid_from: own_times.then(|| "since".into()),
        place: RegistryPlace::Topic(place.clone()),
        format: None,
        delimiter: None,
    };
    let note = Note::new(folder.join("note"));
    let known = note.read().unwrap().unwrap_or_default();
    Entries::new(vec![Topic::new(&source, &place, NUMBER, (note, known))])
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
    before.hear(&run(&[
        ("reg/x/a", r#"{"high":1}"#, 5),
        ("reg/x/b", r#"{"high":1}"#, 6),
        ("reg/x/a", r#"{"high":2}"#, 7),
        ("reg/x/a", r#"{"high":2}"#, 8),
        ("reg/x/b", "", 9),
        ("reg/x/never", "", 9),
        ("reg/x/bad", "{", 9),
        ("reg/x/bad", "[1]", 9),
        ("other/x/c", r#"{"high":1}"#, 9),
    ]));
    let mut of_another = run(&[("reg/x/d", r#"{"high":1}"#, 9)]);
    of_another.source += 1;
    before.hear(&of_another);
    let row = |high: i64| format!(r#"{{"high":{high},"device":"a"}}"#);
    let gone = (Change::Remove, r#"{"device":"b"}"#.to_owned(), Some(9));
    assert_eq!(known(&before), [(Change::Set, row(2), Some(7)), gone.clone()]);
    assert_eq!(known(&entries(folder.path(), false)), [], "nothing was noted");
    before.note();
    let after = entries(folder.path(), false);
    assert_eq!(known(&after), known(&before));
    // What was removed is not there since ever if it comes back.
    after.hear(&run(&[("reg/y/b", r#"{"high":3}"#, 10), ("reg/y/c", r#"{"high":3}"#, 10)]));
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
    entries.hear(&run(&[
        ("reg/x/a", r#"{"high":1,"since":null}"#, day),
        ("reg/x/a", r#"{"high":2,"since":"1970-01-05T00:00:00Z"}"#, day),
        ("reg/x/a", "", 9 * day),
    ]));
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
        whole.hear(&run(&all));
        let noted = noted.min(all.len());
        let first = entries(folder.path(), false);
        first.hear(&run(&all[..noted]));
        first.note();
        let second = entries(folder.path(), false);
        second.hear(&run(&all[replayed_from.min(noted)..]));
        let now = |e: &Entries| -> Vec<(Change, String)> {
            known(e).into_iter().map(|k| (k.0, k.1)).collect()
        };
        prop_assert_eq!(now(&second), now(&whole));
    }
}
