//! One Rust source file as the structure test sees it: lines, functions, and which of them are
//! tests. It relies on rustfmt's layout (an item ends at a `}` in the column where it began), which
//! CI checks before, and does not parse Rust.

use std::path::{Path, PathBuf};

/// A file and its lines.
pub(crate) struct Source {
    /// Relative to the top of the repository.
    pub(crate) path: PathBuf,
    lines: Vec<String>,
}

impl Source {
    pub(crate) fn read(root: &Path, path: &Path) -> Self {
        let text = std::fs::read_to_string(root.join(path)).expect("sources are UTF-8");
        Self::new(path, &text)
    }

    pub(crate) fn new(path: &Path, text: &str) -> Self {
        Self { path: path.into(), lines: text.lines().map(str::to_owned).collect() }
    }

    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether all of it is test code: below a `tests` folder, or the `tests.rs` of a module.
    pub(crate) fn is_test_file(&self) -> bool {
        self.path.components().any(|c| c.as_os_str() == "tests") || self.path.ends_with("tests.rs")
    }

    pub(crate) fn starts_with_doc(&self) -> bool {
        self.lines.first().is_some_and(|l| l.starts_with("//!"))
    }

    pub(crate) fn lines_without_tests(&self) -> usize {
        self.production_lines().count()
    }

    /// Numbered lines (from 1) outside of inline test modules.
    pub(crate) fn production_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.test_modules();
        let outside = move |i: &usize| !tests.iter().any(|(a, b)| (a..=b).contains(&i));
        (0..self.lines.len()).filter(outside).map(|i| (i + 1, self.lines[i].as_str()))
    }

    /// All numbered lines (from 1).
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(i, l)| (i + 1, l.as_str()))
    }

    /// First and last line index of each `#[cfg(test)] mod name { ... }`.
    fn test_modules(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (start, line) in self.lines.iter().enumerate() {
            if line.trim() != "#[cfg(test)]" {
                continue;
            }
            let head = (start + 1..self.lines.len())
                .find(|i| !self.lines[*i].trim_start().starts_with(['#', '/']));
            let Some(head) = head.filter(|h| self.lines[*h].trim_end().ends_with('{')) else {
                continue;
            };
            if self.lines[head].trim_start().trim_start_matches("pub(crate) ").starts_with("mod ") {
                found.push((start, self.end_of_item(head)));
            }
        }
        found
    }

    /// Index of the line with the `}` that closes the item whose head is at `head`.
    fn end_of_item(&self, head: usize) -> usize {
        let indent = indent_of(&self.lines[head]);
        let closes = |line: &str| line.trim_start().starts_with('}') && indent_of(line) == indent;
        (head + 1..self.lines.len())
            .find(|i| closes(&self.lines[*i]))
            .unwrap_or(self.lines.len().saturating_sub(1))
    }

    /// `file:function` and length of every function, tests too.
    pub(crate) fn functions(&self) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            let whole = line.trim_end();
            if whole.ends_with(';') || whole.ends_with('}') {
                continue;
            }
            let declared_only = (i + 1..self.lines.len())
                .map(|j| self.lines[j].as_str())
                .find(|l| indent_of(l) == indent_of(line) && !l.trim().is_empty())
                .is_some_and(|l| l.trim_end().ends_with(';'));
            if !declared_only {
                let lines = self.end_of_item(i) + 1 - i;
                found.push((format!("{}:{name}", self.name()), lines));
            }
        }
        found
    }

    pub(crate) fn long_lines(&self, max: usize) -> Vec<String> {
        let long = |l: &str| l.chars().count() > max && !l.contains("://");
        let say = |(n, l): (usize, &str)| {
            format!("{}:{n}: {} characters, at most {max}", self.name(), l.chars().count())
        };
        self.lines().filter(|(_, l)| long(l)).map(say).collect()
    }
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The name, if the line begins a function.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(named) = rest.strip_prefix("fn ") {
            let end = named.find(['(', '<'])?;
            return Some(&named[..end]);
        }
        let (word, after) = rest.split_once(' ')?;
        let modifier = ["pub", "async", "const", "extern", "default", "unsafe", "\"C\""];
        if !modifier.contains(&word) && !word.starts_with("pub(") {
            return None;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "//! Head.

pub(crate) fn short() {}

impl X {
    async fn two(
        a: u8,
    ) -> u8 {
        a
    }
}

trait T {
    fn only(
        &self,
    );
}

#[cfg(test)]
mod tests {
    fn inner() {
        1
    }
}
";

    #[test]
    fn tests_do_not_count_and_functions_end_where_they_began() {
        let source = Source::new(Path::new("x/src/a.rs"), SAMPLE);
        assert_eq!(source.lines_without_tests(), 18);
        let expected = vec![("x/src/a.rs:two".to_owned(), 5), ("x/src/a.rs:inner".to_owned(), 3)];
        assert_eq!(source.functions(), expected);
        assert!(source.starts_with_doc() && !source.is_test_file());
    }
}
