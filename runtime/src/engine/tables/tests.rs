//! A store that is away: its table waits on disk, whoever brings rows does not, and afterwards
//! everything is there once.
#![allow(clippy::unwrap_used)]

use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};
use tidegate_operators::spec::TableSpec;
use tidegate_sql::{Session, Store};

use super::*;

const EPOCHS: u64 = 3_000;

fn rows(epoch: u64) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![epoch as i64; 3]));
    let times = TimestampMicrosecondArray::from(vec![1_767_225_600_000_000 + epoch as i64; 3]);
    let times: ArrayRef = Arc::new(times.with_timezone("UTC"));
    RecordBatch::try_from_iter([("time", times), ("n", numbers)]).unwrap()
}

fn spec() -> TableSpec {
    TableSpec {
        namespace: "plant".into(),
        name: "t".into(),
        from: "readings".into(),
        schema: rows(1).schema(),
        time: "time".into(),
        partition: Vec::new(),
        sort: Vec::new(),
        identity: Vec::new(),
        rows: None,
        freshness_us: 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_holds_nobody_up_and_then_has_everything_once() {
    let folder = tempfile::tempdir().unwrap();
    let [tables, away] = ["tables", "away"].map(|name| folder.path().join(name));
    let store = Store::open(tables.to_str().unwrap()).unwrap();
    let writer = TableWriter::open(&store, &spec(), "app".into()).await.unwrap();
    let stats = Arc::new(Stats::default());
    let budget = SpillBudget::new(1 << 30);
    let context =
        TableContext::new(Arc::clone(&stats), Arc::default(), folder.path(), budget.clone())
            .unwrap();
    let troubles = context.troubles.clone();
    let mut table = Table::start("plant.t".into(), writer, Duration::ZERO, context).unwrap();
    // A file in the place of the folder: nothing can be written, also not by root.
    std::fs::rename(&tables, &away).unwrap();
    std::fs::write(&tables, "away").unwrap();
    let table = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        for epoch in 1..=EPOCHS {
            table.rows(epoch, rows(epoch)).unwrap();
            table.commit(epoch, false).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the bringer was held up");
        table
    })
    .await
    .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while budget.used_bytes() == 0 {
        assert!(Instant::now() < deadline, "thousands of epochs do not wait in memory");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while troubles.now().is_empty() {
        assert!(Instant::now() < deadline, "the trouble is told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(troubles.now()[0].0, "plant.t");
    assert!(!table.has_committed(1));
    std::fs::remove_file(&tables).unwrap();
    std::fs::rename(&away, &tables).unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    while !table.has_committed(EPOCHS) {
        assert!(Instant::now() < deadline, "it catches up by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(troubles.now().is_empty());
    assert_eq!(budget.used_bytes(), 0);
    let mut table = table;
    table.finish().unwrap();
    let session = Session::over(store, 1 << 28).unwrap();
    let sql = "SELECT count(*) AS a, count(DISTINCT n) AS b, sum(n) AS c FROM plant.t";
    let found = session.sql(sql).await.unwrap().collect().await.unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&found).unwrap().to_string();
    let epochs = EPOCHS as i64;
    let wanted = [3 * epochs, epochs, 3 * epochs * (epochs + 1) / 2].map(|n| n.to_string());
    assert!(wanted.iter().all(|n| text.contains(&format!(" {n} "))), "{text}");
    assert!(stats.snapshot().table_files < EPOCHS / 4, "late commits become few files");
}
