//! The engine as a whole on messages of a test: restarts, panics, foreign state.
#![allow(clippy::unwrap_used)]
use std::path::PathBuf;
use std::time::Duration;

use arrow::util::display::array_value_to_string;
use tidegate_operators::spec::StepKind;
use tidegate_pipelines::Plan;

use super::*;

mod fields;
mod waits;

/// Two pipelines of one source whose steps and alerts have the same names, but not the same shape.
fn plan() -> Plan {
    let pipeline = |name: &str, every: &str, by: &str| {
        let text = format!(
            r#"
            name = "{name}"
            [source]
            type = "endpoint"
            listen = "127.0.0.1:1883"
            topics = ["t/{{device}}"]
            [reading]
            device = "{{device}}"
            time = "ts"
            [reading.fields]
            v = "float64"
            [limits]
            devices = 10
            reading_every = "500ms"
            [[step]]
            name = "w"
            type = "window"
            every = "{every}"
            by = {by}
            [step.select]
            total = "sum(v)"
            devices = "count(distinct device)"
            list = "string_agg(CAST(v AS VARCHAR), ',')"
            [[step]]
            name = "d"
            type = "detect"
            on = "v"
            method = "ewma_z"
            alpha = 0.3
            warmup = 3
            threshold = 1.0
            [[alert]]
            name = "a"
            from = "w"
            fire = "total > 1.9"
            for = "10s"
            "#
        );
        (PathBuf::from(name), text)
    };
    let files = [pipeline("one", "10s", "[\"device\"]"), pipeline("two", "15s", "[]")];
    tidegate_pipelines::load(&files, &|_, name| Err(name.to_owned())).unwrap()
}

fn inputs() -> Vec<TestInput> {
    (0..240_i64)
        .map(|i| {
            let ms = 1_767_225_600_000 + i * 500 - (i % 7) * 400;
            let value = (i * 37 % 11) as f64 / 10.0 + if i % 50 == 49 { 30.0 } else { 0.0 };
            TestInput {
                topic: format!("t/d{}", i % 5),
                at_us: 1_767_225_600_000_000 + i / 3 * 1_500_000,
                payload: format!(r#"{{"ts": {ms}, "v": {value}}}"#).into_bytes(),
                properties: Vec::new(),
                change: None,
                event: None,
            }
        })
        .collect()
}

fn texts(rows: &Rows) -> BTreeMap<(usize, String), Vec<String>> {
    let text = |batch: &RecordBatch, row: usize| -> String {
        let cells = batch.columns().iter().map(|c| array_value_to_string(c, row).unwrap());
        cells.collect::<Vec<_>>().join(" | ")
    };
    let of = |batches: &Vec<RecordBatch>| {
        let mut rows: Vec<String> =
            batches.iter().flat_map(|b| (0..b.num_rows()).map(|row| text(b, row))).collect();
        rows.sort();
        rows
    };
    rows.iter().map(|(edge, batches)| (edge.clone(), of(batches))).collect()
}

#[test]
fn a_restart_on_other_workers_changes_no_row() {
    let plan = plan();
    let run = |parts: &[(usize, usize)]| {
        let parts = (parts, TextMax::default());
        texts(&run_plans(&[&plan.pipelines], 0, &inputs(), parts).unwrap())
    };
    let whole = run(&[(usize::MAX, 1)]);
    for edge in ["w", "d", "alerts", "findings"] {
        for pipeline in 0..2 {
            let rows = whole.get(&(pipeline, edge.to_owned()));
            assert!(rows.is_some_and(|r| !r.is_empty()), "{edge} of {pipeline} has rows");
        }
    }
    let restarts: [&[(usize, usize)]; 4] = [
        &[(40, 1), (0, 2)],
        &[(40, 4), (0, 1)],
        &[(13, 2), (1, 3), (0, 1), (20, 1), (0, 2)],
        &[(80, 2), (0, 3)],
    ];
    for parts in restarts {
        assert_eq!(run(parts), whole, "{parts:?}");
    }
}

#[test]
fn a_panic_of_an_operator_is_an_error_and_no_hang() {
    let mut plan = plan();
    // An aggregate without its filter entry: nothing that planning lets through.
    for step in &mut plan.pipelines[0].steps {
        if let StepKind::Window(window) = &mut step.kind {
            window.filters.clear();
        }
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(run(&plan.pipelines[0], &inputs(), 2)));
    let result = receiver.recv_timeout(Duration::from_secs(60)).expect("it ended");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("panicked"), "{error}");
}

#[test]
fn state_of_another_operator_is_refused_at_the_start() {
    let plan = plan();
    let wrong = RecordBatch::try_from_iter([(
        "device",
        Arc::new(arrow::array::StringArray::from(vec!["a"])) as arrow::array::ArrayRef,
    )])
    .unwrap();
    let worker_plan = WorkerPlan {
        state: vec![("one/w".to_owned(), wrong)],
        ..WorkerPlan::of(plan.pipelines.clone(), 2, 1)
    };
    let (events, _received) = sync_channel(EVENTS_MAX);
    let error = start(worker_plan, Arc::default(), events).err().unwrap().to_string();
    assert!(error.contains("does not fit"), "{error}");
}

/// Also between messages that are far apart: when a step does something about silence, and now and
/// then after that.
#[test]
fn time_goes_on_between_messages() {
    const MINUTE_US: i64 = 60_000_000;
    let plan = plan();
    let at = |minute: i64| TestInput { at_us: minute * MINUTE_US, ..inputs()[0].clone() };
    let inputs = [at(0), at(0), at(180), at(181)];
    let inputs: Vec<&TestInput> = inputs.iter().collect();
    let epochs: Vec<(i64, usize)> = sealed(&plan.pipelines, &inputs)
        .iter()
        .map(|(time_us, inputs)| (time_us / MINUTE_US, inputs.len()))
        .collect();
    // `idle_close` is a minute, `revise_for` an hour.
    let ticks = [1, 2, 4, 8, 16, 32, 61, 64, 128].map(|minute| (minute, 0));
    assert_eq!(epochs, [&[(0, 2)], &ticks[..], &[(180, 1), (181, 1)]].concat());
}
