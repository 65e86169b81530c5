//! Partition folders and file paths: Hive escaping for the folder, URI encoding for the log.
//!
//! The value `a b/ü` lies in the folder `site=a%20b%2F%C3%BC`, and the log names that folder with
//! its `%` escaped once more, because log paths are URIs. Reading decodes exactly once.
//!
//! A file system takes names of 255 bytes and an object store keys of 1,024, a value may be longer:
//! then the folder has its beginning and a hash of it, and only the log knows the value. Nothing
//! but [`rebuild`](crate::examine::rebuild) asks a folder for one; see [`is_cut`].

use std::fmt::Write;
use std::string::FromUtf8Error;

use object_store::path::Path;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Error, Result};

/// Folder value of a null partition, as every engine writes it.
pub(crate) const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

/// Longest folder of one partition column, bytes.
const FOLDER_BYTES_MAX: usize = 200;

/// Longest path of the folders of a file, bytes. The rest of a key is for the bucket's prefix, the
/// table and the file.
const FOLDERS_BYTES_MAX: usize = 500;

/// Stands before a hash in the place of what was cut off. What is escaped never has it.
const CUT: char = '!';

fn escape(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || keep(byte) {
            out.push(byte as char);
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string");
        }
    }
    out
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b'-' | b'_' | b'.')
}

/// One path segment `column=value`.
fn folder(column: &str, value: Option<&str>) -> String {
    let shown = value.map_or_else(|| NULL_FOLDER.to_owned(), |v| escape(v, is_plain));
    let whole = format!("{}={shown}", escape(column, is_plain));
    match value {
        // Text that looks like a null: the folder must not say that it is one.
        Some(value) if whole.len() > FOLDER_BYTES_MAX || value == NULL_FOLDER => {
            let hash = format!("{CUT}{:016x}", xxh3_64(value.as_bytes()));
            let column = beginning(column, FOLDER_BYTES_MAX / 2);
            let room = FOLDER_BYTES_MAX - column.len() - 1 - hash.len();
            format!("{column}={}{hash}", beginning(value, room))
        }
        None if whole.len() > FOLDER_BYTES_MAX => {
            let column = beginning(column, FOLDER_BYTES_MAX / 2);
            format!("{column}={CUT}{:016x}", xxh3_64(whole.as_bytes()))
        }
        _ => whole,
    }
}

/// As many characters of `text`, escaped, as fit into `bytes_max`.
fn beginning(text: &str, bytes_max: usize) -> String {
    let mut out = String::new();
    for character in text.chars() {
        let escaped = escape(character.encode_utf8(&mut [0; 4]), is_plain);
        if out.len() + escaped.len() > bytes_max {
            break;
        }
        out.push_str(&escaped);
    }
    out
}

/// The folders of a file, by partition columns and their values. Other values may have the same
/// ones: names of files must differ without them.
pub(crate) fn folders(columns: &[(&str, Option<&str>)]) -> String {
    let all: Vec<String> = columns.iter().map(|(c, v)| folder(c, *v)).collect();
    let joined = all.join("/");
    match all.first() {
        Some(first) if joined.len() > FOLDERS_BYTES_MAX => {
            format!("{first}/{CUT}{:016x}", xxh3_64(joined.as_bytes()))
        }
        _ => joined,
    }
}

/// Whether the folders of `path` do not have the whole values.
pub(crate) fn is_cut(path: &str) -> bool {
    path.contains(CUT)
}

/// Application (as [`file_word`] has it), first and last epoch, and number of a data file of ours:
/// `part-APP-FIRST-THROUGH-NUMBER-HASH.parquet`.
pub(crate) fn part_of(name: &str) -> Option<(&str, u64, u64, u64)> {
    let name = name.strip_prefix("part-")?.strip_suffix(".parquet")?;
    let mut parts = name.rsplitn(5, '-');
    let (_hash, number) = (parts.next()?, parts.next()?.parse().ok()?);
    let (through, first) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((parts.next()?, first, through, number))
}

/// `text` as part of a file name: everything but letters, digits, `_` and `-` becomes `_`.
pub(crate) fn file_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

/// How the log names `path`.
pub(crate) fn to_log(path: &str) -> String {
    escape(path, |b| matches!(b, b'-' | b'_' | b'.' | b'/' | b'=' | b'~'))
}

/// What `encoded` means, with `%` and two digits for a byte.
pub(crate) fn decode(encoded: &str) -> std::result::Result<String, FromUtf8Error> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes)
}

/// The object below `table` that the log names `encoded`.
pub(crate) fn from_log(table: &Path, encoded: &str) -> Result<Path> {
    let bad = |problem: &str| Error::log(table, format!("file path `{encoded}`: {problem}"));
    if encoded.contains("://") || encoded.starts_with('/') {
        return Err(bad("absolute paths are not read"));
    }
    let decoded = decode(encoded).map_err(|_| bad("is not UTF-8"))?;
    Path::parse(format!("{table}/{decoded}")).map_err(|e| bad(&e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folders_are_bounded_and_differ_with_what_was_cut_off() {
        let long = "x".repeat(5_000);
        let (a, b) = (format!("{long}a"), format!("{long}b"));
        assert_ne!(folder("site", Some(&a)), folder("site", Some(&b)));
        let cyrillic = "\u{436}".repeat(100);
        for value in [&a, &cyrillic, &"x".repeat(FOLDER_BYTES_MAX - 4)] {
            for column in ["site", &long, &cyrillic] {
                let segment = folder(column, Some(value));
                assert!(segment.len() <= FOLDER_BYTES_MAX && is_cut(&segment), "{segment}");
                assert!(decode(&segment).unwrap().starts_with(&column[..4]), "{segment}");
                let object = format!("t/{segment}/f.parquet");
                let found = from_log(&Path::from("t"), &to_log(&object[2..])).unwrap();
                assert_eq!(found.as_ref(), object);
            }
        }
        let fits = folder("site", Some(&"x".repeat(FOLDER_BYTES_MAX - 5)));
        assert!(fits.len() == FOLDER_BYTES_MAX && !is_cut(&fits), "{fits}");
        for column in [&long, &cyrillic] {
            let segment = folder(column, None);
            assert!(segment.len() <= FOLDER_BYTES_MAX && is_cut(&segment), "{segment}");
        }
        let null = folder("site", Some(NULL_FOLDER));
        assert!(is_cut(&null) && null != folder("site", None), "{null}");
        let day = ("day", Some("2026-01-01"));
        let named = ["c1", "c2", "c3"].map(|name| (name, Some(a.as_str())));
        let mut columns = [&[day], &named[..]].concat();
        let all = folders(&columns);
        assert!(all.len() <= FOLDERS_BYTES_MAX && is_cut(&all), "{all}");
        assert!(all.starts_with("day=2026-01-01/"), "{all}");
        columns[3].1 = Some(&b);
        assert_ne!(all, folders(&columns));
        assert_eq!(folders(&[day, ("site", None)]), format!("day=2026-01-01/site={NULL_FOLDER}"));
    }

    #[test]
    fn values_with_any_character_come_back() {
        for value in ["a b", "x/y", "100%", "ü=1", "..", "a%2Fb", "c:\\d", "#", "", "!"] {
            let segment = folder("site", Some(value));
            assert!(!segment.contains('/') && segment.is_ascii(), "{segment}");
            assert!(!is_cut(&segment), "{segment}");
            let object = format!("t/{segment}/f.parquet");
            let found = from_log(&Path::from("t"), &to_log(&object[2..])).unwrap();
            assert_eq!(found.as_ref(), object);
        }
        assert_eq!(folder("site", None), "site=__HIVE_DEFAULT_PARTITION__");
        assert_eq!(to_log("site=a%20b/f.parquet"), "site=a%2520b/f.parquet");
        assert!(from_log(&Path::from("t"), "../x").is_err());
        assert!(from_log(&Path::from("t"), "s3://b/x").is_err());
    }
}
