//! A process that works for a leader: it has workers, and keeps nothing.
//!
//! It calls the leader until that answers, is told the plan and the state to begin with, and works
//! until the leader ends or anybody of the cluster is gone. Then there is nothing to keep: the
//! process starts anew and calls again.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, Snapshot, Tick};
use tidegate_pipelines::Plan;
use tidegate_pipelines::graph::Target;

use super::counts::Counts;
use super::gather::is_gone;
use super::greet::{Absent, Door, Hello, call};
use super::leader::lost;
use super::mesh::{self, Place};
use super::told::Told;
use super::wire::{self, Head, Welcome};
use super::{ClusterOptions, PING_EVERY, SILENCE_MAX, build};
use crate::checkpoint::part;
use crate::engine::feed::{Command, WorkerPort};
use crate::engine::workers::{self, Event, Reporter, WorkerPlan};
use crate::engine::{EVENTS_MAX, content};
use crate::stats::Stats;

/// Pauses between two calls: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(2);

/// Makes a plan of files that the leader has; none if it cannot.
type Load = fn(&[(PathBuf, String)]) -> Option<Plan>;

/// How the work for a leader came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// The leader has ended, and everything with it.
    Ended,
    /// It cannot go on, and why.
    Broken(String),
}

/// A follower.
pub struct Follower {
    /// The cluster.
    pub cluster: ClusterOptions,
    /// Number of this process; its address is the one of this number.
    pub process: usize,
    /// Makes the plan.
    pub load: Load,
}

impl Follower {
    /// Waits for a leader and works for it. Blocks. Threads of timely may be left when it returns:
    /// the process should start anew.
    ///
    /// # Errors
    /// Nobody can call here: the address is in use, or not of this machine; or it is not wanted any
    /// more.
    pub fn work(&self) -> anyhow::Result<Over> {
        let door = Door::open(&self.cluster.addresses[self.process], &self.cluster.secret)?;
        let (control, plan, place) = self.join(&door)?;
        (self.cluster.tell)(&format!(
            "working as process {} of {}, workers here: {}",
            self.process,
            self.cluster.processes(),
            plan.workers
        ));
        Ok(run(plan, place, control)
            .unwrap_or_else(|error| Over::Broken(format!("the leader is gone ({})", lost(&error)))))
    }

    /// Calls until a leader says what is to be run, and that can be.
    fn join(&self, door: &Door) -> anyhow::Result<Joined> {
        let leader = &self.cluster.addresses[0];
        (self.cluster.tell)(&format!("waiting for the leader at {leader}"));
        let hello = Hello::Follow {
            process: self.process,
            addresses: self.cluster.addresses.clone(),
            build: build(),
        };
        let mut pause = PAUSE_FIRST;
        let mut told = Told::default();
        loop {
            let why = match self.try_join(&hello, door) {
                Ok(joined) => return Ok(joined),
                Err(error) => error,
            };
            // A leader that is not there yet is what one waits for.
            let absent = why.downcast_ref::<Absent>().is_some();
            let why = format!("the leader at {leader} cannot be joined: {why:#}");
            if !absent && told.is_news(&why) {
                (self.cluster.tell)(&why);
            }
            self.cluster.wanted("it waited for the leader")?;
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(PAUSE_LAST);
        }
    }

    fn try_join(&self, hello: &Hello, door: &Door) -> anyhow::Result<Joined> {
        // Nobody of a gathering to come can have called already.
        while door.next(Duration::ZERO)?.is_some() {}
        let mut control = call(&self.cluster.addresses[0], &self.cluster.secret, hello)?;
        // The leader says every second that it is there, also while it waits for others.
        control.set_read_timeout(Some(SILENCE_MAX))?;
        let welcome = loop {
            match wire::read(&mut control)?.0 {
                Head::Ping => {}
                Head::Welcome(welcome) => break welcome,
                Head::Refused { why } => anyhow::bail!("{why}"),
                other => anyhow::bail!("it says {other:?}"),
            }
        };
        match self.begin(&mut control, door, &welcome) {
            Ok((plan, place)) => {
                wire::write(&mut control, &Head::Joined, &[])?;
                Ok((control, plan, place))
            }
            Err(error) => {
                let why = format!("{error:#}");
                let _ = wire::write(&mut control, &Head::Refused { why }, &[]);
                Err(error)
            }
        }
    }

    /// Understands what is to be run, and connects to the other processes.
    fn begin(
        &self,
        control: &mut TcpStream,
        door: &Door,
        welcome: &Welcome,
    ) -> anyhow::Result<(WorkerPlan, Place)> {
        let files: Vec<(PathBuf, String)> =
            welcome.files.iter().map(|(path, text)| (path.into(), text.clone())).collect();
        let mut state = Vec::with_capacity(welcome.states);
        while state.len() < welcome.states {
            if let (Head::Restore { operator }, body) = wire::read(control)? {
                state.push((operator, wire::rows_of_bytes(&body)?));
            }
        }
        let mut plan =
            (self.load)(&files).context("the pipelines of the leader have problems here")?;
        let ours: Vec<_> = content::fingerprints(&plan.pipelines).into_iter().collect();
        if ours != welcome.fingerprints {
            let other = ours.iter().filter(|p| !welcome.fingerprints.contains(p));
            let names: Vec<&str> = other.map(|(name, _)| name.as_str()).collect();
            anyhow::bail!(
                "the files of the leader make other pipelines here ({}): do the references in \
                 them (${{env:NAME}}, ${{file:PATH}}) stand for the same on both machines?",
                names.join(", ")
            );
        }
        number_sources(&mut plan.pipelines, &welcome.sources)?;
        let known = (door, &self.cluster.secret);
        let leader: &TcpStream = control;
        let still = || {
            anyhow::ensure!(!is_gone(leader), "it hung up while processes connected");
            self.cluster.wanted("the processes connected")
        };
        let addresses = &self.cluster.addresses;
        let place = mesh::connect(self.process, addresses, known, &welcome.run, &still)?;
        let plan = WorkerPlan {
            state,
            ..WorkerPlan::of(plan.pipelines, welcome.workers, welcome.first_epoch)
        };
        Ok((plan, place))
    }
}

/// Numbers the sources as the leader does: its feed says by number where messages are from.
fn number_sources(pipelines: &mut [PipelineSpec], sources: &[(String, u16)]) -> anyhow::Result<()> {
    for pipeline in pipelines {
        let of_leader = sources.iter().find(|(name, _)| *name == pipeline.name);
        let (_, number) = of_leader.with_context(|| {
            format!("the leader does not say which source is that of pipeline {}", pipeline.name)
        })?;
        pipeline.decode.source = *number;
    }
    Ok(())
}

/// The connection to the leader, what is to be run, and where this process stands.
type Joined = (TcpStream, WorkerPlan, Place);

/// The control connection, for those who say something on it.
struct Out {
    stream: Mutex<TcpStream>,
    /// Why this process cannot go on, once it cannot.
    broken: OnceLock<String>,
}

impl Out {
    fn new(control: &TcpStream) -> io::Result<Arc<Self>> {
        let stream = Mutex::new(control.try_clone()?);
        Ok(Arc::new(Self { stream, broken: OnceLock::new() }))
    }

    fn say(&self, head: &Head, body: &[u8]) -> io::Result<()> {
        wire::write(&mut *self.stream.lock().unwrap_or_else(PoisonError::into_inner), head, body)
    }

    /// Says what a thread that reports ended with. Without its reports no epoch would be complete
    /// any more, and the ping would go on: so the connection ends, and with it the cluster.
    fn unless_broken(&self, ended: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &ended {
            // That the connection is gone is noticed by whoever reads from it.
            if !is_of_connection(error) {
                let why = format!("what its workers report could not be sent: {error}");
                let _ = self.broken.set(why.clone());
                let _ = self.say(&Head::Failed { why }, &[]);
            }
            let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = stream.shutdown(Shutdown::Both);
        }
        ended
    }
}

/// Whether an error says that the other side is gone.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
}

/// Runs the workers and does what the leader says, to the end.
fn run(plan: WorkerPlan, place: Place, mut control: TcpStream) -> io::Result<Over> {
    let out = Out::new(&control)?;
    let stats = Arc::new(Stats::default());
    let (events, received) = sync_channel(EVENTS_MAX);
    let reporter = Reporter::alone(events);
    let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let (telling, pinging) = (Arc::clone(&out), Arc::clone(&out));
    // First of all: with much state, the workers take longer than silence may last.
    spawn("ping").spawn(move || {
        while pinging.say(&Head::Ping, &[]).is_ok() {
            std::thread::sleep(PING_EVERY);
        }
    })?;
    let started = workers::start_in(plan, place, Arc::clone(&stats), reporter);
    let (ports, timely) = match started {
        Ok(started) => started,
        Err(error) => {
            let why = format!("{error:#}");
            out.say(&Head::Failed { why: why.clone() }, &[])?;
            return Ok(Over::Broken(why));
        }
    };
    let told =
        spawn("events").spawn(move || telling.unless_broken(tell(&received, &telling, &stats)))?;
    let obeyed = obey(&mut control, &ports);
    if let (Err(_), Some(why)) = (&obeyed, out.broken.get()) {
        return Ok(Over::Broken(why.clone()));
    }
    obeyed?;
    drop(ports);
    // The end of the workers is the end of what they report; the last word is told by `tell`.
    drop(timely.join());
    match told.join() {
        Ok(told) => told.map(|()| Over::Ended),
        Err(_) => Ok(Over::Broken("reports could not be sent".to_owned())),
    }
}

/// Hands commands to the workers until the last one.
fn obey(control: &mut TcpStream, ports: &[WorkerPort]) -> io::Result<()> {
    let to = |port: &WorkerPort, command: Command| {
        // A worker that is gone has reported why; the leader will end.
        let _ = port.commands.send(command);
        port.thread.unpark();
    };
    loop {
        let (head, body) = wire::read(control)?;
        let command = match head {
            Head::Messages { worker } => {
                let run = Arc::new(wire::messages_of_bytes(&body)?);
                let port = ports.get(worker).ok_or_else(|| wire::invalid("no such worker"))?;
                to(port, Command::Messages(run));
                continue;
            }
            Head::Checkpoint { epoch, whole } => Command::Checkpoint { epoch, whole },
            Head::Flush { epoch } => Command::Flush(epoch),
            Head::NoNewKeys { epoch, but } => Command::NoNewKeys(epoch, Arc::new(but)),
            Head::Tick { epoch, time_us } => Command::Tick(Tick { epoch, time_us }),
            Head::End { flush } => Command::End { flush },
            Head::Ping => continue,
            other => return Err(wire::invalid(format!("it says {other:?}"))),
        };
        ports.iter().for_each(|port| to(port, command.clone()));
        if matches!(command, Command::End { .. }) {
            return Ok(());
        }
    }
}

/// Tells the leader what workers report. State is made into bytes on a thread of its own, so that
/// rows, and with them alerts, need not wait for it.
fn tell(received: &Receiver<Event>, out: &Arc<Out>, stats: &Stats) -> io::Result<()> {
    let (states, saving) = savers(out)?;
    for event in received {
        match event {
            Event::Rows { target: Target::Table(table), epoch, rows } => {
                out.say(&Head::Rows { table, epoch }, &wire::rows_to_bytes(&rows)?)?;
            }
            Event::State { name, epoch, state } => {
                let _ = states.send(Saving::State(name, epoch, state));
            }
            Event::Done(Tick { epoch, time_us }) => {
                let counts = Counts::take(stats);
                out.say(&Head::Done { epoch, time_us, counts }, &[])?;
                let _ = states.send(Saving::Through(epoch));
            }
            Event::Failed(why) => out.say(&Head::Failed { why }, &[])?,
            Event::Ended => break,
            // The leader tells these itself.
            Event::Rows { .. }
            | Event::Checkpoint(_)
            | Event::Saved(_)
            | Event::Flushed
            | Event::Switch(_) => {}
        }
    }
    drop(states);
    match saving.join() {
        Ok(saved) => saved?,
        Err(_) => return Err(io::Error::other("state could not be sent")),
    }
    out.say(&Head::Ended { counts: Counts::take(stats) }, &[])
}

/// State on its way, and marks that all of it was handed over up to an epoch.
enum Saving {
    State(String, Epoch, Snapshot),
    Through(Epoch),
}

fn savers(out: &Arc<Out>) -> io::Result<(Sender<Saving>, JoinHandle<io::Result<()>>)> {
    let (states, queue) = channel();
    let out = Arc::clone(out);
    let thread = std::thread::Builder::new().name("state".into());
    let thread = thread.spawn(move || out.unless_broken(save(queue, &out)))?;
    Ok((states, thread))
}

fn save(queue: Receiver<Saving>, out: &Out) -> io::Result<()> {
    for saving in queue {
        match saving {
            Saving::State(name, epoch, state) => {
                for saved in state.parts().map_err(wire::invalid)? {
                    let part = part::encode(&name, &saved).map_err(wire::invalid)?;
                    out.say(&Head::State { epoch }, &part)?;
                }
            }
            Saving::Through(epoch) => out.say(&Head::Saved { epoch }, &[])?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpListener;

    use arrow::error::ArrowError;
    use tidegate_operators::GroupSet;

    use super::*;

    /// Both ends of a connection.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn state_that_cannot_be_sent_ends_the_work_on_both_sides() {
        let (mut control, mut leader) = connection();
        for end in [&control, &leader] {
            end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        let out = Out::new(&control).unwrap();
        let (states, _saving) = savers(&out).unwrap();
        let error = || Err(ArrowError::ComputeError("too much".into()).into());
        let state = Snapshot::new(GroupSet::default(), move |_| error());
        states.send(Saving::State("p/w".into(), 3, state)).unwrap();
        let Head::Failed { why } = wire::read(&mut leader).unwrap().0 else { panic!() };
        assert!(why.contains("could not be sent") && why.contains("too much"), "{why}");
        for end in [&mut leader, &mut control] {
            let kind = wire::read(end).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(out.broken.get(), Some(&why));
    }

    #[test]
    fn a_source_has_the_number_that_the_leader_says() {
        let (first, second) = (spec("a"), spec("b"));
        let mut pipelines = vec![first, second];
        number_sources(&mut pipelines, &[("b".into(), 1), ("a".into(), 2)]).unwrap();
        assert_eq!(pipelines.iter().map(|p| p.decode.source).collect::<Vec<_>>(), [2, 1]);
        let error = number_sources(&mut pipelines, &[("a".into(), 0)]).unwrap_err();
        assert!(error.to_string().contains("of pipeline b"), "{error}");
    }

    fn spec(name: &str) -> PipelineSpec {
        let plan = crate::engine::cluster::tests::plan("1m");
        PipelineSpec { name: name.into(), ..plan.pipelines[0].clone() }
    }
}
