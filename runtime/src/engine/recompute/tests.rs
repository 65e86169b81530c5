//! Windows after any delay of their readings, against a plain loop over all readings.
#![allow(clippy::unwrap_used)]

mod ahead;
mod apart;
mod around;
mod behind;
mod counts;
mod enriched;
mod forms;
mod sessions;
mod states;
mod stored;
mod unpaused;

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::util::display::array_value_to_string;
use proptest::prelude::*;
use tidegate_operators::Tick;
use tidegate_pipelines::graph::tables;
use tidegate_pipelines::plan::TestInput;
use tidegate_pipelines::{Plan, load};

use super::*;
use crate::engine::trial::{self, Edges};

const S: i64 = 1_000_000;
const MINUTE: i64 = 60 * S;
/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600 * S;

/// Device, minutes after the start, value.
type Reading = (usize, i64, i64);

/// How each pipeline here begins.
const HEAD: &str = r#"
name = "p"
[source]
type = "endpoint"
listen = "127.0.0.1:1883"
topics = ["t/{site}/{device}"]
[reading]
device = "{device}"
time = "ts"
future_bound = "1000d"
[reading.fields]
v = "int64"
w = "float64"
"#;

const STEPS: &str = r#"
[[step]]
name = "some"
type = "filter"
where = "v <> 3"

[[step]]
name = "tumbling"
type = "window"
from = "some"
every = "5m"
revise_for = "10m"
by = ["site", "device"]
select = { n = "count(*)", total = "sum(v)", least = "min(v)", mean = "avg(w)", late = "last(v)" }

[[step]]
name = "hopping"
type = "window"
size = "20m"
slide = "5m"
revise_for = "5m"
quality = true
select = { n = "count(*)", total = "sum(v)", least = "min(v)" }

[[step]]
name = "days"
type = "window"
every = "day"
zone = "Europe/Berlin"
revise_for = "5m"
select = { n = "count(*)", total = "sum(v)", least = "min(v)" }

[[table]]
from = "days"
[[table]]
from = "readings"
[[table]]
from = "tumbling"
[[table]]
from = "hopping"
name = "hops"
"#;

/// A pipeline of these steps and tables.
fn text_of(steps: &str) -> String {
    format!("{HEAD}{steps}")
}

fn plan_of(steps: &str) -> Plan {
    plan_in(text_of(steps))
}

fn plan_in(text: String) -> Plan {
    load(&[("p.toml".into(), text)], &|_, _| Err(String::new())).unwrap()
}

fn plan() -> Plan {
    plan_of(STEPS)
}

/// What came when a window had been closed is late, however it came to the window; what was said
/// of one stays. Nothing was lost here, and of windows that were never emitted nobody knows it.
const WRONG_QUALITY: &str = "SELECT device, window_start FROM p.hops_revisions GROUP BY device, \
     window_start HAVING min(rows - late) <> max(rows - late) OR NOT bool_and(complete) OR \
     (count(complete) NOT IN (0, count(*))) OR (count(complete) = 0 AND max(late) <> max(rows))";

/// One message every ten seconds.
fn inputs(readings: &[Reading]) -> Vec<TestInput> {
    let input = |(i, (device, minute, value)): (usize, &Reading)| {
        let at_us = START + 30 * 60 * S + i as i64 * 10 * S;
        let ts = (START + minute * MINUTE) / 1000;
        TestInput {
            topic: format!("t/s{}/d{device}", device % 2),
            at_us,
            payload: format!(r#"{{"ts":{ts},"v":{value},"w":0.{value}}}"#).into_bytes(),
            properties: Vec::new(),
            change: None,
            event: None,
        }
    };
    readings.iter().enumerate().map(input).collect()
}

/// Tables of a run, written as a live process does.
struct Home {
    folder: tempfile::TempDir,
    store: Store,
    plan: Plan,
    epoch: Epoch,
    /// Whether tables are there from the first row on.
    from_first: bool,
}

impl Home {
    fn new() -> Self {
        Self::of(plan())
    }

    fn of(plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        Self { folder, store, plan, epoch: 0, from_first: true }
    }

    /// Commits all rows of a run.
    async fn write_all(&mut self, edges: &Edges) {
        self.write(edges, |_, rows| vec![true; rows.num_rows()]).await;
    }

    /// Commits the rows of all edges for which `keep` holds, by edge.
    async fn write(&mut self, edges: &Edges, keep: impl Fn(&str, &RecordBatch) -> Vec<bool>) {
        self.epoch += 1;
        for spec in tables(&self.plan.pipelines) {
            let app = format!("i/{}.{}", spec.namespace, spec.name);
            let writer = TableWriter::open_from(&self.store, &spec, app, self.from_first);
            let mut writer = writer.await.unwrap();
            for rows in edges.get(&spec.from).into_iter().flatten() {
                let keep = BooleanArray::from(keep(&spec.from, rows));
                let rows = filter_record_batch(rows, &keep).unwrap();
                writer.append(rows, self.epoch).await.unwrap();
            }
            writer.commit(self.epoch).await.unwrap();
        }
    }

    /// Commits all rows, of stored readings first those that came before the reading of this
    /// number: then somebody deletes these.
    async fn write_and_delete(&mut self, edges: &Edges, first: i64) {
        let is_first = |rows: &RecordBatch| stored::from_number(first, rows).into_iter();
        self.write(edges, |edge, rows| match edge {
            "readings" => is_first(rows).map(|later| !later).collect(),
            _ => vec![true; rows.num_rows()],
        })
        .await;
        self.write(edges, |edge, rows| match edge {
            "readings" => is_first(rows).collect(),
            _ => vec![false; rows.num_rows()],
        })
        .await;
        if first == 0 {
            return;
        }
        let log = self.folder.path().join("p/readings/_delta_log");
        let commit = |version: usize| log.join(format!("{version:020}.json"));
        let actions = std::fs::read_to_string(commit(1)).unwrap();
        let mut removed = String::new();
        for line in actions.lines() {
            let action: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(path) = action["add"]["path"].as_str() {
                let remove = serde_json::json!({ "path": path, "dataChange": true });
                removed += &(serde_json::json!({ "remove": remove }).to_string() + "\n");
            }
        }
        let next = (0..).find(|version| !commit(*version).exists()).unwrap();
        std::fs::write(commit(next), removed).unwrap();
    }

    fn worker(&self, every_us: i64) -> Worker {
        let steps = Recomputed::default();
        steps.follow(&self.plan.pipelines);
        let every = Duration::from_micros(every_us.unsigned_abs());
        let context = Context {
            store: self.store.clone(),
            instance: "i".into(),
            steps,
            horizon: Arc::new(Horizon::new(every)),
            tables: TablesWatched::default(),
            fence: None,
            stats: Arc::default(),
            sorts: sorts(self.folder.path()),
        };
        Worker::new(context, Arc::default()).unwrap()
    }

    async fn catch_up(&self, worker: &Worker, end_us: i64) {
        for step in worker.context.steps.now().iter() {
            for table in &step.tables {
                worker.catch_up(step, table, end_us).await.unwrap();
            }
        }
    }

    /// With the rows of all edges, and all that is late done, by groups of this time.
    async fn caught_up(mut self, edges: &Edges, every_us: i64) -> (Self, Worker) {
        self.write_all(edges).await;
        let worker = self.worker(every_us);
        self.catch_up(&worker, i64::MAX).await;
        (self, worker)
    }

    /// Rows as text, in order.
    async fn ask(&self, sql: &str) -> Vec<String> {
        let session = Session::over(self.store.clone(), MEMORY_BYTES_MAX).unwrap();
        let found = session.sql(sql).await.unwrap().collect().await.unwrap();
        let mut lines = Vec::new();
        for rows in found {
            for row in 0..rows.num_rows() {
                let cells = rows.columns().iter().map(|c| array_value_to_string(c, row).unwrap());
                lines.push(cells.collect::<Vec<_>>().join(" "));
            }
        }
        lines.sort();
        lines
    }

    /// Commits what came in in these times, and the windows of all times or of none.
    async fn write_between(&mut self, edges: &Edges, times: Range<i64>, windows: bool) {
        self.write(edges, |edge, rows| {
            let column = match edge {
                "readings" => "received_time",
                "late" => "ingest_time",
                "limits_versions" | "names_versions" => "told_time",
                _ => return vec![windows; rows.num_rows()],
            };
            let of_rows = rows[column].as_primitive::<TimestampMicrosecondType>();
            of_rows.values().iter().map(|us| times.contains(us)).collect()
        })
        .await;
    }

    /// Late readings come one group after the other, each time to other processes.
    async fn catch_up_by_groups(&mut self, edges: &Edges, readings: usize, every_us: i64) {
        let first_us = START + 30 * MINUTE;
        let last_us = first_us + readings as i64 * 10 * S;
        let mut end_us = first_us.div_euclid(every_us) * every_us;
        while end_us <= last_us {
            let (from_us, until_us) = (end_us, end_us + every_us);
            // What came before the first reading, as registries can say it, is there with it.
            let is_first = from_us <= first_us;
            let times = if is_first { i64::MIN } else { from_us }..until_us;
            // Windows of a group are in the table before it, or never.
            self.write_between(edges, times, is_first).await;
            end_us = until_us;
            // Each time another process.
            let worker = self.worker(every_us);
            worker.stopping.store(true, Ordering::Release);
            self.catch_up(&worker, end_us).await;
            self.catch_up(&self.worker(every_us), end_us).await;
        }
    }

    /// What a table of windows shows of the rows for which a condition holds.
    async fn windows(&self, table: &str, condition: &str) -> Vec<String> {
        let time = |name: &str| format!("arrow_cast({name}, 'Int64')");
        let (start, end) = (time("window_start"), time("window_end"));
        let from = format!("FROM p.{table} WHERE {condition}");
        self.ask(&format!("SELECT device, {start}, {end}, n, total {from}")).await
    }

    /// The revisions of each window of a table, which this column tells apart, are whole.
    async fn check_revisions(&self, table: &str, window: &str) {
        let wrong = format!(
            "SELECT device, {window} FROM p.{table}_revisions GROUP BY 1, 2 HAVING count(*) <> \
             max(revision) + 1 OR count(DISTINCT revision) <> count(*)"
        );
        assert_eq!(self.ask(&wrong).await, Vec::<String>::new());
    }

    /// All that is in tables, whose revisions are whole.
    async fn whole<const N: usize>(&self, tables: [&str; N], window: &str) -> [Vec<String>; N] {
        let mut all = [const { Vec::new() }; N];
        for (table, rows) in tables.into_iter().zip(&mut all) {
            self.check_revisions(table, window).await;
            *rows = self.ask(&format!("SELECT * FROM p.{table}_revisions")).await;
        }
        all
    }

    /// What a worker told to stay, by table and keys.
    async fn told(&self, worker: &Worker) -> Vec<String> {
        match stored::kept(worker) {
            0 => Vec::new(),
            _ => self.ask("SELECT concat(table_name, keys) FROM system.windows_kept").await,
        }
    }

    /// What still waits for what it touches to be final, by step and keys.
    async fn waiting(&self, edges: &Edges) -> Vec<String> {
        if edges.get("late").is_none_or(|late| late.iter().all(|rows| rows.num_rows() == 0)) {
            return Vec::new();
        }
        let put_off = "time = window_start AND time = window_end";
        let tells = "SELECT step, keys, max(journal_offset) AS until FROM system.late WHERE time \
                     = window_end AND window_start < time GROUP BY 1, 2";
        self.ask(&format!(
            "SELECT concat(o.step, o.keys) FROM (SELECT * FROM system.late WHERE {put_off}) AS o \
             LEFT JOIN ({tells}) AS t ON o.step = t.step AND o.keys = t.keys WHERE t.until IS NULL \
             OR t.until < o.journal_offset"
        ))
        .await
    }

    async fn everything(&self) -> [Vec<String>; 3] {
        let of = |table: &str| format!("SELECT * FROM p.{table}_revisions");
        let (tumbling, hops) = (self.ask(&of("tumbling")).await, self.ask(&of("hops")).await);
        [tumbling, hops, self.ask(&of("days")).await]
    }

    /// What the tables show, as `batch` has it.
    async fn shown(&self) -> [Vec<String>; 3] {
        let columns = "device, arrow_cast(window_start, 'Int64') AS s, n, total, least";
        let of = |table: &str| format!("SELECT {columns} FROM p.{table}");
        let (tumbling, hops) = (self.ask(&of("tumbling")).await, self.ask(&of("hops")).await);
        [tumbling, hops, self.ask(&of("days")).await]
    }
}

/// The windows of all readings at once.
fn batch(readings: &[Reading]) -> [Vec<String>; 3] {
    let windows = |size: i64, slide: i64, offset: i64, keep: &dyn Fn(i64) -> bool| {
        let mut all: BTreeMap<(usize, i64), (i64, i64, i64)> = BTreeMap::new();
        for (device, minute, value) in readings.iter().filter(|r| keep(r.2)) {
            let last = (minute - offset).div_euclid(slide) * slide + offset;
            for start in (0..size / slide).map(|i| last - i * slide) {
                let of = all.entry((*device, start)).or_insert((0, 0, i64::MAX));
                *of = (of.0 + 1, of.1 + value, of.2.min(*value));
            }
        }
        let line = |((device, start), (n, total, least))| {
            format!("d{device} {} {n} {total} {least}", START + start * MINUTE)
        };
        let mut lines: Vec<String> = all.into_iter().map(line).collect();
        lines.sort();
        lines
    };
    // In winter, a day of Berlin begins at 23:00.
    [
        windows(5, 5, 0, &|v| v != 3),
        windows(20, 5, 0, &|_| true),
        windows(1440, 1440, -60, &|_| true),
    ]
}

fn run(readings: &[Reading], workers: usize) -> Edges {
    run_of(&plan(), readings, workers)
}

fn run_of(plan: &Plan, readings: &[Reading], workers: usize) -> Edges {
    trial::run(&plan.pipelines[0], &inputs(readings), workers).unwrap()
}

fn is_told(told: &[String], table: &str, device: usize) -> bool {
    told.iter().any(|row| row.contains(table) && row.contains(&format!("\"d{device}\"")))
}

/// What `all` finds in the tables, if they commit at once, and if late readings come one group
/// after the other, each time to other processes.
fn at_once_and_in_parts<T>(
    plan: impl Fn() -> Plan,
    readings: &[Reading],
    every: i64,
    all: impl AsyncFn(&Home) -> T,
) -> [T; 2] {
    let every_us = every * 20 * S;
    let edges = run_of(&plan(), readings, 1);
    let at_once = blocking(async {
        let mut home = Home::of(plan());
        home.write_all(&edges).await;
        home.catch_up(&home.worker(every_us), i64::MAX).await;
        all(&home).await
    });
    let edges = run_of(&plan(), readings, 3);
    let in_parts = blocking(async {
        let mut home = Home::of(plan());
        home.catch_up_by_groups(&edges, readings.len(), every_us).await;
        all(&home).await
    });
    [at_once, in_parts]
}

fn readings() -> impl Strategy<Value = Vec<Reading>> {
    // Up to four hours late, or a day, beside readings that are on time.
    let minute = prop_oneof![0i64..240, 200i64..240, Just(-1440)];
    prop::collection::vec((0usize..3, minute, 0i64..9), 1..80)
}

/// On time, and up to four hours late, or a day; then each device sends on so much later that all
/// of it is final.
fn with_an_end() -> impl Strategy<Value = Vec<Reading>> {
    readings().prop_map(|mut readings| {
        let after = [3_000, 3_010, 3_060].into_iter();
        readings.extend(after.flat_map(|minute| (0..3).map(move |device| (device, minute, 1))));
        readings
    })
}

fn blocking<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn after_any_delay_windows_are_those_of_all_readings(
        readings in readings(), workers in 1usize..4, every in 1i64..9,
    ) {
        let edges = run(&readings, workers);
        blocking(async {
            let mut home = Home::new();
            home.write_all(&edges).await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            let shown = home.shown().await;
            assert_eq!(shown, batch(&readings));
            assert_eq!(home.ask(WRONG_QUALITY).await, [] as [&str; 0]);
            // Once is enough.
            let all = home.everything().await;
            home.catch_up(&home.worker(every * 20 * S), i64::MAX).await;
            assert_eq!(home.everything().await, all);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]
    #[test]
    fn revisions_do_not_depend_on_when_tables_commit_or_on_stops(
        readings in readings(), every in 1i64..9,
    ) {
        let [at_once, in_parts] = at_once_and_in_parts(plan, &readings, every, Home::everything);
        prop_assert_eq!(in_parts, at_once);
    }
}

#[test]
fn what_a_window_said_of_repetitions_stays_when_it_is_computed_again() {
    let text = text_of(STEPS).replace("[reading.fields]", "[reading.dedup]\n[reading.fields]");
    let plan = plan_in(text);
    // The second one is a repetition; the last one comes when its windows are gone, and there are
    // none yet of one of them.
    let readings = [(0, 200, 1), (0, 200, 1), (0, 201, 2), (0, 400, 4), (0, 202, 5), (0, 300, 6)];
    let edges = trial::run(&plan.pipelines[0], &inputs(&readings), 1).unwrap();
    blocking(async {
        let mut home = Home::of(plan);
        home.write_all(&edges).await;
        home.catch_up(&home.worker(20 * S), i64::MAX).await;
        let said = |minute: i64| {
            let at = START + minute * MINUTE;
            format!(
                "SELECT revision, rows, late, duplicates FROM p.hops_revisions \
                 WHERE arrow_cast(window_start, 'Int64') = {at}"
            )
        };
        assert_eq!(home.ask(&said(200)).await, ["0 2 0 1", "1 3 1 1"]);
        assert_eq!(home.ask(&said(300)).await, ["0 1 1 "], "nobody knows it");
    });
}

#[test]
fn groups_are_whole_when_all_that_came_before_their_end_is_committed() {
    let horizon = Horizon::new(Duration::from_secs(60));
    let tick = |epoch, seconds: i64| horizon.complete(Tick { epoch, time_us: seconds * S });
    let whole = |committed| horizon.whole(committed).map(|w| (w.end_us / S, w.late));
    tick(5, 70);
    assert_eq!((whole(4), whole(5)), (None, Some((60, true))), "what was before is not known");
    horizon.done(60 * S);
    tick(6, 100);
    tick(7, 119);
    assert_eq!(whole(7), None);
    tick(8, 130);
    assert_eq!((whole(7), whole(8)), (None, Some((120, false))));
    horizon.late();
    tick(9, 185);
    assert_eq!(whole(9), Some((180, true)));
    horizon.done(180 * S);
    tick(10, 250);
    assert_eq!(whole(10), Some((240, true)), "it came in the epoch that ended the stretch before");
    horizon.done(240 * S);
    tick(11, 500);
    assert_eq!(whole(11), Some((480, false)));
}

#[test]
fn what_can_be_computed_again_and_from_what() {
    let steps = Recomputed::default();
    steps.follow(&plan().pipelines);
    let steps = steps.now();
    let mut named: Vec<(&str, &str, bool)> = steps
        .iter()
        .map(|s| (s.window.name.as_str(), s.stored.name.as_str(), s.is_direct()))
        .collect();
    named.sort_unstable();
    let known = [
        ("days", "readings", true),
        ("hopping", "readings", true),
        ("tumbling", "readings", false),
    ];
    assert_eq!(named, known);
    let explained = tidegate_pipelines::explain(&plan());
    assert_eq!(explained.matches("it is computed again from p.readings").count(), 3, "{explained}");
    for (from, to, told) in [
        ("[[table]]\nfrom = \"readings\"\n", "", "a table of `readings` would let"),
        ("revise_for = \"10m\"", "late = \"table\"", "late     system.late\n"),
        (
            "type = \"filter\"\nwhere = \"v <> 3\"",
            "type = \"select\"\ncolumns = { v = \"v\", w = \"w\", site = \"site\" }",
            "system.late, without effect: with `journal_offset` kept",
        ),
    ] {
        let plan = plan_in(text_of(STEPS).replace(from, to));
        let explained = tidegate_pipelines::explain(&plan);
        assert!(explained.contains(told), "{explained}");
    }
}
