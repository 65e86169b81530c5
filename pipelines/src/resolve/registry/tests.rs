//! Registries and their joins as they are written: what is said of mistakes, and what a change
//! means for the state.
#![allow(clippy::unwrap_used)]

use tidegate_operators::bound::{Bounded, Load};

use crate::plan::{RegistryPlace, SourceKind};
use crate::{Plan, content_ids, explain, load};

const REGISTRY: &str = "[[registry]]\nname = \"limits\"\npath = \"l.csv\"\nkey = [\"device\"]\n\
                        columns = { device = \"string\", high = \"float64\", v2 = \"int64\" }\n";
const WINDOW: &str = "[[step]]\nname = \"w\"\ntype = \"window\"\nevery = \"1m\"\n\
                      select = { n = \"count(*)\" }\n";
const STEP: &str = "[[step]]\nname = \"e\"\ntype = \"enrich\"\nregistry = \"limits\"\n";
const TABLE: &str = "[[table]]\nfrom = \"e\"\n";

fn plan(text: &str) -> Result<Plan, String> {
    let text = format!(
        "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"{{device}}\"]\n\
         [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
         fields = {{ v = \"float64\", seq = \"int64\" }}\n{text}"
    );
    let resolve = |_: &str, name: &str| match name {
        "X" => Ok("canary1".to_owned()),
        _ => Err("there is no env".to_owned()),
    };
    load(&[("p.toml".into(), text)], &resolve)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_registry_is_a_table_and_is_explained() {
    let plan = plan(&format!("{REGISTRY}{STEP}{TABLE}")).unwrap();
    let text = explain(&plan);
    for part in [
        "registry limits: l.csv",
        "joins    limits as of time, by device",
        "per key at most 100 versions",
        "table p.limits_versions: from limits_versions",
        "the latest revision of each device, valid_from",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let tables: Vec<&str> = plan.pipelines[0].tables.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(tables, ["e", "limits_versions"]);
    assert_eq!(plan.registries[0].key, [("device".to_owned(), vec!["device".to_owned()])]);
}

#[test]
fn a_column_may_be_absent_if_it_says_so() {
    let columns = |high: &str| {
        let registry = REGISTRY.replace("high = \"float64\"", &format!("high = {high}"));
        let columns =
            plan(&format!("{registry}{STEP}{TABLE}")).unwrap().registries[0].columns.clone();
        columns.into_iter().map(|(name, path)| (name, path.join("."))).collect::<Vec<_>>()
    };
    let names = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect()
    };
    assert_eq!(columns("\"float64\""), names(&[("high", "high"), ("v2", "v2")]));
    let table = "{ type = \"float64\", field = \"at.high\" }";
    assert_eq!(columns(table), names(&[("high", "at.high"), ("v2", "v2")]));
    assert_eq!(columns("{ type = \"float64\", required = false }"), names(&[("v2", "v2")]));
}

#[test]
fn what_cannot_be_is_told() {
    let on_windows = format!("{WINDOW}{}", STEP.replace("type", "from = \"w\"\ntype"));
    let columns = "device = \"string\", high = \"float64\"";
    for (text, told) in [
        (STEP.to_owned(), "there is no registry `limits`"),
        (format!("{REGISTRY}{STEP}on = [\"seq\"]"), "they are never equal"),
        (format!("{REGISTRY}{STEP}on = [\"device\", \"seq\"]"), "name as many columns"),
        (format!("{REGISTRY}{STEP}columns = [\"hihg\"]"), "did you mean `high`"),
        (format!("{REGISTRY}{STEP}default = {{ hig = \"1\" }}"), "is not added here"),
        (format!("{REGISTRY}{STEP}default = {{ high = \"'a'\" }}"), "must be a number"),
        (format!("{REGISTRY}{STEP}revise = true"), "only windows can be revised"),
        (format!("{REGISTRY}{on_windows}revise_for = \"1h\""), "write `revise = true`"),
        (format!("{REGISTRY}{REGISTRY}"), "already a registry `limits`"),
        (REGISTRY.replace("[\"device\"]", "[\"devise\"]"), "did you mean `device`"),
        (REGISTRY.replace("[\"device\"]", "[\"device\", \"device\"]"), "named twice"),
        (REGISTRY.replace("[\"device\"]", "[]"), "name its key"),
        (REGISTRY.replace(&format!("{columns}, v2"), "device"), "says nothing of its keys"),
        (REGISTRY.replace("high", "revision"), "every registry has `revision` anyway"),
        (REGISTRY.replace("v2", "v").to_owned() + STEP, "have a column `v` already"),
        (format!("{REGISTRY}{}", WINDOW.replace("\"w\"", "\"limits_versions\"")), "its history"),
    ] {
        let error = plan(&format!("{text}\n{TABLE}")).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
}

/// Windows whose bounds follow from readings, with what tells those of a key apart.
const SPANS: [(&str, &str); 5] = [
    ("gap = \"10s\"", "window_start"),
    ("count = 5", "window_number"),
    ("while = \"v > 1\"", "window_start"),
    ("before = \"1m\"", "window_start"),
    ("gap = \"10s\"\nearly = \"10s\"", "window_start"),
];

#[test]
fn windows_of_every_kind_can_be_revised() {
    let limits = "[limits]\nreading_every = \"1s\"\n";
    let step = STEP.replace("type", "from = \"w\"\ntype");
    let of = |shape: &str, limits: &str, more: &str| {
        let window = WINDOW.replace("every = \"1m\"", shape);
        plan(&format!("{REGISTRY}{window}{step}revise = true\n{more}{TABLE}{limits}"))
    };
    for (shape, id) in SPANS {
        for more in ["", "early = true\n"] {
            if !more.is_empty() && !shape.contains("early") {
                continue;
            }
            let plan = of(shape, limits, more).unwrap();
            let table = plan.pipelines[0].tables.iter().find(|t| t.name == "e").unwrap();
            assert_eq!(table.identity, ["device", id], "{shape}");
            let text = explain(&plan);
            let late = "a change that comes late revises windows that ended in the last 1h";
            assert!(text.contains(late), "{shape}: {text}");
        }
    }
    // How many are kept follows from how often they can come.
    let said = of("while = \"v > 1\"\nunbounded = \"allow\"", "", "").unwrap_err();
    assert!(said.contains("the state of `e`") && said.contains("reading_every"), "{said}");
    assert!(of("gap = \"10s\"", "", "").is_ok());
    let shorter = of("while = \"v > 1\"", limits, "revise_for = \"1m\"\n").unwrap();
    let longer = of("while = \"v > 1\"", limits, "").unwrap();
    let bytes = |plan: &Plan| -> u64 {
        let step = plan.pipelines[0].steps.iter().find(|s| s.name == "e").unwrap();
        let load = Load { every_us: Some(1_000_000), burst_us: 0, text_bytes: 32 };
        step.kind.state_bound(&load).unwrap().per_key()
    };
    assert!(bytes(&longer) > 20 * bytes(&shorter), "an hour keeps more than a minute");
    // Nobody who does not ask keeps any.
    let counts = WINDOW.replace("every = \"1m\"", "count = 5");
    let plain = plan(&format!("{REGISTRY}{counts}{step}{TABLE}{limits}")).unwrap();
    assert!(bytes(&plain) < bytes(&shorter));
}

#[test]
fn another_registry_is_another_state() {
    let ids = |registry: &str, step: &str| {
        content_ids(&plan(&format!("{registry}{step}{TABLE}")).unwrap().pipelines[0])
    };
    let base = ids(REGISTRY, STEP);
    assert!(base.contains_key("p/registry/limits") && base.contains_key("p/e"), "{base:?}");
    for (from, to) in [("v2 = \"int64\"", "v2 = \"string\""), ("path", "valid_from = \"s\"\npath")]
    {
        let other = ids(&REGISTRY.replace(from, to), STEP);
        let of_registry = base.iter().filter(|(name, _)| !name.contains("clock_skew"));
        assert!(of_registry.clone().count() == 2, "{base:?}");
        assert!(of_registry.into_iter().all(|(name, id)| other[name] != *id), "{to}");
    }
    // Where it lies, and what of it is shown, is no part of the state.
    assert_eq!(base, ids(&REGISTRY.replace("l.csv", "m.csv"), STEP));
    assert_eq!(base, ids(REGISTRY, &format!("{STEP}columns = [\"high\"]\n")));
}

#[test]
fn a_registry_that_is_not_there_hides_nothing_behind_it() {
    let alert = "[[alert]]\nname = \"a\"\nfrom = \"e\"\nfire = \"v > hihg\"\n";
    let step = STEP.replace("\"limits\"", "\"limit\"");
    let error = plan(&format!("{REGISTRY}{step}{alert}{TABLE}")).unwrap_err();
    for part in ["no registry `limit`", "did you mean `limits`", "no column `hihg`"] {
        assert!(error.contains(part), "{part} is not in\n{error}");
    }
    // One that is there, with a mistake, is told once.
    let bad = REGISTRY.replace("float64", "float46");
    let error = plan(&format!("{bad}{STEP}{TABLE}")).unwrap_err();
    assert!(error.contains("float46") && !error.contains("no registry"), "{error}");
}

#[test]
fn where_it_is_is_said_once_and_shown_without_secrets() {
    let at = |place: &str| REGISTRY.replace("path = \"l.csv\"", place);
    let url = "url = \"https://u.example:8443/canary1?canary2\"";
    for (place, told) in [
        ("", "nothing says where this registry is"),
        ("path = \"l.csv\"\nurl = \"https://a/\"", "`path` and `url` exclude each other"),
        ("path = \"l.csv\"\nrefresh = \"1m\"", "`refresh` is for a `url`"),
        ("path = \"l.json\"\nformat = \"ndjson\"\ndelimiter = \";\"", "for the format csv"),
        ("url = \"ftp://canary1/\"", "no URL of a registry"),
        ("url = \"canary1\"", "no URL of a registry"),
        ("url = \"https://u:canary1@a/\"", "must not be in the URL"),
        ("url = \"https://a/\"\nrefresh = \"10ms\"", "the shortest `refresh`"),
        ("url = \"https://a/\"\ntimeout = \"0s\"", "needs some time"),
        ("url = \"https://a/\"\nbody_max = \"1B\"", "at least 1KiB"),
        ("url = \"https://a/\"\nheaders = { Key = \"canary1\" }", "must not be written"),
        ("url = \"https://a/\"\nheaders = { \"a b\" = \"${env:X}\" }", "the name of a header"),
        ("url = \"https://a/\"\nheaders = { A = \"${env:X}\", a = \"${env:X}\" }", "twice"),
        ("url = \"https://a/\"\nheaders = { A = \"${env:CANARY}\" }", "no env"),
    ] {
        let error = plan(&format!("{}{STEP}{TABLE}", at(place))).unwrap_err();
        assert!(error.contains(told), "{place}: {error}");
        assert!(!error.contains("canary1"), "{place}: {error}");
    }
    let plan = plan(&format!("{}{STEP}{TABLE}", at(url))).unwrap();
    let text = explain(&plan);
    let asked = "asked    every 1m; whole within 30s, at most 64MiB";
    for part in ["registry limits: https://u.example:8443\n", asked] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let shown = format!("{text}{:?}", plan.registries);
    assert!(!shown.contains("canary"), "{shown}");
    // Where it lies is no part of the state.
    let of_file = super::tests::plan(&format!("{REGISTRY}{STEP}{TABLE}")).unwrap();
    assert_eq!(content_ids(&plan.pipelines[0]), content_ids(&of_file.pipelines[0]));
}

#[test]
fn a_topic_is_brought_by_the_source_and_is_no_reading() {
    let at = |place: &str| REGISTRY.replace("path = \"l.csv\"", place);
    let topic = "topic = \"reg/{device}/{site}\"";
    let url = "\nurl = \"https://a/\"";
    for (place, told) in [
        (format!("{topic}{url}"), "`url` and `topic` exclude each other"),
        (format!("{topic}\nrefresh = \"1m\""), "`refresh` is for a `url`"),
        (format!("{topic}\nformat = \"csv\""), "`format` is for rows of a file"),
        ("topic = \"reg/#/x\"".to_owned(), "takes all remaining levels"),
        ("topic = \"{device}\"".to_owned(), "some topics match both `{device}` and `{device}`"),
    ] {
        let error = plan(&format!("{}{STEP}{TABLE}", at(&place))).unwrap_err();
        assert!(error.contains(told), "{place}: {error}");
    }
    let other = at(topic).replace("v2 = \"int64\"", "v2 = { type = \"int64\", field = \"{sit}\" }");
    let error = plan(&format!("{other}{STEP}{TABLE}")).unwrap_err();
    assert!(error.contains("no topic has a capture `{sit}`"), "{error}");

    let of_site =
        at(topic).replace("v2 = \"int64\"", "v2 = { type = \"int64\", field = \"{site}\" }");
    let plan_of_site = plan(&format!("{of_site}{STEP}{TABLE}")).unwrap();
    let text = explain(&plan_of_site);
    assert!(text.contains("registry limits: topic reg/{device}/{site}\n"), "{text}");
    assert!(text.contains("the first of a key: since ever"), "{text}");
    let RegistryPlace::Topic(place) = &plan_of_site.registries[0].place else { panic!("{text}") };
    let captures = [("device", "device"), ("v2", "site")];
    assert_eq!(place.captures, captures.map(|(c, l)| (c.to_owned(), l.to_owned())));
    let SourceKind::Endpoint(endpoint) = &plan_of_site.sources[0].kind else { panic!("{text}") };
    assert_eq!(endpoint.filters, ["+", "reg/+/+"]);
    assert!(plan_of_site.warnings.is_empty(), "{:?}", plan_of_site.warnings);

    let in_payload = plan(&format!("{}{STEP}{TABLE}", at("topic = \"reg/+\""))).unwrap();
    let warned: Vec<&str> = in_payload.warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(warned, ["an empty payload cannot say which `device` is removed"]);
    // Entries hold from when they come, rows of a file are told by the edge: another state.
    let of_file = plan(&format!("{REGISTRY}{STEP}{TABLE}")).unwrap();
    let ids = |plan: &Plan| content_ids(&plan.pipelines[0])["p/registry/limits"];
    assert_ne!(ids(&in_payload), ids(&of_file));
}
