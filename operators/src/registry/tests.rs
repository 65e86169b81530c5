//! From messages to changes, and from changes to the edge of versions, against a plain list.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::*;

mod entries;

use crate::batch::Tick;
use crate::message::Messages;
use crate::operator::{Emit, KeyedOperator};
use crate::snapshot::check;
use crate::spec::{ColumnSpec, ColumnType, OnInvalid, Origin, RegistrySpec, Rules, TimeFormat};

fn column(name: &str, kind: ColumnType) -> ColumnSpec {
    ColumnSpec {
        name: name.into(),
        origin: Origin::Path(vec![name.into()]),
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    }
}

fn spec(own_times: bool) -> RegistrySpec {
    let mut device = column("device", ColumnType::Utf8);
    device.rules.required = true;
    let mut limit = column("limit", ColumnType::Int64);
    limit.rules.max = Some(100.0);
    let since = column("since", ColumnType::Time(TimeFormat::Microseconds));
    RegistrySpec {
        pipeline: "my-plant".into(),
        name: "limits".into(),
        columns: vec![device, limit],
        keys: 1,
        valid_from: own_times.then_some(since),
        versions_max: 1_000,
        entries: None,
    }
}

fn texts(rows: &RecordBatch, column: &str) -> Vec<Option<String>> {
    rows[column].as_string::<i32>().iter().map(|t| t.map(str::to_owned)).collect()
}

#[test]
fn messages_become_changes_and_bad_ones_rejects() {
    let spec = spec(false);
    let topic = spec.topic();
    let mut out = MessagesBuilder::default();
    // What a device publishes under this name is a message and no change.
    out.push(topic.as_bytes(), br#"{"device":"d","limit":1}"#, b"", MessageMeta::default());
    put(&mut out, &topic, Change::Set, br#"{"device":"a","limit":1,"x":[]}"#, None, 9);
    put(&mut out, &topic, Change::Set, br#"{"device":"b","limit":200}"#, Some(5), 9);
    put(&mut out, "registry/my-plant/other", Change::Set, br#"{"device":"o"}"#, None, 9);
    put(&mut out, &topic, Change::Remove, br#"{"device":"a"}"#, Some(7), 9);
    put_refused(&mut out, &topic, b"a;b", "line 3: too few", 9);
    put(&mut out, &topic, Change::Set, br#"{"device":"b","limit":null}"#, Some(8), 9);
    let run = out.finish(0, 100);
    let mut decoder = RegistryDecoder::new(&spec, 0);
    assert!(decoder.concerns(&run) && !decoder.concerns(&Messages::default()));
    let (changes, rejects) = decoder.decode(&run).unwrap();
    assert_eq!(changes.schema(), spec.changes_schema());
    let some = |all: [&str; 3]| all.map(|t| Some(t.to_owned()));
    assert_eq!(texts(&changes, "device"), some(["a", "a", "b"]));
    assert_eq!(texts(&changes, "change"), some(["set", "remove", "set"]));
    let from = changes["valid_from"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(from.iter().collect::<Vec<_>>(), [None, Some(7), Some(8)]);
    let reasons: Vec<_> = rejects.iter().flat_map(|r| texts(r, "reason")).flatten().collect();
    assert_eq!(reasons, ["range", "parse"]);
    let offsets: Vec<i64> = rejects
        .iter()
        .flat_map(|r| r["journal_offset"].as_primitive::<Int64Type>().values().to_vec())
        .collect();
    assert_eq!(offsets, [102, 105]);
    assert_eq!(texts(&rejects[0], "pipeline"), [Some("my-plant".to_owned())]);
}

/// Device, what it does, since when, the value.
type Said = (usize, Change, Option<i64>, i64);

const DEVICES: [&str; 3] = ["a", "", "some-device"];

fn changes(spec: &RegistrySpec, said: &[Said], now_us: i64) -> RecordBatch {
    let mut out = MessagesBuilder::default();
    for (device, change, since_us, value) in said {
        let mut row = format!(r#"{{"device":"{}""#, DEVICES[*device]);
        if *change == Change::Set {
            row += &format!(r#","limit":{value}"#);
        }
        if let (Some(us), true) = (since_us, spec.valid_from.is_some()) {
            row += &format!(r#","since":{us}"#);
        }
        row.push('}');
        put(&mut out, &spec.topic(), *change, row.as_bytes(), *since_us, now_us);
    }
    let run = out.finish(0, 0);
    let (changes, rejects) = RegistryDecoder::new(spec, 0).decode(&run).unwrap();
    assert!(rejects.iter().all(|r| r.num_rows() == 0), "{rejects:?}");
    changes
}

fn epochs(own_times: bool) -> impl Strategy<Value = Vec<(i64, Vec<Said>)>> {
    let change = prop_oneof![
        4 => Just(Change::Set),
        1 => Just(if own_times { Change::Withdraw } else { Change::Remove })
    ];
    let since = prop::option::weighted(0.9, 1..30_i64);
    let said = (0..DEVICES.len(), change, since, 0..4_i64);
    let epoch = (1..5_i64, prop::collection::vec(said, 0..5));
    prop::collection::vec(epoch, 1..15).prop_map(move |epochs| {
        let mut now_us = 0;
        let timed = |(step, mut said): (i64, Vec<Said>)| {
            now_us += step;
            let own = |s: &mut Said| s.2 = if own_times { s.2 } else { Some(now_us) };
            said.iter_mut().for_each(own);
            (now_us, said)
        };
        epochs.into_iter().map(timed).collect()
    })
}

/// From, to and value of the versions that hold at some time.
type Versions1 = Vec<(Option<i64>, Option<i64>, i64)>;

/// Revision, until when it holds, value.
type Shown = (i64, Option<i64>, i64);

/// The table as SQL shows it: the greatest revision of each key and time.
fn shown(rows: &[RecordBatch]) -> BTreeMap<String, Versions1> {
    let mut latest: BTreeMap<(String, Option<i64>), Shown> = BTreeMap::new();
    for rows in rows {
        let time = |c: &str| rows[c].as_primitive::<TimestampMicrosecondType>().clone();
        let number = |c: &str| rows[c].as_primitive::<Int64Type>().clone();
        let (from, to) = (time("valid_from"), time("valid_to"));
        for row in 0..rows.num_rows() {
            let of = |t: &arrow::array::TimestampMicrosecondArray| {
                (!t.is_null(row)).then(|| t.value(row))
            };
            let device = rows["device"].as_string::<i32>().value(row).to_owned();
            let told = (number("revision").value(row), of(&to), number("limit").value(row));
            let before = latest.insert((device, of(&from)), told);
            assert!(before.is_none_or(|b| b.0 < told.0), "revisions grow");
        }
    }
    let mut shown: BTreeMap<String, Versions1> = BTreeMap::new();
    for ((device, from), (_, to, value)) in latest {
        // What was withdrawn holds at no time.
        if to.is_none_or(|to| to > from.unwrap_or(0)) {
            shown.entry(device).or_default().push((from, to, value));
        }
    }
    shown
}

/// The definition, as plainly as it can be written.
fn brute_force(own_times: bool, said: &[Said]) -> BTreeMap<String, Versions1> {
    let mut expected = BTreeMap::new();
    for (device, name) in DEVICES.iter().enumerate() {
        let mut known: BTreeMap<i64, Option<i64>> = BTreeMap::new();
        for (_, change, since_us, value) in said.iter().filter(|s| s.0 == device) {
            let at = since_us.unwrap_or(i64::MIN);
            let now = known.range(..=at).next_back().and_then(|(_, v)| *v);
            let new = (*change == Change::Set).then_some(*value);
            if *change == Change::Withdraw {
                known.remove(&at);
            } else if own_times || known.contains_key(&at) || now != new {
                known.insert(at, new);
            }
        }
        let ends = known.keys().skip(1).map(|k| Some(*k)).chain([None]);
        let versions = known.iter().zip(ends).filter_map(|((from, value), to)| {
            Some(((*from != i64::MIN).then_some(*from), to, (*value)?))
        });
        let versions: Versions1 = versions.collect();
        if !versions.is_empty() {
            expected.insert((*name).to_owned(), versions);
        }
    }
    expected
}

fn cases() -> impl Strategy<Value = (bool, Vec<(i64, Vec<Said>)>)> {
    any::<bool>().prop_flat_map(|own| (Just(own), epochs(own)))
}

proptest! {
    #[test]
    fn the_edge_of_versions_is_the_history((own_times, epochs) in cases(), cut in 0..15_usize) {
        let spec = spec(own_times);
        let mut operator = Versions::new(spec.clone()).unwrap();
        let (mut rows, mut said) = (Vec::new(), Vec::new());
        for (number, (now_us, changed)) in epochs.iter().enumerate() {
            if number == cut {
                let state = operator.save().unwrap();
                operator = Versions::new(spec.clone()).unwrap();
                operator.load(&state).unwrap();
            }
            let tick = Tick { epoch: number as u64 + 1, time_us: *now_us };
            let mut emit = Emit::default();
            operator.epoch(&changes(&spec, changed, *now_us), tick, &mut emit).unwrap();
            rows.extend(emit.rows);
            said.extend(changed.iter().copied());
            // Said again, it changes nothing and is not told.
            let mut again = Emit::default();
            let sets: Vec<Said> =
                changed.iter().copied().filter(|s| s.1 == Change::Set).collect();
            if changed.len() == sets.len() && own_times {
                let mut last: BTreeMap<(usize, Option<i64>), Said> = BTreeMap::new();
                last.extend(sets.into_iter().map(|s| ((s.0, s.2), s)));
                let last: Vec<Said> = last.into_values().collect();
                operator.epoch(&changes(&spec, &last, *now_us), tick, &mut again).unwrap();
                prop_assert!(again.rows.iter().all(|r| r.num_rows() == 0));
            }
        }
        prop_assert_eq!(shown(&rows), brute_force(own_times, &said));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cuts_add_up_on_any_number_of_workers((own_times, epochs) in cases()) {
        let spec = spec(own_times);
        let epochs: Vec<(i64, RecordBatch)> =
            epochs.iter().map(|(at_us, said)| (*at_us, changes(&spec, said, *at_us))).collect();
        let make = || Box::new(Versions::new(spec.clone()).unwrap()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}
