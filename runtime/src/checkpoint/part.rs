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
    /// Its rows.
    pub saved: SavedRows,
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
    let rows = batches(rest).map_err(|error| error.to_string())?;
    let total = groups.iter().try_fold(0u64, |total, group| total.checked_add(group.1));
    let total = total.ok_or("too many rows")?;
    if rows.num_rows() as u64 != total {
        return Err(format!("{} rows where its groups have {total}", rows.num_rows()));
    }
    Ok(Part { operator, saved: SavedRows { rows, groups } })
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

/// All rows of a stream.
fn batches(stream: &[u8]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let reader = StreamReader::try_new(stream, None)?;
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<RecordBatch>, _>>()?;
    match batches.len() {
        1 => Ok(batches.swap_remove(0)),
        _ => concat_batches(&schema, &batches),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, tail) = rest.split_first_chunk().ok_or("the index is cut off")?;
    *rest = tail;
    Ok(*head)
}

/// The rows of those groups of `saved` that are in `wanted`.
///
/// # Errors
/// Arrow's.
pub fn only(saved: &SavedRows, wanted: &GroupSet) -> Result<SavedRows, String> {
    let groups = saved.groups.iter().filter(|g| wanted.contains(g.0)).copied().collect();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    for (group, rows) in &saved.groups {
        let rows = *rows as usize;
        if wanted.contains(*group) && rows > 0 {
            match runs.last_mut() {
                Some((from, count)) if *from + *count == at => *count += rows,
                _ => runs.push((at, rows)),
            }
        }
        at += rows;
    }
    if let [(from, count)] = runs[..] {
        return Ok(SavedRows { rows: saved.rows.slice(from, count), groups });
    }
    let slices: Vec<_> = runs.iter().map(|(from, n)| saved.rows.slice(*from, *n)).collect();
    let rows = concat_batches(saved.rows.schema_ref(), &slices);
    Ok(SavedRows { rows: rows.map_err(|error| error.to_string())?, groups })
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
            prop_assert_eq!(&back.saved, &saved);
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
            prop_assert_eq!(back.saved, saved(&groups, "x"));
        }

        #[test]
        fn wanted_groups_come_out(groups in groups(), wanted in groups()) {
            let mut set = GroupSet::default();
            set.extend(wanted.iter().map(|g| g.0));
            let got = only(&saved(&groups, "x"), &set).unwrap();
            let kept: Vec<_> = groups.iter().filter(|g| set.contains(g.0)).copied().collect();
            prop_assert_eq!(got, saved(&kept, "x"));
        }
    }
}
