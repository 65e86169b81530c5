//! A start waits for what is away: a store that is down for an hour, or a disk that is full, must
//! not end a process that was killed meanwhile and started again. What waiting cannot mend ends it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidegate_sql::may_pass;

use super::replaying::Replaying;
use crate::chain;
use crate::time;

/// First pause after a failure, and the longest one.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether to wait, and who is told of it.
#[derive(Clone, Default)]
pub(super) struct Patience(Option<Arc<Replaying>>);

impl Patience {
    /// Waits as long as it takes; those who look at the start see why. A signal ends the process
    /// meanwhile.
    pub(super) fn telling(replaying: &Arc<Replaying>) -> Self {
        Self(Some(Arc::clone(replaying)))
    }

    /// Tries until it works, or fails for a reason that does not pass by itself.
    ///
    /// # Errors
    /// That of the attempt.
    pub(super) async fn until<T, F>(&self, mut attempt: impl FnMut() -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let mut pause = PAUSE_MIN;
        loop {
            let (error, replaying) = match (attempt().await, &self.0) {
                (Err(error), Some(replaying)) if may_pass(error.as_ref()) => (error, replaying),
                (done, Some(replaying)) if pause > PAUSE_MIN => {
                    replaying.wait_for(None);
                    if done.is_ok() {
                        tracing::info!("the start goes on");
                    }
                    return done;
                }
                (done, _) => return done,
            };
            let why = chain(&error);
            let pause_s = pause.as_secs_f64();
            tracing::warn!(
                why,
                pause_s,
                "the start waits, and nothing is taken in before it is over"
            );
            replaying.wait_for(Some(why));
            time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Error, ErrorKind};
    use std::sync::Mutex;

    use anyhow::Context;

    use super::*;

    #[tokio::test]
    async fn what_passes_is_waited_for_and_everything_else_is_told_at_once() {
        let replaying = Arc::<Replaying>::default();
        let patience = Patience::telling(&replaying);
        let seen = Mutex::new(Vec::new());
        let fails = |kind: ErrorKind| Err::<u32, _>(Error::from(kind)).context("cannot register");
        let attempt = || {
            let mut seen = seen.lock().unwrap();
            seen.push(replaying.waits_for());
            std::future::ready(if seen.len() < 3 { fails(ErrorKind::StorageFull) } else { Ok(7) })
        };
        assert_eq!(patience.until(attempt).await.unwrap(), 7);
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen[0], None);
        assert!(seen[2].as_ref().unwrap().starts_with("cannot register: "), "{seen:?}");
        assert_eq!(replaying.waits_for(), None, "it is over");
        let mut tried = 0;
        let refused = patience.until(|| {
            tried += 1;
            std::future::ready(fails(ErrorKind::PermissionDenied))
        });
        assert!(refused.await.is_err());
        assert_eq!(tried, 1);
        // Runs over files, and simulations.
        let full = || std::future::ready(fails(ErrorKind::StorageFull));
        assert!(Patience::default().until(full).await.is_err());
    }
}
