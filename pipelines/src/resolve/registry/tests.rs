//! Registries and their joins as they are written: what is said of mistakes, and what a change
//! means for the state.
#![allow(clippy::unwrap_used)]

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
    load(&[("p.toml".into(), text)], &|_, _| Err(String::new()))
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
