//! An instance in a process of its own: what it says of itself, how it is killed or ends.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// No progress for this long ends a measurement.
const STUCK: Duration = Duration::from_secs(60);
/// So long all that waits may take to be written at a clean end.
const END_MAX: Duration = Duration::from_mins(10);

/// What an instance said when it was ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// From its first instruction.
    pub(crate) seconds: f64,
    /// Of that, reading the journal again.
    pub(crate) replay_s: f64,
    pub(crate) messages: u64,
}

/// What an instance says of itself all the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct State {
    pub(crate) readings: u64,
    pub(crate) checkpoints: u64,
    pub(crate) stall_us: u64,
    pub(crate) rows: u64,
    pub(crate) written_bytes: u64,
    pub(crate) took_us: u64,
    pub(crate) age: Duration,
}

impl State {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(|word| word.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            readings: next()?,
            checkpoints: next()?,
            stall_us: next()?,
            rows: next()?,
            written_bytes: next()?,
            took_us: next()?,
            age: Duration::from_micros(next()?),
        })
    }

    /// The worse of two runs.
    pub(crate) fn max(self, other: &Self) -> Self {
        if self.stall_us >= other.stall_us { self } else { *other }
    }
}

/// A process that runs the pipeline; killed when dropped.
pub(crate) struct Instance {
    data: PathBuf,
    child: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) ready: Ready,
    state: Arc<Mutex<State>>,
}

impl Instance {
    pub(crate) fn start(data: &Path, every: Duration) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--child")
            .arg(data)
            .arg(every.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("piped")?).lines();
        let first = said.next().context("the instance ended before it was ready")??;
        let words: Vec<&str> = first.split(' ').collect();
        let [addr, seconds, replay_s, messages] = words[..] else { bail!("it said {first}") };
        let ready = Ready {
            seconds: seconds.parse()?,
            replay_s: replay_s.parse()?,
            messages: messages.parse()?,
        };
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for state in said.map_while(Result::ok).filter_map(|line| State::parse(&line)) {
                *shared.lock().expect("nobody panics") = state;
            }
        });
        Ok(Self { data: data.to_owned(), addr: addr.parse()?, child, ready, state })
    }

    /// Lets it end by itself, with everything written; its data folder.
    pub(crate) fn end(mut self) -> Result<PathBuf> {
        drop(self.child.stdin.take());
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "an instance ended with {status}");
                return Ok(self.data.clone());
            }
            ensure!(begin.elapsed() < END_MAX, "an instance does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn state(&self) -> State {
        *self.state.lock().expect("nobody panics")
    }

    /// Waits until so many readings are through; the time of the last.
    pub(crate) fn wait_for(&self, readings: u64) -> Result<Instant> {
        let (mut last, mut seen) = (Instant::now(), 0);
        while seen < readings {
            let now = self.state().readings;
            if now > seen {
                (last, seen) = (Instant::now(), now);
            }
            ensure!(last.elapsed() < STUCK, "{seen} of {readings} readings, and no more");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(last)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
