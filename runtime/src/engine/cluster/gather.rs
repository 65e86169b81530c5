//! The leader waits until all followers have called, and tells them what is to be run.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::Plan;

use super::greet::{Arrived, Door, Hello, random};
use super::leader::lost;
use super::mesh::{self, Place};
use super::told::Told;
use super::wire::{self, Head, Welcome};
use super::{ClusterOptions, LOOK, PING_EVERY, build};
use crate::engine::content;
use crate::engine::workers::WorkerPlan;

/// How often it is looked who has joined.
const HEAR: Duration = Duration::from_millis(10);
/// Who waits is told again after so long for whom.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// How long a follower has to plan what it was told and to connect.
const JOIN_MAX: Duration = Duration::from_secs(120);
/// How long a follower has to take what it is told, or to finish what it has begun to say.
const SEND_MAX: Duration = Duration::from_secs(60);
/// How long one has to take that it is refused.
const REFUSE_MAX: Duration = Duration::from_secs(1);
/// Before those are asked again who could not join.
const PAUSE: Duration = Duration::from_secs(1);

/// What followers are asked to run.
pub(super) struct Ask {
    workers: usize,
    first_epoch: Epoch,
    files: Vec<(String, String)>,
    fingerprints: Vec<(String, String)>,
    sources: Vec<(String, u16)>,
    /// Saved state by operator, as bodies.
    state: Vec<(String, Vec<u8>)>,
}

impl Ask {
    /// The files of a plan, from an epoch on, with the state before it.
    ///
    /// # Errors
    /// State that cannot be sent.
    pub(super) fn of(plan: &Plan, workers: &WorkerPlan) -> io::Result<Self> {
        let state =
            |(name, rows): &(String, RecordBatch)| Ok((name.clone(), wire::rows_to_bytes(rows)?));
        let source = |p: &PipelineSpec| (p.name.clone(), p.decode.source);
        Ok(Self {
            workers: workers.workers,
            first_epoch: workers.first_epoch,
            files: plan.files.iter().map(|(p, t)| (p.display().to_string(), t.clone())).collect(),
            fingerprints: content::fingerprints(&plan.pipelines).into_iter().collect(),
            sources: workers.pipelines.iter().map(source).collect(),
            state: workers.state.iter().map(state).collect::<io::Result<_>>()?,
        })
    }

    fn send(&self, run: &str, to: &mut TcpStream) -> io::Result<()> {
        let welcome = Welcome {
            run: run.to_owned(),
            workers: self.workers,
            first_epoch: self.first_epoch,
            files: self.files.clone(),
            fingerprints: self.fingerprints.clone(),
            sources: self.sources.clone(),
            states: self.state.len(),
        };
        to.set_write_timeout(Some(SEND_MAX))?;
        wire::write(to, &Head::Welcome(welcome), &[])?;
        for (operator, rows) in &self.state {
            wire::write(to, &Head::Restore { operator: operator.clone() }, rows)?;
        }
        to.set_write_timeout(None)
    }
}

/// All processes, connected.
pub(super) struct Gathered {
    pub(super) place: Place,
    /// Control connections by process.
    pub(super) followers: BTreeMap<usize, TcpStream>,
}

/// Waits for all followers, and until all of them have joined. Who cannot join is told to people,
/// and waited for again: the other side can mend it.
///
/// # Errors
/// Nobody can call here, or the start is not wanted any more.
pub(super) fn gather(cluster: &ClusterOptions, ask: &Ask) -> anyhow::Result<Gathered> {
    let door = Door::open(&cluster.addresses[0], &cluster.secret)?;
    let build = build();
    let mut told = Told::default();
    loop {
        let waiting = Waiting { cluster, build: &build, here: BTreeMap::new(), told: &mut told };
        let mut followers = waiting.all(&door)?;
        match join(cluster, ask, &door, &mut followers) {
            Ok(place) => {
                refuse_others(door);
                return Ok(Gathered { place, followers });
            }
            Err(error) => {
                cluster.wanted("the processes connected")?;
                let why = format!("the cluster does not come together: {error:#}");
                if told.is_news(&why) {
                    (cluster.tell)(&why);
                }
                drop(followers);
                std::thread::sleep(PAUSE);
            }
        }
    }
}

struct Waiting<'a> {
    cluster: &'a ClusterOptions,
    build: &'a str,
    here: BTreeMap<usize, TcpStream>,
    told: &'a mut Told,
}

impl Waiting<'_> {
    fn all(mut self, door: &Door) -> anyhow::Result<BTreeMap<usize, TcpStream>> {
        let (mut told, mut told_at) = (Vec::new(), Instant::now());
        let mut pinged = Instant::now();
        loop {
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(self.here);
            }
            if missing != told || told_at.elapsed() > REMIND_EVERY {
                self.tell(&missing);
                (told, told_at) = (missing, Instant::now());
            }
            self.cluster.wanted("it waited for the cluster")?;
            if let Some(arrived) = door.next(LOOK)? {
                self.take(arrived);
            }
            if pinged.elapsed() > PING_EVERY {
                pinged = Instant::now();
                // Who waits wants to know that it is still waited for, and who is gone is noticed.
                self.here.retain(|_, stream| wire::write(stream, &Head::Ping, &[]).is_ok());
            }
        }
    }

    fn missing(&mut self) -> Vec<usize> {
        let gone = |_: &usize, stream: &mut TcpStream| !is_gone(stream);
        self.here.retain(gone);
        (1..self.cluster.processes()).filter(|p| !self.here.contains_key(p)).collect()
    }

    fn tell(&self, missing: &[usize]) {
        let name = |p: &usize| format!("{p} ({})", self.cluster.addresses[*p]);
        let names: Vec<String> = missing.iter().map(name).collect();
        let all = self.cluster.processes();
        let process = if missing.len() == 1 { "process" } else { "processes" };
        (self.cluster.tell)(&format!("waiting for {process} {} of {all}", names.join(", ")));
    }

    fn take(&mut self, mut arrived: Arrived) {
        let peer = arrived.peer;
        let Hello::Follow { process, addresses, build } = arrived.hello else {
            // A connection of a gathering that came to nothing.
            return;
        };
        match self.problem(process, &addresses, &build) {
            Some(why) => {
                let text = format!("a process at {} was turned away: {why}", peer.ip());
                if self.told.is_news(&text) {
                    (self.cluster.tell)(&text);
                }
                refuse(&mut arrived.stream, why);
            }
            None => {
                if let Some(earlier) = self.here.insert(process, arrived.stream) {
                    self.replaced(process, earlier, &peer.to_string());
                }
            }
        }
    }

    /// Who calls later is taken: a machine that has lost its power does not hang up, and the one
    /// that stands in for it must not have to wait for that.
    fn replaced(&mut self, process: usize, mut earlier: TcpStream, by: &str) {
        if is_gone(&earlier) {
            return;
        }
        let at = earlier.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
        let why = format!("another process {process} has called later, from {by}");
        let text = format!("process {process} at {at} is not waited with any more: another one is");
        if self.told.is_news(&text) {
            (self.cluster.tell)(&text);
        }
        refuse(&mut earlier, why);
    }

    /// Why a follower cannot be of this cluster, if it cannot.
    fn problem(&self, process: usize, addresses: &[String], build: &str) -> Option<String> {
        let (ours, all) = (&self.cluster.addresses, self.cluster.processes());
        if build != self.build {
            return Some(format!("it is {build}, the leader is {}", self.build));
        }
        if addresses != ours {
            let (theirs, ours) = (addresses.join(","), ours.join(","));
            return Some(format!("its --cluster is {theirs}, that of the leader is {ours}"));
        }
        if !(1..all).contains(&process) {
            return Some(format!("its --process is {process}: followers are 1 to {}", all - 1));
        }
        None
    }
}

/// Whether the other side has hung up, and all that it said before was read.
pub(super) fn is_gone(stream: &TcpStream) -> bool {
    says(stream).is_err()
}

/// Whether something was said that was not read yet.
fn says(stream: &TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    match peeked {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn refuse(stream: &mut TcpStream, why: String) {
    let _ = stream.set_write_timeout(Some(REFUSE_MAX));
    let _ = wire::write(stream, &Head::Refused { why }, &[]);
}

/// Tells all what is to be run, connects to them, and hears from each that it has joined.
fn join(
    cluster: &ClusterOptions,
    ask: &Ask,
    door: &Door,
    followers: &mut BTreeMap<usize, TcpStream>,
) -> anyhow::Result<Place> {
    let run = u128::from_le_bytes(random()?);
    let run = format!("{run:032x}");
    let of = |process: usize| format!("process {process} ({})", cluster.addresses[process]);
    // All at once: those that have it connect to each other, and there may be much state.
    let run_name = &run;
    let sent: Vec<(usize, io::Result<()>)> = std::thread::scope(|scope| {
        let sending: Vec<_> = followers
            .iter_mut()
            .map(|(process, stream)| (*process, scope.spawn(move || ask.send(run_name, stream))))
            .collect();
        let end = |sent: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
            sent.join().unwrap_or_else(|_| Err(io::Error::other("it could not be told")))
        };
        sending.into_iter().map(|(process, sent)| (process, end(sent))).collect()
    });
    for (process, sent) in sent {
        sent.map_err(|error| anyhow::anyhow!("{} is gone: {error}", of(process)))?;
    }
    all_joined(cluster, followers)?;
    let followers = &*followers;
    let still = || {
        if let Some((process, _)) = followers.iter().find(|(_, stream)| is_gone(stream)) {
            anyhow::bail!("{} is gone", of(*process));
        }
        cluster.wanted("the processes connected")
    };
    mesh::connect(0, &cluster.addresses, (door, &cluster.secret), &run, &still)
}

/// Waits until each has said that it has joined. All are listened to at once: they wait for each
/// other, so when one goes, only the leader can tell the rest, by hanging up.
fn all_joined(
    cluster: &ClusterOptions,
    followers: &mut BTreeMap<usize, TcpStream>,
) -> anyhow::Result<()> {
    let of = |process: usize| format!("process {process} ({})", cluster.addresses[process]);
    let gone = |p: usize, error: io::Error| anyhow::anyhow!("{} is gone: {}", of(p), lost(&error));
    let mut waiting: BTreeSet<usize> = followers.keys().copied().collect();
    let (begun, mut pinged) = (Instant::now(), Instant::now());
    while let Some(first) = waiting.first() {
        anyhow::ensure!(begun.elapsed() < JOIN_MAX, "{} does not join", of(*first));
        cluster.wanted("the processes connected")?;
        let ping = pinged.elapsed() > PING_EVERY;
        for (process, stream) in followers.iter_mut() {
            let p = *process;
            let said = says(stream).map_err(|error| gone(p, error))?;
            if !waiting.contains(process) {
                // It works already, and wants to hear that the leader is there.
                if ping {
                    wire::write(stream, &Head::Ping, &[]).map_err(|error| gone(p, error))?;
                }
            } else if said {
                stream.set_read_timeout(Some(SEND_MAX))?;
                match wire::read(stream).map_err(|error| gone(p, error))?.0 {
                    Head::Joined => waiting.remove(process),
                    Head::Refused { why } => anyhow::bail!("{}: {why}", of(p)),
                    other => anyhow::bail!("{} says {other:?}", of(p)),
                };
            }
        }
        if ping {
            pinged = Instant::now();
        }
        std::thread::sleep(HEAR);
    }
    Ok(())
}

/// Tells whoever calls while it runs that nobody is needed.
fn refuse_others(door: Door) {
    let thread = std::thread::Builder::new().name("cluster".into()).spawn(move || {
        while let Ok(arrived) = door.next(Duration::from_secs(3600)) {
            let Some(mut arrived) = arrived else { continue };
            if let Hello::Follow { process, .. } = arrived.hello {
                let why = format!(
                    "the cluster runs, with another process {process}; if that is gone, the \
                     leader will notice and start anew"
                );
                refuse(&mut arrived.stream, why);
            }
        }
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "nobody answers at the port of the cluster");
    }
}
