//! Files as a source: formats, runs that were interrupted, folders that grow.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

use crate::support::{
    ColdChain, Home, Instance, Reading, Rng, Row, WindowRow, eventually, windows_of,
};

const DEVICES: u64 = 20;
const EVERY_MS: i64 = 1_000;
const MINUTES: i64 = 100;

/// Readings of all devices, mixed, inside the bound of disorder.
fn readings(count: i64, seed: u64) -> Vec<Reading> {
    let mut rng = Rng(seed);
    let mut all: Vec<(u64, Reading)> = (0..count)
        .map(|i| {
            let device = format!("d{}", i as u64 % DEVICES);
            let site = ["north", "south"][i as usize % 2];
            let reading = Reading::regular(site, &device, i / DEVICES as i64, EVERY_MS);
            (reading.at_ms as u64 + rng.below(4_000), reading)
        })
        .collect();
    all.sort_by_key(|(arrives_ms, _)| *arrives_ms);
    all.into_iter().map(|(_, reading)| reading).collect()
}

fn as_lines(readings: &[Reading]) -> Vec<u8> {
    readings.iter().map(|r| r.payload() + "\n").collect::<String>().into_bytes()
}

fn as_csv(readings: &[Reading]) -> Vec<u8> {
    let row = |r: &Reading| {
        format!("{},{},{},{},{:.1}\n", r.site, r.device, r.seq, r.at_ms, r.temperature)
    };
    let rows: String = readings.iter().map(row).collect();
    format!("site,device,seq,ts,temperature\n{rows}").into_bytes()
}

fn as_parquet(readings: &[Reading]) -> Vec<u8> {
    let text = |f: &dyn Fn(&Reading) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(readings.iter().map(f)))
    };
    let number = |f: &dyn Fn(&Reading) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(readings.iter().map(f)))
    };
    let temperatures = readings.iter().map(|r| r.temperature);
    let columns: [(&str, ArrayRef); 5] = [
        ("site", text(&|r| r.site.clone())),
        ("device", text(&|r| r.device.clone())),
        ("seq", number(&|r| r.seq)),
        ("ts", number(&|r| r.at_ms)),
        ("temperature", Arc::new(Float64Array::from_iter_values(temperatures))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// Writes a file, packed by `gzip` if its name ends so.
fn write(path: &Path, bytes: &[u8]) {
    let packed = path.extension().is_some_and(|e| e == "gz");
    let plain = if packed { path.with_extension("") } else { path.to_owned() };
    std::fs::write(&plain, bytes).unwrap();
    if packed {
        assert!(Command::new("gzip").arg(&plain).status().unwrap().success());
    }
}

/// Runs to the end of the files and gives what it said.
fn run(home: &Home, workers: usize) -> Output {
    home.run_command(workers).output().unwrap()
}

fn run_well(home: &Home, workers: usize) -> String {
    let output = run(home, workers);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the tables hold, but for the time of the file.
#[derive(Debug, PartialEq)]
struct Tables {
    readings: Vec<Row>,
    windows: Vec<WindowRow>,
    revised: i64,
    findings: Vec<Row>,
    rejects: i64,
}

fn tables(home: &Home) -> Tables {
    Tables {
        readings: home.rows(
            "SELECT journal_offset, device, time, seq, temperature, site \
             FROM cold_chain.readings ORDER BY journal_offset",
        ),
        windows: home.windows(MINUTES).unwrap(),
        revised: home
            .count("SELECT count(*) FROM cold_chain.per_minute_revisions WHERE revision > 0"),
        findings: home.rows("SELECT * FROM system.findings ORDER BY keys, time"),
        rejects: home.count("SELECT count(*) FROM system.rejects"),
    }
}

#[test]
fn the_same_readings_in_any_format_give_the_same_tables() {
    let readings = readings(10_000, 3);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    write(&at("a.ndjson"), &as_lines(&readings));
    write(&at("a.csv"), &as_csv(&readings));
    write(&at("b.csv.gz"), &as_csv(&readings));
    write(&at("a.parquet"), &as_parquet(&readings));
    std::fs::create_dir(at("parts")).unwrap();
    for (i, part) in readings.chunks(900).enumerate() {
        let name = format!("parts/part-{}", i + 1);
        match i % 3 {
            0 => write(&at(&(name + ".csv")), &as_csv(part)),
            1 => write(&at(&(name + ".ndjson.gz")), &as_lines(part)),
            _ => write(&at(&(name + ".parquet")), &as_parquet(part)),
        }
    }
    let of = |name: &str, workers| {
        let home = Home::with(&ColdChain::on_file(&at(name)).text());
        run_well(&home, workers);
        tables(&home)
    };
    let lines = of("a.ndjson", 2);
    assert_eq!((lines.readings.len(), lines.rejects, lines.revised), (10_000, 0, 0));
    assert_eq!(lines.windows, windows_of(&readings, MINUTES));
    for (name, workers) in [("a.csv", 1), ("b.csv.gz", 2), ("a.parquet", 2), ("parts", 2)] {
        assert_eq!(of(name, workers), lines, "{name}");
    }
    assert_eq!(of("parts/*", 4), lines, "as a pattern");
}

#[test]
fn a_run_that_was_stopped_and_killed_ends_in_the_same_tables() {
    let readings = readings(150_000, 5);
    let folder = tempfile::tempdir().unwrap();
    for (i, part) in readings.chunks(60_000).enumerate() {
        write(&folder.path().join(format!("{i}.csv")), &as_csv(part));
    }
    let pipeline = ColdChain::on_file(folder.path()).text();
    let home = Home::with(&pipeline);
    let instance = Instance::spawn(&mut home.run_command(2));
    eventually("the start", || {
        let said = instance.said();
        if said.contains("ready") { Ok(()) } else { Err(said) }
    });
    instance.stop();
    let query = "SELECT count(*) FROM cold_chain.readings";
    let stopped = home.count(query);
    assert!(stopped < 150_000, "it was in the middle: {stopped}");
    let instance = Instance::spawn(&mut home.run_command(1));
    eventually("some rows", || match home.count(query) {
        rows if rows > stopped => Ok(()),
        rows => Err(rows.to_string()),
    });
    instance.kill();
    let said = run_well(&home, 2);
    assert!(!said.contains("stopped before"), "{said}");
    let whole = Home::with(&pipeline);
    run_well(&whole, 2);
    let found = tables(&home);
    assert_eq!((found.readings.len(), found.revised), (150_000, 0));
    assert!(found == tables(&whole), "the tables differ");
    assert_eq!(found.windows, windows_of(&readings, MINUTES));
}

#[test]
fn a_folder_that_grows_goes_on_and_nothing_comes_twice() {
    let readings = readings(12_000, 7);
    let parts: Vec<&[Reading]> = readings.chunks(3_000).collect();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let home = Home::with(&ColdChain::on_file(folder.path()).text());
    write(&at("1.csv"), &as_csv(parts[0]));
    write(&at("3.csv"), &as_csv(parts[1]));
    run_well(&home, 2);
    assert_eq!(home.windows(MINUTES).unwrap(), windows_of(&readings[..6_000], MINUTES));
    // By its name in the middle: it is read after those that were there before.
    write(&at("2.ndjson"), &as_lines(parts[2]));
    run_well(&home, 1);
    // What was read may go; windows that were closed at an end are revised, not doubled.
    std::fs::remove_file(at("1.csv")).unwrap();
    write(&at("4.parquet"), &as_parquet(parts[3]));
    run_well(&home, 3);
    let found = tables(&home);
    let offsets: Vec<i64> =
        found.readings.iter().map(|r| r["journal_offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, (0..12_000).collect::<Vec<_>>());
    assert_eq!(found.windows, windows_of(&readings, MINUTES));
    assert!(found.revised > 0, "windows were open at the end of a run");
    let again = run_well(&home, 2);
    assert!(again.contains("there is nothing new"), "{again}");
    assert_eq!(tables(&home), found);

    write(&at("3.csv"), &as_csv(parts[2]));
    let output = run(&home, 2);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("3.csv has changed since it was read"), "{said}");
    assert_eq!(tables(&home), found);
}

#[test]
fn a_changed_pipeline_reads_all_again_and_adds_only_what_is_missing() {
    let readings = readings(6_000, 13);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let pipeline = ColdChain::on_file(folder.path()).text();
    let home = Home::with(&pipeline);
    for (i, part) in readings.chunks(3_000).enumerate() {
        write(&at(&format!("{i}.csv")), &as_csv(part));
        run_well(&home, 2);
    }
    let before = tables(&home);
    assert_eq!((before.readings.len(), before.windows.len()), (6_000, 100));
    let more = "\n[[step]]\nname = \"hot\"\ntype = \"filter\"\nwhere = \"temperature > 24\"\n\
                [[table]]\nfrom = \"hot\"\n";
    home.write("pipelines/one.toml", &format!("{pipeline}{more}"));
    run_well(&home, 2);
    assert_eq!(tables(&home), before);
    let hot = readings.iter().filter(|r| r.temperature > 24.0).count();
    assert_eq!(home.count("SELECT count(*) FROM cold_chain.hot"), hot as i64);
    // Tables that were thrown away come again.
    std::fs::remove_dir_all(home.data().join("tables")).unwrap();
    run_well(&home, 1);
    let again = tables(&home);
    assert_eq!((again.readings, again.rejects), (before.readings, 0));
    assert_eq!(again.windows, windows_of(&readings, MINUTES));
    // With other settings the rows would be others, beside those that are there.
    let other = pipeline.replacen("topic = ", "delimiter = \";\"\ntopic = ", 1);
    home.write("pipelines/one.toml", &other);
    let output = run(&home, 2);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("0.csv was read into these tables before"), "{said}");
}

/// Also where all of the folder came at once, so that no run has ended before.
#[test]
fn a_changed_pipeline_reads_a_folder_again_that_came_at_once() {
    let readings = readings(3_000, 13);
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("0.csv"), &as_csv(&readings));
    let pipeline = ColdChain::on_file(folder.path()).text();
    let home = Home::with(&pipeline);
    run_well(&home, 2);
    let before = tables(&home);
    let more = "\n[[table]]\nfrom = \"readings\"\nname = \"more\"\n";
    home.write("pipelines/one.toml", &format!("{pipeline}{more}"));
    run_well(&home, 2);
    assert_eq!(tables(&home), before);
    assert_eq!(home.count("SELECT count(*) FROM cold_chain.more"), 3_000);
}

#[test]
fn bad_rows_are_rejects_and_a_cut_file_fails_with_its_place() {
    let readings = readings(4_000, 9);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut bytes = as_csv(&readings[..2_000]);
    bytes.extend_from_slice(b"north,d1,5\nnorth,d\xff,1,2,3\n");
    write(&at("a.csv"), &bytes);
    let source = ColdChain::on_file(&at("*.csv*"));
    let home = Home::with(&source.text());
    run_well(&home, 2);
    let rejects = home.rows("SELECT reason, detail FROM system.rejects ORDER BY journal_offset");
    let details: Vec<&str> = rejects.iter().map(|r| r["detail"].as_str().unwrap()).collect();
    assert_eq!(details.len(), 2, "{details:?}");
    assert!(details[0].ends_with("a.csv line 2002: 3 cells, expected 5"), "{details:?}");
    assert!(details[1].ends_with("a.csv line 2003: `device` is not UTF-8"), "{details:?}");

    write(&at("b.csv.gz"), &as_csv(&readings[2_000..]));
    let whole = std::fs::read(at("b.csv.gz")).unwrap();
    std::fs::write(at("b.csv.gz"), &whole[..whole.len() - 100]).unwrap();
    let output = run(&home, 2);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("b.csv.gz after line 1"), "{said}");
    // It is read when it is whole, from where the others ended.
    std::fs::write(at("b.csv.gz"), &whole).unwrap();
    run_well(&home, 2);
    assert_eq!(home.count("SELECT count(*) FROM cold_chain.readings"), 4_000);
    assert_eq!(home.windows(MINUTES).unwrap(), windows_of(&readings, MINUTES));
}

#[test]
fn names_of_files_are_topics_and_devices() {
    let folder = tempfile::tempdir().unwrap();
    for (site, device) in [("north", "d1"), ("south", "d2")] {
        std::fs::create_dir(folder.path().join(site)).unwrap();
        let path = folder.path().join(site).join(format!("{device}.csv"));
        std::fs::write(path, "ts;temperature\n1767225600000;20.5\n1767225601000;21\n").unwrap();
    }
    let pipeline = format!(
        "name = \"cold-chain\"\n\
         [source]\ntype = \"file\"\npath = \"{}/**/*.csv\"\ndelimiter = \";\"\n\
         topic = \"plant/{{path}}\"\ntopics = [\"plant/{{site}}/{{device}}\"]\n\
         [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
         fields = {{ temperature = \"float64\" }}\n[[table]]\nfrom = \"readings\"\n",
        folder.path().display()
    );
    let home = Home::with(&pipeline);
    run_well(&home, 2);
    let found = home.rows(
        "SELECT site, device, sum(temperature) AS t FROM readings GROUP BY ALL ORDER BY device",
    );
    let texts: Vec<String> = found.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
    assert_eq!(
        texts,
        [
            r#"{"site":"north","device":"d1","t":41.5}"#,
            r#"{"site":"south","device":"d2","t":41.5}"#
        ]
    );
}

#[test]
fn what_comes_twice_is_dropped_and_counted() {
    let mut readings = readings(4_000, 11);
    let again: Vec<Reading> = readings.iter().skip(500).step_by(3).cloned().collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ndjson");
    let doubled: Vec<Reading> = readings.iter().chain(&again).cloned().collect();
    write(&path, &as_lines(&doubled));
    let pipeline = ColdChain::on_file(&path).text();
    let dedup = "\n[reading.dedup]\nkey = [\"device\", \"time\", \"seq\"]\n";
    let pipeline = pipeline.replacen("[reading.fields]", &format!("{dedup}[reading.fields]"), 1);
    let home = Home::with(&pipeline);
    let mut command = home.run_command(2);
    let output = command.arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let totals: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(totals["duplicates"], again.len() as u64);
    let kept = home.rows("SELECT seq, device FROM cold_chain.readings ORDER BY journal_offset");
    assert_eq!(kept.len(), readings.len());
    let told = home.count(
        "SELECT CAST(sum(readings) AS BIGINT) FROM system.duplicates WHERE reason = 'repeated'",
    );
    assert_eq!(told, again.len() as i64);
    readings.sort_by_key(|r| r.at_ms);
    assert_eq!(home.windows(MINUTES).unwrap(), windows_of(&readings, MINUTES));
}

#[test]
fn readings_of_a_later_file_reach_windows_that_are_long_gone() {
    let readings = readings(12_000, 11);
    let (late, live): (Vec<Reading>, Vec<Reading>) =
        readings.iter().cloned().partition(|r| r.seq % 3 == 0 && r.seq < 400);
    let folder = tempfile::tempdir().unwrap();
    let pipeline = ColdChain::on_file(folder.path()).text();
    let home =
        Home::with(&pipeline.replace("every  = \"1m\"", "every = \"1m\"\nrevise_for = \"1m\""));
    write(&folder.path().join("1.csv"), &as_csv(&live));
    run_well(&home, 2);
    assert_eq!(home.windows(MINUTES).unwrap(), windows_of(&live, MINUTES));
    // What a device had buffered, long after it.
    write(&folder.path().join("2.csv"), &as_csv(&late));
    run_well(&home, 3);
    assert!(home.count("SELECT count(*) FROM system.late") > 0);
    assert_eq!(home.windows(MINUTES).unwrap(), windows_of(&readings, MINUTES));
    let all = tables(&home);
    run_well(&home, 1);
    assert!(tables(&home) == all, "once is enough");
}

/// Windows of so many readings, of files that come one after the other.
#[test]
fn windows_of_another_size_are_refused_and_the_old_ones_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let counts = |of: i64, table: &str| {
        format!(
            "name = \"p\"\n[source]\ntype = \"file\"\npath = \"{}\"\ntopic = \"p/d1\"\n\
             topics = [\"p/{{device}}\"]\n[reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
             fields = {{ v = \"int64\" }}\n[[step]]\nname = \"w\"\ntype = \"window\"\n\
             from = \"readings\"\ncount = {of}\nselect = {{ total = \"sum(v)\" }}\n\
             [[table]]\nfrom = \"w\"\nname = \"{table}\"\n[limits]\nreading_every = \"1s\"\n",
            folder.path().display()
        )
    };
    let put = |name: &str, seqs: std::ops::Range<i64>| {
        let rows = seqs.map(|seq| format!("{},{seq}\n", 1_767_225_600_000 + seq * 1_000));
        std::fs::write(folder.path().join(name), format!("ts,v\n{}", rows.collect::<String>()))
            .unwrap();
    };
    let home = Home::with(&counts(20, "t"));
    put("1.csv", 0..100);
    run_well(&home, 2);
    put("2.csv", 100..200);
    home.write("pipelines/one.toml", &counts(25, "t"));
    let refused = run(&home, 2);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let why = "table p.t: its windows are others (every 20 readings before, now every 25 readings)";
    assert!(said.contains(why), "{said}");
    // As before, also without the file that was read.
    std::fs::remove_file(folder.path().join("1.csv")).unwrap();
    home.write("pipelines/one.toml", &counts(20, "t"));
    run_well(&home, 2);
    assert_eq!(home.count("SELECT count(*) FROM p.t WHERE rows = 20"), 10);
    put("1.csv", 0..100);
    home.write("pipelines/one.toml", &counts(25, "t25"));
    run(&home, 2);
    assert_eq!(home.count("SELECT count(*) FROM p.t"), 10, "what is there stays");
}
