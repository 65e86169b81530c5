//! The file of a registry as rows, whole or not at all.

use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use bytes::Bytes;
use tidegate_operators::{MessageMeta, Messages, MessagesBuilder};
use tidegate_pipelines::plan::{FileFormat, FileSpec, RegistryPlace, RegistrySource};

use super::columns::{Lacks, missing};
use super::diff::has_keys;
use crate::engine::files::{Chunks, FileSource, Found, open, read_file};
use crate::http::each_element;

/// Bytes of all rows: what a registry says is in memory here and in every join.
const BYTES_MAX: usize = 256 << 20;

/// Bytes that are looked at at a time to see what a text is.
const FIRST_BYTES: u64 = 64;
/// Most white space before it begins.
const SPACE_BYTES_MAX: usize = 64 << 10;

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

/// The rows of a registry that is kept in a file.
///
/// # Errors
/// See [`read_at`].
pub(super) fn read_file_of(source: &RegistrySource) -> anyhow::Result<Vec<Messages>> {
    let RegistryPlace::File(path) = &source.place else { anyhow::bail!("it is in no file") };
    // People know better where a whole path leads.
    let path = std::path::absolute(path)?.display().to_string();
    read_at(source, &path, source.format, source.delimiter)
}

/// The rows of a registry in a file, in its order: JSON objects, or what could not be one.
///
/// # Errors
/// It is not there, not one file, empty, damaged or too long; or it [`Lacks`] a column.
pub(super) fn read_at(
    source: &RegistrySource,
    path: &str,
    format: Option<FileFormat>,
    delimiter: Option<u8>,
) -> anyhow::Result<Vec<Messages>> {
    let (topic, columns) = (Some(String::new()), None);
    let spec = FileSpec { path: path.to_owned(), topic, format, columns, delimiter };
    let found = FileSource { source: 0, spec }.find()?;
    anyhow::ensure!(Path::new(path).is_file(), "{path} is not a file");
    let [found] = found.as_slice() else { anyhow::bail!("{path} is not one file") };
    // Whoever writes it has begun, or something went wrong: nobody takes all away like that.
    anyhow::ensure!(found.bytes > 0, "{path} is empty");
    let mut rows = Rows::default();
    let what = || format!("cannot read {path}");
    let read = match array(found).with_context(what)? {
        Some(text) => elements(&text, &mut rows).map_err(anyhow::Error::msg).with_context(what)?,
        None => read_file(found, &mut rows).with_context(what)?,
    };
    anyhow::ensure!(read.is_continue(), "{path} has more than {} MiB of rows", BYTES_MAX >> 20);
    // Another header or delimiter: nobody takes all away like that either.
    anyhow::ensure!(
        rows.all.is_empty() || has_keys(source, &rows.all),
        "no row of {path} has the key ({}): look at its header and its delimiter",
        source.key.iter().map(|(_, path)| path.join(".")).collect::<Vec<_>>().join(", ")
    );
    // With another name in its header a column would be null in silence.
    let is_table = found.format != FileFormat::Ndjson;
    let missing = missing(source, &rows.all, is_table);
    if let Some(missing) = missing.filter(|_| !rows.all.is_empty()) {
        let nobody = if is_table { "" } else { "no row of " };
        let lacks = if is_table { "has no column" } else { "has" };
        return Err(Lacks(format!("{nobody}{path} {lacks} {missing}")).into());
    }
    Ok(rows.all)
}

/// The text of a file of JSON that is one array and not a line for each row.
fn array(found: &Found) -> anyhow::Result<Option<Vec<u8>>> {
    if found.format != FileFormat::Ndjson {
        return Ok(None);
    }
    let mut reader = open(found)?;
    let mut text = Vec::new();
    loop {
        let before = text.len();
        (&mut reader).take(FIRST_BYTES).read_to_end(&mut text)?;
        match text[before..].iter().find(|b| !b.is_ascii_whitespace()) {
            Some(b'[') => break,
            None if text.len() > before => {}
            _ => return Ok(None),
        }
        let most = SPACE_BYTES_MAX;
        anyhow::ensure!(text.len() < most, "it begins with {most} bytes of white space");
    }
    let most = (BYTES_MAX as u64).saturating_sub(text.len() as u64) + 1;
    reader.take(most).read_to_end(&mut text)?;
    anyhow::ensure!(text.len() <= BYTES_MAX, "it is longer than {} MiB", BYTES_MAX >> 20);
    Ok(Some(text))
}

/// The elements of an array as rows.
fn elements(text: &[u8], rows: &mut Rows) -> Result<ControlFlow<()>, String> {
    let mut open = MessagesBuilder::default();
    each_element(text, |element| {
        open.push(b"", element, b"", MessageMeta::default());
    })?;
    if !open.is_empty() {
        rows.all.push(open.finish(0, 0));
    }
    Ok(ControlFlow::Continue(()))
}
