//! On which edges rows say that windows are none: what came of these before is taken back.

use tidegate_operators::spec::{LatePolicy, Partners, StepKind, StepSpec};

/// The column with the number of readings, if a row without one on this edge says that its window
/// is none.
pub(crate) fn column(steps: &[StepSpec], edge: &str) -> Option<usize> {
    let step = steps.iter().find(|step| step.makes(edge))?;
    let is_there = match &step.kind {
        StepKind::Window(window) => {
            let comes_again =
                matches!(window.late, LatePolicy::Revise { .. }) || window.early_us.is_some();
            comes_again && window.shape.withdraws()
        }
        StepKind::Absence(_) | StepKind::Sequence(_) => true,
        StepKind::Join(join) => {
            matches!(&join.partners, Partners::Window { takes_back: Some(_), .. })
        }
        StepKind::Filter(filter) => {
            filter.takes_back.is_some() || column(steps, &step.from).is_some()
        }
        StepKind::Route(route) => route.takes_back.is_some(),
        StepKind::Project(_) | StepKind::Enrich(_) => column(steps, &step.from).is_some(),
        StepKind::Detect(_) | StepKind::Latest(_) => false,
    };
    is_there.then(|| step.output.index_of("rows").ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_operators::spec::{Partners, StepKind};

    use crate::Plan;
    use crate::testing::{self, HEAD};

    const STEPS: &str = r#"
[[registry]]
name = "places"
path = "places.csv"
key = ["device"]
columns = { device = "string", site = "string" }
[[step]]
name = "w"
type = "window"
every = "1m"
select = { total = "sum(v)", n = "count(*)" }
[[step]]
name = "large"
type = "filter"
from = "w"
where = "total > 3"
[[step]]
name = "larger"
type = "filter"
from = "large"
where = "total > 5"
[[step]]
name = "sizes"
type = "route"
from = "larger"
branches = { few = "n < 3", many = "true" }
[[step]]
name = "twice"
type = "derive"
from = "few"
set = { twice = "total * 2" }
[[step]]
name = "placed"
type = "enrich"
from = "twice"
registry = "places"
missing = "reject"
[[step]]
name = "both"
type = "join"
from = "w"
with = "large"
columns = ["total"]
[[step]]
name = "beside"
type = "join"
from = "w"
with = "large"
columns = ["total"]
join = "left"
[[table]]
from = "placed"
[[table]]
from = "both"
[[table]]
from = "beside"
"#;

    fn plan(late: &str) -> Plan {
        let text = STEPS.replace("every = \"1m\"", &format!("every = \"1m\"\n{late}"));
        testing::plan(format!("{HEAD}{text}")).unwrap()
    }

    /// Which edges may say that a window is none, and which steps know.
    fn withdrawn(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        let steps = &plan.pipelines[0].steps;
        let edges = ["w", "large", "larger", "few", "many", "twice", "placed", "both", "beside"];
        let edges = edges.into_iter().filter(|edge| super::column(steps, edge).is_some());
        let knows = steps.iter().filter(|step| match &step.kind {
            StepKind::Filter(filter) => filter.takes_back.is_some(),
            StepKind::Route(route) => route.takes_back.is_some(),
            StepKind::Enrich(enrich) => enrich.rows.is_some(),
            StepKind::Join(join) => match &join.partners {
                Partners::Window { rows, .. } => *rows != [None; 2],
                Partners::Interval { .. } => false,
            },
            _ => false,
        });
        (edges.collect(), knows.map(|step| step.name.as_str()).collect())
    }

    #[test]
    fn what_lets_some_windows_pass_takes_them_back_if_they_come_again() {
        let plan = plan("");
        let (edges, knows) = withdrawn(&plan);
        // Of a left join what the right edge has is null, and the row stays.
        assert_eq!(edges, ["large", "larger", "few", "many", "twice", "placed", "both"]);
        let mut knows = knows;
        knows.sort_unstable();
        assert_eq!(knows, ["beside", "both", "large", "larger", "placed", "sizes"]);
        let explained = crate::explain(&plan);
        let told = "again    what came before and does not pass any more comes with rows = 0";
        assert_eq!(explained.matches(told).count(), 2, "{explained}");
        assert_eq!(explained.matches("goes elsewhere now comes with rows = 0").count(), 1);
        assert_eq!(explained.matches("if one is withdrawn").count(), 1);
        // What passes is what was written: state behind it goes on.
        let steps = &plan.pipelines[0].steps;
        let larger = steps.iter().find(|step| step.name == "larger").unwrap();
        let StepKind::Filter(filter) = &larger.kind else { panic!("{larger:?}") };
        assert_eq!(crate::fingerprint::shown(&filter.keep), "total > 5");
    }

    #[test]
    fn windows_that_come_once_take_nothing_back() {
        let plan = plan("late = \"table\"");
        assert_eq!(withdrawn(&plan), (vec![], vec![]));
        assert!(!crate::explain(&plan).contains("again  "));
    }
}
