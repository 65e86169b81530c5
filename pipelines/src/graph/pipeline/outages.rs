//! The log of outages in the graph of a pipeline, kept on one worker and told to all; and the steps
//! that read it.

use arrow::array::RecordBatch;
use tidegate_operators::dataflow::container::MessageRuns;
use tidegate_operators::dataflow::{
    EdgeOrder, HostContext, Hosted, Second, by_key, host_aside, host_join, split, to_all,
};
use tidegate_operators::key::owner;
use tidegate_operators::outage::{OutageLog, changes_schema, outage_changes, outages_schema};
use tidegate_operators::quality::Hearing;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{StepSpec, WindowSpec};
use tidegate_operators::window::WindowOperator;
use tidegate_operators::{AsideOperator, Batch, Epoch, JoinOperator, KeyedOperator, OperatorError};
use timely::dataflow::Stream;

use super::{Builder, Edge, Keys, by, by_clock, sortable_columns};
use crate::graph::Counter;

/// Under what name the log of a pipeline is saved.
pub(crate) fn outage_operator(pipeline: &str) -> String {
    format!("{pipeline}/outages")
}

impl<'scope> Builder<'_, 'scope> {
    /// The log, if a step asks for it.
    pub(super) fn outages(
        &mut self,
        messages: &Stream<'scope, Epoch, MessageRuns>,
    ) -> Result<(), OperatorError> {
        if !self.pipeline.hears_outages() {
            return Ok(());
        }
        let (source, spec) = (self.pipeline.decode.source, self.pipeline.outages);
        let name = outage_operator(&self.pipeline.name);
        let changes = format!("{name}/changes");
        let mut ports = split(messages.clone(), &changes, 1, move |runs: MessageRuns, _, out| {
            for run in runs.0.iter().filter(|run| run.index.iter().any(|m| m.event)) {
                let rows = outage_changes(spec, run.source == source, run);
                if rows.num_rows() > 0 {
                    out.push((0, Batch { sequence: run.first_offset, rows }));
                }
            }
        });
        let stream = ports.pop().expect("one port was asked for");
        let changes = Edge { stream, order: EdgeOrder::Journal };
        let (index, workers) = self.sinks.context.worker;
        let log: Box<dyn KeyedOperator> =
            Box::new(OutageLog::new(spec, index == owner(0, workers)));
        let hosted = self.host_on(&changes, changes_schema(), name, log, by(&[]))?;
        self.sinks.target(hosted.late, None, None);
        self.sinks.target(hosted.rejects, None, None);
        self.outages = Some(hosted.rows);
        Ok(())
    }

    /// The log as the second input of a step that asks for it; it goes to all workers.
    pub(super) fn outages_of(&self) -> Second<'scope> {
        let stream = self.outages.clone().expect("built for whoever asks for it");
        let order = EdgeOrder::Columns((0..outages_schema().fields().len()).collect());
        Second { stream, input: outages_schema(), order, keys: None }
    }

    /// What the host of a step that is built by itself has to know.
    pub(super) fn listening(
        &self,
        step: &StepSpec,
        load: &mut dyn FnMut(&RecordBatch) -> Result<(), OperatorError>,
        (exchange, keys): Keys,
    ) -> Result<HostContext, OperatorError> {
        let name = format!("{}/{}", self.pipeline.name, step.name);
        let owned = self.restore(&name, exchange.len(), load)?;
        let left = &self.edges[&step.from];
        Ok(self.host_context(name, self.schema_of(&step.from), left, (keys, owned)))
    }

    /// The ends of a step. Rows of several workers meet again: by time, then key, then the rest.
    pub(super) fn listens(
        &mut self,
        step: &StepSpec,
        hosted: Hosted<'scope>,
        counter: Option<Counter>,
    ) {
        self.rejects(hosted.rejects);
        self.late(hosted.late);
        self.sinks.target(hosted.rows.clone(), None, counter);
        let order = EdgeOrder::Columns(sortable_columns(&step.output));
        self.add(&step.name, hosted.rows, order);
    }

    /// A step whose operator reads the log, with the key columns of its readings.
    pub(super) fn listening_step(
        &mut self,
        step: &StepSpec,
        mut operator: Box<dyn JoinOperator>,
        keys: &[usize],
    ) -> Result<(), OperatorError> {
        let context = self.listening(step, &mut |rows| operator.load(rows), by(keys))?;
        let left = (self.edges[&step.from].stream.clone(), by_key(keys.to_vec()));
        let hosted = host_join(left, (self.outages_of(), to_all()), operator, context);
        self.listens(step, hosted, None);
        Ok(())
    }

    /// A step whose windows say how good they are.
    pub(super) fn hearing_window(
        &mut self,
        step: &StepSpec,
        spec: &WindowSpec,
    ) -> Result<(), OperatorError> {
        let mut operator: Box<dyn AsideOperator> = match spec.shape.has_fixed_bounds() {
            true => Box::new(Hearing(WindowOperator::new(spec.clone())?)),
            false => Box::new(Hearing(SpanOperator::new(spec.clone())?)),
        };
        let keys = by_clock(spec);
        let exchange = keys.0.clone();
        let context = self.listening(step, &mut |rows| operator.load(rows), keys)?;
        let left = (self.edges[&step.from].stream.clone(), by_key(exchange.clone()));
        let (input, order) = (self.schema_of(&step.from), EdgeOrder::Journal);
        let keys = Some(spec.keys.clone());
        let repeated = self.repeated_on(&step.from);
        let repeated =
            repeated.map(|stream| (Second { stream, input, order, keys }, by_key(exchange)));
        let hosted = host_aside(left, (self.outages_of(), to_all()), repeated, operator, context);
        self.listens(step, hosted, Some(Counter::Windows));
        Ok(())
    }
}
