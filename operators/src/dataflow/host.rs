//! The one host of all stateful operators, with one input or two, or two and rows aside.
//!
//! It keeps the rows of each epoch until the frontier has passed it, puts them into the defined
//! order, and calls the operator once per epoch with the epoch's tick; where an epoch has too much
//! text for that, once for each of several turns (`turns`). The order is defined here and nowhere
//! else ([`EdgeOrder`]): it depends on the journal and on the rows, never on which worker was
//! faster, so any number of workers gives the same result.
//!
//! The host holds one capability per output at the first epoch that it has not called the operator
//! for; that is what lets an operator emit rows in an epoch in which it received none.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use timely::communication::Pull;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{InputHandleCore, OutputBuilder};

use super::ticks::Ticks;
use super::turns::{Came, Turns};
use crate::batch::{Batch, Epoch, Tick};
use crate::expression::Failed;
use crate::grouped::REASON_BYTES_MAX;
use crate::operator::{AsideOperator, Emit, JoinOperator, KeyedOperator, OperatorError};
use crate::snapshot::{GroupSet, Snapshot};
use crate::system::step_rejects;
use crate::text::{TextMax, has_text, parted};

/// How the rows of an epoch are put into order at the input of a stateful operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeOrder {
    /// The edge carries rows straight from messages: the order of the journal.
    Journal,
    /// The edge carries rows that keyed operators made on several workers: by these columns.
    Columns(Vec<usize>),
}

/// Takes the state of the operator of this name as of the end of an epoch. Calling the last
/// argument takes it: whoever wants to know how long that is can look at a clock before and after.
pub type Save = Box<dyn FnMut(&str, Epoch, &mut dyn FnMut() -> Snapshot)>;

/// Takes the reason why the operator of this name failed.
pub type Fail = Box<dyn FnMut(&str, OperatorError)>;

/// What the host needs besides the operator.
pub struct HostContext {
    /// Name for logs and for saved state; unique in the plan.
    pub name: String,
    /// Schema of the input edge.
    pub input: SchemaRef,
    /// Order of the input edge.
    pub order: EdgeOrder,
    /// The columns of the keys of its rows: all rows of a key come together.
    pub keys: Vec<usize>,
    /// How much text there may be at a time.
    pub text_max: TextMax,
    /// The key groups whose keys come to this worker.
    pub owned: GroupSet,
    /// The worker's ticks.
    pub ticks: Ticks,
    /// Called with the saved state when a checkpoint is cut.
    pub save: Save,
    /// Called when the operator fails: the pipeline cannot go on.
    pub fail: Fail,
}

/// The output edges of a hosted operator.
pub struct Hosted<'scope> {
    /// Rows of the operator's own edge.
    pub rows: Stream<'scope, Epoch, Batch>,
    /// Rows for `system.late`, or `system.duplicates`.
    pub late: Stream<'scope, Epoch, Batch>,
    /// Rows for `system.rejects`.
    pub rejects: Stream<'scope, Epoch, Batch>,
}

/// The second input of an operator that has two, or rows aside.
pub struct Second<'scope> {
    /// Its rows.
    pub stream: Stream<'scope, Epoch, Batch>,
    /// Its schema.
    pub input: SchemaRef,
    /// The order of its rows.
    pub order: EdgeOrder,
    /// The columns of its keys; none: every worker has all of it.
    pub keys: Option<Vec<usize>>,
}

/// What is known of an input.
struct EdgeIn {
    schema: SchemaRef,
    order: EdgeOrder,
    keys: Option<Vec<usize>>,
    /// Rows that are only told, beside the others.
    aside: bool,
}

impl EdgeIn {
    fn first(context: &HostContext) -> Self {
        let HostContext { input, order, keys, .. } = context;
        let (schema, order, keys) = (input.clone(), order.clone(), Some(keys.clone()));
        Self { schema, order, keys, aside: false }
    }
}

/// Runs `operator` on `stream`, exchanged by `pact`.
pub fn host<'scope, P>(
    stream: Stream<'scope, Epoch, Batch>,
    pact: P,
    operator: Box<dyn KeyedOperator>,
    context: HostContext,
) -> Hosted<'scope>
where
    P: ParallelizationContract<Epoch, Batch>,
{
    let mut builder = OperatorBuilder::new(context.name.clone(), stream.scope());
    let input = taking(builder.new_input(stream, pact));
    let edges = vec![EdgeIn::first(&context)];
    run(builder, vec![input], edges, Operator::One(operator), context)
}

/// Runs `operator` on two streams, each exchanged by its own pact so that equal keys meet.
pub fn host_join<'scope, P>(
    left: (Stream<'scope, Epoch, Batch>, P),
    right: (Second<'scope>, P),
    operator: Box<dyn JoinOperator>,
    context: HostContext,
) -> Hosted<'scope>
where
    P: ParallelizationContract<Epoch, Batch>,
{
    host_two(left, right, None, Operator::Two(operator), context)
}

/// The same with rows aside, if there are any, in whatever schema its operator takes.
pub fn host_aside<'scope, P>(
    left: (Stream<'scope, Epoch, Batch>, P),
    right: (Second<'scope>, P),
    aside: Option<(Second<'scope>, P)>,
    operator: Box<dyn AsideOperator>,
    context: HostContext,
) -> Hosted<'scope>
where
    P: ParallelizationContract<Epoch, Batch>,
{
    host_two(left, right, aside, Operator::Aside(operator), context)
}

fn host_two<'scope, P>(
    (left, left_pact): (Stream<'scope, Epoch, Batch>, P),
    (right, right_pact): (Second<'scope>, P),
    aside: Option<(Second<'scope>, P)>,
    operator: Operator,
    context: HostContext,
) -> Hosted<'scope>
where
    P: ParallelizationContract<Epoch, Batch>,
{
    let mut builder = OperatorBuilder::new(context.name.clone(), left.scope());
    let mut inputs = vec![
        taking(builder.new_input(left, left_pact)),
        taking(builder.new_input(right.stream, right_pact)),
    ];
    let Second { input: schema, order, keys, .. } = right;
    let mut edges = vec![EdgeIn::first(&context), EdgeIn { schema, order, keys, aside: false }];
    if let Some((aside, pact)) = aside {
        inputs.push(taking(builder.new_input(aside.stream, pact)));
        let Second { input: schema, order, keys, .. } = aside;
        edges.push(EdgeIn { schema, order, keys, aside: true });
    }
    run(builder, inputs, edges, operator, context)
}

/// Rows of one input by their epochs.
type Pending = BTreeMap<Epoch, Vec<Batch>>;

/// Takes what has come on one input.
type Taking = Box<dyn FnMut(&mut Pending)>;

fn taking<P>(mut input: InputHandleCore<Epoch, Batch, P>) -> Taking
where
    P: Pull<Message<Epoch, Batch>> + 'static,
{
    Box::new(move |pending| {
        input.for_each_stamp(|capability, batches| {
            let epoch = *capability.least().expect("messages carry one epoch");
            pending.entry(epoch).or_default().extend(batches.map(std::mem::take));
        });
    })
}

fn run<'scope>(
    mut builder: OperatorBuilder<'scope, Epoch>,
    mut inputs: Vec<Taking>,
    edges: Vec<EdgeIn>,
    operator: Operator,
    context: HostContext,
) -> Hosted<'scope> {
    let (rows_out, rows) = builder.new_output();
    let (late_out, late) = builder.new_output();
    let (rejects_out, rejects) = builder.new_output();
    let mut outputs = [rows_out, late_out, rejects_out]
        .map(OutputBuilder::<Epoch, CapacityContainerBuilder<Batch>>::from);
    builder.build(move |capabilities| {
        let mut capabilities = Some(capabilities);
        let pending = inputs.iter().map(|_| Pending::new()).collect();
        let mut runner = Runner { operator, context, edges, pending, failed: false };
        move |frontiers| {
            for (take, pending) in inputs.iter_mut().zip(&mut runner.pending) {
                take(pending);
            }
            let Some(held) = capabilities.as_mut() else { return };
            // An input that has ended is complete at every epoch.
            let to = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
            let mut sessions = outputs.each_mut().map(|o| o.activate());
            let most = runner.context.text_max.turn;
            let mut give = |held: &[Capability<Epoch>], epoch: Epoch, emit: &mut Emit| {
                let edges = [&mut emit.rows, &mut emit.late, &mut emit.rejects];
                for ((edge, capability), session) in edges.into_iter().zip(held).zip(&mut sessions)
                {
                    let capability = capability.delayed(&epoch);
                    let batches = edge.drain(..).filter(|r| r.num_rows() > 0);
                    for rows in batches.flat_map(|rows| parted(rows, most)) {
                        let mut batch = Batch { sequence: 0, rows };
                        session.session(&capability).give_container(&mut batch);
                    }
                }
            };
            let mut from = *held[0].time();
            while let Some(tick) = runner.context.ticks.next(from, to) {
                runner.epoch(tick, &mut |emit| give(held, tick.epoch, emit));
                from = tick.epoch + 1;
                for capability in held.iter_mut() {
                    capability.downgrade(&from);
                }
            }
            match to {
                Some(to) => {
                    let to = to.max(from);
                    held.iter_mut().for_each(|c| c.downgrade(&to));
                }
                None => {
                    if runner.context.ticks.has_ended() {
                        let last = runner.context.ticks.last();
                        runner.end(last, &mut |emit| give(held, last.epoch, emit));
                    }
                    capabilities = None;
                }
            }
        }
    });
    Hosted { rows, late, rejects }
}

/// An operator by its number of inputs.
enum Operator {
    One(Box<dyn KeyedOperator>),
    Two(Box<dyn JoinOperator>),
    Aside(Box<dyn AsideOperator>),
}

impl Operator {
    fn epoch(
        &mut self,
        rows: &[RecordBatch],
        aside: &[RecordBatch],
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        match self {
            Self::One(operator) => operator.epoch(&rows[0], tick, emit),
            Self::Two(operator) => operator.epoch(&rows[0], &rows[1], tick, emit),
            Self::Aside(operator) => {
                aside.iter().for_each(|rows| operator.aside(rows));
                operator.epoch(&rows[0], &rows[1], tick, emit)
            }
        }
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        match self {
            Self::One(operator) => operator.end(emit),
            Self::Two(operator) => operator.end(emit),
            Self::Aside(operator) => operator.end(emit),
        }
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        match self {
            Self::One(operator) => operator.cut(whole),
            Self::Two(operator) => operator.cut(whole),
            Self::Aside(operator) => operator.cut(whole),
        }
    }
}

struct Runner {
    operator: Operator,
    context: HostContext,
    /// The inputs; those aside last.
    edges: Vec<EdgeIn>,
    /// The rows of each input.
    pending: Vec<Pending>,
    failed: bool,
}

/// Takes what was emitted.
type Give<'a> = &'a mut dyn FnMut(&mut Emit);

impl Runner {
    /// The rows of an epoch of each input.
    fn take(&mut self, epoch: Epoch) -> Turns {
        let came = self.edges.iter().zip(&mut self.pending).map(|(edge, pending)| {
            let batches = pending.remove(&epoch).unwrap_or_default();
            Came { keys: edge.keys.as_deref(), aside: edge.aside, batches }
        });
        Turns::new(came.collect(), self.context.text_max)
    }

    /// Gives the operator the rows of an epoch, each input in its order.
    fn turns(
        &mut self,
        turns: Turns,
        tick: Tick,
        emit: &mut Emit,
        give: Give<'_>,
    ) -> Result<(), OperatorError> {
        for (number, rows) in turns.too_much()? {
            self.refuse(number, &rows, emit)?;
        }
        for turn in turns {
            let (inputs, more) = turn?;
            let (mut rows, mut aside) = (Vec::with_capacity(inputs.len()), Vec::new());
            for (edge, batches) in self.edges.iter().zip(inputs) {
                match (edge.aside, &edge.keys) {
                    // Of any length, so it is not put together.
                    (true, Some(_)) => aside.extend(batches.into_iter().map(|b| b.rows)),
                    (true, None) => aside.push(in_order(&edge.schema, &edge.order, batches)?),
                    (false, _) => rows.push(in_order(&edge.schema, &edge.order, batches)?),
                }
            }
            emit.more = more;
            self.operator.epoch(&rows, &aside, tick, emit)?;
            if more {
                give(emit);
            }
        }
        Ok(())
    }

    /// Rejects of the rows of keys with too much text. They say everything but that: texts that are
    /// not of the key are left out.
    fn refuse(
        &self,
        input: usize,
        rows: &RecordBatch,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let keys = self.edges[input].keys.as_deref().unwrap_or_default();
        let small = |c: &usize| keys.contains(c) || !has_text(rows.column(*c).data_type());
        let rows = &rows.project(&(0..rows.num_columns()).filter(small).collect::<Vec<_>>())?;
        let (name, most) = (&self.context.name, self.context.text_max.key);
        let (pipeline, step) = name.split_once('/').unwrap_or((name, name));
        let detail =
            format!("the rows of its key in one epoch have more than {most} bytes of text");
        let of_row = |row| Failed { row, reason: REASON_BYTES_MAX, detail: detail.clone() };
        let failed: Vec<Failed> = (0..rows.num_rows()).map(of_row).collect();
        emit.rejects.extend(step_rejects(pipeline, step, rows, &failed)?);
        Ok(())
    }

    fn epoch(&mut self, tick: Tick, give: Give<'_>) {
        let HostContext { name, ticks, .. } = &self.context;
        let closed = ticks.is_closed(tick.epoch, name);
        let mut emit = Emit { closed, ..Emit::default() };
        let turns = self.take(tick.epoch);
        if self.failed {
            return;
        }
        let result = self.turns(turns, tick, &mut emit, give).and_then(|()| {
            match self.context.ticks.is_flush(tick.epoch) {
                true => self.operator.end(&mut emit),
                false => Ok(()),
            }
        });
        if result.is_ok() {
            self.checkpoint(tick.epoch);
        }
        self.note(result);
        give(&mut emit);
    }

    /// The input has ended for good. In the epoch of the `last` tick, the operators upstream
    /// emitted what was still open, so those rows come first.
    fn end(&mut self, last: Tick, give: Give<'_>) {
        let mut emit = Emit::default();
        if self.failed {
            return;
        }
        let turns = self.take(last.epoch);
        let result = match turns.has_rows() {
            true => self.turns(turns, last, &mut emit, give),
            false => Ok(()),
        };
        let result = result.and_then(|()| self.operator.end(&mut emit));
        self.note(result);
        give(&mut emit);
    }

    fn checkpoint(&mut self, epoch: Epoch) {
        if let Some(whole) = self.context.ticks.checkpoint(epoch) {
            let (operator, owned) = (&mut self.operator, &self.context.owned);
            let mut cut = || operator.cut(whole).within(owned);
            (self.context.save)(&self.context.name, epoch, &mut cut);
        }
    }

    fn note(&mut self, result: Result<(), OperatorError>) {
        if let Err(error) = result {
            self.failed = true;
            (self.context.fail)(&self.context.name, error);
        }
    }
}

/// The rows of an epoch in the defined order.
fn in_order(
    schema: &SchemaRef,
    order: &EdgeOrder,
    mut batches: Vec<Batch>,
) -> Result<RecordBatch, OperatorError> {
    // Rows of one sequence come from one message run and were decoded by one worker.
    batches.sort_by_key(|b| b.sequence);
    let rows = match batches.as_slice() {
        [one] => one.rows.clone(),
        _ => concat_batches(schema, batches.iter().map(|b| &b.rows))?,
    };
    match order {
        EdgeOrder::Journal => Ok(rows),
        EdgeOrder::Columns(columns) => {
            if rows.num_rows() < 2 {
                return Ok(rows);
            }
            let columns = columns.iter().map(|c| sortable(rows.column(*c)));
            let columns: Vec<SortColumn> = columns.collect::<Result<_, ArrowError>>()?;
            let indices = lexsort_to_indices(&columns, None)?;
            Ok(take_record_batch(&rows, &indices)?)
        }
    }
}

/// A column to sort by. Lists and structs, which Arrow does not sort, are bytes that it does.
fn sortable(column: &ArrayRef) -> Result<SortColumn, ArrowError> {
    let mut values = ArrayRef::clone(column);
    if column.data_type().is_nested() {
        let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())])?;
        values = Arc::new(converter.convert_columns(&[values])?.try_into_binary()?);
    }
    Ok(SortColumn { values, options: None })
}

#[cfg(test)]
mod tests;
