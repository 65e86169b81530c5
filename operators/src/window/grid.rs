//! The arithmetic of windows and panes.
//!
//! Windows of length `size` start every `slide`, aligned to `offset`. A pane is the longest stretch
//! that never lies partly inside a window: `gcd(size, slide)`. A reading is aggregated once, into
//! its pane; a window is put together from its panes when it closes (Li et al., "No Pane, No Gain",
//! SIGMOD Record 2005). Window `w` covers `[offset + w * slide, offset + w * slide + size)`.

/// Window and pane numbers; all times in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    size_us: i64,
    slide_us: i64,
    offset_us: i64,
    pane_us: i64,
}

impl Grid {
    pub(super) fn new(size_us: i64, slide_us: i64, offset_us: i64) -> Self {
        let pane_us = gcd(size_us, slide_us);
        Self { size_us, slide_us, offset_us, pane_us }
    }

    /// Length of a pane.
    pub(super) fn pane_us(&self) -> i64 {
        self.pane_us
    }

    /// The pane that holds time `t`.
    pub(super) fn pane(&self, t: i64) -> i64 {
        (t - self.offset_us).div_euclid(self.pane_us)
    }

    /// Start of a pane.
    pub(super) fn pane_start(&self, pane: i64) -> i64 {
        self.offset_us + pane * self.pane_us
    }

    /// First and last window that contain a pane.
    pub(super) fn windows_of(&self, pane: i64) -> (i64, i64) {
        let start = pane * self.pane_us;
        let first = -(self.size_us - self.pane_us - start).div_euclid(self.slide_us);
        (first, start.div_euclid(self.slide_us))
    }

    /// First and last pane of a window.
    pub(super) fn panes_of(&self, window: i64) -> (i64, i64) {
        let first = window * self.slide_us / self.pane_us;
        (first, first + self.size_us / self.pane_us - 1)
    }

    /// Start of a window.
    pub(super) fn start(&self, window: i64) -> i64 {
        self.offset_us + window * self.slide_us
    }

    /// End of a window, exclusive.
    pub(super) fn end(&self, window: i64) -> i64 {
        self.start(window) + self.size_us
    }

    /// The newest window that ends at or before `t`.
    pub(super) fn last_ended(&self, t: i64) -> i64 {
        (t - self.offset_us).saturating_sub(self.size_us).div_euclid(self.slide_us)
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn panes_and_windows_agree(
            size in 1i64..40, slide in 1i64..40, offset in -50i64..50, t in -1000i64..1000,
        ) {
            let slide = slide.min(size);
            let grid = Grid::new(size, slide, offset);
            let pane = grid.pane(t);
            prop_assert!(grid.pane_start(pane) <= t && t < grid.pane_start(pane + 1));
            let (first, last) = grid.windows_of(pane);
            for window in first - 3..=last + 3 {
                let contains = grid.start(window) <= t && t < grid.end(window);
                prop_assert_eq!(contains, (first..=last).contains(&window));
                let (from, to) = grid.panes_of(window);
                prop_assert_eq!(contains, (from..=to).contains(&pane));
            }
            let ended = grid.last_ended(t);
            prop_assert!(grid.end(ended) <= t && grid.end(ended + 1) > t);
        }
    }
}
