//! Early results: which edges have them, and who reads them.
//!
//! An edge with rows of windows that are still open has a second one beside it with the rows of
//! those that are over. Whoever does not ask for early results reads that: an alert must not fire
//! on half a minute. A filter that asks lets an early row pass, and each row of that window that
//! does not pass any more takes it back. A route and a join read the final rows only.

use std::sync::Arc;

use datafusion::physical_expr::expressions::Column;
use tidegate_operators::spec::{Expr, FilterSpec, IS_FINAL, Shape, StepKind, StepSpec};

use super::edges::{Edge, Edges, RowKind};
use crate::config::kinds::Kind;
use crate::config::problem::Reporter;
use crate::config::section::Section;

/// What the name of the edge with the final rows ends with; no other edge has a point in its name.
const FINAL: &str = ".final";

/// So many windows may a reading be in: all of them change by it, and come again.
const OVERLAPS_MAX: i64 = 60;

/// Whether a step only passes the final rows on.
pub(crate) fn is_of_finals(step: &str) -> bool {
    step.ends_with(FINAL)
}

/// Whether an edge has the rows of a step, or the final ones of these.
pub(crate) fn is_of(edge: &str, step: &str) -> bool {
    edge.strip_suffix(FINAL).unwrap_or(edge) == step
}

/// How often early results are asked for, microseconds.
pub(super) fn every_us(
    step: &Section<'_>,
    shape: &Shape,
    report: &mut Reporter<'_>,
) -> Option<i64> {
    let entry = step.entry("early")?;
    let every_us = step.duration_us("early")?;
    if every_us <= 0 {
        let hint = "how old may it be? For example `early = \"10s\"`".to_owned();
        report.error(step.at("early"), "early results need some time between them", hint);
        return None;
    }
    if let Shape::Sliding { after_us: 0, .. } = shape {
        let message = "a window that ends with its reading has no early results";
        let hint =
            "with `after` it is open for that long; `disorder` is how long it waits".to_owned();
        report.error(entry.key_at, message, hint);
        return None;
    }
    let (long, apart, distance) = match shape {
        Shape::Grid { size_us, slide_us, .. } => (*size_us, *slide_us, "slide"),
        Shape::Count { size, hop } => (*size, *hop, "hop"),
        _ => return Some(every_us),
    };
    if long > apart.saturating_mul(OVERLAPS_MAX) {
        let overlaps = long / apart.max(1);
        let message = format!("each reading is in {overlaps} windows, which would all come again");
        let hint = format!(
            "with `early`, at most {OVERLAPS_MAX} may overlap: make `{distance}` longer, or leave \
             out `early` and have early results of shorter windows in a step of their own"
        );
        report.error(entry.key_at, message, hint);
        return None;
    }
    Some(every_us)
}

/// Whether rows of windows that are still open are on an edge.
pub(super) fn has_early(edge: &Edge) -> bool {
    matches!(edge.rows, RowKind::Windows { early: Some(_), .. })
}

/// The column that says which rows are of windows that are over, if others are on the edge as well.
pub(crate) fn final_column(steps: &[StepSpec], edge: &str) -> Option<usize> {
    let step = steps.iter().find(|step| step.name == edge)?;
    let has_early = match &step.kind {
        StepKind::Window(window) => window.early_us.is_some(),
        // Those that can ask for early rows hand them on.
        StepKind::Filter(FilterSpec { takes_back: Some(_), .. })
        | StepKind::Project(_)
        | StepKind::Enrich(_) => final_column(steps, &step.from).is_some(),
        _ => false,
    };
    has_early.then(|| step.output.index_of(IS_FINAL).ok()).flatten()
}

/// The edge beside one with early results that has only the final rows, and the step that makes it.
pub(super) fn final_edge(name: &str, edge: &Edge) -> Option<(StepSpec, Edge)> {
    let RowKind::Windows { keys, id, withdrawn, taken_back, early: Some(revised), .. } = &edge.rows
    else {
        return None;
    };
    let rows = RowKind::Windows {
        keys: keys.clone(),
        id,
        revised: *revised,
        withdrawn: *revised && *withdrawn,
        taken_back: *taken_back,
        early: None,
    };
    let is_final = Column::new(IS_FINAL, edge.index(IS_FINAL));
    let step = StepSpec {
        name: format!("{name}{FINAL}"),
        from: name.to_owned(),
        output: edge.schema.clone(),
        kind: StepKind::Filter(FilterSpec::from(Arc::new(is_final) as Expr)),
    };
    Some((step, Edge { schema: edge.schema.clone(), rows }))
}

/// The name of the edge that a consumer reads where `key` names one: that with the final rows only,
/// unless it asks for early ones. Reports if it asks in vain.
pub(super) fn taken(
    edges: &Edges,
    consumer: &Section<'_>,
    key: &str,
    report: &mut Reporter<'_>,
) -> String {
    let name = consumer.text(key).unwrap_or_default();
    let Some(edge) = edges.peek(name) else { return name.to_owned() };
    let has = has_early(edge);
    let can_ask = consumer.component.key("early").is_some_and(|k| matches!(k.kind, Kind::Bool));
    if can_ask
        && !has
        && let Some(entry) = consumer.entry("early")
    {
        let message = format!("`{name}` has no early results");
        let hint =
            "write `early = \"10s\"` in the window, and `early = true` in the steps after it";
        report.error(entry.key_at, message, hint.to_owned());
    }
    match has && !(can_ask && consumer.bool("early")) {
        true => format!("{name}{FINAL}"),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_operators::spec::{StepKind, TakesBack};

    use crate::content::content_ids;
    use crate::fingerprint::fingerprint;
    use crate::testing::HEAD;
    use crate::{Plan, load, testing};

    const WINDOW: &str = r#"
[[step]]
name = "w"
type = "window"
every = "1m"
select = { total = "sum(v)" }
"#;

    const REST: &str = r#"
[[step]]
name = "large"
type = "filter"
from = "w"
where = "total > 3"
[[step]]
name = "twice"
type = "derive"
from = "w"
set = { twice = "total * 2" }
[[alert]]
name = "high"
from = "w"
fire = "total > 8"
[[table]]
from = "w"
[[table]]
from = "twice"
[[table]]
from = "large"
"#;

    fn plan(window: &str, rest: &str) -> Result<Plan, String> {
        testing::plan(format!("{HEAD}{WINDOW}{window}{rest}"))
    }

    #[test]
    fn who_does_not_ask_gets_the_final_rows() {
        let plan = plan("early = \"10s\"\n", REST).unwrap();
        let p = &plan.pipelines[0];
        let from = |name: &str| p.steps.iter().find(|s| s.name == name).unwrap().from.as_str();
        assert_eq!((from("w.final"), from("large"), from("twice")), ("w", "w.final", "w.final"));
        assert_eq!(p.alerts[0].0, "w.final");
        let tables: Vec<&str> = p.tables.iter().map(|t| t.from.as_str()).collect();
        assert_eq!(tables, ["w", "twice", "large"], "a table shows what is open");
        assert_eq!(p.tables[0].identity, ["device", "window_start"]);
        let asks = REST.replace("from = \"w\"\nset", "from = \"w\"\nearly = true\nset");
        let asks =
            asks.replace("[[table]]\nfrom = \"w\"", "[[table]]\nfrom = \"w\"\nearly = false");
        let plan = super::tests::plan("early = \"10s\"\n", &asks).unwrap();
        let p = &plan.pipelines[0];
        assert_eq!(p.steps.iter().find(|s| s.name == "twice").unwrap().from, "w");
        assert!(p.steps.iter().any(|s| s.name == "twice.final"), "it hands them on");
        let is_early = |edge: &str| super::final_column(&p.steps, edge).is_some();
        assert_eq!(["w", "twice"].map(is_early), [true, true]);
        assert_eq!(["readings", "w.final", "twice.final", "large"].map(is_early), [false; 4]);
        assert_eq!(p.tables[0].from, "w.final");
    }

    /// A filter of early rows hands them on, with what takes them back; others are told why not.
    #[test]
    fn a_filter_can_ask_and_a_route_and_a_join_cannot() {
        let asks = REST.replace("from = \"w\"\nwhere", "from = \"w\"\nearly = true\nwhere");
        let over = "[[step]]\nname = \"hours\"\ntype = \"window\"\nfrom = \"large\"\n\
                    every = \"1h\"\nselect = { n = \"count(*)\" }\n";
        for late in ["", "late = \"table\"\n"] {
            let plan = plan(&format!("early = \"10s\"\n{late}"), &asks).unwrap();
            let p = &plan.pipelines[0];
            let large = p.steps.iter().find(|s| s.name == "large").unwrap();
            let StepKind::Filter(filter) = &large.kind else { panic!("{large:?}") };
            let names = ["rows", "revision", "is_final", "total"];
            let [rows, revision, is_final, total] =
                names.map(|name| large.output.index_of(name).unwrap());
            let takes_back = TakesBack {
                rows,
                revision,
                is_final: (!late.is_empty()).then_some(is_final),
                clears: vec![total],
            };
            assert_eq!(filter.takes_back.as_ref(), Some(&takes_back));
            assert_eq!((large.from.as_str(), p.tables[2].from.as_str()), ("w", "large"));
            assert!(super::final_column(&p.steps, "large").is_some());
            // What is taken back is among the final rows only where these can come again.
            let counted =
                super::tests::plan(&format!("early = \"10s\"\n{late}"), &format!("{asks}{over}"));
            assert_eq!(counted.is_ok(), !late.is_empty());
        }
        let ids = |rest: &str| {
            let plan = plan("early = \"10s\"\n", rest).unwrap();
            content_ids(&plan.pipelines[0])
        };
        assert_eq!(ids(&asks), ids(REST), "what is known of alerts behind it stays");
        let route = "[[step]]\nname = \"r\"\ntype = \"route\"\nfrom = \"w\"\n\
                     early = true\nbranches = { a = \"total > 1\", b = \"true\" }\n";
        let join = "[[step]]\nname = \"j\"\ntype = \"join\"\nfrom = \"w\"\n\
                    with = \"large\"\nearly = true\n";
        let why = ["can change its branch", "nothing would take it back"];
        for (step, why) in [route, join].into_iter().zip(why) {
            let said = plan("early = \"10s\"\n", &format!("{step}{REST}")).unwrap_err();
            assert!(said.contains("unknown key `early`") && said.contains(why), "{said}");
        }
    }

    #[test]
    fn whoever_asks_in_vain_is_told() {
        let asks = REST.replace("from = \"w\"\nset", "from = \"w\"\nearly = true\nset");
        let said = plan("", &asks).unwrap_err();
        assert!(said.contains("`w` has no early results"), "{said}");
        let said = plan("early = \"0s\"\n", REST).unwrap_err();
        assert!(said.contains("early results need some time"), "{said}");
        let named = REST.replace("twice = \"total", "is_final = \"total");
        let said = plan(
            "early = \"10s\"\n",
            &named.replace("from = \"w\"\nset", "from = \"w\"\nearly = true\nset"),
        )
        .unwrap_err();
        assert!(said.contains("`is_final` says what the row is about"), "{said}");
    }

    #[test]
    fn only_windows_that_are_open_for_some_time_have_early_results() {
        let of = |shape: &str| {
            let head = format!("{HEAD}{WINDOW}").replace("every = \"1m\"", shape);
            let limits = "[limits]\nreading_every = \"1s\"\n";
            let file = ("p.toml".into(), format!("{head}early = \"10s\"\n{limits}{REST}"));
            load(&[file], &|_, n| Err(n.into())).map_err(|problems| problems[0].to_string())
        };
        for shape in [
            "gap = \"1m\"",
            "count = 10",
            "while = \"v > 1\"",
            "before = \"1m\"\nafter = \"10s\"",
            "size = \"1m\"\nslide = \"10s\"",
            "every = \"month\"\nzone = \"UTC\"",
        ] {
            assert!(of(shape).is_ok(), "{shape}: {:?}", of(shape).err());
        }
        let said = of("before = \"1m\"").unwrap_err();
        assert!(said.contains("ends with its reading has no early results"), "{said}");
        for shape in ["size = \"1h\"\nslide = \"1m\"", "count = 60"] {
            assert!(of(shape).is_ok(), "{shape}: {:?}", of(shape).err());
        }
        assert!(of("count = 60\nhop = 1").is_ok());
        for (shape, key) in
            [("size = \"61m\"\nslide = \"1m\"", "slide"), ("count = 61\nhop = 1", "hop")]
        {
            let said = of(shape).unwrap_err();
            assert!(said.contains("each reading is in 61 windows"), "{said}");
            assert!(said.contains(&format!("make `{key}` longer")), "{said}");
        }
    }

    #[test]
    fn early_results_can_be_added_and_taken_away_without_losing_state() {
        let with = plan("early = \"10s\"\n", REST).unwrap();
        let without = plan("", REST).unwrap();
        let [with, without] = [&with, &without].map(|plan| &plan.pipelines[0]);
        assert_eq!(content_ids(with), content_ids(without));
        assert_ne!(fingerprint(with), fingerprint(without));
    }

    #[test]
    fn rows_that_may_come_again_are_counted_once_where_only_final_ones_count() {
        let over = "\n[[step]]\nname = \"hours\"\ntype = \"window\"\nfrom = \"w\"\nevery = \"1h\"\n\
                    select = { n = \"count(*)\" }\n";
        let rest = format!("{REST}{over}");
        assert!(plan("early = \"10s\"\nlate = \"table\"\n", &rest).is_ok());
        let said = plan("early = \"10s\"\n", &rest).unwrap_err();
        assert!(said.contains("would be counted twice"), "{said}");
    }
}
