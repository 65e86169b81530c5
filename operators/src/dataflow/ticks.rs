//! The ticks that this worker has been told of, for the operators of its dataflow.
//!
//! The feed notes the tick of an epoch before it advances the input past it; so whoever sees the
//! frontier pass an epoch finds its tick here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::batch::{Epoch, Tick};

/// Shared by all operators of one worker.
#[derive(Clone, Debug, Default)]
pub struct Ticks(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    times: BTreeMap<Epoch, i64>,
    checkpoints: BTreeMap<Epoch, bool>,
    flushes: BTreeSet<Epoch>,
    closed: BTreeMap<Epoch, Arc<BTreeSet<String>>>,
    /// The epoch after the newest tick.
    next: Epoch,
    time_us: i64,
    ended: bool,
}

impl Ticks {
    /// Notes a tick.
    pub fn note(&self, tick: Tick) {
        let mut inner = self.0.borrow_mut();
        inner.times.insert(tick.epoch, tick.time_us);
        inner.next = tick.epoch + 1;
        inner.time_us = tick.time_us;
    }

    /// Asks every operator to hand over its state as of the end of `epoch`: the key groups that
    /// changed since the last time, or all if `whole`. Must be called before the input advances
    /// past `epoch`.
    pub fn checkpoint_at(&self, epoch: Epoch, whole: bool) {
        self.0.borrow_mut().checkpoints.insert(epoch, whole);
    }

    /// Whether state is to be handed over as of the end of `epoch`, and whether all of it.
    pub fn checkpoint(&self, epoch: Epoch) -> Option<bool> {
        self.0.borrow().checkpoints.get(&epoch).copied()
    }

    /// Asks every operator to emit what is open at the end of `epoch`, as if the input had ended.
    /// Must be called before the input advances past `epoch`.
    pub fn flush_at(&self, epoch: Epoch) {
        self.0.borrow_mut().flushes.insert(epoch);
    }

    /// Whether what is open is to be emitted at the end of `epoch`.
    pub fn is_flush(&self, epoch: Epoch) -> bool {
        self.0.borrow().flushes.contains(&epoch)
    }

    /// Says that new keys find no place in `epoch`, but at the operators `but`. Must be called
    /// before the input advances past `epoch`.
    pub fn close_at(&self, epoch: Epoch, but: Arc<BTreeSet<String>>) {
        self.0.borrow_mut().closed.insert(epoch, but);
    }

    /// Whether new keys find no place at this operator in `epoch`.
    pub fn is_closed(&self, epoch: Epoch, operator: &str) -> bool {
        self.0.borrow().closed.get(&epoch).is_some_and(|but| !but.contains(operator))
    }

    /// Says that the input has ended for good, so that open windows are to be emitted. Must be
    /// called before the input is closed.
    pub fn end(&self) {
        self.0.borrow_mut().ended = true;
    }

    /// Whether the input has ended for good.
    pub fn has_ended(&self) -> bool {
        self.0.borrow().ended
    }

    /// Says which epoch will be the first, before any tick.
    pub fn start_at(&self, epoch: Epoch) {
        self.0.borrow_mut().next = epoch;
    }

    /// What stands for a tick when the input has ended: the epoch after all others, which holds the
    /// rows that operators emit at the end, at the time of the last one.
    pub fn last(&self) -> Tick {
        let inner = self.0.borrow();
        Tick { epoch: inner.next, time_us: inner.time_us }
    }

    /// The first noted tick of an epoch in `from..to` (`to` = none: any later one).
    pub fn next(&self, from: Epoch, to: Option<Epoch>) -> Option<Tick> {
        let inner = self.0.borrow();
        let (epoch, time_us) = inner.times.range(from..).next()?;
        (to.is_none_or(|to| *epoch < to)).then_some(Tick { epoch: *epoch, time_us: *time_us })
    }

    /// Forgets everything before `epoch`: the probe has passed it.
    pub fn forget_before(&self, epoch: Epoch) {
        let mut inner = self.0.borrow_mut();
        inner.times = inner.times.split_off(&epoch);
        inner.checkpoints = inner.checkpoints.split_off(&epoch);
        inner.flushes = inner.flushes.split_off(&epoch);
        inner.closed = inner.closed.split_off(&epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_closed_to_new_keys_but_at_operators_that_are_young() {
        let ticks = Ticks::default();
        ticks.close_at(3, Arc::default());
        ticks.close_at(4, Arc::new(["p/young".to_owned()].into()));
        let closed = |operator: &str| [2, 3, 4, 5].map(|epoch| ticks.is_closed(epoch, operator));
        assert_eq!(closed("p/old"), [false, true, true, false]);
        assert_eq!(closed("p/young"), [false, true, false, false]);
        ticks.forget_before(4);
        assert_eq!(closed("p/old"), [false, false, true, false]);
    }
}
