//! Windows around readings after any delay of these.

use super::stored::kept;
use super::*;

const AROUND: &str = r#"
[limits]
reading_every = "1s"

[[step]]
name = "some"
type = "filter"
where = "v <> 3"

[[step]]
name = "each"
type = "window"
from = "some"
before = "4m"
after = "3m"
revise_for = "6m"
by = ["site", "device"]
select = { n = "count(*)", total = "sum(v)", late = "last(v)" }

[[step]]
name = "rare"
type = "window"
from = "readings"
before = "30m"
at = "v >= 7"
revise_for = "2m"
quality = true
select = { n = "count(*)", total = "sum(v)", last = "last(v)" }

[[table]]
from = "readings"
[[table]]
from = "each"
[[table]]
from = "rare"
"#;

/// Of the steps: table, minutes before and after, the least value of a reading with a window, which
/// value does not count.
const STEPS: [(&str, i64, i64, i64, i64); 2] = [("each", 4, 3, 0, 3), ("rare", 30, 0, 7, -1)];

fn plan() -> Plan {
    plan_of(AROUND)
}

fn home() -> Home {
    Home::of(plan())
}

fn run(readings: &[Reading], workers: usize) -> Edges {
    run_of(&plan(), readings, workers)
}

/// The windows around all readings, by a plain loop.
fn lines(readings: &[Reading], step: (&str, i64, i64, i64, i64)) -> Vec<String> {
    let (_, before, after, least, without) = step;
    let counts = || readings.iter().filter(|r| r.2 != without);
    let mut lines = Vec::new();
    for (device, minute, _) in counts().filter(|r| r.2 >= least) {
        let (start, end) = (minute - before, minute + after);
        let inside = counts().filter(|r| r.0 == *device && (start..=end).contains(&r.1));
        let (n, total) = inside.fold((0, 0), |(n, total), r| (n + 1, total + r.2));
        let [start, end] = [start, end].map(|minute| START + minute * MINUTE);
        lines.push(format!("d{device} {start} {end} {n} {total}"));
    }
    lines.sort();
    lines.dedup();
    lines
}

/// Device and start.
fn start_of(line: &str) -> String {
    line.split(' ').take(2).collect()
}

async fn shown(home: &Home, table: &str) -> Vec<String> {
    home.windows(table, "true").await
}

/// All that is in the tables, whose revisions are whole.
async fn all(home: &Home) -> [Vec<String>; 2] {
    home.whole(STEPS.map(|step| step.0), "window_start").await
}

/// From some minutes late to hours, in any order.
fn delayed() -> impl Strategy<Value = Vec<Reading>> {
    let minute = prop_oneof![0i64..240, 150i64..190, 200i64..240, Just(-1440)];
    prop::collection::vec((0usize..3, minute, 0i64..9), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// However late: neither what is final nor what is open is left out, and nothing is twice.
    #[test]
    fn windows_around_readings_are_those_of_all_readings(
        readings in delayed(), workers in 1usize..4, every in 1i64..9,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            for step in STEPS {
                assert_eq!(shown(&home, step.0).await, lines(&readings, step), "{step:?}");
            }
            assert_eq!(kept(&worker), 0);
            // Once is enough.
            let before = all(&home).await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            assert_eq!(all(&home).await, before);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Any readings may be deleted: what is written then is right, or nothing is, and that is told.
    #[test]
    fn no_window_around_a_reading_is_made_of_a_part_of_its_readings(
        readings in delayed(), every in 1i64..5, gone in 1i64..80,
    ) {
        let edges = run(&readings, 1);
        blocking(async {
            let mut home = home();
            let gone = gone.min(readings.len() as i64);
            home.write_and_delete(&edges, gone).await;
            let mut before = Vec::new();
            for (table, ..) in STEPS {
                before.push(shown(&home, table).await);
            }
            let worker = home.worker(every * 20 * S);
            home.catch_up(&worker, i64::MAX).await;
            let told = "SELECT concat(keys, table_name, CAST(arrow_cast(time, 'Int64') AS \
                        VARCHAR)) FROM system.windows_kept";
            let told = if kept(&worker) > 0 { home.ask(told).await } else { Vec::new() };
            for (step, before) in STEPS.into_iter().zip(before) {
                let right = lines(&readings, step);
                let now = shown(&home, step.0).await;
                for line in &now {
                    // Right when it was written, of the readings that had come by then.
                    let had =
                        (1..=readings.len()).any(|n| lines(&readings[..n], step).contains(line));
                    prop_assert!(before.contains(line) || had, "{line}");
                }
                // What is not there any more has no window that could be missed, if not all do.
                let there = &readings[gone as usize..];
                let there: Vec<String> = lines(there, step).iter().map(|l| start_of(l)).collect();
                let is_meant = |line: &&String| step.0 == "each" || there.contains(&start_of(line));
                for line in right.iter().filter(is_meant).filter(|line| !now.contains(line)) {
                    let cells: Vec<&str> = line.split(' ').collect();
                    let is_told = |row: &&String| {
                        row.contains(&format!("\"{}\"", cells[0])) && row.contains(cells[1])
                            && row.contains(step.0)
                    };
                    prop_assert!(told.iter().any(|row| is_told(&row)), "{line} of {told:?}");
                }
            }
            all(&home).await;
            Ok(())
        })?;
    }

    #[test]
    fn windows_around_readings_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in delayed(), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}
