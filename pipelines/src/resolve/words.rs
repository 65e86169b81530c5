//! Columns that have one of a few texts and no other, compared with a text that is none of them: a
//! condition that is never true, or always.

use std::ops::Range;

use datafusion::physical_expr::expressions::Column;
use tidegate_operators::absence::Status;
use tidegate_operators::alert::STATUSES;
use tidegate_operators::spec::{PipelineSpec, StepKind};

use crate::config::kinds::Kind;
use crate::config::problem::{At, Reporter, hint_of};
use crate::config::section::Section;
use crate::config::tree::Node;
use crate::graph::{ALERTS, READINGS};
use crate::planner::compared;

/// What a column can be.
enum Words<'p> {
    /// What Tidegate itself says: any other word is misspelt.
    Own(Vec<&'static str>),
    /// What readings are allowed to say.
    Declared(&'p [String]),
}

/// Looks through the expressions of steps and alerts, and what tests expect.
pub(super) fn check(file: &Section<'_>, p: &PipelineSpec, report: &mut Reporter<'_>) {
    for section in ["step", "alert"].iter().flat_map(|key| file.sections(key)) {
        let Some(from) = section.text("from") else { continue };
        for (text, at) in expressions(&section) {
            for (column, word) in compared(text) {
                let Some(words) = words(p, from, &column) else { continue };
                let literal = format!("'{}'", word.replace('\'', "''"));
                let place = text.find(&literal).map(|i| i..i + literal.len());
                unknown(
                    &words,
                    (column.as_str(), word.as_str()),
                    within((at, text), place, report),
                    report,
                );
            }
        }
    }
    let rules = file.sections("alert");
    let rules: Vec<&str> = rules.iter().filter_map(|alert| alert.text("name")).collect();
    for test in file.sections("test") {
        for edge in test.entries("expect") {
            for cell in edge.node.list().iter().filter_map(Node::table).flat_map(|r| &r.entries) {
                let Some(word) = cell.node.text() else { continue };
                let known = match (edge.key.as_str(), cell.key.as_str()) {
                    (ALERTS, "status") => Some(Words::Own(STATUSES.to_vec())),
                    (ALERTS, "rule") => {
                        if !rules.contains(&word) {
                            let hint = hint_of(word, rules.clone());
                            report.error(cell.node.at, format!("there is no alert `{word}`"), hint);
                        }
                        None
                    }
                    (edge, column) => words(p, edge, column),
                };
                if let Some(known) = known {
                    unknown(&known, (cell.key.as_str(), word), cell.node.at, report);
                }
            }
        }
    }
}

/// The SQL expressions of a step or alert, each with where it is written.
pub(super) fn expressions<'t>(section: &Section<'t>) -> Vec<(&'t str, At)> {
    let mut found = Vec::new();
    for key in section.component.keys {
        match key.kind {
            Kind::Sql => found.extend(section.entry(key.name).map(|entry| &entry.node)),
            Kind::SqlMap => found.extend(section.entries(key.name).iter().map(|e| &e.node)),
            _ => {}
        }
    }
    found.into_iter().filter_map(|node| Some((node.text()?, node.at))).collect()
}

/// Where a part of an expression is written; all of it where that is not known.
pub(super) fn within(
    (at, text): (At, &str),
    place: Option<Range<usize>>,
    report: &Reporter<'_>,
) -> At {
    place.map_or(at, |place| report.within(at, text, place))
}

fn unknown(words: &Words<'_>, (column, word): (&str, &str), at: At, report: &mut Reporter<'_>) {
    let known: Vec<&str> = match words {
        Words::Own(words) => words.clone(),
        Words::Declared(words) => words.iter().map(String::as_str).collect(),
    };
    if known.contains(&word) {
        return;
    }
    let (message, hint) = (format!("`{column}` is never '{word}' here"), hint_of(word, known));
    match words {
        Words::Own(_) => report.error(at, message, hint),
        Words::Declared(_) => report.warning(at, message, hint),
    }
}

/// What a column of an edge can be, if that is known.
fn words<'p>(p: &'p PipelineSpec, edge: &str, column: &str) -> Option<Words<'p>> {
    if edge == READINGS {
        let declared = p.decode.columns.iter().find(|c| c.name == column)?;
        return declared.rules.one_of.as_deref().map(Words::Declared);
    }
    let step = p.steps.iter().find(|step| step.makes(edge))?;
    match &step.kind {
        StepKind::Absence(_) => (column == "status").then(|| {
            let all = Status::ALL.iter().map(|status| status.text());
            Words::Own(all.collect())
        }),
        StepKind::Filter(_) | StepKind::Route(_) => words(p, &step.from, column),
        StepKind::Enrich(enrich) => {
            enrich.input.index_of(column).ok()?;
            words(p, &step.from, column)
        }
        StepKind::Project(columns) => {
            let (_, made) = columns.iter().find(|(name, _)| name == column)?;
            words(p, &step.from, made.downcast_ref::<Column>()?.name())
        }
        StepKind::Join(join) => match join.columns.iter().find(|(_, name)| name == column) {
            Some((place, _)) => words(p, &join.with, join.right.field(*place).name()),
            None => words(p, &step.from, column),
        },
        StepKind::Window(_) | StepKind::Detect(_) | StepKind::Latest(_) | StepKind::Sequence(_) => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::testing::{HEAD, problems};

    const STEPS: &str = r#"
[[step]]
name = "gone"
type = "absence"
every = "1m"
[[step]]
name = "told"
type = "derive"
from = "gone"
set = { what = "status", status = "upper(status)" }
[[alert]]
name = "silent"
from = "gone"
fire = "status IN ('silent', 'slient')"
clear = "status = 'back' or status = 'widthdrawn'"
[[alert]]
name = "renamed"
from = "told"
fire = "status = 'SILENT' AND what = 'silence'"
[[test]]
name = "t"
input = [{ topic = "t/a", payload = "{}" }]
expect.alerts = [{ rule = "silnet", status = "fired" }, { rule = "silent", status = "resolved" }]
expect.gone = [{ status = "ended" }, { status = "inhibited" }]
"#;

    #[test]
    fn words_that_a_status_never_is_are_refused() {
        let text = format!("{HEAD}{STEPS}");
        let found = problems(&text);
        let said: Vec<(String, Option<&str>)> = found
            .iter()
            .map(|p| (p.message.clone(), p.hint.as_deref()))
            .filter(|(message, _)| message.contains("never") || message.contains("no alert"))
            .collect();
        let never = |word: &str| format!("`status` is never '{word}' here");
        let all = "there is `silent`, `inhibited`, `back`, `forgotten`, `withdrawn`";
        assert_eq!(
            said,
            [
                (never("slient"), Some("did you mean `silent`?")),
                (never("widthdrawn"), Some("did you mean `withdrawn`?")),
                ("`what` is never 'silence' here".into(), Some("did you mean `silent`?")),
                ("there is no alert `silnet`".into(), Some("did you mean `silent`?")),
                (never("fired"), Some("did you mean `firing`?")),
                (never("ended"), Some(all)),
            ]
        );
        // The caret stands below the word.
        let slient = &found.iter().find(|p| p.message.contains("slient")).unwrap();
        assert_eq!((slient.column, slient.width), (30, 8));
        assert!(slient.source_line.starts_with("fire ="));
    }

    #[test]
    fn what_a_summary_cannot_be_filled_with_is_refused_at_its_place() {
        let text = format!(
            "{HEAD}[[alert]]\nname = \"a\"\nfrom = \"readings\"\nfire = \"v > 1\"\n\
             summary = \"\"\"\n{{{{in}}}} {{device}}\nhas {{ v }} of {{v:.1}}}}\"\"\"\n"
        );
        let found = problems(&text);
        let said: Vec<(usize, usize, usize, &str)> =
            found.iter().map(|p| (p.column, p.width, p.line, p.message.as_str())).collect();
        let line = text.lines().position(|l| l.starts_with("has")).unwrap() + 1;
        assert_eq!(
            said,
            [
                (5, 5, line, "there is no column ` v ` here"),
                (14, 6, line, "there is no column `v:.1` here"),
                (20, 1, line, "this `}` was not opened"),
            ]
        );
    }

    #[test]
    fn what_readings_may_not_say_is_a_warning() {
        let head = HEAD.replace("v = \"float64\"", "k = { type = \"string\", one_of = [\"on\"] }");
        assert_ne!(head, HEAD);
        let text = format!(
            "{head}[[step]]\nname = \"f\"\ntype = \"filter\"\nwhere = \"k = 'off' OR k = 'on'\"\n\
             [[table]]\nfrom = \"f\"\n"
        );
        let files = [("p.toml".into(), text)];
        let plan = crate::load(&files, &|_, _| Err("none".into())).unwrap();
        let said: Vec<&str> = plan.warnings.iter().map(|w| w.message.as_str()).collect();
        assert_eq!(said, ["`k` is never 'off' here"]);
    }
}
