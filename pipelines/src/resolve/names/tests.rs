//! Each name that readers mix up is told where it is written, and none that they do not.

use crate::testing::{HEAD, plan, problems};

const WINDOW: &str = "[[step]]\nname = \"m\"\ntype = \"window\"\nevery = \"1m\"\n\
                      select = { n = \"count(*)\" }\n";
const REGISTRY: &str = "[[registry]]\nname = \"limits\"\npath = \"l.csv\"\nkey = [\"device\"]\n\
                        columns = { device = \"string\", high = \"float64\" }\n";

/// What is said of steps and tables, with the line in them and the column.
fn said(text: &str) -> Vec<(usize, usize, String)> {
    let head = HEAD.lines().count();
    let found = problems(&format!("{HEAD}{text}"));
    found.into_iter().map(|p| (p.line.saturating_sub(head), p.column, p.message)).collect()
}

#[test]
fn columns_that_differ_only_in_case_are_told_where_they_are_written() {
    let window = WINDOW.replace("n = \"count(*)\"", "n = \"count(*)\", N = \"count(v)\"");
    let table = "[[table]]\nfrom = \"m\"\n";
    let told = "columns `n` and `N` differ only in case";
    assert_eq!(said(&format!("{window}{table}")), [(5, 28, told.to_owned())]);
    let told = "columns `v` and `V` differ only in case";
    for (text, line, column) in [
        ("V = \"int64\"\n[[table]]\nfrom = \"readings\"\n".to_owned(), 1, 1),
        (
            "[[step]]\nname = \"d\"\ntype = \"derive\"\nset = { V = \"v + 1\" }\n\
             [[step]]\nname = \"f\"\ntype = \"filter\"\nfrom = \"d\"\nwhere = \"v > 1\"\n\
             [[table]]\nfrom = \"f\"\n"
                .to_owned(),
            4,
            9,
        ),
        (
            "[[step]]\nname = \"s\"\ntype = \"select\"\ncolumns = { v = \"v\", V = \"v\" }\n\
             [[table]]\nfrom = \"s\"\n"
                .to_owned(),
            4,
            22,
        ),
        (
            format!(
                "{}[[step]]\nname = \"e\"\ntype = \"enrich\"\nregistry = \"limits\"\n\
                 [[table]]\nfrom = \"e\"\n",
                REGISTRY.replace("high", "V")
            ),
            5,
            32,
        ),
    ] {
        assert_eq!(said(&text), [(line, column, told.to_owned())], "{text}");
    }
    let told = "columns `high` and `High` differ only in case";
    let registry = REGISTRY.replace(" }", ", High = \"int64\" }");
    assert_eq!(said(&format!("{registry}{WINDOW}{table}")), [(5, 50, told.to_owned())]);
    // What is there without being declared, where a table has it.
    let field = "Received_time = \"int64\"\n";
    let told = "columns `Received_time` and `received_time` differ only in case";
    assert_eq!(said(&format!("{field}[[table]]\nfrom = \"readings\"\n")), [(1, 1, told.into())]);
    plan(format!("{HEAD}{field}{WINDOW}{table}")).expect("no table has both");
    let day = WINDOW.replace("n =", "Day =");
    let told = "a column `Day` would clash with the partition";
    assert_eq!(said(&format!("{day}{table}"))[0], (7, 8, told.to_owned()));
    // Columns that no table has may differ as they like.
    let alert = "[[alert]]\nname = \"a\"\nfrom = \"m\"\nfire = \"n > 1\"\n";
    plan(format!("{HEAD}{window}{alert}")).expect("it can run");
}

#[test]
fn a_table_that_hides_what_another_shows_is_told() {
    let tables = "[[table]]\nfrom = \"m\"\n[[table]]\nfrom = \"readings\"\nname = \"NAME\"\n";
    let text = |name: &str| format!("{REGISTRY}{WINDOW}{}", tables.replace("NAME", name));
    // It can run, as it could before anybody said so.
    let warned = |text: &str| -> Vec<String> {
        let warnings = plan(format!("{HEAD}{text}")).expect("it can run").warnings;
        let said = warnings.into_iter().map(|warning| warning.message);
        said.filter(|message| message.contains(" hides ")).collect()
    };
    for (name, told) in [
        ("m_revisions", "a table `m_revisions` hides the revisions of the table `m`"),
        ("limits", "a table `limits` hides what holds now of the registry `limits`"),
        ("limits_versions", "a table `limits_versions` hides the history of the registry `limits`"),
        (
            "limits_versions_revisions",
            "a table `limits_versions_revisions` hides the revisions of the table \
             `limits_versions`",
        ),
    ] {
        assert_eq!(warned(&text(name)), [told]);
    }
    let step = WINDOW.replace("\"m\"", "\"limits\"");
    let told = "a table `limits` hides what holds now of the registry `limits`";
    let table = "[[table]]\nfrom = \"limits\"\n";
    assert_eq!(warned(&format!("{REGISTRY}{step}{table}")), [told]);
    // The history may be kept as it is, and a table without revisions hides none.
    let own = text("x").replace("\"readings\"\nname = \"x\"", "\"limits_versions\"");
    assert_eq!(warned(&own), [""; 0]);
    let tables = tables.replace("\"m\"", "\"readings\"\nname = \"r\"");
    assert_eq!(warned(&format!("{WINDOW}{}", tables.replace("NAME", "r_revisions"))), [""; 0]);
}

#[test]
fn a_partition_that_makes_two_windows_one_is_a_warning() {
    let window = "[[step]]\nname = \"m\"\ntype = \"window\"\nFROMevery = \"1m\"\nby = [\"site\"]\n\
                  select = { n = \"count(*)\" }\n\
                  [[table]]\nfrom = \"m\"\npartition = [\"site\"]\n";
    let said = |field: &str, step: &str| -> Vec<(String, String)> {
        let from = if step.is_empty() { "" } else { "from = \"d\"\n" };
        let text = format!("{HEAD}{field}\n{step}{}", window.replace("FROM", from));
        let warnings = plan(text).expect("it can run").warnings;
        let said = warnings.into_iter().map(|w| (w.message, w.hint.unwrap_or_default()));
        said.filter(|(message, _)| message.contains("null and the empty text are one")).collect()
    };
    let warned = said("site = \"string\"", "");
    assert_eq!(warned.len(), 1, "{warned:?}");
    let derived = "\"coalesce(nullif(site, ''), '-')\"";
    assert!(warned[0].1.contains(derived), "{warned:?}");
    let step = format!("[[step]]\nname = \"d\"\ntype = \"derive\"\nset = {{ site = {derived} }}\n");
    assert_eq!(said("site = \"string\"", &step), []);
    assert_eq!(said("site = { type = \"string\", required = true }", ""), []);
}
