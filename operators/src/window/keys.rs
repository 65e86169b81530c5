//! Per-key state of a window operator: the key's clock, its panes, what was emitted.

use std::cmp::Ordering;

use super::quality::KeyQuality;
use crate::partial::Slot;
use crate::zone::Zone;

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

/// A window as it was last emitted, if it was so more than once or can come again without a late
/// reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Emitted {
    /// Number of the window.
    pub(super) window: i64,
    /// Of its last row.
    pub(super) revision: i64,
    /// Readings in that row.
    pub(super) rows: i64,
}

/// One key.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    /// Newest event time seen, µs.
    pub(super) clock_us: i64,
    /// Tick time of the last epoch with a reading of this key, µs.
    pub(super) last_tick_us: i64,
    /// Tick time at which the key is looked at for silence, µs; the largest if it is not.
    pub(super) look_us: i64,
    /// All windows up to this number were emitted (if they had readings).
    pub(super) closed: i64,
    /// All windows up to this number have lost their state: readings for them are too late.
    pub(super) dropped: i64,
    /// Panes with data, by number.
    pub(super) panes: Vec<Pane>,
    /// Windows that were emitted more than once; with early results all that were emitted. By
    /// number.
    pub(super) emitted: Vec<Emitted>,
    /// Tick time at which its open windows are looked at for early results, µs; the largest if
    /// they have not changed.
    pub(super) early_us: i64,
    /// What is known of how good its windows are, if that is asked for.
    pub(super) quality: Option<Box<KeyQuality>>,
    /// The last epoch with a reading of this key.
    pub(super) epoch: u64,
    /// Bounds and group of the pane that the last reading went to, valid in `hot_epoch`.
    pub(super) hot_start_us: i64,
    pub(super) hot_end_us: i64,
    pub(super) hot_group: u32,
    /// Where its calendar is that of its place.
    pub(super) zone: Zone,
    pub(super) hot_epoch: u64,
}

impl Default for KeyState {
    fn default() -> Self {
        Self {
            clock_us: i64::MIN,
            last_tick_us: i64::MIN,
            look_us: i64::MAX,
            closed: i64::MIN,
            dropped: i64::MIN,
            panes: Vec::new(),
            emitted: Vec::new(),
            early_us: i64::MAX,
            quality: None,
            epoch: 0,
            hot_start_us: 0,
            hot_end_us: 0,
            hot_group: 0,
            zone: Zone::UTC,
            hot_epoch: 0,
        }
    }
}

impl KeyState {
    /// A key that was forgotten after its windows up to `dropped` were.
    pub(super) fn back(dropped: i64, clock_us: i64, zone: Zone) -> Self {
        Self { clock_us, closed: dropped, dropped, zone, ..Self::default() }
    }

    /// The pane of this number, made if it is missing.
    pub(super) fn pane_mut(&mut self, number: i64) -> &mut Pane {
        let position = match self.position(number) {
            Ok(position) => position,
            Err(position) => {
                let pane = Pane { number, rows: 0, slot: None, epoch: 0, group: 0 };
                self.panes.insert(position, pane);
                position
            }
        };
        &mut self.panes[position]
    }

    /// Bytes held besides the struct itself.
    pub(super) fn size_bytes(&self) -> usize {
        self.panes.capacity() * size_of::<Pane>()
            + self.emitted.capacity() * size_of::<Emitted>()
            + self.quality.as_ref().map_or(0, |quality| quality.size_bytes())
    }

    /// The pane of this number.
    pub(super) fn pane(&self, number: i64) -> Option<&Pane> {
        self.position(number).ok().map(|position| &self.panes[position])
    }

    /// Panes with numbers in `from..=to`.
    pub(super) fn panes_in(&self, from: i64, to: i64) -> &[Pane] {
        let end = self.position(to).map_or_else(|p| p, |p| p + 1);
        let start = if from == to {
            end.saturating_sub(usize::from(end > 0 && self.panes[end - 1].number == to))
        } else {
            self.position(from).unwrap_or_else(|p| p)
        };
        &self.panes[start..end]
    }

    /// Panes with numbers above or equal to `from`.
    pub(super) fn panes_from(&self, from: i64) -> &[Pane] {
        &self.panes[self.position(from).unwrap_or_else(|p| p)..]
    }

    /// Where the pane of this number is, or would have to be. Nearly always it is one of the
    /// newest, so those are looked at first.
    fn position(&self, number: i64) -> Result<usize, usize> {
        const NEWEST: usize = 4;
        let count = self.panes.len();
        for back in 0..NEWEST.min(count) {
            let position = count - 1 - back;
            match self.panes[position].number.cmp(&number) {
                Ordering::Equal => return Ok(position),
                Ordering::Less => return Err(position + 1),
                Ordering::Greater => {}
            }
        }
        let older = count.saturating_sub(NEWEST);
        self.panes[..older].binary_search_by_key(&number, |p| p.number)
    }

    /// Where it is said how a window was last emitted, or where that would have to be.
    pub(super) fn emitted_at(&self, window: i64) -> Result<usize, usize> {
        self.emitted.binary_search_by_key(&window, |e| e.window)
    }

    /// Forgets how the windows were emitted that are dropped.
    pub(super) fn drop_emitted(&mut self) {
        let gone = self.emitted.partition_point(|e| e.window <= self.dropped);
        self.emitted.drain(..gone);
    }
}
