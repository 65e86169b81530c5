//! The doctor beside a running instance under load, and after damage: what it says, its exit code,
//! and that the saved folder goes on.

use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{ColdChain, Device, Home, Reading, eventually, tidegate};

/// Readings that are sent while the doctor looks, at most.
const READINGS_MAX: i64 = 3_000;

fn doctor(home: &Home, arguments: &[&str]) -> Output {
    let mut command = tidegate();
    command.arg("doctor").args(arguments).arg("--data").arg(home.data()).arg("--json");
    command.output().expect("the binary starts")
}

/// All rows with this status, as text.
fn rows(output: &Output, status: &str) -> Vec<String> {
    let reports: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let rows = reports.as_array().unwrap().iter().flat_map(|r| r["rows"].as_array().unwrap());
    rows.filter(|r| r["status"] == status).map(ToString::to_string).collect()
}

fn assert_well(output: &Output) {
    assert_eq!(rows(output, "fail"), Vec::<String>::new());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One reading, acknowledged.
fn publish(device: &mut Device, seq: i64) {
    let reading = Reading::regular("north", "room-1", seq, 1_000);
    device.send(&reading.topic(), &reading.payload()).unwrap();
    device.acknowledged().unwrap();
}

fn segments(home: &Home) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.data().join("journal")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "log"));
    files.sort();
    files
}

/// A data file of the table of readings.
fn table_file(home: &Home) -> PathBuf {
    let table = home.data().join("tables/cold_chain/readings");
    eventually("a file of the table", || {
        let mut command = std::process::Command::new("find");
        let found = command.arg(&table).args(["-name", "*.parquet"]).output().unwrap();
        let text = String::from_utf8(found.stdout).unwrap();
        text.lines().next().map(PathBuf::from).ok_or_else(|| text.clone())
    })
}

#[test]
fn a_running_instance_under_load_is_well_and_a_damaged_one_is_saved() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let instance = home.start();
    let mut device = Device::connect(instance.endpoint(), "room-1").unwrap();
    let enough = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) && sent < READINGS_MAX {
                publish(&mut device, sent);
                sent += 1;
            }
            sent
        });
        for _ in 0..3 {
            assert_well(&doctor(&home, &["data"]));
            assert_well(&doctor(&home, &["tables"]));
        }
        enough.store(true, Ordering::Relaxed);
        sending.join().unwrap()
    });
    assert!(sent > 10, "{sent}");
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", sent);
    // What it leaves behind is no damage.
    instance.kill();
    let pipelines = home.pipelines();
    assert_well(&doctor(&home, &["data", pipelines.to_str().unwrap()]));
    assert_well(&doctor(&home, &["tables"]));

    // A file of a table is gone, and a byte of the journal is another one.
    let gone = table_file(&home);
    std::fs::remove_file(&gone).unwrap();
    let file = segments(&home).pop().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for (part, word) in [("data", "at bytes 0 to 60"), ("tables", "is missing")] {
        let output = doctor(&home, &[part]);
        assert_eq!(output.status.code(), Some(1));
        let fails = rows(&output, "fail");
        assert!(fails[0].contains(word) && fails[0].contains("--salvage"), "{fails:?}");
    }
    let saved = home.data().with_file_name("saved");
    let output = doctor(&home, &["data", "--salvage", saved.to_str().unwrap()]);
    // Rows of the table are lost, and that is said.
    assert_eq!(output.status.code(), Some(1));
    assert!(rows(&output, "fail")[0].contains("lost: cold_chain/readings/"));
    std::fs::rename(home.data(), home.data().with_file_name("damaged")).unwrap();
    std::fs::rename(saved, home.data()).unwrap();
    assert_well(&doctor(&home, &["data"]));
    assert_well(&doctor(&home, &["tables"]));
    // It goes on: what comes now is added to what was saved.
    let left = home.count("SELECT count(*) FROM cold_chain.readings");
    assert!(left < sent);
    let instance = home.start();
    let mut device = Device::connect(instance.endpoint(), "room-1").unwrap();
    for seq in sent..sent + 5 {
        publish(&mut device, seq);
    }
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", left + 5);
    instance.stop();
}

#[test]
fn usage_and_emptiness_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = tidegate();
        command.current_dir(folder.path()).arg("doctor").args(arguments);
        command.output().unwrap().status.code()
    };
    assert_eq!(run(&["dta", "--nonsense"]), Some(2));
    assert_eq!(run(&["data", "--salvage"]), Some(2));
    assert_eq!(run(&[]), Some(1));
    assert_eq!(run(&["data", "--data", "nowhere"]), Some(1));
    assert_eq!(run(&["disk", "."]), Some(0));
}

/// The settings are those of a run: its data folder, its budget, and the line of the file.
#[test]
fn the_disk_is_judged_by_the_settings_of_a_run_and_their_line_is_named() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    std::fs::create_dir(home.data()).unwrap();
    let settings = "[process]\ndata = \"../data\"\njournal_max = \"1000TiB\"\n";
    let file = home.write("pipelines/tidegate.toml", settings);
    let run = |arguments: &[&str]| {
        let mut command = tidegate();
        command.current_dir(home.pipelines()).arg("doctor").args(arguments).arg("--json");
        command.output().unwrap()
    };
    let named = file.to_str().unwrap();
    for arguments in [&["disk"][..], &["disk", "--config", named], &["."]] {
        let output = run(arguments);
        let rooms: Vec<String> =
            rows(&output, "warn").into_iter().filter(|row| row.contains("\"room\"")).collect();
        assert_eq!(rooms.len(), 1, "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(rooms[0].contains("tidegate.toml:3: instead of `journal_max"), "{rooms:?}");
    }
    home.write("pipelines/tidegate.toml", &settings.replace("1000TiB", "1000"));
    for arguments in [&["disk"][..], &["data"], &["config", "."], &["."]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let failed = rows(&output, "fail").join("\n");
        assert!(failed.contains("tidegate.toml:3:"), "{arguments:?}: {failed}");
    }
}
