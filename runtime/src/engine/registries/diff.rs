//! What of a registry is not as it was said last: a pure function of both.
//!
//! A row is known by its key, and where rows say since when they hold, by that as well. A row that
//! is no object, has no key, or has the key of a row before it, cannot be known by anything but its
//! text: it is said once, becomes a reject, and nothing else follows from it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tidegate_operators::Messages;
use tidegate_operators::registry::Change;
use tidegate_pipelines::plan::RegistrySource;

/// A row as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Its text.
    pub(super) text: String,
    /// Since when it holds, if it does not say so itself; `None`: since ever.
    pub(super) since_us: Option<i64>,
    /// It has the key only: from then on there is nothing of it.
    pub(super) gone: bool,
}

/// What a registry has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Rows by what they are known by.
    pub(super) rows: BTreeMap<String, Row>,
    /// Texts of rows that are of no use.
    pub(super) odd: BTreeSet<String>,
}

/// Something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A change; `row` has the key only, if it goes.
    Change { change: Change, row: String, since_us: Option<i64> },
    /// A row of no use, and why.
    Refused { row: Vec<u8>, why: String },
}

impl Known {
    /// All of it once more.
    pub(super) fn again(&self) -> Vec<Said> {
        let set = |row: &Row| Said::Change {
            change: if row.gone { Change::Remove } else { Change::Set },
            row: row.text.clone(),
            since_us: row.since_us,
        };
        self.rows.values().map(set).collect()
    }

    /// Takes the rows of a file; what there is to say: what goes first, then the rest in the order
    /// of the file. `since_us` is since when it holds.
    pub(super) fn take(
        mut self,
        source: &RegistrySource,
        file: &[Messages],
        since_us: Option<i64>,
    ) -> (Self, Vec<Said>) {
        let (mut rows, mut odd, mut said) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let messages = file.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        for (number, (messages, i)) in messages.enumerate() {
            let payload = messages.payload(i);
            let text = String::from_utf8_lossy(payload).into_owned();
            let name = if messages.index[i].refused { None } else { name_of(source, payload) };
            let why = match &name {
                None if messages.index[i].refused => {
                    Some(String::from_utf8_lossy(messages.properties(i)).into_owned())
                }
                Some(name) if rows.contains_key(name) => {
                    Some(format!("row {}: a row before it has the same key", number + 1))
                }
                _ => None,
            };
            let (Some(name), None) = (name, &why) else {
                if odd.insert(text.clone()) && !self.odd.contains(&text) {
                    // Without a reason here, decoding finds one.
                    let row = Said::Change { change: Change::Set, row: text, since_us };
                    let refused = |why| Said::Refused { row: payload.to_vec(), why };
                    said.push(why.map_or(row, refused));
                }
                continue;
            };
            let row = match self.rows.remove(&name) {
                Some(known) if known.text == text => known,
                _ => {
                    let row = text.clone();
                    said.push(Said::Change { change: Change::Set, row, since_us });
                    Row { text, since_us, gone: false }
                }
            };
            rows.insert(name, row);
        }
        let change = match source.valid_from {
            Some(_) => Change::Withdraw,
            None => Change::Remove,
        };
        let gone = self.rows.into_values().map(|row| Said::Change {
            change,
            row: key_of(source, &row.text),
            since_us,
        });
        (Self { rows, odd }, gone.chain(said).collect())
    }
}

/// Whether any row can be known by anything.
pub(super) fn has_keys(source: &RegistrySource, file: &[Messages]) -> bool {
    file.iter().any(|m| {
        (0..m.len()).any(|i| !m.index[i].refused && name_of(source, m.payload(i)).is_some())
    })
}

/// What a row is known by.
pub(super) fn name_of(source: &RegistrySource, row: &[u8]) -> Option<String> {
    let row: Value = serde_json::from_slice(row).ok()?;
    let mut name = Vec::new();
    for (_, path) in &source.key {
        let value = path.iter().try_fold(&row, |value, member| value.get(member))?;
        if value.is_null() {
            return None;
        }
        name.push(value.clone());
    }
    if let Some(member) = &source.valid_from {
        name.push(row.get(member).cloned().unwrap_or_default());
    }
    Some(Value::Array(name).to_string())
}

/// Only what a row is known by, as a row.
fn key_of(source: &RegistrySource, text: &str) -> String {
    let row: Value = serde_json::from_str(text).unwrap_or_default();
    let mut key = Map::new();
    let since = source.valid_from.iter().map(std::slice::from_ref);
    for path in source.key.iter().map(|(_, path)| path.as_slice()).chain(since) {
        let Some((last, folders)) = path.split_last() else { continue };
        let value = path.iter().try_fold(&row, |value, member| value.get(member));
        put_at(&mut key, folders, last, value.cloned().unwrap_or_default());
    }
    Value::Object(key).to_string()
}

/// Puts a member into an object below others.
fn put_at(object: &mut Map<String, Value>, folders: &[String], last: &str, value: Value) {
    let Some((first, rest)) = folders.split_first() else {
        object.insert(last.to_owned(), value);
        return;
    };
    let below = object.entry(first.clone()).or_insert_with(|| Map::new().into());
    if let Some(below) = below.as_object_mut() {
        put_at(below, rest, last, value);
    }
}
