//! What the tests of this crate share: table specs, rows, queries, a store that fails on purpose.

#![allow(clippy::unwrap_used)]

use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tidegate_operators::spec::TableSpec;

use crate::{Session, Store};

pub(crate) const DAY_US: i64 = 86_400_000_000;
/// 2026-01-01T00:00:00Z.
pub(crate) const START_US: i64 = 1_767_225_600_000_000;

/// Rows (device, site, time, value).
pub(crate) fn rows(rows: &[(&str, Option<&str>, i64, f64)]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.2));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("device", Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))), true),
        ("site", Arc::new(rows.iter().map(|r| r.1).collect::<StringArray>()), true),
        ("time", Arc::new(times.with_timezone("UTC")), true),
        ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.3))), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// `count` rows of some devices, one second apart, beginning at row number `from`.
pub(crate) fn many(from: i64, count: i64) -> RecordBatch {
    let names: Vec<String> = (0..7).map(|d| format!("device-{d}")).collect();
    let row = |i: i64| {
        let time = START_US + i * 1_000_000;
        (names[(i % 7) as usize].as_str(), Some("hall"), time, i as f64)
    };
    rows(&(from..from + count).map(row).collect::<Vec<_>>())
}

/// Windows (device, window_start, n, revision).
pub(crate) fn windows(rows: &[(&str, i64, i64, i64)]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.1));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("device", Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))), true),
        ("window_start", Arc::new(times.with_timezone("UTC")), true),
        ("n", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2))), true),
        ("revision", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.3))), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

pub(crate) fn spec(name: &str, batch: &RecordBatch) -> TableSpec {
    let schema = batch.schema();
    let has = |c: &str| schema.index_of(c).is_ok();
    let time = if has("window_start") { "window_start" } else { "time" };
    let names = |n: &[&str]| n.iter().filter(|c| has(c)).map(|c| (*c).to_owned()).collect();
    let identity: Vec<String> =
        if has("revision") { names(&["device", "window_start"]) } else { vec![] };
    TableSpec {
        namespace: "plant".into(),
        name: name.into(),
        from: "readings".into(),
        time: time.into(),
        partition: names(&["site"]),
        sort: names(&["device"]),
        identity,
        rows: None,
        freshness_us: 1_000_000,
        schema,
    }
}

pub(crate) fn local() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    (folder, store)
}

pub(crate) async fn query(store: &Store, sql: &str) -> Vec<RecordBatch> {
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    session.sql(sql).await.unwrap().collect().await.unwrap()
}

/// The result as lines of text without the frame.
pub(crate) async fn lines(store: &Store, sql: &str) -> Vec<String> {
    let text = pretty_format_batches(&query(store, sql).await).unwrap().to_string();
    let body = text.lines().skip(3).filter(|l| l.starts_with('|'));
    let cells = body.map(|l| l.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.map(|c| c.join(" ")).collect()
}

/// What the next writes below the log, or of data files, do.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Commits that happen but whose answer is lost.
    pub(crate) lost_commit_replies: AtomicUsize,
    /// Commits that fail without happening.
    pub(crate) failed_commits: AtomicUsize,
    /// Data files that are written but whose answer is lost.
    pub(crate) lost_file_replies: AtomicUsize,
    /// Whether a put that should only create replaces what is there.
    pub(crate) overwrites: AtomicBool,
}

/// A store with faults on demand.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl FaultyStore {
    pub(crate) fn over(store: &Store) -> (Store, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        let faulty = Self { inner: Arc::clone(store.objects()), faults: Arc::clone(&faults) };
        (Store::from_objects(Arc::new(faulty), store.url()), faults)
    }
}

impl Display for FaultyStore {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

fn take(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn broken() -> Error {
    Error::Generic { store: "Faulty", source: "connection reset".into() }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let commit = location.as_ref().ends_with(".json");
        if commit && take(&self.faults.failed_commits) {
            return Err(broken());
        }
        let opts = match self.faults.overwrites.load(Ordering::SeqCst) {
            true => PutOptions::default(),
            false => opts,
        };
        let done = self.inner.put_opts(location, payload, opts).await?;
        let counter = match commit {
            true => &self.faults.lost_commit_replies,
            false => &self.faults.lost_file_replies,
        };
        if take(counter) { Err(broken()) } else { Ok(done) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
