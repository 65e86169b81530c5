//! State that goes on under a plan with other columns: one more field of the readings, before the
//! others or after them, that no step reads.

use tidegate_operators::registry::Change;
use tidegate_pipelines::content_ids;
use tidegate_pipelines::plan::TestChange;

use super::*;

pub(super) const EVERY_KIND: &str =
    include_str!("../../../../../pipelines/tests-data/every-kind.toml");
pub(super) const FIELDS: &str = "n = \"int64\"\nv = \"float64\"\nw = \"float64\"\ns = \"string\"";
const START_US: i64 = 1_767_225_600_000_000;

/// Rows as text, by edge.
type Texts = BTreeMap<(usize, String), Vec<String>>;

fn plan(fields: &str, set: &str) -> Vec<PipelineSpec> {
    let text = EVERY_KIND.replace("FIELDS", fields).replace("set = { ", &format!("set = {{ {set}"));
    let files = [("p.toml".into(), text)];
    let plan = tidegate_pipelines::load(&files, &|_, name| Err(name.to_owned()));
    plan.unwrap_or_else(|problems| panic!("{problems:?}")).pipelines
}

fn input(at_us: i64, topic: &str, payload: String) -> TestInput {
    TestInput {
        topic: topic.to_owned(),
        at_us,
        payload: payload.into_bytes(),
        properties: Vec::new(),
        change: None,
        event: None,
    }
}

/// Some readings every few hours, for some days; what a registry says changes now and then.
pub(super) fn inputs() -> Vec<TestInput> {
    let mut inputs = Vec::new();
    for burst in 0..9_i64 {
        let at_us = START_US + burst * 5 * 3_600_000_000;
        for i in 0..8_i64 {
            for device in 0..2_i64 {
                let n = (burst * 8 + i) * 2 + device;
                let at_us = at_us + i * 2_000_000;
                let (v, w) = ((n * 37 % 13) as f64 - 2.0, n % 5);
                let s = ["on", "off", "on"][(n % 3) as usize];
                let ts = (at_us - n % 3 * 1_500_000) / 1000;
                let v = v + if n % 40 == 39 { 60.0 } else { 0.0 };
                let text = format!(r#"{{"ts":{ts},"n":{n},"v":{v},"w":{w},"s":"{s}"}}"#);
                let topic = format!("t/site/d{device}");
                inputs.push(input(at_us, &topic, text.clone()));
                if n % 7 == 0 {
                    inputs.push(input(at_us + 500_000, &topic, text));
                }
            }
        }
        let high = burst % 4 * 3;
        let row = format!(r#"{{"device":"d{}","high":{high}}}"#, burst % 2);
        let change = TestChange { change: Change::Set, since_us: Some(at_us) };
        let said = input(at_us + 1, "registry/p/limits", row);
        inputs.push(TestInput { change: Some(change), ..said });
    }
    inputs
}

/// All rows by edge, but for what the plans have not in common.
fn common(rows: &Rows) -> Texts {
    let without = |batch: &RecordBatch| {
        let fields = batch.schema();
        let both = |i: &usize| !["z", "z2", "row"].contains(&fields.field(*i).name().as_str());
        let places: Vec<usize> = (0..fields.fields().len()).filter(both).collect();
        batch.project(&places).unwrap()
    };
    let of = |batches: &Vec<RecordBatch>| batches.iter().map(without).collect();
    texts(&rows.iter().map(|(edge, batches)| (edge.clone(), of(batches))).collect())
}

#[test]
fn state_goes_on_with_one_more_field_and_with_one_less() {
    let without = plan(FIELDS, "");
    let ids = content_ids(&without[0]);
    let before = plan(&format!("z = \"string\"\n{FIELDS}"), "z2 = \"w * 3\", ");
    let after = plan(&format!("{FIELDS}\nz = \"string\""), "");
    let run = |plans: &[&[PipelineSpec]], parts: &[(usize, usize)]| {
        let rows = run_plans(plans, 0, &inputs(), (parts, TextMax::default())).unwrap();
        common(&rows)
    };
    let whole = run(&[&without], &[(usize::MAX, 1)]);
    for edge in ids.keys().filter_map(|name| name.strip_prefix("p/")).filter(|n| !n.contains('/')) {
        let rows = whole.get(&(0, edge.to_owned()));
        let said = edge == "outages" || rows.is_some_and(|rows| !rows.is_empty());
        assert!(said, "{edge} has no rows");
    }
    for edge in ["alerts", "duplicates"] {
        assert!(!whole[&(0, edge.to_owned())].is_empty(), "{edge} has no rows");
    }
    let is_whole = |rows: &Texts, what: &str| {
        assert!(rows.keys().eq(whole.keys()), "{what}");
        for (edge, rows) in rows {
            assert_eq!(rows, &whole[edge], "{what}: {edge:?}");
        }
    };
    for (with, place) in [(&before, "before"), (&after, "after")] {
        assert_eq!(content_ids(&with[0]), ids);
        for parts in [&[(40, 1), (0, 2)][..], &[(173, 2), (0, 1)]] {
            let what = format!("{place} the others, {parts:?}");
            is_whole(&run(&[&without, with], parts), &format!("one more {what}"));
            is_whole(&run(&[with, &without], parts), &format!("one less {what}"));
        }
    }
}
