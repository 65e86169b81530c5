//! An object store with bad days: outages, errors before and after the deed, lost replies, and the
//! death of the process at any request.

use std::fmt::{Display, Formatter};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use serde_json::Value;

use super::disk::SimDisk;
use super::trace::Trace;
use crate::fuzz::Rng;
use crate::mutation::{self, Mutation};

/// Times and random names of log entries, which are not of the simulation.
const MASKED: [&str; 5] = ["timestamp", "lastUpdated", "modificationTime", "createdTime", "id"];

struct State {
    rng: Rng,
    outage: bool,
    /// One put in so many fails before, and one in so many after it was done; 0 is never.
    one_fails_in: usize,
    failed: u64,
    /// Data files whose writing is put off, for a mutant.
    held: Vec<(Path, PutPayload)>,
}

/// The store.
#[derive(Clone)]
pub(crate) struct SimObjects {
    inner: Arc<InMemory>,
    state: Arc<Mutex<State>>,
    disk: SimDisk,
    trace: Trace,
}

impl std::fmt::Debug for SimObjects {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimObjects")
    }
}

impl Display for SimObjects {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimObjects")
    }
}

fn trouble(what: &'static str) -> Error {
    Error::Generic { store: "SimObjects", source: what.into() }
}

impl SimObjects {
    pub(crate) fn new(rng: Rng, disk: SimDisk, trace: Trace) -> Self {
        let state = State { rng, outage: false, one_fails_in: 0, failed: 0, held: Vec::new() };
        Self { inner: Arc::default(), state: Arc::new(Mutex::new(state)), disk, trace }
    }

    pub(crate) fn set_outage(&self, outage: bool) {
        self.state.lock().unwrap().outage = outage;
    }

    pub(crate) fn set_one_fails_in(&self, n: usize) {
        self.state.lock().unwrap().one_fails_in = n;
    }

    /// Requests that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.state.lock().unwrap().failed
    }

    /// A new process knows nothing of what another one had put off.
    pub(crate) fn restart(&self) {
        self.state.lock().unwrap().held.clear();
    }

    /// The names of all objects, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let list = self.inner.list(None).try_collect::<Vec<_>>();
        let list = list.now_or_never().expect("memory answers at once").unwrap();
        let mut names: Vec<String> = list.into_iter().map(|o| o.location.to_string()).collect();
        names.sort();
        names
    }

    /// The content of an object.
    pub(crate) fn content(&self, name: &str) -> Option<Bytes> {
        let path = Path::from(name);
        let read = async { self.inner.get(&path).await?.bytes().await };
        read.now_or_never().expect("memory answers at once").ok()
    }

    fn alive(&self) -> Result<()> {
        self.disk.operation().map_err(|_| trouble("the simulated process is dead"))
    }

    /// Whether a request fails by chance.
    fn fails(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let n = state.one_fails_in;
        let fails = state.outage || n > 0 && state.rng.one_in(n);
        state.failed += u64::from(fails);
        fails
    }

    /// Somebody reads at the very moment when a log entry appears: what it names must be there.
    fn read_along(&self, name: &str, entry: &[u8]) {
        let Some((table, _)) = name.split_once("/_delta_log/") else { return };
        let entry = String::from_utf8_lossy(entry);
        for action in entry.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
            let Some(path) = action["add"]["path"].as_str() else { continue };
            let path = super::tables::decoded(path);
            if self.content(&format!("{table}/{path}")).is_none() {
                self.trace.failure(format!("{name} names {path}, which is not there yet"));
            }
        }
    }

    async fn put_now(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.alive()?;
        if self.fails() {
            self.trace.line(format_args!("put {location} fails"));
            return Err(trouble("503"));
        }
        let content = masked(location.as_ref(), &Bytes::from(payload.clone()));
        let done = self.inner.put_opts(location, payload, opts).await;
        let what = if done.is_ok() { "put" } else { "refused to put" };
        self.trace.bytes(format_args!("{what} {location}"), &content);
        let done = done?;
        self.read_along(location.as_ref(), &content);
        self.alive()?;
        let outage = self.state.lock().unwrap().outage;
        if !outage && self.fails() {
            self.trace.line(format_args!("the reply to put {location} is lost"));
            return Err(trouble("the reply was lost"));
        }
        Ok(done)
    }
}

/// What of an object must be equal in two runs of a seed.
fn masked(name: &str, content: &[u8]) -> Vec<u8> {
    if !name.contains("_delta_log") {
        return content.to_vec();
    }
    if !name.ends_with(".json") {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(content);
    let lines = text.lines().map(|line| {
        let mut value: Value = serde_json::from_str(line).unwrap_or_default();
        mask(&mut value);
        value.to_string()
    });
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

fn mask(value: &mut Value) {
    if let Value::Object(fields) = value {
        for (name, value) in fields {
            if MASKED.contains(&name.as_str()) {
                *value = Value::Null;
            }
            mask(value);
        }
    }
}

#[async_trait]
impl ObjectStore for SimObjects {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if !mutation::on(Mutation::CommitBeforeUpload) {
            return self.put_now(location, payload, opts).await;
        }
        if !location.as_ref().contains("_delta_log") {
            self.state.lock().unwrap().held.push((location.clone(), payload));
            return Ok(PutResult { e_tag: None, version: None });
        }
        let done = self.put_now(location, payload, opts).await?;
        let held = std::mem::take(&mut self.state.lock().unwrap().held);
        for (location, payload) in held {
            let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
            while let Err(error) = self.put_now(&location, payload.clone(), options.clone()).await {
                if self.disk.is_dead() || self.state.lock().unwrap().outage {
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(trouble("multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.disk.is_dead() {
            return Err(trouble("the simulated process is dead"));
        }
        if self.state.lock().unwrap().outage {
            return Err(trouble("503"));
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.alive() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => futures::stream::once(async move { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.state.lock().unwrap().outage {
            return futures::stream::once(async { Err(trouble("503")) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(trouble("copy"))
    }
}
