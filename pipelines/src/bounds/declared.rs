//! How much memory what is declared in `[limits]` takes, all together.

use tidegate_operators::spec::{StepKind, StepSpec};

use super::{What, about, bounds, counted};
use crate::plan::Plan;

/// What is declared of the state of all pipelines that say how many devices they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared<'p> {
    /// Most bytes of it.
    pub bytes: u64,
    /// How many devices those are.
    pub devices: u64,
    /// Whatever counts more keys than that, since its key is not the device, and how many.
    pub others: Vec<(&'p str, u64)>,
    /// What is not counted, since nobody said how many keys it has: its name, the bytes of one key,
    /// and whether `keys_max` says it.
    pub left_out: Vec<(&'p str, u64, bool)>,
}

/// What is declared; none if no pipeline says how many devices it has, or something in one that
/// does has no bound.
pub fn declared(plan: &Plan) -> Option<Declared<'_>> {
    let pipelines = plan.pipelines.iter().filter_map(|p| Some((p, p.declared.devices?)));
    let mut all = Declared { bytes: 0, devices: 0, others: Vec::new(), left_out: Vec::new() };
    for (pipeline, devices) in pipelines {
        all.devices = all.devices.saturating_add(devices);
        for state in bounds(pipeline) {
            let (per_key, total) = (state.per_key.ok()?, state.total.ok()?);
            if !state.keys_said {
                let is_enrich = |s: &StepSpec| matches!(s.kind, StepKind::Enrich(_));
                let joined = pipeline.steps.iter().any(|s| s.name == state.name && is_enrich(s));
                let has_keys_max = state.what != What::Registry && !joined;
                all.left_out.push((state.name, per_key, has_keys_max));
                continue;
            }
            all.bytes = all.bytes.saturating_add(total);
            if state.keys > devices.max(1) {
                all.others.push((state.name, state.keys));
            }
        }
    }
    (all.devices > 0).then_some(all)
}

impl std::fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, devices) = (about(self.bytes), counted(self.devices));
        write!(f, "state: at most {bytes} for the {devices} devices in [limits]")?;
        if !self.others.is_empty() {
            let one = |(name, keys): &(&str, u64)| format!("{} keys of `{name}`", counted(*keys));
            let others: Vec<String> = self.others.iter().map(one).collect();
            write!(f, " and {}", others.join(", "))?;
        }
        if self.left_out.is_empty() {
            return Ok(());
        }
        let one = |(name, per_key, _): &(&str, u64, bool)| {
            format!("`{name}` (at most {} per key)", about(*per_key))
        };
        let left_out: Vec<String> = self.left_out.iter().map(one).collect();
        write!(f, "; not counted: {}, whose keys are no devices", left_out.join(", "))?;
        if self.left_out.iter().any(|(.., has_keys_max)| *has_keys_max) {
            f.write_str(": say with `keys_max` how many there can be")?;
        }
        Ok(())
    }
}
