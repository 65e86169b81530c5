//! From a plan to timely dataflows: one for each pipeline, and one for what belongs to all.
//!
//! Every worker must build exactly these graphs in exactly this order, or timely connects the wrong
//! channels; so nothing here may depend on the worker, on saved state or on a map's order. That a
//! pipeline has a dataflow of its own is what lets it be replaced while the others go on.
//!
//! What leaves the graph goes through [`GraphContext::deliver`]: rows of tables and, for tests, of
//! every edge. A graph's probe passes an epoch when all of its rows were delivered.

mod pipeline;
mod tables;

use std::rc::Rc;

use arrow::array::RecordBatch;
use tidegate_operators::dataflow::container::MessageRuns;
use tidegate_operators::dataflow::{Ticks, split};
use tidegate_operators::decode::{Taker, unmatched_rejects};
use tidegate_operators::event::{EventRows, event_rows};
use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_operators::system::{clocks_off, dropped_readings, refused_rows};
use tidegate_operators::topic::TopicTemplate;
use tidegate_operators::{Batch, Epoch, OperatorError, Snapshot, TextMax};
use timely::dataflow::Stream;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::probe::Handle;

pub(crate) use self::pipeline::{
    READINGS, outage_operator, refused_operator, registry_operator, skew_operator, versions_edge,
};
pub use self::tables::{
    ALERTS, CLOCK_SKEW, DUPLICATES, FINDINGS, GAPS, LATE, LIMITS, REJECTS, SESSIONS, SYSTEM,
    WINDOWS_KEPT, tables, windows_kept,
};

/// Where rows go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The table of this index in [`tables`].
    Table(usize),
    /// An edge of a pipeline (by index), for tests.
    Edge(usize, String),
}

/// What is counted on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Readings that were decoded.
    Readings,
    /// Rows of `system.rejects`.
    Rejects,
    /// Rows of `system.late`.
    Late,
    /// Readings that were dropped, because they came before.
    Duplicates,
    /// Rows of window edges, revisions and early ones included.
    Windows,
    /// Findings of detectors.
    Findings,
    /// Changes of alerts.
    Alerts,
    /// Rows of `system.rejects` whose keys found no place.
    KeysRefused,
    /// Rows of `system.rejects` whose keys were new while memory was used up.
    MemoryRefused,
    /// Clocks of devices that turned out to be off.
    ClocksOff,
}

/// Takes the state of the operator of this name as of the end of an epoch, which calling the last
/// argument hands over.
pub type Save = Rc<dyn Fn(&str, Epoch, &mut dyn FnMut() -> Snapshot)>;

/// Takes rows for a target.
pub type Deliver = Rc<dyn Fn(&Target, Epoch, RecordBatch)>;

/// Takes the reason why the operator of this name failed.
pub type Fail = Rc<dyn Fn(&str, OperatorError)>;

/// Gives the saved state of the operator of this name.
pub type State = Rc<dyn Fn(&str) -> Vec<RecordBatch>>;

/// What a graph needs of the process that runs it.
#[derive(Clone)]
pub struct GraphContext {
    /// The worker's ticks.
    pub ticks: Ticks,
    /// Takes rows.
    pub deliver: Deliver,
    /// Counts rows.
    pub count: Rc<dyn Fn(Counter, u64)>,
    /// Takes saved state.
    pub save: Save,
    /// The operator of this name failed; the process must end.
    pub fail: Fail,
    /// Saved state rows of the operator of this name, for the keys of this worker: rows, and the
    /// number of key columns is what the operator says.
    pub state: State,
    /// Index of the worker and number of workers.
    pub worker: (usize, usize),
    /// Deliver every edge as well ([`Target::Edge`]).
    pub tap_edges: bool,
    /// How much text there may be at an operator at a time.
    pub text_max: TextMax,
}

/// Builds what belongs to all pipelines onto `messages` and returns its probe: messages that none
/// of them reads, and events that were journaled. `tables` are those that targets count.
pub fn build_common<'scope>(
    messages: Stream<'scope, Epoch, MessageRuns>,
    pipelines: &[PipelineSpec],
    tables: &[TableSpec],
    context: &GraphContext,
) -> Handle<Epoch> {
    let probe = Handle::new();
    let system = |name: &str| tables::position(tables, SYSTEM, name);
    let taken: Vec<(u16, Vec<TopicTemplate>)> = pipelines.iter().map(taken).collect();
    let unmatched = split(messages.clone(), "unmatched", 1, move |runs: MessageRuns, _, out| {
        let takers: Vec<Taker<'_>> =
            taken.iter().map(|(source, topics)| Taker { source: *source, topics }).collect();
        for run in &runs.0 {
            let rows = unmatched_rejects(&takers, run);
            out.push((0, Batch { sequence: run.first_offset, rows }));
        }
    });
    let sinks = Sinks { context, probe: &probe };
    for edge in unmatched {
        if context.tap_edges {
            // A test runs one pipeline: whose rejects these are is no question.
            let target = Target::Edge(0, REJECTS.to_owned());
            sinks.target(edge.clone(), Some(target), None);
        }
        sinks.table(edge, system(REJECTS), Some(Counter::Rejects));
    }
    let events = split(messages, "events", 5, |runs: MessageRuns, _, out| {
        for run in runs.0.iter().filter(|run| run.index.iter().any(|m| m.event)) {
            let EventRows { sessions, gaps, alerts, limits, rejects } = event_rows(run);
            let rows = [sessions, gaps, alerts, limits, rejects].into_iter().enumerate();
            let sequence = run.first_offset;
            out.extend(rows.map(|(port, rows)| (port, Batch { sequence, rows })));
        }
    });
    let ends = [
        (SESSIONS, None),
        (GAPS, None),
        (ALERTS, Some(Counter::Alerts)),
        (LIMITS, None),
        (REJECTS, Some(Counter::Rejects)),
    ];
    for (edge, (table, counter)) in events.into_iter().zip(ends) {
        sinks.table(edge, system(table), counter);
    }
    probe
}

/// The topics that a pipeline takes, be it as readings or as entries of a registry.
fn taken(pipeline: &PipelineSpec) -> (u16, Vec<TopicTemplate>) {
    let entries = pipeline.registries.iter().filter_map(|r| r.entries.clone());
    let topics = pipeline.decode.topics.iter().cloned().chain(entries).collect();
    (pipeline.decode.source, topics)
}

/// Builds the graph of one pipeline onto the messages of its source and returns its probe. `index`
/// is its place in the plan, `tables` are those that targets count.
///
/// # Errors
/// Saved state that does not fit its operator.
pub fn build_pipeline<'scope>(
    messages: Stream<'scope, Epoch, MessageRuns>,
    (index, pipeline): (usize, &PipelineSpec),
    tables: &[TableSpec],
    context: &GraphContext,
) -> Result<Handle<Epoch>, OperatorError> {
    let probe = Handle::new();
    let sinks = Sinks { context, probe: &probe };
    pipeline::build(index, pipeline, messages, tables, &sinks)?;
    Ok(probe)
}

/// Ends of edges.
pub(crate) struct Sinks<'a> {
    pub(crate) context: &'a GraphContext,
    probe: &'a Handle<Epoch>,
}

impl Sinks<'_> {
    /// Delivers the rows of an edge to a table and counts them.
    pub(crate) fn table(
        &self,
        edge: Stream<'_, Epoch, Batch>,
        table: usize,
        counter: Option<Counter>,
    ) {
        self.target(edge, Some(Target::Table(table)), counter);
    }

    /// Delivers to a target, if there is one, and counts. Also keeps the probe behind the edge.
    pub(crate) fn target(
        &self,
        edge: Stream<'_, Epoch, Batch>,
        target: Option<Target>,
        counter: Option<Counter>,
    ) {
        let deliver = Rc::clone(&self.context.deliver);
        let count = Rc::clone(&self.context.count);
        let mut ends = split(edge, "sink", 1, move |batch: Batch, epoch, _| {
            if let Some(counter) = counter {
                let rows = match counter {
                    Counter::Duplicates => dropped_readings(&batch.rows),
                    Counter::ClocksOff => clocks_off(&batch.rows),
                    _ => batch.rows.num_rows() as u64,
                };
                count(counter, rows);
                if counter == Counter::Rejects && rows > 0 {
                    let (by_keys, by_memory) = refused_rows(&batch.rows);
                    count(Counter::KeysRefused, by_keys);
                    count(Counter::MemoryRefused, by_memory);
                }
            }
            if let Some(target) = &target {
                deliver(target, epoch, batch.rows);
            }
        });
        let end = ends.pop().expect("one port was asked for");
        end.probe_with(self.probe);
    }
}
