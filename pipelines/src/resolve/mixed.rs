//! What is no mistake for SQL and hardly meant: numbers compared with texts, and columns that have
//! the names of its words.

use crate::config::kinds::{Key, Kind};
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::planner::{is_reserved, mixed};

use super::edges::Edges;
use super::words::{expressions, within};

/// Looks through the fields of readings, and the expressions of steps and alerts.
pub(super) fn check(file: &Section<'_>, edges: &Edges, report: &mut Reporter<'_>) {
    for section in ["step", "alert"].iter().flat_map(|key| file.sections(key)) {
        if let Some(edge) = section.text("from").and_then(|from| edges.peek(from)) {
            for (text, at) in expressions(&section) {
                for found in mixed(text, &edge.schema) {
                    let place = text.find(&found.shown).map(|i| i..i + found.shown.len());
                    let message = format!(
                        "`{}` compares a number with text: {}",
                        found.shown,
                        match found.as_text {
                            true => "as texts, of which '10' comes before '9'",
                            false => "as numbers, and a row fails whose text is none",
                        }
                    );
                    let hint = "say what is meant: CAST(... AS DOUBLE), or CAST(... AS VARCHAR)";
                    report.warning(within((at, text), place, report), message, hint.to_owned());
                }
            }
        }
        let makes = |key: &&Key| matches!(key.kind, Kind::SqlMap) && key.name != "branches";
        section.component.keys.iter().filter(makes).for_each(|k| names(&section, k.name, report));
    }
    if let Some(reading) = file.section("reading") {
        names(&reading, "fields", report);
    }
}

/// The columns that the entries of a key make.
fn names(section: &Section<'_>, key: &str, report: &mut Reporter<'_>) {
    for entry in section.entries(key).iter().filter(|entry| is_reserved(&entry.key)) {
        let name = &entry.key;
        let message = format!("`{name}` is a word of SQL: queries have to quote it");
        let hint = format!("write \"{name}\" in them, with the quotes, or give it another name");
        report.warning(entry.key_at, message, hint);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{HEAD, plan};

    #[test]
    fn mixed_comparisons_and_words_of_sql_are_warnings_where_they_are_written() {
        let text = format!(
            "{HEAD}top = \"int64\"\ns = \"string\"\n[[step]]\nname = \"odd\"\ntype = \"derive\"\n\
             set = {{ order = \"v + 1\", less = \"v < s\" }}\n\
             [[step]]\nname = \"fits\"\ntype = \"filter\"\nfrom = \"odd\"\n\
             where = \"v > 1 AND s = 'x'\"\n\
             [[table]]\nfrom = \"fits\"\n"
        );
        let warnings = plan(text).expect("it can run").warnings;
        let said: Vec<(usize, usize, &str)> =
            warnings.iter().map(|w| (w.line, w.column, w.message.as_str())).collect();
        let mixed =
            "`v < s` compares a number with text: as numbers, and a row fails whose text is none";
        assert_eq!(
            said,
            [
                (11, 1, "`top` is a word of SQL: queries have to quote it"),
                (16, 9, "`order` is a word of SQL: queries have to quote it"),
                (16, 34, mixed),
            ],
            "{warnings:#?}"
        );
    }
}
