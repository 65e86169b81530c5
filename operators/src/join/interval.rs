//! Joins rows of two edges that have the same key and times that are near enough.
//!
//! Definition: a row of the left edge at time t has for partners the rows of the right edge with
//! the same key and a time from t - `before` to t + `after`. For each of them, or for the nearest
//! one, there is a row; of a left join also if there is none, with nulls.
//!
//! What is older than the clock of the key (its newest time on either edge) less `disorder` is
//! settled: a row that comes when its time is settled already is a row of `system.late` and no
//! partner of anything. A left row is joined when t + `after` is settled, for then all of its
//! partners are there; so rows come in the order of the times of the left edge, and any order of
//! arrival within `disorder` gives the same.
//!
//! If the key was silent for `idle_close`, and for as long as a partner that is on time can take
//! (`after` and `disorder`), the left rows that wait are joined with what is there, and what is
//! older than the clock is settled. Not more: what the key sends when it goes on is not late
//! because of the pause. But a right row that such a left row could have had for a partner is a row
//! of `system.late`, though it is still a partner of others. A time in which the source was away,
//! or Tidegate did not run, is no silence ([`crate::outage`]): after it every key has its whole
//! time anew.
//!
//! State per key: the left rows that wait, and the right rows that can still have a partner. If
//! there are more than `rows_max` of either after an epoch, its newest rows are rejects. (Not
//! before that: what an epoch brings and settles need not wait.) A key that is forgotten leaves how
//! far it was settled.

mod rule;

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;

use self::rule::{Refused, Rule, insert};
use super::known::Known;
use super::save::{self, StateRow};
use super::sides::{Joined, Row, Side, Sides};
use crate::batch::Tick;
use crate::expression::Failed;
use crate::grouped::{EPOCH_BYTES_MAX, runs};
use crate::keys::Remnant;
use crate::late::LateRows;
use crate::operator::{AsideOperator, Emit, JoinOperator, OperatorError};
use crate::snapshot::Snapshot;
use crate::spec::{JoinSpec, Partners};
use crate::system::step_rejects;

/// Reason of a row whose key has as many rows waiting as it may.
pub const REASON_ROWS_MAX: &str = "rows_max";
/// Reason of a row with more partners than it may have.
pub const REASON_MATCHES_MAX: &str = "matches_max";

/// Numbers of a state row: of the key, then the time of a row.
const NUMBERS: [&str; 5] = ["clock_us", "settled_us", "told_us", "last_tick_us", "time_us"];

/// Rows of an edge in the order of their times; those of one time in that of their arrival.
type Waiting = VecDeque<(i64, Row)>;

#[derive(Clone, Debug)]
struct KeyState {
    /// Newest time of a row.
    clock_us: i64,
    /// What is older is settled.
    settled_us: i64,
    /// Up to here, a right row is too late for a left row that was joined because of silence.
    told_us: i64,
    left: Waiting,
    right: Waiting,
}

/// Bytes of a key without its rows.
pub(super) const KEY_BYTES: u64 = size_of::<KeyState>() as u64;

impl Default for KeyState {
    fn default() -> Self {
        Self::back(i64::MIN, i64::MIN)
    }
}

impl KeyState {
    fn back(settled_us: i64, clock_us: i64) -> Self {
        let (left, right) = (Waiting::new(), Waiting::new());
        Self { clock_us, settled_us, told_us: i64::MIN, left, right }
    }

    /// Lets go of the right rows that no left row can have any more.
    fn let_go(&mut self, rule: Rule) {
        // The oldest left row that waits or can come.
        let oldest_us = self.left.front().map_or(self.settled_us, |l| l.0.min(self.settled_us));
        let from_us = oldest_us.saturating_sub(rule.before_us);
        let gone = self.right.partition_point(|(time_us, _)| *time_us < from_us);
        self.right.drain(..gone);
    }

    fn of(&mut self, side: Side) -> &mut Waiting {
        match side {
            Side::Left => &mut self.left,
            Side::Right => &mut self.right,
        }
    }
}

/// What an edge brought in an epoch.
struct Came {
    rows: RecordBatch,
    /// Key, time and place of those that were taken, in this order.
    taken: Vec<(u32, i64, usize)>,
}

impl Came {
    /// Those of each key.
    fn by_key(&self) -> impl Iterator<Item = &[(u32, i64, usize)]> {
        self.taken.chunk_by(|a, b| a.0 == b.0)
    }
}

/// The operator.
pub struct IntervalJoin {
    sides: Sides,
    rule: Rule,
    known: Known<KeyState>,
    late: LateRows,
}

/// What comes out of an epoch.
#[derive(Default)]
struct Out {
    /// Key, time of the left row, and the rows.
    joined: Vec<(u32, i64, Joined)>,
    /// Left rows that are refused: too many partners, or too many bytes.
    refused: Vec<(u32, i64, Row, Refused)>,
}

impl IntervalJoin {
    /// An operator without state.
    ///
    /// # Errors
    /// It is a join of windows, or has columns of types that no row can have; planning rules both
    /// out.
    pub fn new(spec: JoinSpec) -> Result<Self, OperatorError> {
        let Partners::Interval {
            left,
            right,
            before_us,
            after_us,
            nearest,
            matches_max,
            rows_max,
            forget_after_us,
        } = spec.partners
        else {
            let text = format!("`{}` does not join within an interval", spec.name);
            return Err(OperatorError::State(text));
        };
        let times = [left, right];
        let silent_us = match spec.live {
            true => spec.idle_close_us.max(after_us.saturating_add(spec.disorder_us)),
            false => i64::MAX,
        };
        // Not before its rows can have no partners any more.
        let reach_us = before_us.saturating_add(after_us).saturating_add(spec.disorder_us);
        let gone_us = forget_after_us.max(silent_us).max(reach_us);
        Ok(Self {
            rule: Rule {
                times,
                before_us,
                after_us,
                nearest,
                matches_max,
                rows_max,
                bytes_max: EPOCH_BYTES_MAX,
            },
            known: Known::new(spec.limits.share(), (silent_us, gone_us)),
            late: LateRows::new(&spec.pipeline, &spec.name),
            sides: Sides::new(spec)?,
        })
    }

    /// Takes the rows of one edge.
    fn take(
        &mut self,
        side: Side,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<Came, OperatorError> {
        if rows.num_rows() == 0 {
            return Ok(Came { rows: rows.clone(), taken: Vec::new() });
        }
        let (arrived, fresh) = self.sides.admit((side, &self.known.remnants), rows, emit)?;
        self.known.start(&fresh, |left| KeyState::back(left.bound, left.extra));
        let column = arrived.rows.column(self.rule.times[usize::from(side == Side::Right)]);
        let times = column.as_primitive::<TimestampMicrosecondType>();
        let mut taken = Vec::with_capacity(arrived.ids.len());
        for (row, (id, time_us)) in arrived.ids.iter().zip(times.values()).enumerate() {
            self.known.heard(*id, &self.sides.interner, tick.time_us);
            let key = &self.known.keys[*id as usize];
            let is_settled = *time_us < key.settled_us;
            if is_settled || side == Side::Right && *time_us <= key.told_us {
                // Of a key below the floor of its group no clock is known.
                let clock_us = if is_settled { key.clock_us.max(*time_us) } else { key.told_us };
                let behind_us = clock_us.saturating_sub(*time_us);
                self.late.push(*id, *time_us, (*time_us, *time_us), behind_us);
            }
            if !is_settled {
                taken.push((*id, *time_us, row));
            }
        }
        taken.sort_unstable();
        let came = Came { taken, rows: arrived.rows.clone() };
        for own in came.by_key() {
            let (id, first_us, _) = own[0];
            let new = own.iter().map(|(_, time_us, row)| (*time_us, arrived.bytes(*row)));
            insert(self.known.keys[id as usize].of(side), first_us, new);
        }
        Ok(came)
    }

    /// Moves the clocks of keys and joins what is settled by that.
    fn settle(&mut self, came: &[Came; 2], out: &mut Out) {
        let newest = came.iter().flat_map(Came::by_key).filter_map(|own| own.last());
        let mut ids = Vec::new();
        for (id, time_us, _) in newest {
            let key = &mut self.known.keys[*id as usize];
            key.clock_us = key.clock_us.max(*time_us);
            ids.push(*id);
        }
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let clock_us = self.known.keys[id as usize].clock_us;
            let to_us = clock_us.saturating_sub(self.sides.spec.disorder_us);
            if to_us > self.known.keys[id as usize].settled_us {
                self.known.keys[id as usize].settled_us = to_us;
                self.join_before(id, to_us.saturating_sub(self.rule.after_us), out);
            }
        }
    }

    /// Joins what waits of keys that were silent for long enough.
    fn settle_silent(&mut self, tick: Tick, out: &mut Out) {
        for id in self.known.silent(tick.time_us) {
            self.join_all(id, out);
        }
    }

    /// Joins all left rows of a key with what is there.
    fn join_all(&mut self, id: u32, out: &mut Out) {
        let key = &mut self.known.keys[id as usize];
        let Some((last_us, _)) = key.left.back() else { return };
        key.told_us = key.told_us.max(last_us.saturating_add(self.rule.after_us));
        key.settled_us = key.settled_us.max(key.clock_us);
        self.join_before(id, i64::MAX, out);
    }

    /// Joins the left rows of a key that are older than this.
    fn join_before(&mut self, id: u32, before_us: i64, out: &mut Out) {
        let (rule, outer) = (self.rule, self.sides.spec.outer);
        self.known.change(id, &self.sides.interner);
        let key = &mut self.known.keys[id as usize];
        let mut bytes = 0;
        while key.left.front().is_some_and(|(time_us, _)| *time_us < before_us) {
            let Some((time_us, row)) = key.left.pop_front() else { break };
            let found = rule.partners(time_us, &key.right);
            if found.len() > rule.matches_max {
                out.refused.push((id, time_us, row, Refused::Matches(found.len())));
                continue;
            }
            if found.is_empty() && outer {
                bytes += row.len();
                out.joined.push((id, time_us, (row, None)));
                continue;
            }
            let right = key.right.range(found);
            let own: usize = right.clone().map(|(_, right)| row.len() + right.len()).sum();
            if own > 0 && bytes + own > rule.bytes_max {
                out.refused.push((id, time_us, row, Refused::Bytes));
                continue;
            }
            bytes += own;
            let joined = right.map(|(_, right)| (Arc::clone(&row), Some(Arc::clone(right))));
            out.joined.extend(joined.map(|joined| (id, time_us, joined)));
        }
        key.let_go(rule);
    }

    /// Rejects of what came, the newest first, what waits beyond `rows_max`: what has waited goes
    /// on waiting.
    fn refuse(&mut self, side: Side, came: &Came, emit: &mut Emit) -> Result<(), OperatorError> {
        let (rule, rows_max) = (self.rule, self.rule.rows_max);
        let mut failed = Vec::new();
        for own in came.by_key() {
            let key = &mut self.known.keys[own[0].0 as usize];
            let waiting = key.of(side);
            let over = waiting.len().saturating_sub(rows_max);
            for (_, time_us, row) in own.iter().rev().take(over) {
                // Of one time, what came last is last.
                let after = waiting.partition_point(|(t, _)| t <= time_us);
                waiting.remove(after.saturating_sub(1));
                let detail = format!("{rows_max} rows of its key wait already");
                failed.push(Failed { row: *row, reason: REASON_ROWS_MAX, detail });
            }
            if over > 0 {
                key.let_go(rule);
            }
        }
        if !failed.is_empty() {
            failed.sort_unstable_by_key(|f| f.row);
            let JoinSpec { pipeline, name, .. } = &self.sides.spec;
            emit.rejects.extend(step_rejects(pipeline, name, &came.rows, &failed)?);
        }
        Ok(())
    }

    fn give(&mut self, out: Out, emit: &mut Emit) -> Result<(), OperatorError> {
        let interner = &self.sides.interner;
        let by_key = |a: u32, b: u32| interner.bytes(a).cmp(interner.bytes(b));
        let Out { mut joined, mut refused } = out;
        // Stable: rows of one time and key stay in the order of their arrival.
        joined.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| by_key(a.0, b.0)));
        refused.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| by_key(a.0, b.0)));
        let joined: Vec<Joined> = joined.into_iter().map(|j| j.2).collect();
        emit.rows.extend(self.sides.batches(&joined, None)?);
        let spec = &self.sides.spec;
        for run in runs(refused.iter().map(|r| r.2.len())) {
            let refused = &refused[run];
            let columns = self.sides.codecs.0.decode(refused.iter().map(|r| &*r.2))?;
            let rows = RecordBatch::try_new(Arc::clone(&spec.left), columns)?;
            let failed = refused.iter().enumerate().map(|(row, r)| self.rule.failed(row, r.3));
            let failed: Vec<Failed> = failed.collect();
            emit.rejects.extend(step_rejects(&spec.pipeline, &spec.name, &rows, &failed)?);
        }
        Ok(())
    }

    /// Forgets keys that were silent for long enough, but for how far they were settled.
    fn forget(&mut self, tick: Tick) -> Result<(), OperatorError> {
        let left = |key: &KeyState| Remnant { bound: key.settled_us, extra: key.clock_us };
        self.known.forget(&mut self.sides.interner, tick.time_us, |_| 0, left)
    }
}

impl JoinOperator for IntervalJoin {
    fn epoch(
        &mut self,
        left: &RecordBatch,
        right: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let came =
            [self.take(Side::Left, left, tick, emit)?, self.take(Side::Right, right, tick, emit)?];
        let mut out = Out::default();
        self.settle(&came, &mut out);
        // A key that is silent at once is so in the call that it is heard in.
        if !emit.more || self.known.is_silent_at_once() {
            self.settle_silent(tick, &mut out);
        }
        self.refuse(Side::Left, &came[0], emit)?;
        self.refuse(Side::Right, &came[1], emit)?;
        self.give(out, emit)?;
        let spec = &self.sides.spec;
        self.late.finish_of(&self.sides.interner, (&spec.left_keys, &spec.left), emit)?;
        if emit.more { Ok(()) } else { self.forget(tick) }
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut out = Out::default();
        let ids: Vec<u32> = self.sides.interner.ids().collect();
        ids.into_iter().for_each(|id| self.join_all(id, &mut out));
        self.give(out, emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let groups = self.known.cut(whole);
        let (keys, seen_us) = (self.known.keys.clone(), self.known.seen_us());
        let rows_of = move |id: u32| {
            let key = &keys[id as usize];
            let seen_us = seen_us[id as usize];
            let own = [key.clock_us, key.settled_us, key.told_us, seen_us].map(Some);
            let row = |(time_us, row): &(i64, Row), side: Side| {
                let numbers = own.into_iter().chain([Some(*time_us)]).collect();
                let of = |which: Side| (which == side).then(|| Arc::clone(row));
                StateRow { numbers, left: of(Side::Left), right: of(Side::Right) }
            };
            let left = key.left.iter().map(|r| row(r, Side::Left));
            let mut rows: Vec<StateRow> =
                left.chain(key.right.iter().map(|r| row(r, Side::Right))).collect();
            if rows.is_empty() {
                rows.push(StateRow::of_key(&own, NUMBERS.len()));
            }
            rows
        };
        save::cut(&self.sides, self.known.remnants.clone(), groups, &NUMBERS, rows_of)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        for (id, rows) in save::load(&mut self.sides, &mut self.known.remnants, state, &NUMBERS)? {
            let (mut key, mut seen) = (KeyState::default(), None);
            for (i, row) in rows.into_iter().enumerate() {
                let [clock, settled, told, heard, time] = row.numbers[..] else {
                    return Err(OperatorError::State("a row has too few numbers".to_owned()));
                };
                if i == 0 {
                    let [clock_us, settled_us, told_us] =
                        [clock, settled, told].map(|number| number.unwrap_or(i64::MIN));
                    key = KeyState { told_us, ..KeyState::back(settled_us, clock_us) };
                    seen = heard;
                }
                let Some(time_us) = time else { continue };
                key.left.extend(row.left.map(|row| (time_us, row)));
                key.right.extend(row.right.map(|row| (time_us, row)));
            }
            self.known.restore(id, key, seen.unwrap_or(i64::MIN));
        }
        Ok(())
    }
}

impl AsideOperator for IntervalJoin {
    /// The log of outages.
    fn aside(&mut self, rows: &RecordBatch) {
        self.known.outages(rows);
    }
}

#[cfg(test)]
mod tests;
