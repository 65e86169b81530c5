//! What changes in a file is said, once, and what cannot be used costs nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::read::read_file_of as read;
use proptest::prelude::*;
use tidegate_operators::registry::Change;

use super::*;

fn source(path: &Path, own_times: bool) -> RegistrySource {
    RegistrySource {
        pipeline: "p".into(),
        name: "limits".into(),
        key: vec![("device".into(), vec!["device".into()])],
        valid_from: own_times.then(|| "since".into()),
        place: RegistryPlace::File(path.display().to_string()),
        format: None,
        delimiter: None,
    }
}

fn changes(said: &[Said]) -> Vec<(Change, &str, Option<i64>)> {
    let of = |s: &Said| match s {
        Said::Change { .. } => true,
        Said::Refused { .. } => false,
    };
    said.iter()
        .filter(|s| of(s))
        .map(|s| match s {
            Said::Change { change, row, since_us } => (*change, row.as_str(), *since_us),
            Said::Refused { .. } => unreachable!("filtered above"),
        })
        .collect()
}

fn refused(said: &[Said]) -> Vec<&str> {
    said.iter()
        .filter_map(|s| match s {
            Said::Refused { why, .. } => Some(why.as_str()),
            Said::Change { .. } => None,
        })
        .collect()
}

#[test]
fn a_changed_file_says_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    let source = source(&path, false);
    let mut known = Known::default();
    let mut say = |text: &str, since_us| {
        std::fs::write(&path, text).unwrap();
        let said;
        (known, said) = std::mem::take(&mut known).take(&source, &read(&source).unwrap(), since_us);
        said
    };
    let first = say("device,high\na,8\nb,9\nb,10\nc\n", None);
    let row = |device: &str, high: &str| format!(r#"{{"device":"{device}","high":{high}}}"#);
    let (a, b) = (row("a", "8"), row("b", "9"));
    assert_eq!(changes(&first), [(Change::Set, a.as_str(), None), (Change::Set, b.as_str(), None)]);
    let why = refused(&first);
    assert_eq!(why.len(), 2);
    assert!(why[0].contains("row 3: a row before it has the same key"), "{why:?}");
    assert!(why[1].contains("limits.csv line 5: 1 cells, expected 2"), "{why:?}");
    assert_eq!(say("device,high\na,8\nb,9\nb,10\nc\n", Some(5)), []);
    let second = say("device,high\nb,9.5\nd,1\n,2\n", Some(6));
    let (b, d, none) = (row("b", "9.5"), row("d", "1"), r#"{"device":null,"high":2}"#);
    assert_eq!(
        changes(&second),
        [
            (Change::Remove, r#"{"device":"a"}"#, Some(6)),
            (Change::Set, b.as_str(), Some(6)),
            (Change::Set, d.as_str(), Some(6)),
            // It has no key: decoding says so.
            (Change::Set, none, Some(6)),
        ]
    );
    assert!(refused(&second).is_empty());
    // Again is all that holds, each since when it does.
    let again = known.again();
    assert_eq!(
        changes(&again),
        [(Change::Set, b.as_str(), Some(6)), (Change::Set, d.as_str(), Some(6))]
    );
}

#[test]
fn what_is_no_file_of_rows_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    let why = |source: &RegistrySource| format!("{:#}", read(source).unwrap_err());
    assert!(why(&source(&path, false)).contains("limits.csv"));
    std::fs::write(&path, "").unwrap();
    assert!(why(&source(&path, false)).contains("is empty"));
    assert!(why(&source(folder.path(), false)).contains("is not a file"));
    std::fs::write(&path, "a,a\n1,2\n").unwrap();
    assert!(why(&source(&path, false)).contains("two columns `a`"));
    // Another delimiter, another header: nothing of it is known by its key.
    for text in ["device;limit\nd1;3\n", "dev,limit\nd1,3\n"] {
        std::fs::write(&path, text).unwrap();
        assert!(why(&source(&path, false)).contains("no row of "), "{text}");
    }
    std::fs::write(&path, "device,limit\n,2\nd1,3\n").unwrap();
    assert!(read(&source(&path, false)).is_ok(), "one row is enough");
}

proptest! {
    /// Taking one file after another ends with what the last one says, however often it is said.
    #[test]
    fn changes_add_up_to_the_last_file(
        own_times in any::<bool>(),
        files in prop::collection::vec(
            prop::collection::vec((0..5_u8, 0..3_u8, 0..4_u8), 0..8), 1..6
        )
    ) {
        let source = source(Path::new("limits.ndjson"), own_times);
        let mut known = Known::default();
        let mut applied: BTreeMap<(u8, Option<u8>), String> = BTreeMap::new();
        for rows in &files {
            let mut builder = MessagesBuilder::default();
            let mut last: BTreeMap<(u8, Option<u8>), String> = BTreeMap::new();
            for (device, since, value) in rows {
                let text = format!(r#"{{"device":{device},"since":{since},"v":{value}}}"#);
                builder.push(b"", text.as_bytes(), b"", tidegate_operators::MessageMeta::default());
                last.entry((*device, own_times.then_some(*since))).or_insert(text);
            }
            let said;
            (known, said) = known.take(&source, &[builder.finish(0, 0)], Some(1));
            for (change, row, _) in changes(&said) {
                let value: serde_json::Value = serde_json::from_str(row).unwrap();
                let number = |name: &str| value[name].as_u64().unwrap() as u8;
                let key = (number("device"), own_times.then(|| number("since")));
                match change {
                    Change::Set => drop(applied.insert(key, row.to_owned())),
                    Change::Remove => assert!(!own_times && applied.remove(&key).is_some()),
                    Change::Withdraw => assert!(own_times && applied.remove(&key).is_some()),
                    _ => panic!("a file does not say that"),
                }
            }
            prop_assert_eq!(&applied, &last);
            let (same, nothing) = known.clone().take(&source, &[], None);
            prop_assert!(same.rows.is_empty() && nothing.len() == known.rows.len());
        }
    }
}
