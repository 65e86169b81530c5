//! Pipeline files, good and bad: what is read, what is said, and where.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value as Json;
use tidegate_operators::spec::StepKind;

use super::keys::PIPELINE;
use super::kinds::{Component, Key, Kind};
use super::tree::{Node, Value};
use super::{Problem, Severity, docs_markdown, load, schema};
use crate::plan::{EndpointSpec, MqttSpec, Plan, SourceKind};
use crate::{explain, explain_dot, fingerprint};

const PLANT: &str = include_str!("../../tests-data/plant.toml");
const ENDPOINT: &str = include_str!("../../tests-data/endpoint.toml");
const BROKER: &str = include_str!("../../tests-data/broker.toml");
const FILE: &str = include_str!("../../tests-data/file.toml");
const HTTP: &str = include_str!("../../tests-data/http.toml");
const SPANS: &str = include_str!("../../tests-data/spans.toml");
const PATTERNS: &str = include_str!("../../tests-data/patterns.toml");
const REGISTRY: &str = include_str!("../../tests-data/registry.toml");
const JOINS: &str = include_str!("../../tests-data/joins.toml");
const EARLY: &str = include_str!("../../tests-data/early.toml");
const MISTAKES: &str = include_str!("../../tests-data/mistakes.toml");

fn files(texts: &[&str]) -> Vec<(PathBuf, String)> {
    let name = |i: usize| PathBuf::from(format!("{i}.toml"));
    texts.iter().enumerate().map(|(i, t)| (name(i), (*t).to_owned())).collect()
}

fn resolver(kind: &str, name: &str) -> Result<String, String> {
    match (kind, name) {
        ("env", "OPS_WEBHOOK") => Ok("https://hooks.example/geheim".into()),
        ("file", "ops.key") => Ok("whsec_geheimer\n".into()),
        ("env", "BROKER_USER") => Ok("someone".into()),
        ("env", n) if n.starts_with("BROKER") || n.starts_with("GATEWAY") => Ok("geheim".into()),
        _ => Err(format!("there is no {kind} `{name}`")),
    }
}

fn good(texts: &[&str]) -> Plan {
    match load(&files(texts), &resolver) {
        Ok(plan) => plan,
        Err(problems) => panic!("{}", shown(&problems)),
    }
}

fn bad(texts: &[&str]) -> Vec<Problem> {
    load(&files(texts), &resolver).map(|_| ()).unwrap_err()
}

fn shown(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("{p}\n\n")).collect()
}

/// A small good pipeline with further text.
fn with(more: &str) -> String {
    format!(
        "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"t/{{device}}\"]\n\
         [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
         fields = {{ v = \"float64\", w = \"float64\", s = \"string\" }}\n{more}"
    )
}

/// In `mistakes.toml` each line says in a comment what is wrong with it: `#!` an error, `#~` a
/// warning, after `|` a part of the hint.
#[test]
fn every_mistake_is_reported_at_its_line() {
    let problems = bad(&[MISTAKES]);
    let mut open: Vec<&Problem> = problems.iter().collect();
    for (i, line) in MISTAKES.lines().enumerate() {
        for part in line.split(" #").skip(1).filter(|p| p.starts_with(['!', '~'])) {
            let severity = if part.starts_with('!') { Severity::Error } else { Severity::Warning };
            let (message, hint) = part[1..].split_once('|').unwrap_or((&part[1..], ""));
            let found = open.iter().position(|p| {
                p.line == i + 1
                    && p.severity == severity
                    && p.message.contains(message.trim())
                    && p.hint.as_deref().unwrap_or_default().contains(hint.trim())
            });
            match found {
                Some(at) => drop(open.remove(at)),
                None => panic!("line {}: no `{part}` among\n{}", i + 1, shown(&problems)),
            }
        }
    }
    let rest: Vec<Problem> = open.into_iter().cloned().collect();
    assert!(rest.is_empty(), "not expected:\n{}", shown(&rest));
    let mut sorted = problems.clone();
    sorted.sort_by_key(|p| (p.line, p.column));
    assert_eq!(sorted, problems);
}

#[test]
fn a_problem_looks_like_this() {
    let text = "[[step]]\nname = \"a\"\ntype = \"filter\"\nwere = \"v > 1\"\n";
    let problems = bad(&[&with(text)]);
    assert_eq!(
        shown(&problems[1..]),
        "error: unknown key `were` in [[step]] of type \"filter\"\n  --> 0.toml:12:1\n   |\n\
         12 | were = \"v > 1\"\n   | ^^^^\n   = hint: did you mean `where`, which is missing?\n\n"
    );
}

#[test]
fn problems_of_all_files_come_at_once() {
    let problems = bad(&["name = \n", &with("x = 1\n"), "a = 1\na = 2\n"]);
    let places: Vec<(String, usize)> =
        problems.iter().map(|p| (p.file.display().to_string(), p.line)).collect();
    assert!(places.contains(&("0.toml".into(), 1)), "{places:?}");
    assert!(places.contains(&("1.toml".into(), 9)), "{places:?}");
    assert!(places.contains(&("2.toml".into(), 2)), "{places:?}");
    assert!(problems[0].message.contains("not TOML"));
}

#[test]
fn secrets_are_never_shown() {
    let literal = ["password = \"hunter2\"", "password = 77712345", "pasword = \"hunter2\""];
    for line in literal {
        let text = BROKER.replace("password = \"${env:BROKER_PASSWORD}\"", line);
        assert_ne!(text, BROKER);
        let all = shown(&bad(&[&text]));
        assert!(!all.contains("hunter2") && !all.contains("77712345"), "{all}");
        assert!(all.contains("***"), "{all}");
    }
    let in_url = BROKER.replace("mqtts://broker", "mqtts://u:hunter2@broker");
    let unclosed = BROKER.replace("password = \"${env:BROKER_PASSWORD}\"", "password = \"hunter2");
    let hook = PLANT.replace("${env:OPS_WEBHOOK}", "ftp://hunter2");
    let users = PLANT.replace("${env:GATEWAY_PASSWORD}", "hunter2");
    for text in [in_url, unclosed, hook, users] {
        let all = shown(&bad(&[&text]));
        assert!(!all.contains("hunter2"), "{all}");
    }
    let plan = good(&[PLANT, BROKER, FILE, HTTP]);
    let all = format!("{plan:?} {} {}", explain(&plan), explain_dot(&plan));
    assert!(!all.contains("geheim"));
    let SourceKind::Mqtt(MqttSpec { password: Some(password), .. }) = &plan.sources[1].kind else {
        panic!("{:?}", plan.sources)
    };
    assert_eq!(password.expose(), "geheim");
    assert_eq!(plan.notifications[0].secret.as_ref().unwrap().expose(), "whsec_geheimer");
}

#[test]
fn what_cannot_be_resolved_is_a_problem() {
    let text = PLANT.replace("GATEWAY_PASSWORD", "NOBODY");
    let problems = bad(&[&text]);
    assert_eq!(problems.len(), 1, "{}", shown(&problems));
    assert_eq!((problems[0].line, &*problems[0].message), (8, "there is no env `NOBODY`"));
}

/// Notes every key of the table that a text uses.
fn used(c: &'static Component, node: &Node, seen: &mut BTreeSet<(String, String)>) {
    for entry in node.table().map(|t| t.entries.as_slice()).unwrap_or_default() {
        let Some(key) = c.key(&entry.key) else { continue };
        seen.insert((c.id.into(), key.name.into()));
        let below: Vec<&Node> = match (&key.kind, &entry.node.value) {
            (Kind::Sections(_) | Kind::Variants(_), _) => entry.node.list().iter().collect(),
            (Kind::Fields(_) | Kind::NamedVariants(_), Value::Table(t)) => {
                t.entries.iter().map(|e| &e.node).collect()
            }
            _ => vec![&entry.node],
        };
        for item in below {
            let component = match key.kind {
                Kind::Section(c)
                | Kind::Sections(c)
                | Kind::Time(c)
                | Kind::Zone(c)
                | Kind::Fields(c) => Some(c),
                kind => item.table().and_then(|t| super::check::selected(kind.components(), t)),
            };
            if let Some(component) = component {
                used(component, item, seen);
            }
        }
    }
}

fn components(c: &'static Component, all: &mut Vec<&'static Component>) {
    all.push(c);
    for key in c.keys {
        match key.kind {
            Kind::Section(b)
            | Kind::Sections(b)
            | Kind::Time(b)
            | Kind::Zone(b)
            | Kind::Fields(b) => {
                components(b, all);
            }
            kind => kind.components().iter().for_each(|b| components(b, all)),
        }
    }
}

fn tree(text: &str) -> Node {
    let files = files(&[text]);
    super::tree::parse(0, &mut super::problem::Reporter::new(&files)).unwrap()
}

#[test]
fn every_key_is_in_a_good_example() {
    let texts = [PLANT, ENDPOINT, BROKER, FILE, HTTP, SPANS, REGISTRY, JOINS, PATTERNS, EARLY];
    let mut plan = good(&texts);
    // Keys are not all there is to see: some keep windows without what these are made of.
    plan.warnings.retain(|w| !w.message.contains("too late to revise"));
    assert_eq!(plan.warnings.len(), 1, "{}", shown(&plan.warnings));
    assert!(plan.warnings[0].message.contains("nothing reads `day_mean`"));
    let mut seen = BTreeSet::new();
    let public = ENDPOINT.replace("secret = \"${env", "key_file = \"${env");
    for text in texts.into_iter().chain([public.as_str()]) {
        used(&PIPELINE, &tree(text), &mut seen);
    }
    let mut all = Vec::new();
    components(&PIPELINE, &mut all);
    let missing: Vec<String> = all
        .iter()
        .flat_map(|c| c.keys.iter().map(|k| (c.id.to_owned(), k.name.to_owned())))
        .filter(|pair| !seen.contains(pair))
        .map(|(c, k)| format!("{c}.{k}"))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn examples_and_defaults_of_the_table_are_valid() {
    let mut all = Vec::new();
    components(&PIPELINE, &mut all);
    for c in all {
        for key in c.keys {
            let mut values = vec![key.example.to_owned()];
            values.extend(key.default.map(|d| match key.kind {
                Kind::Bool | Kind::Int(..) | Kind::Float => d.to_owned(),
                _ => format!("\"{d}\""),
            }));
            for value in values.iter().filter(|v| !v.is_empty()) {
                let problems = check_one(c, key, value);
                assert!(problems.is_empty(), "{}.{} = {value}: {problems:?}", c.id, key.name);
            }
        }
    }
}

/// What is wrong with one value of one key.
fn check_one(c: &'static Component, key: &Key, value: &str) -> Vec<String> {
    let files = files(&[&format!("{} = {value}", key.name)]);
    let mut report = super::problem::Reporter::new(&files);
    let tree = super::tree::parse(0, &mut report).unwrap();
    super::check::component(c, &tree, tree.at, &mut report);
    let problems = report.finish().into_iter().map(|p| p.message);
    problems.filter(|m| !m.contains("is missing")).collect()
}

fn to_json(node: &Node) -> Json {
    match &node.value {
        Value::Text(t) | Value::Datetime(t) => t.as_str().into(),
        Value::Int(i) => (*i).into(),
        Value::Float(f) => (*f).into(),
        Value::Bool(b) => (*b).into(),
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Table(t) => {
            Json::Object(t.entries.iter().map(|e| (e.key.clone(), to_json(&e.node))).collect())
        }
    }
}

/// A validator of the part of JSON Schema that the schema uses.
fn valid(schema: &Json, value: &Json) -> bool {
    let all = |key: &str| schema[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let type_fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some(other) => panic!("unknown type {other}"),
        None => true,
    };
    let bounds = ["minimum", "maximum"].map(|key| schema[key].as_i64().zip(value.as_i64()));
    let in_bounds = bounds[0].is_none_or(|(m, v)| v >= m) && bounds[1].is_none_or(|(m, v)| v <= m);
    let pattern = schema["pattern"].as_str().zip(value.as_str());
    let members = value.as_object().is_none_or(|members| {
        members.iter().all(|(name, member)| match &schema["properties"][name] {
            Json::Null => match &schema["additionalProperties"] {
                Json::Bool(allowed) => *allowed,
                Json::Null => true,
                other => valid(other, member),
            },
            known => valid(known, member),
        })
    });
    type_fits
        && in_bounds
        && members
        && pattern.is_none_or(|(p, v)| regex::Regex::new(p).unwrap().is_match(v))
        && all("required").iter().all(|r| value.get(r.as_str().unwrap()).is_some())
        && (all("oneOf").is_empty() || all("oneOf").iter().filter(|s| valid(s, value)).count() == 1)
        && (all("anyOf").is_empty() || all("anyOf").iter().any(|s| valid(s, value)))
        && (all("enum").is_empty() || all("enum").contains(value))
        && (schema["const"].is_null() || schema["const"] == *value)
        && (schema["items"].is_null()
            || value.as_array().is_none_or(|v| v.iter().all(|i| valid(&schema["items"], i))))
}

#[test]
fn the_json_schema_knows_good_from_bad() {
    let schema = schema();
    for text in [PLANT, BROKER, FILE, HTTP, SPANS, REGISTRY] {
        assert!(valid(&schema, &to_json(&tree(text))));
    }
    for (from, to) in [
        ("qos = 0", "qos = 3"),
        ("type = \"mqtt\"", "type = \"mqqt\""),
        ("device = \"{device}\"", ""),
        ("session_expiry = \"1d\"", "session_expiry = 1"),
        ("client_id", "clientid"),
        ("\"${env:BROKER_PASSWORD}\"", "\"literal\""),
        ("v = \"float64\"", "v = \"float\""),
    ] {
        let text = BROKER.replace(from, to);
        assert_ne!(text, BROKER, "{from}");
        assert!(!valid(&schema, &to_json(&tree(&text))), "{to}");
    }
}

#[test]
fn the_reference_has_every_key() {
    let docs = docs_markdown();
    let mut all = Vec::new();
    components(&PIPELINE, &mut all);
    for c in all {
        assert!(docs.contains(c.doc), "{}", c.id);
        for key in c.keys {
            assert!(docs.contains(&format!("| `{}` |", key.name)), "{}.{}", c.id, key.name);
        }
    }
}

fn outputs(plan: &Plan, pipeline: usize) -> Vec<&str> {
    let columns = &plan.pipelines[pipeline].decode.columns;
    columns.iter().filter(|c| c.output).map(|c| c.name.as_str()).collect()
}

#[test]
fn only_used_columns_are_decoded() {
    let plan = good(&[PLANT, BROKER, FILE, HTTP]);
    // `kind` routes, `state` filters, `temperature` is aggregated; the other fields are checked.
    assert_eq!(outputs(&plan, 0), ["device", "time", "temperature", "state", "kind", "site"]);
    assert_eq!(
        outputs(&plan, 1),
        ["device", "time", "v", "seq", "serial", "received_time", "journal_offset"]
    );
    assert_eq!(outputs(&plan, 2), ["device", "time", "v"]);
    let ignored = |p: usize| plan.pipelines[p].decode.columns.iter().filter(|c| !c.output).count();
    assert_eq!((ignored(0), ignored(1)), (5, 0));
    let text = with(
        "[[step]]\nname = \"x\"\ntype = \"derive\"\nset = { v = \"w + 1\", t = \"topic\" }\n\
         [[step]]\nname = \"m\"\ntype = \"window\"\nfrom = \"x\"\nevery = \"1m\"\n\
         select = { a = \"max(v)\", b = \"max(t)\" }\n[[table]]\nfrom = \"m\"\n",
    );
    assert_eq!(outputs(&good(&[&text]), 0), ["device", "time", "w", "topic"]);
}

#[test]
fn steps_may_stand_in_any_order() {
    let a = "[[step]]\nname = \"a\"\ntype = \"filter\"\nwhere = \"v > 1\"\n";
    let b = "[[step]]\nname = \"b\"\ntype = \"derive\"\nfrom = \"a\"\nset = { x = \"v * 2\" }\n";
    let table = "[[table]]\nfrom = \"b\"\n";
    let plan = good(&[&with(&format!("{b}{a}{table}"))]);
    let names: Vec<&str> = plan.pipelines[0].steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let StepKind::Project(columns) = &plan.pipelines[0].steps[1].kind else { panic!() };
    let last = plan.pipelines[0].steps[1].output.fields().last().unwrap().clone();
    assert_eq!((columns.last().unwrap().0.as_str(), last.name().as_str()), ("x", "x"));
}

#[test]
fn endpoints_of_one_address_are_one_source() {
    let other = with("").replace("name = \"p\"", "name = \"q\"").replace("t/", "u/");
    let own = |more: &str| with("").replace("[reading]", &format!("{more}\n[reading]"));
    let plan = good(&[&own("connections_max = 7"), &other]);
    assert_eq!(plan.sources.len(), 1);
    assert_eq!(plan.pipelines[1].decode.source, 0);
    let SourceKind::Endpoint(EndpointSpec { filters, connections_max, .. }) = &plan.sources[0].kind
    else {
        panic!()
    };
    assert_eq!((filters.len(), *connections_max), (2, 7));
    let other = other.replace("[reading]", "connections_max = 8\n[reading]");
    let problems = bad(&[&own("connections_max = 7"), &other]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].message.contains("differs"), "{}", shown(&problems));
    assert_eq!(problems[0].hint.as_deref(), Some("the other one is at 0.toml:5"));
    let twice = bad(&[&with(""), &with("").replace("\"p\"", "\"P\"")]);
    assert!(twice[0].message.contains("already has the SQL schema `p`"), "{}", shown(&twice));
}

#[test]
fn tables_know_what_identifies_a_row() {
    let window = "[[step]]\nname = \"m\"\ntype = \"window\"\nby = [\"s\", \"device\"]\n\
                  every = \"1m\"\nselect = { a = \"max(v)\" }\n";
    let table = "[[table]]\nfrom = \"m\"\npartition = [\"s\"]\n";
    let plan = good(&[&with(&format!("{window}{table}"))]);
    let spec = &plan.pipelines[0].tables[0];
    assert_eq!(spec.identity, ["s", "device", "window_start"]);
    assert_eq!((&spec.sort[..], &*spec.time), (&["device".to_owned()][..], "window_start"));
    let counted = window.replace("every = \"1m\"", "count = 5");
    let rate = "[limits]\nreading_every = \"1s\"\n";
    let spec = &good(&[&with(&format!("{rate}{counted}{table}"))]).pipelines[0].tables[0];
    assert_eq!(spec.identity, ["s", "device", "window_number"]);
    // Rows of before, when windows came again, stay revisions.
    let last = window.replace("every", "late = \"table\"\nevery");
    let spec = &good(&[&with(&format!("{last}{table}"))]).pipelines[0].tables[0];
    assert_eq!(spec.identity, ["s", "device", "window_start"]);
    let readings = "[[table]]\nfrom = \"readings\"\n";
    assert!(good(&[&with(readings)]).pipelines[0].tables[0].identity.is_empty());
}

#[test]
fn an_alert_on_windows_of_several_keys_tells_them_apart() {
    let window = "[[step]]\nname = \"m\"\ntype = \"window\"\nby = [\"s\", \"device\"]\n\
                  every = \"1m\"\nselect = { a = \"max(v)\" }\n\
                  [[alert]]\nname = \"high\"\nfrom = \"m\"\nfire = \"a > 1\"\n";
    let of = |by: &str| {
        let plan = good(&[&with(&format!("{window}{by}"))]);
        let alert = &plan.pipelines[0].alerts[0].1;
        let names = |at: &[usize]| -> Vec<String> {
            at.iter().map(|i| alert.input.field(*i).name().clone()).collect()
        };
        (names(&alert.keys), names(&alert.others))
    };
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).into()).collect() };
    assert_eq!(of(""), (names(&["s", "device"]), Vec::new()));
    assert_eq!(of("by = [\"device\", \"s\"]\n"), (names(&["device", "s"]), Vec::new()));
    assert_eq!(of("by = [\"s\"]\n"), (names(&["s"]), names(&["device"])));
}

#[test]
fn the_fingerprint_follows_what_is_computed() {
    let step = "[[step]]\nname = \"m\"\ntype = \"window\"\nevery = \"1m\"\n\
                select = { a = \"max(v)\" }\n";
    let of = |text: &str| fingerprint(&good(&[text]).pipelines[0]);
    let base = of(&with(step));
    assert_eq!(base, of(&with(step)));
    // Another consumer changes which columns are decoded, and their positions; not the window.
    let unused = with(step).replace("v = \"float64\", w", "w");
    assert_ne!(base, of(&unused.replace("max(v)", "max(w)")));
    for (from, to) in [("1m", "2m"), ("max", "min"), ("max(v)", "max(w)"), ("t/", "u/")] {
        assert_ne!(base, of(&with(step).replace(from, to)), "{to}");
    }
    let elsewhere = with(step).replace("[reading]", "listen = \"127.0.0.1:1\"\n[reading]");
    assert_eq!(base, of(&elsewhere));
}

#[test]
fn tests_are_written_out() {
    let plan = good(&[PLANT]);
    let test = &plan.tests[0];
    assert_eq!((test.line, test.inputs.len()), (139, 4));
    let at: Vec<i64> = test.inputs.iter().map(|i| i.at_us / 1_000_000 % 60).collect();
    assert_eq!(at, [0, 5, 10, 20]);
    let last = String::from_utf8(test.inputs[3].payload.clone()).unwrap();
    assert_eq!(
        last,
        concat!(
            r#"{"ts": 1767225620000, "i": 2, "s": 1767225620, "us": 1767225620000000, "#,
            r#""t": "2026-01-01T00:00:20Z"}"#
        )
    );
    assert_eq!(test.count, [("rejects".to_owned(), 0), ("odd".to_owned(), 0)]);
    assert_eq!(test.expect[0].1[0]["n"], 6);
}

/// Without the bounds of memory, which change with the size of any struct.
fn calm(plan: &Plan) -> String {
    let text = explain(plan);
    text.split_inclusive('\n').filter(|l| !l.starts_with("    memory ")).collect()
}

#[test]
fn the_explanation_is_calm() {
    let plan = good(&[PLANT, BROKER]);
    assert_eq!(calm(&plan), include_str!("../../tests-data/explain.txt"));
    let spans = calm(&good(&[SPANS]));
    assert_eq!(spans, include_str!("../../tests-data/explain-spans.txt"));
    let joins = calm(&good(&[JOINS]));
    assert_eq!(joins, include_str!("../../tests-data/explain-joins.txt"));
    let early = calm(&good(&[EARLY]));
    assert_eq!(early, include_str!("../../tests-data/explain-early.txt"));
    let dot = explain_dot(&plan);
    assert!(dot.contains("\"window per_minute\"") && dot.contains("p0_step4 -> \"p0_step5\""));
    assert_eq!(dot.matches('{').count(), dot.matches('}').count());
}

#[test]
fn warnings_do_not_stop_a_plan() {
    let plan = good(&[&with("")]);
    assert_eq!(plan.warnings.len(), 1);
    assert_eq!(plan.warnings[0].severity, Severity::Warning);
    assert!(plan.warnings[0].message.contains("nothing uses"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is cut out of a file, and whatever is put there, the answer is a plan or problems.
    #[test]
    fn any_damage_is_answered(
        start in 0.0..1.0_f64,
        cut in 0..60_usize,
        put in "[a-z0-9\"={}\\[\\]#.,é\n$ ]{0,4}",
    ) {
        let mut chars: Vec<char> = PLANT.chars().collect();
        let from = (start * chars.len() as f64) as usize;
        let to = (from + cut).min(chars.len());
        chars.splice(from..to, put.chars());
        let text: String = chars.into_iter().collect();
        if let Err(problems) = load(&files(&[&text]), &resolver) {
            prop_assert!(!problems.is_empty() && !shown(&problems).is_empty());
        }
    }
}

#[test]
fn windows_are_bounded() {
    let window = |length: &str| {
        with(&format!(
            "[[step]]\nname = \"w\"\ntype = \"window\"\n{length}\nselect = {{ n = \"count(*)\" }}\n\
             [[table]]\nfrom = \"w\"\n"
        ))
    };
    for (size, slide) in [("7d", "7m"), ("1h", "1h"), ("36500d", "365d"), ("1h", "7s")] {
        good(&[&window(&format!("size = \"{size}\"\nslide = \"{slide}\""))]);
    }
    for (size, slide, part) in [
        ("1d", "59s", "every reading would be in 1464 windows"),
        ("36500d", "1us", "every reading would be in"),
        ("1h", "59.999999s", "every window would be put together from 3600000000 pieces"),
        ("1m", "2m", "is longer than `size`"),
        ("0s", "0s", "longer than nothing"),
    ] {
        let problems = bad(&[&window(&format!("size = \"{size}\"\nslide = \"{slide}\""))]);
        assert!(shown(&problems).contains(part), "{size} {slide}: {}", shown(&problems));
    }
}

#[test]
fn a_plan_can_be_looked_at_without_its_references() {
    let unset = |_: &str, _: &str| Ok(super::references::UNSET.to_owned());
    for text in [PLANT, BROKER, FILE, HTTP, REGISTRY] {
        if let Err(problems) = load(&files(&[text]), &unset) {
            panic!("{}", shown(&problems));
        }
    }
    let listen = with("").replace("\"endpoint\"", "\"endpoint\"\nlisten = \"${env:LISTEN}\"");
    assert!(load(&files(&[&listen]), &unset).is_ok());
}
