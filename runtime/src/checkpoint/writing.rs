//! How a part comes onto the disk: piece by piece, while its rows are made.

use std::path::Path;
use std::sync::atomic::Ordering;

use tidegate_operators::{GroupSet, SavedRows};

use super::manifest::{self, PartRef};
use super::part::Encoder;
use super::{CheckpointStore, part_name};
use crate::fault;
use crate::journal::DurableError;
use crate::journal::storage::AppendFile;

/// Bytes of rows after which the next piece goes into a file of its own: a part is read as a whole,
/// and a column of texts has room for 2 GiB. (In tests few, so that there are several.)
const PART_BYTES: usize = if cfg!(test) { 2048 } else { 256 << 20 };

impl CheckpointStore {
    /// Writes a part; it is durable when this returns, but belongs to no checkpoint yet.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_part(&self, operator: &str, saved: &SavedRows) -> Result<PartRef, DurableError> {
        self.write(operator, saved, std::iter::empty())
    }

    /// Writes a part of the next pieces of state, of which it leaves those for which there is no
    /// room in one part. Nothing if there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_pieces(
        &self,
        operator: &str,
        mut pieces: impl Iterator<Item = SavedRows>,
    ) -> Result<Option<PartRef>, DurableError> {
        pieces.next().map(|first| self.write(operator, &first, pieces)).transpose()
    }

    fn write(
        &self,
        operator: &str,
        first: &SavedRows,
        rest: impl Iterator<Item = SavedRows>,
    ) -> Result<PartRef, DurableError> {
        let file = part_name(self.next_part.fetch_add(1, Ordering::Relaxed));
        let path = self.dir.join(&file);
        let part = self.create(&path, |out| {
            let invalid = |why| DurableError::io("encode", &path)(std::io::Error::other(why));
            let mut append =
                |bytes: &[u8]| out.append(bytes).map_err(DurableError::io("write", &path));
            let mut encoder = Encoder::new(operator, first).map_err(invalid)?;
            let (mut rows, mut bytes) = (0, 0);
            let mut add = |piece: &SavedRows| {
                encoder.push(piece).map_err(invalid)?;
                rows += piece.rows.num_rows() as u64;
                bytes += piece.bytes();
                encoder.take_with(&mut append).map(|()| bytes < PART_BYTES)
            };
            // Not one more than there is room for: it would be lost.
            let (mut has_room, mut rest) = (add(first)?, rest);
            while has_room && let Some(piece) = rest.next() {
                has_room = add(&piece)?;
            }
            let mut groups = GroupSet::default();
            groups.extend(encoder.groups().iter().map(|g| g.0));
            let written = encoder.groups().len() as u16;
            let bytes = encoder.taken();
            let (last, crc32) = encoder.finish().map_err(invalid)?;
            append(&last)?;
            let bytes = bytes + last.len() as u64;
            let (operator, groups) = (operator.to_owned(), manifest::runs(&groups));
            Ok(PartRef { operator, file, bytes, crc32, rows, written, groups })
        })?;
        fault::point("snapshot_file");
        Ok(part)
    }

    /// Makes a durable file of what `fill` writes; nothing of it stays if that fails.
    pub(super) fn create<T>(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut dyn AppendFile) -> Result<T, DurableError>,
    ) -> Result<T, DurableError> {
        let mut file = self.storage.create(path).map_err(DurableError::io("create", path))?;
        let filled = fill(&mut *file);
        let written = filled
            .and_then(|made| file.sync().map(|()| made).map_err(DurableError::io("sync", path)));
        if written.is_err()
            && let Err(error) = self.storage.remove(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove half of a file");
        }
        written
    }
}
