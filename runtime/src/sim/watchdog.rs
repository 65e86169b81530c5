//! Ends the process, loudly, when a simulation stands still in real time: a test that hangs tells
//! nobody which seed it was.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::trace::Trace;
use crate::mutation::Mutation;

/// No seed takes so long, on a busy machine and without optimisation either: they take seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// Watches one simulation until it is dropped.
pub(super) struct Watchdog {
    _over: Sender<()>,
}

impl Watchdog {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>, trace: &Trace) -> Self {
        let (over, is_over) = channel();
        let trace = trace.clone();
        std::thread::spawn(move || {
            watch(&is_over, PATIENCE, || {
                // Past the capture of the test harness, which would keep it until the end.
                let mut out = std::io::stderr();
                let _ = writeln!(
                    out,
                    "seed {seed} (mistake: {mutation:?}) did not end within {PATIENCE:?}; repeat \
                     it with\n  TIDEGATE_SEED={seed} cargo test -p tidegate-runtime sim::seeds -- \
                     --nocapture\nwhat happened last:"
                );
                let _ = writeln!(out, "{}", trace.tail());
                std::process::exit(101);
            });
        });
        Self { _over: over }
    }
}

/// Calls `late` unless the sender goes within `patience`.
fn watch(is_over: &Receiver<()>, patience: Duration, late: impl FnOnce()) {
    if is_over.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
        late();
    }
}

#[test]
fn it_barks_at_what_stands_still_and_at_nothing_else() {
    let (over, is_over) = channel::<()>();
    let mut barked = false;
    watch(&is_over, Duration::from_millis(1), || barked = true);
    assert!(barked);
    drop(over);
    watch(&is_over, Duration::from_secs(60), || panic!("it was over"));
}
