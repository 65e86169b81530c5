//! Named fault points: places at which a test makes a debug build of the process die, or fail.
//!
//! In release builds all of this is nothing. In debug builds the variable `TIDEGATE_FAULT` names
//! what is to happen, as `ACTION:POINT:HIT`, several with commas between:
//!
//! - `kill:after_sync:2` ends the process (abort: nothing is flushed, no destructor runs) when it
//!   comes to the point `after_sync` for the 2nd time, and says so on standard error before;
//! - `panic:after_recv:1` panics there, with what a panic prints;
//! - `eio:sync:3` makes the 3rd sync of the journal fail with an input/output error, once;
//! - `enospc:append:5+` makes the 5th and every later append fail with a full disk;
//! - `slow:replay:1+` makes each of them take 50 ms longer;
//! - `short:alarm:1+` makes what is waited for there a fiftieth as long.
//!
//! `kill` and `slow` work at every point, the failures only at those that ask [`io`], and `short`
//! at those that ask [`patience`]. Points, in the order in which a message passes them:
//!
//! | Point | Where |
//! |---|---|
//! | `replay` | a start has handed messages or a tick of the journal to the workers |
//! | `after_recv` | a source offers what it has received |
//! | `append` (io) | before the journal's write of a group |
//! | `after_wal_write` | the group is written, not synced |
//! | `sync` (io) | before the journal's sync |
//! | `sync_failed` | a sync has failed, the process is about to end |
//! | `after_sync` | the group is durable, nobody was told |
//! | `before_ack` | a connection knows that its messages are durable |
//! | `after_ack` | acknowledgements are written to the socket of a device or a broker |
//! | `epoch_seal` | an epoch's tick is durable and not handed on |
//! | `epoch_complete` | an epoch has all of its rows, nobody outside has seen any |
//! | `outbox_append` | notifications are written, not synced |
//! | `alert_enqueued` | notifications are durable, nobody has sent them |
//! | `webhook_sent` | a receiver answered 2xx, which is not noted yet |
//! | `tables_sync` (io) | before the sync of a folder of local tables |
//! | `parquet_part` | a data file of a local table is written under a temporary name |
//! | `parquet_done` | a data file is there, no commit names it |
//! | `before_commit` | all data files of a commit are there |
//! | `after_commit` | the commit is there, the process has not noted it |
//! | `recomputed_slice` | a part of the late windows of a group is computed, not committed |
//! | `recomputed_kept` | windows that stay as they are are noted, the others are not committed |
//! | `recomputed` | late windows of a group are committed again, the process has not noted it |
//! | `snapshot_file` | one part of a checkpoint is durable |
//! | `snapshot_manifest` | all parts are, and the manifest under a temporary name |
//! | `apply_before_switch` | a change: the checkpoint of the new plan is ready, not visible |
//! | `apply_after_switch` | it is visible, nothing runs by it yet |
//! | `before_gc` | old checkpoints or journal segments are about to be deleted |
//! | `mid_gc` | one file of them is deleted |
//! | `alarm` (patience) | how long something is wrong, or right again, before it is told |
//!
//! Invariant: a point changes nothing unless the variable names it.

#[cfg(debug_assertions)]
pub(crate) use self::armed::{io, patience, point, reach_tables};
#[cfg(not(debug_assertions))]
pub(crate) use self::disarmed::{io, patience, point, reach_tables};

#[cfg(not(debug_assertions))]
mod disarmed {
    //! What release builds have of it.

    /// Nothing.
    #[inline(always)]
    pub(crate) fn point(_name: &'static str) {}

    /// Nothing.
    ///
    /// # Errors
    /// Never.
    #[inline(always)]
    pub(crate) fn io(_name: &'static str) -> std::io::Result<()> {
        Ok(())
    }

    /// As long as it is.
    #[inline(always)]
    pub(crate) fn patience(_name: &'static str, time: std::time::Duration) -> std::time::Duration {
        time
    }

    /// Nothing.
    #[inline(always)]
    pub(crate) fn reach_tables() {}
}

#[cfg(debug_assertions)]
mod armed {
    //! What debug builds have of it.

    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    const VARIABLE: &str = "TIDEGATE_FAULT";
    /// Linux: input/output error, no space left on device.
    const EIO: i32 = 5;
    pub(super) const ENOSPC: i32 = 28;
    /// What `slow` takes.
    const SLOW: Duration = Duration::from_millis(50);
    /// What `short` leaves is this part.
    const SHORT_PART: u32 = 50;

    static RULES: OnceLock<Vec<Rule>> = OnceLock::new();

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Action {
        Kill,
        Panic,
        Slow,
        Short,
        /// With this error number of the system.
        Fail(i32),
    }

    /// One fault that was asked for.
    #[derive(Debug)]
    pub(super) struct Rule {
        pub(super) action: Action,
        point: String,
        /// The first hit that counts, from 1.
        hit: u64,
        /// Whether all later hits count too.
        on: bool,
        hits: AtomicU64,
    }

    impl Rule {
        /// The number of this hit if it is one that counts.
        pub(super) fn reached(&self, point: &str) -> Option<u64> {
            if self.point != point {
                return None;
            }
            let hit = self.hits.fetch_add(1, Ordering::SeqCst) + 1;
            (hit == self.hit || (self.on && hit > self.hit)).then_some(hit)
        }
    }

    /// A place in the code that cannot fail.
    pub(crate) fn point(name: &'static str) {
        // Failures are for those who can pass them on.
        let _ = io(name);
    }

    /// A place in the code that may fail.
    ///
    /// # Errors
    /// The one that was asked for.
    pub(crate) fn io(name: &'static str) -> io::Result<()> {
        for rule in RULES.get_or_init(from_environment) {
            if rule.action == Action::Short {
                continue;
            }
            let Some(hit) = rule.reached(name) else { continue };
            if rule.action == Action::Slow {
                std::thread::sleep(SLOW);
                continue;
            }
            eprintln!("tidegate: fault {:?} at {name}, hit {hit}", rule.action);
            match rule.action {
                Action::Kill => std::process::abort(),
                Action::Slow | Action::Short => {}
                Action::Panic => panic!("a fault was asked for at {name}"),
                Action::Fail(error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
        Ok(())
    }

    /// How long `time` is there.
    pub(crate) fn patience(name: &'static str, time: Duration) -> Duration {
        let rules = RULES.get_or_init(from_environment);
        let is_short = |rule: &Rule| rule.action == Action::Short && rule.reached(name).is_some();
        if rules.iter().any(is_short) { time / SHORT_PART } else { time }
    }

    /// Lets the tables' points reach this module, which their crate does not know.
    pub(crate) fn reach_tables() {
        tidegate_sql::fault::connect(io);
    }

    fn from_environment() -> Vec<Rule> {
        let Ok(text) = std::env::var(VARIABLE) else { return Vec::new() };
        parse(&text).unwrap_or_else(|| {
            eprintln!("tidegate: {VARIABLE}={text} is not ACTION:POINT:HIT, ...");
            std::process::abort()
        })
    }

    pub(super) fn parse(text: &str) -> Option<Vec<Rule>> {
        let rule = |part: &str| {
            let (action, rest) = part.trim().split_once(':')?;
            let (point, hit) = rest.split_once(':')?;
            let action = match action {
                "kill" => Action::Kill,
                "panic" => Action::Panic,
                "slow" => Action::Slow,
                "short" => Action::Short,
                "eio" => Action::Fail(EIO),
                "enospc" => Action::Fail(ENOSPC),
                _ => return None,
            };
            let (number, on) = hit.strip_suffix('+').map_or((hit, false), |n| (n, true));
            let hit = number.parse().ok().filter(|n| *n > 0)?;
            Some(Rule { action, point: point.to_owned(), hit, on, hits: AtomicU64::new(0) })
        };
        text.split(',').map(rule).collect()
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::armed::{Action, ENOSPC, parse};

    #[test]
    fn hits_are_counted_per_point_and_only_the_named_ones_count() {
        let rules = parse("kill:a:2, enospc:b:3+").unwrap();
        assert_eq!(rules[0].action, Action::Kill);
        assert_eq!(rules[1].action, Action::Fail(ENOSPC));
        let hits = |rule: usize, point: &str| -> Vec<Option<u64>> {
            (0..5).map(|_| rules[rule].reached(point)).collect()
        };
        assert_eq!(hits(0, "b"), [None; 5]);
        assert_eq!(hits(0, "a"), [None, Some(2), None, None, None]);
        assert_eq!(hits(1, "b"), [None, None, Some(3), Some(4), Some(5)]);
        for bad in ["", "kill", "kill:a", "kill:a:0", "kill:a:x", "burn:a:1", "kill:a:1,"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
