//! Last-known values in words.

use tidegate_operators::spec::LatestSpec;

use super::{key_names, line};
use crate::config::units::show_duration;
use crate::fingerprint::shown;

/// What a step of last-known values does.
pub(super) fn latest(l: &LatestSpec, out: &mut String) {
    let values: Vec<String> =
        l.select.iter().map(|(field, e)| format!("{} of {}", field.name(), shown(e))).collect();
    let age = l
        .max_age_us
        .map_or_else(String::new, |us| format!(", not older than {}", show_duration(us)));
    line(out, "knows", &format!("{}{age}", values.join(", ")));
    line(out, "key", &key_names(&l.input, &l.keys));
    let disorder = show_duration(l.disorder_us);
    let (silent, forgotten) = match l.live {
        true => (
            format!(", or when the key was silent for {}", show_duration(l.idle_close_us)),
            format!(
                "; forgotten after {} of silence; outages are none",
                show_duration(l.forget_after_us)
            ),
        ),
        false => Default::default(),
    };
    let at = match &l.at {
        Some(at) => format!("at each time with {}", shown(at)),
        None => "at each time of a reading".to_owned(),
    };
    let change = if l.on_change { ", if a value changed" } else { "" };
    line(out, "emits", &format!("a row {at}{change}, {disorder} after it{silent}"));
    line(out, "late", "readings older than one that was used already go to system.late");
    let state = format!(
        "per key the last value of each column, the last row, and the readings of {disorder}\
         {forgotten}"
    );
    line(out, "state", &state);
}
