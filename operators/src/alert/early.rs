//! Alerts on windows that are still open.
//!
//! What final rows make of a key is the same with and without early results. After them comes the
//! last row of each window that is still open, in the order of time, and what that makes is told.
//! So an alert fires as soon as an open window says so; and when the window's final row says
//! otherwise or cannot be evaluated, or the window is withdrawn, it ends, and whoever was told of
//! it is told.

use super::Window;
use super::save::{said_as, said_of};
use super::state::{Evaluated, KEPT, KeyState, Phase, Said};
use crate::bound::vec_bytes;
use crate::operator::OperatorError;

/// Open windows of a key that count: the first ones, which close next and have the most readings.
pub(super) const OPEN_MAX: usize = 16;

/// Numbers of an open window in a saved state.
const NUMBERS: usize = 3;

/// The open windows of a key, of which there are some: by time, then id.
#[derive(Clone, Debug)]
pub(super) struct Open(Vec<Evaluated>);

impl KeyState {
    /// The rows of open windows.
    pub(super) fn open_rows(&self) -> impl Iterator<Item = &Evaluated> {
        self.open.iter().flat_map(|open| &open.0)
    }

    /// Whether there is nothing to keep but how far it came.
    pub(super) fn is_normal(&self) -> bool {
        self.now == Phase::Normal && self.open.is_none()
    }

    /// Takes what a row says, be its window over or not; whether it counts.
    pub(super) fn take_any(&mut self, row: Window, said: Said, for_us: i64) -> bool {
        let was_open = self.close(row.id);
        let taken = match row.early {
            true => !row.withdrawn && self.open(row, said),
            false => self.take(row, said, for_us),
        };
        // What is older than the last final row does not count, as a final row of that age.
        let newest_us = self.newest_us();
        self.keep_open(|row| row.time_us >= newest_us);
        taken || was_open
    }

    /// Time of the newest final row.
    pub(super) fn newest_us(&self) -> i64 {
        self.rows[KEPT - 1].map_or(self.floor_us, |row| row.time_us)
    }

    fn open(&mut self, row: Window, said: Said) -> bool {
        let new = Evaluated { time_us: row.time_us, id: row.id, said };
        let before = |r: &&Evaluated| (r.time_us, r.id) < (new.time_us, new.id);
        let at = self.open_rows().take_while(before).count();
        if new.time_us < self.newest_us() || at >= OPEN_MAX {
            return false;
        }
        let Open(rows) = &mut **self.open.get_or_insert_with(|| Box::new(Open(Vec::new())));
        // First out, then in: one more for a moment would double the room for good.
        rows.truncate(OPEN_MAX - 1);
        rows.insert(at, new);
        true
    }

    /// A window is not open any more, or comes again; whether it was.
    pub(super) fn close(&mut self, id: i64) -> bool {
        let before = self.open_rows().count();
        self.keep_open(|row| row.id != id);
        self.open_rows().count() < before
    }

    fn keep_open(&mut self, keep: impl Fn(&Evaluated) -> bool) {
        if let Some(open) = &mut self.open {
            open.0.retain(keep);
            self.open = self.open.take().filter(|open| !open.0.is_empty());
        }
    }

    /// The open windows as bytes, if there are any.
    pub(super) fn encode_open(&self) -> Option<Vec<u8>> {
        self.open.as_ref()?;
        let numbers = |r: &Evaluated| [r.time_us, r.id, said_as(r.said)];
        Some(self.open_rows().flat_map(numbers).flat_map(i64::to_le_bytes).collect())
    }

    /// Reads what [`KeyState::encode_open`] wrote.
    pub(super) fn decode_open(&mut self, bytes: &[u8]) -> Result<(), OperatorError> {
        let (numbers, odd) = bytes.as_chunks::<8>();
        let numbers: Vec<i64> = numbers.iter().map(|n| i64::from_le_bytes(*n)).collect();
        let (chunks, more) = numbers.as_chunks::<NUMBERS>();
        if !odd.is_empty() || !more.is_empty() {
            return Err(OperatorError::State("open windows of an alert are damaged".into()));
        }
        let row = |[time_us, id, said]: &[i64; NUMBERS]| Evaluated {
            time_us: *time_us,
            id: *id,
            said: said_of(*said),
        };
        self.open = Some(Box::new(Open(chunks.iter().map(row).collect())));
        Ok(())
    }
}

/// Bytes that open windows take of a key.
pub(super) fn open_bytes() -> u64 {
    vec_bytes(OPEN_MAX as u64, size_of::<Evaluated>()).saturating_add(size_of::<Open>() as u64)
}
