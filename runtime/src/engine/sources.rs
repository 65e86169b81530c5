//! The plan's sources as running tasks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_pipelines::Plan;
use tidegate_pipelines::config::secret::Secret;
use tidegate_pipelines::plan::{
    EndpointSpec, HttpSpec, MqttSpec, Retained, SourceKind, SourceSpec,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::files::FileSource;
use super::notifications::target_name;
use super::options::EngineOptions;
use crate::http::{HttpConfig, HttpListener, ListenerOptions, Requests, Timeouts};
use crate::journal::Journal;
use crate::mqtt::{
    AlertTopics, Endpoint, EndpointConfig, KeptTopics, RetainedPolicy, Subscriber, SubscriberConfig,
};
use crate::source::{Source, SourceError, SourceHealth, SourceStats};
use crate::webhook::WebhookTarget;

/// A source that is ready to start.
pub(super) struct Bound {
    source: Box<dyn Source>,
    addr: Option<SocketAddr>,
    doors: Vec<(&'static str, SocketAddr)>,
    alerts: Option<AlertTopics>,
    kept: Option<KeptTopics>,
}

impl Bound {
    /// What it has retained, if it is an endpoint.
    pub(super) fn kept(&self) -> Option<&KeptTopics> {
        self.kept.as_ref()
    }
}

/// The endpoints on which alerts are topics.
pub(super) fn alert_topics(bound: &[Bound]) -> Vec<AlertTopics> {
    bound.iter().filter_map(|b| b.alerts.clone()).collect()
}

/// Running sources.
pub(super) struct Sources {
    running: Vec<Running>,
    stop: watch::Sender<bool>,
}

struct Running {
    name: String,
    addr: Option<SocketAddr>,
    doors: Vec<(&'static str, SocketAddr)>,
    task: JoinHandle<Result<(), SourceError>>,
    stats: Arc<SourceStats>,
}

/// The file sources, if the plan reads files.
pub(super) fn files(plan: &Plan) -> anyhow::Result<Vec<FileSource>> {
    let mut files = Vec::new();
    for (number, source) in plan.sources.iter().enumerate() {
        if let SourceKind::File(spec) = &source.kind {
            files.push(FileSource { source: number as u16, spec: spec.clone() });
        }
    }
    anyhow::ensure!(
        files.is_empty() || files.len() == plan.sources.len(),
        "a run reads either files or live sources: start two processes with a data folder each"
    );
    Ok(files)
}

/// The webhooks of the plan.
pub(super) fn webhooks(plan: &Plan) -> Vec<WebhookTarget> {
    plan.notifications
        .iter()
        .map(|n| WebhookTarget {
            name: target_name(&n.pipeline, &n.name),
            url: n.url.expose().to_owned(),
            secret: n.secret.as_ref().map(|s| s.expose().to_owned()),
            timeout: Duration::from_micros(n.timeout_us.max(0) as u64),
            max_age: Duration::from_micros(n.max_age_us.max(0) as u64),
            allow_private: n.allow_private,
        })
        .collect()
}

/// Opens ports and checks settings; nobody is let in yet. If nobody is to be let in at all, they
/// are for alerts that are topics: then what cannot be opened is left out.
pub(super) async fn bind(
    plan: &Plan,
    options: &EngineOptions,
    requests: &Arc<Requests>,
) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    let mut listeners = BTreeMap::new();
    for source in &plan.sources {
        let one = match &source.kind {
            SourceKind::Http(spec) => bind_http(spec, requests, &mut listeners).await,
            _ => bind_one(source, options).await,
        };
        match one {
            Err(error) if options.finishing.is_some() => {
                tracing::info!(source = %source.name, "not opened: {error:#}");
            }
            one => bound.push(one.with_context(|| format!("source {}", source.name))?),
        }
    }
    Ok(bound)
}

/// Pipelines with the same address share its listener.
async fn bind_http(
    spec: &HttpSpec,
    requests: &Arc<Requests>,
    listeners: &mut BTreeMap<String, HttpListener>,
) -> anyhow::Result<Bound> {
    if !listeners.contains_key(&spec.listen) {
        let options = ListenerOptions {
            connections_max: spec.connections_max,
            in_flight_bytes_max: spec.in_flight_bytes_max as usize,
            timeouts: Timeouts::default(),
        };
        let address = lookup(&spec.listen).await?;
        let listener = HttpListener::bind(address, options, Arc::clone(requests));
        listeners.insert(spec.listen.clone(), listener.await?);
    }
    let listener = &listeners[&spec.listen];
    let exposed = |secrets: &[(String, Secret)]| -> BTreeMap<String, String> {
        secrets.iter().map(|(name, secret)| (name.clone(), secret.expose().to_owned())).collect()
    };
    let source = listener.add(HttpConfig {
        pipeline: spec.pipeline.clone(),
        format: spec.format,
        topic: spec.topic.clone(),
        topics: spec.topics.clone(),
        users: exposed(&spec.users),
        tokens: exposed(&spec.tokens),
        body_bytes_max: spec.body_bytes_max as usize,
        decompressed_bytes_max: spec.decompressed_bytes_max as usize,
        insecure_listen: spec.insecure_listen,
    })?;
    let doors = vec![("http", listener.local_addr())];
    Ok(Bound { source: Box::new(source), addr: None, doors, alerts: None, kept: None })
}

async fn bind_one(source: &SourceSpec, options: &EngineOptions) -> anyhow::Result<Bound> {
    let data = &options.data;
    match &source.kind {
        SourceKind::Endpoint(spec) => {
            let mut config = endpoint_config(spec, data).await?;
            // The journal could never take a larger one.
            let most = usize::try_from(options.journal_bytes_max / 5).unwrap_or(usize::MAX);
            if config.packet_bytes_max > most {
                tracing::warn!(
                    source = %source.name,
                    "packets have at most {most} bytes here and not {} (`packet_max`): a fifth of \
                     the journal (`journal_max`)",
                    config.packet_bytes_max
                );
                config.packet_bytes_max = most;
            }
            let endpoint = Endpoint::bind(config).await?;
            let addr = endpoint.local_addr()?;
            let alerts = endpoint.alert_topics();
            let mut doors = endpoint.addresses()?;
            if let Some(plain) = doors.iter_mut().find(|door| door.0 == "mqtt") {
                plain.0 = "endpoint";
            }
            let kept = Some(endpoint.kept());
            Ok(Bound { source: Box::new(endpoint), addr: Some(addr), doors, alerts, kept })
        }
        SourceKind::Mqtt(spec) => {
            let subscriber = Subscriber::new(subscriber_config(spec, data))?;
            let (addr, doors, alerts, kept) = (None, Vec::new(), None, None);
            Ok(Bound { source: Box::new(subscriber), addr, doors, alerts, kept })
        }
        SourceKind::Http(_) => anyhow::bail!("it is bound with its listener"),
        SourceKind::File(_) => anyhow::bail!("files are no live source"),
    }
}

/// The address behind a name.
pub(super) async fn lookup(listen: &str) -> anyhow::Result<SocketAddr> {
    tokio::net::lookup_host(listen)
        .await
        .with_context(|| format!("`{listen}` is no address to listen on"))?
        .next()
        .with_context(|| format!("`{listen}` has no address"))
}

async fn endpoint_config(spec: &EndpointSpec, data: &Path) -> anyhow::Result<EndpointConfig> {
    let listen = lookup(&spec.listen).await?;
    // By its address: sources are numbered anew when the plan changes.
    let file = spec.listen.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
    let users = spec.users.iter();
    Ok(EndpointConfig {
        users: users.map(|(name, secret)| (name.clone(), secret.expose().to_owned())).collect(),
        packet_bytes_max: spec.packet_bytes_max as usize,
        connections_max: spec.connections_max,
        connect_timeout: Duration::from_micros(spec.connect_timeout_us.max(0) as u64),
        store: Some(data.join("sessions").join(format!("{file}.redb"))),
        session_expiry_max_s: spec.session_expiry_max_s,
        keep_alive_max_s: spec.keep_alive_max_s,
        queue_max: spec.queue_max,
        readings: spec.filters.clone(),
        deliver: spec.deliver.clone(),
        alerts: spec.alerts.clone(),
        retained: spec.retained,
        subscribe: spec.subscribe,
        insecure_listen: spec.insecure_listen,
        tls: super::access::tls(spec).await?,
        websocket: super::access::websocket(spec).await?,
        security: super::access::security(spec),
        ..EndpointConfig::new(listen)
    })
}

/// The settings of a subscriber. `data` is the data folder.
pub fn subscriber_config(spec: &MqttSpec, data: &Path) -> SubscriberConfig {
    SubscriberConfig {
        url: spec.url.clone(),
        filters: spec.filters.clone(),
        entries: spec.entries.clone(),
        qos: spec.qos,
        client_id: spec.client_id.clone(),
        version5: spec.version5,
        user: spec.user.clone(),
        password: spec.password.as_ref().map(|p| p.expose().to_owned()),
        ca_file: spec.ca_file.clone(),
        cert_file: spec.cert_file.clone(),
        key_file: spec.key_file.clone(),
        session_expiry_s: spec.session_expiry_s,
        connections: spec.connections,
        share: spec.share.clone(),
        retained: match spec.retained {
            Retained::Drop => RetainedPolicy::Drop,
            Retained::State => RetainedPolicy::State,
            Retained::Process => RetainedPolicy::Process,
        },
        state: Some(data.join("brokers")),
    }
}

/// Starts what was bound, in the order of the plan.
pub(super) fn start(bound: Vec<Bound>, journal: &Journal) -> Sources {
    let (stop, stopped) = watch::channel(false);
    let running = bound
        .into_iter()
        .enumerate()
        .map(|(number, Bound { source, addr, doors, .. })| {
            let stats = Arc::new(SourceStats::starting());
            let name = source.name().to_owned();
            let intake = journal.intake(number);
            let task = source.start(intake, stopped.clone(), Arc::clone(&stats));
            Running { name, addr, doors, task, stats }
        })
        .collect();
    Sources { running, stop }
}

/// A source, to look at while it runs.
#[derive(Clone)]
pub(super) struct SourceState {
    pub(super) name: String,
    pub(super) stats: Arc<SourceStats>,
    task: tokio::task::AbortHandle,
}

impl SourceState {
    /// Why it does not work at present, if it does not.
    pub(super) fn problem(&self) -> Option<String> {
        match self.task.is_finished() {
            true => Some("it has ended".to_owned()),
            false => self.stats.problem(),
        }
    }

    pub(super) fn health(&self) -> SourceHealth {
        let has_ended = self.task.is_finished();
        SourceHealth {
            name: self.name.clone(),
            is_healthy: self.stats.is_healthy() && !has_ended,
            // When it ended, nobody said.
            since_us: self.stats.since_us().filter(|_| !has_ended),
            why: self.problem(),
        }
    }
}

impl Sources {
    pub(super) fn endpoint_addr(&self) -> Option<SocketAddr> {
        self.running.iter().find_map(|r| r.addr)
    }

    /// What is listened on, each address once.
    pub(super) fn doors(&self) -> Vec<(&'static str, SocketAddr)> {
        let mut all: Vec<_> = self.running.iter().flat_map(|r| r.doors.clone()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The sources, to look at while they run.
    pub(super) fn states(&self) -> Vec<SourceState> {
        let state = |r: &Running| SourceState {
            name: r.name.clone(),
            stats: Arc::clone(&r.stats),
            task: r.task.abort_handle(),
        };
        self.running.iter().map(state).collect()
    }

    /// Tells all sources to stop and waits until they have acknowledged what is durable.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        let _ = self.stop.send(true);
        while self.running.iter().any(|r| !r.task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
