//! Windows of calendars against a plain oracle that asks chrono for the local time of each reading:
//! readings around the nights in which clocks are changed, of keys in many zones.

use chrono::{DateTime, Datelike, Duration, NaiveDateTime, TimeDelta, Timelike};
use chrono_tz::Tz;

use super::*;
use crate::spec::{CalendarSpec, Period, Shift, ZoneOf};
use crate::window::REASON_ZONE;
use crate::zone::Zone;

const MINUTE: i64 = 60_000_000;

/// Zones with a night near which the clocks are changed: by an hour, by half an hour, at midnight;
/// twice at midnight; by leaving out a day; and none.
const ZONES: [(&str, &str); 8] = [
    ("Europe/Berlin", "2026-03-29T00:00:00Z"),
    ("America/New_York", "2026-11-01T00:00:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),
    ("Africa/Cairo", "2026-04-23T22:00:00Z"),
    ("America/Sao_Paulo", "2018-02-18T02:00:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),
    ("Asia/Kathmandu", "2026-12-31T18:15:00Z"),
    ("UTC", "2024-02-29T00:00:00Z"),
];

fn us(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}

fn local(zone: &str, at_us: i64) -> NaiveDateTime {
    let zone: Tz = zone.parse().unwrap();
    DateTime::from_timestamp_micros(at_us).unwrap().with_timezone(&zone).naive_local()
}

fn shifts() -> Vec<Shift> {
    let shift = |name: &str, hour: i64| Shift { name: name.into(), from_us: hour * 60 * MINUTE };
    vec![shift("early", 6), shift("late", 14), shift("night", 22)]
}

/// What a window is called whose clocks show this.
fn name(period: &Period, local: NaiveDateTime) -> String {
    match period {
        Period::Day => local.date().to_string(),
        Period::Week { start } => {
            let days = (local.weekday().num_days_from_monday() + 7 - u32::from(*start)) % 7;
            (local.date() - Duration::days(i64::from(days))).to_string()
        }
        Period::Month => format!("{}-{}", local.year(), local.month()),
        Period::Quarter => format!("{} Q{}", local.year(), local.month().div_ceil(3)),
        Period::Year => local.year().to_string(),
        Period::Shifts(_) => match local.hour() {
            0..6 => format!("{} night", local.date() - Duration::days(1)),
            6..14 => format!("{} early", local.date()),
            14..22 => format!("{} late", local.date()),
            _ => format!("{} night", local.date()),
        },
    }
}

pub(super) fn calendar(period: Period, zone: ZoneOf, offset_us: i64) -> WindowSpec {
    let late = LatePolicy::Revise { keep_us: 400 * 1_440 * MINUTE };
    let shape = Shape::Calendar(CalendarSpec { period, zone, offset_us });
    WindowSpec { shape, ..spec(1, 1, 90 * MINUTE, late) }
}

/// Readings whose device is the name of its zone.
fn in_zones(readings: &[(&str, i64)]) -> RecordBatch {
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(readings.iter().map(|r| r.0)));
    let times = TimestampMicrosecondArray::from_iter_values(readings.iter().map(|r| r.1));
    let values: ArrayRef =
        Arc::new(Float64Array::from_iter_values(readings.iter().map(|r| (r.1 / MINUTE) as f64)));
    let columns = vec![names, Arc::new(times.with_timezone("UTC")) as ArrayRef, values];
    RecordBatch::try_new(input(), columns).unwrap()
}

fn epochs() -> impl Strategy<Value = Vec<Vec<(&'static str, i64)>>> {
    // Minutes around that night, some hours of each day and for some weeks.
    let reading = (0..ZONES.len(), prop_oneof![-600i64..600, -20_000i64..40_000], 0..MINUTE);
    let reading = reading.prop_map(|(zone, minute, rest)| {
        let (name, night) = ZONES[zone];
        (name, us(night) + minute * MINUTE + rest)
    });
    prop::collection::vec(prop::collection::vec(reading, 0..25), 1..12)
}

fn period() -> impl Strategy<Value = Period> {
    prop_oneof![
        3 => Just(Period::Day),
        3 => Just(Period::Shifts(shifts())),
        1 => (0u8..7).prop_map(|start| Period::Week { start }),
        1 => Just(Period::Month),
        1 => Just(Period::Quarter),
        1 => Just(Period::Year),
    ]
}

/// Start and end of a window, the number of its readings and the sum of their minutes.
type Rows = BTreeMap<(String, i64), (i64, i64, f64)>;

fn rows(emits: &[Emit], spec: &WindowSpec) -> Rows {
    let shifted = i64::from(!spec.shape.columns().is_empty()) as usize;
    let mut found = Rows::new();
    for batch in emits.iter().flat_map(|e| &e.rows) {
        assert_eq!(batch.schema(), spec.schema());
        let time = |i: usize| batch.column(i).as_primitive::<TimestampMicrosecondType>();
        let count = batch.column(3 + shifted).as_primitive::<Int64Type>();
        let mean = batch.column(4 + shifted).as_primitive::<Float64Type>();
        for row in 0..batch.num_rows() {
            let zone = batch.column(0).as_string::<i32>().value(row).to_owned();
            let sum = mean.value(row) * count.value(row) as f64;
            let value = (time(2).value(row), count.value(row), sum);
            let start_us = time(1).value(row);
            if shifted == 1 {
                let shift = batch.column(3).as_string::<i32>().value(row);
                assert!(name(&Period::Shifts(shifts()), local(&zone, start_us)).ends_with(shift));
            }
            found.insert((zone, start_us), value);
        }
    }
    found
}

fn run_zones(spec: &WindowSpec, epochs: &[Vec<(&str, i64)>], restart: usize) -> Vec<Emit> {
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let mut emits = Vec::new();
    for (i, readings) in epochs.iter().enumerate() {
        if restart == i {
            let state = operator.save().unwrap();
            operator = WindowOperator::new(spec.clone()).unwrap();
            operator.load(&state).unwrap();
        }
        let mut emit = Emit::default();
        operator.epoch(&in_zones(readings), tick(i as u64 + 1), &mut emit).unwrap();
        emits.push(emit);
    }
    let mut emit = Emit::default();
    operator.end(&mut emit).unwrap();
    emits.push(emit);
    emits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn calendars_equal_the_oracle(
        epochs in epochs(), period in period(), offset in prop::sample::select(vec![0, 6]),
        restart in 0usize..12,
    ) {
        let is_shift = matches!(period, Period::Shifts(_));
        let offset_us = if is_shift { 0 } else { offset * 60 * MINUTE };
        let spec = calendar(period.clone(), ZoneOf::Key(0), offset_us);
        let found = rows(&run_zones(&spec, &epochs, restart), &spec);
        let called = |zone: &str, at_us: i64| {
            name(&period, local(zone, at_us) - TimeDelta::microseconds(offset_us))
        };
        let mut expected: BTreeMap<(String, String), (i64, f64)> = BTreeMap::new();
        for (zone, at_us) in epochs.concat() {
            let entry = expected.entry((zone.to_owned(), called(zone, at_us))).or_default();
            *entry = (entry.0 + 1, entry.1 + (at_us / MINUTE) as f64);
        }
        let by_name: BTreeMap<(String, String), (i64, f64)> = found
            .iter()
            .map(|((zone, start_us), (_, n, sum))| {
                ((zone.clone(), called(zone, *start_us)), (*n, *sum))
            })
            .collect();
        prop_assert_eq!(found.len(), by_name.len(), "each window has one start");
        prop_assert_eq!(by_name.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (key, (n, sum)) in &expected {
            prop_assert_eq!(*n, by_name[key].0, "{:?}", key);
            prop_assert!((sum - by_name[key].1).abs() < 1e-3 * sum.abs(), "{:?}", key);
        }
        for ((zone, start_us), (end_us, ..)) in &found {
            let inside = called(zone, *start_us);
            prop_assert_ne!(&called(zone, start_us - 1), &inside, "{} begins earlier", zone);
            prop_assert_eq!(&called(zone, end_us - 1), &inside, "{} ends earlier", zone);
            prop_assert_ne!(&called(zone, *end_us), &inside, "{} ends later", zone);
        }
    }

    #[test]
    fn clocks_of_other_keys_do_not_matter(
        epochs in epochs(), period in period(), disorder in 0i64..600,
    ) {
        let mut spec = calendar(period, ZoneOf::Key(0), 0);
        spec.disorder_us = disorder * MINUTE;
        let all = run_zones(&spec, &epochs, 99);
        for (zone, _) in ZONES {
            let own = |e: &Vec<(&'static str, i64)>| {
                e.iter().filter(|r| r.0 == zone).copied().collect::<Vec<_>>()
            };
            let alone = run_zones(&spec, &epochs.iter().map(own).collect::<Vec<_>>(), 99);
            for (a, b) in all.iter().zip(&alone) {
                prop_assert_eq!(rows_of(&a.rows, zone), rows_of(&b.rows, zone));
            }
        }
    }

    #[test]
    fn calendars_are_cut_on_any_number_of_workers(epochs in epochs(), period in period()) {
        let spec = calendar(period, ZoneOf::Key(0), 0);
        let epochs: Vec<(i64, RecordBatch)> =
            epochs.iter().enumerate().map(|(i, e)| (i as i64 * 300, in_zones(e))).collect();
        let new = || WindowOperator::new(spec.clone()).unwrap();
        let make = || Box::new(new()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// The bounds of the days around a night, and their lengths in minutes.
#[test]
fn days_on_which_clocks_are_changed_have_their_length() {
    let cases = [
        ("Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", 23 * 60),
        ("Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", 25 * 60),
        ("America/New_York", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z", 23 * 60),
        ("America/New_York", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", 25 * 60),
        ("Australia/Lord_Howe", "2026-10-04T00:00:00Z", "2026-10-03T13:30:00Z", 23 * 60 + 30),
        ("Australia/Lord_Howe", "2026-04-05T00:00:00Z", "2026-04-04T13:00:00Z", 24 * 60 + 30),
        // Midnight is skipped: the day begins at one.
        ("Africa/Cairo", "2026-04-24T12:00:00Z", "2026-04-23T22:00:00Z", 23 * 60),
        ("America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", 23 * 60),
        // The hour before midnight comes twice, and midnight itself.
        ("America/Sao_Paulo", "2018-02-17T12:00:00Z", "2018-02-17T02:00:00Z", 25 * 60),
        ("America/Havana", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", 25 * 60),
        // A minute past midnight it was yesterday again, for an hour: that hour is today's.
        ("America/St_Johns", "2010-11-07T12:00:00Z", "2010-11-07T02:30:00Z", 25 * 60),
        // The day after the one that was left out.
        ("Pacific/Apia", "2011-12-30T12:00:00Z", "2011-12-30T10:00:00Z", 24 * 60),
    ];
    for (zone, noon, start, minutes) in cases {
        let zone_of = ZoneOf::All(Zone::parse(zone).unwrap());
        let spec = calendar(Period::Day, zone_of, 0);
        let emits = run_zones(&spec, &[vec![("a", us(noon))]], 9);
        let found: Vec<(i64, i64)> =
            rows_of_one(&emits).iter().map(|(from, to)| (*from, (to - from) / MINUTE)).collect();
        assert_eq!(found, [(us(start), minutes)], "{zone} {noon}");
    }
}

fn rows_of_one(emits: &[Emit]) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    for batch in emits.iter().flat_map(|e| &e.rows) {
        let time = |i: usize| batch.column(i).as_primitive::<TimestampMicrosecondType>();
        found.extend((0..batch.num_rows()).map(|row| (time(1).value(row), time(2).value(row))));
    }
    found
}

/// A window that is closed by the clock of its key closes at its end in its own zone, and the rows
/// of an epoch are in the order of their times, whatever numbers windows have.
#[test]
fn each_key_closes_by_its_own_calendar() {
    let mut spec = calendar(Period::Day, ZoneOf::Key(0), 0);
    spec.disorder_us = 0;
    let early = us("2026-01-10T12:00:00Z");
    let both = |at_us: i64| vec![("Asia/Tokyo", at_us), ("America/Los_Angeles", at_us)];
    let later = us("2026-01-11T15:30:00Z");
    let mut operator = WindowOperator::new(spec).unwrap();
    let mut emit = Emit::default();
    operator.epoch(&in_zones(&both(early)), tick(1), &mut emit).unwrap();
    assert!(emit.rows.is_empty());
    let tokyo = ("Asia/Tokyo", us("2026-01-10T15:00:00Z"));
    operator.epoch(&in_zones(&[tokyo]), tick(2), &mut emit).unwrap();
    let day = (us("2026-01-09T15:00:00Z"), us("2026-01-10T15:00:00Z"));
    assert_eq!(rows_of_one(std::slice::from_ref(&emit)), [day]);
    let mut emit = Emit::default();
    operator.epoch(&in_zones(&both(later)), tick(3), &mut emit).unwrap();
    let angeles = (us("2026-01-10T08:00:00Z"), us("2026-01-11T08:00:00Z"));
    let next_day = (us("2026-01-10T15:00:00Z"), us("2026-01-11T15:00:00Z"));
    assert_eq!(rows_of_one(std::slice::from_ref(&emit)), [angeles, next_day]);
}

#[test]
fn a_reading_without_a_zone_is_a_reject() {
    let mut operator = WindowOperator::new(calendar(Period::Day, ZoneOf::Key(0), 0)).unwrap();
    let (at_us, mut emit) = (us("2026-01-10T12:00:00Z"), Emit::default());
    let readings = [("UTC", at_us), ("Mars/Base", at_us), ("UTC", at_us), ("", at_us)];
    operator.epoch(&in_zones(&readings), tick(1), &mut emit).unwrap();
    operator.end(&mut emit).unwrap();
    assert_eq!(emit.rows[0].num_rows(), 1);
    let rejects = &emit.rejects[0];
    let text = |name: &str, row| rejects[name].as_string::<i32>().value(row).to_owned();
    assert_eq!((rejects.num_rows(), text("reason", 0)), (2, REASON_ZONE.to_owned()));
    assert_eq!(text("detail", 0), "step `w`: `device` is `Mars/Base`, which is no IANA time zone");
}
