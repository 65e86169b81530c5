//! Reading a checked table by the names of its keys. A value that is absent or was reported as
//! broken gives its default; reading a key that the table of keys does not have is a bug.

use super::check;
use super::kinds::{Component, Key, Kind};
use super::problem::{At, Reporter};
use super::references;
use super::tree::{Entry, Node, Table, Value};
use super::units;

static NOTHING: Table = Table { entries: Vec::new() };

/// A table of one component.
#[derive(Clone, Copy, Debug)]
pub struct Section<'t> {
    /// What it is.
    pub component: &'static Component,
    /// Where it starts.
    pub at: At,
    table: &'t Table,
}

impl<'t> Section<'t> {
    /// The table of a known component; empty if the node is no table.
    pub fn new(component: &'static Component, node: &'t Node, at: At) -> Self {
        Self { component, at, table: node.table().unwrap_or(&NOTHING) }
    }

    /// A table that was not written: every key has its default.
    pub fn nothing(component: &'static Component, at: At) -> Self {
        Self { component, at, table: &NOTHING }
    }

    fn key(&self, name: &str) -> &'static Key {
        self.component
            .key(name)
            .unwrap_or_else(|| panic!("`{}` has no key `{name}`", self.component.id))
    }

    /// Whether the component has a key of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.component.key(name).is_some()
    }

    /// The keys that those which are none, and were reported, were probably meant for.
    pub fn misspelt(&self) -> Vec<&'static str> {
        check::misspelt(self.component, self.table).collect()
    }

    /// What was written.
    pub fn entry(&self, name: &str) -> Option<&'t Entry> {
        let _ = self.key(name);
        self.table.get(name)
    }

    /// Where the value is written; if it is not, where the table starts.
    pub fn at(&self, name: &str) -> At {
        self.entry(name).map_or(self.at, |e| e.node.at)
    }

    /// The section below a key.
    pub fn section(&self, name: &str) -> Option<Section<'t>> {
        let entry = self.entry(name)?;
        let component = match self.key(name).kind {
            Kind::Section(c) | Kind::Time(c) | Kind::Zone(c) => c,
            Kind::Variant(all) => check::selected(all, entry.node.table()?)?,
            _ => return None,
        };
        entry.node.table()?;
        Some(Section::new(component, &entry.node, entry.key_at))
    }

    /// The sections in the list below a key; those of unknown type are left out.
    pub fn sections(&self, name: &str) -> Vec<Section<'t>> {
        let kind = self.key(name).kind;
        let Some(entry) = self.entry(name) else { return Vec::new() };
        entry
            .node
            .list()
            .iter()
            .filter_map(|item| {
                let component = match kind {
                    Kind::Sections(c) => c,
                    _ => check::selected(kind.components(), item.table()?)?,
                };
                Some(Section::new(component, item, At { end: item.at.start + 1, ..item.at }))
            })
            .collect()
    }

    /// Names in the list below a key whose sections are of unknown type, each with where that was
    /// reported.
    pub fn left_out(&self, name: &str) -> Vec<(&'t str, At)> {
        let kind = self.key(name).kind;
        let Some(entry) = self.entry(name) else { return Vec::new() };
        let of = |item: &'t Node| {
            let table = item.table()?;
            let name = table.get("name")?.node.text()?;
            let start = At { end: item.at.start + 1, ..item.at };
            let at = table.get("type").map_or(start, |kind| kind.node.at);
            check::selected(kind.components(), table).is_none().then_some((name, at))
        };
        entry.node.list().iter().filter_map(of).collect()
    }

    /// The table of one entry of a table whose values are tables, if it is one: a column of
    /// `fields`, a notification of `notify`.
    pub fn named(&self, name: &str, entry: &'t Entry) -> Option<Section<'t>> {
        let table = entry.node.table()?;
        let component = match self.key(name).kind {
            Kind::Fields(c) => c,
            kind => check::selected(kind.components(), table)?,
        };
        Some(Section::new(component, &entry.node, entry.key_at))
    }

    /// The entries of the table below a key, in the order as written.
    pub fn entries(&self, name: &str) -> &'t [Entry] {
        self.entry(name).and_then(|e| e.node.table()).map_or(&[], |t| &t.entries)
    }

    /// Whether a place is in this section.
    pub fn covers(&self, at: At) -> bool {
        let inside = |e: &Entry| {
            e.key_at.file == at.file
                && (e.key_at.start..e.node.at.end.max(e.key_at.end)).contains(&at.start)
        };
        let below = |e: &Entry| e.node.table().is_some_and(|t| t.entries.iter().any(inside));
        (at.file == self.at.file && at.start == self.at.start)
            || self.table.entries.iter().any(|e| inside(e) || below(e))
    }

    /// The text of a key, or its default.
    pub fn text(&self, name: &str) -> Option<&'t str> {
        let written = self.entry(name).map(|e| &e.node.value);
        match (&self.key(name).kind, written) {
            // A word that is not allowed was reported; the default keeps the rest checkable.
            (Kind::OneOf(words), Some(Value::Text(text))) if !words.contains(&text.as_str()) => {
                self.key(name).default
            }
            (_, Some(Value::Text(text) | Value::Datetime(text))) => Some(text),
            _ => self.key(name).default,
        }
    }

    /// The texts of a list, each with its place; `None` if it was not written.
    pub fn texts(&self, name: &str) -> Option<Vec<(&'t str, At)>> {
        let list = self.entry(name)?.node.list();
        Some(list.iter().filter_map(|n| Some((n.text()?, n.at))).collect())
    }

    /// A duration, microseconds.
    pub fn duration_us(&self, name: &str) -> Option<i64> {
        let written = self.entry(name).and_then(|e| e.node.text());
        let parse = |text: &str| units::duration_us(text).ok();
        written.and_then(parse).or_else(|| self.key(name).default.and_then(parse))
    }

    /// A size, bytes.
    pub fn size_bytes(&self, name: &str) -> Option<u64> {
        let written = self.entry(name).and_then(|e| e.node.text());
        let parse = |text: &str| units::size_bytes(text).ok();
        written.and_then(parse).or_else(|| self.key(name).default.and_then(parse))
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f64> {
        let written = self.entry(name).and_then(|e| e.node.number());
        written.or_else(|| self.key(name).default?.parse().ok())
    }

    /// An integer.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.entry(name).map(|e| &e.node.value) {
            Some(Value::Int(i)) => Some(*i),
            _ => self.key(name).default?.parse().ok(),
        }
    }

    /// A boolean; false if it has no default.
    pub fn bool(&self, name: &str) -> bool {
        match self.entry(name).map(|e| &e.node.value) {
            Some(Value::Bool(b)) => *b,
            _ => self.key(name).default == Some("true"),
        }
    }

    /// A text with its references replaced. Reports what cannot be resolved.
    pub fn resolved(
        &self,
        name: &str,
        resolve: references::Resolver<'_>,
        report: &mut Reporter<'_>,
    ) -> Option<String> {
        match self.entry(name) {
            Some(entry) => expand(&entry.node, resolve, report),
            None => self.key(name).default.map(str::to_owned),
        }
    }
}

/// The text of a node with its references replaced. Reports what cannot be resolved.
pub fn expand(
    node: &Node,
    resolve: references::Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<String> {
    let text = node.text()?;
    references::check(text).ok()?;
    match references::expand(text, resolve) {
        Ok(value) => Some(value),
        Err(reason) => {
            let hint = "references are resolved when the plan is loaded".to_owned();
            report.error(node.at, reason, hint);
            None
        }
    }
}
