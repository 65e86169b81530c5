//! Sessions of devices that make no pause, which a maximum cuts.

use super::sessions::{STEPS, check_revisions, home, is_right, of_stretch, plan, run, shown};
use super::sessions::{all, stretches};
use super::stored::kept;
use super::*;

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
        mut readings in without_a_pause(90), every in 1i64..9, ends in any::<bool>(),
    ) {
        readings.extend([(0, 3_000, 1), (0, 3_010, 1), (0, 3_060, 1)].iter().filter(|_| ends));
        let edges = run(&readings, 1);
        blocking(async {
            let (home, worker) = home().caught_up(&edges, every * 20 * S).await;
            prop_assert_eq!(kept(&worker), 0);
            let waiting = home.waiting(&edges).await;
            prop_assert!(!ends || waiting.is_empty(), "{waiting:?}");
            for (table, max, without) in STEPS {
                let now = shown(&home, table).await;
                for stretch in stretches(&readings, max, without) {
                    let own = now.iter().filter(|line| of_stretch(line, &stretch)).cloned();
                    let own: Vec<String> = own.collect();
                    // What is open is not there yet.
                    let waits = !ends || is_told(&waiting, table, 0);
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
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn sessions_whose_cuts_stay_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in without_a_pause(25), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, all);
        prop_assert_eq!(in_parts, at_once);
    }
}
