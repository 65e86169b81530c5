//! A start says what it waits for where the journal has no room for what registries say, and does
//! not wait for ever: no door is open yet, and nobody could be told later.

use std::time::{Duration, Instant};

use super::super::replaying::Replaying;
use crate::journal::{Journal, JournalStats};

/// How long a start waits while nothing finds room.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked at, and after how long it is told.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Does `work`, which journals, unless nothing finds room for `patience`.
///
/// # Errors
/// Those of the work, and why there is no room.
pub(super) async fn unless_full<T>(
    journal: &Journal,
    shown: &Replaying,
    patience: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = tokio::select! {
        done = work => done,
        why = no_room(journal, shown, patience) => Err(anyhow::anyhow!(
            "what registries say found no room in the journal for {} s: {why}. Nothing is lost: \
             make room, or change `journal_max` or `disk_reserve`, and start again",
            patience.as_secs()
        )),
    };
    shown.wait_for(None);
    done
}

/// Resolves when nothing has found room for `patience`, with the reason.
async fn no_room(journal: &Journal, shown: &Replaying, patience: Duration) -> String {
    let mut stuck: Option<(Instant, u64)> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = journal.stats();
        let Some(why) = reason(&now) else {
            stuck = None;
            shown.wait_for(None);
            continue;
        };
        // Something was written meanwhile: the wait is another one.
        let same = stuck.filter(|(_, messages)| *messages == now.messages);
        let since = same.map_or_else(Instant::now, |(since, _)| since);
        stuck = Some((since, now.messages));
        if since.elapsed() >= patience {
            return why;
        }
        let told = shown.waits_for().is_some();
        if since.elapsed() >= TELL_AFTER && !told {
            tracing::warn!("the start waits for room in the journal: {why}");
            shown.wait_for(Some(why));
        }
    }
}

fn reason(now: &JournalStats) -> Option<String> {
    let full = || "it is as large as it may be (journal_max)".to_owned();
    now.disk_full.clone().or_else(|| now.waiting_for_room.then(full))
}
