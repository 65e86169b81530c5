//! What hangs on a mistake: the steps, alerts and tables that were not looked at because the rows
//! that they read are not known. One mistake is one error, and that says what it keeps from view.

use crate::config::problem::{At, Reporter};
use crate::config::section::Section;

use super::steps::{inputs, outputs};

/// Names that are listed.
const LISTED_MAX: usize = 8;

/// Edges that are not known because of a mistake.
pub(crate) struct Root {
    /// Their names.
    pub(super) edges: Vec<String>,
    /// Where the mistake was reported.
    pub(super) at: At,
}

/// Adds to each mistake what hangs on it.
pub(super) fn note(file: &Section<'_>, roots: &[Root], report: &mut Reporter<'_>) {
    for root in roots {
        let hanging = hanging(file, &root.edges);
        if hanging.is_empty() {
            continue;
        }
        let mut text = hanging.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
        if let more @ 1.. = hanging.len().saturating_sub(LISTED_MAX) {
            text += &format!(" and {more} more");
        }
        report.note(root.at, format!("not looked at because of it: {text}"));
    }
}

fn hanging(file: &Section<'_>, edges: &[String]) -> Vec<String> {
    let mut unknown: Vec<&str> = edges.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    let mut steps = file.sections("step");
    loop {
        let is_in = |step: &Section<'_>| inputs(step).any(|(_, from)| unknown.contains(&from));
        let (behind, others): (Vec<_>, Vec<_>) = steps.into_iter().partition(is_in);
        if behind.is_empty() {
            break;
        }
        for step in behind {
            let names = outputs(&step);
            // It was looked at: it is the one with the mistake.
            if !names.iter().all(|name| edges.iter().any(|edge| edge == name)) {
                found.extend(step.text("name").map(|name| format!("step `{name}`")));
            }
            unknown.extend(names);
        }
        steps = others;
    }
    for (key, name) in [("alert", "name"), ("table", "from")] {
        for section in file.sections(key) {
            if section.text("from").is_some_and(|from| unknown.contains(&from)) {
                found.extend(section.text(name).map(|name| format!("{key} `{name}`")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::testing::{HEAD, problems};

    const STEPS: &str = r#"
[[step]]
name = "hot"
type = "derive"
set = { f = "v * 1.8 + 32" }
[[step]]
name = "minutes"
type = "window"
from = "hot"
every = "1m"
by = ["device"]
select = { f_max = "max(f)", who = "device" }
[[step]]
name = "high"
type = "filter"
from = "minutes"
where = "f_max > 100"
[[alert]]
name = "too-hot"
from = "high"
fire = "f_max > 120"
summary = "{device}: {f_max}"
notify = ["ops"]
[[table]]
from = "minutes"
[notify.ops]
type = "webhook"
url = "https://hooks.example/"
"#;

    /// Lines, messages and notes.
    fn said(from: &str, to: &str) -> Vec<(String, String, String)> {
        let text = format!("{HEAD}{STEPS}").replacen(from, to, 1);
        let problems = problems(&text).into_iter();
        problems.map(|p| (p.source_line, p.message, p.note.unwrap_or_default())).collect()
    }

    #[test]
    fn one_mistake_is_one_error_that_says_what_hangs_on_it() {
        let all = "not looked at because of it: step `minutes`, step `high`, alert `too-hot`, \
                   table `minutes`";
        let behind_minutes =
            "not looked at because of it: step `high`, alert `too-hot`, table `minutes`";
        for (from, to, message, note) in [
            ("v * 1.8", "w * 1.8", "there is no column `w`", all),
            ("\"derive\"", "\"drive\"", "unknown type `drive` in [[step]]", all),
            ("max(f)", "max(g)", "there is no column `g`", behind_minutes),
            ("\"1m\"", "\"1 minuet\"", "`minuet` is not a unit of time", behind_minutes),
            ("[\"device\"]", "[\"devise\"]", "there is no column `devise` here", behind_minutes),
            ("from = \"hot\"", "from = \"hott\"", "there is no edge `hott`", behind_minutes),
            (
                "f_max > 100",
                "f_mx > 100",
                "there is no column `f_mx`",
                "not looked at because of it: alert `too-hot`",
            ),
            ("from = \"high\"", "from = \"hihg\"", "there is no edge `hihg`", ""),
            ("[\"ops\"]", "[\"opps\"]", "there is no [notify.opps]", ""),
        ] {
            let said = said(from, to);
            assert_eq!(said.len(), 1, "{to}: {said:?}");
            assert!(said[0].1.contains(message) && said[0].0.contains(to), "{to}: {said:?}");
            assert_eq!(said[0].2, note, "{to}");
        }
        // Two errors in one step are two mistakes, and the first says what hangs on both.
        let two = said("\"max(f)\", who = \"device\"", "\"max(g)\", who = \"h\"");
        let notes: Vec<&str> = two.iter().map(|(_, _, note)| note.as_str()).collect();
        assert_eq!(notes, [behind_minutes, ""], "{two:?}");
    }

    #[test]
    fn a_name_that_cannot_be_is_no_missing_edge() {
        let late = said("name = \"hot\"", "name = \"late\"");
        let messages: Vec<&str> = late.iter().map(|s| s.1.as_str()).collect();
        assert_eq!(
            messages,
            [
                "`late` is a name that Tidegate uses itself",
                "nothing reads `late`",
                "there is no edge `hot`"
            ]
        );
        let nameless = said("name = \"hot\"\n", "nam = \"hot\"\n");
        let messages: Vec<&str> = nameless.iter().map(|s| s.1.as_str()).collect();
        assert!(messages.iter().all(|m| !m.contains("no edge")), "{messages:?}");
    }

    #[test]
    fn the_levels_of_a_topic_that_cannot_be_read_are_not_missing() {
        let found = said("t/{device}", "t/{device/{site}");
        assert_eq!(found.len(), 1, "{found:?}");
        let by = format!("{HEAD}{STEPS}").replace("[\"device\"]", "[\"device\", \"site\"]");
        let broken = by.replace("t/{device}", "t/{site/{device}");
        let found = problems(&broken);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.starts_with("`{site`"), "{found:?}");
    }
}
