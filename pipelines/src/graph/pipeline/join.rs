//! Joins of two edges in the graph of a pipeline.

use tidegate_operators::dataflow::{EdgeOrder, Second, by_key, host_aside, to_all};
use tidegate_operators::join::{IntervalJoin, WindowJoin};
use tidegate_operators::spec::{JoinSpec, Partners, StepSpec};
use tidegate_operators::{AsideOperator, OperatorError};

use super::{Builder, sortable_columns};

impl Builder<'_, '_> {
    /// A step that joins two edges.
    pub(super) fn join(&mut self, step: &StepSpec, spec: &JoinSpec) -> Result<(), OperatorError> {
        let name = format!("{}/{}", self.pipeline.name, step.name);
        let mut operator: Box<dyn AsideOperator> = match spec.partners {
            Partners::Window { .. } => Box::new(WindowJoin::new(spec.clone())?),
            Partners::Interval { .. } => Box::new(IntervalJoin::new(spec.clone())?),
        };
        let owned = self.restore(&name, spec.left_keys.len(), &mut |rows| operator.load(rows))?;
        let (left, right) = (&self.edges[&step.from], &self.edges[&spec.with]);
        let second = Second {
            stream: right.stream.clone(),
            input: spec.right.clone(),
            order: right.order.clone(),
            keys: Some(spec.right_keys.clone()),
        };
        let keys = (spec.left_keys.clone(), owned);
        let context = self.host_context(name, spec.left.clone(), left, keys);
        let left = (left.stream.clone(), by_key(spec.left_keys.clone()));
        let right = (second, by_key(spec.right_keys.clone()));
        let outages = Some((self.outages_of(), to_all()));
        let hosted = host_aside(left, right, outages, operator, context);
        self.rejects(hosted.rejects);
        self.late(hosted.late);
        self.sinks.target(hosted.rows.clone(), None, None);
        let order = EdgeOrder::Columns(sortable_columns(&step.output));
        self.add(&step.name, hosted.rows, order);
        Ok(())
    }
}
