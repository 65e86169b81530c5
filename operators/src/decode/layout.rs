//! Remembered layouts: the text of a document between its scalars.
//!
//! Devices write the same members in the same order with the same white space every time; only the
//! scalars differ. A layout is that constant text, cut at the scalars. A document that has exactly
//! this text with any well-formed scalars in the gaps is the same tree, so its values can be taken
//! by position, without looking at keys, nesting or duplicates again. What does not fit goes to the
//! walk (`walk.rs`), which accepts and rejects for both; a layout only ever comes from there.

use super::scan;
use super::value::Value;

/// Layouts kept per pipeline: kinds of devices that share its topics. More than these and the rest
/// is walked, at perhaps half the speed.
const LAYOUTS_MAX: usize = 8;
/// Scalars of one layout.
const GAPS_MAX: usize = 512;
/// Constant text of one layout, bytes.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// When all places are taken, one in this many walked documents replaces a layout: a fleet that
/// changed is learned again, and one without any order costs little.
const REPLACE_EVERY: u32 = 64;

/// What a walk saw, from which a layout can be made.
#[derive(Debug, Default)]
pub(super) struct Trace {
    gaps: Vec<Gap>,
    unfit: bool,
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    start: usize,
    end: usize,
    slot: Option<usize>,
}

impl Trace {
    /// Starts anew.
    pub(super) fn clear(&mut self) {
        self.gaps.clear();
        self.unfit = false;
    }

    /// Notes a scalar.
    #[inline]
    pub(super) fn scalar(&mut self, start: usize, end: usize, slot: Option<usize>) {
        if self.gaps.len() < GAPS_MAX {
            self.gaps.push(Gap { start, end, slot });
        } else {
            self.unfit = true;
        }
    }

    /// Notes that position alone does not tell the values of this document.
    pub(super) fn unfit(&mut self) {
        self.unfit = true;
    }
}

#[derive(Debug, Default)]
struct Layout {
    text: Vec<u8>,
    /// For each gap the end of the text before it, and the slot of its value.
    gaps: Vec<(usize, Option<usize>)>,
    /// Every slot gets a value, so none has to be cleared.
    complete: bool,
}

impl Layout {
    fn learn(&mut self, bytes: &[u8], start: usize, end: usize, trace: &Trace, slots: usize) {
        self.text.clear();
        self.gaps.clear();
        let mut at = start;
        for gap in &trace.gaps {
            self.text.extend_from_slice(&bytes[at..gap.start]);
            self.gaps.push((self.text.len(), gap.slot));
            at = gap.end;
        }
        self.text.extend_from_slice(&bytes[at..end]);
        self.complete = (0..slots).all(|s| trace.gaps.iter().any(|g| g.slot == Some(s)));
    }

    #[inline]
    fn read<'a>(&self, bytes: &'a [u8], mut at: usize, slots: &mut [Value<'a>]) -> Option<usize> {
        if !self.complete {
            slots.fill(Value::Missing);
        }
        let mut text_at = 0;
        for (text_end, slot) in &self.gaps {
            at = constant(bytes, at, &self.text[text_at..*text_end])?;
            text_at = *text_end;
            let (value, end) = scan::scalar(bytes, at).ok()??;
            if let Some(slot) = slot {
                slots[*slot] = value;
            }
            at = end;
        }
        constant(bytes, at, &self.text[text_at..])
    }
}

/// The position after `text`, if it is what comes next.
#[inline(always)]
fn constant(bytes: &[u8], at: usize, text: &[u8]) -> Option<usize> {
    let end = at + text.len();
    (bytes.get(at..end)? == text).then_some(end)
}

/// The layouts of one pipeline.
#[derive(Debug, Default)]
pub(super) struct Layouts {
    known: Vec<Layout>,
    current: usize,
    replaced: usize,
    walked: u32,
}

impl Layouts {
    /// Reads the object that starts at `at` into `slots`; the position after it. None, with any
    /// values in `slots`, if no layout fits.
    #[inline]
    pub(super) fn read<'a>(
        &mut self,
        bytes: &'a [u8],
        at: usize,
        slots: &mut [Value<'a>],
    ) -> Option<usize> {
        if let Some(end) = self.known.get(self.current)?.read(bytes, at, slots) {
            return Some(end);
        }
        for (i, layout) in self.known.iter().enumerate() {
            if i == self.current {
                continue;
            }
            if let Some(end) = layout.read(bytes, at, slots) {
                self.current = i;
                return Some(end);
            }
        }
        None
    }

    /// Remembers the object in `bytes[start..end]`, which was walked from end to end.
    pub(super) fn learn(
        &mut self,
        bytes: &[u8],
        start: usize,
        end: usize,
        trace: &Trace,
        slots: usize,
    ) {
        self.walked = self.walked.wrapping_add(1);
        let full = self.known.len() == LAYOUTS_MAX;
        if trace.unfit
            || end - start > TEXT_BYTES_MAX
            || (full && !self.walked.is_multiple_of(REPLACE_EVERY))
        {
            return;
        }
        if full {
            self.replaced = (self.replaced + 1) % LAYOUTS_MAX;
            self.current = self.replaced;
        } else {
            self.current = self.known.len();
            self.known.push(Layout::default());
        }
        self.known[self.current].learn(bytes, start, end, trace, slots);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
