//! Parts of a checkpoint that are no operator's state: idempotency keys, what the engine has said
//! of itself, rows that end alerts, and when rules that are gone have told something.
//!
//! Invariant ([`stays`]): whoever writes a manifest takes over those that are still needed; all
//! that write one ask here which ones they are.

use tidegate_operators::Epoch;

use crate::engine::standing;

/// Name of the part with the rows that end alerts, before the number of their epoch.
const ENDED_PREFIX: &str = "system/ended@";

/// Name of the part with rows that end alerts and belong to `epoch`.
pub(super) fn ended_name(epoch: Epoch) -> String {
    format!("{ENDED_PREFIX}{epoch}")
}

/// What [`ended_name`] was made of.
pub(super) fn ended_epoch(name: &str) -> Option<Epoch> {
    name.strip_prefix(ENDED_PREFIX)?.parse().ok()
}

/// Name of the part with what a rule that is gone told last, before that of the rule.
const TOLD_PREFIX: &str = "system/told/";

/// Name of the part with what a rule that is gone told last.
pub(super) fn told_name(rule: &str) -> String {
    format!("{TOLD_PREFIX}{rule}")
}

/// What [`told_name`] was made of.
pub(super) fn told_rule(name: &str) -> Option<&str> {
    name.strip_prefix(TOLD_PREFIX)
}

/// Whether this part is a copy of what the whole process knows from its journal.
pub(super) fn is_of_no_operator(name: &str) -> bool {
    [crate::http::REQUESTS_PART, standing::PART].contains(&name)
}

/// Whether a part that is no operator's belongs into a checkpoint of `epoch`: copies always; what
/// rules that are gone have told, until a switch drops it; rows that end alerts as long as their
/// own epoch is still to come, since a restart has to give them again.
pub(super) fn stays(name: &str, epoch: Epoch) -> bool {
    let is_told = told_rule(name).is_some();
    is_told || is_of_no_operator(name) || ended_epoch(name).is_some_and(|of| of > epoch)
}
