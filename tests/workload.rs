//! The generator and the hand-written loop of the common workload are those that everyone uses.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::BufWriter;

use crate::common_workload::check::{Checksum, small_reference};
use crate::common_workload::generate::Workload;
use crate::common_workload::{Job, hand};

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

#[test]
fn the_hand_written_loop_gives_the_reference_rows() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("readings.ndjson");
    SMALL.write(SMALL.lines, &mut BufWriter::new(File::create(&data).unwrap())).unwrap();
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
