//! The dataflows of one worker: one for each pipeline, and one for what belongs to all.
//!
//! Each has an input, ticks and a probe of its own, so that one can be taken out and another put in
//! between two epochs while the others go on. An epoch is complete when it is in all of them.
//! Invariant ([`Flows::install`]): every worker installs the same dataflows in the same order,
//! since all get the same commands in the same order.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use tidegate_operators::dataflow::Ticks;
use tidegate_operators::dataflow::container::MessageRuns;
use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_operators::{Epoch, Messages, OperatorError, Tick};
use tidegate_pipelines::graph::{self, GraphContext};
use timely::dataflow::operators::Input;
use timely::dataflow::operators::core::input::Handle as InputHandle;
use timely::dataflow::operators::probe::Handle;
use timely::worker::Worker;

type Inputs = InputHandle<Epoch, timely::container::CapacityContainerBuilder<MessageRuns>>;

/// Which dataflows there are to be from an epoch on.
#[derive(Debug, Default)]
pub(crate) struct FlowPlan {
    /// All pipelines, in the order of the plan.
    pub(crate) pipelines: Vec<PipelineSpec>,
    /// Names of pipelines whose dataflow goes. Those of `pipelines` that have none are built.
    pub(crate) gone: BTreeSet<String>,
    /// The tables that targets count.
    pub(crate) tables: Vec<TableSpec>,
    /// Saved state by operator name, for what is built.
    pub(crate) state: Vec<(String, RecordBatch)>,
    /// The first epoch that what is built will be fed.
    pub(crate) first_epoch: Epoch,
}

struct Flow {
    /// `None`: what belongs to all.
    pipeline: Option<String>,
    source: u16,
    input: Option<Inputs>,
    ticks: Ticks,
    probe: Handle<Epoch>,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Flows(Vec<Flow>);

impl Flows {
    /// Takes out and puts in what the plan says. Every epoch before `plan.first_epoch` must be
    /// complete. `context` is called for each dataflow that is built.
    pub(super) fn install(
        &mut self,
        worker: &mut Worker,
        plan: &FlowPlan,
        context: impl Fn(Ticks) -> GraphContext,
    ) -> Result<(), OperatorError> {
        // Without an input a dataflow ends; nobody waits for its probe any more.
        self.0.retain(|f| f.pipeline.as_ref().is_some_and(|name| !plan.gone.contains(name)));
        let wanted: Vec<(usize, &PipelineSpec)> = plan
            .pipelines
            .iter()
            .enumerate()
            .filter(|(_, p)| !self.0.iter().any(|f| f.pipeline.as_ref() == Some(&p.name)))
            .collect();
        for pipeline in std::iter::once(None).chain(wanted.into_iter().map(Some)) {
            let ticks = Ticks::default();
            ticks.start_at(plan.first_epoch);
            let context = context(ticks.clone());
            let (mut input, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
                let (input, messages) = scope.new_input::<MessageRuns>();
                let tables = &plan.tables;
                let probe = match pipeline {
                    Some(one) => graph::build_pipeline(messages, one, tables, &context)?,
                    None => graph::build_common(messages, &plan.pipelines, tables, &context),
                };
                Ok::<_, OperatorError>((input, probe))
            })?;
            input.advance_to(plan.first_epoch);
            self.0.push(Flow {
                pipeline: pipeline.map(|(_, p)| p.name.clone()),
                source: pipeline.map_or(0, |(_, p)| p.decode.source),
                input: Some(input),
                ticks,
                probe,
            });
        }
        Ok(())
    }

    /// Messages of the open epoch: for those who read their source. Events are for all: what the
    /// engine itself says, such as the rows of a registry, stands under source 0.
    pub(super) fn messages(&mut self, run: &Arc<Messages>) {
        let events = run.index.iter().any(|meta| meta.event);
        for flow in &mut self.0 {
            if let Some(input) = &mut flow.input
                && (flow.pipeline.is_none() || flow.source == run.source || events)
            {
                input.send_batch(&mut MessageRuns(vec![Arc::clone(run)]));
            }
        }
    }

    /// See [`Ticks::checkpoint_at`].
    pub(super) fn checkpoint_at(&self, epoch: Epoch, whole: bool) {
        self.0.iter().for_each(|f| f.ticks.checkpoint_at(epoch, whole));
    }

    /// See [`Ticks::flush_at`].
    pub(super) fn flush_at(&self, epoch: Epoch) {
        self.0.iter().for_each(|f| f.ticks.flush_at(epoch));
    }

    /// See [`Ticks::close_at`].
    pub(super) fn close_at(&self, epoch: Epoch, but: &Arc<BTreeSet<String>>) {
        self.0.iter().for_each(|f| f.ticks.close_at(epoch, Arc::clone(but)));
    }

    /// The end of an epoch.
    pub(super) fn tick(&mut self, tick: Tick) {
        for flow in &mut self.0 {
            flow.ticks.note(tick);
            if let Some(input) = &mut flow.input {
                input.advance_to(tick.epoch + 1);
            }
        }
    }

    /// Nothing more comes; `flush` if windows are to be closed.
    pub(super) fn end(&mut self, flush: bool) {
        for flow in &mut self.0 {
            if flush {
                flow.ticks.end();
            }
            flow.input = None;
        }
    }

    /// Every epoch before this one is complete in all dataflows; `None`: all have ended.
    pub(super) fn frontier(&self) -> Option<Epoch> {
        let of = |flow: &Flow| flow.probe.with_frontier(|f| f.first().copied());
        self.0.iter().filter_map(of).min()
    }

    /// Forgets the ticks before `epoch`, which is complete.
    pub(super) fn forget_before(&self, epoch: Epoch) {
        self.0.iter().for_each(|f| f.ticks.forget_before(epoch));
    }
}
