//! Rows that are too many, or large together: cut into batches, and bounded.

use arrow::array::StringArray;

use super::*;

/// Left and right rows with a text of so many bytes each, all of them partners.
fn large(left: i64, right: i64, bytes: usize) -> (RecordBatch, RecordBatch) {
    let edge = |count: i64| {
        let all = (0..count).map(|i| (false, 1, i, i)).collect::<Vec<In>>();
        let mut columns = batch(&all).columns().to_vec();
        columns.remove(1);
        columns[2] = Arc::new(StringArray::from(vec!["x".repeat(bytes); count as usize]));
        RecordBatch::try_new(edge_of_texts(), columns).unwrap()
    };
    (edge(left), edge(right))
}

fn edge_of_texts() -> SchemaRef {
    let mut fields = edge().fields().to_vec();
    fields[2] = Arc::new(Field::new("v", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

fn join() -> IntervalJoin {
    let case = Case { before_us: 1_000, after_us: 0, ..plain() };
    IntervalJoin::new(JoinSpec { left: edge_of_texts(), right: edge_of_texts(), ..spec(case) })
        .unwrap()
}

/// What comes of them; the last left row waits.
fn told(mut join: IntervalJoin, (left, right): &(RecordBatch, RecordBatch)) -> Emit {
    let mut emit = Emit::default();
    join.epoch(left, right, Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    emit
}

#[test]
fn many_large_rows_are_several_batches() {
    let emit = told(join(), &large(20, 20, 200));
    // Each left row has itself and those before it.
    let rows: Vec<usize> = emit.rows.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(rows.iter().sum::<usize>(), 190);
    let most = crate::grouped::BATCH_BYTES / 400;
    assert!(rows.iter().all(|rows| *rows <= most), "{rows:?}");
    assert!(rejected(&emit).is_empty());
}

#[test]
fn a_key_has_so_many_bytes_in_an_epoch_and_no_more() {
    let mut join = join();
    join.rule.bytes_max = 20_000;
    let emit = told(join, &large(20, 20, 200));
    let rows: usize = emit.rows.iter().map(RecordBatch::num_rows).sum();
    // A left row comes with all of its partners or is a reject.
    let refused = rejected(&emit);
    let told = 19 - refused.len();
    assert_eq!(rows, told * (told + 1) / 2);
    assert!(told > 2 && refused.len() > 2, "{told}");
    assert!(refused.iter().all(|reason| reason == "bytes_max"));
}

/// What only a refused row could have had for a partner takes no place either.
#[test]
fn a_refused_row_keeps_no_partners() {
    let case = Case { before_us: 25, after_us: 13, disorder_us: 12, rows_max: 1, ..plain() };
    let epochs = [
        (1, vec![(true, 1, -11, 0)]),
        (2, vec![(false, 1, 15, 0)]),
        (3, vec![(false, 1, 14, 0), (false, 1, 39, 0)]),
        (4, vec![(true, 1, 36, 0)]),
    ];
    let found = found(case, &epochs, &[1]);
    let over: Vec<usize> = found.iter().map(|e| e.2).collect();
    assert_eq!(over, [0, 0, 2, 0, 0]);
}
