//! A cluster: one timely computation over several processes.
//!
//! One process is the *leader*: sources, journal, tables, checkpoints and whatever else is durable
//! or faces the world is there and nowhere else. The others are *followers*: workers, and no disk.
//! All build the same dataflows, and timely exchanges rows between them as it does between workers
//! of one process. So a pipeline stays a pure function of plan and journal, on any number of
//! processes; and since only the leader keeps anything, whatever dies, the recovery is the one of a
//! single process: the newest checkpoint, and a replay.
//!
//! Beside timely's connections, each follower has a control connection to the leader (`wire.rs`).
//! The leader's feed deals commands on it, the follower's rows and state come back on it in order;
//! an epoch is complete when every process has said so (`merge.rs`). When a process goes, the
//! others end: timely cannot replace a worker. A follower starts anew and calls until a leader
//! answers; a leader starts anew as after a kill and waits until all have called (`gather.rs`).

mod counts;
mod follower;
mod gather;
mod greet;
mod leader;
mod merge;
mod mesh;
mod told;
mod wire;

use std::fs::File;
use std::hash::Hasher;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use anyhow::Context;
use tidegate_operators::key::KEY_GROUPS;
use tidegate_pipelines::Plan;
use xxhash_rust::xxh3::Xxh3;

pub use self::follower::{Follower, Over};
use self::gather::Ask;
pub use self::greet::ClusterSecret;
pub(crate) use self::merge::Merge;
pub(crate) use self::mesh::Place;
use super::feed::Ports;
use super::options::EngineOptions;
use super::workers::{self, Event, Reporter, WorkerPlan};
use crate::stats::Stats;

/// Exit code of a process that has lost another process of its cluster.
pub const CLUSTER_LOST_EXIT_CODE: i32 = 4;

/// Most processes of a cluster: each is connected to all others, and the doors have room for so
/// many (`greet.rs`).
const PROCESSES_MAX: usize = 64;
/// How often it is looked whether a start is still wanted and the others are there.
const LOOK: Duration = Duration::from_millis(100);
/// How often each side of a control connection says that it is there.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A process that was not heard for so long is gone. One that is only slow is heard: a thread of
/// its own says that it is there.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Takes a line for people.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// The processes of a cluster, as all of them know it.
#[derive(Clone)]
pub struct ClusterOptions {
    /// `host:port` of each process; the first is the leader's.
    pub addresses: Vec<String>,
    /// What all of them know.
    pub secret: ClusterSecret,
    /// Takes what people should know while processes wait for each other.
    pub tell: Tell,
    /// Called when another process is gone, with what is to be said about it. Nothing can go on
    /// after that, so it should not return; what was acknowledged is in the journal.
    pub on_lost: Tell,
    /// Set to have a start end that waits for the others.
    pub give_up: Arc<AtomicBool>,
}

impl std::fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterOptions").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl ClusterOptions {
    fn processes(&self) -> usize {
        self.addresses.len()
    }

    /// An error if the start is not wanted any more; `what` it did until now.
    fn wanted(&self, what: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!self.give_up.load(Ordering::Acquire), "stopped while {what}");
        Ok(())
    }
}

/// What is wrong with an address, if anything is: it has to be `host:port`.
pub fn address_problem(address: &str) -> Option<String> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let wrong = port.is_none_or(|(_, port)| port.parse::<u16>().is_err());
    wrong.then(|| format!("`{address}` is no address: it is HOST:PORT"))
}

/// What is wrong with the addresses of a cluster, if anything is.
pub fn addresses_problem(addresses: &[String]) -> Option<String> {
    for (i, address) in addresses.iter().enumerate() {
        if let Some(problem) = address_problem(address) {
            return Some(problem);
        }
        if addresses[..i].contains(address) {
            return Some(format!("{address} is there twice"));
        }
    }
    match addresses.len() {
        0 | 1 => Some("a cluster has at least two processes".to_owned()),
        2..=PROCESSES_MAX => None,
        all => Some(format!("{all} processes are too many: a cluster has at most {PROCESSES_MAX}")),
    }
}

/// Starts the workers of a plan: here, or here and on all processes of the cluster.
pub(super) async fn start_workers(
    plan: &Plan,
    options: &EngineOptions,
    worker_plan: WorkerPlan,
    stats: &Arc<Stats>,
    events: &SyncSender<Event>,
) -> anyhow::Result<Ports> {
    let Some(cluster) = options.cluster.clone() else {
        let (ports, _) = workers::start(worker_plan, Arc::clone(stats), events.clone())?;
        return Ok(ports.into());
    };
    let peers = worker_plan.workers * cluster.processes();
    anyhow::ensure!(
        peers <= usize::from(KEY_GROUPS),
        "{peers} workers in all are too many: keys are dealt out in {KEY_GROUPS} groups"
    );
    let ask = Ask::of(plan, &worker_plan)?;
    let (stats, events) = (Arc::clone(stats), events.clone());
    // Waits for others: not on a thread of the runtime.
    let started = tokio::task::spawn_blocking(move || {
        let gathered = gather::gather(&cluster, &ask)?;
        drop(ask);
        let merge = Arc::new(Merge::new(cluster.processes(), events.clone()));
        let reporter = Reporter::merged(events, Arc::clone(&merge));
        // First of all: with much state, the workers here take longer than silence may last.
        let (workers, followers) = (worker_plan.workers, gathered.followers);
        let remote = leader::attach(followers, workers, (&merge, &stats), &cluster.on_lost)?;
        let started = workers::start_in(worker_plan, gathered.place, Arc::clone(&stats), reporter);
        let (local, _) = started?;
        Ok(Ports { local, remote })
    });
    started.await.context("the start of the cluster ended")?
}

/// Names the binary that runs: processes of a cluster have to be the same, or rows could differ.
/// The version alone does not say it of what is built while working on it.
pub(super) fn build() -> String {
    let version = concat!("version ", env!("CARGO_PKG_VERSION"));
    let print = std::env::current_exe().and_then(File::open).and_then(fingerprint);
    match print {
        Ok(print) => format!("{version}, build {print:016x}"),
        Err(_) => format!("{version} for {}", std::env::consts::ARCH),
    }
}

/// Of a file's length and of many places in it: addresses in code move with almost any change.
fn fingerprint(mut file: File) -> std::io::Result<u64> {
    const PLACES: u64 = 1024;
    let length = file.metadata()?.len();
    let mut hash = Xxh3::new();
    hash.write_u64(length);
    let mut block = [0; 4096];
    for place in 0..PLACES {
        file.seek(SeekFrom::Start(length / PLACES * place))?;
        let read = file.read(&mut block)?;
        hash.update(&block[..read]);
    }
    Ok(hash.digest())
}

#[cfg(test)]
mod tests;
