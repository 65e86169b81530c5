//! What alert rules that are made anew must know of events that they told before the change: see
//! [`tidegate_operators::alert::heir`].
//!
//! A rule that is not among those that run now may be put back: what it told is a part of each
//! checkpoint until then, for a day.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use tidegate_operators::SavedRows;
use tidegate_operators::alert::{has_keys_of, heir, is_known, told, untold};
use tidegate_operators::spec::AlertSpec;
use tidegate_pipelines::change::rule_of;

use super::parts;
use super::rules::rule_name;
use super::switch::{Switch, of_one_group};

/// State by the names of operators.
pub(super) type Named = Vec<(String, SavedRows)>;

/// The state that was made anew, `made`, of rules as they go on from it; and the parts with what
/// others told before this switch, which had the state `had`. `kept` are the operators whose state
/// stays.
pub(super) fn with_told(
    switch: &Switch,
    (had, kept): (&BTreeMap<String, Vec<RecordBatch>>, &BTreeMap<String, String>),
    made: Named,
) -> anyhow::Result<(Named, Named)> {
    let mut before = told_before(switch.time_us, had, kept)?;
    let (mut rules, mut out): (Named, Named) =
        made.into_iter().partition(|(name, _)| rule_of(name).is_some());
    for (_, saved) in &mut rules {
        saved.rows = untold(&saved.rows)?;
    }
    for (name, spec) in alerts(switch).filter(|(name, _)| !kept.contains_key(name)) {
        let (own, others): (Vec<_>, Vec<_>) = before
            .remove(&name)
            .unwrap_or_default()
            .into_iter()
            .partition(|rows| has_keys_of(spec, rows));
        if !others.is_empty() {
            before.insert(name.clone(), others);
        }
        if !own.is_empty() {
            let of_rule = rules.extract_if(.., |(of, _)| *of == name);
            let state: Vec<RecordBatch> = of_rule.map(|(_, saved)| saved.rows).collect();
            let heir = heir(spec, &state, &own, switch.time_us)?.into_iter();
            rules.extend(heir.map(|saved| (name.clone(), saved)));
        }
    }
    out.extend(rules);
    let mut parts = Vec::new();
    for (name, told) in before {
        parts.extend(part(&told)?.map(|part| (parts::told_name(&name), part)));
    }
    Ok((out, parts))
}

/// What rules that do not go on have told, and what earlier ones had, by the names of the rules:
/// the older first.
fn told_before(
    time_us: i64,
    had: &BTreeMap<String, Vec<RecordBatch>>,
    kept: &BTreeMap<String, String>,
) -> anyhow::Result<BTreeMap<String, Vec<RecordBatch>>> {
    let mut before: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    for (name, rows) in had {
        if let Some(rule) = parts::told_rule(name) {
            let known = rows.iter().filter(|rows| is_known(rows, time_us)).cloned();
            before.entry(rule.to_owned()).or_default().extend(known);
        }
    }
    let goes = |name: &&String| rule_of(name).is_some() && !kept.values().any(|was| was == *name);
    for name in had.keys().filter(goes) {
        for rows in &had[name] {
            let told = told(rows, time_us)?;
            if told.num_rows() > 0 {
                before.entry(name.clone()).or_default().push(told);
            }
        }
    }
    Ok(before)
}

/// The newest of them, and those before of the same keys.
fn part(told: &[RecordBatch]) -> anyhow::Result<Option<SavedRows>> {
    let Some(last) = told.last().map(RecordBatch::schema) else { return Ok(None) };
    let same: Vec<&RecordBatch> = told.iter().filter(|rows| rows.schema() == last).collect();
    Ok(Some(of_one_group(concat_batches(&last, same)?)))
}

/// The rules of the pipelines that are to run, by the names under which their state is saved.
fn alerts(switch: &Switch) -> impl Iterator<Item = (String, &AlertSpec)> {
    let rules = switch.new.iter().flat_map(|p| p.alerts.iter().map(move |(_, alert)| (p, alert)));
    rules.map(|(pipeline, alert)| (rule_name(&pipeline.name, &alert.name), alert))
}
