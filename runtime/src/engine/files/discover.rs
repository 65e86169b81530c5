//! From the paths of the plan to files: a file itself, a folder with all below it, or a pattern.
//!
//! The order is that of the names, folder by folder, where numbers count as numbers: `part-9` comes
//! before `part-10`. Files and folders whose names begin with `.` or `_` are passed over: that is
//! how other programs mark what is not data or not finished.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use tidegate_pipelines::plan::{FileFormat, FileSpec};

/// Most files of one run: more than this is a mistake in the path.
const FILES_MAX: usize = 1_000_000;

/// Folders within each other; links can make circles.
const DEPTH_MAX: usize = 64;

/// One source of the plan.
#[derive(Clone, Debug)]
pub(crate) struct FileSource {
    pub(crate) source: u16,
    pub(crate) spec: FileSpec,
}

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A file to read.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine) struct Found {
    pub(super) source: u16,
    pub(in crate::engine) path: PathBuf,
    /// The path below that of the source, with `/`: what it is known by.
    pub(super) name: String,
    /// The whole path, wherever the process was started.
    pub(super) place: String,
    pub(super) topic: String,
    pub(in crate::engine) format: FileFormat,
    pub(super) packing: Packing,
    pub(super) columns: Option<Vec<String>>,
    pub(super) delimiter: u8,
    pub(in crate::engine) bytes: u64,
    pub(super) modified_us: i64,
}

impl FileSource {
    /// Where the source's files are: the file, or the folder that all of them are below.
    fn root(&self) -> PathBuf {
        let path = &self.spec.path;
        if Path::new(path).exists() || !path.contains(['*', '?']) {
            return PathBuf::from(path);
        }
        let fixed = |part: &&str| !part.contains(['*', '?']);
        let parts: Vec<&str> = path.split('/').take_while(fixed).collect();
        match (parts.as_slice(), path.starts_with('/')) {
            ([""], true) => PathBuf::from("/"),
            ([], _) => PathBuf::from("."),
            (parts, _) => PathBuf::from(parts.join("/")),
        }
    }

    /// Whether there can be more files later.
    pub(super) fn grows(&self) -> bool {
        !Path::new(&self.spec.path).is_file()
    }

    /// What tells this source from others, wherever the process was started.
    pub(super) fn key(&self) -> anyhow::Result<String> {
        let root = self.root();
        let place = std::fs::canonicalize(&root)
            .with_context(|| format!("cannot read {}", root.display()))?;
        let FileSpec { path, format, columns, delimiter, .. } = &self.spec;
        let pattern = if Path::new(path) == root { Vec::new() } else { pattern_of(path) };
        Ok(format!("{} {pattern:?} {format:?} {columns:?} {delimiter:?}", place.display()))
    }

    /// The files of the source, in order.
    pub(in crate::engine) fn find(&self) -> anyhow::Result<Vec<Found>> {
        let root = self.root();
        let meta =
            std::fs::metadata(&root).with_context(|| format!("cannot read {}", root.display()))?;
        let mut names = Vec::new();
        if meta.is_dir() {
            below(&root, &mut Vec::new(), &mut names)?;
        }
        if Path::new(&self.spec.path) != root {
            let pattern = pattern_of(&self.spec.path);
            names.retain(|name| fits(&pattern, name));
        }
        names.sort_by(|a, b| natural_path(a, b));
        let mut found = Vec::with_capacity(names.len().max(1));
        if !meta.is_dir() {
            found.push(self.one(root.clone(), file_name(&root), true)?);
        }
        for name in names {
            found.push(self.one(root.join(name.join("/")), name.join("/"), false)?);
        }
        let path = &self.spec.path;
        anyhow::ensure!(!found.is_empty(), "there is no file to read at {path}");
        Ok(found)
    }

    fn one(&self, path: PathBuf, name: String, alone: bool) -> anyhow::Result<Found> {
        let spec = &self.spec;
        let told = Name::read(&name);
        let format = match (spec.format, told.format) {
            (Some(format), _) | (None, Some(format)) => format,
            // A file that was named itself is meant, whatever it is called.
            (None, None) if alone => FileFormat::Ndjson,
            (None, None) => anyhow::bail!(
                "the name of {} does not tell how it is written: give `format`, or a `path` that \
                 leaves it out, such as \"{}/*.csv\"",
                path.display(),
                spec.path.trim_end_matches('/')
            ),
        };
        let (bytes, modified_us) = state_of(&path)?;
        let place = std::fs::canonicalize(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let topic = match &spec.topic {
            Some(topic) => topic
                .replace("{name}", &file_name(&path))
                .replace("{stem}", Name::read(&file_name(&path)).stem)
                .replace("{path}", told.stem),
            None => path.display().to_string(),
        };
        let comma = if told.tabs { b'\t' } else { b',' };
        Ok(Found {
            source: self.source,
            path,
            topic,
            format,
            packing: told.packing,
            columns: spec.columns.clone(),
            delimiter: spec.delimiter.unwrap_or(comma),
            bytes,
            modified_us,
            name,
            place: place.display().to_string(),
        })
    }
}

/// Length and time of the last change of a file.
pub(super) fn state_of(path: &Path) -> anyhow::Result<(u64, i64)> {
    let meta =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A time before 1970 is a file system without times.
    let since = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((meta.len(), i64::try_from(since.as_micros()).unwrap_or(i64::MAX / 2)))
}

/// What the name of a file tells of how it is written, and whether tabs are between its cells.
pub(in crate::engine) fn told_by(name: &str) -> (Option<FileFormat>, bool) {
    let told = Name::read(name);
    (told.format, told.tabs)
}

/// What the name of a file tells.
struct Name<'a> {
    stem: &'a str,
    format: Option<FileFormat>,
    tabs: bool,
    packing: Packing,
}

impl<'a> Name<'a> {
    fn read(name: &'a str) -> Self {
        let ending = |text: &'a str, ending: &str| -> Option<&'a str> {
            let at = text.len().checked_sub(ending.len())?;
            let (stem, rest) = text.split_at_checked(at)?;
            rest.eq_ignore_ascii_case(ending).then_some(stem)
        };
        let (inner, packing) = match (ending(name, ".gz"), ending(name, ".zst")) {
            (Some(inner), _) => (inner, Packing::Gzip),
            (_, Some(inner)) => (inner, Packing::Zstd),
            _ => (name, Packing::Plain),
        };
        let known = [
            (".ndjson", FileFormat::Ndjson),
            (".jsonl", FileFormat::Ndjson),
            (".json", FileFormat::Ndjson),
            (".csv", FileFormat::Csv),
            (".tsv", FileFormat::Csv),
            (".parquet", FileFormat::Parquet),
        ];
        for (text, format) in known {
            if let Some(stem) = ending(inner, text) {
                return Self { stem, format: Some(format), tabs: text == ".tsv", packing };
            }
        }
        let folder = inner.rfind('/').map_or(0, |at| at + 1);
        let stem = match inner[folder..].rfind('.') {
            Some(at) if at > 0 => &inner[..folder + at],
            _ => inner,
        };
        Self { stem, format: None, tabs: false, packing }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Adds the parts of the path of each file below `folder`.
fn below(
    folder: &Path,
    parts: &mut Vec<String>,
    names: &mut Vec<Vec<String>>,
) -> anyhow::Result<()> {
    let why = || format!("cannot read {}", folder.display());
    anyhow::ensure!(parts.len() < DEPTH_MAX, "{}: folders go too deep", folder.display());
    for entry in std::fs::read_dir(folder).with_context(why)? {
        let entry = entry.with_context(why)?;
        let name = entry.file_name();
        let path = entry.path();
        let Some(name) = name.to_str() else {
            anyhow::bail!("the name of {} is not UTF-8", path.display());
        };
        if name.starts_with(['.', '_']) {
            continue;
        }
        let meta =
            std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        parts.push(name.to_owned());
        if meta.is_dir() {
            below(&path, parts, names)?;
        } else if meta.is_file() {
            names.push(parts.clone());
            let many = names.len() > FILES_MAX;
            anyhow::ensure!(!many, "there are more than {FILES_MAX} files to read");
        }
        parts.pop();
    }
    Ok(())
}

/// The parts of a pattern after its fixed beginning.
fn pattern_of(path: &str) -> Vec<&str> {
    let parts = path.split('/').filter(|p| !matches!(*p, "" | "."));
    parts.skip_while(|p| !p.contains(['*', '?'])).collect()
}

/// Whether the parts of a path fit those of a pattern.
fn fits(pattern: &[&str], name: &[String]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((&"**", rest)) => (0..=name.len()).any(|skip| fits(rest, &name[skip..])),
        Some((part, rest)) => name.split_first().is_some_and(|(first, after)| {
            let (part, first): (Vec<char>, Vec<char>) =
                (part.chars().collect(), first.chars().collect());
            part_fits(&part, &first) && fits(rest, after)
        }),
    }
}

/// Whether a name fits a part of a pattern. Steps back to the last `*` only, so a hostile name
/// costs no more than the product of the two lengths.
fn part_fits(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn natural_path(a: &[String], b: &[String]) -> Ordering {
    let parts = a.iter().zip(b).map(|(a, b)| natural(a, b));
    parts.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// The order of names in which runs of digits count as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(one), Some(other)) = (x.first(), y.first()) else {
            // Of `1` and `01`, which are equal so far, somebody has to be first.
            return x.len().cmp(&y.len()).then_with(|| a.cmp(b));
        };
        if one.is_ascii_digit() && other.is_ascii_digit() {
            let (number, rest) = digits(x);
            let (second, after) = digits(y);
            let order = number.len().cmp(&second.len()).then_with(|| number.cmp(second));
            if order.is_ne() {
                return order;
            }
            (x, y) = (rest, after);
        } else if one != other {
            return one.cmp(other);
        } else {
            (x, y) = (&x[1..], &y[1..]);
        }
    }
}

/// The digits at the start without leading zeros, and what follows.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let zeros = number.iter().position(|b| *b != b'0').unwrap_or(number.len());
    (&number[zeros..], rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn source(path: String) -> FileSource {
        let spec = FileSpec { path, topic: None, format: None, columns: None, delimiter: None };
        FileSource { source: 0, spec }
    }

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, rest: &str) -> Vec<String> {
        let found = source(format!("{}{rest}", dir.path().display())).find().unwrap();
        found.into_iter().map(|f| f.name).collect()
    }

    #[test]
    fn folders_and_patterns_give_files_in_natural_order() {
        let all = ["b/part-10.csv", "b/part-9.csv", "b/part-09.csv", "a.ndjson", "b/x/1.csv"];
        let dir = folder(&all);
        std::fs::write(dir.path().join(".hidden"), "").unwrap();
        std::fs::create_dir(dir.path().join("_tmp")).unwrap();
        std::fs::write(dir.path().join("_tmp/a.csv"), "").unwrap();
        let sorted = ["a.ndjson", "b/part-09.csv", "b/part-9.csv", "b/part-10.csv", "b/x/1.csv"];
        assert_eq!(names(&dir, ""), sorted);
        assert_eq!(names(&dir, "/"), sorted);
        assert_eq!(names(&dir, "/**/*.csv"), sorted[1..]);
        assert_eq!(names(&dir, "/b/part-?.csv"), ["part-9.csv"]);
        assert_eq!(names(&dir, "/*/*.csv"), sorted[1..4]);
        assert_eq!(names(&dir, "/a.ndjson"), ["a.ndjson"]);
        let none = source(format!("{}/*.parquet", dir.path().display())).find().unwrap_err();
        assert!(none.to_string().contains("there is no file"), "{none}");
    }

    #[test]
    fn names_tell_formats_and_topics() {
        let dir = folder(&["site-1/d7.csv.gz", "site-1/d8.tsv", "e.parquet", "f.json.zst"]);
        let mut all = source(dir.path().display().to_string());
        all.spec.topic = Some("plant/{path}|{stem}|{name}".into());
        let found = all.find().unwrap();
        let told: Vec<_> =
            found.iter().map(|f| (&*f.topic, f.format, f.packing, f.delimiter)).collect();
        use {FileFormat::*, Packing::*};
        assert_eq!(
            told,
            [
                ("plant/e|e|e.parquet", Parquet, Plain, b','),
                ("plant/f|f|f.json.zst", Ndjson, Zstd, b','),
                ("plant/site-1/d7|d7|d7.csv.gz", Csv, Gzip, b','),
                ("plant/site-1/d8|d8|d8.tsv", Csv, Plain, b'\t'),
            ]
        );
        std::fs::write(dir.path().join("README.txt"), "").unwrap();
        let error = all.find().unwrap_err().to_string();
        assert!(error.contains("README.txt") && error.contains("`format`"), "{error}");
    }

    #[test]
    fn numbers_in_names_count() {
        let mut all = ["a10b", "a9b", "a", "a1b2", "a01b1", "b", "a2b"];
        all.sort_by(|a, b| natural(a, b));
        assert_eq!(all, ["a", "a01b1", "a1b2", "a2b", "a9b", "a10b", "b"]);
    }

    proptest! {
        #[test]
        fn the_natural_order_is_an_order(
            a in "[ab01]{0,6}", b in "[ab01]{0,6}", c in "[ab01]{0,6}"
        ) {
            prop_assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
            prop_assert_eq!(natural(&a, &b).is_eq(), a == b);
            if natural(&a, &b).is_le() && natural(&b, &c).is_le() {
                prop_assert!(natural(&a, &c).is_le());
            }
        }

        #[test]
        fn patterns_equal_regular_expressions(pattern in "[ab*?]{0,6}", name in "[ab]{0,8}") {
            fn plain(p: &[char], n: &[char]) -> bool {
                match (p.split_first(), n.split_first()) {
                    (None, None) => true,
                    (Some(('*', rest)), _) => (0..=n.len()).any(|skip| plain(rest, &n[skip..])),
                    (Some((c, rest)), Some((first, after))) => {
                        (*c == '?' || c == first) && plain(rest, after)
                    }
                    _ => false,
                }
            }
            let chars = |text: &str| text.chars().collect::<Vec<char>>();
            let (p, n) = (chars(&pattern), chars(&name));
            prop_assert_eq!(part_fits(&p, &n), plain(&p, &n));
        }
    }
}
