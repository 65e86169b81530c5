//! The host by itself: an epoch in turns, in their order, with what is too much.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use super::*;
use crate::spec::time_type;
use crate::text::weight;

/// A call of the operator: its epoch, the numbers of its rows, and whether another call follows.
type Call = (u64, Vec<i64>, bool);

/// Notes how it is called, and emits what it gets.
struct Noting(Rc<RefCell<Vec<Call>>>);

impl KeyedOperator for Noting {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let numbers = rows.column(1).as_primitive::<Int64Type>().values().to_vec();
        self.0.borrow_mut().push((tick.epoch, numbers, emit.more));
        emit.rows.push(rows.clone());
        Ok(())
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        self.0.borrow_mut().push((0, Vec::new(), emit.more));
        Ok(())
    }

    fn cut(&mut self, _whole: bool) -> Snapshot {
        unreachable!("no checkpoint was asked for")
    }

    fn load(&mut self, _state: &RecordBatch) -> Result<(), OperatorError> {
        Ok(())
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("number", DataType::Int64, false),
        Field::new("time", time_type(), false),
        Field::new("text", DataType::Utf8, false),
    ]))
}

fn runner(calls: &Rc<RefCell<Vec<Call>>>, text_max: TextMax) -> Runner {
    let context = HostContext {
        name: "pipe/noting".to_owned(),
        input: schema(),
        order: EdgeOrder::Columns(vec![1]),
        keys: vec![0],
        text_max,
        owned: GroupSet::ALL,
        ticks: Ticks::default(),
        save: Box::new(|_, _, _| unreachable!("no checkpoint was asked for")),
        fail: Box::new(|_, error| panic!("{error}")),
    };
    let edges = vec![EdgeIn::first(&context)];
    let operator = Operator::One(Box::new(Noting(Rc::clone(calls))));
    Runner { operator, context, edges, pending: vec![Pending::new()], failed: false }
}

/// Rows of key and number with 500 bytes of text each.
fn batch(sequence: u64, rows: &[(&str, i64)]) -> Batch {
    let times = TimestampMicrosecondArray::from_value(5, rows.len()).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(times),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "x".repeat(500)))),
    ];
    Batch { sequence, rows: RecordBatch::try_new(schema(), columns).unwrap() }
}

/// What an epoch emits; and how often something is given away.
fn run(runner: &mut Runner, end: bool) -> (Emit, usize) {
    let (mut all, mut times) = (Emit::default(), 0);
    let mut give = |emit: &mut Emit| {
        times += 1;
        all.rows.append(&mut emit.rows);
        all.rejects.append(&mut emit.rejects);
    };
    match end {
        false => runner.epoch(Tick { epoch: 4, time_us: 7 }, &mut give),
        true => runner.end(Tick { epoch: 5, time_us: 7 }, &mut give),
    }
    (all, times)
}

#[test]
fn an_epoch_with_too_much_text_comes_in_turns_with_one_tick() {
    let calls = Rc::default();
    let little = TextMax { turn: 1300, ..TextMax::default() };
    for (text_max, turns) in [(little, 3), (TextMax::default(), 1)] {
        let mut runner = runner(&calls, text_max);
        for epoch in [4, 5] {
            let batches = vec![
                batch(2, &[("b", 3), ("a", 1)]),
                batch(1, &[("c", 6), ("a", 2), ("c", 4), ("b", 5)]),
            ];
            runner.pending[0].insert(epoch, batches);
        }
        let (emit, times) = run(&mut runner, false);
        let told = calls.take();
        assert_eq!(told.len(), turns);
        assert_eq!(times, turns, "what comes of a turn is given away before the next one");
        assert!(told.iter().all(|call: &Call| call.0 == 4));
        let mores: Vec<bool> = told.iter().map(|call| call.2).collect();
        assert!(mores.iter().rev().skip(1).all(|more| *more) && !mores[turns - 1]);
        let mut rows: Vec<Vec<i64>> = told.into_iter().map(|call| call.1).collect();
        rows.sort();
        match turns {
            3 => assert_eq!(rows, [vec![1, 2], vec![3, 5], vec![4, 6]]),
            _ => assert_eq!(rows, [[1, 2, 3, 4, 5, 6]]),
        }
        assert_eq!(emit.rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 6);
        assert!(emit.rejects.is_empty());
        // The same at the end of the input, and only then what is open.
        run(&mut runner, true);
        let mut told = calls.take();
        assert_eq!(told.pop(), Some((0, Vec::new(), false)));
        assert_eq!(told.len(), turns);
        assert!(told.iter().all(|call| call.0 == 5));
    }
}

/// More than 2 GiB in one epoch, in batches that share their one long text.
#[test]
fn an_epoch_with_more_text_than_a_column_holds_is_worked_through() {
    let calls = Rc::default();
    let mut runner = runner(&calls, TextMax::default());
    let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(100 << 20)]));
    let batches = (0..22).map(|number| {
        let Batch { sequence, rows } = batch(number, &[(&format!("k{number}"), number as i64)]);
        let mut columns = rows.columns().to_vec();
        columns[3] = Arc::clone(&long);
        Batch { sequence, rows: RecordBatch::try_new(schema(), columns).unwrap() }
    });
    runner.pending[0].insert(4, batches.collect());
    let mut most = 0;
    let mut give = |emit: &mut Emit| {
        most = emit.rows.drain(..).map(|rows| weight(&rows)).fold(most, u64::max);
        assert!(emit.rejects.is_empty());
    };
    runner.epoch(Tick { epoch: 4, time_us: 7 }, &mut give);
    assert!(most <= TextMax::default().turn);
    let mut numbers: Vec<i64> = calls.take().into_iter().flat_map(|call: Call| call.1).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..22));
}

#[test]
fn batches_and_rejects_are_no_larger_than_they_may() {
    let rows = vec![("much", 1); 8_000];
    let mut runner = runner(&Rc::default(), TextMax { turn: 1300, key: 1400 });
    runner.pending[0].insert(4, vec![batch(1, &rows)]);
    let rejects = run(&mut runner, false).0.rejects;
    assert!(rejects.len() > 1);
    assert_eq!(rejects.iter().map(RecordBatch::num_rows).sum::<usize>(), 8_000);
}

#[test]
fn the_rows_of_a_key_with_too_much_text_are_rejects() {
    let calls = Rc::default();
    let mut runner = runner(&calls, TextMax { turn: 1300, key: 1400 });
    let batches =
        vec![batch(1, &[("much", 1), ("a", 2), ("much", 3)]), batch(2, &[("much", 4), ("b", 5)])];
    runner.pending[0].insert(4, batches);
    let (emit, _) = run(&mut runner, false);
    let mut numbers: Vec<i64> = calls.take().into_iter().flat_map(|call| call.1).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 5]);
    let mut payloads = Vec::new();
    for rejects in &emit.rejects {
        let text = |name: &str, row: usize| rejects[name].as_string::<i32>().value(row).to_owned();
        for row in 0..rejects.num_rows() {
            assert_eq!([text("pipeline", row), text("reason", row)], ["pipe", "bytes_max"]);
            assert!(text("detail", row).starts_with("step `noting`: "), "{}", text("detail", row));
            let payload = rejects["payload"].as_binary::<i32>().value(row);
            payloads.push(String::from_utf8(payload.to_vec()).unwrap());
        }
    }
    let payload = |number: i64| {
        format!(r#"{{"key":"much","number":{number},"time":"1970-01-01T00:00:00.000005Z"}}"#)
    };
    assert_eq!(payloads, [1, 3, 4].map(payload));
}
