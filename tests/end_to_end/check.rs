//! A configuration with many mistakes: `check` names all of them at once, each with its line.

use crate::support::{ColdChain, Home, tidegate};

/// Each line with a mistake ends in `# MISTAKE` and the words of which one must be in the message.
const MANY: &str = r#"name = "cold-chain"

[source]
type   = "endpoint"
listen = "127.0.0.1:1883"
topics = ["plant/{site}/#/telemetry"] # MISTAKE last

[reading]
format = "json"
devise = "device" # MISTAKE device
device = "device"
time   = "ts"
disorder = "5 parsecs" # MISTAKE parsecs
[reading.fields]
temperature = { type = "float46" } # MISTAKE float64

[[step]]
name   = "per_minute"
type   = "window"
every  = "1m"
by     = ["device"]
select = { n = "count(*)", t = "avg(temprature)" } # MISTAKE temprature

[[step]]
name = "odd"
type = "detekt" # MISTAKE detect

[[alert]]
name   = "too-warm"
from   = "per_minuet" # MISTAKE per_minute
fire   = "n > 3"
notify = ["opps"] # MISTAKE opps

[[table]]
from = "nowhere" # MISTAKE nowhere
"#;

#[test]
fn all_mistakes_are_named_with_their_lines() {
    let home = Home::with("");
    let file = home.write("bad.toml", MANY);
    let output = tidegate().arg("check").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let mut missing = Vec::new();
    for (i, line) in MANY.lines().enumerate() {
        let Some((_, word)) = line.split_once("# MISTAKE ") else { continue };
        let place = format!("bad.toml:{}", i + 1);
        let at = said.lines().position(|l| {
            l.split_once(&place)
                .is_some_and(|(_, rest)| !rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        let shown = said.contains(line.split(" #").next().expect("before the comment").trim_end());
        if at.is_none() || !said.contains(word) || !shown {
            missing.push(format!("{place} ({word})"));
        }
    }
    assert!(missing.is_empty(), "not named: {missing:?}\n--- check said ---\n{said}");
}

#[test]
fn a_good_file_passes_and_is_explained() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let output = tidegate().arg("check").arg(home.pipelines()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = tidegate().arg("explain").arg(home.pipelines()).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("per_minute") && text.contains("too-warm"), "{text}");
    let dot = tidegate().arg("explain").arg("--dot").arg(home.pipelines()).output().unwrap();
    let dot = String::from_utf8(dot.stdout).unwrap();
    assert!(dot.trim_start().starts_with("digraph") && dot.trim_end().ends_with('}'), "{dot}");
}

#[test]
fn a_bad_configuration_does_not_run_and_wrong_use_is_exit_code_2() {
    let home = Home::with("");
    let file = home.write("bad.toml", MANY);
    let output = tidegate().arg("run").arg(file).arg("--data").arg(home.data()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(tidegate().arg("--no-such-option").output().unwrap().status.code(), Some(2));
    let alone = tidegate().output().unwrap();
    let said = String::from_utf8_lossy(&alone.stdout) + String::from_utf8_lossy(&alone.stderr);
    assert!(said.contains("tidegate demo"), "{said}");
}

#[test]
fn the_schema_for_editors_is_json() {
    let output = tidegate().arg("schema").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["source"].is_object(), "{schema}");
    let docs = String::from_utf8(tidegate().arg("docs").output().unwrap().stdout).unwrap();
    for key in ["idle_close", "future_bound", "on_invalid", "max_age"] {
        assert!(docs.contains(key), "the reference leaves out {key}");
    }
}
