//! How good a window is: whether messages can have been lost that belong to it.
//!
//! A window is in the time of its device, an outage in ours. What leads from one to the other are
//! the window's own readings: each came in so long after its own time. So the messages of a window
//! came in between its start and the least of these delays later, and its end and the greatest of
//! them later, whatever the clock of the device says and whether it sends at once or a day later.
//! If a time in which messages may have been lost touches that, the window is not complete.
//!
//! Which times those are, the log of outages says ([`crate::outage`]), so it is in the journal. It
//! can become known after a window was emitted, that something was lost, and that nothing was.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;

use crate::batch::Tick;
use crate::intern::{KeyInterner, NO_PLACE};
use crate::operator::{AsideOperator, Emit, JoinOperator, KeyedOperator, OperatorError};
use crate::outage::{OutageKind, Outages};
use crate::snapshot::Snapshot;
use crate::spec::{QualitySpec, Shape};

/// How long after their own times some readings came in, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delays {
    pub(crate) least_us: i64,
    pub(crate) most_us: i64,
}

impl Default for Delays {
    /// Of no readings.
    fn default() -> Self {
        Self { least_us: i64::MAX, most_us: i64::MIN }
    }
}

impl Delays {
    /// Of a reading of this time that came in with a tick.
    pub(crate) fn of(time_us: i64, tick: Tick) -> Self {
        let us = tick.time_us.saturating_sub(time_us);
        Self { least_us: us, most_us: us }
    }

    /// Of readings of both.
    pub(crate) fn and(self, other: Self) -> Self {
        let (least_us, most_us) = (self.least_us, self.most_us);
        Self { least_us: least_us.min(other.least_us), most_us: most_us.max(other.most_us) }
    }

    /// When a stretch of the device's time came in.
    fn in_ours(self, (start_us, end_us): (i64, i64)) -> (i64, i64) {
        (start_us.saturating_add(self.least_us), end_us.saturating_add(self.most_us))
    }
}

/// What a window is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quality {
    pub(crate) late: i64,
    /// Readings that were dropped as repeated.
    pub(crate) repeated: i64,
    pub(crate) complete: bool,
}

/// The columns of [`QualitySpec::fields`] of windows, each with its bounds.
pub(crate) fn columns(
    spec: &QualitySpec,
    shape: &Shape,
    windows: &[((i64, i64), Quality)],
) -> [ArrayRef; 4] {
    let expected = windows.iter().map(|(bounds_us, _)| spec.expected(shape, *bounds_us));
    let repeated = windows.iter().map(|(_, quality)| spec.repeated.then_some(quality.repeated));
    [
        Arc::new(Int64Array::from_iter(expected)),
        Arc::new(Int64Array::from_iter_values(windows.iter().map(|w| w.1.late))),
        Arc::new(Int64Array::from_iter(repeated)),
        Arc::new(BooleanArray::from_iter(windows.iter().map(|w| Some(w.1.complete)))),
    ]
}

/// The times in which messages may have been lost, as far as is known at an epoch.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// See [`QualitySpec::keeps`].
    keeps: bool,
    outages: Outages,
    /// Their beginnings and ends, in order; of each the latest end up to it.
    times_us: Vec<(i64, i64, i64)>,
    /// The time that is judged otherwise since it was last asked: from, until.
    changed_us: Option<(i64, i64)>,
    /// Something was heard since the start.
    heard: bool,
}

impl Losses {
    pub(crate) fn new(spec: Option<QualitySpec>) -> Self {
        Self { keeps: spec.is_some_and(|spec| spec.keeps), ..Self::default() }
    }

    /// Takes what is told of the log of outages in an epoch.
    pub(crate) fn hear(&mut self, log: &RecordBatch) {
        if log.num_rows() == 0 {
            return;
        }
        self.outages.take(log);
        // While a session is away, nobody knows whether the broker will still know it.
        let lost = self
            .outages
            .iter()
            .filter(|o| !self.keeps || o.kind == OutageKind::Gap || o.to_us == i64::MAX);
        let mut lost: Vec<(i64, i64)> = lost.map(|o| (o.from_us, o.to_us)).collect();
        lost.sort_unstable();
        lost.dedup();
        let before: Vec<(i64, i64)> = self.times_us.iter().map(|t| (t.0, t.1)).collect();
        let is_other = |all: &[(i64, i64)], time: &&(i64, i64)| all.binary_search(time).is_err();
        let new = lost.iter().filter(|time| is_other(&before, time));
        if !std::mem::replace(&mut self.heard, true) {
            // What was known when the state was saved is not known any more.
            self.changed_us = Some((i64::MIN, i64::MAX));
        }
        for (from_us, to_us) in new.chain(before.iter().filter(|time| is_other(&lost, time))) {
            let (first_us, last_us) = self.changed_us.unwrap_or((i64::MAX, i64::MIN));
            self.changed_us = Some((first_us.min(*from_us), last_us.max(*to_us)));
        }
        let mut latest_us = i64::MIN;
        let with_latest = |(from_us, to_us): (i64, i64)| {
            latest_us = latest_us.max(to_us);
            (from_us, to_us, latest_us)
        };
        self.times_us = lost.into_iter().map(with_latest).collect();
    }

    /// Whether nothing can have been lost of what came in of a stretch of a device's time.
    pub(crate) fn none_in(&self, bounds_us: (i64, i64), delays: Delays) -> bool {
        if self.times_us.is_empty() {
            return true;
        }
        let (from_us, to_us) = delays.in_ours(bounds_us);
        let begun = self.times_us.partition_point(|t| t.0 < to_us);
        begun == 0 || self.times_us[begun - 1].2 < from_us
    }

    /// The time that is judged otherwise since this was last asked.
    pub(crate) fn changed(&mut self) -> Option<Changed> {
        self.changed_us.take().map(Changed)
    }
}

/// A time that is judged otherwise than before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed((i64, i64));

impl Changed {
    /// Whether it touches what came in of a stretch of a device's time.
    pub(crate) fn touches(&self, bounds_us: (i64, i64), delays: Delays) -> bool {
        let (from_us, to_us) = delays.in_ours(bounds_us);
        self.0.0 < to_us && from_us <= self.0.1
    }
}

/// An operator of windows that is told of outages, and of readings that were dropped.
pub trait Hears: KeyedOperator {
    /// The log of outages of an epoch ([`crate::outage::outages_schema`]), before its rows.
    fn hear(&mut self, log: &RecordBatch);

    /// What would be among the rows of a call if it had not come before, before these. A row
    /// counts if its key is known, and where readings of that time are kept, those of this epoch
    /// among them. It changes nothing else, and no window is due because of it: a window says what
    /// had come by the epoch in which it is told.
    fn repeat(&mut self, rows: &RecordBatch);
}

/// Such an operator with the log of outages as its second input, and dropped readings aside.
pub struct Hearing<O>(pub O);

impl<O: Hears> JoinOperator for Hearing<O> {
    fn epoch(
        &mut self,
        left: &RecordBatch,
        right: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.0.hear(right);
        self.0.epoch(left, tick, emit)
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        self.0.end(emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        self.0.cut(whole)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.0.load(state)
    }
}

impl<O: Hears> AsideOperator for Hearing<O> {
    fn aside(&mut self, rows: &RecordBatch) {
        self.0.repeat(rows);
    }
}

/// Rows that were dropped as repeated, until they are counted.
#[derive(Default)]
pub(crate) struct Repeated(Vec<RecordBatch>);

impl Repeated {
    /// Keeps rows.
    pub(crate) fn put(&mut self, rows: &RecordBatch) {
        self.0.push(rows.clone());
    }

    /// Those whose keys are known: the id of each, and its time.
    pub(crate) fn take(
        &mut self,
        interner: &mut KeyInterner,
        (keys, time): (&[usize], usize),
    ) -> Result<Vec<(u32, i64)>, OperatorError> {
        let (mut known, mut ids) = (Vec::new(), Vec::new());
        for rows in self.0.drain(..) {
            let keys: Vec<ArrayRef> = keys.iter().map(|key| rows.column(*key).clone()).collect();
            // No new key finds a place.
            interner.intern_within(0, &keys, rows.num_rows(), &mut ids)?;
            let times = rows.column(time).as_primitive::<TimestampMicrosecondType>();
            let found = ids.iter().copied().zip(times.values().iter().copied());
            known.extend(found.filter(|(id, _)| *id != NO_PLACE));
        }
        Ok(known)
    }
}

#[cfg(test)]
pub(crate) mod testing;
