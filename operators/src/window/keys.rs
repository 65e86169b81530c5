//! Per-key state of a window operator: the key's clock, its panes, what was emitted.

use super::store::Slot;

/// One pane with data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pane {
    /// Pane number on the grid.
    pub(super) number: i64,
    /// Readings in it so far.
    pub(super) rows: i64,
    /// Where its partial aggregates lie; none until its first epoch ends.
    pub(super) slot: Option<Slot>,
    /// The epoch in which `group` is valid.
    pub(super) epoch: u64,
    /// Its group in that epoch's accumulators.
    pub(super) group: u32,
}

/// One key.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    /// Newest event time seen, µs.
    pub(super) clock_us: i64,
    /// Tick time of the last epoch with a reading of this key, µs.
    pub(super) last_tick_us: i64,
    /// All windows up to this number were emitted (if they had readings).
    pub(super) closed: i64,
    /// All windows up to this number have lost their state: readings for them are too late.
    pub(super) dropped: i64,
    /// Panes with data, by number.
    pub(super) panes: Vec<Pane>,
    /// Windows that were emitted more than once, with their last revision.
    pub(super) revisions: Vec<(i64, i64)>,
    /// The last epoch with a reading of this key.
    pub(super) epoch: u64,
    /// Start and group of the pane that the last reading went to, valid in `hot_epoch`.
    pub(super) hot_start_us: i64,
    pub(super) hot_group: u32,
    pub(super) hot_epoch: u64,
}

impl Default for KeyState {
    fn default() -> Self {
        Self {
            clock_us: i64::MIN,
            last_tick_us: i64::MIN,
            closed: i64::MIN,
            dropped: i64::MIN,
            panes: Vec::new(),
            revisions: Vec::new(),
            epoch: 0,
            hot_start_us: 0,
            hot_group: 0,
            hot_epoch: 0,
        }
    }
}

impl KeyState {
    /// The pane of this number, made if it is missing.
    pub(super) fn pane_mut(&mut self, number: i64) -> &mut Pane {
        let position = match self.panes.iter().rposition(|p| p.number <= number) {
            Some(p) if self.panes[p].number == number => p,
            other => {
                let position = other.map_or(0, |p| p + 1);
                let pane = Pane { number, rows: 0, slot: None, epoch: 0, group: 0 };
                self.panes.insert(position, pane);
                position
            }
        };
        &mut self.panes[position]
    }

    /// The pane of this number.
    pub(super) fn pane(&self, number: i64) -> Option<&Pane> {
        let position = self.panes.iter().rposition(|p| p.number <= number)?;
        Some(&self.panes[position]).filter(|p| p.number == number)
    }

    /// Panes with numbers in `from..=to`.
    pub(super) fn panes_in(&self, from: i64, to: i64) -> &[Pane] {
        let start = self.panes.partition_point(|p| p.number < from);
        let end = self.panes.partition_point(|p| p.number <= to);
        &self.panes[start..end]
    }

    /// Counts one more emission of `window` after its first and returns the revision.
    pub(super) fn revise(&mut self, window: i64) -> i64 {
        match self.revisions.iter_mut().find(|r| r.0 == window) {
            Some(revision) => {
                revision.1 += 1;
                revision.1
            }
            None => {
                self.revisions.push((window, 1));
                1
            }
        }
    }
}
