//! Absences in words.

use tidegate_operators::absence::{ABSENCES_MAX, GAPS_LEARNT, GAPS_LEAST};
use tidegate_operators::spec::{AbsenceSpec, Cadence};

use super::{key_names, line};
use crate::config::units::show_duration;

/// What an absence is, and when it is told.
pub(super) fn absence(a: &AbsenceSpec, out: &mut String) {
    let missed = a.missed;
    let (what, limit, learnt) = match a.cadence {
        Cadence::Every(us) => {
            let limit_us = us.saturating_mul(missed);
            let told_us = us.saturating_add(a.known_after_us).max(limit_us).max(a.disorder_us);
            let limit = show_duration(if a.live { told_us } else { limit_us });
            let every = show_duration(us);
            (format!("{missed} readings in a row are missing, {every} apart"), limit, String::new())
        }
        Cadence::Learnt { least_us } => {
            let least = show_duration(least_us);
            let what = format!(
                "{missed} readings in a row are missing; how far apart they are is learnt: nine of \
                 ten of the last {GAPS_LEARNT} gaps of the key are not longer, at least {least}; \
                 known after {GAPS_LEAST}"
            );
            let limit = match a.live {
                true => format!("as long, and {} after one gap", show_duration(a.known_after_us)),
                false => "as long".to_owned(),
            };
            (what, limit, format!(", {} gaps", 2 * GAPS_LEARNT))
        }
    };
    line(out, "absent", &what);
    line(out, "key", &key_names(&a.input, &a.keys));
    let disorder = show_duration(a.disorder_us);
    let told = match a.live {
        true => format!(
            "when no reading came for {limit}, without a message; its end {disorder} after the \
             next newer reading"
        ),
        false => format!("when a reading is more than {limit} after the one before it"),
    };
    line(out, "told", &told);
    if a.live {
        let text = "while the source is away or Tidegate did not run; then everybody has the whole \
                    time anew";
        line(out, "inhibit", text);
    }
    let keep = show_duration(a.keep_us);
    line(out, "late", &format!("corrects absences of the last {keep}; after that system.late"));
    line(
        out,
        "state",
        &format!("per key at most {ABSENCES_MAX} absences{learnt}, and the readings of {disorder}"),
    );
}

#[cfg(test)]
mod tests {
    use crate::{explain, load};

    #[test]
    fn what_is_absent_and_when_it_is_told_is_said() {
        let text = include_str!("../../tests-data/patterns.toml").to_owned();
        let plan = load(&[("patterns.toml".into(), text)], &|_, n| Err(n.into())).expect("good");
        let all = explain(&plan);
        for line in [
            "absent   5 readings in a row are missing, 1m apart",
            "told     when no reading came for 5m, without a message; its end 2s after",
            "late     corrects absences of the last 2h; after that system.late",
            "nine of ten of the last 31 gaps of the key are not longer, at least 10s",
            "finds    open, then NOT open within 5m",
            "finds    open, without NOT open within 5m",
            "finds    3 of 5 readings with battery < 3",
            "finds    3 readings with battery < 3 within 1h",
        ] {
            assert!(all.contains(line), "{line} is not in\n{all}");
        }
    }
}
