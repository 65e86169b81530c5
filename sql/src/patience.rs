//! How long a statement may take: planning, and waiting for its rows.
//!
//! Not counted is the time in which rows wait for whoever reads them: a pager that is left open is
//! no slow query.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{Error, Result};

/// A wait that is to end after this time, and who is told then.
type Wait = (Duration, oneshot::Sender<()>);

/// The time that a statement has left.
pub(crate) struct Patience {
    max: Duration,
    left: Duration,
    /// `None`: there is no limit.
    waits: Option<Sender<Wait>>,
}

impl Patience {
    /// For one statement; `None`: without a limit.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn new(max: Option<Duration>) -> std::io::Result<Self> {
        let Some(max) = max else {
            return Ok(Self { max: Duration::MAX, left: Duration::MAX, waits: None });
        };
        let (waits, waited) = channel();
        // The runtime's own clock stands still while a busy query holds every one of its workers.
        let thread = std::thread::Builder::new().name("query time".into());
        thread.spawn(move || watch(&waited))?;
        Ok(Self { max, left: max, waits: Some(waits) })
    }

    /// What `work` gives, if that comes in time. Whoever gives up drops it.
    ///
    /// # Errors
    /// The time is over.
    pub(crate) async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        let Some(waits) = &self.waits else { return Ok(work.await) };
        let (ring, rings) = oneshot::channel();
        // The thread ends after this value does.
        let _ = waits.send((self.left, ring));
        let started = Instant::now();
        tokio::select! {
            biased;
            done = work => {
                self.left = self.left.saturating_sub(started.elapsed());
                Ok(done)
            }
            Ok(()) = rings => Err(self.over()),
        }
    }

    fn over(&self) -> Error {
        let seconds = self.max.as_secs_f64();
        Error::Query(format!(
            "stopped: the statement took longer than {seconds} s\n\
             Ask for less (fewer days, a LIMIT), or give it more time: --timeout DURATION, \
             0 for no limit."
        ))
    }
}

/// Tells each wait that takes too long. The next one ends the one before.
fn watch(waits: &Receiver<Wait>) {
    while let Ok((mut time, mut ring)) = waits.recv() {
        loop {
            match waits.recv_timeout(time) {
                Ok(next) => (time, ring) = next,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = ring.send(());
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn time_is_counted_while_it_waits_and_not_in_between() {
        let mut patience = Patience::new(Some(Duration::from_secs(30))).unwrap();
        let before = patience.left;
        let done = patience.wait(async {
            // Held up without a pause, as by a planner.
            std::thread::sleep(Duration::from_millis(50));
            7
        });
        assert_eq!(done.await.unwrap(), 7);
        let left = patience.left;
        assert!(left <= before - Duration::from_millis(50), "{left:?}");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(patience.left, left);
        let mut patience = Patience::new(Some(Duration::from_millis(20))).unwrap();
        for _ in 0..2 {
            let ended = patience.wait(std::future::pending::<()>()).await;
            assert!(ended.unwrap_err().to_string().contains("longer than 0.02 s"));
        }
        assert_eq!(Patience::new(None).unwrap().wait(async { 7 }).await.unwrap(), 7);
    }
}
