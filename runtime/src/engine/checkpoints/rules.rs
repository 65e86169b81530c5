//! What is known of alert rules beyond their state: whom they tell, as what, and since when they
//! are what they are.
//!
//! It is in every manifest, because a rule that is removed or changed has to be ended as the one
//! that it was, also if the files that named it are gone by then.

use std::collections::BTreeMap;

use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;

use crate::checkpoint::manifest::Rule;
use crate::engine::notifications::target_name;

/// Rules by the names under which their state is saved: `pipeline/alert/rule`.
pub(crate) type Rules = BTreeMap<String, Rule>;

/// Name of a rule in [`Rules`].
pub(crate) fn rule_name(pipeline: &str, rule: &str) -> String {
    format!("{pipeline}/alert/{rule}")
}

/// The rules of `pipelines`, as if they had always been there.
pub(super) fn of(pipelines: &[PipelineSpec]) -> Rules {
    let mut rules = Rules::new();
    for pipeline in pipelines {
        for (_, alert) in &pipeline.alerts {
            let targets = alert.notify.iter().map(|n| target_name(&pipeline.name, n)).collect();
            let rule = Rule { severity: alert.severity.clone(), targets, since_epoch: 0 };
            rules.insert(rule_name(&pipeline.name, &alert.name), rule);
        }
    }
    rules
}

/// The rules of `pipelines` after others: those that are `kept` (new name to old one) are what they
/// are since `before`, all others since `since_epoch`.
pub(super) fn after(
    before: &Rules,
    pipelines: &[PipelineSpec],
    kept: &BTreeMap<String, String>,
    since_epoch: Epoch,
) -> Rules {
    let mut rules = of(pipelines);
    for (name, rule) in &mut rules {
        rule.since_epoch = match kept.get(name) {
            Some(was) => before.get(was).map_or(0, |rule| rule.since_epoch),
            None => since_epoch,
        };
    }
    rules
}

/// Adds rules to those that ended, by epoch. Of two changes before one epoch, alerts were told by
/// the rules before the first one.
pub(crate) fn add_ended(to: &mut BTreeMap<Epoch, Rules>, more: BTreeMap<Epoch, Rules>) {
    for (epoch, rules) in more.into_iter().filter(|(_, rules)| !rules.is_empty()) {
        let of_epoch = to.entry(epoch).or_default();
        for (name, rule) in rules {
            of_epoch.entry(name).or_insert(rule);
        }
    }
}
