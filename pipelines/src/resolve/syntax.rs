//! Expressions over rows that are not known, because of a mistake before them: whether they are
//! expressions at all can be said all the same, so that it is not the next thing to be found.

use crate::config::kinds::Kind;
use crate::config::problem::{At, Reporter};
use crate::config::section::Section;
use crate::planner::{PlanProblem, columns_read};

use super::edges::Edges;
use super::steps::inputs;

/// Looks at the expressions of steps and alerts that read an edge which is not known.
pub(super) fn check(file: &Section<'_>, edges: &Edges, report: &mut Reporter<'_>) {
    let unknown = |from: &str| edges.peek(from).is_none();
    let mut sections = file.sections("step");
    sections.retain(|step| inputs(step).any(|(_, from)| unknown(from)));
    let alerts = file.sections("alert").into_iter();
    sections.extend(alerts.filter(|alert| alert.text("from").is_none_or(unknown)));
    for section in sections {
        for key in section.component.keys {
            match key.kind {
                Kind::Sql => one(section.text(key.name), section.at(key.name), report),
                Kind::SqlMap => {
                    let entries = section.entries(key.name).iter();
                    entries.for_each(|e| one(e.node.text(), e.node.at, report));
                }
                _ => {}
            }
        }
    }
}

fn one(text: Option<&str>, at: At, report: &mut Reporter<'_>) {
    // Empty ones were reported when the file was checked.
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return };
    if let Err(PlanProblem { message, hint }) = columns_read(text) {
        report.error(at, message, hint);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{HEAD, problems};

    const REST: &str = r#"
[[step]]
name = "minutes"
type = "window"
from = "hot"
every = "1m"
select = { v_max = "max(v)", n = "count(*)" }
[[step]]
name = "kinds"
type = "route"
from = "minutes"
branches = { high = "v_max > 8", low = "true" }
[[alert]]
name = "too-hot"
from = "hihg"
fire = "v_max > 8"
clear = "v_max < 7"
[[table]]
from = "high"
"#;

    fn said(changes: &[(&str, &str)]) -> Vec<String> {
        let mut text = format!("{HEAD}{REST}");
        for (from, to) in changes {
            text = text.replacen(from, to, 1);
        }
        problems(&text).into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn what_is_no_expression_is_told_whatever_it_is_about() {
        let edges = ["there is no edge `hot`", "there is no edge `hihg`"];
        assert_eq!(said(&[]), edges, "nothing that follows from it");
        assert_eq!(said(&[("v_max > 8\"\nclear", "v_mux > 8\"\nclear")]), edges);
        for (from, to) in [
            ("max(v)", "max(v"),
            ("\"v_max > 8\", low", "\"v_max >\", low"),
            ("fire = \"v_max > 8\"", "fire = \"v_max >> > 8\""),
            ("v_max < 7", "v_max < 7 AND"),
        ] {
            let said = said(&[(from, to)]);
            let others: Vec<&String> = said.iter().filter(|m| !edges.contains(&&***m)).collect();
            assert!(said.len() == 3 && others[0].starts_with("not a SQL expression"), "{said:?}");
        }
        let missing = said(&[("from = \"hihg\"\n", ""), ("v_max < 7", "v_max <")]);
        assert!(missing.iter().any(|m| m.starts_with("not a SQL expression")), "{missing:?}");
        // Each is looked at once, with its columns where they are known.
        let known = said(&[("from = \"hot\"\n", ""), ("v_max > 8\"\nclear", "v_max >\"\nclear")]);
        assert_eq!(known.len(), 2, "{known:?}");
    }
}
