//! What the rows of a table are told apart by: a table keeps it beside them, so that rows which
//! would be taken for those that are there never come to them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Version of what is kept: what another one says is not compared. It has to grow when the same
/// pipeline gives another text, or tables would be refused after an update (a test of the crate
/// `tidegate-pipelines` has such texts).
const FORMAT: u32 = 1;

/// What the rows of a table are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    format: u32,
    windows: Option<TableWindows>,
}

/// The windows of which each row is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableWindows {
    /// The columns of their key.
    pub keys: BTreeSet<String>,
    /// Which windows there are, for people.
    pub shape: String,
    /// What decides where they begin and end, and their numbers.
    pub bounds: String,
    /// Of windows whose bounds or numbers follow from the readings before: what decides which
    /// readings these are.
    pub taken: Option<String>,
}

impl TableRows {
    /// Rows of such windows; `None`: of no windows.
    pub fn of(windows: Option<TableWindows>) -> Self {
        Self { format: FORMAT, windows }
    }

    /// As a table keeps it.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What a table keeps; `None`: another version wrote it.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|rows: &Self| rows.format == FORMAT)
    }

    /// Why these rows cannot come to those from before, if they cannot.
    pub fn conflict(&self, before: &Self) -> Option<String> {
        let why = self.difference(before)?;
        Some(format!(
            "{why}, and rows of both would be taken for one another; give the new table another \
             name"
        ))
    }

    fn difference(&self, before: &Self) -> Option<String> {
        let (was, now) = match (&before.windows, &self.windows) {
            (Some(was), Some(now)) => (was, now),
            (None, None) => return None,
            (Some(_), None) => {
                return Some("it has rows of windows, and would get others".to_owned());
            }
            (None, Some(_)) => {
                return Some("it has rows of no windows, and would get some".to_owned());
            }
        };
        let what = if was.keys != now.keys {
            format!(" ({} before, now {})", by(&was.keys), by(&now.keys))
        } else if was.bounds != now.bounds {
            match was.shape == now.shape {
                true => String::new(),
                false => format!(" ({} before, now {})", was.shape, now.shape),
            }
        } else if was.taken != now.taken {
            " (of other readings than before)".to_owned()
        } else {
            return None;
        };
        Some(format!("its windows are others{what}"))
    }
}

fn by(keys: &BTreeSet<String>) -> String {
    match keys.is_empty() {
        true => "by nothing".to_owned(),
        false => format!("by {}", Vec::from_iter(keys.iter().map(String::as_str)).join(", ")),
    }
}
