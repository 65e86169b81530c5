//! How much memory the state of an operator can take, known before it runs.
//!
//! Each operator says it in a file `bound.rs` beside the struct that it describes, from the sizes
//! of its own types; [`Bounded`] for [`StepKind`] makes sure that none is left out. Counted is what
//! stays between two epochs, with the room that growing vectors, tables and trees keep free, and
//! half as much garbage as there is state in the chunks of partial aggregates. Not counted are
//! batches on their way, what windows are put together from while an epoch runs, what an allocator
//! rounds up (about an eighth), and, while a checkpoint is written, the older form of what changes
//! meanwhile. `bounds` in the tests of this crate compares it with what an allocator counts.

use arrow::datatypes::DataType;

use crate::spec::{StepKind, WindowSpec};

/// What is known of the rows of an edge before they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// A key has a row so often at most, in event time, microseconds; `None`: nobody said it.
    pub every_us: Option<i64>,
    /// Beyond that, as many rows as come in so long can come at once, microseconds: windows of many
    /// keys end together, and devices may all send at one time.
    pub burst_us: i64,
    /// How long texts are taken to be, bytes.
    pub text_bytes: usize,
}

impl Load {
    /// Most rows of one key within so many microseconds.
    ///
    /// # Errors
    /// Nobody said how often they come.
    pub fn rows_within(&self, span_us: i64) -> Result<u64, Unbounded> {
        let every_us = self.every_us.ok_or(Unbounded::NoRate)?.max(1);
        let span_us = span_us.max(0).saturating_add(self.burst_us);
        Ok((span_us / every_us).unsigned_abs().saturating_add(1))
    }
}

/// Why the state of a key has no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unbounded {
    /// It grows with the rate of rows, which nobody said.
    NoRate,
    /// It grows for as long as a window is open, which has no end: this aggregate keeps readings.
    NoEnd(String),
}

/// Most bytes of state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateBound {
    /// Of a key that is used to the full, without `rows`.
    pub key_bytes: u64,
    /// Of what it keeps row by row under a bound over all keys, if there is such a thing.
    pub shared: Option<Shared>,
    /// Of a key that was forgotten, of which there can be as many as of others.
    pub forgotten_bytes: u64,
}

/// Things of which a key may have some, and all keys together not more than so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Bytes of those of one key.
    pub key_bytes: u64,
    /// Bytes of those of all keys.
    pub all_bytes: u64,
}

impl StateBound {
    /// Of one key that is used to the full.
    pub fn per_key(&self) -> u64 {
        self.key_bytes.saturating_add(self.shared.map_or(0, |s| s.key_bytes))
    }

    /// Of so many keys, and as many that were forgotten.
    pub fn total(&self, keys: u64) -> u64 {
        let each = self.key_bytes.saturating_add(self.forgotten_bytes);
        let shared = self.shared.map_or(0, |s| s.key_bytes.saturating_mul(keys).min(s.all_bytes));
        each.saturating_mul(keys).saturating_add(shared)
    }
}

/// What has state of a bounded size.
pub trait Bounded {
    /// Most bytes of its state, per key, if rows come as `load` says.
    ///
    /// # Errors
    /// There is no bound.
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded>;
}

impl Bounded for StepKind {
    /// A new kind of step gives its bound here.
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        match self {
            Self::Filter(_) | Self::Project(_) | Self::Route(_) => Ok(StateBound::default()),
            Self::Window(spec) => spec.state_bound(load),
            Self::Detect(spec) => spec.state_bound(load),
            Self::Enrich(spec) => spec.state_bound(load),
            Self::Latest(spec) => spec.state_bound(load),
            Self::Absence(spec) => spec.state_bound(load),
            Self::Sequence(spec) => spec.state_bound(load),
            Self::Join(spec) => spec.state_bound(load),
        }
    }
}

impl Bounded for WindowSpec {
    fn state_bound(&self, load: &Load) -> Result<StateBound, Unbounded> {
        match crate::span::bound(self, load) {
            Some(bound) => bound,
            None => crate::window::bound(self, load),
        }
    }
}

impl StepKind {
    /// What is known of the rows that the step emits.
    pub fn output_load(&self, load: &Load) -> Load {
        let every_us = match self {
            Self::Window(spec) => {
                let every_us = spec.shape.emits_every_us(load.every_us);
                // Of one key they end one after another.
                let burst_us = if spec.shape.emits_apart() { 0 } else { load.burst_us };
                return Load { every_us, burst_us, ..*load };
            }
            // Of one row come as many as it has partners.
            Self::Join(spec) if spec.has_many() => None,
            Self::Filter(_)
            | Self::Project(_)
            | Self::Route(_)
            | Self::Detect(_)
            | Self::Enrich(_)
            | Self::Latest(_)
            | Self::Absence(_)
            | Self::Sequence(_)
            | Self::Join(_) => load.every_us,
        };
        Load { every_us, ..*load }
    }
}

/// Bytes of a vector of so many elements: it doubles, and begins with four.
pub(crate) fn vec_bytes(count: u64, element_bytes: usize) -> u64 {
    let capacity = match count {
        0 => 0,
        n => n.max(4).checked_next_power_of_two().unwrap_or(u64::MAX),
    };
    capacity.saturating_mul(element_bytes as u64)
}

/// Bytes of one entry of a hash table: it doubles when seven of eight places are used, and each
/// place has a byte of its own.
pub(crate) const fn table_bytes(entry_bytes: usize) -> u64 {
    ((entry_bytes as u64 + 1) * 16).div_ceil(7)
}

/// The same of a table whose entries come and go: places that were left count as used, so that it
/// can double although it is only half full.
pub(crate) const fn changing_table_bytes(entry_bytes: usize) -> u64 {
    2 * table_bytes(entry_bytes)
}

/// Bytes of one entry of a tree: nodes of eleven have five or more.
pub(crate) const fn tree_bytes(entry_bytes: usize) -> u64 {
    const LINKS_BYTES: u64 = 16;
    const FEWEST: u64 = 5;
    let leaf = (entry_bytes as u64 * 11 + LINKS_BYTES).div_ceil(FEWEST);
    leaf + leaf / FEWEST + 12 * 8 / FEWEST / FEWEST
}

/// Bytes of a text or of bytes behind a counted reference.
pub(crate) fn shared_bytes(len: u64) -> u64 {
    const COUNTS_BYTES: u64 = 16;
    len.next_multiple_of(8).saturating_add(COUNTS_BYTES)
}

/// Bytes of a row in Arrow's row format.
pub(crate) fn row_bytes<'t>(types: impl Iterator<Item = &'t DataType>, text_bytes: usize) -> u64 {
    // Texts: a byte, then blocks of 8 bytes and one; of longer texts, blocks of 32 and one.
    const SHORT: u64 = 32;
    types
        .map(|t| match t {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary => {
                let len = text_bytes as u64;
                1 + len.min(SHORT).div_ceil(8) * 9 + len.saturating_sub(SHORT).div_ceil(SHORT) * 33
            }
            fixed => fixed.primitive_width().unwrap_or(1) as u64 + 1,
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_keys_share_is_counted_once() {
        let shared = Some(Shared { key_bytes: 100, all_bytes: 1_000 });
        let bound = StateBound { key_bytes: 10, shared, forgotten_bytes: 1 };
        assert_eq!(bound.per_key(), 110);
        assert_eq!(bound.total(5), 5 * 11 + 500);
        assert_eq!(bound.total(100), 100 * 11 + 1_000);
        assert_eq!(bound.total(u64::MAX), u64::MAX);
    }

    #[test]
    fn rows_are_counted_with_both_ends() {
        let load = Load { every_us: Some(10), burst_us: 0, text_bytes: 0 };
        assert_eq!((load.rows_within(0), load.rows_within(39)), (Ok(1), Ok(4)));
        let at_once = Load { burst_us: 20, ..load };
        assert_eq!((at_once.rows_within(0), at_once.rows_within(39)), (Ok(3), Ok(6)));
        let unknown = Load { every_us: None, ..load };
        assert_eq!(unknown.rows_within(5), Err(Unbounded::NoRate));
    }
}
