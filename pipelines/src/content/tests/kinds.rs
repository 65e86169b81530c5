//! A pipeline with every kind of operator that has state: which of them a change of `[reading]`
//! changes, and which numbers earlier versions gave them.

use super::*;

/// The fields of the readings stand where `FIELDS` does.
const EVERY_KIND: &str = include_str!("../../../tests-data/every-kind.toml");

/// What earlier versions wrote in their checkpoints.
const BEFORE: [(&str, u64); 23] = [
    ("p/above", 0x3586a09bb19b99c7),
    ("p/alert/high", 0xc52d9b452f57a3b5),
    ("p/alert/much", 0xef1dce7a5830cbab),
    ("p/around", 0xe8237ed73f36b6a9),
    ("p/beside", 0xb231e0a41e6aeeb8),
    ("p/both", 0x5e1a3611364abc71),
    ("p/daily", 0x9c1cf46e9b0e5fde),
    ("p/days", 0xb7dcd9739d98aab1),
    ("p/days2", 0xcb86b69f6b278e99),
    ("p/hours", 0x2521c59f79679fde),
    ("p/known", 0xa1b8e3132bfcf4b4),
    ("p/limited", 0x34db9456ffed231b),
    ("p/near", 0x38a66b321b4e9e5f),
    ("p/odd", 0xf150fa6a1d26f1be),
    ("p/outages", 0x1dc1e8ae228c8920),
    ("p/reading/clock_skew", 0x3ceb8a0695056655),
    ("p/reading/dedup", 0xec74a49649f6b79e),
    ("p/registry/limits", 0x86f7cc814205755c),
    ("p/sessions", 0xfad2103f158ae898),
    ("p/silent", 0x67458714fdc9135e),
    ("p/states", 0xc0cdbd0b7c218ccf),
    ("p/tens", 0x3056360d615f8ba8),
    ("p/twice", 0x12b9ab12c1033228),
];

fn with(fields: &str) -> String {
    EVERY_KIND.replace("FIELDS", fields)
}

/// Operators of the first text whose number is another one in the second, or that it has not.
fn changed(before: &str, after: &str) -> Vec<String> {
    assert_ne!(before, after);
    let (before, after) = (ids(before), ids(after));
    before.into_iter().filter(|(name, id)| after.get(name) != Some(id)).map(|c| c.0).collect()
}

#[test]
fn what_earlier_versions_wrote_is_known() {
    let plan = plan(&with(&FIELDS.join("\n")));
    assert_eq!(content_ids_before(&plan.pipelines[0]), names(BEFORE));
    let (before, now) = (names(BEFORE), content_ids(&plan.pipelines[0]));
    assert!(before.keys().eq(now.keys()));
    assert!(now.values().all(|id| !before.values().any(|b| b == id)), "one is never the other");
}

/// What is passed on under another name is what it was, and two of one name are not the same.
#[test]
fn a_column_is_what_it_is_made_of_whatever_its_name_was() {
    let base = with(&FIELDS.join("\n"));
    let of = |columns: &str| {
        let few = format!(
            "[[step]]\nname = \"few\"\ntype = \"select\"\nfrom = \"known\"\n\
             columns = {{ device = \"device\", time = \"time\", {columns} }}\n"
        );
        let last = "[[step]]\nname = \"last\"\ntype = \"latest\"\nfrom = \"few\"\n\
                    select = { x = \"x\" }\n[[table]]\nfrom = \"last\"\n";
        ids(&format!("{base}{few}{last}"))["p/last"]
    };
    assert_eq!(of("x = \"v\""), of("y = \"v\", x = \"v\""));
    let others = ["x = \"v\"", "x = \"on\"", "x = \"time\"", "x = \"device\"", "x = \"v + 1\""];
    let all: BTreeSet<u64> = others.into_iter().map(of).collect();
    assert_eq!(all.len(), others.len());
}

/// A join keeps rows whole.
#[test]
fn a_join_of_readings_reads_all_of_them() {
    let near = |fields: &str| {
        let whole = "from = \"readings\"\nwith = \"others\"\nwithin";
        ids(&with(fields).replace("from = \"some\"\nwith = \"others\"\nwithin", whole))["p/near"]
    };
    let fields = FIELDS.join("\n");
    assert_ne!(near(&fields), near(&format!("{fields}\nz = \"string\"")));
}

fn names<const N: usize>(list: [(&str, u64); N]) -> BTreeMap<String, u64> {
    list.into_iter().map(|(name, id)| (name.to_owned(), id)).collect()
}

#[test]
fn a_field_or_a_column_that_nobody_reads_changes_nothing() {
    let none: [&str; 0] = [];
    let base = with(&FIELDS.join("\n"));
    let [n, v, w, s] = FIELDS;
    let strict = "z = { type = \"string\", required = true, matches = \"^z\" }";
    for fields in [[strict, n, v, w, s].join("\n"), [n, v, w, s, strict].join("\n")] {
        assert_eq!(changed(&base, &with(&fields)), none);
        assert_eq!(changed(&with(&fields), &base), none);
    }
    for (from, to) in [
        ("set = { vv", "set = { z = \"v * 9\", vv"),
        ("ww = \"w + 1\"", "ww = \"w + 2\""),
        (", ww = \"w + 1\"", ""),
        (w, "w = { type = \"float64\", min = -7 }"),
        (w, "w = { type = \"float64\", field = \"x.y\" }"),
    ] {
        assert!(base.contains(from), "{from}");
        assert_eq!(changed(&base, &base.replacen(from, to, 1)), none, "{from} to {to}");
    }
}

#[test]
fn a_field_that_is_read_changes_who_reads_it() {
    let base = with(&FIELDS.join("\n"));
    let all: Vec<&str> = BEFORE.map(|(name, _)| name).to_vec();
    let behind_all = |but: &[&str]| -> Vec<&str> {
        all.iter().copied().filter(|name| !but.contains(name)).collect()
    };
    let of_no_reading = ["p/outages", "p/registry/limits"];
    let [n, v, _, s] = FIELDS;
    for (from, to, wanted) in [
        // The key of what is repeated: which rows there are.
        (
            n,
            "n = \"string\"",
            behind_all(&[&of_no_reading[..], &["p/reading/clock_skew"]].concat()),
        ),
        ("time = \"ts\"", "time = \"at\"", behind_all(&of_no_reading)),
        (
            s,
            "s = { type = \"string\", field = \"state\" }",
            vec!["p/alert/much", "p/around", "p/both", "p/daily", "p/days", "p/known", "p/near"],
        ),
        (
            v,
            "v = { type = \"float64\", min = -11 }",
            behind_all(&[
                "p/hours",
                "p/outages",
                "p/reading/clock_skew",
                "p/reading/dedup",
                "p/registry/limits",
            ]),
        ),
        (
            "vv = \"v * 2\"",
            "vv = \"v * 3\"",
            vec!["p/alert/much", "p/both", "p/daily", "p/days", "p/odd"],
        ),
        // What is passed on by a join with a registry is what it was.
        (
            "high = \"float64\" }",
            "high = \"float64\", low = \"float64\" }",
            vec!["p/above", "p/alert/high", "p/daily", "p/limited", "p/registry/limits"],
        ),
    ] {
        assert!(base.contains(from), "{from}");
        assert_eq!(changed(&base, &base.replacen(from, to, 1)), wanted, "{from} to {to}");
    }
}
