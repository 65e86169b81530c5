//! What decoding will refuse of a registry's rows, found before they are taken for known: what is
//! known is said again and again, and what was good before it must not be forgotten for it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use arrow::array::AsArray;
use tidegate_operators::registry::{Change, ROW_BYTES_MAX, RegistryDecoder, put};
use tidegate_operators::spec::RegistrySpec;
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::RegistrySource;

use super::{OFFER_BYTES, what};

/// Reads messages of a registry as joins do.
pub(super) struct Checker {
    decoder: RegistryDecoder,
    topic: String,
    pub(super) versions_max: usize,
    /// Of the source of its pipeline.
    pub(super) number: u16,
}

impl Checker {
    /// Of a registry of a plan.
    ///
    /// # Errors
    /// The plan does not have it.
    pub(super) fn of(plan: &Plan, source: &RegistrySource) -> anyhow::Result<Self> {
        let pipeline = plan.pipelines.iter().find(|p| p.name == source.pipeline);
        let pipeline = pipeline.with_context(|| what(source))?;
        let spec = pipeline.registries.iter().find(|r| r.name == source.name);
        Ok(Self::new(spec.with_context(|| what(source))?, pipeline.decode.source))
    }

    /// `number` is that of the pipeline's source.
    pub(super) fn new(spec: &RegistrySpec, number: u16) -> Self {
        let decoder = RegistryDecoder::new(spec, number);
        Self { decoder, topic: spec.topic(), versions_max: spec.versions_max, number }
    }

    /// As [`RegistryDecoder::accepted`].
    pub(super) fn accepted(&mut self, run: &Messages) -> BTreeMap<usize, Option<i64>> {
        match self.decoder.accepted(run) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(registry = self.topic, %error, "messages cannot be looked at");
                BTreeMap::new()
            }
        }
    }

    /// Why a row is refused, for people.
    pub(super) fn why(&mut self, row: &str) -> String {
        let mut one = MessagesBuilder::default();
        put(&mut one, &self.topic, Change::Set, row.as_bytes(), None, 0);
        let rejects = self.decoder.decode(&one.finish(0, 0)).map(|(_, rejects)| rejects);
        let first = rejects.unwrap_or_default().into_iter().find(|rows| rows.num_rows() > 0);
        let detail = first.map(|rows| rows["detail"].as_string::<i32>().value(0).to_owned());
        detail.unwrap_or_else(|| "it cannot be read".to_owned())
    }

    /// The numbers of rows of a file that are refused, as far as they are rows at all.
    pub(super) fn refused(&mut self, file: &[Messages]) -> BTreeSet<usize> {
        let (mut refused, mut open) = (BTreeSet::new(), (MessagesBuilder::default(), Vec::new()));
        let messages = file.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        for (number, (messages, i)) in messages.enumerate() {
            let row = messages.payload(i);
            if messages.index[i].refused || row.len() > ROW_BYTES_MAX {
                continue;
            }
            put(&mut open.0, &self.topic, Change::Set, row, None, 0);
            open.1.push(number);
            if open.0.data_bytes() >= OFFER_BYTES {
                refused.extend(self.refused_of(std::mem::take(&mut open)));
            }
        }
        refused.extend(self.refused_of(open));
        refused
    }

    fn refused_of(&mut self, (mut rows, numbers): (MessagesBuilder, Vec<usize>)) -> Vec<usize> {
        let accepted = self.accepted(&rows.finish(0, 0));
        let rows = numbers.into_iter().enumerate();
        rows.filter(|(i, _)| !accepted.contains_key(i)).map(|(_, number)| number).collect()
    }
}
