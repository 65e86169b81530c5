//! Problems with a configuration: where, what, and what to do about it.
//!
//! Invariant: a problem never shows a secret. The line it quotes is masked where a secret is
//! written literally, which is why only [`Reporter`] makes problems.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Most problems that are reported: nobody fixes more in one go, and a binary file given by mistake
/// must not fill the screen.
const PROBLEMS_MAX: usize = 200;

/// Most names that a hint lists.
const CANDIDATES_MAX: usize = 12;

/// Words that make a key's literal value worth hiding even where the file cannot be parsed.
const SECRET_WORDS: [&str; 4] = ["password", "secret", "users", "token"];

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The plan cannot run.
    Error,
    /// The plan can run, but probably not as meant.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the caller named it.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// How many characters are meant, at least 1.
    pub width: usize,
    /// The line itself, secrets masked.
    pub source_line: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What was not looked at because of it.
    pub note: Option<String>,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let gutter = self.line.to_string().len();
        let blank = " ".repeat(gutter);
        writeln!(f, "{kind}: {}", self.message)?;
        writeln!(f, "{blank}--> {}:{}:{}", self.file.display(), self.line, self.column)?;
        writeln!(f, "{blank} |")?;
        writeln!(f, "{} | {}", self.line, self.source_line)?;
        // Tabs stay tabs, so that the caret stands below its text.
        let indent: String = self
            .source_line
            .chars()
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "{blank} | {indent}{}", "^".repeat(self.width))?;
        for (what, text) in [("hint", &self.hint), ("note", &self.note)] {
            if let Some(text) = text {
                write!(f, "\n{blank} = {what}: {text}")?;
            }
        }
        Ok(())
    }
}

/// Where something is written: bytes of one of the files that are being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Index of the file.
    pub file: usize,
    /// First byte.
    pub start: usize,
    /// Byte after the last one.
    pub end: usize,
}

/// A problem before its line is known.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    at: At,
    severity: Severity,
    message: String,
    hint: Option<String>,
    note: Option<String>,
}

/// Collects problems over all files.
#[derive(Debug)]
pub struct Reporter<'a> {
    files: &'a [(PathBuf, String)],
    found: Vec<Found>,
    secrets: Vec<At>,
    broken: Vec<usize>,
    unsure: Vec<String>,
    /// The columns that are known although the levels of topics are not; none if those are.
    without_captures: Option<Vec<String>>,
}

impl<'a> Reporter<'a> {
    /// No problem yet.
    pub fn new(files: &'a [(PathBuf, String)]) -> Self {
        Self {
            files,
            found: Vec::new(),
            secrets: Vec::new(),
            broken: Vec::new(),
            unsure: Vec::new(),
            without_captures: None,
        }
    }

    /// The text of a file.
    pub fn text(&self, file: usize) -> &'a str {
        &self.files[file].1
    }

    /// Reports an error.
    pub fn error(&mut self, at: At, message: impl Into<String>, hint: impl Into<Option<String>>) {
        self.push(at, Severity::Error, message.into(), hint.into());
    }

    /// Reports an error in the syntax: nothing is known then about what the file's values are.
    pub fn syntax_error(&mut self, at: At, message: String) {
        self.broken.push(at.file);
        self.error(at, message, None);
    }

    /// Reports a warning.
    pub fn warning(&mut self, at: At, message: impl Into<String>, hint: impl Into<Option<String>>) {
        self.push(at, Severity::Warning, message.into(), hint.into());
    }

    fn push(&mut self, at: At, severity: Severity, message: String, hint: Option<String>) {
        self.found.push(Found { at, severity, message, hint, note: None });
    }

    /// How much was reported until now, for [`Reporter::first_error_since`].
    pub fn mark(&self) -> usize {
        self.found.len()
    }

    /// Where the first error is that was reported after `mark`.
    pub fn first_error_since(&self, mark: usize) -> Option<At> {
        let mut since = self.found[mark..].iter();
        since.find(|f| f.severity == Severity::Error).map(|f| f.at)
    }

    /// Where the first error is among those at such places.
    pub fn first_error_in(&self, covers: impl Fn(At) -> bool) -> Option<At> {
        let mut inside = self.found.iter().filter(|f| covers(f.at));
        inside.find(|f| f.severity == Severity::Error).map(|f| f.at)
    }

    /// Adds to the first error at this place what was not looked at because of it.
    pub fn note(&mut self, at: At, text: String) {
        let error = |f: &&mut Found| f.at == at && f.severity == Severity::Error;
        if let Some(found) = self.found.iter_mut().find(error) {
            found.note = Some(text);
        }
    }

    /// Whether an error was reported.
    pub fn failed(&self) -> bool {
        self.found.iter().any(|f| f.severity == Severity::Error)
    }

    /// The columns whose types are not known because their declarations were reported. What is
    /// said about expressions that read them would only be a consequence.
    pub fn set_unsure(&mut self, columns: Vec<String>) {
        self.unsure = columns;
    }

    /// Whether one of these columns is of unknown type, or may be one for all that is known.
    pub fn is_unsure(&self, columns: &[String]) -> bool {
        // What is like one of those that are known is rather that one.
        let is_other = |c: &String| {
            let known = self.without_captures.as_ref();
            known.is_some_and(|known| nearest(c, known.iter().map(String::as_str)).is_none())
        };
        columns.iter().any(|c| self.unsure.contains(c) || is_other(c))
    }

    /// Says that the topics of a pipeline are not known, which was reported: any column but these
    /// can be a level of one. With nothing, that they are known.
    pub fn set_without_captures(&mut self, known: Option<Vec<String>>) {
        self.without_captures = known;
    }

    /// Whether the levels of topics are known.
    pub fn knows_captures(&self) -> bool {
        self.without_captures.is_none()
    }

    /// Never shows the literal text at this place.
    pub fn mask(&mut self, at: At) {
        self.secrets.push(at);
    }

    /// `file:line` of a place, for messages of later stages.
    pub fn place(&self, at: At) -> (PathBuf, usize) {
        let (line, _, _) = self.position(at);
        (self.files[at.file].0.clone(), line)
    }

    /// Where bytes of the text `value` are written, whose literal is at `at`; all of it, if that
    /// has escapes.
    pub fn within(&self, at: At, value: &str, bytes: Range<usize>) -> At {
        let literal = self.text(at.file).get(at.start..at.end);
        let begins = literal.and_then(|literal| literal.find(value)).map(|i| at.start + i);
        begins.map_or(at, |from| At { start: from + bytes.start, end: from + bytes.end, ..at })
    }

    /// All problems, each once, in the order of the files and lines.
    pub fn finish(mut self) -> Vec<Problem> {
        let mut found = std::mem::take(&mut self.found);
        found.sort_by(|a, b| {
            let order = |f: &Found| (f.at.file, f.at.start, f.severity);
            order(a).cmp(&order(b)).then_with(|| a.message.cmp(&b.message))
        });
        found.dedup();
        found.truncate(PROBLEMS_MAX);
        found
            .into_iter()
            .map(|Found { at, severity, message, hint, note }| {
                let (line, column, range) = self.position(at);
                let width = self.text(at.file)[at.start.min(range.end)..at.end.min(range.end)]
                    .chars()
                    .count()
                    .max(1);
                Problem {
                    file: self.files[at.file].0.clone(),
                    line,
                    column,
                    width,
                    source_line: self.masked(at.file, range),
                    message,
                    hint,
                    note,
                    severity,
                }
            })
            .collect()
    }

    /// Line, column and the bytes of the line.
    fn position(&self, at: At) -> (usize, usize, Range<usize>) {
        let text = self.text(at.file);
        let mut start = at.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let line_end = line_start + text[line_start..line_end].trim_end_matches('\r').len();
        let line = before.matches('\n').count() + 1;
        (line, text[line_start..start].chars().count() + 1, line_start..line_end.max(line_start))
    }

    /// A line without the secrets in it, as long in characters as it was.
    fn masked(&self, file: usize, line: Range<usize>) -> String {
        let text = &self.text(file)[line.clone()];
        let by_word = if self.broken.contains(&file) { hides_by_word(text) } else { None };
        text.char_indices()
            .map(|(i, c)| {
                let byte = line.start + i;
                let known =
                    self.secrets.iter().any(|s| s.file == file && (s.start..s.end).contains(&byte));
                if known || by_word.as_ref().is_some_and(|r| r.contains(&i)) { '*' } else { c }
            })
            .collect()
    }
}

/// The bytes of a line to hide because its key sounds secret and its value is no reference: the
/// only protection where the text around could not be parsed.
fn hides_by_word(line: &str) -> Option<Range<usize>> {
    let lower = line.to_ascii_lowercase();
    let word = SECRET_WORDS.iter().filter_map(|w| lower.find(w)).min()?;
    let value = word + line[word..].find('=')? + 1;
    (!line[value..].contains("${")).then_some(value..line.len())
}

/// Whether a key of this name may hold a secret.
pub fn sounds_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// The candidate that is most like `name`, if any is like it at all.
pub fn nearest<'n>(name: &str, candidates: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let wanted = name.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(&wanted, &c.to_lowercase()), c))
        // The first of equals, so that the answer does not depend on anything but the order given.
        .fold(None, |best: Option<(f64, &str)>, (score, c)| match best {
            Some((top, _)) if top >= score => best,
            _ => Some((score, c)),
        })
        .filter(|(score, _)| *score > 0.75)
        .map(|(_, c)| c)
}

/// "did you mean `x`?", else the list of what there is.
pub fn hint_of<'n>(
    name: &str,
    candidates: impl IntoIterator<Item = &'n str> + Clone,
) -> Option<String> {
    if let Some(near) = nearest(name, candidates.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let mut all: Vec<String> = candidates.into_iter().map(|c| format!("`{c}`")).collect();
    if all.len() > CANDIDATES_MAX {
        all.truncate(CANDIDATES_MAX);
        all.push("...".to_owned());
    }
    (!all.is_empty()).then(|| format!("there is {}", all.join(", ")))
}
