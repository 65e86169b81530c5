//! One pass over a document of any shape: checks all of it, takes the values that are wanted.
//!
//! The last of several members of one name counts, as in most JSON parsers, together with all that
//! is below it. Nothing is kept of what is not wanted, but its syntax is checked all the same.

use super::layout::Trace;
use super::paths::{NodeId, Paths, ROOT};
use super::reader::{Elements, Rows};
use super::scan::{self, Fault};
use super::value::{Value, unescape};

/// Objects and arrays within each other. Telemetry has a handful; the walk recurses, so this also
/// bounds its stack.
pub(super) const DEPTH_MAX: usize = 32;

/// A walk over one document or element.
pub(super) struct Walk<'w, 'a> {
    /// The whole payload.
    pub(super) bytes: &'a [u8],
    /// What is wanted.
    pub(super) paths: &'w Paths,
    /// Where it goes; one per slot of `paths`.
    pub(super) slots: &'w mut [Value<'a>],
    /// Nodes met so far.
    pub(super) seen: &'w mut Vec<bool>,
    /// What a layout can be made from.
    pub(super) trace: &'w mut Trace,
    /// Takes the elements of the array to explode, if this pipeline does so.
    pub(super) explode: Option<(&'w mut Elements, &'w mut Rows<'a>)>,
}

impl<'a> Walk<'_, 'a> {
    /// Walks the value that starts at `at`, inside `depth` objects and arrays; the position after.
    pub(super) fn run(&mut self, at: usize, depth: usize) -> Result<usize, Fault> {
        self.slots.fill(Value::Missing);
        self.seen.clear();
        self.seen.resize(self.paths.len(), false);
        self.trace.clear();
        self.value(at, Some(ROOT), depth)
    }

    fn value(&mut self, at: usize, node: Option<NodeId>, depth: usize) -> Result<usize, Fault> {
        if let Some(node) = node {
            self.enter(node);
        }
        let slot = node.and_then(|n| self.paths.node(n).slot);
        if let Some((value, end)) = scan::scalar(self.bytes, at)? {
            self.trace.scalar(at, end, slot);
            self.set(slot, value);
            return Ok(end);
        }
        if depth == DEPTH_MAX {
            return Err(Fault { at, what: "nested too deeply", deep: true });
        }
        match self.bytes[at] {
            b'{' => {
                self.set_container(slot, Value::Object);
                self.object(at, node, depth)
            }
            b'[' => {
                self.set_container(slot, Value::Array);
                self.array(at, node, depth)
            }
            _ => Err(Fault::new(at, "expected a value")),
        }
    }

    /// Forgets what an earlier member of the same name gave.
    fn enter(&mut self, node: NodeId) {
        if !std::mem::replace(&mut self.seen[node], true) {
            return;
        }
        self.trace.unfit();
        let node = self.paths.node(node);
        for slot in &node.below {
            self.slots[*slot] = Value::Missing;
        }
        if node.explode_below
            && let Some((_, rows)) = &mut self.explode
        {
            rows.clear();
        }
    }

    fn set(&mut self, slot: Option<usize>, value: Value<'a>) {
        if let Some(slot) = slot {
            self.slots[slot] = value;
        }
    }

    /// A wanted object or array is not a scalar in a gap, so a layout would miss it.
    fn set_container(&mut self, slot: Option<usize>, value: Value<'a>) {
        if slot.is_some() {
            self.trace.unfit();
        }
        self.set(slot, value);
    }

    fn object(&mut self, at: usize, node: Option<NodeId>, depth: usize) -> Result<usize, Fault> {
        let bytes = self.bytes;
        let mut at = scan::space(bytes, at + 1);
        if bytes.get(at) == Some(&b'}') {
            return Ok(at + 1);
        }
        loop {
            if bytes.get(at) != Some(&b'"') {
                return Err(Fault::new(at, "expected a member name"));
            }
            let (key, end) = scan::string(bytes, at)?;
            at = scan::space(bytes, end);
            if bytes.get(at) != Some(&b':') {
                return Err(Fault::new(at, "expected a colon"));
            }
            at = scan::space(bytes, at + 1);
            let member = node.and_then(|n| self.member(n, key));
            at = scan::space(bytes, self.value(at, member, depth + 1)?);
            match bytes.get(at) {
                Some(b',') => at = scan::space(bytes, at + 1),
                Some(b'}') => return Ok(at + 1),
                _ => return Err(Fault::new(at, "expected a comma or the end of an object")),
            }
        }
    }

    fn member(&self, node: NodeId, key: Value<'_>) -> Option<NodeId> {
        match key {
            Value::Text(key) => self.paths.member(node, key),
            Value::Escaped(body) => {
                let mut key = Vec::new();
                unescape(body, &mut key).then(|| self.paths.member(node, &key)).flatten()
            }
            _ => None,
        }
    }

    fn array(&mut self, at: usize, node: Option<NodeId>, depth: usize) -> Result<usize, Fault> {
        let bytes = self.bytes;
        if node.is_some_and(|n| self.paths.node(n).explode)
            && let Some((elements, rows)) = &mut self.explode
        {
            return elements.read(bytes, at, depth, rows);
        }
        let mut at = scan::space(bytes, at + 1);
        if bytes.get(at) == Some(&b']') {
            return Ok(at + 1);
        }
        loop {
            at = scan::space(bytes, self.value(at, None, depth + 1)?);
            match bytes.get(at) {
                Some(b',') => at = scan::space(bytes, at + 1),
                Some(b']') => return Ok(at + 1),
                _ => return Err(Fault::new(at, "expected a comma or the end of an array")),
            }
        }
    }
}
