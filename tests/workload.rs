//! The generator and the hand-written loop of the common workload are those that everyone uses, and
//! the product gives the same rows.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use tidegate_pipelines::examples;

use crate::common_workload::check::{Checksum, small_reference};
use crate::common_workload::generate::Workload;
use crate::common_workload::{Job, hand};
use crate::support::{Home, Instance, PATIENCE};

const SMALL: Workload = Workload { lines: 100_000, devices: 100, span_ms: 1_000_000 };

#[test]
fn the_generator_writes_the_same_bytes_everywhere() {
    let mut text = Vec::new();
    SMALL.write(SMALL.lines, &mut text).unwrap();
    assert_eq!((text.len(), crc32fast::hash(&text)), (10_899_530, 0x3fb0_e230));
    let mut start = Vec::new();
    Workload::STANDARD.write(100_000, &mut start).unwrap();
    assert_eq!((start.len(), crc32fast::hash(&start)), (10_899_602, 0xe974_7824));
}

fn small_file(folder: &Path) -> PathBuf {
    let data = folder.join("readings.ndjson");
    SMALL.write(SMALL.lines, &mut BufWriter::new(File::create(&data).unwrap())).unwrap();
    data
}

#[test]
fn the_hand_written_loop_gives_the_reference_rows() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_file(folder.path());
    for job in Job::ALL {
        for threads in [1, 2] {
            let outcome = hand::run(job, &data, folder.path(), threads).unwrap();
            let (sum, expected) =
                (Checksum::of_files(&outcome.files).unwrap(), small_reference(job));
            assert!(sum.agrees(&expected), "{job} on {threads}: {sum:?}, not {expected:?}");
            assert_eq!((outcome.rows, outcome.malformed), (expected.rows, 109));
        }
    }
}

#[test]
fn the_product_gives_the_reference_rows() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_file(folder.path());
    for job in Job::ALL {
        let name = format!("bench-{job}.toml").to_lowercase();
        let (_, pipeline) = examples::BENCH.into_iter().find(|(n, _)| *n == name).unwrap();
        assert!(pipeline.contains("\"readings.ndjson\""), "{name} names its file");
        let pipeline = pipeline.replace("readings.ndjson", data.to_str().unwrap());
        for workers in [1, 2] {
            let home = Home::with(&pipeline);
            let status = Instance::spawn(&mut home.run_command(workers)).ended(PATIENCE);
            assert!(status.success(), "{job} on {workers} workers ended with {status}");
            let schema = format!("bench_{job}").to_lowercase();
            let table = home.data().join("tables").join(&schema).join("result");
            let (sum, expected) = (Checksum::of_folder(&table).unwrap(), small_reference(job));
            assert!(sum.agrees(&expected), "{job} on {workers}: {sum:?}, not {expected:?}");
            let counted = home.count(&format!("SELECT count(*) FROM {schema}.result"));
            assert_eq!(counted, expected.rows as i64);
            assert_eq!(home.count("SELECT count(*) FROM system.rejects"), 109);
        }
    }
}
