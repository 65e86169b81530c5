//! Joins of two edges in the graph of a pipeline.

use tidegate_operators::dataflow::{Second, by_key, host_aside, to_all};
use tidegate_operators::join::{IntervalJoin, WindowJoin};
use tidegate_operators::spec::{JoinSpec, Partners, StepSpec};
use tidegate_operators::{AsideOperator, OperatorError};

use super::{Builder, by};

impl Builder<'_, '_> {
    /// A step that joins two edges.
    pub(super) fn join(&mut self, step: &StepSpec, spec: &JoinSpec) -> Result<(), OperatorError> {
        let mut operator: Box<dyn AsideOperator> = match spec.partners {
            Partners::Window { .. } => Box::new(WindowJoin::new(spec.clone())?),
            Partners::Interval { .. } => Box::new(IntervalJoin::new(spec.clone())?),
        };
        let keys = by(&spec.left_keys);
        let context = self.listening(step, &mut |rows| operator.load(rows), keys)?;
        let (left, right) = (&self.edges[&step.from], &self.edges[&spec.with]);
        let second = Second {
            stream: right.stream.clone(),
            input: spec.right.clone(),
            order: right.order.clone(),
            keys: Some(spec.right_keys.clone()),
        };
        let left = (left.stream.clone(), by_key(spec.left_keys.clone()));
        let right = (second, by_key(spec.right_keys.clone()));
        let outages = Some((self.outages_of(), to_all()));
        let hosted = host_aside(left, right, outages, operator, context);
        self.listens(step, hosted, None);
        Ok(())
    }
}
