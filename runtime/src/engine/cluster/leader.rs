//! The leader's ends of the control connections: commands go out, rows and state come in.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use bytes::Bytes;
use tidegate_operators::{GroupSet, Snapshot, Tick};
use tidegate_pipelines::graph::Target;

use super::merge::Merge;
use super::wire::{self, Head, invalid};
use super::{PING_EVERY, SILENCE_MAX, Tell};
use crate::checkpoint::part;
use crate::engine::feed::{Command, Dealt, RemotePort};
use crate::engine::workers::Event;
use crate::stats::Stats;

/// Starts the threads that speak with the followers; each has so many workers.
pub(super) fn attach(
    followers: BTreeMap<usize, TcpStream>,
    workers: usize,
    (merge, stats): (&Arc<Merge>, &Arc<Stats>),
    on_lost: &Tell,
) -> io::Result<Vec<RemotePort>> {
    let mut ports = Vec::with_capacity(followers.len());
    for (process, stream) in followers {
        let (commands, dealt) = channel();
        let writing = stream.try_clone()?;
        let spawn = || std::thread::Builder::new().name(format!("process-{process}"));
        spawn().spawn(move || {
            // Whoever reads learns why, and better.
            let _ = write(writing, &dealt);
        })?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let (merge, stats) = (Arc::clone(merge), Arc::clone(stats));
        let on_lost = Arc::clone(on_lost);
        spawn().spawn(move || {
            if let Err(error) = read(stream, process, &merge, &stats) {
                let why = lost(&error);
                on_lost(&format!("process {process} of the cluster is gone ({why})"));
                let _ = merge.events.send(Event::Failed(format!("process {process} is gone")));
            }
        })?;
        ports.push(RemotePort { workers, commands });
    }
    Ok(ports)
}

/// What an error of a connection means.
pub(super) fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("nothing was heard of it for {} s", SILENCE_MAX.as_secs())
        }
        io::ErrorKind::UnexpectedEof => "it hung up".to_owned(),
        _ => error.to_string(),
    }
}

/// Sends what the feed deals, and that it is there while there is nothing to deal.
fn write(mut stream: TcpStream, dealt: &Receiver<Dealt>) -> io::Result<()> {
    loop {
        let Dealt(worker, command) = match dealt.recv_timeout(PING_EVERY) {
            Ok(dealt) => dealt,
            Err(RecvTimeoutError::Timeout) => {
                wire::write(&mut stream, &Head::Ping, &[])?;
                continue;
            }
            // The engine is gone without a word: end without closing windows.
            Err(RecvTimeoutError::Disconnected) => {
                return wire::write(&mut stream, &Head::End { flush: false }, &[]);
            }
        };
        let (head, body) = match command {
            Command::Messages(run) => {
                let worker = worker.unwrap_or_default();
                (Head::Messages { worker }, wire::messages_to_bytes(&run))
            }
            Command::Checkpoint { epoch, whole } => (Head::Checkpoint { epoch, whole }, Vec::new()),
            Command::Flush(epoch) => (Head::Flush { epoch }, Vec::new()),
            Command::NoNewKeys(epoch, but) => {
                (Head::NoNewKeys { epoch, but: Arc::unwrap_or_clone(but) }, Vec::new())
            }
            Command::Tick(Tick { epoch, time_us }) => (Head::Tick { epoch, time_us }, Vec::new()),
            Command::End { flush } => (Head::End { flush }, Vec::new()),
            Command::Change(_) => return Err(invalid("a plan cannot change in a cluster")),
        };
        wire::write(&mut stream, &head, &body)?;
    }
}

/// Passes on what a follower says, until its workers have ended.
fn read(mut stream: TcpStream, process: usize, merge: &Merge, stats: &Stats) -> io::Result<()> {
    loop {
        let (head, body) = wire::read(&mut stream)?;
        let event = match head {
            Head::Rows { table, epoch } => {
                let rows = wire::rows_of_bytes(&body)?;
                Event::Rows { target: Target::Table(table), epoch, rows }
            }
            Head::State { epoch } => state(epoch, &body)?,
            Head::Saved { epoch } => {
                merge.saved(process, epoch);
                continue;
            }
            Head::Done { epoch, time_us, counts } => {
                counts.add_to(stats);
                merge.done(process, Tick { epoch, time_us });
                continue;
            }
            Head::Failed { why } => Event::Failed(format!("process {process}: {why}")),
            Head::Ended { counts } => {
                counts.add_to(stats);
                merge.ended();
                return Ok(());
            }
            Head::Ping => continue,
            other => return Err(invalid(format!("it says {other:?}"))),
        };
        if merge.events.send(event).is_err() {
            // The engine has ended.
            return Ok(());
        }
    }
}

fn state(epoch: u64, body: &Bytes) -> io::Result<Event> {
    let part::Part { operator, pieces } = part::decode(body).map_err(invalid)?;
    let mut groups = GroupSet::default();
    groups.extend(pieces.iter().flat_map(|piece| &piece.groups).map(|(group, _)| *group));
    let pieces = pieces.into_iter().map(Ok);
    let state = Snapshot::in_pieces(groups, move |_| Ok(Box::new(pieces)));
    Ok(Event::State { name: operator, epoch, state })
}
