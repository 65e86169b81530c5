//! Which rows come in which turn, whatever else is there.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::*;
use crate::key::owner;

/// The key column.
const KEY: &[usize] = &[0];

const MAX: TextMax = TextMax { turn: 1 << 10, key: 3 << 10 };

/// Rows of key, number and text.
fn batch(sequence: u64, rows: &[(u8, i64, usize)]) -> Batch {
    let keys = StringArray::from_iter_values(rows.iter().map(|r| format!("k{}", r.0)));
    let numbers = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
    let texts = StringArray::from_iter_values(rows.iter().map(|r| "x".repeat(r.2)));
    let columns: [(&str, ArrayRef); 3] =
        [("key", Arc::new(keys)), ("number", Arc::new(numbers)), ("text", Arc::new(texts))];
    Batch { sequence, rows: RecordBatch::try_from_iter(columns).unwrap() }
}

fn came(batches: Vec<Batch>) -> Came<'static> {
    Came { keys: Some(KEY), aside: false, batches }
}

fn hashes(batch: &Batch) -> Vec<u64> {
    Rows::of(&came(vec![batch.clone()])).swap_remove(0).hashes
}

/// The part of a batch that a worker gets.
fn own(batch: &Batch, index: usize, workers: usize) -> Batch {
    let mine = hashes(batch).into_iter().map(|hash| Some(owner(hash, workers) == index));
    let rows = filter_record_batch(&batch.rows, &mine.collect()).unwrap();
    Batch { sequence: batch.sequence, rows }
}

/// Key and number of each row.
fn told(batches: &[Batch]) -> Vec<(String, i64)> {
    let of_batch = |batch: &Batch| {
        let keys = batch.rows.column(0).as_string::<i32>().clone();
        let numbers = batch.rows.column(1).as_primitive::<Int64Type>().clone();
        let all = (0..keys.len()).map(move |row| (keys.value(row).to_owned(), numbers.value(row)));
        all.collect::<Vec<_>>()
    };
    batches.iter().flat_map(of_batch).collect()
}

/// The rows of both inputs by key group, in the order in which they come: a list per turn.
type Seen = BTreeMap<u16, Vec<[Vec<(String, i64)>; 2]>>;

/// What key groups see of turns on so many workers, and what is refused.
fn seen(inputs: &[Vec<Batch>; 2], workers: usize) -> (Seen, Vec<(usize, String, i64)>) {
    let (mut seen, mut refused) = (Seen::new(), Vec::new());
    for index in 0..workers {
        let own = |batches: &[Batch]| batches.iter().map(|b| own(b, index, workers)).collect();
        let turns = Turns::new(inputs.iter().map(|b| came(own(b))).collect(), MAX);
        for (input, rows) in turns.too_much().unwrap() {
            let rows = told(&[Batch { sequence: 0, rows }]);
            refused.extend(rows.into_iter().map(|(key, number)| (input, key, number)));
        }
        let turns: Vec<_> = turns.map(Result::unwrap).collect();
        let mores: Vec<bool> = turns.iter().map(|turn| turn.1).collect();
        assert!(mores.split_last().is_some_and(|(last, more)| !last && more.iter().all(|m| *m)));
        for (inputs, _) in turns {
            let all: Vec<u64> = inputs.iter().flatten().flat_map(hashes).collect();
            let bytes: u64 = inputs.iter().flatten().map(|b| weight(&b.rows)).sum();
            let keys: BTreeSet<u64> = all.iter().copied().collect();
            assert!(bytes <= MAX.turn || keys.len() == 1, "{bytes} bytes of {keys:?}");
            for group in keys.into_iter().map(key_group).collect::<BTreeSet<u16>>() {
                let of_group = |batches: &[Batch]| {
                    let rows = told(batches).into_iter().zip(batches.iter().flat_map(hashes));
                    rows.filter(|(_, h)| key_group(*h) == group).map(|(row, _)| row).collect()
                };
                let rows = [of_group(&inputs[0]), of_group(&inputs[1])];
                seen.entry(group).or_default().push(rows);
            }
        }
    }
    refused.sort();
    (seen, refused)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_a_key_group_sees_of_turns_depends_on_its_own_rows(
        rows in prop::collection::vec((0u8..60, 0usize..2, 0usize..900), 0..150),
        size in 1usize..30,
    ) {
        // One key has much more than the others.
        let much = |r: (u8, usize, usize)| if r.0 > 50 { (51, r.1, r.2) } else { r };
        let rows: Vec<(u8, usize, usize)> = rows.into_iter().map(much).collect();
        let mut inputs = [Vec::new(), Vec::new()];
        for (sequence, chunk) in rows.chunks(size).enumerate() {
            for (side, batches) in inputs.iter_mut().enumerate() {
                let rows = chunk.iter().enumerate().filter(|(_, r)| r.1 == side);
                let number = |i: usize| (sequence * size + i) as i64;
                let rows: Vec<_> = rows.map(|(i, r)| (r.0, number(i), r.2)).collect();
                batches.push(batch(sequence as u64, &rows));
            }
        }
        let (one, refused) = seen(&inputs, 1);
        // No row is lost, and those of a key stay in order and together, unless all are refused.
        for side in 0..2 {
            let of_refused: Vec<_> = refused.iter().filter(|r| r.0 == side).collect();
            let mut all: Vec<_> = one.values().flatten().flat_map(|t| t[side].clone()).collect();
            for key in all.iter().map(|row| &row.0).collect::<BTreeSet<_>>() {
                let of_key = |t: &&[Vec<(String, i64)>; 2]| t[side].iter().any(|r| r.0 == *key);
                prop_assert_eq!(one.values().flatten().filter(of_key).count(), 1);
                prop_assert!(of_refused.iter().all(|r| r.1 != *key));
            }
            all.extend(of_refused.iter().map(|r| (r.1.clone(), r.2)));
            let mut sent = told(&inputs[side]);
            sent.sort_by_key(|row| row.0.clone());
            all.sort_by_key(|row| row.0.clone());
            prop_assert_eq!(all, sent);
            for key in 0..60u8 {
                let of_key = rows.iter().filter(|r| r.0 == key && r.1 == side);
                let text: usize = of_key.map(|r| r.2 + format!("k{key}").len()).sum();
                let is_refused = of_refused.iter().any(|r| r.1 == format!("k{key}"));
                prop_assert_eq!(is_refused, text as u64 > MAX.key, "{} bytes", text);
            }
        }
        for workers in [2, 3, 7] {
            prop_assert_eq!(&seen(&inputs, workers), &(one.clone(), refused.clone()));
        }
    }
}

#[test]
fn what_fits_comes_at_once_and_is_not_copied() {
    let small = batch(3, &[(1, 1, 200), (2, 2, 200)]);
    let text = small.rows.column(2).as_string::<i32>().value_data().as_ptr();
    let none = Came { keys: None, ..came(Vec::new()) };
    let mut turns = Turns::new(vec![came(vec![small]), none], MAX);
    assert!(turns.too_much().unwrap().is_empty());
    let (inputs, more) = turns.next().unwrap().unwrap();
    assert!(!more && turns.next().is_none() && inputs[1].is_empty());
    assert_eq!(inputs[0][0].rows.column(2).as_string::<i32>().value_data().as_ptr(), text);
    assert_eq!(inputs[0][0].sequence, 3);
    // Without any rows the operator is called all the same, for its tick.
    let mut turns = Turns::new(vec![came(Vec::new())], MAX);
    assert!(!turns.has_rows());
    assert_eq!(turns.by_ref().map(|turn| turn.unwrap().0[0].len()).collect::<Vec<_>>(), [0]);
}

#[test]
fn what_all_workers_have_comes_first_and_what_is_aside_with_its_key() {
    let rows: Vec<(u8, i64, usize)> = (0..6).map(|key| (key, 0, 900)).collect();
    let told_to_all = Came { keys: None, ..came(vec![batch(0, &[(9, 7, 5000)])]) };
    let aside: Vec<(u8, i64, usize)> = (0..6).map(|key| (key, 1, 4000)).collect();
    let aside = Came { aside: true, ..came(vec![batch(0, &aside)]) };
    let turns = Turns::new(vec![came(vec![batch(0, &rows)]), told_to_all, aside], MAX);
    assert!(turns.too_much().unwrap().is_empty());
    let turns: Vec<_> = turns.map(|turn| turn.unwrap().0).collect();
    assert!(turns.len() >= 6, "one of each key");
    assert_eq!(told(&turns[0][1]), [("k9".to_owned(), 7)]);
    for turn in &turns {
        let keys = |batches| told(batches).into_iter().map(|row| row.0).collect::<Vec<_>>();
        assert_eq!(keys(&turn[0]), keys(&turn[2]));
    }
    assert!(turns[1..].iter().all(|turn| turn[1].is_empty()));
}
