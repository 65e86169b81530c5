//! For tests of HTTP intake: a listener with three pipelines on a journal that the test holds in
//! its hand.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Response;
use serde_json::Value;
use tidegate_operators::spec::Format;
use tidegate_operators::topic::TopicTemplate;
use tidegate_operators::{Messages, MessagesBuilder};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::limits::Timeouts;
use super::server::{HttpConfig, HttpListener, ListenerOptions};
use crate::source::{Intake, IntakeError, Source as _, SourceError, SourceStats};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps what is offered; with `slow`, an offer is durable when the test says so.
pub(super) struct Journal {
    pub(super) taken: Mutex<Vec<Messages>>,
    pub(super) offered: mpsc::UnboundedSender<()>,
    pub(super) syncs: Semaphore,
    pub(super) failed: Mutex<Option<IntakeError>>,
}

#[async_trait]
impl Intake for Journal {
    async fn offer(&self, mut messages: MessagesBuilder) -> Result<(), IntakeError> {
        let _ = self.offered.send(());
        self.syncs.acquire().await.unwrap().forget();
        if let Some(error) = self.failed.lock().unwrap().clone() {
            return Err(error);
        }
        self.taken.lock().unwrap().push(messages.finish(0, 0));
        Ok(())
    }
}

pub(super) struct Setup {
    pub(super) users: &'static [(&'static str, &'static str)],
    pub(super) tokens: &'static [(&'static str, &'static str)],
    pub(super) topics: &'static str,
    pub(super) body_bytes_max: usize,
    pub(super) in_flight_bytes_max: usize,
    pub(super) connections_max: usize,
    pub(super) slow: bool,
    pub(super) timeouts: Timeouts,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            users: &[],
            tokens: &[],
            topics: "#",
            body_bytes_max: 100_000,
            in_flight_bytes_max: 4_000_000,
            connections_max: 100,
            slow: false,
            timeouts: Timeouts::default(),
        }
    }
}

/// A listener with the pipelines `json`, `lines` (InfluxDB) and `other` (its own token).
pub(super) struct Running {
    pub(super) url: String,
    pub(super) journal: Arc<Journal>,
    pub(super) offers: tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) tasks: Vec<JoinHandle<Result<(), SourceError>>>,
    pub(super) stats: Vec<Arc<SourceStats>>,
    pub(super) client: reqwest::Client,
}

pub(super) fn map(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(n, s)| ((*n).to_owned(), (*s).to_owned())).collect()
}

pub(super) async fn start(setup: Setup) -> Running {
    let (offered, offers) = mpsc::unbounded_channel();
    let journal = Arc::new(Journal {
        taken: Mutex::default(),
        offered,
        syncs: Semaphore::new(if setup.slow { 0 } else { 1_000_000 }),
        failed: Mutex::default(),
    });
    let any = "127.0.0.1:0".parse().unwrap();
    let options = ListenerOptions {
        connections_max: setup.connections_max,
        in_flight_bytes_max: setup.in_flight_bytes_max,
        timeouts: setup.timeouts,
    };
    let listener = HttpListener::bind(any, options, Arc::default()).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let (mut tasks, mut all) = (Vec::new(), Vec::new());
    let mut sources = Vec::new();
    for (name, format) in
        [("json", Format::Json), ("lines", Format::Influx), ("other", Format::Json)]
    {
        let other = name == "other";
        let config = HttpConfig {
            pipeline: name.into(),
            format,
            topic: name.into(),
            topics: vec![TopicTemplate::parse(setup.topics).unwrap()],
            users: map(if other { &[] } else { setup.users }),
            tokens: map(if other { &[("o", "of-the-other")] } else { setup.tokens }),
            body_bytes_max: setup.body_bytes_max,
            decompressed_bytes_max: 10 * setup.body_bytes_max,
            insecure_listen: false,
        };
        sources.push(listener.add(config).unwrap());
    }
    for source in sources {
        let stats = Arc::new(SourceStats::default());
        let intake = Arc::clone(&journal) as Arc<dyn Intake>;
        tasks.push(Box::new(source).start(intake, stopped.clone(), Arc::clone(&stats)));
        all.push(stats);
    }
    let url = format!("http://{}", listener.local_addr());
    let (offers, client) = (tokio::sync::Mutex::new(offers), reqwest::Client::new());
    Running { url, journal, offers, stop, tasks, stats: all, client }
}

impl Running {
    pub(super) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    /// Sends a request and gives its status and JSON.
    pub(super) async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        answer(tokio::time::timeout(PATIENCE, request.send()).await.unwrap().unwrap()).await
    }

    pub(super) async fn ingest(&self, content_type: &str, body: &str) -> (u16, Value) {
        let request = self.post("/ingest/json").header("content-type", content_type);
        self.send(request.body(body.to_owned())).await
    }

    /// Waits until something is offered to the journal.
    pub(super) async fn offered(&self) {
        let mut offers = self.offers.lock().await;
        tokio::time::timeout(PATIENCE, offers.recv()).await.unwrap().unwrap();
    }

    /// Payloads taken so far, and forgets them.
    pub(super) fn payloads(&self) -> Vec<String> {
        let taken = std::mem::take(&mut *self.journal.taken.lock().unwrap());
        let of = |m: &Messages| -> Vec<String> {
            let all = (0..m.len()).filter(|i| !m.index[*i].event);
            all.map(|i| String::from_utf8(m.payload(i).to_vec()).unwrap()).collect()
        };
        taken.iter().flat_map(of).collect()
    }

    pub(super) fn messages(&self) -> Messages {
        self.journal.taken.lock().unwrap().last().unwrap().clone()
    }
}

pub(super) async fn wide() -> HttpListener {
    let timeouts = Timeouts::default();
    let options = ListenerOptions { connections_max: 1, in_flight_bytes_max: 1, timeouts };
    HttpListener::bind("0.0.0.0:0".parse().unwrap(), options, Arc::default()).await.unwrap()
}

pub(super) async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}

pub(super) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(body).unwrap();
    out.finish().unwrap()
}
