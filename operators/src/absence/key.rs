//! What is known of one key, and how readings and silence change it.

use std::collections::VecDeque;

use super::Status;
use super::cadence::{Arrivals, Expected, Gaps};
use crate::keys::anew_us;
use crate::outage::Outages;
use crate::picked::Values;
use crate::spec::{AbsenceSpec, Cadence};

/// Absences of a key that can be corrected; beyond that the oldest is final.
pub const ABSENCES_MAX: usize = 64;

/// What is kept of a reading beside its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    /// The tick of its epoch.
    pub(super) tick_us: i64,
    pub(super) values: Values,
}

/// A time without readings; microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Absence {
    /// Time of the last reading before it.
    pub(super) start_us: i64,
    /// Time of the first reading after it; the greatest time while it lasts.
    pub(super) end_us: i64,
    /// How long after its start it was certain.
    pub(super) after_us: i64,
    pub(super) expected: Expected,
    /// An outage explains it.
    pub(super) inhibited: bool,
    /// Revision of the last row that said something of it; -1 before the first.
    pub(super) revision: i64,
    /// Of the last reading before it.
    pub(super) values: Values,
}

impl Absence {
    fn lasts(&self) -> bool {
        self.end_us == i64::MAX
    }
}

/// A row to be.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) id: u32,
    pub(super) status: Status,
    /// As of then.
    pub(super) absence: Absence,
}

/// The state of a key.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    /// The newest reading by event time.
    pub(super) last: Option<(i64, Arrived)>,
    pub(super) gaps: Gaps,
    pub(super) arrivals: Arrivals,
    /// Those that can be corrected, by their starts; only the last one can last.
    pub(super) absences: VecDeque<Absence>,
    /// The end of the newest absence that is final because there were too many; the least time if
    /// there is none.
    pub(super) final_us: i64,
    /// Earliest tick time at which the key is on the list of those to look at.
    pub(super) wake_us: Option<i64>,
}

impl Default for KeyState {
    fn default() -> Self {
        Self {
            last: None,
            gaps: Gaps::default(),
            arrivals: Arrivals::default(),
            absences: VecDeque::new(),
            final_us: i64::MIN,
            wake_us: None,
        }
    }
}

/// What the changes of all keys need, and what they have to tell.
pub(super) struct Judge<'a> {
    pub(super) spec: &'a AbsenceSpec,
    pub(super) outages: &'a Outages,
    pub(super) told: &'a mut Vec<Told>,
}

/// Whether a silence counts.
struct Verdict {
    inhibited: bool,
    /// How long after its beginning it was certain.
    after_us: i64,
}

impl Judge<'_> {
    fn tell(&mut self, id: u32, status: Status, absence: &mut Absence) {
        absence.revision += 1;
        self.told.push(Told { id, status, absence: absence.clone() });
    }

    fn tell_lasting(&mut self, id: u32, absence: &mut Absence) {
        let status = if absence.inhibited { Status::Inhibited } else { Status::Silent };
        self.tell(id, status, absence);
    }

    /// What a silence between two ticks is worth: it counts once the key was silent for longer than
    /// the limit with nothing to explain it; for longer than `last_us` if that goes on, or began
    /// with the end of an outage.
    fn verdict(&self, (from_us, to_us): (i64, i64), limit_us: i64, last_us: i64) -> Verdict {
        match self.outages.quiet((from_us, to_us), limit_us, last_us) {
            Some(begin_us) => {
                let after_us = (begin_us - from_us).saturating_add(limit_us);
                Verdict { inhibited: false, after_us }
            }
            None => Verdict { inhibited: self.outages.overlap(from_us, to_us), after_us: limit_us },
        }
    }

    /// A reading that is not older than the newest one.
    pub(super) fn in_order(&mut self, id: u32, key: &mut KeyState, time_us: i64, new: Arrived) {
        let Some((last_us, last)) = key.last.take() else {
            key.arrivals.learn(self.spec, new.tick_us, false);
            key.last = Some((time_us, new));
            return;
        };
        if last_us == time_us {
            // The earlier one by arrival speaks for both, whatever they carry.
            key.last = Some((last_us, last));
            return;
        }
        let gap_us = time_us.saturating_sub(last_us);
        let open = key.absences.back_mut().filter(|a| a.lasts());
        let expected = match &open {
            Some(absence) => Some(absence.expected),
            None => key.gaps.expected(self.spec),
        };
        // It was heard just before, and the reading is of a time that is still to come: its clock
        // has jumped, and was not silent. Readings with the right time are old ones from now on.
        let heard_us = new.tick_us.saturating_sub(last.tick_us);
        let jumped = |e: &Expected| {
            self.spec.live && open.is_none() && time_us > new.tick_us && heard_us <= e.limit_us
        };
        let absent = expected.filter(|e| gap_us > e.limit_us);
        let (absent, mut learn) = match absent {
            Some(e) if jumped(&e) => (None, false),
            absent => (absent, true),
        };
        match (absent, open) {
            (Some(expected), open) => {
                let (silent, limit_us) = ((last.tick_us, new.tick_us), expected.limit_us);
                // After an outage, it has as long as when it is silent until that is told.
                let verdict = self.verdict(silent, limit_us, expected.told_us(self.spec));
                let mut absence = match open {
                    Some(_) => key.absences.pop_back(),
                    None => None,
                }
                .unwrap_or_else(|| began(last_us, &last, expected));
                self.certain(id, &mut absence, &verdict);
                learn = !absence.inhibited;
                absence.end_us = time_us;
                self.tell(id, Status::Back, &mut absence);
                key.absences.push_back(absence);
            }
            (None, Some(_)) => {
                // What was silence was a reading on its way.
                if let Some(mut absence) = key.absences.pop_back() {
                    // It was taken for one until now, by the key's clock.
                    let silent_us = new.tick_us.saturating_sub(last.tick_us);
                    absence.after_us = absence.after_us.max(silent_us);
                    self.tell(id, Status::Withdrawn, &mut absence);
                }
            }
            (None, None) => {}
        }
        if learn {
            key.gaps.learn(self.spec, gap_us);
        }
        key.arrivals.learn(self.spec, new.tick_us, !learn);
        key.last = Some((time_us, new));
        key.forget_before(time_us.saturating_sub(self.spec.keep_us));
    }

    /// Tells an absence that was not told, or that an outage does not explain any more.
    fn certain(&mut self, id: u32, absence: &mut Absence, verdict: &Verdict) {
        if absence.revision < 0 || (absence.inhibited && !verdict.inhibited) {
            absence.inhibited = verdict.inhibited;
            absence.after_us = verdict.after_us;
            self.tell_lasting(id, absence);
        }
    }

    /// A reading older than the newest one: an absence that it falls into is cut, or was none.
    /// Whether that can be told: not of one that may be final.
    pub(super) fn late(&mut self, id: u32, key: &mut KeyState, time_us: i64, new: Arrived) -> bool {
        let within = |a: &Absence| a.start_us < time_us && time_us < a.end_us;
        let found = key.absences.iter().position(|a| within(a) && !a.lasts());
        let Some((at, mut first)) = found.and_then(|at| Some((at, key.absences.remove(at)?)))
        else {
            return time_us >= key.final_us;
        };
        let limit_us = first.expected.limit_us;
        let mut rest = began(time_us, &new, first.expected);
        rest.inhibited = first.inhibited;
        let end_us = std::mem::replace(&mut first.end_us, time_us);
        let mut left = Vec::new();
        if time_us - first.start_us > limit_us {
            self.tell(id, Status::Back, &mut first);
            left.push(first);
        } else {
            self.tell(id, Status::Withdrawn, &mut first);
        }
        if end_us - time_us > limit_us {
            self.tell_lasting(id, &mut rest);
            rest.end_us = end_us;
            self.tell(id, Status::Back, &mut rest);
            left.push(rest);
        }
        for (i, absence) in left.into_iter().enumerate() {
            key.absences.insert(at + i, absence);
        }
        key.bound();
        true
    }

    /// Looks at a key of which nothing waits, and nothing came since the tick `heard_us`, be it as
    /// old as it may.
    pub(super) fn look(&mut self, id: u32, key: &mut KeyState, heard_us: i64, now_us: i64) {
        let Some((last_us, last)) = &key.last else { return };
        let older_us = heard_us.saturating_sub(last.tick_us);
        let open = key.absences.back().filter(|a| a.lasts());
        let silent_us = now_us.saturating_sub(heard_us);
        let expected = key.expected(self.spec).filter(|e| silent_us > e.told_us(self.spec));
        let Some(expected) = expected else { return };
        let mut absence = match open {
            Some(_) => key.absences.pop_back(),
            None => None,
        }
        .unwrap_or_else(|| began(*last_us, last, expected));
        let (limit_us, told_us) = (expected.limit_us, expected.told_us(self.spec));
        let mut verdict = self.verdict((heard_us, now_us), limit_us, told_us);
        verdict.after_us = verdict.after_us.saturating_add(older_us);
        self.certain(id, &mut absence, &verdict);
        key.absences.push_back(absence);
        key.bound();
    }

    /// The key, heard last at the tick `heard_us`, is taken for gone.
    pub(super) fn forgotten(&mut self, id: u32, key: &mut KeyState, heard_us: i64) {
        let gone_us = key.gone_us(self.spec, self.outages, heard_us);
        if let Some(mut absence) = key.absences.pop_back().filter(Absence::lasts) {
            let last_us = key.last.as_ref().map_or(heard_us, |(_, last)| last.tick_us);
            let lasted_us = gone_us.unwrap_or(heard_us).saturating_sub(last_us);
            let lasted_us = lasted_us.max(absence.after_us);
            absence.end_us = absence.start_us.saturating_add(lasted_us);
            self.tell(id, Status::Forgotten, &mut absence);
        }
    }
}

fn began(start_us: i64, last: &Arrived, expected: Expected) -> Absence {
    Absence {
        start_us,
        end_us: i64::MAX,
        after_us: expected.limit_us,
        expected,
        inhibited: false,
        revision: -1,
        values: last.values.clone(),
    }
}

impl KeyState {
    /// What is expected of the key in ticks; `None` if too little is known.
    fn expected(&self, spec: &AbsenceSpec) -> Option<Expected> {
        match (self.absences.back().filter(|a| a.lasts()), spec.cadence) {
            (Some(open), _) => Some(open.expected),
            (None, Cadence::Every(_)) => self.gaps.expected(spec),
            (None, Cadence::Learnt { .. }) => {
                self.arrivals.expected(spec, self.gaps.expected(spec)?)
            }
        }
    }

    /// At which tick time to look at the key next, if nothing comes after the tick `heard_us`;
    /// `None`: only when the outages have changed, or never.
    pub(super) fn look_us(
        &self,
        spec: &AbsenceSpec,
        outages: &Outages,
        heard_us: i64,
    ) -> Option<i64> {
        self.last.as_ref()?;
        let told_us = self.expected(spec)?.told_us(spec);
        let since_us = match self.absences.back().filter(|a| a.lasts()) {
            None => heard_us,
            Some(open) if open.inhibited => outages.over_us()?.max(heard_us),
            Some(_) => return None,
        };
        Some(since_us.saturating_add(told_us).saturating_add(1))
    }

    /// From which tick time on the key, heard last at the tick `heard_us`, can be taken for gone:
    /// time in which nothing could be heard is no silence, and not before it was told silent, for
    /// which it has its whole time anew after an outage, and has been so for as long again. `None`:
    /// while an outage lasts.
    pub(super) fn gone_us(
        &self,
        spec: &AbsenceSpec,
        outages: &Outages,
        heard_us: i64,
    ) -> Option<i64> {
        let silent_us = outages.quiet_for(heard_us, spec.forget_after_us)?;
        let told_us = self.expected(spec).map_or(0, |e| e.told_us(spec));
        let anew_us = anew_us(outages, heard_us, told_us.saturating_mul(2))?;
        Some(silent_us.max(anew_us.saturating_add(1)))
    }

    /// Whether an absence lasts that an outage explains.
    pub(super) fn waits_for_source(&self) -> bool {
        self.absences.back().is_some_and(|a| a.lasts() && a.inhibited)
    }

    /// What ended before cannot be corrected any more.
    fn forget_before(&mut self, us: i64) {
        while self.absences.front().is_some_and(|a| a.end_us < us) {
            self.absences.pop_front();
        }
        self.bound();
    }

    fn bound(&mut self) {
        while self.absences.len() > ABSENCES_MAX {
            let oldest = self.absences.pop_front();
            self.final_us = oldest.map_or(self.final_us, |a| a.end_us.max(self.final_us));
        }
    }
}
