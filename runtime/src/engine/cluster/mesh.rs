//! The connections between all processes on which timely exchanges rows and progress.
//!
//! Of two processes the one with the higher number calls. Timely would connect by itself, but to
//! anybody; these are greeted like all others (`greet.rs`) and then handed to it.

use std::any::Any;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use timely::CommunicationConfig;
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::{AllocatorBuilder, Hooks};

use super::LOOK;
use super::greet::{ClusterSecret, Door, Hello, call};

/// How long processes that were all there a moment ago have to connect to each other.
const CONNECT_MAX: Duration = Duration::from_secs(120);

/// Where the workers of this process stand among those of all.
#[derive(Default)]
pub(crate) struct Place {
    /// Number of this process.
    pub(crate) process: usize,
    /// Connections to all processes by their number, none to itself; nothing if there is only one.
    sockets: Vec<Option<TcpStream>>,
}

impl Place {
    /// The number of processes.
    pub(crate) fn processes(&self) -> usize {
        self.sockets.len().max(1)
    }

    /// What timely makes the workers of this process of.
    pub(crate) fn allocators(self, workers: usize) -> Result<Allocators, String> {
        if self.sockets.is_empty() {
            return CommunicationConfig::Process(workers).try_build();
        }
        let hooks = Hooks::default();
        let inner = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), None);
        let connected =
            initialize_networking_from_sockets(inner, self.sockets, self.process, workers, hooks);
        let (builders, guard) = connected.map_err(|error| error.to_string())?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }
}

/// Timely's halves of workers, and what joins its threads.
pub(crate) type Allocators = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

/// Connects this process to all others of a run. `still` is asked again and again whether that has
/// a sense: an error of it ends the waiting at once.
///
/// # Errors
/// One of them cannot be reached or does not call in time, or that of `still`.
pub(super) fn connect(
    process: usize,
    addresses: &[String],
    (door, secret): (&Door, &ClusterSecret),
    run: &str,
    still: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Place> {
    let mut sockets = Vec::with_capacity(addresses.len());
    for (other, address) in addresses.iter().enumerate().take(process) {
        still()?;
        let hello = Hello::Data { run: run.to_owned(), process };
        let stream = call(address, secret, &hello);
        sockets.push(Some(
            stream.with_context(|| format!("cannot connect to process {other} at {address}"))?,
        ));
    }
    sockets.resize_with(addresses.len(), || None);
    let deadline = Instant::now() + CONNECT_MAX;
    while let Some(missing) = (process + 1..addresses.len()).find(|p| sockets[*p].is_none()) {
        still()?;
        let Some(arrived) = door.next(LOOK)? else {
            let address = &addresses[missing];
            let late = Instant::now() > deadline;
            anyhow::ensure!(!late, "process {missing} at {address} does not connect");
            continue;
        };
        if let Hello::Data { run: theirs, process: from } = arrived.hello
            && theirs == run
            && from > process
            && let Some(place) = sockets.get_mut(from)
        {
            *place = Some(arrived.stream);
        }
    }
    Ok(Place { process, sockets })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nobody_is_waited_for_once_it_has_no_sense() {
        let secret = ClusterSecret::new("0123456789abcdef").unwrap();
        let door = Door::open("127.0.0.1:0", &secret).unwrap();
        let addresses = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
        let begun = Instant::now();
        let still = || {
            anyhow::ensure!(begun.elapsed() < 3 * LOOK, "the leader is gone");
            Ok(())
        };
        let error = connect(0, &addresses, (&door, &secret), "r", &still).err().unwrap();
        assert_eq!(error.to_string(), "the leader is gone");
        assert!(begun.elapsed() < CONNECT_MAX / 4, "{:?}", begun.elapsed());
    }
}
