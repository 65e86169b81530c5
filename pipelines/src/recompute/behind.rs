//! Tables behind windows: what the steps between make of windows that are computed again.
//!
//! What a step without state makes of such a row is a function of it. So is what a join with a
//! registry makes of it, if rows stay as they were joined: of the row, and of what the registry
//! had said by some time, which the table of its versions tells. All other steps know more than
//! that.

use tidegate_operators::expression::StatelessStep;
use tidegate_operators::spec::{EnrichSpec, PipelineSpec, StepKind, StepSpec, TableSpec};

use super::{maker, step_of};
use crate::graph::versions_edge;
use crate::resolve::early::is_of;
use crate::resolve::late::is_made_of;
use crate::resolve::withdrawn;

/// A table of what steps make of windows.
pub struct Behind {
    /// The table.
    pub table: TableSpec,
    /// The steps from the windows to it.
    pub path: Vec<Between>,
}

/// A step between windows and a table.
pub enum Between {
    /// One without state, and which of its branches leads on.
    Stateless(StatelessStep, usize),
    /// A join with a registry, and the table of the registry's versions.
    Enrich(Box<EnrichSpec>, TableSpec),
}

impl Behind {
    /// The tables of versions that say what registries knew.
    pub fn histories(&self) -> impl Iterator<Item = &TableSpec> {
        self.path.iter().filter_map(|step| match step {
            Between::Stateless(..) => None,
            Between::Enrich(_, versions) => Some(versions),
        })
    }
}

/// The tables behind the windows of a step.
pub(super) fn behind(p: &PipelineSpec, windows: &str) -> Vec<Behind> {
    let made = p.tables.iter().filter(|table| !is_of(&table.from, windows));
    let behind = made.filter_map(|table| {
        let path = path_from(p, windows, &table.from).ok()?;
        Some(Behind { table: table.clone(), path })
    });
    behind.collect()
}

/// The tables of what is made of the windows of a step, each with why it does not get what is
/// made of windows that are computed again; none if it does.
pub(crate) fn made_of<'p>(
    p: &'p PipelineSpec,
    windows: &str,
) -> Vec<(&'p TableSpec, Option<String>)> {
    let made = p.tables.iter().filter(|table| !is_of(&table.from, windows));
    let made = made.filter(|table| is_made_of(p, &table.from, windows));
    made.map(|table| (table, path_from(p, windows, &table.from).err())).collect()
}

/// The steps that lead from windows to an edge, or why not all that is made of the windows is made
/// of them alone.
fn path_from(p: &PipelineSpec, windows: &str, edge: &str) -> Result<Vec<Between>, String> {
    if edge == windows {
        return Ok(Vec::new());
    }
    let step = step_of(p, edge).ok_or_else(|| format!("`{edge}` is not made of `{windows}`"))?;
    let between = between(p, step, edge)?;
    let mut path = path_from(p, windows, &step.from)?;
    path.push(between);
    Ok(path)
}

fn between(p: &PipelineSpec, step: &StepSpec, edge: &str) -> Result<Between, String> {
    if let StepKind::Enrich(spec) = &step.kind {
        let registry = &spec.registry.name;
        let history = versions_edge(registry);
        if spec.revise.is_some() {
            return Err(format!("`{}` revises what it has joined", step.name));
        }
        let versions = p.tables.iter().find(|table| table.from == history);
        let missing = || format!("there is no table of `{history}`");
        return Ok(Between::Enrich(spec.clone(), versions.ok_or_else(missing)?.clone()));
    }
    let made = || {
        let (_, branch) = maker(p, edge)?;
        let input = p.steps.iter().find(|s| s.makes(&step.from))?.output.clone();
        let made = StatelessStep::new(&step.kind, input, step.output.clone())?;
        let made = made.of_withdrawn(withdrawn::column(&p.steps, &step.from));
        Some(Between::Stateless(made, branch))
    };
    made().ok_or_else(|| format!("`{}` keeps state", step.name))
}

#[cfg(test)]
mod tests {
    use crate::recompute::recomputations;
    use crate::testing::{HEAD, plan};

    const STEPS: &str = r#"
[[registry]]
name = "limits"
path = "limits.csv"
key = ["device"]
columns = { device = "string", high = "float64" }
[[step]]
name = "w"
type = "window"
every = "1m"
select = { n = "count(*)" }
[[step]]
name = "limited"
type = "enrich"
from = "w"
registry = "limits"
[[step]]
name = "many"
type = "filter"
from = "limited"
where = "n > high"
[[step]]
name = "revised"
type = "enrich"
from = "w"
registry = "limits"
revise = true
[[step]]
name = "more"
type = "filter"
from = "revised"
where = "n > high"
[[step]]
name = "both"
type = "join"
from = "many"
with = "w"
columns = ["n"]
[[table]]
from = "readings"
[[table]]
from = "w"
[[table]]
from = "limited"
[[table]]
from = "many"
[[table]]
from = "more"
[[table]]
from = "both"
"#;

    /// Tables behind windows, and what `explain` says of them.
    fn behind(steps: &str) -> (Vec<String>, Vec<String>) {
        let plan = plan(format!("{HEAD}{steps}")).unwrap_or_else(|why| panic!("{why}"));
        let of = |step: super::super::Recomputation| {
            let named = step.behind.iter().map(|b| b.table.name.clone());
            named.chain(step.histories().map(|t| t.name.clone())).collect::<Vec<_>>()
        };
        let tables = recomputations(&plan.pipelines[0]).into_iter().flat_map(of).collect();
        let explained = crate::explain(&plan);
        let told = explained.lines().filter_map(|line| line.trim().strip_prefix("behind"));
        (tables, told.map(|line| line.trim().to_owned()).collect())
    }

    #[test]
    fn tables_behind_joins_with_registries_get_what_is_made_of_windows() {
        let (tables, told) = behind(STEPS);
        assert_eq!(tables, ["limited", "many", "limits_versions", "limits_versions"]);
        let get = "what is made of it then is in p.limited, p.many";
        let more = "p.more does not see that: `revised` revises what it has joined";
        let both = "p.both does not see that: `both` keeps state";
        assert_eq!(told, [get, more, both]);
    }

    #[test]
    fn of_windows_that_are_not_computed_again_nothing_is_told() {
        let (_, told) = behind(&STEPS.replace("[[table]]\nfrom = \"readings\"\n", ""));
        assert_eq!(told, Vec::<String>::new());
    }
}
