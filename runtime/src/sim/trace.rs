//! What happened in a simulation, as one hash over everything and as lines for people.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

/// Lines that are kept for a failure.
const LINES_MAX: usize = 60;

#[derive(Default)]
struct State {
    hash: DefaultHasher,
    events: u64,
    lines: VecDeque<String>,
    failures: Vec<String>,
    now_us: u64,
    print: bool,
}

/// Shared by everything that is simulated. Equal seeds give equal traces.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<State>>);

impl Trace {
    /// `print`: every line as it comes.
    pub(crate) fn new(print: bool) -> Self {
        let trace = Self::default();
        trace.0.lock().unwrap().print = print;
        trace
    }

    /// The simulated time, for the lines.
    pub(crate) fn at(&self, now_us: u64) {
        self.0.lock().unwrap().now_us = now_us;
    }

    /// Bytes that were written or sent, with a text that says what and where.
    pub(crate) fn bytes(&self, what: fmt::Arguments<'_>, bytes: &[u8]) {
        let mut hash = DefaultHasher::new();
        bytes.hash(&mut hash);
        self.line(format_args!("{what} {} bytes {:08x}", bytes.len(), hash.finish() as u32));
    }

    /// Something that happened.
    pub(crate) fn line(&self, what: fmt::Arguments<'_>) {
        let mut state = self.0.lock().unwrap();
        let line = format!("{:>10.3} {what}", state.now_us as f64 / 1e6);
        line.hash(&mut state.hash);
        state.events += 1;
        if state.print {
            println!("{line}");
        }
        if state.lines.len() == LINES_MAX {
            state.lines.pop_front();
        }
        state.lines.push_back(line);
    }

    /// Something that must never happen.
    pub(crate) fn failure(&self, what: String) {
        self.line(format_args!("FAILURE {what}"));
        self.0.lock().unwrap().failures.push(what);
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.0.lock().unwrap().failures.clone()
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.0.lock().unwrap().failures.is_empty()
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let state = self.0.lock().unwrap();
        state.lines.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// The hash over all that happened, and how much that was.
    pub(crate) fn hash(&self) -> (u64, u64) {
        let state = self.0.lock().unwrap();
        (state.hash.finish(), state.events)
    }
}
