//! States after any delay of their readings.

use super::stored::kept;
use super::*;

const STATES: &str = r#"
[limits]
reading_every = "1s"

[[step]]
name = "some"
type = "filter"
where = "v <> 3"

[[step]]
name = "high"
type = "window"
from = "some"
while = "v >= 5"
revise_for = "10m"
by = ["site", "device"]
select = { n = "count(*)", total = "sum(v)", late = "last(v)" }

[[step]]
name = "cycles"
type = "window"
from = "readings"
begin = "v >= 7"
until = "v = 1"
abort = "v = 4"
min = "2m"
max = "40m"
revise_for = "3m"
quality = true
select = { n = "count(*)", total = "sum(v)", last = "last(v)" }

[[table]]
from = "readings"
[[table]]
from = "high"
[[table]]
from = "cycles"
"#;

const TABLES: [&str; 2] = ["high", "cycles"];

pub(super) fn plan() -> Plan {
    plan_of(STATES)
}

fn home() -> Home {
    Home::of(plan())
}

fn run(readings: &[Reading], workers: usize) -> Edges {
    run_of(&plan(), readings, workers)
}

/// Minutes: start, end, number, sum.
type State = (i64, i64, i64, i64);

/// The states of one device that are over, by a plain loop, and the start of what is open at last.
fn states(table: &str, own: &[(i64, i64)]) -> (Vec<State>, Option<i64>) {
    let (mut over, mut open): (Vec<State>, Option<State>) = (Vec::new(), None);
    for (minute, value) in own.iter().filter(|r| table == "cycles" || r.1 != 3) {
        let begins = |value: i64| value >= if table == "high" { 5 } else { 7 };
        let mut close = |state: State, end: i64| {
            let least = if table == "high" { 1 } else { 2 };
            over.extend((end - state.0 >= least).then_some((state.0, end, state.2, state.3)));
        };
        let with = |s: State| (s.0, s.1, s.2 + 1, s.3 + value);
        let first = (*minute, 0, 1, *value);
        open = match open {
            Some(state) if table == "high" && begins(*value) => Some(with(state)),
            Some(state) if table == "high" => {
                close(state, *minute);
                None
            }
            Some(state) if minute - state.0 >= 40 => {
                close(state, state.0 + 40);
                begins(*value).then_some(first)
            }
            Some(_) if *value == 4 => None,
            Some(state) if *value == 1 && *minute > state.0 => {
                close(with(state), *minute);
                None
            }
            Some(state) => Some(with(state)),
            None => begins(*value).then_some(first),
        };
    }
    (over, open.map(|state| state.0))
}

/// The lines of a device, and where what is open at last begins.
fn lines(table: &str, device: usize, readings: &[Reading]) -> (Vec<String>, String) {
    let own = readings.iter().filter(|r| r.0 == device);
    let mut own: Vec<(i64, i64)> = own.map(|r| (r.1, r.2)).collect();
    own.sort_by_key(|r| r.0);
    let (over, open) = states(table, &own);
    let time = |minute: i64| START + minute * MINUTE;
    let line = |s: &State| format!("d{device} {} {} {} {}", time(s.0), time(s.1), s.2, s.3);
    let mut lines: Vec<String> = over.iter().map(line).collect();
    lines.sort();
    (lines, open.map_or_else(|| "nothing".to_owned(), |open| format!("d{device} {} ", time(open))))
}

/// Those that are shown of a device.
async fn shown(home: &Home, table: &str, device: usize) -> Vec<String> {
    home.windows(table, &format!("device = 'd{device}'")).await
}

/// All that is in the tables, whose revisions are whole.
pub(super) async fn all(home: &Home) -> [Vec<String>; 2] {
    home.whole(TABLES, "window_start").await
}

/// In time, then so much later that all of it is final, then late in any order; how many were in
/// time.
fn long_ago() -> impl Strategy<Value = (Vec<Reading>, usize)> {
    let reading = || (0usize..3, 0i64..200, 0i64..9);
    let (first, late) = (prop::collection::vec(reading(), 0..60), 1usize..40);
    (first, late).prop_flat_map(move |(mut first, late)| {
        first.sort_by_key(|r| r.1);
        prop::collection::vec(reading(), late).prop_map(move |late| {
            let after = [3_000, 3_010, 3_060].into_iter();
            let after = after.flat_map(|minute| (0..3).map(move |device| (device, minute, 1)));
            let all: Vec<Reading> = first.iter().copied().chain(after).collect();
            let in_time = all.len();
            (all.into_iter().chain(late).collect(), in_time)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn states_of_long_ago_are_those_of_all_readings(
        (readings, _) in long_ago(), workers in 1usize..4, every in 1i64..9,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            for (table, device) in TABLES.into_iter().flat_map(|t| (0..3).map(move |d| (t, d))) {
                let (lines, _) = lines(table, device, &readings);
                assert_eq!(shown(&home, table, device).await, lines, "{table} {device}");
            }
            assert_eq!(kept(&worker), 0);
            // Once is enough.
            let before = all(&home).await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            assert_eq!(all(&home).await, before);
        });
    }

    /// A late reading that touches what is open, or can be revised, has its effect when that is
    /// final.
    #[test]
    fn states_that_have_ended_are_those_of_all_readings(
        readings in with_an_end(), every in 1i64..9, workers in 1usize..4,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            let told = home.told(&worker).await;
            for (table, device) in TABLES.into_iter().flat_map(|t| (0..3).map(move |d| (t, d))) {
                let (lines, _) = lines(table, device, &readings);
                let now = shown(&home, table, device).await;
                assert_eq!(now, lines, "{table} {device} {told:?}");
            }
            assert_eq!(told, Vec::<String>::new());
            all(&home).await;
        });
    }

    /// However late: states are those of all readings, or it is told that they stay, or wait.
    #[test]
    fn states_are_those_of_all_readings_or_stay(readings in readings(), every in 1i64..9) {
        let edges = run(&readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            let mut told = home.told(&worker).await;
            told.extend(home.waiting(&edges).await);
            for (table, device) in TABLES.into_iter().flat_map(|t| (0..3).map(move |d| (t, d))) {
                let (lines, open) = lines(table, device, &readings);
                let mut now = shown(&home, table, device).await;
                // What is open is emitted at the end as it is.
                now.retain(|line| !line.starts_with(&open));
                if !is_told(&told, table, device) {
                    assert_eq!(now, lines, "{table} {device}");
                }
            }
            all(&home).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Any readings may be deleted: what is written then is right, or nothing is, and that is told.
    #[test]
    fn no_state_is_made_of_a_part_of_its_readings(
        (readings, in_time) in long_ago(), every in 1i64..5, gone in 1usize..60,
    ) {
        let edges = run(&readings, 1);
        blocking(async {
            let mut home = home();
            home.write_and_delete(&edges, gone.min(in_time) as i64).await;
            let mut before = Vec::new();
            for (table, device) in TABLES.into_iter().flat_map(|t| (0..3).map(move |d| (t, d))) {
                before.push(shown(&home, table, device).await);
            }
            let worker = home.worker(every * 20 * S);
            home.catch_up(&worker, i64::MAX).await;
            let told = home.told(&worker).await;
            let mut before = before.into_iter();
            for (table, device) in TABLES.into_iter().flat_map(|t| (0..3).map(move |d| (t, d))) {
                let before = before.next().unwrap();
                let had = (in_time..=readings.len()).map(|n| &readings[..n]);
                let right: Vec<Vec<String>> = had.map(|had| lines(table, device, had).0).collect();
                let now = shown(&home, table, device).await;
                for line in &now {
                    let was_right = right.iter().any(|lines| lines.contains(line));
                    prop_assert!(before.contains(line) || was_right, "{line}");
                }
                let is_right = right.last() == Some(&now);
                prop_assert!(is_right || is_told(&told, table, device), "{table} {device} {now:?}");
            }
            all(&home).await;
            Ok(())
        })?;
    }

    #[test]
    fn states_that_are_put_off_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in with_an_end(), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }

    #[test]
    fn states_do_not_depend_on_when_tables_commit_or_on_stops(
        (readings, _) in long_ago(), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}

/// A door that is open for a day, and a late reading that says that it was closed in between.
#[test]
fn a_state_that_is_long_is_gone_through_from_before_it() {
    let open = (0..48).map(|i| (0, i * 30, 6));
    let closed = [-100, -60, 1_440, 1_441, 1_500].map(|minute| (0, minute, 1));
    let mut readings: Vec<Reading> = closed.into_iter().chain(open).collect();
    readings.sort_by_key(|r| r.1);
    readings.extend([(0, 700, 1), (0, -70, 6), (0, 1_439, 2), (0, 710, 8)]);
    let edges = run(&readings, 2);
    blocking(async {
        for every in [1, 18] {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            let (lines, _) = lines("high", 0, &readings);
            assert_eq!((shown(&home, "high", 0).await, lines.len()), (lines.clone(), 3));
            assert_eq!(kept(&worker), 0);
        }
    });
}

/// A late reading that would end a state early has no effect, as a reading of the day on which that
/// began was deleted. So the state goes on, and a later one begins none in it.
#[test]
fn what_comes_after_a_late_reading_without_effect_is_in_the_state_that_goes_on() {
    let steps = STATES.replace("abort = \"v = 4\"\nmin = \"2m\"\nmax = \"40m\"\n", "");
    let in_time = [(-300, 2), (-200, 1), (-100, 7), (0, 2), (300, 1), (310, 2)];
    let after = [(3_000, 1), (3_010, 1), (3_060, 1)];
    let all = in_time.into_iter().chain(after).chain([(250, 1), (280, 7)]);
    let readings: Vec<Reading> = all.map(|(minute, value)| (0, minute, value)).collect();
    let edges = run_of(&plan_of(&steps), &readings, 1);
    blocking(async {
        for every_us in [10 * S, 360 * S] {
            let mut home = Home::of(plan_of(&steps));
            home.write_and_delete(&edges, 1).await;
            let before = shown(&home, "cycles", 0).await;
            assert_eq!(before.len(), 1, "{before:?}");
            let worker = home.worker(every_us);
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!(shown(&home, "cycles", 0).await, before);
            let both = if every_us == 10 * S { 2 } else { 1 };
            let kept = "SELECT time FROM system.windows_kept WHERE step = 'cycles'";
            assert_eq!(home.ask(kept).await.len(), both);
        }
    });
}

/// Late readings of the time at which a state begins end it at once and begin another one, which
/// has as many readings between the same bounds.
#[test]
fn a_state_can_begin_with_another_reading_of_the_same_time() {
    let in_time = [(100, 7), (105, 8), (110, 1), (3_000, 1), (3_010, 1), (3_060, 1)];
    let late = [(100, 4), (100, 5)];
    let all = in_time.into_iter().chain(late);
    let readings: Vec<Reading> = all.map(|(minute, value)| (0, minute, value)).collect();
    let edges = run(&readings, 1);
    blocking(async {
        for together in [1, 18] {
            let (home, worker) = home().caught_up(&edges, together * 10 * S).await;
            for table in TABLES {
                assert_eq!(shown(&home, table, 0).await, lines(table, 0, &readings).0, "{table}");
            }
            assert_eq!(kept(&worker), 0);
            self::all(&home).await;
        }
    });
}
