//! What is too late and touches what is not final is put off, and told when all of that is final.

use super::*;
use crate::system::late_schema;

/// Of a row of `system.late`: device, time, `window_start`, `window_end`.
type Told = (String, i64, i64, i64);

/// What each epoch tells.
fn told(emits: &[Emit]) -> Vec<Vec<Told>> {
    let of_batch = |rows: &RecordBatch| -> Vec<Told> {
        assert_eq!(rows.schema(), late_schema());
        let times = |name: &str| rows[name].as_primitive::<TimestampMicrosecondType>().clone();
        let [time, start, end] = ["time", "window_start", "window_end"].map(times);
        let keys = rows["keys"].as_string::<i32>().clone();
        let row = |i| (keys.value(i).to_owned(), time.value(i), start.value(i), end.value(i));
        (0..rows.num_rows()).map(row).collect()
    };
    emits.iter().map(|emit| emit.late.iter().flat_map(of_batch).collect()).collect()
}

/// Whether a row tells that others can be done.
fn tells(row: &Told) -> bool {
    row.2 < row.1 && row.1 == row.3
}

fn is_put_off(row: &Told) -> bool {
    row.1 == row.2 && row.1 == row.3
}

/// The last reading of a device without a pause between it and one at a time.
fn end_of(readings: &[Reading], device: &str, time_us: i64, gap_us: i64) -> i64 {
    let of = |r: &&Reading| device.contains(&format!("\"d{}\"", r.0));
    let mut times: Vec<i64> = readings.iter().filter(of).map(|r| r.1).collect();
    times.sort_unstable();
    let after = times.into_iter().filter(|us| *us >= time_us);
    after.fold(time_us, |end_us, us| if us <= end_us + gap_us { us } else { end_us })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_put_off_is_told_when_what_it_touches_is_final(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..40,
        keep in 0i64..150,
        restart in prop::option::of(0usize..40),
    ) {
        let mut epochs = epochs;
        // Then each device says all that it can, and goes on long after that.
        for i in 0..10 {
            epochs.push((0..4).map(|device| (device, 100_000 + i * 1_000, i)).collect());
        }
        epochs.push((0..4).map(|device| (device, 150_000, 8)).collect());
        epochs.push((0..4).map(|device| (device, 200_000, 8)).collect());
        let late = LatePolicy::Revise { keep_us: keep };
        let spec = WindowSpec { puts_off: true, ..spec(shape, disorder, late) };
        let emits = run(&spec, &epochs, restart);
        let straight = run(&spec, &epochs, None);
        prop_assert_eq!(told(&emits), told(&straight), "a restart does not show");
        let without = run(&WindowSpec { puts_off: false, ..spec.clone() }, &epochs, None);
        prop_assert_eq!(text(&emits, None), text(&without, None), "windows are the same");
        let all = told(&emits);
        let count = all.iter().flatten().filter(|row| !tells(row)).count();
        prop_assert_eq!(count, late_rows(&without), "each is told once");

        let mut put_off: Vec<Told> = Vec::new();
        for (i, rows) in all.iter().enumerate() {
            let readings = epochs[..epochs.len().min(i + 1)].concat();
            put_off.extend(rows.iter().filter(|row| is_put_off(row)).cloned());
            let done = rows.iter().filter(|row| !is_put_off(row) && !tells(row)).cloned();
            let mut done: Vec<(Told, i64)> = done.map(|row| (row.clone(), row.3)).collect();
            // Late readings of counts are not put off, but told again.
            let is_count = matches!(spec.shape, Shape::Count { .. });
            for by in rows.iter().filter(|row| tells(row) && !is_count) {
                let of_key = put_off.iter().filter(|row| row.0 == by.0);
                prop_assert_eq!(of_key.map(|row| row.1).min(), Some(by.2), "from the first on");
                done.extend(put_off.extract_if(.., |row| row.0 == by.0).map(|row| (row, by.3)));
            }
            if let Shape::Session { gap_us, max_us: None } = spec.shape {
                for (row, final_us) in done {
                    let end_us = end_of(&readings, &row.0, row.1, gap_us);
                    prop_assert!(end_us + gap_us < final_us, "{row:?} {end_us} {final_us}");
                }
            }
        }
        prop_assert_eq!(put_off, Vec::<Told>::new(), "all is told in the end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Of counts, each window that a late reading is in is final, and before the time that is told
    /// then, when the reading comes, or when a row tells it afterwards.
    #[test]
    fn counts_tell_when_what_a_late_reading_is_in_has_become_final(
        epochs in readings(),
        (size, hop) in prop_oneof![Just((3, 3)), Just((4, 2)), Just((5, 1)), Just((6, 4))],
        disorder in 0i64..40,
        keep in 0i64..150,
        restart in prop::option::of(0usize..40),
    ) {
        let mut epochs = epochs;
        for i in 0..10 {
            epochs.push((0..4).map(|device| (device, 100_000 + i * 1_000, i)).collect());
        }
        epochs.push((0..4).map(|device| (device, 200_000, 8)).collect());
        let late = LatePolicy::Revise { keep_us: keep };
        let shape = Shape::Count { size, hop };
        let spec = WindowSpec { puts_off: true, ..spec(shape, disorder, late) };
        let all = told(&run(&spec, &epochs, restart));
        let all = all.iter().enumerate().flat_map(|(i, rows)| rows.iter().map(move |r| (i, r)));
        let mut of_device: BTreeMap<&str, Vec<(usize, &Told)>> = BTreeMap::new();
        all.for_each(|row| of_device.entry(row.1.0.as_str()).or_default().push(row));
        for (device, rows) in of_device {
            let in_time = taken(&epochs, device, &rows);
            for (epoch, late) in rows.iter().filter(|row| !tells(row.1)) {
                let before = in_time.partition_point(|r| r.0 <= late.1) as i64;
                let number = (before - 1).max(0);
                let first = ((number - size).div_euclid(hop) + 1).max(0);
                for window in first..=number / hop {
                    let from = (window * hop) as usize;
                    let members = &in_time[from..from + size as usize];
                    let end_us = members.iter().map(|r| r.0).max();
                    let came = members.iter().map(|r| r.1).max();
                    let is_told = rows.iter().any(|(at, row)| {
                        let is_of = row == late || tells(row) && row.2 <= late.1;
                        is_of && *epoch <= *at && came <= Some(*at) && end_us < Some(row.3)
                    });
                    prop_assert!(is_told, "{late:?} {window} {members:?} {rows:?}");
                }
                // What is not final then has later readings.
                let later = in_time.iter().filter(|r| r.1 > *epoch).map(|r| r.0).min();
                prop_assert!(later.is_none_or(|us| late.3 <= us + 1), "{late:?} {later:?}");
            }
        }
    }
}

/// The readings of a device that were not late, by time, each with its epoch; of what comes in one
/// epoch and is of one time, the last is late.
fn taken(epochs: &[Vec<Reading>], device: &str, rows: &[(usize, &Told)]) -> Vec<(i64, usize)> {
    let mut late: Vec<(i64, usize)> = Vec::new();
    late.extend(rows.iter().filter(|row| !tells(row.1)).map(|(epoch, row)| (row.1, *epoch)));
    let of = |r: &&Reading| device.contains(&format!("\"d{}\"", r.0));
    let all = epochs.iter().enumerate();
    let all = all.flat_map(|(epoch, readings)| {
        readings.iter().filter(of).map(move |reading| (reading.1, epoch))
    });
    let mut taken: Vec<(i64, usize)> = all.collect();
    for reading in late {
        let at = taken.iter().rposition(|other| *other == reading).unwrap();
        taken.remove(at);
    }
    taken.sort_unstable();
    taken
}

/// Nothing but time passes after a reading that joins two sessions, of which one is final.
#[test]
fn what_a_silent_device_sent_last_is_told_by_silence() {
    let shape = Shape::Session { gap_us: 30, max_us: None };
    let late = LatePolicy::Revise { keep_us: 0 };
    let spec = WindowSpec { puts_off: true, idle_close_us: 10, ..spec(shape, 0, late) };
    let mut epochs = vec![vec![(0, 1_000, 1)]];
    epochs.resize(40, Vec::new());
    epochs.push(vec![(0, 1_020, 2)]);
    epochs.resize(80, Vec::new());
    for restart in [None, Some(41)] {
        let told: Vec<Told> = told(&run(&spec, &epochs, restart)).concat();
        let [of, by] = &told[..] else { panic!("{told:?}") };
        assert!(is_put_off(of) && of.1 == 1_020, "{told:?}");
        assert!(tells(by) && by.2 == 1_020 && by.3 > 1_050, "{told:?}");
    }
}

/// Of a device that makes no pause: what is late waits for a session after it that is cut, since
/// that may begin as it did; no pause is waited for.
#[test]
fn where_a_maximum_cuts_it_is_told_when_a_session_after_it_is_final() {
    let shape = Shape::Session { gap_us: 30, max_us: Some(100) };
    let spec = WindowSpec { puts_off: true, ..spec(shape, 0, LatePolicy::Revise { keep_us: 20 }) };
    let live = |from: i64, to: i64| (from..to).step_by(10).map(|us| (0, us, 1)).collect::<Vec<_>>();
    // All up to 180 is final, and the second session is open.
    let epochs = [live(0, 210), vec![(0, 3, 1), (0, 4, 1)], live(210, 320), vec![(0, 5, 1)]];
    for restart in [None, Some(1), Some(2), Some(3)] {
        let told = told(&run(&spec, &epochs, restart));
        assert!(told[1].len() == 2 && told[1].iter().all(is_put_off), "{told:?}");
        let [by] = &told[2][..] else { panic!("{told:?}") };
        assert!(tells(by) && by.2 == 3 && by.3 == 290, "{told:?}");
        let [at_once] = &told[3][..] else { panic!("{told:?}") };
        assert!(!is_put_off(at_once) && at_once.3 == 290, "{told:?}");
    }
}
