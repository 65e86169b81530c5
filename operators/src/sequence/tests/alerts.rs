//! An alert on matches: what it said last is whether there is one now, whatever came late.

use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};

use super::*;
use crate::alert::AlertRule;
use crate::spec::{AlertSpec, SequenceSpec};

fn rule(spec: &SequenceSpec) -> AlertRule {
    let input = spec.schema();
    let active = logical2physical(&col("active"), &input);
    let over = logical2physical(&col("active").not_eq(datafusion_expr::lit(true)), &input);
    AlertRule::new(AlertSpec {
        pipeline: "p".into(),
        name: "alert".into(),
        keys: vec![0],
        others: Vec::new(),
        time: input.index_of("window_end").unwrap(),
        input,
        fire: active,
        clear: over,
        for_us: 0,
        severity: "warning".into(),
        summary: String::new(),
        notify: Vec::new(),
        max_age_us: i64::MAX,
        early: false,
        limits: KeyLimits::default(),
    })
    .unwrap()
}

/// The order in which the host gives rows of matches to who takes them.
fn in_order(rows: &RecordBatch) -> RecordBatch {
    let first = ["window_end", "window_start", "revision"];
    let schema = rows.schema();
    let rest = schema.fields().iter().map(|f| f.name().as_str()).filter(|n| !first.contains(n));
    let column = |name: &str| SortColumn { values: rows[name].clone(), options: None };
    let columns: Vec<SortColumn> = first.into_iter().chain(rest).map(column).collect();
    let indices = lexsort_to_indices(&columns, None).unwrap();
    take_record_batch(rows, &indices).unwrap()
}

/// A sequence step and an alert on it, restarted together.
struct Both {
    spec: SequenceSpec,
    sequence: SequenceOperator,
    rule: AlertRule,
    epoch: u64,
    /// Events by device: time, whether it fires.
    told: BTreeMap<String, Vec<(i64, bool)>>,
}

impl Both {
    fn new(pattern: Pattern) -> Self {
        let spec = spec(pattern);
        let (sequence, rule) = (SequenceOperator::new(spec.clone()).unwrap(), rule(&spec));
        Self { spec, sequence, rule, epoch: 0, told: BTreeMap::new() }
    }

    fn restart(&mut self) {
        let state = JoinOperator::cut(&mut self.sequence, true).rows().unwrap().rows;
        self.sequence = SequenceOperator::new(self.spec.clone()).unwrap();
        JoinOperator::load(&mut self.sequence, &state).unwrap();
        let state = self.rule.cut(true).rows().unwrap().rows;
        self.rule = rule(&self.spec);
        self.rule.load(&state).unwrap();
    }

    fn epoch(&mut self, time_us: i64, readings: &[Reading]) -> Vec<(i64, bool)> {
        self.epoch += 1;
        let tick = Tick { epoch: self.epoch, time_us };
        let (mut found, mut emit) = (Emit::default(), Emit::default());
        self.sequence.epoch(&batch(readings), &outage_rows(&[]), tick, &mut found).unwrap();
        let rows = arrow::compute::concat_batches(&self.spec.schema(), &found.rows).unwrap();
        let rows = in_order(&rows);
        self.rule.epoch(&rows, tick, &mut emit).unwrap();
        let mut new = Vec::new();
        for rows in &emit.rows {
            let times = rows["time"].as_primitive::<TimestampMicrosecondType>();
            let (keys, status) =
                (rows["keys"].as_string::<i32>(), rows["status"].as_string::<i32>());
            for row in 0..rows.num_rows() {
                let device = keys.value(row).split('"').nth(3).unwrap().to_owned();
                let event = (times.value(row), status.value(row) == "firing");
                self.told.entry(device).or_default().push(event);
                new.push(event);
            }
        }
        new
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_an_alert_said_last_is_whether_there_is_a_match(
        pattern in patterns(),
        sent in sent(prop_oneof![3 => Just(0i64), 2 => 0i64..DISORDER, 1 => 0i64..300]),
        ticks in prop::collection::vec(0i64..400, 0..40),
        restart in 0i64..400,
    ) {
        let mut turns: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (device, time, first, last, delay) in &sent {
            turns.entry(time + delay).or_default().push((DEVICES[*device], *time, *first, *last));
        }
        for at in &ticks {
            turns.entry(*at).or_default();
        }
        let mut both = Both::new(pattern);
        for (at, readings) in &turns {
            if *at == restart {
                both.restart();
            }
            both.epoch(*at, readings);
        }
        both.epoch(10_000, &[]);
        let mut active: BTreeMap<String, bool> = BTreeMap::new();
        for (device, _, _, over) in plain(pattern, &sent) {
            active.insert(device, over.is_none());
        }
        for device in DEVICES {
            let told = both.told.remove(device).unwrap_or_default();
            let by_time = told.is_sorted_by(|a, b| a.0 < b.0 && a.1 != b.1);
            prop_assert!(by_time && told.first().is_none_or(|e| e.1), "{:?}", told);
            let firing = told.last().is_some_and(|e| e.1);
            let active = active.get(device).copied().unwrap_or_default();
            prop_assert_eq!(firing, active, "{} {:?}", device, told);
        }
    }
}

/// What comes late fills the time between two matches, and makes one of them, which lasts.
#[test]
fn when_two_matches_become_one_the_alert_goes_on() {
    let mut both = Both::new(Pattern::Times { times: 3, within_us: 30 });
    let hit = |at| ("a", at, false, true);
    let mut told = both.epoch(10, &[hit(0), hit(1), hit(2)]);
    for at in [33, 36, 39, 42, 45] {
        told.extend(both.epoch(at, &[hit(at)]));
    }
    assert_eq!(told, [(2, true), (30, false), (39, true)]);
    both.restart();
    assert_eq!(both.epoch(46, &[hit(25), hit(26), hit(27)]), [(40, false), (41, true)]);
}
