//! The operator against a plain list of readings: shuffled, late, doubled, silent, restarted, on
//! several workers, with outages.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Int64Type, Schema};
use datafusion_expr::col;
use datafusion_physical_expr::planner::logical2physical;
use proptest::prelude::*;

use super::*;
use crate::key::{owner, stable_hashes};
use crate::operator::KeyedOperator;
use crate::outage::testing::{Alone, outage_rows};
use crate::snapshot::check;
use crate::spec::{Cadence, KeyLimits, time_type};

mod rules;

/// Device, event time, value.
type Reading = (&'static str, i64, f64);

const DEVICES: [&str; 3] = ["a", "b", "c"];
/// Ten apart, three missing.
const LIMIT: i64 = 30;
const DISORDER: i64 = 5;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("x", DataType::Float64, true),
    ]))
}

fn spec() -> AbsenceSpec {
    AbsenceSpec {
        pipeline: "p".into(),
        name: "gone".into(),
        input: input(),
        keys: vec![0],
        time: 1,
        cadence: Cadence::Every(10),
        missed: 3,
        select: vec![("x".into(), logical2physical(&col("x"), &input()))],
        disorder_us: DISORDER,
        keep_us: 100_000,
        live: true,
        known_after_us: 0,
        forget_after_us: 1_000_000,
        limits: KeyLimits::default(),
    }
}

fn batch(readings: &[Reading]) -> RecordBatch {
    let times = readings.iter().map(|r| r.1);
    RecordBatch::try_new(
        input(),
        vec![
            Arc::new(StringArray::from_iter_values(readings.iter().map(|r| r.0))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
            Arc::new(Float64Array::from_iter_values(readings.iter().map(|r| r.2))),
        ],
    )
    .unwrap()
}

/// A row that came out.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    device: String,
    start: i64,
    end: i64,
    status: String,
    missed: i64,
    inhibited: bool,
    x: Option<f64>,
    rows: i64,
    revision: i64,
}

fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut all = Vec::new();
    for rows in batches {
        let time = |name: &str| rows[name].as_primitive::<TimestampMicrosecondType>().clone();
        let number = |name: &str| rows[name].as_primitive::<Int64Type>().clone();
        let (start, end) = (time("window_start"), time("window_end"));
        let x = rows["x"].as_primitive::<arrow::datatypes::Float64Type>();
        for row in 0..rows.num_rows() {
            all.push(Row {
                device: rows["device"].as_string::<i32>().value(row).to_owned(),
                start: start.value(row),
                end: end.value(row),
                status: rows["status"].as_string::<i32>().value(row).to_owned(),
                missed: number("missed").value(row),
                inhibited: rows["inhibited"].as_boolean().value(row),
                x: x.is_valid(row).then(|| x.value(row)),
                rows: number("rows").value(row),
                revision: number("revision").value(row),
            });
        }
    }
    all
}

/// Several workers, each with its own operator; restarted now and then on another number.
struct Fleet {
    spec: AbsenceSpec,
    workers: Vec<AbsenceOperator>,
    told: Vec<Row>,
    late: usize,
    epoch: u64,
}

impl Fleet {
    fn new(spec: AbsenceSpec) -> Self {
        let workers = vec![AbsenceOperator::new(spec.clone()).unwrap()];
        Self { spec, workers, told: Vec::new(), late: 0, epoch: 0 }
    }

    fn own(rows: &RecordBatch, index: usize, workers: usize) -> RecordBatch {
        let mut hashes = Vec::new();
        stable_hashes(&[rows.column(0).clone()], rows.num_rows(), &mut hashes);
        let mine = hashes.iter().map(|hash| Some(owner(*hash, workers) == index));
        arrow::compute::filter_record_batch(rows, &mine.collect()).unwrap()
    }

    fn restart(&mut self, workers: usize) {
        let saved: Vec<RecordBatch> = self
            .workers
            .iter_mut()
            .map(|worker| JoinOperator::cut(worker, true).rows().unwrap().rows)
            .collect();
        self.workers = (0..workers)
            .map(|index| {
                let mut worker = AbsenceOperator::new(self.spec.clone()).unwrap();
                for rows in &saved {
                    worker.load(&Self::own(rows, index, workers)).unwrap();
                }
                worker
            })
            .collect();
    }

    fn epoch(&mut self, time_us: i64, readings: &[Reading], outages: &[(i64, i64)]) -> Vec<Row> {
        self.epoch += 1;
        let (rows, outages) = (batch(readings), outage_rows(outages));
        let (mut all, workers) = (Vec::new(), self.workers.len());
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let mut emit = Emit::default();
            let tick = Tick { epoch: self.epoch, time_us };
            let own = Self::own(&rows, index, workers);
            worker.epoch(&own, &outages, tick, &mut emit).unwrap();
            all.extend(rows_of(&emit.rows));
            self.late += emit.late.iter().map(RecordBatch::num_rows).sum::<usize>();
        }
        // Whoever takes them gets them in the order of their revisions.
        let mut told = all.clone();
        told.sort_by_key(|row| row.revision);
        self.told.extend(told);
        all
    }

    /// What stands of what was told: the last revision of each, those withdrawn aside.
    fn stands(&self) -> Vec<(String, i64, i64, bool, bool)> {
        let mut last: BTreeMap<(&str, i64), &Row> = BTreeMap::new();
        for row in &self.told {
            let before = last.insert((&row.device, row.start), row);
            assert_eq!(row.revision, before.map_or(0, |b| b.revision + 1), "{row:?}");
            assert_eq!(
                (row.rows == 0, row.x.is_none()),
                (row.status == "withdrawn", row.rows == 0)
            );
        }
        let stands = last.into_values().filter(|row| row.rows > 0);
        stands
            .map(|row| {
                let lasts = row.status != "back";
                let end = if lasts { i64::MAX } else { row.end };
                assert!(row.status != "silent" || !row.inhibited);
                (row.device.clone(), row.start, end, lasts, row.inhibited)
            })
            .collect()
    }
}

/// A reading on its way: device, event time, how long it takes.
type Sent = (usize, i64, i64);

fn sent(delay: impl Strategy<Value = i64>) -> impl Strategy<Value = Vec<Sent>> {
    let pause = prop_oneof![6 => 1i64..12, 2 => 25i64..35, 1 => 40i64..200];
    prop::collection::vec((0usize..3, pause, delay), 1..60).prop_map(|list| {
        let mut times = [0i64; 3];
        let mut all: Vec<Sent> = vec![(0, 0, 0), (1, 0, 0), (2, 0, 0)];
        for (device, pause, delay) in list {
            times[device] += pause;
            all.push((device, times[device], delay));
        }
        all
    })
}

/// The definition, as plainly as it can be written: gaps between readings in order, and what is
/// silent at one of the ticks for longer than `told_us`, by the last that came of it until then,
/// whatever its time.
fn plain(sent: &[Sent], ticks: &[i64], told_us: i64) -> Vec<(String, i64, i64, bool)> {
    let mut all = Vec::new();
    for (number, device) in DEVICES.iter().enumerate() {
        let own: Vec<&Sent> = sent.iter().filter(|s| s.0 == number).collect();
        let mut times: Vec<i64> = own.iter().map(|s| s.1).collect();
        times.sort_unstable();
        for pair in times.windows(2).filter(|pair| pair[1] - pair[0] > LIMIT) {
            all.push(((*device).to_owned(), pair[0], pair[1], false));
        }
        let newest = *times.last().unwrap();
        let seen = own.iter().filter(|s| s.1 == newest).map(|s| s.1 + s.2).min().unwrap();
        let heard = |at: i64| own.iter().map(|s| s.1 + s.2).filter(|s| *s <= at).max();
        let silent =
            |at: &&i64| **at >= seen && heard(**at).is_some_and(|heard| *at - heard > told_us);
        if ticks.iter().find(silent).is_some() {
            all.push(((*device).to_owned(), newest, i64::MAX, true));
        }
    }
    all
}

/// How long an outage may be unknown.
fn known() -> impl Strategy<Value = i64> {
    prop_oneof![1 => Just(0i64), 2 => 1i64..90]
}

/// How long a key is silent before that is told.
fn told(known_after_us: i64) -> i64 {
    LIMIT.max(10 + known_after_us)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_told_last_is_what_all_readings_say(
        sent in sent(prop_oneof![3 => Just(0i64), 2 => 0i64..DISORDER, 1 => 0i64..300]),
        again in prop::collection::vec(0usize..60, 0..6),
        ticks in prop::collection::vec(0i64..400, 0..40),
        after in 0i64..80,
        restarts in prop::collection::vec((0i64..400, 1usize..4), 0..3),
        known_after_us in known(),
    ) {
        let mut all = sent.clone();
        all.extend(again.iter().filter_map(|i| sent.get(*i)).map(|s| (s.0, s.1, s.2)));
        let mut turns: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (device, time, delay) in &all {
            turns.entry(time + delay).or_default().push((DEVICES[*device], *time, *time as f64));
        }
        let end = turns.last_key_value().unwrap().0.max(&400) + after;
        for at in &ticks {
            turns.entry(*at).or_default();
        }
        // The last one lets go of what waits.
        turns.entry(end).or_default();
        let mut fleet = Fleet::new(AbsenceSpec { known_after_us, ..spec() });
        for (at, readings) in &turns {
            for (_, workers) in restarts.iter().filter(|r| r.0 == *at) {
                fleet.restart(*workers);
            }
            fleet.epoch(*at, readings, &[]);
        }
        // Whatever waits for `disorder` is through after it.
        let end = end + DISORDER + 1;
        fleet.epoch(end, &[], &[]);
        let ticks: Vec<i64> = turns.keys().copied().chain([end]).collect();
        let stands: Vec<_> =
            fleet.stands().into_iter().map(|(d, s, e, lasts, _)| (d, s, e, lasts)).collect();
        prop_assert_eq!(stands, plain(&all, &ticks, told(known_after_us)));
        prop_assert!(fleet.told.iter().all(|row| !row.inhibited));
        prop_assert_eq!(fleet.late, 0);
    }

    /// With outages: a silence counts if for longer than the limit nothing explains it; where it
    /// goes on after an outage, for as long as it takes until it is told.
    #[test]
    fn what_an_outage_explains_is_inhibited(
        sent in sent(Just(0i64)),
        outages in prop::collection::vec((1i64..60, 1i64..90), 0..5),
        ticks in prop::collection::vec(0i64..600, 0..60),
        after in 0i64..200,
        restarts in prop::collection::vec((0i64..400, 1usize..4), 0..3),
        known_after_us in known(),
    ) {
        let mut list: Vec<(i64, i64)> = Vec::new();
        for (pause, length) in outages {
            let from = list.last().map_or(0, |o| o.1) + pause;
            list.push((from, from + length));
        }
        let mut turns: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (device, time, _) in &sent {
            turns.entry(*time).or_default().push((DEVICES[*device], *time, *time as f64));
        }
        for at in &ticks {
            turns.entry(*at).or_default();
        }
        for at in list.iter().flat_map(|o| [o.0, o.1]) {
            turns.entry(at).or_default();
        }
        let end = *turns.last_key_value().unwrap().0 + after + DISORDER + 1;
        turns.entry(end).or_default();
        let begun = |at: i64| -> Vec<(i64, i64)> {
            let begun = list.iter().filter(|o| o.0 <= at);
            begun.map(|o| (o.0, if o.1 <= at { o.1 } else { i64::MAX })).collect()
        };
        let mut fleet = Fleet::new(AbsenceSpec { known_after_us, ..spec() });
        let mut log = Vec::new();
        for (at, readings) in &turns {
            for (_, workers) in restarts.iter().filter(|r| r.0 == *at) {
                fleet.restart(*workers);
                log.clear();
            }
            let now = begun(*at);
            let rows = if now == log { Vec::new() } else { now.clone() };
            log = now;
            fleet.epoch(*at, readings, &rows);
        }
        let told_us = told(known_after_us);
        let explained = |from: i64, to: i64| {
            let (mut begin, mut counts) = (from, false);
            for (a, b) in list.iter().filter(|o| o.1 > from && o.0 <= to) {
                counts |= a - begin > if begin == from { LIMIT } else { told_us };
                begin = begin.max(*b);
            }
            let any = list.iter().any(|o| o.0 < to && from <= o.1);
            any && !counts && to - begin <= told_us
        };
        let plain: Vec<_> = plain(&sent, &[end], told_us)
            .into_iter()
            .map(|(d, s, e, lasts)| (d, s, e, lasts, explained(s, e.min(end))))
            .collect();
        prop_assert_eq!(fleet.stands(), plain);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cuts_add_up(sent in sent(prop_oneof![2 => Just(0i64), 1 => 0i64..100])) {
        let names: Vec<String> = (0..40).map(|i| format!("device-{i}")).collect();
        let mut epochs: Vec<(i64, RecordBatch)> = sent
            .iter()
            .enumerate()
            .map(|(i, (device, time, delay))| {
                let all = batch(&[("", *time, 1.0)]);
                let name = &names[(device * 13 + i) % names.len()];
                let mut columns = all.columns().to_vec();
                columns[0] = Arc::new(StringArray::from(vec![name.as_str()]));
                (time + delay, RecordBatch::try_new(input(), columns).unwrap())
            })
            .collect();
        epochs.sort_by_key(|e| e.0);
        for cadence in [Cadence::Every(10), Cadence::Learnt { least_us: 1 }] {
            let make = || -> Box<dyn KeyedOperator> {
                let spec = AbsenceSpec { cadence, ..spec() };
                Box::new(Alone(AbsenceOperator::new(spec).unwrap()))
            };
            check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
        }
    }
}
