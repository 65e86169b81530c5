//! `[limits]`: how many keys steps may have, for how long they are remembered, and what is declared
//! of devices.

use std::collections::BTreeSet;

use tidegate_operators::spec::{
    AlertSpec, AtKeysMax, AtMemoryMax, Declared, KeyLimits, Missing, StepKind, StepSpec,
};

use crate::config::keys::LIMITS;
use crate::config::section::Section;

/// The table, empty if it is absent.
pub(crate) fn table<'t>(file: &Section<'t>) -> Section<'t> {
    file.section("limits").unwrap_or(Section::nothing(&LIMITS, file.at))
}

/// The budget of a step or an alert: its own keys, else those of the table.
pub(crate) fn of_step(limits: &Section<'_>, step: &Section<'_>) -> KeyLimits {
    of(step.int("keys_max").or(limits.int("keys_max")), step.text("at_keys_max"), limits)
}

/// The budget of what is no step.
pub(crate) fn of_pipeline(limits: &Section<'_>) -> KeyLimits {
    of(limits.int("keys_max"), None, limits)
}

fn of(keys_max: Option<i64>, at_keys_max: Option<&str>, limits: &Section<'_>) -> KeyLimits {
    let at_keys_max = match at_keys_max.or(limits.text("at_keys_max")) {
        Some("stop") => AtKeysMax::Stop,
        _ => AtKeysMax::Reject,
    };
    // What is no number of keys was reported.
    let keys_max = keys_max.and_then(|n| u64::try_from(n).ok());
    let at_memory_max = match limits.text("at_memory_max") {
        Some("wait") => AtMemoryMax::Wait,
        _ => AtMemoryMax::Reject,
    };
    let keys_max = keys_max.unwrap_or(KeyLimits::default().keys_max);
    KeyLimits { keys_max, at_keys_max, at_memory_max }
}

/// Steps and alerts that read the rows of other steps with keys refuse nobody for want of memory:
/// their keys were admitted there. The first row of a key may come to them long after that, such as
/// when its first window closes, and a known device must not lose its alert by that.
///
/// Nor does an alert that reads what a filter, a branch or a registry lets through: the first row
/// of a key that is known before them may come to it just then. Its keys are bounded by `keys_max`.
pub(crate) fn spare_known_keys(steps: &mut [StepSpec], alerts: &mut [(String, AlertSpec)]) {
    let mut known: BTreeSet<String> = BTreeSet::new();
    // Edges that do not have all rows of their keys.
    let mut picked: BTreeSet<String> = BTreeSet::new();
    for step in steps {
        let picks = match &step.kind {
            StepKind::Filter(_) | StepKind::Route(_) => true,
            StepKind::Enrich(spec) => spec.missing == Missing::Reject,
            _ => false,
        };
        if picks || picked.contains(&step.from) {
            match &step.kind {
                StepKind::Route(route) => picked.extend(route.branches.iter().map(|b| b.0.clone())),
                _ => _ = picked.insert(step.name.clone()),
            }
        }
        let mut behind = known.contains(&step.from);
        let limits = match &mut step.kind {
            StepKind::Filter(_) | StepKind::Project(_) | StepKind::Enrich(_) => None,
            StepKind::Route(route) => {
                known.extend(route.branches.iter().filter(|_| behind).map(|b| b.0.clone()));
                continue;
            }
            StepKind::Window(spec) => Some(&mut spec.limits),
            StepKind::Detect(spec) => Some(&mut spec.limits),
            StepKind::Latest(spec) => Some(&mut spec.limits),
            StepKind::Absence(spec) => Some(&mut spec.limits),
            StepKind::Sequence(spec) => Some(&mut spec.limits),
            StepKind::Join(spec) => {
                behind &= known.contains(&spec.with);
                Some(&mut spec.limits)
            }
        };
        let has_keys = limits.is_some();
        if let Some(limits) = limits.filter(|_| behind) {
            limits.at_memory_max = AtMemoryMax::Wait;
        }
        if has_keys || behind {
            known.insert(step.name.clone());
        }
    }
    let spared = |from: &String| known.contains(from) || picked.contains(from);
    for (_, alert) in alerts.iter_mut().filter(|(from, _)| spared(from)) {
        alert.limits.at_memory_max = AtMemoryMax::Wait;
    }
}

/// How long what a step has learnt of a silent key is kept, microseconds.
pub(crate) fn forget_after_us(limits: &Section<'_>, step: &Section<'_>) -> Option<i64> {
    step.duration_us("forget_after").or_else(|| limits.duration_us("forget_after"))
}

/// What is declared of devices, and so of the size of all state.
pub(crate) fn declared(limits: &Section<'_>) -> Declared {
    Declared {
        devices: limits.int("devices").and_then(|n| u64::try_from(n).ok()),
        reading_every_us: limits.duration_us("reading_every").filter(|us| *us > 0),
        text_bytes: limits.size_bytes("text_size").and_then(|n| n.try_into().ok()).unwrap_or(0),
    }
}

/// Whether a step may have state without a bound.
pub(crate) fn may_be_unbounded(limits: &Section<'_>, step: Option<&Section<'_>>) -> bool {
    let own = step.filter(|s| s.knows("unbounded")).and_then(|s| s.text("unbounded"));
    own.or(limits.text("unbounded")) == Some("allow")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::load;

    /// `NAME: reject or wait` of all steps and alerts with keys.
    fn at_memory_max(limits: &str) -> String {
        let text = format!(
            "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"{{device}}\"]\n\
             [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\nfields = {{ v = \"float64\" }}\n\
             {limits}\n\
             [[step]]\nname = \"high\"\ntype = \"filter\"\nwhere = \"v > 1\"\n\
             [[step]]\nname = \"w\"\ntype = \"window\"\nfrom = \"high\"\nevery = \"1m\"\n\
             late = \"table\"\nselect = {{ m = \"max(v)\" }}\n\
             [[step]]\nname = \"more\"\ntype = \"filter\"\nfrom = \"w\"\nwhere = \"m > 1\"\n\
             [[step]]\nname = \"odd\"\ntype = \"detect\"\nfrom = \"more\"\non = \"m\"\n\
             [[step]]\nname = \"raw\"\ntype = \"detect\"\nfrom = \"readings\"\non = \"v\"\n\
             [[alert]]\nname = \"a\"\nfrom = \"more\"\nfire = \"m > 5\"\n\
             [[alert]]\nname = \"b\"\nfrom = \"high\"\nfire = \"v > 5\"\n\
             [[step]]\nname = \"all\"\ntype = \"derive\"\nfrom = \"readings\"\n\
             set = {{ n = \"v + 1\" }}\n\
             [[step]]\nname = \"by_v\"\ntype = \"route\"\nfrom = \"readings\"\n\
             branches = {{ hot = \"v > 9\", cold = \"v < 0\" }}\n\
             [[step]]\nname = \"same\"\ntype = \"derive\"\nfrom = \"hot\"\n\
             set = {{ n = \"v + 1\" }}\n\
             [[alert]]\nname = \"c\"\nfrom = \"cold\"\nfire = \"v < -5\"\n\
             [[alert]]\nname = \"d\"\nfrom = \"same\"\nfire = \"v > 50\"\n\
             [[alert]]\nname = \"e\"\nfrom = \"readings\"\nfire = \"v > 50\"\n\
             [[alert]]\nname = \"f\"\nfrom = \"all\"\nfire = \"v > 50\"\n"
        );
        let plan = load(&[("p.toml".into(), text)], &|_, _| Err(String::new()));
        let pipeline = &plan.unwrap().pipelines[0];
        let steps = pipeline.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Window(w) => Some((&step.name, w.limits)),
            StepKind::Detect(d) => Some((&step.name, d.limits)),
            _ => None,
        });
        let alerts = pipeline.alerts.iter().map(|(_, alert)| (&alert.name, alert.limits));
        let all = steps.chain(alerts).map(|(name, limits)| match limits.at_memory_max {
            AtMemoryMax::Reject => format!("{name}: reject"),
            AtMemoryMax::Wait => format!("{name}: wait"),
        });
        let mut all: Vec<String> = all.collect();
        all.sort();
        all.join(", ")
    }

    #[test]
    fn whoever_reads_the_rows_of_known_keys_refuses_none_for_want_of_memory() {
        let wanted = "a: wait, b: wait, c: wait, d: wait, e: reject, f: reject, odd: wait, \
                      raw: reject, w: reject";
        assert_eq!(at_memory_max(""), wanted);
        assert_eq!(at_memory_max("[limits]\nat_memory_max = \"reject\""), wanted);
        let wait = at_memory_max("[limits]\nat_memory_max = \"wait\"");
        assert_eq!(wait, wanted.replace("reject", "wait"));
    }
}
