//! Lists and groups of values in the rows of an edge: steps without state pass them on, alerts and
//! tables take them, but a step that keeps whole rows or values has no bound for them.

use arrow::datatypes::{Field, SchemaRef};
use tidegate_operators::spec::{Expr, StepKind};

use crate::config::problem::Reporter;
use crate::config::section::Section;

/// Reports if a step would keep lists or groups of values; then nothing is left.
pub(super) fn not_kept(
    step: &Section<'_>,
    kind: &StepKind,
    report: &mut Reporter<'_>,
) -> Option<()> {
    let Some((key, column)) = kept(kind) else { return Some(()) };
    let tag = step.component.tag.unwrap_or_default();
    let message = format!("`{tag}` would keep `{column}`, a list or a group of values");
    let hint = format!(
        "how long it is has no bound: leave it out in a step of type \"select\" before, or keep \
         a part of it, such as {column}[1]"
    );
    report.error(step.at(key), message, hint);
    None
}

/// The first column with parts that a step keeps, and the key of the step that says so.
fn kept(kind: &StepKind) -> Option<(&'static str, String)> {
    let column = |key, schema: &SchemaRef| named(schema.fields().iter().map(AsRef::as_ref), key);
    match kind {
        // What a window keeps of its readings is looked at where its aggregates are planned.
        StepKind::Filter(_)
        | StepKind::Project(_)
        | StepKind::Route(_)
        | StepKind::Window(_)
        | StepKind::Detect(_) => None,
        StepKind::Latest(l) => named(l.select.iter().map(|(field, _)| field.as_ref()), "select"),
        StepKind::Absence(a) => made(&a.select, &a.input, "select"),
        StepKind::Sequence(s) => made(&s.select_first, &s.input, "select_first")
            .or_else(|| made(&s.select, &s.input, "select")),
        StepKind::Join(j) => column("from", &j.left)
            .or_else(|| named(j.columns.iter().map(|(c, _)| j.right.field(*c)), "with")),
        StepKind::Enrich(e) => e.revise.as_ref().and_then(|_| column("from", &e.input)),
    }
}

fn named<'f>(
    mut fields: impl Iterator<Item = &'f Field>,
    key: &'static str,
) -> Option<(&'static str, String)> {
    let field = fields.find(|f| f.data_type().is_nested())?;
    Some((key, field.name().clone()))
}

fn made(
    columns: &[(String, Expr)],
    input: &SchemaRef,
    key: &'static str,
) -> Option<(&'static str, String)> {
    let is_nested = |e: &Expr| e.data_type(input).is_ok_and(|t| t.is_nested());
    let (name, _) = columns.iter().find(|(_, e)| is_nested(e))?;
    Some((key, name.clone()))
}

#[cfg(test)]
mod tests {
    use crate::plan::Plan;
    use crate::testing::{self, HEAD};

    const WINDOW: &str = "[[step]]\nname = \"w\"\ntype = \"window\"\nevery = \"1m\"\n\
        late = \"table\"\nselect = { h = \"buckets(v, 1, 2)\", n = \"count(v)\" }\n";

    fn plan(steps: &str) -> Result<Plan, String> {
        testing::plan(format!("{HEAD}{WINDOW}{steps}"))
    }

    fn step(kind: &str, more: &str) -> String {
        format!(
            "[[step]]\nname = \"s\"\ntype = \"{kind}\"\nfrom = \"w\"\n{more}\n\
             [[table]]\nfrom = \"s\"\n"
        )
    }

    #[test]
    fn steps_without_state_pass_lists_on_and_others_say_why_not() {
        for good in [
            step("filter", "where = \"h[1]['count'] > 2\""),
            step("derive", "set = { first = \"h[1]\", both = \"make_array(n, n)\" }"),
            step("select", "columns = { h = \"h\" }"),
            step("route", "branches = { some = \"n > 1\" }")
                .replace("from = \"s\"", "from = \"some\""),
            step("latest", "select = { low = \"h[1]['count']\" }"),
            step(
                "window",
                "every = \"1h\"\nselect = { n = \"count(h)\", m = \"max(h[1]['count'])\" }",
            ),
        ] {
            assert!(plan(&good).is_ok(), "{good}\n{:?}", plan(&good).err());
        }
        let join = step("join", "with = \"w\"\nwithin = \"1m\"");
        for (bad, part) in [
            (step("latest", "select = { h = \"h\" }"), "`latest` would keep `h`, a list"),
            (join, "`join` would keep `h`, a list"),
            (
                step("window", "every = \"1h\"\nselect = { m = \"max(h)\" }"),
                "`max` cannot be of lists",
            ),
            (
                step("window", "every = \"1h\"\nby = [\"h\"]\nselect = { n = \"count(*)\" }"),
                "part of a key",
            ),
            (step("filter", "where = \"h\""), "must be true or false, but is a list"),
        ] {
            let said = plan(&bad).expect_err(&bad);
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn lists_that_are_longer_than_a_row_can_have_are_refused() {
        let with = |every: &str, interval: &str| {
            plan(&step(
                "window",
                &format!("{every}\nselect = {{ p = \"resample(n, INTERVAL '{interval}')\" }}"),
            ))
        };
        assert!(with("every = \"5h\"", "1 second").is_ok());
        let said = with("every = \"day\"\nzone = \"UTC\"", "1 second").expect_err("86,400 points");
        assert!(said.contains("points in a window") && said.contains("at most 20,000"), "{said}");
        assert!(with("gap = \"5m\"\nmax = \"1h\"", "100 milliseconds").is_err());
        assert!(with("count = 10", "1 second").is_ok());
    }
}
