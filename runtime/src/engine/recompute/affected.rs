//! The windows that late readings belong to, cut into slices that fit into memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use tidegate_operators::intern::KeyInterner;
use tidegate_operators::spec::Shape;
use tidegate_operators::system::keys_json;

use super::kept::Stayed;

/// Windows of a slice: some hundred bytes each, while they are computed.
const WINDOWS_MAX: usize = 200_000;

/// Panes of a slice, counted once for each window that they are a part of: some fifty bytes each.
const PANES_MAX: i64 = 2_000_000;

const DAY_US: i64 = 86_400_000_000;

/// Start and end of a window, microseconds.
pub(super) type Bounds = (i64, i64);

/// Windows by their start, then the key (as JSON), each with the number of its late readings: those
/// that are not in a slice yet.
#[derive(Debug, Default)]
pub(super) struct Affected(BTreeMap<(Bounds, String), i64>);

impl Affected {
    /// Adds the windows of rows of `keys`, `window_start`, `window_end` and a count: late readings
    /// of a key, with the start of the first and the end of the last window that did not take them.
    /// Rows come in the order of `window_start`; that of the last is returned: windows that begin
    /// before it are all there. What fits no window of `shape` is from an earlier form of the step,
    /// and passed over.
    pub(super) fn add(&mut self, rows: &RecordBatch, shape: &Shape) -> Result<i64, ArrowError> {
        let keys = cast(rows.column(0), &DataType::Utf8)?;
        let keys = keys.as_string::<i32>();
        let [from, to] =
            [1, 2].map(|i| rows.column(i).as_primitive::<TimestampMicrosecondType>().values());
        let late = rows.column(3).as_primitive::<Int64Type>().values();
        for (row, (from_us, to_us)) in from.iter().zip(to).enumerate() {
            for window in windows(shape, (*from_us, *to_us)) {
                *self.0.entry((window, keys.value(row).to_owned())).or_default() += late[row];
            }
        }
        Ok(from.last().copied().unwrap_or(i64::MIN))
    }

    /// The next slice: windows of one day by their start, of which none is to come, as many as a
    /// slice may have; none if there are fewer and the day is not over. Those that begin before
    /// `before_us` are all there.
    pub(super) fn slice(&mut self, shape: &Shape, before_us: i64) -> Option<Slice> {
        let first_us = self.0.first_key_value()?.0.0.0;
        let day_end_us = (first_us.div_euclid(DAY_US) + 1) * DAY_US;
        let windows_max = windows_max(shape);
        let until_us = day_end_us.min(before_us);
        let count = self.0.keys().take(windows_max).take_while(|w| w.0.0 < until_us).count();
        if count == 0 || (count < windows_max && before_us < day_end_us) {
            return None;
        }
        let mut slice = Slice::default();
        for _ in 0..count {
            let Some(((bounds, key), late)) = self.0.pop_first() else { break };
            slice.push(key, bounds, late);
        }
        Some(slice)
    }
}

/// Windows that a slice may have: each reads all of its panes when it is emitted.
fn windows_max(shape: &Shape) -> usize {
    let panes = match shape {
        Shape::Grid { size_us, slide_us, .. } => size_us / greatest_divisor(*size_us, *slide_us),
        _ => 1,
    };
    usize::try_from(PANES_MAX / panes.max(1)).unwrap_or(0).clamp(1, WINDOWS_MAX)
}

fn greatest_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a.max(1) } else { greatest_divisor(b, a % b) }
}

fn windows(shape: &Shape, (from_us, to_us): Bounds) -> impl Iterator<Item = Bounds> {
    let (size_us, slide_us) = match shape {
        Shape::Grid { size_us, slide_us, offset_us }
            if (from_us - offset_us).rem_euclid(*slide_us) == 0 =>
        {
            (*size_us, *slide_us)
        }
        // One window, as long as it is.
        Shape::Calendar(_) => (to_us.saturating_sub(from_us), 1),
        // No window is as long.
        _ => (i64::MAX, 1),
    };
    let count = match to_us.checked_sub(from_us).and_then(|length| length.checked_sub(size_us)) {
        Some(more) if more >= 0 => more / slide_us + 1,
        _ => 0,
    };
    (0..count).map(move |i| from_us + i * slide_us).map(move |start| (start, start + size_us))
}

/// Some windows, to be computed at once.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// By key, in order.
    keys: BTreeMap<String, Vec<Window>>,
}

/// A window that readings of the group are too late for.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) bounds: Bounds,
    /// The last end of this one and those of its key before it.
    until_us: i64,
    /// How many readings of the group are too late for it.
    pub(super) late: i64,
    /// The place in the journal of the last reading that counts.
    last_offset: i64,
    /// Its next revision is made.
    written: AtomicBool,
}

impl Window {
    /// Notes that its next revision is made.
    pub(super) fn set_written(&self) {
        self.written.store(true, Ordering::Relaxed);
    }
}

impl Slice {
    /// Adds a window, after those of the key that begin before.
    pub(super) fn push(&mut self, key: String, bounds: Bounds, late: i64) {
        self.push_until(key, bounds, (late, i64::MAX));
    }

    /// The same, of readings up to a place in the journal, which is that of all windows of its key.
    pub(super) fn push_until(
        &mut self,
        key: String,
        bounds: Bounds,
        (late, last_offset): (i64, i64),
    ) {
        let windows = self.keys.entry(key).or_default();
        let before_us = windows.last().map_or(i64::MIN, |w| w.until_us);
        let (until_us, written) = (before_us.max(bounds.1), AtomicBool::new(false));
        windows.push(Window { bounds, until_us, late, last_offset, written });
    }

    /// Takes these windows out, and returns how many it had.
    pub(super) fn without(&mut self, known: &BTreeMap<String, BTreeSet<Bounds>>) -> usize {
        let before = self.count();
        for (key, gone) in known {
            if let Some(windows) = self.keys.get_mut(key) {
                windows.retain(|w| !gone.contains(&w.bounds));
            }
        }
        self.keys.retain(|_, windows| !windows.is_empty());
        before - self.count()
    }

    /// Whether it has windows of this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The windows of which no next revision was made.
    pub(super) fn unwritten(&self) -> Vec<Stayed<'_>> {
        let all = self.keys.iter().flat_map(|(key, of)| of.iter().map(move |w| (key, w)));
        let stay = all.filter(|(_, window)| !window.written.load(Ordering::Relaxed));
        stay.map(|(key, w)| Stayed { key, bounds: w.bounds, late: w.late }).collect()
    }

    /// From the first start to the last end.
    pub(super) fn range_us(&self) -> Bounds {
        let all = || self.keys.values().flatten();
        let from_us = all().map(|w| w.bounds.0).min().unwrap_or_default();
        (from_us, all().map(|w| w.bounds.1).max().unwrap_or_default())
    }

    /// How many windows it has.
    pub(super) fn count(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    /// The keys as JSON.
    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.keys.keys().map(String::as_str)
    }

    /// Whether a window of the key holds a reading of this time and place in the journal.
    fn holds(windows: &[Window], time_us: i64, offset: i64) -> bool {
        let begun = windows.partition_point(|w| w.bounds.0 <= time_us);
        let last = windows[..begun].last();
        last.is_some_and(|last| time_us < last.until_us && offset <= last.last_offset)
    }
}

/// Finds the windows of a slice for rows with key columns.
pub(super) struct Finder<'s> {
    slice: &'s Slice,
    names: Vec<String>,
    interner: KeyInterner,
    /// By the id of a key.
    windows: Vec<&'s [Window]>,
    ids: Vec<u32>,
}

impl<'s> Finder<'s> {
    pub(super) fn new(slice: &'s Slice, keys: &[(String, DataType)]) -> Result<Self, ArrowError> {
        let types: Vec<DataType> = keys.iter().map(|k| k.1.clone()).collect();
        Ok(Self {
            slice,
            names: keys.iter().map(|k| k.0.clone()).collect(),
            interner: KeyInterner::new(&types)?,
            windows: Vec::new(),
            ids: Vec::new(),
        })
    }

    /// For each row, the windows of its key.
    fn of_rows(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<&'s [Window]>, ArrowError> {
        self.interner.intern(keys, rows, &mut self.ids)?;
        let fresh: Vec<u32> = self.interner.fresh().iter().map(|key| key.id).collect();
        let columns = self.interner.keys(&fresh)?;
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        for (row, id) in fresh.iter().enumerate() {
            let windows = self.slice.keys.get(&keys_json(&names, &columns, row));
            self.windows.resize(self.windows.len().max(*id as usize + 1), &[]);
            self.windows[*id as usize] = windows.map_or(&[], Vec::as_slice);
        }
        Ok(self.ids.iter().map(|id| self.windows[*id as usize]).collect())
    }

    /// Which rows have a time and a place in the journal that are in a window of their key.
    pub(super) fn in_windows(
        &mut self,
        keys: &[ArrayRef],
        (times, offsets): (&ArrayRef, &ArrayRef),
    ) -> Result<Vec<bool>, ArrowError> {
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        let offsets = offsets.as_primitive::<Int64Type>().values();
        let windows = self.of_rows(keys, times.len())?;
        let at = times.iter().zip(offsets);
        let rows = windows.iter().zip(at);
        Ok(rows.map(|(w, (time_us, offset))| Slice::holds(w, *time_us, *offset)).collect())
    }

    /// For each row, the window of the slice that it is, by its key, start and end.
    pub(super) fn find(
        &mut self,
        keys: &[ArrayRef],
        bounds: [&ArrayRef; 2],
    ) -> Result<Vec<Option<&'s Window>>, ArrowError> {
        let [starts, ends] = bounds.map(|b| b.as_primitive::<TimestampMicrosecondType>().values());
        let windows = self.of_rows(keys, starts.len())?;
        let find = |(of_key, bounds): (&'s [Window], Bounds)| {
            let found = of_key.binary_search_by_key(&bounds, |w| w.bounds).ok()?;
            Some(&of_key[found])
        };
        let bounds = starts.iter().copied().zip(ends.iter().copied());
        Ok(windows.into_iter().zip(bounds).map(find).collect())
    }
}
