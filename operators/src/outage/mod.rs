//! Times in which nothing could be heard: a source was away, messages may have been lost, or
//! Tidegate itself did not run.
//!
//! All of it is in the journal: events of a source's own sessions, gaps that a source noticed, and
//! ticks that are far apart. One operator per pipeline, on one worker, keeps the [log](OutageLog);
//! whenever the log changes, and in the first epoch after a start, it goes as a whole to whoever
//! asks for it, on all workers ([`crate::dataflow::to_all`]). So a reader of the log keeps nothing
//! of it in its own state: at every epoch it has what the log was at the end of that epoch.

mod log;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use crate::event::{Blocked, Gap, SessionEvent};
use crate::message::Messages;

pub use self::log::{OUTAGES_MAX, OutageLog};

/// Ticks of a running process further apart than this mean that it did not run, or stood still: an
/// idle journal has a tick each second. Microseconds.
pub const STOPPED_AFTER_US: i64 = 5_000_000;

/// So long after a connection of ours broke without a word it may be noticed, and the source be
/// away: the subscriber asks twice in a keep-alive, and waits for the answer. Microseconds.
pub const LOST_KNOWN_AFTER_US: i64 = 30_000_000;

/// So long devices that connect to us may be unheard after a stop that is too short to be noticed:
/// the stop, and as long until they are back. Microseconds.
pub const BACK_AFTER_US: i64 = 2 * STOPPED_AFTER_US;

/// How a pipeline's source, and time itself, are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutageSpec {
    /// Ticks further apart than this mean that Tidegate did not run, microseconds; `None`: they
    /// mean nothing, because the source is files or a test.
    pub stopped_after_us: Option<i64>,
    /// How many sessions with a broker the source has of its own; 0: what its events tell is about
    /// devices.
    pub sessions: u16,
}

impl OutageSpec {
    /// How long an outage may last before it is known, or is short enough to stay unknown,
    /// microseconds: what is silent for less says nothing yet.
    pub fn known_after_us(&self) -> i64 {
        match (self.sessions, self.stopped_after_us) {
            (_, None) => 0,
            (0, Some(_)) => BACK_AFTER_US,
            (_, Some(_)) => LOST_KNOWN_AFTER_US,
        }
    }
}

/// Why nothing could be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutageKind {
    /// A session of the source with its broker was lost, or could not be made.
    Away,
    /// Messages may have been lost before they reached us: a row of `system.gaps`.
    Gap,
    /// Tidegate did not run, or stood still.
    Stopped,
    /// The journal had no room, and took nothing.
    Blocked,
}

impl OutageKind {
    const ALL: [Self; 4] = [Self::Away, Self::Gap, Self::Stopped, Self::Blocked];

    fn name(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Gap => "gap",
            Self::Stopped => "stopped",
            Self::Blocked => "blocked",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An outage. All times are those of the journal, microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outage {
    /// When it began.
    pub from_us: i64,
    /// When it was over; the greatest time while it lasts.
    pub to_us: i64,
    /// Why.
    pub kind: OutageKind,
}

/// Schema of the log as its readers get it.
pub fn outages_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("from_us", DataType::Int64, false),
        Field::new("to_us", DataType::Int64, false),
        Field::new("kind", DataType::Utf8, false),
    ]))
}

/// The log as a reader has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outages(Vec<Outage>);

impl Outages {
    /// Takes the rows of an epoch of an edge of [`outages_schema`]: if there are any, they are the
    /// whole log.
    pub fn take(&mut self, rows: &RecordBatch) {
        if rows.num_rows() == 0 {
            return;
        }
        let (from, to) = (rows.column(0).as_primitive::<Int64Type>(), rows.column(1));
        let (to, kinds) = (to.as_primitive::<Int64Type>(), rows.column(2).as_string::<i32>());
        let outage = |row| {
            let kind = OutageKind::of(kinds.value(row))?;
            Some(Outage { from_us: from.value(row), to_us: to.value(row), kind })
        };
        self.0 = (0..rows.num_rows()).filter_map(outage).collect();
    }

    /// Whether one of them touches the time between two ticks. What came in with the tick that ends
    /// an outage may have come before it: of what a killed process had not sealed, nobody knows.
    pub fn overlap(&self, from_us: i64, to_us: i64) -> bool {
        self.0.iter().any(|o| o.from_us < to_us && from_us <= o.to_us)
    }

    /// The begin of the first stretch between two ticks that is longer than `least_us` and that no
    /// outage touches. One that an outage begins, and the last one, which goes on, must be longer
    /// than `last_us`.
    pub fn quiet(&self, (from_us, to_us): (i64, i64), least_us: i64, last_us: i64) -> Option<i64> {
        let mut begin_us = from_us;
        for outage in self.0.iter().filter(|o| o.to_us > from_us && o.from_us <= to_us) {
            let most_us = if begin_us == from_us { least_us } else { last_us };
            if outage.from_us.saturating_sub(begin_us) > most_us {
                return Some(begin_us);
            }
            begin_us = begin_us.max(outage.to_us);
        }
        (to_us.saturating_sub(begin_us) > last_us).then_some(begin_us)
    }

    /// The tick time at which `least_us` of time that no outage touches have passed since the tick
    /// `from_us`, in one stretch or several; `None` if an outage lasts before that.
    pub fn quiet_for(&self, from_us: i64, least_us: i64) -> Option<i64> {
        let (mut quiet_us, mut begin_us) = (0i64, from_us);
        for outage in self.0.iter().filter(|o| o.to_us > from_us) {
            let more_us = outage.from_us.saturating_sub(begin_us).max(0);
            if quiet_us.saturating_add(more_us) >= least_us {
                break;
            }
            quiet_us += more_us;
            begin_us = begin_us.max(outage.to_us);
        }
        let end_us = begin_us.saturating_add(least_us.saturating_sub(quiet_us));
        (begin_us != i64::MAX).then_some(end_us)
    }

    /// When the last one was over (the least time if there was none); `None` while one lasts.
    pub fn over_us(&self) -> Option<i64> {
        let last_us = self.0.iter().map(|o| o.to_us).max().unwrap_or(i64::MIN);
        (last_us != i64::MAX).then_some(last_us)
    }

    /// The outages, by their beginnings.
    pub fn iter(&self) -> impl Iterator<Item = &Outage> {
        self.0.iter()
    }
}

/// Changes in the order of the journal, or a saved log.
#[derive(Default)]
struct Changes {
    what: StringBuilder,
    session: Int64Builder,
    from: Int64Builder,
    to: Int64Builder,
}

/// A session is away since `from_us`.
const AWAY: &str = "away";
/// A session is back at `from_us`.
const BACK: &str = "back";
/// A session begins to be made: since the process before this one, nobody has listened.
const STARTS: &str = "starts";
/// Messages may have been lost.
const GAP: &str = "gap";
/// The journal takes nothing.
const BLOCKED: &str = "blocked";

/// Schema of the input of [`OutageLog`].
pub fn changes_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("what", DataType::Utf8, false),
        Field::new("session", DataType::Int64, false),
        Field::new("from_us", DataType::Int64, false),
        Field::new("to_us", DataType::Int64, false),
    ]))
}

impl Changes {
    fn push(&mut self, what: &str, session: i64, (from_us, to_us): (i64, i64)) {
        self.what.append_value(what);
        self.session.append_value(session);
        self.from.append_value(from_us);
        self.to.append_value(to_us);
    }

    fn finish(mut self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.what.finish()),
            Arc::new(self.session.finish()),
            Arc::new(self.from.finish()),
            Arc::new(self.to.finish()),
        ];
        RecordBatch::try_new(changes_schema(), columns).expect("columns follow the schema")
    }
}

/// What messages say of outages: rows for [`OutageLog`]. `own`: they are of the source that `spec`
/// is about; of others only what concerns all sources counts.
pub fn outage_changes(spec: OutageSpec, own: bool, messages: &Messages) -> RecordBatch {
    let mut changes = Changes::default();
    for (i, meta) in messages.index.iter().enumerate().filter(|(_, m)| m.event) {
        let (at_us, session) = (meta.received_us, i64::from(meta.session));
        if let Some(blocked) = Blocked::of(messages, i) {
            if spec.stopped_after_us.is_some() {
                changes.push(BLOCKED, 0, (blocked.from_us, blocked.to_us));
            }
            continue;
        }
        if !own {
            continue;
        }
        if let Some(gap) = Gap::of(messages, i) {
            changes.push(GAP, 0, (gap.from_us, gap.to_us));
        } else if meta.session < spec.sessions
            && let Some(event) = SessionEvent::of(messages, i)
        {
            match event.event.as_str() {
                "starting" => changes.push(STARTS, session, (at_us, at_us)),
                "lost" | "refused" | "disconnected" => {
                    let heard_us = Some(event.heard_us).filter(|us| *us > 0);
                    let from_us = heard_us.map_or(at_us, |us| us.min(at_us));
                    changes.push(AWAY, session, (from_us, from_us));
                }
                // A session that begins anew hears nothing before it has subscribed, and only then
                // it is known what was lost.
                "connected" if event.fresh => {}
                "connected" | "subscribed" => {
                    changes.push(BACK, session, (at_us, at_us));
                }
                _ => {}
            }
        }
    }
    changes.finish()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
