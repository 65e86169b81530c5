//! Threshold alerts with a life cycle: normal, pending for a while, firing, resolved.
//!
//! One state per key, moved by the key's rows in the order of their times. A row older than the
//! last evaluated one changes nothing (and is counted). If the edge has a `revision`, what the last
//! rows said is kept ([`state`]): one that is revised, to end at another time perhaps, or that is
//! withdrawn, or that is found late between them, makes the state what it would be had only the
//! last revisions come; what the outside was told is corrected by a further event. Whoever was told
//! that an alert fires is told that it is over, however old that is. Of one that was too old to
//! tell anybody, people hear when a row that is not too old finds it still firing; if none does,
//! nobody hears the end either. Windows that are still open may count, too, see [`early`].
//!
//! The events of a key have the order in which they are told by their times as well: one that
//! corrects another has the time of its row, but at least a microsecond more than the one before
//! it. Otherwise a table, or a receiver, that goes by time takes what was corrected for what holds.
//! Delivery is not done here.

mod bound;
mod early;
mod ended;
mod event;
mod heir;
mod save;
mod state;
pub mod summary;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};

use crate::batch::Tick;
use crate::expression::{Failed, condition, expression_failed, withdrawn};
use crate::intern::KeyInterner;
use crate::key::stable_hashes;
use crate::keys::{KeyedStep, Remnant, Remnants, Silence, without_strangers};
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::{AlertSpec, IS_FINAL};
use crate::system::step_rejects;
pub use ended::{EndedRule, RULE_CHANGED, end_alerts, untold};
use event::{Change, Summary};
pub use heir::{TOLD_FOR_US, has_keys_of, heir, is_known, told};
pub use save::FIXED as STATE_COLUMNS;
#[cfg(test)]
use state::KEPT;
use state::{KeyState, Phase, Said, UNKNOWN};

/// Why an alert ended whose row was withdrawn, or was of a window that was open then and of which
/// nothing can be said now: `reason` of `system.alerts`.
pub const WITHDRAWN: &str = "withdrawn";

/// What `status` of `system.alerts` can be: it fires, or it is over.
pub const STATUSES: [&str; 2] = ["firing", "resolved"];

/// A key that is normal and of which no row came for this long, in tick time, is put away: what is
/// left of it makes the key as it was when it comes back, so no row changes by it; microseconds.
const PUT_AWAY_AFTER_US: i64 = 3_600_000_000;

/// Which row of its key a row is.
#[derive(Clone, Copy, Debug)]
struct Window {
    time_us: i64,
    /// Number or start of a window, mixed with what else tells it from others; of another row its
    /// time.
    id: i64,
    /// It replaces an earlier row.
    revised: bool,
    /// It replaces it by nothing.
    withdrawn: bool,
    /// It is one of windows that can be revised.
    of_windows: bool,
    /// It is of a window that is still open.
    early: bool,
}

/// The columns that say which row a row is.
struct Windows<'a> {
    times: &'a TimestampMicrosecondArray,
    ids: Option<Cow<'a, [i64]>>,
    revisions: Option<&'a Int64Array>,
    rows: Option<&'a Int64Array>,
    /// Which windows are over, if others count as well.
    finals: Option<&'a BooleanArray>,
}

impl<'a> Windows<'a> {
    /// The column with the readings of windows.
    fn rows_of(rows: &RecordBatch) -> Option<usize> {
        let place = |name: &str| rows.schema_ref().index_of(name).ok();
        place("window_start").and_then(|_| place("revision")).and_then(|_| place("rows"))
    }

    fn of(rows: &'a RecordBatch, spec: &AlertSpec) -> Self {
        let number =
            |name: &str| rows.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int64Type>());
        let start = rows.column_by_name("window_start");
        let start = start.and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let numbers = number("window_number").map(|c| &c.values()[..]);
        let ids = numbers.or(start.map(|c| &c.values()[..]));
        Self {
            times: rows.column(spec.time).as_primitive(),
            ids: ids.map(|ids| apart(ids, rows, &spec.others)),
            revisions: number("revision"),
            rows: start.and_then(|_| number("rows")),
            finals: rows
                .column_by_name(IS_FINAL)
                .filter(|_| spec.early)
                .and_then(|c| c.as_boolean_opt()),
        }
    }

    fn at(&self, row: usize) -> Window {
        let time_us = self.times.value(row);
        let revised = self.revisions.is_some_and(|r| r.value(row) > 0);
        let withdrawn = revised && self.rows.is_some_and(|r| r.value(row) == 0);
        let of_windows = self.ids.is_some() && self.revisions.is_some();
        let id = self.ids.as_ref().map_or(time_us, |ids| ids[row]);
        let early = self.finals.is_some_and(|f| !f.value(row));
        Window { time_us, id, revised, withdrawn, of_windows, early }
    }
}

/// The ids of windows of which several keys have one alert: those of one time are not the same.
fn apart<'a>(ids: &'a [i64], rows: &RecordBatch, others: &[usize]) -> Cow<'a, [i64]> {
    if others.is_empty() {
        return Cow::Borrowed(ids);
    }
    let columns: Vec<ArrayRef> = others.iter().map(|c| Arc::clone(rows.column(*c))).collect();
    let mut hashes = Vec::new();
    stable_hashes(&columns, rows.num_rows(), &mut hashes);
    let mixed = |(id, hash): (&i64, u64)| id.wrapping_add(hash.cast_signed()).max(UNKNOWN + 1);
    Cow::Owned(ids.iter().zip(hashes).map(mixed).collect())
}

/// The rows in the order in which they are taken: first those that take back what an earlier epoch
/// brought, or that would be the state before what takes its place. Of these, the newest first: the
/// state after it is known longest.
fn in_order(ids: &[u32], at: &[Window]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    if !at.iter().any(|row| row.withdrawn) {
        return order;
    }
    // Rows of a window come in the order of their revisions.
    let mut told: BTreeSet<(u32, i64)> = BTreeSet::new();
    let mut is_first = Vec::with_capacity(at.len());
    for (id, row) in ids.iter().zip(at) {
        is_first.push(row.withdrawn && !told.contains(&(*id, row.id)));
        if !row.withdrawn {
            told.insert((*id, row.id));
        }
    }
    order.sort_by_key(|row| {
        let is_first = is_first[*row];
        (!is_first, Reverse(if is_first { at[*row].time_us } else { 0 }))
    });
    order
}

/// What an alert rule did that no row tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlertCounts {
    /// Rows that moved a state, or could have.
    pub evaluated: u64,
    /// Rows that were older than the last evaluated row of their key.
    pub out_of_order: u64,
}

/// One alert rule over one edge. Its output edge is `system.alerts`.
pub struct AlertRule {
    spec: AlertSpec,
    interner: KeyInterner,
    states: Slabs<KeyState>,
    silence: Silence,
    /// What is left of keys that were put away.
    remnants: Remnants,
    /// Nothing is put away, to compare with.
    #[cfg(test)]
    keep_all: bool,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
    summary: Summary,
    counts: AlertCounts,
    ids: Vec<u32>,
}

impl AlertRule {
    /// A rule without state.
    ///
    /// # Errors
    /// The key columns have types that cannot be keys; planning rules that out.
    pub fn new(spec: AlertSpec) -> Result<Self, OperatorError> {
        let types: Vec<DataType> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        Ok(Self {
            interner: KeyInterner::new(&types)?,
            states: Slabs::default(),
            silence: Silence::new(PUT_AWAY_AFTER_US),
            remnants: Remnants::new(spec.limits.share()),
            #[cfg(test)]
            keep_all: false,
            changed: GroupSet::default(),
            summary: Summary::parse(&spec.summary, &spec.input),
            counts: AlertCounts::default(),
            ids: Vec::new(),
            spec,
        })
    }

    /// Counters since this instance was made.
    pub fn counts(&self) -> AlertCounts {
        self.counts
    }

    /// `fire` and `clear` of every row, and the rows on which one of them cannot be evaluated.
    fn conditions(
        &self,
        rows: &RecordBatch,
    ) -> Result<(BooleanArray, BooleanArray, Vec<Failed>), OperatorError> {
        let (fire, fire_errors) = condition(&self.spec.fire, rows)?;
        let (clear, clear_errors) = condition(&self.spec.clear, rows)?;
        let named = |name: &'static str| {
            move |(row, text): (usize, String)| {
                expression_failed((row, format!("`{name}`: {text}")))
            }
        };
        let mut failed: Vec<Failed> = fire_errors.into_iter().map(named("fire")).collect();
        failed.extend(clear_errors.into_iter().map(named("clear")));
        failed.sort_by_key(|f| f.row);
        failed.dedup_by_key(|f| f.row);
        Ok((fire, clear, failed))
    }

    /// Moves the state of a key by a row; nothing said: what was said of the window when it was
    /// open does not count any more.
    fn step(&mut self, id: u32, row: Window, said: Option<Said>) -> Option<Change> {
        let (state, for_us) = (&mut self.states[id as usize], self.spec.for_us);
        let counts = match said {
            Some(said) => state.take_any(row, said, for_us),
            None => state.close(row.id),
        };
        if !counts {
            self.counts.out_of_order += u64::from(said.is_some() && !row.withdrawn);
            return None;
        }
        self.counts.evaluated += u64::from(said.is_some());
        let (was, now) = (state.now, state.phase(for_us));
        state.now = now;
        let (firing, since_us, notify) = match (was, now) {
            // It began too long ago to tell anybody, and holds now.
            (Phase::Firing { told: false, .. }, Phase::Firing { since_us, told: true }) => {
                (true, since_us, true)
            }
            (Phase::Firing { told: true, .. }, Phase::Firing { .. }) => {
                // Nothing new is told, so what was told counts: its end must bear the same id.
                state.now = was;
                return None;
            }
            (Phase::Firing { since_us, told }, Phase::Normal | Phase::Pending { .. }) => {
                (false, since_us, told)
            }
            (Phase::Normal | Phase::Pending { .. }, Phase::Firing { since_us, told }) => {
                (true, since_us, told)
            }
            _ => return None,
        };
        let is_none = row.withdrawn || said.is_none();
        let reason = (!firing && is_none).then_some(WITHDRAWN);
        let time_us = row.time_us.max(state.told_us.saturating_add(1));
        state.told_us = time_us;
        Some(Change { time_us, firing, since_us, notify, reason })
    }
}

impl KeyedOperator for AlertRule {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if rows.num_rows() > 0 {
            self.rows(rows, tick, emit)?;
        }
        if emit.more { Ok(()) } else { self.put_away(tick) }
    }

    /// An alert that is firing when its input ends stays so: nothing said that it is over.
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

impl AlertRule {
    /// Takes the rows whose keys have or find a place; sets `ids`.
    fn admit(&mut self, rows: &RecordBatch, emit: &mut Emit) -> Result<RecordBatch, OperatorError> {
        let AlertSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let rows = &match withdrawn(rows, Windows::rows_of(rows)) {
            Some(gone) => {
                without_strangers((&mut self.interner, &self.remnants), keys, rows, &gone)?
            }
            None => rows.clone(),
        };
        let known = (&mut self.interner, &self.remnants);
        let rows = step.admitted_back(known, keys, rows, &mut self.ids, emit)?;
        for key in self.interner.fresh() {
            let left = self.remnants.take(*key).map(KeyState::back).transpose()?;
            self.states.put(key.id as usize, left.unwrap_or_default());
            self.silence.start(key.id, i64::MIN);
        }
        Ok(rows)
    }

    /// Puts keys away that are normal and were silent for long enough.
    fn put_away(&mut self, tick: Tick) -> Result<(), OperatorError> {
        let mut silent = Vec::new();
        for (id, seen_us) in self.silence.silent_since(tick.time_us) {
            self.changed.insert(self.interner.group(id));
            let state = &self.states[id as usize];
            let until_us = seen_us.saturating_add(TOLD_FOR_US);
            match state.is_normal() {
                true if state.was_told_ahead() && until_us > tick.time_us => {
                    self.silence.again(id, seen_us, until_us);
                }
                true => silent.push(id),
                false => {}
            }
        }
        let (states, for_us) = (&self.states, self.spec.for_us);
        let left = silent.iter().map(|id| (*id, states[*id as usize].remnant(for_us)));
        let left: Vec<(u32, Remnant)> = left.collect();
        #[cfg(test)]
        if self.keep_all {
            // What is forgotten of a key is forgotten by time, not because there is no room.
            for (id, remnant) in left {
                self.states.put(id as usize, KeyState::back(remnant)?);
            }
            return Ok(());
        }
        self.remnants.keep(&self.interner, &left)?;
        for id in silent {
            let is_last = self.interner.forget(id);
            self.states.forget(id as usize, is_last);
            self.silence.forget(id, is_last);
        }
        Ok(())
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        self.interner.size_bytes()
            + self.states.size_bytes()
            + self.silence.size_bytes()
            + self.remnants.size_bytes()
    }

    fn rows(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let rows = &self.admit(rows, emit)?;
        let ids = std::mem::take(&mut self.ids);
        ids.iter().for_each(|id| self.silence.heard(*id, tick.time_us));
        self.changed.extend(ids.iter().map(|id| self.interner.group(*id)));
        let (fire, clear, mut failed) = self.conditions(rows)?;
        let windows = Windows::of(rows, &self.spec);
        let times = windows.times;
        let at: Vec<Window> = (0..ids.len()).map(|row| windows.at(row)).collect();
        // What says that its window is none says nothing else.
        failed.retain(|f| !at[f.row].withdrawn);
        // An open window comes again: what is still wrong then, its final row tells.
        let told: Vec<Failed> = failed.iter().filter(|f| !at[f.row].early).cloned().collect();
        if !told.is_empty() {
            let (pipeline, rule) = (&self.spec.pipeline, &self.spec.name);
            emit.rejects.extend(step_rejects(pipeline, rule, rows, &told)?);
        }
        let mut changes: Vec<(usize, Change)> = Vec::new();
        for row in in_order(&ids, &at) {
            let has_failed = failed.binary_search_by_key(&row, |f| f.row).is_ok();
            if times.is_null(row) || (has_failed && !self.spec.early) {
                continue;
            }
            let (fire, clear) = (fire.value(row), clear.value(row));
            let age_us = tick.time_us.saturating_sub(times.value(row));
            let fresh = age_us <= self.spec.max_age_us;
            let said = (!has_failed).then_some(Said { fire, clear, fresh });
            if let Some(change) = self.step(ids[row], at[row], said) {
                changes.push((row, change));
            }
        }
        if !changes.is_empty() {
            let interner = &self.interner;
            changes.sort_by(|(a, one), (b, other)| {
                let by_key = || interner.bytes(ids[*a]).cmp(interner.bytes(ids[*b]));
                one.time_us.cmp(&other.time_us).then_with(by_key)
            });
            let events = event::rows(&self.spec, &self.summary, rows, &changes)?;
            emit.rows.push(events);
        }
        self.ids = ids;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
