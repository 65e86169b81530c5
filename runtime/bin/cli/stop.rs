//! When to stop: the first Ctrl-C or SIGTERM ends cleanly, the second one at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Exit code of a process that was interrupted, by the shells' convention (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The time asked for is over.
    Time,
    /// Ctrl-C or SIGTERM.
    Signal,
}

/// While this lives, a signal ends the process at once: what only starts works on its thread for
/// long, has let nobody in, and loses nothing.
pub(super) struct ExitAtSignal(AbortHandle);

impl ExitAtSignal {
    /// From now on.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut stop = Stop::new(None)?;
        let task = tokio::spawn(async move {
            stop.signal().await;
            eprintln!("stopped while it started; the next start begins anew, nothing is lost");
            std::process::exit(INTERRUPTED);
        });
        Ok(Self(task.abort_handle()))
    }
}

impl Drop for ExitAtSignal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for the reason to stop. From its creation on, signals no longer kill the process.
pub(super) struct Stop {
    deadline: Option<Instant>,
    interrupt: Signal,
    terminate: Signal,
    /// There was a signal.
    signalled: bool,
}

impl Stop {
    /// Ends after `time`, if there is one, or by a signal.
    pub(super) fn new(time: Option<Duration>) -> anyhow::Result<Self> {
        Ok(Self {
            deadline: time.map(|t| Instant::now() + t),
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            signalled: false,
        })
    }

    /// Counts the time from now on: a start that takes long must not eat it up.
    pub(super) fn restart(&mut self, time: Option<Duration>) {
        self.deadline = time.map(|t| Instant::now() + t);
    }

    /// Waits for a signal, which is also the reason for whoever waits later.
    pub(super) async fn signal(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.signalled = true;
    }

    /// Waits for the first reason.
    pub(super) async fn wait(&mut self) -> Reason {
        if self.signalled {
            return Reason::Signal;
        }
        let deadline = self.deadline;
        let over = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Reason::Signal,
            _ = self.terminate.recv() => Reason::Signal,
            () = over => Reason::Time,
        }
    }

    /// From now on the next signal ends the process at once. That loses nothing: what was
    /// acknowledged is in the journal.
    pub(super) fn next_signal_exits(mut self) {
        tokio::spawn(async move {
            self.signal().await;
            eprintln!("stopped at once; the next start goes on from the journal");
            std::process::exit(INTERRUPTED);
        });
    }
}
