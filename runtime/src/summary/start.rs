//! What a start says for people: how far the replay is, and what was restored.

use std::time::Duration;

use super::{bytes, clock, grouped};
use crate::engine::{Recovery, Replayed};

/// How far a replay is.
pub fn replaying(now: &Replayed) -> String {
    let left = now.left.map_or(String::new(), |left| format!(", about {} left", clock(left)));
    format!(
        "replaying the journal: {:.0} %, {} of {} messages, {} of {}, {} messages/s{left}",
        (now.share() * 100.0).floor(),
        grouped(now.messages),
        grouped(now.messages_all),
        bytes(now.bytes),
        bytes(now.bytes_all),
        grouped(now.messages_per_s),
    )
}

/// What a start found and did, in one line.
pub fn recovered(found: &Recovery) -> String {
    let mut parts = Vec::new();
    match found.checkpoint {
        0 => parts.push("no checkpoint".to_owned()),
        epoch => parts.push(format!(
            "checkpoint of epoch {epoch} ({} old, {} rows of state)",
            age(found.checkpoint_age_us),
            grouped(found.state_rows)
        )),
    }
    match &found.replayed {
        Some(done) => parts.push(format!(
            "replayed {} messages ({}) to epoch {} in {:.1} s",
            grouped(done.messages),
            bytes(done.bytes),
            done.epoch,
            done.elapsed.as_secs_f64()
        )),
        None => parts.push("nothing to replay".to_owned()),
    }
    if found.tables > 0 {
        parts.push(format!("tables had epoch {}", found.tables));
    }
    if found.notifications > 0 {
        parts.push(format!("{} webhooks wait", grouped(found.notifications as u64)));
    }
    if found.checkpoint == 0 && found.replayed.is_none() {
        parts = vec!["nothing, the data folder is new".to_owned()];
    }
    format!("recovered: {}; ready after {:.1} s", parts.join(", "), found.seconds)
}

/// Days are said as days: a folder may have been left for months.
fn age(us: i64) -> String {
    let time = Duration::from_micros(us.max(0).unsigned_abs());
    match time.as_secs() / 86_400 {
        0 => clock(time),
        1 => "1 day".to_owned(),
        days => format!("{} days", grouped(days)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replayed() -> Replayed {
        Replayed {
            messages: 1_234,
            messages_all: 12_340,
            bytes: 3 << 20,
            bytes_all: 30 << 20,
            epoch: 77,
            messages_per_s: 617,
            elapsed: Duration::from_secs(2),
            left: Some(Duration::from_secs(18)),
        }
    }

    #[test]
    fn it_is_said_in_one_line() {
        let mut found = Recovery { seconds: 2.25, ..Recovery::default() };
        assert_eq!(
            recovered(&found),
            "recovered: nothing, the data folder is new; ready after 2.2 s"
        );
        found.replayed = Some(replayed());
        assert_eq!(
            recovered(&found),
            "recovered: no checkpoint, replayed 1,234 messages (3.0 MiB) to epoch 77 in 2.0 s; \
             ready after 2.2 s"
        );
        found.checkpoint = 70;
        found.checkpoint_age_us = 3 * 86_400_000_000;
        (found.state_rows, found.tables, found.notifications) = (5_000, 75, 2);
        assert_eq!(
            recovered(&found),
            "recovered: checkpoint of epoch 70 (3 days old, 5,000 rows of state), \
             replayed 1,234 messages (3.0 MiB) to epoch 77 in 2.0 s, tables had epoch 75, \
             2 webhooks wait; ready after 2.2 s"
        );
    }

    #[test]
    fn a_replay_says_how_far_it_is() {
        assert_eq!(
            replaying(&replayed()),
            "replaying the journal: 10 %, 1,234 of 12,340 messages, 3.0 MiB of 30.0 MiB, \
             617 messages/s, about 18 s left"
        );
    }
}
