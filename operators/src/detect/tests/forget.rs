//! Keys that were silent for `forget_after` are new when they come back, and nothing else changes.

use super::*;

/// Per epoch: what the tick adds, the readings.
type Steps = Vec<(i64, Vec<Reading>)>;

/// Silences that end before `idle_close` (1,000), before `forget_after` (5,000), or later.
fn steps(gaps: impl Strategy<Value = i64>) -> impl Strategy<Value = Steps> {
    let value = prop_oneof![6 => -1.0..1.0_f64, 1 => Just(50.0)];
    let reading = (0..3_usize, value);
    prop::collection::vec((gaps, prop::collection::vec(reading, 0..6)), 1..40).prop_map(|steps| {
        let mut time = 0;
        let mut next = |(device, value): (usize, f64)| {
            time += 3;
            (DEVICES[device], time, Some(value))
        };
        steps.into_iter().map(|(gap, r)| (gap, r.into_iter().map(&mut next).collect())).collect()
    })
}

fn outcome(order: DetectOrder, steps: &Steps, restart: Option<usize>) -> Vec<Vec<RecordBatch>> {
    let (mut running, mut out, mut time_us) = (detector(order, 30), Vec::new(), 0);
    for (i, (gap_us, readings)) in steps.iter().enumerate() {
        if restart == Some(i) {
            let saved = running.save().unwrap();
            running = detector(order, 30);
            running.load(&saved).unwrap();
        }
        time_us += gap_us;
        let mut emit = Emit::default();
        running.epoch(&batch(readings), tick(i as u64 + 1, time_us), &mut emit).unwrap();
        out.push(emit.rows);
    }
    let mut emit = Emit::default();
    running.end(&mut emit).unwrap();
    out.push(emit.rows);
    out
}

/// The definition: whoever was silent for long enough is somebody else.
fn renamed(steps: &Steps) -> Vec<(i64, String, u64, u64)> {
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    let mut lives: BTreeMap<(&str, usize), Vec<Reading>> = BTreeMap::new();
    let mut life: BTreeMap<&str, usize> = BTreeMap::new();
    let mut time_us = 0;
    for (gap_us, readings) in steps {
        time_us += gap_us;
        // A tick at which a key is heard ends its silence first only where an epoch before it did.
        let heard: Vec<&str> = readings.iter().map(|r| r.0).collect();
        for (device, seen_us) in last.clone() {
            if !heard.contains(&device) && seen_us + 5_000 <= time_us {
                *life.entry(device).or_default() += 1;
                last.remove(device);
            }
        }
        for reading in readings {
            last.insert(reading.0, time_us);
            let number = life.get(reading.0).copied().unwrap_or_default();
            lives.entry((reading.0, number)).or_default().push(*reading);
        }
    }
    let mut all: Vec<_> = lives.values().flat_map(|readings| brute_force(readings)).collect();
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_key_that_was_silent_for_long_is_new(
        steps in steps(prop_oneof![4 => 1..900_i64, 1 => 1_000..4_000_i64, 1 => 5_000..9_000_i64]),
        restart in prop::option::of(0usize..40),
        arrival in any::<bool>(),
    ) {
        let order = if arrival { DetectOrder::Arrival } else { DetectOrder::EventTime };
        let out = outcome(order, &steps, restart);
        prop_assert_eq!(findings(&out), renamed(&steps));
    }
}

#[test]
fn memory_is_flat_over_waves_of_new_keys() {
    for order in [DetectOrder::Arrival, DetectOrder::EventTime] {
        let mut detector = detector(order, 30);
        let mut sizes = Vec::new();
        for wave in 0..12i64 {
            let devices = (0..30_000).map(|i| format!("device-{wave}-{i}"));
            let times = std::iter::repeat_n(wave * 10_000, 30_000);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(devices)),
                Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
                Arc::new(Float64Array::from(vec![1.0; 30_000])),
            ];
            let rows = RecordBatch::try_new(input(), columns).unwrap();
            let mut emit = Emit::default();
            let at = |i: i64| tick((wave * 2 + i) as u64, wave * 10_000 + i * 4_999);
            detector.epoch(&rows, at(0), &mut emit).unwrap();
            detector.epoch(&batch(&[]), at(1), &mut emit).unwrap();
            assert_eq!(detector.interner.len(), 30_000, "not yet");
            sizes.push(detector.size_bytes());
            detector.epoch(&batch(&[]), tick(0, wave * 10_000 + 5_000), &mut emit).unwrap();
            assert_eq!((detector.interner.len(), detector.save().unwrap().num_rows()), (0, 0));
        }
        assert!(sizes.iter().all(|size| *size < sizes[0] * 11 / 10), "{sizes:?}");
        assert!(detector.size_bytes() < sizes[0] / 10, "{} of {}", detector.size_bytes(), sizes[0]);
    }
}
