//! Registries in the graph of a pipeline: from the journal's messages to changes, from changes to
//! the edge of versions, and to the steps that join them.

use std::rc::Rc;

use tidegate_operators::dataflow::container::MessageRuns;
use tidegate_operators::dataflow::{EdgeOrder, Second, by_key, host_join, split};
use tidegate_operators::enrich::Enrich;
use tidegate_operators::registry::{Refused, RegistryDecoder, Versions, heard_schema};
use tidegate_operators::spec::{EnrichSpec, RegistrySpec, StepSpec};
use tidegate_operators::{Batch, Epoch, OperatorError};
use timely::dataflow::Stream;

use super::{Builder, Edge, by, content_order_of, sortable_columns};

/// The edge, and table, with the history of a registry.
pub(crate) fn versions_edge(registry: &str) -> String {
    format!("{registry}_versions")
}

/// Under what name the history of a registry is saved.
pub(crate) fn registry_operator(pipeline: &str, registry: &str) -> String {
    format!("{pipeline}/registry/{registry}")
}

/// Under what name it is saved which entries of a registry were refused.
pub(crate) fn refused_operator(pipeline: &str, registry: &str) -> String {
    format!("{}/refused", registry_operator(pipeline, registry))
}

impl<'scope> Builder<'_, 'scope> {
    /// The changes of all registries, and their histories as edges.
    pub(super) fn registries(
        &mut self,
        messages: &Stream<'scope, Epoch, MessageRuns>,
    ) -> Result<(), OperatorError> {
        for spec in &self.pipeline.registries {
            let changes = self.changes(messages.clone(), spec)?;
            let name = registry_operator(&self.pipeline.name, &spec.name);
            let operator = Box::new(Versions::new(spec.clone())?);
            let keys: Vec<usize> = (0..spec.keys).collect();
            let hosted =
                self.host_on(&changes, spec.changes_schema(), name, operator, by(&keys))?;
            self.rejects(hosted.rejects);
            self.sinks.target(hosted.late, None, None);
            let order = EdgeOrder::Columns(sortable_columns(&spec.versions_schema()));
            self.add(&versions_edge(&spec.name), hosted.rows, order);
            self.changes.insert(spec.name.clone(), changes);
        }
        Ok(())
    }

    /// What the messages of a registry change.
    fn changes(
        &self,
        messages: Stream<'scope, Epoch, MessageRuns>,
        spec: &RegistrySpec,
    ) -> Result<Edge<'scope>, OperatorError> {
        let mut decoder = RegistryDecoder::new(spec, self.pipeline.decode.source);
        let name = format!("{}/decode", registry_operator(&self.pipeline.name, &spec.name));
        let (fail, failed_name) = (Rc::clone(&self.sinks.context.fail), name.clone());
        let has_entries = spec.entries.is_some();
        let mut ports = split(messages, &name, 3, move |runs: MessageRuns, _, out| {
            for run in &runs.0 {
                if !decoder.concerns(run) {
                    continue;
                }
                let on = |port: usize, rows| (port, Batch { sequence: run.first_offset, rows });
                let decoded = decoder.decode(run).and_then(|(changes, rejects)| {
                    out.push(on(0, changes));
                    match has_entries {
                        true => {
                            let (rejects, heard) = decoder.divide(run, &rejects)?;
                            out.extend([on(1, rejects), on(2, heard)]);
                        }
                        false => out.extend(rejects.into_iter().map(|rows| on(1, rows))),
                    }
                    Ok(())
                });
                if let Err(error) = decoded {
                    fail(&failed_name, error);
                }
            }
        });
        let heard = ports.pop().expect("three ports");
        self.rejects(ports.pop().expect("three ports"));
        if has_entries {
            self.refused(heard, spec)?;
        }
        Ok(Edge { stream: ports.pop().expect("three ports"), order: EdgeOrder::Journal })
    }

    /// What is refused of the entries of a registry, each once.
    fn refused(
        &self,
        heard: Stream<'scope, Epoch, Batch>,
        spec: &RegistrySpec,
    ) -> Result<(), OperatorError> {
        let heard = Edge { stream: heard, order: EdgeOrder::Journal };
        let name = refused_operator(&self.pipeline.name, &spec.name);
        let operator = Box::new(Refused::new());
        let hosted = self.host_on(&heard, heard_schema(), name, operator, by(&[]))?;
        self.rejects(hosted.rejects);
        self.sinks.target(hosted.rows, None, None);
        self.sinks.target(hosted.late, None, None);
        Ok(())
    }

    /// A step that joins a registry.
    pub(super) fn enrich(
        &mut self,
        step: &StepSpec,
        spec: &EnrichSpec,
    ) -> Result<(), OperatorError> {
        let mut operator = Enrich::new(spec.clone())?;
        let mut load = |rows: &_| tidegate_operators::JoinOperator::load(&mut operator, rows);
        let context = self.listening(step, &mut load, by(&spec.on))?;
        let (left, changes) = (&self.edges[&step.from], &self.changes[&spec.registry.name]);
        let order = content_order_of(&step.output, &self.schema_of(&step.from), &left.order);
        let keys: Vec<usize> = (0..spec.registry.keys).collect();
        let second = Second {
            stream: changes.stream.clone(),
            input: spec.registry.changes_schema(),
            order: changes.order.clone(),
            keys: Some(keys.clone()),
        };
        let left = (left.stream.clone(), by_key(spec.on.clone()));
        let hosted = host_join(left, (second, by_key(keys)), Box::new(operator), context);
        self.rejects(hosted.rejects);
        self.sinks.target(hosted.late, None, None);
        self.sinks.target(hosted.rows.clone(), None, None);
        self.add(&step.name, hosted.rows, order);
        Ok(())
    }
}
