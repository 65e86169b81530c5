//! A part file: state rows of one operator, of some of its key groups. Format 2.
//!
//! Bytes: [`MAGIC`], which ends in the version; length of the operator's name (u16) and the name;
//! number of groups (u16), then group (u16) and its rows (u64) for each, ascending; an Arrow IPC
//! stream of one batch, its rows in the order of the groups; CRC-32 of all that (u32). Numbers are
//! little-endian.

use arrow::compute::concat_batches;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use tidegate_operators::key::KEY_GROUPS;
use tidegate_operators::{GroupSet, SavedRows};

/// Start of the file.
const MAGIC: &[u8; 8] = b"TGSTATE2";

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
    let mut out = MAGIC.to_vec();
    let length = u16::try_from(operator.len()).map_err(|_| "an operator's name is too long")?;
    out.extend(length.to_le_bytes());
    out.extend(operator.as_bytes());
    out.extend((saved.groups.len() as u16).to_le_bytes());
    for (group, rows) in &saved.groups {
        out.extend(group.to_le_bytes());
        out.extend(rows.to_le_bytes());
    }
    let write = |out: &mut Vec<u8>| {
        let mut writer = StreamWriter::try_new(out, saved.rows.schema_ref())?;
        writer.write(&saved.rows)?;
        writer.finish()
    };
    write(&mut out).map_err(|error: arrow::error::ArrowError| error.to_string())?;
    out.extend(crc32fast::hash(&out).to_le_bytes());
    Ok(out)
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
    let mut rest = body.strip_prefix(MAGIC).ok_or("it is no state of format 2")?;
    let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
    let (name, after) = rest.split_at_checked(length).ok_or("the name is cut off")?;
    let operator = String::from_utf8(name.to_vec()).map_err(|_| "the name is no text")?;
    rest = after;
    let count = u16::from_le_bytes(take(&mut rest)?);
    let mut groups = Vec::with_capacity(usize::from(count));
    let (mut next, mut total) = (0, 0u64);
    for _ in 0..count {
        let group = u16::from_le_bytes(take(&mut rest)?);
        let rows = u64::from_le_bytes(take(&mut rest)?);
        if group < next || group >= KEY_GROUPS {
            return Err(format!("key group {group} is out of order"));
        }
        next = group + 1;
        total = total.checked_add(rows).ok_or("too many rows")?;
        groups.push((group, rows));
    }
    let mut reader = StreamReader::try_new(rest, None).map_err(|error| error.to_string())?;
    let rows = reader.next().ok_or("there are no rows")?.map_err(|error| error.to_string())?;
    if rows.num_rows() as u64 != total {
        return Err(format!("{} rows where its groups have {total}", rows.num_rows()));
    }
    Ok(Part { operator, saved: SavedRows { rows, groups } })
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
            let at = at.index(bytes.len());
            let mut torn = bytes.clone();
            torn[at] ^= 0x20;
            prop_assert!(decode(&torn).is_err());
            prop_assert!(decode(&bytes[..at]).is_err());
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
