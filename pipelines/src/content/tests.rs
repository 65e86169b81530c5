//! Which operators keep their number when a file is edited: against what a person would say.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::{Plan, load};

mod kinds;

/// The parts of a file whose order is free, each with the names of what it stands for.
const HEAD: &str = r#"
name = "p"
[source]
type = "endpoint"
topics = ["t/{site}/{device}"]
"#;
const READING: &str = r#"
[reading]
device = "{device}"
time = "ts"
[reading.dedup]
key = ["device", "time", "n"]
"#;
const FIELDS: [&str; 4] = [
    r#"n = "int64""#,
    r#"v = { type = "float64", min = -10 }"#,
    r#"w = "float64""#,
    r#"s = "string""#,
];
const STEPS: [&str; 8] = [
    "name = \"warm\"\ntype = \"filter\"\nwhere = \"v > 0\"",
    "name = \"sums\"\ntype = \"window\"\nfrom = \"warm\"\nevery = \"1m\"\nlate = \"table\"\n\
     by = [\"site\", \"device\"]\nselect = { total = \"sum(v)\", most = \"max(w)\" }",
    "name = \"hours\"\ntype = \"window\"\nfrom = \"sums\"\nevery = \"1h\"\nby = [\"site\"]\n\
     select = { total = \"sum(total)\" }",
    "name = \"twice\"\ntype = \"derive\"\nfrom = \"readings\"\nset = { vv = \"v * 2\" }",
    "name = \"odd\"\ntype = \"detect\"\nfrom = \"twice\"\non = \"vv\"\nthreshold = 4.0",
    "name = \"kinds\"\ntype = \"route\"\nfrom = \"readings\"\n\
     branches = { low = \"v < 3\", high = \"v >= 3\" }",
    "name = \"lows\"\ntype = \"window\"\nfrom = \"low\"\nevery = \"1m\"\n\
     select = { n = \"count(*)\" }",
    "name = \"highs\"\ntype = \"window\"\nfrom = \"high\"\nevery = \"1m\"\n\
     select = { n = \"count(*)\" }",
];
const ENDS: [&str; 4] = [
    "[[alert]]\nname = \"much\"\nfrom = \"sums\"\nfire = \"total > 5\"\nclear = \"total < 4\"\n\
     for = \"2m\"\nsummary = \"{device}: {total}\"",
    "[[alert]]\nname = \"strange\"\nfrom = \"odd\"\nfire = \"score > 9\"",
    "[[table]]\nfrom = \"sums\"",
    "[[table]]\nfrom = \"highs\"",
];
const OPERATORS: [&str; 9] = [
    "p/alert/much",
    "p/alert/strange",
    "p/highs",
    "p/hours",
    "p/lows",
    "p/odd",
    "p/reading/clock_skew",
    "p/reading/dedup",
    "p/sums",
];

fn text(fields: &[&str], steps: &[&str], ends: &[&str]) -> String {
    let fields = fields.join("\n");
    let steps: String = steps.iter().map(|s| format!("[[step]]\n{s}\n")).collect();
    format!("{HEAD}{READING}[reading.fields]\n{fields}\n{steps}{}\n", ends.join("\n"))
}

fn plan(text: &str) -> Plan {
    let files = [("p.toml".into(), text.to_owned())];
    let plan = load(&files, &|_, _| Err("there is none".into()));
    plan.unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn ids(text: &str) -> BTreeMap<String, u64> {
    content_ids(&plan(text).pipelines[0])
}

fn base() -> String {
    text(&FIELDS, &STEPS, &ENDS)
}

/// Operators whose number is another one after `from` was replaced by `to`.
fn changed(from: &str, to: &str) -> Vec<String> {
    let (before, edited) = (base(), base().replace(from, to));
    assert_ne!(before, edited, "{from} is not in the file");
    let (before, after) = (ids(&before), ids(&edited));
    after.into_iter().filter(|(name, id)| before.get(name) != Some(id)).map(|c| c.0).collect()
}

#[test]
fn every_stateful_operator_has_a_number_of_its_own() {
    let ids = ids(&base());
    assert_eq!(ids.keys().map(String::as_str).collect::<Vec<_>>(), OPERATORS);
    assert_eq!(ids.values().collect::<BTreeSet<_>>().len(), OPERATORS.len());
}

#[test]
fn an_edit_changes_what_is_edited_and_what_is_below_it() {
    let clocks = |name: &&str| *name == "p/reading/clock_skew";
    let below_dedup: Vec<&str> = OPERATORS.into_iter().filter(|o| !clocks(o)).collect();
    let below_sums = ["p/alert/much", "p/hours", "p/sums"];
    let of_v = |name: &&str| !["p/reading/clock_skew", "p/reading/dedup"].contains(name);
    let of_v: Vec<&str> = OPERATORS.into_iter().filter(of_v).collect();
    for (from, to, wanted) in [
        ("min = -10", "min = -11", &of_v[..]),
        (r#"s = "string""#, r#"s = "int64""#, &[]),
        (r#"w = "float64""#, r#"w = "int64""#, &below_sums),
        ("t/{site}", "u/{site}", &OPERATORS),
        (r#"["device", "time", "n"]"#, r#"["device", "time"]"#, &below_dedup),
        ("v > 0", "v > 1", &below_sums),
        ("by = [\"site\", \"device\"]", "by = [\"device\", \"site\"]", &below_sums),
        ("max(w)", "min(w)", &below_sums),
        ("v * 2", "v * 3", &["p/alert/strange", "p/odd"]),
        ("v < 3", "v < 2", &["p/highs", "p/lows"]),
        ("v >= 3", "v >= 4", &["p/highs"]),
        ("every = \"1h\"", "every = \"2h\"", &["p/hours"]),
        ("total > 5", "total > 6", &["p/alert/much"]),
        ("total < 4", "total < 3", &["p/alert/much"]),
        ("for = \"2m\"", "for = \"3m\"", &["p/alert/much"]),
        ("name = \"much\"", "name = \"more\"", &["p/alert/more"]),
        // How a state is shown is not what it is; but it is the input of what comes after.
        ("threshold = 4.0", "threshold = 5.0", &["p/alert/strange"]),
        ("total = \"sum(v)\"", "total = \"sum(v) + 1\"", &["p/alert/much", "p/hours"]),
        ("most = \"max(w)\"", "best = \"max(w)\"", &[]),
    ] {
        assert_eq!(changed(from, to), wanted, "{from} to {to}");
    }
}

#[test]
fn constants_are_told_apart_whatever_they_read_like() {
    let with = |condition: &str| ids(&base().replace("v > 0", condition))["p/sums"];
    for (one, other) in [
        ("s = 'pump@1'", "s = 'pump@2'"),
        ("s = 'a' or s = 'b'", "s = 'a OR s = b'"),
        ("s in ('a', 'b')", "s in ('a, b')"),
        ("s = '1' or v > 1", "s = '2' or v > 1"),
    ] {
        assert_ne!(with(one), with(other), "{one}, {other}");
    }
}

#[test]
fn what_decides_no_state_changes_no_number() {
    let none: [&str; 0] = [];
    for (from, to) in [
        ("{device}: {total}", "{device} has {total}"),
        ("clear = \"total < 4\"", "clear = \"total < 4\"\nseverity = \"critical\""),
        ("clear = \"total < 4\"", "clear = \"total < 4\"\nmax_age = \"3h\""),
        ("type = \"endpoint\"", "type = \"endpoint\"\nlisten = \"127.0.0.1:1\""),
        ("[[table]]\nfrom = \"sums\"", "[[table]]\nfrom = \"sums\"\nfreshness = \"7s\""),
        ("[[table]]\nfrom = \"highs\"", "[[table]]\nfrom = \"readings\""),
        ("low = \"v < 3\"", "lower = \"v < 3\""),
        ("from = \"high\"\nevery", "from = \"high\"\nrevise_for = \"3m\"\nevery"),
    ] {
        // A branch is read by the name that it has.
        let edited = base().replace(from, to).replace("from = \"low\"", "from = \"lower\"");
        let edited = if to.starts_with("lower") { edited } else { base().replace(from, to) };
        assert_eq!(ids(&edited), ids(&base()), "{from} to {to}");
    }
    assert_eq!(changed("every = \"1h\"", "every = \"60m\""), none);
}

#[test]
fn a_renamed_step_keeps_its_state_where_it_is_clear_which_one_it_was() {
    let old = ids(&base());
    let renamed = base().replace("\"sums\"", "\"minutes\"").replace("\"odd\"", "\"unusual\"");
    let kept = kept(&old, &ids(&renamed));
    assert_eq!(kept["p/minutes"], "p/sums");
    assert_eq!(kept["p/unusual"], "p/odd");
    assert_eq!(kept["p/hours"], "p/hours");
    assert_eq!(kept.len(), OPERATORS.len());
    // Two of the same content, both renamed: which was which?
    let twin = |name: &str| STEPS[6].replace("lows", name);
    let two = |a: &str, b: &str| {
        let (a, b) = (twin(a), twin(b));
        ids(&text(&FIELDS, &[STEPS[5], &a, &b], &[]))
    };
    assert_eq!(super::kept(&two("a", "b"), &two("a", "b")).len(), 4);
    assert_eq!(super::kept(&two("a", "b"), &two("a", "c")).len(), 4);
    assert_eq!(super::kept(&two("a", "b"), &two("c", "d")).len(), 2, "only of readings");
    // Nor does a pipeline take the state of another.
    let other = ids(&base().replace("name = \"p\"", "name = \"q\""));
    assert!(super::kept(&old, &other).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_order_of_everything_and_other_steps_do_not_matter(
        fields in Just(FIELDS.to_vec()).prop_shuffle(),
        steps in Just(STEPS.to_vec()).prop_shuffle(),
        ends in Just(ENDS.to_vec()).prop_shuffle(),
        dropped in 0..ENDS.len(),
        more in any::<bool>(),
    ) {
        let mut steps = steps;
        if more {
            let other = "name = \"other\"\ntype = \"window\"\nfrom = \"readings\"\n\
                         every = \"7s\"\nselect = { least = \"min(w)\" }";
            steps.insert(0, other);
        }
        let edited = ids(&text(&fields, &steps, &ends[dropped..]));
        for (name, id) in ids(&base()) {
            if let Some(now) = edited.get(&name) {
                prop_assert_eq!(*now, id, "{}", name);
            }
        }
    }
}
