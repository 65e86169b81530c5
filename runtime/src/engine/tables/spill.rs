//! What a table cannot take at present, on the local disk: a store that is away for an hour must
//! not hold up alerts and other tables, and an hour of rows does not fit into memory.
//!
//! The files are no durable state. They are neither synced nor read by another process: after a
//! crash the journal makes the same rows again, because a checkpoint waits for the tables. So this
//! format has no version. Invariant: what was written comes out once and in order, or the reader
//! gets an error; a write that fails leaves the files as they were.
//!
//! At most two files are open at a time, however much waits: the one that is written, and the one
//! that is read. What is left to everything but connections is little ([`crate::open_files`]).
//!
//! A file is `record*`, a record is `length u32, crc32 u32, body`, a body is
//! `jobs u32, (kind u8, epoch u64, rows u32)*, Arrow IPC stream of all rows`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use tidegate_operators::Epoch;

use crate::open_files::is_used_up;

/// Pause after the system refused to open a file because too many are.
const FILE_PAUSE: Duration = Duration::from_millis(50);

/// A file is closed beyond this, so that it can be removed once it was read.
const FILE_BYTES_MAX: u64 = 16 << 20;
const HEAD_BYTES: usize = 8;
const JOB_BYTES: usize = 13;

/// What a table is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Job {
    /// Takes rows of a complete epoch.
    Rows(Epoch, RecordBatch),
    /// Makes everything up to this epoch visible.
    Commit(Epoch),
}

/// How much all tables together may leave on disk, and how much they do.
#[derive(Clone, Debug)]
pub(crate) struct SpillBudget {
    used_bytes: Arc<AtomicU64>,
    max_bytes: u64,
}

impl SpillBudget {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { used_bytes: Arc::default(), max_bytes }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        let take = |used: u64| Some(used + bytes).filter(|sum| *sum <= self.max_bytes);
        match self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => {
                let text = format!("the {} bytes for waiting rows are used up", self.max_bytes);
                Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

struct Part {
    path: PathBuf,
    /// Open while it is written, or read.
    file: Option<File>,
    bytes: u64,
    read_bytes: u64,
}

impl Part {
    /// The file; waits for another one to be closed where no more may be open.
    fn open(&mut self) -> io::Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => loop {
                match OpenOptions::new().read(true).write(true).open(&self.path) {
                    Err(error) if is_used_up(&error) => crate::time::block(FILE_PAUSE),
                    opened => break opened?,
                }
            },
        };
        Ok(self.file.insert(file))
    }
}

/// The waiting jobs of one table.
pub(crate) struct Spill {
    dir: PathBuf,
    budget: SpillBudget,
    parts: VecDeque<Part>,
    next_number: u64,
}

impl Spill {
    /// Nothing waits. What an earlier process left in `dir` is removed.
    pub(super) fn new(dir: PathBuf, budget: SpillBudget) -> io::Result<Self> {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { dir, budget, parts: VecDeque::new(), next_number: 0 })
    }

    /// One that takes nothing.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let budget = SpillBudget::new(0);
        Self { dir: PathBuf::new(), budget, parts: VecDeque::new(), next_number: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes - part.read_bytes).sum()
    }

    /// Appends jobs, all or none of them.
    pub(super) fn write(&mut self, jobs: &[Job]) -> io::Result<()> {
        let record = encode(jobs)?;
        let bytes = record.len() as u64;
        self.budget.take(bytes)?;
        self.append(&record).inspect_err(|_| self.budget.give_back(bytes))
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.parts.back().is_none_or(|part| part.bytes >= FILE_BYTES_MAX) {
            std::fs::create_dir_all(&self.dir)?;
            let path = self.dir.join(format!("{:08}.rows", self.next_number));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)?;
            self.next_number += 1;
            self.parts.push_back(Part { path, file: Some(file), bytes: 0, read_bytes: 0 });
        }
        let is_read = self.parts.len() == 1;
        let Some(part) = self.parts.back_mut() else { return Ok(()) };
        let at = part.bytes;
        if let Err(error) = part.open()?.write_all_at(record, at) {
            // What was written of it is written over the next time.
            if part.bytes == 0 {
                self.remove(self.parts.len() - 1);
            }
            return Err(error);
        }
        part.bytes += record.len() as u64;
        if part.bytes >= FILE_BYTES_MAX && !is_read {
            // Whoever reads opens it again.
            part.file = None;
        }
        Ok(())
    }

    /// Takes the oldest record. An error means that rows would be missing.
    pub(super) fn read(&mut self) -> io::Result<Vec<Job>> {
        let Some(part) = self.parts.front_mut() else { return Ok(Vec::new()) };
        let (at, end) = (part.read_bytes, part.bytes);
        let (jobs, bytes) = part
            .open()
            .and_then(|file| read_record(file, at, end))
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", part.path.display())))?;
        part.read_bytes += bytes;
        self.budget.give_back(bytes);
        if part.read_bytes == part.bytes {
            self.remove(0);
        }
        Ok(jobs)
    }

    fn remove(&mut self, part: usize) {
        let Some(part) = self.parts.remove(part) else { return };
        if let Err(error) = std::fs::remove_file(&part.path) {
            // The next start removes it.
            tracing::warn!(path = %part.path.display(), %error, "cannot remove waiting rows");
        }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes());
        while !self.parts.is_empty() {
            self.remove(0);
        }
        if self.next_number > 0 {
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

/// Removes what the tables of an earlier process left.
pub(crate) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_record(file: &File, at: u64, end: u64) -> io::Result<(Vec<Job>, u64)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "waiting rows are damaged");
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, at)?;
    let [length, crc] =
        [0, 4].map(|i| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]));
    let bytes = HEAD_BYTES as u64 + u64::from(length);
    if at + bytes > end {
        return Err(bad());
    }
    let mut body = vec![0; length as usize];
    file.read_exact_at(&mut body, at + HEAD_BYTES as u64)?;
    if crc32fast::hash(&body) != crc {
        return Err(bad());
    }
    Ok((decode(&body).ok_or_else(bad)?, bytes))
}

fn encode(jobs: &[Job]) -> io::Result<Vec<u8>> {
    let mut body = vec![0; HEAD_BYTES];
    body.extend((jobs.len() as u32).to_le_bytes());
    let mut rows: Vec<&RecordBatch> = Vec::new();
    for job in jobs {
        let (kind, epoch, count) = match job {
            Job::Rows(epoch, batch) => {
                rows.push(batch);
                (0, epoch, batch.num_rows() as u32)
            }
            Job::Commit(epoch) => (1, epoch, 0),
        };
        body.push(kind);
        body.extend(epoch.to_le_bytes());
        body.extend(count.to_le_bytes());
    }
    if let Some(first) = rows.first() {
        let schema = first.schema();
        let all = concat_batches(&schema, rows).map_err(io::Error::other)?;
        let mut writer = StreamWriter::try_new(&mut body, &schema).map_err(io::Error::other)?;
        writer.write(&all).and_then(|()| writer.finish()).map_err(io::Error::other)?;
    }
    let length = u32::try_from(body.len() - HEAD_BYTES).map_err(io::Error::other)?;
    let crc = crc32fast::hash(&body[HEAD_BYTES..]);
    let mut head = &mut body[..HEAD_BYTES];
    head.write_all(&length.to_le_bytes())?;
    head.write_all(&crc.to_le_bytes())?;
    Ok(body)
}

fn decode(body: &[u8]) -> Option<Vec<Job>> {
    let count = u32::from_le_bytes(body.get(..4)?.try_into().ok()?) as usize;
    let heads = body.get(4..4 + count.checked_mul(JOB_BYTES)?)?;
    let stream = &body[4 + heads.len()..];
    let all = match stream.is_empty() {
        true => None,
        false => Some(StreamReader::try_new(stream, None).ok()?.next()?.ok()?),
    };
    let mut at = 0;
    let mut jobs = Vec::with_capacity(count);
    for head in heads.chunks_exact(JOB_BYTES) {
        let epoch = Epoch::from_le_bytes(head[1..9].try_into().ok()?);
        let rows = u32::from_le_bytes(head[9..].try_into().ok()?) as usize;
        jobs.push(match head[0] {
            0 => {
                let all = all.as_ref().filter(|all| at + rows <= all.num_rows())?;
                at += rows;
                Job::Rows(epoch, all.slice(at - rows, rows))
            }
            1 => Job::Commit(epoch),
            _ => return None,
        });
    }
    Some(jobs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn rows(from: i64, count: i64) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + count));
        let texts = (from..from + count).map(|i| (i % 3 > 0).then(|| format!("text {i}")));
        let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
        RecordBatch::try_from_iter_with_nullable([("n", numbers, false), ("t", texts, true)])
            .unwrap()
    }

    fn jobs(first: u64) -> Vec<Job> {
        (first..first + 7)
            .flat_map(|e| [Job::Rows(e, rows(e as i64 * 10, 1 + e as i64 % 4)), Job::Commit(e)])
            .collect()
    }

    #[test]
    fn what_goes_in_comes_out_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let budget = SpillBudget::new(1 << 20);
        let mut spill = Spill::new(folder.path().join("s"), budget.clone()).unwrap();
        let mut wanted = Vec::new();
        let mut got = Vec::new();
        for round in 0..20 {
            let more = if round % 3 == 0 { vec![Job::Commit(round)] } else { jobs(round * 7) };
            spill.write(&more).unwrap();
            wanted.extend(more);
            if round % 4 == 3 {
                got.extend(spill.read().unwrap());
            }
        }
        assert!(budget.used_bytes() > 0);
        while !spill.is_empty() {
            got.extend(spill.read().unwrap());
        }
        assert_eq!(got, wanted);
        assert_eq!(budget.used_bytes(), 0);
        assert_eq!(std::fs::read_dir(folder.path().join("s")).unwrap().count(), 0);
    }

    #[test]
    fn however_much_waits_two_files_are_open_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("s");
        let mut spill = Spill::new(dir.clone(), SpillBudget::new(u64::MAX)).unwrap();
        let open = || {
            let files = std::fs::read_dir("/proc/self/fd").unwrap();
            let paths = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
            paths.filter(|path| path.starts_with(&dir)).count()
        };
        // A record each, so that a part is full with every write.
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(FILE_BYTES_MAX as usize)]));
        let batch = RecordBatch::try_from_iter([("t", text)]).unwrap();
        for epoch in 0..6 {
            spill.write(&[Job::Rows(epoch, batch.clone())]).unwrap();
            assert!(open() <= 2, "{} files after epoch {epoch}", open());
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 6);
        for epoch in 0..6 {
            assert_eq!(spill.read().unwrap(), [Job::Rows(epoch, batch.clone())]);
            assert!(open() <= 2, "{} files while epoch {epoch} is read", open());
            if epoch == 3 {
                spill.write(&[Job::Commit(6)]).unwrap();
            }
        }
        assert_eq!(spill.read().unwrap(), [Job::Commit(6)]);
        assert!(spill.is_empty());
    }

    #[test]
    fn beyond_the_budget_nothing_is_taken_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = encode(&jobs(1)).unwrap().len() as u64;
        let budget = SpillBudget::new(2 * bytes + 1);
        let [mut a, mut b] =
            ["a", "b"].map(|name| Spill::new(folder.path().join(name), budget.clone()).unwrap());
        a.write(&jobs(1)).unwrap();
        b.write(&jobs(1)).unwrap();
        let error = a.write(&jobs(1)).unwrap_err();
        assert!(crate::journal::storage::is_full(&error), "{error}");
        assert_eq!(b.read().unwrap(), jobs(1));
        a.write(&jobs(1)).unwrap();
        drop(a);
        assert_eq!(budget.used_bytes(), 0, "what is dropped is given back");
    }

    #[test]
    fn damage_is_an_error_and_not_other_rows() {
        let folder = tempfile::tempdir().unwrap();
        let record = encode(&jobs(3)).unwrap();
        for at in (0..record.len()).step_by(7) {
            let mut broken = record.clone();
            broken[at] ^= 0x10;
            let mut spill = Spill::new(folder.path().join("s"), SpillBudget::new(1 << 20)).unwrap();
            spill.budget.take(broken.len() as u64).unwrap();
            spill.append(&broken).unwrap();
            assert!(spill.read().is_err(), "byte {at}");
        }
    }
}
