//! When a registry is looked at again: a file when it has changed and rests, a URL every `refresh`,
//! and after a failure sooner, then with growing pauses.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_operators::Messages;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Registry;
use super::fetch::{Answer, Failed, Fetcher};
use super::read::{Stamp, read_file_of, stamp};
use crate::clock::Clock;
use crate::intake::{Intake, IntakeError};

/// How often a file is looked at. One that was just written is read when it rested as long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// When a file that could not be taken is looked at again, if it does not change before.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How long the first start waits for the first answer of a URL: a server may be started with us.
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// The same where it is known what the registry said last: readings wait for this, too.
const RESTART_WAIT: Duration = Duration::from_secs(5);
/// Between two attempts of the first start.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The first pause after a failure; doubles from then on.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// The longest pause of our own, if `refresh` is not longer.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// The longest pause that a server can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Failures in a row from which on it is trouble: one is made good before anybody could act.
const FAILURES_UNHEALTHY: u32 = 2;

/// Looks at a file again and again. `stamp` is the file as it was when it was read last.
pub(super) async fn watch_file(
    registry: Arc<Mutex<Registry>>,
    path: String,
    mut read: Stamp,
    (intake, clock): (Arc<dyn Intake>, Clock),
) {
    let path = Path::new(&path);
    let mut turns = tokio::time::interval(LOOK_EVERY);
    let (mut before, mut failed) = (None, None);
    loop {
        turns.tick().await;
        let mut registry = registry.lock().await;
        let now = stamp(path);
        // A file that changes still is not complete.
        let rests = before.replace(now) == Some(now);
        let is_same = now == read && registry.stats.is_healthy();
        let is_done = is_same || is_known_bad(failed, now);
        if !rests || (is_done && !registry.is_other) {
            continue;
        }
        registry.is_other = false;
        let source = registry.source.clone();
        let rows = tokio::task::spawn_blocking(move || read_file_of(&source)).await;
        match rows.map_err(anyhow::Error::from).and_then(|rows| rows) {
            // Written while it was read: there is another look.
            Ok(_) if stamp(path) != now => {}
            Ok(rows) => match registry.hear(&rows, &intake, &clock).await {
                Ok(()) => (read, failed) = (now, None),
                Err(error) if is_end(&error) => return,
                Err(error) => {
                    failed = Some((now, Instant::now()));
                    registry.failed(&format!("{error:#}"));
                }
            },
            Err(error) => {
                failed = Some((now, Instant::now()));
                registry.failed(&format!("{error:#}"));
            }
        }
    }
}

/// Whether a file is as it was when it could not be taken, a short while ago.
fn is_known_bad(failed: Option<(Stamp, Instant)>, now: Stamp) -> bool {
    failed.is_some_and(|(stamp, at)| stamp == now && at.elapsed() < AGAIN_AFTER)
}

/// Whether the journal ends, and so does the process.
fn is_end(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<IntakeError>();
    matches!(error, Some(IntakeError::Closed | IntakeError::Failed(_)))
}

/// Waits for the first answer of a URL; `is_known` is whether it is known what it said before.
///
/// # Errors
/// Why there is none that can be used, without secrets.
pub(super) async fn first(fetcher: &mut Fetcher, is_known: bool) -> Result<Vec<Messages>, String> {
    let until = Instant::now() + if is_known { RESTART_WAIT } else { FIRST_WAIT };
    let mut last = None;
    loop {
        let answer = match tokio::time::timeout_at(until, fetcher.fetch()).await {
            Ok(answer) => answer,
            Err(_) => return Err(last.unwrap_or_else(|| "no answer in time".to_owned())),
        };
        match answer {
            Ok(Answer::Rows(rows, validator)) => {
                fetcher.took(validator);
                return Ok(rows);
            }
            Ok(Answer::Same) => return Err("it says that nothing has changed".to_owned()),
            Err(Failed { why, for_good, .. }) if is_known || for_good => return Err(why),
            Err(Failed { why, .. }) => last = Some(why),
        }
        tokio::time::sleep_until(until.min(Instant::now() + FIRST_PAUSE)).await;
    }
}

/// Asks a URL again and again.
pub(super) async fn watch_url(
    registry: Arc<Mutex<Registry>>,
    mut fetcher: Fetcher,
    (intake, clock): (Arc<dyn Intake>, Clock),
) {
    let (mut failures, mut after) = (0, None);
    if !registry.lock().await.stats.is_healthy() {
        failures = 1;
    }
    loop {
        tokio::time::sleep(pause(fetcher.refresh(), failures, after, clock.now_us())).await;
        fetcher.follow(&mut *registry.lock().await);
        // Not while the registry is locked: a change of the plan would wait for the answer.
        let answer = fetcher.fetch().await;
        let mut registry = registry.lock().await;
        match answer {
            Ok(answer) => {
                (failures, after) = (0, None);
                let Answer::Rows(rows, validator) = answer else {
                    registry.stats.set_healthy();
                    continue;
                };
                match registry.hear(&rows, &intake, &clock).await {
                    Ok(()) => fetcher.took(validator),
                    Err(error) if is_end(&error) => return,
                    // All of it is asked for again.
                    Err(error) => {
                        fetcher.took(None);
                        failures += 1;
                        registry.failed(&format!("{error:#}"));
                    }
                }
            }
            Err(failed) => {
                failures += 1;
                after = failed.after;
                if failures >= FAILURES_UNHEALTHY {
                    registry.failed(&failed.why);
                } else {
                    let name = &registry.source.name;
                    tracing::warn!("registry {name}: asked again soon: {}", failed.why);
                }
            }
        }
    }
}

/// The pause before the next request. What is asked every minute is spread a little, and what
/// failed a lot, so that a server is not hit by everybody at once.
fn pause(refresh: Duration, failures: u32, after: Option<Duration>, seed: i64) -> Duration {
    let spread = xxhash_rust::xxh3::xxh3_64(&seed.to_le_bytes()) % 1024;
    let spread = spread as f64 / 1024.0;
    if failures == 0 {
        return refresh.mul_f64(0.95 + 0.1 * spread);
    }
    let doubled = refresh.min(PAUSE_FIRST).saturating_mul(1 << (failures - 1).min(20));
    let full = doubled.min(PAUSE_MAX.max(refresh));
    let own = full / 2 + (full / 2).mul_f64(spread);
    own.max(after.unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_double_and_are_bounded() {
        let (second, minute, hour) =
            (Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(3600));
        for seed in 0..200 {
            let own = pause(minute, 0, None, seed);
            assert!(own >= second * 57 && own <= second * 63, "{own:?}");
            for (failures, full) in [(1, 5), (2, 10), (3, 20), (7, 300), (4_000_000, 300)] {
                let full = second * full;
                let own = pause(minute, failures, None, seed);
                assert!(own >= full / 2 && own <= full, "{failures}: {own:?}");
            }
            // What is asked often is asked again as soon, what is asked rarely at last as rarely.
            assert!(pause(second, 1, None, seed) <= second);
            assert!(pause(hour, 30, None, seed) >= hour / 2);
        }
        assert_ne!(pause(minute, 0, None, 1), pause(minute, 0, None, 2));
        assert_eq!(pause(minute, 1, Some(minute), 1), minute);
        assert_eq!(pause(minute, 1, Some(hour * 9), 1), RETRY_AFTER_MAX);
    }
}
