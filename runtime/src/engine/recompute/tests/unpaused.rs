//! Sessions of devices that make no pause, which a maximum cuts.

use super::sessions::{STEPS, all, check_revisions, home, is_right, of_stretch, plan, run, shown};
use super::sessions::{line, stretches};
use super::stored::kept;
use super::*;

/// Start, end, number.
type Span = (i64, i64, i64);

/// A reading of the value 1 every four minutes, from the first to the last one.
fn fours(first: i64, last: i64) -> impl Iterator<Item = Reading> {
    (first..=last).map(|i| (0, i * 4, 1))
}

/// Of these late readings of the value 1, each a group of its own or all together, sessions as
/// start, end, number: none that follows them begins as it did.
#[test]
fn late_readings_that_would_move_all_cuts_leave_them() {
    let cases: [(&[i64], &[Span]); 6] = [
        // Before the first.
        (&[0], &[(0, 0, 1), (4, 12, 3), (16, 24, 3), (28, 36, 3)]),
        // Two there, that are one session; in falling order, if they come one after the other.
        (&[0, 1], &[(0, 1, 2), (4, 12, 3), (16, 24, 3), (28, 36, 3)]),
        (&[0, -10], &[(-10, -10, 1), (0, 0, 1), (4, 12, 3), (16, 24, 3), (28, 36, 3)]),
        // In a session, and where the maximum had cut it.
        (&[0, 13], &[(0, 0, 1), (4, 13, 4), (16, 24, 3), (28, 36, 3)]),
        (&[0, 13, 15], &[(0, 0, 1), (4, 15, 5), (16, 24, 3), (28, 36, 3)]),
        (&[0, 5, 5], &[(0, 0, 1), (4, 12, 5), (16, 24, 3), (28, 36, 3)]),
    ];
    for (late, sessions) in cases {
        let late_readings = late.iter().map(|minute| (0, *minute, 1));
        let readings: Vec<Reading> =
            fours(1, 15).chain(late_readings).chain(fours(16, 17)).collect();
        let edges = run(&readings, 1);
        let mut lines: Vec<String> =
            sessions.iter().map(|s| line(&(0, s.0, s.1, s.2, s.2))).collect();
        lines.sort();
        blocking(async {
            for every in [1, 60] {
                let (home, worker) = home().caught_up(&edges, every * 10 * S).await;
                let now = shown(&home, "cuts").await;
                let first = START + 40 * MINUTE;
                let begins = |line: &&String| -> bool {
                    line.split(' ').nth(1).unwrap().parse::<i64>().unwrap() < first
                };
                let now: Vec<String> = now.iter().filter(begins).cloned().collect();
                assert_eq!(now, lines, "{late:?}, {every} together");
                assert_eq!(kept(&worker), 0);
                check_revisions(&home).await;
            }
        });
    }
}

/// What is open is not in the table of windows when the group is done, or it is there already.
#[test]
fn a_session_that_is_open_goes_on_whether_or_not_it_is_in_the_table() {
    for last in 8..12 {
        let readings: Vec<Reading> =
            fours(1, last).chain([(0, 0, 1)]).chain(fours(last + 1, 30)).collect();
        let edges = run(&readings, 1);
        let open = (0..9).map(|i| 4 + 12 * i).filter(|start| *start <= last * 4).max().unwrap();
        let is_over = |edge: &str, rows: &RecordBatch| -> Vec<bool> {
            if edge != "cuts" {
                return vec![true; rows.num_rows()];
            }
            let starts = rows["window_start"].as_primitive::<TimestampMicrosecondType>();
            starts.values().iter().map(|us| *us < START + open * MINUTE).collect()
        };
        blocking(async {
            let (at_once, worker) = home().caught_up(&edges, 60 * S).await;
            assert_eq!(kept(&worker), 0, "{last}");
            let mut home = home();
            home.write(&edges, is_over).await;
            let worker = home.worker(60 * S);
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!(kept(&worker), 0, "{last}");
            home.write(&edges, |edge, rows| match edge {
                "cuts" => is_over(edge, rows).into_iter().map(|is_over| !is_over).collect(),
                _ => vec![false; rows.num_rows()],
            })
            .await;
            assert_eq!(all(&home).await, all(&at_once).await, "{last}");
        });
    }
}

/// One session stays, as a reading of it is gone, and another one gets its late reading; then the
/// process dies before it has written that.
#[test]
fn a_kill_after_it_is_noted_which_session_stays_changes_nothing() {
    let late = [(0, 18, 1), (0, 0, 1)];
    let readings: Vec<Reading> = fours(1, 12).chain(late).chain(fours(13, 30)).collect();
    let edges = run(&readings, 1);
    blocking(async {
        let mut home = home();
        home.write(&edges, |edge, rows| match edge {
            "readings" => {
                let times = rows["received_time"].as_primitive::<TimestampMicrosecondType>();
                let gone_us = START + 30 * MINUTE + 3 * 10 * S;
                times.values().iter().map(|us| *us != gone_us).collect()
            }
            _ => vec![true; rows.num_rows()],
        })
        .await;
        let before = all(&home).await;
        let noted = async |home: &Home| home.ask("SELECT * FROM system.windows_kept").await;
        home.catch_up(&home.worker(360 * S), i64::MAX).await;
        let (after, stays) = (all(&home).await, noted(&home).await);
        assert_eq!(stays.len(), 1, "{stays:?}");
        assert!(shown(&home, "cuts").await.contains(&line(&(0, 0, 0, 1, 1))));
        let log = home.folder.path().join("p/cuts/_delta_log");
        let newest = std::fs::read_dir(&log).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        std::fs::remove_file(&newest).unwrap();
        assert_eq!(all(&home).await[1], before[1]);
        home.catch_up(&home.worker(360 * S), i64::MAX).await;
        assert_eq!((all(&home).await, noted(&home).await), (after, stays));
    });
}

/// A device that makes no pause for hours, whose readings are up to all of that time late.
fn without_a_pause(count: i64) -> impl Strategy<Value = Vec<Reading>> {
    let late = prop::collection::vec((0..count * 2, 0usize..50), 1..9);
    (late, 2i64..5).prop_map(move |(late, every)| {
        let is_late = |minute: i64| late.iter().any(|l| l.0 == minute);
        let minutes = (0..count).map(|i| i * every).filter(|minute| !is_late(*minute));
        let mut readings: Vec<Reading> = minutes.map(|minute| (0, minute, minute % 3)).collect();
        for (minute, back) in &late {
            let at = readings.len() - (*back).min(readings.len() / 2);
            readings.insert(at, (0, *minute, 2));
        }
        readings
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Where cuts cannot be moved, they stay, and no late reading is without effect.
    #[test]
    fn a_device_without_a_pause_has_all_of_its_readings(
        mut readings in without_a_pause(90), every in 1i64..9,
    ) {
        readings.extend([(0, 3_000, 1), (0, 3_010, 1), (0, 3_060, 1)]);
        let edges = run(&readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            prop_assert_eq!(kept(&worker), 0);
            prop_assert_eq!(home.waiting(&edges).await, Vec::<String>::new());
            for (table, max, without) in STEPS {
                let now = shown(&home, table).await;
                for stretch in stretches(&readings, max, without) {
                    let own = now.iter().filter(|line| of_stretch(line, &stretch)).cloned();
                    let own: Vec<String> = own.collect();
                    let is_right = is_right(&own, &stretch, &readings, max);
                    prop_assert!(is_right, "{table}: {stretch:?} {own:?}");
                }
            }
            check_revisions(&home).await;
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn sessions_whose_cuts_stay_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in without_a_pause(25), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}
