//! Against a plain list of what was said: changes and rows in random epochs, late and repeated, on
//! any number of workers, restarted anywhere.
#![allow(clippy::unwrap_used)]

mod moved;
mod told;

use std::collections::BTreeMap;

use arrow::array::{StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_physical_expr::expressions::lit;
use proptest::prelude::*;

use super::*;
use crate::key::owner;
use crate::operator::KeyedOperator;
use crate::registry::Change;
use crate::snapshot::check;
use crate::spec::{
    ColumnSpec, ColumnType, OnInvalid, Origin, RegistrySpec, Rules, TimeFormat, time_type,
};

const DEVICES: [&str; 4] = ["a", "b", "", "d-with-a-long-name"];

/// Device, what it does, since when (`None`: since ever), the value.
type Said = (usize, Change, Option<i64>, Option<i64>);

/// Device, time, revision.
type Row = (usize, i64, i64);

/// Tick time, changes, rows.
type EpochIn = (i64, Vec<Said>, Vec<Row>);

fn column(name: &str, kind: ColumnType) -> ColumnSpec {
    ColumnSpec {
        name: name.into(),
        origin: Origin::Path(vec![name.into()]),
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    }
}

fn spec(keep_us: Option<i64>, own_times: bool) -> EnrichSpec {
    let since = column("since", ColumnType::Time(TimeFormat::Auto));
    EnrichSpec {
        pipeline: "p".into(),
        name: "e".into(),
        input: Arc::new(Schema::new(vec![
            Field::new("device", DataType::Utf8, false),
            Field::new("time", time_type(), false),
            Field::new("revision", DataType::Int64, false),
            Field::new("end", time_type(), false),
        ])),
        on: vec![0],
        time: 1,
        registry: RegistrySpec {
            pipeline: "p".into(),
            name: "limits".into(),
            columns: vec![
                column("device", ColumnType::Utf8),
                column("limit", ColumnType::Int64),
                column("note", ColumnType::Utf8),
            ],
            keys: 1,
            valid_from: own_times.then_some(since),
            versions_max: 1_000,
            entries: None,
        },
        columns: vec![0],
        defaults: vec![None],
        missing: Missing::Null,
        revise: keep_us.map(|keep_us| ReviseSpec {
            keep_us,
            identity: vec![0, 1],
            revision: 2,
            end: 3,
            moves: false,
            rows: None,
        }),
        is_final: None,
        rows: None,
    }
}

/// Rows of both inputs as one, so that what checks operators with one input can check this one.
fn both_schema(spec: &EnrichSpec) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new("device", DataType::Utf8, false))];
    let nullable = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_nullable(true));
    fields.extend(spec.input.fields()[1..].iter().map(nullable));
    fields.extend(spec.registry.changes_schema().fields()[1..].iter().map(nullable));
    Arc::new(Schema::new(fields))
}

fn times(all: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(all.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

fn numbers(all: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(all))
}

fn devices(all: impl Iterator<Item = usize>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(all.map(|d| DEVICES[d])))
}

fn changes(spec: &EnrichSpec, tick_us: i64, said: &[Said]) -> RecordBatch {
    let values = || said.iter().map(|s| s.3.filter(|_| s.1 == Change::Set));
    let notes: Vec<Option<String>> = values().map(|v| v.map(|v| format!("n{v}"))).collect();
    let columns = vec![
        devices(said.iter().map(|s| s.0)),
        Arc::new(values().collect::<Int64Array>()),
        Arc::new(StringArray::from(notes)),
        times(said.iter().map(|s| s.2)),
        Arc::new(StringArray::from_iter_values(said.iter().map(|s| s.1.text()))),
        times(said.iter().map(|_| Some(tick_us))),
    ];
    RecordBatch::try_new(spec.registry.changes_schema(), columns).unwrap()
}

/// Rows and changes as rows of one batch.
fn stacked(spec: &EnrichSpec, rows: &RecordBatch, changes: &RecordBatch) -> RecordBatch {
    let put =
        |above: &dyn Array, below: &dyn Array| arrow::compute::concat(&[above, below]).unwrap();
    let nothing = |c: &ArrayRef, n| arrow::array::new_null_array(c.data_type(), n);
    let mut columns = vec![put(changes.column(0), rows.column(0))];
    let (n, m) = (changes.num_rows(), rows.num_rows());
    columns.extend(rows.columns()[1..].iter().map(|c| put(&nothing(c, n), c)));
    columns.extend(changes.columns()[1..].iter().map(|c| put(c, &nothing(c, m))));
    RecordBatch::try_new(both_schema(spec), columns).unwrap()
}

fn both(spec: &EnrichSpec, (tick_us, said, rows): &EpochIn) -> RecordBatch {
    let columns = vec![
        devices(rows.iter().map(|r| r.0)),
        times(rows.iter().map(|r| Some(r.1))),
        numbers(rows.iter().map(|r| r.2)),
        // Ends have the order of their times.
        times(rows.iter().map(|r| Some(r.1 + 5))),
    ];
    let rows = RecordBatch::try_new(Arc::clone(&spec.input), columns).unwrap();
    stacked(spec, &rows, &changes(spec, *tick_us, said))
}

struct Both(Enrich);

impl KeyedOperator for Both {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let is_row: BooleanArray = rows.column(1).logical_nulls().map_or_else(
            || vec![true; rows.num_rows()].into(),
            |nulls| nulls.iter().map(Some).collect(),
        );
        let part = |mask: &BooleanArray, columns: &[usize], schema: SchemaRef| {
            let part = filter_record_batch(rows, mask)?.project(columns)?;
            RecordBatch::try_new(schema, part.columns().to_vec())
        };
        let width = self.0.spec.input.fields().len();
        let own: Vec<usize> = (0..width).collect();
        let left = part(&is_row, &own, Arc::clone(&self.0.spec.input))?;
        let is_change = arrow::compute::not(&is_row)?;
        let changes = self.0.spec.registry.changes_schema();
        let of_change: Vec<usize> = std::iter::once(0).chain(width..rows.num_columns()).collect();
        let right = part(&is_change, &of_change, changes)?;
        self.0.epoch(&left, &right, tick, emit)
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        JoinOperator::end(&mut self.0, emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        JoinOperator::cut(&mut self.0, whole)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        JoinOperator::load(&mut self.0, state)
    }
}

/// The rows of those devices that belong to worker `index` of `workers`.
fn owned(rows: &RecordBatch, (index, workers): (usize, usize)) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..1], rows.num_rows(), &mut hashes);
    let mine: BooleanArray = hashes.iter().map(|h| Some(owner(*h, workers) == index)).collect();
    filter_record_batch(rows, &mine).unwrap()
}

/// Epoch, device, time, revision, value.
type Out = (usize, String, i64, i64, Option<i64>);

fn note(epoch: usize, emit: &Emit, out: &mut Vec<Out>) {
    for rows in &emit.rows {
        let time = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let number = |c: usize| rows.column(c).as_primitive::<Int64Type>();
        for row in 0..rows.num_rows() {
            let limit = number(4);
            out.push((
                epoch,
                rows.column(0).as_string::<i32>().value(row).to_owned(),
                time.value(row),
                number(2).value(row),
                (!limit.is_null(row)).then(|| limit.value(row)),
            ));
        }
    }
}

/// Epochs on as many workers as `workers` says, one after the other.
fn run(spec: &EnrichSpec, epochs: &[EpochIn], workers: &[usize]) -> Vec<Out> {
    let batches: Vec<(i64, RecordBatch)> = epochs.iter().map(|e| (e.0, both(spec, e))).collect();
    let mut out = Vec::new();
    run_batches(spec, &batches, workers, |number, emit| note(number, emit, &mut out));
    out.sort();
    out
}

fn run_batches(
    spec: &EnrichSpec,
    epochs: &[(i64, RecordBatch)],
    workers: &[usize],
    mut note: impl FnMut(usize, &Emit),
) {
    let (mut states, mut number) = (Vec::new(), 0);
    let parts = epochs.chunks(epochs.len().div_ceil(workers.len()).max(1));
    for (part, count) in parts.zip(workers) {
        let make = || Both(Enrich::new(spec.clone()).unwrap());
        let mut all: Vec<Both> = (0..*count).map(|_| make()).collect();
        for (index, operator) in all.iter_mut().enumerate() {
            for state in &states {
                operator.load(&owned(state, (index, *count))).unwrap();
            }
        }
        for (time_us, rows) in part {
            for (index, operator) in all.iter_mut().enumerate() {
                let mut emit = Emit::default();
                let tick = Tick { epoch: number as u64 + 1, time_us: *time_us };
                operator.epoch(&owned(rows, (index, *count)), tick, &mut emit).unwrap();
                note(number, &emit);
            }
            number += 1;
        }
        states = all.iter_mut().map(|operator| operator.save().unwrap()).collect();
    }
}

/// What holds, as plainly as it can be written: the last thing said of the greatest time.
fn holds(said: &[Said], device: usize, time_us: i64) -> Option<i64> {
    says(said, device, time_us).flatten()
}

/// The same, where a row without a value is something else than no row.
fn says(said: &[Said], device: usize, time_us: i64) -> Option<Option<i64>> {
    let mut known: BTreeMap<i64, Option<Option<i64>>> = BTreeMap::new();
    for (_, change, since_us, value) in said.iter().filter(|s| s.0 == device) {
        let since_us = since_us.unwrap_or(i64::MIN);
        match change {
            Change::Set => drop(known.insert(since_us, Some(*value))),
            Change::Remove => drop(known.insert(since_us, None)),
            Change::Withdraw => drop(known.remove(&since_us)),
            _ => unreachable!("see `registry::tests::entries`"),
        }
    }
    known.range(..=time_us).next_back().and_then(|(_, value)| *value)
}

fn epochs(own_times: bool) -> impl Strategy<Value = Vec<EpochIn>> {
    let change = prop_oneof![
        4 => Just(Change::Set),
        1 => Just(if own_times { Change::Withdraw } else { Change::Remove })
    ];
    let since = prop::option::weighted(0.9, 0..60_i64);
    let said = (0..DEVICES.len(), change, since, prop::option::weighted(0.9, 0..4_i64));
    let row = (0..DEVICES.len(), 0..60_i64, Just(0));
    let epoch = (1..6_i64, prop::collection::vec(said, 0..4), prop::collection::vec(row, 0..6));
    prop::collection::vec(epoch, 1..16).prop_map(move |epochs| {
        let (mut now_us, mut revisions) = (0, BTreeMap::new());
        let timed = |(step, mut said, mut rows): (i64, Vec<Said>, Vec<Row>)| {
            now_us += step;
            // Without times of their own, changes hold from when they were taken in.
            let own = |s: &mut Said| s.2 = if own_times { s.2 } else { Some(now_us) };
            said.iter_mut().for_each(own);
            for row in &mut rows {
                let next = revisions.entry((row.0, row.1)).or_insert(0);
                row.2 = *next;
                *next += 1;
            }
            (now_us, said, rows)
        };
        epochs.into_iter().map(timed).collect()
    })
}

fn cases() -> impl Strategy<Value = (bool, Vec<EpochIn>)> {
    any::<bool>().prop_flat_map(|own| (Just(own), epochs(own)))
}

/// Epochs on one worker from a state on: what comes, and the state after them.
fn from_state(spec: &EnrichSpec, state: Option<&RecordBatch>, epochs: &[EpochIn]) -> Ended {
    let mut operator = Both(Enrich::new(spec.clone()).unwrap());
    if let Some(state) = state {
        operator.load(state).unwrap();
    }
    let mut out = Vec::new();
    for (number, epoch) in epochs.iter().enumerate() {
        let mut emit = Emit::default();
        let tick = Tick { epoch: number as u64 + 1, time_us: epoch.0 };
        operator.epoch(&both(spec, epoch), tick, &mut emit).unwrap();
        note(number, &emit, &mut out);
    }
    (out, operator.save().unwrap())
}

type Ended = (Vec<Out>, RecordBatch);

proptest! {
    /// Who changes a default can go on with the state: it is that which the new default would have
    /// left, and what comes after the change is what would have come with it.
    #[test]
    fn a_default_is_no_part_of_the_state(
        (own_times, epochs) in cases(),
        revises in any::<bool>(),
        at in 0..16_usize,
    ) {
        let none = spec(revises.then_some(1_000), own_times);
        let with = |value: i64| EnrichSpec { defaults: vec![Some(lit(value))], ..none.clone() };
        let (old, new) = (with(-1), with(-2));
        let (before, after) = epochs.split_at(at.min(epochs.len()));
        let (was, state) = from_state(&old, None, before);
        let (would, same) = from_state(&new, None, before);
        prop_assert_eq!(&state, &same);
        prop_assert_eq!(was.iter().any(|o| o.4 == Some(-1)), would.iter().any(|o| o.4 == Some(-2)));
        let (mut came, _) = from_state(&new, Some(&state), after);
        let (whole, _) = from_state(&new, None, &epochs);
        let later = whole.into_iter().filter(|o| o.0 >= before.len());
        let mut expected: Vec<Out> =
            later.map(|o| (o.0 - before.len(), o.1, o.2, o.3, o.4)).collect();
        came.sort();
        expected.sort();
        prop_assert_eq!(came, expected);
    }

    #[test]
    fn every_row_gets_what_was_known_of_its_time((own_times, epochs) in cases()) {
        let spec = spec(None, own_times);
        let mut expected: Vec<Out> = Vec::new();
        let mut said: Vec<Said> = Vec::new();
        for (number, (_, changes, rows)) in epochs.iter().enumerate() {
            said.extend(changes.iter().copied());
            expected.extend(rows.iter().map(|(device, time_us, revision)| {
                let value = holds(&said, *device, *time_us);
                (number, DEVICES[*device].to_owned(), *time_us, *revision, value)
            }));
        }
        expected.sort();
        for workers in [&[1][..], &[2], &[3], &[1, 3], &[2, 1, 3, 2]] {
            prop_assert_eq!(run(&spec, &epochs, workers), expected.clone(), "{:?}", workers);
        }
    }

    /// What is told last of every row is what the whole history says, whenever it was said.
    #[test]
    fn revised_rows_equal_the_whole_history((own_times, epochs) in cases()) {
        let spec = spec(Some(1_000), own_times);
        let out = run(&spec, &epochs, &[1]);
        let said: Vec<Said> = epochs.iter().flat_map(|e| e.1.iter().copied()).collect();
        let mut last: BTreeMap<(String, i64), (i64, Option<i64>)> = BTreeMap::new();
        for (_, device, time_us, revision, value) in &out {
            let before = last.insert((device.clone(), *time_us), (*revision, *value));
            prop_assert!(before.is_none_or(|b| b.0 < *revision), "revisions grow");
        }
        for (_, _, rows) in &epochs {
            for (device, time_us, _) in rows {
                let found = last[&(DEVICES[*device].to_owned(), *time_us)].1;
                prop_assert_eq!(found, holds(&said, *device, *time_us));
            }
        }
        for workers in [&[2][..], &[3], &[1, 3], &[2, 1, 3, 2]] {
            prop_assert_eq!(run(&spec, &epochs, workers), out.clone(), "{:?}", workers);
        }
    }

    /// Rows that are kept are bounded by time, and what is not kept is not revised.
    #[test]
    fn what_is_too_old_stays_as_it_is((own_times, epochs) in cases(), keep_us in 0..30_i64) {
        let spec = spec(Some(keep_us), own_times);
        let mut operator = Both(Enrich::new(spec.clone()).unwrap());
        let mut clocks = [i64::MIN; DEVICES.len()];
        let mut touched = [i64::MIN; DEVICES.len()];
        for (number, epoch) in epochs.iter().enumerate() {
            let mut emit = Emit::default();
            let tick = Tick { epoch: number as u64 + 1, time_us: epoch.0 };
            operator.epoch(&both(&spec, epoch), tick, &mut emit).unwrap();
            let mut out = Vec::new();
            note(number, &emit, &mut out);
            for row in &epoch.2 {
                // Who was silent for that long begins anew.
                let silent = touched[row.0] < epoch.0 - keep_us;
                clocks[row.0] = if silent { row.1 } else { clocks[row.0].max(row.1) };
                touched[row.0] = epoch.0;
            }
            let came = |o: &Out| {
                epoch.2.iter().any(|r| (DEVICES[r.0], r.1) == (o.1.as_str(), o.2))
            };
            for row in out.iter().filter(|o| !came(o)) {
                let device = DEVICES.iter().position(|d| *d == row.1).unwrap();
                prop_assert!(row.2 >= clocks[device] - keep_us, "{row:?} was let go");
            }
            let (tables, _) = operator.0.state.cut(true);
            for group in 0..crate::key::KEY_GROUPS {
                for key in tables.sorted(group) {
                    let least = key.state.kept.clock_us - keep_us;
                    prop_assert!(key.state.kept.iter().all(|(k, _)| k.0 >= least));
                }
            }
        }
        // A fleet that is silent for long leaves nothing but what the registry says, and of keys
        // whose rows had come again, that they had.
        let silent = (1_000_000, Vec::new(), Vec::new());
        let tick = Tick { epoch: 1_000, time_us: silent.0 };
        operator.epoch(&both(&spec, &silent), tick, &mut Emit::default()).unwrap();
        prop_assert!(operator.0.keeping.as_ref().unwrap().touched.is_empty());
        let (tables, _) = operator.0.state.cut(true);
        for group in 0..crate::key::KEY_GROUPS {
            prop_assert!(tables.sorted(group).iter().all(|k| k.state.kept.is_empty()));
            prop_assert!(tables.sorted(group).iter().all(|k| !k.state.is_empty()));
            let mut gone = tables.sorted(group).into_iter().filter_map(|k| k.state.kept.gone);
            prop_assert!(gone.all(|gone| gone.again > 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cuts_add_up_on_any_number_of_workers((own_times, epochs) in cases(), keep in any::<bool>()) {
        let spec = spec(keep.then_some(20), own_times);
        let epochs: Vec<(i64, RecordBatch)> =
            epochs.iter().map(|e| (e.0, both(&spec, e))).collect();
        let make =
            || Box::new(Both(Enrich::new(spec.clone()).unwrap())) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

#[test]
fn unknown_rows_are_rejects_or_get_defaults() {
    let mut spec = spec(None, true);
    spec.missing = Missing::Reject;
    let epoch: EpochIn = (
        9,
        vec![(0, Change::Set, Some(10), Some(7)), (1, Change::Set, None, None)],
        vec![(0, 5, 0), (0, 10, 0), (1, 3, 0), (2, 3, 0)],
    );
    let mut operator = Both(Enrich::new(spec.clone()).unwrap());
    let mut emit = Emit::default();
    let tick = Tick { epoch: 1, time_us: 9 };
    operator.epoch(&both(&spec, &epoch), tick, &mut emit).unwrap();
    let mut out = Vec::new();
    note(0, &emit, &mut out);
    let row = |device: &str, time_us, value| (0, device.to_owned(), time_us, 0, value);
    assert_eq!(out, [row("a", 10, Some(7)), row("b", 3, None)]);
    let rejects = &emit.rejects[0];
    assert_eq!(rejects.num_rows(), 2);
    assert_eq!(rejects["reason"].as_string::<i32>().value(0), REASON_UNREGISTERED);
    let detail = rejects["detail"].as_string::<i32>().value(0);
    assert!(detail.contains("step `e`: the registry `limits` has nothing of \"a\""), "{detail}");

    spec.missing = Missing::Null;
    let revision = datafusion_physical_expr::expressions::col("revision", &spec.input).unwrap();
    spec.defaults = vec![Some(revision)];
    let mut operator = Both(Enrich::new(spec.clone()).unwrap());
    let mut emit = Emit::default();
    operator.epoch(&both(&spec, &epoch), tick, &mut emit).unwrap();
    let mut out = Vec::new();
    note(0, &emit, &mut out);
    let expected =
        [row("a", 5, Some(0)), row("a", 10, Some(7)), row("b", 3, Some(0)), row("", 3, Some(0))];
    assert_eq!(out, expected);
}

/// A registry can say much of each row, which is not put into one batch.
#[test]
fn much_text_comes_in_batches() {
    let mut spec = spec(Some(1_000), true);
    spec.columns = vec![1];
    let set = (0, Change::Set, None, Some(7));
    let rows: Vec<Row> = (0..300).map(|time_us| (0, time_us, 0)).collect();
    let mut operator = Both(Enrich::new(spec.clone()).unwrap());
    let mut counts = Vec::new();
    let later = (0, Change::Set, Some(10), Some(8));
    for epoch in [(9, vec![set], rows), (10, vec![later], Vec::new())] {
        let (mut emit, tick) = (Emit::default(), Tick { epoch: epoch.0 as u64, time_us: epoch.0 });
        operator.epoch(&both(&spec, &epoch), tick, &mut emit).unwrap();
        assert!(emit.rows.len() > 3, "{} batches", emit.rows.len());
        let text = |b: &RecordBatch| b.column(4).as_string::<i32>().value(0).to_owned();
        assert!(emit.rows.iter().all(|b| text(b) == if epoch.0 == 9 { "n7" } else { "n8" }));
        let times = |b: &RecordBatch| {
            b.column(1).as_primitive::<TimestampMicrosecondType>().values().to_vec()
        };
        counts.push(emit.rows.iter().flat_map(times).collect::<Vec<i64>>());
    }
    assert_eq!(counts, [(0..300).collect::<Vec<i64>>(), (10..300).collect()]);
}

#[test]
fn of_too_many_versions_the_oldest_is_forgotten() {
    let mut spec = spec(None, true);
    spec.registry.versions_max = 2;
    let set = |since| (0, Change::Set, Some(since), Some(since));
    let epoch: EpochIn =
        (1, vec![set(10), set(30), set(20)], vec![(0, 15, 0), (0, 20, 0), (0, 99, 0)]);
    let values: Vec<Option<i64>> = run(&spec, &[epoch], &[1]).into_iter().map(|o| o.4).collect();
    assert_eq!(values, [None, Some(20), Some(30)]);
}
