//! Sequences in words.

use tidegate_operators::sequence::ENTRIES_MAX;
use tidegate_operators::spec::{Pattern, SequenceSpec};

use super::{key_names, line};
use crate::config::units::show_duration;
use crate::fingerprint::shown;

/// What is looked for, and when it is told.
pub(super) fn sequence(s: &SequenceSpec, out: &mut String) {
    let last = shown(&s.last);
    let first = s.first.as_ref().map(shown).unwrap_or_default();
    let (what, over) = match s.pattern {
        Pattern::Then { within_us } => (
            format!("{first}, then {last} within {}", show_duration(within_us)),
            "with the first reading for which the second does not hold",
        ),
        Pattern::Without { within_us } => (
            format!("{first}, without {last} within {}", show_duration(within_us)),
            "with the reading that was waited for",
        ),
        Pattern::Among { times, of } => {
            (format!("{times} of {of} readings with {last}"), "when there are fewer")
        }
        Pattern::Times { times, within_us } => (
            format!("{times} readings with {last} within {}", show_duration(within_us)),
            "when there are fewer",
        ),
    };
    line(out, "finds", &what);
    line(out, "over", over);
    line(out, "key", &key_names(&s.input, &s.keys));
    let (disorder, idle) = (show_duration(s.disorder_us), show_duration(s.idle_close_us));
    // In which an outage may be unknown.
    let known = match s.known_after_us {
        0 => String::new(),
        us => format!(" and {}", show_duration(us)),
    };
    let told = match s.live {
        true => format!(
            "when its key's newest reading is {disorder} past it; of a key that is silent for \
             {idle}, when so much time{known} has passed while the source was there"
        ),
        false => format!("when its key's newest reading is {disorder} past it"),
    };
    line(out, "told", &told);
    let keep = show_duration(s.keep_us);
    line(out, "late", &format!("the match comes again for {keep}; after that system.late"));
    let tail = show_duration(s.disorder_us.saturating_add(s.keep_us));
    let counted = match s.pattern {
        Pattern::Then { .. } | Pattern::Without { .. } => "two readings".to_owned(),
        Pattern::Among { times, .. } | Pattern::Times { times, .. } => format!("{times} readings"),
    };
    let state = format!("per key {counted}, and those of {tail}, at most {ENTRIES_MAX}");
    line(out, "state", &state);
}
