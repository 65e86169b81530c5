//! Windows whose bounds follow from their readings: they move, and are withdrawn, and come again.

use super::*;

/// A window as it comes: device, number, start, end, readings (0: it is withdrawn), revision.
type Span = (usize, i64, i64, i64, i64, i64);

/// Tick time, changes, windows.
type SpansIn = (i64, Vec<Said>, Vec<Span>);

/// Epoch, device, number, start, end, readings, revision, value.
type SpanOut = (usize, String, i64, i64, i64, i64, i64, Option<i64>);

fn spans_spec(keep_us: i64, own_times: bool) -> EnrichSpec {
    let column = |name: &str| Field::new(name, DataType::Int64, false);
    let time = |name: &str| Field::new(name, time_type(), false);
    let input = vec![
        Field::new("device", DataType::Utf8, false),
        time("start"),
        time("end"),
        column("number"),
        column("rows"),
        column("revision"),
    ];
    let (identity, rows) = (vec![0, 3], Some(4));
    EnrichSpec {
        input: Arc::new(Schema::new(input)),
        revise: Some(ReviseSpec { keep_us, identity, revision: 5, end: 2, moves: true, rows }),
        ..spec(None, own_times)
    }
}

fn batch(spec: &EnrichSpec, (tick_us, said, spans): &SpansIn) -> RecordBatch {
    let columns = vec![
        devices(spans.iter().map(|s| s.0)),
        times(spans.iter().map(|s| Some(s.2))),
        times(spans.iter().map(|s| Some(s.3))),
        numbers(spans.iter().map(|s| s.1)),
        numbers(spans.iter().map(|s| s.4)),
        numbers(spans.iter().map(|s| s.5)),
    ];
    let rows = RecordBatch::try_new(Arc::clone(&spec.input), columns).unwrap();
    stacked(spec, &rows, &changes(spec, *tick_us, said))
}

fn run_spans(spec: &EnrichSpec, epochs: &[SpansIn], workers: &[usize]) -> Vec<SpanOut> {
    let batches: Vec<(i64, RecordBatch)> = epochs.iter().map(|e| (e.0, batch(spec, e))).collect();
    let mut out = Vec::new();
    run_batches(spec, &batches, workers, |epoch, emit| {
        for rows in &emit.rows {
            let time = |c: usize| rows.column(c).as_primitive::<TimestampMicrosecondType>().clone();
            let number = |c: usize| rows.column(c).as_primitive::<Int64Type>().clone();
            let [start, end] = [1, 2].map(time);
            let [which, count, revision, limit] = [3, 4, 5, 6].map(number);
            for row in 0..rows.num_rows() {
                out.push((
                    epoch,
                    rows.column(0).as_string::<i32>().value(row).to_owned(),
                    which.value(row),
                    start.value(row),
                    end.value(row),
                    count.value(row),
                    revision.value(row),
                    (!limit.is_null(row)).then(|| limit.value(row)),
                ));
            }
        }
    });
    out.sort();
    out
}

/// A window as a plain list knows it.
struct Known {
    span: Span,
    value: Option<Option<i64>>,
    again: i64,
}

/// One device as a plain list.
#[derive(Default)]
struct Plain {
    known: Vec<Known>,
    newest_us: i64,
    touched_us: i64,
    /// Start of one that is not known any more and had come again, and how often.
    lost: Vec<(i64, i64)>,
}

impl Plain {
    fn lose(&mut self, which: impl Fn(&Known) -> bool) {
        let (lost, known) = std::mem::take(&mut self.known).into_iter().partition(which);
        self.known = known;
        let lost: Vec<Known> = lost;
        let again = lost.iter().filter(|k| k.again > 0);
        self.lost.extend(again.map(|k| (k.span.2, k.again)));
    }

    /// How much higher the revisions of a window are that comes.
    fn again(&self, span: &Span) -> i64 {
        let known = self.known.iter().find(|k| k.span.1 == span.1);
        let newest = self.lost.iter().map(|l| l.0).max();
        let most = self.lost.iter().map(|l| l.1).max();
        let lost = most.filter(|_| newest.is_some_and(|us| span.2 <= us));
        known.map(|k| k.again).or(lost).unwrap_or(0)
    }
}

/// What has to come, in each epoch.
fn expected(epochs: &[SpansIn], keep_us: i64) -> Vec<SpanOut> {
    let mut devices: Vec<Plain> = DEVICES.iter().map(|_| Plain::default()).collect();
    let (mut said, mut out): (Vec<Said>, Vec<SpanOut>) = (Vec::new(), Vec::new());
    for (epoch, (tick_us, changes, spans)) in epochs.iter().enumerate() {
        let mut tell = |span: &Span, again: i64, value: Option<i64>| {
            let (device, which, start_us, end_us, rows, revision) = *span;
            let device = DEVICES[device].to_owned();
            out.push((epoch, device, which, start_us, end_us, rows, revision + again, value));
        };
        for device in devices.iter_mut().filter(|d| d.touched_us < tick_us - keep_us) {
            device.lose(|_| true);
        }
        said.extend(changes.iter().copied());
        let mut spans = spans.clone();
        spans.sort_by_key(|span| span.5);
        for span in &spans {
            let device = &mut devices[span.0];
            let value = says(&said, span.0, span.2);
            let again = device.again(span);
            tell(span, again, value.flatten());
            let none = device.known.is_empty();
            if span.4 == 0 {
                device.lose(|k| k.span.1 == span.1);
                continue;
            }
            device.known.retain(|k| k.span.1 != span.1);
            device.known.push(Known { span: *span, value, again });
            device.newest_us = if none { span.3 } else { device.newest_us.max(span.3) };
            device.touched_us = *tick_us;
            let least = device.newest_us - keep_us;
            device.lose(|k| k.span.3 < least);
        }
        for known in devices.iter_mut().flat_map(|d| &mut d.known) {
            let value = says(&said, known.span.0, known.span.2);
            if value != known.value {
                (known.value, known.again) = (value, known.again + 1);
                tell(&known.span, known.again, value.flatten());
            }
        }
    }
    out.sort();
    out
}

/// Windows come first, with other bounds, are withdrawn, and come again, their starts never later;
/// in an epoch in any order.
fn spans(own_times: bool) -> impl Strategy<Value = Vec<SpansIn>> {
    let span = (0..DEVICES.len(), 0..4_i64, 0..12_i64, 0..20_i64, 0..4_i64);
    let spans = (prop::collection::vec(span, 0..5), any::<bool>());
    let spans = prop::collection::vec(spans, 16);
    (epochs(own_times), spans).prop_map(|(epochs, spans)| {
        let mut told: BTreeMap<(usize, i64), (i64, i64)> = BTreeMap::new();
        let each = |((tick_us, said, _), (spans, reversed)): (EpochIn, (Vec<_>, bool))| {
            let mut rows: Vec<Span> = Vec::new();
            for (device, number, earlier, length, readings) in spans {
                let before = told.get(&(device, number)).copied();
                let (start_us, revision) =
                    before.map_or((15 * number + 11, 0), |(start, n)| (start - earlier / 6, n + 1));
                let readings = if before.is_none() { 1 } else { readings };
                told.insert((device, number), (start_us, revision));
                rows.push((device, number, start_us, start_us + length, readings, revision));
            }
            if reversed {
                rows.reverse();
            }
            (tick_us, said, rows)
        };
        epochs.into_iter().zip(spans).map(each).collect()
    })
}

fn span_cases() -> impl Strategy<Value = (bool, Vec<SpansIn>)> {
    any::<bool>().prop_flat_map(|own| (Just(own), spans(own)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// However long they are kept: every row of every epoch is that of a plain list.
    #[test]
    fn windows_that_move_equal_a_plain_list(
        (own_times, epochs) in span_cases(),
        keep_us in prop_oneof![0..40_i64, Just(10_000)],
    ) {
        let spec = spans_spec(keep_us, own_times);
        let expected = expected(&epochs, keep_us);
        for workers in [&[1][..], &[2], &[3], &[1, 3], &[2, 1, 3, 2]] {
            prop_assert_eq!(run_spans(&spec, &epochs, workers), expected.clone(), "{:?}", workers);
        }
    }

    /// No revision of a window comes twice or after a greater one, however shortly it is kept.
    #[test]
    fn revisions_only_grow((own_times, epochs) in span_cases(), keep_us in 0..30_i64) {
        let mut last: BTreeMap<(String, i64), i64> = BTreeMap::new();
        let mut rows = run_spans(&spans_spec(keep_us, own_times), &epochs, &[1]);
        rows.sort_by_key(|row| (row.0, row.6));
        for row in rows {
            let before = last.insert((row.1.clone(), row.2), row.6);
            prop_assert!(before.is_none_or(|b| b < row.6), "{row:?} after {before:?}");
        }
    }

    /// What stands at last of windows that are kept is what the whole history says of their starts,
    /// and what was withdrawn stays so.
    #[test]
    fn what_stands_equals_the_whole_history((own_times, epochs) in span_cases()) {
        let out = run_spans(&spans_spec(10_000, own_times), &epochs, &[1]);
        let said: Vec<Said> = epochs.iter().flat_map(|e| e.1.iter().copied()).collect();
        let mut last = BTreeMap::new();
        for row in &out {
            let of = last.entry((row.1.clone(), row.2)).or_insert(row);
            *of = if of.6 < row.6 { row } else { of };
        }
        let mut came: BTreeMap<(usize, i64), Span> = BTreeMap::new();
        let mut all: Vec<Span> = epochs.iter().flat_map(|e| e.2.iter().copied()).collect();
        all.sort_by_key(|span| span.5);
        came.extend(all.into_iter().map(|s| ((s.0, s.1), s)));
        prop_assert_eq!(last.len(), came.len());
        for ((device, number), span) in came {
            let (.., start_us, end_us, rows, _, value) = last[&(DEVICES[device].into(), number)];
            prop_assert_eq!((*start_us, *end_us, *rows), (span.2, span.3, span.4));
            if span.4 > 0 {
                prop_assert_eq!(*value, holds(&said, device, span.2));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cuts_of_what_moves_add_up((own_times, epochs) in span_cases(), keep_us in 0..40_i64) {
        let spec = spans_spec(keep_us, own_times);
        let epochs: Vec<(i64, RecordBatch)> =
            epochs.iter().map(|e| (e.0, batch(&spec, e))).collect();
        let make =
            || Box::new(Both(Enrich::new(spec.clone()).unwrap())) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// A window that is revised more often, and for longer, by its own step than the registry revises
/// it: what came again because of the registry is not forgotten.
#[test]
fn what_is_let_go_keeps_its_revisions() {
    let spec = spans_spec(10, true);
    let set = |value| (0, Change::Set, Some(0), Some(value));
    let epochs: Vec<SpansIn> = vec![
        (1, vec![set(1)], vec![(0, 0, 5, 8, 2, 0)]),
        (2, vec![set(2)], vec![]),
        (3, vec![set(3)], vec![]),
        // Another window lets it go; then a late reading revises it.
        (4, vec![], vec![(0, 1, 50, 60, 1, 0)]),
        (5, vec![], vec![(0, 0, 5, 9, 3, 1)]),
        (6, vec![], vec![(0, 0, 5, 9, 0, 2)]),
    ];
    let rows: Vec<(i64, i64)> =
        run_spans(&spec, &epochs, &[1, 2, 1]).into_iter().map(|r| (r.2, r.6)).collect();
    assert_eq!(rows, [(0, 0), (0, 1), (0, 2), (1, 0), (0, 3), (0, 4)]);
}
