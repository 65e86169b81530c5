//! What is known of one key: its phase, and what the last rows said that made it.
//!
//! The phase is a function of the phase before these rows and of what they say. So a row that is
//! revised, withdrawn, or found between them is put in its place, and the phase is made anew. Of
//! the row before them its window is known, no more: if all that are kept are withdrawn, because
//! they became one with an older one, and so is that one, any older row of the key is taken, for
//! what stands of them comes with them.

use super::early::Open;
use super::{Window, save};
use crate::keys::Remnant;
use crate::operator::OperatorError;

/// How many rows of a key are kept.
pub(super) const KEPT: usize = 2;

/// A row is known by its time only, because the key was away; or there is none.
pub(super) const UNKNOWN: i64 = i64::MIN;

/// So much later than its newest row is no event of a key but what a change of the rule told;
/// microseconds.
const AHEAD_US: i64 = 1_000_000;

/// Where an alert is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Normal,
    /// `fire` has been true since then, but not for long enough.
    Pending { since_us: i64 },
    /// `fire` was true for long enough; `clear` was not true since.
    Firing {
        since_us: i64,
        /// A row was not too old to tell anybody.
        told: bool,
    },
}

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) fire: bool,
    pub(super) clear: bool,
    /// It is not too old to tell anybody.
    pub(super) fresh: bool,
}

/// A row that was evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evaluated {
    pub(super) time_us: i64,
    /// What tells it from others, see [`Window::id`], or [`UNKNOWN`].
    pub(super) id: i64,
    pub(super) said: Said,
}

impl Phase {
    /// What a row makes of it.
    fn next(self, row: &Evaluated, for_us: i64) -> Self {
        let Evaluated { time_us, said: Said { fire, clear, fresh }, .. } = *row;
        let since_us = match self {
            Self::Firing { .. } if clear => return Self::Normal,
            Self::Firing { since_us, told } => {
                return Self::Firing { since_us, told: told || fresh };
            }
            Self::Normal | Self::Pending { .. } if !fire => return Self::Normal,
            Self::Normal => time_us,
            Self::Pending { since_us } => since_us,
        };
        match time_us.saturating_sub(since_us) >= for_us {
            true => Self::Firing { since_us, told: fresh },
            false => Self::Pending { since_us },
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct KeyState {
    /// Time of the newest event; each has a greater one than that before it.
    pub(super) told_us: i64,
    /// Time of the newest row that is not kept.
    pub(super) floor_us: i64,
    /// What tells that row from others, or [`UNKNOWN`].
    pub(super) floor_id: i64,
    /// The phase after it, and before the rows that are kept.
    pub(super) before: Phase,
    /// The newest rows in the order of their times; at the front there may be none.
    pub(super) rows: [Option<Evaluated>; KEPT],
    /// Rows of windows that are still open, if there are any, which come after those.
    pub(super) open: Option<Box<Open>>,
    /// The phase after them, as it was told.
    pub(super) now: Phase,
}

impl Default for KeyState {
    fn default() -> Self {
        let (before, now) = (Phase::Normal, Phase::Normal);
        let (floor_us, floor_id) = (i64::MIN, UNKNOWN);
        let rows = [None; KEPT];
        Self { told_us: i64::MIN, floor_us, floor_id, before, rows, open: None, now }
    }
}

impl KeyState {
    /// The phase after all rows.
    pub(super) fn phase(&self, for_us: i64) -> Phase {
        let rows = self.rows.iter().flatten().chain(self.open_rows());
        rows.fold(self.before, |phase, row| phase.next(row, for_us))
    }

    /// Takes what a row says; whether it counts.
    pub(super) fn take(&mut self, row: Window, said: Said, for_us: i64) -> bool {
        let new = Evaluated { time_us: row.time_us, id: row.id, said };
        let is_it = |known: &Evaluated| match known.id {
            UNKNOWN => known.time_us == row.time_us,
            id => id == row.id,
        };
        let found = self.rows.iter().rposition(|known| known.as_ref().is_some_and(is_it));
        if let Some(at) = found.filter(|_| row.revised) {
            if row.withdrawn && self.rows[at].is_some_and(|known| known.id == UNKNOWN) {
                // The key was away: which row was before it, nobody knows.
                self.floor_us = i64::MIN;
            }
            self.rows[at] = Some(new);
            if row.withdrawn {
                self.rows[..=at].rotate_right(1);
                self.rows[0] = None;
            }
            return true;
        }
        let has_room = self.rows[0].is_none();
        if row.revised && row.id == self.floor_id && (row.withdrawn || has_room) {
            // It comes again now, or is none: which one was before it, nobody knows.
            (self.floor_us, self.floor_id) = (i64::MIN, UNKNOWN);
        }
        !row.withdrawn && self.insert(new, row.of_windows, for_us)
    }

    /// Puts a row in its place. Only where rows can be revised may that be before others.
    fn insert(&mut self, new: Evaluated, of_windows: bool, for_us: i64) -> bool {
        let is_newer = |row: &&Option<Evaluated>| row.is_some_and(|r| r.time_us > new.time_us);
        let newer = self.rows.iter().rev().take_while(is_newer).count();
        let Some(at) = (KEPT - newer).checked_sub(1) else { return false };
        let after_us = self.rows[at].map_or(self.floor_us, |row| row.time_us);
        if new.time_us < after_us || (newer > 0 && !of_windows) {
            return false;
        }
        if let Some(oldest) = self.rows[0] {
            self.before = self.before.next(&oldest, for_us);
            (self.floor_us, self.floor_id) = (oldest.time_us, oldest.id);
        }
        self.rows[..=at].rotate_left(1);
        self.rows[at] = Some(new);
        true
    }

    /// A key of which something was told, but no row is known: whatever comes is its first one.
    pub(super) fn without_rows() -> Self {
        Self { floor_us: i64::MIN + 1, ..Self::default() }
    }

    /// Whether what was told of it is so much later than its rows that it has to be known: what is
    /// left of a key that was put away has the time of its rows only.
    pub(super) fn was_told_ahead(&self) -> bool {
        let newest_us = self.newest_us();
        newest_us != i64::MIN && self.told_us.saturating_sub(newest_us) > AHEAD_US
    }

    /// What is left of a key that is normal now.
    pub(super) fn remnant(&self, for_us: i64) -> Remnant {
        let mut older = self.clone();
        let newest = older.rows[KEPT - 1].take();
        let bound = newest.map_or(self.floor_us, |row| row.time_us);
        // If nothing is known of its rows, what was told is.
        let bound = if bound == i64::MIN { self.told_us } else { bound };
        let (code, since_us) = save::encode(older.phase(for_us));
        Remnant { bound, extra: since_us << 2 | code }
    }

    /// The key with what is left of it: its last row by its time, and the phase before that. Below
    /// the floor of its group nothing else is known than that.
    pub(super) fn back(remnant: Remnant) -> Result<Self, OperatorError> {
        let before = match remnant.extra {
            i64::MIN => Phase::Normal,
            extra => save::decode(extra & 3, extra >> 2)?,
        };
        let time_us = remnant.bound;
        // Whatever was before, it is normal after this.
        let said = Said { fire: false, clear: true, fresh: false };
        let mut rows = [None; KEPT];
        rows[KEPT - 1] = Some(Evaluated { time_us, id: UNKNOWN, said });
        Ok(Self { told_us: time_us, floor_us: time_us, before, rows, ..Self::default() })
    }
}
