//! Lines of files that people can change: where a key stands, or where it has to be put.

use std::path::PathBuf;

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct FileText {
    /// As it was named.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

/// The file of the pipeline with this name.
pub fn file_of<'f>(files: &'f [FileText], pipeline: &str) -> Option<&'f FileText> {
    files.iter().find(|file| is_of(file, pipeline))
}

fn is_of(file: &FileText, name: &str) -> bool {
    let quoted = [format!("\"{name}\""), format!("'{name}'")];
    let top = file.text.lines().take_while(|line| !line.trim_start().starts_with('['));
    top.filter(|line| key_of(line) == Some("name"))
        .any(|line| quoted.iter().any(|q| line.contains(q.as_str())))
}

fn key_of(line: &str) -> Option<&str> {
    line.split_once('=').map(|(key, _)| key.trim())
}

/// `FILE:LINE: NEW`, for the line with this key in this section of a TOML file, or the one to put
/// it below.
pub(super) fn change(file: Option<&FileText>, section: &str, key: &str, new: &str) -> String {
    let Some(file) = file else { return new.to_owned() };
    let (mut inside, mut header) = (false, None);
    for (number, line) in (1..).zip(file.text.lines()) {
        let line = line.trim();
        if line.starts_with('[') {
            inside = section_of(line) == section;
            if inside {
                header.get_or_insert(number);
            }
        } else if inside && key_of(line) == Some(key) {
            return instead(file, number, line, new);
        }
    }
    match header {
        Some(number) => below(file, number, new),
        None => format!("{}: {new}", file.path.display()),
    }
}

/// The name of the section that a line begins.
fn section_of(header: &str) -> &str {
    let name = header.split('#').next().unwrap_or_default().trim();
    name.trim_matches(['[', ']']).trim()
}

fn instead(file: &FileText, number: usize, line: &str, new: &str) -> String {
    format!("{}:{number}: instead of `{line}`: {new}", file.path.display())
}

fn below(file: &FileText, number: usize, new: &str) -> String {
    format!("{}:{number}: below this line: {new}", file.path.display())
}

/// The same in that one of the sections of this name whose `name`, or else `from`, is `entry`;
/// `None` if there is no such section. Without a file it is just `NEW`.
pub(super) fn change_in(
    file: Option<&FileText>,
    (section, entry): (&str, &str),
    key: &str,
    new: &str,
) -> Option<String> {
    let Some(file) = file else { return Some(new.to_owned()) };
    let lines: Vec<(usize, &str)> = (1..).zip(file.text.lines().map(str::trim)).collect();
    let sections = lines.chunk_by(|_, (_, next)| !next.starts_with('['));
    for lines in sections {
        let Some(((number, header), lines)) = lines.split_first() else { continue };
        let said = |key: &str| lines.iter().find(|(_, line)| key_of(line) == Some(key));
        let is_entry = said("name").or_else(|| said("from")).is_some_and(|(_, line)| {
            let value = line.split_once('=').map(|(_, value)| value.trim()).unwrap_or_default();
            [format!("\"{entry}\""), format!("'{entry}'")].iter().any(|q| value.starts_with(q))
        });
        if section_of(header) == section && is_entry {
            return Some(match said(key) {
                Some((number, line)) => instead(file, *number, line, new),
                None => below(file, *number, new),
            });
        }
    }
    None
}

/// The same for a file of lines `KEY VALUE` or `KEY = VALUE`, such as those of brokers; `None` if
/// it says so already. Of a key that stands there twice it is the last one that counts.
pub(super) fn set(file: &FileText, key: &str, new: &str) -> Option<String> {
    match last_line(file, key) {
        Some((_, line)) if words(line).eq(words(new)) => None,
        Some((number, line)) => Some(instead(file, number, line, new)),
        None => Some(below(file, file.text.lines().count(), new)),
    }
}

/// Whether a file of lines `KEY VALUE` or `KEY = VALUE` has this key.
pub(super) fn has(file: &FileText, key: &str) -> bool {
    last_line(file, key).is_some()
}

fn last_line<'f>(file: &'f FileText, key: &str) -> Option<(usize, &'f str)> {
    let lines = (1..).zip(file.text.lines().map(str::trim));
    lines.filter(|(_, line)| words(line).next() == Some(key)).last()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(['=', ' ', '\t']).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> FileText {
        FileText { path: "f".into(), text: text.to_owned() }
    }

    #[test]
    fn a_line_of_a_broker_is_found_also_commented_out_or_said_twice() {
        let conf = file("# queue 1\n queue  1000\nqueue 500\nkeep true\na.b = 5\n");
        let set = |key: &str, new: &str| set(&conf, key, new);
        let line = set("queue", "queue 0");
        assert_eq!(line.as_deref(), Some("f:3: instead of `queue 500`: queue 0"));
        assert_eq!(set("keep", "keep true"), None);
        assert!(has(&conf, "keep") && !has(&conf, "more"));
        assert_eq!(set("a.b", "a.b = 5"), None);
        assert_eq!(set("a.b", "a.b = 6").as_deref(), Some("f:5: instead of `a.b = 5`: a.b = 6"));
        assert_eq!(set("more", "more 1").as_deref(), Some("f:5: below this line: more 1"));
    }

    #[test]
    fn a_section_with_a_comment_is_a_section() {
        let toml = file("name = 'p'\n[source] # the broker\nqos = 0\n[other]\nqos = 5\n");
        assert!(is_of(&toml, "p") && !is_of(&toml, "q"));
        let line = |section: &str, key: &str| change(Some(&toml), section, key, "NEW");
        assert_eq!(line("source", "qos"), "f:3: instead of `qos = 0`: NEW");
        assert_eq!(line("source", "url"), "f:2: below this line: NEW");
        assert_eq!(line("reading", "dedup"), "f: NEW");
        assert_eq!(change(None, "source", "qos", "NEW"), "NEW");
    }

    #[test]
    fn of_sections_of_one_name_the_right_one_is_found() {
        let text = "[[table]]\nfrom = 'a'\nage = 1\n[[table]] # b\nfrom = \"a\"\nname = \"b\"\n\
                    age = 2\n[other]\nname = 'c'\n[[table]]\nfrom = 'd'\n";
        let toml = file(text);
        let line = |entry: &str| change_in(Some(&toml), ("table", entry), "age", "NEW");
        assert_eq!(line("a").as_deref(), Some("f:3: instead of `age = 1`: NEW"));
        assert_eq!(line("b").as_deref(), Some("f:7: instead of `age = 2`: NEW"));
        assert_eq!(line("d").as_deref(), Some("f:10: below this line: NEW"));
        assert_eq!(line("c"), None);
        assert_eq!(change_in(None, ("table", "a"), "age", "NEW").as_deref(), Some("NEW"));
    }
}
