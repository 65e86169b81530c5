//! What of a registry is not as it was said last: a pure function of both.
//!
//! A row is known by its key, and where rows say since when they hold, by that as well. A row that
//! is no object, has no key, has the key of a row before it, or is refused by decoding, is known by
//! its text alone: it is said once, becomes a reject, and what was known of its key stays. Nobody
//! can tell of which key a row is that cannot be read: as long as there is one, no key goes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tidegate_operators::Messages;
use tidegate_operators::registry::{Change, ROW_BYTES_MAX};
use tidegate_operators::reject::PAYLOAD_KEPT_BYTES;
use tidegate_pipelines::plan::RegistrySource;
use xxhash_rust::xxh3::xxh3_64;

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
    /// The greatest time since which anything was said to hold: what goes holds from then on, too.
    pub(super) latest_us: Option<i64>,
    /// What may have been said after that, by what it is known by, each with its key as a row.
    pub(super) unsure: BTreeMap<String, String>,
}

/// Rows of a file, and the numbers of those that decoding refuses.
pub(super) type Checked<'a> = (&'a [Messages], &'a BTreeSet<usize>);

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
        self.told(Change::Set, Change::Remove)
    }

    /// All of it as what is remembered: anything that came since takes its place, wherever the two
    /// are in the journal.
    pub(super) fn recalled(&self) -> Vec<Said> {
        self.told(Change::Recall, Change::RecallGone)
    }

    fn told(&self, holds: Change, gone: Change) -> Vec<Said> {
        let told = |row: &Row| Said::Change {
            change: if row.gone { gone } else { holds },
            row: row.text.clone(),
            since_us: row.since_us,
        };
        self.rows.values().map(told).collect()
    }

    /// Whether nothing was ever said for sure: what is there first was so before anybody asked.
    pub(super) fn is_first(&self) -> bool {
        self.rows.is_empty() && self.latest_us.is_none() && !self.unsure.is_empty()
    }

    /// The same, when this is about to be said after it: if it is not known later whether it was,
    /// [`Known::take`] says what holds in its place.
    pub(super) fn before(&self, source: &RegistrySource, said: &[Said]) -> Self {
        let mut before = self.clone();
        for one in said {
            let Said::Change { row, since_us, .. } = one else { continue };
            let Some(name) = name_of(source, row.as_bytes()) else { continue };
            before.unsure.insert(name, key_of(source, row));
            before.latest_us = before.latest_us.max(*since_us);
        }
        before
    }

    /// Takes the rows of a file; what there is to say: what goes first, then the rest in the order
    /// of the file. `since_us` is since when it holds.
    pub(super) fn take(
        mut self,
        source: &RegistrySource,
        (file, refused): Checked<'_>,
        since_us: Option<i64>,
    ) -> (Self, Vec<Said>) {
        // A clock that was set back brings no change before the one that was said last.
        let since_us = since_us.map(|us| us.max(self.latest_us.unwrap_or(us)));
        let mut new = Self { latest_us: self.latest_us, ..Self::default() };
        // What stays because its row is refused now.
        let mut stays = BTreeMap::<String, Row>::new();
        let (mut said, mut all_are_read) = (Vec::new(), true);
        let messages = file.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        for (number, (messages, i)) in messages.enumerate() {
            let row = row_of(source, messages, i);
            all_are_read &= row.as_ref().is_ok_and(|(name, text)| name.is_some() || is_json(text));
            let (odd, one) = match row {
                Err(refused) => refused,
                Ok((Some(name), text)) if new.rows.contains_key(&name) => {
                    let why = format!("row {}: a row before it has the same key", number + 1);
                    (text.to_owned(), Said::Refused { row: text.into(), why })
                }
                Ok((Some(name), text)) if !refused.contains(&number) => {
                    let known = self.rows.remove(&name).or_else(|| stays.remove(&name));
                    let is_sure = !self.unsure.contains_key(&name);
                    let row = match known.filter(|known| is_sure && known.text == text) {
                        Some(known) => known,
                        None => {
                            said.push(set(text, since_us));
                            Row { text: text.to_owned(), since_us, gone: false }
                        }
                    };
                    new.rows.insert(name, row);
                    continue;
                }
                Ok((name, text)) => {
                    let known = name.and_then(|name| self.rows.remove_entry(&name));
                    stays.extend(known.filter(|(_, known)| known.text != text));
                    // Decoding finds the reason.
                    (text.to_owned(), set(text, since_us))
                }
            };
            if new.odd.insert(odd.clone()) && !self.odd.contains(&odd) {
                said.push(one);
            }
        }
        if !all_are_read {
            stays.append(&mut self.rows);
        }
        for (_, row) in stays.iter_mut().filter(|(name, _)| self.unsure.contains_key(*name)) {
            row.since_us = since_us;
            said.push(set(&row.text, since_us));
        }
        new.rows.extend(stays);
        let mut gone: BTreeMap<String, String> = self.unsure;
        gone.retain(|name, _| !new.rows.contains_key(name));
        if !all_are_read {
            new.unsure = std::mem::take(&mut gone);
        }
        gone.extend(self.rows.iter().map(|(name, row)| (name.clone(), key_of(source, &row.text))));
        let own_times = source.valid_from.is_some();
        let change = if own_times { Change::Withdraw } else { Change::Remove };
        let goes = |row| Said::Change { change, row, since_us };
        let said: Vec<Said> = gone.into_values().map(goes).chain(said).collect();
        if said.iter().any(|s| matches!(s, Said::Change { .. })) {
            new.latest_us = new.latest_us.max(since_us);
        }
        (new, said)
    }
}

fn set(text: &str, since_us: Option<i64>) -> Said {
    Said::Change { change: Change::Set, row: text.to_owned(), since_us }
}

/// Whether a row can be read: then it has no key if none is found.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// What a row of a file is known by, if it has that, and its text.
///
/// # Errors
/// A row that cannot be said as it is: by what it is known, and what is said in its place.
pub(super) fn row_of<'a>(
    source: &RegistrySource,
    messages: &'a Messages,
    i: usize,
) -> Result<(Option<String>, &'a str), (String, Said)> {
    let payload = messages.payload(i);
    let why = if messages.index[i].refused {
        String::from_utf8_lossy(messages.properties(i)).into_owned()
    } else if payload.len() > ROW_BYTES_MAX {
        format!("it has {} bytes, at most {ROW_BYTES_MAX} are read", payload.len())
    } else {
        match std::str::from_utf8(payload) {
            Ok(text) => return Ok((name_of(source, payload), text)),
            // As a text it would be another row, perhaps of another key.
            Err(error) => format!("it is not UTF-8 at byte {}", error.valid_up_to()),
        }
    };
    let row = &payload[..payload.len().min(PAYLOAD_KEPT_BYTES)];
    let odd = match std::str::from_utf8(row) {
        Ok(text) if row.len() == payload.len() => text.to_owned(),
        _ => format!("{} bytes {:016x}", payload.len(), xxh3_64(payload)),
    };
    Err((odd, Said::Refused { row: row.to_vec(), why }))
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

/// Only what a row is known by, as a row; or all of it, if that could not be written as it was.
fn key_of(source: &RegistrySource, text: &str) -> String {
    let row: Value = serde_json::from_str(text).unwrap_or_default();
    let mut key = Map::new();
    let since = source.valid_from.iter().map(std::slice::from_ref);
    for path in source.key.iter().map(|(_, path)| path.as_slice()).chain(since) {
        let Some((last, folders)) = path.split_last() else { continue };
        let value = path.iter().try_fold(&row, |value, member| value.get(member));
        // Read and written, a number with a fraction can be the one beside it.
        if value.is_some_and(Value::is_f64) {
            return text.to_owned();
        }
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
