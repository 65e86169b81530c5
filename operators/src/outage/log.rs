//! The operator that keeps the log of outages of one pipeline.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;

use super::{
    AWAY, BACK, BLOCKED, Changes, Outage, OutageKind, OutageSpec, STARTS, changes_schema,
    outages_schema,
};
use crate::batch::Tick;
use crate::key::key_group;
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};

/// Outages that are remembered; beyond that the two oldest become one, so that no time of which
/// little is known counts as quiet. One a minute, it is four hours.
pub const OUTAGES_MAX: usize = 256;

/// The log. It has no keys, so it is on one worker.
pub struct OutageLog {
    spec: OutageSpec,
    /// Whether this is the worker that keeps it: all workers have ticks.
    is_here: bool,
    /// Time of the last tick.
    tick_us: Option<i64>,
    /// Numbers of the sessions that are away.
    away: BTreeSet<i64>,
    /// By their beginnings; at most one lasts.
    outages: Vec<Outage>,
    /// Whether its readers have it as it is.
    told: bool,
}

impl OutageLog {
    /// An empty log. `is_here`: this worker owns what has no key.
    pub fn new(spec: OutageSpec, is_here: bool) -> Self {
        let (away, outages) = (BTreeSet::new(), Vec::new());
        Self { spec, is_here, tick_us: None, away, outages, told: true }
    }

    fn add(&mut self, outage: Outage) {
        let at = self.outages.partition_point(|o| *o <= outage);
        self.outages.insert(at, outage);
        if self.outages.len() > OUTAGES_MAX {
            // Not one that lasts: its end is still to come.
            let mut oldest = self.outages.extract_if(.., |o| o.to_us != i64::MAX);
            if let (Some(first), Some(second)) = (oldest.next(), oldest.next()) {
                drop(oldest);
                let to_us = first.to_us.max(second.to_us);
                // What a gap lost no broker has kept, whatever the other one was.
                let is_gap = second.kind == OutageKind::Gap;
                let kind = if is_gap { OutageKind::Gap } else { first.kind };
                self.add(Outage { to_us, kind, ..first });
            }
        }
        self.told = false;
    }

    fn away(&mut self, session: i64, from_us: i64) {
        self.away.insert(session);
        let lasts = self.outages.iter().position(|o| o.to_us == i64::MAX);
        if lasts.is_some_and(|at| self.outages[at].from_us <= from_us) {
            return;
        }
        // Of several sessions, one that is missed later may have been heard less lately.
        if let Some(at) = lasts {
            self.outages.remove(at);
        }
        self.add(Outage { from_us, to_us: i64::MAX, kind: OutageKind::Away });
    }

    /// `tick_us`: the tick before.
    fn change(
        &mut self,
        (what, session): (&str, i64),
        (from_us, to_us): (i64, i64),
        tick_us: Option<i64>,
    ) {
        match what {
            AWAY => self.away(session, from_us),
            STARTS => self.away(session, tick_us.unwrap_or(from_us).min(from_us)),
            BLOCKED => {
                let kind = OutageKind::Blocked;
                self.outages.retain(|o| (o.kind, o.from_us) != (kind, from_us));
                self.add(Outage { from_us, to_us, kind });
            }
            BACK => {
                if self.away.remove(&session) && self.away.is_empty() {
                    self.back(from_us);
                }
            }
            _ => self.add(Outage { from_us, to_us, kind: OutageKind::Gap }),
        }
    }

    /// Nothing is away any more.
    fn back(&mut self, at_us: i64) {
        if let Some(at) = self.outages.iter().position(|o| o.to_us == i64::MAX) {
            let outage = self.outages.remove(at);
            self.add(Outage { to_us: at_us.max(outage.from_us), ..outage });
        }
    }

    fn rows(&self) -> RecordBatch {
        let number = |f: &dyn Fn(&Outage) -> i64| {
            Arc::new(Int64Array::from_iter_values(self.outages.iter().map(f)))
        };
        let kinds = self.outages.iter().map(|o| o.kind.name());
        let kinds = Arc::new(StringArray::from_iter_values(kinds));
        let columns = vec![number(&|o| o.from_us) as _, number(&|o| o.to_us) as _, kinds as _];
        RecordBatch::try_new(outages_schema(), columns).expect("columns follow the schema")
    }
}

/// In saved state: the last tick; what is away; else an outage of this kind.
const TICK: &str = "tick";
const SESSION: &str = "session";

impl KeyedOperator for OutageLog {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if !self.is_here {
            return Ok(());
        }
        let last_us = self.tick_us.replace(tick.time_us);
        if let Some((after_us, from_us)) = self.spec.stopped_after_us.zip(last_us)
            && tick.time_us.saturating_sub(from_us) > after_us
        {
            self.add(Outage { from_us, to_us: tick.time_us, kind: OutageKind::Stopped });
        }
        let what = rows.column(0).as_string::<i32>();
        let [sessions, from, to] = [1, 2, 3].map(|c| rows.column(c).as_primitive::<Int64Type>());
        for row in 0..rows.num_rows() {
            let times = (from.value(row), to.value(row));
            self.change((what.value(row), sessions.value(row)), times, last_us);
        }
        if !std::mem::replace(&mut self.told, true) {
            emit.rows.push(self.rows());
        }
        Ok(())
    }

    fn end(&mut self, _emit: &mut Emit) -> Result<(), OperatorError> {
        Ok(())
    }

    /// A row for the tick, for each session that is away, and for each outage.
    fn cut(&mut self, whole: bool) -> Snapshot {
        let group = key_group(0);
        let mut changed = GroupSet::default();
        changed.insert(group);
        let mut state = Changes::default();
        if let Some(tick_us) = self.tick_us {
            state.push(TICK, 0, (tick_us, tick_us));
        }
        self.away.iter().for_each(|session| state.push(SESSION, *session, (0, 0)));
        for outage in &self.outages {
            state.push(outage.kind.name(), 0, (outage.from_us, outage.to_us));
        }
        Snapshot::new(if whole { GroupSet::ALL } else { changed }, move |groups| {
            let rows =
                if groups.contains(group) { state.finish() } else { Changes::default().finish() };
            let of_rows = std::iter::repeat_n(group, rows.num_rows());
            Ok(SavedRows { groups: counts(groups, of_rows), rows })
        })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        if state.schema().fields() != changes_schema().fields() {
            return Err(OperatorError::State("this is not a log of outages".into()));
        }
        let what = state.column(0).as_string::<i32>();
        let [sessions, from, to] = [1, 2, 3].map(|c| state.column(c).as_primitive::<Int64Type>());
        for row in 0..state.num_rows() {
            let (from_us, to_us) = (from.value(row), to.value(row));
            match (what.value(row), OutageKind::of(what.value(row))) {
                (TICK, _) => self.tick_us = Some(from_us),
                (SESSION, _) => {
                    // Of fewer connections than there were, some never come back.
                    let is_there = |session: &i64| *session < i64::from(self.spec.sessions);
                    self.away.extend(Some(sessions.value(row)).filter(is_there));
                }
                (_, Some(kind)) => self.add(Outage { from_us, to_us, kind }),
                (other, None) => {
                    let text = format!("an outage cannot be of kind {other}");
                    return Err(OperatorError::State(text));
                }
            }
        }
        if self.away.is_empty() {
            self.back(self.tick_us.unwrap_or_default());
        }
        Ok(())
    }
}
