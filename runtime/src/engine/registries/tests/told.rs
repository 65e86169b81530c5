//! What is wrong with a file as such is said where people look: a column that is not there makes it
//! unreadable, and rows that are not taken are one line of the log each time.

use super::*;
use crate::logged::Logged;

/// Why a file of this name and content cannot be read.
fn why(name: &str, text: &[u8], own_times: bool) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    let mut source = source(&path, own_times);
    source.columns.push(("zone".into(), vec!["at".into(), "zone".into()]));
    read(&source).err().map(|error| format!("{error:#}"))
}

#[test]
fn a_column_that_no_row_has_is_told_with_what_is_there() {
    let text = r#"{"device":"a","hihg":1,"at":{"zome":1}}"#;
    let said = why("limits.ndjson", text.as_bytes(), false).unwrap();
    for part in [
        "no row of ",
        "limits.ndjson has `high` (it has `hihg`: did you mean that?)",
        "nor `at.zone`, which is `zone` (it has `at.zome`: did you mean that?)",
        "`required = false`",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = why("limits.json", b"[{\"device\":\"a\",\"x\":1,\"at\":null}]", false).unwrap();
    assert!(said.contains("has `high` (it has `device`, `x`, `at`);"), "{said}");
    // Any row is enough, be it null there; since ever is said by no row, where rows are objects.
    let text = "{\"device\":\"a\"}\n{\"device\":\"b\",\"high\":null,\"at\":null}\n";
    for own_times in [false, true] {
        assert_eq!(why("limits.ndjson", text.as_bytes(), own_times), None);
    }
}

#[test]
fn a_header_and_a_schema_have_all_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    let why = |text: &str, own_times| {
        std::fs::write(&path, text).unwrap();
        read(&source(&path, own_times)).err().map(|error| format!("{error:#}"))
    };
    let said = why("device,zone,since,hgih\na,z,,6\n", true).unwrap();
    assert!(said.contains("limits.csv has no column `high` (it has `hgih`: did"), "{said}");
    let said = why("device,zone,valid,high\na,z,,6\n", true).unwrap();
    assert!(said.contains("has no column `since`, which is `valid_from` (it has `"), "{said}");
    assert_eq!(why("device,zone,valid,high\na,z,,\n", false), None, "no cell needs a value");
    let path = folder.path().join("limits.parquet");
    let text = |value: &str| -> arrow::array::ArrayRef {
        Arc::new(arrow::array::StringArray::from(vec![value]))
    };
    for (name, good) in [("high", true), ("hihg", false)] {
        let column: arrow::array::ArrayRef =
            Arc::new(arrow::array::Float64Array::from(vec![None::<f64>]));
        let rows = [("device", text("a")), (name, column)];
        let rows = arrow::array::RecordBatch::try_from_iter(rows).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        let said = read(&source(&path, false)).err().map(|error| format!("{error:#}"));
        assert_eq!(said.is_none(), good, "{said:?}");
        assert!(said.is_none_or(|said| said.contains("no column `high` (it has `hihg`")));
    }
}

/// A registry that has read `path` and is watched, and what the journal has taken of it.
fn watched(path: &Path) -> (Arc<Narrow>, Arc<SourceStats>, JoinHandle<()>) {
    let stats = Arc::new(SourceStats::default());
    stats.set_healthy();
    let registry = Registry {
        source: source(path, false),
        topic: "registry/p/limits".into(),
        note: Note::new(path.with_extension("note")),
        known: Known::default(),
        checker: checker(),
        stats: Arc::clone(&stats),
        is_other: false,
    };
    let journal = Arc::new(Narrow::default());
    let intake: Arc<dyn Intake> = journal.clone();
    let registry = Arc::new(Mutex::new(registry));
    let (place, to) = (path.display().to_string(), (intake, Clock::system()));
    (journal, stats, tokio::spawn(watch_file(registry, place, None, to)))
}

#[tokio::test]
async fn a_header_that_becomes_wrong_leaves_what_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    std::fs::write(&path, "device,high\na,6\n").unwrap();
    let (journal, stats, task) = watched(&path);
    let said = || journal.took.lock().unwrap().clone();
    eventually("it is said", || said().len() == 1).await;
    std::fs::write(&path, "device,hihg\na,6\nb,7\n").unwrap();
    eventually("it is told", || {
        stats.problem().is_some_and(|why| why.contains("no column `high` (it has `hihg`"))
    })
    .await;
    assert_eq!(said(), [r#"{"device":"a","high":6}"#]);
    std::fs::write(&path, "device,high\na,6\nb,7\n").unwrap();
    eventually("it is well", || stats.is_healthy()).await;
    assert_eq!(said()[1..], [r#"{"device":"b","high":7}"#]);
    task.abort();
}

#[tokio::test]
async fn rows_that_are_not_taken_are_one_line_of_the_log() {
    let (logged, _guard) = Logged::here();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits.csv");
    std::fs::write(&path, "device,high\na,6\nb,many\nc,1,1\nd,few\n").unwrap();
    let (journal, _, task) = watched(&path);
    let said = || journal.took.lock().unwrap().len();
    eventually("it is said", || said() == 4).await;
    let lines = || logged.with("WARN").into_iter().collect::<Vec<_>>();
    assert_eq!(lines().len(), 1, "{:?}", lines());
    for part in ["limits.csv: 3 rows are not taken, the first is row 2: `high`", "system.rejects"] {
        assert!(lines()[0].contains(part), "{part} is not in {:?}", lines());
    }
    // Another change says nothing of them again, one more bad row does.
    std::fs::write(&path, "device,high\na,7\nb,many\nc,1,1\nd,few\n").unwrap();
    eventually("it is said", || said() == 5).await;
    assert_eq!(lines().len(), 1, "{:?}", lines());
    std::fs::write(&path, "device,high\na,7\nc,1,1\na,8\n").unwrap();
    eventually("it is told", || lines().len() == 2).await;
    let part = "2 rows are not taken, the first is row 2: ";
    assert!(lines()[1].contains(part) && lines()[1].contains("line 3: 3 cells"), "{:?}", lines());
    task.abort();
}
