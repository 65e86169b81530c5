//! Reading an outbox as a doctor does: past any damage, without its lock, changing nothing; and
//! writing what is whole of it into another folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidegate_operators::Epoch;

use super::PREFIX;
use super::record::{self, Outcome};
use crate::journal::examine::scan::{Bad, Piece, Scan, header_of, salt_of};
use crate::journal::frame::{self, Kind};
use crate::journal::recover::is_unborn;
use crate::journal::segment::{self, FileHeader, Frame};
use crate::journal::{Disk, DurableError, Storage};

/// What an outbox holds.
pub(crate) struct Seen {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Notifications that were enqueued since the last compaction.
    pub(crate) items: u64,
    /// Targets of those that are neither delivered nor given up.
    pub(crate) pending: Vec<String>,
    pub(crate) dead: u64,
    /// The newest epoch whose alerts are in it.
    pub(crate) through: Epoch,
    pub(crate) damages: Vec<Bad>,
}

/// The file that is the outbox, its header, and what stands in it.
struct Opened {
    path: PathBuf,
    bytes: u64,
    header: FileHeader,
    frames: Vec<Frame>,
    damages: Vec<Bad>,
}

impl Opened {
    /// The newest epoch whose alerts are in it.
    fn through(&self) -> Epoch {
        let of_alerts = |frame: &&Frame| matches!(frame.kind, Kind::Enqueued | Kind::Known);
        let newest = self.frames.iter().filter(of_alerts).map(|frame| frame.epoch).max();
        self.header.first_epoch.max(newest.unwrap_or(0))
    }
}

fn open(dir: &Path) -> Result<Option<Opened>, DurableError> {
    let mut files = segment::list(dir, PREFIX).map_err(DurableError::io("list", dir))?;
    // One whose creation was interrupted is none: a start removes it.
    let unborn = match files.last().map(|(_, path)| is_unborn(path)) {
        Some(Err(DurableError::Io { source, .. }))
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            return open(dir);
        }
        unborn => unborn.transpose()?.unwrap_or(false),
    };
    if unborn {
        files.pop();
    }
    let Some((sequence, path)) = files.pop() else { return Ok(None) };
    let bytes: Bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        // A running instance has just replaced it by a shorter one.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return open(dir),
        Err(error) => return Err(DurableError::io("read", &path)(error)),
    };
    let (mut frames, mut damages) = (Vec::new(), Vec::new());
    let whole = bytes.len() as u64;
    let header = header_of(&bytes).or_else(|reason| {
        let salt = salt_of(&bytes);
        let until = if salt.is_some() { segment::HEADER_BYTES as u64 } else { whole };
        let reason = reason.to_owned();
        // It was durable before anything else was written.
        damages.push(Bad { offset: 0, until, reason, proof: Some(until) });
        let number = FileHeader {
            sequence,
            salt: salt.unwrap_or(0),
            first_epoch: 0,
            first_offset: 0,
            last_time_us: 0,
        };
        salt.map(|_| number).ok_or(number)
    });
    if let Ok(header) = header {
        for piece in Scan::new(bytes, header.salt) {
            match piece {
                Piece::Frame(frame) => frames.push(frame),
                Piece::Bad(bad) => damages.push(bad),
            }
        }
    }
    let (Ok(header) | Err(header)) = header;
    Ok(Some(Opened { path, bytes: whole, header, frames, damages }))
}

/// What the outbox in `dir` holds; `None` if it is empty.
pub(crate) fn look_at(dir: &Path) -> Result<Option<Seen>, DurableError> {
    let Some(opened) = open(dir)? else { return Ok(None) };
    let through = opened.through();
    let mut targets: BTreeMap<String, String> = BTreeMap::new();
    let mut dead: BTreeMap<String, String> = BTreeMap::new();
    let (mut items, mut damages) = (0, opened.damages);
    for frame in &opened.frames {
        let valid = match frame.kind {
            Kind::Enqueued => record::get_notifications(&frame.body).map(|list| {
                items += list.len() as u64;
                targets.extend(list.into_iter().map(|n| (n.id, n.target)));
            }),
            Kind::Outcome => record::get_outcome(&frame.body).map(|(outcome, id, _)| {
                let handled = (outcome != Outcome::Failed).then(|| targets.remove(&id)).flatten();
                if let Some(target) = handled.filter(|_| outcome == Outcome::Dead) {
                    dead.insert(id, target);
                }
            }),
            Kind::Again => record::get_again(&frame.body).map(|(id, _)| {
                targets.extend(dead.remove_entry(&id));
            }),
            Kind::Known => record::get_ids(&frame.body).map(drop),
            _ => None,
        };
        if valid.is_none() {
            let end = frame.offset + (frame::HEADER_BYTES + frame.body.len()) as u64;
            let reason = "the record is not valid".to_owned();
            damages.push(Bad { offset: frame.offset, until: end, reason, proof: Some(end) });
        }
    }
    let (pending, dead) = (targets.into_values().collect(), dead.len() as u64);
    let (path, bytes) = (opened.path, opened.bytes);
    Ok(Some(Seen { path, bytes, items, pending, dead, through, damages }))
}

/// What was saved of an outbox.
#[derive(Default)]
pub(crate) struct SavedOutbox {
    /// Frames of the new one.
    pub(crate) records: u64,
    /// What had to be left out.
    pub(crate) damages: Vec<Bad>,
    /// Bytes of a write that was under way when the process ended.
    pub(crate) torn: Option<u64>,
    /// The newest epoch whose alerts are in it.
    pub(crate) through: Epoch,
}

/// Writes an outbox into the folder `to`, which has none, that holds every whole frame of the one
/// in `from`.
pub(crate) fn salvage(from: &Path, to: &Path) -> Result<SavedOutbox, DurableError> {
    let Some(opened) = open(from)? else { return Ok(SavedOutbox::default()) };
    let header = FileHeader { salt: segment::new_salt(opened.header.sequence), ..opened.header };
    let mut out = header.encode();
    for frame in &opened.frames {
        frame::append(&mut out, header.salt, frame.kind, frame.epoch, 0, |body| {
            body.extend_from_slice(&frame.body);
        });
    }
    let path = to.join(segment::file_name(PREFIX, header.sequence));
    let mut file = Disk.create(&path).map_err(DurableError::io("create", &path))?;
    file.append(&out).map_err(DurableError::io("write", &path))?;
    file.sync().map_err(DurableError::io("sync", &path))?;
    Disk.sync_dir(to).map_err(DurableError::io("sync", to))?;
    let through = opened.through();
    let (torn, damages): (Vec<_>, Vec<_>) =
        opened.damages.into_iter().partition(|bad| bad.is_torn_end(opened.bytes));
    Ok(SavedOutbox {
        records: opened.frames.len() as u64,
        damages,
        torn: torn.first().map(|bad| bad.until - bad.offset),
        through,
    })
}
