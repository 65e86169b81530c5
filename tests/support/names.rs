//! What nobody else uses: addresses to listen at, keys of requests.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};

/// Below the ports that the system gives to those who connect or do not ask for one: what is free
/// now is not taken by them before it is used.
const PORTS_FROM: u64 = 20_000;
const PORTS: u64 = 12_000;
/// So far apart do processes with successive numbers begin.
const PORTS_PER_PROCESS: u64 = 31;

fn next(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

/// An address of this machine at which nobody listens; each is given once.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..PORTS {
        let number = u64::from(std::process::id()) * PORTS_PER_PROCESS + next(&NEXT);
        let port = (PORTS_FROM + number % PORTS) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("all ports from {PORTS_FROM} on are taken");
}

/// The idempotency key of a request that no other one has.
pub(crate) fn request_key() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), next(&NEXT))
}
