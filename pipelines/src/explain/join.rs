//! Joins of two edges in words.

use tidegate_operators::spec::{JoinSpec, Partners};

use super::{key_names, line};
use crate::config::units::show_duration;

/// What a step joins, when it emits, and what it keeps.
pub(super) fn join(j: &JoinSpec, out: &mut String) {
    let disorder = show_duration(j.disorder_us);
    let silent = |silent_us: i64| match j.live {
        true => format!(", or after {} of silence, outages aside", show_duration(silent_us)),
        false => String::new(),
    };
    let unmatched = match j.outer {
        true => "with nulls where there is none",
        false => "nothing where there is none",
    };
    match &j.partners {
        Partners::Window { keep_us, takes_back, .. } => {
            let keep = show_duration(*keep_us);
            line(out, "joins", &format!("windows of {} with the same bounds, {unmatched}", j.with));
            line(out, "key", &key_names(&j.left, &j.left_keys));
            let alone = match j.outer {
                true => format!(
                    "; alone when its key's clock is {disorder} past it{}",
                    silent(j.idle_close_us)
                ),
                false => String::new(),
            };
            let emits = format!("a window when both are there{alone}; again if one comes again");
            line(out, "emits", &emits);
            if takes_back.is_some() {
                line(out, "again", "if one is withdrawn, what they were comes with rows = 0");
            }
            let late = format!("windows older than {keep} go to system.late");
            line(out, "late", &late);
            line(out, "state", &format!("per key the windows of {keep} of both edges"));
        }
        Partners::Interval { before_us, after_us, nearest, matches_max, rows_max, .. } => {
            let which = if *nearest { "the nearest row" } else { "rows" };
            let (before, after) = (show_duration(*before_us), show_duration(*after_us));
            let joins =
                format!("{which} of {} from {before} before to {after} after, {unmatched}", j.with);
            line(out, "joins", &joins);
            line(out, "key", &key_names(&j.left, &j.left_keys));
            let wait_us = after_us.saturating_add(j.disorder_us);
            let wait = show_duration(wait_us);
            let emits = format!(
                "a row when its key's clock is {wait} past it{}; in order of time",
                silent(j.idle_close_us.max(wait_us))
            );
            line(out, "emits", &emits);
            let silent = match j.live {
                true => ", or comes after silence for a row that is out,",
                false => "",
            };
            let late = format!("what is {disorder} behind{silent} goes to system.late");
            line(out, "late", &late);
            let kept = before_us.saturating_add(*after_us).saturating_add(j.disorder_us);
            let state = format!(
                "per key the rows of {wait}, and of {} those of {}, at most {rows_max} each; a \
                 row has at most {matches_max} partners",
                j.with,
                show_duration(kept)
            );
            line(out, "state", &state);
        }
    }
}
