//! Files of registries that are looked at before anything is made of them, and what of a registry
//! is another after a change of the plan.

use anyhow::Context;
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::{RegistryPlace, RegistrySource};

use super::check::Checker;
use super::diff::Known;
use super::read::read_file_of;
use super::untaken::untaken;
use super::{Registries, what};

/// Looks at the file of a registry without taking it: the rows of it that are not taken, if any.
///
/// # Errors
/// Why a start would refuse it.
pub fn look_at_file(plan: &Plan, source: &RegistrySource) -> anyhow::Result<Option<String>> {
    let rows = read_file_of(source).with_context(|| what(source))?;
    let mut checker = Checker::of(plan, source)?;
    let refused = checker.refused(&rows);
    let (known, _) = Known::default().take(source, (&rows, &refused), None);
    let text = untaken((source, &mut checker), &known, (&rows, &refused));
    Ok(text.map(|text| format!("{}: {text}", what(source))))
}

/// Refuses columns that a change of the plan adds to registries whose files do not have them.
pub(in crate::engine) fn look_at_columns(running: &Plan, new: &Plan) -> Vec<String> {
    let has_more = |source: &&RegistrySource| {
        let of = |known: &&RegistrySource| known.is_as(source);
        let known = running.registries.iter().find(of);
        known.is_some_and(|known| source.columns.iter().any(|c| !known.columns.contains(c)))
    };
    let in_files = |source: &&RegistrySource| matches!(source.place, RegistryPlace::File(_));
    let looked = new.registries.iter().filter(in_files).filter(has_more);
    let refused = looked.filter_map(|source| {
        let error = read_file_of(source).err()?;
        Some(format!("{}: {error:#}", what(source)))
    });
    refused.collect()
}

impl Registries {
    /// Reads files and answers from now on as a plan has it that runs since now, with other columns
    /// or rules; they are read again, since what was of no use may be of use.
    pub(in crate::engine) async fn follow(&self, running: &Plan, new: &Plan) -> anyhow::Result<()> {
        for watched in &self.watched {
            let mut registry = watched.registry.lock().await;
            let is_it = |source: &&RegistrySource| source.is_as(&registry.source);
            let Some(source) = new.registries.iter().find(is_it) else { continue };
            let is_same = registry.source == *source;
            if is_same && columns(running, source) == columns(new, source) {
                continue;
            }
            registry.checker = Checker::of(new, source)?;
            registry.source = source.clone();
            registry.is_other = true;
        }
        Ok(())
    }
}

/// The columns of a registry with everything that decides what is taken, as a text.
fn columns(plan: &Plan, source: &RegistrySource) -> Option<String> {
    let pipeline = plan.pipelines.iter().find(|p| p.name == source.pipeline)?;
    let spec = pipeline.registries.iter().find(|r| r.name == source.name)?;
    Some(format!("{spec:?}"))
}
