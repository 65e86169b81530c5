//! What is said of a change, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::load;

const A: &str = r#"
name = "a"
[source]
type = "endpoint"
topics = ["a/{device}"]
[reading]
device = "{device}"
time = "ts"
fields = { v = "float64" }
[[step]]
name = "minutes"
type = "window"
every = "1m"
select = { m = "max(v)" }
[[step]]
name = "hours"
type = "window"
from = "readings"
every = "1h"
select = { m = "max(v)" }
[[alert]]
name = "high"
from = "minutes"
fire = "m > 5"
[[table]]
from = "minutes"
[[table]]
from = "hours"
"#;

fn plan(texts: &[String]) -> Plan {
    let file = |(i, text): (usize, &String)| (format!("{i}.toml").into(), text.clone());
    let files: Vec<_> = texts.iter().enumerate().map(file).collect();
    load(&files, &|_, _| Err("none".into())).unwrap_or_else(|p| panic!("{p:?}"))
}

fn other() -> String {
    A.replace("\"a\"", "\"b\"").replace("a/", "b/")
}

#[test]
fn a_change_says_what_stays_and_what_goes() {
    let old = plan(&[A.to_owned(), other()]);
    let same = Change::between(&old.pipelines, &plan(&[A.to_owned(), other()]).pipelines);
    assert!(same.is_nothing() && same.ended().is_empty() && same.rebuilt().is_empty());
    let edited = A.replace("m > 5", "m > 6").replace("1h", "2h").replace("\"minutes\"", "\"min\"");
    let change = Change::between(&old.pipelines, &plan(&[edited, other()]).pipelines);
    let expected = "\
pipeline a: changed
  alert/high: changed, rebuilt from 12:00; its open alerts end as rule_changed
  hours: changed, rebuilt from 12:00
  min: keeps its state (it was a/minutes)
  reading/clock_skew: keeps its state
  table a.min: new, with what is told from now on
  table a.minutes: written no more
pipeline b: unchanged, not touched
";
    assert_eq!(change.show(&Since::Time("12:00".into())), expected);
    assert_eq!(change.ended().into_iter().collect::<Vec<_>>(), ["a/alert/high"]);
    let rebuilt: Vec<String> = change.rebuilt().into_iter().collect();
    assert_eq!(rebuilt, ["a/alert/high", "a/hours"]);
    let gone = Change::between(&old.pipelines, &plan(&[other()]).pipelines);
    assert_eq!(gone.touched().map(|p| p.what).collect::<Vec<_>>(), [What::Removed]);
    assert_eq!(gone.ended().into_iter().collect::<Vec<_>>(), ["a/alert/high"]);
    let back = Change::between(&plan(&[other()]).pipelines, &old.pipelines);
    assert_eq!(back.touched().map(|p| p.what).collect::<Vec<_>>(), [What::Added]);
    // What is only shown is no operator's state, but the pipeline is another one.
    let shown = A.replace("fire = \"m > 5\"", "fire = \"m > 5\"\nsummary = \"so {m}\"");
    let change = Change::between(&old.pipelines, &plan(&[shown, other()]).pipelines);
    assert_eq!(change.touched().count(), 1);
    assert!(change.ended().is_empty() && change.rebuilt().is_empty());
}

#[test]
fn sources_keep_their_numbers_or_the_change_is_refused() {
    let at = |text: &str, port: u16| {
        text.replace("[reading]", &format!("listen = \"127.0.0.1:{port}\"\n[reading]"))
    };
    let old = plan(&[at(A, 1001), at(&other(), 1002)]);
    let mut turned = plan(&[at(&other(), 1002), at(A, 1001)]);
    assert_eq!(turned.pipelines[0].decode.source, 0);
    assert_eq!(adopt_sources(&old, &mut turned), Vec::<String>::new());
    assert_eq!(turned.pipelines[0].decode.source, 1);
    assert!(Change::between(&old.pipelines, &turned.pipelines).is_nothing());
    let more_topics = at(A, 1001).replace("\"a/{device}\"", "\"a/{device}\", \"c/{device}\"");
    assert!(adopt_sources(&old, &mut plan(&[more_topics.clone(), at(&other(), 1002)])).is_empty());
    // An endpoint that passes some messages on only has to know which ones are readings.
    let delivers = |text: &str| text.replace("[reading]", "deliver = [\"cmd/#\"]\n[reading]");
    let old_delivers = plan(&[delivers(&at(A, 1001)), at(&other(), 1002)]);
    let mut new = plan(&[delivers(&more_topics), at(&other(), 1002)]);
    assert_eq!(adopt_sources(&old_delivers, &mut new).len(), 1);
    let moved = adopt_sources(&old, &mut plan(&[at(A, 1003), at(&other(), 1002)]));
    assert_eq!(moved.len(), 2, "{moved:?}");
    assert!(moved[0].contains("1003") && moved[1].contains("1001"), "{moved:?}");
    let closed = adopt_sources(&old, &mut plan(&[at(A, 1001)]));
    assert!(closed.len() == 1 && closed[0].contains("1002"), "{closed:?}");
}

#[test]
fn a_registry_gets_other_columns_while_it_runs_but_no_other_place() {
    let registry = "[[registry]]\nname = \"limits\"\npath = \"l.csv\"\nkey = [\"device\"]\n\
                    columns = { device = \"string\", high = \"float64\" }\n";
    let with = |registry: &str| plan(&[format!("{A}{registry}")]);
    let old = with(registry);
    let mut more = with(&registry.replace("\"float64\"", "\"float64\", low = \"float64\""));
    assert_eq!(adopt_sources(&old, &mut more), Vec::<String>::new());
    let text = Change::between(&old.pipelines, &more.pipelines).show(&Since::Unknown);
    assert!(text.contains("  registry/limits: changed, rebuilt from"), "{text}");
    let elsewhere = registry.replace("l.csv", "m.csv");
    let by = registry.replace("[\"device\"]", "[\"high\"]").replace("float64", "string");
    let since = format!("{registry}valid_from = \"since\"\n");
    for mut other in [with(&elsewhere), with(&by), with(&since), with("")] {
        let problems = adopt_sources(&old, &mut other);
        assert!(problems.iter().any(|p| p.contains("cannot be opened, changed")), "{problems:?}");
    }
    assert!(!adopt_sources(&with(""), &mut with(registry)).is_empty());
}

#[test]
fn a_state_that_is_shown_in_another_way_is_kept_and_that_is_told() {
    let registry = "[[registry]]\nname = \"limits\"\npath = \"l.csv\"\nkey = [\"device\"]\n\
                    columns = { device = \"string\", high = \"float64\" }\n\
                    [[step]]\nname = \"limited\"\ntype = \"enrich\"\nregistry = \"limits\"\n\
                    from = \"minutes\"\ndefault = { high = \"8.0\" }\n\
                    [[alert]]\nname = \"over\"\nfrom = \"limited\"\nfire = \"m > high\"\n\
                    [[alert]]\nname = \"high\"\nfrom = \"minutes\"\nfire = \"m > 5\"\n";
    let old = A.replacen(
        "[[alert]]\nname = \"high\"\nfrom = \"minutes\"\nfire = \"m > 5\"\n",
        registry,
        1,
    );
    assert_ne!(old, A);
    let shown = |from: &str, to: &str| {
        let edited = old.replace(from, to);
        assert_ne!(edited, old, "{from}");
        let (old, new) = (plan(std::slice::from_ref(&old)), plan(&[edited]));
        Change::between(&old.pipelines, &new.pipelines).show(&Since::Unknown)
    };
    let other =
        "keeps its state; its rows are other ones from now on, those before stay as they are";
    let text = shown("8.0", "9.0");
    let limited = format!("  limited: {other}\n");
    for line in [
        limited.as_str(),
        "  minutes: keeps its state\n",
        "  registry/limits: keeps its state\n",
        "  alert/high: keeps its state\n",
        "  alert/over: changed, rebuilt from what the journal still has;",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let text = shown("every = \"1h\"\nselect = { m =", "every = \"1h\"\nselect = { x =");
    assert!(text.contains(&format!("  hours: {other}\n")), "{text}");
}

#[test]
fn a_field_that_no_step_reads_changes_none_of_them() {
    let between = |old: &str, new: &str| {
        let [old, new] = [old, new].map(|text| plan(&[text.to_owned()]));
        Change::between(&old.pipelines, &new.pipelines).show(&Since::Unknown)
    };
    let kept = "\
pipeline a: changed
  alert/high: keeps its state
  hours: keeps its state
  minutes: keeps its state
  reading/clock_skew: keeps its state
";
    let more = A.replace("fields = { v", "fields = { z = \"string\", v");
    assert_eq!(between(A, &more), kept);
    assert_eq!(between(&more, A), kept);
    let other = more.replace("v = \"float64\"", "v = \"int64\"");
    let changed = between(&more, &other);
    assert_eq!(changed.matches("changed, rebuilt from").count(), 3, "{changed}");
}
