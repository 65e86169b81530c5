//! Closing windows: by the key's clock, by silence, at the end of input; and dropping their state.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};

use super::bound::panes_room;
use super::bounds::Bounds;
use super::keys::KeyState;
use super::{WindowOperator, int64};
use crate::batch::Tick;
use crate::keys::Remnant;
use crate::operator::{Emit, OperatorError};
use crate::partial::{GATHERED_MAX, Store};
use crate::spec::{Clock, LatePolicy};
use crate::zone::Zone;

/// A window to emit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) id: u32,
    pub(super) window: i64,
    /// When it begins; set before it is emitted.
    pub(super) start_us: i64,
    /// It was emitted before.
    pub(super) revise: bool,
    /// It is still open.
    pub(super) early: bool,
    /// It was closed before, with or without readings.
    pub(super) again: bool,
}

impl Due {
    /// It is closed now.
    pub(super) fn first(id: u32, window: i64) -> Self {
        Self { id, window, start_us: 0, revise: false, early: false, again: false }
    }

    /// It was closed before, and emitted if it had readings then.
    pub(super) fn again(id: u32, window: i64, revise: bool) -> Self {
        Self { revise, again: true, ..Self::first(id, window) }
    }

    /// A window that is still open.
    pub(super) fn early(id: u32, window: i64) -> Self {
        Self { early: true, ..Self::first(id, window) }
    }
}

impl WindowOperator {
    /// Step 3a: keys whose clock passed the end of windows.
    pub(super) fn close_by_clock(&mut self, tick: Tick) {
        let touched = std::mem::take(&mut self.touched);
        for id in &touched {
            let look_us = tick.time_us.saturating_add(self.spec.idle_close_us);
            // A key that comes back after a silence waits to be dropped: sooner than that it has
            // to be looked at for its next silence.
            if look_us < self.keys[*id as usize].look_us {
                self.look_at(*id, look_us);
            }
            let key = &mut self.keys[*id as usize];
            key.last_tick_us = tick.time_us;
            self.fleet_clock_us = self.fleet_clock_us.max(key.clock_us);
        }
        match self.spec.clock {
            Clock::Device => touched.iter().for_each(|id| self.close_ended(*id)),
            Clock::Fleet => {
                if !touched.is_empty() {
                    let ids: Vec<u32> = self.interner.ids().collect();
                    ids.into_iter().for_each(|id| self.close_ended(id));
                }
            }
        }
        self.touched = touched;
    }

    fn close_ended(&mut self, id: u32) {
        let key = &self.keys[id as usize];
        self.close_through(id, self.bounds.last_ended(self.horizon_us(key), key.zone));
    }

    fn close_through(&mut self, id: u32, window: i64) {
        let key = &mut self.keys[id as usize];
        if window <= key.closed {
            return;
        }
        let mut next = key.closed.saturating_add(1);
        let panes = match key.closed {
            i64::MIN => &key.panes[..],
            _ => key.panes_from(self.bounds.panes_of(next).0),
        };
        for pane in panes {
            let (first, last) = self.bounds.windows_of(pane.number);
            let from = first.max(next);
            let to = last.min(window);
            for window in from..=to {
                self.due.push(Due::first(id, window));
            }
            next = next.max(to.saturating_add(1));
        }
        key.closed = window;
    }

    /// Closes every window of a key that has readings.
    pub(super) fn close_all(&mut self, id: u32) {
        if let Some(pane) = self.keys[id as usize].panes.last() {
            let (_, last) = self.bounds.windows_of(pane.number);
            self.close_through(id, last);
        }
    }

    /// Step 3b: the clock of a key that has been silent for `idle_close` of tick time goes on with
    /// the ticks, so each of its windows closes at its own end; `revise_for` after the last of
    /// them its state goes, too.
    pub(super) fn close_idle(&mut self, tick: Tick) {
        let keep_us = self.keep_us();
        while let Some((look_us, id)) = self.idle.first().copied()
            && look_us <= tick.time_us
        {
            let key = &self.keys[id as usize];
            let newest = self.bounds.pane_at(key.clock_us, key.zone).number;
            let last = self.bounds.windows_of(newest).1;
            let all_us = self.silent_close_us(key, last);
            let drop_us = all_us.saturating_add(keep_us);
            if tick.time_us < all_us {
                let look_us = self.close_silent(id, last, tick);
                self.look_at(id, look_us);
                continue;
            }
            self.close_silent_through(id, last);
            if tick.time_us < drop_us {
                self.look_at(id, drop_us);
                continue;
            }
            let key = &mut self.keys[id as usize];
            key.dropped = key.dropped.max(key.closed);
            // The next reading puts it on the list again.
            key.last_tick_us = i64::MIN;
            self.look_at(id, i64::MAX);
            self.touched.push(id);
            self.gone.push(id);
        }
    }

    /// The tick time at which a window closes if its key stays silent.
    fn silent_close_us(&self, key: &KeyState, window: i64) -> i64 {
        let end_us = self.bounds.end(window, key.zone);
        let silence_us = end_us.saturating_sub(key.clock_us).saturating_add(self.spec.disorder_us);
        key.last_tick_us.saturating_add(silence_us.max(self.spec.idle_close_us))
    }

    /// Closes the windows before `last` that have ended if the key has been silent for long enough,
    /// and returns the tick time at which to look at it again. Every end is looked at: what is
    /// closed must depend on ticks, and not on when somebody looked.
    fn close_silent(&mut self, id: u32, last: i64, tick: Tick) -> i64 {
        let key = &self.keys[id as usize];
        let silence_us = tick.time_us.saturating_sub(key.last_tick_us);
        if silence_us < self.spec.idle_close_us {
            return key.last_tick_us.saturating_add(self.spec.idle_close_us);
        }
        let clock_us = key.clock_us.saturating_add(silence_us);
        let horizon_us = clock_us.saturating_sub(self.spec.disorder_us);
        let ended = self.bounds.last_ended(horizon_us, key.zone).min(last.saturating_sub(1));
        self.close_silent_through(id, ended);
        let key = &self.keys[id as usize];
        self.silent_close_us(key, key.closed.saturating_add(1).min(last))
    }

    fn close_silent_through(&mut self, id: u32, window: i64) {
        if window > self.keys[id as usize].closed {
            self.close_through(id, window);
            // Where nothing is revised, what was closed now is dropped now.
            self.touched.push(id);
        }
    }

    /// Has a key looked at for silence at this tick time and not at another.
    fn look_at(&mut self, id: u32, look_us: i64) {
        let key = &mut self.keys[id as usize];
        self.idle.remove(&(key.look_us, id));
        key.look_us = look_us;
        if look_us < i64::MAX {
            self.idle.insert((look_us, id));
        }
    }

    /// Step 3c: puts the due windows together from their panes and emits them in order.
    pub(super) fn emit_due(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut due = std::mem::take(&mut self.due);
        if due.is_empty() {
            return Ok(());
        }
        // By time, then key. Not by id, which says when a key came first: after a restart that is
        // not the same.
        let start = |d: &Due| self.bounds.start(d.window, self.keys[d.id as usize].zone);
        due.iter_mut().for_each(|d| d.start_us = start(d));
        let name = |d: &Due| self.interner.bytes(d.id);
        due.sort_unstable_by(|a, b| {
            let order = a.start_us.cmp(&b.start_us).then_with(|| name(a).cmp(name(b)));
            order.then_with(|| a.revise.cmp(&b.revise))
        });
        // Several late panes of one epoch can ask for the same window.
        due.dedup();
        let mut rest = &due[..];
        while !rest.is_empty() {
            rest = self.emit_some(rest, emit)?;
        }
        due.clear();
        self.due = due;
        Ok(())
    }

    /// Emits the first of these windows, and returns those that are left.
    fn emit_some<'d>(
        &mut self,
        due: &'d [Due],
        emit: &mut Emit,
    ) -> Result<&'d [Due], OperatorError> {
        let mut slots = Vec::new();
        let mut groups = Vec::new();
        let mut rows: Vec<i64> = Vec::new();
        for d in due {
            let (from, to) = self.bounds.panes_of(d.window);
            let panes = self.keys[d.id as usize].panes_in(from, to);
            let is_full = slots.len() + panes.len() > GATHERED_MAX
                || rows.len() >= self.aggregation.windows_max();
            if !rows.is_empty() && is_full {
                break;
            }
            for pane in panes {
                slots.push(pane.slot.expect("accumulated before windows close"));
                groups.push(rows.len());
            }
            rows.push(panes.iter().map(|pane| pane.rows).sum());
        }
        let (part, rest) = due.split_at(rows.len());
        let state = self.store.gather(&slots)?;
        let aggregates = self.aggregation.values(&state, &groups, part.len())?;
        self.output_batch(part, rows, aggregates, emit)?;
        Ok(rest)
    }

    fn output_batch(
        &mut self,
        due: &[Due],
        rows: Vec<i64>,
        aggregates: Vec<ArrayRef>,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let ids: Vec<u32> = due.iter().map(|d| d.id).collect();
        let times = |f: &dyn Fn(&Due) -> i64| -> ArrayRef {
            let values = due.iter().map(f);
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
        };
        let mut columns = self.interner.keys(&ids)?;
        columns.push(times(&|d| d.start_us));
        columns.push(times(&|d| self.bounds.end(d.window, self.keys[d.id as usize].zone)));
        let bounded = columns.len();
        let mut columns =
            self.aggregation.selected(columns, aggregates, |row| !due[row].early, emit)?;
        if let Some(shifts) = self.shifts(due.iter().map(|d| d.window)) {
            columns.insert(bounded, shifts);
        }
        columns.extend(self.quality_columns(due, &rows));
        let revisions: Vec<i64> =
            due.iter().zip(&rows).map(|(d, rows)| self.revision(*d, *rows)).collect();
        columns.push(int64(rows.into_iter()));
        columns.push(int64(revisions.into_iter()));
        columns.extend(self.finality(due));
        emit.rows.push(RecordBatch::try_new(Arc::clone(&self.output), columns)?);
        Ok(())
    }

    /// Step 4: drops panes that no window within its time for revision needs.
    pub(super) fn drop_old(&mut self) {
        let all: Vec<u32>;
        let ids = match self.spec.clock {
            Clock::Device => &self.touched,
            Clock::Fleet => {
                all = self.interner.ids().collect();
                &all
            }
        };
        let keep_us = self.keep_us();
        let room = panes_room(&self.spec);
        for id in ids {
            let horizon_us = self.horizon_us(&self.keys[*id as usize]);
            let key = &mut self.keys[*id as usize];
            let by_clock = match self.spec.late {
                LatePolicy::Table => key.closed,
                LatePolicy::Revise { .. } => {
                    let kept_us = horizon_us.saturating_sub(keep_us);
                    self.bounds.last_ended(kept_us, key.zone).min(key.closed)
                }
            };
            key.dropped = key.dropped.max(by_clock);
            let_go(key, &self.bounds, &mut self.store, room);
        }
    }

    /// Forgets the keys that have neither windows nor readings to wait for, but for how far they
    /// came: what is older stays late when they come back.
    pub(super) fn forget_gone(&mut self) -> Result<(), OperatorError> {
        let gone = std::mem::take(&mut self.gone);
        #[cfg(test)]
        if self.keep_all {
            return Ok(());
        }
        let left = gone.iter().map(|id| {
            let key = &self.keys[*id as usize];
            (*id, Remnant { bound: key.dropped, extra: key.clock_us })
        });
        let left: Vec<(u32, Remnant)> = left.collect();
        self.remnants.keep(&self.interner, &left)?;
        for id in gone {
            let is_last = self.interner.forget(id);
            self.keys.forget(id as usize, is_last);
        }
        Ok(())
    }

    /// The state of a key that was forgotten: as if it had been there all the time.
    pub(super) fn come_back(&self, (dropped, clock_us): (i64, i64), zone: Zone) -> KeyState {
        let mut key = KeyState::back(dropped, clock_us, zone);
        if self.spec.clock == Clock::Fleet {
            // The clock of the fleet has closed and dropped windows of all keys meanwhile.
            let horizon_us = self.fleet_clock_us.saturating_sub(self.spec.disorder_us);
            key.closed = key.closed.max(self.bounds.last_ended(horizon_us, zone));
            let kept_us = horizon_us.saturating_sub(self.keep_us());
            key.dropped = key.dropped.max(self.bounds.last_ended(kept_us, zone).min(key.closed));
        }
        key
    }
}

/// Lets go of what a key keeps for windows that are dropped only.
pub(super) fn let_go(key: &mut KeyState, bounds: &Bounds, store: &mut Store, room: usize) {
    // Of windows that overlap, the panes of one that is dropped are those of others.
    key.drop_emitted();
    let dropped = key.dropped;
    let oldest = key.panes.first();
    if oldest.is_none_or(|p| bounds.windows_of(p.number).1 > dropped) {
        return;
    }
    let gone = key.panes.partition_point(|p| bounds.windows_of(p.number).1 <= dropped);
    for pane in key.panes.drain(..gone) {
        if let Some(slot) = pane.slot {
            store.release(slot);
        }
    }
    key.drop_quality(dropped, room);
    if key.panes.capacity() > room {
        key.panes.shrink_to(room);
    }
}
