//! One mistake is one problem: what only follows from it is not said.

use super::Severity;
use crate::testing::{plan, problems};

/// A pipeline in which all is well.
const GOOD: &str = r#"
name = "p"
[source]
type = "endpoint"
topics = ["t/{site}/{device}"]
[reading]
device = "{device}"
time = "ts"
[reading.fields]
v = { type = "float64", min = 1, max = 9 }
[[step]]
name = "w"
type = "window"
every = "1m"
by = ["site", "device"]
select = { n = "count(*)", last_site = "max(site)" }
[[alert]]
name = "a"
from = "w"
fire = "n > 8"
[[test]]
name = "t"
input = [{ topic = "t/a/b", payload = '{"ts":{ms},"v":2}' }]
count.w = 1
"#;

/// The only problem of the pipeline with `new` in place of `old`: message and hint.
fn only(old: &str, new: &str) -> (String, String) {
    assert!(GOOD.contains(old), "{old}");
    let found = problems(&GOOD.replace(old, new));
    let [problem] = found.as_slice() else {
        panic!("{new}: {}", found.iter().map(|p| format!("{p}\n\n")).collect::<String>())
    };
    assert_eq!(problem.severity, Severity::Error, "{problem}");
    (problem.message.clone(), problem.hint.clone().unwrap_or_default())
}

#[test]
fn whatever_is_wrong_with_a_source_its_topics_are_not_missed_elsewhere() {
    let topics = "topics = [\"t/{site}/{device}\"]\n";
    assert_eq!(only("\"endpoint\"", "\"endpiont\"").1, "did you mean `endpoint`?");
    let nothing = "type = \"endpoint\"\ntopics = [\"t/{site}/{device}\"]";
    assert!(only(nothing, "type = \"endpiont\"").0.contains("unknown type `endpiont`"));
    assert!(only(topics, "").0.contains("`topics` is missing"));
    let hint = "did you mean `topics`, which is missing?";
    assert_eq!(only("topics =", "topcs =").1, hint);
    assert!(only(&format!("[source]\n{nothing}\n"), "").0.contains("`source` is missing"));
    let hint = "did you mean `type`, which is missing?";
    assert_eq!(only("type = \"endpoint\"", "tpye = \"endpoint\"").1, hint);
    assert_eq!(only("type = \"window\"", "tpe = \"window\"").1, hint);
    let found = problems(&GOOD.replace("device = \"{device}\"", "device = \"{devic}\""));
    assert!(found.iter().any(|p| p.message == "no topic has a capture `{devic}`"), "{found:?}");
    let warned = plan(GOOD.replace("t/a/b", "u/a/b")).expect("good").warnings;
    assert!(warned.iter().any(|p| p.message == "the pipeline does not read `u/a/b`"));
    // With topics that are known, a column that is none is told.
    let found = problems(&GOOD.replace("\"endpoint\"", "\"endpiont\"").replace("(site)", "(sit)"));
    assert!(found.iter().any(|p| p.message.contains("`sit`")), "{found:?}");
}

#[test]
fn a_key_that_was_meant_for_another_one_is_not_missed_as_well() {
    let (message, hint) = only("every =", "evry =");
    assert!(message.contains("unknown key `evry`"), "{message}");
    assert_eq!(hint, "did you mean `every`?");
    assert_eq!(only("select =", "selct =").1, "did you mean `select`, which is missing?");
    assert!(problems(&GOOD.replace("every =", "foo =")).len() == 2, "nobody meant `every`");
}

#[test]
fn hints_say_what_was_probably_meant() {
    assert_eq!(
        only("count.w = 1", "expect.alert = [{ rule = \"a\" }]").1,
        "did you mean `alerts`?"
    );
    let (message, hint) = only("t/{site}/{device}", "t/{site}/{device}.csv");
    assert_eq!(message, "`{device}.csv`: a capture is a whole level, written `{name}`");
    assert!(hint.ends_with("for `topics = [\"t/{site}/{device}\"]`"), "{hint}");
    let registry = "[[registry]]\nname = \"r\"\npath = \"r.csv\"\nkey = [\"device\"]\n\
                    columns = { device = \"string\", zone = \"string\" }\n[[step]]\nname = \"k\"\n\
                    type = \"enrich\"\nregistry = \"r\"\n[[table]]\nfrom = \"k\"\n";
    let with = |default: &str| {
        let enrich = format!("registry = \"r\"\ndefault = {{ zone = \"{default}\" }}");
        let more = registry.replace("registry = \"r\"", &enrich);
        only("[[step]]", &format!("{more}[[step]]")).1
    };
    assert_eq!(with("Europe/Berlin"), "a text is in single quotes: \"'Europe/Berlin'\"");
    assert_eq!(with("sitee"), "did you mean `site`?");
}

#[test]
fn types_of_other_systems_have_names_here() {
    for (theirs, ours) in [
        ("double", "float64"),
        ("DOUBLE PRECISION", "float64"),
        ("float", "float64"),
        ("number", "float64"),
        ("int", "int64"),
        ("integer", "int64"),
        ("bigint", "int64"),
        ("text", "string"),
        ("varchar(20)", "string"),
        ("boolean", "bool"),
        ("timestamp", "time"),
    ] {
        let (message, hint) = only("\"float64\"", &format!("\"{theirs}\""));
        assert_eq!(message, format!("`{theirs}` is not one of the values allowed"));
        assert_eq!(hint, format!("that is `{ours}` here"));
    }
}
