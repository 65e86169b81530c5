//! Runs the `[[test]]` tables of a plan: the real graph in this process, time taken from the test.
//!
//! No port is opened, nothing is written, no clock is read: a test is a pure function of its file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use arrow::array::RecordBatch;
use tidegate_operators::event::{Gap, SessionEvent};
use tidegate_operators::outage::OutageSpec;
use tidegate_operators::registry::put;
use tidegate_operators::spec::{
    DetectSpec, LatePolicy, LatestSpec, PipelineSpec, SequenceSpec, StepKind, WindowSpec,
};
use tidegate_operators::{Epoch, MessageMeta, MessagesBuilder, TextMax, Tick};
use tidegate_pipelines::graph::Target;
use tidegate_pipelines::plan::{TestChange, TestEvent, TestInput};

use super::EVENTS_MAX;
use super::feed::{FeedQueue, InFlight};
use super::workers::{Event, WorkerPlan, start};
use crate::checkpoint::part;
use crate::stats::Stats;

/// The rows of every edge of a pipeline, by the edge's name, in order.
pub type Edges = BTreeMap<String, Vec<RecordBatch>>;

/// Runs messages through one pipeline on `workers` workers, one epoch per distinct receive time and
/// some without messages where these are far apart, and closes all windows at the end.
///
/// # Errors
/// An operator that failed, which is a bug and not a failed test.
pub fn run(pipeline: &PipelineSpec, inputs: &[TestInput], workers: usize) -> anyhow::Result<Edges> {
    run_in_parts(pipeline, inputs, &[(usize::MAX, workers)])
}

/// The same, but started again between the parts: each takes a number of epochs on a number of
/// workers, and hands its state to the next as checkpoints do. The last part takes all that is
/// left.
///
/// # Errors
/// See [`run`].
pub fn run_in_parts(
    pipeline: &PipelineSpec,
    inputs: &[TestInput],
    parts: &[(usize, usize)],
) -> anyhow::Result<Edges> {
    run_within(pipeline, inputs, parts, TextMax::default())
}

/// The same with other limits of text.
///
/// # Errors
/// See [`run`].
pub fn run_within(
    pipeline: &PipelineSpec,
    inputs: &[TestInput],
    parts: &[(usize, usize)],
    text_max: TextMax,
) -> anyhow::Result<Edges> {
    let source = pipeline.decode.source;
    let plan = [std::slice::from_ref(pipeline)];
    let rows = run_plans(&plan, source, inputs, (parts, text_max))?;
    Ok(rows.into_iter().map(|((_, edge), rows)| (edge, rows)).collect())
}

/// Rows by pipeline (its index) and edge.
type Rows = BTreeMap<(usize, String), Vec<RecordBatch>>;

/// Saved state by operator.
type State = Vec<(String, Vec<u8>)>;

/// Runs pipelines; those of another plan in each part, as far as there are any.
fn run_plans(
    plans: &[&[PipelineSpec]],
    source: u16,
    inputs: &[TestInput],
    (parts, text_max): (&[(usize, usize)], TextMax),
) -> anyhow::Result<Rows> {
    let mut inputs: Vec<&TestInput> = inputs.iter().collect();
    inputs.sort_by_key(|i| i.at_us);
    let first = plans.first().copied().unwrap_or_default();
    let epochs = sealed(first, &inputs);
    let (mut rows, mut state, mut done, mut offset) = (Rows::new(), State::new(), 0, 0);
    for (number, (count, workers)) in parts.iter().enumerate() {
        let is_last = number + 1 == parts.len();
        let left = epochs.len() - done;
        let count = if is_last { left } else { left.min(*count) };
        let pipelines = plans.get(number).or(plans.last()).copied().unwrap_or_default();
        let timeless = pipelines.iter().map(timeless).collect();
        let mut before = Vec::new();
        for (name, bytes) in &state {
            let part = part::decode(bytes).map_err(anyhow::Error::msg)?;
            before.extend(part.pieces.into_iter().map(|piece| (name.clone(), piece.rows)));
        }
        let plan = WorkerPlan {
            state: before,
            tap_edges: true,
            text_max,
            ..WorkerPlan::of(timeless, *workers, done as Epoch + 1)
        };
        let part = &epochs[done..done + count];
        done += count;
        let saved = run_part(plan, source, part, &mut offset, is_last, &mut rows)?;
        // Without an epoch there was no tick to save anything at.
        if count > 0 {
            state = saved;
        }
    }
    Ok(rows)
}

/// What an epoch of a test has: when it is sealed, and its messages.
type Sealed<'a> = (i64, &'a [&'a TestInput]);

/// The shortest pause after which there is a tick, µs: live ones are about as far apart.
const PAUSE_LEAST_US: i64 = 1_000_000;

/// The epochs of a test. Live, time goes on between messages: so do the ticks here, once for each
/// moment at which a step does something about silence, and then in distances that double, which
/// bounds their number; and at the time after a message at which early results are due.
fn sealed<'a>(pipelines: &[PipelineSpec], inputs: &'a [&'a TestInput]) -> Vec<Sealed<'a>> {
    let pauses: BTreeSet<(i64, i64)> =
        pipelines.iter().flat_map(|p| &p.steps).filter_map(|step| pauses_us(&step.kind)).collect();
    let early: BTreeSet<i64> =
        pipelines.iter().flat_map(|p| &p.steps).filter_map(|step| early_us(&step.kind)).collect();
    let mut epochs: Vec<Sealed<'a>> = Vec::new();
    for together in inputs.chunk_by(|a, b| a.at_us == b.at_us) {
        let at_us = together[0].at_us;
        if let Some((before_us, _)) = epochs.last().copied() {
            let mut ticks = BTreeSet::new();
            for (close_us, drop_us) in &pauses {
                let longer = std::iter::successors(Some(*close_us), |pause| pause.checked_mul(2));
                let all = longer.chain([*drop_us]).map(|pause| before_us.saturating_add(pause));
                ticks.extend(all.filter(|tick_us| *tick_us < at_us));
            }
            let next = |every_us: &i64| (before_us.div_euclid(*every_us) + 1) * every_us;
            ticks.extend(early.iter().map(next).filter(|tick_us| *tick_us < at_us));
            epochs.extend(ticks.into_iter().map(|tick_us| (tick_us, &[][..])));
        }
        epochs.push((at_us, together));
    }
    epochs
}

/// How long a key of a step is silent when that closes what it has open, and drops it.
fn pauses_us(step: &StepKind) -> Option<(i64, i64)> {
    let (idle_us, keep_us) = match step {
        StepKind::Window(WindowSpec { idle_close_us, late, .. }) => match late {
            LatePolicy::Revise { keep_us } => (*idle_close_us, *keep_us),
            LatePolicy::Table => (*idle_close_us, 0),
        },
        StepKind::Detect(DetectSpec { idle_close_us, .. })
        | StepKind::Latest(LatestSpec { idle_close_us, .. })
        | StepKind::Sequence(SequenceSpec { idle_close_us, .. }) => (*idle_close_us, 0),
        _ => return None,
    };
    let close_us = idle_us.max(PAUSE_LEAST_US);
    Some((close_us, close_us.saturating_add(keep_us)))
}

/// How often a step has early results.
fn early_us(step: &StepKind) -> Option<i64> {
    match step {
        StepKind::Window(window) => window.early_us.filter(|us| *us > 0),
        _ => None,
    }
}

fn run_part(
    plan: WorkerPlan,
    source: u16,
    epochs: &[Sealed],
    offset: &mut u64,
    is_last: bool,
    rows: &mut Rows,
) -> anyhow::Result<State> {
    let first = plan.first_epoch;
    let stats = Arc::new(Stats::default());
    let in_flight = Arc::new(InFlight::default());
    let (events, received) = sync_channel(EVENTS_MAX);
    let (ports, _) = start(plan, Arc::clone(&stats), events)?;
    let collector_in_flight = Arc::clone(&in_flight);
    let last = first + epochs.len() as Epoch - 1;
    let collector = std::thread::Builder::new().name("collect".into()).spawn(move || {
        let result = collect(&received, &collector_in_flight, last);
        collector_in_flight.close();
        result
    })?;
    let save = Arc::new(AtomicBool::new(false));
    let mut queue = FeedQueue::new(ports, in_flight, stats, None, Arc::clone(&save));
    for (epoch, (time_us, inputs)) in (first..).zip(epochs) {
        save.store(epoch == last && !is_last, Ordering::Release);
        let mut builder = MessagesBuilder::default();
        for input in *inputs {
            let meta = MessageMeta { received_us: input.at_us, qos: 1, ..MessageMeta::default() };
            if let Some(TestChange { change, since_us }) = input.change {
                put(&mut builder, &input.topic, change, &input.payload, since_us, input.at_us);
                continue;
            }
            if let Some(event) = input.event {
                happen(&mut builder, event, input.at_us);
                continue;
            }
            let (topic, properties) = (input.topic.as_bytes(), &input.properties);
            builder.push_with(topic, &input.payload, b"test", properties, meta);
        }
        let messages = builder.finish(source, *offset);
        *offset += messages.len() as u64;
        queue.messages(Arc::new(messages));
        queue.tick(Tick { epoch, time_us: *time_us });
    }
    queue.end(is_last);
    let collected = collector.join().map_err(|_| anyhow::anyhow!("collecting the rows failed"))?;
    let (by_epoch, state) = collected?;
    for ((pipeline, edge, _), batches) in by_epoch {
        rows.entry((pipeline, edge)).or_default().extend(batches);
    }
    Ok(state)
}

/// What happens without a message, as a source would tell it.
fn happen(out: &mut MessagesBuilder, event: TestEvent, at_us: i64) {
    let event = match event {
        TestEvent::Tick => return,
        TestEvent::SourceAway => "lost",
        TestEvent::SourceBack => "connected",
        TestEvent::SessionLost { since_us } => {
            Gap { from_us: since_us, to_us: at_us, ..Gap::default() }.put(out, at_us);
            "subscribed"
        }
    };
    let event = SessionEvent { event: event.to_owned(), ..SessionEvent::default() };
    event.put(out, at_us, 0);
}

/// A test says what happens: that nothing happens for long is no outage.
fn timeless(pipeline: &PipelineSpec) -> PipelineSpec {
    let outages = OutageSpec { stopped_after_us: None, ..pipeline.outages };
    PipelineSpec { outages, ..pipeline.clone() }
}

type RowsByEpoch = BTreeMap<(usize, String, Epoch), Vec<RecordBatch>>;

fn collect(
    received: &Receiver<Event>,
    in_flight: &InFlight,
    last: Epoch,
) -> anyhow::Result<(RowsByEpoch, State)> {
    let mut rows = RowsByEpoch::new();
    let mut state = State::new();
    loop {
        match received.recv() {
            Ok(Event::Rows { target: Target::Edge(pipeline, edge), epoch, rows: batch }) => {
                rows.entry((pipeline, edge, epoch)).or_default().push(batch);
            }
            Ok(Event::State { name, epoch, state: saved, .. }) if epoch == last => {
                // As a file would have it, so that what cannot be written shows here.
                let bytes = part::encode(&name, &saved.rows()?).map_err(anyhow::Error::msg)?;
                state.push((name, bytes));
            }
            Ok(Event::Done(tick)) => in_flight.done(tick.epoch),
            Ok(Event::Failed(why)) => anyhow::bail!("{why}"),
            Ok(Event::Ended) | Err(_) => return Ok((rows, state)),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
