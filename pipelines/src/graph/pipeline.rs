//! The graph of one pipeline: decode, registries, steps, alerts, tables.

mod dedup;
mod join;
mod outages;
mod registry;

use std::collections::BTreeMap;
use std::rc::Rc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::expressions::Column;
use tidegate_operators::absence::AbsenceOperator;
use tidegate_operators::alert::AlertRule;
use tidegate_operators::dataflow::container::MessageRuns;
use tidegate_operators::dataflow::{EdgeOrder, HostContext, Hosted, by_key, host, split};
use tidegate_operators::decode::Decoder;
use tidegate_operators::detect::Detector;
use tidegate_operators::expression::StatelessStep;
use tidegate_operators::key::{owner, stable_hashes};
use tidegate_operators::latest::LatestOperator;
use tidegate_operators::sequence::SequenceOperator;
use tidegate_operators::skew::{ClockSkew, clocks_schema};
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{
    Clock, Expr, INHIBITED, PipelineSpec, RegistrySpec, SkewSpec, StepKind, StepSpec, TableSpec,
    WindowSpec,
};
use tidegate_operators::system::{findings_from, late_rows, step_rejects};
use tidegate_operators::text::parted;
use tidegate_operators::window::WindowOperator;
use tidegate_operators::{Batch, Epoch, GroupSet, KeyedOperator, OperatorError};
use timely::dataflow::Stream;

use super::tables::{ALERTS, CLOCK_SKEW, FINDINGS, LATE, REJECTS, SYSTEM, position};
use super::{Counter, Sinks, Target};
use crate::resolve::{early, withdrawn};

pub(crate) use self::outages::outage_operator;
pub(crate) use self::registry::{refused_operator, registry_operator, versions_edge};

/// Name of the operator that estimates the clocks of a pipeline.
pub(crate) fn skew_operator(pipeline: &str) -> String {
    format!("{pipeline}/reading/clock_skew")
}

/// Name of the edge of decoded readings.
pub(crate) const READINGS: &str = "readings";

/// The columns that rows are dealt out by, and those of their keys.
type Keys = (Vec<usize>, Vec<usize>);

/// Rows that are dealt out by their keys.
fn by(keys: &[usize]) -> Keys {
    (keys.to_vec(), keys.to_vec())
}

/// The same of windows: one clock for the fleet needs all keys in one place.
fn by_clock(spec: &WindowSpec) -> Keys {
    let exchange = match spec.clock {
        Clock::Device => spec.keys.clone(),
        Clock::Fleet => Vec::new(),
    };
    (exchange, spec.keys.clone())
}

struct Edge<'scope> {
    stream: Stream<'scope, Epoch, Batch>,
    order: EdgeOrder,
}

struct Builder<'a, 'scope> {
    index: usize,
    pipeline: &'a PipelineSpec,
    tables: &'a [TableSpec],
    sinks: &'a Sinks<'a>,
    edges: BTreeMap<String, Edge<'scope>>,
    /// Changes of registries by their names.
    changes: BTreeMap<String, Edge<'scope>>,
    /// The log of outages, if a step asks for it.
    outages: Option<Stream<'scope, Epoch, Batch>>,
    /// Readings that were dropped because they had come before, if a step counts them.
    repeated: Option<Stream<'scope, Epoch, Batch>>,
}

/// Builds one pipeline onto the messages of all sources.
pub(super) fn build<'scope>(
    index: usize,
    pipeline: &PipelineSpec,
    messages: Stream<'scope, Epoch, MessageRuns>,
    tables: &[TableSpec],
    sinks: &Sinks<'_>,
) -> Result<(), OperatorError> {
    let (edges, changes) = (BTreeMap::new(), BTreeMap::new());
    let (outages, repeated) = (None, None);
    let mut builder = Builder { index, pipeline, tables, sinks, edges, changes, outages, repeated };
    builder.registries(&messages)?;
    builder.outages(&messages)?;
    builder.decode(messages)?;
    for step in &pipeline.steps {
        match &step.kind {
            StepKind::Window(spec) if spec.quality.is_some() => {
                builder.hearing_window(step, spec)?;
            }
            StepKind::Window(_) | StepKind::Detect(_) => builder.keyed_step(step)?,
            StepKind::Latest(spec) => {
                let operator = Box::new(LatestOperator::new(spec.clone())?);
                builder.listening_step(step, operator, &spec.keys)?;
            }
            StepKind::Enrich(spec) => builder.enrich(step, spec)?,
            StepKind::Join(spec) => builder.join(step, spec)?,
            StepKind::Absence(spec) => {
                let operator = Box::new(AbsenceOperator::new(spec.clone())?);
                builder.listening_step(step, operator, &spec.keys)?;
            }
            StepKind::Sequence(spec) => {
                let operator = Box::new(SequenceOperator::new(spec.clone())?);
                builder.listening_step(step, operator, &spec.keys)?;
            }
            _ => builder.stateless_step(step),
        }
    }
    builder.alerts()?;
    builder.ends();
    Ok(())
}

impl<'scope> Builder<'_, 'scope> {
    fn decode(
        &mut self,
        messages: Stream<'scope, Epoch, MessageRuns>,
    ) -> Result<(), OperatorError> {
        let mut decoder = Decoder::new(self.pipeline.decode.clone());
        let source = self.pipeline.decode.source;
        let name = format!("{}/decode", self.pipeline.name);
        let clocks = self.pipeline.decode.clocks;
        let text_max = self.sinks.context.text_max;
        let mut ports =
            split(messages, &name, 2 + usize::from(clocks), move |runs: MessageRuns, _, out| {
                for run in runs.0.iter().filter(|r| r.source == source) {
                    let sequence = run.first_offset;
                    decoder.decode_parts(run, text_max, |decoded| {
                        out.push((0, Batch { sequence, rows: decoded.readings }));
                        out.push((1, Batch { sequence, rows: decoded.rejects }));
                        out.extend(decoded.clocks.map(|rows| (2, Batch { sequence, rows })));
                    });
                }
            });
        if let Some(spec) = &self.pipeline.skew {
            self.skew(ports.pop().expect("the decoder says what it knows of clocks"), spec)?;
        }
        let rejects = ports.pop().expect("two ports");
        let readings = ports.pop().expect("two ports");
        self.rejects(rejects);
        self.sinks.target(readings.clone(), None, Some(Counter::Readings));
        let decoded = Edge { stream: readings, order: EdgeOrder::Journal };
        let edge = match &self.pipeline.dedup {
            Some(spec) => self.dedup(&decoded, spec)?,
            None => decoded,
        };
        self.edges.insert(READINGS.to_owned(), edge);
        Ok(())
    }

    /// Estimates the clocks of devices.
    fn skew(
        &self,
        clocks: Stream<'scope, Epoch, Batch>,
        spec: &SkewSpec,
    ) -> Result<(), OperatorError> {
        let edge = Edge { stream: clocks, order: EdgeOrder::Journal };
        let operator = Box::new(ClockSkew::new(spec.clone())?);
        let name = skew_operator(&self.pipeline.name);
        let hosted = self.host_on(&edge, clocks_schema(), name, operator, by(&[0]))?;
        if self.sinks.context.tap_edges {
            self.tap(CLOCK_SKEW, hosted.rows.clone());
        }
        self.sinks.table(hosted.rows, self.system(CLOCK_SKEW), Some(Counter::ClocksOff));
        Ok(())
    }

    fn stateless_step(&mut self, step: &StepSpec) {
        let from = &self.edges[&step.from];
        let input = self.schema_of(&step.from);
        let order = match (&from.order, &step.kind) {
            // Columns may have moved; what is left of the order is the content itself, or the
            // place in the journal if that is still there.
            (EdgeOrder::Columns(order), StepKind::Project(list)) => {
                let journal = journal_columns(&input, order, list).map(EdgeOrder::Columns);
                journal.unwrap_or_else(|| content_order_of(&step.output, &input, &from.order))
            }
            (order, _) => order.clone(),
        };
        let logic = StatelessStep::new(&step.kind, input, step.output.clone())
            .expect("steps with state are built elsewhere")
            .of_early(early::final_column(&self.pipeline.steps, &step.from))
            .of_withdrawn(withdrawn::column(&self.pipeline.steps, &step.from));
        let branches: Vec<String> = match &step.kind {
            StepKind::Route(route) => route.branches.iter().map(|b| b.0.clone()).collect(),
            _ => vec![step.name.clone()],
        };
        let (pipeline, step_name) = (self.pipeline.name.clone(), step.name.clone());
        let ports = branches.len();
        let name = format!("{pipeline}/{step_name}");
        let (fail, failed_name) = (Rc::clone(&self.sinks.context.fail), name.clone());
        let most = self.sinks.context.text_max.turn / 4;
        let mut streams =
            split(from.stream.clone(), &name, ports + 1, move |batch: Batch, _, out| {
                let sequence = batch.sequence;
                let on = |port: usize, rows| (port, Batch { sequence, rows });
                // Expressions make more of a text than it is.
                for rows in parted(batch.rows, most) {
                    let made = logic.apply(&rows).and_then(|made| {
                        let failed = step_rejects(&pipeline, &step_name, &rows, &made.failed)?;
                        out.extend(failed.into_iter().map(|rows| on(ports, rows)));
                        Ok(made.branches)
                    });
                    match made {
                        Ok(branches) => {
                            let branches = branches.into_iter().enumerate();
                            out.extend(branches.map(|(port, rows)| on(port, rows)));
                        }
                        Err(error) => fail(&failed_name, error),
                    }
                }
            });
        let rejects = streams.pop().expect("one port more than branches");
        self.rejects(rejects);
        for (branch, stream) in branches.iter().zip(streams) {
            self.add(branch, stream, order.clone());
        }
    }

    fn keyed_step(&mut self, step: &StepSpec) -> Result<(), OperatorError> {
        let name = format!("{}/{}", self.pipeline.name, step.name);
        let (operator, keys, counter): (Box<dyn KeyedOperator>, _, _) = match &step.kind {
            StepKind::Window(spec) => {
                let operator: Box<dyn KeyedOperator> = match spec.shape.has_fixed_bounds() {
                    true => Box::new(WindowOperator::new(spec.clone())?),
                    false => Box::new(SpanOperator::new(spec.clone())?),
                };
                (operator, by_clock(spec), Counter::Windows)
            }
            StepKind::Detect(spec) => {
                let operator = Box::new(Detector::new(spec.clone())?);
                (operator, by(&spec.keys), Counter::Findings)
            }
            _ => unreachable!("stateless steps are built elsewhere"),
        };
        let hosted = self.host(&step.from, name, operator, keys)?;
        let rows = hosted.rows.clone();
        self.listens(step, hosted, Some(counter));
        if let StepKind::Detect(spec) = &step.kind {
            let spec = spec.clone();
            let name = format!("{}/{}/findings", self.pipeline.name, step.name);
            let (fail, failed_name) = (Rc::clone(&self.sinks.context.fail), name.clone());
            let mut ports =
                split(rows, &name, 1, move |batch: Batch, _, out| {
                    match findings_from(&spec, &batch.rows) {
                        Ok(rows) => out.push((0, Batch { sequence: batch.sequence, rows })),
                        Err(error) => fail(&failed_name, error.into()),
                    }
                });
            let findings = ports.pop().expect("one port");
            if self.sinks.context.tap_edges {
                self.tap(FINDINGS, findings.clone());
            }
            self.sinks.table(findings, self.system(FINDINGS), None);
        }
        Ok(())
    }

    fn alerts(&mut self) -> Result<(), OperatorError> {
        for (from, spec) in &self.pipeline.alerts {
            let name = format!("{}/alert/{}", self.pipeline.name, spec.name);
            let operator = Box::new(AlertRule::new(spec.clone())?);
            let hosted = self.host(from, name, operator, by(&spec.keys))?;
            self.rejects(hosted.rejects);
            self.late(hosted.late);
            if self.sinks.context.tap_edges {
                self.tap(ALERTS, hosted.rows.clone());
            }
            self.sinks.table(hosted.rows, self.system(ALERTS), Some(Counter::Alerts));
        }
        Ok(())
    }

    /// Tables of the pipeline, and for tests every edge.
    fn ends(&self) {
        for table in &self.pipeline.tables {
            let stream = self.edges[&table.from].stream.clone();
            let target = position(self.tables, &table.namespace, &table.name);
            self.sinks.table(stream, target, None);
        }
        if self.sinks.context.tap_edges {
            for (name, edge) in &self.edges {
                self.tap(name, edge.stream.clone());
            }
        }
    }

    fn host(
        &self,
        from: &str,
        name: String,
        operator: Box<dyn KeyedOperator>,
        keys: Keys,
    ) -> Result<Hosted<'scope>, OperatorError> {
        self.host_on(&self.edges[from], self.schema_of(from), name, operator, keys)
    }

    fn host_on(
        &self,
        edge: &Edge<'scope>,
        input: SchemaRef,
        name: String,
        mut operator: Box<dyn KeyedOperator>,
        (exchange, keys): Keys,
    ) -> Result<Hosted<'scope>, OperatorError> {
        let owned = self.restore(&name, exchange.len(), &mut |rows| operator.load(rows))?;
        let host_context = self.host_context(name, input, edge, (keys, owned));
        Ok(host(edge.stream.clone(), by_key(exchange), operator, host_context))
    }

    /// Loads the saved state of an operator; the key groups that this worker speaks for.
    fn restore(
        &self,
        name: &str,
        keys: usize,
        load: &mut dyn FnMut(&RecordBatch) -> Result<(), OperatorError>,
    ) -> Result<GroupSet, OperatorError> {
        let context = self.sinks.context;
        for rows in (context.state)(name) {
            load(&own_rows(&rows, keys, context.worker))?;
        }
        let (index, workers) = context.worker;
        Ok(match (keys == 0, index == owner(0, workers)) {
            (false, _) => GroupSet::owned(index, workers),
            // Without key columns everything is on one worker, whatever group its keys are in.
            (true, true) => GroupSet::ALL,
            (true, false) => GroupSet::default(),
        })
    }

    /// What the host of an operator has to know, given the keys of its rows on an edge.
    fn host_context(
        &self,
        name: String,
        input: SchemaRef,
        edge: &Edge<'scope>,
        (keys, owned): (Vec<usize>, GroupSet),
    ) -> HostContext {
        let context = self.sinks.context;
        let (save, fail) = (Rc::clone(&context.save), Rc::clone(&context.fail));
        HostContext {
            name,
            input,
            order: edge.order.clone(),
            keys,
            text_max: context.text_max,
            owned,
            ticks: context.ticks.clone(),
            save: Box::new(move |name, epoch, take| save(name, epoch, take)),
            fail: Box::new(move |name, error| fail(name, error)),
        }
    }

    fn rejects(&self, stream: Stream<'scope, Epoch, Batch>) {
        if self.sinks.context.tap_edges {
            self.tap(REJECTS, stream.clone());
        }
        self.sinks.table(stream, self.system(REJECTS), Some(Counter::Rejects));
    }

    fn late(&self, stream: Stream<'scope, Epoch, Batch>) {
        let ticks = self.sinks.context.ticks.clone();
        let fail = Rc::clone(&self.sinks.context.fail);
        let mut streams = split(stream, "late", 1, move |batch: Batch, epoch, out| {
            // What comes at the end of the input has no tick of its own.
            let tick = ticks.next(epoch, Some(epoch + 1)).unwrap_or_else(|| ticks.last());
            match late_rows(&batch.rows, tick.time_us) {
                Ok(rows) => out.push((0, Batch { sequence: batch.sequence, rows })),
                Err(error) => fail("late", error.into()),
            }
        });
        let stream = streams.pop().expect("one port");
        if self.sinks.context.tap_edges {
            self.tap(LATE, stream.clone());
        }
        self.sinks.table(stream, self.system(LATE), Some(Counter::Late));
    }

    fn tap(&self, edge: &str, stream: Stream<'scope, Epoch, Batch>) {
        let target = Target::Edge(self.index, edge.to_owned());
        self.sinks.target(stream, Some(target), None);
    }

    fn add(&mut self, name: &str, stream: Stream<'scope, Epoch, Batch>, order: EdgeOrder) {
        self.edges.insert(name.to_owned(), Edge { stream, order });
    }

    fn system(&self, name: &str) -> usize {
        position(self.tables, SYSTEM, name)
    }

    fn schema_of(&self, edge: &str) -> SchemaRef {
        if edge == READINGS {
            return self.pipeline.readings_schema();
        }
        let is_history = |r: &&RegistrySpec| versions_edge(&r.name) == edge;
        if let Some(registry) = self.pipeline.registries.iter().find(is_history) {
            return registry.versions_schema();
        }
        let step = self.pipeline.steps.iter().find(|step| step.makes(edge));
        step.expect("edges come from steps").output.clone()
    }
}

/// State rows whose keys this worker owns.
fn own_rows(rows: &RecordBatch, keys: usize, (index, workers): (usize, usize)) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..keys], rows.num_rows(), &mut hashes);
    let mine: arrow::array::BooleanArray =
        hashes.iter().map(|h| Some(owner(*h, workers) == index)).collect();
    arrow::compute::filter_record_batch(rows, &mine).expect("one flag per row")
}

/// Where the columns of an order by the journal are after a projection, if it leaves them alone.
fn journal_columns(
    input: &SchemaRef,
    order: &[usize],
    list: &[(String, Expr)],
) -> Option<Vec<usize>> {
    let place = |column: &usize| {
        let name = input.field(*column).name();
        let same = |(made, expr): &(String, Expr)| {
            let passed = expr.downcast_ref::<Column>();
            made == name && passed.is_some_and(|c| c.index() == *column)
        };
        list.iter().position(same).filter(|_| name.starts_with("journal_"))
    };
    order.iter().map(place).collect()
}

/// Time first, then everything that has an order. Of an absence a revision may end earlier than the
/// one before it, and who goes by the last one must get it last; one absence of a key ends before
/// the next one begins.
fn sortable_columns(schema: &SchemaRef) -> Vec<usize> {
    content_order(schema, schema.index_of(INHIBITED).is_ok())
}

/// The same of rows that were made of others, one of each, which may be absences in whatever
/// columns are left of them.
fn content_order_of(schema: &SchemaRef, input: &SchemaRef, order: &EdgeOrder) -> EdgeOrder {
    let is_start = |column: &usize| input.field(*column).name() == "window_start";
    let by_revision =
        matches!(order, EdgeOrder::Columns(order) if order.first().is_some_and(is_start));
    EdgeOrder::Columns(content_order(schema, by_revision))
}

/// The same. `by_revision`: of absences. Other revisions that end at the same time are in their
/// order as well: a match that is complete and over at one time comes twice in an epoch.
fn content_order(schema: &SchemaRef, by_revision: bool) -> Vec<usize> {
    use arrow::datatypes::DataType;
    let name = |i: &usize| schema.field(*i).name().as_str();
    let mut columns: Vec<usize> = (0..schema.fields().len())
        .filter(|i| *schema.field(*i).data_type() != DataType::Null)
        .collect();
    columns.sort_by_key(|i| match name(i) {
        "window_start" if by_revision => 0,
        "revision" if by_revision => 1,
        "window_end" if by_revision => 2,
        "window_end" | "time" => 0,
        "window_start" => 1,
        "revision" => 2,
        _ => 3,
    });
    columns
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn revisions_of_an_absence_are_in_the_order_in_which_they_were_told() {
        let ordered = |names: &[&str]| -> Vec<String> {
            let field = |name: &&str| Field::new(*name, DataType::Int64, false);
            let schema = Arc::new(Schema::new(names.iter().map(field).collect::<Vec<_>>()));
            let order = sortable_columns(&schema);
            order[..3].iter().map(|i| schema.field(*i).name().clone()).collect()
        };
        let windows = ["device", "window_start", "window_end", "revision"];
        assert_eq!(ordered(&windows), ["window_end", "window_start", "revision"]);
        let absences = ["device", "window_start", "window_end", INHIBITED, "revision"];
        assert_eq!(ordered(&absences), ["window_start", "revision", "window_end"]);
    }
}
