//! Sessions after any delay of their readings.

use super::stored::{from_number, kept};
use super::*;

const SESSIONS: &str = r#"
[limits]
reading_every = "1s"

[[step]]
name = "some"
type = "filter"
where = "v <> 3"

[[step]]
name = "visits"
type = "window"
from = "some"
gap = "5m"
revise_for = "10m"
by = ["site", "device"]
select = { n = "count(*)", total = "sum(v)", late = "last(v)" }

[[step]]
name = "cuts"
type = "window"
from = "readings"
gap = "5m"
max = "12m"
revise_for = "3m"
quality = true
select = { n = "count(*)", total = "sum(v)", last = "last(v)" }

[[table]]
from = "readings"
[[table]]
from = "visits"
[[table]]
from = "cuts"
"#;

/// Of the steps: table, longest session, which values count.
pub(super) const STEPS: [(&str, i64, i64); 2] = [("visits", i64::MAX, 3), ("cuts", 12, -1)];

pub(super) fn plan() -> Plan {
    plan_of(SESSIONS)
}

pub(super) fn home() -> Home {
    Home::of(plan())
}

pub(super) fn run(readings: &[Reading], workers: usize) -> Edges {
    run_of(&plan(), readings, workers)
}

/// Device, start, end, number, sum.
pub(super) type Session = (usize, i64, i64, i64, i64);

/// The sessions of all readings, by a plain loop, those of each stretch together.
pub(super) fn stretches(readings: &[Reading], max: i64, without: i64) -> Vec<Vec<Session>> {
    let mut all = Vec::new();
    for device in 0..3 {
        let own = readings.iter().filter(|r| r.0 == device && r.2 != without);
        let mut own: Vec<(i64, i64)> = own.map(|r| (r.1, r.2)).collect();
        own.sort_by_key(|r| r.0);
        let mut before = i64::MIN / 2;
        for (minute, value) in own {
            if minute > before + 5 {
                all.push(Vec::new());
            }
            before = minute;
            let stretch: &mut Vec<Session> = all.last_mut().unwrap();
            match stretch.last_mut() {
                Some(s) if minute - s.1 < max => {
                    *s = (s.0, s.1, minute, s.3 + 1, s.4 + value);
                }
                _ => stretch.push((device, minute, minute, 1, value)),
            }
        }
    }
    all
}

pub(super) fn line(s: &Session) -> String {
    let time = |minute: i64| START + minute * MINUTE;
    format!("d{} {} {} {} {}", s.0, time(s.1), time(s.2), s.3, s.4)
}

pub(super) async fn shown(home: &Home, table: &str) -> Vec<String> {
    home.windows(table, "true").await
}

/// All that is in the tables.
pub(super) async fn all(home: &Home) -> Vec<Vec<String>> {
    let mut tables = Vec::new();
    for table in ["p.visits_revisions", "p.cuts_revisions"] {
        tables.push(home.ask(&format!("SELECT * FROM {table}")).await);
    }
    tables
}

pub(super) async fn check_revisions(home: &Home) {
    for (table, ..) in STEPS {
        home.check_revisions(table, "window_start").await;
    }
}

/// In time, then so much later that all of it is final, then late in any order.
fn long_ago() -> impl Strategy<Value = (Vec<Reading>, usize)> {
    // Of three devices here and there, or of one in a row, as from a buffer.
    let reading = |row: bool| match row {
        false => (0usize..3, 0i64..120, 0i64..9),
        true => (0..1, 0..60, 0..9),
    };
    let parts = (any::<bool>(), 0usize..30, 1usize..30);
    parts.prop_flat_map(move |(row, first, late)| {
        let of = |count: usize| prop::collection::vec(reading(row), count);
        (of(first), of(late)).prop_map(move |(mut first, mut late)| {
            first.sort_by_key(|r| r.1);
            if row {
                late.sort_by_key(|r| r.1);
            }
            let after = (0..3).map(|device| (device, 3_000, 5));
            let again = (0..3).map(|device| (device, 3_001, 5));
            let count = late.len();
            let all = first.iter().copied().chain(after).chain(again).chain(late);
            (all.collect(), count)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn sessions_of_long_ago_are_those_of_all_readings(
        (readings, _) in long_ago(), workers in 1usize..4, every in 1i64..9,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let mut home = home();
            home.write_all(&edges).await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            for (table, max, without) in STEPS {
                let stretches = stretches(&readings, max, without);
                let mut lines: Vec<String> = stretches.iter().flatten().map(line).collect();
                lines.sort();
                assert_eq!(shown(&home, table).await, lines, "{table}");
            }
            check_revisions(&home).await;
            // Of what is made of stored readings nobody knows whether anything was lost.
            let said = "SELECT count(*) FROM p.cuts_revisions WHERE complete AND late IS NOT NULL";
            let told = edges["cuts"].iter().map(|rows| {
                let counts = rows["rows"].as_primitive::<Int64Type>();
                counts.values().iter().filter(|rows| **rows > 0).count()
            });
            assert_eq!(home.ask(said).await, [told.sum::<usize>().to_string()]);
            // Once is enough.
            let before = all(&home).await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            assert_eq!(all(&home).await, before);
        });
    }

    /// However late: a session is that of all readings, or it waits, or its cuts stay.
    #[test]
    fn sessions_are_those_of_all_readings_or_wait(readings in readings(), every in 1i64..9) {
        let edges = run(&readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            assert_eq!(kept(&worker), 0);
            let waiting = home.waiting(&edges).await;
            for (table, max, without) in STEPS {
                let now = shown(&home, table).await;
                for stretch in stretches(&readings, max, without) {
                    let waits = is_told(&waiting, table, stretch[0].0);
                    let own = now.iter().filter(|line| of_stretch(line, &stretch)).cloned();
                    let own: Vec<String> = own.collect();
                    let is_right = is_right(&own, &stretch, &readings, max);
                    prop_assert!(waits || is_right, "{table}: {stretch:?} {own:?}");
                }
            }
            check_revisions(&home).await;
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A late reading that touches what is open, or can be revised, has its effect when that is
    /// final. Where a maximum cuts, the cuts may stay.
    #[test]
    fn sessions_that_have_ended_are_those_of_all_readings(
        readings in with_an_end(), every in 1i64..9, workers in 1usize..4,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            prop_assert_eq!(kept(&worker), 0);
            for (table, max, without) in STEPS {
                let now = shown(&home, table).await;
                let all = stretches(&readings, max, without);
                for stretch in &all {
                    let own = now.iter().filter(|line| of_stretch(line, stretch)).cloned();
                    let own: Vec<String> = own.collect();
                    let is_right = is_right(&own, stretch, &readings, max);
                    prop_assert!(is_right, "{table}: {stretch:?} {own:?}");
                }
                let is_of = |line: &String| all.iter().any(|stretch| of_stretch(line, stretch));
                prop_assert!(now.iter().all(is_of), "{table}: {now:?}");
            }
            check_revisions(&home).await;
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn sessions_that_are_put_off_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in with_an_end(), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}

/// Whether these are the sessions of a stretch, or have each of its readings once where a maximum
/// cuts.
pub(super) fn is_right(
    lines: &[String],
    stretch: &[Session],
    readings: &[Reading],
    max: i64,
) -> bool {
    let mut all: Vec<String> = stretch.iter().map(line).collect();
    all.sort();
    lines == all || have_all(lines, stretch, readings, max)
}

/// Whether sessions that a maximum cuts, anywhere, have each reading of a stretch once.
fn have_all(lines: &[String], stretch: &[Session], readings: &[Reading], max: i64) -> bool {
    let of = |line: &String| -> Session {
        let cells: Vec<&str> = line.split(' ').collect();
        let [start, end, n, total] = [1, 2, 3, 4].map(|i| cells[i].parse::<i64>().unwrap());
        (stretch[0].0, (start - START) / MINUTE, (end - START) / MINUTE, n, total)
    };
    let mut sessions: Vec<Session> = lines.iter().map(of).collect();
    sessions.sort();
    let is_right = |s: &Session| {
        let own = readings.iter().filter(|r| r.0 == s.0 && s.1 <= r.1 && r.1 <= s.2);
        let mut times: Vec<i64> = own.clone().map(|r| r.1).collect();
        times.sort();
        let has_pause = times.windows(2).any(|pair| pair[1] > pair[0] + 5);
        let (n, total) = own.fold((0, 0), |(n, total), r| (n + 1, total + r.2));
        !has_pause && s.2 - s.1 < max && (s.3, s.4) == (n, total)
    };
    let are_apart = sessions.windows(2).all(|pair| pair[0].2 < pair[1].1);
    let all: i64 = stretch.iter().map(|s| s.3).sum();
    max < i64::MAX
        && are_apart
        && sessions.iter().all(is_right)
        && sessions.iter().map(|s| s.3).sum::<i64>() == all
}

/// Whether a line is of a session that begins in a stretch.
pub(super) fn of_stretch(line: &str, stretch: &[Session]) -> bool {
    let cells: Vec<&str> = line.split(' ').collect();
    let start: i64 = cells[1].parse().unwrap();
    let (first, last) = (START + stretch[0].1 * MINUTE, START + stretch.last().unwrap().2 * MINUTE);
    cells[0] == format!("d{}", stretch[0].0) && first <= start && start <= last
}

/// Every three minutes.
fn minutes(range: Range<i64>) -> impl Iterator<Item = Reading> {
    range.step_by(3).map(|minute| (0, minute, 5))
}

/// After these, what is old is final.
const AFTER: [Reading; 2] = [(0, 3_000, 5), (0, 3_001, 5)];

/// What begins in the middle of a stretch, long after its first session, is computed again.
#[test]
fn a_long_stretch_is_that_of_all_readings_wherever_late_ones_begin() {
    let buffered: Vec<Reading> = AFTER.into_iter().chain(minutes(0..120)).collect();
    let one: Vec<Reading> = minutes(0..120).chain(AFTER).chain([(0, 100, 5)]).collect();
    for (readings, together) in [(&buffered, 50), (&buffered, 13), (&buffered, 3), (&one, 3)] {
        let edges = run(readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, together * 10 * S).await;
            for (table, max, without) in STEPS {
                let stretches = stretches(readings, max, without);
                let mut lines: Vec<String> = stretches.iter().flatten().map(line).collect();
                lines.sort();
                assert_eq!(shown(&home, table).await, lines, "{table}, {together} together");
            }
            assert_eq!(kept(&worker), 0);
            check_revisions(&home).await;
        });
    }
}

/// A stretch that goes on, looked at before its end and after it: it does not matter when.
#[test]
fn what_stays_keeps_its_stretch_whenever_it_is_looked_at() {
    let (late, later) = ([(0, 1, 5)], [(0, 58, 5)]);
    let live = minutes(0..33).chain(late).chain(minutes(33..63));
    let readings: Vec<Reading> = live.chain(AFTER).chain(later).collect();
    let edges = run(&readings, 1);
    // As when the first late reading was looked at before the stretch had ended.
    let until_us = START + 30 * MINUTE + 12 * 10 * S;
    let is_early = |edge: &str, rows: &RecordBatch| -> Vec<bool> {
        let (column, before_us) = match edge {
            "readings" => ("received_time", until_us),
            "late" => ("ingest_time", until_us),
            "visits" | "cuts" => ("window_end", START + 24 * MINUTE),
            _ => return vec![true; rows.num_rows()],
        };
        let times = rows[column].as_primitive::<TimestampMicrosecondType>();
        times.values().iter().map(|us| *us < before_us).collect()
    };
    blocking(async {
        let mut at_once = home();
        at_once.write_all(&edges).await;
        at_once.catch_up(&at_once.worker(10 * S), i64::MAX).await;
        let expected = all(&at_once).await;
        let mut in_parts = home();
        in_parts.write(&edges, is_early).await;
        in_parts.catch_up(&in_parts.worker(10 * S), until_us).await;
        let is_later = |edge: &str, rows: &RecordBatch| {
            is_early(edge, rows).into_iter().map(|is_early| !is_early).collect()
        };
        in_parts.write(&edges, is_later).await;
        in_parts.catch_up(&in_parts.worker(10 * S), i64::MAX).await;
        assert_eq!(all(&in_parts).await, expected);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Any readings may be deleted at any time: what is written then is right, or nothing is.
    #[test]
    fn no_session_is_made_of_a_part_of_its_readings(
        (readings, late) in long_ago(), every in 1i64..5, gone in 0usize..40, workers in 1usize..4,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let mut home = home();
            let gone = gone.min(readings.len() - late) as i64;
            home.write(&edges, |edge, rows| match edge {
                "readings" => from_number(gone, rows),
                _ => vec![true; rows.num_rows()],
            })
            .await;
            let before: Vec<Vec<String>> =
                [shown(&home, "visits").await, shown(&home, "cuts").await].into();
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            for ((table, max, without), before) in STEPS.into_iter().zip(before) {
                let mut right: Vec<String> = Vec::new();
                for had in readings.len() - late..=readings.len() {
                    let all = stretches(&readings[..had], max, without);
                    right.extend(all.iter().flatten().map(line));
                }
                for line in shown(&home, table).await {
                    prop_assert!(before.contains(&line) || right.contains(&line), "{line}");
                }
            }
            check_revisions(&home).await;
            Ok(())
        })?;
    }

    #[test]
    fn sessions_do_not_depend_on_when_tables_commit_or_on_stops(
        (readings, _) in long_ago(), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}

/// Sessions of a day that no pause divides, of which one part comes after the other: what is before
/// the last session that is there does not matter.
#[test]
fn a_long_stretch_may_come_group_after_group() {
    let late = (0..60).map(|i| (0, i * 4, i % 3));
    let readings: Vec<Reading> = [(0, 3_000, 1), (0, 3_001, 1)].into_iter().chain(late).collect();
    let edges = run(&readings, 1);
    blocking(async {
        for every in [1, 5, 60] {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            for (table, max, without) in STEPS {
                let stretches = stretches(&readings, max, without);
                let mut lines: Vec<String> = stretches.iter().flatten().map(line).collect();
                lines.sort();
                assert_eq!(shown(&home, table).await, lines, "{table}");
            }
            assert_eq!(kept(&worker), 0);
        }
    });
}

/// A device that never pauses: what it was late with changes the sessions that it is in, although
/// the last of them is open. Where it joins what is open, it waits for a pause; where it would move
/// all cuts that follow, they stay.
#[test]
fn a_stretch_that_goes_on_changes_up_to_a_session_that_is_the_same() {
    let in_time = || (0..76).map(|i| (0, i * 4, i % 3));
    let in_time_only = |all: &[Reading]| all.iter().filter(|r| r.1 != 160).copied().collect();
    for late in [vec![(0, 42, 2), (0, 102, 1), (0, 7, 1)], vec![(0, 160, 1)]] {
        // Where the late reading joins two that go on, nothing is as it was.
        let waits = late.len() == 1;
        let first = in_time().filter(|r| !late.iter().any(|l| l.1 == r.1));
        let mut readings: Vec<Reading> = first.chain(late.clone()).collect();
        for ends in [false, true] {
            readings.extend(AFTER.iter().filter(|_| ends));
            let edges = run(&readings, 1);
            blocking(async {
                for every in [1, 60] {
                    let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
                    let waiting = home.waiting(&edges).await;
                    for (table, max, without) in STEPS {
                        let stay = waits && max < i64::MAX;
                        let of = if stay { in_time_only(&readings) } else { readings.clone() };
                        let mut sessions: Vec<Session> =
                            stretches(&of, max, without).into_iter().flatten().collect();
                        if stay {
                            let of = sessions.iter_mut().find(|s| s.1 == 156).unwrap();
                            *of = (0, 156, 160, of.3 + 1, of.4 + 1);
                        }
                        let mut lines: Vec<String> = sessions.iter().map(line).collect();
                        lines.sort();
                        let waits = waits && !stay && !ends;
                        assert_eq!(shown(&home, table).await == lines, !waits, "{table}");
                        assert_eq!(is_told(&waiting, table, 0), waits, "{table}");
                    }
                    assert_eq!(kept(&worker), 0);
                }
            });
        }
    }
}

/// What was late for months is not gone through again for each reading that was put off.
#[test]
fn of_what_was_late_before_the_first_that_was_put_off_nothing_is_read() {
    // One device is late for long, with readings that are newer than that of the other one.
    let mut readings: Vec<Reading> = vec![(1, 300, 1), (1, 600, 1), (1, 601, 1)];
    readings.extend((0..10).map(|i| (1, 100 + 10 * i, 2)));
    readings.extend([0, 8, 12, 16, 20].map(|minute| (0, minute, 1)));
    let history = readings.len();
    // Between a session that is final and one that is not, until all of it is.
    readings.extend([4, 100, 101, 200].map(|minute| (0, minute, 4)));
    let edges = run(&readings, 1);
    let told = edges["late"].iter().map(|rows| rows.num_rows() - rows["first_offset"].null_count());
    assert!(told.sum::<usize>() > 0, "some are put off and told");
    blocking(async {
        let mut home = home();
        home.catch_up_by_groups(&edges, history - 1, MINUTE).await;
        let late = home.ask("SELECT count(*) FROM system.late").await;
        assert_eq!(late, ["20"], "of each step, none of them put off");
        let mut removed = 0;
        for day in std::fs::read_dir(home.folder.path().join("system/late")).unwrap() {
            let day = day.unwrap();
            for file in std::fs::read_dir(day.path()).unwrap() {
                let path = file.unwrap().path();
                if path.extension().is_some_and(|e| e == "parquet") {
                    std::fs::remove_file(path).unwrap();
                    removed += 1;
                }
            }
        }
        assert!(removed > 1, "there are files of several groups");
        let after_us = START + 30 * MINUTE + history as i64 * 10 * S;
        home.write_between(&edges, after_us..i64::MAX, false).await;
        home.catch_up(&home.worker(MINUTE), i64::MAX).await;
        for (table, max, without) in STEPS {
            let stretches = stretches(&readings, max, without);
            let mut lines: Vec<String> = stretches.iter().flatten().map(line).collect();
            lines.sort();
            assert_eq!(shown(&home, table).await, lines, "{table}");
        }
    });
}
