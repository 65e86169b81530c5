//! Two data folders of one instance that write to the same tables: a copied folder, or a failover
//! while the old process still lives. The later one goes on, the older one stops and acknowledges
//! nothing more, and no epoch is in a table twice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    ColdChain, Device, Home, Instance, Reading, Scrape, eventually, get, is_long, tidegate,
};

/// "Fences the first within 10 s", of the acceptance tests. Where other things run beside it, a
/// start of this binary on this machine comes to that, see [`first_start`].
const FENCED_WITHIN: Duration = Duration::from_secs(10);
/// Its exit code.
const FENCED: Option<i32> = Some(3);

fn run(home: &Home, data: &Path) -> Command {
    run_every(home, data, "500ms")
}

/// With checkpoints so often.
fn run_every(home: &Home, data: &Path, every: &str) -> Command {
    let mut command = tidegate();
    command.arg("run").arg(home.pipelines()).arg("--data").arg(data);
    command.arg("--tables").arg(shared(home)).args(["--workers", "1"]);
    command.args(["--metrics", "127.0.0.1:0", "--checkpoint-every", every]);
    command
}

fn shared(home: &Home) -> PathBuf {
    home.data().with_file_name("shared-tables")
}

fn copied(home: &Home) -> PathBuf {
    let copy = home.data().with_file_name("copy");
    // It is written meanwhile: where an old checkpoint vanished under `cp`, once more.
    eventually("a copy of the data folder", || {
        let _ = std::fs::remove_dir_all(&copy);
        let status = Command::new("cp").arg("-a").arg(home.data()).arg(&copy).status().unwrap();
        if status.success() { Ok(()) } else { Err(status.to_string()) }
    });
    copy
}

fn publish(instance: &Instance, range: std::ops::Range<i64>) {
    let readings: Vec<Reading> =
        range.map(|seq| Reading::regular("north", "d1", seq, 1_000)).collect();
    let topic = readings[0].topic();
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    device.publish_all(readings.iter().map(|r| (topic.as_str(), r.payload()))).unwrap();
}

/// Starts the older process; how long a start may take that has to end another process.
fn first_start(home: &Home) -> (Instance, Duration) {
    let begun = Instant::now();
    let older = home.start_command(&mut run(home, &home.data()));
    (older, FENCED_WITHIN + 2 * begun.elapsed())
}

/// The older process ended so long after the later one was started.
fn fenced_in_time(took: Duration, within: Duration) {
    let within = if is_long() { FENCED_WITHIN } else { within };
    assert!(took < within, "only after {took:?}");
}

/// Waits until every table has all that there is.
pub(super) fn all_is_committed(instance: &Instance) {
    let address = instance.metrics().unwrap();
    eventually("no table waits", || {
        let now = Scrape::read(&get(address, "/metrics").unwrap().1);
        let lags = now.samples.iter().filter(|(name, _)| name.starts_with("tidegate_table_lag_"));
        let waiting: Vec<_> = lags.filter(|(_, lag)| **lag > 0.0).collect();
        if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?}")) }
    });
}

/// The epochs of the commits of each table, in the order of its log; fails if one does not grow.
fn epochs_only_grow(tables: &Path) {
    let mut logs = 0;
    for namespace in std::fs::read_dir(tables).unwrap().map(|n| n.unwrap().path()) {
        for table in std::fs::read_dir(&namespace).unwrap().map(|t| t.unwrap().path()) {
            let Ok(log) = std::fs::read_dir(table.join("_delta_log")) else { continue };
            let mut commits: Vec<PathBuf> = log.map(|c| c.unwrap().path()).collect();
            commits.retain(|c| c.extension().is_some_and(|e| e == "json"));
            commits.sort();
            let mut last = -1;
            for commit in commits {
                for line in std::fs::read_to_string(&commit).unwrap().lines() {
                    let action: serde_json::Value = serde_json::from_str(line).unwrap();
                    let Some(epoch) = action["txn"]["version"].as_i64() else { continue };
                    // Others count the rows of a day.
                    let app_id = action["txn"]["appId"].as_str().unwrap();
                    if app_id.matches('/').count() > 1 {
                        continue;
                    }
                    assert!(epoch > last, "{epoch} after {last} in {}", commit.display());
                    (last, logs) = (epoch, logs + 1);
                }
            }
        }
    }
    assert!(logs > 0, "no commit was found in {}", tables.display());
}

/// The run that the newest checkpoint is of, when there is one.
fn incarnation(data: &Path) -> u64 {
    eventually("a checkpoint", || newest(data).ok_or_else(|| "there is none".to_owned()))
}

fn newest(data: &Path) -> Option<u64> {
    let found = std::fs::read_dir(data.join("checkpoints")).unwrap();
    let texts = found.filter_map(|f| std::fs::read_to_string(f.ok()?.path()).ok());
    let manifests = texts.filter_map(|text| {
        let manifest: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
        Some((manifest["epoch"].as_u64()?, manifest["incarnation"].as_u64()?))
    });
    manifests.max().map(|(_, incarnation)| incarnation)
}

#[test]
fn a_copied_folder_takes_over_and_the_older_process_stops() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let (older, within) = first_start(&home);
    publish(&older, 0..150);
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 150);
    all_is_committed(&older);
    assert_eq!(incarnation(&home.data()), 1);
    let copy = copied(&home);
    let begun = Instant::now();
    let later = Instance::spawn(&mut run(&home, &copy));
    let mut older = older;
    let status = eventually("the end of the older process", || {
        older.try_ended().ok_or_else(|| format!("{}\n---\n{}", older.said(), later.said()))
    });
    fenced_in_time(begun.elapsed(), within);
    assert_eq!(status.code(), FENCED, "{}", older.said());
    let said = older.said();
    assert!(said.contains("another process of this instance writes the tables"), "{said}");
    assert!(said.contains("incarnation 2 came after 1"), "{said}");
    eventually("the later process is ready", || later.address().ok_or_else(|| later.said()));
    assert!(begun.elapsed() < within, "the end of the older one is waited for, not a time");
    publish(&later, 150..400);
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 400);
    home.wait_for_count("SELECT count(DISTINCT seq) FROM cold_chain.readings", 400);
    later.stop();
    assert_eq!(incarnation(&copy), 2);
    epochs_only_grow(&shared(&home));
    // The older folder lacks what the copy has written: its epochs would be left out in silence.
    let mut refused = Instance::spawn(&mut run(&home, &home.data()));
    let status = eventually("the refusal", || refused.try_ended().ok_or_else(|| refused.said()));
    assert_eq!(status.code(), Some(1), "{}", refused.said());
    eventually("why", || match refused.said() {
        said if said.contains("do not belong together") && said.contains("--salvage") => Ok(()),
        said => Err(said),
    });
    // The newer one starts at once: the one before had ended.
    let begun = Instant::now();
    let again = home.start_command(&mut run(&home, &copy));
    assert!(begun.elapsed() < within);
    again.stop();
}

/// Publishes until it is told that it is enough, or is cut off; what was acknowledged is counted.
fn publishing(
    to: &Instance,
    acked: &Arc<AtomicI64>,
    enough: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let (to, acked, enough) = (to.endpoint(), Arc::clone(acked), Arc::clone(enough));
    std::thread::spawn(move || {
        let mut device = Device::connect(to, "d1").unwrap();
        for seq in 0.. {
            let reading = Reading::regular("north", "d1", seq, 1_000);
            let sent = device.send(&reading.topic(), &reading.payload());
            if enough.load(Ordering::Acquire) || sent.is_err() || device.acknowledged().is_err() {
                return;
            }
            acked.fetch_add(1, Ordering::AcqRel);
        }
    })
}

#[test]
fn while_it_is_published_to_nothing_is_acknowledged_after_the_end_and_nothing_is_doubled() {
    // No epoch is committed before the end: the copy is as new as the tables.
    let home = Home::with(&ColdChain::on_endpoint().text().replace("\"1s\"", "\"1h\""));
    let rarely = |data: &Path| run_every(&home, data, "1h");
    let begun = Instant::now();
    let mut older = home.start_command(&mut rarely(&home.data()));
    let within = FENCED_WITHIN + 2 * begun.elapsed();
    let (acked, enough) = (Arc::<AtomicI64>::default(), Arc::<AtomicBool>::default());
    let publisher = publishing(&older, &acked, &enough);
    eventually("acknowledgements", || match acked.load(Ordering::Acquire) {
        n if n > 20 => Ok(()),
        n => Err(n.to_string()),
    });
    let copy = copied(&home);
    let begun = Instant::now();
    let later = Instance::spawn(&mut rarely(&copy));
    let status = eventually("the end of the older process", || {
        older.try_ended().ok_or_else(|| format!("{}\n---\n{}", older.said(), later.said()))
    });
    fenced_in_time(begun.elapsed(), within);
    assert_eq!(status.code(), FENCED, "{}", older.said());
    publisher.join().unwrap();
    enough.store(true, Ordering::Release);
    eventually("the later process is ready", || later.address().ok_or_else(|| later.said()));
    later.stop();
    let found = home.count("SELECT count(DISTINCT seq) FROM cold_chain.readings");
    assert_eq!(home.count("SELECT count(*) FROM cold_chain.readings"), found, "one twice");
    epochs_only_grow(&shared(&home));
    // What the older one acknowledged is in its journal, whatever the tables got of it.
    let acked = acked.load(Ordering::Acquire);
    assert!(acked > 0 && found <= acked, "{found} of {acked}");
    home.start().stop();
    let all = home.count("SELECT count(DISTINCT seq) FROM cold_chain.readings");
    assert!((acked..=acked + 1).contains(&all), "one was under way: {all} of {acked}");
}

#[test]
fn a_stale_copy_is_refused_before_it_ends_the_process_that_is_right() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let (mut older, _) = first_start(&home);
    let (acked, enough) = (Arc::<AtomicI64>::default(), Arc::<AtomicBool>::default());
    let publisher = publishing(&older, &acked, &enough);
    eventually("rows in the tables", || match home.try_rows("SELECT 1 FROM readings LIMIT 1") {
        Ok(rows) if !rows.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let copy = copied(&home);
    // The tables get ahead of what the copy has.
    let at_copy = acked.load(Ordering::Acquire) + 2;
    eventually("later commits", || match home.count("SELECT count(*) FROM readings") {
        n if n > at_copy => Ok(()),
        n => Err(format!("{n} of {at_copy}")),
    });
    let mut later = Instance::spawn(&mut run(&home, &copy));
    let status = eventually("the refusal", || later.try_ended().ok_or_else(|| later.said()));
    assert_eq!(status.code(), Some(1), "{}", later.said());
    assert!(later.said().contains("do not belong together"), "{}", later.said());
    // It has harmed nothing: nobody has a later number, and acknowledgements go on.
    let at_refusal = acked.load(Ordering::Acquire);
    std::thread::sleep(Duration::from_secs(5));
    assert!(older.try_ended().is_none(), "{}", older.said());
    assert!(acked.load(Ordering::Acquire) > at_refusal, "{}", older.said());
    enough.store(true, Ordering::Release);
    publisher.join().unwrap();
    older.stop();
    // The last one was acknowledged, and nobody counted it.
    let acked = acked.load(Ordering::Acquire);
    let all = home.count("SELECT count(*) FROM cold_chain.readings");
    assert!((acked..=acked + 1).contains(&all), "{all} of {acked}");
    assert_eq!(home.count("SELECT count(DISTINCT seq) FROM cold_chain.readings"), all);
    epochs_only_grow(&shared(&home));
}
