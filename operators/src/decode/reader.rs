//! From the bytes of one payload to the wanted values of each of its readings.
//!
//! Nothing is converted yet: a document is accepted or refused as a whole before any of its values
//! is looked at, so a fault at its end leaves no reading behind.

use super::layout::{Layouts, Trace};
use super::paths::Paths;
use super::scan::{self, Fault};
use super::value::Value;
use super::walk::Walk;

/// The readings of one document: `width` values each.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    width: usize,
    values: Vec<Value<'a>>,
    elements: Vec<Element>,
    /// The array to explode was there.
    pub(super) found: bool,
    /// Values for all readings, from the document around an exploded array.
    pub(super) shared: Vec<Value<'a>>,
}

/// Where a reading was in the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element {
    /// First byte.
    pub(super) start: usize,
    /// Byte after the last.
    pub(super) end: usize,
    /// It is an object.
    pub(super) object: bool,
}

impl<'a> Rows<'a> {
    /// No reading yet, of `width` values each, beside `shared` values.
    pub(super) fn new(width: usize, shared: usize) -> Self {
        Self {
            width,
            values: Vec::new(),
            elements: Vec::new(),
            found: false,
            shared: vec![Value::Missing; shared],
        }
    }

    /// Forgets all readings.
    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.elements.clear();
        self.found = false;
    }

    /// Makes it one reading that is the whole payload, with no value yet.
    pub(super) fn single(&mut self, end: usize) -> &mut [Value<'a>] {
        self.clear();
        self.found = true;
        self.values.resize(self.width, Value::Missing);
        self.elements.push(Element { start: 0, end, object: true });
        &mut self.values
    }

    /// The readings.
    pub(super) fn elements(&self) -> &[Element] {
        &self.elements
    }

    /// The values of reading `i`.
    #[inline]
    pub(super) fn values(&self, i: usize) -> &[Value<'a>] {
        &self.values[i * self.width..][..self.width]
    }
}

/// Reads elements, or the document where nothing is exploded.
#[derive(Debug)]
pub(super) struct Elements {
    paths: Paths,
    layouts: Layouts,
    seen: Vec<bool>,
    trace: Trace,
    by_layout: bool,
}

impl Elements {
    fn new(paths: Paths) -> Self {
        Self {
            paths,
            layouts: Layouts::default(),
            seen: Vec::new(),
            trace: Trace::default(),
            by_layout: true,
        }
    }

    /// Reads the array that starts at `at`, one reading per element; the position after it.
    pub(super) fn read<'a>(
        &mut self,
        bytes: &'a [u8],
        at: usize,
        depth: usize,
        rows: &mut Rows<'a>,
    ) -> Result<usize, Fault> {
        rows.found = true;
        let mut at = scan::space(bytes, at + 1);
        if bytes.get(at) == Some(&b']') {
            return Ok(at + 1);
        }
        loop {
            at = scan::space(bytes, self.one(bytes, at, depth + 1, rows)?);
            match bytes.get(at) {
                Some(b',') => at = scan::space(bytes, at + 1),
                Some(b']') => return Ok(at + 1),
                _ => return Err(Fault::new(at, "expected a comma or the end of an array")),
            }
        }
    }

    /// Reads one element.
    #[inline]
    fn one<'a>(
        &mut self,
        bytes: &'a [u8],
        start: usize,
        depth: usize,
        rows: &mut Rows<'a>,
    ) -> Result<usize, Fault> {
        let from = rows.values.len();
        rows.values.resize(from + rows.width, Value::Missing);
        let slots = &mut rows.values[from..];
        if self.by_layout
            && let Some(end) = self.layouts.read(bytes, start, slots)
        {
            rows.elements.push(Element { start, end, object: true });
            return Ok(end);
        }
        let mut walk = Walk {
            bytes,
            paths: &self.paths,
            slots,
            seen: &mut self.seen,
            trace: &mut self.trace,
            explode: None,
        };
        let end = walk.run(start, depth)?;
        let object = bytes[start] == b'{';
        if object && self.by_layout {
            self.layouts.learn(bytes, start, end, &self.trace, rows.width);
        }
        rows.elements.push(Element { start, end, object });
        Ok(end)
    }
}

/// Reads documents of one pipeline.
#[derive(Debug)]
pub(super) struct Reader {
    elements: Elements,
    document: Option<Document>,
}

/// What is wanted from around an exploded array.
#[derive(Debug)]
struct Document {
    paths: Paths,
    seen: Vec<bool>,
    trace: Trace,
}

impl Reader {
    /// Reads what `elements` wants from each reading; with `document`, which names the array to
    /// explode, one reading per element of it.
    pub(super) fn new(elements: Paths, document: Option<Paths>) -> Self {
        let document =
            document.map(|paths| Document { paths, seen: Vec::new(), trace: Trace::default() });
        Self { elements: Elements::new(elements), document }
    }

    /// A place for the readings of a document.
    pub(super) fn rows<'a>(&self) -> Rows<'a> {
        let shared = self.document.as_ref().map_or(0, |d| d.paths.slots());
        Rows::new(self.elements.paths.slots(), shared)
    }

    /// Reads a whole payload. After an error `rows` means nothing.
    #[inline]
    pub(super) fn read<'a>(&mut self, payload: &'a [u8], rows: &mut Rows<'a>) -> Result<(), Fault> {
        rows.clear();
        let start = scan::space(payload, 0);
        let end = match &mut self.document {
            None => {
                rows.found = true;
                self.elements.one(payload, start, 0, rows)?
            }
            Some(document) => {
                let mut shared = std::mem::take(&mut rows.shared);
                let end = Walk {
                    bytes: payload,
                    paths: &document.paths,
                    slots: &mut shared,
                    seen: &mut document.seen,
                    trace: &mut document.trace,
                    explode: Some((&mut self.elements, rows)),
                }
                .run(start, 0);
                rows.shared = shared;
                end?
            }
        };
        if scan::space(payload, end) == payload.len() {
            Ok(())
        } else {
            Err(Fault::new(end, "something follows the document"))
        }
    }

    /// Walks every document, so that tests can compare with reading by layout.
    #[cfg(test)]
    pub(super) fn without_layouts(&mut self) {
        self.elements.by_layout = false;
    }

    #[cfg(test)]
    pub(super) fn layouts(&self) -> usize {
        self.elements.layouts.len()
    }
}
