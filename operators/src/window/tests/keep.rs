//! State that was saved under one time for revisions goes on under another.

use super::*;

fn policy(keep: Option<i64>) -> LatePolicy {
    keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A window whose state was gone comes never again, whatever is asked for later: what is told
    /// of it after that is told by others.
    #[test]
    fn what_is_gone_stays_gone_when_windows_are_kept_for_longer(
        epochs in readings(),
        slide in prop::sample::select(vec![50i64, 25]),
        first in prop::option::of(0i64..200),
        then in prop::option::of(0i64..2_000),
        at in 1usize..20,
    ) {
        let mut operator = WindowOperator::new(spec(50, slide, 20, policy(first))).unwrap();
        let mut gone = BTreeMap::new();
        let mut result = Result::new();
        let mut late = 0;
        for (i, readings) in epochs.iter().enumerate() {
            if i == at {
                for id in operator.interner.ids() {
                    let name = operator.interner.bytes(id).to_vec();
                    gone.insert(name, operator.keys[id as usize].dropped);
                }
                let state = operator.save().unwrap();
                operator = WindowOperator::new(spec(50, slide, 20, policy(then))).unwrap();
                operator.load(&state).unwrap();
            }
            let mut emit = Emit::default();
            operator.epoch(&batch(readings), tick(i as u64 + 1), &mut emit).unwrap();
            // Asserts that no revision comes twice.
            collect(&emit, &mut result);
            late += emit.late.iter().map(RecordBatch::num_rows).sum::<usize>();
            for id in operator.interner.ids() {
                let dropped = gone.get(operator.interner.bytes(id)).copied();
                let dropped = dropped.unwrap_or(i64::MIN);
                prop_assert!(operator.keys[id as usize].dropped >= dropped);
            }
        }
        let mut emit = Emit::default();
        operator.end(&mut emit).unwrap();
        collect(&emit, &mut result);
        let in_windows: i64 = result.values().map(|r| r.1).sum();
        if slide == 50 {
            prop_assert_eq!(in_windows as usize + late, epochs.concat().len());
        }
    }
}
