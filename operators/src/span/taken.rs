//! Readings that are older than what is final, and are taken all the same: all that they change is
//! still open, so what is kept of it is enough.
//!
//! - A session that is open takes what is not older than its first reading. An older reading begins
//!   it anew, or one of its own that is open, if no session that is final is near.
//! - A state that is open takes what leaves it open; and a reading that no older one comes after is
//!   taken whatever it says.
//! - Around readings, windows that are not over take it, since the readings that they are made of
//!   are all kept; for those that are over it is late.

use super::keys::{Cursor, KeyState, Marks};
use super::rule::{Horizon, Rule};
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

/// What is open of a key at the time before which all is final: where it begins. None if it was not
/// looked yet.
pub(super) type Open = Option<Option<i64>>;

impl Rule {
    /// What becomes of a reading (its time and marks) of a key; what is older than `final_us` is
    /// final, and it is older. `open` is of this key and time.
    pub(super) fn taken(
        &self,
        spec: &WindowSpec,
        (key, open): (&KeyState, &mut Open),
        reading: (i64, Marks),
        final_us: i64,
    ) -> Taken {
        if spec.late == LatePolicy::Table {
            return Taken::Late;
        }
        let time_us = reading.0;
        let is_whole = match self {
            Self::Count(_) => false,
            Self::Session(rule) => rule.takes((key, open), time_us, final_us),
            Self::State(rule) => rule.takes((key, open), reading, final_us),
            Self::Sliding(rule) => {
                let reach_us = rule.before_us.saturating_add(rule.after_us);
                let is_in_some = time_us >= final_us.saturating_sub(reach_us);
                return if is_in_some { Taken::Part } else { Taken::Late };
            }
        };
        if is_whole { Taken::Whole } else { Taken::Late }
    }
}

/// Until before `final_us`.
fn horizon(final_us: i64) -> Horizon {
    Horizon { us: final_us, final_us: i64::MIN, end: false }
}

impl Session {
    fn takes(&self, (key, open): (&KeyState, &mut Open), time_us: i64, final_us: i64) -> bool {
        let until_us = time_us.saturating_add(self.gap_us);
        match *open {
            Some(Some(open_us)) if open_us <= time_us => return true,
            Some(open_us) if until_us < open_us.unwrap_or(final_us) => return false,
            _ => {}
        }
        let (mut cursor, mut closed) = (Cursor::default(), Vec::new());
        self.scan(&key.entries, &mut cursor, horizon(final_us), &mut closed);
        let open_us = cursor.open.map(|open| key.entries[open].first_us);
        *open = Some(open_us);
        if open_us.is_some_and(|open_us| open_us <= time_us) {
            return true;
        }
        let before_us = closed.last().map_or(key.gone_us, |c| c.end_us.max(key.gone_us));
        let is_alone = before_us.saturating_add(self.gap_us) < time_us;
        let stays_open = open_us.is_some_and(|us| us <= until_us) || final_us <= until_us;
        let is_cut = self.max_us.is_some_and(|max_us| time_us.saturating_add(max_us) <= final_us);
        let takes = is_alone && stays_open && !is_cut;
        if takes {
            *open = None;
        }
        takes
    }
}

impl State {
    fn takes(
        &self,
        (key, open): (&KeyState, &mut Open),
        (time_us, marks): (i64, Marks),
        final_us: i64,
    ) -> bool {
        let older = key.entries.partition_point(|e| e.first_us < final_us);
        // Only the first can have readings that are later than those of the next.
        let ends = [key.entries.front(), key.entries.get(older.wrapping_sub(1))];
        let last_us = ends.into_iter().flatten().take(older.min(2)).map(|e| e.last_us);
        let last_us = last_us.max().unwrap_or(i64::MIN);
        if last_us.max(key.gone_us) <= time_us {
            *open = None;
            return true;
        }
        let look = || {
            let mut cursor = Cursor::default();
            self.scan(&key.entries, &mut cursor, horizon(final_us), &mut Vec::new());
            cursor.open.map(|open| key.entries[open].first_us)
        };
        let open_us = *open.get_or_insert_with(look);
        open_us.is_some_and(|open_us| open_us <= time_us) && !self.resets(marks)
    }
}
