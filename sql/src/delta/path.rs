//! Partition folders and file paths: Hive escaping for the folder, URI encoding for the log.
//!
//! The value `a b/ü` lies in the folder `site=a%20b%2F%C3%BC`, and the log names that folder with
//! its `%` escaped once more, because log paths are URIs. Reading decodes exactly once.

use std::fmt::Write;

use object_store::path::Path;

use crate::{Error, Result};

/// Folder value of a null partition, as every engine writes it.
pub(crate) const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

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

/// One path segment `column=value`.
pub(crate) fn folder(column: &str, value: Option<&str>) -> String {
    let plain = |b: u8| matches!(b, b'-' | b'_' | b'.');
    let value = value.map_or_else(|| NULL_FOLDER.to_owned(), |v| escape(v, plain));
    format!("{}={value}", escape(column, plain))
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

/// The object below `table` that the log names `encoded`.
pub(crate) fn from_log(table: &Path, encoded: &str) -> Result<Path> {
    let bad = |problem: &str| Error::log(table, format!("file path `{encoded}`: {problem}"));
    if encoded.contains("://") || encoded.starts_with('/') {
        return Err(bad("absolute paths are not read"));
    }
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
    let decoded = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))?;
    Path::parse(format!("{table}/{decoded}")).map_err(|e| bad(&e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_with_any_character_come_back() {
        for value in ["a b", "x/y", "100%", "ü=1", "..", "a%2Fb", "c:\\d", "#", ""] {
            let segment = folder("site", Some(value));
            assert!(!segment.contains('/') && segment.is_ascii(), "{segment}");
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
