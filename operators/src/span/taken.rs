//! Readings that are older than what is final, and are taken all the same: all that they change is
//! still open, so what is kept of it is enough.
//!
//! - A session that is open takes what is not older than its first reading. An older reading begins
//!   it anew, or one of its own that is open, if no session that is final is near.
//! - A state that is open takes what leaves it open; and a reading that is newer than all others,
//!   and than the end of a state that was cut, is taken whatever it says.
//! - A count takes what comes after the last block of its readings that is whole, and after all
//!   that was too late.
//! - Around readings, windows that are not over take it, since the readings that they are made of
//!   are all kept; for those that are over it is late.

use super::count::Count;
use super::keys::{Entry, KeyState, Marks};
use super::rule::Rule;
use super::session::Session;
use super::state::State;
use crate::spec::{LatePolicy, WindowSpec};

/// What becomes of a reading that is older than what is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is too late, and changes nothing.
    Late,
    /// It is in the windows that are not final, and too late for others.
    Part,
    /// It is in all of its windows.
    Whole,
}

/// What there is of a key at the time before which all is final.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looked {
    /// Where what is open begins.
    open_us: Option<i64>,
    /// Where the last one that is final ends, of those of which something is kept.
    ended_us: i64,
}

impl Rule {
    /// What becomes of a reading (its time and marks) of a key; what is older than `final_us` is
    /// final, and it is older. `looked` is of this key and time, if it was looked.
    pub(super) fn taken(
        &self,
        spec: &WindowSpec,
        (key, looked): (&KeyState, &mut Option<Looked>),
        reading: (i64, Marks),
        final_us: i64,
    ) -> Taken {
        if spec.late == LatePolicy::Table {
            return Taken::Late;
        }
        let time_us = reading.0;
        let is_whole = match self {
            Self::Count(rule) => rule.takes(key, time_us, final_us),
            Self::Session(rule) => rule.takes((key, looked), time_us, final_us),
            Self::State(rule) => rule.takes((key, looked), reading, final_us),
            Self::Sliding(rule) => {
                let reach_us = rule.before_us.saturating_add(rule.after_us);
                let is_in_some = time_us >= final_us.saturating_sub(reach_us);
                return if is_in_some { Taken::Part } else { Taken::Late };
            }
        };
        if is_whole { Taken::Whole } else { Taken::Late }
    }
}

/// Looks at the entries of a key until before `final_us`.
fn look(rule: Rule, key: &KeyState, final_us: i64) -> Looked {
    let (open, closed) = rule.gone_through(key, final_us);
    let open_us = open.map(|open| key.entries[open].first_us);
    Looked { open_us, ended_us: closed.last().map_or(i64::MIN, |c| c.end_us) }
}

impl Session {
    fn takes(
        self,
        (key, looked): (&KeyState, &mut Option<Looked>),
        time_us: i64,
        final_us: i64,
    ) -> bool {
        let Looked { open_us, ended_us } =
            *looked.get_or_insert_with(|| look(Rule::Session(self), key, final_us));
        if open_us.is_some_and(|open_us| open_us <= time_us) {
            return true;
        }
        let until_us = time_us.saturating_add(self.gap_us);
        let is_alone = ended_us.max(key.gone_us).saturating_add(self.gap_us) < time_us;
        let stays_open = open_us.is_some_and(|us| us <= until_us) || final_us <= until_us;
        let is_cut = self.max_us.is_some_and(|max_us| time_us.saturating_add(max_us) <= final_us);
        let takes = is_alone && stays_open && !is_cut;
        if takes {
            *looked = None;
        }
        takes
    }
}

impl Count {
    fn takes(self, key: &KeyState, time_us: i64, final_us: i64) -> bool {
        let is_final = |e: &&Entry| e.first_us < final_us;
        let rows = |e: &Entry| e.rows;
        let all = || key.entries.iter().take_while(is_final);
        let complete = self.passed(key, final_us);
        let is_before = |e: &&Entry| e.last_us <= time_us;
        let before = key.passed + all().take_while(is_before).map(rows).sum::<i64>();
        before >= self.open_from(complete) && key.gone_us <= time_us
    }
}

impl State {
    fn takes(
        self,
        (key, looked): (&KeyState, &mut Option<Looked>),
        (time_us, marks): (i64, Marks),
        final_us: i64,
    ) -> bool {
        let Looked { open_us, ended_us } =
            *looked.get_or_insert_with(|| look(Rule::State(self), key, final_us));
        let older = key.entries.partition_point(|e| e.first_us < final_us);
        // Only the first can have readings that are later than those of the next.
        let ends = [key.entries.front(), key.entries.get(older.wrapping_sub(1))];
        let last_us = ends.into_iter().flatten().take(older.min(2)).map(|e| e.last_us);
        let last_us = last_us.max().unwrap_or(i64::MIN);
        // What began at the time of another one may be known to others, and not here any more: what
        // begins then would have its revisions anew.
        if last_us.max(ended_us).max(key.gone_us) < time_us {
            *looked = None;
            return true;
        }
        open_us.is_some_and(|open_us| open_us <= time_us) && !self.resets(marks)
    }
}
