//! Joins as they are written: what comes out, what is said of mistakes, and what a change means for
//! the state.
#![allow(clippy::unwrap_used)]

use tidegate_operators::spec::StepKind;

use crate::bounds::bounds;
use crate::{Plan, content_ids, load};

/// Two windows, and a branch of the readings.
const EDGES: &str = "[[step]]\nname = \"a\"\ntype = \"window\"\nevery = \"1m\"\n\
                     select = { v = \"avg(v)\" }\n\
                     [[step]]\nname = \"b\"\ntype = \"window\"\nevery = \"1m\"\n\
                     select = { v = \"max(v)\", w = \"min(v)\" }\n\
                     [[step]]\nname = \"high\"\ntype = \"filter\"\nwhere = \"v > 1\"\n";
const WINDOWS: &str = "[[step]]\nname = \"j\"\ntype = \"join\"\nfrom = \"a\"\nwith = \"b\"\n";
const NEAR: &str = "[[step]]\nname = \"j\"\ntype = \"join\"\nwith = \"high\"\n";
const TABLE: &str = "[[table]]\nfrom = \"j\"\n";

fn plan(text: &str) -> Result<Plan, String> {
    let text = format!(
        "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"{{site}}/{{device}}\"]\n\
         [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
         fields = {{ v = \"float64\", seq = \"int64\" }}\n{text}"
    );
    load(&[("p.toml".into(), text)], &|_, _| Err(String::new()))
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn columns(text: &str) -> Vec<String> {
    let plan = plan(&format!("{EDGES}{text}\n{TABLE}")).unwrap();
    let steps = &plan.pipelines[0].steps;
    let joined = steps.iter().find(|s| s.name == "j").unwrap();
    joined.output.fields().iter().map(|f| f.name().clone()).collect()
}

#[test]
fn columns_of_both_edges_have_names_of_their_own() {
    let windows = columns(WINDOWS);
    let own = ["device", "window_start", "window_end", "v", "rows", "revision"];
    assert_eq!(windows, [&own[..], &["b_v", "w", "b_rows"]].concat());
    assert_eq!(columns(&format!("{WINDOWS}columns = [\"w\"]")), [&own[..], &["w"]].concat());
    let near = columns(&format!("{NEAR}within = \"5s\"\ncolumns = [\"v\", \"received_time\"]"));
    assert!(near.ends_with(&["high_v".to_owned(), "high_received_time".to_owned()]), "{near:?}");
}

#[test]
fn what_cannot_be_is_told() {
    let by_site = EDGES.replacen("every", "by = [\"site\"]\nevery", 1);
    for (text, told) in [
        (format!("{EDGES}{NEAR}"), "nothing says how near is near"),
        (format!("{EDGES}{}", WINDOWS.replace("\"b\"", "\"c\"")), "there is no edge `c`"),
        (format!("{EDGES}{}within = \"5s\"", WINDOWS), "would be joined twice"),
        (format!("{}{WINDOWS}", EDGES.replacen("1m", "2m", 1)), "are not the same"),
        (format!("{}{WINDOWS}", EDGES.replacen("every = \"1m\"", "gap = \"1m\"", 1)), "can move"),
        (format!("{by_site}{WINDOWS}"), "joined by all of their keys"),
        (format!("{EDGES}{WINDOWS}rows_max = 5"), "it goes with `within`"),
        (format!("{EDGES}{NEAR}within = \"1s\"\nrevise_for = \"1h\""), "has no effect here"),
        (format!("{EDGES}{NEAR}within = \"1s\"\nafter = \"1h\""), "`within` together with"),
        (format!("{EDGES}{NEAR}within = \"1s\"\nby = [\"sight\"]"), "no column `sight`"),
        (format!("{EDGES}{NEAR}within = \"1s\"\ncolumns = [\"device\"]"), "the same on both sides"),
        (format!("{EDGES}{NEAR}within = \"1s\"\ncolumns = [\"sequ\"]"), "did you mean `seq`"),
        (EDGES.replace("name = \"high\"", "name = \"high\"\nfrom = \"j\"") + NEAR, "in a circle"),
    ] {
        let error = plan(&format!("{text}\n{TABLE}")).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
}

/// A window may be there long before the other one, which waits for readings that are late.
#[test]
fn a_window_waits_as_long_as_the_other_may_be_held_back() {
    let idle_us = |edges: &str| -> i64 {
        let plan = plan(&format!("{edges}{WINDOWS}idle_close = \"1m\"\n{TABLE}")).unwrap();
        let steps = &plan.pipelines[0].steps;
        match &steps.iter().find(|s| s.name == "j").unwrap().kind {
            StepKind::Join(join) => join.idle_close_us / 1_000_000,
            _ => unreachable!(),
        }
    };
    let every = "every = \"1m\"\n";
    let waits = |text: &str, from: &str| EDGES.replacen(every, &format!("{every}{text}"), 2) + from;
    assert_eq!(idle_us(&waits("disorder = \"5s\"\nidle_close = \"10s\"\n", "")), 60);
    assert_eq!(idle_us(&waits("disorder = \"2m\"\nidle_close = \"10s\"\n", "")), 130);
    // What comes late to one of the windows does so to the join.
    let detect = "[[step]]\nname = \"odd\"\ntype = \"detect\"\non = \"v\"\n\
                  disorder = \"20s\"\nidle_close = \"40s\"\n";
    let after = waits("disorder = \"5s\"\nidle_close = \"10s\"\n", detect);
    let after = after.replacen("name = \"b\"", "name = \"b\"\nfrom = \"odd\"", 1);
    assert_eq!(idle_us(&after.replace("max(v)", "max(score)").replace("min(v)", "min(score)")), 75);
}

/// A row of five minutes has for partners the readings of an hour.
#[test]
fn the_bound_is_that_of_the_quicker_edge() {
    let text = "[limits]\ndevices = 10\nreading_every = \"1s\"\n\
                [[step]]\nname = \"slow\"\ntype = \"window\"\nevery = \"5m\"\nlate = \"table\"\n\
                select = { m = \"avg(v)\" }\n\
                [[step]]\nname = \"j\"\ntype = \"join\"\nfrom = \"slow\"\nwith = \"readings\"\n\
                before = \"1h\"\nmatch = \"all\"\n\
                [[step]]\nname = \"k\"\ntype = \"latest\"\nfrom = \"j\"\nselect = { v = \"v\" }\n\
                disorder = \"1h\"\n[[table]]\nfrom = \"k\"\n";
    let plan = plan(text).unwrap();
    let bounds = bounds(&plan.pipelines[0]);
    let of = |name: &str| bounds.iter().find(|b| b.name == name).unwrap().per_key.clone();
    // Each of them takes a hundred bytes.
    assert!(of("j").unwrap() > 3_600 * 100, "{:?}", of("j"));
    // How many rows come of one, nobody knows.
    assert!(of("k").unwrap() > 60_000 * 100, "{:?}", of("k"));
}

#[test]
fn another_edge_or_bound_is_another_state() {
    let id = |text: &str| content_ids(&plan(text).unwrap().pipelines[0])["p/j"];
    let base = id(&format!("{EDGES}{NEAR}within = \"5s\"\n{TABLE}"));
    let other = EDGES.replace("v > 1", "v > 2");
    assert_ne!(base, id(&format!("{other}{NEAR}within = \"5s\"\n{TABLE}")));
    assert_ne!(base, id(&format!("{EDGES}{NEAR}within = \"6s\"\n{TABLE}")));
    assert_ne!(base, id(&format!("{EDGES}{NEAR}within = \"5s\"\njoin = \"left\"\n{TABLE}")));
    assert_eq!(base, id(&format!("{EDGES}{NEAR}before = \"5s\"\nafter = \"5s\"\n{TABLE}")));
}
