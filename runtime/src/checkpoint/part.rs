//! A part file: state rows of one operator, of some of its key groups. Format 3.
//!
//! Bytes: [`MAGIC`], which ends in the version; length of the operator's name (u16) and the name;
//! an Arrow IPC stream, its buffers compressed (LZ4), its rows in the order of the groups; number
//! of groups (u16), then group (u16) and its rows (u64) for each, ascending; where in the file that
//! number is (u64); CRC-32 of all that (u32). Numbers are little-endian. So a file is written while
//! its rows are made, and what is in memory of it is one batch.
//!
//! Format 2 had the groups before the stream, and a stream of one batch without compression.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use tidegate_operators::key::KEY_GROUPS;
use tidegate_operators::{GroupSet, SavedRows};

/// Start of the file.
const MAGIC: &[u8; 8] = b"TGSTATE3";
/// The same of format 2.
const MAGIC_2: &[u8; 8] = b"TGSTATE2";

/// A part file's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The operator, `pipeline/step`.
    pub operator: String,
    /// Its rows, in the pieces in which they were written: groups ascend through all of them, and
    /// each is in one.
    pub pieces: Vec<SavedRows>,
}

/// The bytes of a part file.
///
/// # Errors
/// A type that Arrow IPC cannot write.
pub fn encode(operator: &str, saved: &SavedRows) -> Result<Vec<u8>, String> {
    let mut encoder = Encoder::new(operator, saved)?;
    encoder.push(saved)?;
    let mut bytes = encoder.take_with(<[u8]>::to_vec);
    let (rest, _) = encoder.finish()?;
    bytes.extend(rest);
    Ok(bytes)
}

/// Makes a part file of one piece of state after the other.
pub(super) struct Encoder {
    stream: StreamWriter<Vec<u8>>,
    groups: Vec<(u16, u64)>,
    crc: crc32fast::Hasher,
    /// Bytes that were taken.
    taken: u64,
}

impl Encoder {
    /// Of pieces with the columns of this one.
    pub(super) fn new(operator: &str, piece: &SavedRows) -> Result<Self, String> {
        let mut out = MAGIC.to_vec();
        let length = u16::try_from(operator.len()).map_err(|_| "an operator's name is too long")?;
        out.extend(length.to_le_bytes());
        out.extend(operator.as_bytes());
        let options = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::LZ4_FRAME))
            .and_then(|options| {
                StreamWriter::try_new_with_options(out, piece.rows.schema_ref(), options)
            });
        let stream = options.map_err(|error| error.to_string())?;
        Ok(Self { stream, groups: Vec::new(), crc: crc32fast::Hasher::new(), taken: 0 })
    }

    /// Adds a piece, whose groups come after those before it.
    pub(super) fn push(&mut self, piece: &SavedRows) -> Result<(), String> {
        self.groups.extend(&piece.groups);
        self.stream.write(&piece.rows).map_err(|error| error.to_string())
    }

    /// The next bytes of the file.
    pub(super) fn take_with<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> T {
        let mut bytes = std::mem::take(self.stream.get_mut());
        self.note(&bytes);
        let taken = take(&bytes);
        bytes.clear();
        *self.stream.get_mut() = bytes;
        taken
    }

    /// How many bytes were taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    fn note(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.taken += bytes.len() as u64;
    }

    /// The groups that were added, and how many rows each has.
    pub(super) fn groups(&self) -> &[(u16, u64)] {
        &self.groups
    }

    /// The last bytes, and the CRC-32 of all of them.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, u32), String> {
        self.stream.finish().map_err(|error| error.to_string())?;
        let mut out = std::mem::take(self.stream.get_mut());
        let at = self.taken + out.len() as u64;
        out.extend((self.groups.len() as u16).to_le_bytes());
        for (group, rows) in &self.groups {
            out.extend(group.to_le_bytes());
            out.extend(rows.to_le_bytes());
        }
        out.extend(at.to_le_bytes());
        self.note(&out);
        let crc = self.crc.clone().finalize().to_le_bytes();
        self.crc.update(&crc);
        out.extend(crc);
        Ok((out, self.crc.finalize()))
    }
}

/// Reads a part file.
///
/// # Errors
/// What is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Part, String> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("the file is cut off")?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err("the checksum is wrong".into());
    }
    let is_2 = body.starts_with(MAGIC_2);
    let magic = if is_2 { MAGIC_2 } else { MAGIC };
    let mut rest = body.strip_prefix(magic).ok_or("it is no state of format 3")?;
    let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
    let (name, after) = rest.split_at_checked(length).ok_or("the name is cut off")?;
    let operator = String::from_utf8(name.to_vec()).map_err(|_| "the name is no text")?;
    rest = after;
    let groups = if is_2 {
        groups(&mut rest)?
    } else {
        let (before, at) = rest.split_last_chunk::<8>().ok_or("the index is cut off")?;
        let header = body.len() - rest.len();
        let at = usize::try_from(u64::from_le_bytes(*at)).ok();
        let at = at.and_then(|at| before.split_at_checked(at.checked_sub(header)?));
        let (stream, mut index) = at.ok_or("the index is nowhere")?;
        rest = stream;
        let groups = groups(&mut index)?;
        if !index.is_empty() {
            return Err("something follows the index".into());
        }
        groups
    };
    let total = groups.iter().try_fold(0u64, |total, group| total.checked_add(group.1));
    let total = total.ok_or("too many rows")?;
    let batches = batches(rest).map_err(|error| error.to_string())?;
    let rows: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    if rows != total {
        return Err(format!("{rows} rows where its groups have {total}"));
    }
    let pieces = pieces(batches, groups).map_err(|error| error.to_string())?;
    Ok(Part { operator, pieces })
}

/// The groups of a file with their numbers of rows.
fn groups(rest: &mut &[u8]) -> Result<Vec<(u16, u64)>, String> {
    let count = u16::from_le_bytes(take(rest)?);
    let mut groups = Vec::with_capacity(usize::from(count));
    let mut next = 0;
    for _ in 0..count {
        let group = u16::from_le_bytes(take(rest)?);
        let rows = u64::from_le_bytes(take(rest)?);
        if group < next || group >= KEY_GROUPS {
            return Err(format!("key group {group} is out of order"));
        }
        next = group + 1;
        groups.push((group, rows));
    }
    Ok(groups)
}

/// All batches of a stream, at least one.
fn batches(stream: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
    let reader = StreamReader::try_new(stream, None)?;
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<RecordBatch>, _>>()?;
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    Ok(batches)
}

/// Batches, each with its groups, which have as many rows. Nothing is copied where they end with a
/// group, as all do that were written here.
fn pieces(
    batches: Vec<RecordBatch>,
    groups: Vec<(u16, u64)>,
) -> Result<Vec<SavedRows>, ArrowError> {
    let mut groups = groups.into_iter().peekable();
    let (mut pieces, mut open, mut left) = (Vec::with_capacity(batches.len()), Vec::new(), 0);
    let mut own = Vec::new();
    for batch in batches {
        left += batch.num_rows() as u64;
        open.push(batch);
        while let Some((group, rows)) = groups.next_if(|(_, rows)| *rows <= left) {
            own.push((group, rows));
            left -= rows;
        }
        if left == 0 {
            let rows = match &open[..] {
                [one] => one.clone(),
                several => concat_batches(several[0].schema_ref(), several)?,
            };
            open.clear();
            pieces.push(SavedRows { rows, groups: std::mem::take(&mut own) });
        }
    }
    Ok(pieces)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, tail) = rest.split_first_chunk().ok_or("the index is cut off")?;
    *rest = tail;
    Ok(*head)
}

/// The rows of those groups that are in `wanted`: no copies but views, one for each run of groups.
/// One without rows if there is none.
pub fn only(pieces: &[SavedRows], wanted: &GroupSet) -> Vec<SavedRows> {
    let mut out: Vec<SavedRows> = Vec::new();
    for piece in pieces {
        // The last run, as long as the next group follows it: where it begins, and its groups.
        let mut run: Option<(usize, Vec<(u16, u64)>)> = None;
        let mut at = 0;
        for (group, rows) in piece.groups.iter().copied() {
            if wanted.contains(group) {
                run.get_or_insert_with(|| (at, Vec::new())).1.push((group, rows));
            } else if rows > 0 {
                out.extend(run.take().map(|run| view(piece, run)));
            }
            at += rows as usize;
        }
        out.extend(run.map(|run| view(piece, run)));
    }
    match pieces.first() {
        Some(first) if out.is_empty() => vec![view(first, (0, Vec::new()))],
        _ => out,
    }
}

/// Some rows of a piece: from `at` on, of these groups, which follow each other there.
fn view(piece: &SavedRows, (at, groups): (usize, Vec<(u16, u64)>)) -> SavedRows {
    let rows: u64 = groups.iter().map(|group| group.1).sum();
    SavedRows { rows: piece.rows.slice(at, rows as usize), groups }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use proptest::prelude::*;

    use super::*;

    /// Rows of these groups, each with a text that tells where it came from.
    pub(in super::super) fn saved(groups: &[(u16, u64)], tag: &str) -> SavedRows {
        let keys = || groups.iter().flat_map(|(g, n)| (0..*n).map(move |i| (*g, i)));
        let names = keys().map(|(g, i)| format!("{tag}-{g}-{i}"));
        let names: Vec<String> = names.collect();
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(names));
        let numbers: ArrayRef =
            Arc::new(keys().map(|(g, i)| (i % 3 > 0).then_some(g.into())).collect::<Int64Array>());
        let columns = [("key", names, false), ("n", numbers, true)];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        SavedRows { rows, groups: groups.to_vec() }
    }

    /// A file as the version before wrote it.
    fn encode_2(operator: &str, saved: &SavedRows) -> Vec<u8> {
        let mut out = MAGIC_2.to_vec();
        out.extend((operator.len() as u16).to_le_bytes());
        out.extend(operator.as_bytes());
        out.extend((saved.groups.len() as u16).to_le_bytes());
        for (group, rows) in &saved.groups {
            out.extend(group.to_le_bytes());
            out.extend(rows.to_le_bytes());
        }
        let mut writer = StreamWriter::try_new(&mut out, saved.rows.schema_ref()).unwrap();
        writer.write(&saved.rows).unwrap();
        writer.finish().unwrap();
        drop(writer);
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out
    }

    fn joined(pieces: &[SavedRows]) -> SavedRows {
        let rows = concat_batches(pieces[0].rows.schema_ref(), pieces.iter().map(|p| &p.rows));
        let groups = pieces.iter().flat_map(|piece| &piece.groups).copied().collect();
        SavedRows { rows: rows.unwrap(), groups }
    }

    fn groups() -> impl Strategy<Value = Vec<(u16, u64)>> {
        let counts = prop::collection::btree_map(0u16..KEY_GROUPS, 0u64..5, 0..20);
        counts.prop_map(|groups| groups.into_iter().collect())
    }

    proptest! {
        #[test]
        fn it_comes_back_and_damage_shows(
            name in "[a-z/]{1,20}", groups in groups(), at in any::<prop::sample::Index>(),
        ) {
            let saved = saved(&groups, "x");
            let bytes = encode(&name, &saved).unwrap();
            let back = decode(&bytes).unwrap();
            prop_assert_eq!(&back.operator, &name);
            prop_assert_eq!(&back.pieces, std::slice::from_ref(&saved));
            prop_assert_eq!(&decode(&encode_2(&name, &saved)).unwrap(), &back);
            let at = at.index(bytes.len());
            let mut torn = bytes.clone();
            torn[at] ^= 0x20;
            prop_assert!(decode(&torn).is_err());
            prop_assert!(decode(&bytes[..at]).is_err());
        }

        #[test]
        fn pieces_are_one_file(groups in groups(), cut in any::<prop::sample::Index>()) {
            let (first, second) = groups.split_at(cut.index(groups.len() + 1));
            let (first, second) = (saved(first, "x"), saved(second, "x"));
            let mut encoder = Encoder::new("p/step", &first).unwrap();
            let mut bytes = Vec::new();
            for piece in [&first, &second] {
                encoder.push(piece).unwrap();
                bytes.extend(encoder.take_with(<[u8]>::to_vec));
            }
            let (rest, crc) = encoder.finish().unwrap();
            bytes.extend(rest);
            prop_assert_eq!(crc, crc32fast::hash(&bytes));
            let back = decode(&bytes).unwrap();
            let sizes = [&first, &second].map(|piece| piece.rows.num_rows());
            let found: Vec<usize> = back.pieces.iter().map(|p| p.rows.num_rows()).collect();
            prop_assert_eq!(found, sizes, "as they were written");
            prop_assert_eq!(joined(&back.pieces), saved(&groups, "x"));
        }

        /// As another writer may have cut it: a group is never in two pieces.
        #[test]
        fn batches_that_end_in_a_group_are_joined(groups in groups(), size in 1usize..9) {
            let all = saved(&groups, "x");
            let batches: Vec<RecordBatch> = (0..all.rows.num_rows())
                .step_by(size)
                .map(|at| all.rows.slice(at, size.min(all.rows.num_rows() - at)))
                .collect();
            let pieces = pieces(batches, groups.clone()).unwrap();
            for piece in &pieces {
                let rows: u64 = piece.groups.iter().map(|group| group.1).sum();
                prop_assert_eq!(piece.rows.num_rows() as u64, rows);
            }
            if all.rows.num_rows() > 0 {
                prop_assert_eq!(joined(&pieces), all);
            }
        }

        #[test]
        fn wanted_groups_come_out_and_are_not_copied(
            groups in groups(), wanted in groups(), cut in any::<prop::sample::Index>(),
        ) {
            let mut set = GroupSet::default();
            set.extend(wanted.iter().map(|g| g.0));
            let (first, second) = groups.split_at(cut.index(groups.len() + 1));
            let pieces = [saved(first, "x"), saved(second, "x")];
            let got = only(&pieces, &set);
            let kept: Vec<_> = groups.iter().filter(|g| set.contains(g.0)).copied().collect();
            prop_assert_eq!(joined(&got), saved(&kept, "x"));
            let buffer = |saved: &SavedRows| saved.rows.column(0).to_data().buffers()[1].as_ptr();
            let there: Vec<_> = pieces.iter().map(buffer).collect();
            prop_assert!(got.iter().all(|piece| there.contains(&buffer(piece))), "it is a copy");
        }
    }
}
