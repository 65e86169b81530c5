//! The hand-written loop: read, parse, aggregate, write, on one thread or two, and nothing else.
//!
//! Both threads take turns with chunks of the file and hand each other the readings of the other's
//! devices. Each takes them in the order of the file, so the rows are those of one thread.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, ensure};

use super::Job;
use super::parse::{Reading, parse};
use super::state::State;

const CHUNK_BYTES: u64 = 1 << 20;
/// Longest line.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// What a run did.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Rows written.
    pub(crate) rows: u64,
    /// Lines that were no reading.
    pub(crate) malformed: u64,
    /// The Parquet files, one per thread.
    pub(crate) files: Vec<PathBuf>,
}

/// Runs a job over `input`, on one thread or two, into Parquet files in the folder `out`.
pub(crate) fn run(job: Job, input: &Path, out: &Path, threads: usize) -> Result<Outcome> {
    ensure!(matches!(threads, 1 | 2), "the hand-written loop has one thread or two");
    let files: Vec<PathBuf> =
        (0..threads).map(|t| out.join(format!("{job}-{t}.parquet"))).collect();
    let results = if threads == 1 {
        vec![alone(State::new(job, &files[0])?, Chunks::open(input)?)?]
    } else {
        let (to_1, from_0) = sync_channel(4);
        let (to_0, from_1) = sync_channel(4);
        let first = Half { me: 0, to: to_1, from: from_1 };
        let second = Half { me: 1, to: to_0, from: from_0 };
        let (state_0, state_1) = (State::new(job, &files[0])?, State::new(job, &files[1])?);
        let (chunks_0, chunks_1) = (Chunks::open(input)?, Chunks::open(input)?);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| second.run(state_1, chunks_1));
            let mine = first.run(state_0, chunks_0)?;
            Ok::<_, anyhow::Error>(vec![mine, other.join().expect("the other half ended")?])
        })?
    };
    let (rows, malformed) = results.iter().fold((0, 0), |sum, r| (sum.0 + r.0, sum.1 + r.1));
    Ok(Outcome { rows, malformed, files })
}

/// A file in pieces of about [`CHUNK_BYTES`], cut at line ends.
struct Chunks {
    file: File,
    length: u64,
    buffer: Vec<u8>,
}

impl Chunks {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, buffer: Vec::new() })
    }

    fn count(&self) -> u64 {
        self.length.div_ceil(CHUNK_BYTES)
    }

    /// The lines that start in piece `k`.
    fn read(&mut self, k: u64) -> Result<&[u8]> {
        let (first, last) = (k * CHUNK_BYTES, (k + 1) * CHUNK_BYTES);
        // A line starts at `first` if the byte before ends one.
        let from = first.saturating_sub(1);
        let to = (last + LINE_BYTES_MAX).min(self.length);
        self.buffer.resize((to - from) as usize, 0);
        self.file.read_exact_at(&mut self.buffer, from)?;
        let line_end = |at: usize| memchr::memchr(b'\n', &self.buffer[at..]).map(|n| at + n + 1);
        let start = match first {
            0 => 0,
            _ => line_end(0).unwrap_or(self.buffer.len()),
        };
        let end = if last >= self.length {
            self.buffer.len()
        } else {
            line_end((last - 1 - from) as usize).context("a line is too long")?
        };
        Ok(&self.buffer[start..end])
    }
}

/// Calls `take` for the readings of `chunk` that are `ok`; the number of malformed lines.
fn each(chunk: &[u8], mut take: impl FnMut(Reading<'_>)) -> u64 {
    let (mut malformed, mut start) = (0, 0);
    for end in memchr::memchr_iter(b'\n', chunk) {
        match parse(&chunk[start..end]) {
            Some(reading) if reading.ok => take(reading),
            Some(_) => {}
            None => malformed += 1,
        }
        start = end + 1;
    }
    malformed
}

fn alone(mut state: State, mut chunks: Chunks) -> Result<(u64, u64)> {
    let mut malformed = 0;
    for k in 0..chunks.count() {
        let mut newest_ms = 0;
        malformed += each(chunks.read(k)?, |r| {
            newest_ms = newest_ms.max(r.ts_ms);
            state.add(r.device, r.ts_ms, r.temperature);
        });
        state.advance(newest_ms)?;
    }
    Ok((state.finish()?, malformed))
}

/// Readings of one chunk for one thread.
#[derive(Default)]
struct Share {
    /// Their devices' names, one after the other.
    names: Vec<u8>,
    /// Where the name ends, event time, temperature.
    rows: Vec<(u32, i64, f64)>,
    /// Newest event time in the chunk, of either share.
    newest_ms: i64,
}

impl Share {
    #[inline]
    fn push(&mut self, reading: &Reading<'_>) {
        self.names.extend_from_slice(reading.device);
        self.rows.push((self.names.len() as u32, reading.ts_ms, reading.temperature));
    }

    fn take_into(&self, state: &mut State) -> Result<()> {
        let mut start = 0;
        for (end, ts_ms, temperature) in &self.rows {
            let end = *end as usize;
            state.add(&self.names[start..end], *ts_ms, *temperature);
            start = end;
        }
        state.advance(self.newest_ms)
    }
}

/// One of two threads.
struct Half {
    me: usize,
    to: SyncSender<Share>,
    from: Receiver<Share>,
}

impl Half {
    fn run(self, mut state: State, mut chunks: Chunks) -> Result<(u64, u64)> {
        let mut malformed = 0;
        for round in 0..chunks.count().div_ceil(2) {
            let (mut mine, mut theirs) = (Share::default(), Share::default());
            let k = 2 * round + self.me as u64;
            if k < chunks.count() {
                let mut newest_ms = 0;
                malformed += each(chunks.read(k)?, |reading| {
                    newest_ms = newest_ms.max(reading.ts_ms);
                    let share =
                        if owner(reading.device) == self.me { &mut mine } else { &mut theirs };
                    share.push(&reading);
                });
                mine.newest_ms = newest_ms;
                theirs.newest_ms = newest_ms;
            }
            self.to.send(theirs).context("the other thread ended early")?;
            let other = self.from.recv().context("the other thread ended early")?;
            let (first, second) = if self.me == 0 { (&mine, &other) } else { (&other, &mine) };
            first.take_into(&mut state)?;
            second.take_into(&mut state)?;
        }
        Ok((state.finish()?, malformed))
    }
}

fn owner(device: &[u8]) -> usize {
    let hash = device.iter().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(*b)));
    (hash & 1) as usize
}
