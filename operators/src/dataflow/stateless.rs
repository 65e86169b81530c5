//! Stateless steps: one batch in, batches out on several edges, nothing kept.

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::operate::FrontierInterest;

use crate::batch::{Batch, Epoch};

/// Output edges of a stateless step, in the order of its ports.
pub type Split<'scope> = Vec<Stream<'scope, Epoch, Batch>>;

/// Applies `logic` to every container on the worker where it lies. `logic` gets the container and
/// its epoch and pushes batches, each with the number of its output port.
pub fn split<'scope, C, L>(
    stream: Stream<'scope, Epoch, C>,
    name: &str,
    ports: usize,
    mut logic: L,
) -> Split<'scope>
where
    C: timely::Container,
    L: FnMut(C, Epoch, &mut Vec<(usize, Batch)>) + 'static,
{
    let mut builder = OperatorBuilder::new(name.to_owned(), stream.scope());
    let mut input = builder.new_input(stream, Pipeline);
    builder.set_notify_for(0, FrontierInterest::Never);
    let mut outputs = Vec::with_capacity(ports);
    let mut streams = Vec::with_capacity(ports);
    for _ in 0..ports {
        let (output, stream) = builder.new_output();
        outputs.push(OutputBuilder::<Epoch, CapacityContainerBuilder<Batch>>::from(output));
        streams.push(stream);
    }
    let mut made = Vec::new();
    builder.build(move |_| {
        move |_frontiers| {
            let mut sessions: Vec<_> = outputs.iter_mut().map(OutputBuilder::activate).collect();
            input.for_each_stamp(|capability, containers| {
                let epoch = *capability.least().expect("messages carry one epoch");
                for container in containers {
                    logic(std::mem::take(container), epoch, &mut made);
                    for (port, mut batch) in made.drain(..) {
                        if batch.rows.num_rows() > 0 {
                            sessions[port].session(&capability).give_container(&mut batch);
                        }
                    }
                }
            });
        }
    });
    streams
}
