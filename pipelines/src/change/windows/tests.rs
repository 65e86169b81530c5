//! Which changes of windows a table can take.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::change::{Change, Since};
use crate::testing::{self, HEAD};

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// Windows of a shape, with tables of them and of steps behind them.
fn text(shape: &str) -> String {
    let keyed = HEAD
        .replace("time = \"ts\"", "time = \"ts\"\ndisorder = \"1m\"\nidle_close = \"10m\"")
        .replace("v = \"float64\"", "v = \"float64\"\nline = \"string\"\nz = \"string\"");
    format!(
        "{keyed}\n[[step]]\nname = \"some\"\ntype = \"filter\"\nfrom = \"readings\"\n\
         where = \"v > 0\"\n\
         [[step]]\nname = \"w\"\ntype = \"window\"\nfrom = \"some\"\n{shape}\n\
         select = {{ total = \"sum(v)\" }}\n\
         [[step]]\nname = \"large\"\ntype = \"filter\"\nfrom = \"w\"\nwhere = \"total > 3\"\n\
         [[step]]\nname = \"twice\"\ntype = \"derive\"\nfrom = \"large\"\n\
         set = {{ twice = \"total * 2\" }}\n\
         [[table]]\nfrom = \"readings\"\n[[table]]\nfrom = \"w\"\nname = \"t\"\n\
         [[table]]\nfrom = \"twice\"\n\
         [limits]\nreading_every = \"1s\"\n"
    )
}

fn pipelines(text: &str) -> Vec<PipelineSpec> {
    testing::plan(text.to_owned()).unwrap_or_else(|why| panic!("{why}\n{text}")).pipelines
}

fn conflicts(old: &str, new: &str) -> Vec<String> {
    window_conflicts(&pipelines(old), &pipelines(new))
}

#[test]
fn fewer_early_rows_of_windows_that_are_made_anew_are_a_change_of_their_own() {
    let early = |shape: &str, early: &str| text(&format!("{shape}{early}"));
    let anew = |text: &str| text.replace("sum(v)", "sum(v + 1)");
    let every = "\nearly = \"10s\"";
    for shape in ["gap = \"1m\"", "count = 20", "while = \"v > 1\""] {
        let old = early(shape, every);
        for (less, is_less) in [("", true), ("\nearly = \"1m\"", true), (every, false)] {
            let new = early(shape, less);
            assert_eq!(conflicts(&old, &new), [""; 0], "the state goes on");
            let found = conflicts(&old, &anew(&new));
            assert_eq!(found.len(), 2 * usize::from(is_less), "{found:?}");
            assert!(found.iter().all(|why| why.contains("change `early` by itself")), "{found:?}");
        }
        assert_eq!(conflicts(&early(shape, ""), &anew(&old)), [""; 0], "there are none");
    }
    let old = early("every = \"1m\"", every);
    assert_eq!(conflicts(&old, &anew(&early("every = \"1m\"", ""))), [""; 0]);
}

#[test]
fn windows_of_another_shape_or_key_need_another_table() {
    for (old, new, said) in [
        ("count = 20", "count = 25", "every 20 readings before, now every 25 readings"),
        ("count = 20", "count = 20\nhop = 10", "now 20 readings, every 10"),
        ("every = \"1m\"", "every = \"5m\"", "every 1m before, now every 5m"),
        ("every = \"1m\"", "size = \"2m\"\nslide = \"1m\"", "now 2m long, every 1m"),
        ("every = \"1h\"", "every = \"1h\"\noffset = \"5m\"", "shifted by 5m"),
        ("every = \"1h\"", "every = \"day\"\nzone = \"UTC\"", "now every day"),
        ("gap = \"1m\"", "gap = \"2m\"", "a pause over 1m before"),
        ("gap = \"1m\"", "gap = \"1m\"\nmax = \"1h\"", "cut at 1h"),
        ("gap = \"1m\"", "count = 5", "now every 5 readings"),
        ("while = \"v > 1\"", "while = \"v > 2\"", "while v > 1 before"),
        ("while = \"v > 1\"", "while = \"v > 1\"\nmin = \"1m\"", "at least 1m long"),
        ("begin = \"v > 1\"\nuntil = \"v < 0\"", "begin = \"v > 1\"\nuntil = \"v < 1\"", "until"),
        ("before = \"1m\"", "before = \"2m\"", "from 1m before to 0s after it before"),
        ("before = \"1m\"", "before = \"1m\"\nafter = \"10s\"", "to 10s after it"),
        ("before = \"1m\"\nat = \"v > 1\"", "before = \"1m\"\nat = \"v > 2\"", "each reading with"),
        (
            "every = \"day\"\nzone = \"UTC\"",
            "every = \"day\"\nzone = \"Europe/Berlin\"",
            "by the clocks of UTC before",
        ),
        ("every = \"day\"\nzone = \"UTC\"", "every = \"month\"\nzone = \"UTC\"", "now every month"),
        (
            "every = \"1m\"",
            "every = \"1m\"\nby = [\"device\", \"line\"]",
            "by device before, now by device, line",
        ),
    ] {
        let found = conflicts(&text(old), &text(new));
        assert_eq!(found.len(), 2, "{old} to {new}: {found:?}");
        for (conflict, table) in found.iter().zip(["p.t", "p.twice"]) {
            let head = format!("table {table}: its windows are others (");
            assert!(conflict.starts_with(&head), "{conflict}");
            assert!(conflict.contains(said), "{said} is not in {conflict}");
            assert!(conflict.ends_with("give the new table another name"), "{conflict}");
        }
        // Back is as wrong, and the same is no change.
        assert_eq!(conflicts(&text(new), &text(old)).len(), 2, "{new} to {old}");
        assert_eq!(conflicts(&text(new), &text(new)), Vec::<String>::new());
        let renamed = text(new).replace("\"t\"", "\"t2\"");
        let renamed = renamed.replace("from = \"twice\"", "from = \"twice\"\nname = \"x\"");
        assert_eq!(conflicts(&text(old), &renamed), Vec::<String>::new());
    }
}

#[test]
fn what_does_not_decide_the_windows_can_change() {
    for shape in ["count = 20", "every = \"1m\"", "gap = \"1m\"", "while = \"v > 1\""] {
        let old = text(shape);
        for (from, to) in [
            ("total = \"sum(v)\"", "total = \"max(v)\", n = \"count(*)\""),
            ("\"w\"", "\"others\""),
            ("disorder = \"1m\"", "disorder = \"2m\""),
            ("total > 3", "total > 4"),
            ("[limits]", "[[step]]\nname = \"x\"\ntype = \"filter\"\nwhere = \"v > 8\"\n[limits]"),
            ("name = \"w\"", "name = \"w\"\nearly = \"10s\""),
            ("name = \"w\"", "name = \"w\"\nlate = \"table\""),
        ] {
            let new = old.replace(from, to);
            assert_ne!(old, new, "{from}");
            assert_eq!(conflicts(&old, &new), Vec::<String>::new(), "{shape}: {from} to {to}");
        }
    }
    // The names of shifts, and the place of a key.
    let shifts = "zone = \"UTC\"\nshifts = { early = \"06:00\", late = \"18:00\" }";
    let named = shifts.replace("early", "one");
    assert_eq!(conflicts(&text(shifts), &text(&named)), Vec::<String>::new());
    let moved = conflicts(&text(shifts), &text(&shifts.replace("06:00", "07:00")));
    assert!(moved.len() == 2 && moved[0].contains("early from 07:00"), "{moved:?}");
    let day = |zone: &str, keys: &str| {
        text(&format!("every = \"day\"\nzone = {{ column = \"{zone}\" }}\nby = [{keys}]"))
    };
    let (one, other) = ("\"device\", \"z\", \"line\"", "\"z\", \"line\", \"device\"");
    assert_eq!(conflicts(&day("z", one), &day("z", other)), Vec::<String>::new());
    let moved = conflicts(&day("z", one), &day("line", one));
    assert!(moved.len() == 2 && moved[0].contains("its windows are others, and"), "{moved:?}");
}

#[test]
fn windows_that_follow_readings_are_others_of_other_readings() {
    let other = |shape: &str, from: &str, to: &str| {
        let old = text(shape);
        let new = old.replace(from, to);
        assert_ne!(old, new, "{from}");
        conflicts(&old, &new)
    };
    let (filter, looser) = ("where = \"v > 0\"", "where = \"v > -1\"");
    for shape in ["count = 20", "gap = \"1m\"", "while = \"v > 1\""] {
        let found = other(shape, filter, looser);
        assert!(found.len() == 2 && found[0].contains("(of other readings"), "{found:?}");
        assert_eq!(other(shape, "from = \"some\"", "from = \"readings\"").len(), 2);
    }
    for shape in ["every = \"1m\"", "before = \"1m\""] {
        assert_eq!(other(shape, filter, looser), Vec::<String>::new());
    }
}

/// What decides a condition, a key or whether there is a reading decides which windows there are;
/// what only decides values does not.
#[test]
fn what_decides_conditions_decides_windows_that_follow_readings() {
    let of = |shape: &str, from: &str| {
        let steps = format!(
            "[[registry]]\nname = \"r\"\npath = \"r.csv\"\nkey = [\"device\"]\n\
             columns = {{ device = \"string\", high = \"float64\" }}\n\
             [[step]]\nname = \"made\"\ntype = \"derive\"\nfrom = \"readings\"\n\
             set = {{ x = \"v * 2\", y = \"v * 3\", k = \"line\" }}\n\
             [[step]]\nname = \"known\"\ntype = \"enrich\"\nregistry = \"r\"\n\
             from = \"made\"\ndefault = {{ high = \"8.0\" }}\n\
             [[step]]\nname = \"some\"\ntype = \"filter\"\nfrom = \"known\"\nwhere = \"{from}\"\n\
             [[step]]\nname = \"minutes\"\ntype = \"window\"\nfrom = \"some\"\n\
             every = \"1m\"\nlate = \"table\"\nselect = {{ m = \"max(y)\", n = \"min(v)\" }}\n"
        );
        let text = text(shape).replace("sum(v)", "sum(v) + sum(x) + sum(y)");
        let (head, rest) = text.split_once("[[step]]\nname = \"some\"").unwrap();
        let (_, rest) = rest.split_once("[[step]]").unwrap();
        format!("{head}{steps}[[step]]{rest}")
    };
    let (count, keyed) = ("count = 20", "count = 20\nby = [\"device\", \"k\"]");
    let other = |old: &str, from: &str, to: &str| {
        let new = old.replacen(from, to, 1);
        assert_ne!(old, new, "{from}");
        conflicts(old, &new).len()
    };
    for (shape, condition, from, to, refused) in [
        (count, "x > 3", "v * 2", "v * 4", true),
        (count, "x > 3", "v * 3", "v * 4", false),
        ("gap = \"1m\"", "x > 3", "v * 2", "v * 4", true),
        ("while = \"y > 1\"", "x > 3", "v * 3", "v * 4", true),
        ("every = \"1m\"", "x > 3", "v * 2", "v * 4", false),
        (keyed, "x > 3", "\"line\"", "\"z\"", true),
        (count, "x > 3", "k = \"line\"", "k = \"z\"", false),
        (count, "x > 3", "8.0", "9.0", false),
        (count, "x > high", "8.0", "9.0", true),
        (count, "x > 3", "from = \"made\"", "from = \"made\"\nmissing = \"reject\"", true),
        // A field that nothing reads, whatever a reading must have of it.
        (count, "x > 3", "line = \"string\"", "line = \"string\"\nmore = \"int64\"", false),
        (
            count,
            "x > 3",
            "line = \"string\"",
            "line = \"string\"\nmore = { type = \"int64\", required = true }",
            false,
        ),
        (count, "x > 3", "ts\"", "ts\"\npast_bound = \"1h\"", true),
        (count, "v > 3", "v = \"float64\"", "v = \"int64\"", true),
        ("while = \"m > 1\"\nfrom = \"minutes\"", "v > 3", "max(y)", "min(y)", true),
        ("while = \"m > 1\"\nfrom = \"minutes\"", "v > 3", "min(v)", "max(v)", false),
    ] {
        let mut old = of(shape, condition);
        if shape.contains("minutes") {
            old = old.replace("from = \"some\"\nwhile", "while");
            old = old.replace("sum(v) + sum(x) + sum(y)", "sum(m)");
        }
        let found = other(&old, from, to);
        assert_eq!(found, if refused { 2 } else { 0 }, "{shape}, {condition}: {from} to {to}");
    }
}

/// Tables keep these texts: where one is another, `FORMAT` in `operators/src/spec/rows.rs` has to
/// grow with it.
#[test]
fn what_tables_keep_stays_the_same_text() {
    let of = |shape: &str| {
        let all = pipelines(&text(shape));
        let tables = crate::graph::tables(&all);
        let rows = |name: &str| {
            let table = tables.iter().find(|table| table.name == name).unwrap();
            table.rows.as_ref().map(TableRows::to_text)
        };
        assert_eq!(rows("readings").unwrap(), r#"{"format":1,"windows":null}"#);
        assert_eq!(rows("t"), rows("twice"));
        assert_eq!(rows("rejects"), None);
        rows("t").unwrap()
    };
    let text = |shape: &str, bounds: &str, taken: &str| {
        format!(
            "{{\"format\":1,\"windows\":{{\"keys\":[\"device\"],\"shape\":\"{shape}\",\
             \"bounds\":\"{bounds}\",\"taken\":{taken}}}}}"
        )
    };
    let some = "\"14ad43e7c4ffd345\"";
    assert_eq!(of("every = \"1m\""), text("every 1m", "f83da54568df415f", "null"));
    assert_eq!(of("count = 20"), text("every 20 readings", "3c589c83ec9a0fd9", some));
    assert_eq!(of("while = \"v > 1\""), text("while v > 1", "9d9836398e760fa0", some));
}

#[test]
fn windows_and_other_rows_are_not_in_one_table() {
    let old = text("every = \"1m\"");
    let readings = old.replace("from = \"w\"\nname = \"t\"", "from = \"some\"\nname = \"t\"");
    assert_ne!(old, readings);
    let found = conflicts(&old, &readings);
    assert!(found.len() == 1 && found[0].contains("p.t: it has rows of windows"), "{found:?}");
    let found = conflicts(&readings, &old);
    assert!(found.len() == 1 && found[0].contains("p.t: it has rows of no windows"), "{found:?}");
}

/// What [`begun_anew`] refuses of a change where the journal goes back for so long, by table.
fn refused(old: &str, new: &str, back_us: i64) -> Vec<String> {
    let (old, new) = (pipelines(old), pipelines(new));
    let kept = Change::between(&old, &new).kept();
    let tables: Vec<String> = written(&old).map(|table| table.name).collect();
    let had = |table: &str| tables.iter().any(|own| own == table);
    let anew = begun_anew(&new, |operator| kept.contains(operator), had);
    let refused = anew.iter().filter_map(|of| of.refused((HOUR_US, "12:00"), HOUR_US + back_us));
    refused.collect()
}

#[test]
fn windows_that_may_be_open_before_the_journal_need_another_table() {
    let other = |text: &str| text.replace("sum(v)", "max(v)");
    // As long as they are, and until they are final.
    let wait_us = HOUR_US / 6;
    for (shape, open_us) in [
        ("every = \"1m\"", Some(HOUR_US / 60)),
        ("size = \"2h\"\nslide = \"1h\"", Some(2 * HOUR_US)),
        ("every = \"day\"\nzone = \"UTC\"", Some(DAY_US + HOUR_US)),
        ("every = \"month\"\nzone = \"UTC\"", Some(31 * DAY_US + HOUR_US)),
        ("count = 20", None),
        ("gap = \"1m\"\nmax = \"1h\"", None),
        ("while = \"v > 1\"", None),
        ("before = \"1m\"", None),
    ] {
        let old = text(shape);
        let over_us = open_us.map_or(1_000 * DAY_US, |us| us + wait_us);
        let when = open_us.map_or(over_us, |_| over_us - 1);
        let found = refused(&old, &other(&old), when);
        assert_eq!(found.len(), 2, "{shape}: {found:?}");
        for said in ["p.t: the windows of step `w`", "from 12:00 on", "from = \"w\"", "\"t2\""] {
            assert!(found[0].contains(said), "{said} is not in {}", found[0]);
        }
        assert!(found[1].contains("table p.twice") && found[1].contains("\"twice2\""), "{found:?}");
        let count = if open_us.is_some() { 0 } else { 2 };
        assert_eq!(refused(&old, &other(&old), over_us).len(), count, "{shape}");
        // What keeps its state, and a table that is new.
        let shown = old.replace("total = \"sum(v)\"", "total = \"sum(v) * 2\"");
        assert_ne!(old, shown);
        assert_eq!(refused(&old, &shown, 0), Vec::<String>::new(), "{shape}");
        let renamed = other(&old).replace("\"t\"", "\"t2\"");
        let renamed = renamed.replace("from = \"twice\"", "from = \"twice\"\nname = \"x\"");
        assert_eq!(refused(&old, &renamed, 0), Vec::<String>::new(), "{shape}");
        // Another name of the step is no help.
        let step = other(&old).replace("\"w\"", "\"others\"");
        assert_eq!(refused(&old, &step, 0).len(), 2, "{shape}");
    }
}

#[test]
fn windows_of_windows_wait_for_those() {
    let hours = "[[step]]\nname = \"hours\"\ntype = \"window\"\nfrom = \"w\"\nevery = \"1h\"\n\
                 select = { m = \"max(total)\" }\n[[table]]\nfrom = \"hours\"\n[limits]";
    let of = |shape: &str| {
        let shape = format!("{shape}\nlate = \"table\"");
        let text = text(&shape).replace("[limits]", hours);
        text.replace("[[table]]\nfrom = \"w\"\nname = \"t\"\n[[table]]\nfrom = \"twice\"\n", "")
    };
    let old = of("every = \"10m\"");
    let wait_us = HOUR_US / 6;
    // Only the hours are made anew: what comes to them is whole.
    let (new, over_us) = (old.replace("max(total)", "min(total)"), HOUR_US + 2 * wait_us);
    assert_eq!(refused(&old, &new, over_us - 1).len(), 1);
    assert_eq!(refused(&old, &new, over_us), Vec::<String>::new());
    let (new, over_us) = (old.replace("sum(v)", "max(v)"), over_us + HOUR_US / 6);
    assert_eq!(refused(&old, &new, over_us - 1).len(), 1);
    assert_eq!(refused(&old, &new, over_us), Vec::<String>::new());
    let old = of("count = 10");
    assert_eq!(refused(&old, &old.replace("sum(v)", "max(v)"), 1_000 * DAY_US).len(), 1);
    assert_eq!(refused(&old, &old.replace("max(total)", "min(total)"), 1_000 * DAY_US).len(), 1);
}

#[test]
fn windows_of_a_part_of_their_readings_are_told() {
    let old = text("every = \"day\"\nzone = \"UTC\"");
    let said = |new: &str, since: &Since| {
        assert_ne!(old, new);
        let (old, new) = (pipelines(&old), pipelines(new));
        let text = Change::between(&old, &new).show(since);
        let line = text.lines().find(|line| line.starts_with("  w")).unwrap().to_owned();
        line.split_once("; ").map(|(_, part)| part.to_owned())
    };
    let since = Since::Time("12:00".to_owned());
    let part = "windows that began before that are of a part of their readings".to_owned();
    let other = old.replace("sum(v)", "max(v)");
    let tables = ("\"t\"", "from = \"twice\"");
    let renamed =
        other.replace(tables.0, "\"t2\"").replace(tables.1, "from = \"twice\"\nname = \"x\"");
    assert_eq!(said(&renamed, &since), Some(part));
    // Those that are refused, or are over.
    assert_eq!(said(&other, &since), None);
    for since in [Since::Beginning, Since::Unknown] {
        assert_eq!(said(&renamed, &since), None);
    }
}
