//! A table keeps what its rows are told apart by, and takes no others.

#![allow(clippy::unwrap_used)]

use tidegate_operators::spec::{TableRows, TableWindows};

use super::*;
use crate::testing::{local, many, spec};

#[tokio::test]
async fn rows_that_would_be_taken_for_those_of_a_table_are_refused() {
    let (_folder, store) = local();
    let of = |shape: Option<&str>| {
        let windows = shape.map(|shape| TableWindows {
            keys: ["device".to_owned()].into(),
            shape: shape.into(),
            bounds: shape.into(),
            taken: None,
        });
        TableSpec { rows: Some(TableRows::of(windows)), ..spec("t", &many(0, 1)) }
    };
    let (minutes, hours) = (of(Some("every 1m")), of(Some("every 1h")));
    TableWriter::takes(&store, &minutes).await.unwrap();
    let open = |spec: TableSpec, app: &'static str| {
        let store = store.clone();
        async move { TableWriter::open(&store, &spec, app.into()).await }
    };
    // Nobody knows what an older version wrote, or nothing was written.
    open(spec("t", &many(0, 1)), "a").await.unwrap();
    open(minutes.clone(), "a").await.unwrap();
    TableWriter::takes(&store, &hours).await.unwrap();
    open(hours.clone(), "a").await.unwrap();
    let mut writer = open(minutes.clone(), "a").await.unwrap();
    writer.append(many(0, 3), 1).await.unwrap();
    writer.commit(1).await.unwrap();
    let why = "table plant.t: its windows are others (every 1m before, now every 1h), and rows";
    let refused = TableWriter::takes(&store, &hours).await.unwrap_err().to_string();
    assert!(refused.starts_with(why), "{refused}");
    // Whoever writes, and with whatever in between.
    open(spec("t", &many(0, 1)), "b").await.unwrap();
    let refused = open(hours, "b").await.unwrap_err().to_string();
    assert!(refused.starts_with(why), "{refused}");
    assert!(open(of(None), "a").await.unwrap_err().to_string().contains("it has rows of windows"));
    open(minutes.clone(), "a").await.unwrap();
    TableWriter::takes(&store, &minutes).await.unwrap();
}
