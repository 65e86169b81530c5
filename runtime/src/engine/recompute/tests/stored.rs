//! What is stored is not all there was, is from another journal, or is of an earlier form.

use std::sync::atomic::Ordering::Relaxed;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use tidegate_operators::spec::Shape;

use super::*;
use crate::engine::recompute::affected::Affected;

/// Three readings of the first windows, one that closes them, five that are too late for them.
const READINGS: [Reading; 9] = [
    (0, 0, 1),
    (0, 1, 2),
    (0, 2, 4),
    (0, 200, 1),
    (0, 3, 5),
    (0, 4, 6),
    (0, 0, 7),
    (0, 1, 1),
    (0, 2, 2),
];

/// Which rows came from the reading of this number on.
pub(super) fn from_number(first: i64, rows: &RecordBatch) -> Vec<bool> {
    let from_us = START + 30 * MINUTE + first * 10 * S;
    let times = rows["received_time"].as_primitive::<TimestampMicrosecondType>();
    times.values().iter().map(|us| *us >= from_us).collect()
}

pub(super) fn kept(worker: &Worker) -> u64 {
    worker.context.stats.windows_kept.load(Relaxed)
}

async fn kept_rows(home: &Home) -> Vec<String> {
    home.ask("SELECT * FROM system.windows_kept").await
}

#[test]
fn windows_stay_if_their_readings_are_not_all_stored() {
    // Some are there, and with the late ones more than the window had; or the late ones only; or
    // not even those. Late readings in one group, in three, or each in its own.
    for (first, every_us) in
        [2, 4, 9].into_iter().flat_map(|f| [(f, 360 * S), (f, 20 * S), (f, 10 * S)])
    {
        let edges = run(&READINGS, 1);
        blocking(async {
            let mut home = Home::new();
            home.write(&edges, |edge, rows| match edge {
                "readings" => from_number(first, rows),
                _ => vec![true; rows.num_rows()],
            })
            .await;
            let before = home.everything().await;
            let worker = home.worker(every_us);
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!(home.everything().await, before, "from {first} on, {every_us}");
            let told = kept(&worker);
            let rows = kept_rows(&home).await;
            assert!(rows.len() >= 2, "from {first} on: {rows:?}");
            // Each is noted once, and counted then.
            assert_eq!(told, rows.len() as u64, "from {first} on, {every_us}: {rows:?}");
            let distinct = "SELECT DISTINCT table_name, keys, time FROM system.windows_kept";
            assert_eq!(home.ask(distinct).await.len(), rows.len());
            // Nobody asks for them again.
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!((kept(&worker), kept_rows(&home).await), (told, rows.clone()));
            let next = home.worker(every_us);
            home.catch_up(&next, i64::MAX).await;
            assert_eq!((kept(&next), kept_rows(&home).await), (0, rows));
        });
    }
}

/// Of what a window had before its table was there, the table says nothing.
#[test]
fn windows_from_before_their_table_stay() {
    let edges = run(&READINGS, 1);
    blocking(async {
        for (from_first, written) in [(false, false), (true, true)] {
            let mut home = Home::new();
            home.from_first = from_first;
            home.write(&edges, |edge, rows| match edge {
                "readings" => from_number(4, rows),
                "late" => vec![true; rows.num_rows()],
                _ => vec![false; rows.num_rows()],
            })
            .await;
            let worker = home.worker(20 * S);
            home.catch_up(&worker, i64::MAX).await;
            let some = home.everything().await.iter().any(|rows| !rows.is_empty());
            assert_eq!((some, kept(&worker) > 0), (written, !written));
        }
    });
}

/// A kill between the two commits of a group: that of the windows is as if it had not been.
#[test]
fn a_kill_after_it_is_noted_which_windows_stay_changes_nothing() {
    let second = [(1, 0, 1), (1, 200, 1), (1, 1, 5), (1, 2, 6)];
    let readings = [READINGS.as_slice(), &second].concat();
    let edges = run(&readings, 1);
    blocking(async {
        let mut home = Home::new();
        home.write(&edges, |edge, rows| match edge {
            "readings" => from_number(2, rows),
            _ => vec![true; rows.num_rows()],
        })
        .await;
        let before = home.everything().await;
        home.catch_up(&home.worker(360 * S), i64::MAX).await;
        let (after, noted) = (home.everything().await, kept_rows(&home).await);
        assert!(before[0] != after[0] && !noted.is_empty(), "{noted:?}");
        let log = home.folder.path().join("p/tumbling/_delta_log");
        let newest = std::fs::read_dir(&log).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        std::fs::remove_file(&newest).unwrap();
        assert_eq!(home.everything().await[0], before[0]);
        home.catch_up(&home.worker(360 * S), i64::MAX).await;
        assert_eq!((home.everything().await, kept_rows(&home).await), (after, noted));
    });
}

/// The same windows wherever they are cut, and each of them once.
#[test]
fn slices_are_of_one_day_and_come_when_they_are_whole() {
    let shape = Shape::Grid { size_us: 60 * MINUTE, slide_us: 60 * MINUTE, offset_us: 0 };
    let mut affected = Affected::default();
    let day = 24 * 60 * MINUTE;
    let rows = |spans: &[(i64, i64)]| {
        let times = |f: &dyn Fn(&(i64, i64)) -> i64| -> ArrayRef {
            let times = TimestampMicrosecondArray::from_iter_values(spans.iter().map(f));
            Arc::new(times.with_timezone("UTC"))
        };
        let keys = StringArray::from_iter_values(spans.iter().map(|_| "k"));
        let late = Int64Array::from_iter_values(spans.iter().map(|_| 2));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("keys", Arc::new(keys)),
            ("window_start", times(&|s| s.0)),
            ("window_end", times(&|s| s.1)),
            ("n", Arc::new(late)),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let hour = 60 * MINUTE;
    // The first spans three windows, the last of them tomorrow.
    let spans = [(day - 2 * hour, day + hour), (day - hour, day)];
    let before_us = affected.add(&rows(&spans), &shape).unwrap();
    assert!(affected.slice(&shape, before_us).is_none(), "another could begin in this hour");
    let before_us = affected.add(&rows(&[(day + hour, day + 2 * hour)]), &shape).unwrap();
    let slice = affected.slice(&shape, before_us).unwrap();
    let counts: Vec<i64> = slice.unwritten().iter().map(|w| w.late).collect();
    assert_eq!((slice.range_us(), counts), ((day - 2 * hour, day), vec![2, 4]));
    assert!(affected.slice(&shape, before_us).is_none());
    let slice = affected.slice(&shape, i64::MAX).unwrap();
    assert_eq!((slice.range_us(), slice.count()), ((day, day + 2 * hour), 2));
    assert!(affected.slice(&shape, i64::MAX).is_none());
}

#[test]
fn what_was_late_before_the_journal_began_is_not_looked_at() {
    let edges = run(&READINGS, 1);
    blocking(async {
        let mut home = Home::new();
        home.write_all(&edges).await;
        home.catch_up(&home.worker(20 * S), i64::MAX).await;
        let before = home.everything().await;
        for (first_us, looked) in [(Some(START + 90 * MINUTE), false), (None, true)] {
            let mut worker = home.worker(20 * S);
            worker.context.instance = "another".into();
            if let Some(time_us) = first_us {
                worker.context.horizon.complete(Tick { epoch: 1, time_us });
            }
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!(home.everything().await, before);
            assert_eq!(kept(&worker) > 0, looked);
        }
    });
}

/// A later process knows it too, though it does not see the beginning.
#[test]
fn where_the_journal_began_is_known_after_a_restart() {
    let edges = run(&READINGS, 1);
    blocking(async {
        let mut home = Home::new();
        home.write_all(&edges).await;
        let another = |home: &Home| {
            let mut worker = home.worker(20 * S);
            worker.context.instance = "another".into();
            worker
        };
        let worker = another(&home);
        let (first_us, now) = (START + 90 * MINUTE, Instant::now());
        worker.look(now).await;
        assert!(worker.done().is_empty(), "nothing is known yet");
        // What is whole after it is not committed yet.
        worker.context.horizon.complete(Tick { epoch: 1, time_us: first_us });
        worker.look(now).await;
        let before = home.everything().await;
        let worker = another(&home);
        home.catch_up(&worker, i64::MAX).await;
        assert_eq!((home.everything().await, kept(&worker)), (before, 0));
    });
}

#[test]
fn rows_from_before_a_field_was_required_are_read() {
    let first = text_of(STEPS)
        .replace("from = \"readings\"\n", "from = \"readings\"\npartition = [\"site\"]\n")
        .replace("from = \"tumbling\"\n", "from = \"tumbling\"\npartition = [\"site\"]\n");
    let field = "x = { type = \"int64\", required = true }";
    let then = first.replace("w = \"float64\"", &format!("w = \"float64\"\n{field}"));
    let [first, then] = [first, then].map(plan_in);
    let edges = trial::run(&first.pipelines[0], &inputs(&READINGS), 1).unwrap();
    blocking(async {
        let mut home = Home::new();
        home.plan = first;
        home.write_all(&edges).await;
        home.plan = then;
        home.write(&Edges::default(), |_, _| Vec::new()).await;
        home.catch_up(&home.worker(20 * S), i64::MAX).await;
        assert_eq!(home.shown().await, batch(&READINGS));
        let twice = "SELECT device, window_start, revision FROM p.tumbling_revisions \
                     GROUP BY 1, 2, 3 HAVING count(*) > 1";
        assert_eq!(home.ask(twice).await, Vec::<String>::new());
    });
}

#[test]
fn a_table_in_trouble_stops_no_others() {
    // A day late, so that each of the tables has something to do.
    let readings = [READINGS.as_slice(), &[(0, -1440, 3)]].concat();
    let edges = run(&readings, 1);
    let broken = plan_in(text_of(STEPS).replace("name = \"hops\"", "name = \"nowhere\""));
    blocking(async {
        let mut home = Home::new();
        home.write_all(&edges).await;
        let waiting = |worker: &Worker| worker.context.stats.windows_waiting.load(Relaxed);
        let worker = home.worker(20 * S);
        let good = worker.context.steps.now();
        worker.context.steps.follow(&broken.pipelines);
        worker.each(&worker.context.steps.now(), &[i64::MAX]).await.unwrap_err();
        assert_eq!(waiting(&worker), 1);
        let others = good.iter().flat_map(|s| &s.tables).filter(|table| table.name != "hops");
        for table in others {
            assert!(worker.done().contains_key(&worker.app_id(table)), "{}", table.name);
        }
        worker.each(&good, &[i64::MAX]).await.unwrap();
        assert_eq!(waiting(&worker), 0);
        assert_eq!(home.shown().await, batch(&readings));
    });
}

#[test]
fn a_table_in_trouble_is_tried_ever_more_rarely_while_others_go_on() {
    let readings = [READINGS.as_slice(), &[(0, -1440, 3)]].concat();
    let edges = run(&readings, 1);
    blocking(async {
        let mut home = Home::new();
        home.write_all(&edges).await;
        let (worker, start) = (home.worker(20 * S), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let [there, away] = ["p/hops", "p/away"].map(|name| home.folder.path().join(name));
        std::fs::rename(&there, &away).unwrap();
        let done_us = |name: &str| {
            let steps = worker.context.steps.now();
            let mut tables = steps.iter().flat_map(|step| &step.tables);
            let table = tables.find(|table| table.name == name).unwrap();
            worker.done().get(&worker.app_id(table)).copied()
        };
        let is_waiting = |failures: u64| {
            let told = worker.waiting.now();
            assert!(told.len() == 1 && told[0].0 == "p.hops", "{told:?}");
            assert_eq!(worker.context.stats.windows_waiting.load(Relaxed), 1);
            assert_eq!(worker.waiting.failures("p.hops"), Some(failures));
        };
        let first_us = START + 31 * MINUTE;
        worker.context.horizon.complete(Tick { epoch: 0, time_us: first_us });
        worker.look(start).await;
        assert_eq!(done_us("tumbling"), Some(first_us));
        is_waiting(1);
        worker.context.horizon.late();
        worker.context.horizon.complete(Tick { epoch: 0, time_us: START + 60 * MINUTE });
        worker.look(after(1)).await;
        let last_us = START + 30 * MINUTE + 100 * S;
        assert_eq!([done_us("tumbling"), done_us("days")], [Some(last_us); 2], "at once");
        is_waiting(1);
        for (seconds, failures) in [(60, 2), (65, 2), (300, 3)] {
            worker.look(after(seconds)).await;
            is_waiting(failures);
        }
        // What came while it waited is not forgotten.
        std::fs::rename(&away, &there).unwrap();
        worker.look(after(900)).await;
        assert_eq!(worker.waiting.now(), []);
        assert_eq!(worker.context.stats.windows_waiting.load(Relaxed), 0);
        assert_eq!(home.shown().await, batch(&readings));
    });
}
