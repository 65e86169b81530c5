//! The windows that late readings belong to, cut into slices that fit into memory.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::error::ArrowError;
use tidegate_operators::intern::KeyInterner;
use tidegate_operators::spec::Shape;
use tidegate_operators::system::keys_json;

/// Windows of a slice: some hundred bytes each, while they are computed.
const WINDOWS_MAX: usize = 200_000;

const DAY_US: i64 = 86_400_000_000;

/// Start and end of a window, microseconds.
pub(super) type Bounds = (i64, i64);

/// Windows by their start, then the key (as JSON).
#[derive(Debug, Default)]
pub(super) struct Affected(BTreeSet<(Bounds, String)>);

impl Affected {
    /// Adds the windows of rows of `keys`, `window_start` and `window_end`: late readings of a key,
    /// with the start of the first and the end of the last window that did not take them. What fits
    /// no window of `shape` is from an earlier form of the step, and passed over.
    pub(super) fn add(&mut self, rows: &RecordBatch, shape: &Shape) -> Result<(), ArrowError> {
        let keys = cast(rows.column(0), &DataType::Utf8)?;
        let keys = keys.as_string::<i32>();
        let [from, to] =
            [1, 2].map(|i| rows.column(i).as_primitive::<TimestampMicrosecondType>().values());
        for (row, (from_us, to_us)) in from.iter().zip(to).enumerate() {
            let key = keys.value(row);
            self.0.extend(windows(shape, (*from_us, *to_us)).map(|w| (w, key.to_owned())));
        }
        Ok(())
    }

    /// Slices of one day each at most, by the start of their windows.
    pub(super) fn slices(self) -> Vec<Slice> {
        let mut slices: Vec<Slice> = Vec::new();
        let (mut day, mut count) = (None, 0);
        for (window, key) in self.0 {
            let today = window.0.div_euclid(DAY_US);
            if day != Some(today) || count >= WINDOWS_MAX {
                slices.push(Slice::default());
                (day, count) = (Some(today), 0);
            }
            count += 1;
            let slice = slices.last_mut().expect("there is one now");
            slice.keys.entry(key).or_default().push(window);
        }
        slices
    }
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
    keys: BTreeMap<String, Vec<Bounds>>,
}

impl Slice {
    /// From the first start to the last end.
    pub(super) fn range_us(&self) -> Bounds {
        let all = || self.keys.values().flatten();
        let from_us = all().map(|w| w.0).min().unwrap_or_default();
        (from_us, all().map(|w| w.1).max().unwrap_or_default())
    }

    /// The keys as JSON.
    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Whether a window of the key holds the time.
    fn holds(windows: &[Bounds], time_us: i64) -> bool {
        let begun = windows.partition_point(|w| w.0 <= time_us);
        // All are of about the same length: of those that have begun, the last ends last.
        begun > 0 && time_us < windows[begun - 1].1
    }
}

/// Finds the windows of a slice for rows with key columns.
pub(super) struct Finder<'s> {
    slice: &'s Slice,
    names: Vec<String>,
    interner: KeyInterner,
    /// By the id of a key.
    windows: Vec<&'s [Bounds]>,
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
    fn of_rows(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<&'s [Bounds]>, ArrowError> {
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

    /// Which rows are windows of the slice, by their key and start.
    pub(super) fn are_windows(
        &mut self,
        keys: &[ArrayRef],
        starts: &ArrayRef,
    ) -> Result<Vec<bool>, ArrowError> {
        let starts = starts.as_primitive::<TimestampMicrosecondType>().values();
        let windows = self.of_rows(keys, starts.len())?;
        let is = |w: &[Bounds], start| w.binary_search_by_key(&start, |w| w.0).is_ok();
        Ok(windows.iter().zip(starts).map(|(w, start)| is(w, *start)).collect())
    }
}
