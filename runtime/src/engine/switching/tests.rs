//! What is looked at again when a change is made.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};

use tidegate_pipelines::change::begun_anew;
use tidegate_pipelines::{Plan, graph};

use super::*;
use crate::engine::feed::InFlight;
use crate::engine::tables::SpillBudget;

const HOUR_US: i64 = 3_600_000_000;
const INSTANCE: &str = "i";

fn plan() -> Plan {
    let text = r#"
name = "p"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
fields = { v = "float64" }
[[step]]
name = "w"
type = "window"
from = "readings"
every = "1h"
select = { total = "sum(v)" }
[[table]]
from = "w"
[limits]
reading_every = "1s"
"#;
    let files = [("p.toml".into(), text.to_owned())];
    tidegate_pipelines::load(&files, &|_, _| Err("none".into())).unwrap()
}

/// Why a change is refused that begins all windows anew, from a journal that goes back for so
/// long, beside these tables; they are open already or not.
async fn refused(store: &Store, back_us: Option<i64>, are_open: bool) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let (plan, stats) = (plan(), Arc::<Stats>::default());
    let tables = graph::tables(&plan.pipelines);
    let spill = SpillBudget::new(1 << 20);
    let context = TableContext::new(stats, Arc::default(), folder.path(), spill).unwrap();
    let open: &[TableSpec] = if are_open { &tables } else { &[] };
    let in_flight = Arc::new(InFlight::default());
    let mut committer =
        Committer::open(store, open, INSTANCE, context.clone(), in_flight).await.unwrap();
    let (store, instance, specs) = (store.clone(), INSTANCE.to_owned(), open.to_vec());
    committer.opening = Some(Opening { store, instance, context, specs });
    let (made, rebuilt) = channel();
    let since_us = back_us.map(|back_us| 10 * HOUR_US - back_us);
    made.send(Ok(Rebuilt { since_us, state: Vec::new() })).unwrap();
    let order = Order {
        epoch: 7,
        time_us: 10 * HOUR_US,
        old: Vec::new(),
        new: plan.pipelines.clone(),
        built: BTreeSet::new(),
        tables,
        anew: begun_anew(&plan.pipelines, |_| false, |_| true),
        rebuilt,
        reply: sync_channel(1).0,
        asked_at: Instant::now(),
    };
    let prepared = tokio::task::spawn_blocking(move || committer.prepare(&order).map(drop));
    prepared.await.unwrap().err().map(|error| format!("{error:#}"))
}

/// The journal may have been trimmed since the change was asked for, and of a table that was not
/// open nobody knew that it has rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_that_may_be_open_before_the_journal_are_refused_when_the_change_is_made() {
    let why = "table p.w: the windows of step `w` would begin anew";
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let long = Some(5 * HOUR_US);
    for (back_us, are_open, wanted) in [
        // Tables that are not there, and then those without a row.
        (Some(0), false, false),
        (Some(0), false, false),
        (None, true, false),
        (long, true, false),
        (Some(0), true, true),
    ] {
        let refused = refused(&store, back_us, are_open).await;
        let said = refused.as_deref().unwrap_or_default();
        assert_eq!(said.starts_with(why), wanted, "{back_us:?} {are_open} {refused:?}");
        assert_eq!(refused.is_some(), wanted, "{refused:?}");
    }
    let tables = graph::tables(&plan().pipelines);
    let spec = tables.iter().find(|table| table.name == "w").unwrap();
    let mut writer = TableWriter::open(&store, spec, format!("{INSTANCE}/p.w")).await.unwrap();
    writer.mark(3).await.unwrap();
    let found = refused(&store, Some(0), false).await.unwrap();
    assert!(found.starts_with(why), "{found}");
    assert_eq!(refused(&store, long, false).await, None);
}

/// Opening one writes to it which windows its rows are of: the right ones must still be taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_refused_leaves_all_tables_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let tables = graph::tables(&plan().pipelines);
    let spec = tables.iter().find(|table| table.name == "w").unwrap();
    // As an earlier version left it, which did not say what its rows are told apart by.
    let earlier = TableSpec { rows: None, ..spec.clone() };
    let mut writer = TableWriter::open(&store, &earlier, format!("{INSTANCE}/p.w")).await.unwrap();
    writer.mark(3).await.unwrap();
    let folders = ["", "p", "system", "p/w", "p/w/_delta_log"].map(|name| folder.path().join(name));
    let there = || -> Vec<std::path::PathBuf> {
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter());
        let mut all: Vec<_> = entries.flatten().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    let before = there();
    let found = refused(&store, Some(0), false).await.unwrap();
    assert!(found.contains("would begin anew"), "{found}");
    assert_eq!(there(), before);
}
