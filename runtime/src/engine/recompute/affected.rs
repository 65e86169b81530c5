//! The windows that late readings belong to, cut into slices that fit into memory.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use tidegate_operators::intern::KeyInterner;
use tidegate_operators::spec::Shape;
use tidegate_operators::system::keys_json;

/// Windows of a slice: some hundred bytes each, while they are computed.
const WINDOWS_MAX: usize = 200_000;

/// Panes of a slice, counted once for each window that they are a part of: some fifty bytes each.
const PANES_MAX: i64 = 2_000_000;

const DAY_US: i64 = 86_400_000_000;

/// Start and end of a window, microseconds.
pub(super) type Bounds = (i64, i64);

/// Windows by their start, then the key (as JSON), each with the number of its late readings.
#[derive(Debug, Default)]
pub(super) struct Affected(BTreeMap<(Bounds, String), i64>);

impl Affected {
    /// Adds the windows of rows of `keys`, `window_start`, `window_end` and a count: late readings
    /// of a key, with the start of the first and the end of the last window that did not take them.
    /// What fits no window of `shape` is from an earlier form of the step, and passed over.
    pub(super) fn add(&mut self, rows: &RecordBatch, shape: &Shape) -> Result<(), ArrowError> {
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
        Ok(())
    }

    /// Slices of one day each at most, by the start of their windows.
    pub(super) fn slices(self, shape: &Shape) -> Vec<Slice> {
        let windows_max = windows_max(shape);
        let mut slices: Vec<Slice> = Vec::new();
        let (mut day, mut count) = (None, 0);
        for ((window, key), late) in self.0 {
            let today = window.0.div_euclid(DAY_US);
            if day != Some(today) || count >= windows_max {
                slices.push(Slice::default());
                (day, count) = (Some(today), 0);
            }
            count += 1;
            let slice = slices.last_mut().expect("there is one now");
            let windows = slice.keys.entry(key).or_default();
            let before_us = windows.last().map_or(i64::MIN, |w| w.until_us);
            windows.push(Window { bounds: window, until_us: before_us.max(window.1), late });
            slice.count += 1;
        }
        slices
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
    count: usize,
}

/// A window that readings of the group are too late for.
#[derive(Debug)]
struct Window {
    bounds: Bounds,
    /// The last end of this one and those of its key before it.
    until_us: i64,
    /// How many readings of the group are too late for it.
    late: i64,
}

impl Slice {
    /// From the first start to the last end.
    pub(super) fn range_us(&self) -> Bounds {
        let all = || self.keys.values().flatten();
        let from_us = all().map(|w| w.bounds.0).min().unwrap_or_default();
        (from_us, all().map(|w| w.bounds.1).max().unwrap_or_default())
    }

    /// How many windows it has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The keys as JSON.
    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Whether a window of the key holds the time.
    fn holds(windows: &[Window], time_us: i64) -> bool {
        let begun = windows.partition_point(|w| w.bounds.0 <= time_us);
        begun > 0 && time_us < windows[begun - 1].until_us
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

    /// Which rows have a time in a window of their key.
    pub(super) fn in_windows(
        &mut self,
        keys: &[ArrayRef],
        times: &ArrayRef,
    ) -> Result<Vec<bool>, ArrowError> {
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        let windows = self.of_rows(keys, times.len())?;
        Ok(windows.iter().zip(times).map(|(w, time_us)| Slice::holds(w, *time_us)).collect())
    }

    /// For each row, whether it is a window of the slice, by its key, start and end: how many
    /// readings of the group are too late for it.
    pub(super) fn late(
        &mut self,
        keys: &[ArrayRef],
        bounds: [&ArrayRef; 2],
    ) -> Result<Vec<Option<i64>>, ArrowError> {
        let [starts, ends] = bounds.map(|b| b.as_primitive::<TimestampMicrosecondType>().values());
        let windows = self.of_rows(keys, starts.len())?;
        let find = |(of_key, bounds): (&&[Window], Bounds)| {
            let found = of_key.binary_search_by_key(&bounds, |w| w.bounds).ok()?;
            Some(of_key[found].late)
        };
        let bounds = starts.iter().copied().zip(ends.iter().copied());
        Ok(windows.iter().zip(bounds).map(find).collect())
    }
}
