//! What a registry said last, on disk: `{"version":1}`, then a line per row.
//!
//! Written after the journal has it, as a new file under the old name, so it is whole or that of
//! before; and before, with what may be said from then on. One that is damaged is as good as none:
//! everything is said as at first, and what is known changes nothing.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::diff::{Known, Row};

const VERSION: u32 = 1;

/// How its name ends.
pub(super) const ENDING: &str = "ndjson";
/// Likewise of one that was put away.
pub(super) const LEFT: &str = "left";

/// The file.
#[derive(Debug)]
pub(super) struct Note(PathBuf);

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    lines: usize,
    /// [`Known::latest_us`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest_us: Option<i64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// What the row is known by; absent: by its text alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    since_us: Option<i64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gone: bool,
    /// It may have been said otherwise; the text is its key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsure: bool,
}

impl Note {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// What was said; `None` if nothing is known of that.
    pub(super) fn read(&self) -> anyhow::Result<Option<Known>> {
        let what = || format!("cannot read {}", self.0.display());
        match std::fs::read_to_string(&self.0) {
            Ok(text) => {
                let known = decode(&text);
                if known.is_none() {
                    let path = self.0.display();
                    tracing::warn!(%path, "this file is damaged, it is left out");
                }
                Ok(known)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error).with_context(what),
        }
    }

    pub(super) fn write(&self, known: &Known) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", self.0.display());
        let new = self.0.with_extension("new");
        let mut file = std::fs::File::create(&new).with_context(what)?;
        file.write_all(encode(known).as_bytes()).with_context(what)?;
        file.sync_all().with_context(what)?;
        std::fs::rename(&new, &self.0).with_context(what)?;
        self.sync_folder().with_context(what)
    }

    /// Where it is while its registry is not in the plan.
    pub(super) fn put_away(&self) -> Self {
        Self(self.0.with_extension(LEFT))
    }

    /// It is of no use any more.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        let what = || format!("cannot remove {}", self.0.display());
        std::fs::remove_file(&self.0).with_context(what)
    }

    /// The last name counts only if the folder is on the disk.
    fn sync_folder(&self) -> std::io::Result<()> {
        match self.0.parent() {
            Some(folder) => std::fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn encode(known: &Known) -> String {
    let line = |name: Option<&String>, text: &String| Line {
        name: name.cloned(),
        text: text.clone(),
        since_us: None,
        gone: false,
        unsure: false,
    };
    let rows = known.rows.iter().map(|(name, row)| Line {
        since_us: row.since_us,
        gone: row.gone,
        ..line(Some(name), &row.text)
    });
    let odd = known.odd.iter().map(|text| line(None, text));
    let unsure =
        known.unsure.iter().map(|(name, key)| Line { unsure: true, ..line(Some(name), key) });
    let head = Head { version: VERSION, lines: count(known), latest_us: known.latest_us };
    // Texts and numbers always serialize.
    let mut out = serde_json::to_string(&head).unwrap_or_default();
    for line in rows.chain(odd).chain(unsure) {
        out.push('\n');
        out.push_str(&serde_json::to_string(&line).unwrap_or_default());
    }
    out.push('\n');
    out
}

fn count(known: &Known) -> usize {
    known.rows.len() + known.odd.len() + known.unsure.len()
}

fn decode(text: &str) -> Option<Known> {
    let mut lines = text.lines();
    let head: Head = serde_json::from_str(lines.next()?).ok()?;
    let mut known = Known { latest_us: head.latest_us, ..Known::default() };
    for line in lines {
        let Line { name, text, since_us, gone, unsure } = serde_json::from_str(line).ok()?;
        // Before it was in the head.
        known.latest_us = known.latest_us.max(since_us);
        match name {
            Some(name) if unsure => drop(known.unsure.insert(name, text)),
            Some(name) => drop(known.rows.insert(name, Row { text, since_us, gone })),
            None => drop(known.odd.insert(text)),
        }
    }
    (head.version == VERSION && count(&known) == head.lines).then_some(known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_comes_back_and_what_is_cut_does_not(
            rows in prop::collection::btree_map(
                ".*", (".*", any::<Option<i64>>(), any::<bool>()), 0..6
            ),
            odd in prop::collection::btree_set(".*", 0..4),
            unsure in prop::collection::btree_map(".*", ".*", 0..4),
            later_us in any::<Option<i64>>(),
            cut in 0.0..1.0_f64
        ) {
            let row = |(name, (text, since_us, gone))| (name, Row { text, since_us, gone });
            let rows: BTreeMap<String, Row> = rows.into_iter().map(row).collect();
            let latest_us = rows.values().map(|row| row.since_us).fold(later_us, Ord::max);
            let known = Known { rows, odd, unsure, latest_us };
            let text = encode(&known);
            prop_assert_eq!(decode(&text), Some(known.clone()));
            let mut end = (text.len() as f64 * cut) as usize;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            // The last line end aside, every byte counts.
            prop_assert!(end + 1 >= text.len() || decode(&text[..end]).is_none());
        }
    }
}
