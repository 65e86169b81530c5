//! Pauses in the middle of windows that are longer than `idle_close`: they close at their ends.

use super::calendar::calendar;
use super::*;
use crate::spec::{Period, ZoneOf};
use crate::zone::Zone;

const DAY_US: i64 = 86_400_000_000;
const IDLE_US: i64 = 100;
const DISORDER_US: i64 = 50;

/// Windows that are longer than `idle_close`.
fn long(size_us: i64, slide_us: i64, late: LatePolicy) -> WindowSpec {
    let mut spec = spec(size_us, slide_us, DISORDER_US, late);
    spec.idle_close_us = IDLE_US;
    spec
}

fn rows_in(emit: &Emit) -> usize {
    emit.rows.iter().map(RecordBatch::num_rows).sum()
}

#[test]
fn a_long_window_closes_at_its_end_and_not_by_pauses() {
    let (size_us, keep_us) = (100_000, 500);
    for late in [LatePolicy::Revise { keep_us }, LatePolicy::Table] {
        let keep_us = if late == LatePolicy::Table { 0 } else { keep_us };
        let mut operator = WindowOperator::new(long(size_us, size_us, late)).unwrap();
        let (mut emit, mut epoch) = (Emit::default(), 0);
        let mut at = |operator: &mut WindowOperator, time_us, readings: &[Reading]| {
            epoch += 1;
            operator.epoch(&batch(readings), Tick { epoch, time_us }, &mut emit).unwrap();
            (rows_in(&emit), emit.late.len())
        };
        // A reading every 10,000 µs, 10 µs ahead; each pause is longer than `revise_for`, too.
        for i in 0..5 {
            let time_us = i * 10_000;
            assert_eq!(at(&mut operator, time_us, &[(1, time_us + 10, 1.0)]), (0, 0));
            assert_eq!(at(&mut operator, time_us + IDLE_US, &[]), (0, 0));
            assert_eq!(at(&mut operator, time_us + 5_000, &[]), (0, 0));
        }
        let end_us = OFFSET + size_us - 10 + DISORDER_US;
        assert_eq!(at(&mut operator, end_us - 1, &[]), (0, 0));
        assert_eq!(at(&mut operator, end_us, &[]), (1, 0), "its end, by the ticks");
        if keep_us > 0 {
            at(&mut operator, end_us + keep_us - 1, &[]);
            assert_eq!(operator.interner.len(), 1, "it can still be revised");
        }
        at(&mut operator, end_us + keep_us, &[]);
        assert_eq!(operator.interner.len(), 0, "nothing is left to wait for");
        let mut result = Result::new();
        collect(&emit, &mut result);
        assert_eq!(result[&("d1".to_owned(), OFFSET)], (0, 5, 5, 1.0, 1.0, 1.0, 0.0));
    }
}

/// The ends of windows while a key is silent, hopping ones as well, one at a time.
#[test]
fn a_silent_key_closes_each_window_at_its_own_end() {
    let late = LatePolicy::Revise { keep_us: 1_000_000 };
    let mut operator = WindowOperator::new(long(3_000, 1_000, late)).unwrap();
    operator.epoch(&batch(&[(1, OFFSET + 500, 1.0)]), tick(1), &mut Emit::default()).unwrap();
    for (window, end_us) in [1_000, 2_000, 3_000].into_iter().enumerate() {
        let due_us = tick(1).time_us + end_us - 500 + DISORDER_US;
        for (i, (time_us, expected)) in [(due_us - 1, 0), (due_us, 1)].into_iter().enumerate() {
            let epoch = 2 + 2 * window as u64 + i as u64;
            let mut emit = Emit::default();
            operator.epoch(&batch(&[]), Tick { epoch, time_us }, &mut emit).unwrap();
            assert_eq!(rows_in(&emit), expected, "window {window}, {time_us}");
        }
    }
}

/// Per epoch: how long after the one before it, and, by device, how old a reading is that comes.
type Steps = Vec<(i64, Vec<(u8, i64)>)>;

fn steps() -> impl Strategy<Value = Steps> {
    let gap = prop_oneof![3 => 1i64..80, 2 => IDLE_US..2_000, 1 => 2_000i64..9_000];
    // Often an epoch is nothing but a tick.
    let readings = prop::collection::vec((0u8..3, 0..=DISORDER_US), 0..3);
    prop::collection::vec((gap, readings), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// What comes within `disorder` is in the first and only row of its window, however long the
    /// pauses are, and however shortly a window can be revised.
    #[test]
    fn pauses_revise_nothing_and_lose_nothing(
        steps in steps(),
        shape in prop::sample::select(vec![(700, 700), (4_000, 1_000), (30_000, 30_000), (0, 0)]),
        keep in prop::option::of(0i64..300),
        restart in prop::option::of(0usize..60),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let is_day = shape == (0, 0);
        let spec = match is_day {
            true => {
                let day = calendar(Period::Day, ZoneOf::All(Zone::UTC), 0);
                WindowSpec { late, disorder_us: DISORDER_US, idle_close_us: IDLE_US, ..day }
            }
            false => long(shape.0, shape.1, late),
        };
        let mut operator = WindowOperator::new(spec.clone()).unwrap();
        let (mut time_us, mut all, mut result) = (0, Vec::new(), Result::new());
        let begin_us = if is_day { DAY_US - 20_000 } else { 0 };
        for (i, (gap_us, readings)) in steps.iter().enumerate() {
            if restart == Some(i) {
                let saved = operator.save().unwrap();
                operator = WindowOperator::new(spec.clone()).unwrap();
                operator.load(&saved).unwrap();
            }
            time_us += gap_us;
            let at = |(device, age_us): &(u8, i64)| (*device, begin_us + time_us - age_us, 1.0);
            let readings: Vec<Reading> = readings.iter().map(at).collect();
            let tick = Tick { epoch: i as u64 + 1, time_us: begin_us + time_us };
            let mut emit = Emit::default();
            operator.epoch(&batch(&readings), tick, &mut emit).unwrap();
            prop_assert!(emit.late.is_empty(), "{:?}", emit.late);
            collect(&emit, &mut result);
            all.extend(readings);
        }
        let mut emit = Emit::default();
        operator.end(&mut emit).unwrap();
        collect(&emit, &mut result);
        prop_assert!(result.values().all(|row| row.0 == 0), "{:?}", result);
        if is_day {
            let mut days: BTreeMap<(String, i64), Vec<f64>> = BTreeMap::new();
            for (device, at_us, value) in all {
                let start_us = at_us.div_euclid(DAY_US) * DAY_US;
                days.entry((format!("d{device}"), start_us)).or_default().push(value);
            }
            check(&result, &days);
        } else {
            check(&result, &oracle(&spec, &all));
        }
    }
}
