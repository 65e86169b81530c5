//! The outbox for people: what waits in it, what was given up, and the wish to send that again.
//!
//! Invariant: nothing here writes to the outbox's own file, so all of it works beside a running
//! process. A wish is a small file in the outbox's folder, complete once it has its name; whoever
//! runs the outbox does it within a second, or at its next start, and removes the file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::record::{self, Outcome};
use super::{Notification, PREFIX};
use crate::journal::DurableError;
use crate::journal::frame::Kind;
use crate::journal::recover::{is_unborn, read_tail};
use crate::journal::segment::{self, Frame};

/// Files of wishes are `resend-NUMBER.request`; their content is an identifier, or nothing for all.
const REQUEST: (&str, &str) = ("resend-", ".request");
/// How often a listing begins anew because the file was replaced meanwhile.
const READS_MAX: usize = 3;

/// A notification that was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// What it says, to whom.
    pub notification: Notification,
    /// Attempts that failed and were to be repeated.
    pub attempts: u64,
    /// Why the last attempt failed, or why it was given up; empty if it was not tried.
    pub reason: String,
    /// It is not tried any more, unless that is asked for.
    pub dead: bool,
}

/// What is to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resend {
    /// Everything that was given up and is still there.
    All,
    /// One notification.
    One(String),
}

/// What waits in the outbox of `dir` and what was given up there, in the order of arrival. Beside a
/// running process it is the state of a moment ago.
///
/// # Errors
/// Damage, or those of the file system. A folder without an outbox has no letters.
pub fn letters(dir: &Path) -> Result<Vec<Letter>, DurableError> {
    for _ in 1..READS_MAX {
        match read(dir) {
            // A running process has just replaced its file by a shorter one.
            Err(DurableError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    read(dir)
}

fn read(dir: &Path) -> Result<Vec<Letter>, DurableError> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let files = segment::list(dir, PREFIX).map_err(DurableError::io("list", dir))?;
    let Some((_, path)) = files.last() else { return Ok(Vec::new()) };
    if is_unborn(path)? {
        return Ok(Vec::new());
    }
    let mut all = Reader::default();
    read_tail(path, |_, frame| all.take(frame).ok_or_else(|| "the record is not valid".into()))?;
    Ok(all.letters.into_values().collect())
}

#[derive(Default)]
struct Reader {
    letters: BTreeMap<u64, Letter>,
    numbers: BTreeMap<String, u64>,
}

impl Reader {
    fn take(&mut self, frame: &Frame) -> Option<()> {
        match frame.kind {
            Kind::Enqueued => {
                for notification in record::get_notifications(&frame.body)? {
                    let number = self.numbers.len() as u64;
                    if self.numbers.contains_key(&notification.id) {
                        continue;
                    }
                    self.numbers.insert(notification.id.clone(), number);
                    let letter =
                        Letter { notification, attempts: 0, reason: String::new(), dead: false };
                    self.letters.insert(number, letter);
                }
            }
            Kind::Outcome => {
                let (outcome, id, reason) = record::get_outcome(&frame.body)?;
                let Some(number) = self.numbers.get(&id) else { return Some(()) };
                if outcome == Outcome::Delivered {
                    self.letters.remove(number);
                } else if let Some(letter) = self.letters.get_mut(number) {
                    letter.attempts += u64::from(outcome == Outcome::Failed);
                    letter.dead = outcome == Outcome::Dead;
                    letter.reason = reason;
                }
            }
            Kind::Again => {
                let (id, at_us) = record::get_again(&frame.body)?;
                let number = self.numbers.get(&id);
                if let Some(letter) = number.and_then(|n| self.letters.get_mut(n)) {
                    letter.dead = false;
                    letter.notification.created_us = at_us;
                }
            }
            Kind::Known => drop(record::get_ids(&frame.body)?),
            _ => return None,
        }
        Some(())
    }
}

/// Asks whoever runs the outbox of `dir`, now or next, to send something again.
///
/// # Errors
/// Those of the file system.
pub fn request(dir: &Path, wish: &Resend) -> Result<(), DurableError> {
    let temporary = dir.join(format!("{}{}.tmp", REQUEST.0, std::process::id()));
    let content = match wish {
        Resend::All => "",
        Resend::One(id) => id,
    };
    std::fs::write(&temporary, content).map_err(DurableError::io("write", &temporary))?;
    // A name of its own, which no other wish has.
    let taken = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
    let placed = (1..u32::MAX)
        .map(|number| {
            let path = dir.join(format!("{}{number:06}{}", REQUEST.0, REQUEST.1));
            tidegate_sql::rename_new(&temporary, &path)
        })
        .find(|placed| !placed.as_ref().is_err_and(taken))
        .unwrap_or(Ok(()));
    placed.map_err(DurableError::io("write", dir))
}

/// The files of wishes in `dir`, oldest first.
pub(super) fn requests(dir: &Path) -> Result<Vec<PathBuf>, DurableError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = list().map_err(DurableError::io("list", dir))?;
    paths.retain(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with(REQUEST.0) && name.ends_with(REQUEST.1))
    });
    paths.sort_unstable();
    Ok(paths)
}

/// The wish in a file.
pub(super) fn wish(path: &Path) -> Result<Resend, DurableError> {
    let id = std::fs::read_to_string(path).map_err(DurableError::io("read", path))?;
    Ok(if id.is_empty() { Resend::All } else { Resend::One(id) })
}
