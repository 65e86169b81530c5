//! Runs the `[[test]]` tables of a plan: the real graph in this process, time taken from the test.
//!
//! No port is opened, nothing is written, no clock is read: a test is a pure function of its file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;

use arrow::array::RecordBatch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{MessageMeta, MessagesBuilder, Tick};
use tidegate_pipelines::graph::Target;
use tidegate_pipelines::plan::TestInput;

use super::EVENTS_MAX;
use super::feed::{FeedQueue, InFlight};
use super::workers::{Event, WorkerPlan, start};
use crate::stats::Stats;

/// The rows of every edge of a pipeline, by the edge's name, in order.
pub type Edges = BTreeMap<String, Vec<RecordBatch>>;

/// Runs messages through one pipeline on `workers` workers, one epoch per distinct receive time,
/// and closes all windows at the end.
///
/// # Errors
/// An operator that failed, which is a bug and not a failed test.
pub fn run(pipeline: &PipelineSpec, inputs: &[TestInput], workers: usize) -> anyhow::Result<Edges> {
    let stats = Arc::new(Stats::default());
    let in_flight = Arc::new(InFlight::default());
    let (events, received) = sync_channel(EVENTS_MAX);
    let plan = WorkerPlan {
        pipelines: vec![pipeline.clone()],
        workers,
        first_epoch: 1,
        state: Vec::new(),
        tap_edges: true,
    };
    let (ports, _) = start(plan, Arc::clone(&stats), events)?;
    let collector_in_flight = Arc::clone(&in_flight);
    let collector = std::thread::Builder::new().name("collect".into()).spawn(move || {
        let result = collect(&received, &collector_in_flight);
        collector_in_flight.close();
        result
    })?;
    let never = Arc::new(AtomicBool::new(false));
    let mut queue = FeedQueue::new(ports, in_flight, stats, None, never);
    feed(pipeline.decode.source, inputs, &mut queue);
    queue.end(true);
    collector.join().map_err(|_| anyhow::anyhow!("collecting the rows failed"))?
}

fn feed(source: u16, inputs: &[TestInput], queue: &mut FeedQueue) {
    let mut inputs: Vec<&TestInput> = inputs.iter().collect();
    inputs.sort_by_key(|i| i.at_us);
    let mut offset = 0;
    let epochs = inputs.chunk_by(|a, b| a.at_us == b.at_us);
    for (epoch, inputs) in (1u64..).zip(epochs) {
        let mut builder = MessagesBuilder::default();
        for input in inputs {
            let meta = MessageMeta { received_us: input.at_us, qos: 1, ..MessageMeta::default() };
            builder.push(input.topic.as_bytes(), &input.payload, b"test", meta);
        }
        let messages = builder.finish(source, offset);
        offset += messages.len() as u64;
        queue.messages(Arc::new(messages));
        queue.tick(Tick { epoch, time_us: inputs[0].at_us });
    }
}

fn collect(
    received: &std::sync::mpsc::Receiver<Event>,
    in_flight: &InFlight,
) -> anyhow::Result<Edges> {
    let mut rows: BTreeMap<(String, u64), Vec<RecordBatch>> = BTreeMap::new();
    loop {
        match received.recv() {
            Ok(Event::Rows { target: Target::Edge(_, edge), epoch, rows: batch }) => {
                rows.entry((edge, epoch)).or_default().push(batch);
            }
            Ok(Event::Done(tick)) => in_flight.done(tick.epoch),
            Ok(Event::Failed(why)) => anyhow::bail!("{why}"),
            Ok(Event::Ended) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let mut edges = Edges::new();
    for ((edge, _), batches) in rows {
        edges.entry(edge).or_default().extend(batches);
    }
    Ok(edges)
}
