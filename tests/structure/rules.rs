//! The words that a file must not hold, and the edges that a manifest must not have. Words that
//! this file itself must not hold are put together from pieces.

use super::source::Source;

/// Marks a hash map whose order cannot reach a result, with the reason after the colon.
const ORDER_NEVER_SHOWS: &str = "// order never shows:";

/// Our crates named by `manifest` that are not in `allowed`.
pub(crate) fn edge_problems(folder: &str, manifest: &toml::Table, allowed: &[&str]) -> Vec<String> {
    let stranger =
        |name: &String| name.strip_prefix("tidegate-").is_some_and(|ours| !allowed.contains(&ours));
    let names = dependencies(manifest, &["dependencies", "dev-dependencies", "build-dependencies"]);
    names.into_iter().filter(stranger).map(|n| format!("{folder} depends on {n}")).collect()
}

/// Dependencies of `manifest` that are among `banned`; development dependencies may be.
pub(crate) fn impure_dependencies(
    folder: &str,
    manifest: &toml::Table,
    banned: &[&str],
) -> Vec<String> {
    let names = dependencies(manifest, &["dependencies", "build-dependencies"]);
    let found = names.into_iter().filter(|n| banned.contains(&n.as_str()));
    found.map(|n| format!("{folder} is deterministic and must not depend on {n}")).collect()
}

/// Keys of the given tables, also below `[target.*]`.
fn dependencies(manifest: &toml::Table, tables: &[&str]) -> Vec<String> {
    let targets = manifest.get("target").and_then(|t| t.as_table());
    let nested = targets.into_iter().flat_map(|t| t.values()).filter_map(|v| v.as_table());
    let all: Vec<&toml::Table> = std::iter::once(manifest).chain(nested).collect();
    let tables = all.iter().flat_map(|m| tables.iter().filter_map(|t| m.get(*t)?.as_table()));
    tables.flat_map(|t| t.keys().cloned()).collect()
}

/// Macros and marks of unfinished work.
pub(crate) fn unfinished(source: &Source) -> Vec<String> {
    let words = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["db", "g!("].concat(),
        ["FIX", "ME"].concat(),
        ["XX", "X:"].concat(),
    ];
    hits(source, source.lines(), &words)
}

/// Clocks, chance, environment and unordered maps, outside of tests and comments.
pub(crate) fn impurities(source: &Source) -> Vec<String> {
    if source.is_test_file() {
        return Vec::new();
    }
    let words = [
        "SystemTime",
        "Instant::now",
        "Utc::now",
        "Local::now",
        "std::env",
        "thread_rng",
        "rand::",
        "std::fs",
        // Addresses of `std::net` may be parsed, but nobody is called there.
        "std::net::*",
        "TcpListener",
        "TcpStream",
        "ToSocketAddrs",
        "UdpSocket",
        "std::thread::spawn",
        "thread::sleep",
        "RandomState",
        "tokio::",
        "object_store::",
    ]
    .map(str::to_owned);
    let code = source.production_lines().map(|(n, l)| (n, without_comment(l)));
    let mut problems = hits(source, code, &words);
    problems.extend(unordered_maps(source));
    problems
}

/// `use` or mention of a hash map or set without the reason why its order never shows, which stands
/// on the line or on the one before it.
fn unordered_maps(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let mut excused = false;
    let mut inside_use = false;
    for (n, line) in source.production_lines() {
        let code = without_comment(line);
        let names_crate = code.contains("std::collections") || code.contains("hashbrown::");
        let names_map = code.contains("HashMap") || code.contains("HashSet");
        let own = line.contains(ORDER_NEVER_SHOWS);
        if names_map && (names_crate || inside_use) && !own && !excused {
            problems.push(format!(
                "{}:{n}: a hash map without `{ORDER_NEVER_SHOWS} why`",
                source.name()
            ));
        }
        let opens = code.trim_start().starts_with("use ") && names_crate;
        inside_use = (opens || inside_use) && !code.trim_end().ends_with(';');
        excused = own || (excused && inside_use);
    }
    problems
}

/// Paths of one machine and hosts of its tools.
pub(crate) fn machine_words(name: &str, text: &str) -> Vec<String> {
    let words = [
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["/opt/", "wheels"].concat(),
        ["py", "pi.org"].concat(),
        ["python", "hosted.org"].concat(),
        ["registry.", "npmjs"].concat(),
        ["static.", "crates.io"].concat(),
        ["deb.", "debian.org"].concat(),
    ];
    let numbered = text.lines().enumerate();
    let found = numbered.filter_map(|(i, l)| {
        let word = words.iter().find(|w| l.contains(w.as_str()))?;
        Some(format!("{name}:{}: `{word}`", i + 1))
    });
    found.collect()
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Whether `word` is in the line, but not as the end of a longer name, as `rand::` in `operand::`.
fn contains_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(part_of_name))
}

fn hits<'a>(
    source: &Source,
    lines: impl Iterator<Item = (usize, &'a str)>,
    words: &[String],
) -> Vec<String> {
    let found = lines.filter_map(|(n, l)| {
        let word = words.iter().find(|w| contains_word(l, w))?;
        Some(format!("{}:{n}: `{word}`", source.name()))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn source(text: &str) -> Source {
        Source::new(Path::new("operators/src/x.rs"), text)
    }

    #[test]
    fn a_clock_is_found_in_code_but_not_in_comments_or_tests() {
        let text = "// SystemTime\nlet t = SystemTime::now();\n\n#[cfg(test)]\nmod tests {\n    \
            use std::env;\n}\n\nfn f() {\n    operand::g();\n}\n";
        let found = impurities(&source(text));
        assert_eq!(found, vec!["operators/src/x.rs:2: `SystemTime`"]);
    }

    #[test]
    fn a_hash_map_needs_a_reason() {
        let bare = "use std::collections::{\n    BTreeMap,\n    HashMap,\n};\n";
        assert_eq!(impurities(&source(bare)).len(), 1);
        let reason = format!("{ORDER_NEVER_SHOWS} only looked up by key\n{bare}");
        assert_eq!(impurities(&source(&reason)), Vec::<String>::new());
        let later = format!("{reason}fn f() -> std::collections::HashMap<u8, u8> {{\n");
        assert_eq!(impurities(&source(&later)).len(), 1);
    }

    #[test]
    fn a_wrong_edge_is_named() {
        let text = "[dependencies]\ntidegate-runtime.workspace = true\ntokio.workspace = true\n\
            [dev-dependencies]\ntidegate-sql = { path = \"../sql\" }\n";
        let manifest: toml::Table = text.parse().unwrap();
        let found = edge_problems("sql", &manifest, &["operators"]);
        assert_eq!(found, vec!["sql depends on tidegate-runtime", "sql depends on tidegate-sql"]);
        assert_eq!(impure_dependencies("operators", &manifest, &["tokio"]).len(), 1);
    }
}
