//! What is stored is not all there was, is from another journal, or is of an earlier form.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

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
fn from_number(first: i64, rows: &RecordBatch) -> Vec<bool> {
    let from_us = START + 30 * MINUTE + first * 10 * S;
    let times = rows["received_time"].as_primitive::<TimestampMicrosecondType>();
    times.values().iter().map(|us| *us >= from_us).collect()
}

fn kept(worker: &Worker) -> u64 {
    worker.context.stats.windows_kept.load(Relaxed)
}

#[test]
fn windows_stay_if_their_readings_are_not_all_stored() {
    // Some are there, and with the late ones more than the window had; or the late ones only; or
    // not even those.
    for first in [2, 4, 9] {
        let edges = run(&READINGS, 1);
        blocking(async {
            let mut home = Home::new();
            home.write(&edges, |edge, rows| match edge {
                "readings" => from_number(first, rows),
                _ => vec![true; rows.num_rows()],
            })
            .await;
            let before = home.everything().await;
            let worker = home.worker(60 * MINUTE);
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!(home.everything().await, before, "from {first} on");
            let told = kept(&worker);
            assert!(told >= 2, "{told} windows from {first} on");
            // Nobody asks for them again.
            home.catch_up(&worker, i64::MAX).await;
            assert_eq!(kept(&worker), told);
        });
    }
}

#[test]
fn what_was_late_before_the_journal_began_is_not_looked_at() {
    let edges = run(&READINGS, 1);
    blocking(async {
        let mut home = Home::new();
        home.write(&edges, |_, rows| vec![true; rows.num_rows()]).await;
        home.catch_up(&home.worker(20 * S), i64::MAX).await;
        let before = home.everything().await;
        for (first_us, looked) in [(None, true), (Some(START + 90 * MINUTE), false)] {
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

#[test]
fn rows_from_before_a_field_was_required_are_read() {
    let first = PIPELINE
        .replace("from = \"readings\"\n", "from = \"readings\"\npartition = [\"site\"]\n")
        .replace("from = \"tumbling\"\n", "from = \"tumbling\"\npartition = [\"site\"]\n");
    let field = "x = { type = \"int64\", required = true }";
    let then = first.replace("w = \"float64\"", &format!("w = \"float64\"\n{field}"));
    let [first, then] = [first, then].map(|text| {
        load(&[("p.toml".into(), text)], &|_, _| Err(String::new())).expect("it is a pipeline")
    });
    let edges = trial::run(&first.pipelines[0], &inputs(&READINGS), 1).unwrap();
    blocking(async {
        let mut home = Home::new();
        home.plan = first;
        home.write(&edges, |_, rows| vec![true; rows.num_rows()]).await;
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
    let text = PIPELINE.replace("name = \"hops\"", "name = \"nowhere\"");
    let broken = load(&[("p.toml".into(), text)], &|_, _| Err(String::new())).unwrap();
    blocking(async {
        let mut home = Home::new();
        home.write(&edges, |_, rows| vec![true; rows.num_rows()]).await;
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
