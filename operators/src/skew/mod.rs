//! Estimates how far the clock of each device is from ours, from the times of its readings.
//!
//! Of a reading, the lag is when it came in less its own time: what the clock is behind (less than
//! zero if it is ahead), the delay of the network, and the time for which the reading lay in a
//! buffer. The last two are never less than zero and now and then next to nothing, so the least
//! lag of some minutes is the clock (as in the clock filter of NTP, RFC 5905, section 10). Minutes
//! are those of the ticks.
//!
//! A device that sends what it has buffered looks like one whose clock is behind. It differs in
//! that it catches up: its readings come faster than they were made, so the least lag falls from
//! one stretch to the next, while that of a clock that is wrong stays where it is. So an estimate
//! is made only where two stretches in a row agree, which a single wrong time does not upset
//! either. What stays behind for good, and always by the same, is a clock, or as good as one.
//!
//! Per key group and by ticks alone: the rows do not depend on the number of workers.

mod bound;
mod save;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use crate::batch::Tick;
use crate::intern::{KeyInterner, NO_PLACE};
use crate::keys::Silence;
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::{AtMemoryMax, SkewSpec};
use crate::system::clock_skew_schema;

/// Length of a stretch, microseconds.
const STRETCH_US: i64 = 5 * 60_000_000;

/// Two stretches agree if their least lags differ by no more, microseconds. Who catches up by more
/// than 3 % of the time that passes differs by more.
const AGREE_US: i64 = 10_000_000;

/// What changes by less than this, or less than a tenth, is not told again, microseconds; of
/// stretches with few readings, by less than [`AGREE_US`]: the least delay of a few is chance.
const TOLD_US: i64 = 1_000_000;

/// Readings of a stretch whose least lag is more than chance.
const READINGS_MIN: i64 = 10;

/// Schema of the input: `device`, `lag_us` (when it came in less its own time, the least of one or
/// several readings), and how many `readings` these are.
pub fn clocks_schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    let device = Field::new("device", DataType::Utf8, false);
    Arc::new(Schema::new(vec![device, number("lag_us"), number("readings")]))
}

/// The least lag of one stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    number: i64,
    /// Tick time of its first reading.
    from_us: i64,
    lag_us: i64,
    readings: i64,
}

/// Two stretches that agree.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    lag_us: i64,
    since_us: i64,
    /// Each has enough readings for a difference of a second to mean something.
    is_dense: bool,
}

/// What is known of one clock.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// The stretch before, and the one that is not over.
    last: Option<Stretch>,
    open: Option<Stretch>,
    /// The estimate that was told last; zero at first.
    told_us: i64,
    /// It was told to be off by more than the bound.
    off: bool,
    /// Readings since the device is known.
    readings: i64,
}

impl Clock {
    /// Takes readings; two stretches that agree, if they are over now.
    fn take(&mut self, lag_us: i64, readings: i64, now_us: i64) -> Option<Agreed> {
        let number = now_us.div_euclid(STRETCH_US);
        let open = match self.open {
            Some(open) if open.number == number => {
                let (lag_us, readings) = (open.lag_us.min(lag_us), open.readings + readings);
                self.open = Some(Stretch { lag_us, readings, ..open });
                return None;
            }
            open => open,
        };
        self.open = Some(Stretch { number, from_us: now_us, lag_us, readings });
        let last = std::mem::replace(&mut self.last, open)?;
        let open = open?;
        let agree = open.lag_us.abs_diff(last.lag_us) <= AGREE_US.unsigned_abs();
        agree.then_some(Agreed {
            lag_us: open.lag_us.min(last.lag_us),
            since_us: last.from_us,
            is_dense: open.readings.min(last.readings) >= READINGS_MIN,
        })
    }

    /// Whether this is to be told.
    fn judge(&mut self, agreed: Agreed, bound_us: i64) -> bool {
        let offset_us = agreed.lag_us.saturating_neg();
        let size_us = offset_us.saturating_abs();
        let off = match self.off {
            // So much less that it does not go to and fro.
            true => size_us > bound_us - bound_us / 10,
            false => size_us > bound_us,
        };
        let least_us = if agreed.is_dense { TOLD_US } else { AGREE_US };
        let step_us = least_us.max(self.told_us.saturating_abs() / 10).unsigned_abs();
        let told = off != self.off || offset_us.abs_diff(self.told_us) > step_us;
        if told {
            (self.told_us, self.off) = (offset_us, off);
        }
        told
    }
}

/// A row of `system.clock_skew`.
struct Told {
    id: u32,
    clock: Clock,
    since_us: i64,
}

/// The operator.
pub struct ClockSkew {
    spec: SkewSpec,
    interner: KeyInterner,
    clocks: Slabs<Clock>,
    silence: Silence,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
    ids: Vec<u32>,
}

impl ClockSkew {
    /// Without any device.
    ///
    /// # Errors
    /// None that planning does not rule out.
    pub fn new(spec: SkewSpec) -> Result<Self, OperatorError> {
        Ok(Self {
            interner: KeyInterner::new(&[DataType::Utf8])?,
            clocks: Slabs::default(),
            silence: Silence::new(spec.forget_after_us),
            changed: GroupSet::default(),
            ids: Vec::new(),
            spec,
        })
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        self.interner.size_bytes() + self.clocks.size_bytes() + self.silence.size_bytes()
    }

    fn rows(&self, told: &[Told], tick: Tick) -> Result<RecordBatch, OperatorError> {
        let ids: Vec<u32> = told.iter().map(|t| t.id).collect();
        let times = |f: &dyn Fn(&Told) -> i64| -> ArrayRef {
            let times = TimestampMicrosecondArray::from_iter_values(told.iter().map(f));
            Arc::new(times.with_timezone("UTC"))
        };
        let numbers = |f: &dyn Fn(&Clock) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(told.iter().map(|t| f(&t.clock))))
        };
        let off: BooleanArray = told.iter().map(|t| Some(t.clock.off)).collect();
        let pipeline = told.iter().map(|_| &self.spec.pipeline);
        let mut columns = vec![times(&|_| tick.time_us)];
        columns.push(Arc::new(StringArray::from_iter_values(pipeline)));
        columns.extend(self.interner.keys(&ids)?);
        columns.extend([
            numbers(&|c| c.told_us),
            Arc::new(off) as ArrayRef,
            times(&|t| t.since_us),
            numbers(&|c| c.readings),
        ]);
        Ok(RecordBatch::try_new(clock_skew_schema(), columns)?)
    }

    /// Forgets devices that were silent for long enough. Of one that was told to be off nothing is
    /// known any more: that is told, or its newest row would be wrong for good.
    fn forget_silent(&mut self, tick: Tick, emit: &mut Emit) -> Result<(), OperatorError> {
        let silent = self.silence.silent(tick.time_us);
        let off = silent.iter().filter(|id| self.clocks[**id as usize].off);
        let told: Vec<Told> = off
            .map(|id| {
                let clock = Clock { off: false, ..self.clocks[*id as usize] };
                Told { id: *id, clock, since_us: tick.time_us }
            })
            .collect();
        if !told.is_empty() {
            emit.rows.push(self.rows(&told, tick)?);
        }
        for id in silent {
            self.changed.insert(self.interner.group(id));
            let is_last = self.interner.forget(id);
            self.clocks.forget(id as usize, is_last);
            self.silence.forget(id, is_last);
        }
        Ok(())
    }
}

impl KeyedOperator for ClockSkew {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let mut ids = std::mem::take(&mut self.ids);
        let is_closed = emit.closed && self.spec.limits.at_memory_max == AtMemoryMax::Reject;
        let share = if is_closed { 0 } else { self.spec.limits.share() };
        self.interner.intern_within(share, &rows.columns()[..1], rows.num_rows(), &mut ids)?;
        for key in self.interner.fresh() {
            self.clocks.put(key.id as usize, Clock::default());
            self.silence.start(key.id, i64::MIN);
        }
        let lags = rows.column(1).as_primitive::<Int64Type>().values();
        let readings = rows.column(2).as_primitive::<Int64Type>().values();
        let mut told = Vec::new();
        for ((id, lag_us), readings) in ids.iter().zip(lags).zip(readings) {
            if *id == NO_PLACE {
                continue;
            }
            self.changed.insert(self.interner.group(*id));
            self.silence.heard(*id, tick.time_us);
            let clock = &mut self.clocks[*id as usize];
            let agreed = clock.take(*lag_us, *readings, tick.time_us);
            if let Some(agreed) = agreed
                && clock.judge(agreed, self.spec.bound_us)
            {
                told.push(Told { id: *id, clock: *clock, since_us: agreed.since_us });
            }
            clock.readings += readings;
        }
        self.ids = ids;
        if !told.is_empty() {
            emit.rows.push(self.rows(&told, tick)?);
        }
        if emit.more { Ok(()) } else { self.forget_silent(tick, emit) }
    }

    fn end(&mut self, _emit: &mut Emit) -> Result<(), OperatorError> {
        Ok(())
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let changed = std::mem::take(&mut self.changed);
        self.cut_state(if whole { GroupSet::ALL } else { changed })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}
