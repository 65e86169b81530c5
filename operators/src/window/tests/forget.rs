//! Keys that are forgotten and come back: as if they had never been away.

use std::collections::BTreeSet;

use super::*;
use crate::keys::KeyedStep;
use crate::reject::{KeysRefused, keys_refused};
use crate::spec::AtMemoryMax;
use crate::system::late_schema;

const IDLE_US: i64 = 1_000;

/// Per epoch: what the tick adds, the readings.
type Steps = Vec<(i64, Vec<Reading>)>;

/// Devices that fall silent for long and come back, with old readings and new ones.
fn steps() -> impl Strategy<Value = Steps> {
    let reading = (0u8..5, -600i64..300, -1e3f64..1e3);
    let gap = prop_oneof![3 => 1i64..300, 2 => 1_000i64..3_000];
    prop::collection::vec((gap, prop::collection::vec(reading, 0..6)), 1..25).prop_map(
        |mut steps| {
            for (i, (_, readings)) in steps.iter_mut().enumerate() {
                readings.iter_mut().for_each(|r| r.1 += i as i64 * 60);
            }
            steps
        },
    )
}

/// What came out of an epoch: rows of each device, and late rows.
type Outcome = (Vec<Vec<String>>, Vec<RecordBatch>);

/// What came out per epoch, and how many keys there are at the end.
fn outcome(
    spec: &WindowSpec,
    steps: &Steps,
    keep_all: bool,
    restart: Option<usize>,
) -> (Vec<Outcome>, usize) {
    let (out, keys, refused) = outcome_of_closed(spec, steps, keep_all, restart, &[]);
    assert_eq!(refused, Vec::<String>::new());
    (out, keys)
}

/// The same, and the reasons of rejects; some epochs are closed to new keys.
fn outcome_of_closed(
    spec: &WindowSpec,
    steps: &Steps,
    keep_all: bool,
    restart: Option<usize>,
    closed: &[bool],
) -> (Vec<Outcome>, usize, Vec<String>) {
    let mut refused = Vec::new();
    let make = || {
        let mut operator = WindowOperator::new(spec.clone()).unwrap();
        operator.keep_all = keep_all;
        operator
    };
    let (mut operator, mut out, mut time_us) = (make(), Vec::new(), 0);
    for (i, (gap_us, readings)) in steps.iter().enumerate() {
        if restart == Some(i) {
            let saved = operator.save().unwrap();
            operator = make();
            // Dealt out in two parts, in another order.
            let middle = saved.num_rows() / 2;
            let cut =
                |row: &usize| saved.column(0).slice(*row, 1) != saved.column(0).slice(row - 1, 1);
            let middle = (1..=middle).rev().find(cut).unwrap_or_default();
            operator.load(&saved.slice(middle, saved.num_rows() - middle)).unwrap();
            operator.load(&saved.slice(0, middle)).unwrap();
        }
        time_us += gap_us;
        let closed = closed.get(i).copied().unwrap_or_default();
        let mut emit = Emit { closed, ..Emit::default() };
        let tick = Tick { epoch: i as u64 + 1, time_us };
        operator.epoch(&batch(readings), tick, &mut emit).unwrap();
        for rejects in &emit.rejects {
            let reasons = rejects["reason"].as_string::<i32>().iter();
            refused.extend(reasons.map(|r| r.unwrap().to_owned()));
        }
        let rows = (0..5).map(|device| rows_of(&emit.rows, &format!("d{device}")));
        out.push((rows.collect(), emit.late));
    }
    (out, operator.interner.len(), refused)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn forgetting_shows_in_no_row(
        steps in steps(),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (7, 7), (3_000, 500)]),
        keep in prop::option::of(0i64..300),
        fleet in any::<bool>(),
        restart in prop::option::of(0usize..25),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let clock = if fleet { Clock::Fleet } else { Clock::Device };
        let spec = WindowSpec { clock, ..spec(shape.0, shape.1, 20, late) };
        let (with, _) = outcome(&spec, &steps, false, restart);
        let (without, _) = outcome(&spec, &steps, true, None);
        prop_assert_eq!(with, without);
    }

    /// Those that were there before go on, also if they were forgotten meanwhile, and of the others
    /// each reading is a reject: as if they had never been sent.
    #[test]
    fn while_memory_is_used_up_only_keys_that_never_came_are_refused(
        steps in steps(),
        closed in prop::collection::vec(any::<bool>(), 25),
        keep in prop::option::of(0i64..300),
        restart in prop::option::of(0usize..25),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let spec = spec(60, 20, 20, late);
        let (mut known, mut admitted, mut refused) = (BTreeSet::new(), Steps::new(), 0);
        for ((gap_us, readings), closed) in steps.iter().zip(&closed) {
            if !closed {
                known.extend(readings.iter().map(|r| r.0));
            }
            let stay = readings.iter().copied().filter(|r| known.contains(&r.0));
            let stay: Vec<Reading> = stay.collect();
            refused += readings.len() - stay.len();
            admitted.push((*gap_us, stay));
        }
        let (wanted, keys) = outcome(&spec, &admitted, false, None);
        let found = outcome_of_closed(&spec, &steps, false, restart, &closed);
        prop_assert_eq!(found, (wanted, keys, vec!["memory_max".to_owned(); refused]));
    }
}

#[test]
fn who_waits_for_memory_or_has_no_key_refuses_nobody() {
    let (steps, closed) = (vec![(1, vec![(1, 10, 1.0), (2, 10, 1.0)])], [true]);
    let spec = spec(100, 100, 50, LatePolicy::Table);
    let refused = |spec: &WindowSpec| outcome_of_closed(spec, &steps, false, None, &closed).2.len();
    assert_eq!(refused(&spec), 2);
    let limits = KeyLimits { at_memory_max: AtMemoryMax::Wait, ..KeyLimits::default() };
    assert_eq!(refused(&WindowSpec { limits, ..spec.clone() }), 0);
    let limits = KeyLimits { at_keys_max: AtKeysMax::Stop, ..KeyLimits::default() };
    assert_eq!(refused(&WindowSpec { limits, ..spec.clone() }), 2, "nothing stops for memory");
    let step = KeyedStep { pipeline: "p", name: "w", limits: KeyLimits::default() };
    let emit = Emit { closed: true, ..Emit::default() };
    assert!(step.is_closed(&[0], &emit) && !step.is_closed(&[], &emit));
    assert!(!step.is_closed(&[0], &Emit::default()));
}

#[test]
fn a_key_that_comes_back_too_late_is_late_and_not_new() {
    let spec = spec(100, 100, 50, LatePolicy::Revise { keep_us: 500 });
    let steps = vec![
        (1, vec![(1, 10, 1.0), (2, 10, 1.0)]),
        (IDLE_US, vec![(2, 20, 1.0)]),
        (600, vec![]),
        (100, vec![(1, 20, 2.0), (1, 250, 3.0)]),
        (IDLE_US, vec![]),
    ];
    let (out, keys) = outcome(&spec, &steps[..3].to_vec(), false, None);
    assert_eq!((keys, out[1].0[1].len()), (1, 1), "closed, then forgotten; the other one stays");
    let (out, keys) = outcome(&spec, &steps, false, None);
    assert_eq!(keys, 1);
    let late = &out[3].1[0];
    assert_eq!((late.schema(), late.num_rows()), (late_schema(), 1), "the old reading");
    assert_eq!(out[4].0[1].len(), 1, "the new one");
}

/// A million keys that come, have a window, and never come back.
#[test]
fn memory_and_saved_state_are_flat_over_waves_of_new_keys() {
    let limits = KeyLimits { keys_max: 60_000, ..KeyLimits::default() };
    let late = LatePolicy::Revise { keep_us: 500 };
    let spec = WindowSpec { limits, ..spec(100, 100, 50, late) };
    let mut operator = WindowOperator::new(spec).unwrap();
    let (mut sizes, mut saved) = (Vec::new(), Vec::new());
    let mut windows = 0;
    for wave in 0..20i64 {
        let devices = (0..50_000).map(|i| format!("device-{wave}-{i}"));
        let times = std::iter::repeat_n(wave * 2_000, 50_000);
        let rows = RecordBatch::try_new(
            input(),
            vec![
                Arc::new(StringArray::from_iter_values(devices)),
                Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
                Arc::new(Float64Array::from(vec![1.0; 50_000])),
            ],
        );
        let mut emit = Emit::default();
        let tick = |i: i64| Tick { epoch: (wave * 3 + i) as u64, time_us: wave * 2_000 + i * 800 };
        operator.epoch(&rows.unwrap(), tick(1), &mut emit).unwrap();
        sizes.push(operator.size_bytes());
        operator.epoch(&batch(&[]), tick(2), &mut emit).unwrap();
        operator.epoch(&batch(&[]), Tick { epoch: 0, ..tick(3) }, &mut emit).unwrap();
        assert!(emit.rejects.is_empty() && emit.late.is_empty());
        windows += emit.rows.iter().map(RecordBatch::num_rows).sum::<usize>();
        assert_eq!(operator.interner.len(), 0, "all are forgotten");
        saved.push(operator.save().unwrap().get_array_memory_size());
    }
    assert_eq!(windows, 1_000_000);
    let later = |all: &[usize]| (all[2..].iter().copied().max(), all[1]);
    let (most, first) = later(&sizes);
    assert!(most < Some(first * 13 / 10), "{sizes:?}");
    let (most, first) = later(&saved);
    assert!(most < Some(first * 13 / 10), "{saved:?}");
    assert!(operator.size_bytes() < sizes[19] / 3, "{} of {}", operator.size_bytes(), sizes[19]);
}

#[test]
fn a_key_without_a_place_is_a_reject_and_the_others_do_not_notice() {
    let limits = KeyLimits { keys_max: 2, ..KeyLimits::default() };
    let spec = WindowSpec { limits, ..spec(100, 100, 50, LatePolicy::Table) };
    let many: Vec<Reading> = (0..250).map(|device| (device, 10, 1.0)).collect();
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let mut emit = Emit::default();
    operator.epoch(&batch(&many), tick(1), &mut emit).unwrap();
    operator.epoch(&batch(&many), tick(2), &mut emit).unwrap();
    operator.end(&mut emit).unwrap();
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    let refused = rows(&emit.rejects) / 2;
    assert!(refused > 0, "some group has three of 250 keys");
    assert_eq!(rows(&emit.rows) + refused, 250);
    let counted: i64 =
        emit.rows.iter().flat_map(|r| r.column(8).as_primitive::<Int64Type>().values()).sum();
    assert_eq!(counted, 2 * (250 - refused as i64), "both readings of all others");
    let rejects = &emit.rejects[0];
    assert_eq!(rejects["reason"].as_string::<i32>().value(0), "keys_max");
    let detail = rejects["detail"].as_string::<i32>().value(0);
    assert!(detail.starts_with("step `w`: its key is new") && detail.contains("= 2"), "{detail}");
    let counted = KeysRefused { pipeline: "p", step: "w", keys_max: 2, rows: refused as u64 };
    assert_eq!(keys_refused(rejects), [counted]);

    let stop = KeyLimits { at_keys_max: AtKeysMax::Stop, ..limits };
    let mut operator = WindowOperator::new(WindowSpec { limits: stop, ..spec }).unwrap();
    let error = operator.epoch(&batch(&many), tick(1), &mut Emit::default()).unwrap_err();
    assert!(error.to_string().contains("`keys_max` is 2"), "{error}");
    assert!(error.to_string().contains(r#"{"device":"d"#), "{error}");
}

/// Devices by the order in which they come, each twice: which find a place depends on nothing else.
#[test]
fn the_same_keys_find_places_on_any_number_of_workers_and_after_restarts() {
    let limits = KeyLimits { keys_max: 2, ..KeyLimits::default() };
    let spec = WindowSpec { limits, ..spec(100, 100, 50, LatePolicy::Table) };
    let epochs: Vec<(i64, RecordBatch)> = (0..12i64)
        .map(|i| {
            let devices = (0..60).map(|n| (((n * 7 + i * 31) % 250) as u8, i * 40, 1.0));
            (i * 400, batch(&devices.collect::<Vec<Reading>>()))
        })
        .collect();
    let make = || Box::new(WindowOperator::new(spec.clone()).unwrap()) as Box<dyn KeyedOperator>;
    check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
}
