//! The operator against plain definitions of each pattern: shuffled, late, doubled, silent,
//! restarted, on several workers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Float64Type, Int64Type, Schema};
use datafusion_expr::col;
use datafusion_physical_expr::planner::logical2physical;
use proptest::prelude::*;

use super::*;
use crate::key::{owner, stable_hashes};
use crate::operator::KeyedOperator;
use crate::outage::testing::{Alone, outage_rows};
use crate::snapshot::check;
use crate::spec::{KeyLimits, Pattern, time_type};

mod alerts;
mod plain;
mod rules;

use plain::{Found, plain};

const DEVICES: [&str; 3] = ["a", "b", "c"];
const DISORDER: i64 = 5;
const IDLE: i64 = 20;

/// Device, event time, whether it can be first and last.
type Reading = (&'static str, i64, bool, bool);

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("a", DataType::Boolean, false),
        Field::new("b", DataType::Boolean, false),
        Field::new("x", DataType::Float64, true),
    ]))
}

fn spec(pattern: Pattern) -> SequenceSpec {
    let planned = |name: &str| logical2physical(&col(name), &input());
    let one = matches!(pattern, Pattern::Among { .. } | Pattern::Times { .. });
    SequenceSpec {
        pipeline: "p".into(),
        name: "seq".into(),
        input: input(),
        keys: vec![0],
        time: 1,
        pattern,
        first: (!one).then(|| planned("a")),
        last: planned("b"),
        select_first: vec![("x0".into(), planned("x"))],
        select: vec![("x1".into(), planned("x"))],
        disorder_us: DISORDER,
        idle_close_us: IDLE,
        keep_us: 100_000,
        live: true,
        known_after_us: 0,
        forget_after_us: 1_000_000,
        limits: KeyLimits::default(),
    }
}

fn batch(readings: &[Reading]) -> RecordBatch {
    let times = readings.iter().map(|r| r.1);
    let flags = |f: &dyn Fn(&Reading) -> bool| {
        Arc::new(BooleanArray::from(readings.iter().map(f).collect::<Vec<bool>>()))
    };
    RecordBatch::try_new(
        input(),
        vec![
            Arc::new(StringArray::from_iter_values(readings.iter().map(|r| r.0))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
            flags(&|r| r.2),
            flags(&|r| r.3),
            Arc::new(Float64Array::from_iter_values(readings.iter().map(|r| r.1 as f64))),
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
    active: bool,
    completed: i64,
    matched: i64,
    values: Option<(f64, f64)>,
    rows: i64,
    revision: i64,
}

fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut all = Vec::new();
    for rows in batches {
        let time =
            |name: &str, row| rows[name].as_primitive::<TimestampMicrosecondType>().value(row);
        let number = |name: &str, row| rows[name].as_primitive::<Int64Type>().value(row);
        let value = |name: &str, row| {
            let values = rows[name].as_primitive::<Float64Type>();
            values.is_valid(row).then(|| values.value(row))
        };
        for row in 0..rows.num_rows() {
            all.push(Row {
                device: rows["device"].as_string::<i32>().value(row).to_owned(),
                start: time("window_start", row),
                end: time("window_end", row),
                active: rows["active"].as_boolean().value(row),
                completed: time("completed", row),
                matched: number("matched", row),
                values: value("x0", row).zip(value("x1", row)),
                rows: number("rows", row),
                revision: number("revision", row),
            });
        }
    }
    all
}

/// Several workers, each with its own operator; restarted now and then on another number.
struct Fleet {
    spec: SequenceSpec,
    workers: Vec<SequenceOperator>,
    told: Vec<Row>,
    late: usize,
    epoch: u64,
}

impl Fleet {
    fn new(spec: SequenceSpec) -> Self {
        let workers = vec![SequenceOperator::new(spec.clone()).unwrap()];
        Self { spec, workers, told: Vec::new(), late: 0, epoch: 0 }
    }

    fn own(rows: &RecordBatch, index: usize, workers: usize) -> RecordBatch {
        let mut hashes = Vec::new();
        stable_hashes(&[rows.column(0).clone()], rows.num_rows(), &mut hashes);
        let mine: BooleanArray =
            hashes.iter().map(|hash| Some(owner(*hash, workers) == index)).collect();
        arrow::compute::filter_record_batch(rows, &mine).unwrap()
    }

    fn restart(&mut self, workers: usize) {
        let saved: Vec<RecordBatch> =
            self.workers.iter_mut().map(|w| w.cut(true).rows().unwrap().rows).collect();
        self.workers = (0..workers)
            .map(|index| {
                let mut worker = SequenceOperator::new(self.spec.clone()).unwrap();
                for rows in &saved {
                    worker.load(&Self::own(rows, index, workers)).unwrap();
                }
                worker
            })
            .collect();
    }

    fn epoch(&mut self, time_us: i64, readings: &[Reading]) -> Vec<Row> {
        self.epoch_of(time_us, readings, &[])
    }

    /// With the log of outages, if it has changed or the fleet was restarted.
    fn epoch_of(&mut self, time_us: i64, readings: &[Reading], outages: &[(i64, i64)]) -> Vec<Row> {
        self.epoch += 1;
        let (rows, outages) = (batch(readings), outage_rows(outages));
        let (mut all, workers) = (Vec::new(), self.workers.len());
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let mut emit = Emit::default();
            let own = Self::own(&rows, index, workers);
            let tick = Tick { epoch: self.epoch, time_us };
            worker.epoch(&own, &outages, tick, &mut emit).unwrap();
            all.extend(rows_of(&emit.rows));
            self.late += emit.late.iter().map(RecordBatch::num_rows).sum::<usize>();
        }
        self.told.extend(all.iter().cloned());
        all
    }

    /// How many keys there are, and whether each is listed once at most.
    fn known(&self) -> (usize, bool) {
        let is_once = |w: &SequenceOperator| {
            let woken = w.interner.ids().filter(|id| w.keys[*id as usize].wake_us.is_some());
            woken.count() == w.due.len()
        };
        let keys = self.workers.iter().map(|w| w.interner.len()).sum();
        (keys, self.workers.iter().all(is_once))
    }

    /// What stands of what was told: the last revision of each, those withdrawn aside.
    fn stands(&self) -> Vec<Found> {
        let mut last: BTreeMap<(&str, i64), &Row> = BTreeMap::new();
        for row in &self.told {
            let before = last.insert((&row.device, row.start), row);
            assert_eq!(row.revision, before.map_or(0, |b| b.revision + 1), "{row:?}");
            assert_eq!((row.rows == 0, row.matched == 0), (row.values.is_none(), row.rows == 0));
        }
        let stands = last.into_values().filter(|row| row.rows > 0);
        stands
            .map(|row| {
                let (last, matched) = match self.spec.pattern {
                    Pattern::Then { .. } => (row.completed, 2),
                    Pattern::Without { .. } => (row.start, 1),
                    Pattern::Among { times, .. } | Pattern::Times { times, .. } => {
                        (row.completed, times)
                    }
                };
                assert_eq!(row.values, Some((row.start as f64, last as f64)));
                assert_eq!(row.matched, matched);
                let over = (!row.active).then_some(row.end);
                (row.device.clone(), row.start, row.completed, over)
            })
            .collect()
    }
}

/// Which keys are not forgotten, as plainly as it can be written.
struct Heard {
    spec: SequenceSpec,
    /// Tick of the last reading.
    seen: BTreeMap<&'static str, i64>,
}

impl Heard {
    fn epoch(&mut self, now: i64, readings: &[Reading], outages: &[(i64, i64)]) {
        self.seen.extend(readings.iter().map(|r| (r.0, now)));
        let known = self.spec.known_after_us;
        let waits = self.spec.pattern.within_us() + DISORDER + IDLE + known + 1;
        let after = self.spec.forget_after_us.max(waits);
        let is_quiet = |at: i64| outages.iter().all(|o| at < o.0 || o.1 <= at);
        let anew = outages.iter().all(|o| o.1 != i64::MAX && o.1 + waits <= now);
        self.seen.retain(|_, seen| {
            let quiet = (*seen..now).filter(|at| is_quiet(*at)).count() as i64;
            quiet < after || !anew
        });
    }
}

/// A reading on its way: device, event time, marks, how long it takes.
type Sent = (usize, i64, bool, bool, i64);

fn sent(delay: impl Strategy<Value = i64>) -> impl Strategy<Value = Vec<Sent>> {
    let pause = prop_oneof![2 => Just(0i64), 6 => 1i64..12, 1 => 15i64..60];
    let mark = || prop::bool::weighted(0.3);
    prop::collection::vec((0usize..3, pause, mark(), mark(), delay), 1..60).prop_map(|list| {
        let mut times = [0i64; 3];
        let mut all: Vec<Sent> = Vec::new();
        for (device, pause, first, last, delay) in list {
            times[device] += pause;
            all.push((device, times[device], first, last, delay));
        }
        all
    })
}

fn patterns() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        (1i64..40).prop_map(|within_us| Pattern::Then { within_us }),
        (1i64..40).prop_map(|within_us| Pattern::Without { within_us }),
        (1i64..4, 0i64..4).prop_map(|(times, more)| Pattern::Among { times, of: times + more }),
        (1i64..4, 1i64..40).prop_map(|(times, within_us)| Pattern::Times { times, within_us }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_told_last_is_what_all_readings_say(
        pattern in patterns(),
        sent in sent(prop_oneof![3 => Just(0i64), 2 => 0i64..DISORDER, 1 => 0i64..300]),
        again in prop::collection::vec((0usize..60, 0i64..300), 0..6),
        ticks in prop::collection::vec(0i64..400, 0..40),
        restarts in prop::collection::vec((0i64..400, 1usize..4), 0..3),
    ) {
        let doubled = again.iter().filter_map(|(i, delay)| Some((sent.get(*i)?, delay)));
        let doubled = doubled.map(|(s, delay)| (s.0, s.1, s.2, s.3, s.4 + delay));
        let sent: Vec<Sent> = sent.iter().copied().chain(doubled).collect();
        let mut turns: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (device, time, first, last, delay) in &sent {
            turns.entry(time + delay).or_default().push((DEVICES[*device], *time, *first, *last));
        }
        for at in &ticks {
            turns.entry(*at).or_default();
        }
        let mut fleet = Fleet::new(spec(pattern));
        for (at, readings) in &turns {
            for (_, workers) in restarts.iter().filter(|r| r.0 == *at) {
                fleet.restart(*workers);
            }
            fleet.epoch(*at, readings);
        }
        fleet.epoch(10_000, &[]);
        prop_assert_eq!(fleet.stands(), plain(pattern, &sent));
        prop_assert_eq!(fleet.late, 0);
    }

    /// Whatever the order of arrival within the disorder, nothing has to be corrected.
    #[test]
    fn disorder_within_the_bound_revises_nothing(
        pattern in patterns(),
        sent in sent(0i64..DISORDER),
    ) {
        let mut order: Vec<&Sent> = sent.iter().collect();
        order.sort_by_key(|s| s.1 + s.4);
        let mut fleet = Fleet::new(SequenceSpec { keep_us: 0, ..spec(pattern) });
        for (at, (device, time, first, last, _)) in order.into_iter().enumerate() {
            fleet.epoch(at as i64, &[(DEVICES[*device], *time, *first, *last)]);
        }
        fleet.epoch(10_000, &[]);
        prop_assert_eq!(fleet.stands(), plain(pattern, &sent));
        prop_assert_eq!(fleet.late, 0);
        prop_assert!(fleet.told.iter().all(|row| row.revision <= 1 && row.rows == 1));
        for row in &fleet.told {
            prop_assert_eq!(row.active, row.revision == 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever outages there are: a restart changes nothing, no key is stuck, nothing is late, and
    /// who is forgotten was silent for so long while it could be heard.
    #[test]
    fn outages_and_restarts(
        pattern in patterns(),
        forget_after_us in prop_oneof![Just(1_000_000i64), 70i64..200],
        known_after_us in prop_oneof![Just(0i64), 1i64..60],
        sent in sent(prop_oneof![3 => Just(0i64), 1 => 0i64..DISORDER, 1 => 0i64..100]),
        outages in prop::collection::vec((1i64..60, 1i64..60), 0..4),
        restarts in prop::collection::vec((0i64..400, 1usize..4), 0..3),
    ) {
        let mut turns: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (device, time, first, last, delay) in &sent {
            turns.entry(time + delay).or_default().push((DEVICES[*device], *time, *first, *last));
        }
        (0..500).step_by(7).for_each(|at| { turns.entry(at).or_default(); });
        let (mut at, mut logs, mut log) = (0, BTreeMap::new(), Vec::new());
        for (pause, length) in outages {
            log.push((at + pause, i64::MAX));
            logs.insert(at + pause, log.clone());
            at += pause + length;
            log.last_mut().unwrap().1 = at;
            logs.insert(at, log.clone());
        }
        logs.keys().for_each(|at| { turns.entry(*at).or_default(); });
        let spec = SequenceSpec { forget_after_us, known_after_us, ..spec(pattern) };
        let mut heard = Heard { spec: spec.clone(), seen: BTreeMap::new() };
        let mut straight = Fleet::new(spec.clone());
        let mut other = Fleet::new(spec);
        for (at, readings) in &turns {
            let new = logs.get(at).map_or(&[][..], Vec::as_slice);
            let mut known = new;
            for (_, workers) in restarts.iter().filter(|r| (at - 6..=*at).contains(&r.0)) {
                other.restart(*workers);
                known = logs.range(..=at).next_back().map_or(&[][..], |l| l.1.as_slice());
            }
            let mut one = straight.epoch_of(*at, readings, new);
            let mut two = other.epoch_of(*at, readings, known);
            let by = |a: &Row, b: &Row| {
                (&a.device, a.start, a.revision).cmp(&(&b.device, b.start, b.revision))
            };
            one.sort_by(by);
            two.sort_by(by);
            prop_assert_eq!(one, two);
            let log = logs.range(..=at).next_back().map_or(&[][..], |l| l.1.as_slice());
            heard.epoch(*at, readings, log);
            prop_assert_eq!(straight.known(), (heard.seen.len(), true), "at {}", at);
            prop_assert_eq!(other.known(), (heard.seen.len(), true), "at {}", at);
        }
        straight.epoch(10_000, &[]);
        if forget_after_us == 1_000_000 {
            // A key that was forgotten is new.
            straight.stands();
        }
        prop_assert_eq!(straight.late, 0);
        for key in (0..DEVICES.len()).filter_map(|at| straight.workers[0].keys.get(at)) {
            prop_assert_eq!((key.taken, key.wake_us), (key.entries.len(), None));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Nobody knows what came between the newest reading before an outage and the first one, by
    /// its time, after it: however late, doubled, cut into epochs or restarted.
    #[test]
    fn what_may_have_been_lost_is_not_missed(
        within_us in 1i64..40,
        sent in sent(prop_oneof![3 => Just(0i64), 1 => 0i64..DISORDER, 1 => 0i64..100]),
        again in prop::collection::vec((0usize..60, 0i64..100), 0..6),
        outages in prop::collection::vec((1i64..60, 1i64..60), 0..5),
        restarts in prop::collection::vec((0i64..400, 1usize..4), 0..3),
    ) {
        // One device, so that no epoch of another one tells its silence.
        let own = sent.iter().filter(|s| s.0 == 0).copied();
        let own: Vec<Sent> = own.collect();
        let doubled = again.iter().filter_map(|(i, delay)| Some((own.get(*i)?, delay)));
        let doubled = doubled.map(|(s, delay)| (s.0, s.1, s.2, s.3, s.4 + delay));
        let all: Vec<Sent> = own.iter().copied().chain(doubled).collect();
        let mut turns: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (_, time, first, last, delay) in &all {
            turns.entry(time + delay).or_default().push(("a", *time, *first, *last));
        }
        let (mut at, mut log) = (0, Vec::new());
        for (pause, length) in outages {
            log.push((at + pause, at + pause + length));
            at += pause + length;
        }
        for at in log.iter().flat_map(|o| [o.0, o.1]) {
            turns.entry(at).or_default();
        }
        let mut fleet = Fleet::new(spec(Pattern::Without { within_us }));
        let (mut clock, mut moved, mut unheard) = (None, 0, Vec::new());
        for (at, readings) in &turns {
            for (_, workers) in restarts.iter().filter(|r| (at - 6..=*at).contains(&r.0)) {
                fleet.restart(*workers);
            }
            let begun = log.iter().filter(|o| o.0 <= *at);
            let begun: Vec<(i64, i64)> =
                begun.map(|o| (o.0, if o.1 <= *at { o.1 } else { i64::MAX })).collect();
            fleet.epoch_of(*at, readings, &begun);
            let newest = readings.iter().map(|r| r.1).max();
            if newest > clock {
                let lost = log.iter().any(|o| o.0 < *at && moved <= o.1);
                if let Some(clock) = clock.filter(|_| lost) {
                    unheard.push(clock);
                }
                (clock, moved) = (newest, *at);
            }
        }
        fleet.epoch(10_000, &[]);
        let mut own: Vec<(i64, bool, bool)> = all.iter().map(|s| (s.1, s.2, s.3)).collect();
        own.sort_unstable();
        let first_after = |clock: &i64| own.iter().map(|r| r.0).find(|at| at > clock);
        let unheard: Vec<i64> = unheard.iter().filter_map(first_after).collect();
        let plain = plain::without(&own, within_us, &unheard);
        let stands: Vec<_> = fleet.stands().into_iter().map(|f| (f.1, f.2, f.3)).collect();
        prop_assert_eq!(stands, plain, "unheard {:?}", unheard);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cuts_add_up(
        pattern in patterns(),
        keep_us in prop_oneof![Just(0i64), Just(30i64)],
        sent in sent(prop_oneof![2 => Just(0i64), 1 => 0i64..100]),
    ) {
        let names: Vec<String> = (0..40).map(|i| format!("device-{i}")).collect();
        let mut epochs: Vec<(i64, RecordBatch)> = sent
            .iter()
            .enumerate()
            .map(|(i, (device, time, first, last, delay))| {
                let mut columns = batch(&[("", *time, *first, *last)]).columns().to_vec();
                let name = &names[(device * 13 + i) % names.len()];
                columns[0] = Arc::new(StringArray::from(vec![name.as_str()]));
                (time + delay, RecordBatch::try_new(input(), columns).unwrap())
            })
            .collect();
        epochs.sort_by_key(|e| e.0);
        let make = || -> Box<dyn KeyedOperator> {
            let spec = SequenceSpec { keep_us, ..spec(pattern) };
            Box::new(Alone(SequenceOperator::new(spec).unwrap()))
        };
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}
