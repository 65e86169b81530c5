//! Repeated readings in the graph of a pipeline: they are dropped, and told to the windows that
//! count them.

use std::rc::Rc;

use arrow::array::RecordBatch;
use tidegate_operators::dataflow::{EdgeOrder, split};
use tidegate_operators::dedup::{Dedup, parted};
use tidegate_operators::spec::DedupSpec;
use tidegate_operators::{Batch, Epoch, OperatorError};
use timely::dataflow::Stream;

use super::{Builder, Edge, by};
use crate::graph::{Counter, DUPLICATES};
use crate::repeated::path;

impl<'scope> Builder<'_, 'scope> {
    /// Drops readings that came before. They meet again by their place in the journal.
    pub(super) fn dedup(
        &mut self,
        decoded: &Edge<'scope>,
        spec: &DedupSpec,
    ) -> Result<Edge<'scope>, OperatorError> {
        let name = format!("{}/reading/dedup", self.pipeline.name);
        let operator = Box::new(Dedup::new(spec.clone()));
        let input = self.pipeline.decode.schema();
        let parts = format!("{name}/parts");
        let hosted = self.host_on(decoded, input, name, operator, by(&[spec.device]))?;
        self.rejects(hosted.rejects);
        if self.sinks.context.tap_edges {
            self.tap(DUPLICATES, hosted.late.clone());
        }
        let table = self.system(DUPLICATES);
        self.sinks.table(hosted.late, table, Some(Counter::Duplicates));
        let mut rows = hosted.rows;
        if spec.marks {
            let (fail, failed_name) = (Rc::clone(&self.sinks.context.fail), parts.clone());
            let mut ports = split(rows, &parts, 2, move |batch: Batch, _, out| {
                let sequence = batch.sequence;
                match parted(&batch.rows) {
                    Ok(parts) => {
                        let parts = parts.into_iter().enumerate();
                        out.extend(parts.map(|(port, rows)| (port, Batch { sequence, rows })));
                    }
                    Err(error) => fail(&failed_name, error.into()),
                }
            });
            self.repeated = ports.pop();
            rows = ports.pop().expect("two ports");
        }
        Ok(Edge { stream: rows, order: EdgeOrder::Columns(spec.output_order()) })
    }

    /// The readings that were dropped as they would be on an edge, if steps without state make it
    /// of the readings. What these steps reject was told of the first copy.
    pub(super) fn repeated_on(&self, edge: &str) -> Option<Stream<'scope, Epoch, Batch>> {
        let (stream, path) = (self.repeated.clone()?, path(self.pipeline, edge)?);
        let name = format!("{}/{edge}/repeated", self.pipeline.name);
        let (fail, failed_name) = (Rc::clone(&self.sinks.context.fail), name.clone());
        let mut ports = split(stream, &name, 1, move |batch: Batch, _, out| {
            let made: Result<RecordBatch, OperatorError> =
                path.iter().try_fold(batch.rows, |rows, (step, branch)| {
                    Ok(step.apply(&rows)?.branches.swap_remove(*branch))
                });
            match made {
                Ok(rows) => out.push((0, Batch { sequence: batch.sequence, rows })),
                Err(error) => fail(&failed_name, error),
            }
        });
        ports.pop()
    }
}
