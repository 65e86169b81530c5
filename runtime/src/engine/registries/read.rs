//! The file of a registry as rows, whole or not at all.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use bytes::Bytes;
use tidegate_operators::{MessageMeta, Messages};
use tidegate_pipelines::plan::{FileSpec, RegistrySource};

use super::diff::has_keys;
use crate::engine::files::{Chunks, FileSource, read_file};

/// Bytes of all rows: what a registry says is in memory here and in every join.
const BYTES_MAX: usize = 256 << 20;

/// What shows that a file is another one: when it was written, its length, and which one it is (a
/// rename brings a new one); `None`: it is not there.
pub(super) type Stamp = Option<(SystemTime, u64, u64)>;

/// The stamp of a file as it is now.
pub(super) fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len(), std::os::unix::fs::MetadataExt::ino(&data)))
}

/// Collects what the formats read.
#[derive(Default)]
struct Rows {
    all: Vec<Messages>,
    bytes: usize,
}

impl Chunks for Rows {
    fn chunk(&mut self, topic: &[u8]) -> (Vec<u8>, Vec<MessageMeta>) {
        (topic.to_vec(), Vec::new())
    }

    fn received_us(&self) -> i64 {
        0
    }

    fn add_bytes(&mut self, _bytes: u64) {}

    fn give(&mut self, source: u16, data: Vec<u8>, index: Vec<MessageMeta>) -> ControlFlow<()> {
        self.bytes += data.len();
        self.all.push(Messages { source, first_offset: 0, data: Bytes::from(data), index });
        match self.bytes > BYTES_MAX {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// The rows of a registry's file, in its order: JSON objects, or what could not be one.
///
/// # Errors
/// It is not there, not one file, empty, damaged or too long.
pub(super) fn read(source: &RegistrySource) -> anyhow::Result<Vec<Messages>> {
    // People know better where a whole path leads.
    let path = &std::path::absolute(&source.file.path)?.display().to_string();
    let file = FileSource {
        source: 0,
        spec: FileSpec {
            path: path.clone(),
            topic: Some(String::new()),
            format: source.file.format,
            columns: None,
            delimiter: source.file.delimiter,
        },
    };
    let found = file.find()?;
    anyhow::ensure!(Path::new(path).is_file(), "{path} is not a file");
    let [found] = found.as_slice() else { anyhow::bail!("{path} is not one file") };
    // Whoever writes it has begun, or something went wrong: nobody takes all away like that.
    anyhow::ensure!(found.bytes > 0, "{path} is empty");
    let mut rows = Rows::default();
    let read = read_file(found, &mut rows).with_context(|| format!("cannot read {path}"))?;
    anyhow::ensure!(read.is_continue(), "{path} has more than {} MiB of rows", BYTES_MAX >> 20);
    // Another header or delimiter: nobody takes all away like that either.
    anyhow::ensure!(
        rows.all.is_empty() || has_keys(source, &rows.all),
        "no row of {path} has the key ({}): look at its header and its delimiter",
        source.key.iter().map(|(_, path)| path.join(".")).collect::<Vec<_>>().join(", ")
    );
    Ok(rows.all)
}
