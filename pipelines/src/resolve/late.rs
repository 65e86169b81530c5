//! Windows that are kept, but on which late readings will have no effect: one warning says which
//! tables are missing. (What nothing can be done about is said by `explain`.)

use tidegate_operators::spec::{LatePolicy, PipelineSpec, StepKind, StepSpec, WindowSpec};

use super::early::is_of;
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::graph::READINGS;
use crate::recompute::{OFFSET, has_places, readings_before, stored_as};

/// What it takes for late windows of a pipeline to be computed again.
#[derive(Default)]
struct Missing<'p> {
    /// The window steps.
    steps: Vec<&'p str>,
    /// The edges of which there has to be a table.
    tables: Vec<&'p str>,
    /// A column was left out that says where in the journal a reading was.
    places: bool,
}

impl<'p> Missing<'p> {
    fn add(&mut self, p: &'p PipelineSpec, step: &'p StepSpec, window: &WindowSpec) {
        if !matches!(window.late, LatePolicy::Revise { .. }) || !is_kept(p, &step.name) {
            return;
        }
        let mut tables = Vec::new();
        let is_stored = stored_as(p, &step.from).is_some();
        if !is_stored {
            let edge = readings_before(p, &step.from);
            let maker = p.steps.iter().find(|step| step.makes(edge));
            if edge != READINGS && maker.is_none_or(|s| s.output.index_of(OFFSET).is_err()) {
                return;
            }
            tables.push(edge);
        }
        if !p.tables.iter().any(|table| is_of(&table.from, &step.name)) {
            tables.push(&step.name);
        }
        let places = is_stored && !has_places(window);
        if places || !tables.is_empty() {
            self.steps.push(&step.name);
            self.places |= places;
            tables.retain(|edge| !self.tables.contains(edge));
            self.tables.extend(tables);
        }
    }

    fn hint(&self) -> String {
        let mut wanted: Vec<String> =
            self.tables.iter().map(|edge| format!("[[table]] from = \"{edge}\"")).collect();
        if self.places {
            wanted.push(format!("`{OFFSET}` in what a `select` before them keeps"));
        }
        let wanted = wanted.join(" and ");
        format!("with {wanted} they are computed again; `late = \"table\"` says that they need not")
    }
}

/// Whether a table has the rows of a step, or what is made of them.
fn is_kept(p: &PipelineSpec, step: &str) -> bool {
    p.tables.iter().any(|table| is_made_of(p, &table.from, step))
}

/// Whether the rows of an edge are those of a step, or are made of them.
pub(crate) fn is_made_of(p: &PipelineSpec, edge: &str, step: &str) -> bool {
    let Some(made) = p.steps.iter().find(|made| made.makes(edge)) else { return false };
    let with = match &made.kind {
        StepKind::Join(join) => is_made_of(p, &join.with, step),
        _ => false,
    };
    made.name == step || with || is_made_of(p, &made.from, step)
}

/// Warns once of all windows of a pipeline that late readings will have no effect on.
pub(crate) fn warn(file: &Section<'_>, p: &PipelineSpec, report: &mut Reporter<'_>) {
    let mut missing = Missing::default();
    for step in &p.steps {
        if let StepKind::Window(window) = &step.kind {
            missing.add(p, step, window);
        }
    }
    let Some(first) = missing.steps.first() else { return };
    let sections = file.sections("step");
    let section = sections.iter().find(|step| step.text("name") == Some(first));
    let names: Vec<String> = missing.steps.iter().map(|name| format!("`{name}`")).collect();
    let message = format!(
        "readings that come too late to revise windows of {} have no effect on them",
        names.join(", ")
    );
    report.warning(section.map_or(file.at, |s| s.at("name")), message, missing.hint());
}

#[cfg(test)]
mod tests {
    use crate::testing::{HEAD, plan};

    /// What is said of these steps and tables, after the beginning of a pipeline.
    fn warned(steps: &[&str], tables: &[&str]) -> Vec<String> {
        let mut text = HEAD.to_owned();
        text.extend(steps.iter().map(|step| format!("[[step]]\n{step}\n")));
        text.extend(tables.iter().map(|from| format!("[[table]]\nfrom = '{from}'\n")));
        let plan = plan(text).unwrap_or_else(|why| panic!("{why}"));
        let about_late = |w: &&crate::config::Problem| w.message.contains("too late to revise");
        plan.warnings.iter().filter(about_late).map(ToString::to_string).collect()
    }

    const ONE: &str = "name = 'one'\ntype = 'window'\nevery = '1m'\nselect = { n = 'count(*)' }";
    const TWO: &str = "name = 'two'\ntype = 'window'\nfrom = 'high'\ngap = '1m'\n\
                       select = { n = 'count(*)' }";
    const HIGH: &str = "name = 'high'\ntype = 'filter'\nfrom = 'readings'\nwhere = 'v > 1'";
    const SOME: &str = "name = 'some'\ntype = 'filter'\nfrom = 'one'\nwhere = 'n > 1'";
    const CUT: &str = "name = 'high'\ntype = 'select'\nfrom = 'readings'\ncolumns = { v = 'v' }";
    const LATEST: &str = "name = 'high'\ntype = 'latest'\nfrom = 'readings'\n\
                          select = { v = 'v' }";

    #[test]
    fn windows_that_late_readings_will_have_no_effect_on_are_told_once() {
        let of_readings = "with [[table]] from = \"readings\" they are";
        let one = warned(&[ONE], &["one"]);
        assert_eq!(one.len(), 1);
        assert!(
            one[0].contains("windows of `one` have") && one[0].contains(of_readings),
            "{one:?}"
        );
        let both = warned(&[ONE, HIGH, TWO], &["one", "two"]);
        assert_eq!(both.len(), 1);
        assert!(both[0].contains("`one`, `two`") && both[0].contains(of_readings), "{both:?}");
        // Only what is made of them is kept.
        let made = warned(&[ONE, SOME], &["some"]);
        let wanted = "[[table]] from = \"readings\" and [[table]] from = \"one\"";
        assert!(made.len() == 1 && made[0].contains(wanted), "{made:?}");
        let made = warned(&[ONE, SOME], &["some", "readings"]);
        assert!(made.len() == 1 && made[0].contains("with [[table]] from = \"one\" they"));
        let places = warned(&[CUT, TWO], &["two", "readings"]);
        assert!(places.len() == 1 && places[0].contains("`journal_offset` in what"), "{places:?}");
    }

    #[test]
    fn nothing_is_told_where_nothing_is_missing_or_nothing_would_help() {
        let none = Vec::<String>::new();
        assert_eq!(warned(&[ONE], &["one", "readings"]), none);
        assert_eq!(warned(&[ONE, HIGH, TWO], &["one", "two", "readings"]), none);
        assert_eq!(warned(&[HIGH, TWO], &["two", "high"]), none);
        // It is meant so, or no table has anything of it.
        assert_eq!(warned(&[&format!("{ONE}\nlate = 'table'")], &["one"]), none);
        assert_eq!(warned(&[ONE], &["readings"]), none);
        assert_eq!(warned(&[LATEST, TWO], &["two", "readings"]), none, "of no journal");
    }
}
