//! State that goes on with another `disorder` and another `idle_close`: nothing that was to be told
//! is left out, and nothing is told twice.

use tidegate_operators::spec::TableSpec;
use tidegate_pipelines::content_ids;

use super::fields::{EVERY_KIND, FIELDS, inputs};
use super::*;

/// Rows by what identifies them: each with its revision and the rest of it.
type Told = BTreeMap<Vec<String>, Vec<(i64, String)>>;

/// Every kind of operator, with these two times, and a table of every edge.
fn plan(disorder: &str, idle_close: &str) -> Vec<PipelineSpec> {
    let times = format!("time = \"ts\"\ndisorder = \"{disorder}\"\nidle_close = \"{idle_close}\"");
    let mut text = EVERY_KIND.replace("FIELDS", FIELDS).replacen("time = \"ts\"", &times, 1);
    for edge in EDGES {
        if !EVERY_KIND.contains(&format!("[[table]]\nfrom = \"{edge}\"")) {
            text += &format!("\n[[table]]\nfrom = \"{edge}\"");
        }
    }
    let files = [("p.toml".into(), text)];
    let plan = tidegate_pipelines::load(&files, &|_, name| Err(name.to_owned()));
    plan.unwrap_or_else(|problems| panic!("{problems:?}")).pipelines
}

const EDGES: [&str; 15] = [
    "days", "hours", "sessions", "states", "tens", "around", "odd", "known", "silent", "twice",
    "near", "both", "above", "beside", "daily",
];

fn of_table<'p>(p: &'p PipelineSpec, edge: &str) -> &'p TableSpec {
    p.tables.iter().find(|table| table.from == edge).unwrap()
}

fn told(p: &PipelineSpec, edge: &str, batches: &[RecordBatch]) -> Told {
    let table = of_table(p, edge);
    let mut told = Told::new();
    for batch in batches {
        let cell = |name: &str, row: usize| {
            array_value_to_string(batch.column_by_name(name).unwrap(), row).unwrap()
        };
        for row in 0..batch.num_rows() {
            let fields = batch.schema();
            let names = fields.fields().iter().map(|field| field.name().as_str());
            // How often a window came does not say what is in it.
            let rest = names.filter(|name| !["revision", "is_final"].contains(name));
            let rest: Vec<String> = rest.map(|name| cell(name, row)).collect();
            let has = |name| batch.column_by_name(name).is_some();
            let revision = if has("revision") { cell("revision", row).parse().unwrap() } else { 0 };
            let identity = match table.identity.is_empty() {
                true => rest.clone(),
                false => table.identity.iter().map(|name| cell(name, row)).collect(),
            };
            told.entry(identity).or_default().push((revision, rest.join(" | ")));
        }
    }
    told.values_mut().for_each(|of| of.sort());
    told
}

#[test]
fn state_goes_on_with_other_times_of_waiting() {
    let short = plan("5s", "20s");
    for other in [plan("5s", "3m"), plan("2m", "20s")] {
        assert_eq!(content_ids(&short[0]), content_ids(&other[0]));
        let run = |plans: &[&[PipelineSpec]], parts: &[(usize, usize)]| {
            run_plans(plans, 0, &inputs(), (parts, TextMax::default())).unwrap()
        };
        let whole = run(&[&short], &[(usize::MAX, 1)]);
        let epochs = [20, 77, 173];
        for (first, second) in [(&short, &other), (&other, &short)] {
            for at in epochs {
                let rows = run(&[first, second], &[(at, 1), (usize::MAX, 2)]);
                for edge in EDGES {
                    let of = |rows: &Rows| {
                        let batches = rows.get(&(0, edge.to_owned())).cloned();
                        told(&short[0], edge, &batches.unwrap_or_default())
                    };
                    let (rows, whole) = (of(&rows), of(&whole));
                    assert!(!whole.is_empty(), "{edge} has no rows");
                    let last = |told: &Told| -> BTreeMap<Vec<String>, String> {
                        let last = |of: &Vec<(i64, String)>| of.last().unwrap().1.clone();
                        told.iter().map(|(identity, of)| (identity.clone(), last(of))).collect()
                    };
                    assert_eq!(last(&rows), last(&whole), "{edge} after {at}");
                    let is_revised = !of_table(&short[0], edge).identity.is_empty();
                    for (identity, of) in rows {
                        let mut revisions: Vec<i64> = of.iter().map(|row| row.0).collect();
                        revisions.dedup();
                        let times =
                            if is_revised { revisions.len() } else { whole[&identity].len() };
                        assert_eq!(times, of.len(), "{edge} {identity:?} after {at}");
                    }
                }
            }
        }
    }
}
