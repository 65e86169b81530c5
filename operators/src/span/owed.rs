//! Readings that are too late, and touch what is not final: they are put off.
//!
//! Where windows are computed again from stored readings, that can be done of a late reading once
//! all that it changes is final: its session, with what it joins, or, where a maximum cuts, up to a
//! session after it that is cut; of states, all up to a reading that ends whatever is open. As long
//! as that is not so, the reading is *put off*, and so are the late readings of its key that come
//! after it: rows of `system.late` whose `window_end` is their own time. When it is so, one more
//! row tells it: from the first of them (`window_start`) on, they can be done; `time` and
//! `window_end` say what is final, `journal_offset` which readings of the key had come by then, and
//! `first_offset` that the first of them came no earlier. So a key keeps a few numbers, however
//! many readings are put off.
//!
//! Of counts that overlap, some that a late reading is in can be final, and others not. It is done
//! for the final ones at once, like one that is not put off; and again for what has become final
//! since, when rows tell it: when all that it is in are, or, as others come after it, all that were
//! open when one was told last.

use super::SpanOperator;
use super::count::Count;
use super::keys::KeyState;
use super::rule::{Folding, Rule};
use super::session::Session;
use super::state::State;
use crate::late::LateRows;

/// The readings of a key that are put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    /// Time of the first, and of the last, µs.
    pub(super) first_us: i64,
    pub(super) last_us: i64,
    /// Of counts, the clock of the key when it was told last what has become final, µs.
    pub(super) since_us: i64,
    /// Place in the journal of the first of them, or one before it.
    pub(super) first_offset: i64,
    /// Place in the journal of the newest reading of the key.
    pub(super) offset: i64,
}

impl Owed {
    fn add(&mut self, time_us: i64) {
        self.first_us = self.first_us.min(time_us);
        self.last_us = self.last_us.max(time_us);
    }

    /// A reading of the key came, put off or not.
    pub(super) fn reach(&mut self, offset: Option<i64>) {
        self.offset = self.offset.max(offset.unwrap_or(i64::MIN));
    }
}

impl Rule {
    /// Tells of a reading of a key that is too late for what is older than `final_us`, and puts it
    /// off if that is to be done.
    pub(super) fn tell_late(
        &self,
        (id, key): (u32, &mut KeyState),
        (time_us, final_us): (i64, i64),
        (late, puts_off): (&mut LateRows, bool),
    ) {
        let final_us = match (puts_off, self) {
            (true, Self::Count(rule)) => {
                rule.owe(key, (time_us, final_us), late.offset);
                rule.told_us(key, final_us).max(time_us.saturating_add(1)).min(final_us)
            }
            (true, _) => self.put_off((id, &mut *key), (time_us, final_us), late),
            (false, _) => final_us,
        };
        late.push(id, time_us, (time_us, final_us), key.clock_us - time_us);
    }

    /// A reading of a key is too late; what is older than `final_us` is final. Puts it off if it
    /// cannot be told yet what it changes. Returns before which time nothing is revised that it
    /// touches: if it is put off, its own.
    fn put_off(
        &self,
        (id, key): (u32, &mut KeyState),
        (time_us, final_us): (i64, i64),
        late: &mut LateRows,
    ) -> i64 {
        if key.owed.is_none() {
            if self.is_decided(key, time_us, final_us) {
                return final_us;
            }
            let (first_us, last_us) = (time_us, time_us);
            let first_offset = late.offset.unwrap_or_default();
            let mut owed = Owed { first_us, last_us, since_us: 0, first_offset, offset: 0 };
            // What came in one message is not told apart.
            for (time_us, final_us) in late.of_place(id) {
                *final_us = time_us;
                owed.add(time_us);
            }
            key.owed = Some(Box::new(owed));
        }
        if let Some(owed) = &mut key.owed {
            owed.add(time_us);
            owed.first_offset = owed.first_offset.min(late.offset.unwrap_or_default());
            owed.reach(late.offset);
        }
        time_us
    }

    /// Whether all is final that late readings change, of which the last is of this time.
    fn is_decided(&self, key: &KeyState, last_us: i64, final_us: i64) -> bool {
        match self {
            Self::Session(rule) => rule.is_decided(key, last_us, final_us),
            // What ended with a reading is over when another one came after it.
            Self::State(rule) => last_us < rule.resets_of(key, final_us).over_us,
            Self::Count(rule) => rule.is_decided(key, last_us, final_us),
            // They say themselves what is final.
            Self::Sliding(_) => true,
        }
    }
}

impl Count {
    /// Whether all windows are final that a late reading of this time is in.
    fn is_decided(self, key: &KeyState, late_us: i64, final_us: i64) -> bool {
        // What is older than all is in the first window.
        self.passed(key, late_us.saturating_add(1)).max(1) <= self.open(key, final_us)
    }

    /// With which reading the first window begins that is not final.
    fn open(self, key: &KeyState, final_us: i64) -> i64 {
        self.first_open(self.passed(key, final_us)) * self.hop
    }

    /// Before which time windows end that are final. What is taken later, although it is older than
    /// all that is final, comes behind the last block of readings that is whole.
    fn told_us(self, key: &KeyState, final_us: i64) -> i64 {
        let whole = self.open_from(self.passed(key, final_us));
        if whole == 0 {
            return final_us;
        }
        let (mut passed, mut last_us) = (key.passed, key.gone_us);
        for entry in &*key.entries {
            passed += entry.rows;
            if whole < passed {
                break;
            }
            // One can have come in the middle of what became one entry.
            last_us = last_us.max(entry.last_us);
        }
        last_us.saturating_add(1).min(final_us)
    }

    /// Notes a reading that is too late for some windows, if it is in others that are not final.
    fn owe(self, key: &mut KeyState, (time_us, final_us): (i64, i64), offset: Option<i64>) {
        if self.is_decided(key, time_us, final_us) {
            return;
        }
        let (first_us, last_us, since_us) = (time_us, time_us, key.clock_us);
        let first_offset = offset.unwrap_or_default();
        let fresh = || Box::new(Owed { first_us, last_us, since_us, first_offset, offset: 0 });
        let owed = key.owed.get_or_insert_with(fresh);
        owed.add(time_us);
        owed.reach(offset);
    }

    /// What stays owed when it is told what has become final; none if it is not to be told, as all
    /// windows have to be final that were open when it was told last.
    fn rest(self, key: &KeyState, owed: Owed, final_us: i64) -> Option<Owed> {
        if !self.is_decided(key, owed.since_us, final_us) {
            return None;
        }
        let (open, mut passed) = (self.open(key, final_us), key.passed);
        let is_open = |rows: i64| {
            passed += rows;
            open < passed
        };
        let at = key.entries.iter().map(|e| e.rows).position(is_open)?;
        // What is older is in windows that are final, and only in those.
        let first_us = key.entries[at].first_us.min(owed.last_us);
        Some(Owed { first_us, since_us: key.clock_us, ..owed })
    }
}

impl Session {
    fn is_decided(self, key: &KeyState, last_us: i64, final_us: i64) -> bool {
        let (open, closed) = Rule::Session(self).gone_through(key, final_us);
        let until_us = last_us.saturating_add(self.gap_us);
        let Some(open) = open else { return until_us < final_us };
        let open_us = key.entries[open].first_us;
        // Without a maximum it begins after a pause. With one it may go on from one before: then
        // there has to be one after the readings that was cut.
        let before_us = key.entries.range(..open).map(|e| e.last_us).fold(key.gone_us, i64::max);
        let is_apart = self.max_us.is_none() || before_us.saturating_add(self.gap_us) < open_us;
        let cut_us = || self.last_cut_us(&closed, final_us).unwrap_or(i64::MIN);
        let is_cut = || last_us < key.resets.last_us.max(cut_us());
        until_us < open_us && (is_apart || is_cut())
    }
}

/// Of the readings of a key that end whatever state is open, and are final: the last one with
/// another reading after it, and the last one, µs. What begins at its own time is not ended by a
/// reading. Of sessions with a maximum, `last_us` is where the last one begins that is final and
/// cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resets {
    pub(super) over_us: i64,
    pub(super) last_us: i64,
}

impl Default for Resets {
    fn default() -> Self {
        Self { over_us: i64::MIN, last_us: i64::MIN }
    }
}

impl State {
    /// Those of a key before `final_us`.
    fn resets_of(self, key: &KeyState, final_us: i64) -> Resets {
        let (mut resets, mut before_us) = (key.resets, i64::MIN);
        for entry in key.entries.iter().take_while(|e| e.first_us < final_us) {
            if resets.last_us < entry.last_us {
                resets.over_us = resets.last_us;
            }
            let is_first = before_us < entry.first_us && entry.first_us != key.gone_us;
            if is_first && self.resets(entry.marks) {
                resets.last_us = resets.last_us.max(entry.first_us);
            }
            before_us = before_us.max(entry.last_us);
        }
        resets
    }
}

impl SpanOperator {
    /// Notes which readings ended whatever was open, or where the last session began that was cut,
    /// before what is final goes.
    pub(super) fn note_resets(&mut self, id: u32, final_us: i64, folding: &Folding) {
        if !self.spec.puts_off {
            return;
        }
        let key = &mut self.keys[id as usize];
        if let Rule::State(rule) = self.rule {
            key.resets = rule.resets_of(key, final_us);
        }
        if let Some(cut_us) = folding.cut_us {
            key.resets.last_us = key.resets.last_us.max(cut_us);
        }
    }

    /// Tells of what was put off of a key, if it can be done now.
    pub(super) fn tell_decided(&mut self, id: u32) {
        let final_us = self.final_us(self.keys[id as usize].settled_us);
        let key = &mut self.keys[id as usize];
        let Some(owed) = key.owed.as_deref().copied() else { return };
        let is_decided = self.rule.is_decided(key, owed.last_us, final_us);
        let rest = match self.rule {
            Rule::Count(rule) if !is_decided => rule.rest(key, owed, final_us),
            _ => None,
        };
        if !is_decided && rest.is_none() {
            return;
        }
        key.owed = rest.map(Box::new);
        let behind_us = key.clock_us.saturating_sub(final_us).max(0);
        let final_us = match self.rule {
            Rule::Count(rule) => rule.told_us(key, final_us),
            _ => final_us,
        };
        let places = (owed.first_offset, owed.offset);
        self.late.tell(id, places, (owed.first_us, final_us), behind_us);
    }
}
