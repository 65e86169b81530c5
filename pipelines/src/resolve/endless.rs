//! Alerts that nothing ends: their rule holds for every row, and so it does for the next one.

use datafusion::common::ScalarValue;
use datafusion::physical_expr::expressions::Literal;
use tidegate_operators::spec::Expr;

use crate::config::problem::Reporter;
use crate::config::section::Section;

use super::edges::Edge;
use super::steps::outputs;
use super::{absence, sequence};

/// Warns of an alert that fires with every row and is resolved by none.
pub(super) fn warn(
    (file, alert): (&Section<'_>, &Section<'_>),
    edge: &Edge,
    (fire, clear): (&Expr, &Expr),
    report: &mut Reporter<'_>,
) {
    let is = |expr: &Expr, wanted: bool| {
        let constant = expr.downcast_ref::<Literal>().map(Literal::value);
        constant == Some(&ScalarValue::Boolean(Some(wanted)))
    };
    if !is(fire, true) || !is(clear, false) {
        return;
    }
    let from = alert.text("from").unwrap_or_default();
    let steps = file.sections("step");
    let step = steps.iter().find(|step| outputs(step).contains(&from));
    let hint = match step.and_then(|step| Some((step.component.tag?, step))) {
        Some(("absence", _)) => "write fire = \"status = 'silent'\"".to_owned(),
        Some(("sequence", _)) => "write fire = \"active\"".to_owned(),
        // What does not pass any more when it is over is taken back, and the alert with it.
        _ if absence::is_of(&edge.schema) || sequence::is_of(&edge.schema) => return,
        Some(("filter", step)) => instead(step, step.text("where")),
        Some(("route", step)) => {
            let branch = step.entries("branches").iter().find(|branch| branch.key == from);
            instead(step, branch.and_then(|branch| branch.node.text()))
        }
        _ => "say in `fire` what is bad, or in `clear` what is good".to_owned(),
    };
    let message = "this alert is never resolved: `fire` is true of every row, and no row clears it";
    report.warning(alert.at("fire"), message, hint);
}

/// What an alert says that does without the step before it.
fn instead(step: &Section<'_>, condition: Option<&str>) -> String {
    let (from, condition) = (step.text("from").unwrap_or_default(), condition.unwrap_or_default());
    format!(
        "rows that are good must reach it, so put the condition into the alert: from = {from:?}, \
         fire = {condition:?}"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::testing::{HEAD, plan};

    const REST: &str = r#"
[[step]]
name = "minutes"
type = "window"
every = "1m"
select = { v_max = "max(v)", n = "count(*)" }
[[step]]
name = "high"
type = "filter"
from = "minutes"
where = "v_max > 8"
[[step]]
name = "kinds"
type = "route"
from = "minutes"
branches = { many = "n > 5", few = "true" }
[[step]]
name = "silent"
type = "absence"
every = "1m"
[[step]]
name = "opened"
type = "sequence"
from = "readings"
within = "5m"
first = "v > 8"
without = "v < 2"
[[step]]
name = "gone"
type = "filter"
from = "silent"
where = "status = 'silent'"
[[table]]
from = "few"
"#;

    /// Line and hint of what is said of an alert.
    fn said(alert: &str) -> Option<(String, String)> {
        let text = format!("{HEAD}{REST}[[alert]]\nname = \"a\"\n{alert}\n");
        let warnings = plan(text).unwrap().warnings;
        let mut found = warnings.into_iter().filter(|w| w.message.contains("never resolved"));
        let first = found.next().map(|w| (w.source_line, w.hint.unwrap_or_default()));
        assert!(found.next().is_none(), "it is said once");
        first
    }

    #[test]
    fn a_rule_that_always_holds_is_told_with_what_to_write_instead() {
        for (from, hint) in [
            ("high", "from = \"minutes\", fire = \"v_max > 8\""),
            ("many", "from = \"minutes\", fire = \"n > 5\""),
            ("minutes", "say in `fire` what is bad"),
            ("silent", "fire = \"status = 'silent'\""),
            ("opened", "fire = \"active\""),
        ] {
            let (line, said) = said(&format!("from = \"{from}\"\nfire = \"true\"")).unwrap();
            assert_eq!(line, "fire = \"true\"");
            assert!(said.contains(hint), "{said}");
        }
        for always in ["1 = 1", "NOT false", "v_max > 8 OR true"] {
            let alert = format!("from = \"high\"\nfire = \"{always}\"");
            assert!(said(&alert).is_some(), "{always}");
        }
        let never = "from = \"high\"\nfire = \"true\"\nclear = \"1 = 2\"";
        assert!(said(never).is_some());
    }

    #[test]
    fn a_rule_that_something_ends_is_not_told() {
        for alert in [
            "from = \"minutes\"\nfire = \"true\"\nclear = \"v_max < 7\"",
            "from = \"minutes\"\nfire = \"v_max > 8\"",
            "from = \"high\"\nfire = \"v_max > 20\"",
            // What is over is taken back.
            "from = \"gone\"\nfire = \"true\"",
        ] {
            assert_eq!(said(alert), None, "{alert}");
        }
    }
}
