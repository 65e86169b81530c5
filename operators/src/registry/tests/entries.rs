//! A registry that is a topic: against a plain list of what was received, again and again,
//! restarted and on several workers.

use super::*;
use crate::properties::{self, Property};
use crate::topic::TopicTemplate;

/// The source of the pipeline.
const SOURCE: u16 = 3;

fn on_topic(own_times: bool) -> RegistrySpec {
    let mut spec = spec(own_times);
    spec.columns[0].origin = Origin::Capture("name".into());
    spec.entries = TopicTemplate::parse("reg/{name}/limits").ok();
    spec
}

/// Appends what a broker sends; no value: an empty payload.
fn push(out: &mut MessagesBuilder, topic: &str, payload: &str, since: Option<&str>, at_us: i64) {
    let user = Property::User("since".into());
    let about = properties::encode(since.iter().map(|text| (&user, text.as_bytes())));
    let meta = MessageMeta { received_us: at_us, retain: true, ..MessageMeta::default() };
    out.push_with(topic.as_bytes(), payload.as_bytes(), b"broker", &about, meta);
}

#[test]
fn messages_of_the_topic_are_entries_and_bad_ones_rejects() {
    let spec = on_topic(false);
    let mut out = MessagesBuilder::default();
    push(&mut out, "reg/a/limits", r#"{"limit":1,"device":"hidden","x":[]}"#, None, 9);
    push(&mut out, "reg/a/other", r#"{"limit":2}"#, None, 9);
    push(&mut out, "reg/b/limits", "", None, 10);
    push(&mut out, "reg/c/limits", "{", None, 11);
    push(&mut out, "reg/c/limits", r#"{"limit":200}"#, None, 12);
    push(&mut out, "reg/c/limits", r#"{"limit":"x"}"#, None, 13);
    push(&mut out, "reg/d/limits", r#"{"limit":2}"#, None, 14);
    // What the edge knows, after the joins have begun anew.
    let row = br#"{"device":"e","limit":5}"#;
    put(&mut out, &spec.topic(), Change::Set, row, Some(3), 15);
    let run = out.finish(SOURCE, 100);
    let mut decoder = RegistryDecoder::new(&spec, SOURCE);
    assert!(decoder.concerns(&run));
    assert!(
        !RegistryDecoder::new(&on_topic(false), SOURCE + 1)
            .concerns(&Messages { index: run.index[..7].to_vec(), ..run.clone() })
    );
    let (changes, rejects) = decoder.decode(&run).unwrap();
    assert_eq!(changes.schema(), spec.changes_schema());
    let some = |all: [&str; 4]| all.map(|t| Some(t.to_owned()));
    assert_eq!(texts(&changes, "device"), some(["a", "b", "d", "e"]));
    assert_eq!(texts(&changes, "change"), some(["receive", "drop", "receive", "set"]));
    let from = changes["valid_from"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(from.iter().collect::<Vec<_>>(), [Some(9), Some(10), Some(14), Some(3)]);
    let reasons: Vec<_> = rejects.iter().flat_map(|r| texts(r, "reason")).flatten().collect();
    assert_eq!(reasons, ["parse", "range", "type"]);
    let offsets: Vec<i64> = rejects
        .iter()
        .flat_map(|r| r["journal_offset"].as_primitive::<Int64Type>().values().to_vec())
        .collect();
    assert_eq!(offsets, [103, 104, 105]);
    let accepted: Vec<(usize, Option<i64>)> = decoder.accepted(&run).unwrap().into_iter().collect();
    assert_eq!(accepted, [(0, Some(9)), (2, Some(10)), (6, Some(14)), (7, Some(3))]);
}

#[test]
fn an_entry_may_say_since_when_it_holds_and_since_when_it_goes() {
    let spec = on_topic(true);
    let mut out = MessagesBuilder::default();
    push(&mut out, "reg/a/limits", r#"{"limit":1,"since":1700000000000000}"#, None, 9);
    push(&mut out, "reg/a/limits", r#"{"limit":1}"#, None, 9);
    push(&mut out, "reg/a/limits", "", Some("1700000000000005"), 10);
    push(&mut out, "reg/a/limits", "", None, 11);
    push(&mut out, "reg/a/limits", "", Some("soon"), 12);
    let (changes, rejects) =
        RegistryDecoder::new(&spec, SOURCE).decode(&out.finish(SOURCE, 0)).unwrap();
    let from = changes["valid_from"].as_primitive::<TimestampMicrosecondType>();
    let wanted = [Some(1_700_000_000_000_000), None, Some(1_700_000_000_000_005), Some(11)];
    assert_eq!(from.iter().collect::<Vec<_>>(), wanted);
    let change: Vec<String> = texts(&changes, "change").into_iter().flatten().collect();
    assert_eq!(change, ["set", "set", "remove", "remove"]);
    let reasons: Vec<_> = rejects.iter().flat_map(|r| texts(r, "reason")).flatten().collect();
    assert_eq!(reasons, ["time"]);
}

#[test]
fn without_the_key_in_the_topic_nothing_can_be_removed() {
    let mut spec = on_topic(false);
    spec.columns[0].origin = Origin::Path(vec!["device".into()]);
    let mut out = MessagesBuilder::default();
    push(&mut out, "reg/a/limits", r#"{"limit":1,"device":"d"}"#, None, 9);
    push(&mut out, "reg/a/limits", "", None, 10);
    let (changes, rejects) =
        RegistryDecoder::new(&spec, SOURCE).decode(&out.finish(SOURCE, 0)).unwrap();
    assert_eq!(texts(&changes, "device"), [Some("d".to_owned())]);
    let reasons: Vec<_> = rejects.iter().flat_map(|r| texts(r, "reason")).flatten().collect();
    assert_eq!(reasons, ["required"]);
}

/// What a history knows after changes, each with since when and a value: since when, and the value.
fn told(own_times: bool, said: &[(Change, i64, Option<i64>)]) -> Vec<(i64, Option<i64>)> {
    let mut history = History::default();
    for (change, from_us, value) in said {
        let values = value.map(|v| v.to_be_bytes().as_slice().into());
        let version = Version { from_us: *from_us, values, ingest_us: 0 };
        history.apply(*change, version, own_times, 100);
    }
    let number = |bytes: &std::sync::Arc<[u8]>| i64::from_be_bytes((**bytes).try_into().unwrap());
    history.0.iter().map(|v| (v.from_us, v.values.as_ref().map(number))).collect()
}

#[test]
fn what_is_remembered_counts_only_where_nothing_is_known() {
    use Change::{Drop, Recall, RecallGone, Receive, Remove, Set};
    let ever = i64::MIN;
    // The journal had 12 already when 10 was recalled, since a time before or after (the clock was
    // set back).
    for since_us in [5, 15] {
        let said = [(Receive, 12, Some(12)), (Recall, since_us, Some(10))];
        assert_eq!(told(false, &said), [(ever, Some(12))]);
        let said = [(Receive, 1, Some(1)), (Drop, 12, None), (Recall, since_us, Some(10))];
        assert_eq!(told(false, &said), [(ever, Some(1)), (12, None)]);
        let said = [(Receive, 12, Some(12)), (RecallGone, since_us, None)];
        assert_eq!(told(false, &said), [(ever, Some(12))]);
    }
    // Where nothing is known it counts, and so does that there is nothing: what comes after holds
    // from then on.
    let said = [(Recall, 5, Some(10)), (Receive, 12, Some(12))];
    assert_eq!(told(false, &said), [(5, Some(10)), (12, Some(12))]);
    let said = [(RecallGone, 5, None), (Receive, 12, Some(12))];
    assert_eq!(told(false, &said), [(5, None), (12, Some(12))]);
    // With times of their own: of the same time, what came is right.
    let said = [(Set, 5, Some(12)), (Recall, 5, Some(10)), (Recall, 3, Some(3))];
    assert_eq!(told(true, &said), [(3, Some(3)), (5, Some(12))]);
    let said = [(Set, 5, Some(12)), (RecallGone, 5, None), (RecallGone, 7, None)];
    assert_eq!(told(true, &said), [(5, Some(12)), (7, None)]);
    let said = [(Remove, 5, None), (Recall, 5, Some(10))];
    assert_eq!(told(true, &said), [(5, None)]);
}

#[test]
fn what_is_remembered_has_a_row_and_that_something_went_only_a_key() {
    let spec = on_topic(false);
    let mut out = MessagesBuilder::default();
    let (row, key) = (br#"{"device":"e","limit":5}"#, br#"{"device":"f"}"#);
    put(&mut out, &spec.topic(), Change::Recall, row, Some(3), 15);
    put(&mut out, &spec.topic(), Change::RecallGone, key, Some(4), 15);
    let (changes, rejects) =
        RegistryDecoder::new(&spec, SOURCE).decode(&out.finish(SOURCE, 0)).unwrap();
    assert!(rejects.iter().all(|r| r.num_rows() == 0), "{rejects:?}");
    let some = |all: [&str; 2]| all.map(|t| Some(t.to_owned()));
    assert_eq!(texts(&changes, "device"), some(["e", "f"]));
    assert_eq!(texts(&changes, "change"), some(["recall", "recall_gone"]));
    assert_eq!(changes["limit"].null_count(), 1);
}

/// Device, and its value, or that there is none any more.
type Received = (usize, Option<i64>);

const NAMES: [&str; 3] = ["a", "some device", "ü"];

fn received(spec: &RegistrySpec, said: &[Received], at_us: i64) -> RecordBatch {
    let mut out = MessagesBuilder::default();
    for (device, value) in said {
        let topic = format!("reg/{}/limits", NAMES[*device]);
        let payload = value.map(|v| format!(r#"{{"limit":{v}}}"#)).unwrap_or_default();
        push(&mut out, &topic, &payload, None, at_us);
    }
    let run = out.finish(SOURCE, 0);
    let (changes, rejects) = RegistryDecoder::new(spec, SOURCE).decode(&run).unwrap();
    assert!(rejects.iter().all(|r| r.num_rows() == 0), "{rejects:?}");
    changes
}

/// Epochs: when they are received (clocks are set back, too), and what.
fn epochs() -> impl Strategy<Value = Vec<(i64, Vec<Received>)>> {
    let said = (0..NAMES.len(), prop::option::weighted(0.7, 0..3_i64));
    let epoch = (-2..5_i64, prop::collection::vec(said, 0..5));
    prop::collection::vec(epoch, 1..15).prop_map(|epochs| {
        let mut now_us = 100;
        let timed = |(step, said)| {
            now_us += step;
            (now_us, said)
        };
        epochs.into_iter().map(timed).collect()
    })
}

#[test]
fn while_memory_is_used_up_entries_of_new_keys_are_rejects() {
    let spec = on_topic(false);
    let mut operator = Versions::new(spec.clone()).unwrap();
    let mut epoch = |number: u64, said: &[Received], closed| {
        let mut emit = Emit { closed, ..Emit::default() };
        let tick = Tick { epoch: number, time_us: 9 };
        operator.epoch(&received(&spec, said, number as i64), tick, &mut emit).unwrap();
        let told = |rows: &[RecordBatch]| -> Vec<String> {
            rows.iter().flat_map(|r| texts(r, "device")).flatten().collect()
        };
        let reasons = emit.rejects.iter().flat_map(|r| texts(r, "reason")).flatten().collect();
        (told(&emit.rows), reasons)
    };
    let nothing: Vec<String> = Vec::new();
    assert_eq!(epoch(1, &[(0, Some(1))], false), (vec![NAMES[0].to_owned()], nothing.clone()));
    // The known one changes, a removal of what was never there takes no place.
    let said = [(0, Some(2)), (1, Some(1)), (2, None)];
    let (told, reasons) = epoch(2, &said, true);
    assert_eq!((told.len(), reasons), (2, vec!["memory_max".to_owned()]));
    assert_eq!(epoch(3, &said[1..], false), (vec![NAMES[1].to_owned()], nothing));
    // What is remembered had a place before.
    let mut out = MessagesBuilder::default();
    put(&mut out, &spec.topic(), Change::Recall, br#"{"device":"x","limit":5}"#, Some(3), 15);
    let (changes, _) = RegistryDecoder::new(&spec, SOURCE).decode(&out.finish(SOURCE, 0)).unwrap();
    let mut emit = Emit { closed: true, ..Emit::default() };
    operator.epoch(&changes, Tick { epoch: 4, time_us: 9 }, &mut emit).unwrap();
    assert!(emit.rejects.is_empty() && emit.rows[0].num_rows() == 1);
}

/// The definition, as plainly as it can be written.
fn brute_force(epochs: &[(i64, Vec<Received>)]) -> BTreeMap<String, Versions1> {
    let mut expected = BTreeMap::new();
    for (device, name) in NAMES.iter().enumerate() {
        // What holds from when on; the first since ever.
        let mut holds: Vec<(Option<i64>, Option<i64>)> = Vec::new();
        for (at_us, said) in epochs {
            for (_, value) in said.iter().filter(|s| s.0 == device) {
                match holds.last().copied() {
                    None if value.is_none() => {}
                    None => holds.push((None, *value)),
                    Some((_, now)) if now == *value => {}
                    Some((from, _)) => {
                        let at_us = Some(from.map_or(*at_us, |from| from.max(*at_us)));
                        // Of one moment, what comes last is right.
                        holds.retain(|h| h.0 != at_us);
                        holds.push((at_us, *value));
                    }
                }
            }
        }
        let ends = holds.iter().skip(1).map(|h| h.0).chain([None]);
        let versions =
            holds.iter().zip(ends).filter_map(|((from, v), to)| Some((*from, to, (*v)?)));
        let versions: Versions1 = versions.collect();
        if !versions.is_empty() {
            expected.insert((*name).to_owned(), versions);
        }
    }
    expected
}

proptest! {
    #[test]
    fn what_is_received_holds_from_then_on(epochs in epochs(), cut in 0..15_usize) {
        let spec = on_topic(false);
        let mut operator = Versions::new(spec.clone()).unwrap();
        let mut rows = Vec::new();
        let mut last: BTreeMap<usize, Option<i64>> = BTreeMap::new();
        for (number, (at_us, said)) in epochs.iter().enumerate() {
            if number == cut {
                let state = operator.save().unwrap();
                operator = Versions::new(spec.clone()).unwrap();
                operator.load(&state).unwrap();
            }
            let tick = Tick { epoch: number as u64 + 1, time_us: *at_us };
            let mut emit = Emit::default();
            operator.epoch(&received(&spec, said, *at_us), tick, &mut emit).unwrap();
            rows.extend(emit.rows);
            // A new subscription brings all that the broker keeps once more.
            last.extend(said.iter().copied());
            let kept: Vec<Received> =
                last.iter().map(|(d, v)| (*d, *v)).filter(|(_, v)| v.is_some()).collect();
            let mut again = Emit::default();
            operator.epoch(&received(&spec, &kept, *at_us + 1), tick, &mut again).unwrap();
            prop_assert!(again.rows.iter().all(|r| r.num_rows() == 0));
        }
        prop_assert_eq!(shown(&rows), brute_force(&epochs));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn entries_add_up_on_any_number_of_workers(epochs in epochs()) {
        let spec = on_topic(false);
        let epochs: Vec<(i64, RecordBatch)> =
            epochs.iter().map(|(at_us, said)| (*at_us, received(&spec, said, *at_us))).collect();
        let make = || Box::new(Versions::new(spec.clone()).unwrap()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// What is told of entries, each epoch some of them: topics and payloads.
fn told_of(operator: &mut Refused, said: &[(&str, &str)]) -> Vec<String> {
    let spec = on_topic(false);
    let mut out = MessagesBuilder::default();
    for (name, payload) in said {
        push(&mut out, &format!("reg/{name}/limits"), payload, None, 9);
    }
    let (run, mut decoder) = (out.finish(SOURCE, 70), RegistryDecoder::new(&spec, SOURCE));
    let (_, rejects) = decoder.decode(&run).unwrap();
    let (others, heard) = decoder.divide(&run, &rejects).unwrap();
    assert_eq!((others.num_rows(), heard.schema()), (0, heard_schema()));
    let mut emit = Emit::default();
    operator.epoch(&heard, Tick { epoch: 1, time_us: 9 }, &mut emit).unwrap();
    let told = emit.rejects.iter().flat_map(|r| {
        let offsets = r["journal_offset"].as_primitive::<Int64Type>().values().to_vec();
        let reasons = texts(r, "reason").into_iter().flatten();
        offsets.into_iter().zip(reasons).map(|(offset, reason)| format!("{offset} {reason}"))
    });
    told.collect()
}

fn started_again(operator: &mut Refused) -> Refused {
    let (saved, mut again) = (operator.save().unwrap(), Refused::new());
    again.load(&saved).unwrap();
    assert_eq!(again.save().unwrap(), saved);
    assert!(again.cut(false).groups().is_empty(), "nothing has changed");
    again
}

#[test]
fn an_entry_that_is_refused_is_told_once() {
    let (good, bad, other) = (r#"{"limit":1}"#, r#"{"limit":"x"}"#, r#"{"limit":"y"}"#);
    let mut operator = Refused::new();
    let said = [("a", bad), ("b", "{"), ("a", bad), ("c", good)];
    assert_eq!(told_of(&mut operator, &said), ["70 type", "71 parse"]);
    // The broker sends them again.
    let mut operator = started_again(&mut operator);
    assert!(told_of(&mut operator, &said).is_empty());
    assert_eq!(told_of(&mut operator, &[("a", other), ("d", bad)]), ["70 type", "71 type"]);
    let mut operator = started_again(&mut operator);
    assert!(told_of(&mut operator, &[("a", other), ("d", bad)]).is_empty());
    // It was good, or was removed, in between.
    assert_eq!(told_of(&mut operator, &[("a", good), ("a", other)]), ["71 type"]);
    assert_eq!(told_of(&mut operator, &[("d", ""), ("d", bad), ("d", bad)]), ["71 type"]);
    let mut operator = started_again(&mut operator);
    assert!(told_of(&mut operator, &[("a", other), ("d", bad), ("b", "{")]).is_empty());
}

#[test]
fn of_more_entries_than_are_remembered_the_first_are_told_again() {
    let names: Vec<String> = (0..=REFUSED_MAX).map(|i| i.to_string()).collect();
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "{")).collect();
    let mut operator = Refused::new();
    assert_eq!(told_of(&mut operator, &all).len(), all.len());
    let mut operator = started_again(&mut operator);
    assert!(told_of(&mut operator, &all[1..]).is_empty());
    assert_eq!(told_of(&mut operator, &all[..1]), ["70 parse"]);
    assert_eq!(operator.save().unwrap().num_rows(), REFUSED_MAX);
}

/// Rows that the edge says are no entries.
#[test]
fn what_is_refused_of_other_rows_goes_its_own_way() {
    let spec = on_topic(false);
    let mut out = MessagesBuilder::default();
    put_refused(&mut out, &spec.topic(), b"[", "no object", 5);
    push(&mut out, "reg/a/limits", "{", None, 9);
    let (run, mut decoder) = (out.finish(SOURCE, 0), RegistryDecoder::new(&spec, SOURCE));
    let (_, rejects) = decoder.decode(&run).unwrap();
    let (others, heard) = decoder.divide(&run, &rejects).unwrap();
    assert_eq!((others.num_rows(), heard.num_rows()), (1, 1));
}
