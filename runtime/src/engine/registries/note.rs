//! What a registry said last, on disk: `{"version":1}`, then a line per row.
//!
//! Written only after the journal has it, as a new file under the old name, so it is whole or that
//! of before. One that is damaged is as good as none: everything is said as at first, and what is
//! known changes nothing.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::diff::{Known, Row};

const VERSION: u32 = 1;

/// The file.
#[derive(Debug)]
pub(super) struct Note(PathBuf);

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    lines: usize,
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
        std::fs::rename(&new, &self.0).with_context(what)
    }
}

fn encode(known: &Known) -> String {
    let rows = known.rows.iter().map(|(name, row)| Line {
        name: Some(name.clone()),
        text: row.text.clone(),
        since_us: row.since_us,
        gone: row.gone,
    });
    let odd = |text: &String| Line { name: None, text: text.clone(), since_us: None, gone: false };
    let odd = known.odd.iter().map(odd);
    let head = Head { version: VERSION, lines: known.rows.len() + known.odd.len() };
    // Texts and numbers always serialize.
    let mut out = serde_json::to_string(&head).unwrap_or_default();
    for line in rows.chain(odd) {
        out.push('\n');
        out.push_str(&serde_json::to_string(&line).unwrap_or_default());
    }
    out.push('\n');
    out
}

fn decode(text: &str) -> Option<Known> {
    let mut lines = text.lines();
    let head: Head = serde_json::from_str(lines.next()?).ok()?;
    let mut known = Known::default();
    for line in lines {
        let Line { name, text, since_us, gone } = serde_json::from_str(line).ok()?;
        match name {
            Some(name) => drop(known.rows.insert(name, Row { text, since_us, gone })),
            None => drop(known.odd.insert(text)),
        }
    }
    let whole = head.version == VERSION && known.rows.len() + known.odd.len() == head.lines;
    whole.then_some(known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_comes_back_and_what_is_cut_does_not(
            rows in prop::collection::btree_map(
                ".*", (".*", any::<Option<i64>>(), any::<bool>()), 0..6
            ),
            odd in prop::collection::btree_set(".*", 0..4),
            cut in 0.0..1.0_f64
        ) {
            let row = |(name, (text, since_us, gone))| (name, Row { text, since_us, gone });
            let known = Known { rows: rows.into_iter().map(row).collect(), odd };
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
