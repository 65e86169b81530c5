//! Golden tests: the `[[test]]` tables of `golden/*.toml` and of the cookbook, each as it is
//! written, on other numbers of workers, and with arrival shuffled inside the disorder bound.
//!
//! Rows may not depend on the number of workers in any bit. Nor may they depend on the order of
//! arrival inside the bound, revisions aside; a file about what does says `# golden: in order`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::array_value_to_string;
use tidegate_operators::TextMax;
use tidegate_operators::spec::{PipelineSpec, StepKind};
use tidegate_pipelines::examples::COOKBOOK;
use tidegate_pipelines::plan::TestInput;
use tidegate_pipelines::{Plan, load};
use tidegate_runtime::cases::problems;
use tidegate_runtime::engine::trial::{self, Edges};

use crate::support::Rng;

/// Files about the order of arrival itself have this line.
const IN_ORDER: &str = "# golden: in order";

/// Shuffles of each case.
const SHUFFLES: u64 = 4;

fn files() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    let read = |p: PathBuf| (p.clone(), std::fs::read_to_string(p).unwrap());
    let cookbook = COOKBOOK.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned()));
    paths.into_iter().map(read).chain(cookbook).collect()
}

/// Every file as a plan of its own, with its text.
fn plans() -> Vec<(String, Plan)> {
    let plans: Vec<(String, Plan)> = files()
        .into_iter()
        .map(|file| {
            let text = file.1.clone();
            let plan = load(&[file], &|_, name| Err(format!("{name} is not for tests")));
            let plan = plan.unwrap_or_else(|problems| {
                let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
                panic!("{}", texts.join("\n\n"))
            });
            (text, plan)
        })
        .collect();
    assert!(plans.len() >= 10, "the golden files are not where they should be");
    plans
}

#[test]
fn straight() {
    let mut wrong = Vec::new();
    for (_, plan) in plans() {
        assert!(!plan.tests.is_empty(), "{} has no test", plan.pipelines[0].name);
        for test in &plan.tests {
            let edges = trial::run(&plan.pipelines[0], &test.inputs, 1).unwrap();
            let place = format!("{}:{} {}", test.file.display(), test.line, test.name);
            wrong.extend(problems(test, &edges).into_iter().map(|p| format!("{place}: {p}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn other_numbers_of_workers() {
    for (_, plan) in plans() {
        for test in &plan.tests {
            let run = |workers| all_rows(&trial::run(&plan.pipelines[0], &test.inputs, workers));
            let one = run(1);
            for workers in [2, 4] {
                let name = &plan.pipelines[0].name;
                assert_eq!(run(workers), one, "{name}: {} on {workers} workers", test.name);
            }
        }
    }
}

/// Whatever of an epoch an operator is given at a time.
#[test]
fn little_text_at_a_time() {
    for (_, plan) in plans() {
        let pipeline = &plan.pipelines[0];
        for test in &plan.tests {
            let whole = all_rows(&trial::run(pipeline, &test.inputs, 1));
            for (workers, turn) in [(1, 1 << 10), (2, 200), (3, 1 << 10)] {
                let (parts, max) = (&[(2, workers), (0, 1)], TextMax::default());
                let max = TextMax { turn, ..max };
                let rows = all_rows(&trial::run_within(pipeline, &test.inputs, parts, max));
                let (name, test) = (&pipeline.name, &test.name);
                assert_eq!(rows, whole, "{name}: {test}: {turn} bytes, {workers} workers");
            }
        }
    }
}

#[test]
fn started_again_in_the_middle_on_other_workers() {
    for (_, plan) in plans() {
        let pipeline = &plan.pipelines[0];
        for test in &plan.tests {
            let run = |parts: &[(usize, usize)]| {
                all_rows(&trial::run_in_parts(pipeline, &test.inputs, parts))
            };
            let whole = run(&[(usize::MAX, 1)]);
            let half = test.inputs.len() / 2;
            let restarts: [&[(usize, usize)]; 3] =
                [&[(1, 1), (0, 3)], &[(half, 3), (0, 2)], &[(2, 2), (1, 1), (0, 2)]];
            for parts in restarts {
                assert_eq!(run(parts), whole, "{}: {}: {parts:?}", pipeline.name, test.name);
            }
        }
    }
}

#[test]
fn shuffled_inside_the_disorder_bound() {
    let mut shuffled = 0;
    for (_, plan) in plans().into_iter().filter(|(text, _)| !text.contains(IN_ORDER)) {
        let pipeline = &plan.pipelines[0];
        let Some(disorder_us) = disorder_us(pipeline) else { continue };
        for test in &plan.tests {
            for seed in 0..SHUFFLES {
                let inputs = shuffle(&test.inputs, disorder_us, seed);
                shuffled += usize::from(inputs != test.inputs);
                let edges = latest(trial::run(pipeline, &inputs, 1 + seed as usize % 2).unwrap());
                let wrong = problems(test, &edges);
                assert!(
                    wrong.is_empty(),
                    "{}: {}: seed {seed}:\n{}",
                    pipeline.name,
                    test.name,
                    wrong.join("\n")
                );
            }
        }
    }
    assert!(shuffled > 20, "only {shuffled} shuffles changed anything");
}

/// The smallest disorder that any step allows; none if no step keeps state.
fn disorder_us(pipeline: &PipelineSpec) -> Option<i64> {
    let of = |kind: &StepKind| match kind {
        StepKind::Window(window) => Some(window.disorder_us),
        StepKind::Detect(detect) => Some(detect.disorder_us),
        StepKind::Latest(latest) => Some(latest.disorder_us),
        StepKind::Absence(absence) => Some(absence.disorder_us),
        StepKind::Sequence(sequence) => Some(sequence.disorder_us),
        StepKind::Join(join) => Some(join.disorder_us),
        _ => None,
    };
    pipeline.steps.iter().filter_map(|s| of(&s.kind)).min()
}

/// Moves messages to other places, none past one that was sent `disorder_us` later; the times of
/// arrival stay where they are.
fn shuffle(inputs: &[TestInput], disorder_us: i64, seed: u64) -> Vec<TestInput> {
    let mut rng = Rng(seed + 1);
    let mut order: Vec<(i64, &TestInput)> = inputs
        .iter()
        .map(|input| (input.at_us + rng.below(disorder_us.max(1) as u64) as i64, input))
        .collect();
    order.sort_by_key(|(place, _)| *place);
    let arrivals = inputs.iter().map(|i| i.at_us);
    arrivals.zip(order).map(|(at_us, (_, input))| TestInput { at_us, ..input.clone() }).collect()
}

/// Every row of every edge as text that differs if any bit does, sorted.
fn all_rows(edges: &anyhow::Result<Edges>) -> BTreeMap<String, Vec<String>> {
    let edges = edges.as_ref().unwrap();
    let text = |batch: &RecordBatch, row: usize| -> String {
        let cells = batch.columns().iter().map(|column| match column.data_type() {
            DataType::Float64 if column.is_valid(row) => {
                let value = column.as_primitive::<arrow::datatypes::Float64Type>().value(row);
                format!("{value} {:016x}", value.to_bits())
            }
            _ => array_value_to_string(column, row).unwrap(),
        });
        cells.collect::<Vec<_>>().join(" | ")
    };
    let rows = |batches: &Vec<RecordBatch>| {
        let mut rows: Vec<String> =
            batches.iter().flat_map(|b| (0..b.num_rows()).map(|row| text(b, row))).collect();
        rows.sort();
        rows
    };
    let filled = edges.iter().map(|(name, batches)| (name.clone(), rows(batches)));
    filled.filter(|(_, rows)| !rows.is_empty()).collect()
}

/// Only the last revision of every window.
fn latest(edges: Edges) -> Edges {
    edges.into_iter().map(|(name, batches)| (name, latest_of(&batches))).collect()
}

fn latest_of(batches: &[RecordBatch]) -> Vec<RecordBatch> {
    let Some(first) = batches.first() else { return Vec::new() };
    let schema = first.schema();
    let all = concat_batches(&schema, batches).unwrap();
    // Versions of a registry have revisions, but a test says in what order they are taken in.
    let (Some(revisions), Ok(bound)) =
        (all.column_by_name("revision"), schema.index_of("window_start"))
    else {
        return batches.to_vec();
    };
    let mut columns: Vec<&ArrayRef> = all.columns()[..=bound].iter().collect();
    if let Some(number) = all.column_by_name("window_number") {
        columns[bound] = number;
    }
    let counts = all.column_by_name("rows").unwrap().as_primitive::<Int64Type>();
    // Newest revisions first; the first row of each identity stays.
    let descending = arrow::compute::SortOptions { descending: true, nulls_first: false };
    let by = [SortColumn { values: Arc::clone(revisions), options: Some(descending) }];
    let order = lexsort_to_indices(&by, None).unwrap();
    let mut seen = BTreeSet::new();
    let keep: Vec<u32> = order
        .values()
        .iter()
        .copied()
        .filter(|row| {
            let cell = |c: &&ArrayRef| array_value_to_string(c, *row as usize).unwrap();
            // The last revision of a window that was withdrawn says so, and is not shown.
            seen.insert(columns.iter().map(cell).collect::<Vec<_>>())
                && counts.value(*row as usize) > 0
        })
        .collect();
    assert!(revisions.as_primitive::<Int64Type>().values().iter().all(|r| *r >= 0));
    vec![take_record_batch(&all, &UInt32Array::from(keep)).unwrap()]
}
