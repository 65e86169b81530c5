//! Counts after any delay of their readings.

use std::collections::BTreeSet;

use super::stored::kept;
use super::*;

const COUNTS: &str = r#"
[limits]
reading_every = "1s"

[[step]]
name = "some"
type = "filter"
where = "v <> 3"

[[step]]
name = "fours"
type = "window"
from = "some"
count = 4
revise_for = "10m"
by = ["site", "device"]
select = { n = "count(*)", total = "sum(v)", late = "last(v)" }

[[step]]
name = "slides"
type = "window"
from = "readings"
count = 6
hop = 2
revise_for = "3m"
quality = true
select = { n = "count(*)", total = "sum(v)", last = "last(v)" }

[[step]]
name = "samples"
type = "window"
from = "readings"
count = 6
hop = 4
revise_for = "3m"
select = { n = "count(*)", total = "sum(v)" }

[[table]]
from = "readings"
[[table]]
from = "fours"
[[table]]
from = "slides"
[[table]]
from = "samples"
"#;

/// Of the steps: table, size, hop, which value does not count.
const STEPS: [(&str, usize, usize, i64); 3] =
    [("fours", 4, 4, 3), ("slides", 6, 2, -1), ("samples", 6, 4, -1)];

pub(super) fn plan() -> Plan {
    plan_of(COUNTS)
}

fn home() -> Home {
    Home::of(plan())
}

fn run(readings: &[Reading], workers: usize) -> Edges {
    run_of(&plan(), readings, workers)
}

/// Which readings a step told to be late, by their numbers.
fn late(edges: &Edges, step: &str) -> BTreeSet<usize> {
    let mut numbers = BTreeMap::new();
    for rows in &edges["readings"] {
        let offsets = rows["journal_offset"].as_primitive::<Int64Type>();
        let times = rows["received_time"].as_primitive::<TimestampMicrosecondType>();
        for (offset, us) in offsets.values().iter().zip(times.values()) {
            numbers.insert(*offset, ((us - START - 30 * MINUTE) / (10 * S)) as usize);
        }
    }
    let mut late = BTreeSet::new();
    for rows in edges.get("late").into_iter().flatten() {
        let offsets = rows["journal_offset"].as_primitive::<Int64Type>();
        let [at, from] = ["time", "window_start"]
            .map(|column| rows[column].as_primitive::<TimestampMicrosecondType>());
        for row in 0..rows.num_rows() {
            // The others tell what has become final.
            let is_reading = at.value(row) == from.value(row);
            if is_reading && array_value_to_string(&rows["step"], row).unwrap() == step {
                late.insert(numbers[&offsets.value(row)]);
            }
        }
    }
    late
}

/// The windows of a device, by a plain loop: those of the readings that were not late, each with
/// the late ones whose place is behind one of its own.
fn lines(
    (table, size, hop, without): (&str, usize, usize, i64),
    device: usize,
    readings: &[Reading],
    late: &BTreeSet<usize>,
) -> Vec<String> {
    let own = readings.iter().enumerate().filter(|(_, r)| r.0 == device && r.2 != without);
    let mut own: Vec<(i64, bool, i64)> =
        own.map(|(number, r)| (r.1, late.contains(&number), r.2)).collect();
    own.sort_by_key(|r| (r.0, r.1));
    let in_time: Vec<usize> = (0..own.len()).filter(|i| !own[*i].1).collect();
    let mut lines = Vec::new();
    for number in (0..).take_while(|number| number * hop + size <= in_time.len()) {
        let from = if number == 0 { 0 } else { in_time[number * hop] };
        let to = in_time.get(number * hop + size).copied().unwrap_or(own.len());
        let members = &own[from..to];
        let time = |r: Option<&(i64, bool, i64)>| START + r.unwrap().0 * MINUTE;
        let (start, end) = (time(members.first()), time(members.last()));
        let total: i64 = members.iter().map(|r| r.2).sum();
        lines.push(format!("{table} d{device} {number} {start} {end} {} {total}", members.len()));
    }
    lines.sort();
    lines
}

async fn shown(home: &Home, table: &str, device: usize) -> Vec<String> {
    let time = |name: &str| format!("arrow_cast({name}, 'Int64')");
    let (start, end) = (time("window_start"), time("window_end"));
    home.ask(&format!(
        "SELECT '{table}', device, window_number, {start}, {end}, n, total FROM p.{table} WHERE \
         device = 'd{device}'"
    ))
    .await
}

/// All that is in the tables, whose revisions are whole.
pub(super) async fn all(home: &Home) -> [Vec<String>; 3] {
    home.whole(STEPS.map(|step| step.0), "window_number").await
}

fn each() -> impl Iterator<Item = ((&'static str, usize, usize, i64), usize)> {
    STEPS.into_iter().flat_map(|step| (0..3).map(move |device| (step, device)))
}

/// So much later that all before it is final, and all windows that this can be in.
fn after() -> impl Iterator<Item = Reading> {
    let minutes = (3_000..3_008).chain([3_100]);
    minutes.flat_map(|minute| (0..3).map(move |device| (device, minute, 1)))
}

/// On time or late, then what makes all of it final.
fn of_any_delay() -> impl Strategy<Value = Vec<Reading>> {
    readings().prop_map(|readings| readings.into_iter().chain(after()).collect())
}

/// In time, then so much later that all of it is final, then late in any
/// order; how many were in time.
fn long_ago() -> impl Strategy<Value = (Vec<Reading>, usize)> {
    let reading = || (0usize..3, 0i64..200, 0i64..9);
    let (first, late) = (prop::collection::vec(reading(), 0..90), 1usize..40);
    (first, late).prop_flat_map(move |(mut first, late)| {
        first.sort_by_key(|r| (r.1, r.0));
        prop::collection::vec(reading(), late).prop_map(move |late| {
            let all: Vec<Reading> = first.iter().copied().chain(after()).collect();
            let in_time = all.len();
            (all.into_iter().chain(late).collect(), in_time)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn counts_of_long_ago_have_all_late_readings_that_fall_into_them(
        (readings, in_time) in long_ago(), workers in 1usize..4, every in 1i64..9,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            for (step, device) in each() {
                let late = late(&edges, step.0);
                assert!(late.iter().all(|number| *number >= in_time), "{step:?} {late:?}");
                let lines = lines(step, device, &readings, &late);
                assert_eq!(shown(&home, step.0, device).await, lines, "{step:?}");
                if step.1 == step.2 {
                    // Every reading is in one window, but for those after the last whole one.
                    let of = |line: &String| -> usize {
                        line.split(' ').nth(5).unwrap().parse().unwrap()
                    };
                    let counted: usize = lines.iter().map(of).sum();
                    let all = readings.iter().filter(|r| r.0 == device && r.2 != step.3).count();
                    assert!(counted + step.1 > all, "{counted} of {all}");
                }
            }
            assert_eq!(kept(&worker), 0);
            // Once is enough.
            let before = all(&home).await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            assert_eq!(all(&home).await, before);
        });
    }

    /// However late, and however many of one time, and whatever of it was final when they came.
    #[test]
    fn counts_have_all_the_readings_that_fall_into_them(
        readings in of_any_delay(), every in 1i64..9,
    ) {
        let edges = run(&readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            for (step, device) in each() {
                let lines = lines(step, device, &readings, &late(&edges, step.0));
                assert_eq!(shown(&home, step.0, device).await, lines, "{step:?}");
            }
            assert_eq!(home.told(&worker).await, [] as [&str; 0]);
            all(&home).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Any readings may be deleted: what is written then is right, or nothing is, and that is told.
    #[test]
    fn no_count_is_made_of_a_part_of_its_readings(
        (readings, in_time) in long_ago(), every in 1i64..5, gone in 1usize..90,
    ) {
        let edges = run(&readings, 1);
        blocking(async {
            let mut home = home();
            home.write_and_delete(&edges, gone.min(in_time) as i64).await;
            let mut before = Vec::new();
            for (step, device) in each() {
                before.push(shown(&home, step.0, device).await);
            }
            let worker = home.worker(every * 20 * S);
            home.catch_up(&worker, i64::MAX).await;
            let told = home.told(&worker).await;
            for ((step, device), before) in each().zip(before) {
                let late = late(&edges, step.0);
                let had = (in_time..=readings.len()).map(|n| &readings[..n]);
                let right: Vec<Vec<String>> =
                    had.map(|had| lines(step, device, had, &late)).collect();
                let now = shown(&home, step.0, device).await;
                for line in &now {
                    let was_right = right.iter().any(|lines| lines.contains(line));
                    prop_assert!(before.contains(line) || was_right, "{line}");
                }
                let is_right = right.last() == Some(&now);
                prop_assert!(is_right || is_told(&told, step.0, device), "{step:?} {now:?}");
            }
            all(&home).await;
            Ok(())
        })?;
    }

    #[test]
    fn counts_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in prop_oneof![long_ago().prop_map(|all| all.0), of_any_delay()], every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}

/// Every reading came twice, so that each window of an odd size begins or ends between two of one
/// time; also the last window before months of silence, which has all late readings of that time.
#[test]
fn readings_of_one_time_are_told_apart_by_the_windows_beside() {
    let plan = plan_of(&COUNTS.replace("count = 4", "count = 5").replace("v <> 3", "v <> 7"));
    let twice = |minute: i64| [(0, minute, 1), (0, minute, 2)];
    let mut readings: Vec<Reading> = (0..20).flat_map(twice).collect();
    readings.extend((100_000..100_008).flat_map(twice));
    readings.push((0, 100_900, 1));
    readings.extend((0..40).map(|minute| (0, minute, 4)));
    let edges = run_of(&plan, &readings, 2);
    blocking(async {
        let mut home = Home::of(plan);
        home.write_all(&edges).await;
        let worker = home.worker(40 * S);
        home.catch_up(&worker, i64::MAX).await;
        let step = ("fours", 5, 5, 7);
        let lines = lines(step, 0, &readings, &late(&edges, "fours"));
        assert!(lines.iter().any(|line| line.contains(" 28 ")), "{lines:?}");
        assert_eq!(shown(&home, "fours", 0).await, lines);
        let told = home.told(&worker).await;
        assert!(!is_told(&told, "fours", 0), "{told:?}");
    });
}

/// Counts that overlap, of a device all of whose readings came twice: the bounds of the windows of
/// the days around tell nothing, so the readings are counted from the first window on. And those
/// around, where the first one is among them.
#[test]
fn windows_that_overlap_and_begin_at_one_time_have_their_own_late_readings() {
    let counts = COUNTS.replace("count = 6\nhop = 2", "count = 5\nhop = 2");
    let plan = plan_of(&counts.replace("v <> 3", "v <> 7"));
    for first_late in [20, 0] {
        let twice = |minute: i64| [(0, minute, 1), (0, minute, 2)];
        let mut readings: Vec<Reading> = (0..4_000).step_by(50).flat_map(twice).collect();
        readings.extend((100_000..100_004).flat_map(twice));
        readings.push((0, 100_900, 1));
        readings.extend((first_late..40).map(|i| (0, i * 101, 4)));
        let edges = run_of(&plan, &readings, 2);
        blocking(async {
            let home = Home::of(plan_of(&counts.replace("v <> 3", "v <> 7")));
            let (home, worker) = home.caught_up(&edges, 70 * S).await;
            for step in [("fours", 4, 4, 7), ("slides", 5, 2, -1), ("samples", 6, 4, -1)] {
                let lines = lines(step, 0, &readings, &late(&edges, step.0));
                assert_eq!(shown(&home, step.0, 0).await, lines);
            }
            assert_eq!(home.told(&worker).await, [] as [&str; 0]);
        });
    }
}

/// A device that was silent for months sends what is new, then what it had kept: windows of today
/// move to the time of these, and only their last revision tells where they are.
#[test]
fn windows_that_moved_far_are_where_they_are_now() {
    const DAY: i64 = 24 * 60;
    let of = |minutes: &[i64], value| -> Vec<Reading> {
        minutes.iter().map(|minute| (0, *minute, value)).collect()
    };
    for kept in [3, 6, 14] {
        let then = 100 * DAY;
        let first = of(&[0, then, then + 1, then + 2], 1);
        let kept: Vec<Reading> = (1..=kept).map(|day| (0, day * DAY, 2)).collect();
        let after = of(&[3, 4, 5, 6, 7, 8, 9, 10].map(|i| then + i), 1);
        let last = of(&[200 * DAY], 1);
        let too_late = of(&[80, 50, 99, 101].map(|day| day * DAY), 4);
        let readings = [first, kept, after, last, too_late].concat();
        let edges = run(&readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, 20 * S).await;
            for step in STEPS {
                let lines = lines(step, 0, &readings, &late(&edges, step.0));
                assert_eq!(shown(&home, step.0, 0).await, lines, "{step:?}");
            }
            assert_eq!(home.told(&worker).await, [] as [&str; 0]);
            all(&home).await;
        });
    }
}
