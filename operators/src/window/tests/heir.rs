//! State that was made anew from a part of the epochs: windows from before it never come as if they
//! were new, and all others are those of a run over everything.

use std::collections::BTreeSet;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;

use super::calendar::calendar;
use super::*;
use crate::key::{owner, stable_hashes};
use crate::spec::{Period, QualitySpec, Shift, ZoneOf};
use crate::window::heir;

const MINUTE: i64 = 60_000_000;
const ZONES: [&str; 4] = ["Europe/Berlin", "Pacific/Kiritimati", "America/Anchorage", "UTC"];

/// Per epoch: how long after the one before it, and its readings: device and age.
type Steps = Vec<(i64, Vec<(u8, i64)>)>;

/// Devices that are silent for a while; some readings are late, some of them very.
fn steps() -> impl Strategy<Value = Steps> {
    let gap = prop_oneof![3 => 1i64..300, 1 => 500i64..3_000];
    let age = prop_oneof![3 => 1i64..60, 2 => 1i64..4_000];
    prop::collection::vec((gap, prop::collection::vec((0u8..7, age), 0..5)), 3..40)
}

/// Ticks and readings of the steps, in a unit of time; devices have names.
fn epochs(steps: &Steps, unit_us: i64, names: &dyn Fn(u8) -> String) -> Vec<(i64, RecordBatch)> {
    let mut now = 30_000;
    let epoch = |(gap, readings): &(i64, Vec<(u8, i64)>)| {
        now += gap;
        let devices = readings.iter().map(|r| names(r.0));
        let times = readings.iter().map(|r| (now - r.1) * unit_us);
        let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(devices)),
            Arc::new(times),
            Arc::new(Float64Array::from_iter_values(readings.iter().map(|r| r.1 as f64))),
        ];
        (now * unit_us, RecordBatch::try_new(input(), columns).unwrap())
    };
    steps.iter().map(epoch).collect()
}

fn run(operator: &mut WindowOperator, epochs: &[(i64, RecordBatch)], first: usize) -> Emit {
    let mut all = Emit::default();
    for (i, (time_us, rows)) in epochs.iter().enumerate() {
        let mut emit = Emit::default();
        let tick = Tick { epoch: (first + i) as u64 + 1, time_us: *time_us };
        operator.epoch(rows, tick, &mut emit).unwrap();
        all.rows.extend(emit.rows);
        all.late.extend(emit.late);
    }
    all
}

/// The parts of a state.
fn parts(operator: &mut WindowOperator) -> Vec<RecordBatch> {
    operator.cut(true).parts().unwrap().into_iter().map(|part| part.rows).collect()
}

fn of_worker(rows: &RecordBatch, index: usize, workers: usize) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..1], rows.num_rows(), &mut hashes);
    let own = hashes.iter().map(|hash| Some(owner(*hash, workers) == index));
    filter_record_batch(rows, &BooleanArray::from_iter(own)).unwrap()
}

/// Rows by device, each with its time in a column and all of it as text.
fn by_device(batches: &[RecordBatch], device: &str, time: usize) -> Vec<(String, i64, String)> {
    let mut out = Vec::new();
    for rows in batches {
        let times = rows.column(time).as_primitive::<TimestampMicrosecondType>();
        let devices = rows[device].as_string::<i32>();
        for i in 0..rows.num_rows() {
            let text = format!("{:?}", rows.slice(i, 1).columns());
            out.push((devices.value(i).to_owned(), times.value(i), text));
        }
    }
    out.sort();
    out
}

/// An operator with state.
fn loaded(spec: &WindowSpec, state: impl IntoIterator<Item = RecordBatch>) -> WindowOperator {
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    state.into_iter().for_each(|rows| operator.load(&rows).unwrap());
    operator
}

struct Case {
    spec: WindowSpec,
    epochs: Vec<(i64, RecordBatch)>,
    /// The first epoch of the part, and the first after the change.
    part: usize,
    change: usize,
}

impl Case {
    /// The time before the part, the whole run, and the heir, each up to the change.
    fn made(&self) -> (i64, WindowOperator, Vec<RecordBatch>) {
        let mut all = WindowOperator::new(self.spec.clone()).unwrap();
        run(&mut all, &self.epochs[..self.change], 0);
        let mut rebuilt = WindowOperator::new(self.spec.clone()).unwrap();
        run(&mut rebuilt, &self.epochs[self.part..self.change], self.part);
        let since_us = self.epochs[self.part - 1].0;
        let (rebuilt, before) = (parts(&mut rebuilt), parts(&mut all));
        let made = heir(&self.spec, &rebuilt, (&before, &[]), Some(since_us)).unwrap();
        let mut turned = before.clone();
        turned.reverse();
        assert_eq!(heir(&self.spec, &rebuilt, (&turned, &[]), Some(since_us)).unwrap(), made);
        (since_us, all, made.into_iter().map(|part| part.rows).collect())
    }

    /// What comes after the change, of the heir on so many workers.
    fn after(&self, state: &[RecordBatch], workers: usize) -> Emit {
        let mut all = Emit::default();
        for index in 0..workers {
            let own = |rows: &RecordBatch| of_worker(rows, index, workers);
            let mut operator = loaded(&self.spec, state.iter().map(own));
            let epochs = self.epochs[self.change..].iter().map(|(us, rows)| (*us, own(rows)));
            let mut emit = run(&mut operator, &epochs.collect::<Vec<_>>(), self.change);
            operator.end(&mut emit).unwrap();
            all.rows.extend(emit.rows);
            all.late.extend(emit.late);
        }
        all
    }

    /// `may_be_new`: windows of forgotten keys that begin before the part may come, if they had no
    /// reading, because their zone is not known.
    fn check(&self, may_be_new: bool) -> std::result::Result<(), TestCaseError> {
        let (since_us, mut all, state) = self.made();
        let workers = if self.spec.clock == Clock::Fleet { 1 } else { 3 };
        let made = self.after(&state, workers);
        let more = self.after(&state, 1);
        prop_assert_eq!(
            by_device(&made.rows, "device", 1),
            by_device(&more.rows, "device", 1),
            "on any number of workers"
        );
        let mut whole = run(&mut all, &self.epochs[self.change..], self.change);
        all.end(&mut whole).unwrap();
        let known: BTreeSet<String> = self.epochs[..self.change]
            .iter()
            .flat_map(|(_, rows)| rows.column(0).as_string::<i32>().iter().flatten())
            .map(str::to_owned)
            .collect();
        let is_gone = |row: &(String, i64, String)| known.contains(&row.0) && row.1 < since_us;
        let whole_rows = by_device(&whole.rows, "device", 1);
        let (gone, made_rows): (Vec<_>, Vec<_>) =
            by_device(&made.rows, "device", 1).into_iter().partition(is_gone);
        let wanted: Vec<_> = whole_rows.iter().filter(|row| !is_gone(row)).cloned().collect();
        prop_assert_eq!(made_rows, wanted);
        match may_be_new {
            true => prop_assert!(gone.iter().all(|row| whole_rows.contains(row))),
            false => prop_assert_eq!(gone, vec![]),
        }
        let Shape::Grid { size_us, slide_us, .. } = self.spec.shape else { return Ok(()) };
        // Each reading of a window that is gone is told as late.
        let late = late(&made);
        for (_, rows) in &self.epochs[self.change..] {
            let times = rows.column(1).as_primitive::<TimestampMicrosecondType>().values();
            for (device, time_us) in rows.column(0).as_string::<i32>().iter().zip(times) {
                let row = (format!(r#"{{"device":"{}"}}"#, device.unwrap()), *time_us);
                let first = OFFSET + (*time_us - OFFSET - size_us).div_euclid(slide_us) * slide_us;
                let is_gone = known.contains(device.unwrap()) && first + slide_us < since_us;
                prop_assert!(!is_gone || late.contains(&row), "{row:?}");
            }
        }
        Ok(())
    }
}

/// Keys and times of late readings.
fn late(emit: &Emit) -> BTreeSet<(String, i64)> {
    let rows = emit.late.iter().flat_map(|rows| {
        let times = rows["time"].as_primitive::<TimestampMicrosecondType>().values().to_vec();
        let keys = rows["keys"].as_string::<i32>().clone();
        times.into_iter().enumerate().map(move |(i, us)| (keys.value(i).to_owned(), us))
    });
    rows.collect()
}

fn policy(keep: Option<i64>) -> LatePolicy {
    keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_began_before_the_part_is_late_and_all_others_are_as_of_everything(
        steps in steps(),
        (part, change) in (0.0..1.0, 0.0..1.0),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (60, 40), (7, 7), (3_000, 500)]),
        keep in prop::option::of(0i64..3_000),
        fleet in any::<bool>(),
        quality in any::<bool>(),
    ) {
        let clock = if fleet { Clock::Fleet } else { Clock::Device };
        let quality =
            quality.then_some(QualitySpec { every_us: Some(7), keeps: true, repeated: true });
        let spec = spec(shape.0, shape.1, 20, policy(keep));
        // With one clock, a silent key is late for what that clock closed before it is forgotten,
        // and who is forgotten already is not.
        let idle_close_us = if fleet { 1_000_000 } else { spec.idle_close_us };
        let spec = WindowSpec { clock, quality, idle_close_us, ..spec };
        let part = 1 + ((steps.len() - 2) as f64 * part) as usize;
        let change = part + ((steps.len() - part) as f64 * change) as usize;
        let epochs = epochs(&steps, 1, &|device| format!("d{device}"));
        Case { spec, epochs, part, change }.check(false)?;
    }

    #[test]
    fn windows_of_calendars_begin_in_the_zone_of_their_key(
        steps in steps(),
        (part, change) in (0.0..1.0, 0.0..1.0),
        zone in prop::option::of(0..ZONES.len()),
        shifts in any::<bool>(),
        keep in prop::option::of(0i64..3_000),
    ) {
        let shift = |name: &str, hour: i64| {
            Shift { name: name.into(), from_us: hour * 60 * MINUTE }
        };
        let shifts = shifts.then(|| Period::Shifts(vec![shift("early", 6), shift("late", 14)]));
        let zones = match zone {
            Some(zone) => ZoneOf::All(crate::zone::Zone::parse(ZONES[zone]).unwrap()),
            None => ZoneOf::Key(0),
        };
        let spec = calendar(shifts.unwrap_or(Period::Day), zones, 0);
        let late = policy(keep.map(|keep| keep * MINUTE));
        let spec = WindowSpec { late, idle_close_us: 1_000 * MINUTE, ..spec };
        let part = 1 + ((steps.len() - 2) as f64 * part) as usize;
        let change = part + ((steps.len() - part) as f64 * change) as usize;
        let name = |device: u8| ZONES[usize::from(device) % ZONES.len()].to_owned();
        let epochs = epochs(&steps, MINUTE, &name);
        Case { spec, epochs, part, change }.check(zone.is_none())?;
    }
}

/// An epoch: the time of its tick, and readings.
fn epoch(time_us: i64, readings: &[(u8, i64)]) -> (i64, RecordBatch) {
    (time_us, batch(&readings.iter().map(|r| (r.0, r.1, 1.0)).collect::<Vec<_>>()))
}

/// Devices and starts of windows that come after the change, and how many readings are late.
fn outcome(case: &Case, state: &[RecordBatch]) -> (Vec<(String, i64)>, usize) {
    let emit = case.after(state, 1);
    let rows = by_device(&emit.rows, "device", 1).into_iter().map(|row| (row.0, row.1));
    (rows.collect(), emit.late.iter().map(RecordBatch::num_rows).sum())
}

fn windows(of: &[(&str, i64)]) -> Vec<(String, i64)> {
    of.iter().map(|(device, start_us)| ((*device).to_owned(), *start_us)).collect()
}

#[test]
fn forgotten_and_silent_keys_are_late_and_a_key_that_never_came_is_new() {
    let spec = spec(100, 100, 0, LatePolicy::Revise { keep_us: 2_000 });
    let epochs = vec![
        epoch(1_000, &[(0, 910)]),
        epoch(9_000, &[(1, 8_900), (2, 8_900)]),
        epoch(9_500, &[(2, 9_400)]),
        epoch(9_800, &[(0, 920), (1, 8_910), (2, 8_910), (3, 8_910), (2, 9_710)]),
    ];
    let case = Case { spec, epochs, part: 2, change: 3 };
    let (_, all, state) = case.made();
    assert_eq!(all.interner.len(), 2, "one is forgotten");
    let heir = loaded(&case.spec, state.clone());
    assert_eq!((heir.interner.len(), heir.remnants.iter().count()), (1, 2));
    let wanted = windows(&[("d2", 9_303), ("d2", 9_703), ("d3", 8_903)]);
    assert_eq!(outcome(&case, &state), (wanted, 3));
    // Nothing at all is left of the journal.
    let before = parts(&mut loaded(&case.spec, state));
    let made = heir_of(&case.spec, &[], &before, 9_600);
    let wanted = windows(&[("d2", 9_703), ("d3", 8_903)]);
    assert_eq!(outcome(&case, &made), (wanted, 3));
}

/// Of several steps that are gone one may have had these windows, and others have other rows.
#[test]
fn what_any_of_several_steps_knew_is_known() {
    let spec = spec(100, 100, 0, LatePolicy::Table);
    let state = |readings: &[(u8, i64)]| {
        let mut operator = WindowOperator::new(spec.clone()).unwrap();
        run(&mut operator, &[epoch(1_000, readings)], 0);
        parts(&mut operator)
    };
    let mut before = state(&[(0, 910), (1, 910)]);
    before.extend(state(&[(1, 950), (2, 910)]));
    before.push(batch(&[(0, 1, 1.0)]));
    let made = heir_of(&spec, &[], &before, 1_100);
    let mut heir = loaded(&spec, made);
    let readings = [(0, 920), (1, 920), (2, 920), (3, 920)];
    let emit = run(&mut heir, &[epoch(1_200, &readings), epoch(9_000, &[])], 1);
    let rows = by_device(&emit.rows, "device", 1).into_iter().map(|row| (row.0, row.1));
    assert_eq!(rows.collect::<Vec<_>>(), windows(&[("d3", 903)]));
    assert_eq!(late(&emit).len(), 3);
}

/// What was told early of a window that is open is below what comes of it, whatever is told early
/// from then on; and what was told of one that is over is below what a late reading makes of it.
#[test]
fn revisions_go_on_behind_those_that_were_told() {
    let late = LatePolicy::Revise { keep_us: 2_000 };
    let with = |early_us| WindowSpec { early_us, ..spec(100, 100, 0, late) };
    let epochs: Vec<_> = (0..30).map(|i| epoch(1_000 + i * 10, &[(0, 1_000 + i * 10)])).collect();
    let end = epoch(1_310, &[(0, 1_110), (0, 1_450)]);
    let revisions = |emit: &Emit| -> Vec<(i64, i64)> {
        let of = |rows: &RecordBatch| {
            let starts = rows["window_start"].as_primitive::<TimestampMicrosecondType>().values();
            let revisions = rows["revision"].as_primitive::<Int64Type>().values();
            starts.iter().copied().zip(revisions.iter().copied()).collect::<Vec<_>>()
        };
        emit.rows.iter().flat_map(of).collect()
    };
    let mut before = WindowOperator::new(with(Some(10))).unwrap();
    let told = revisions(&run(&mut before, &epochs, 0));
    let before = parts(&mut before);
    for (early_us, since_us) in
        [(None, None), (Some(50), None), (Some(10), None), (None, Some(999))]
    {
        let spec = with(early_us);
        let mut rebuilt = WindowOperator::new(spec.clone()).unwrap();
        run(&mut rebuilt, &epochs, 0);
        let rebuilt = parts(&mut rebuilt);
        let made = heir(&spec, &rebuilt, (&before, &[]), since_us);
        let state = made.unwrap().into_iter().map(|part| part.rows);
        let mut heir = loaded(&spec, state);
        let after = revisions(&run(&mut heir, std::slice::from_ref(&end), 30));
        for start_us in [1_103, 1_203] {
            let last = |of: &[(i64, i64)]| {
                of.iter().filter(|row| row.0 == start_us).map(|row| row.1).collect::<Vec<_>>()
            };
            let (told, after) = (last(&told), last(&after));
            let next = told.iter().max().unwrap() + 1;
            assert_eq!(after.first(), Some(&next), "{early_us:?} {since_us:?} {start_us}");
        }
    }
}

#[test]
fn one_key_for_all_readings_is_known_as_well() {
    let mut spec = WindowSpec { keys: vec![], ..spec(100, 100, 0, LatePolicy::Table) };
    let aggregated = spec.aggregated_schema();
    for (i, (_, value)) in spec.select.iter_mut().enumerate() {
        *value = col(&format!("agg{i}"), &aggregated).unwrap();
    }
    let epochs = [
        epoch(1_000, &[(0, 910)]),
        epoch(1_050, &[]),
        epoch(1_200, &[(0, 920), (1, 1_110), (1, 1_210)]),
    ];
    for (part, live) in [(0, 1), (1, 0)] {
        let mut rebuilt = WindowOperator::new(spec.clone()).unwrap();
        run(&mut rebuilt, &epochs[part..2], part);
        let mut before = WindowOperator::new(spec.clone()).unwrap();
        run(&mut before, &epochs[..2], 0);
        let made = heir_of(&spec, &parts(&mut rebuilt), &parts(&mut before), 1_000);
        let mut heir = loaded(&spec, made);
        assert_eq!((heir.interner.len(), heir.remnants.iter().count()), (live, 1 - live));
        let emit = run(&mut heir, &epochs[2..], 2);
        let rows: usize = emit.rows.iter().map(RecordBatch::num_rows).sum();
        assert_eq!((rows, late(&emit).len()), (1, 1));
    }
}

fn heir_of(
    spec: &WindowSpec,
    rebuilt: &[RecordBatch],
    before: &[RecordBatch],
    since_us: i64,
) -> Vec<RecordBatch> {
    let made = heir(spec, rebuilt, (before, &[]), Some(since_us)).unwrap();
    made.into_iter().map(|part| part.rows).collect()
}

/// Its windows up to the newest reading may have had readings before the part; and where all keys
/// have one clock, those that it has ended were told.
#[test]
fn a_clock_that_was_ahead_before_the_part_stays_ahead() {
    let spec = spec(100, 100, 0, LatePolicy::Table);
    let epochs = vec![
        epoch(1_000, &[(0, 2_250), (1, 950), (2, 2_250)]),
        epoch(1_100, &[(0, 1_050), (1, 1_050)]),
        epoch(1_200, &[(0, 2_210), (0, 2_310), (1, 1_150), (2, 2_210), (2, 2_310)]),
    ];
    let case = Case { spec: spec.clone(), epochs: epochs.clone(), part: 1, change: 2 };
    let wanted = windows(&[("d0", 2_303), ("d1", 1_003), ("d1", 1_103), ("d2", 2_303)]);
    assert_eq!(outcome(&case, &case.made().2), (wanted, 2));
    let spec = WindowSpec { clock: Clock::Fleet, ..spec };
    let case = Case { spec, epochs, part: 1, change: 2 };
    let wanted = windows(&[("d0", 2_303), ("d2", 2_303)]);
    assert_eq!(outcome(&case, &case.made().2), (wanted, 3));
}

/// Of a group with too many forgotten keys it is not known which they were.
#[test]
fn keys_of_which_only_the_floor_of_their_group_is_left_are_late_too() {
    let limits = KeyLimits { keys_max: 2, ..KeyLimits::default() };
    let spec = WindowSpec { limits, ..spec(100, 100, 0, LatePolicy::Table) };
    let mut epochs = Vec::new();
    for wave in 1..6 {
        // Others are the first ones each time, since not all find a place.
        let mut devices: Vec<(u8, i64)> = (0..250).map(|d| (d, wave * 5_000 - 100)).collect();
        if wave % 2 == 0 {
            devices.reverse();
        }
        epochs.push(epoch(wave * 5_000, &devices));
        epochs.push(epoch(wave * 5_000 + 3_000, &[]));
    }
    // Only one comes in the part, and a while after the change all of them.
    epochs.push(epoch(30_000, &[(1, 29_900)]));
    epochs.push(epoch(35_000, &[]));
    for some in 0..125 {
        let time_us = 40_000 + i64::from(some) * 5_000;
        epochs.push(epoch(time_us, &[(some * 2, 24_910), (some * 2 + 1, 24_910)]));
        epochs.push(epoch(time_us + 3_000, &[]));
    }
    let case = Case { spec, epochs, part: 10, change: 12 };
    let (_, all, state) = case.made();
    assert!(all.remnants.iter().count() < 250, "some are lost");
    assert_eq!(outcome(&case, &state), (vec![], 250));
}

#[test]
fn of_a_step_with_other_keys_nothing_is_taken_over() {
    let spec = spec(100, 100, 0, LatePolicy::Table);
    let mut old = WindowOperator::new(spec.clone()).unwrap();
    run(&mut old, &[epoch(1_000, &[(0, 900), (1, 900)])], 0);
    let mut new = WindowOperator::new(spec.clone()).unwrap();
    run(&mut new, &[epoch(1_200, &[(1, 1_050)])], 1);
    let (rebuilt, before) = (parts(&mut new), parts(&mut old));
    let known = |before: &[RecordBatch]| {
        let heir = loaded(&spec, heir_of(&spec, &rebuilt, before, 1_100));
        let id = heir.interner.ids().next().unwrap();
        assert_eq!(heir.keys[id as usize].dropped, 10, "the window that begins at 1003");
        heir.remnants.iter().count()
    };
    assert_eq!(known(&before), 1);
    let other = |rows: &RecordBatch| {
        let names = rows.schema().fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        let numbers: ArrayRef =
            Arc::new(arrow::array::Int64Array::from_iter_values(0..rows.num_rows() as i64));
        let columns = std::iter::once(numbers).chain(rows.columns()[1..].iter().cloned());
        RecordBatch::try_from_iter(names.into_iter().zip(columns)).unwrap()
    };
    assert_eq!(known(&before.iter().map(other).collect::<Vec<_>>()), 0);
    let less = |rows: &RecordBatch| rows.project(&[1, 2, 3]).unwrap();
    assert_eq!(known(&before.iter().map(less).collect::<Vec<_>>()), 0);
}
